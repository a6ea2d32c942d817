"""A GPU's first ten minutes: what is run, in which order, and how it ends. Here with steps made up."""

import json
import re
import tarfile
from pathlib import Path

import pytest
import torch

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
    assert (tmp_path / "first-1-right.txt").read_text() == "found\n"
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


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Runs `first` with steps that are made up: its exit code, and first.md."""
    monkeypatch.setattr(first, "ROOT", tmp_path)  # where steps run

    def run_it(*plan: first.Step) -> tuple[int, str]:
        monkeypatch.setattr(first, "steps", lambda *given: list(plan))
        code = run.main(["first", "--quick", "--device", "cpu", "--out", str(tmp_path)])
        return code, (tmp_path / "first.md").read_text()

    return run_it


FACTS = {"device_type": "cuda", "threads": 1, "torch": "2.13", "commit": "0123456789", "T": 4}
FACTS |= {"op": "lif", "mode": "training", "shape": [2, 3], "dtype": "bf16", "layout": "contiguous"}


def test_it_ends_with_a_table_an_archive_and_a_code_that_tells_a_failure(planned, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"run": "0000", "median_ms": 1}) + "\n")
    (tmp_path / "first-7-of-an-earlier-run.txt").write_text("old")
    part = {"part": "norms", "kernel": "walk", "calls": 2, "ms": 19.3, "bytes": 5, "of_copy": 0.8}
    twin = ROW | {"contender": "ANN twin", "median_ms": 30.0, "parts": [part], "trace": "t.json.gz"}
    (tmp_path / "t.json.gz").write_text("a trace")
    kernels = [{"part": OURS, "calls": 9, "ms": 20.0}, {"part": "optimizer", "calls": 1, "ms": 1.0}]
    kernels = [one | {"kernel": "k", "bytes": None, "of_copy": None} for one in kernels]
    ours = ROW | FACTS | {"contender": "spiketriton", "parts": kernels}
    mode = ROW | {"section": "modes", "recipe": "cifar_r20", "median_ms": 17.0}
    eager, graph = mode | {"contender": "ms"}, mode | {"contender": "ms graph", "median_ms": 2.4}
    plain = mode | {"contender": "plain", "median_ms": 18.0}
    (case,) = [FACTS | {"section": "kernels", "device": "NVIDIA H100", "status": "ok", "why": ""}]
    copy = case | {"contender": "copy", "median_ms": 1.0, "of_copy": 1.0}
    kernel = case | {"contender": "spiketriton", "median_ms": 1.2, "of_copy": 0.83}
    plan = [
        measuring(ours, twin),
        measuring(eager, graph, plain),
        measuring(copy, kernel),
        made_up("right", ""),
    ]
    code, said = planned(*plan)
    assert code == 0
    assert said.startswith(
        "**The first minutes: NVIDIA H100 80GB HBM3, torch 2.13, commit 01234567"
    )
    assert "|   spiketriton | imagenette_r50 | ok |  | 75.0 | 78.0 |" in said
    assert "|     norms and neurons, ours | 9.00 calls |  |  | 20.0 | 24.0 |" in said
    assert "|     optimizer | 1.00 calls |  |  | 1.00 | - |" in said
    assert "|   ANN twin | imagenette_r50 | ok |  | 30.0 | - |" in said
    assert "|     norms | 2.00 calls | 80.0 % of a copy |  | 19.3 | - |" in said
    assert "|   ms | cifar_r20 | ok |  | 17.0 | 16.0 |" in said
    assert "|   ms graph | cifar_r20 | ok |  | 2.40 | 2.20 |" in said
    assert "|   plain | cifar_r20 | ok |  | 18.0 | - |" in said
    assert "| --- | --- | --- | --- | ---: | ---: |" in said
    label = "lif training T=4 2x3 bf16 contiguous"
    assert f"|   spiketriton | {label} | 83.0 % of a copy |  | 1.20 | - |" in said
    assert "copy |" not in said.replace("of a copy |", "")
    assert said.rstrip().endswith("all right")
    with tarfile.open(tmp_path / "first.tar.gz") as tar:
        names = set(tar.getnames())
        rows = tar.extractfile("first/first-rows.jsonl.txt").read().decode().splitlines()
    logs = {f"first-{n}-resnet-50.txt" for n in (1, 2, 3)} | {"first-4-right.txt"}
    others = {"first.md", "first-rows.jsonl.txt", "t.json.gz"}
    assert names == {f"first/{name}" for name in logs | others}  # of this run alone
    assert [json.loads(row)["median_ms"] for row in rows] == [75.0, 30.0, 17.0, 2.4, 18.0, 1.0, 1.2]
    code, said = planned(*plan, made_up("broken kernel", "raise SystemExit(1)"))
    assert code == 1
    assert "| broken kernel | why | exit code 1 after" in said
    assert capsys.readouterr().out.rstrip().endswith("first.tar.gz")


@pytest.mark.parametrize("status", ["wrong result", "failed", "out of memory"])
@pytest.mark.parametrize("section", ["step", "modes", "kernels"])
def test_what_was_measured_and_is_wrong_fails_its_step_by_name(planned, section, status):
    wrong = ROW | FACTS | {"section": section, "contender": "spiketriton", "status": status}
    wrong |= {"why": "a reason", "median_ms": None}
    code, said = planned(measuring(wrong), made_up("hangs", ""), made_up("bare", "", needs="no_x"))
    assert code == 1
    assert f"| {status}: a reason | FAILED |" in said
    assert "s, with failures | FAILED |" in said
    assert f"FAILED, ResNet-50: imagenette_r50, spiketriton: {status}: a reason" in said
    assert "not known, because it was not reached, left out or skipped: bare" in said


@pytest.mark.parametrize(
    ("printed", "repeated"),
    [
        (["ok    A: fine", "wrong B: 3 spikes differ", "2 checks"], ["wrong B: 3 spikes differ"]),
        (
            ["..F", "FAILED test_gpu.py::test_x - no", "1 failed"],
            ["FAILED test_gpu.py::test_x - no"],
        ),
        (["Traceback", "torch.AcceleratorError: illegal"], ["torch.AcceleratorError: illegal"]),
        (["so far", "the last line", ""], ["the last line"]),
        ([f"wrong {n}" for n in range(9)], [f"wrong {n}" for n in range(first.MOST)]),
    ],
)
def test_a_step_that_failed_is_told_by_its_own_lines(planned, printed, repeated):
    text = "\n".join(printed)
    code, said = planned(made_up("doctor", f"print({text!r}); raise SystemExit(1)"))
    assert code == 1
    told = [line for line in said.splitlines() if line.startswith("FAILED, doctor: ")]
    assert told == [f"FAILED, doctor: {line}" for line in repeated]


def test_a_step_that_was_stopped_is_told_by_its_limit(planned, monkeypatch):
    monkeypatch.setattr(first, "LEAST", 0.3)
    hangs = made_up("hangs", "import time; print('wrong A', flush=True); time.sleep(60)", seconds=1)
    code, said = planned(hangs)
    assert code == 1
    assert re.search(r"^FAILED, hangs: stopped after \d+ s, its limit$", said, re.MULTILINE)


def test_a_gpu_that_pytorch_counts_and_cannot_use_ends_with_the_table_too(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = []
    monkeypatch.setattr(first, "steps", lambda *given: seen.append(given[1:]) or [])
    monkeypatch.setattr(first, "run", lambda *_: [first.Ended(made_up("a", ""), "line", "", False)])
    assert run.main(["first", "--out", str(tmp_path)]) == 1
    assert seen == [(False, "cuda", "auto")]
    shown = capsys.readouterr().out
    assert shown.startswith("PyTorch counts a GPU and cannot use it: ")
    assert (tmp_path / "first.tar.gz").exists()


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
    _, _, *lines = page.partition("| milliseconds of a step |")[2].partition("\n\n")[0].splitlines()
    rows = [[float(cell) for cell in line.split("|")[4:-1]] for line in lines]
    for recipe, whole, ours in (
        ("imagenette_r50", *rows[:2]),
        ("spikingjelly_740", *rows[4:]),
    ):
        found = [(total - part, part) for total, part in zip(whole, ours, strict=True)]
        assert found == [of[recipe] for of in first.PREDICTED.values()]
    assert list(zip(*rows[2:4], strict=True)) == list(first.MODES.values())
    assert list(first.MODES) == list(first.PREDICTED)


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
    assert (find_recipe("cifar_r20").time_steps, find_recipe("cifar_r20").train.batch_size) == (
        4,
        128,
    )
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
