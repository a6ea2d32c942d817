"""The graph of a network computes what the network computes; its shapes and folded weights are true."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiketriton.errors import UserError
from spiketriton.models.graph import (
    Graph,
    arrives,
    carries,
    channels_of,
    folded_weights,
    graph_of,
    layers,
    shapes_of,
)
from tests.covering import each
from tests.models.support import EVERY_BLOCK, SHALLOW_MLP, T, build, images, lively

NETS = [
    *EVERY_BLOCK,
    {"block": "sew", "norm": "none"},
    {"block": "ms", "norm": "tdbn"},
    {"name": "resnet18", "stem": "imagenet"},
    {"name": "resnet50", "block": "sew"},
    {"name": "resnet18", "stem": "strided", "block": "ms"},
    {"block": "preact"},
    {"name": "resnet50", "block": "preact", "stem": "imagenet", "norm": "tdbn"},
    {"block": "preact", "norm": "none"},
    {"name": "plain", "depth": 4},
    {"name": "vggsnn"},
    {"name": "resnet19"},
    *({"name": "net7b", "block": block} for block in ("plain", "sew", "ms")),
    SHALLOW_MLP,
]


def run(nodes: Graph, image: Tensor, steps: int) -> dict[str, Tensor]:
    """Every node's output [T, B, ...] in float64, by the graph alone: inputs are summed."""
    values = {"input": image.double().expand(steps, *image.shape)}
    for node in nodes.values():
        if node.kind == "input":
            continue
        x = torch.stack([values[name] for name in node.inputs]).sum(0)
        flat = x.flatten(0, 1)
        if node.kind == "weights":
            weight, bias = folded_weights(node)
            if isinstance(node.module, nn.Conv2d):
                out = F.conv2d(flat, weight, bias, node.module.stride, node.module.padding)
            else:
                out = F.linear(flat, weight, bias)
        elif node.kind == "norm":
            norm = node.module
            out = F.batch_norm(
                flat,
                norm.running_mean,
                norm.running_var,
                norm.weight * norm.scale,
                norm.bias,
                eps=norm.eps,
            )
        elif node.kind == "neuron":
            out = node.module(x).flatten(0, 1)
        elif node.kind in ("maxpool", "avgpool"):
            out = node.module(flat)
        else:
            out = flat.mean((2, 3)) if node.kind == "mean" else flat.flatten(1)
        values[node.name] = out.unflatten(0, x.shape[:2])
    return values


@torch.no_grad()
@pytest.mark.parametrize(("options", "kind"), each(NETS, ["lif", "lif", "relu"]))
def test_the_graph_computes_the_network_and_knows_its_shapes(options, kind):
    options = {"width": 4, **options}
    model = lively(build(**options, neuron={"kind": kind}, channels=2, image_size=16)).double()
    x = images(channels=2).double()
    model(x)  # statistics
    model.eval()
    nodes = graph_of(model)
    values = run(nodes, x, T if kind == "lif" else 1)
    torch.testing.assert_close(values["fc"].float(), model(x), rtol=1e-5, atol=1e-6)
    shapes = shapes_of(nodes, (2, 16, 16))
    assert shapes == {name: tuple(value.shape[2:]) for name, value in values.items()}
    for node in nodes.values():
        if node.kind != "input" and node.kind != "flatten":
            assert channels_of(nodes, node) == values[node.name].shape[2]
    if kind == "lif":
        assert [node.name for node in layers(nodes, "neuron")] == [
            n for n, _ in model.spiking_layers()
        ]


def test_what_nodes_carry():
    nodes = graph_of(build("resnet18", stem="imagenet", block="plain", width=2, image_size=32))
    carried = {name: carries(nodes, node) for name, node in nodes.items()}
    assert carried["input"] == "image"
    assert carried["conv1"] == "currents"
    assert carried["neuron1"] == carried["maxpool"] == carried["mean"] == "spikes"
    assert arrives(nodes, nodes["conv1"]) == "image"
    assert arrives(nodes, nodes["layer1.0.conv1"]) == "spikes"
    assert nodes["layer2.0.neuron2"].inputs == ("layer2.0.conv2", "layer2.0.downsample.0")
    pooled = graph_of(build("resnet18", stem="imagenet", block="ms", width=2, image_size=32))
    assert carries(pooled, pooled["maxpool"]) == "currents"
    assert arrives(pooled, pooled["layer1.0.neuron1"]) == "currents"
    flat = graph_of(build(**SHALLOW_MLP))
    assert carries(flat, flat["flatten"]) == "image"


def test_rectangular_kernels_and_images():
    model = build("plain", depth=1, channels=1)
    model.layers[0].weights = nn.Conv2d(1, 6, (3, 5), stride=(1, 2), padding=(0, 1))
    nodes = graph_of(model)
    expected = model.layers[0].weights(torch.zeros(1, 1, 9, 12)).shape[1:]
    assert shapes_of(nodes, (1, 9, 12))["layers.0.weights"] == expected


def test_tebn_cannot_be_folded_and_other_models_have_no_graph():
    nodes = graph_of(build(norm="tebn"))
    with pytest.raises(ValueError, match="conv1 is followed by TEBN"):
        folded_weights(nodes["conv1"])
    with pytest.raises(UserError, match="Linear has no graph"):
        graph_of(nn.Linear(1, 1))
