"""One time step of a network as ONNX, for a device that answers while its input arrives: states in, states out.

    frame, state, ... -> currents, state after it, ...

A window begins with states of 0, but for those that the file's `start` names; each step is given what the one before
returned. The answer so far is the mean of the currents, or the last ones, as `read` says.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.evaluate.stream import in_steps
from spiketriton.export.followed import Compared
from spiketriton.export.plain import TRACED, Traced, example, on_cpu, write_onnx
from spiketriton.models.foreign import ForeignNetwork
from spiketriton.models.network import Network
from spiketriton.neurons import Norm
from spiketriton.plugins.tasks import has_time
from spiketriton.system.errors import UserError
from spiketriton.training.trained import TrainedRun
from spiketriton_kernels.nn import Delays, ParallelNeuron, SpikingNeuron


class OneStep(nn.Module):
    """A network that is shown a frame [B, ...] and its states: currents [B, K], and the states after it.

    Attributes:
        start: by name of a module what it holds before the first step, [n, B, ...].
    """

    def __init__(self, model: Network, frame: Tensor) -> None:
        """model: a stateful one."""
        super().__init__()
        self.model = model
        model.reset()
        model(frame.unsqueeze(0))  # so that all hold what they hold
        kept = {n: m for n, m in model.named_modules() if getattr(m, "held", None) is not None}
        self.start = {name: _start(module) for name, module in kept.items()}
        self._places = [*kept]

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        holders = [self.model.get_submodule(name) for name in self._places]
        for module, state in zip(holders, states, strict=True):
            module.held = state
        currents = self.model(frame.unsqueeze(0))[0]
        return currents, *[module.held for module in holders]


def _start(module: nn.Module) -> Tensor:
    """What a module that has seen one step holds before the first."""
    held = module.held
    assert isinstance(held, Tensor)
    if isinstance(module, Delays):  # as many steps as it may ever read
        return held.new_zeros(module.longest, *held.shape[1:])
    first = torch.zeros_like(held)
    if isinstance(module, SpikingNeuron):
        for row, name in zip(first, module.states, strict=False):
            row.fill_(module.start.get(name, 0.0))
    return first


@torch.no_grad()
def export_step(
    run: TrainedRun, path: Path, batch_size: int = 0, mark: str = "spiketriton"
) -> Compared:
    """Writes one step of the network as ONNX in float32, and has onnxruntime run windows with it, step by step.

    Its currents are compared with those of the network that is shown the whole window. batch_size: frames of a call; 0:
    any number. UserError: as `export_onnx`, or the network cannot be shown one step at a time, or has a gain for each
    step.
    """
    refuse_step(run)
    whole, model = on_cpu(run), in_steps(run).cpu().float()
    frame = _window(run, batch_size or TRACED)[0]
    one = OneStep(model, frame)
    given, after = {"frame": frame, **one.start}, [f"{name}.next" for name in one.start]
    axes = {name: {1: "streams"} for name in (*one.start, *after)}
    axes |= {"frame": {0: "streams"}, "currents": {0: "streams"}}

    def answers(session: Any, size: int) -> tuple[Tensor, list[Tensor]]:
        window, found = _window(run, size), []
        states = [_of_size(state, size) for state in one.start.values()]
        for step in window.numpy():
            held = dict(zip(one.start, states, strict=True))
            currents, *rest = session.run(None, {"frame": step, **held})
            states, spikes = rest[: len(held)], rest[len(held) :]
            found.append([torch.from_numpy(each) for each in (currents, *spikes)])
        shown = window if run.facts.frames else window[0]
        (*currents,), *told = zip(*found, strict=True)
        answer = torch.stack(currents)
        answer = answer if whole.answers_each_step else answer.mean(0, keepdim=True)
        return shown, [answer, *map(torch.cat, told)]

    begins = {name: [float(row.flatten()[0]) for row in value] for name, value in one.start.items()}
    words = {"start": json.dumps({n: values for n, values in begins.items() if any(values)})}
    traced = Traced(
        one, given, ["currents", *after], {} if batch_size else axes, "streams", "model."
    )
    return write_onnx(traced, run, path, batch_size, whole, answers, {"written_by": mark, **words})


def refuse_step(run: TrainedRun) -> None:
    """UserError: what it holds between steps is no argument and result of a step."""
    gains = [
        n for n, m in run.model.named_modules() if isinstance(m, Norm) and m.step_gain is not None
    ]
    if gains:
        raise UserError(
            f"{run.folder.path}: {gains[0]} has a gain for each time step (tebn), and one step is written; accepted: "
            "another model.norm, or the whole window"
        )
    parallel = [n for n, m in run.model.named_modules() if isinstance(m, ParallelNeuron)]
    if parallel:
        raise UserError(
            f"{run.folder.path}: {parallel[0]} is a parallel neuron, which reads the inputs of steps before; accepted: "
            "neurons that hand a state from step to step, or the whole window"
        )
    left = run.model.swapped.left if isinstance(run.model, ForeignNetwork) else {}
    if left:
        name, why = next(iter(left.items()))
        raise UserError(
            f"{run.folder.path}: {name} is not the kernels' ({why}), and keeps a state of its own; accepted: "
            "neurons of the kernels, or the whole window"
        )


def _window(run: TrainedRun, size: int) -> Tensor:
    """Noise for so many streams, [T, size, ...]; of an image each step is the same."""
    shown = example(run, size)
    return shown if has_time(shown) else shown.expand(run.time_steps, *shown.shape).contiguous()


def _of_size(state: Tensor, size: int) -> np.ndarray:
    """[n, size, ...] of a state [n, B, ...] that all streams begin with."""
    return state[:, :1].expand(-1, size, *state.shape[2:]).numpy()
