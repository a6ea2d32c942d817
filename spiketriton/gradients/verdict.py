"""From measured numbers to words: does the image get through, and does the gradient come back?

forward     Each layer must fire, and the last one must still tell an image from others (`Prober.overlap`,
            which needs a pass of its own: `diagnose` measures it, training does not).
backward    Two axes, judged apart. Through depth: the RMS of dL/dx of each spiking layer over all its
            time steps, the first layer by the last. Through time: that of the first time step by the
            last, the geometric mean over the layers. And no layer may lie outside the surrogate's reach.

The limits are in `LIMITS` and below it, each with its reason: a number is judged against a limit, and
both stand in every sentence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spiketriton.config import Recipe
from spiketriton.gradients.aims import Aim, aim_of, starts_closed
from spiketriton.gradients.measurement import Measurement

Word = Literal["healthy", "vanishing", "exploding", "blocked", "silent", "lost", "not finite"]


@dataclass(frozen=True)
class Limits:
    """Of the ratio first / last: vanishing below `low`, exploding above `high`; and why."""

    low: float
    high: float
    why: str


SGD_DEPTH = "SGD takes gradients as they are, so layers with much smaller ones hardly learn"
ADAMW_DEPTH = (
    "AdamW rescales the gradient of each weight, so growth does no harm until float32 ends"
)
THROUGH_TIME = "beyond it, the first time steps outweigh all others, or count for nothing"
LIMITS: dict[tuple[str, str], Limits] = {
    ("depth", "sgd"): Limits(1e-2, 1e2, SGD_DEPTH),
    ("depth", "adamw"): Limits(1e-2, 1e12, ADAMW_DEPTH),
    ("time", "sgd"): Limits(1e-2, 1e3, THROUGH_TIME),
    ("time", "adamw"): Limits(1e-2, 1e3, THROUGH_TIME),
}
ROOM = (0.1, 10.0)  # around the ratio that the width was chosen for, where that lies further out
# a layer with more of its neurons outside the surrogate's reach hardly learns
DEAD_SHARE = 0.9
# spikes per neuron and time step: with fewer, the layers after this one see nothing
SILENT_RATE = 1e-3
FORGOTTEN = 0.1  # a layer with a smaller overlap keeps nothing of an image


@dataclass(frozen=True)
class Forward:
    """What gets through to the last layer.

    quietest, rate: the layer (index) that fires least of those that should, and its spikes per
        neuron and time step.
    kept: what the last layer keeps of an image, 0 to 1; None where it was not measured.
    lost_from: the layer (index) from which on nothing is kept, or None.
    """

    quietest: int
    rate: float
    kept: float | None
    lost_from: int | None

    @property
    def word(self) -> Literal["healthy", "silent", "lost"]:
        if self.rate < SILENT_RATE:
            return "silent"
        return "healthy" if self.lost_from is None else "lost"

    def sentence(self, names: Sequence[str]) -> str:
        """What was found, with its numbers and limits."""
        rate = f"fires {_rate(self.rate)} times per neuron and time step"
        quiet = f"the quietest layer, {names[self.quietest]}, {rate}"
        if self.word == "silent":
            return (
                f"forward: silent: {names[self.quietest]} {rate}, below the limit of {SILENT_RATE:g}; "
                "the layers after it see nothing"
            )
        if self.kept is None or math.isnan(self.kept):
            return (
                f"forward: every layer fires; {quiet}; what is left of the image is measured by "
                "spiketriton diagnose"
            )
        if self.lost_from is not None:
            return (
                f"forward: lost: the last layer keeps {in_percent(self.kept)} of an image's identity; from "
                f"{names[self.lost_from]} on less than {in_percent(FORGOTTEN)}, so an image with 5 % noise "
                "is as different as another image"
            )
        return (
            f"forward: healthy: the last layer keeps {in_percent(self.kept)} of an image's identity "
            f"(at least {in_percent(FORGOTTEN)} is needed); {quiet}"
        )


@dataclass(frozen=True)
class Axis:
    """The gradient along one axis, walking backward.

    limits: what `ratio` is judged against.
    places: how many layers or time steps were compared.
    gain: geometric mean of consecutive ratios; None with fewer than two places that have a
        gradient.
    spread: the factor by which single ratios scatter around it, exp(standard deviation of log).
    ratio: first / last, of the measurement; 0 when the gradient dies on the way, infinite when it
        overflows; None with one place, or where nothing arrives at the last.
    steepest: place (index) entered by the largest step in the direction of the word.
    extreme: place (layer, time step) of the largest gradient when it explodes, else the smallest.
    """

    name: Literal["depth", "time"]
    word: Literal["healthy", "vanishing", "exploding"]
    limits: Limits
    places: int
    gain: float | None
    spread: float | None
    ratio: float | None
    steepest: int
    extreme: tuple[int, int]

    @property
    def limits_reached(self) -> bool:
        return self.word != "healthy"

    def comparison(self) -> str:
        """The ratio in words: `at the first layer the gradient is 3.2x that at the last`."""
        what = "layer" if self.name == "depth" else "time step"
        if self.places == 1:
            return f"there is one {what}, so nothing to compare"
        if self.ratio is None and self.word == "exploding":
            return f"at the last {what} the gradient is too large for float32 already"
        if self.ratio is None:
            return f"no gradient arrives at the last {what}"
        return f"at the first {what} the gradient is {times(self.ratio)} that at the last"

    def judgement(self) -> str:
        """Against what: `fine from 0.01x to 100x`, `above the limit of 100x`."""
        if self.places == 1 or self.ratio is None:
            return ""
        if self.word == "exploding":
            if self.ratio <= self.limits.high:
                return "somewhere between them it is too large for float32"
            return f"above the limit of {times(self.limits.high)}"
        if self.word == "vanishing":
            return f"below the limit of {times(self.limits.low)}"
        return f"fine from {times(self.limits.low)} to {times(self.limits.high)}"

    def sentence(self) -> str:
        """What was found, with its number, its limit and the reason for the limit."""
        judged = ", ".join(filter(None, (self.comparison(), self.judgement())))
        if self.places == 1:
            return f"backward through {self.name}: {judged}"
        return f"backward through {self.name}: {self.word}: {judged}: {self.limits.why}"

    def brief(self) -> str:
        """`depth 223x (limit 1e12x)`; "" where there is nothing to compare."""
        if self.places == 1:
            return ""
        if self.ratio is None:
            return (
                f"{self.name}: {'too large' if self.word == 'exploding' else 'nothing'} at the last"
            )
        limit = self.limits.high if self.ratio >= 1 else self.limits.low
        return f"{self.name} {times(self.ratio)} (limit {times(limit)})"


@dataclass(frozen=True)
class Verdict:
    """Forward and backward, and what else keeps a net from learning.

    dead_share: neurons outside the surrogate's reach, over all layers and time steps.
    dead_layer: the worst layer (index) if most of its neurons are out of reach, or None.
    closed: residual blocks are still as they started, and no gradient enters them yet.
    nonfinite: (layer, time step) where dL/dx first was not finite on the way back, or None.
    """

    names: tuple[str, ...]
    forward: Forward
    depth: Axis
    time: Axis
    dead_share: float
    dead_layer: int | None
    firing_rate: float
    time_factor: float
    closed: bool
    nonfinite: tuple[int, int] | None

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.depth, self.time

    @property
    def backward(self) -> Word:
        """The word of what is worst on the way back; depth before time."""
        if self.nonfinite:
            return "not finite"
        for axis in self.axes:
            if axis.limits_reached:
                return axis.word
        return "healthy" if self.dead_layer is None else "blocked"

    @property
    def word(self) -> Word:
        """One word for both ways: the backward one's trouble first."""
        return self.forward.word if self.backward == "healthy" else self.backward

    @property
    def silent_layer(self) -> int | None:
        """The layer (index) that hardly ever fires, or None."""
        return self.forward.quietest if self.forward.word == "silent" else None

    def line(self) -> str:
        """One line: `healthy, forward and backward`, `forward lost, backward exploding through depth`."""
        if self.nonfinite:
            return f"not finite at {self._at(self.nonfinite)}"
        ways = [f"{axis.word} through {axis.name}" for axis in self.axes if axis.limits_reached]
        if self.dead_layer is not None:
            ways.append(f"blocked at {self.names[self.dead_layer]}")
        backward = " and ".join(ways) or "healthy"
        if self.forward.word != "healthy":
            return f"forward {self.forward.word}, backward {backward}"
        if self.forward.kept is None:
            return f"gradient {backward}, all layers fire"
        return f"forward healthy, backward {backward}" if ways else "healthy, forward and backward"

    def brief(self) -> str:
        """The line of a running training: the verdict, and the ratios beside their limits."""
        numbers = ", ".join(filter(None, (axis.brief() for axis in self.axes)))
        if self.closed:
            numbers = "blocks still closed" + (
                f", {self.time.brief()}" if self.time.brief() else ""
            )
        return self.line() if self.nonfinite or not numbers else f"{self.line()}: {numbers}"

    def sentences(self) -> list[str]:
        """Everything that was judged, a sentence each: forward, depth, time, reach."""
        said = [self.forward.sentence(self.names)]
        if self.nonfinite:
            return [*said, f"backward: dL/dx is not finite at {self._at(self.nonfinite)}"]
        if self.closed:
            said.append(
                "backward through depth: residual blocks are still closed, as they started: before the "
                "first step no gradient enters them"
            )
        else:
            said.append(self.depth.sentence())
        said.append(self.time.sentence())
        share = in_percent(self.dead_share)
        reach = f"{share} of the neurons are too far from their threshold to pass a gradient on"
        if self.dead_layer is not None:
            reach += f", and over {in_percent(DEAD_SHARE)} in {self.names[self.dead_layer]}, which blocks it"
        said.append(f"backward, reach of the surrogate: {reach}")
        return said

    def findings(self) -> list[str]:
        """What is wrong, a sentence each, with layer and time step; none for a healthy net."""
        found = []
        if self.nonfinite:
            found.append(f"dL/dx is not finite at {self._at(self.nonfinite)}")
        found += [self._finding(axis) for axis in self.axes if axis.limits_reached]
        if self.dead_layer is not None:
            found.append(
                f"most neurons of {self.names[self.dead_layer]} are outside the surrogate's reach"
            )
        if self.forward.word != "healthy":
            found.append(self.forward.sentence(self.names).removeprefix("forward: "))
        return found

    def _finding(self, axis: Axis) -> str:
        extreme = "largest" if axis.word == "exploding" else "smallest"
        place = self.names[axis.steepest] if axis.name == "depth" else f"time step {axis.steepest}"
        judged = ", ".join(filter(None, (axis.comparison(), axis.judgement())))
        found = f"the gradient is {axis.word} through {axis.name}: {judged}"
        return f"{found}; {extreme} at {self._at(axis.extreme)}; steepest on the way into {place}"

    def _at(self, place: tuple[int, int]) -> str:
        return f"{self.names[place[0]]}, time step {place[1]}"


def judge(
    measured: Measurement,
    optimizer: str = "sgd",
    overlap: np.ndarray | None = None,
    among: Sequence[int] | None = None,
    may_be_silent: Sequence[int] = (),
    aim: Aim | None = None,
) -> Verdict:
    """The verdict on a measurement.

    Args:
        measured: of all spiking layers.
        optimizer: of the training, "sgd" or "adamw".
        overlap: what each layer keeps of an image, [layers]; None where it was not measured.
        among: the layers whose gradients are compared through depth (`comparable`): None for all,
            none of them while residual blocks are closed.
        may_be_silent: layers that need not fire (`may_be_silent`).
        aim: what the surrogate's width is chosen by (`aim_of`); what it asks for through depth is no
            trouble, at any depth.
    """
    bad = np.argwhere(measured.nonfinite[::-1, ::-1] > 0)
    layers, steps = measured.grad_input.shape
    closed = among is not None and len(among) == 0
    compared = range(layers) if among is None else [layers - 1] if closed else among
    outside, firing = measured.outside.mean(1), measured.firing.mean(1)
    should_fire = [i for i in range(layers) if i not in may_be_silent] or list(range(layers))
    quietest = min(should_fire, key=lambda i: firing[i])
    return Verdict(
        names=measured.names,
        forward=Forward(
            quietest=quietest,
            rate=float(firing[quietest]),
            kept=None if overlap is None else float(overlap[-1]),
            lost_from=None if overlap is None else lost_at(overlap),
        ),
        depth=_axis("depth", measured, compared, _depth_limits(measured.names, optimizer, aim)),
        time=_axis("time", measured, compared, LIMITS["time", optimizer]),
        dead_share=float(measured.outside.mean()),
        dead_layer=int(outside.argmax()) if outside.max() > DEAD_SHARE else None,
        firing_rate=float(measured.firing.mean()),
        time_factor=float(measured.time_factor.mean()),
        closed=closed,
        nonfinite=(layers - 1 - int(bad[0][0]), steps - 1 - int(bad[0][1])) if len(bad) else None,
    )


def lost_at(overlap: np.ndarray) -> int | None:
    """The layer from which on nothing is kept of an image; None if the last one keeps some."""
    keeping = np.flatnonzero(~(overlap < FORGOTTEN))
    after = int(keeping[-1]) + 1 if len(keeping) else 0
    return after if after < len(overlap) else None


def comparable(measured: Measurement, recipe: Recipe) -> list[int] | None:
    """The layers whose gradients can be compared: None for all, unless blocks start closed.

    Inside a block that starts closed the gradient is as small as the block's gain, at any depth: the
    last layer of each block stands for it. Before anything is learnt, none may be reached at all;
    then there is nothing to compare yet, and the list is empty. Values that are not finite are looked
    for in all layers.
    """
    if not starts_closed(recipe) or measured.nonfinite.any():
        return None
    ends = last_layers(measured.names)
    return ends if measured.grad_spike[ends].any() else []


def last_layers(names: Sequence[str]) -> list[int]:
    """The last spiking layer (index) of each residual block, and of whatever stands before them."""
    last: dict[str, int] = {}
    for index, name in enumerate(names):
        block, _, layer = name.rpartition(".")
        if layer.startswith("neuron") and layer != "neuron_last":
            last[block] = index
    return list(last.values())


def may_be_silent(names: Sequence[str], recipe: Recipe) -> list[int]:
    """Layers whose spikes nobody needs: the branches of SEW blocks that start closed."""
    closed = recipe.model.block == "sew" and starts_closed(recipe)
    return [i for i in last_layers(names) if "." in names[i]] if closed else []


def _depth_limits(names: Sequence[str], optimizer: str, aim: Aim | None) -> Limits:
    """Those of the optimizer, or as wide around what is aimed at where that needs more."""
    usual = LIMITS["depth", optimizer]
    if aim is None:
        return usual
    growth = aim.growth(len(last_layers(names) if aim.goal == "block gain" else names))
    limits = Limits(
        min(usual.low, ROOM[0] * growth),
        max(usual.high, ROOM[1] * growth),
        f"a {aim.goal} of {aim.target:g} is aimed at, {times(growth)} over all of them: {aim.why}",
    )
    return usual if (limits.low, limits.high) == (usual.low, usual.high) else limits


def _axis(
    name: Literal["depth", "time"], measured: Measurement, among: Sequence[int], limits: Limits
) -> Axis:
    shown = measured.of_layers(among)
    if name == "depth":
        profile, ratio = shown.depth_profile, shown.depth_ratio
    else:
        profile, ratio = shown.time_profile, shown.time_ratio
    finite = np.where(np.isfinite(profile), profile, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(finite)
        jumps = logs[:-1] - logs[1:]  # from a place to the one before it, walking backward
    known = jumps[np.isfinite(jumps)]
    word: Literal["healthy", "vanishing", "exploding"] = "healthy"
    if np.isinf(finite).any() or (ratio is not None and ratio > limits.high):
        word = "exploding"
    elif (ratio is None and len(profile) > 1) or (ratio is not None and ratio < limits.low):
        word = "vanishing"
    sign = -1 if word == "vanishing" else 1
    towards = np.where(np.isnan(jumps), -np.inf, sign * jumps)
    grads = np.where(np.isfinite(shown.grad_input), shown.grad_input, np.inf)
    extreme = grads.argmax() if word == "exploding" else grads.argmin()
    layer, step = np.unravel_index(extreme, grads.shape)
    steepest = int(towards.argmax()) if len(towards) else 0
    return Axis(
        name=name,
        word=word,
        limits=limits,
        places=len(profile),
        gain=math.exp(known.mean()) if len(known) else None,
        spread=math.exp(known.std()) if len(known) else None,
        ratio=ratio,
        steepest=among[steepest] if name == "depth" else steepest,
        extreme=(int(among[int(layer)]), int(step)),
    )


@dataclass(frozen=True)
class Cure:
    """A change of the recipe, `key=value`, and why."""

    change: str
    reason: str


def cures(verdict: Verdict, recipe: Recipe) -> list[Cure]:
    """Changes of `recipe` that may mend what the verdict found, the likeliest first."""
    neuron, found = recipe.neuron, []
    width = neuron.surrogate.width
    if verdict.depth.limits_reached or verdict.nonfinite or verdict.dead_layer is not None:
        if recipe.model.norm == "none":
            found.append(Cure("model.norm=bn", "batch norm of the currents keeps neurons in reach"))
        if not isinstance(width, str):
            side = "wide" if verdict.depth.word == "exploding" else "narrow"
            found.append(
                Cure("neuron.surrogate.width=auto", f"{width:g} is too {side}; auto measures one")
            )
        elif width == "auto":
            found.append(
                Cure("neuron.surrogate.width=auto_per_layer", "one width does not fit all layers")
            )
        if verdict.depth.word == "exploding" and neuron.surrogate.height > 1:
            found.append(
                Cure("neuron.surrogate.height=1", "a surrogate above 1 amplifies every gradient")
            )
    if verdict.time.word == "exploding":
        if not neuron.detach_reset:
            found.append(Cure("neuron.detach_reset=true", "the path through the reset amplifies"))
        if neuron.kind == "if":
            found.append(Cure("neuron.kind=lif", "a leak bounds how far gradients are carried"))
    if verdict.time.word == "vanishing" and neuron.kind in ("lif", "plif"):
        tau = 2 * neuron.tau
        found.append(Cure(f"neuron.tau={tau:g}", "a weaker leak carries gradients further back"))
    if verdict.silent_layer is not None and recipe.model.norm != "tdbn":
        found.append(Cure("model.norm=tdbn", "currents as wide as the threshold is high"))
    return list({cure.change: cure for cure in found}.values())


class Watch:
    """Judges each measurement of a run, and warns once of each kind of trouble, with its cure."""

    def __init__(self, recipe: Recipe, warn: Callable[[str], None]) -> None:
        self.recipe, self.warn = recipe, warn
        self.aim = aim_of(recipe)  # until more is known
        self.verdict: Verdict | None = None
        self._warned: set[str] = set()

    def look(self, step: int, measured: Measurement) -> None:
        """Judges what was measured at `step` of the training."""
        recipe = self.recipe
        self.verdict = verdict = judge(
            measured,
            recipe.train.optimizer,
            among=comparable(measured, recipe),
            may_be_silent=may_be_silent(measured.names, recipe),
            aim=self.aim,
        )
        kinds = [f"{axis.name} {axis.word}" for axis in verdict.axes if axis.limits_reached]
        kinds += ["dead"] if verdict.dead_layer is not None else []
        kinds += ["silent"] if verdict.silent_layer is not None else []
        # fp16's loss scaler finds its factor by overflowing, so values that are not finite are normal
        if verdict.nonfinite is None and not self._warned.issuperset(kinds):
            self._warned.update(kinds)
            advice = [f"{cure.change} ({cure.reason})" for cure in cures(verdict, self.recipe)]
            trouble = f"step {step}: {'; '.join(verdict.findings())}"
            self.warn(trouble + (f". Try {', or '.join(advice[:2])}" if advice else ""))

    def in_words(self) -> str:
        """`gradient healthy, all layers fire: depth 3.2x (limit 100x)`; "" before a measurement."""
        return "" if self.verdict is None else self.verdict.brief()


def times(ratio: float | None) -> str:
    """A ratio as in `3.2x`, `7530x`, `1.5e-4x`, `1e12x`; `-` when there is none."""
    if ratio is None:
        return "-"
    if 100 <= ratio < 1e4:
        return f"{ratio:.0f}x"
    if ratio == 0 or math.isinf(ratio):
        return "0x" if ratio == 0 else "more than 1e38x"
    if 1e-3 <= ratio < 100:
        return f"{ratio:.3g}x"
    digits, exponent = f"{ratio:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}x"


def in_percent(share: float) -> str:
    """A share in whole percent; noise may take an overlap of nothing a little below 0."""
    return f"{100 * max(share, 0.0):.0f} %"


def _rate(rate: float) -> str:
    return f"{rate:.2g}"
