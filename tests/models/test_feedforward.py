"""Networks without skip connections."""

import pytest
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
