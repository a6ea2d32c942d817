"""The other libraries' neurons, told what ours are told, in their fastest documented use.

A variant makes a module [T, B, ...] -> spikes [T, B, ...] of one of our neurons. Loops run over
`unbind`, never over `x[t]`, whose gradient would be quadratic in T. Conventions are mapped so that
spikes and gradients agree with ours, which is checked before anything is timed:

spikingjelly  the same update and the same `h >= threshold`. On a CPU its fastest use is torch.compile
              of `functional.lif_multi_step`; on a GPU the same function, which takes its Triton
              operator in float32 and, told a storage dtype, its precision path in half precision.
snntorch      `Leaky` with `reset_mechanism="zero"`, `reset_delay=False` (else it resets one step
              late); fires at `mem > threshold`, so ties differ; its reset carries a gradient.
norse         `lif_box_feed_forward_step`, whose input decays with the membrane: the current is
              divided by `1 - decay` first; fires at `v > v_th`; it has no ATan and is checked and
              timed with its triangle; its reset carries a gradient.

All but SpikingJelly's functions keep the membrane in the input's dtype, so that in half precision
their spikes cannot be ours: such a variant says why it is unequal, and is timed with that label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor, nn

from spiketriton.neurons import IF, LIF, SpikingNeuron
from spiketriton_kernels import Surrogate

ATAN = Surrogate.atan(2.0)
"""The surrogate of every comparison: height 1, width 1 / pi, the default of two of the peers."""
TRIANGLE = Surrogate.triangle(1.0)


class Unavailable(Exception):
    """A contender cannot run here, and why: a package, a device or an option is missing."""


@dataclass(frozen=True)
class Variant:
    """One use of a peer's neuron.

    `compiled`: what holds the neuron is handed to torch.compile. `surrogate`: what its gradient is
    checked against. `unequal`: why its result cannot be that of the neuron at hand, or "".
    """

    name: str
    make: Callable[[SpikingNeuron], nn.Module]
    package: str
    compiled: bool = False
    surrogate: Surrogate = ATAN
    unequal: str = ""


def variants(
    peer: str, neuron: SpikingNeuron, device: torch.device, dtype: torch.dtype
) -> list[Variant]:
    """The uses of an installed peer that stand for `neuron`, whose surrogate is ATAN.

    `dtype` is that of the currents.
    """
    return PEERS[peer](neuron, device, dtype)


def version(package: str) -> str | None:
    """The installed version of a peer, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _half_membrane(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float32 else f"it keeps the membrane in {str(dtype)[6:]}"


# ---- SpikingJelly


def _spikingjelly(neuron: SpikingNeuron, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    use = "triton" if device.type == "cuda" else "compiled"
    name, unequal = "spikingjelly", _half_membrane(dtype)
    return [
        Variant("spikingjelly default", SpikingJellyNode, name, unequal=unequal),
        Variant(f"spikingjelly {use}", SpikingJelly, name, compiled=use == "compiled"),
    ]


def _spikingjelly_options(neuron: SpikingNeuron) -> dict:
    from spikingjelly.activation_based import surrogate

    if neuron.reset_mode == "none":
        raise Unavailable("spikingjelly has no neuron without reset")
    return dict(
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        surrogate_function=surrogate.ATan(2.0),
        detach_reset=neuron.detach_reset,
    )


class SpikingJelly(nn.Module):
    """`functional.lif_multi_step` or `if_multi_step`, which hold no state."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional

        self.options = _spikingjelly_options(neuron)
        if isinstance(neuron, LIF):
            self.step = functional.lif_multi_step
            self.options |= dict(tau=neuron.tau, decay_input=neuron.decay_input)
        elif type(neuron) is IF:
            self.step = functional.if_multi_step
        else:
            raise Unavailable(f"spikingjelly has no stateless {type(neuron).__name__}")

    def forward(self, x: Tensor) -> Tensor:
        start = self.options["v_reset"] or 0.0
        v = torch.full_like(x[0], start, dtype=torch.float32)
        storage = (
            {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(x.dtype) if x.is_cuda else None
        )
        return self.step(x, v, **self.options, neuron_storage=storage)[0]


class SpikingJellyNode(nn.Module):
    """`LIFNode` or `IFNode` in multi-step mode, reset before every window."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based import neuron as nodes

        self.reset = functional.reset_net
        options = _spikingjelly_options(neuron) | dict(step_mode="m")
        if isinstance(neuron, LIF):
            options |= dict(tau=neuron.tau, decay_input=neuron.decay_input)
            self.node = nodes.LIFNode(**options)
        elif type(neuron) is IF:
            self.node = nodes.IFNode(**options)
        else:
            raise Unavailable(f"{type(neuron).__name__} is not mapped to a spikingjelly node")

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.node)
        return self.node(x)


# ---- snnTorch


def _snntorch(neuron: SpikingNeuron, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    unequal = _half_membrane(dtype)
    if neuron.detach_reset and neuron.reset_mode != "none":
        unequal = "its reset without delay always carries a gradient"
    return [Variant("snntorch", SnnTorch, "snntorch", unequal=unequal)]


class SnnTorch(nn.Module):
    """`Leaky`, step by step."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        constants = neuron.neuron_arguments()
        decay, gain, v_reset = (constants[name] for name in ("decay", "gain", "v_reset"))
        if gain != 1.0 or v_reset != 0.0 or isinstance(decay, Tensor):
            raise Unavailable("snntorch has no input gain, no v_reset and no PLIF")
        self.leaky = snntorch.Leaky(
            beta=decay,
            threshold=neuron.v_threshold,
            spike_grad=surrogate.atan(2.0),
            reset_mechanism={"hard": "zero", "soft": "subtract", "none": "none"}[neuron.reset_mode],
            reset_delay=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        membrane = torch.zeros_like(x[0])
        spikes = []
        for x_t in x.unbind(0):
            spike, membrane = self.leaky(x_t, membrane)
            spikes.append(spike)
        return torch.stack(spikes)


# ---- norse

STEP_OF_NORSE = 1e-3  # seconds, its default: only the product with tau_mem_inv matters


def _norse(neuron: SpikingNeuron, device: torch.device, dtype: torch.dtype) -> list[Variant]:
    unequal = _half_membrane(dtype)
    if neuron.detach_reset and neuron.reset_mode != "none":
        unequal = "its reset always carries a gradient"
    return [Variant("norse", Norse, "norse", surrogate=TRIANGLE, unequal=unequal)]


class Norse(nn.Module):
    """`lif_box_feed_forward_step`, step by step."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        from norse.torch.functional import lif_box, reset

        constants = neuron.neuron_arguments()
        decay, gain = constants["decay"], constants["gain"]
        if neuron.reset_mode == "none" or isinstance(decay, Tensor) or decay == 1.0:
            raise Unavailable("norse's LIFBox has no IF, no PLIF and always resets")
        self.step, self.parameters_of = lif_box.lif_box_feed_forward_step, lif_box.LIFBoxParameters
        self.state = lif_box.LIFBoxFeedForwardState
        self.reset = {"hard": reset.reset_value, "soft": reset.reset_subtract}[neuron.reset_mode]
        self.gain, self.v_start = gain / (1 - decay), constants["v_reset"]
        for name, value in (
            ("tau_mem_inv", (1 - decay) / STEP_OF_NORSE),
            ("v_leak", self.v_start),
            ("v_th", neuron.v_threshold),
            ("v_reset", self.v_start),
            ("alpha", 1.0),
        ):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        constants = self.parameters_of(
            **dict(self.named_buffers()), method="triangle", reset_method=self.reset
        )
        state = self.state(torch.full_like(x[0], self.v_start))
        spikes = []
        for x_t in (x * self.gain).unbind(0):
            spike, state = self.step(x_t, state, constants, dt=STEP_OF_NORSE)
            spikes.append(spike)
        return torch.stack(spikes)


PEERS = {"spikingjelly": _spikingjelly, "snntorch": _snntorch, "norse": _norse}
