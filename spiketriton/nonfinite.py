"""python -m spiketriton.nonfinite RUN/nonfinite.pt: where a step's numbers went wrong, once more."""

import argparse
from functools import partial
from pathlib import Path

import torch

from spiketriton.commandline import Parser
from spiketriton.config import recipe_from_toml
from spiketriton.errors import UserError, run_command
from spiketriton.gradients.calibration import Calibration
from spiketriton.models import build_model
from spiketriton.runs.checkpoint import State, read_checkpoint
from spiketriton.training import environment
from spiketriton.training.losses import build_loss
from spiketriton.training.nonfinite import Finding, locate

EPILOG = """\
FILE is the nonfinite.pt in the folder of a run that ended at a loss or gradient that was not
finite. The step is repeated from it, and the layer and time step are named where that began.
Exit codes: 0 done, 2 a mistake in the command or the file."""


def repeat(state: State) -> Finding | None:
    """Rebuilds the model of nonfinite.pt and repeats its step, on the recipe's device.

    UserError: the state is that of a run, not of a bad step.
    """
    if "images" not in state:
        raise UserError("the file holds a checkpoint, not a bad step; accepted: a nonfinite.pt")
    recipe = recipe_from_toml(state["recipe"], state["name"])
    device = environment.choose_device(recipe.train.device).value
    precision = environment.choose_precision(recipe.train.precision, device).value
    environment.set_up(recipe.train, device)
    _, _, channels, size, _ = state["images"].shape
    classes = len(state["model"]["fc.weight"])
    model = build_model(recipe, classes=classes, channels=channels, image_size=size)
    model.load_state_dict(state["model"])
    if state["calibration"] is not None:
        Calibration.of_state(state["calibration"]).apply(model)
    layout = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    there = partial(environment.to_device, device=device, layout=layout)
    batches = [(there(x), there(y)) for x, y in zip(state["images"], state["labels"], strict=True)]
    half = precision != torch.float32
    autocast = partial(torch.autocast, device.type, precision, enabled=half)
    return locate(model, batches, build_loss(recipe.loss), autocast)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("nonfinite", "Repeat the step at which a run's numbers went wrong.", EPILOG)
    parser.add_argument("file", metavar="FILE", type=Path, help="nonfinite.pt of a run")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    state = read_checkpoint(parse(arguments).file)
    finding = repeat(state)
    words = finding.in_words() if finding else "repeated layer by layer, the step is finite"
    print(f"step {state['step']}: {words}")


if __name__ == "__main__":
    run_command(main)
