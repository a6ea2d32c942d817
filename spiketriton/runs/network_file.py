"""The copy that a run folder has of the file of NIR which its network is read from."""

import hashlib
from pathlib import Path

from spiketriton.config import Recipe, parts, replace
from spiketriton.runs.rows import replace_file


def kept(recipe: Recipe, folder: Path) -> tuple[Recipe, Path | None]:
    """The recipe, which names a copy in the folder now, and that copy where it was made; of others as they are.

    UserError: the copy cannot be written.
    """
    model = recipe.model
    file, here = Path(str(model.arguments.get("path", ""))), folder.absolute()
    if model.name != parts.FROM_NIR or file.parent == here or not file.is_file():
        return recipe, None  # the network says what is amiss
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    mark = f"-{digest[:8]}"
    copy = here / f"{file.stem.removesuffix(mark)}{mark}.nir"
    replace_file(copy, content)
    arguments = {"sha256": digest, **model.arguments, "path": str(copy)}
    return replace(
        recipe, values={f"model.arguments.{n}": value for n, value in arguments.items()}
    ), copy


def movable(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe as recipe.toml has it: a copy in the folder is named without the folder."""
    model = recipe.model
    path = Path(str(model.arguments.get("path", "")))
    if model.name != parts.FROM_NIR or path.parent != folder.absolute():
        return recipe
    return replace(recipe, values={"model.arguments.path": path.name})
