"""Parts of networks: fused and unfused agree, memory formats and dtypes stay, norms are scaled."""

import copy

import pytest
import torch
from torch import nn

from spiketriton.models import memory
from spiketriton.models.layers import StridedPointwise, norm_neuron, over_time
from spiketriton.neurons import LIF, Norm, SpikingNeuron
from tests.covering import pairwise
from tests.models.support import (
    BLOCKS,
    EVERY_BLOCK,
    NORMS,
    SHALLOW_MLP,
    B,
    T,
    assert_healthy,
    backward,
    build,
    images,
    lively,
)


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
    scales = {name: m.scale for name, m in model.named_modules() if isinstance(m, Norm)}
    reduced = [name for name, scale in scales.items() if scale == pytest.approx(2 / 2**0.5)]
    assert [name for name in reduced if name.startswith("layer3")] == before_a_sum
    assert all(scale == 2.0 for name, scale in scales.items() if name not in reduced)
    twin = build(**options, norm="tdbn", neuron={"kind": "relu", "v_threshold": 2.0})
    assert {m.scale for m in twin.modules() if isinstance(m, Norm)} == {1.0}


def test_weights_start_as_torchvisions_do():
    model = build("resnet18")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    biased = build("plain", depth=2, norm="none")
    assert all((m.bias == 0).all() for m in biased.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("options", "norm", "kind"),
    pairwise([*EVERY_BLOCK, SHALLOW_MLP], ["bn", "tdbn", "tebn"], ["lif", "plif"]),
)
def test_fused_and_unfused_give_the_same(options, norm, kind):
    """In float64, where a spike would flip only for currents that meet the threshold exactly."""
    neuron = {"kind": kind, "decay_input": kind == "plif"}
    fused = lively(build(**options, norm=norm, width=4, neuron=neuron, time_steps=3).double())
    unfused = build(
        **options, norm=norm, width=4, neuron=neuron, time_steps=3, fused=False
    ).double()
    unfused.load_state_dict(fused.state_dict())
    x = images().double()
    currents = [backward(model, x) for model in (fused, unfused)]
    torch.testing.assert_close(*currents, rtol=1e-6, atol=1e-9)
    for (name, p), q in zip(fused.named_parameters(), unfused.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-7 * scale, msg=name)
    for (name, p), q in zip(fused.named_buffers(), unfused.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), unfused.eval()(x), rtol=1e-6, atol=1e-9)


def test_only_the_fused_net_uses_the_fused_operation(monkeypatch):
    calls = []
    original = SpikingNeuron.fused_norm
    monkeypatch.setattr(
        SpikingNeuron,
        "fused_norm",
        lambda self, *args, **kwargs: calls.append(self) or original(self, *args, **kwargs),
    )
    model = build()
    model(images())
    # the stem's constant current is normalised before its neuron, everything else in one operation
    assert calls == [neuron for _, neuron in model.spiking_layers()][1:]
    calls.clear()
    build(fused=False)(images())
    build(norm="none")(images())
    build(neuron={"kind": "relu"})(images())
    assert calls == []


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


@pytest.mark.parametrize(
    ("block", "norm", "fused", "kind"),
    pairwise(BLOCKS, ["bn", "tebn", "none"], [True, False], ["lif", "relu"]),
)
def test_channels_last_stays_channels_last(block, norm, fused, kind):
    options = {"block": block, "norm": norm, "fused": fused, "neuron": {"kind": kind}, "width": 4}
    model = lively(build("resnet18", stem="imagenet", **options))
    plain_format = copy.deepcopy(model)
    model = model.to(memory_format=torch.channels_last)
    seen = []
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for conv in convs[1:]:  # autograd sums the steps of the constant first current into NCHW
        conv.register_full_backward_hook(lambda _, grads_in, grads_out: seen.append(grads_out[0]))
    x = images(size=64)
    currents = backward(model, x.to(memory_format=torch.channels_last))
    assert len(seen) == 2 * len(convs) - 1
    for tensor in seen:
        assert tensor.is_contiguous(memory_format=torch.channels_last), tensor.stride()
    torch.testing.assert_close(currents, plain_format(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fused", "options", "norm"), pairwise([True, False], [*EVERY_BLOCK, SHALLOW_MLP], NORMS)
)
def test_bf16_autocast_trains(options, norm, fused):
    model = lively(build(**options, norm=norm, fused=fused, width=4, neuron={"kind": "plif"}))
    inputs = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name != "fc":
            module.register_forward_hook(lambda _, args, out: inputs.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        currents = backward(model, images())
    assert_healthy(model, currents, steps=T)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert set(inputs) == {torch.bfloat16}


@pytest.mark.parametrize("fused", [True, False])
def test_spikes_are_marked_and_sums_of_spikes_are_not(fused):
    y = torch.randn(T, B, 4, 2, 2)
    norm, neuron = Norm(4, fused=fused), LIF()
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


def test_a_constant_current_is_copied_once_over_time_in_its_memory_format():
    current = torch.randn(1, B, 4, 3, 3).flatten(0, 1).to(memory_format=torch.channels_last)[None]
    steps = over_time(current, 5)
    assert torch.equal(steps, current.expand(5, -1, -1, -1, -1))
    assert steps.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert over_time(current, 1) is current
    assert over_time(steps, 5) is steps


@pytest.mark.parametrize("stride", [2, 3])
def test_a_strided_pointwise_convolution_is_one(stride):
    """Forward and backward equal torch's, in both layouts; and nothing is written past its end."""
    torch.manual_seed(0)
    for channels in (3, 4, 8):
        ours = StridedPointwise(channels, 6, 1, stride=stride, bias=True).double()
        theirs = nn.Conv2d(channels, 6, 1, stride=stride, bias=True).double()
        theirs.load_state_dict(ours.state_dict())
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(5, channels, 7, 9, dtype=torch.float64).contiguous(memory_format=layout)
            found = []
            for conv in (ours, theirs):
                conv.zero_grad()
                given = x.clone(memory_format=torch.preserve_format).requires_grad_()
                out = conv(given)
                out.square().sum().backward()
                found.append((out, given.grad, conv.weight.grad, conv.bias.grad))
            for mine, expected in zip(*found, strict=True):
                torch.testing.assert_close(mine, expected)
