"""docs/results.md says what its rows say, and a row what its run folder holds."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spiketriton
from spiketriton.config import load_recipe
from spiketriton.runs.rows import Rows
from spiketriton.system.errors import UserError
from spiketriton.training.trained import load_run
from studies.results import run as script
from tests.small_runs import QUICK, small_trainer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS = script.read()


def test_the_pages_have_the_tables_of_the_rows():
    page, folder = ROOT / "docs" / "results.md", ROOT / "examples" / "weights"
    text, weights = page.read_text("utf-8"), (folder / "README.md").read_text("utf-8")
    assert script.page(page, script.table(ROWS)) == text
    assert all(f"**{row['accuracy']}**" in text for row in ROWS)
    assert script.page(folder / "README.md", script.table_of_weights(ROWS)) == weights
    named = re.findall(r"^\| `(\w+)` \|", weights, re.MULTILINE)
    assert sorted(named) == sorted(file.stem for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_a_row_is_its_curve(row):
    tests = Rows(script.CURVES / f"{row['name']}.jsonl").read()
    percents = [script.percent(test["test_accuracy"]) for test in tests]
    assert row["accuracy"] == percents[-1]
    assert row["best"] == max(percents, key=float)
    assert float(row["minutes"]) == pytest.approx(tests[-1]["seconds"] / 60, abs=0.051)
    assert tests[-1]["epoch"] == float(row["epochs"])
    known = ("recipes/", "examples/weights/", "examples/", "studies/results/", "init_from=runs/")
    elsewhere = re.sub("|".join(known), "", row["command"])
    assert "/" not in elsewhere  # no place of the machine it ran on
    weights = ROOT / "examples" / "weights" / f"{row['name']}.safetensors"
    assert weights.exists() == bool(row["weights"])


def test_the_race_is_the_rows_of_its_recipe():
    """race.md: how soon the curves of `cifar10_speedrun` reach two accuracies, on average of three seeds."""
    command = "spiketriton train recipes/cifar10_speedrun.toml train.threads=1"
    seeds = [
        row for row in ROWS if row["command"] in (command, *(f"{command} seed={n}" for n in (1, 2)))
    ]
    assert [row["seed"] for row in seeds] == ["0", "1", "2"]
    text = " ".join((HERE / "race.md").read_text("utf-8").split())
    for accuracy, words in ((0.75, "**75 % after {} minutes"), (0.80, "80 % after {}**")):
        first = []
        for row in seeds:
            tests = Rows(script.CURVES / f"{row['name']}.jsonl").read()
            first.append(next(t["seconds"] for t in tests if t["test_accuracy"] >= accuracy))
        assert words.format(round(statistics.mean(first) / 60)) in text


def test_a_line_names_the_net_its_neuron_and_its_steps():
    row = {"T": "1", "levels": "4", "neuron": "ilif", "machine": "A CPU, fp32, 1 thread"}
    command = "spiketriton train recipes/cifar10_r20.toml train.optimizer=adamw neuron.kind=ilif"
    wide = f"{command} model.name=resnet18 model.width=32 train.init_from=examples/weights/a.pt"
    twin = row | {
        "T": "-",
        "levels": "-",
        "neuron": "relu (ANN)",
        "command": command.replace("ilif", "relu"),
    }
    theirs = row | {"T": "2", "levels": "1", "neuron": "lif (A 1.0)"}
    theirs["command"] = "python studies/results/peers.py"
    assert [script.line_of(row | {"command": words})[0] for words in (command, wide)] == [
        "ResNet-20, I-LIF, T = 1 x 4",
        "ResNet-18 of width 32, I-LIF, T = 1 x 4",
    ]
    assert script.line_of(twin)[0] == "ResNet-20, ANN twin"
    assert script.line_of(twin | {"machine": "A CPU, bf16, 2 threads"})[0].endswith(
        "ANN twin, bf16, 2 threads"
    )
    assert script.line_of(theirs)[0] == "A 1.0, ResNet-20, LIF, T = 2"
    theirs["machine"] = "A CPU (wide), fp32, 1 thread"
    assert script.line_of(theirs)[0] == "A 1.0, ResNet-20, LIF, T = 2, wide"
    theirs["machine"] = "A(R) CPU(R), fp32, 1 thread"
    assert script.line_of(theirs)[0] == "A 1.0, ResNet-20, LIF, T = 2"


def test_rows_that_differ_by_the_seed_alone_have_one_mean():
    rows = [
        {
            "data": "d",
            "accuracy": accuracy,
            "machine": machine,
            "command": f"spiketriton train r.toml {words}",
        }
        for accuracy, words, machine in (
            ("80.0", "", "a"),
            ("81.0", "train.lr=1", "a"),
            ("83.0", "seed=1", "a"),
            ("90.0", "seed=2", "b"),
        )
    ]
    found = script.by_seeds(rows)
    assert found == [
        (pytest.approx(81.5), [rows[0], rows[2]]),
        (pytest.approx(81.0), [rows[1]]),
        (pytest.approx(90.0), [rows[3]]),
    ]


def test_the_picture_has_the_best_row_of_each_net_neuron_and_machine():
    def row(accuracy, words="", machine="A CPU, bf16, 1 thread", neuron="ilif"):
        command = f"spiketriton train recipes/cifar10_r20.toml {words}"
        return {
            "data": "d",
            "T": "1",
            "accuracy": accuracy,
            "machine": machine,
            "neuron": neuron,
            "command": command,
        }

    seeds = [row("80.0"), row("82.0", "seed=1")]  # the mean of two
    best = row("83.0", "time_steps=2")
    others = [
        row("70.0", "neuron.kind=lif", neuron="lif"),
        row("79.0", machine="A CPU, fp32, 1 thread"),
        row("90.0", "model.name=vgg8"),
        row("60.0") | {"neuron": "lif (A 1.0)", "command": "python studies/results/peers.py --x"},
    ]
    threads = row("50.0", "time_steps=3", machine="A CPU, bf16, 2 threads")
    wide = row("50.0", machine="A CPU (wide), fp32, 1 thread")
    found = script.best_of_each([*seeds, best, *others, threads, wide])
    assert [mean for mean, _ in found] == [90, 83, 79, 70, 60, 50]
    assert [rows for _, rows in found] == [
        [others[2]],
        [best],
        [others[1]],
        [others[0]],
        [others[3]],
        [wide],
    ]


def test_a_row_that_begins_with_anothers_weights_counts_its_minutes():
    first = {"name": "a", "minutes": "47.1", "command": "spiketriton train r.toml"}
    start = "spiketriton train r.toml train.init_from=examples/weights/{} train.lr=3e-3"
    rows = [first]
    for name, before in (("a", "b"), ("b", "c")):
        command = start.format(f"{name}.safetensors")
        rows.append({"name": before, "minutes": "10", "command": command})
    stranger = {"name": "d", "minutes": "5", "command": start.format("../theirs.safetensors")}
    longer = {
        "name": "e",
        "minutes": "7",
        "command": "spiketriton train r.toml train.init_from=runs/c",
    }
    everything = [*rows, stranger, longer]
    found = [script.minutes_before(row, everything) for row in everything]
    assert found == pytest.approx([0, 47.1, 57.1, 0, 67.1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["neuron.kind=lif"], ("1", "4")),
        (["neuron.kind=ilif", "neuron.levels=3"], ("3", "4 x 3")),
        (["neuron.kind=relu"], ("-", "-")),
    ],
)
def test_levels_stand_beside_the_steps(changes, said):
    levels = script.levels_of(load_recipe("cifar10_r20", ["time_steps=4", *changes]))
    steps = "-" if levels == "-" else "4"
    assert (levels, script.steps_of({"levels": levels, "T": steps})) == said


def test_a_command_loses_its_places_alone():
    given = "spiketriton train recipes/a.toml data.root=/x data.workers=0 seed=1 --run-dir /y train.lr=1e-2"
    assert script.command(given) == "spiketriton train recipes/a.toml seed=1 train.lr=1e-2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "run"
    small_trainer(path, *QUICK, "train.epochs=2").fit()
    return path


def test_a_row_says_what_the_run_folder_holds(run, monkeypatch):
    found = load_run(run)
    monkeypatch.setattr(
        type(found.folder),
        "sessions",
        lambda folder: [
            {
                "time": "then", "dirty": False, "commit": "0123456789ab", "device": "cpu", "cpu": "A CPU", "cuda": None,
                "threads": 1, "precision": "fp32", "command": "spiketriton train a.toml data.root=/x",
            }
        ],
    )  # fmt: skip
    row = script.row_of(found, "a", "a.safetensors")
    assert tuple(row) == script.COLUMNS
    last = [r for r in Rows(run / "metrics.jsonl").read() if r["kind"] == "eval"][-1]
    assert row["accuracy"] == f"{100 * last['test_accuracy']:.2f}"
    assert (row["epochs"], row["T"], row["neuron"], row["commit"]) == ("2", "3", "lif", "012345678")
    assert (row["levels"], row["read"], row["data"]) == ("1", "mean", "digits")
    assert (row["command"], row["machine"]) == ("spiketriton train a.toml", "A CPU, fp32, 1 thread")
    with script.ROWS.open(encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == script.COLUMNS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.max_steps=3"], "not been tested after its last epoch"),
        ([], "code that is in no commit"),
    ],
)
def test_an_unfinished_run_or_unknown_code_has_no_row(tmp_path, monkeypatch, changes, words):
    small_trainer(tmp_path / "run", *QUICK, "train.epochs=2", *changes).fit()
    found = load_run(tmp_path / "run")
    session = {"time": "then", "dirty": True, "commit": "0123", "device": "cpu"}
    monkeypatch.setattr(type(found.folder), "sessions", lambda folder: [session])
    with pytest.raises(UserError, match=words):
        script.row_of(found, "a", "a.safetensors")


def test_a_row_of_anothers_loop_takes_a_fuller_name_of_the_processor(tmp_path, monkeypatch):
    session = {"cpu": "A CPU", "threads": 1, "commit": "0123456789ab", "dirty": False, "version": "1.0"}  # fmt: skip
    about = {
        "command": "python studies/results/peers.py", "library": "A", "steps": 1, "epochs": 2, "seed": 0,
        "files": "JPEG", "parameters": 7, "sessions": [session | {"time": "then"}],
    }  # fmt: skip
    tested = {
        "kind": "eval", "step": 9, "epoch": 2, "seconds": 90, "test_accuracy": 0.5, "test_loss": 1, "test_images": 4,
        "images_per_s": 3, "peak_memory_mib": 10, "firing_rate": 0.1,
    }  # fmt: skip
    (tmp_path / "peer.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(tested) + "\n", encoding="utf-8")
    monkeypatch.setattr(script, "ROWS", tmp_path / "rows.csv")
    monkeypatch.setattr(script, "CURVES", tmp_path)
    for processor, said in (("", "A CPU"), ("A CPU (wide)", "A CPU (wide)")):
        script.add(str(tmp_path), "a", processor)
        (row,) = script.read()
        assert row["machine"] == f"{said}, fp32, 1 thread"
        assert (row["accuracy"], row["minutes"], row["neuron"]) == ("50.00", "1.5", "lif (A 1.0)")


def test_weights_of_a_row_are_rounded_matrices_within_the_limit(run, tmp_path, monkeypatch):
    file = tmp_path / "net.safetensors"
    script.write_weights(str(run), file)
    whole, read = load_run(run).model.state_dict(), load_file(file)
    assert {name: value.dtype for name, value in read.items() if value.ndim > 1} == {
        name: torch.bfloat16 for name, value in whole.items() if value.ndim > 1
    }
    for name, value in whole.items():
        again = read[name].to(value.dtype)
        assert (
            torch.equal(again, value)
            if value.ndim < 2
            else torch.allclose(again, value, rtol=2**-8)
        )
    images = torch.rand(4, 1, 8, 8)
    given, found = (spiketriton.load_run(path).predict(images) for path in (run, file))
    torch.testing.assert_close(found, given, atol=0.2, rtol=0)
    (tmp_path / "other.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(script, "LARGEST", 99 + file.stat().st_size)
    before = file.read_bytes()
    with pytest.raises(
        UserError, match=r"would make [\d,]+ bytes of weights; accepted: [\d,]+ in all"
    ):
        script.write_weights(str(run), file)
    assert file.read_bytes() == before


def test_all_weights_together_stay_small():
    assert sum(file.stat().st_size for file in script.WEIGHTS.iterdir()) <= script.LARGEST == 12e6
