"""Operations of a network for one image, counted exactly, and the energy that goes with them.

An accumulate (AC) is one spike at one synapse. A spike at a place reaches as many synapses as
there are weights that read the place (fewer at the borders, or under a stride), those by which it
comes back to its own layer included, so

    synaptic operations = sum over time steps, neurons and places of spike * fan-out,

not a mean rate times a number. A shortcut that carries spikes to a neuron is a synapse too. A
multiply-accumulate (MAC) is a synapse with an analog input: those of the first layer, which runs
once for a constant image and on every frame of events, all zeros counted, and of MS-ResNet's
shortcuts, which read currents at each step. Each
neuron's membrane costs a MAC a step if it leaks, else an AC.
Not counted, in the spiking net as in the ANN: biases, batch norm (folded), pools, sums of currents.

Energy by convention, 45 nm, 32-bit floats (Horowitz, ISSCC 2014; Han et al. 2015): 4.6 pJ a MAC,
0.9 pJ an AC. This leaves out data movement. The second estimate adds it for hardware
that reuses nothing: 5 pJ for each 32-bit word to or from an 8 KB SRAM (Horowitz 2014); an AC reads
a weight, and reads and writes a membrane; a MAC reads a weight and a value; a neuron's step reads
and writes its membrane. By a finer model that counts data movement, a spiking net at T = 5 beats a
quantised ANN of its size only below a mean rate of 5.7 to 6.4 % (Yan et al. 2024, arXiv
2409.08290).
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from spiketriton.models.graph import Graph, Node, arrives, carries, layers, shapes_of
from spiketriton_kernels.nn import Delays, Recurrent

Shapes: TypeAlias = dict[str, tuple[int, ...]]
MAC_PJ, AC_PJ, WORD_PJ = 4.6, 0.9, 5.0
BREAK_EVEN_RATES = (0.057, 0.064)  # at T = 5, Yan et al. 2024


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one image costs, apart from its spikes."""

    layer_macs: dict[str, int]  # of each layer with weights, as in the ANN
    macs_once: int  # of layers that read the image
    macs_per_step: int  # of layers that read currents
    neurons: int
    fan_out: dict[str, Tensor]  # int64 [C, H, W] or [F] for each node that gives spikes

    @property
    def ann_macs(self) -> int:
        """MACs of the ANN twin: all layers, dense, once."""
        return sum(self.layer_macs.values())


def workload(nodes: Graph, image: tuple[int, ...], *, constant: bool = True) -> Workload:
    """The workload of a network for images [C, H, W], constant or another one at each step."""
    shapes = shapes_of(nodes, image)
    weights = list(layers(nodes, "weights"))
    macs = {}
    for node in weights:
        assert isinstance(node.module, nn.Conv2d | nn.Linear | Delays)
        macs[node.name] = _size(shapes[node.name]) * node.module.weight[0].numel()
    returned = {
        node.name: node.module.weight.numel()
        for node in layers(nodes, "neuron")
        if isinstance(node.module, Recurrent)
    }
    source = {node.name: arrives(nodes, node) for node in weights}
    each_step = {"currents"} if constant else {"currents", "image"}
    return Workload(
        layer_macs=macs | returned,
        macs_once=sum(macs[name] for name in macs if source[name] == "image" and constant),
        macs_per_step=sum(macs[name] for name in macs if source[name] in each_step),
        neurons=sum(_size(shapes[node.name]) for node in layers(nodes, "neuron")),
        fan_out={node.name: _fan_out(nodes, node, shapes) for node in spike_sources(nodes)},
    )


def spike_sources(nodes: Graph) -> list[Node]:
    """The nodes whose spikes are counted: neurons, and max-pools of spikes."""
    places = [node for node in nodes.values() if node.kind in ("neuron", "maxpool")]
    return [node for node in places if carries(nodes, node) == "spikes"]


def energy_pj(
    work: Workload, synaptic_operations: float, steps: float, *, membrane_macs: int
) -> tuple[float, float]:
    """Energy of one image after `steps` time steps, by operations alone and with data movement.

    steps: of sequences of different lengths their mean. membrane_macs: of a neuron in a step; 0: it only adds.
    """
    updates = work.neurons * steps
    macs = work.macs_once + work.macs_per_step * steps
    added = synaptic_operations + (not membrane_macs) * updates
    operations = MAC_PJ * (macs + membrane_macs * updates) + AC_PJ * added
    words = 2 * macs + 3 * synaptic_operations + 2 * max(1, membrane_macs) * updates
    return operations, operations + WORD_PJ * words


def ann_energy_pj(macs: float) -> tuple[float, float]:
    """The same for an ANN: each MAC, and the weight and the value that it reads."""
    return MAC_PJ * macs, (MAC_PJ + 2 * WORD_PJ) * macs


def _fan_out(nodes: Graph, node: Node, shapes: Shapes) -> Tensor:
    return sum(fan_out_by_reader(nodes, node, shapes).values(), torch.zeros((), dtype=torch.int64))


def fan_out_by_reader(nodes: Graph, node: Node, shapes: Shapes) -> dict[str, Tensor]:
    """The same by what reads the spikes, int64 of the node's shape.

    "weights" read the node alone, or bring its spikes back to it, "sums" are weights that read it with others added,
    "shortcuts" carry it to a neuron without weights, "pools" are synapses behind a mean or a norm.
    """
    shape = shapes[node.name]
    kinds = ("weights", "sums", "shortcuts", "pools")
    found = {kind: torch.zeros(shape, dtype=torch.int64) for kind in kinds}
    if isinstance(node.module, Recurrent):
        found["weights"] += node.module.features
    for reader in nodes.values():
        if node.name not in reader.inputs or reader.kind == "maxpool":
            continue  # a max-pool compares, and is a source of its own
        if reader.kind == "neuron":
            found["shortcuts"] += 1
        elif reader.kind == "weights":
            assert isinstance(reader.module, nn.Conv2d | nn.Linear | Delays)
            kind = "weights" if len(reader.inputs) == 1 else "sums"
            found[kind] += _synapses(reader.module, shape)
        elif reader.kind == "flatten":
            for kind, behind in fan_out_by_reader(nodes, reader, shapes).items():
                found[kind] += behind.view(shape)
        else:
            found["pools"] += _through(reader, _fan_out(nodes, reader, shapes), shape)
    return found


def _through(pool: Node, behind: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Synapses behind each place of an input [C, H, W] that a norm or mean hands on."""
    if pool.kind == "norm":
        return behind
    if pool.kind == "mean":
        return behind.view(-1, 1, 1)
    assert isinstance(pool.module, nn.AvgPool2d)
    side = int(pool.module.kernel_size)  # type: ignore[arg-type]
    whole = behind.repeat_interleave(side, 1).repeat_interleave(side, 2)
    # what a window no longer covers at the right and below reaches nothing
    return F.pad(whole, (0, shape[2] - whole.shape[2], 0, shape[1] - whole.shape[1]))


def _synapses(layer: nn.Conv2d | nn.Linear | Delays, shape: tuple[int, ...]) -> Tensor:
    """Weights that read each place of an input [C, H, W] or [F]: int64, broadcasts with it.

    The transpose of a convolution with ones, of ones, counts them.
    """
    if isinstance(layer, nn.Linear | Delays):
        return torch.tensor(layer.out_features)
    assert not isinstance(layer.padding, str)
    geometry = (layer.stride, layer.padding, layer.dilation)
    places = torch.zeros(1, 1, *shape[1:], dtype=torch.float64)
    kernel = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64)
    outputs = torch.ones_like(F.conv2d(places, kernel, None, *geometry))
    count = conv2d_input(places.shape, kernel, outputs, *geometry)
    return count[0].round().long() * layer.out_channels


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
