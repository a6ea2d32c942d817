"""What a plain training imports: the core, and neither a room nor a study."""

import json
import subprocess
import sys

from spiketriton.system.commandline import ROOMS
from tests.child import environment

LOOKED_AT = """
import json, sys
from matplotlib.figure import Figure
from spiketriton.__main__ import dispatch
Figure.savefig = lambda self, file, **options: file.write(b"a picture")
few = ["train.max_steps=1", "data.train_images=64", "data.test_images=16", "data.image_size=8", "data.workers=0"]
dispatch(["train", "quickstart", *few, "--run-dir", "run", "--quiet"])
print(json.dumps([name for name in sys.modules if name.split(".")[0] in ("spiketriton", "studies")]))
"""


def test_a_plain_training_imports_no_room_and_no_study(tmp_path):
    run = [sys.executable, "-c", LOOKED_AT]
    done = subprocess.run(run, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    assert not {name.split(".")[1] for name in names if "." in name} & {*ROOMS, "events"}
    assert "spiketriton.training.trainer" in names
    assert not [name for name in names if name.startswith("studies")]
