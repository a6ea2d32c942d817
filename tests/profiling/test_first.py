"""A GPU's first ten minutes: what is run, in which order, and how it ends. Here with steps made up."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from profiling import first, run
from profiling.harness.attribution import OURS
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
    ended = list(first.run(plan, tmp_path, minutes=10))
    says = ["done in", "exit code 3 after", "stopped after", "left out, no_such_package is missing"]
    for one, part in zip(ended, says, strict=True):
        assert part in one.line
    assert [one.right for one in ended] == [True, False, False, None]
    assert (tmp_path / "first-1.txt").read_text() == "found\n"
    (late,) = first.run(plan[:1], tmp_path, minutes=0.01)
    assert late.line == "[1/1] right (why): not reached, --minutes are over"
    assert late.right is None


ROW = {
    "section": "step",
    "recipe": "imagenette_r50",
    "status": "ok",
    "why": "",
    "quick": False,
    "run": "9999",
}
ROW |= {"device": "NVIDIA H100 80GB HBM3", "median_ms": 75.0}


def measuring(*rows: dict) -> first.Step:
    """A step that writes rows as a session does."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return made_up("ResNet-50", f"open('rows.jsonl', 'a').write({text!r})")


def test_it_ends_with_a_table_an_archive_and_a_code_that_tells_a_failure(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(first, "ROOT", tmp_path)  # where steps run
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"run": "0000", "median_ms": 1}) + "\n")
    part = {"part": "norms", "kernel": "walk", "calls": 2, "ms": 19.3, "bytes": 5, "of_copy": 0.8}
    twin = ROW | {"contender": "ANN twin", "median_ms": 30.0, "parts": [part], "trace": "t.json.gz"}
    (tmp_path / "t.json.gz").write_text("a trace")
    wrong = ROW | {"contender": "convolutions alone", "status": "failed", "why": "a reason"}
    kernels = [{"part": OURS, "calls": 9, "ms": 20.0}, {"part": "optimizer", "calls": 1, "ms": 1.0}]
    kernels = [one | {"kernel": "k", "bytes": None, "of_copy": None} for one in kernels]
    ours = ROW | {"contender": "spiketriton", "parts": kernels}
    plan = [measuring(ours, twin, wrong), made_up("right", "")]
    monkeypatch.setattr(first, "steps", lambda *given: plan)
    call = ["first", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert run.main(call) == 0
    said = (tmp_path / "first.md").read_text()
    assert "|   spiketriton | imagenette_r50 | ok |  | 75.0 | 78.0 |" in said
    assert "|     norms and neurons, ours | 9.00 calls |  |  | 20.0 | 24.0 |" in said
    assert "|     optimizer | 1.00 calls |  |  | 1.00 | - |" in said
    assert "|   ANN twin | imagenette_r50 | ok |  | 30.0 | - |" in said
    assert "|     norms | 2.00 calls | 80.0 % of a copy |  | 19.3 | - |" in said
    assert "| imagenette_r50 | failed: a reason | FAILED |" in said
    with tarfile.open(tmp_path / "first.tar.gz") as tar:
        names = set(tar.getnames())
        rows = tar.extractfile("first/first-rows.jsonl.txt").read().decode().splitlines()
    assert names >= {"first/first.md", "first/first-1.txt", "first/first-2.txt", "first/t.json.gz"}
    assert [json.loads(row)["median_ms"] for row in rows] == [75.0, 30.0, 75.0]  # of this run alone
    plan.append(made_up("broken kernel", "raise SystemExit(1)"))
    assert run.main(call) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert shown.rstrip().endswith("first.tar.gz")


@pytest.mark.parametrize(
    ("printed", "right", "how"),
    [("3 passed in 1 s", True, "done in"), ("3 skipped in 1 s", None, "no test was run")],
)
def test_tests_that_were_skipped_prove_nothing(tmp_path, monkeypatch, printed, right, how):
    (tmp_path / "pytest.py").write_text(f"print({printed!r})")
    monkeypatch.setattr(first, "ROOT", tmp_path)
    step = first.Step("tests", "why", 60, ("-m", "pytest"))
    (one,) = first.run([step], tmp_path, minutes=10)
    assert one.right is right
    assert how in one.how


def test_predictions_are_those_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text("utf-8")
    for recipe, head in (
        ("imagenette_r50", "| `imagenette_r50` (T = 10, 32 images) |"),
        ("spikingjelly_740", "| SpikingJelly's setting, 112 images |"),
    ):
        (line,) = (line for line in page.splitlines() if line.startswith(head))
        cells = [re.match(r" (\d+) \+ (\d+) = (\d+)", cell) for cell in line.split("|")[2:-1]]
        found = [tuple(map(int, cell.groups())) for cell in cells]
        assert found == [(*of[recipe], sum(of[recipe])) for of in first.PREDICTED.values()]


def test_every_command_of_the_plan_is_understood(tmp_path):
    """Of a process each: that of a rehearsal, too."""
    plan = first.steps(tmp_path)
    assert [step.name for step in plan][:3] == ["doctor", "tests", "kernels"]
    for step in (*plan, *first.steps(tmp_path, quick=True, device="cpu")):
        program, *rest = step.command
        if program == "profiling/run.py":
            args = run.parse(rest)
            assert args.out == tmp_path
            names = [word for word in args.words if "=" not in word]
            changes = [word for word in args.words if "=" in word]
            assert all(find_recipe(name, changes) for name in names)
            assert args.trace == (args.command == "step")
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
