"""Changes and what trials of them showed, in sentences."""

import math

from spiketriton.diagnose.cures import Cure, Why
from spiketriton.diagnose.trials import Trials

WHY = {
    Why.BLOCKS_START_CLOSED: "each block then starts as its shortcut, and the forward signal reaches the last layer",
    Why.GOES_AROUND: "the gradient of a shortcut then goes around the neuron that it enters",
    Why.IDENTITY: "each layer then starts as the identity, and the forward signal reaches the last one",
    Why.WIDTH: "the default, 0.3 of the threshold; docs/gradient_flow.md has the widths that it was compared with",
    Why.NORM: "batch norm keeps the currents within reach of the surrogate",
    Why.MEMBRANES: "shortcuts then bypass the neurons, forward and backward",
    Why.RATE: "a step may have been too large",
    Why.CLIPPING: "SGD takes steps as large as the gradient, which bursts in deep spiking nets",
    Why.INPUT: "LIF(tau) divides its input by tau; without that its neurons are sooner at their threshold",
    Why.TAU: "a membrane then keeps what it was shown at the first step until the last",
    Why.NO_LEAK: "a membrane without a leak keeps everything, and so does its gradient",
    Why.PARALLEL: "a parallel neuron reads all steps at once, by weights that it learns",
    Why.DETACHED: "the reset takes away from the gradient of the membrane, or adds to it, at every spike",
    Why.HEIGHT: "the gradient is multiplied by the surrogate's height at every step that the reset hands it on",
    Why.MEAN: "each step then has a way of its own to the loss",
    Why.EACH_STEP: "each step then has a loss of its own",
    Why.NO_FEEDBACK: "spikes that come back send the surrogate's slope from step to step",
    Why.THRESHOLD: "neurons that never fire are sooner at their threshold",
}


def change(cure: Cure) -> str:
    """The override that takes a cure, `model.residual_gain=0`, or what it does to a module."""
    return cure.override or str(cure.value)


def tried(trials: Trials) -> str:
    """What trials showed, in a sentence: `after 50 steps of 32 images the loss is 2.31 as it is, ...`."""
    helped = [cure for cure, _ in trials.helped]
    idle = [f"{change(c)} ({_loss(loss)})" for c, loss in trials.changed if c not in helped]
    guess = "" if trials.guess is None else f", of guessing {_loss(trials.guess)}"
    both = " than both" if guess else ""
    of = f"of {trials.others} others " if trials.others else ""
    said = (
        f"fresh nets were trained for {trials.steps} steps of {trials.images} images: "
        f"as it is the loss {of}is {_loss(trials.as_it_is)}{guess}"
    )
    if helped:
        best = (f"{change(cure)} ({_loss(loss)})" for cure, loss in trials.helped)
        said += f"; lower{both} with {', '.join(best)}"
    return said + (f"; not 5 % lower{both} with {', '.join(idle)}" if idle else "")


def _loss(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "not finite"
