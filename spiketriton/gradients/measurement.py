"""One measurement of a network's gradients, from the sums of the probes to rows and ratios.

The rows of gradients.jsonl, the live line, the verdict and the pictures are all
made from a `Measurement`; `Measurement.of_rows` reads one back from a file.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spiketriton_kernels import PROBE_FIELDS

COLUMNS = (
    "grad_spike_rms",
    "grad_input_rms",
    "grad_carry_rms",
    "time_factor",
    "outside_share",
    "firing_rate",
    "grad_input_max",
    "nonfinite",
    "credit",
    "direct",
    "remembered",
)
NOT_FINITE = re.compile(": -?(inf|nan)\\b")  # of numbers
TIME = ("credit", "direct", "remembered")  # which are there where `through_time` was asked for

"""What is known of a layer and a time step: fields of a `Measurement`, and keys of a row of gradients.jsonl."""


@dataclass(frozen=True)
class Signal:
    """What the forward pass carries of the images.

    overlap: what each layer keeps of an image, [layers]: 1 all of it, 0 nothing (`Prober.signal`).
    arrives: whether the outputs differ between images at all.
    chain: of a deep network of LIF that is not ours, whether no path goes around any layer.
    memory: what a net that is shown something new at each step remembers by: "states" that its neurons carry from step
        to step, "feedback", where spikes come back as well (`Recurrent`), or "windows" of steps (parallel neurons);
        "other" of which no row speaks: short windows, delays, other kinds of neurons, mixtures. "" where the input
        stands still.
    apart: 1 at the time steps that tell classes apart, else 0 (`prober.classes_apart`); () where that is not known.
    """

    overlap: np.ndarray
    arrives: bool
    chain: bool = False
    memory: str = ""
    apart: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What the probes measured; arrays are float64 [layers, T].

    names: the spiking layers in forward order.
    grad_spike_rms, grad_input_rms, grad_carry_rms: of dL/ds, dL/dx and of dL/dv carried from the next step.
    time_factor: mean |decay * dv/dh|.
    outside_share, firing_rate: share of neurons outside the surrogate's reach, and of those that fire.
    grad_input_max: largest |dL/dx|.
    nonfinite: number of values of dL/dx that are not finite.
    credit, direct: what reaches a step by way of time, and what reaches it without (`through_time`), as shares of what
        reaches the last step that is read; NaN where it was not measured.
    remembered: the same share of the whole gradient, with none through resets.
    weights: RMS of dL/dw by the name of each weight with two or more dimensions, where they were measured.

    Profiles and ratios are walked backward, as the gradient goes: a ratio above 1 grows toward the
    first layer or the first time step.
    """

    names: tuple[str, ...]
    grad_spike_rms: np.ndarray
    grad_input_rms: np.ndarray
    grad_carry_rms: np.ndarray
    time_factor: np.ndarray
    outside_share: np.ndarray
    firing_rate: np.ndarray
    grad_input_max: np.ndarray
    nonfinite: np.ndarray
    credit: np.ndarray = None  # type: ignore[assignment]
    direct: np.ndarray = None  # type: ignore[assignment]
    remembered: np.ndarray = None  # type: ignore[assignment]
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in TIME:
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(self.grad_input_rms.shape, np.nan))

    @classmethod
    def of_sums(
        cls, names: Iterable[str], sums: np.ndarray, elements: Sequence[int], scale: float = 1.0
    ) -> "Measurement":
        """From the sums of probes.

        Args:
            names: of the layers.
            sums: [layers, T, 8] in the order of `PROBE_FIELDS`.
            elements: values of one time step of each layer, over all images.
            scale: what the loss was multiplied by; divided out of every gradient.
        """
        count = np.asarray(elements, np.float64)[:, None]
        by_field = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
        sum_of = dict(zip(PROBE_FIELDS, by_field, strict=True))

        def rms(squares: str) -> np.ndarray:
            return np.sqrt(sum_of[squares] / count) / scale

        return cls(
            names=tuple(names),
            grad_spike_rms=rms("grad_spike_sq"),
            grad_input_rms=rms("grad_input_sq"),
            grad_carry_rms=rms("grad_carry_sq"),
            time_factor=sum_of["time_factor"] / count,
            outside_share=sum_of["outside"] / count,
            firing_rate=sum_of["spikes"] / count,
            grad_input_max=sum_of["grad_input_max"] / scale,
            nonfinite=sum_of["nonfinite"],
        )

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, Any]]) -> "Measurement":
        """From the rows of one step of gradients.jsonl; NaN for null and for what is not there.

        ValueError: rows of a layer are missing.
        """
        shape = tuple(1 + max(row[key] for row in rows) for key in ("index", "time_step"))
        names = {row["index"]: row["layer"] for row in rows}
        if len(names) != shape[0] or shape[1] > len(rows):
            raise ValueError(
                f"{len(names)} layers in {len(rows)} rows of one step, up to layer {shape[0] - 1}"
            )
        values: dict[str, Any] = {name: np.full(shape, np.nan) for name in COLUMNS}
        for row in rows:
            for name in COLUMNS:
                if row.get(name) is not None:
                    values[name][row["index"], row["time_step"]] = row[name]
        return cls(names=tuple(names[index] for index in sorted(names)), **values)

    @classmethod
    def of_step(cls, rows: Iterable[dict[str, Any]], step: int) -> "Measurement":
        """`of_rows`, of a step among others in gradients.jsonl."""
        return cls.of_rows([row for row in rows if row["step"] == step])

    def rows(self, step: int | None = None) -> list[dict[str, Any]]:
        """One object per layer and time step, for JSON; with the step of training if given.

        Those of `TIME` are there where they were measured.
        """
        start = {} if step is None else {"step": step}
        known, made = self.known, []
        for index, layer in enumerate(self.names):
            for t in range(self.grad_input_rms.shape[1]):
                values = {name: float(getattr(self, name)[index, t]) for name in known}
                values["nonfinite"] = int(values["nonfinite"])
                place = {"layer": layer, "index": index, "time_step": t}
                made.append({**start, **place, **values})
        return made

    def lines(self, step: int) -> str:
        """`rows` as lines of gradients.jsonl, as `Rows.append` would write them, in less time."""
        known = self.known
        cells = "".join(f', "{name}": %.7g' for name in known)
        values = np.stack([getattr(self, name) for name in known], -1)
        whole, made = bool(np.isfinite(values).all()), []
        for index, layer in enumerate(self.names):
            place = json.dumps({"step": step, "layer": layer, "index": index})[:-1]
            row = f'{place.replace("%", "%%")}, "time_step": %d{cells}}}\n'
            for t, numbers in enumerate(values[index].tolist()):
                line = row % (t, *numbers)
                made.append(line if whole else NOT_FINITE.sub(": null", line))
        return "".join(made)

    @property
    def known(self) -> Sequence[str]:
        """Those of `COLUMNS` that were measured."""
        time_told = not np.isnan(self.credit).all()
        return [name for name in COLUMNS if time_told or name not in TIME]

    def of_layers(self, chosen: Sequence[int]) -> "Measurement":
        """That of some layers, by their indices."""
        arrays = {name: getattr(self, name)[list(chosen)] for name in COLUMNS}
        return replace(self, names=tuple(self.names[i] for i in chosen), **arrays)

    @property
    def depth_profile(self) -> np.ndarray:
        """RMS of dL/dx of each layer over its time steps, [layers]."""
        return np.sqrt(np.mean(self.grad_input_rms**2, axis=1))

    @property
    def time_profile(self) -> np.ndarray:
        """RMS of dL/dx of each time step, the geometric mean over layers, [T]; 0 where none is."""
        columns = [column[column > 0] for column in self.grad_input_rms.T]
        return np.array([np.exp(np.log(c).mean()) if len(c) else 0.0 for c in columns])

    @property
    def depth_ratio(self) -> float | None:
        """The first layer's RMS of dL/dx by the last one's; may be infinite.

        None for a single layer, and where nothing (or nothing finite) arrives at the last one.
        """
        first, last = self.depth_profile[[0, -1]]
        if len(self.names) == 1 or not 0 < last < math.inf:
            return None
        return float(first / last) if math.isfinite(first) else math.inf

    @property
    def time_ratio(self) -> float | None:
        """The first time step's RMS of dL/dx by the last one's; may be infinite.

        The geometric mean over the layers that the gradient reaches at the last step: 0 where it dies in one of them on
        its way to the first. None for a single step, and where nothing (or nothing finite) arrives at the last one.
        """
        first, last = self.grad_input_rms[:, 0], self.grad_input_rms[:, -1]
        reached = (last > 0) & np.isfinite(last)
        if self.grad_input_rms.shape[1] == 1 or not reached.any():
            return None
        if not np.isfinite(first[reached]).all():
            return math.inf
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log(first[reached] / last[reached]).mean()))

    @property
    def arriving(self) -> np.ndarray:
        """The larger of `credit` and `direct`: what reaches a step on any way, [layers, T]."""
        return np.maximum(self.credit, self.direct)

    @property
    def depth_gain(self) -> float:
        """Geometric mean of the ratios of consecutive layers; 0 when the gradient dies."""
        first, last = self.depth_profile[[0, -1]]
        return float((first / last) ** (1 / max(1, len(self.names) - 1))) if last > 0 else 0.0
