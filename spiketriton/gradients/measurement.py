"""One measurement of a network's gradients, from the sums of the probes to rows and ratios.

The rows of gradients.jsonl, the live line, the verdict and the pictures are all
made from a `Measurement`; `Measurement.of_rows` reads one back from a file.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from spiketriton_kernels import PROBE_FIELDS

# the key of each field in a row of gradients.jsonl
KEYS = {
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
class Signal:
    """What the forward pass carries of the images.

    overlap: what each layer keeps of an image, [layers]: 1 all of it, 0 nothing (`Prober.signal`).
    arrives: whether the outputs differ between images at all.
    chain: of a deep network of LIF that is not ours, whether no path goes around any layer.
    """

    overlap: np.ndarray
    arrives: bool
    chain: bool = False


@dataclass(frozen=True)
class Measurement:
    """What the probes measured; arrays are float64 [layers, T].

    names: the spiking layers in forward order.
    grad_spike, grad_input, grad_carry: RMS of dL/ds, dL/dx and of dL/dv carried from the next step.
    time_factor: mean |decay * dv/dh|.
    outside, firing: share of neurons outside the surrogate's reach, and of those that fire.
    peak: largest |dL/dx|.
    nonfinite: number of values of dL/dx that are not finite.
    weights: RMS of dL/dw by the name of each weight with two or more dimensions, where they were measured.

    Profiles and ratios are walked backward, as the gradient goes: a ratio above 1 grows toward the
    first layer or the first time step.
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
    weights: dict[str, float] = field(default_factory=dict)

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
        norms = ("grad_spike", "grad_input", "grad_carry")
        rms = {name: np.sqrt(sum_of[f"{name}_sq"] / count) / scale for name in norms}
        return cls(
            names=tuple(names),
            **rms,
            time_factor=sum_of["time_factor"] / count,
            outside=sum_of["outside"] / count,
            firing=sum_of["spikes"] / count,
            peak=sum_of["grad_input_max"] / scale,
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
        values: dict[str, Any] = {name: np.full(shape, np.nan) for name in KEYS}
        for row in rows:
            for name, key in KEYS.items():
                if row.get(key) is not None:
                    values[name][row["index"], row["time_step"]] = row[key]
        return cls(names=tuple(names[index] for index in sorted(names)), **values)

    @classmethod
    def of_step(cls, rows: Iterable[dict[str, Any]], step: int) -> "Measurement":
        """`of_rows`, of a step among others in gradients.jsonl."""
        return cls.of_rows([row for row in rows if row["step"] == step])

    def rows(self, step: int | None = None) -> list[dict[str, Any]]:
        """One object per layer and time step, for JSON; with the step of training if given."""
        start = {} if step is None else {"step": step}
        made = []
        for index, name in enumerate(self.names):
            for t in range(self.grad_input.shape[1]):
                values = {key: float(getattr(self, known)[index, t]) for known, key in KEYS.items()}
                values["nonfinite"] = int(values["nonfinite"])
                made.append({**start, "layer": name, "index": index, "time_step": t, **values})
        return made

    def of_layers(self, chosen: Sequence[int]) -> "Measurement":
        """That of some layers, by their indices."""
        arrays = {name: getattr(self, name)[list(chosen)] for name in KEYS}
        return replace(self, names=tuple(self.names[i] for i in chosen), **arrays)

    @property
    def depth_profile(self) -> np.ndarray:
        """RMS of dL/dx of each layer over its time steps, [layers]."""
        return np.sqrt(np.mean(self.grad_input**2, axis=1))

    @property
    def time_profile(self) -> np.ndarray:
        """RMS of dL/dx of each time step, the geometric mean over layers, [T]; 0 where none is."""
        columns = [column[column > 0] for column in self.grad_input.T]
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

        The geometric mean over the layers that have both. None for a single step, and where
        nothing (or nothing finite) arrives at the last one; 0 where no layer has both.
        """
        first, last = self.grad_input[:, 0], self.grad_input[:, -1]
        reached = (last > 0) & np.isfinite(last)
        if self.grad_input.shape[1] == 1 or not reached.any():
            return None
        both = reached & (first > 0)
        return float(np.exp(np.log(first[both] / last[both]).mean())) if both.any() else 0.0

    @property
    def depth_gain(self) -> float:
        """Geometric mean of the ratios of consecutive layers; 0 when the gradient dies."""
        first, last = self.depth_profile[[0, -1]]
        return float((first / last) ** (1 / max(1, len(self.names) - 1))) if last > 0 else 0.0
