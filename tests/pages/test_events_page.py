"""docs/events.md, as it is typed: its five commands, shorter and on smaller frames, and its Python."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketriton.system.commandline import home_of
from spiketriton.system.errors import EXIT_DONE
from tests.event_files import write_events
from tests.small_events import random_events

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
SENSOR = (260, 346)
SHORTER = {
    "train.epochs=30": ["train.max_steps=2", "train.batch_size=4"],
    "train.max_steps=20": ["train.max_steps=1", "train.batch_size=4"],
}


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """The folder of the page, with two recordings of each class and set, and one to be answered."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("push", "wave"):
            for number in range(2):
                path = tmp_path / "mine" / part / name / f"{number}.aedat"
                write_events(path, random_events(rng, 500, SENSOR), "aedat3")
    write_events(tmp_path / "new.aedat", random_events(rng, 500, SENSOR), "aedat3")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_pictures", "mine")
def test_the_page_runs_from_top_to_bottom(capsys):
    text = PAGE.read_text("utf-8").replace("size=64", "size=32")
    (shell,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [line for line in shell.replace("\\\n", " ").splitlines() if line[0] != "#"]
    assert len(commands) == 5
    for command in commands:
        _, option, *words = shlex.split(command)
        if option == "-c":
            exec(words[0], {})
            assert capsys.readouterr().out.startswith("500 [(")
            continue
        main = importlib.import_module(home_of(option)).main
        assert main([w for word in words for w in SHORTER.get(word, [word])]) in (EXIT_DONE, None)
    said = capsys.readouterr()
    assert said.err.count("built once") == 1  # by the short run, for the long one
    assert "4 training and 4 test recordings of 10 frames of 2x32x32, 2 classes" in said.out
    assert "10 (" in said.out
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    whole = names["run"].predict(names["counts"].astype("u1")[None])
    torch.testing.assert_close(names["answer"], whole[0])
    assert Path("runs/mine/report.html").stat().st_size > 100_000
