"""The other libraries' neurons, with the constants of ours, in their fastest documented use.

A variant makes a module [T, B, ...] -> spikes [T, B, ...] of one of our neurons. Loops run over
`unbind`, never over `x[t]`, whose gradient would be quadratic in T. Conventions are mapped so that
spikes and gradients agree with ours, which is checked before anything is timed:

spikingjelly  the same update and the same `h >= threshold`. On a CPU its fastest use is torch.compile
              of `functional.lif_multi_step`; on a GPU the same function, which takes its Triton
              operator in float32 and, given a storage dtype, its precision path in half precision.
snntorch      `Leaky` with `reset_mechanism="zero"`, `reset_delay=False` (else it resets one step
              late); fires at `mem > threshold`, so ties differ; its reset carries a gradient.
norse         `lif_box_feed_forward_step`, whose input decays with the membrane: the current is
              divided by `1 - decay` first; fires at `v > v_th`; it has no ATan and is checked and
              timed with its triangle; its reset carries a gradient.

All but SpikingJelly's functions keep the membrane in the input's dtype, so that in half precision
their spikes cannot be ours: such a variant says why it is unequal, and is timed with that label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from profiling.harness.contenders import Contender, Unavailable, Work
from spiketriton.neurons import SpikingNeuron
from spiketriton_kernels import Surrogate
from spiketriton_kernels.nn import IF, LIF

PEERS = ("spikingjelly", "snntorch", "norse")
ATAN = Surrogate.atan(2.0)
"""The surrogate of every comparison: height 1, width 1 / pi, the default of two of the peers."""
TRIANGLE = Surrogate.triangle(1.0)


class Variant(NamedTuple):
    """One use of a peer's neuron.

    `compiled`: what holds the neuron is compiled by torch.compile. `surrogate`: what its gradient is
    checked against. `unequal`: why its result cannot be that of the neuron at hand, or "".
    """

    name: str
    make: Callable[[SpikingNeuron], nn.Module]
    package: str
    unequal: str = ""
    compiled: bool = False
    surrogate: Surrogate = ATAN


def variants(
    peer: str, neuron: SpikingNeuron, device: torch.device, dtype: torch.dtype
) -> list[Variant]:
    """The uses of a peer that stand for `neuron`, whose surrogate is ATAN; `dtype`: the currents'."""
    unequal = "" if dtype == torch.float32 else f"it keeps the membrane in {str(dtype)[6:]}"
    if peer == "spikingjelly":
        on_gpu = device.type == "cuda"
        use = f"spikingjelly {'triton' if on_gpu else 'compiled'}"
        return [
            Variant("spikingjelly default", partial(SpikingJelly, stateless=False), peer, unequal),
            Variant(use, partial(SpikingJelly, stateless=True), peer, compiled=not on_gpu),
        ]
    if neuron.detach_reset and neuron.reset_mode != "none":
        unequal = "its reset always carries a gradient"
    if peer == "snntorch":
        return [Variant(peer, SnnTorch, peer, unequal)]
    return [Variant(peer, Norse, peer, unequal, surrogate=TRIANGLE)]


def contenders(
    peers: Iterable[str],
    neuron: SpikingNeuron,
    device: torch.device,
    dtype: torch.dtype,
    build: Callable[[Variant], Work],
    prefix: str = "",
) -> list[Contender]:
    """All uses of the peers, each built by `build`; of a peer that is not installed, its name."""
    found = []
    for peer in peers:
        if version(peer) is None:
            found.append(Contender(peer, partial(_missing, peer)))
            continue
        for variant in variants(peer, neuron, device, dtype):
            facts = {"package": f"{peer} {version(peer)}"}
            if variant.surrogate is not ATAN:
                s = variant.surrogate
                about = f"{s.shape} (height {s.height:g}, width {s.width:g})"
                facts["note"] = f"surrogate {about}: has no ATan"
            found.append(Contender(prefix + variant.name, partial(build, variant), facts))
    return found


def _missing(peer: str) -> Work:
    raise Unavailable(f'{peer} is not installed; pip install -e ".[peers]" installs it')


def version(package: str) -> str | None:
    """The installed version of a peer, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class SpikingJelly(nn.Module):
    """`functional.lif_multi_step` (IF: `if_multi_step`), or `LIFNode` reset before every window."""

    def __init__(self, neuron: SpikingNeuron, stateless: bool) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, surrogate
        from spikingjelly.activation_based import neuron as nodes

        if neuron.reset_mode == "none":
            raise Unavailable("spikingjelly has no neuron without reset")
        if not isinstance(neuron, LIF) and type(neuron) is not IF:
            raise Unavailable(f"{type(neuron).__name__} is not mapped to a spikingjelly neuron")
        self.options: dict[str, Any] = dict(
            v_threshold=neuron.v_threshold,
            v_reset=neuron.v_reset,
            surrogate_function=surrogate.ATan(2.0),
            detach_reset=neuron.detach_reset,
        )
        kind = "IF"
        if isinstance(neuron, LIF):
            kind = "LIF"
            self.options |= dict(tau=neuron.tau, decay_input=neuron.decay_input)
        self.reset = functional.reset_net
        self.step = getattr(functional, f"{kind.lower()}_multi_step")
        self.node = None
        if not stateless:
            self.node = getattr(nodes, f"{kind}Node")(**self.options, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        if self.node is not None:
            self.reset(self.node)
            return self.node(x)
        v = torch.full_like(x[0], self.options["v_reset"] or 0.0, dtype=torch.float32)
        half = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        storage = half.get(x.dtype) if x.is_cuda else None
        return self.step(x, v, **self.options, neuron_storage=storage)[0]


def refuse_beyond_lif(package: str, neuron: SpikingNeuron) -> None:
    """Unavailable: the neuron has other equations than LIF."""
    if neuron.kind != "lif":
        raise Unavailable(f"{type(neuron).__name__} is not mapped to a neuron of {package}")


class SnnTorch(nn.Module):
    """`Leaky`, step by step."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        refuse_beyond_lif("snntorch", neuron)
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


STEP_OF_NORSE = 1e-3  # seconds, its default: only the product with tau_mem_inv matters


class Norse(nn.Module):
    """`lif_box_feed_forward_step`, step by step."""

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        from norse.torch.functional import lif_box, reset

        refuse_beyond_lif("norse", neuron)
        constants = neuron.neuron_arguments()
        decay, gain, v_start = (constants[name] for name in ("decay", "gain", "v_reset"))
        if neuron.reset_mode == "none" or isinstance(decay, Tensor) or decay == 1.0:
            raise Unavailable("norse's LIFBox has no IF, no PLIF and always resets")
        self.step, self.parameters_of = lif_box.lif_box_feed_forward_step, lif_box.LIFBoxParameters
        self.state = lif_box.LIFBoxFeedForwardState
        self.reset = {"hard": reset.reset_value, "soft": reset.reset_subtract}[neuron.reset_mode]
        self.gain, self.v_start = gain / (1 - decay), v_start
        values = dict(tau_mem_inv=(1 - decay) / STEP_OF_NORSE, v_leak=v_start, v_reset=v_start)
        for name, value in (values | dict(v_th=neuron.v_threshold, alpha=1.0)).items():
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
