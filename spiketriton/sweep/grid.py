"""The cells of a sweep: one training each, and the groups that differ in their seed only."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiketriton.config import Recipe, load_recipe
from spiketriton.runs.rows import Row, read_record
from spiketriton.system.errors import UserError

if TYPE_CHECKING:  # it imports torch, for which --help does not wait
    from spiketriton.plugins.tasks import Score


@dataclass(frozen=True)
class Cell:
    """One training: what was swept, {key: value as given}, its recipe and its folder."""

    values: dict[str, str]
    recipe: Recipe
    path: Path

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "(the recipe)"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    def result(self) -> Row | None:
        """The result of an earlier training; None if it has not ended."""
        file = self.result_file
        return read_record(file, dict[str, Any]) if file.exists() else None


def grid(recipe: str, axes: Sequence[str], out: Path) -> list[Cell]:
    """All cells, the last axis varying fastest. UserError: a value that the recipe refuses."""
    choices: dict[str, list[str]] = {}
    for axis in axes:
        key, equals, values = (part.strip() for part in axis.partition("="))
        listed = [value.strip() for value in values.split(",")]
        if not equals or not all(listed):
            raise UserError(f"axis {axis!r}: accepted: key=v1,v2,... as in seed=0,1,2")
        if key in choices:
            raise UserError(f"axis {axis!r}: {key} is given twice; accepted: one list of values")
        if len(set(listed)) < len(listed):
            raise UserError(f"axis {axis!r}: a value is given twice; accepted: different values")
        choices[key] = listed
    swept = [key for key, values in choices.items() if len(values) > 1]
    cells = []
    for combination in product(*choices.values()):
        given = dict(zip(choices, combination, strict=True))
        chosen = {key: given[key] for key in swept}
        made = load_recipe(recipe, [f"{key}={value}" for key, value in given.items()])
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items()]
        name = re.sub(r"[^\w=.,-]", "_", ",".join(words)) or "recipe"
        cells.append(Cell(chosen, made, out / name))
    return cells


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed only: the other swept values, results and cells."""

    values: dict[str, str]
    results: list[Row]
    cells: list[Cell]

    @property
    def scores(self) -> "list[Score]":
        from spiketriton.plugins.tasks import Score

        return [found for row in self.results if (found := Score.of_row(row)) is not None]

    @property
    def values_of_scores(self) -> list[float]:
        return [one.value for one in self.scores]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values_of_scores) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over seeds (n - 1); nan for fewer than two."""
        return statistics.stdev(self.values_of_scores) if len(self.scores) > 1 else math.nan

    @property
    def width(self) -> float:
        """The width that was trained with, the geometric mean over seeds."""
        width = statistics.geometric_mean(result["width"] for result in self.results)
        return float(f"{width:.12g}")  # of equal ones it is that one


def kind_of(groups: Sequence[Group]) -> "Score":
    """What the scores of a sweep are."""
    from spiketriton.plugins.tasks import Score

    return next((one for group in groups for one in group.scores), Score(value=math.nan))


def grouped(cells: Sequence[Cell], results: Sequence[Row]) -> list[Group]:
    groups: dict[tuple[tuple[str, str], ...], Group] = {}
    for cell, result in zip(cells, results, strict=True):
        values = {key: value for key, value in cell.values.items() if key != "seed"}
        group = groups.setdefault(tuple(values.items()), Group(values, [], []))
        group.results.append(result)
        group.cells.append(cell)
    return list(groups.values())
