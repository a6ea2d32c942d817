"""Every reader of a run folder and of data files, on damaged and hostile files: it reads, or refuses by a UserError.

One line that names the file; no traceback, no hang, and no code of the file runs. docs/trust.md.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spiketriton import api
from spiketriton.data import idx
from spiketriton.data.splits import Photo, check_file
from spiketriton.diagnose.diagnosed import find_subject
from spiketriton.evaluate import tables as evaluation_tables
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.evaluate.results import read_evaluation
from spiketriton.events import cache
from spiketriton.events.formats import FORMATS, read_events
from spiketriton.export.nir_file import export_nir
from spiketriton.export.nir_network import network
from spiketriton.export.weights import export_safetensors
from spiketriton.report import page as report_page
from spiketriton.runs.checkpoint import Checkpoints, _write_part, read_checkpoint
from spiketriton.runs.folder import RunFolder
from spiketriton.show import run_pictures
from spiketriton.system import consent
from spiketriton.system.errors import UserError
from spiketriton.training.pretrained import find_weights
from spiketriton.training.trained import load_run
from spiketriton.training.trainer import Trainer
from spiketriton.training.weights import make_run
from tests.event_files import write_events
from tests.small_events import random_events
from tests.small_runs import Lines, small_trainer

DIGEST = hashlib.sha256(b"{}").hexdigest()  # of the settings of frames
QUICK, SLOW = 6, 410  # inputs of each target: some 150 and 10,000 in all
SECONDS = 30  # of a processor, for one input: a machine may have other work


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


# ---- how files are damaged

WORDS = [
    b"",
    b"\0",
    b"\xff" * 4,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"9" * 30,
    b"\n",
    b"=",
]
VALUES = [
    *(None, True, -1, 0, 2**70, 1e308, float("inf"), "", "x", "\0", "../.."),
    *([], [[]], {}, {"x": 1}, [None, "x"]),
]


def in_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, taken away, repeated or put in, or the end cut."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        at = rng.choice((at, min(at, rng.randrange(64))))  # headers more often
        end = at + rng.choice((1, 2, 4, rng.randrange(1, 64)))
        how = rng.randrange(5)
        if how == 0:
            data[at:end] = rng.randbytes(len(data[at:end]))
        elif how == 1:
            del data[at:end]
        elif how == 2:
            data[at:at] = data[at:end]
        elif how == 3:
            data[at:end] = rng.choice(WORDS)
        else:
            del data[at:]
    return bytes(data)


def in_values(value, rng: random.Random):
    """Plain data with one value changed, taken away or repeated, anywhere inside."""
    how = rng.random()
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if how < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.2 and isinstance(key, str):
            return {k + "x" * (k == key): v for k, v in value.items()}
        return {**value, key: in_values(value[key], rng)}
    if isinstance(value, list | tuple) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        if how < 0.2:
            return [*value[:at], *[value[at]] * (2 * (how < 0.1)), *value[at + 1 :]]
        return [*value[:at], in_values(value[at], rng), *value[at + 1 :]]
    return rng.choice(VALUES)


def in_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(in_values(json.loads(content), rng)).encode()


def in_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of JSON, one of them with another value."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    return b"\n".join([*lines[:at], in_json(lines[at], rng), *lines[at + 1 :]]) + b"\n"


def forged(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint with another value, and the right checksum."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    # of a checkpoint, `resume` alone reads these
    kept = {k: state.pop(k) for k in ("optimizer", "random") if k in state}
    changed = in_values(state, rng)
    if isinstance(changed, dict):
        changed |= kept
    return _write_part(Path("forged.pt"), changed).read_bytes()


# ---- what reads them


def _page(run: RunFolder) -> None:
    rows = run.metrics.read()
    api.table(rows)
    run_pictures.curves(rows, "")
    page = report_page.Page(run, run.load_recipe(), [])
    page.facts()
    "".join([*page.environment(), *page.commands()])


def _gradients(run: RunFolder) -> None:
    "".join(report_page.Page(run, run.load_recipe(), []).gradients())


def _evaluation(run: RunFolder) -> None:
    one = read_evaluation(run.path / "evaluation" / "evaluation.json")
    evaluation_tables.steps_table([one])
    evaluation_tables.layers_table(one)
    evaluation_tables.verdict(one, [one, dataclasses.replace(one)])
    report_page.Page(run, run.load_recipe(), [one]).facts()


def _weights(run: RunFolder) -> None:
    load_run(run.path)
    find_weights(str(run.path / "checkpoints" / "last.pt"))
    dict(find_subject(str(run.path), [], warn=lambda text: None).state or {})


RUN_TARGETS = {  # file of the run: how it is damaged, who reads it
    "recipe.toml": ((in_bytes,), lambda run: run.load_recipe()),
    "metrics.jsonl": ((in_bytes, in_lines), _page),
    "gradients.jsonl": ((in_bytes, in_lines), _gradients),
    "judged.jsonl": ((in_bytes, in_lines, in_lines), _gradients),
    "environment.json": ((in_bytes, in_json), _page),
    "evaluation/evaluation.json": ((in_bytes, in_json), _evaluation),
    "checkpoints/last.pt": ((in_bytes, forged, forged), _weights),
}


def _frames(path: Path) -> None:
    job = cache.Job.__new__(cache.Job)  # of the files that `made` makes
    job.__dict__.update(digest=DIGEST, every=range(4), steps=3, size=8)
    cache._complete(path.parent, job)


def _image(path: Path) -> None:
    check_file(path, "a")
    Photo(path, "a").decode()


IMAGES = ("png", "jpg", "gif", "tif")
DATA_TARGETS = {
    **dict.fromkeys(
        ("images-idx3-ubyte", "images-idx3-ubyte.gz"), lambda path: idx.read(path, rank=3)
    ),
    **{f"events.{name}": lambda path, name=name: read_events(path, name) for name in FORMATS},
    **dict.fromkeys(("frames.npy", "facts.npy"), _frames),
    **{f"image.{ending}": _image for ending in IMAGES},
}


@contextlib.contextmanager
def in_time():
    def late(*_):
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with a file of every kind."""
    path = tmp_path_factory.mktemp("fuzz") / "run"
    keys = ["train.epochs=1", "train.log_every=3"]
    trainer = small_trainer(path, *keys)
    trainer.fit()
    plain = {
        "environment": [{"recipe": "small", "command": "x", "time": "now", "threads": 1}],
    }
    for name, value in plain.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    (path / "evaluation").mkdir()
    (path / "evaluation" / "evaluation.json").write_text(evaluate(load_run(path)).to_json())
    return path


@pytest.fixture
def hunt(pytestconfig, tmp_path, monkeypatch):
    """Each seed damages by `damage(rng)`, which returns the reader: what is wrong, once each, with its seed."""
    monkeypatch.chdir(tmp_path)

    def hunt(target: str, damage, names: list[str]) -> None:
        found = {}
        for seed in range(SLOW if pytestconfig.getoption("--slow") else QUICK):
            read = damage(random.Random(f"{target} {seed}"))
            if wrong := refused_or_read(read, names, tmp_path / "marker"):
                found.setdefault(wrong[:60], (seed, wrong))
        assert not found, "\n".join(f"seed {seed}: {wrong[:300]}" for seed, wrong in found.values())

    return hunt


def of_file(file: Path, damages, read):
    """Damages a file, and returns its reader."""
    content = file.read_bytes()
    read()  # as it is

    def damage(rng: random.Random):
        file.write_bytes(rng.choice(damages)(content, rng))
        return read

    return damage


def refused_or_read(read, names: list[str], marker: Path) -> str:
    """What is wrong with how a damaged file was received; "" for nothing."""
    try:
        with (
            warnings.catch_warnings(),
            in_time(),
            consent.decided(False),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            read()
    except UserError as error:
        text = str(error)
        if "\n" in text or not any(name in text for name in names):
            return f"UserError that names no file, or in several lines: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "code of the file ran" if marker.exists() else ""


@pytest.mark.parametrize("target", RUN_TARGETS)
def test_files_of_a_run(whole, target, hunt, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(whole, run.path)
    file = run.path / target
    run.metrics.warn = run.gradients.warn = lambda text: None
    damages, read = RUN_TARGETS[target]
    # a checkpoint holds the recipe, and shapes are those of two files
    hunt(target, of_file(file, damages, lambda: read(run)), [file.name, str(run.path)])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_states_of_a_resumed_run(optimizer, hunt, tmp_path):
    """A checkpoint with another value in it: the run is refused, or takes its next step."""
    keys = ["model.name=mlp", "model.depth=2", "train.ema=0.9", f"train.optimizer={optimizer}"]
    trainer = small_trainer(tmp_path / "run", *keys)
    trainer.fit(until=3)
    state = read_checkpoint(trainer.checkpoints.folder / "last.pt")
    resumed = [name for name in state if name not in ("recipe", "name", "version", "data")]

    def damage(rng):
        part = rng.choice(resumed)
        changed = {**state, part: in_values(state[part], rng)}
        if rng.random() < 0.05:
            del changed[part]
        again = Trainer(trainer.recipe, trainer.data, trainer.folder, Lines())
        return lambda: (again.load_state_dict(changed), again.fit(until=4))

    hunt(optimizer, damage, ["the checkpoint is damaged"])


def in_metadata(content: bytes, rng: random.Random) -> bytes:
    """A file of safetensors with another value in its header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    said = header["__metadata__"]
    key = rng.choice(list(said))
    if key == "data":
        said[key] = json.dumps(in_values(json.loads(said[key]), rng))
    elif rng.random() < 0.7:
        said[key] = in_bytes(said[key].encode(), rng).decode("latin-1")
    else:
        header = in_values(header, rng)
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def _pulled(file: Path) -> None:
    shutil.rmtree("new", ignore_errors=True)
    load_run(make_run(file, "new").path)


@pytest.mark.parametrize("target", ["net.safetensors", "net.nir"])
def test_files_of_networks(whole, target, hunt, tmp_path):
    file, run = tmp_path / target, load_run(whole)
    if target == "net.nir":
        pytest.importorskip("nir")
        export_nir(run, file, dt=1.0, images=1)
        damage = of_file(file, [in_bytes], lambda: network(str(file)))
    else:
        pytest.importorskip("safetensors")
        export_safetensors(run, file)
        damage = of_file(file, [in_bytes, in_metadata, in_metadata], lambda: _pulled(file))
    hunt(target, damage, [file.name, "new"])


@pytest.mark.parametrize("target", DATA_TARGETS)
def test_files_of_data(target, hunt, tmp_path):
    made(tmp_path)
    file = tmp_path / target
    hunt(target, of_file(file, [in_bytes], lambda: DATA_TARGETS[target](file)), [file.name])


def made(folder: Path) -> None:
    """A small file for each reader of data."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 4, 4)).astype(np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    (folder / "images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes(), mtime=0))
    for name in FORMATS:
        write_events(folder / f"events.{name}", random_events(rng, 60, (32, 32)), name)
    np.save(folder / "frames.npy", rng.integers(0, 9, (4, 3, 2, 8, 8)).astype(np.uint8))
    facts = np.zeros(4, cache.FACTS)
    facts["done"] = 1
    np.save(folder / "facts.npy", facts)
    (folder / "settings.json").write_text("{}")
    image = Image.fromarray(rng.integers(0, 256, (24, 20, 3)).astype(np.uint8))
    for ending in IMAGES:
        image.save(folder / f"image.{ending}")


UNPICKLED = {  # file -> how a payload gets into it, and its reader
    "last.pt": (
        lambda file, it: Checkpoints(file.parent, print).save_as(file, {"x": it}),
        read_checkpoint,
    ),
    "weights.pt": (
        lambda file, it: torch.save({"model": it}, file),
        lambda file: find_weights(str(file)),
    ),
    "last.npy": (lambda file, it: np.save(file, np.array([it], object)), read_events),
    "last.npz": (
        lambda file, it: np.savez(file, **{name: np.array([it], object) for name in "txyp"}),
        read_events,
    ),
    "facts.npy": (lambda file, it: np.save(file, np.array([it] * 4, object)), _frames),
}


@pytest.mark.parametrize("name", UNPICKLED)
def test_no_reader_unpickles_code(name, tmp_path):
    """Files that are whole, and hold a payload."""
    made(tmp_path)
    file, marker = tmp_path / name, tmp_path / "marker"
    write, read = UNPICKLED[name]
    write(file, Payload(marker))
    assert refused_or_read(lambda: read(file), [name], marker) == ""
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # it is one
