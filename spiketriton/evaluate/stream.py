"""A run that answers while its input arrives: a time step of several streams at once, and the answer so far."""

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spiketriton.data.given import GivenSteps
from spiketriton.models.agreement import refuse_other_parts
from spiketriton.models.foreign import ForeignNetwork
from spiketriton.models.network import Network
from spiketriton.neurons import Norm
from spiketriton.plugins.tasks import task_of
from spiketriton.plugins.tasks.classification import Classification
from spiketriton.plugins.tasks.task import Task
from spiketriton.system.errors import UserError, one_line
from spiketriton.training.trained import TrainedRun


def in_steps(run: TrainedRun) -> Network:
    """A copy of a run's network whose calls continue a window, in eval mode, at the start of one.

    UserError: it cannot be shown one step at a time, and why.
    """
    if parallel := run.model.parallel_neurons():
        kind = type(run.model.get_submodule(parallel[0])).__name__
        raise UserError(
            f"{run.folder.path}: {parallel[0]} is a {kind}, which reads all steps of a window at once; accepted: "
            "neurons that hand a state from step to step, or predict, which shows whole windows"
        )
    try:
        model: Network = copy.deepcopy(run.model).eval()
    except Exception as error:  # somebody else's code
        raise UserError(
            f"{run.folder.path}: the network cannot be copied ({one_line(error)}), and a stream has a copy of its "
            "own; accepted: a network that copy.deepcopy takes"
        ) from None
    model.requires_grad_(False)
    if isinstance(model, ForeignNetwork):
        model.set_stateful()  # which compares
    else:
        refuse_other_parts(model, run.facts.image_shape, model.set_stateful)
    return model


class Stream:
    """What `Run.stream` returns; see there. It has a copy of the network, and leaves the run's as it is.

    Attributes:
        steps: shown since the last `reset`.
    """

    def __init__(self, run: TrainedRun) -> None:
        """UserError: the network cannot be shown one step at a time, and why."""
        self._run, self._task = run, task_of(run.recipe.loss)
        self._model = in_steps(run)
        self._shown = GivenSteps(run.facts)
        self._gained = [
            m for m in self._model.modules() if isinstance(m, Norm) and m.step_gain is not None
        ]
        predict, forward = type(self._task).predict, type(self._model).forward
        self._whole = predict not in (Task.predict, Classification.predict)
        self._softmax = predict is Classification.predict
        self._checked = forward in (Network.forward, ForeignNetwork.forward)
        self._narrow = run.placement.precision != torch.float32
        self.reset()

    def reset(self) -> None:
        """Forgets all that was shown; the next step begins a window, of any number of streams."""
        self.steps = 0
        self._before: list[int] = []  # the shape of the last step
        self._currents: deque[Tensor] = deque()
        self._so_far = self._task.reading.so_far(self._taken())
        self._model.reset()

    @torch.inference_mode()
    def step(self, frame: Any) -> Tensor:
        """The answer to all that was shown since the last `reset`, as `Run.predict` gives it, float32 on the CPU.

        Args:
            frame: [C, H, W] of an image, floats in 0..1 or uint8, perhaps another one in each step; uint8 counts
                [2, S, S] of an event camera's frame; numbers [C] of a sequence, as they were given to the training;
                of images that are shown as sequences the pixels of the step. Or [B, ...] of B streams.

        Returns:
            [K], or [B, K] of B streams: after T steps what `predict` says of the window.

        Raises:
            UserError: another shape, dtype or value, another B than in the steps before, more steps than a network
                with gains for each step (TEBN) has. Nothing was shown then.
        """
        shown = self._shown(frame)
        now = [*frame.shape]
        if self._before not in ([], now):
            raise UserError(
                f"a step of shape {now} does not continue the {self.steps} steps before, of {self._before}; accepted: "
                "the same shape, or reset(), which begins anew"
            )
        for norm in self._gained:
            norm.gains(1)  # refuses more steps than there are
        try:
            if self._narrow or torch.is_autocast_enabled(self._run.device.type):
                with self._run.autocast():
                    currents = self._next(self._run.to_device(shown))
            else:  # a context costs as much as a layer
                currents = self._next(self._run.to_device(shown))
        except BaseException:
            self.reset()  # some layers may have seen it
            raise
        self._before = now
        self.steps += 1
        answers = self._answered(currents).cpu()
        return answers[0] if frame.ndim == len(self._run.facts.image_shape) else answers

    def _next(self, shown: Tensor) -> Tensor:
        """The network's currents [B, ...] of a step."""
        if not self._checked:
            return self._model(shown)[0].float()
        currents = self._model.currents(shown, 1)[0].float()  # what is shown was checked
        for norm in self._gained:
            norm.first_step += 1
        return currents

    def _answered(self, currents: Tensor) -> Tensor:
        """The task's prediction by these currents of a step [B, ...] and all before."""
        self._currents.append(currents)
        if self._whole:  # it may read each step
            return self._task.predict(torch.stack([*self._currents]))
        answers = next(self._so_far)
        return answers.softmax(1) if self._softmax else answers

    def _taken(self) -> Iterator[Tensor]:
        while True:
            yield self._currents.popleft()
