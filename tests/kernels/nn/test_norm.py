"""BatchNormLIF equals torch's batch norm followed by the neuron, in everything that either keeps."""

import pytest
import torch
from torch import nn as torch_nn

from spiketriton_kernels import nn, use_backend
from tests.covering import each
from tests.kernels.nn.test_neurons import NEURONS, B, C, T, made
from tests.kernels.support import normal

SHAPES = {"neurons": (T, B, C), "tokens": (T, B, C, 7), "images": (T, B, C, 3, 2)}
NORMS = {3: torch_nn.BatchNorm1d, 4: torch_nn.BatchNorm1d, 5: torch_nn.BatchNorm2d}


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    each(  # 13 kinds: all twelve pairs of options and shapes are among them
        [*NEURONS],
        [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}],
        [*SHAPES.values()],
    ),
    ids=str,
)
def test_the_module_is_batch_norm_then_neuron(kind, options, shape):
    fused = nn.BatchNormLIF(C, made(kind), **options).double()
    norm = NORMS[len(shape)](C, **options).double()
    neuron = made(kind).double()
    for module in (fused, norm):
        if module.affine:
            with torch.no_grad():
                module.weight.copy_(torch.linspace(0.5, 2, C))
                module.bias.copy_(torch.linspace(0.1, 0.4, C))
    for step, training in enumerate((True, True, False)):
        x, twin = (normal(shape, torch.float64, seed=step).requires_grad_() for _ in range(2))
        for module in (fused, norm, neuron):
            module.train(training)
            module.zero_grad()
        towards = normal(shape, torch.float64, seed=9)
        # C++ is not compiled for these in float64
        with use_backend("torch" if kind.startswith(("alif", "clif", "cuba")) else "auto"):
            spikes = fused(x)
            expected = neuron(norm(twin.flatten(0, 1)).unflatten(0, shape[:2]))
            (spikes * towards).sum().backward()
            (expected * towards).sum().backward()
        assert torch.equal(spikes, expected)
        torch.testing.assert_close(x.grad, twin.grad, rtol=1e-8, atol=1e-10)
        of_fused = {n.removeprefix("neuron."): p for n, p in fused.named_parameters()}
        of_both = dict(norm.named_parameters()) | dict(neuron.named_parameters())
        assert of_fused.keys() == of_both.keys()
        for name, parameter in of_both.items():
            torch.testing.assert_close(of_fused[name].grad, parameter.grad, rtol=1e-8, atol=1e-10)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(fused.get_buffer(name), buffer)


def test_residual_and_spike_add():
    unit = nn.BatchNormLIF(C, nn.PLIF(init_tau=3.0, store_v_seq=True), scale=1.5).double().eval()
    y, residual, add = (normal((T, B, C, 2), torch.float64, seed=s) for s in range(3))
    norm = torch_nn.BatchNorm1d(C).double().eval()
    torch_nn.init.constant_(norm.weight, 1.5)
    neuron = nn.PLIF(init_tau=3.0, store_v_seq=True).double()
    current = norm(y.flatten(0, 1)).unflatten(0, (T, B))
    assert torch.equal(unit(y, residual, add), neuron(current + residual) + add)
    assert torch.equal(unit.neuron.v_seq, neuron.v_seq)
    assert "scale=1.5" in repr(unit)


def test_keys_are_those_of_torch_and_chunks_continue():
    unit = nn.BatchNormLIF(C, nn.PLIF(stateful=True)).eval()
    tracked = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(unit.state_dict()) == [*tracked, "neuron.w"]
    y = normal((T, B, C), mean=1.0)
    whole = unit(y)
    unit.reset()
    assert torch.equal(torch.cat([unit(y[:2]), unit(y[2:])]), whole)
    assert unit.neuron.v.requires_grad
    unit.detach()
    assert not unit.neuron.v.requires_grad


def test_half_precision_and_one_graph():
    y = normal((T, B, C, 2), torch.bfloat16)
    assert nn.BatchNormLIF(C).bfloat16()(y).dtype == torch.bfloat16
    unit = nn.BatchNormLIF(C)
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(y.float()), unit(y.float()))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.BatchNormLIF(0), ["num_features 0"]),
        (lambda: nn.BatchNormLIF(4, "lif"), ["neuron is a str", "SpikingNeuron"]),
        (lambda: nn.BatchNormLIF(4, nn.LIF(step_mode="s")), ["step_mode 's'", "statistics"]),
        (
            lambda: nn.BatchNormLIF(4)(torch.zeros(2, 3, 7, 4)),
            ["(2, 3, 7, 4)", "[T, B, 4, ...]", "channels are dim 2"],
        ),
        (lambda: nn.BatchNormLIF(4)(torch.zeros(2, 3)), ["(2, 3)", "channels are dim 2"]),
    ],
)
def test_mistakes_are_refused_in_one_line(make, names):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)
