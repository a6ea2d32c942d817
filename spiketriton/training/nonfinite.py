"""Where the numbers of a training step went wrong: the first layer and time step.

The step that ended a run is repeated with norm and neuron apart. The first bad value in the order of computation is
reported: in the forward pass, or else in the backward pass, which starts at the last layer and time step.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from spiketriton.config import NeuronConfig
from spiketriton.data import TrainStream
from spiketriton.models import Network, trial
from spiketriton.neurons import SpikingNeuron, one_by_one
from spiketriton.plugins.tasks import Batch, Loss, answers, has_time, image_dim
from spiketriton.runs.rows import write_json
from spiketriton.system.errors import UserError
from spiketriton.training.guard import Counts, Diverged
from spiketriton.training.meters import is_out_of_memory
from spiketriton.training.placement import Placement

Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Finding:
    """Where the first value that is not finite appeared.

    what: "the images", "input current", "output", "loss", "gradient" or "norm". layer: dotted name of the module, or
    of the parameter; "" where there is none. time_step: from 0; None without one. count, of: values that are not
    finite, of how many in that time step (or tensor). parameters: those that hold, or whose gradients hold, values
    that are not finite.
    """

    what: str
    layer: str = ""
    time_step: int | None = None
    count: int = 0
    of: int = 0
    parameters: tuple[str, ...] = ()

    def in_words(self) -> str:
        if self.what == "norm":
            return f"every gradient is finite, but their norm is not; the largest: {self.layer}"
        if self.what == "loss":
            return "every current is finite, but the loss is not"
        began = "it began"
        if self.time_step is not None:
            began += f" at time step {self.time_step} (of 0, 1, ...)"
        share = f"({self.count} of {self.of} values)"
        if self.what == "the images":
            return f"{began} in the images {share}"
        if self.what == "gradient":
            return f"forward is finite, backward {began} in the gradient of {self.layer} {share}"
        named = ", ".join(self.parameters)
        whose = f", whose {named} is not finite" if self.parameters else ""
        return f"{began} in the {self.what} of {self.layer} {share}{whose}"


def locate(
    model: Network, batches: Sequence[Batch], loss: Loss, autocast: Autocast
) -> Finding | None:
    """Repeats a step and returns where it went wrong; None if it was finite this time.

    The model, with the weights from before the step, stays as it is; the gradients of its parameters are None.
    batches: micro-batches on its device. loss: currents [T, b, K], labels [b] -> scalar.
    """
    model.zero_grad()
    with one_by_one(model), trial(model), contextlib.ExitStack() as stack:
        stack.callback(model.zero_grad)
        for images, labels, *lengths in batches:
            if not images.isfinite().all():
                return Finding("the images", "", None, *_share(images))
            with _Trace(model, images) as trace:
                with autocast():
                    value = loss(answers(model, images, lengths), labels, *lengths) / len(batches)
                if trace.found is not None:
                    return trace.found
                if not value.isfinite():
                    return Finding("loss")
                value.backward()
            if trace.found is not None:
                return trace.found
        return _in_parameters(model)


class _Trace:
    """While entered, checks all values and gradients in `model` and keeps the first bad place."""

    def __init__(self, model: Network, images: Tensor) -> None:
        self.steps = len(images) if has_time(images) else model.time_steps
        self.images, self.spiking = images.shape[image_dim(images)], model.is_spiking
        self.found: Finding | None = None
        self._hooks = []
        for name, module in model.named_modules():
            if isinstance(module, SpikingNeuron):
                hook = partial(self._enters, name)
                self._hooks.append(module.register_forward_pre_hook(hook))
            elif not list(module.children()):
                self._hooks.append(module.register_forward_hook(partial(self._leaves, name)))

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _enters(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._look("input current", name, inputs[0], module)
        self._watch_gradient(name, inputs[0])

    def _leaves(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._look("output", name, output, module)
        if not self.spiking:
            self._watch_gradient(name, output)

    @torch.no_grad()  # a check that saves tensors would upset the blocks that are recomputed
    def _look(self, what: str, name: str, x: Tensor, module: nn.Module) -> None:
        if self.found is None and not x.isfinite().all():
            bad = [key for key, p in module.named_parameters() if not p.isfinite().all()]
            time_step, share = self._place(x, first=True)
            self.found = Finding(what, name, time_step, *share, tuple(bad))

    def _watch_gradient(self, name: str, x: Tensor) -> None:
        if x.requires_grad:
            x.register_hook(partial(self._look_back, name))

    def _look_back(self, name: str, grad: Tensor) -> None:
        if self.found is None and not grad.isfinite().all():
            time_step, share = self._place(grad, first=False)
            self.found = Finding("gradient", name, time_step, *share)

    def _place(self, x: Tensor, *, first: bool) -> tuple[int | None, tuple[int, int]]:
        """The first (or last) time step of `x` that is not finite, and how much of it."""
        if x.shape[:2] != (self.steps, self.images):
            # the stem's current is the same at every step
            if len(x) != self.steps * self.images:
                return 0 if self.spiking else None, _share(x)
            x = x.unflatten(0, (self.steps, self.images))
        steps = [t for t in range(self.steps) if not x[t].isfinite().all()]
        time_step = steps[0 if first else -1]
        return time_step if self.spiking else None, _share(x[time_step])


def _share(x: Tensor) -> tuple[int, int]:
    """The number of values that are not finite, and of all."""
    return int((~x.isfinite()).sum()), x.numel()


def _in_parameters(model: Network) -> Finding | None:
    """A parameter whose gradient is not finite, or the largest one if only the norm is not."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    if bad:
        return Finding("gradient", bad[-1], None, *_share(grads[bad[-1]]), tuple(bad))
    if not nn.utils.get_total_norm(list(grads.values())).isfinite():
        return Finding("norm", max(grads, key=lambda name: float(grads[name].abs().max())))
    return None


def again(
    model: Network, data: TrainStream, loss: Loss, placement: Placement, step: int
) -> Callable[[], Finding | None]:
    """What repeats a step of all ranks on this one, and says where it went wrong."""
    model.set_synchronised(False)
    data = data.of_all_ranks()
    with contextlib.closing(data.from_step(step - 1, placement.device)) as stream:
        parts = list(islice(stream, data.accumulate))
    return partial(locate, model, placement.batches(parts), loss, placement.autocast)


def report(
    folder: Path, counts: Counts, advice: str, find: Callable[[], Finding | None]
) -> Diverged:
    """Writes nonfinite.json, and returns the error that ends the run; `find` repeats the step."""
    finding = None
    try:
        finding = find()
        place = finding.in_words() if finding else "repeated layer by layer, the step is finite"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        place = "repeating it layer by layer ran out of memory"
    message = f"{counts.number} at step {counts.halted_at}; {place}"
    content = {
        "step": counts.halted_at,
        "message": message,
        "found": asdict(finding) if finding else None,
    }
    try:
        write_json(folder / "nonfinite.json", content)
    except UserError as error:
        message += f"; {error}"
    return Diverged(f"{message}; {advice} may help; the step changed no weight")


def advice(half: bool, neuron: NeuronConfig, clipping: float) -> str:
    """What may help. half: in half precision. clipping: the largest norm of a gradient; 0: any."""
    tips = ["a lower train.lr"]
    if not clipping:
        tips.append("train.clip_grad_norm=1")
    if half:
        tips.append("train.precision=fp32")
    usual = 0.3 * neuron.v_threshold  # the default
    if neuron.kind != "relu" and neuron.surrogate.width > 2 * usual:
        tips.append(f"neuron.surrogate.width={usual:.3g}")
    if neuron.kind not in ("relu", "ilif") and neuron.surrogate.height > 1:
        tips.append("neuron.surrogate.height=1")
    if neuron.kind != "relu" and not neuron.detach_reset and neuron.resets_by != "none":
        tips.append("neuron.detach_reset=true")
    return ", ".join(tips[:-1]) + f" or {tips[-1]}" if len(tips) > 1 else tips[0]
