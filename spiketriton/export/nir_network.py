"""A network out of a graph of the Neuromorphic Intermediate Representation (NIR), whose neurons are ours.

A neuron's constants become those of one Euler step of length dt, see nir_graph.py. Where the membrane leaks to another
place than the reset, the difference is a constant current. `model.name = parts.FROM_NIR` trains such a network.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiketriton.config.parts import FROM_NIR
from spiketriton.export.nir_file import Comparison, compare
from spiketriton.export.nir_replay import in_order, pair
from spiketriton.models.foreign import ForeignNetwork
from spiketriton.models.layers import EachStep
from spiketriton.system.errors import UserError, need, one_line
from spiketriton_kernels.nn import Leaky

RESETS = ("hard", "soft")


def network(
    path: str, dt: float | None = None, reset: str | None = None, sha256: str | None = None
) -> "NirNetwork":
    """The network in a file of NIR, [T, B, ...] -> [T, B, ...].

    dt: length of a time step in the file's unit of time. reset: "hard" (to v_reset, NIR's own) or "soft" (minus
    v_threshold, as sinabs and Rockpool train). None: what its metadata say. sha256: of the file, if it has to be
    that. UserError: no such file, or another one; dt is nowhere said; a node that the kernels lack, by its name.
    """
    nir = need("nir", "nir", "a file of NIR")
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if sha256 not in (None, digest):
            raise UserError(
                f"{path} is not the file that this network was imported from: its SHA-256 is {digest}, and the "
                f"recipe says {sha256}"
            )
        graph = nir.read(Path(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    except (ValueError, KeyError, AssertionError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is not a graph of NIR: {one_line(error)}") from None
    try:
        return NirNetwork(graph, dt, reset)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}") from None


class NirNetwork(nn.Module):
    """A `nir.NIRGraph` in torch: each node a module over time, on the sum of what arrives at it.

    graph: with dt, the tie at the threshold and the reset in its metadata. names: the node of each neuron's module.
    ValueError: see `network`.
    """

    def __init__(self, graph: Any, dt: float | None = None, reset: str | None = None) -> None:
        super().__init__()
        given = graph.metadata if dt is None else {"dt": dt}
        if "dt" not in given:
            raise ValueError(
                "it does not say how long a time step is; accepted: dt, in the file's unit of time, as 1 for "
                "sinabs and 0.0001 for snnTorch"
            )
        dt, reset = float(given["dt"]), reset or graph.metadata.get("reset", "hard")
        if not 0 < dt < math.inf:
            raise ValueError(f"dt {dt}: accepted: a number above 0")
        if reset not in RESETS:
            raise ValueError(f"reset {reset!r}: accepted: {', '.join(RESETS)}")
        graph.metadata = {**graph.metadata, "dt": dt, "spike_at": ">=", "reset": reset}
        self.graph = graph
        self.sources = in_order(graph)
        modules = {name: _module(name, graph.nodes[name], dt, reset) for name in self.sources}
        self.names = {
            f"nodes.{_safe(name)}.neuron": name
            for name, module in modules.items()
            if isinstance(module, _Neuron)
        }
        self.nodes = nn.ModuleDict({_safe(name): module for name, module in modules.items()})
        outputs = [name for name in self.sources if type(graph.nodes[name]).__name__ == "Output"]
        if len(outputs) != 1 or len(self.nodes) != len(modules):
            raise ValueError(f"{len(outputs)} outputs; accepted: one, and names that differ")
        self.output = outputs[0]

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of each step, time first, to the output of each step."""
        values: dict[str, Tensor] = {}
        for name, sources in self.sources.items():
            given = [values[source] for source in sources] or [x]
            values[name] = self.nodes[_safe(name)](sum(given[1:], given[0]))
        return values[self.output]


def _safe(name: str) -> str:
    return f"node_{name}".replace(".", "_")


class _Neuron(nn.Module):
    """scale * x + shift into a neuron of ours; scale and shift [C, 1, ...] or numbers."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, neuron: Leaky) -> None:
        super().__init__()
        self.neuron = neuron
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.plain = bool((scale == 1).all() and (shift == 0).all())

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x if self.plain else x * self.scale + self.shift)


class _Scale(nn.Module):
    def __init__(self, scale: np.ndarray) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.from_numpy(np.asarray(scale, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


KNOWN = "Affine, Linear, Conv2d, AvgPool2d, SumPool2d, Flatten, Scale, IF, LIF"


def _module(name: str, node: Any, dt: float, reset: str) -> nn.Module:
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return nn.Identity()
    if kind in ("Affine", "Linear"):
        weight, bias = node.weight, node.bias if kind == "Affine" else None
        return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)
    if kind == "Conv2d":
        geometry = {n: pair(getattr(node, n)) for n in ("stride", "padding", "dilation")}
        out, inside, *sides = node.weight.shape
        groups = int(node.groups)
        conv = nn.Conv2d(inside * groups, out, tuple(sides), groups=groups, **geometry)
        return EachStep(_filled(conv, node.weight, node.bias))
    if kind in ("AvgPool2d", "SumPool2d"):
        if np.any(node.padding):
            raise ValueError(f"{name} is a {kind} with padding; accepted: none")
        divisor = 1 if kind == "SumPool2d" else None
        sides, stride = pair(node.kernel_size), pair(node.stride)
        return EachStep(nn.AvgPool2d(sides, stride, divisor_override=divisor))
    if kind == "Flatten":
        last = np.size(node.input_type["input"]) - 1
        if (int(node.start_dim), int(node.end_dim)) not in ((0, -1), (0, last)):
            raise ValueError(f"{name} flattens a part of the dimensions; accepted: all")
        return nn.Flatten(2)
    if kind == "Scale":
        return _Scale(node.scale)
    if kind in ("IF", "LIF"):
        return _neuron(name, node, dt, reset)
    raise ValueError(f"{name} is a {kind}; accepted: {KNOWN}")


def _filled(layer: Any, weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.asarray(weight)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.asarray(bias)))
    return layer


def _neuron(name: str, node: Any, dt: float, reset: str) -> _Neuron:
    """NIR's constants in float64, then ours: numbers where they are equal, else one for each channel."""
    shape = np.shape(node.v_threshold)
    fields = {n: np.asarray(v, np.float64) for n, v in vars(node).items() if n in _CONSTANTS}
    for field, value in fields.items():
        channels = np.broadcast_to(value, shape).reshape(shape[0] if shape else 1, -1)
        if np.any(channels != channels[:, :1]):
            raise ValueError(f"{name}: {field} differs within a channel; accepted: one a channel")
        fields[field] = channels[:, 0]
    leaks = "tau" in fields
    rate = dt / fields["tau"] if leaks else np.zeros(1)
    if np.any((rate < 0) | (rate > 1)):
        raise ValueError(f"{name}: dt / tau = {rate.max():g}; accepted: 0 to 1, a smaller dt")
    v_reset = fields.get("v_reset", np.zeros(1))
    if reset == "hard" and np.any(v_reset != v_reset[0]):
        raise ValueError(f"{name}: v_reset differs between channels; accepted: one number")
    rest = v_reset[0] if reset == "hard" else 0.0
    scale = (rate if leaks else dt) * fields["r"]
    shift = rate * (fields["v_leak"] - rest) if leaks else np.zeros(1)
    gain = float(scale[0]) if np.all(scale == scale[0]) else 1.0
    return _Neuron(
        _over_places(scale / gain if gain else scale, len(shape)),
        _over_places(shift / gain if gain else shift, len(shape)),
        Leaky(
            _constant(1 - rate),
            _constant(fields["v_threshold"]),
            float(rest) if reset == "hard" else None,
            gain=gain or 1.0,
        ),
    )


_CONSTANTS = ("tau", "r", "v_leak", "v_threshold", "v_reset")


def _constant(values: np.ndarray) -> float | Tensor:
    return float(values[0]) if np.all(values == values[0]) else torch.tensor(values).float()


def _over_places(values: np.ndarray, dimensions: int) -> Tensor:
    """[C] -> [C, 1, ...], to be multiplied with currents [T, B, C, ...]; [1] where all are equal."""
    values = values[:1] if np.all(values == values[0]) else values
    return torch.tensor(values).float().view(-1, *[1] * (dimensions - 1))


def keys(path: Path, dt: float | None, reset: str | None) -> dict[str, Any]:
    """The keys of a recipe that trains the network in a file."""
    said = {"path": str(path.absolute()), "dt": dt, "reset": reset}
    arguments = {f"model.arguments.{n}": v for n, v in said.items() if v is not None}
    return {"model.name": FROM_NIR, "model.input": "time_first", **arguments}


def verify(model: ForeignNetwork, path: object, images: Tensor) -> Comparison:
    """The spikes of a network against its file's, replayed by NIR's equations: see `compare`.

    UserError: the replay does not know a node.
    """
    net = model.net
    assert isinstance(net, NirNetwork)
    try:
        nodes = {f"net.{name}": node for name, node in net.names.items()}
        return compare(model, net.graph, images, nodes)
    except ValueError as error:
        raise UserError(f"{path} cannot be replayed: {one_line(error)}") from None
