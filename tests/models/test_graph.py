"""What the nodes of a graph carry, shapes, and folded weights; test_networks.py has every network's."""

import copy

import pytest
import torch
from torch import nn

from spiketriton.models.graph import arrives, carries, folded_weights, graph_of, shapes_of
from spiketriton.system.errors import UserError
from tests.models.support import SHALLOW_MLP, build, images, lively


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
    expected = model.layers[0].weights(torch.zeros(1, 1, 9, 12)).shape[1:]
    assert shapes_of(graph_of(model), (1, 9, 12))["layers.0.weights"] == expected


@torch.no_grad()
@pytest.mark.parametrize("options", [{"norm": "tdbn"}, {"norm": "none"}, SHALLOW_MLP], ids=str)
def test_weights_and_their_norm_are_folded_into_one(options):
    model, x = lively(build(**options)), images().double()
    model(images())  # statistics
    nodes = graph_of(model.double().eval())
    node = nodes["layers.0.weights" if options is SHALLOW_MLP else "conv1"]
    weight, bias = folded_weights(node)
    alone, flat = copy.deepcopy(node.module), weight.ndim == 2
    y = node.module(x.flatten(1) if flat else x)
    alone.weight.data, alone.bias = weight, nn.Parameter(bias)
    found = alone(x.flatten(1) if flat else x)
    torch.testing.assert_close(found, y if node.norm is None else node.norm(y[None])[0])


def test_tebn_cannot_be_folded_and_other_models_have_no_graph():
    nodes = graph_of(build(norm="tebn"))
    with pytest.raises(ValueError, match="conv1 is followed by TEBN"):
        folded_weights(nodes["conv1"])
    with pytest.raises(UserError, match="Linear has no graph"):
        graph_of(nn.Linear(1, 1))
