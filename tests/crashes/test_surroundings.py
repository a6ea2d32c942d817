"""Every command where something is amiss: nobody reads its output, the disk is full, it is killed.

Each call runs in a fork of this process, which has imported torch already.
"""

import contextlib
import ctypes
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from spiketriton.export.nir_file import export_nir
from spiketriton.export.weights import export_safetensors
from spiketriton.runs.checkpoint import read_checkpoint
from spiketriton.runs.rows import Rows
from spiketriton.system.commandline import COMMANDS, Parser, home_of
from spiketriton.system.errors import EXIT_DONE, EXIT_ERROR, EXIT_USER, run_command
from spiketriton.training.trained import load_run
from tests.small_runs import SMALL, small_trainer

# a call of each command, and what is there once it has ended; further words of a name tell its options
FEW = ["data.train_images=32", "data.test_images=16", "time_steps=2"]
NET = ["model.name=mlp", "model.depth=2"]
BESIDE = ["--against", "ann", "--out"]
CALIBRATED = ["--method", "calibrated", "--steps", "2"]
EULER = ["--dt", "1", "--reset", "hard"]
TRAINED = ["--checkpoint", "last", "--trust-plugins"]
CALLS: dict[str, tuple[list[str], str]] = {
    "train": (["small.toml", *FEW, "train.epochs=4", "--run-dir", "new"], "new/curves.png"),
    "sweep": (["small.toml", *FEW, *NET, "seed=0,1", "train.epochs=1", "--out", "s"], "s/results.json"),
    "diagnose": (["small.toml", *FEW, *NET, "--out", "d"], "d/diagnosis.png"),
    "diagnose run": (["lif", "--batches", "2", "--tries", "2", "--trust-plugins"], "lif/diagnosis.png"),
    "evaluate": (["lif"], "lif/evaluation/confusion.png"),
    "convert": (["ann", "--steps", "2", "--images", "16", "--run-dir", "c"], "c/recipe.toml"),
    "export": (["lif", "--to", "torch", "--checkpoint", "last", "--trust-plugins"], "lif/small.pt2"),
    "report": (["lif"], "lif/report.html"),
    "import": (["net.nir", "small.toml", *FEW, *EULER, "--run-dir", "i"], "i/recipe.toml"),
    "export weights": (["net.safetensors", "--to", "torch", "--out", "w.pt2"], "w.pt2"),
    "recipes": ([], "small.toml"),
    "config": ([], "small.toml"),
    "predict": (["lif", "one.png"], "one.png"),
    "doctor": (["train.device=cpu"], "small.toml"),
    "train quiet": (["small.toml", *FEW, *NET, "--quiet", "--run-dir", "q"], "q/curves.png"),
    "train json": (["small.toml", *FEW, *NET, "--json", "--run-dir", "j"], "j/curves.png"),
    "train extended": (["--resume", "lif", "--extend", "train.max_steps=4", "--trust-plugins"], "lif/curves.png"),
    "diagnose json": (["lif", "--json", "--out", "d"], "d/diagnosis.json"),
    "evaluate json": (["lif", *TRAINED, "--json", "--batch-size", "8", *BESIDE, "e"], "e/evaluation.json"),
    "evaluate steps": (["lif", "--steps", "1,3", "--images", "8"], "lif/evaluation/rates.png"),
    "evaluate binary": (["ilif", "--binary"], "ilif/evaluation/confusion.png"),
    "convert calibrated": (["ann", *TRAINED, *CALIBRATED, "--run-dir", "c"], "c/recipe.toml"),
    "convert channels": (["ann", "--per-channel", "--percentile", "99", "--run-dir", "c"], "c/recipe.toml"),
    "export nir": (["lif", "--to", "nir", "--images", "1", "--dt", "1"], "lif/small.nir"),
    "export onnx": (["lif", "--to", "onnx", "--batch-size", "2"], "lif/small.onnx"),
    "export step": (["lif", "--to", "onnx", "--stream"], "lif/small_step.onnx"),
    "export safetensors": (["lif", "--to", "safetensors", "--out", "w"], "w"),
    "report against": (["lif", "--trust-plugins", *BESIDE, "r.html"], "r.html"),
    "report plain": (["lif", "--no-evaluation"], "lif/report.html"),
    "recipes name": (["quickstart"], "small.toml"),
    "config schema": (["--schema"], "small.toml"),
    "predict json": (["lif", *TRAINED, "one.png", "--top", "2", "--json"], "one.png"),
    "doctor json": (["train.device=cpu", "--json"], "small.toml"),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    errors: str


def begin(
    command: str,
    at: Path,
    arguments: list[str] | None = None,
    amiss: Callable[[], None] = lambda: None,
    encoding: str = "utf-8",
) -> int:
    """Starts a call in a process of its own, in the folder `at`; its number."""
    if pid := os.fork():
        return pid
    try:
        os.chdir(at)
        for number, path in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        amiss()
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, None)  # as Python has it where it is closed
            with contextlib.suppress(OSError):
                os.fstat(number)
                setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
        code: object = 70
        try:
            name = command.split()[0].replace("config", "config.__main__")
            main = import_module(home_of(name)).main
            run_command(main, CALLS[command][0] if arguments is None else arguments)
        except SystemExit as left:
            code = left.code
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(int(str(code)))
    finally:
        os._exit(71)


def end(pid: int, at: Path) -> Ended:
    _, status = os.waitpid(pid, 0)
    paths = [at / "out.txt", at / "err.txt"]  # killed before it had an output: none
    said = (path.read_text("latin-1") if path.exists() else "" for path in paths)
    return Ended(os.waitstatus_to_exitcode(status), *said)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two spiking runs and an ANN, of a few steps."""
    root = tmp_path_factory.mktemp("made")
    (root / "small.toml").write_text(SMALL.replace("batch_size = 16", "batch_size = 8"))
    for name, kind in (("lif", "lif"), ("ann", "relu"), ("ilif", "ilif")):
        few = [*FEW, *NET, f"neuron.kind={kind}", "train.batch_size=8", "train.max_steps=2"]
        trainer = small_trainer(root / name, *few)
        trainer.fit()
    Image.new("L", (8, 8)).save(root / "one.png")
    run = load_run(root / "lif")
    export_nir(run, root / "net.nir", dt=1.0, images=1)
    export_safetensors(run, root / "net.safetensors")
    return root


@pytest.fixture(autouse=True)
def noise_for_pictures(monkeypatch) -> None:
    """Pictures that take no time to draw, and more than 4 kB."""
    content = io.BytesIO()
    Image.frombytes("L", (100, 100), random.Random(0).randbytes(10_000)).save(content, "png")
    picture = content.getvalue()
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(picture))


@pytest.fixture
def place(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "place")


# ---- what may be amiss


def nobody_reads() -> None:
    """As `| head`, which has read enough."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def closed() -> None:
    """As `<&- >&-`."""
    os.close(0)
    os.close(1)


def full() -> None:
    """No file may have more than 4 kB: recipes and rows fit, checkpoints and pictures do not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def bare() -> None:
    """No home, no terminal, no path."""
    os.setsid()
    for name in ("HOME", "TERM", "PATH", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        os.environ.pop(name, None)


def read_only() -> None:
    """Nothing in this folder can be written, not even by root."""
    for path in [Path(), *Path().rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # without the capabilities that pass over permissions
        head = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)(0xFFFFFFF0, 0xFFFFFFF0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capget(head, data)
        for place in (0, 1):
            data[place] &= ~0b1111  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER
        assert libc.capset(head, data) == 0, ctypes.get_errno()


AMISS = {
    "nobody reads": nobody_reads,
    "closed": closed,
    "full": full,
    "bare": bare,
    "read-only": read_only,
}
THERE = ("small.toml", "one.png")  # before: of a command that writes no file
WRITES = [name for name in CALLS if CALLS[name][1] not in THERE]
ALWAYS = {  # the others with --slow
    *((name, "nobody reads") for name in ("sweep", "diagnose", "recipes")),
    *((name, "full") for name in ("train", "export", "convert", "report")),
    *((name, "read-only") for name in ("train", "evaluate", "report")),
    ("train", "closed"), ("evaluate", "cp1252"), ("recipes", "cp1252"), ("diagnose", "bare"),
}  # fmt: skip


def cells() -> Iterator[object]:
    for name in CALLS:
        for amiss in [*AMISS, "cp1252"]:
            marks = [] if (name, amiss) in ALWAYS else [pytest.mark.slow]
            yield pytest.param(name, amiss, marks=marks)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_table(command, monkeypatch):
    class Known(Exception):
        pass

    def known(parser, _):
        raise Known({option for action in parser._actions for option in action.option_strings})

    monkeypatch.setattr(Parser, "parse_args", known)
    monkeypatch.setattr(Parser, "parse_intermixed_args", known)
    with pytest.raises(Known) as found:
        import_module(home_of(command)).parse([])
    tried = {word for name in CALLS if name.split()[0] == command for word in CALLS[name][0]}
    assert {*found.value.args[0]} <= tried | {"-h", "--help"}


@pytest.mark.parametrize(("command", "amiss"), list(cells()))
def test_no_traceback_one_line_and_a_documented_code(place, command, amiss):
    encoding = "cp1252" if amiss == "cp1252" else "utf-8"
    ended = end(begin(command, place, None, AMISS.get(amiss, lambda: None), encoding), place)
    assert "Traceback" not in ended.errors, ended.errors
    mistakes = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    if amiss in ("full", "read-only") and command in WRITES:
        lost = sum("not all of the output" in line for line in mistakes)  # beside the file
        assert (ended.code, len(mistakes) - lost) in ((EXIT_USER, 1), (EXIT_ERROR, 0)), ended
        assert ended.code == EXIT_USER or "last.pt of step" in ended.errors, ended
    elif amiss == "full" and (len(ended.out) >= 4096 or command.startswith("doctor")):
        assert ended.code == EXIT_ERROR, ended
        assert mistakes in ([], ["error: not all of the output could be written: File too large"])
    else:
        assert (ended.code, mistakes) == (EXIT_DONE, []), ended
        assert (place / CALLS[command][1]).exists()
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    assert_whole(place)
    assert not list(place.rglob("*.part"))


# ---- what a kill leaves


def assert_whole(place: Path) -> None:
    """Nothing in the folder is half a file, but for the parts that no one reads."""
    unread = (".lock", ".writable", "out.txt", "err.txt")
    for path in place.rglob("*"):
        if path.is_dir() or path.name in unread or path.suffix == ".part":
            continue
        assert path.stat().st_size, f"{path} is empty"
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            Rows(path).read()
        elif path.suffix == ".pt":
            read_checkpoint(path)
        elif path.suffix == ".pt2":
            assert zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".html":
            assert path.read_text().endswith("</html>\n")


def kept(place: Path) -> dict[str, int]:
    """How far each run's newest checkpoint is."""
    found = {}
    for path in place.rglob("last.pt"):
        found[str(path.relative_to(place))] = read_checkpoint(path)["step"]
    return found


def again(command: str, place: Path) -> list[str]:
    """The arguments by which a killed command goes on, or begins again."""
    given = CALLS[command][0]
    if command == "train" and (place / "new" / "recipe.toml").exists():
        return ["--resume", "new"]
    if command in ("convert", "import") and any(place.glob(f"{given[-1]}/checkpoints/*.pt")):
        return [*given[:-1], f"{given[-1]}2"]
    return given


HOWS = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "HUP twice": (signal.SIGHUP, signal.SIGHUP),
}


@pytest.mark.parametrize(
    ("command", "kills"),
    [
        *((name, 2) for name in ("sweep", "convert")),  # trainings: test_kills.py
        *(pytest.param(name, 50, marks=pytest.mark.slow) for name in WRITES if " " not in name),
    ],
)
def test_killed_at_random_instants(made, tmp_path, command, kills):
    """After any of them the same command, or --resume, ends with everything; nothing finished is lost."""
    draw = random.Random(f"{command} {kills}")
    place = shutil.copytree(made, tmp_path / "whole")
    began = time.perf_counter()
    assert end(begin(command, place), place).code == EXIT_DONE
    seconds = time.perf_counter() - began
    for number in range(kills):
        place = shutil.copytree(made, tmp_path / f"place{number}")
        how = draw.choice(list(HOWS))
        pid = begin(command, place)
        time.sleep(draw.uniform(0, seconds))
        before = kept(place)
        for one in HOWS[how]:
            os.kill(pid, one)
        ended = end(pid, place)
        assert "Traceback" not in ended.errors, ended.errors
        assert_whole(place)
        after = kept(place)
        assert all(after[path] >= step for path, step in before.items()), (how, before, after)
        if not (ended.code == EXIT_DONE and (place / CALLS[command][1]).exists()):
            assert end(begin(command, place, again(command, place)), place).code == EXIT_DONE
        assert_whole(place)
        shutil.rmtree(place)
