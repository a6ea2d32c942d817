"""The ANN retrained with the activation that a short window has: `convert --method qcfs` (Bu et al. 2022).

The ReLU is replaced by quantisation, clip, floor and shift, the mean output of a converted neuron (see converted.py),
with theta learnt. Training continues from the ANN's weights for a few epochs.
"""

import copy
import math

import torch
from torch import Tensor, nn

from spiketriton.config import replace
from spiketriton.data import build_data
from spiketriton.errors import UserError
from spiketriton.models import Network
from spiketriton.models.graph import graph_of, layers
from spiketriton.trained.run import TrainedRun, with_bar
from spiketriton.training.losses import build_loss
from spiketriton.training.optim import build_optimizer, build_schedule, clipped_norm

LR_SHARE = 0.25  # of the recipe's learning rate: the weights are trained already


class QuantisedReLU(nn.Module):
    """Activations [T, B, C, ...] -> the nearest of steps + 1 levels between 0 and `threshold` ([C] or [1], learnt).

    Backward treats the rounding as the identity. The threshold stays above a thousandth of its initial value.
    """

    least: Tensor

    def __init__(self, threshold: Tensor, steps: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold.clone())
        self.register_buffer("least", threshold / 1000)
        self.steps = steps

    def used(self) -> Tensor:
        """The threshold in use: [C], or [1] for the whole layer."""
        return torch.maximum(self.threshold, self.least)

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.used().view(-1, *[1] * (x.ndim - 3))
        share = (x / threshold).clamp(0, 1)
        rounded = (share * self.steps + 0.5).floor() / self.steps
        return threshold * (share + (rounded - share).detach())

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


def quantised(model: Network, thresholds: dict[str, Tensor], steps: int) -> Network:
    """A copy of an ANN with a `QuantisedReLU` of the threshold, [C] or [1], in place of each ReLU."""
    model = copy.deepcopy(model)
    for node in layers(graph_of(model), "neuron"):
        place, _, last = node.name.rpartition(".")
        activation = QuantisedReLU(thresholds[node.name], steps)
        model.get_submodule(place)._modules[last] = activation
    return model


@torch.enable_grad()
def retrain(run: TrainedRun, model: Network, epochs: int) -> None:
    """Trains a quantised network, in float32, with the run's data, loss and optimizer, and leaves it in eval mode.

    At a quarter of the learning rate, which falls to 0 along a cosine. UserError: the loss is not finite.
    """
    recipe = replace(run.recipe, "train.schedule=cosine", "train.warmup=0.0")
    data = build_data(recipe)
    steps = epochs * data.train.steps_per_epoch
    loss_of = build_loss(recipe.loss, data.facts.class_counts)
    optimizer = build_optimizer(recipe.train, model, LR_SHARE * recipe.peak_lr)
    schedule = build_schedule(recipe.train, optimizer, steps)
    trained = list(model.parameters())
    model.train()
    batches = data.train.from_step(0)
    try:
        for step in with_bar(range(steps), f"{epochs} epochs with quantised activations"):
            for _ in range(data.train.accumulate):
                images, labels = next(batches)
                loss = loss_of(model(run.to_device(images)), labels.to(run.device))
                (loss / data.train.accumulate).backward()
            clipped_norm(trained, recipe.clipping)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            looks = step % 50 == 0 or step == steps - 1
            if looks and not math.isfinite(loss.item()):
                raise UserError(f"retraining {run.folder.path} diverged: the loss is {loss.item()}")
    finally:
        batches.close()
    model.eval()
