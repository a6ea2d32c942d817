"""Networks without skip connections."""

import pytest
import torch
from torch import nn

from tests.models.support import CLASSES, B, T, build, images

PLAIN_NETS = ("plain", "mlp")


@pytest.mark.parametrize("name", PLAIN_NETS)
@pytest.mark.parametrize("depth", [1, 2, 3, 20])
def test_depth_is_the_number_of_spiking_layers(name, depth):
    model = build(name, depth=depth, width=4, channels=1)
    assert model(images(channels=1)).shape == (T, B, CLASSES)
    assert len(model.spiking_layers()) == depth
    if name == "plain":
        kernels = {m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)}
        assert kernels == {(3, 3)}
        strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d)]
        halved = [i for i, stride in enumerate(strides) if stride == 2]
        assert halved == {1: [], 2: [1], 3: [1, 2], 20: [6, 13]}[depth]


@pytest.mark.parametrize("name", ["plain", "mlp"])
def test_an_identity_start_adds_the_identity_to_a_tenth_of_the_usual_weights(name):
    usual, ours = build(name, depth=3, start="kaiming"), build(name, depth=3, start="identity")
    first, *rest = [layer.weights.weight for layer in ours.layers]
    first_usual, *rest_usual = [layer.weights.weight for layer in usual.layers]
    assert torch.equal(first, first_usual)
    for weight, before in zip(rest, rest_usual, strict=True):
        identity = torch.zeros_like(weight)
        for i in range(len(weight)):
            identity[(i, i, 1, 1) if weight.ndim == 4 else (i, i)] = 1.0
        torch.testing.assert_close(weight, identity + 0.1 * before, rtol=0, atol=1e-7)
