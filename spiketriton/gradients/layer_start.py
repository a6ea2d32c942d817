"""model.start = "auto": what layers without skip connections start at, measured before training.

A layer of random weights replaces part of the image by chance, and after some fifteen of them nothing
of it is left. Weights that start as the identity hand it on (`models.layers.add_identity`); random
ones learn sooner where the image gets through all the same. So: Kaiming normal where the last layer
keeps 30 % of an image's identity, as with residual blocks (`block_start`), else the identity.
"""

from dataclasses import dataclass

import numpy as np

from spiketriton.config import Recipe
from spiketriton.gradients.block_start import ENOUGH
from spiketriton.gradients.probing import Prober
from spiketriton.gradients.verdict import in_percent
from spiketriton.models import Network


@dataclass(frozen=True)
class LayerStart:
    """Whether square layers start as the identity; plain data, saved with the run.

    usual, overlap: what the last layer keeps of an image with Kaiming's weights, and as it starts.
    """

    identity: bool
    usual: float
    overlap: float

    def apply(self, model: Network) -> None:
        """Sets the weights of a network that has Kaiming's."""
        if self.identity:
            model.start_as_identity()

    def line(self) -> str:
        """What was chosen and why, for the user."""
        usual = in_percent(self.usual)
        if not self.identity:
            return (
                f"layers start with Kaiming's weights, as usual: the last one keeps {usual} of an "
                "image's identity"
            )
        return (
            f"layers start as the identity: the last one keeps {in_percent(self.overlap)} of an image's "
            f"identity, {usual} with Kaiming's weights"
        )


def wants_layer_start(recipe: Recipe) -> bool:
    """Whether the recipe leaves the start to be measured; the ANN twin starts with Kaiming's weights."""
    return recipe.model.start == "auto" and recipe.neuron.kind != "relu"


def find_layer_start(model: Network, prober: Prober) -> LayerStart:
    """Measures the start of a network with Kaiming's weights, and sets it."""
    usual = float(np.nan_to_num(prober.overlap())[-1])
    found = LayerStart(identity=usual < ENOUGH, usual=usual, overlap=usual)
    if not found.identity:
        return found
    found.apply(model)
    return LayerStart(True, usual, float(np.nan_to_num(prober.overlap())[-1]))
