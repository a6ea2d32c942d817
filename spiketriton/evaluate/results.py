"""What was measured of a run: the record that evaluation.json holds."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.evaluate.raster import Raster
from spiketriton.plugins.tasks import Score
from spiketriton.runs.rows import json_text
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.plain import of_plain


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The activity of one spiking layer (of an ANN: the share of its values that are not zero)."""

    name: str
    neurons: int
    rate: list[float]  # spikes a neuron, of each time step
    dead: int  # neurons that did not spike on any test image within T
    saturated: int  # neurons that spiked at each step of each test image within T
    synaptic_operations: float  # of one image within T; 0 for an ANN, nan if not counted


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A test recording, small enough for a picture, and what the network says to it."""

    label: str
    answers: list[str]  # after each time step
    shape: list[int]  # T, 2, S, S
    counts: str  # uint8, compressed by zlib, in base64

    @classmethod
    def of(cls, label: str, frames: Tensor, answers: list[str]) -> Sample:
        """Of frames uint8 [T, 2, S, S]; more than 64 pixels become the largest count of a window."""
        window = -(-frames.shape[-1] // 64)
        small = F.max_pool2d(frames.float(), window, ceil_mode=True).to(torch.uint8)
        packed = zlib.compress(small.numpy().tobytes(), 9)
        counts = base64.b64encode(packed).decode()
        return cls(label=label, answers=answers, shape=list(small.shape), counts=counts)

    @property
    def frames(self) -> np.ndarray:
        counts = zlib.decompress(base64.b64decode(self.counts))
        return np.frombuffer(counts, np.uint8).reshape(self.shape)


@dataclass(frozen=True, kw_only=True)
class Binary:
    """The answers of an I-LIF network with binary spikes to the test images, in float32; see `evaluate.binary`."""

    steps: int  # T x D
    equal: int  # images whose class is that of the network with whole numbers of spikes, in float32, too
    accuracy: float
    images: int
    rate: float  # spikes of a neuron and binary step


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A score on the same test that does not depend on the order in time, and whose it is, in words."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of one run; lists by time step begin with the first step."""

    run: str
    recipe: str
    kind: str  # "spiking", "converted" or "ann"
    neuron: str
    method: str | None  # of the conversion
    checkpoint: str
    training_step: int
    data: str  # and its split
    synthetic: bool
    images: int
    classes: list[str]
    time_steps: int  # T of the recipe; values without a time axis are at T
    read: str  # of the currents, which is the answer: "mean over time" or "last time step", of the first t
    values: list[float]  # the score: the accuracy, or that of the recipe's task
    interval: list[tuple[float, float]]  # 95 %, Wilson; nan of a score that is no share of images
    confusion: list[list[int]]  # [true class][answer]; empty of a task without classes
    layers: list[Layer]
    mean_rate: float  # of all neurons and steps within T
    synaptic_operations: list[float]  # accumulates of one image within t steps
    neurons: int
    macs_once: int
    macs_per_step: int
    ann_macs: int
    layer_macs: dict[str, int]
    leaky: bool
    energy_uj: list[float]  # of one image within t steps, by operations
    energy_with_data_uj: list[float]  # and with data movement
    images_per_s: float  # at T, with nothing counted
    device: str
    events: bool = False  # recordings, a frame at each step, instead of constant images
    sequences: bool = False  # another value of each channel at each step
    valid_steps: list[float] = dataclasses.field(
        default_factory=list
    )  # within t, on average; empty: all
    baselines: list[Baseline] = dataclasses.field(
        default_factory=list
    )  # what the score is without time
    ms_per_step: float | None = None  # of the recordings; None: bins of no fixed length
    uncounted: str = ""  # why there are no operations and no energy: nan in all lists of them
    available: int = 0  # test images that there are; 0: not recorded
    samples: list[Sample] = dataclasses.field(default_factory=list)  # of events, for pictures
    raster: Raster | None = None  # of one image, for a picture
    membrane_macs: int = 1  # of a leaky neuron in a step
    score: str = "accuracy"  # what `values` are, see `tasks.Score`
    share: bool = True
    higher_is_better: bool = True
    binary: Binary | None = None  # with --binary

    @property
    def what(self) -> str:
        """What the run is tested on, one of it: an image, a sequence, or a recording of events."""
        return "sequence" if self.sequences else "recording" if self.events else "image"

    @property
    def tested(self) -> str:
        """What was tested on, in words: a part of the test images says so."""
        part = f" of {self.available:,}" if self.available > self.images else ""
        return f"{self.images:,}{part} test {self.what}s"

    @property
    def steps(self) -> int:
        return len(self.values)

    @property
    def accuracy(self) -> list[float]:
        """`values`. AttributeError: they are another score."""
        if self.score != "accuracy":
            raise AttributeError(f"its score is {self.score!r}; accepted: values, by time step")
        return self.values

    def at(self, t: int) -> Score:
        """The score after t time steps."""
        higher = self.higher_is_better
        value = self.values[t - 1]
        return Score(value=value, name=self.score, share=self.share, higher_is_better=higher)

    @property
    def best(self) -> float:
        """The best of the `values`."""
        return (max if self.higher_is_better else min)(x for x in self.values if not math.isnan(x))

    @property
    def class_accuracy(self) -> list[float]:
        """The share of each class's images that were answered right at T; nan without images."""
        return [row[i] / sum(row) if sum(row) else math.nan for i, row in enumerate(self.confusion)]

    @property
    def label(self) -> str:
        """A short name for tables and pictures: the folder's, and what the run is unless that says so."""
        spiking = self.neuron.split(", ")  # a network of somebody's own may have several kinds
        converted = ["converted", str(self.method)]
        how = {"ann": ["ANN"], "converted": converted, "spiking": spiking}
        name = Path(self.run).name
        words = re.split(r"[\W_]+", name.lower())
        known = (*words, "".join(words))
        new = [kind for kind in how[self.kind] if kind.lower() not in known]
        return f"{name} ({', '.join(new)})" if new else name

    def _shown(self, t: int) -> float:
        """How many of the first t steps are valid, on average: t, but for sequences of different lengths."""
        return self.valid_steps[t - 1] if self.valid_steps else t

    def accumulates(self, t: int) -> float:
        """ACs of one image within t steps: synapses, and the membranes of neurons without leak."""
        membranes = self.neurons * self._shown(t) * (self.kind != "ann" and not self.leaky)
        return self.synaptic_operations[t - 1] + membranes

    def macs(self, t: int) -> float:
        """MACs of one image within t steps: synapses, and the membranes of leaky neurons."""
        membranes = self.neurons * self.leaky * self.membrane_macs
        return self.macs_once + (self.macs_per_step + membranes) * self._shown(t)

    def twin_macs(self, t: int) -> float:
        """MACs of the ANN twin, which sees a constant image once and each of t frames or steps."""
        return self.ann_macs * (self._shown(t) if self.events or self.sequences else 1)

    def numbers(self) -> dict[str, Any]:
        """All but the recordings and the spikes of which pictures are drawn."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("samples", "raster")}

    def to_json(self) -> str:
        return json_text(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """ValueError: the text is not an evaluation."""
        found = of_plain(cls, json.loads(text))
        steps, classes = found.steps, len(found.classes)
        fits = {
            "kind": found.kind in ("spiking", "converted", "ann"),
            "ann_macs": found.ann_macs > 0 or bool(found.uncounted),
            "time_steps": 1 <= found.time_steps <= steps,
            "images": found.images > 0,
            "interval": len(found.interval) == steps,
            "synaptic_operations": len(found.synaptic_operations) == steps,
            "energy_uj": len(found.energy_uj) == steps,
            "energy_with_data_uj": len(found.energy_with_data_uj) == steps,
            "confusion": [len(row) for row in found.confusion] in ([], [classes] * classes),
            "layers": all(len(layer.rate) == steps and layer.neurons > 0 for layer in found.layers),
        }
        if wrong := [name for name, right in fits.items() if not right]:
            raise ValueError(f"{wrong[0]} does not fit the rest")
        return found


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation.json. UserError: it is damaged, or was written by another version."""
    try:
        return Evaluation.from_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not an evaluation of this version ({one_line(error)[:120]}); run "
            "spiketriton evaluate again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
