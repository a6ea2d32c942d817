"""From gradient norms by layer and time step to a word: healthy, vanishing or exploding.

Two axes are judged apart. Through depth: the RMS of dL/dx of each spiking layer over all its time
steps. Through time: that of each time step, the geometric mean over the layers. Both are walked
backward, as the gradient goes, so a gain above 1 grows toward the input or the first time step.

Every threshold stands in `LIMITS` and below it. Under AdamW, which rescales the gradient of every
weight, a growth through depth does no harm until float32 ends, so its limit lies far out; a fall
does harm under either optimizer, because it comes of neurons out of the surrogate's reach.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.text import Text

from spiketriton.config import Recipe
from spiketriton_kernels import PROBE_FIELDS

Word = Literal["healthy", "vanishing", "exploding"]

# first by last, walking backward: (vanishing below, exploding above)
LIMITS: dict[tuple[str, str], tuple[float, float]] = {
    ("depth", "sgd"): (1e-2, 1e2),
    ("depth", "adamw"): (1e-2, 1e12),
    ("time", "sgd"): (1e-2, 1e3),
    ("time", "adamw"): (1e-2, 1e3),
}
DEAD_SHARE = 0.9  # of the neurons of a layer out of the surrogate's reach: it hardly learns
SILENT_RATE = 1e-3  # spikes a neuron and time step: the layers behind see nothing

COLOURS = {"healthy": "green", "vanishing": "blue", "exploding": "red"}


@dataclass(frozen=True)
class Measurement:
    """What the probes measured; arrays are float64 [layers, T] unless said otherwise.

    names: the spiking layers in forward order.
    grad_spike, grad_input, grad_carry: RMS of dL/ds, dL/dx and of dL/dv carried from the next step.
    time_factor: mean |decay * dv/dh|.
    outside, firing: share of neurons out of the surrogate's reach, and of those that fire.
    peak: largest |dL/dx|.
    nonfinite: number of values of dL/dx that are not finite.
    """

    names: tuple[str, ...]
    grad_spike: np.ndarray
    grad_input: np.ndarray
    grad_carry: np.ndarray
    time_factor: np.ndarray
    outside: np.ndarray
    firing: np.ndarray
    peak: np.ndarray
    nonfinite: np.ndarray

    @classmethod
    def of_sums(
        cls, names: Iterable[str], sums: np.ndarray, elements: Sequence[int], scale: float = 1.0
    ) -> "Measurement":
        """From the sums of probes.

        Args:
            names: of the layers.
            sums: [layers, T, 8] in the order of `PROBE_FIELDS`.
            elements: values of one time step of each layer, over all images.
            scale: what the loss was multiplied by.
        """
        count = np.asarray(elements, np.float64)[:, None]
        field = dict(
            zip(PROBE_FIELDS, np.moveaxis(np.asarray(sums, np.float64), -1, 0), strict=True)
        )
        rms = {name: np.sqrt(field[f"{name}_sq"] / count) / scale for name in _NORMS}
        return cls(
            names=tuple(names),
            grad_spike=rms["grad_spike"],
            grad_input=rms["grad_input"],
            grad_carry=rms["grad_carry"],
            time_factor=field["time_factor"] / count,
            outside=field["outside"] / count,
            firing=field["spikes"] / count,
            peak=field["grad_input_max"] / scale,
            nonfinite=field["nonfinite"],
        )

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, Any]]) -> "Measurement":
        """From the rows of gradients.jsonl of one step; null counts as not finite."""
        shape = tuple(1 + max(row[key] for row in rows) for key in ("index", "time_step"))
        names = {row["index"]: row["layer"] for row in rows}
        values = {field: np.full(shape, np.inf) for field in _ROW_FIELDS}
        for row in rows:
            for field, key in _ROW_FIELDS.items():
                if row[key] is not None:
                    values[field][row["index"], row["time_step"]] = row[key]
        return cls(names=tuple(names[index] for index in sorted(names)), **values)

    @property
    def depth_profile(self) -> np.ndarray:
        """RMS of dL/dx of each layer over its time steps, [layers]."""
        return np.sqrt(np.mean(self.grad_input**2, axis=1))

    @property
    def time_profile(self) -> np.ndarray:
        """RMS of dL/dx of each time step, the geometric mean over layers, [T]; 0 where none is."""
        logs = [_logs(column[column > 0]) for column in self.grad_input.T]
        return np.array([math.exp(log.mean()) if len(log) else 0.0 for log in logs])

    @property
    def transmission(self) -> np.ndarray:
        """RMS of dL/dx by that of dL/ds of each layer, [layers]: what its neurons pass on."""
        spike = np.sqrt(np.mean(self.grad_spike**2, axis=1))
        return np.divide(self.depth_profile, spike, out=np.zeros_like(spike), where=spike > 0)

    def rows(self) -> list[dict[str, Any]]:
        """One object per layer and time step, for JSON."""
        return [
            {"layer": name, "index": index, "time_step": t}
            | {key: float(getattr(self, field)[index, t]) for field, key in _ROW_FIELDS.items()}
            for index, name in enumerate(self.names)
            for t in range(self.grad_input.shape[1])
        ]


_NORMS = ("grad_spike", "grad_input", "grad_carry")
_ROW_FIELDS = {
    "grad_spike": "grad_spike_rms",
    "grad_input": "grad_input_rms",
    "grad_carry": "grad_carry_rms",
    "time_factor": "time_factor",
    "outside": "outside_share",
    "firing": "firing_rate",
    "peak": "grad_input_max",
    "nonfinite": "nonfinite",
}


@dataclass(frozen=True)
class Axis:
    """The gradient along one axis, walking backward.

    gain: geometric mean of consecutive ratios; None with fewer than two places that have a
        gradient.
    spread: the factor by which single ratios scatter around it, exp(standard deviation of log).
    ratio: first by last; 0 when the gradient dies on the way.
    steepest: place (index) that is entered by the largest step in the direction of the word.
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

    dead_share: neurons out of the surrogate's reach, over all layers and time steps.
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
                f"most neurons of {self.names[self.dead_layer]} are out of the surrogate's reach"
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
        depth=_axis("depth", measured.depth_profile, measured.grad_input, optimizer),
        time=_axis("time", measured.time_profile, measured.grad_input, optimizer),
        dead_share=float(measured.outside.mean()),
        dead_layer=int(outside.argmax()) if outside.max() > DEAD_SHARE else None,
        silent_layer=int(firing.argmin()) if firing.min() < SILENT_RATE else None,
        firing_rate=float(measured.firing.mean()),
        time_factor=float(measured.time_factor.mean()),
        nonfinite=(layers - 1 - int(bad[0][0]), steps - 1 - int(bad[0][1])) if len(bad) else None,
    )


def depth_gain(measured: Measurement) -> float:
    """Geometric mean of consecutive layers' ratios, walking backward; 0 when the gradient dies."""
    profile = measured.depth_profile
    if not profile[-1] > 0:
        return 0.0
    return float((profile[0] / profile[-1]) ** (1 / max(1, len(profile) - 1)))


def _axis(name: Any, profile: np.ndarray, grads: np.ndarray, optimizer: str) -> Axis:
    # walking backward, a place is compared with the one behind it
    finite = np.where(np.isfinite(profile), profile, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(finite)
        jumps = logs[:-1] - logs[1:]
    known = jumps[np.isfinite(jumps)]
    ratio = None
    if len(profile) > 1 and finite[-1] > 0:
        ratio = float(finite[0] / finite[-1]) if np.isfinite(finite[-1]) else None
    low, high = LIMITS[name, optimizer]
    word: Word = "healthy"
    if np.isinf(finite).any() or (ratio is not None and ratio > high):
        word = "exploding"
    elif (ratio is None and len(profile) > 1) or (ratio is not None and ratio < low):
        word = "vanishing"
    sign = -1 if word == "vanishing" else 1
    towards = np.where(np.isnan(jumps), -np.inf, sign * jumps)
    ordered = np.where(np.isfinite(grads), grads, np.inf)
    extreme = ordered.argmax() if word == "exploding" else ordered.argmin()
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
    """Changes of `recipe` against what the verdict found, the likeliest first."""
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
    """Judges each measurement of a run, and warns of each kind of trouble once, with its cure."""

    def __init__(self, recipe: Recipe, warn: Callable[[str], None]) -> None:
        self.recipe, self.warn = recipe, warn
        self.verdict: Verdict | None = None
        self._told: set[str] = set()

    def look(self, rows: Sequence[dict[str, Any]]) -> None:
        """At the rows of gradients.jsonl of one step."""
        self.verdict = verdict = judge(Measurement.of_rows(rows), self.recipe.train.optimizer)
        kinds = [f"{axis.name} {axis.word}" for axis in verdict.axes if axis.limits_reached]
        kinds += ["dead"] if verdict.dead_layer is not None else []
        kinds += ["silent"] if verdict.silent_layer is not None else []
        # fp16's loss scaler finds its factor by overflowing: what is not finite is its business
        if verdict.nonfinite is None and not self._told.issuperset(kinds):
            self._told.update(kinds)
            advice = [f"{cure.change} ({cure.reason})" for cure in cures(verdict, self.recipe)]
            told = f"step {rows[0]['step']}: {'; '.join(verdict.findings())}"
            self.warn(told + (f". Try {', or '.join(advice[:2])}" if advice else ""))

    def in_words(self) -> str:
        """`2% out of reach, healthy`; "" before the first measurement."""
        if self.verdict is None:
            return ""
        return f"{self.verdict.dead_share:.0%} out of reach, {self.verdict.line()}"


def coloured(line: str) -> Text:
    """A line of a live display, its verdict in colour."""
    text = Text(line)
    for word, colour in COLOURS.items():
        text.highlight_words([word], style=f"bold {colour}")
    return text


def times(ratio: float | None) -> str:
    """A ratio as in `3.2x`, `7530x`, `1.0e-04x`; in words when there is none to divide by."""
    if ratio is None:
        return "against nothing in"
    if 100 <= ratio < 1e4:
        return f"{ratio:.0f}x"
    return f"{ratio:.3g}x" if 1e-3 <= ratio < 100 else f"{ratio:.1e}x"


def _logs(values: np.ndarray) -> np.ndarray:
    return np.log(values)
