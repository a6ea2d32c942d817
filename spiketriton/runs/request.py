"""What `train` is asked for, and the recipe and folder that it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiketriton.config import Recipe, load_recipe, moved_plugins, replace
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.same_recipe import extended, refuse_another_recipe


@dataclass(frozen=True)
class Request:
    """What `train` is asked for: a recipe for a new run, or a run to `resume`, perhaps to `extend` epochs.

    values: overrides as Python values.
    """

    recipe: str | None
    overrides: Sequence[str] = ()
    run_dir: str | None = None
    resume: str | None = None
    values: Mapping[str, Any] | None = None
    extend: int | str | None = None

    def find_recipe(self) -> Recipe:
        """The recipe that is to be trained. Writes nothing. UserError: see `find_run`."""
        if self.resume is None:
            assert self.recipe is not None
            given = load_recipe(self.recipe, self.overrides, self.values)
            if self.run_dir:
                RunFolder(Path(self.run_dir)).refuse_a_run()
            return given
        folder = RunFolder.find(self.resume)
        begun = folder.load_recipe(moved_plugins(self.overrides, self.values))
        if self.recipe:
            given = load_recipe(self.recipe, self.overrides, self.values)
        else:
            given = replace(begun, *self.overrides, values=self.values)
        refuse_another_recipe(given, begun)
        if self.extend is None:
            return given
        longer = extended(given.train, self.extend, folder.metrics.read())
        return replace(given, values=longer)

    def find_run(self) -> tuple[Recipe, RunFolder]:
        """The recipe, and the folder of a new run, or of the one to resume.

        UserError: either cannot be used, or the recipe is not that of the run.
        """
        given = self.find_recipe()
        if self.resume is not None:
            return given, RunFolder.open(self.resume)
        folder = RunFolder.create(self.run_dir, given.name)
        return folder.keep_network(given), folder
