"""The recipes that come with spiketriton: in a wheel in `spiketriton/shipped`, in a clone in `recipes/`.

Those that were never run are in its folder `papers`.

A header is the comment at the top of a file. A paragraph that begins with one of `NOTES` and a colon ends at the next
empty comment line.
"""

import difflib
import itertools
from pathlib import Path

from spiketriton.system.errors import UserError

NOTES = ("Memory", "Measured", "Published")
_PACKAGE = Path(__file__).resolve().parents[1]


def folder_of_recipes() -> Path:
    inside = _PACKAGE / "shipped"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """The files of the shipped recipes by name, sorted."""
    return {path.stem: path for path in sorted(folder_of_recipes().rglob("*.toml"))}


def find_recipe(given: str | Path) -> Path:
    """The recipe file `given`: a path, or else the name of a shipped recipe. UserError: there is neither."""
    path, shipped = Path(given), shipped_recipes()
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name that is too long, for example
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if str(given) in shipped:
        return shipped[str(given)]
    if path.is_dir():
        raise UserError(f"{path} is a folder; accepted: a recipe file (TOML)")
    raise UserError(f"{path}: no such recipe file{_near(path)}")


def _near(path: Path) -> str:
    """What may have been meant: a file of the same folder, or the name of a shipped recipe."""
    there = {p.stem: str(p) for p in sorted(path.parent.glob("*.toml"))}
    names = {name: f"{name} (shipped)" for name in shipped_recipes()}
    known = {**names, **there}
    near = difflib.get_close_matches(path.stem, known)
    if near:
        return f"; did you mean {known[near[0]]}?"
    return "; accepted: a TOML file, or a name that `spiketriton recipes` lists"


def notes_of(path: Path) -> dict[str, str]:
    """The notes in the header of a recipe file, by name."""
    header = itertools.takewhile(lambda line: line[:1] == "#", path.read_text("utf-8").split("\n"))
    paragraphs = "\n".join(line.lstrip("#").strip() for line in header).split("\n\n")
    said = (" ".join(paragraph.split()).partition(": ") for paragraph in paragraphs[1:])
    return {name: text for name, _, text in said if name in NOTES and text}
