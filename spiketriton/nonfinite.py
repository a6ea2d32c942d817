"""spiketriton nonfinite RUN: repeats the step that ended a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.commandline import Parser
from spiketriton.config import recipe_from_toml
from spiketriton.errors import UserError, importing, run_command
from spiketriton.runs.folder import RunFolder

if TYPE_CHECKING:
    from spiketriton.runs.checkpoint import State
    from spiketriton.training.nonfinite import Finding

EPILOG = """\
RUN is the folder of a run that ended because a loss or gradient was not finite, or the nonfinite.pt
in it. The step is repeated, and the first layer and time step that were not finite are named.
Exit codes: 0 done, 2 a mistake in the command or the file."""


def repeat(state: "State", folder: Path = Path()) -> "Finding | None":
    """Rebuilds the model of the nonfinite.pt in `folder` and repeats its step, on the recipe's device.

    UserError: the file is a checkpoint of a run, not a nonfinite.pt.
    """
    from spiketriton.models import build_model
    from spiketriton.training.losses import build_loss
    from spiketriton.training.nonfinite import locate
    from spiketriton.training.placement import Placement

    if "images" not in state:
        raise UserError("the file holds a checkpoint, not a bad step; accepted: a nonfinite.pt")
    recipe = recipe_from_toml(state["recipe"], state["name"], of_run=folder)
    placement = Placement.set_up(recipe.train)
    *_, channels, size, _ = state["images"].shape
    classes = len(state["model"]["fc.weight"])
    model = build_model(recipe, classes=classes, channels=channels, image_size=size)
    model.load_state_dict(state["model"])
    batches = placement.batches(zip(state["images"], state["labels"], strict=True))
    counts = state.get("data", {}).get("class_counts", ())
    loss = build_loss(recipe.loss, counts)
    return locate(placement.place(model), batches, loss, placement.autocast)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("nonfinite", EPILOG)
    parser.add_trust()
    parser.add_argument("file", metavar="RUN", type=Path, help="run folder, or its nonfinite.pt")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    file = parse(arguments).file
    if file.is_dir():
        file = RunFolder.find(file).path / "nonfinite.pt"
    if not file.is_file():
        raise UserError(f"{file} does not exist; accepted: a run that ended by a number not finite")
    with importing():
        from spiketriton.runs.checkpoint import read_checkpoint

    state = read_checkpoint(file)
    finding = repeat(state, file.parent)
    words = finding.in_words() if finding else "repeated layer by layer, the step is finite"
    print(f"step {state['step']}: {words}")


if __name__ == "__main__":
    run_command(main)
