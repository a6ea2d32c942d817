"""The modules of spiketriton_kernels.nn call the kernels with the constants that they state."""

import copy
import io
import math

import pytest
import torch
from torch import nn as torch_nn
from torch.utils.checkpoint import checkpoint

from spiketriton_kernels import Surrogate, multistep_lif_reference, nn
from tests.covering import each
from tests.kernels.support import normal

T, B, C = 5, 3, 4

NEURONS = {
    "if": lambda **options: nn.IF(**options),
    "lif": lambda **options: nn.LIF(tau=3.0, decay_input=False, **options),
    "lif_decay_input": lambda **options: nn.LIF(tau=3.0, **options),
    "plif": lambda **options: nn.PLIF(init_tau=3.0, decay_input=False, **options),
    "plif_decay_input": lambda **options: nn.PLIF(init_tau=3.0, **options),
    "plif_per_channel": lambda **options: nn.PLIF(init_tau=3.0, per_channel=C, **options),
}
every_neuron = pytest.mark.parametrize("kind", NEURONS)
SHAPES = [(T, B, C), (T, B, C, 7), (T, B, C, 3, 2)]


def definition(neuron: nn.SpikingNeuron, x: torch.Tensor) -> torch.Tensor:
    """multistep_lif_reference with the constants of the module's constructor, not of its arguments."""
    w = getattr(neuron, "w", None)
    if w is None:
        rate = 1 / neuron.tau if isinstance(neuron, nn.LIF) else 0.0
    else:
        rate = torch.sigmoid(w)
    gain = rate if getattr(neuron, "decay_input", False) else 1.0
    if isinstance(gain, torch.Tensor) and gain.ndim:
        gain = gain.view(-1, *[1] * (x.ndim - 3))
    return multistep_lif_reference(
        x * gain if isinstance(gain, torch.Tensor) else x,
        decay=1 - rate,
        gain=1.0 if isinstance(gain, torch.Tensor) else gain,
        threshold=neuron.v_threshold,
        reset=neuron.reset_mode,
        v_reset=neuron.v_reset or 0.0,
        detach_reset=neuron.detach_reset,
        surrogate=neuron.surrogate,
    )


@pytest.mark.parametrize(
    ("kind", "shape"), each([*NEURONS, "plif_per_channel", "plif_per_channel"], SHAPES), ids=str
)
def test_a_module_is_the_function_with_its_constants(kind, shape, backend, device):
    neuron = NEURONS[kind](v_reset=None, detach_reset=False, surrogate=Surrogate.atan(2.0))
    neuron = neuron.to(device)
    runs = []
    for call in (neuron, lambda x: definition(neuron, x)):
        neuron.zero_grad()
        x = normal(shape, device=device, mean=0.7, std=2.0).requires_grad_()
        spikes = call(x)
        (spikes * normal(shape, device=device, seed=1)).sum().backward()
        runs.append([spikes, x.grad, *(p.grad for p in neuron.parameters())])
    (spikes, *grads), (expected, *expected_grads) = runs
    assert 0.1 < expected.mean() < 0.9
    assert torch.equal(spikes, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@every_neuron
def test_step_by_step_equals_the_window(kind):
    x = normal((T, B, C, 2), torch.float64, mean=0.7, std=2.0)
    window, steps = (NEURONS[kind](step_mode=mode).double() for mode in "ms")
    assert torch.equal(torch.stack([steps(step) for step in x]), window(x))
    assert window.v is None
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 2\).*reset\(\)"):
        steps(x[0, :2])
    steps.reset()
    assert torch.equal(steps(x[0, :2]), window(x[:1, :2])[0])
    assert "step_mode=s" in repr(steps)


def test_step_mode_may_change_between_calls():
    """As functional.set_step_mode of SpikingJelly does, which sets the attribute."""
    neuron, x = nn.LIF(stateful=True), normal((T, B, C))
    whole = neuron(x)
    neuron.reset()
    neuron.step_mode = "s"
    assert torch.equal(torch.stack([neuron(step) for step in x]), whole)


@pytest.mark.parametrize("channels", [None, C])
def test_the_threshold_learns(channels, backend, device):
    shape = () if channels is None else (channels,)
    start = torch.linspace(0.6, 1.4, channels) if channels else torch.tensor(0.8)
    neuron = nn.LIF(v_threshold=torch_nn.Parameter(start), v_reset=None, detach_reset=False).to(
        device
    )
    assert [name for name, _ in neuron.named_parameters()] == ["v_threshold"]
    x = normal((T, B, C, 3), device=device, mean=0.7, std=2.0)
    neuron(x).square().sum().backward()
    grad, neuron.v_threshold.grad = neuron.v_threshold.grad, None
    definition(neuron, x).square().sum().backward()
    assert grad.shape == shape
    assert grad.abs().min() > 0
    torch.testing.assert_close(grad, neuron.v_threshold.grad, rtol=1e-4, atol=1e-5)
    assert "v_threshold=0.8" in repr(neuron) or "4 values from 0.6 to 1.4" in repr(neuron)


def test_a_fixed_threshold_of_channels_travels_with_the_module():
    neuron = nn.IF(v_threshold=torch.tensor([0.5, 1.0, 2.0, 4.0]), v_reset=-1.0)
    assert not list(neuron.parameters())
    twin = nn.IF(v_threshold=torch.ones(C), v_reset=-1.0)
    twin.load_state_dict(neuron.state_dict())
    x = normal((T, B, C), mean=1.0)
    assert torch.equal(twin(x), neuron(x))
    rates = neuron(x).mean((0, 1))
    assert rates[0] > rates[-1]


@every_neuron
def test_state_dict_round_trip_copy_and_pickle(kind):
    neuron, other = NEURONS[kind](stateful=True), NEURONS[kind](stateful=True)
    for parameter in other.parameters():
        torch_nn.init.constant_(parameter, 0.5)
    neuron.load_state_dict(other.state_dict())
    x = normal((T, B, C), mean=0.7)
    assert torch.equal(neuron(x), other(x))
    file = io.BytesIO()
    torch.save(neuron, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(other), stored):  # in the middle of a window
        assert torch.equal(twin(x), neuron(x))
        neuron.reset()
        neuron(x)


@pytest.mark.parametrize(
    ("kind", "dtype"), each([*NEURONS], [torch.float16, torch.bfloat16]), ids=str
)
def test_half_precision_keeps_the_leak_in_float32(kind, dtype):
    """The leak's parameter is rounded once, where it is stored; everything after is float32."""
    x = normal((T, B, C, 3), dtype, mean=0.7, std=2.0)
    half = NEURONS[kind]().to(dtype)
    whole = copy.deepcopy(half).float()
    spikes = half(x)
    assert spikes.dtype == dtype
    if kind in ("plif_decay_input", "plif_per_channel"):  # the amplified current is stored in half
        assert (spikes.float() != whole(x.float())).float().mean() < 0.02
    else:
        assert torch.equal(spikes.float(), whole(x.float()))


def test_a_checkpoint_repeats_the_last_call_and_no_earlier_one():
    """What a stateful neuron keeps is moved on once, and its window computed again begins where it began."""
    layers = [
        torch_nn.Linear(6, 6),
        nn.LIF(stateful=True),
        torch_nn.Linear(6, 6),
        nn.CLIF(stateful=True),
    ]
    net = torch_nn.Sequential(*layers).double()
    windows = torch.randn(2, 4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        layers[2].bias += 2  # so that the last layer fires

    def gradients(again: bool, reentrant: bool) -> list[torch.Tensor]:
        for neuron in (layers[1], layers[3]):
            neuron.reset()
        net.zero_grad()
        for x in windows:
            x = x.requires_grad_()
            out = checkpoint(net, 4 * x, use_reentrant=reentrant) if again else net(4 * x)
            (out * x.detach()).sum().backward()
            for neuron in (layers[1], layers[3]):
                neuron.detach()
        return [p.grad.clone() for p in net.parameters()] + [layers[1].v, layers[3].m]

    expected = gradients(False, False)
    assert all(value.abs().sum() > 0 for value in expected)
    for reentrant in (False, True):
        for found, value in zip(gradients(True, reentrant), expected, strict=True):
            assert torch.equal(found, value)
    step = nn.LIF(step_mode="s")
    x = torch.ones(1, 3, requires_grad=True)
    outs = [checkpoint(step, x, use_reentrant=False) for _ in range(2)]
    with pytest.raises(ValueError, match="LIF keeps its membrane, and a checkpoint repeats a call"):
        sum(outs).sum().backward()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.IF(v_threshold=0.0), ["v_threshold 0.0", "above 0"]),
        (lambda: nn.IF(v_threshold=math.nan), ["v_threshold nan"]),
        (lambda: nn.IF(v_threshold=math.inf), ["v_threshold inf"]),
        (lambda: nn.IF(v_reset=-math.inf), ["v_reset -inf", "finite"]),
        (lambda: nn.IF(v_threshold=torch.ones(2, 2)), ["(2, 2)", "[] or [C]"]),
        (lambda: nn.IF(v_threshold=torch.ones(2).int()), ["int32", "floating point"]),
        (lambda: nn.IF(v_reset=1.0), ["v_reset 1.0", "below v_threshold = 1.0"]),
        (lambda: nn.IF(reset="firm"), ["reset 'firm'", "hard, soft, none"]),
        (lambda: nn.IF(step_mode="x"), ["step_mode 'x'", "'m'", "'s'"]),
        (lambda: nn.IF(surrogate="atan"), ["surrogate 'atan'", "Surrogate"]),
        (lambda: nn.LIF(tau=0.5), ["tau 0.5", "at least 1"]),
        (lambda: nn.LIF(tau=math.inf), ["tau inf"]),
        (lambda: nn.PLIF(init_tau=math.inf), ["init_tau inf"]),
        (lambda: nn.PLIF(init_tau=1.0), ["init_tau 1.0", "above 1"]),
        (lambda: nn.PLIF(per_channel=0), ["per_channel 0"]),
        (
            lambda: type("Mine", (nn.LIF,), {"input_gain": lambda _: torch.ones(())}),
            ["Mine has input_gain()", "neuron_arguments()", '{"gain": ...}'],
        ),
        (lambda: nn.IF()(torch.zeros(3)), ["IF", "(3,)", "[T, B, ...]"]),
        (lambda: nn.IF(step_mode="s")(torch.tensor(1.0)), ["IF", "()", "[B, ...]"]),
        (
            lambda: nn.PLIF(per_channel=3)(torch.zeros(2, 1, 4, 3)),
            ["(2, 1, 4, 3)", "3 values of w", "[T, B, 3, ...]", "channels are dim 2"],
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(make, names):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def test_empty_batches_pass():
    assert nn.LIF()(torch.zeros(T, 0, C)).shape == (T, 0, C)
