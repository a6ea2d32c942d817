"""A trained network as a graph of the Neuromorphic Intermediate Representation (NIR).

NIR describes continuous-time neurons; one Euler step of length dt of its equations is our step:

    LIF  tau dv/dt = v_leak - v + r I      tau = dt / (1 - decay)   r = gain / (1 - decay)
    IF       dv/dt = r I                                            r = gain / dt

with v_leak = v_reset, as our membrane leaks toward v_reset. Batch norm is folded into the weights,
the mean over space is an average pool, and residual connections are edges: what arrives at one node
is summed. NIR has no fields for the first membrane (v_reset), for a tie at the threshold (ours
fires), dt and the number of steps; these are in the graph's metadata.

The synapses of `model.delays` that wait equally long are a linear layer of their own behind a Delay.

What NIR cannot express is refused: ReLU, steps that no `Membrane` describes, max-pool, TEBN's gains. So are spikes that
come back to their own layer, of which NIR does not say how much later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from spiketriton.export.nir_step import Membrane, NotLinearError, membrane_of
from spiketriton.models import Network
from spiketriton.models.agreement import counted_graph, noise
from spiketriton.models.graph import Graph, Node, folded_weights, graph_of, layers, shapes_of
from spiketriton.neurons import SpikingNeuron
from spiketriton.plugins.tasks import Reading
from spiketriton.system.errors import UserError, need
from spiketriton.system.version import __version__
from spiketriton_kernels.nn import Delays, Recurrent


def to_nir(
    model: Network,
    image: tuple[int, ...],
    dt: float = 1.0,
    *,
    frames: bool = False,
    reading: Reading = Reading(),  # noqa: B008
) -> Any:
    """The `nir.NIRGraph` of a network for images [C, H, W], in float32, of which a step is `dt` long.

    frames: it is shown a frame of events at each step. reading: of its output, for the metadata. UserError: NIR cannot
    express the network (every reason is given), or nir is not installed.
    """
    nir = need("nir", "nir", "--to nir")
    refuse_nir(model)
    nodes = graph_of(model)
    counted_graph(model, noise(model, image, frames))  # or the file would be another network
    shapes = shapes_of(nodes, image)
    translated: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    gives: dict[str, list[str]] = {}  # by node of ours those of NIR's whose sum it is
    for node in nodes.values():
        given = shapes[node.inputs[0]] if node.inputs else image
        sources = [source for name in node.inputs for source in gives[name]]
        part = _translate(nir, node, given, dt)
        translated |= part.nodes
        edges += [(source, enters) for source in sources for enters in part.enters] + part.edges
        gives[node.name] = part.gives
    translated["output"] = nir.Output(np.array(shapes["fc"]))
    edges.append(("fc", "output"))
    metadata = {
        "made_by": f"spiketriton {__version__}",
        "dt": dt,
        "time_steps": model.time_steps,
        "spike_at": ">=",
        "reset": "hard",
        "v_init": "v_reset",
        "cycle": "an edge from a Scale to a membrane is read a step later",
        "synapse": "a CubaLIF reads the synaptic current after its step",
        "input": _INPUTS[len(image), frames],
        "read_out": f"{reading.words} of the output",
    }
    return nir.NIRGraph(translated, edges, metadata=metadata)


_INPUTS = {
    (1, True): "the values of a step of the sequence, normalised, for each time step",
    (3, True): "a frame of events for each time step",
    (3, False): "the image, at each time step",
}


def refuse_nir(model: Network) -> None:
    """UserError: the network has no graph, or one that NIR cannot express, and why."""
    reasons = list(not_in_nir(graph_of(model)))
    if reasons:
        raise UserError(f"NIR cannot express {'; nor '.join(reasons)}")


def not_in_nir(nodes: Graph) -> Iterator[str]:
    """What of a network NIR has no node for, in words; nothing if it can be exported."""
    neurons = [node.module for node in layers(nodes, "neuron")]
    spiking = [neuron for neuron in neurons if isinstance(neuron, SpikingNeuron)]
    if any(isinstance(neuron, Recurrent) for neuron in neurons):
        yield "that spikes come back a time step later (model.recurrent)"
    elif len(spiking) < len(neurons):
        yield "ReLU (this is an ANN; export its spiking twin)"
    reasons: dict[str, None] = {}
    for neuron in spiking:
        try:
            _startable(membrane_of(neuron))
        except NotLinearError as error:
            reasons[f"the neuron {type(neuron).__name__}, whose step {error}"] = None
    yield from reasons
    if any(layers(nodes, "maxpool")):
        yield "max-pool (the stem of model.stem = 'imagenet', and model.name = 'net7b')"
    if any(layers(nodes, "norm")):
        yield "batch norm of a sum (model.block = 'preact')"
    gains = (node.norm.step_gain for node in layers(nodes, "weights") if node.norm is not None)
    if any(gain is not None for gain in gains):
        yield "a gain for each time step (model.norm = 'tebn')"
    if any(len(node.inputs) != len({*node.inputs}) for node in nodes.values()):
        yield "an edge twice (x + x)"


@dataclass(frozen=True)
class _Part:
    """NIR's nodes for one of ours, by name. enters: those that read what ours reads. gives: whose sum is its output."""

    nodes: dict[str, Any]
    enters: list[str]
    edges: list[tuple[str, str]]
    gives: list[str]


def _chain(nodes: dict[str, Any]) -> _Part:
    first, *_, last = [*nodes, *nodes]
    return _Part(nodes, [first], list(pairwise(nodes)), [last])


def _translate(nir: ModuleType, node: Node, given: tuple[int, ...], dt: float) -> _Part:
    """`given`: shape of its input."""
    module, name = node.module, node.name
    if node.kind == "input":
        return _chain({name: nir.Input(np.array(given))})
    if node.kind == "flatten":
        return _chain({name: nir.Flatten(np.array(given), start_dim=0, end_dim=-1)})
    if node.kind == "mean":
        sides = np.array(given[1:])
        pool = nir.AvgPool2d(kernel_size=sides, stride=sides, padding=np.array([0, 0]))
        flat = nir.Flatten(np.array([given[0], 1, 1]), start_dim=0, end_dim=-1)
        return _chain({f"{name}.pool": pool, name: flat})
    if node.kind == "avgpool":
        assert isinstance(module, nn.AvgPool2d)
        sides = np.full(2, module.kernel_size)
        pool = nir.AvgPool2d(kernel_size=sides, stride=sides, padding=np.array([0, 0]))
        return _chain({name: pool})
    if node.kind == "neuron":
        assert isinstance(module, SpikingNeuron)
        return _neuron(nir, name, _startable(membrane_of(module)), given, dt)
    weight, bias = (_array(value) for value in folded_weights(node))
    if isinstance(module, Delays):
        return _delayed(nir, name, weight, bias, module.delays().cpu().numpy(), dt)
    if isinstance(module, nn.Linear):
        return _chain({name: nir.Affine(weight=weight, bias=bias)})
    assert isinstance(module, nn.Conv2d)
    conv = nir.Conv2d(
        input_shape=given[1:],
        weight=weight,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=bias,
    )
    return _chain({name: conv})


def _delayed(
    nir: ModuleType, name: str, weight: np.ndarray, bias: np.ndarray, delays: np.ndarray, dt: float
) -> _Part:
    """A layer for each delay that there is, the first one with the bias."""
    part = _Part({}, [], [], [])
    for delay in np.unique(delays):
        own = f"{name}.{delay}"
        alike = np.where(delays == delay, weight, np.float32(0))
        layer = nir.Linear(alike) if part.gives else nir.Affine(alike, bias)
        waits = {f"{own}.delay": nir.Delay(np.full(weight.shape[1], delay * dt))} if delay else {}
        chain = _chain(waits | {own: layer})
        part.nodes.update(chain.nodes)
        part.enters.extend(chain.enters)
        part.edges.extend(chain.edges)
        part.gives.extend(chain.gives)
    return part


def _startable(membrane: Membrane) -> Membrane:
    """The membrane, if it begins where NIR's begin and keeps what they keep. NotLinearError."""
    starts = 0.0 if membrane.reset is None else membrane.reset
    if bool((torch.as_tensor(starts) != membrane.start).any()):
        raise NotLinearError(
            f"begins at {membrane.start:g} and not at its reset, or at 0 without one"
        )
    integrates = membrane.keeps == 1
    if bool(integrates.any()) and not bool(integrates.all()):
        raise NotLinearError("leaks in some channels alone")
    if bool((membrane.keeps < 0).any() or (membrane.keeps > 1).any()):
        raise NotLinearError("has a leak beyond 0 to 1")
    if bool(integrates.all()) and bool((membrane.rest != 0).any()):
        raise NotLinearError("adds a constant to a membrane without leak")
    synapse = membrane.synapse if membrane.reset is not None else None
    if synapse is not None and bool(((synapse[0] == 1) | integrates).any()):
        raise NotLinearError("has a hard reset, a synaptic current, and no leak in one of both")
    return membrane


@torch.no_grad()
def _neuron(
    nir: ModuleType, name: str, membrane: Membrane, shape: tuple[int, ...], dt: float
) -> _Part:
    def full(value: torch.Tensor | float) -> np.ndarray:
        tensor = torch.as_tensor(value, dtype=torch.float64)
        return _array(tensor.reshape(-1, *[1] * (len(shape) - 1)).expand(shape))

    def integrated(keeps: torch.Tensor, gain: torch.Tensor, rest: torch.Tensor) -> dict[str, Any]:
        """Of an Euler step: r, and with a leak tau and v_leak."""
        if bool((keeps == 1).all()):
            return {"r": full(gain / dt)}
        leak = 1 - keeps
        return {"tau": full(dt / leak), "r": full(gain / leak), "v_leak": full(rest / leak)}

    m, nothing = membrane, torch.zeros((), dtype=torch.float64)
    own = integrated(m.keeps, m.gain, m.rest)
    if m.reset is not None:
        fires = {"v_threshold": full(m.thresholds[0]), "v_reset": full(m.reset)}
        if m.synapse is None:
            return _chain({name: (nir.LIF if "tau" in own else nir.IF)(**own, **fires)})
        keeps, gain = m.synapse
        synapse = {"tau_syn": full(dt / (1 - keeps)), "w_in": full(gain / (1 - keeps))}
        tau = own.pop("tau")
        return _chain({name: nir.CubaLIF(tau_mem=tau, **synapse, **own, **fires)})
    front: dict[str, Any] = {}
    if m.synapse is not None:
        front[f"{name}.synapse"] = _leaky(nir, integrated(*m.synapse, nothing))
    front[f"{name}.membrane"] = _leaky(nir, own)
    count = len(m.thresholds)
    names = [name] if count == 1 else [f"{name}.{k}" for k in range(1, count + 1)]
    fires = {n: nir.Threshold(full(at)) for n, at in zip(names, m.thresholds, strict=True)}
    edges = [*pairwise(front), *((f"{name}.membrane", n) for n in names)]
    back: dict[str, Any] = {}
    if bool((m.drop != 0).any()):
        back[f"{name}.reset"] = nir.Scale(full(-m.keeps * m.drop / m.gain))
        edges += [*((n, f"{name}.reset") for n in names), (f"{name}.reset", f"{name}.membrane")]
    return _Part(front | fires | back, [next(iter(front))], edges, names)


def _leaky(nir: ModuleType, own: dict[str, Any]) -> Any:
    return nir.LI(**own) if "tau" in own else nir.I(**own)


def _array(value: torch.Tensor) -> np.ndarray:
    return value.cpu().numpy().astype(np.float32)
