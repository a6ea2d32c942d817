"""The gradient monitor: norms by spiking layer and time step, measured now and then.

On a measured step every spiking layer gets a probe (`spiketriton_kernels.PROBE_FIELDS`), into whose
gradient the kernels' backward sums what they hold in registers anyway: no hooks, no tensor kept, no
second pass. On all other steps the probe is None and nothing is paid.

One micro-batch is measured, the last of its step. The norms are those of the true gradient of the
whole step's loss, the mean over the global batch: the loss of a micro-batch is divided by their
number before backward, which makes each element's dL/dx the true one, and the factor of the loss
scaler (fp16) is divided out here. They are root mean squares over the elements of one time step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiketriton.models import Network
from spiketriton.training.ranks import Ranks
from spiketriton_kernels import PROBE_FIELDS

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """One measurement in four numbers; None where there is nothing to divide.

    `depth_ratio` is the RMS of dL/dx (over all time steps) of the first spiking layer by the last
    one's. `time_ratio` is that of the first time step by the last one's, the geometric mean over
    layers. Both are above 1 when the gradient grows on its way back.
    """

    step: int
    firing_rate: float | None = None
    depth_ratio: float | None = None
    time_ratio: float | None = None
    nonfinite: int = 0

    def in_words(self) -> str:
        """`dL/dx: first layer 3.2x the last, first time step 0.41x the last`; "" before step 1."""
        if self.step == 0:
            return ""
        if self.nonfinite:
            return f"dL/dx: {self.nonfinite} values are not finite"
        parts = [
            f"first {what} {_times(ratio)} the last"
            for what, ratio in (("layer", self.depth_ratio), ("time step", self.time_ratio))
            if ratio is not None
        ]
        return "dL/dx: " + (", ".join(parts) or "zero in the last layer or time step")


class GradientMonitor:
    """Measures `model` on the steps for which `due` is true.

    Args:
        model: the network itself, not its compiled form; an ANN is never measured.
        due: whether the step with this number (the first is 1) is measured.
        batch: images of a micro-batch, over all ranks.
        image_shape: (C, H, W) of an image.
        scale: the present factor of the loss scaler.
        ranks: what is measured is summed over them; each has an equal part of the micro-batch.
        write: called with the rows of each measurement, a row per layer and time step.
    """

    def __init__(
        self,
        model: Network,
        *,
        due: Callable[[int], bool],
        batch: int,
        image_shape: tuple[int, int, int],
        scale: Callable[[], float],
        write: Callable[[list[Row]], None],
        ranks: Ranks | None = None,
    ) -> None:
        self.layers = model.spiking_layers()
        self.due, self.scale, self.write = due, scale, write
        self.ranks = ranks or Ranks()
        self.summary = Summary(step=0)
        if self.layers:
            device = next(model.parameters()).device
            self.elements = [
                batch * count for count in elements_per_image(model, image_shape, device)
            ]
            # one tensor per layer for the whole run: torch.compile sees the same one every time
            shape = (model.time_steps, len(PROBE_FIELDS))
            self.probes = [
                torch.zeros(shape, device=device, requires_grad=True) for _ in self.layers
            ]

    def watch(self, step: int, *, last: bool) -> AbstractContextManager[None]:
        """Measures the forward and backward inside, if the step is due and this its last part."""
        measures = last and self.layers and self.due(step)
        return self._measured(step) if measures else contextlib.nullcontext()

    @contextlib.contextmanager
    def _measured(self, step: int) -> Iterator[None]:
        for (_, layer), probe in zip(self.layers, self.probes, strict=True):
            layer.probe, probe.grad = probe, None
        try:
            yield
        finally:
            for _, layer in self.layers:
                layer.probe = None
        # [layers, T, 8] in one copy from the device
        empty = torch.zeros_like(self.probes[0])
        own = torch.stack([empty if p.grad is None else p.grad for p in self.probes]).cpu().double()
        sums, largest = self.ranks.total(own), PROBE_FIELDS.index("grad_input_max")
        sums[..., largest] = self.ranks.largest(own[..., largest].contiguous())
        names = [name for name, _ in self.layers]
        # each rank goes back from the mean over its own images, world_size times as large
        rows = measured_rows(step, names, sums, self.elements, self.scale() * self.ranks.world_size)
        self.write(rows)
        self.summary = summarize(step, rows, sums, self.elements)

    def state_dict(self) -> dict[str, Any]:
        return vars(self.summary).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.summary = Summary(**state)


@torch.no_grad()
def elements_per_image(
    model: Network, image_shape: tuple[int, int, int], device: torch.device
) -> list[int]:
    """Neurons of each spiking layer, found by showing one image for one time step.

    Leaves the model as it was; batch norm's statistics do not move.
    """
    training = model.training
    model.eval()
    model.set_stateful(True)
    try:
        model(torch.zeros(1, *image_shape, device=device), time_steps=1)
        return [layer.v.numel() for _, layer in model.spiking_layers() if layer.v is not None]
    finally:
        model.set_stateful(False)
        model.train(training)


def measured_rows(
    step: int, names: list[str], sums: Tensor, elements: list[int], scale: float
) -> list[Row]:
    """The rows of gradients.jsonl.

    Args:
        step, names: the measured step; the layers' names in forward order.
        sums: the probes' gradients, float64 [layers, T, fields] in the order of PROBE_FIELDS.
        elements: neurons of each layer times images, the count of one time step.
        scale: factor of the loss scaler, divided out of every gradient.
    """
    rows = []
    for index, (name, count, layer) in enumerate(zip(names, elements, sums.tolist(), strict=True)):
        for time_step, values in enumerate(layer):
            field = dict(zip(PROBE_FIELDS, values, strict=True))
            rows.append(
                {
                    "step": step,
                    "layer": name,
                    "index": index,
                    "time_step": time_step,
                    "grad_spike_rms": math.sqrt(field["grad_spike_sq"] / count) / scale,
                    "grad_input_rms": math.sqrt(field["grad_input_sq"] / count) / scale,
                    "grad_carry_rms": math.sqrt(field["grad_carry_sq"] / count) / scale,
                    "time_factor": field["time_factor"] / count,
                    "outside_share": field["outside"] / count,
                    "firing_rate": field["spikes"] / count,
                    "grad_input_max": field["grad_input_max"] / scale,
                    "nonfinite": int(field["nonfinite"]),
                }
            )
    return rows


def summarize(step: int, rows: list[Row], sums: Tensor, elements: list[int]) -> Summary:
    """The measurement in a few numbers; `rows`, `sums` and `elements` as in `measured_rows`."""
    layers, T, _ = sums.shape
    count = torch.tensor(elements, dtype=torch.float64)
    square = sums[..., PROBE_FIELDS.index("grad_input_sq")]  # [layers, T]
    depth = (square.sum(1) / count).sqrt().tolist()
    pairs = [(first, last) for first, last in square[:, [0, -1]].tolist() if first > 0 < last]
    logs = [math.log(first / last) / 2 for first, last in pairs]
    return Summary(
        step=step,
        firing_rate=float(sums[..., PROBE_FIELDS.index("spikes")].sum() / (T * count.sum())),
        depth_ratio=_ratio(depth[0], depth[-1]) if layers > 1 else None,
        time_ratio=_finite(math.exp(sum(logs) / len(logs))) if logs and T > 1 else None,
        nonfinite=sum(row["nonfinite"] for row in rows),
    )


def _ratio(first: float, last: float) -> float | None:
    return _finite(first / last) if last > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _times(ratio: float) -> str:
    return f"{ratio:.3g}x" if 1e-3 <= ratio < 1e4 else f"{ratio:.1e}x"


def clipped_norm(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """The norm of the whole gradient, which is then scaled down to `limit` (0: left as it is)."""
    if limit:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
