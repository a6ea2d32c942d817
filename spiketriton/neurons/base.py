"""What all spiking neurons share: constants, the call of the kernel, and optional state."""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from spiketriton.errors import UserError
from spiketriton.neurons.norm import Norm
from spiketriton_kernels import Surrogate, multistep_bn_lif, multistep_lif

RESETS = ("hard", "soft", "none")

# a compiled graph cannot hold the process group
_over_ranks = torch.compiler.disable(multistep_bn_lif)


class Options(TypedDict, total=False):
    """Keyword arguments of every spiking neuron, explained in `SpikingNeuron`."""

    reset: str | None
    detach_reset: bool
    surrogate: Surrogate | None
    stateful: bool


class SpikingNeuron(nn.Module):
    """A neuron over a whole time window: input currents [T, B, ...] -> spikes [T, B, ...].

    Spikes are 0 or 1 in the dtype of the currents. A subclass states its constants in
    `neuron_arguments()`; the equations are those of `spiketriton_kernels.multistep_lif`.

    Nothing is kept between calls unless `stateful`: then the next call starts at `v`, the membrane
    after the last step ([B, ...], float32), so that chunks of any length give the spikes of the
    whole window. Gradients flow through `v` from chunk to chunk; `detach()` cuts them there, and
    `reset()` forgets the membrane.

    Args:
        v_threshold: membrane potential at which it fires, > 0.
        v_reset: potential after a hard reset, < v_threshold; None means soft reset.
        reset: "hard", "soft" or "none"; None takes it from `v_reset`, as SpikingJelly does.
        detach_reset: no gradient through the reset.
        surrogate: replaces ds/dh in backward. A plain attribute, which calibration may replace.
        stateful: keep the membrane between calls.

    Attributes:
        probe: None, or a float32 tensor [T, 8] that requires grad; backward fills its gradient with
            the sums named by `spiketriton_kernels.PROBE_FIELDS`.
        on_fire: None, or a function that each call hands its spikes.

    Raises:
        UserError: a constant out of its range, here; too few dimensions or a chunk that does not
            fit the kept membrane, in the call.
    """

    v: Tensor | None
    probe: Tensor | None

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        *,
        reset: str | None = None,
        detach_reset: bool = True,
        surrogate: Surrogate | None = None,
        stateful: bool = False,
    ) -> None:
        super().__init__()
        if reset is None:
            reset = "soft" if v_reset is None else "hard"
        if reset not in RESETS:
            raise UserError(f"reset {reset!r}: accepted: {', '.join(RESETS)}")
        if not (v_threshold > 0 and math.isfinite(v_threshold)):
            raise UserError(f"v_threshold {v_threshold!r}: accepted: a finite number above 0")
        if reset == "hard" and (v_reset is None or not -math.inf < v_reset < v_threshold):
            raise UserError(
                f"v_reset {v_reset!r} of a hard reset: accepted: a finite number "
                f"below v_threshold = {v_threshold}"
            )
        self.v_threshold = float(v_threshold)
        self.v_reset = float(v_reset) if reset == "hard" and v_reset is not None else None
        self.reset_mode = reset
        self.detach_reset = detach_reset
        self.surrogate = Surrogate("atan") if surrogate is None else surrogate
        self.stateful = stateful
        self.v = None
        self.probe = None
        self.on_fire: Callable[[Tensor], object] | None = None

    def neuron_arguments(self) -> dict[str, Any]:
        """The neuron's constants as keyword arguments of `spiketriton_kernels.multistep_lif`."""
        return {
            "decay": 1.0,
            "gain": 1.0,
            "threshold": self.v_threshold,
            "reset": self.reset_mode,
            "v_reset": 0.0 if self.v_reset is None else self.v_reset,
            "detach_reset": self.detach_reset,
            "surrogate": self.surrogate,
        }

    def input_gain(self) -> Tensor | None:
        """A learnable gain of the input, [] or [C], on top of the kernel's constant one; or None."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Currents [T, B, ...] -> spikes of the same shape, dtype and memory layout."""
        self._check(x)
        return self._fire(multistep_lif, _amplified(x, self.input_gain()))

    def fused_norm(
        self, y: Tensor, norm: Norm, residual: Tensor | None = None, spike_add: Tensor | None = None
    ) -> Tensor:
        """`self(norm(y) + residual) + spike_add` in one operation.

        Every tensor is [T, B, C, ...]; `norm` counts the batch and updates its running statistics
        as in a call. Forward hooks of the neuron and of the norm do not fire.
        """
        self._check(y)
        norm.count_batch(y)
        gain = self.input_gain()
        return self._fire(
            multistep_bn_lif if norm.process_group is None else _over_ranks,
            y,
            norm.weight if gain is None else norm.weight * gain,
            norm.bias if gain is None else norm.bias * gain,
            *norm.statistics(),
            training=norm.training,
            process_group=norm.process_group,
            momentum=norm.momentum,
            eps=norm.eps,
            bn_scale=norm.scale,
            step_gain=norm.gains(y.shape[0]),
            residual=None if residual is None else _amplified(residual, gain),
            spike_add=spike_add,
        )

    def _check(self, x: Tensor) -> None:
        """Refuses currents without time and batch, and a chunk that does not fit the membrane."""
        if x.ndim < 2:
            raise UserError(
                f"input of {type(self).__name__} has shape {tuple(x.shape)}; "
                "accepted: [T, B, ...], time first"
            )
        if self.stateful and self.v is not None:
            given, kept = (x.shape[1:], x.device), (self.v.shape, self.v.device)
            if given != kept:
                raise UserError(
                    f"a chunk of shape {tuple(x.shape)} on {x.device} does not continue the "
                    f"membrane of shape {tuple(self.v.shape)} on {self.v.device}; "
                    "reset() starts a new window"
                )

    def _fire(self, kernel: Callable[..., Any], x: Tensor, *tensors: Any, **options: Any) -> Tensor:
        """Calls `kernel` on currents x, with the neuron's constants, its probe and its state."""
        options |= self.neuron_arguments()
        if self.probe is not None:
            options["probe"] = self.probe
        if self.stateful:
            spikes, self.v = kernel(x, *tensors, **options, v_init=self.v, return_v=True)
        else:
            spikes = kernel(x, *tensors, **options)
        if self.on_fire is not None:
            self.on_fire(spikes)
        return spikes

    def reset(self) -> None:
        """Forgets the membrane: the next call starts a new window."""
        self.v = None

    def detach(self) -> None:
        """Keeps the membrane's value and cuts its gradient (truncated back-propagation)."""
        if self.v is not None:
            self.v = self.v.detach()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the membrane without its graph, which torch cannot copy."""
        return self.__dict__ | {"v": None if self.v is None else self.v.detach()}

    def extra_repr(self) -> str:
        names = ("v_threshold", "v_reset", "reset_mode", "detach_reset", "surrogate", "stateful")
        return ", ".join(f"{name.removesuffix('_mode')}={getattr(self, name)}" for name in names)


def _amplified(current: Tensor, gain: Tensor | None) -> Tensor:
    """gain * current in the dtype of the current; a gain [C] belongs to dimension 2."""
    if gain is None:
        return current
    if gain.ndim:
        gain = gain.view(-1, *[1] * (current.ndim - 3))
    return (current * gain).to(current.dtype)
