"""A trained network as a graph of the Neuromorphic Intermediate Representation (NIR).

NIR describes continuous-time neurons; one Euler step of length dt of its equations is our step:

    LIF  tau dv/dt = v_leak - v + r I      tau = dt / (1 - decay)   r = gain / (1 - decay)
    IF       dv/dt = r I                                            r = gain / dt

with v_leak = v_reset, as our membrane leaks toward v_reset. Batch norm is folded into the weights,
the mean over space is an average pool, and residual connections are edges: what arrives at one node
is summed. NIR has no fields for the first membrane (v_reset), for a tie at the threshold (ours
fires), dt and the number of steps; these are in the graph's metadata.

What NIR cannot express is refused: ReLU, soft reset and no reset, max-pool, TEBN's gains, delays of single synapses.
So are spikes that come back to their own layer, of which NIR does not say how much later.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

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
    nodes = graph_of(model)
    reasons = list(not_in_nir(nodes))
    if reasons:
        raise UserError(f"NIR cannot express {'; nor '.join(reasons)}")
    counted_graph(model, noise(model, image, frames))  # or the file would be another network
    shapes = shapes_of(nodes, image)
    translated: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    for node in nodes.values():
        sources = node.inputs
        given = shapes[sources[0]] if sources else image
        for name, translation in _translate(nir, node, given, dt):
            translated[name] = translation
            edges += [(source, name) for source in sources]
            sources = (name,)
    translated["output"] = nir.Output(np.array(shapes["fc"]))
    edges.append(("fc", "output"))
    first = next(neuron for _, neuron in model.spiking_layers())
    metadata = {
        "made_by": f"spiketriton {__version__}",
        "dt": dt,
        "time_steps": model.time_steps,
        "spike_at": ">=",
        "reset": first.reset_mode,
        "v_init": "v_reset",
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


def not_in_nir(nodes: Graph) -> Iterator[str]:
    """What of a network NIR has no node for, in words; nothing if it can be exported."""
    neurons = [node.module for node in layers(nodes, "neuron")]
    spiking = [neuron for neuron in neurons if isinstance(neuron, SpikingNeuron)]
    if any(isinstance(neuron, Recurrent) for neuron in neurons):
        yield "that spikes come back a time step later (model.recurrent)"
    elif len(spiking) < len(neurons):
        yield "ReLU (this is an ANN; export its spiking twin)"
    kinds = {type(neuron).__name__ for neuron in spiking if not neuron.nir}
    if kinds:
        yield f"neurons of the kind {', '.join(sorted(kinds))} (neuron.kind)"
    resets = {neuron.reset_mode for neuron in spiking}
    if "soft" in resets:
        yield 'a soft reset, v - threshold (neuron.reset = "soft", as in converted nets)'
    if "none" in resets:
        yield 'a neuron without reset (neuron.reset = "none")'
    if any(layers(nodes, "maxpool")):
        yield "max-pool (the stem of model.stem = 'imagenet', and model.name = 'net7b')"
    if any(layers(nodes, "norm")):
        yield "batch norm of a sum (model.block = 'preact')"
    if any(isinstance(node.module, Delays) for node in layers(nodes, "weights")):
        yield "a delay for each synapse (model.delays)"
    gains = (node.norm.step_gain for node in layers(nodes, "weights") if node.norm is not None)
    if any(gain is not None for gain in gains):
        yield "a gain for each time step (model.norm = 'tebn')"
    if any(len(node.inputs) != len({*node.inputs}) for node in nodes.values()):
        yield "an edge twice (x + x)"


def _translate(
    nir: ModuleType, node: Node, given: tuple[int, ...], dt: float
) -> Iterator[tuple[str, Any]]:
    """NIR's nodes for one of ours, in a chain, the last with our name; `given`: shape of its input."""
    module = node.module
    if node.kind == "input":
        yield node.name, nir.Input(np.array(given))
    elif node.kind == "flatten":
        yield node.name, nir.Flatten(np.array(given), start_dim=0, end_dim=-1)
    elif node.kind == "mean":
        sides = np.array(given[1:])
        pool = nir.AvgPool2d(kernel_size=sides, stride=sides, padding=np.array([0, 0]))
        yield f"{node.name}.pool", pool
        yield node.name, nir.Flatten(np.array([given[0], 1, 1]), start_dim=0, end_dim=-1)
    elif node.kind == "avgpool":
        assert isinstance(module, nn.AvgPool2d)
        sides = np.full(2, module.kernel_size)
        yield node.name, nir.AvgPool2d(kernel_size=sides, stride=sides, padding=np.array([0, 0]))
    elif node.kind == "neuron":
        assert isinstance(module, SpikingNeuron)
        yield node.name, _neuron(nir, module, given, dt)
    else:
        weight, bias = (_array(value) for value in folded_weights(node))
        if isinstance(module, nn.Linear):
            yield node.name, nir.Affine(weight=weight, bias=bias)
        else:
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
            yield node.name, conv


@torch.no_grad()
def _neuron(nir: ModuleType, neuron: SpikingNeuron, shape: tuple[int, ...], dt: float) -> Any:
    names = ("decay", "gain", "v_threshold", "v_reset", "rho")
    constants = [getattr(neuron, name, 0.0) for name in names]
    decay, gain, threshold, v_reset, rho = (
        torch.as_tensor(0.0 if value is None else value, dtype=torch.float64, device="cpu").reshape(
            -1, *[1] * (len(shape) - 1)
        )
        for value in constants
    )

    def full(value: torch.Tensor) -> np.ndarray:
        return _array(value.expand(shape))

    fires = {"v_threshold": full(threshold), "v_reset": full(v_reset)}
    if bool((decay == 1).all()):
        return nir.IF(r=full(gain / dt), **fires)
    rest = 1 - decay
    fires |= {"r": full(gain / rest), "v_leak": fires["v_reset"]}
    if neuron.nir == "CubaLIF":
        keeps = 1 - rho
        taus = {"tau_mem": full(dt / rest), "tau_syn": full(dt / keeps)}
        return nir.CubaLIF(**taus, w_in=full(1 / keeps), **fires)
    return nir.LIF(tau=full(dt / rest), **fires)


def _array(value: torch.Tensor) -> np.ndarray:
    return value.cpu().numpy().astype(np.float32)
