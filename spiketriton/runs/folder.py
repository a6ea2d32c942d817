"""The folder of one run: the recipe, rows of numbers, checkpoints and pictures.

recipe.toml        the resolved recipe
environment.json   a JSON array, one object a session: versions, commit, device, command line
calibration.json   the surrogate's widths and why, where the recipe leaves them to be measured
micro_batch.json   images of a micro-batch, where the recipe leaves them to be found
metrics.jsonl      one JSON object a row: {"kind": "train" | "eval", "step": ..., ...}
gradients.jsonl    one row per measured step, spiking layer and time step
checkpoints/       last.pt, best.pt (see checkpoint.py)
.lock              locked by the process that trains here
*.png              pictures
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from spiketriton.config import Recipe, load_recipe, recipe_from_toml, replace, to_toml
from spiketriton.errors import UserError
from spiketriton.runs.checkpoint import refuse_another_recipe

Row = dict[str, Any]


class RunFolder:
    """The files of a run at `path`; `create` makes a new one and `open` finds an old one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.environment = path / "environment.json"
        self.calibration = path / "calibration.json"
        self.micro_batch = path / "micro_batch.json"
        self.checkpoints = path / "checkpoints"
        self.metrics = Rows(path / "metrics.jsonl")
        self.gradients = Rows(path / "gradients.jsonl")

    @classmethod
    def create(cls, path: str | Path | None, name: str) -> "RunFolder":
        """A folder for a new run at exactly `path`, or at runs/<name>-<time>.

        UserError: it holds a run already, or cannot be written.
        """
        folder = cls(Path(path) if path else _unused(Path("runs"), name))
        if folder.holds_a_run():
            raise UserError(
                f"{folder.path} already holds a run; continue it with --resume {folder.path}, "
                "or give another --run-dir"
            )
        folder._prepare()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """The folder of an earlier run. UserError: there is none at `path`, or it is read-only."""
        folder = cls(Path(path))
        if not folder.recipe.is_file():
            what = "holds no run (no recipe.toml)" if folder.path.is_dir() else "does not exist"
            raise UserError(f"{folder.path} {what}; accepted: the run folder of an earlier run")
        folder._prepare()
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
        """The folder is this process's own in here, or until it ends, however it ends.

        UserError: it is another one's.
        """
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # else there are no locks here
                    raise UserError(
                        f"run folder {self.path} is in use by another process; a new run takes "
                        "another one by --run-dir"
                    ) from None
            yield

    def holds_a_run(self) -> bool:
        """A folder of the user's own files holds none; a file in its place does not either."""
        return self.recipe.exists() or self.metrics.path.exists() or _holds_files(self.checkpoints)

    def discard_if_unused(self) -> None:
        """Removes the folder of a run that never began, unless it holds the user's files."""
        if self.holds_a_run():
            return
        for path in (self.micro_batch, self.path / ".lock"):
            path.unlink(missing_ok=True)
        for path in (self.checkpoints, self.path):
            try:
                path.rmdir()
            except OSError:  # not empty: a run, or the user's files
                return

    def load_recipe(self) -> Recipe:
        """The recipe of the run. UserError: it is damaged."""
        try:
            return recipe_from_toml(self.recipe.read_text("utf-8"), self._name())
        except UserError as error:
            raise UserError(f"{self.recipe}: {error}") from None

    def begin_session(self, recipe: Recipe, environment: Row) -> None:
        """Notes who trains here from now on; the first session fixes the recipe."""
        sessions = self._sessions()
        sessions.append({"recipe": recipe.name, **environment})
        _replace(self.environment, json.dumps(sessions, indent=2) + "\n")
        if not self.recipe.exists():
            _replace(self.recipe, to_toml(recipe))

    def write_calibration(self, calibration: Row) -> None:
        """What was measured before training; the same numbers when it is measured again."""
        _replace(self.calibration, json.dumps(calibration, indent=2) + "\n")

    def write_micro_batch(self, images: int) -> None:
        """What `train.micro_batch = "auto"` found: a run that goes on elsewhere keeps it."""
        _replace(self.micro_batch, json.dumps({"micro_batch": images}) + "\n")

    def read_calibration(self) -> Row | None:
        """What `write_calibration` left, or None. UserError: it is damaged."""
        if not self.calibration.exists():
            return None
        try:
            return dict(json.loads(self.calibration.read_text("utf-8")))
        except ValueError:
            raise UserError(f"{self.calibration} is damaged: no JSON") from None

    def cut(self, step: int, tested_at: int) -> None:
        """Drops the rows after a checkpoint of `step`, whose last test was at `tested_at`."""
        last = {"train": step, "eval": tested_at}
        self.metrics.keep(lambda row: row["step"] <= last[row["kind"]])
        self.gradients.keep(lambda row: row["step"] <= step)

    def _sessions(self) -> list[Row]:
        if not self.environment.exists():
            return []
        try:
            return list(json.loads(self.environment.read_text("utf-8")))
        except ValueError:
            raise UserError(f"{self.environment} is damaged: no JSON; remove it to go on") from None

    def _name(self) -> str:
        sessions = self._sessions()
        return str(sessions[0]["recipe"]) if sessions else self.path.resolve().name


class Onlooker(RunFolder):
    """The folder as the ranks other than the first have it: nothing is written by them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metrics = self.gradients = NoRows(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield

    def begin_session(self, recipe: Recipe, environment: Row) -> None:
        pass

    def write_calibration(self, calibration: Row) -> None:
        pass

    def write_micro_batch(self, images: int) -> None:
        pass

    def discard_if_unused(self) -> None:
        pass


def find_run(
    recipe: str | None, overrides: Sequence[str], run_dir: str | None, resume: str | None
) -> tuple[Recipe, RunFolder]:
    """The recipe and the folder of a new run, or of the one to `resume`.

    UserError: either cannot be used, or the recipe is not that of the run.
    """
    if resume is None:
        assert recipe is not None
        given = load_recipe(recipe, overrides)
        return given, RunFolder.create(run_dir, given.name)
    folder = RunFolder.open(resume)
    begun = folder.load_recipe()
    given = load_recipe(recipe, overrides) if recipe else replace(begun, *overrides)
    refuse_another_recipe(given, begun)
    return given, folder


class Rows:
    """A file of JSON objects, one a line, written row by row so that none waits in a buffer.

    NaN and infinities become null. When the disk is full the rows wait in memory, `warn` says so
    once, and they are written with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warn: Callable[[str], None] = print
        self._waiting = b""
        self._warned = False

    def append(self, rows: Iterable[Row]) -> None:
        self._waiting += "".join(json.dumps(_plain(row)) + "\n" for row in rows).encode()
        try:
            with open(self.path, "ab", buffering=0) as file:
                _write_or_leave(file, self._waiting)
        except OSError as error:
            if not self._warned:
                self.warn(f"{self.path} cannot be written ({error.strerror}): its rows wait")
            self._warned = True
        else:
            self._waiting, self._warned = b"", False

    def read(self) -> list[Row]:
        """All rows; a last line that was cut short is left out. UserError: another is damaged."""
        if not self.path.exists():
            return []
        rows = []
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                continue
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise UserError(f"{self.path} is damaged: line {number} is no JSON") from None
        return rows

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drops the rows that `wanted` refuses."""
        if self.path.exists():
            kept = [json.dumps(row) + "\n" for row in self.read() if wanted(row)]
            _replace(self.path, "".join(kept))


class NoRows(Rows):
    """A file that another process writes."""

    def append(self, rows: Iterable[Row]) -> None:
        pass

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        pass


def _plain(row: Row) -> Row:
    """Floats with 7 significant digits (float32 has no more), or null where JSON has no word."""
    return {
        key: (float(f"{value:.7g}") if math.isfinite(value) else None)
        if isinstance(value, float)
        else value
        for key, value in row.items()
    }


def _write_or_leave(file: FileIO, content: bytes) -> None:
    """Appends all of `content` or nothing of it. OSError."""
    size, rest = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        file.truncate(size)
        raise


def make_writable(folder: Path) -> None:
    """Makes the folder, if need be, and tries to write in it. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / ".writable"
    trial.write_text("")
    trial.unlink()


def _unused(root: Path, name: str) -> Path:
    """root/<name>-<time>, with a number behind when two runs begin in one second."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    paths = [root / stem, *(root / f"{stem}-{number}" for number in range(2, 100))]
    return next((path for path in paths if not path.exists()), paths[-1])


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _replace(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one. UserError: the disk is full, say."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, "utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
