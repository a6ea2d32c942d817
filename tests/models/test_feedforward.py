"""Networks without skip connections."""

import pytest
import torch
from torch import nn

from spiketriton.models import count_parameters
from spiketriton.system.errors import UserError
from tests.models.support import CLASSES, B, T, build, frames, images


@pytest.mark.parametrize("name", ["plain", "mlp"])
@pytest.mark.parametrize("depth", [1, 2, 3, 20])
def test_depth_is_the_number_of_spiking_layers(name, depth):
    model = build(name, depth=depth, width=4, channels=1)
    assert model(images(channels=1)).shape == (T, B, CLASSES)
    assert len(model.spiking_layers()) == depth
    if name == "plain":
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert {conv.kernel_size for conv in convs} == {(3, 3)}
        halved = [i for i, conv in enumerate(convs) if conv.stride == (2, 2)]
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


@pytest.mark.parametrize("kind", ["psn", "masked_psn"])
def test_parallel_neurons_of_an_identity_start_leak(kind):
    """By a half at each step, as a sliding PSN begins, and as no others do."""
    usual, ours = (
        build("mlp", depth=2, start=start, neuron={"kind": kind})
        for start in ("kaiming", "identity")
    )
    leak = [[0.5 ** (t - j) if j <= t else 0.0 for j in range(T)] for t in range(T)]
    for layer, other in zip(ours.layers, usual.layers, strict=True):
        assert torch.equal(layer.neuron.weight, torch.tensor(leak))
        assert not torch.equal(other.neuron.weight, layer.neuron.weight)


def test_a_vgg_starts_as_its_papers_unless_its_square_layers_are_asked_to_pass_their_input_on():
    """vgg8, in units of 4 channels: 1, 2, 2, 8, 8, 8, 8."""
    usual, same, ours = (
        build("vgg8", width=4, start=start) for start in ("auto", "kaiming", "identity")
    )
    assert all(map(torch.equal, usual.state_dict().values(), same.state_dict().values()))
    for before, layer in zip(usual.layers, ours.layers, strict=True):
        wanted, weight = before.weights.weight.clone(), layer.weights.weight
        square = weight.shape[0] == weight.shape[1]
        if square:
            wanted *= 0.1
            wanted[range(len(weight)), range(len(weight)), 1, 1] += 1.0
        assert square == (tuple(weight.shape[:2]) in {(8, 8), (32, 32)})
        torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-7)


def test_vggsnn_is_the_papers():
    """Deng et al. 2022: 64, 128, pool, 256, 256, pool, 512, 512, pool, 512, 512, pool, linear; no identities."""
    model = build("vggsnn", channels=2, image_size=48)
    widths = [one.weights.out_channels for one in model.layers]
    assert widths == [64, 128, 256, 256, 512, 512, 512, 512]
    assert (model.fc.in_features, model.fc.out_features) == (512 * 3 * 3, CLASSES)
    convs = sum(9 * a * b for a, b in zip([2, *widths], widths, strict=False))
    assert count_parameters(model) == convs + 2 * sum(widths) + 4608 * CLASSES + CLASSES
    deviation = (2 / (9 * 512)) ** 0.5
    assert model.layers[5].weights.weight.std().item() == pytest.approx(deviation, rel=0.05)
    seen = []
    for one in model.layers:
        one.register_forward_hook(lambda _m, _x, out: seen.append(out.shape[-1]))
    model(frames(1, channels=2, size=48))
    assert seen == [48, 24, 24, 12, 12, 6, 6, 3]
    assert {type(one.pool) for one in model.layers} == {nn.AvgPool2d, type(None)}


def test_pools_without_a_side_to_halve_are_left_out_but_of_vggsnn():
    assert build("vgg11", width=2, image_size=16).fc.in_features == 2 * 8
    assert build("csnn", width=4, image_size=7).fc.in_features == 4 * 1 // 4
    with pytest.raises(UserError, match=r"data\.image_size = 15 is too small for vggsnn"):
        build("vggsnn", image_size=15)
