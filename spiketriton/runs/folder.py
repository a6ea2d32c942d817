"""The folder of one run: the recipe, rows of numbers, checkpoints and pictures.

recipe.toml        the resolved recipe
environment.json   a JSON array, one object a session: versions, commit, device, command line
micro_batch.json   images of a micro-batch, if the recipe says "auto"
metrics.jsonl      one JSON object a row: {"kind": "train" | "eval", "step": ..., ...}
console.log        what the run said: notes, tests, warnings, results
*.nir              the file that the network was imported from, with its checksum in its name
gradients.jsonl    one row per measured step, spiking layer and time step
checkpoints/       last.pt, best.pt (see checkpoint.py)
.lock              locked by the process that trains in this folder
*.png              pictures
"""

import contextlib
import errno
import itertools
import os
import re
import shlex
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spiketriton.config import Recipe, parts, recipe_from_toml
from spiketriton.runs import network_file
from spiketriton.runs.rows import (
    GRADIENTS,
    METRICS,
    NoRows,
    Row,
    Rows,
    read_record,
    replace_file,
    write_json,
)
from spiketriton.runs.same_recipe import LENGTHS, lengths, refuse_changes
from spiketriton.system.errors import UnknownKey, UserError, one_line
from spiketriton.system.locks import locked
from spiketriton.system.version import __version__

_LATER = (
    *("gradients.jsonl", "judged.jsonl", "console.log", "network.txt", "nonfinite.json"),
    *("curves.png", "gradients.png", "firing.png"),
)
"""What a run writes once its recipe is in its folder: where there is none, they are somebody else's."""

_FOLDERS = ("checkpoints", "evaluation")
"""Folders in that of a run in which commands write."""


class RunFolder:
    """The files of a run at `path`; `create` makes a new one and `open` finds an old one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.environment = path / "environment.json"
        self.micro_batch = path / "micro_batch.json"
        self.checkpoints = path / "checkpoints"
        self.console = path / "console.log"
        self.metrics = Rows(path / "metrics.jsonl", METRICS)
        self.gradients = Rows(path / "gradients.jsonl", GRADIENTS)
        self.judged = Rows(path / "judged.jsonl")
        self._network: Path | None = None  # a copy that was made here

    @classmethod
    def create(cls, path: str | Path | None, name: str) -> "RunFolder":
        """A folder for a new run at exactly `path`, or at runs/<name>-<time>.

        UserError: it holds a run already, or cannot be written.
        """
        stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder = cls(Path(path) if path else _unused(Path("runs", stem)))
        folder.refuse_a_run()
        refuse_links_out(folder.path, _FOLDERS)
        folder._prepare()
        return folder

    def refuse_a_run(self) -> None:
        if self.recipe.exists():
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume "
                f"{shlex.quote(str(self.path))}, or give another --run-dir"
            )
        if self.holds_a_run():
            raise UserError(
                f"{self.path} holds a part of a run without its recipe, as a command leaves it that is killed; "
                "remove it, or give another --run-dir"
            )
        for name in _LATER:
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path / name} exists, and a run there would change it; remove it first, or give "
                    "another --run-dir"
                )

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """`find`, for a run that will be written to. UserError also if the folder is read-only."""
        folder = cls.find(path)
        folder._prepare()
        return folder

    @classmethod
    def find(cls, path: str | Path) -> "RunFolder":
        """The folder of an earlier run, which may be read-only. UserError: it holds no run, or links that lead out."""
        folder = cls(Path(path))
        if not folder.recipe.is_file():
            what = "is not a folder" if folder.path.exists() else "does not exist"
            what = "holds no run (no recipe.toml)" if folder.path.is_dir() else what
            raise UserError(f"{folder.path} {what}; accepted: the folder of an earlier run")
        refuse_links_out(folder.path, _FOLDERS)
        return folder

    def _prepare(self) -> None:
        try:
            make_writable(self.path)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be written: {error.strerror}; a new run takes "
                "another one by --run-dir"
            ) from None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder while entered; the lock also ends with the process, however that ends.

        Whatever fails before there is a run leaves no folder behind. UserError: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / ".lock", wait=False, forks_share=False))
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else the file system has no locks
                    raise UserError(
                        f"run folder {self.path} is in use by another process; a new run takes "
                        "another one by --run-dir"
                    ) from None
                if error.errno == errno.ELOOP:
                    raise UserError(f"{self.path / '.lock'} is a link; accepted: a file") from None
            try:
                yield
            except BaseException:
                self.discard_if_unused()
                raise

    def holds_a_run(self) -> bool:
        """Whether there is a run; other files in the folder do not count."""
        saved = (path for path in self.checkpoints.glob("*") if path.suffix != ".part")
        return self.recipe.exists() or self.metrics.path.exists() or any(saved)

    def discard_if_unused(self) -> None:
        """Removes the folder of a run that never began, unless it holds the user's files."""
        if self.holds_a_run():
            return
        for path in (self.micro_batch, self._network, self.path / ".lock"):
            if path is not None:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: the user's files
            self.checkpoints.rmdir()
            self.path.rmdir()

    def load_recipe(self, values: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of the run, with `values` as in `recipe_from_toml`.

        UserError: it is damaged, or a plugin is missing, which is named with the version that the run used.
        """
        try:
            text, name = self.recipe.read_text("utf-8"), self._name()
            return recipe_from_toml(text, name, values, of_run=self.path)
        except parts.NotAskedFor as error:
            raise parts.NotAskedFor(f"{self.recipe}: {error}") from None
        except UserError as error:
            raise UserError(f"{self.recipe}: {error}{self._advice(error)}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.recipe} is damaged: not UTF-8 at byte {error.start}") from None

    def begin_session(self, recipe: Recipe, environment: Row) -> None:
        """Adds a session to environment.json; the first one also writes the recipe."""
        sessions = self.sessions()
        sessions.append({"recipe": recipe.name, **environment})
        write_json(self.environment, sessions)
        if not self.recipe.exists() or self._lengths() != lengths(recipe.train):  # new, or extended
            replace_file(self.recipe, network_file.movable(recipe, self.path).to_toml())

    def _lengths(self) -> dict[str, int]:
        train = tomllib.loads(self.recipe.read_text("utf-8"))["train"]
        return {key: train[key.removeprefix("train.")] for key in LENGTHS}

    def _advice(self, error: UserError) -> str:
        """What may help where the recipe is not understood: a plugin's place, the run's spiketriton, a new run."""
        advice = "; plugins.modules=... gives its new place" * ("plugins.modules" in str(error))
        last = (self.sessions() or [{}])[-1]
        theirs, commit, is_newer = last.get("spiketriton"), last.get("commit"), False
        known = not isinstance(error, UnknownKey)
        if isinstance(theirs, str) and not (theirs == __version__ and known):
            at = f", commit {one_line(commit[:10])}" if isinstance(commit, str) else ""
            advice += f"; the run was trained with spiketriton {one_line(theirs)[:20]}{at}, and this is {__version__}"
            is_newer = _numbers(theirs) > _numbers(__version__)
        if is_newer:
            advice += ": install the newer one"
        elif not known:
            advice += f"; train.init_from={self.path} begins a new run with its weights"
        return advice

    def keep_network(self, recipe: Recipe) -> Recipe:
        """The recipe of a network out of a file of NIR, with a copy of that in the folder; of others as it is."""
        try:
            recipe, self._network = network_file.kept(recipe, self.path)
        except UserError:
            self.discard_if_unused()
            raise
        return recipe

    def write_micro_batch(self, images: int) -> None:
        write_json(self.micro_batch, {"micro_batch": images}, indent=None)

    def write_network(self, report: str) -> None:
        replace_file(self.path / "network.txt", report)

    def cut(self, step: int, tested_at: int) -> None:
        """Drops the rows after a checkpoint of `step`, whose last test was at `tested_at`."""
        last = {"train": step, "eval": tested_at}
        self.metrics.keep(lambda row: row["step"] <= last[row["kind"]])
        self.gradients.keep(lambda row: row["step"] <= step)
        self.judged.keep(lambda row: row["step"] <= step)

    def reached(self) -> int:
        """The last step that a row tells of; 0 without rows."""
        return max((row["step"] for row in self.metrics.read()), default=0)

    def again(self) -> list[str]:
        return [str(self.recipe), "--run-dir", str(_unused(self.path))]

    def sessions(self) -> list[Row]:
        if not self.environment.exists():
            return []
        try:
            return list(read_record(self.environment, list[dict[str, Any]]))
        except UserError as error:
            raise UserError(f"{error}; remove it to continue") from None

    def _name(self) -> str:
        first = (self.sessions() or [{}])[0]
        return str(first.get("recipe", "")) or self.path.resolve().name


class Onlooker(RunFolder):
    """The run folder for the ranks other than the first, which write nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metrics = self.gradients = self.judged = NoRows(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield

    def begin_session(self, recipe: Recipe, environment: Row) -> None:
        pass

    def write_micro_batch(self, images: int) -> None:
        pass

    def write_network(self, report: str) -> None:
        pass

    def discard_if_unused(self) -> None:
        pass


def is_weights(path: str | Path) -> bool:
    """Whether it is the name of a file of weights, of which a run folder is made: see `training.weights`."""
    return Path(path).suffix == ".safetensors" and not Path(path).is_dir()


def refuse_unusable(path: str | Path, overrides: Sequence[str] = ()) -> None:
    """UserError: there is no run at `path`, or an override would change it. Needs neither torch nor plugins."""
    if not is_weights(path):
        RunFolder.find(path)
    elif not Path(path).is_file():
        raise UserError(f"{path} does not exist; accepted: a run folder, or a file of weights")
    refuse_changes(overrides, {})


def refuse_links_out(folder: Path, folders: Sequence[str] | None = None) -> None:
    """UserError: a name that a command may write to, in a folder that may be another's, is a link that leads out of it.

    folders: those in it in which commands write, looked into as well; None: every one that is a link. Code (.py) is
    only read.
    """
    base = os.path.realpath(folder)
    for place in (folder, *(folder / name for name in folders or ())):
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error.strerror}") from None
        for entry in entries if place == folder or not place.is_symlink() else ():
            if not entry.is_symlink():
                continue
            theirs = entry.is_dir() and folders is not None and entry.name not in folders
            if place == folder and (theirs or entry.name.endswith(".py")):
                continue
            target = os.path.realpath(entry.path)
            if os.path.commonpath([base, target]) != base:
                raise UserError(
                    f"{entry.path} is a link that leads out of {folder}, to {target}, where a command would write; "
                    "accepted: a file or folder of its own; remove the link, or put a copy of what it names there"
                )


def make_writable(folder: Path) -> None:
    """Creates the folder if it is missing, and tries to write in it. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / ".writable"
    trial.write_text("")
    trial.unlink(missing_ok=True)  # another process may try at the same moment


def _unused(path: Path) -> Path:
    """The path, with a number at the end where something is there already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)]
