"""A GPU's first ten minutes: what is run, in which order, and how it ends. Here with steps made up."""

import json
from pathlib import Path

from profiling import first, run
from profiling.sections.recipes import find_recipe
from spiketriton.config import load_recipe
from tests.processes import done


def made_up(name: str, code: str, seconds: int = 60, needs: str = "") -> first.Step:
    return first.Step(name, "why", seconds, ("-c", code), needs)


def test_each_step_is_bounded_and_one_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(first, "LEAST", 1.0)
    plan = [
        made_up("right", "print('found', flush=True)"),
        made_up("broken", "raise SystemExit(3)"),
        made_up("hangs", "import time; print('so far', flush=True); time.sleep(600)", seconds=1),
        made_up("bare", "", needs="no_such_package"),
    ]
    lines = list(first.run(plan, tmp_path, minutes=10))
    says = ["done in", "exit code 3 after", "stopped after", "left out, no_such_package is missing"]
    for line, part in zip(lines, says, strict=True):
        assert part in line
    assert (tmp_path / "first-1.txt").read_text() == "found\n"
    assert list(first.run(plan[:1], tmp_path, minutes=0.01)) == [
        "[1/1] right (why): not reached, --minutes are over"
    ]


def test_every_command_of_the_plan_is_understood(tmp_path):
    """Of a process each: that of a rehearsal, too."""
    plan = first.steps(tmp_path)
    assert [step.name for step in plan][:3] == ["doctor", "tests", "kernels"]
    for step in (*plan, *first.steps(tmp_path, quick=True, device="cpu")):
        program, *rest = step.command
        if program == "profiling/run.py":
            args = run.parse(rest)
            assert args.out == tmp_path
            assert all(find_recipe(word) for word in args.words)
        elif "spiketriton.train" in rest:
            load_recipe(Path(first.ROOT / rest[1]), tuple(w for w in rest if "=" in w))
    setting = find_recipe("spikingjelly_740")
    assert (setting.data.classes, setting.train.optimizer) == (1000, "sgd")


def test_a_machine_without_rich_and_torchvision_measures_and_prints_markdown(tmp_path):
    block = (
        "import sys; sys.modules['rich'] = sys.modules['torchvision'] = None; sys.path[:0] = ['.', 'kernels'];"
        "import profiling.run as run; run.find_spec = lambda name: None;"
        f"raise SystemExit(run.main(['host', '--quick', '--device', 'cpu', '--out', {str(tmp_path)!r}]))"
    )
    ended = done("-c", block, folder=first.ROOT)
    assert ended.returncode == 0, ended.stderr
    assert "| --- |" in ended.stdout
    (file,) = tmp_path.glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[0])["section"] == "host"
