"""`loss.teacher`: distillation, a trained run whose answers the network learns besides the labels.

    loss = (1 - w) * loss of the labels + w * t^2 * KL(softmax(teacher / t) || softmax(student / t))
           + f * mean over blocks of mean over images of |a / |a| - b / |b||^2

of mean currents over time, at the temperature t (Hinton et al. 2015, arXiv 1503.02531). a and b are what leaves a
residual block of the student and of the teacher, its mean over time as one vector for each image; as vectors of length
1, as in Zagoruyko & Komodakis 2017 (arXiv 1612.03928), because rates and activations have different units. The teacher
sees the student's images, mixed ones too, in eval mode; an ANN twin serves as well as a spiking run. `"twin"` is the
ANN twin of the recipe itself, which `session.py` trains in the run's folder before the first step.
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton import consent
from spiketriton.config import LossConfig, NeuronConfig, Recipe
from spiketriton.data import Facts
from spiketriton.errors import UserError
from spiketriton.models import Network
from spiketriton.models.blocks import BlockNetwork
from spiketriton.trained.run import load_run
from spiketriton.training.placement import Placement

NOBODY, TWIN = "-", "twin"


def twin_of(recipe: Recipe) -> Recipe:
    keys = ("teacher", "teacher_weight", "temperature", "feature_weight")
    unused = {name: getattr(LossConfig(), name) for name in keys}
    loss = dataclasses.replace(recipe.loss, **unused)
    return dataclasses.replace(recipe, neuron=NeuronConfig(kind="relu"), loss=loss)


@dataclass(frozen=True)
class Teacher:
    """model: in eval mode, without gradients. weight, temperature, feature_weight: w, t and f.

    Attributes:
        heard: where f is not 0, what left the blocks in the last forward pass: the student's, the teacher's, by name.
    """

    model: Network
    weight: float
    temperature: float
    feature_weight: float = 0.0
    heard: tuple[dict[str, Tensor], dict[str, Tensor]] = field(default_factory=lambda: ({}, {}))

    def listen(self, student: Network) -> None:
        """From now on to all blocks that have the same name and shapes in both. UserError: there is none."""
        ours, theirs = blocks_of(student), blocks_of(self.model)
        both = [name for name in ours if name in theirs]
        same = [name for name in both if ours[name].channels_out == theirs[name].channels_out]
        if not same:
            raise UserError(
                "loss.feature_weight compares what leaves residual blocks, and none of the student's has the name and "
                "the channels of one of the teacher's; accepted: a teacher of the same architecture and width, or 0.0"
            )
        for name in same:
            for blocks, heard in zip((ours, theirs), self.heard, strict=True):
                blocks[name].register_forward_hook(partial(_keep, heard, name))

    def blended(self, loss: Tensor, currents: Tensor, images: Tensor) -> Tensor:
        """The loss of the labels and that of the teacher, of currents [T, B, K] and the images behind them."""
        with torch.no_grad():
            answers = self.model(images).float().mean(0)
        theirs = F.log_softmax(answers / self.temperature, 1)
        ours = F.log_softmax(currents.float().mean(0) / self.temperature, 1)
        far = F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * self.temperature**2
        loss = (1 - self.weight) * loss + self.weight * far
        ours_, theirs_ = self.heard
        if ours_:
            apart = [_apart(a, theirs_[name]) for name, a in ours_.items()]
            loss = loss + self.feature_weight * torch.stack(apart).mean()
            ours_.clear()
            theirs_.clear()
        return loss


def blocks_of(model: Network) -> dict[str, Any]:
    return dict(model.blocks()) if isinstance(model, BlockNetwork) else {}


def _keep(heard: dict[str, Tensor], name: str, block: nn.Module, given: Any, out: Any) -> None:
    """Of MS blocks the currents, also where they give the spikes of the next neuron, too."""
    x = out[0] if isinstance(out, tuple) else out
    heard[name] = x.float().mean(0)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The mean over images of the square distance of a and b [B, ...] as vectors of length 1."""
    if a.shape != b.shape:
        raise UserError(
            f"loss.feature_weight compares blocks whose maps are {tuple(a.shape[1:])} and {tuple(b.shape[1:])}; "
            "accepted: a teacher of the same architecture, or 0.0"
        )
    a, b = (F.normalize(v.flatten(1), dim=1) for v in (a, b))
    return (a - b).square().sum(1).mean()


def find_teacher(
    config: LossConfig, folder: Path, facts: Facts, placement: Placement, student: Network
) -> Teacher:
    """The teacher that a recipe names, of a student that is trained in `folder`.

    UserError: there is no such run, it was trained on other data, or no block fits the student's.
    """
    if config.teacher == TWIN:
        with consent.decided(True):  # its code is that of this training
            run = load_run(folder / TWIN)
    else:
        run = load_run(config.teacher)
    for name in ("classes", "channels", "image_size", "frames", "mean", "std"):
        theirs, ours = getattr(run.facts, name), getattr(facts, name)
        if theirs != ours:
            raise UserError(
                f'loss.teacher = "{config.teacher}" was trained on data of other {name}, {theirs}; accepted: {ours}'
            )
    model = placement.place(run.model).eval().requires_grad_(False)
    teacher = Teacher(model, config.teacher_weight, config.temperature, config.feature_weight)
    if config.feature_weight:
        teacher.listen(student)
    return teacher
