"""neuron.surrogate.hold: a width that `auto` chose is measured again during training, and narrowed.

Plain blocks that start closed hand spikes on as they are, and the gradient hardly grows from one to
the next. While they learn they open, and with the width of the start it begins to grow: in a
ResNet-50 the block gain rises from 0.8 to 1.15 within ten epochs, and as it comes to 1, training loses
what it had learnt (docs/gradient_flow.md). So the gain that the width was chosen by is measured again
now and then, on the same batches; where it has grown too far, the width is narrowed. It is never
widened again, and narrowed by steps, so that it changes few times: a compiled step is compiled anew.
Where even half of the width would not do, the gain hardly depends on it, as with neurons without a leak, and
a narrower surrogate would only let fewer neurons learn: it is left as it is.

Blocks with shortcuts around their neurons (`sew`, `ms`) need none of this: what is added to their
gradient stays small.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np

from spiketriton.config import Recipe
from spiketriton.gradients.aims import Aim, Goal
from spiketriton.gradients.calibration import Calibration, Search, WidthProber
from spiketriton.gradients.probing import Batch, Loss, Prober
from spiketriton.models import Network

# of each goal: the value from which on the width is narrowed, and the one that it is narrowed to
LIMITS: dict[Goal, tuple[float, float]] = {
    "block gain": (1.05, 0.95),
    "block gain in a step": (0.81, 0.75),
}
# a width is narrowed to this share of itself at most, and left where less than the second share would be needed
AT_ONCE = 0.8
FUTILE = 0.5
TIMES = 40  # in a training, and
SHARE = 0.03  # of the images that are trained on, at most


def holds(recipe: Recipe, found: Calibration) -> bool:
    """Whether the width is measured again during the recipe's training."""
    return recipe.neuron.surrogate.hold and may_outgrow(recipe, found)


def may_outgrow(recipe: Recipe, found: Calibration) -> bool:
    """Whether the gradient may come to grow with the width that was found."""
    return found.goal in LIMITS and recipe.model.block == "plain"


def interval(steps: int, batch_size: int, images: int) -> int:
    """Steps from one measurement, which takes `images`, to the next."""
    return max(1, steps // TIMES, math.ceil(images / (SHARE * batch_size)))


def hold(
    model: Network,
    found: Calibration,
    step: int,
    threshold: float,
    batches: Sequence[Batch],
    loss: Loss,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Calibration | None:
    """The calibration with narrower widths; None where the gradient does not grow, or not by the width.

    Args:
        model: during training, with the widths of `found`; other widths are set when this returns.
        found: what was measured before training, or after the last change.
        step: optimizer steps done.
        threshold: of the neurons.
        batches, loss, autocast: those that `found` was measured with.
    """
    net = WidthProber(Prober(model, batches, loss, autocast), threshold)
    widths = np.array([found.widths[name] for name in net.names])
    assert found.goal is not None  # see `holds`
    grown, even = LIMITS[found.goal]
    aim = Aim(found.goal, even, found.why)
    search = Search(aim, net, model.last_of_blocks(), widths / found.width)
    gain, _ = search.goal(found.width)
    if gain <= grown:
        return None
    even_width, _, _ = search.common_width()
    if not FUTILE * found.width <= even_width < found.width:
        return None
    width = max(even_width, AT_ONCE * found.width)
    return replace(
        found,
        width=width,
        widths={name: width * (own / found.width) for name, own in found.widths.items()},
        held=(*found.held, (step, gain, width)),
    )
