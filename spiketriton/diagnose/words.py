"""What trials of changes showed, in a sentence."""

import math

from spiketriton.diagnose.trials import Trials
from spiketriton.show.verdict import change


def tried(trials: Trials) -> str:
    """What trials showed, in a sentence: `after 50 steps of 32 images the loss is 2.31 as it is, ...`."""
    helped = [cure for cure, _ in trials.helped]
    idle = [f"{change(c)} ({_loss(loss)})" for c, loss in trials.changed if c not in helped]
    said = (
        f"fresh nets were trained for {trials.steps} steps of {trials.images} images: "
        f"as it is the loss is {_loss(trials.as_it_is)}"
    )
    if helped:
        best = (f"{change(cure)} ({_loss(loss)})" for cure, loss in trials.helped)
        said += f"; lower with {', '.join(best)}"
    return said + (f"; no lower with {', '.join(idle)}" if idle else "")


def _loss(loss: float) -> str:
    return f"{loss:.3g}" if math.isfinite(loss) else "not finite"
