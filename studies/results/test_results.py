"""The results' pages say what the rows say, and a row what its run folder holds."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spiketriton
from spiketriton.config import load_recipe, to_toml
from spiketriton.diagnose.__main__ import main as diagnose
from spiketriton.runs.rows import Rows
from spiketriton.system import consent
from spiketriton.system.errors import UserError
from spiketriton.train import main as train
from spiketriton.training.trained import load_run
from studies.results import pages
from studies.results import run as script
from tests.small_runs import QUICK, small_trainer
from tests.small_sequences import CHANNELS, CLASSES, sequence_recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS = script.read()


def test_the_pages_have_the_tables_of_the_rows():
    folder = ROOT / "examples" / "weights"
    text, weights = pages.ALL_ROWS.read_text("utf-8"), pages.WEIGHTS_PAGE.read_text("utf-8")
    assert pages.page(pages.ALL_ROWS, pages.table(ROWS)) == text
    assert pages.page(pages.WEIGHTS_PAGE, pages.table_of_weights(ROWS)) == weights
    for path in pages.PAGES:
        assert pages.with_tables(path, ROWS) == path.read_text("utf-8")
    named = re.findall(r"^\| `(\w+)` \|", weights, re.MULTILINE)
    assert sorted({*named} - {"quickstart", "digits_dvs"}) == sorted(
        row["name"] for row in ROWS if row["weights"]
    )
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


RECORD = re.compile(
    r"^\| ([\d-]+) \| (\d+) % of (.+?) \| (\d+) \| (\d+) \| (\d+ x \d+) \| (\d+) \| (\w+) \|$",
    re.MULTILINE,
)


def test_records_are_what_the_curves_of_their_rows_say():
    """race.md: how soon the rows that differ by the seed alone reach an accuracy, on average."""
    records = RECORD.findall((HERE / "race.md").read_text("utf-8"))
    assert len(records) >= 6
    for date, percent, data, minutes, threads, spikes, count, name in records:
        seeds = pages.seeds_of(name, ROWS)
        shown = pages.Shown(name, ROWS)
        assert (data, threads, count) == tuple(map(shown.cell, ("data", "threads", "seeds"))), name
        assert spikes == shown.cell("spikes")
        first = [next(t for t, a in pages.curve_of(r, ROWS) if a >= float(percent)) for r in seeds]
        assert minutes == f"{statistics.mean(first):.0f}", name
        assert date >= "2026-11-30"


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
    found = pages.by_seeds(rows)
    assert found == [
        (pytest.approx(81.5), [rows[0], rows[2]]),
        (pytest.approx(81.0), [rows[1]]),
        (pytest.approx(90.0), [rows[3]]),
    ]


def test_seeds_of_another_library_take_the_rate_that_the_first_one_searched():
    start = "python studies/results/peers.py --library snntorch --recipe spoken_digits"
    end = " --epochs 6 --lr 1e-3 2e-3 --seed 0 --threads 1 --validation 10"
    same = (f"{start}{end}", f"{start} --epochs 6 --lr 2e-3 --seed 1 --threads 1")
    assert {pages.seedless(one) for one in same} == {f"{start} --epochs 6 --threads 1"}
    for other in (f"{start} loss.read=last{end}", f"{start}{end}".replace("epochs 6", "epochs 7")):
        assert pages.seedless(other) != pages.seedless(same[0])
    for _, rows in pages.by_seeds(ROWS):
        assert len({row["seed"] for row in rows}) == len(rows)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_rival_without_spikes_becomes_a_row(tmp_path, cell, monkeypatch):
    """Another's network, trained on sequences as users train theirs."""
    recipe = tmp_path / "tones.toml"
    text = to_toml(sequence_recipe("train.epochs=1", "train.batch_size=32"))
    recipe.write_text(text.replace("width = 8\n", "").replace("depth = 2\n", ""), "utf-8")
    words = [f"model.name=studies.results.rivals:{cell}", "model.arguments.width=5"]
    path = tmp_path / "run"
    assert train([str(recipe), *words, "--run-dir", str(path), "--quiet"]) == 0
    with pytest.raises(UserError, match="nothing to measure: the network has no spiking neuron"):
        diagnose([str(path), "--trust-plugins"])
    monkeypatch.setattr(script, "refuse_changed_code", lambda *given: None)
    with consent.decided(True):
        row = script.row_of(load_run(path), "a", "")
    assert (row["neuron"], row["levels"]) == (f"{cell} (ANN)", "-")
    assert (row["T"], row["spikes"]) == ("-", "-")
    gates = {"gru": 3, "lstm": 4}[cell]
    of_layers = [gates * 5 * (before + 5 + 2) for before in (CHANNELS, 5)]
    assert row["parameters"] == str(sum(of_layers) + 6 * CLASSES)
    row["command"] = f"spiketriton train recipes/spoken_digits.toml {' '.join(words)}"
    assert pages.net_of(row) == "2 layers of 5"


def test_a_page_shows_the_mean_of_the_seeds_beside_the_twin(tmp_path):
    row = {
        "name": "a", "data": "cifar10", "neuron": "ilif", "levels": "8", "T": "1", "epochs": "40", "seed": "0",
        "accuracy": "80.00", "minutes": "40.0", "machine": "A CPU, bf16, 2 threads", "memory_mb": "70", "read": "mean",
        "images_per_s": "9", "command": "spiketriton train recipes/cifar10_r18.toml",
    }  # fmt: skip
    seed = {"name": "b", "seed": "1", "accuracy": "83.00", "minutes": "44.0"}
    twin = {"name": "t", "neuron": "relu (ANN)", "levels": "-", "T": "-", "accuracy": "85.00"}
    rows = [
        row,
        row | seed | {"command": f"{row['command']} seed=1"},
        row | twin | {"command": f"{row['command']} neuron.kind=relu"},
        row
        | {
            "name": "w",
            "command": "spiketriton train recipes/cifar10_r18.toml train.init_from=runs/a",
        },
    ]
    path = tmp_path / "docs" / "a.md"
    path.parent.mkdir()
    columns = "data, net, neuron, spikes, accuracy, lowest, highest, seeds, twin, minutes, threads"
    mark = f"<!-- rows {columns}: a/t, t, w -->\n"
    path.write_text(f"before\n{mark}old\n<!-- end -->\nafter\n", encoding="utf-8")
    made = pages.with_tables(path, rows)
    net = "[ResNet-18 of width 32](rows.md#command-{})".format
    assert made.startswith(f"before\n{mark}| data | net | neuron | levels x steps | accuracy, % |")
    assert made.endswith("|\n<!-- end -->\nafter\n")
    assert made.splitlines()[4:7] == [
        f"| CIFAR-10 | {net('a')} | I-LIF | 8 x 1 | **81.5** | 80.0 | 83.0 | 2 | 85.0 | 42 | 2 |",
        f"| CIFAR-10 | {net('t')} | ReLU | - | **85.0** | 85.0 | 85.0 | 1 |  | 40 | 2 |",
        f"| CIFAR-10 | {net('w')} | I-LIF | 8 x 1 | **80.0** | 80.0 | 80.0 | 1 |  | 80 | 2 |",
    ]
    path.write_text(mark.replace("a/t", "missing") + "<!-- end -->\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no row 'missing'; it has a, b, t, w"):
        pages.with_tables(path, rows)
    path.write_text(f"{mark}<!-- end -->\n", encoding="utf-8")
    rows[2]["command"] += " model.width=48"
    with pytest.raises(UserError, match="t is no twin of a: it is another network"):
        pages.with_tables(path, rows)
    rows[2]["data"] = "cifar10 (JPEG)"
    with pytest.raises(UserError, match="t is no twin of a: it has other images"):
        pages.with_tables(path, rows)


def test_a_row_stands_beside_what_it_scores_without_time(tmp_path, monkeypatch):
    known = {row["name"]: row for row in ROWS}
    for one in pages.read_without_time():
        assert one["baseline"] in pages.BASELINES.values()
        assert known[one["name"]]["data"]
        assert 0 <= float(one["accuracy"]) <= 100
    path = tmp_path / "without_time.csv"
    monkeypatch.setattr(pages, "WITHOUT_TIME", path)
    path.write_text(
        'name,baseline,accuracy\na,"the same net, steps shuffled",40.00\n'
        'b,"the same net, steps shuffled",41.00\nc,"the same net, steps shuffled",9.00\n',
        encoding="utf-8",
    )
    first = {
        "name": "a",
        "data": "d",
        "machine": "m",
        "accuracy": "80",
        "command": "spiketriton train r.toml",
    }
    rows = [first, first | {"name": "b", "command": f"{first['command']} seed=1"}]
    assert pages.Shown("a", rows).cell("shuffled") == "40.5"
    with pytest.raises(
        UserError, match="does not have a linear classifier of the mean step of a or b"
    ):
        pages.Shown("a", rows).cell("mean step")


def test_pictures_name_rows_that_there_are_and_at_most_five():
    for title, curves in pages.PICTURES.values():
        assert title
        assert 1 <= len(curves) <= len(pages.LOOKS) <= 5
        for name in curves:
            assert pages.seeds_of(name, ROWS)


def test_a_row_that_begins_with_anothers_weights_counts_its_minutes_and_epochs():
    first = {"name": "a", "minutes": "47.1", "epochs": "30", "command": "spiketriton train r.toml"}
    start = "spiketriton train r.toml train.init_from=examples/weights/{} train.lr=3e-3"
    rows = [first]
    for name, before in (("a", "b"), ("b", "c")):
        command = start.format(f"{name}.safetensors")
        rows.append({"name": before, "minutes": "10", "epochs": "0.5", "command": command})
    theirs = start.format("../theirs.safetensors")
    stranger = {"name": "d", "minutes": "5", "epochs": "2", "command": theirs}
    longer = {
        "name": "e",
        "minutes": "7",
        "epochs": "3",
        "command": "spiketriton train r.toml train.init_from=runs/c",
    }
    everything = [*rows, stranger, longer]
    found = [pages.whole_minutes(row, everything) for row in everything]
    assert found == pytest.approx([47.1, 57.1, 67.1, 5, 74.1])
    epochs = [pages.epochs_of(row, everything) for row in everything]
    assert epochs == ["30", "30.5", "31", "2", "34"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["neuron.kind=lif"], "1"),
        (["neuron.kind=ilif", "neuron.levels=3"], "3"),
        (["neuron.kind=relu"], "-"),
    ],
)
def test_levels_are_those_of_the_neuron(changes, said):
    assert script.levels_of(load_recipe("cifar10_r20", ["time_steps=4", *changes])) == said


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


def test_what_a_run_of_sequences_scores_without_time_replaces_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "run"
    small_trainer(path, *QUICK, "data.sequence=rows", "model.name=sequence", "time_steps=8").fit()
    monkeypatch.setattr(pages, "WITHOUT_TIME", tmp_path / "without_time.csv")
    others = [
        {"name": name, "baseline": "the same net, steps shuffled", "accuracy": "1"} for name in "ab"
    ]
    script.write(pages.WITHOUT_TIME, tuple(others[0]), others)
    script.add_without_time(load_run(path), "a")
    shuffled, linear = (found[1] for found in pages.BASELINES.items() if found[0] != "events")
    found = pages.read_without_time()
    assert [(one["name"], one["baseline"]) for one in found] == [
        ("b", shuffled),
        ("a", shuffled),
        ("a", linear),
    ]
    assert all(0 < float(one["accuracy"]) <= 100 for one in found[1:])


@pytest.mark.parametrize(
    ("largest_of_16_bits", "dtype", "rtol", "atol"),
    [(2_000_000, torch.bfloat16, 2**-8, 0), (99, torch.float8_e4m3fn, 2**-4, 2**-10)],
)
def test_weights_of_a_row_are_rounded_matrices_within_the_limit(
    run, tmp_path, monkeypatch, largest_of_16_bits, dtype, rtol, atol
):
    monkeypatch.setattr(script, "LARGE", largest_of_16_bits)
    file = tmp_path / "net.safetensors"
    script.write_weights(str(run), file)
    whole, read = load_run(run).model.state_dict(), load_file(file)
    matrices = {name for name, value in whole.items() if value.ndim > 1}
    assert {name for name, value in read.items() if value.dtype == dtype} == matrices
    for name, value in whole.items():
        again = read[name].to(value.dtype)
        close = torch.allclose(again, value, rtol=rtol, atol=atol)
        assert close if name in matrices else torch.equal(again, value)
    loaded = spiketriton.load_run(file)
    for name, value in loaded.model.state_dict().items():  # as they were trained, in fp32
        assert value.dtype == whole[name].dtype
        assert torch.equal(value, read[name].to(value.dtype))
    assert torch.isfinite(loaded.predict(torch.rand(4, 1, 8, 8))).all()
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
