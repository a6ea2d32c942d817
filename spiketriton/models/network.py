"""The base class of the networks: images, frames or sequences in, a current for each class and step out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spiketriton.config import Recipe
from spiketriton.models.graph import Graph
from spiketriton.models.layers import Parts
from spiketriton.models.memory import PackedSpikes
from spiketriton.neurons import Norm, SpikingNeuron, told_of_spikes
from spiketriton.plugins.tasks import has_time
from spiketriton.system.errors import UserError
from spiketriton_kernels.adopt.draws import undrawn
from spiketriton_kernels.nn import Delays, ParallelNeuron, Recurrent


class Network(nn.Module):
    """Images [B, C, H, W], frames of events [T, B, C, H, W] or sequences [T, B, C] -> currents [T, B, K] in float32.

    An image is a constant input current at each of the T time steps, so the first layer with weights runs once;
    frames and steps of sequences are shown one at each step. The output is the classifier's current at each step; its
    mean over time is the usual read-out. The ANN twin has no time: T is 1 for an image, and it answers each frame by
    itself. A subclass sets `self.fc` and implements `features`.
    """

    fc: nn.Linear
    made_from: Recipe | None = None
    takes_any_size = False  # whether images may be smaller than those that it is made for
    uses_all_weights = True  # whether every step's loss depends on every weight
    answers_each_step = True  # whether there is a current for each time step, not their mean alone

    def __init__(self, parts: Parts, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.time_steps = parts.time_steps
        self.sequence = parts.sequence
        self.is_spiking = parts.spiking
        self.streaming = False
        self._gained: list[Norm] = []  # while streaming, norms that count steps
        self.dropout = parts.model.dropout
        self.frozen: list[Norm] = []  # norms that keep their statistics in training
        self.packed = parts.spiking and parts.model.memory != "standard"
        self.recomputes = parts.spiking and parts.model.memory == "recomputed"
        self.unmeasured: dict[str, str] = {}  # neurons that no probe fits, and why
        self.on_save: Callable[[Tensor], None] | None = None  # see PackedSpikes

    def forward(
        self, images: Tensor, time_steps: int | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """T of an image is `time_steps`, or the recipe's. UserError: the input, or their number, does not fit.

        lengths: int64 [B], of sequences that are padded behind their ends, the valid steps: in training, what is behind
        them enters no statistics of a norm.
        """
        steps = self.time_steps if time_steps is None else time_steps
        self._refuse_shape(images)
        if has_time(images):
            if time_steps not in (None, len(images)) or not len(images):
                raise UserError(
                    f"{len(images)} frames are shown in as many time steps, not in {time_steps}"
                )
            steps = len(images)
        elif steps < 1 or not (self.is_spiking or steps == 1):
            accepted = "1 or more" if self.is_spiking else "1 (an ANN has no time)"
            raise UserError(f"time_steps {steps}: accepted: {accepted}")
        recompute = self.recomputes and not self.streaming
        packed = PackedSpikes(self.on_save, recompute=recompute) if self.packed else nullcontext()
        with packed, self._masked(steps, lengths):
            currents = self.currents(images, steps).float()
        for norm in self._gained if self.streaming else ():
            norm.first_step += steps
        return currents

    def _refuse_shape(self, images: Tensor) -> None:
        if self.sequence:
            good, accepted = images.ndim == 3, f"sequences [T, B, {self.channels}]"
        else:
            good = images.ndim in (4, 5)
            accepted = f"images [B, {self.channels}, H, W] and frames [T, B, {self.channels}, H, W]"
        if not good or images.shape[-1 if self.sequence else -3] != self.channels:
            what = "sequences" if self.sequence else "images"
            raise UserError(f"{what} have shape {tuple(images.shape)}; accepted: {accepted}")

    @contextmanager
    def _masked(self, steps: int, lengths: Tensor | None) -> Iterator[None]:
        """Within the block norms know which steps of which sequences are valid."""
        norms = self._norms() if self.training and lengths is not None else []
        for norm in norms:
            assert lengths is not None
            norm.valid = torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
        try:
            yield
        finally:
            for norm in norms:
                norm.valid = None

    def blank(self, side: int, device: torch.device | None = None) -> Tensor:
        """An image, or a sequence, of zeros, [1, C, side, side] or [T, 1, C]."""
        shape = (
            (self.time_steps, 1, self.channels) if self.sequence else (1, self.channels, side, side)
        )
        return torch.zeros(shape, device=device)

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        """As torch's; where the ANN twin has a ReLU, the width of a spiking neuron's surrogate is left out."""
        relus = {f"{n}._extra_state" for n, m in self.named_modules() if isinstance(m, nn.ReLU)}
        taken = {name: value for name, value in state_dict.items() if name not in relus}
        return super().load_state_dict(taken, *args, **options)

    def train(self, mode: bool = True) -> "Network":
        """As in torch, but norms in `frozen` stay in eval mode."""
        super().train(mode)
        for norm in self.frozen:
            norm.eval()
        return self

    def currents(self, images: Tensor, steps: int) -> Tensor:
        """What `forward` returns, in any dtype."""
        read = self.features(images, steps)
        if self.dropout and self.training:
            kept = torch.ones_like(read[:1])  # one mask for all steps, or time would undo it
            read = read * nn.functional.dropout(kept, self.dropout)
        return self.fc(read)

    @property
    def chunked(self) -> bool:
        """Whether tests run long windows in chunks, by `set_stateful`."""
        return not self.parallel_neurons()

    def parallel_neurons(self) -> list[str]:
        """Names of those that read later steps, and have no state that one step could hand to the next."""
        named = self._neurons()
        return [n for n, neuron in named if isinstance(neuron, ParallelNeuron) and not neuron.reach]

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers inside, as dropout does."""
        return self.dropout > 0

    def features(self, images: Tensor, steps: int) -> Tensor:
        """Images [B, C, H, W] or frames [steps, B, C, H, W] -> what the classifier reads, [steps, B, F]."""
        raise NotImplementedError

    def spiking_layers(self) -> list[tuple[str, SpikingNeuron]]:
        """Dotted name and neuron of each layer that can be measured, in forward order; none for the ANN twin."""
        return [(name, m) for name, m in self._neurons() if name not in self.unmeasured]

    def _neurons(self) -> list[tuple[str, SpikingNeuron]]:
        return [(name, m) for name, m in self.named_modules() if isinstance(m, SpikingNeuron)]

    @torch.no_grad()
    def look_at_calls(self, image_size: int) -> list[int]:
        """Leaves out of what is measured neurons that do not see all steps at once; returns the answer's shape."""
        neurons = self._neurons()
        calls: dict[str, set[int]] = {name: set() for name, _ in neurons}
        with undisturbed(self), told_of_spikes(neurons, lambda n, out: calls[n].add(len(out))):
            found = self(self.blank(image_size))
        for name, seen in calls.items():
            if not seen:
                self.unmeasured[name] = "never called"
            elif seen != {self.time_steps}:
                self.unmeasured[name] = (
                    f"called with {max(seen)} of {self.time_steps} time steps, where each call begins at rest "
                    "unless the neuron is stateful"
                )
        return [*found.shape]

    def graph(self) -> Graph | None:
        """The network as a graph of `models.graph.Node`, from "input" to "fc"; None: a subclass gives none."""
        return None

    def notes(self) -> list[str]:
        """What else is said of the network at the start of a run."""
        return [f"not measured: {name}, {why}" for name, why in self.unmeasured.items()]

    def report(self) -> str:
        """What the run folder keeps about the network as `network.txt`; "": nothing."""
        return ""

    def set_stateful(self, stateful: bool = True) -> None:
        """Whether each call continues the window where the last one ended; starts a new window."""
        self.streaming = stateful
        for module in self._remembering():
            module.stateful = stateful
        self.reset()

    def set_synchronised(self, synchronised: bool | dist.ProcessGroup = True) -> None:
        """Whether batch norm takes its training statistics over all ranks, or those of a group, or over this one."""
        for norm in self._norms():
            norm.synchronised = synchronised

    def reset(self) -> None:
        """Starts a new window: forgets all membranes, what delays hold and what comes back, and the current step."""
        for module in self._remembering():
            module.reset()
        self._first_step()

    def _first_step(self) -> None:
        """Norms that have a gain for each step begin with the first one."""
        self._gained = [norm for norm in self._norms() if norm.step_gain is not None]
        for norm in self._gained:
            norm.first_step = 0

    def _remembering(self) -> list[SpikingNeuron | Delays | Recurrent]:
        return [m for m in self.modules() if isinstance(m, SpikingNeuron | Delays | Recurrent)]

    def _norms(self) -> list[Norm]:
        return [m for m in self.modules() if isinstance(m, Norm)]

    def _initialize(self) -> None:
        """Kaiming normal, fan-out (He et al. 2015, arXiv 1502.01852), as in torchvision; biases 0.

        The classifier keeps torch's default, as there.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | Delays) and layer is not self.fc:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards the mode is as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards mode, random state and all buffers, but new ones, are as before."""
    with in_eval_mode(model), undrawn(devices=[]), _kept(model):
        yield


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Training mode within the block; afterwards the mode and all buffers, but new ones, are as before."""
    training = model.training
    model.train()
    try:
        with _kept(model):
            yield
    finally:
        model.train(training)


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """All buffers, but new ones, are afterwards as before."""
    buffers = model.named_buffers()
    kept = {name: buffer.clone() for name, buffer in buffers if not is_lazy(buffer)}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in kept and buffer.shape == kept[name].shape:  # others are states
                    buffer.copy_(kept[name])
