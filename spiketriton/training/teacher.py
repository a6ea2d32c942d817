"""`loss.teacher`: distillation, a trained run whose answers the network learns besides the labels.

    loss = (1 - w) * loss of the labels + w * t^2 * KL(softmax(teacher / t) || softmax(student / t))

of the answers that each of the two recipes reads, at the temperature t (Hinton et al. 2015, arXiv 1503.02531).
The teacher sees the student's images, mixed ones too, in eval mode; an ANN twin serves as well as a spiking run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spiketriton.config import LossConfig
from spiketriton.data import Facts
from spiketriton.models import Network
from spiketriton.plugins.tasks import Reading, answers
from spiketriton.system.errors import UserError
from spiketriton.training.placement import Placement
from spiketriton.training.trained import load_run


@dataclass(frozen=True)
class Teacher:
    """model: in eval mode, without gradients. weight, temperature: w and t. reading, theirs: the student's, its own."""

    model: Network
    weight: float
    temperature: float
    reading: Reading
    theirs: Reading

    def blended(self, loss: Tensor, currents: Tensor, images: Tensor, *lengths: Tensor) -> Tensor:
        """The loss of the labels and that of the teacher, of currents [T, B, K] and the images behind them."""
        with torch.no_grad():
            theirs = self.theirs(answers(self.model, images, lengths).float(), *lengths)
        theirs = F.log_softmax(theirs / self.temperature, 1)
        ours = F.log_softmax(self.reading(currents.float(), *lengths) / self.temperature, 1)
        far = F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * self.temperature**2
        return (1 - self.weight) * loss + self.weight * far


def find_teacher(config: LossConfig, facts: Facts, placement: Placement) -> Teacher:
    """The teacher that a recipe names. UserError: there is no such run, or it was trained on other data."""
    run = load_run(config.teacher)
    for name in ("classes", "channels", "image_size", "frames", "sequence", "mean", "std"):
        theirs, ours = getattr(run.facts, name), getattr(facts, name)
        if theirs != ours:
            raise UserError(
                f'loss.teacher = "{config.teacher}" was trained on data of other {name}, {theirs}; accepted: {ours}'
            )
    model = placement.place(run.model).eval().requires_grad_(False)
    readings = Reading(config.read), Reading(run.recipe.loss.read)
    return Teacher(model, config.teacher_weight, config.temperature, *readings)
