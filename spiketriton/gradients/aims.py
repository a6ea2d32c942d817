"""What a surrogate's width is judged by: the aim of neuron.surrogate.width = "auto".

What a good width is depends on the optimizer and on the net (docs/gradient_flow.md shows the
experiments):

sgd     takes the gradient as it is, so it must neither shrink nor grow much on its way back. The
        target for the depth gain (geometric mean of the ratios of dL/dx between consecutive spiking
        layers) is 1.15. Below 1 the first layers of deep nets do not move; a little above, they do.
adamw   divides every weight's gradient by its own size, so a gain does no harm; what counts is how
        many neurons take part. The target for the transmission (RMS of dL/dx by that of dL/ds,
        relative to what it would be if the surrogate were flat, geometric mean over layers) is 0.4.
        A flat surrogate passes everything, a narrow one next to nothing. It is measured with the
        reset detached, because with a flat surrogate the path through an attached reset explodes.
blocks  that pass spikes or membranes on (`sew`, `ms`), under either optimizer: the gradient comes
        through the shortcuts, and a wide surrogate adds so much to it that it is drowned. The
        targets for the block gain (geometric mean of the ratios of dL/dx from one residual block to
        the one before it) are 1 and 1.05: it hardly grows from block to block.
plain   blocks that start with a gain below 0.5. SGD: the block gain, 1.5 for bottlenecks and 1 for blocks
        of two layers. AdamW: the same of what comes back within a time step, with the membranes' path
        from step to step cut, 1.1 and 0.8: what that path adds grows with T and without a leak, but
        the widths that train best under AdamW do not follow it.
layers  that start as the identity: a depth gain of 0.8, under either optimizer. They hand the image
        on, so that what lies far from the loss can wait; wider, the gradient explodes once they move.

        No gradient enters a block that starts at 0, so both are measured with closed blocks opened
        to 0.5, as training opens them.
"""

from dataclasses import dataclass
from typing import Literal

from spiketriton.config import Recipe
from spiketriton.models.resnet import ARCHITECTURES

OPENED = 0.5  # a gain that residual blocks get to in training, whatever they start at


Goal = Literal["depth gain", "block gain", "block gain in a step", "transmission"]


@dataclass(frozen=True)
class Aim:
    """What a width is judged by, the target for it, and why."""

    goal: Goal
    target: float
    why: str

    def growth(self, places: int) -> float:
        """The first gradient by the last of `places` in a row, where the aim is met; 1 if it names no gain."""
        # "in a step" leaves out what crosses time steps, which training has
        named = self.goal in ("depth gain", "block gain")
        return self.target ** max(places - 1, 0) if named else 1.0


SGD = Aim(
    "depth gain",
    1.15,
    "SGD takes gradients as they are, so they should neither shrink nor grow much",
)
ADAMW = Aim(
    "transmission",
    0.4,
    "AdamW rescales gradients, so what counts is how many neurons pass them on",
)
DROWNED = "shortcuts carry the gradient, and what the branches add should not drown it"
SHORTCUTS = {"sew": Aim("block gain", 1.0, DROWNED), "ms": Aim("block gain", 1.05, DROWNED)}
IN_STEP = (
    "all of the gradient passes neurons, and AdamW rescales what time steps add to it, so within a step it "
    "should about keep its size"
)
AS_IT_IS = "SGD takes gradients as they are, and all of it passes neurons, so it should grow little"
PLAIN_BLOCKS = {  # by optimizer, and whether they are bottlenecks
    ("adamw", True): Aim("block gain in a step", 1.1, IN_STEP),
    ("adamw", False): Aim("block gain in a step", 0.8, IN_STEP),
    ("sgd", True): Aim("block gain", 1.5, AS_IT_IS),
    ("sgd", False): Aim("block gain", 1.0, AS_IT_IS),
}
IDENTITY = Aim(
    "depth gain",
    0.8,
    "layers that start as the identity carry the image, and a wider surrogate explodes as they move",
)


def starts_closed(recipe: Recipe) -> bool:
    """Whether residual blocks start with little or no gain."""
    gain = recipe.model.residual_gain
    return isinstance(gain, str) or gain < OPENED


def is_bottleneck(recipe: Recipe) -> bool:
    """Whether residual blocks have three layers with a narrow one inside, not two."""
    architecture = ARCHITECTURES.get(recipe.model.name)
    return architecture is not None and architecture.bottleneck


def aim_of(recipe: Recipe, gain: float | None = None, identity: bool | None = None) -> Aim:
    """The aim for the recipe's optimizer and kind of block.

    gain, identity: what blocks start at, and whether layers start as the identity, where that was
        measured (`block_start`, `layer_start`); None for what the recipe says.
    """
    if recipe.model.start == "identity" or identity:
        return IDENTITY
    if recipe.model.block in SHORTCUTS:
        return SHORTCUTS[recipe.model.block]
    closed = starts_closed(recipe) if gain is None else gain < OPENED
    if closed and recipe.model.block == "plain":
        return PLAIN_BLOCKS[recipe.train.optimizer, is_bottleneck(recipe)]
    return SGD if recipe.train.optimizer == "sgd" else ADAMW
