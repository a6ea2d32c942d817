"""From gradient norms by layer and time step to a word: healthy, vanishing or exploding.

Two axes are judged separately. Through depth: the RMS of dL/dx of each spiking layer over all its
time steps. Through time: that of each time step, the geometric mean over the layers. Both are
walked backward, as the gradient goes: a gain above 1 grows toward the input or the first time step.

All limits are in `LIMITS` and below it. Under AdamW, which rescales the gradient of every weight,
growth through depth does no harm until float32 overflows, so that limit is far out. A fall does
harm under either optimizer, because it comes from neurons outside the surrogate's reach.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spiketriton.config import Recipe
from spiketriton.gradients.measurement import Measurement

Word = Literal["healthy", "vanishing", "exploding"]

# of the ratio first / last: (vanishing below, exploding above)
LIMITS: dict[tuple[str, str], tuple[float, float]] = {
    ("depth", "sgd"): (1e-2, 1e2),
    ("depth", "adamw"): (1e-2, 1e12),
    ("time", "sgd"): (1e-2, 1e3),
    ("time", "adamw"): (1e-2, 1e3),
}
# a layer with more of its neurons outside the surrogate's reach hardly learns
DEAD_SHARE = 0.9
# spikes per neuron and time step: with fewer, the layers after this one see nothing
SILENT_RATE = 1e-3


@dataclass(frozen=True)
class Axis:
    """The gradient along one axis, walking backward.

    gain: geometric mean of consecutive ratios; None with fewer than two places that have a
        gradient.
    spread: the factor by which single ratios scatter around it, exp(standard deviation of log).
    ratio: first / last, of the measurement; 0 when the gradient dies on the way.
    steepest: place (index) entered by the largest step in the direction of the word.
    extreme: place (layer, time step) of the largest gradient when it explodes, else the smallest.
    """

    name: Literal["depth", "time"]
    word: Word
    gain: float | None
    spread: float | None
    ratio: float | None
    steepest: int
    extreme: tuple[int, int]

    @property
    def limits_reached(self) -> bool:
        return self.word != "healthy"


@dataclass(frozen=True)
class Verdict:
    """Both axes, and what else keeps a net from learning.

    dead_share: neurons outside the surrogate's reach, over all layers and time steps.
    dead_layer, silent_layer: the worst layer (index) if most of its neurons are out of reach, or
        if it hardly ever fires; None when there is none.
    nonfinite: (layer, time step) where dL/dx first was not finite on the way back, or None.
    """

    names: tuple[str, ...]
    depth: Axis
    time: Axis
    dead_share: float
    dead_layer: int | None
    silent_layer: int | None
    firing_rate: float
    time_factor: float
    nonfinite: tuple[int, int] | None

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.depth, self.time

    @property
    def word(self) -> Word:
        """The word of the worse axis; depth first."""
        return next((axis.word for axis in self.axes if axis.limits_reached), "healthy")

    def line(self) -> str:
        """One line: `exploding through depth (first layer 2e+05x the last), ...`."""
        if self.nonfinite:
            layer, step = self.nonfinite
            return f"not finite at {self.names[layer]}, time step {step}"
        parts = [f"{axis.word} through {axis.name}" for axis in self.axes if axis.limits_reached]
        return " and ".join(parts) or "healthy"

    def findings(self) -> list[str]:
        """What is wrong, a sentence each, with layer and time step; none for a healthy net."""
        found = []
        if self.nonfinite:
            layer, step = self.nonfinite
            found.append(f"dL/dx is not finite at {self.names[layer]}, time step {step}")
        for axis in self.axes:
            if axis.limits_reached:
                found.append(self._finding(axis))
        if self.dead_layer is not None:
            found.append(
                f"most neurons of {self.names[self.dead_layer]} are outside the surrogate's reach"
            )
        if self.silent_layer is not None:
            found.append(f"{self.names[self.silent_layer]} hardly ever fires")
        return found

    def _finding(self, axis: Axis) -> str:
        layer, step = axis.extreme
        extreme = "largest" if axis.word == "exploding" else "smallest"
        place = self.names[axis.steepest] if axis.name == "depth" else f"time step {axis.steepest}"
        what = "layer" if axis.name == "depth" else "time step"
        return (
            f"the gradient is {axis.word} through {axis.name}: first {what} "
            f"{times(axis.ratio)} the last, {extreme} at {self.names[layer]}, time step {step}; "
            f"steepest on the way into {place}"
        )


def judge(measured: Measurement, optimizer: str = "sgd") -> Verdict:
    """The verdict on a measurement, for training with "sgd" or "adamw"."""
    bad = np.argwhere(measured.nonfinite[::-1, ::-1] > 0)
    layers, steps = measured.grad_input.shape
    outside, firing = measured.outside.mean(1), measured.firing.mean(1)
    return Verdict(
        names=measured.names,
        depth=_axis("depth", measured, optimizer),
        time=_axis("time", measured, optimizer),
        dead_share=float(measured.outside.mean()),
        dead_layer=int(outside.argmax()) if outside.max() > DEAD_SHARE else None,
        silent_layer=int(firing.argmin()) if firing.min() < SILENT_RATE else None,
        firing_rate=float(measured.firing.mean()),
        time_factor=float(measured.time_factor.mean()),
        nonfinite=(layers - 1 - int(bad[0][0]), steps - 1 - int(bad[0][1])) if len(bad) else None,
    )


OPENED = 0.2  # the gain that residual blocks soon have, whatever they start at


def starts_closed(recipe: Recipe) -> bool:
    """Whether residual blocks start with little or no gain."""
    gain = recipe.model.residual_gain
    return isinstance(gain, str) or gain < OPENED


def comparable(measured: Measurement, recipe: Recipe) -> Measurement:
    """The layers whose gradients can be compared: all, unless blocks start closed.

    Inside a block that starts closed the gradient is as small as the block's gain, at any depth: the
    last layer of each block stands for it. Before anything is learnt, none may be reached at all.
    Values that are not finite are looked for in all layers.
    """
    if not starts_closed(recipe) or measured.nonfinite.any():
        return measured
    last: dict[str, int] = {}
    for index, name in enumerate(measured.names):
        block, _, layer = name.rpartition(".")
        if layer.startswith("neuron") and layer != "neuron_last":
            last[block] = index
    ends = list(last.values())
    still_closed = not measured.grad_spike[ends].any()
    return measured.of_layers([len(measured.names) - 1] if still_closed else ends)


def _axis(name: Literal["depth", "time"], measured: Measurement, optimizer: str) -> Axis:
    if name == "depth":
        profile, ratio = measured.depth_profile, measured.depth_ratio
    else:
        profile, ratio = measured.time_profile, measured.time_ratio
    finite = np.where(np.isfinite(profile), profile, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(finite)
        jumps = logs[:-1] - logs[1:]  # from a place to the one before it, walking backward
    known = jumps[np.isfinite(jumps)]
    low, high = LIMITS[name, optimizer]
    word: Word = "healthy"
    if np.isinf(finite).any() or (ratio is not None and ratio > high):
        word = "exploding"
    elif (ratio is None and len(profile) > 1) or (ratio is not None and ratio < low):
        word = "vanishing"
    sign = -1 if word == "vanishing" else 1
    towards = np.where(np.isnan(jumps), -np.inf, sign * jumps)
    grads = np.where(np.isfinite(measured.grad_input), measured.grad_input, np.inf)
    extreme = grads.argmax() if word == "exploding" else grads.argmin()
    layer, step = np.unravel_index(extreme, grads.shape)
    return Axis(
        name=name,
        word=word,
        gain=math.exp(known.mean()) if len(known) else None,
        spread=math.exp(known.std()) if len(known) else None,
        ratio=ratio,
        steepest=int(towards.argmax()) if len(towards) else 0,
        extreme=(int(layer), int(step)),
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
        self.verdict: Verdict | None = None
        self._warned: set[str] = set()

    def look(self, step: int, measured: Measurement) -> None:
        """Judges what was measured at `step` of the training."""
        shown = comparable(measured, self.recipe)
        self.verdict = verdict = judge(shown, self.recipe.train.optimizer)
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
        """`2% out of reach, healthy`; "" before the first measurement."""
        if self.verdict is None:
            return ""
        return f"{self.verdict.dead_share:.0%} out of reach, {self.verdict.line()}"


def times(ratio: float | None) -> str:
    """A ratio as in `3.2x`, `7530x`, `1.0e-04x`; in words when there is none to divide by."""
    if ratio is None:
        return "against nothing in"
    if 100 <= ratio < 1e4:
        return f"{ratio:.0f}x"
    return f"{ratio:.3g}x" if 1e-3 <= ratio < 100 else f"{ratio:.1e}x"
