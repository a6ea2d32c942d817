"""One test image, or sequence, and the spikes that it causes: what a picture of a single answer shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.neurons import told_of_spikes
from spiketriton.plugins.tasks import Reading, image_dim
from spiketriton.plugins.tasks import answers as of_batch
from spiketriton.training.trained import TrainedRun

SHOWN = 24  # neurons of each layer, at even distances
PIXELS = 64  # side of the image that is kept, at most


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The answer to one image, step by step, and the spikes of some neurons of every layer."""

    label: str
    answers: list[str]  # after each time step
    shares: list[float]  # softmax of the currents read so far, of that answer, 0 to 1
    # rows from the top of values 0..255: grey, or [red, green, blue]; of a sequence a row for each channel, over time
    image: list[list[Any]]
    spikes: dict[str, list[list[int]]]  # layer: [time step, neuron], 0 or 1


@torch.inference_mode()
def raster_of(run: TrainedRun) -> Raster | None:
    """The raster of the first test image; None for an ANN, for recordings, and without answers at each step."""
    facts, model = run.data.facts, run.model
    if not model.is_spiking or facts.move == "events" or not model.answers_each_step:
        return None
    images, labels, *lengths = next(iter(run.data.test))
    images = run.to_device(images.narrow(image_dim(images), 0, 1))
    shown = images[0].float().cpu()
    valid = int(lengths[0][0]) if lengths else run.time_steps
    if facts.sequence:
        shown = images[:valid, 0].T[None].float().cpu()
    spikes: dict[str, list[list[int]]] = {}
    with told_of_spikes(run.model.spiking_layers(), partial(_keep, spikes)), run.autocast():
        known = [one[:1].to(run.device) for one in lengths]
        currents = of_batch(model, images, known)[:valid, 0].cpu()
    answers = [*Reading(run.recipe.loss.read).so_far(currents)]
    share, answer = torch.stack(answers).softmax(1).max(1)
    classes = run.data.classes
    return Raster(
        label=classes[int(labels[0])],
        answers=[classes[int(place)] for place in answer],
        shares=share.tolist(),
        image=_seen(shown, facts.mean, facts.std),
        spikes={name: rows[:valid] for name, rows in spikes.items()},
    )


def _keep(spikes: dict[str, list[list[int]]], name: str, out: Tensor) -> None:
    """Keeps some neurons of the spikes of a layer, [T, 1, ...] or those of a step."""
    flat = out.ne(0).flatten(1)
    chosen = torch.linspace(0, flat.shape[1] - 1, min(SHOWN, flat.shape[1])).long()
    spikes.setdefault(name, []).extend(flat[:, chosen.to(flat.device)].int().tolist())


def _seen(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[list[Any]]:
    """A normalised image [C, H, W]: of three channels its colours, of others grey from its darkest to its lightest."""
    window = -(-max(image.shape[1:]) // PIXELS)
    small = F.avg_pool2d(image[None], window, ceil_mode=True)[0]
    if len(image) == 3:
        scale, shift = (torch.tensor(v).view(-1, 1, 1) for v in (std, mean))
        return (255 * (small * scale + shift)).round().clamp(0, 255).int().permute(1, 2, 0).tolist()
    grey = small.mean(0)
    low, high = grey.aminmax()
    return (255 * (grey - low) / (high - low).clamp_min(1e-9)).round().int().tolist()
