"""What a plain training imports: the core, and no room; and how much that is."""

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
ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "spiketriton"}
print(json.dumps({name: module.__file__ for name, module in ours.items()}))
"""


def test_a_plain_training_imports_no_room_and_at_most_12500_lines(tmp_path):
    run = [sys.executable, "-c", LOOKED_AT]
    done = subprocess.run(run, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout.splitlines()[-1])
    rooms = {name.split(".")[1] for name in files if "." in name} & {*ROOMS, "events"}
    assert not rooms
    assert "spiketriton.training.trainer" in files
    lines = 0
    for file in files.values():
        with open(file, encoding="utf-8") as text:
            lines += sum(1 for _ in text)
    assert lines <= 12_500, lines
