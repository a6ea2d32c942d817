"""An I-LIF network run with spikes of 0 and 1: T x D time steps in place of T with up to D spikes in each.

I-LIF (Luo et al. 2024, arXiv 2407.20708) trains with whole numbers of spikes and is meant to run with single ones:
a step with n spikes becomes D steps, in the first n of which a 1 is sent (`spiketriton_kernels.virtual_steps`). All
that lies between two neurons then sees 0 and 1 alone. A neuron adds its currents up over D steps and decides how many
spikes to send. What is linear gives the same sum, and what is constant (biases, the shift of a batch norm, the image)
is given to each of the D steps in D equal parts. Max-pools agree too: the largest of several numbers is sent as the
step by step largest of their codes. So the predictions are those of the trained network, but for rounding.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiketriton.evaluate.results import Binary
from spiketriton.plugins.tasks import answers, has_time, image_dim
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun, with_bar
from spiketriton_kernels import virtual_steps
from spiketriton_kernels.nn import ILIF, Delays, Recurrent, SpikingNeuron


class BinarySpikes(nn.Module):
    """An I-LIF neuron with up to D spikes a step, as one of D times as many steps: [T * D, B, ...] to the same, 0 or 1.

    Attributes:
        sent, slots: how many spikes it has sent, and in how many places they could have been.
    """

    def __init__(self, neuron: ILIF, levels: int) -> None:
        super().__init__()
        self.neuron, self.levels = neuron, levels
        self.sent = self.slots = 0

    def forward(self, current: Tensor) -> Tensor:
        whole = current.unflatten(0, (-1, self.levels)).sum(1)
        spikes = virtual_steps(self.neuron(whole), self.levels)
        self.sent += int(spikes.count_nonzero())
        self.slots += spikes.numel()
        return spikes


@torch.inference_mode()
def binary(run: TrainedRun, batch_size: int = 0) -> Binary:
    """The test images answered by the network with binary spikes, beside the network itself, both in float32.

    batch_size: 0: the recipe's. UserError: it has neurons other than I-LIF, or with different numbers of levels; a
    task without classes; a norm with gains of its own for each step.
    """
    levels, task = levels_of(run), run.data.task
    test = replace(run.data.test, batch_size=batch_size) if batch_size else run.data.test
    unrolled = binary_network(run.model, levels)
    senders = [m for m in unrolled.modules() if isinstance(m, BinarySpikes)]
    equal = right = images_seen = 0
    for images, targets, *lengths in with_bar(test, f"{run.folder.path.name}, binary spikes"):
        # as many time steps at once as the network itself is given
        dim = image_dim(images)
        count = images.shape[dim]
        for part in torch.arange(count).split(max(1, count // levels)):
            shown = run.to_device(images.index_select(images.ndim + dim, part))
            wanted, *known = (one[part].to(run.device) for one in (targets, *lengths))
            found, whole = (
                task.reading(currents, *known).argmax(1)
                for currents in (
                    _currents(run, unrolled, shown, known, levels),
                    _currents(run, run.model, shown, known),
                )
            )
            equal += int((found == whole).sum())
            right += int((found == wanted).sum())
            images_seen += len(part)
    return Binary(
        steps=run.time_steps * levels,
        equal=equal,
        accuracy=right / images_seen,
        images=images_seen,
        rate=sum(one.sent for one in senders) / sum(one.slots for one in senders),
    )


def levels_of(run: TrainedRun) -> int:
    """D of a run that `binary` takes. UserError: it does not take it."""
    where, task = run.folder.path, run.data.task
    modules = run.model.named_modules()
    neurons: list[tuple[str, Any]] = [
        (name, module) for name, module in modules if isinstance(module, SpikingNeuron)
    ]
    others = [f"{name} is a {type(n).__name__}" for name, n in neurons if not isinstance(n, ILIF)]
    if others or not neurons:
        what = others[0] if others else "it has no spiking neuron"
        raise UserError(
            f"{where}: {what}; accepted by --binary: networks of I-LIF, whose spikes are whole numbers"
        )
    if not task.classifies:
        raise UserError(f"{where}: --binary compares classes, and its task has none")
    levels = {neuron.levels for _, neuron in neurons}
    if len(levels) > 1:
        numbers = ", ".join(map(str, sorted(levels)))
        raise UserError(f"{where}: neurons of {numbers} levels; accepted by --binary: one number")
    return int(levels.pop())


@torch.no_grad()
def binary_network(model: nn.Module, levels: int) -> nn.Module:
    """A copy of a network of I-LIF neurons that runs D steps for each of its own, with a D-th of what is constant.

    UserError: see `binary`.
    """
    unrolled, constants = copy.deepcopy(model), {}
    senders: dict[nn.Module, BinarySpikes] = {}
    for name, module in [*unrolled.named_modules(remove_duplicate=False)]:
        if isinstance(module, ILIF):
            parent, _, own = name.rpartition(".")
            sender = senders.setdefault(module, BinarySpikes(module, levels))
            setattr(unrolled.get_submodule(parent), own, sender)
            continue
        if isinstance(module, Recurrent):
            raise UserError(
                f"{name} brings spikes back a step later, and a binary step is a part of one; accepted by --binary: "
                "model.recurrent = false"
            )
        if getattr(module, "step_gain", None) is not None:
            raise UserError(
                f"{name} has a gain for each of its time steps (TEBN), and none for binary ones; accepted by "
                '--binary: model.norm = "bn", "tdbn", "step_bn" or "none"'
            )
        if isinstance(module, Delays):  # which are D times as many of the shorter steps
            module.position.copy_(module.delays() / module.longest)
            module.longest *= levels
        found = [getattr(module, "bias", None)]
        if isinstance(module, _BatchNorm):
            found.append(module.running_mean)
        constants.update({id(one): one for one in found if isinstance(one, Tensor)})
    for constant in constants.values():
        constant.div_(levels)
    return unrolled


def _currents(
    run: TrainedRun, model: nn.Module, images: Tensor, lengths: Sequence[Tensor], levels: int = 1
) -> Tensor:
    """What each of the network's own steps gives, [T, B, K], of constant images, or of frames or steps.

    lengths: of sequences, perhaps. levels: binary steps for each, which share the image.
    """
    shown, steps = images / levels, run.time_steps * levels
    if has_time(images):
        known = [levels * one for one in lengths]
        currents = answers(model, shown.repeat_interleave(levels, 0), known)
    else:
        currents = model(shown, steps)
    return currents.unflatten(0, (-1, levels)).sum(1)
