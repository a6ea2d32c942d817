"""docs/trust.md: no code of a run folder runs that nobody asked for, and nothing is written outside of it."""

import contextlib
import io
import os
import py_compile
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import spiketriton
from spiketriton.config import load_recipe, parts, recipe_from_toml
from spiketriton.config.parts import NotAskedFor
from spiketriton.report import __main__ as report
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.rows import Lines, replace_file
from spiketriton.system import consent
from spiketriton.system.commandline import home_of
from spiketriton.system.errors import UserError
from spiketriton.system.locks import locked
from spiketriton.training.pretrained import find_weights
from tests.small_runs import QUICK, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")
CODE = "import pathlib\npathlib.Path({marker!r}).write_text('ran')\n"
BEST = ["--checkpoint", "best"]  # it has none: the command ends when the code has run
CALLS = {  # of each command that takes a run
    "report": ["hostile", "--no-evaluation"],
    "evaluate": ["hostile", *BEST],
    "export": ["hostile", "--to", "torch", *BEST],
    "convert": ["hostile", *BEST],
    "predict": ["hostile", "one.png"],
    "train": ["--resume", "hostile", "seed=7"],
    "diagnose": ["hostile", "seed=7"],
}


def called(command: str, *words: str) -> object:
    return import_module(home_of(command)).main([*words])


def taught(run: str) -> None:
    small_trainer(Path("pupil"), *QUICK, f"loss.teacher={run}", "train.max_steps=1").fit()


READERS = {
    **{command: lambda c=command: called(c, *CALLS[c]) for command in CALLS},
    "load_run": lambda: spiketriton.load_run("hostile"),
    "resume": lambda: spiketriton.train(resume="hostile", quiet=True),
    "override": lambda: called("evaluate", "hostile", "train.device=cpu"),
    "teacher": lambda: taught("hostile"),
    "against": lambda: called("evaluate", "honest", "--against", "hostile"),
}


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    """An honest run, and a copy of it with code beside its recipe, which that names."""
    folder = tmp_path_factory.mktemp("received")
    for name in ("honest", "hostile"):
        small_trainer(folder / name, *QUICK, "train.max_steps=1").fit()
    marker = str(folder / "marker")
    run = folder / "hostile"
    (run / "evil.py").write_text(CODE.format(marker=marker))
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("modules = []", 'modules = ["evil.py"]'))
    return folder


@pytest.fixture
def folder(received, monkeypatch):
    monkeypatch.chdir(received)
    yield received
    (received / "marker").unlink(missing_ok=True)
    parts._files.pop(str(received / "hostile" / "evil.py"), None)


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_of_a_run_runs_its_plugins_unasked(folder, reader):
    with pytest.raises(NotAskedFor) as caught:
        READERS[reader]()
    message = str(caught.value)
    for words in ("evil.py", "sha256 ", "--trust-plugins", "plugins=True"):
        assert words in message, message
    assert "\n" not in message
    assert not Path("marker").exists()


@pytest.mark.parametrize("plugins", [True, ["hostile/evil.py"]])
def test_the_callers_word_is_consent(folder, plugins):
    assert spiketriton.load_run("hostile", plugins).step == 1
    assert Path("marker").read_text() == "ran"
    Path("marker").unlink()
    assert spiketriton.load_run("hostile").step == 1  # it has run in this process already
    assert not Path("marker").exists()


@pytest.mark.parametrize("command", CALLS)
def test_the_option_is_consent_for_the_process(folder, command):
    token = consent._consents.set(consent._consents.get())
    try:
        with contextlib.suppress(UserError):
            called(command, *CALLS[command], "--trust-plugins")
    finally:
        consent._consents.reset(token)
    assert Path("marker").exists()


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("\n", False), ("", False)])
def test_a_terminal_is_asked(folder, monkeypatch, capsys, answer, runs):
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if runs:
        report.main(["hostile", "--no-evaluation"])
    else:
        with pytest.raises(NotAskedFor):
            report.main(["hostile", "--no-evaluation"])
    assert Path("marker").exists() == runs
    said = capsys.readouterr().err
    assert f"{folder}/hostile/evil.py" in said
    assert "Do you trust it? [y/N]" in said


def test_compiled_code_beside_a_plugin_is_not_run(folder):
    """It would have the checksum of another file: Python takes it if time and size are those of the source."""
    file = folder / "hostile" / "evil.py"
    honest = file.read_text()
    other = honest.replace("'ran'", "'pyc'")
    file.write_text(other)
    os.utime(file, (1, 1))
    py_compile.compile(str(file))
    file.write_text(honest)
    os.utime(file, (1, 1))
    spiketriton.load_run("hostile", plugins=True)
    assert Path("marker").read_text() == "ran"


def test_a_module_by_name_is_shown_before_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "bad" / "inner").mkdir(parents=True)
    for part in ("bad", "bad/inner"):
        (tmp_path / part / "__init__.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
    monkeypatch.chdir(tmp_path)
    shown = r"bad\.inner \(.*inner/__init__\.py, sha256"
    with consent.decided(False), pytest.raises(NotAskedFor, match=shown):
        parts.refuse_unasked(["bad.inner"], "", ())
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("lines", "said", "other"),
    [
        (
            'name = "os:mkdir"\narguments.path = "marker"',
            "os:mkdir(path='marker') (os is ",
            "other",
        ),
        (
            'name = "collections:deque"\narguments.x = "os.path:exists"',
            "os.path is ",
            "os.path:islink",
        ),
    ],
)
def test_a_function_that_a_run_names_is_not_called_unasked(folder, lines, said, other):
    """Its module may have been imported long ago: what it is called with counts."""
    text = f'data.name = "digits"\n[model]\n{lines}\n'

    def refused(text):
        with consent.decided(False), pytest.raises(NotAskedFor) as caught:
            recipe_from_toml(text, "received", of_run=folder)
        return str(caught.value)

    assert said in refused(text)
    Path("mine.toml").write_text(text)
    recipe = load_recipe("mine.toml")  # named by the user
    assert recipe_from_toml(text, "received", of_run=folder).model == recipe.model
    refused(text.replace(lines.split('"')[-2], other))
    assert not Path("marker").exists()


# ---- links


OWN = [  # what commands write: files, and folders with a slash
    ".lock", "console.log", "gradients.jsonl", "metrics.jsonl", "metrics.jsonl.part", "report.html", "curves.png",
    "judged.jsonl", "small.onnx", "nonfinite.json", "checkpoints/", "evaluation/",
    "checkpoints/last.pt.part",
    "evaluation/evaluation.json",
]  # fmt: skip


@pytest.fixture
def linked(received, tmp_path, monkeypatch):
    """Copies the honest run to ./run, in which a name is a link to ./outside, whose content it gives."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(received / "honest", "run")
    Path("outside").mkdir()
    Path("outside/file").write_text("mine")

    def link(name: str, target: str | None = None) -> None:
        path = Path("run", name.rstrip("/"))
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target or Path("outside", "" if name.endswith("/") else "file").absolute())

    yield link
    assert Path("outside/file").read_text() == "mine"
    assert os.listdir("outside") == ["file"]


WRITERS = {
    "resume": lambda: spiketriton.train(resume="run", extend=1, quiet=True),
    "evaluate": lambda: called("evaluate", "run"),
    "report": lambda: called("report", "run", "--no-evaluation"),
    "export": lambda: called("export", "run", "--to", "torch"),
    "load_run": lambda: spiketriton.load_run("run"),
    "diagnose": lambda: called("diagnose", "run"),
    "sweep": lambda: called("sweep", "quickstart", "seed=0,1", "train.max_steps=1", "--out", "run"),
    "init_from": lambda: find_weights("run"),
    "teacher": lambda: taught("run"),
    "new run": lambda: spiketriton.train("quickstart", run_dir="run", max_steps=1),
}


@pytest.mark.parametrize("name", OWN)
def test_a_name_of_a_run_that_leads_out_of_it_is_refused(linked, name):
    linked(name)
    with pytest.raises(UserError, match=r"run/.* is a link that leads out of run, to .*outside"):
        spiketriton.load_run("run")


@pytest.mark.parametrize("writer", WRITERS)
def test_nobody_writes_through_a_link(linked, writer):
    linked("seed=0/" if writer == "sweep" else ".lock")
    if writer == "new run":
        shutil.rmtree("run/checkpoints")
        for path in Path("run").iterdir():
            if not path.is_symlink():
                path.unlink()
    with pytest.raises(UserError, match=r"is a link that leads out of run, to "):
        WRITERS[writer]()


@pytest.mark.parametrize("key", ["loss.teacher", "train.init_from"])
def test_a_run_that_another_learns_from_stays_as_it_was(linked, key):
    """Neither the folder itself nor what its links name."""
    linked("code.py")
    linked("photographs/")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    small_trainer(Path("pupil"), *QUICK, f"{key}=run", "train.max_steps=1").fit()
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_weights_of_a_hostile_run_are_read_without_its_code(folder):
    assert find_weights("hostile")
    assert not Path("marker").exists()


def test_links_that_nothing_is_written_to_are_accepted(linked):
    linked("code.py")
    linked("photographs/")
    linked("checkpoints/best.pt", "last.pt")
    assert spiketriton.load_run("run").step == 1


def test_locks_and_lines_follow_no_link_that_appears_later(linked):
    linked(".lock")
    linked("console.log")
    with pytest.raises(OSError, match="symbolic links"), locked(Path("run/.lock"), wait=False):
        pass
    with pytest.raises(UserError, match=r"run/\.lock is a link"), RunFolder(Path("run")).held():
        pass
    said = []
    Lines(Path("run/console.log"), said.append).add("text")
    assert "console.log cannot be written (Too many levels of symbolic links)" in said[0]
    linked("metrics.jsonl.part")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"):
        replace_file(Path("run/metrics.jsonl"), "text")


def test_a_lock_empties_no_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with locked(tmp_path / "file", wait=False):
        assert (tmp_path / "file").read_text() == "mine"
