"""spiketriton nonfinite RUN: repeats the step that ended a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spiketriton.config import recipe_from_toml
from spiketriton.runs.folder import RunFolder
from spiketriton.system.commandline import Parser
from spiketriton.system.errors import UserError, importing, run_command

if TYPE_CHECKING:
    from spiketriton.runs.checkpoint import State
    from spiketriton.training.nonfinite import Finding

EPILOG = """\
RUN is the folder of a run that ended because a loss or gradient was not finite, or the nonfinite.pt
in it. The step is repeated, and the first layer and time step that were not finite are named."""


def repeat(state: "State", file: Path) -> "Finding | None":
    """Rebuilds the model of a nonfinite.pt and repeats its step, on the recipe's device.

    UserError: the file is a checkpoint of a run, or is damaged.
    """
    from spiketriton.training.losses import build_loss
    from spiketriton.training.nonfinite import batches_of, locate
    from spiketriton.training.placement import Placement
    from spiketriton.training.trained import network_of

    if "images" not in state:
        raise UserError(f"{file} holds a checkpoint, not a bad step; accepted: a nonfinite.pt")
    text, name = (str(state.get(key)) for key in ("recipe", "name"))
    try:
        recipe = recipe_from_toml(text, name, of_run=file.parent)
    except UserError as error:
        raise type(error)(f"{file}: {error}") from None
    model, facts = network_of(recipe, state, file)
    placement = Placement.set_up(recipe.train)
    try:
        batches = batches_of(state, facts)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    loss = build_loss(recipe.loss, facts.class_counts)
    return locate(placement.place(model), placement.batches(batches), loss, placement.autocast)


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
    finding = repeat(state, file)
    words = finding.in_words() if finding else "repeated layer by layer, the step is finite"
    print(f"step {state['step']}: {words}")


if __name__ == "__main__":
    run_command(main)
