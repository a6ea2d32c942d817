"""Verdicts, findings and cures in sentences: a number, its limit, and the reason for the limit."""

import math
from collections.abc import Sequence

from spiketriton.gradients.verdict import (
    DEAD_SHARE,
    LIMITS,
    Backward,
    Cure,
    Forward,
    Learned,
    Verdict,
    Why,
    Word,
)
from spiketriton.show.words import in_percent, percent, times

REASONS = {
    "sgd": "SGD takes gradients as they are, so layers with much smaller ones hardly learn",
    "adamw": "AdamW divides each weight's gradient by its size; the limit is a choice, far below float32's",
}
WHY = {
    Why.BLOCKS_START_CLOSED: "each block then starts as its shortcut, and the forward signal reaches the last layer",
    Why.GOES_AROUND: "the gradient of a shortcut then goes around the neuron that it enters",
    Why.IDENTITY: "each layer then starts as the identity, and the forward signal reaches the last one",
    Why.WIDTH: "the default, 0.3 of the threshold; docs/gradient_flow.md has the widths that it was compared with",
    Why.NORM: "batch norm keeps the currents within reach of the surrogate",
    Why.MEMBRANES: "shortcuts then bypass the neurons, forward and backward",
    Why.RATE: "where nothing is learnt, try a lower learning rate first",
}


def line(verdict: Verdict) -> str:
    """One line: `healthy: it learns, and no obstacle was found`, `lost forward and exploding backward`."""
    if verdict.backward.nonfinite:
        return f"not finite at {_at(verdict, verdict.backward.nonfinite)}"
    ways = ((verdict.forward.word, "forward"), (verdict.backward.word, "backward"))
    obstacles = " and ".join(f"{word} {way}" for word, way in ways if word != Word.FREE)
    if verdict.learned is None:
        return obstacles or Word.FREE
    if verdict.word == Word.CHANCE:
        return f"at chance: {obstacles or Word.FREE}"
    if obstacles:
        return f"learning, although {obstacles}"
    return "healthy: it learns, and no obstacle was found"


def brief(verdict: Verdict) -> str:
    """The line of a running training: the verdict and the ratio, with its limit unless that is AdamW's and far off."""
    back = verdict.backward
    if back.nonfinite or back.places == 1:
        return line(verdict)
    if back.places == 0:
        return f"{line(verdict)} (residual branches still zero)"
    if back.ratio is None:
        return f"{line(verdict)} (no gradient at the last layer)"
    low, high = back.limits
    beside = f", limit {times(high if back.ratio >= 1 or not low else low)}"
    ratio = f"first layer's gradient {times(back.ratio)} the last one's"
    return f"{line(verdict)} ({ratio}{beside if low or back.word != Word.FREE else ''})"


def sentences(verdict: Verdict) -> list[str]:
    """Everything that was judged, a sentence each: learning, forward, depth, time, reach."""
    said = [] if verdict.learned is None else [f"learning: {learned(verdict.learned)}"]
    said.append(f"forward: {forward(verdict.forward, verdict.names)}")
    if verdict.backward.nonfinite:
        place = _at(verdict, verdict.backward.nonfinite)
        return [*said, f"backward: dL/dx is not finite at {place}"]
    said.append(f"backward: {backward(verdict)}")
    if verdict.time_ratio is not None:
        said.append(
            f"through time: at the first time step the gradient is {times(verdict.time_ratio)} that at the last"
        )
    share = in_percent(verdict.dead_share)
    reach = f"{share} of the neurons get less than 1 % of the peak gradient"
    if verdict.dead_layer is not None:
        reach += f", over {in_percent(DEAD_SHARE)} in {verdict.names[verdict.dead_layer]}"
    said.append(f"reach of the surrogate: {reach}")
    if verdict.below_eps:
        first, *more = verdict.below_eps
        others = f" and {len(more)} more" if more else ""
        said.append(
            f"weights: the gradient of {first}{others} is smaller than AdamW's eps (train.eps), and so are its steps"
        )
    return said


def findings(verdict: Verdict) -> list[str]:
    """The obstacles, a sentence each, with layer and time step."""
    found = []
    if verdict.learned is not None and verdict.learned.at_chance:
        found.append(learned(verdict.learned))
    if verdict.backward.nonfinite:
        found.append(f"dL/dx is not finite at {_at(verdict, verdict.backward.nonfinite)}")
    elif verdict.backward.word != Word.FREE:
        extreme = "largest" if verdict.backward.word == Word.EXPLODING else "smallest"
        found.append(
            f"the gradient is {backward(verdict)}; {extreme} at {_at(verdict, verdict.backward.extreme)}; steepest on "
            f"the way into {verdict.names[verdict.backward.steepest]}"
        )
    if verdict.forward.word != Word.FREE:
        found.append(forward(verdict.forward, verdict.names))
    return found


def backward(verdict: Verdict) -> str:
    found, (low, high) = verdict.backward, verdict.backward.limits
    if found.places == 0:
        return "residual branches are still zero, as initialised: no gradient enters them before the first step"
    if found.places == 1:
        return "there is one layer, so nothing to compare"
    words, reason = comparison(found), REASONS[verdict.optimizer]
    if found.word == Word.FREE:
        fine = f"fine from {times(low)} to {times(high)}" if low else f"fine up to {times(high)}"
        return f"{words}, {fine}: {reason}"
    limit = ""
    if found.ratio is not None and found.word == Word.EXPLODING:
        limit = f", above the limit of {times(high)}"
        if found.ratio <= high:
            limit = ", and between them it is too large for float32"
    elif found.ratio is not None and low:
        limit = f", below the limit of {times(low)}"
    return f"{found.word}: {words}{limit}: {reason}"


def learned(known: Learned) -> str:
    if known.accuracy is not None:
        numbers = (
            f"{percent(known.accuracy)} of {known.images:,} test images, "
            f"{percent(known.guess_accuracy)} are in the largest class"
        )
    else:
        numbers = f"loss {known.loss:.4g}, guessing has {known.guess_loss:.4g}"
    return f"{'at chance' if known.at_chance else 'above chance'}: {numbers}"


def forward(found: Forward, names: Sequence[str]) -> str:
    rate = f"fires {found.rate:.2g} times per neuron and time step"
    quiet = f"the quietest layer, {names[found.quietest]}, {rate}"
    if found.word == Word.SILENT:
        return (
            f"silent: {names[found.quietest]} {rate}, below the limit of {LIMITS.rate:g}; "
            "no signal reaches the layers after it"
        )
    if found.kept is None or math.isnan(found.kept):
        return f"every layer fires; {quiet}; the forward signal is measured by spiketriton diagnose"
    kept = f"the forward signal at the last layer is {in_percent(found.kept)}"
    if found.lost_from is not None:
        return (
            f"lost: {kept}; from {names[found.lost_from]} on it is below the {in_percent(LIMITS.kept)} "
            "that nets need to learn (0 %: an image and a copy with 5 % noise differ like two images)"
        )
    return f"{kept} (at least {in_percent(LIMITS.kept)} is needed); {quiet}"


def change(cure: Cure) -> str:
    """The override that takes a cure: `model.residual_gain=0`."""
    value = f"{cure.value:g}" if isinstance(cure.value, float) else cure.value
    return f"{cure.key}={value}"


def advice(found: Sequence[Cure], most: int = 2) -> str:
    """`Try model.residual_gain=0 (why), or ...`; "" without a cure."""
    said = [f"{change(cure)} ({WHY[cure.why]})" for cure in found[:most]]
    return f"Try {', or '.join(said)}" if said else ""


def warning(step: int, verdict: Verdict, found: Sequence[Cure]) -> str:
    trouble = f"step {step}: {'; '.join(findings(verdict))}"
    return ". ".join(filter(None, (trouble, advice(found))))


def nothing_learnt(known: Learned, found: Sequence[Cure]) -> str:
    trouble = f"nothing was learnt: {learned(known)}"
    return ". ".join(filter(None, (trouble, advice(found, most=3))))


def comparison(found: Backward) -> str:
    """The ratio in words: `at the first layer the gradient is 3.2x that at the last`."""
    if found.ratio is None and found.word == Word.EXPLODING:
        return "at the last layer the gradient is too large for float32 already"
    if found.ratio is None:
        return "no gradient arrives at the last layer"
    return f"at the first layer the gradient is {times(found.ratio)} that at the last"


def _at(verdict: Verdict, place: tuple[int, int]) -> str:
    return f"{verdict.names[place[0]]}, time step {place[1]}"
