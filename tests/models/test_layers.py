"""Parts of networks: when norm and neuron are one operation, memory formats, scales of norms."""

import pytest
import torch
from torch import nn

from spiketriton.models import memory
from spiketriton.models.layers import StridedPointwise, norm_neuron, over_time
from spiketriton.neurons import Norm, SpikingNeuron
from spiketriton_kernels import nn as kernels
from tests.covering import pairwise
from tests.models.support import SHALLOW_MLP, B, T, build, images, norms_of


@pytest.mark.parametrize(
    ("options", "before_a_sum"),
    [
        ({"block": "plain"}, ["layer3.0.downsample.1", "layer3.0.bn2"]),
        ({"block": "ms"}, ["layer3.0.downsample.1", "layer3.0.bn2"]),
        ({"block": "sew"}, []),
        (SHALLOW_MLP, []),
    ],
)
def test_tdbn_gives_the_sum_of_currents_the_width_of_the_threshold(options, before_a_sum):
    """Zheng et al. 2021: v_threshold, over sqrt(2) for each of two terms; the ANN twin has none."""
    model = build(**options, norm="tdbn", neuron={"v_threshold": 2.0})
    scales = {name: norm.scale for name, norm in norms_of(model).items()}
    reduced = [name for name, scale in scales.items() if scale == pytest.approx(2 / 2**0.5)]
    assert [name for name in reduced if name.startswith("layer3")] == before_a_sum
    assert all(scale == 2.0 for name, scale in scales.items() if name not in reduced)
    twin = build(**options, norm="tdbn", neuron={"kind": "relu", "v_threshold": 2.0})
    assert {norm.scale for norm in norms_of(twin).values()} == {1.0}


def test_weights_start_as_torchvisions_do():
    model = build("resnet18")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    assert all((norm.weight == 1).all() for norm in norms_of(model).values())
    assert not any(norm.bias.any() for norm in norms_of(model).values())
    biased = build("plain", depth=2, norm="none")
    assert not any(m.bias.any() for m in biased.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "default", "first"),
    [("resnet18", 64, "conv1"), ("resnet8", 16, "conv1"), ("plain", 16, "layers.0.weights")],
)
def test_the_width_is_that_of_the_first_layer(name, default, first):
    assert build(name).get_submodule(first).out_channels == default
    model = build(name, width=5)
    assert model.get_submodule(first).out_channels == 5
    if name != "plain":
        assert model.layer3[0].conv1.out_channels == 20  # twice as many in each stage


def test_only_the_fused_net_uses_the_fused_operation(monkeypatch):
    calls = []
    original = SpikingNeuron.call_kernels

    def spy(self, x, norm=None, *args, **kwargs):
        calls.extend([self] if norm is not None else [])
        return original(self, x, norm, *args, **kwargs)

    monkeypatch.setattr(SpikingNeuron, "call_kernels", spy)
    model = build()
    model(images())
    # the stem's constant current is normalised before its neuron, everything else in one operation
    assert calls == [neuron for _, neuron in model.spiking_layers()][1:]
    calls.clear()
    build(fused=False)(images())
    build(norm="none")(images())
    build(neuron={"kind": "relu"})(images())
    assert calls == []


LIF = kernels.LIF


class Louder(LIF):
    def forward(self, x):
        return super().forward(3 * x)


@pytest.mark.parametrize("block", ["plain", "ms"])
def test_a_forward_of_ones_own_is_called_also_behind_a_norm(block):
    models = [build(block=block, width=4, fused=fused).eval() for fused in (True, False)]
    for model in models:
        for _, neuron in model.spiking_layers():
            neuron.__class__ = Louder
    torch.testing.assert_close(*(model(images()) for model in models))


@pytest.mark.parametrize("fused", [True, False])
def test_spikes_are_marked_while_they_live_and_sums_of_spikes_are_not(fused, monkeypatch):
    y = torch.randn(T, B, 4, 2, 2)
    norm, neuron = Norm(4, fused=fused), LIF()
    monkeypatch.setattr(memory, "_spikes", {})  # without those that other tests keep alive
    with memory.PackedSpikes():
        spikes = norm_neuron(norm, neuron, y)
        total = norm_neuron(norm, neuron, y, spike_add=torch.ones_like(y))
        residual = norm_neuron(norm, neuron, y, residual=torch.ones_like(y))
        activation = norm_neuron(norm, nn.ReLU(), y)
        assert memory._source(spikes) is spikes
        assert memory._source(residual) is residual
        assert memory._source(spikes.flatten(0, 1)) is spikes
        assert memory._source(spikes[0]) is None
        assert memory._source(total) is memory._source(activation) is None
        assert set(total.unique().tolist()) == {1.0, 2.0}
        with torch.no_grad():
            spikes.add_(1)  # as a network of others may
        assert memory._source(spikes) is None
        assert memory._spikes
    del spikes, residual
    assert not memory._spikes


def test_a_constant_current_is_copied_once_over_time_in_its_memory_format():
    current = torch.randn(1, B, 4, 3, 3).flatten(0, 1).to(memory_format=torch.channels_last)[None]
    steps = over_time(current, 5)
    assert torch.equal(steps, current.expand(5, -1, -1, -1, -1))
    assert steps.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert over_time(current, 1) is current
    assert over_time(steps, 5) is steps


@pytest.mark.parametrize(
    ("stride", "channels", "layout"),
    pairwise([2, 3], [3, 4, 8], [torch.contiguous_format, torch.channels_last]),
)
def test_a_strided_pointwise_convolution_is_one(stride, channels, layout):
    """Forward and backward equal torch's; and nothing is written past its end."""
    ours = StridedPointwise(channels, 6, 1, stride=stride, bias=True).double()
    theirs = nn.Conv2d(channels, 6, 1, stride=stride, bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, channels, 7, 9, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for conv in (ours, theirs):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = conv(given)
        out.square().sum().backward()
        found.append((out, given.grad, conv.weight.grad, conv.bias.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)
