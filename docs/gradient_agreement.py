"""Do the gradients of different batches agree? Prints the mean cosine between those of the first
layer's weights, by width, for the net of docs/gradient_flow.toml.

    python docs/gradient_agreement.py model.depth=30 [key=value ...]
"""

from contextlib import closing
from dataclasses import replace
from itertools import islice

import torch

from spiketriton.config import load_recipe
from spiketriton.data import build_data
from spiketriton.errors import run_command
from spiketriton.models import build_model
from spiketriton.training.losses import build_loss
from spiketriton.training.randomness import seed_everything

BATCHES = 6
WIDTHS = (0.2, 0.42, 0.6, 1, 2, 4, 10)


def main(overrides: list[str]) -> None:
    recipe = load_recipe("docs/gradient_flow.toml", overrides)
    data, loss = build_data(recipe), build_loss(recipe.loss)
    sizes = {"channels": data.channels, "image_size": data.image_size}
    seed_everything(recipe.seed)
    model = build_model(recipe, classes=len(data.classes), **sizes)
    first = next(weights for weights in model.parameters() if weights.dim() > 1)
    with closing(data.train.from_step(0)) as stream:
        batches = list(islice(stream, BATCHES))
    for width in WIDTHS:
        for _, layer in model.spiking_layers():
            layer.surrogate = replace(layer.surrogate, width=width)
        found = [torch.autograd.grad(loss(model(x), y), first)[0].flatten() for x, y in batches]
        gradients = torch.stack(found).double()
        gradients /= gradients.norm(dim=1, keepdim=True)
        cosines = gradients @ gradients.T
        mean = (cosines.sum() - cosines.trace()) / (BATCHES * (BATCHES - 1))
        print(f"width {width:<5g} mean cosine {mean:6.3f}", flush=True)


if __name__ == "__main__":
    run_command(main)
