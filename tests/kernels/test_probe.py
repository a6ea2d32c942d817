"""The sums that a probe receives, against a plain loop in float64 whose gradients are all kept."""

import pytest
import torch
from torch.nn import functional

from spiketriton_kernels import (
    PROBE_FIELDS,
    SHAPES,
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    multistep_lif_reference,
)
from tests import covering
from tests.kernels.support import (
    RESETS,
    as_layout,
    by_hand,
    case_id,
    normal,
    pairwise,
    probe_by_hand,
)

T, SIZE = 5, (2, 3, 4, 2)


def probe(device: torch.device, steps: int = T) -> torch.Tensor:
    return torch.zeros(steps, len(PROBE_FIELDS), device=device, requires_grad=True)


def assert_sums(given: torch.Tensor, expected: torch.Tensor) -> None:
    """Every sum to 1e-4 of itself."""
    for i, name in enumerate(PROBE_FIELDS):
        column = given[:, i].double().cpu()
        torch.testing.assert_close(column, expected[:, i], rtol=1e-4, atol=1e-7, msg=name)


def neuron(case: dict) -> dict:
    """Keyword arguments of ``by_hand``."""
    C = torch.linspace(0.5, 0.8, 3, dtype=torch.float64).view(-1, 1, 1)
    fixed = dict(decay=0.7 if case["decay"] == "float" else C, gain=0.9, threshold=0.8, height=0.9)
    words = dict(reset=case["reset"], detach_reset=case["detach_reset"], shape=case["shape"])
    # Narrow enough that some neurons are outside the reach of every surrogate.
    return fixed | words | dict(v_reset=case["v_reset"], width=0.1)


def as_arguments(neuron: dict, device: torch.device) -> dict:
    """The same for the fused functions."""
    given = {
        name: value for name, value in neuron.items() if name not in ("shape", "height", "width")
    }
    if isinstance(given["decay"], torch.Tensor):
        given["decay"] = given["decay"].float().flatten().to(device)
    surrogate = Surrogate(neuron["shape"], height=neuron["height"], width=neuron["width"])
    return given | dict(surrogate=surrogate)


CASES = pairwise(
    dict(
        shape=SHAPES,
        reset=RESETS,
        detach_reset=[True, False],
        v_reset=[0.0, -0.3],
        decay=["float", "channel"],
        layout=["contiguous", "channels_last"],
        upstream=["spikes", "both"],
    )
)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_sums_of_the_neuron(backend, device, case):
    x = normal((T, *SIZE), device="cpu", std=0.9)
    grad_s, grad_v = normal(x.shape, seed=1), normal(SIZE, seed=2)
    both = case["upstream"] == "both"
    current = x.double().requires_grad_()
    trace = by_hand(current * 1.0, **neuron(case))
    assert trace.margin() > 1e-5
    outs, grads = [torch.stack(trace.out)], [grad_s.double()]
    if both:
        outs, grads = [*outs, trace.membrane[-1]], [*grads, grad_v.double()]
    torch.autograd.backward(outs, grads)
    expected = probe_by_hand(trace, neuron(case)["decay"])

    given = probe(device)
    leaf = as_layout(x.to(device), case["layout"]).requires_grad_()
    spikes, v_last = multistep_lif(
        leaf, **as_arguments(neuron(case), device), return_v=True, probe=given
    )
    starts, ends = [spikes], [grad_s.to(device)]
    if both:
        starts, ends = [*starts, v_last], [*ends, grad_v.to(device)]
    torch.autograd.backward(starts, ends)
    assert_sums(given.grad, expected)
    assert expected[:, PROBE_FIELDS.index("outside")].sum() > 0
    assert expected[:, PROBE_FIELDS.index("spikes")].sum() > 0


@pytest.mark.parametrize(
    ("training", "residual", "layout"),
    covering.pairwise([True, False], [True, False], ["contiguous", "channels_last"]),
)
def test_sums_behind_batch_norm(backend, device, training, residual, layout):
    """dL/dx is the gradient at the neuron's input current: after norm, step gain and residual."""
    case = dict(shape="atan", reset="soft", detach_reset=False, v_reset=0.0, decay="float")
    y, add = normal((T, *SIZE), mean=2.0, std=1.5), normal((T, *SIZE), seed=1, std=0.4)
    weight, bias = torch.tensor([0.9, 1.1, 1.3]), torch.tensor([0.3, 0.5, 0.2])
    mean, var = torch.tensor([1.8, 2.0, 2.1]), torch.tensor([2.0, 2.5, 1.5])
    gains, grad_s = torch.linspace(0.8, 1.2, T), normal((T, *SIZE), seed=2)
    small = [value.double() for value in (mean, var, weight, bias)]
    z = functional.batch_norm(y.double().flatten(0, 1), *small, training).unflatten(0, (T, 2))
    current = z * gains.double().view(-1, 1, 1, 1, 1) + (add.double() if residual else 0.0)
    trace = by_hand(current.requires_grad_(), **neuron(case))
    assert trace.margin() > 1e-5
    torch.stack(trace.out).backward(grad_s.double())
    expected = probe_by_hand(trace, neuron(case)["decay"])

    given = probe(device)
    leaf = as_layout(y.to(device), layout).requires_grad_()
    out = multistep_bn_lif(
        leaf,
        *(value.to(device) for value in (weight, bias, mean, var)),
        training=training,
        residual=add.to(device).requires_grad_() if residual else None,
        step_gain=gains.to(device),
        probe=given,
        **as_arguments(neuron(case), device),
    )
    out.backward(grad_s.to(device))
    assert_sums(given.grad, expected)


@pytest.mark.parametrize(
    ("size", "shape", "reset"),
    [
        ((1, 1, 2, 3), "triangle", "hard"),
        ((37, 1, 2, 3), "triangle", "hard"),  # in chunks
        ((2, 3, 7, 13, 11), "gaussian", "soft"),  # more neurons than one program or block holds
    ],
    ids=str,
)
def test_sums_of_chunks_and_blocks(backend, device, size, shape, reset):
    """No step and no neuron is counted twice, none left out."""
    x, grad_s = normal(size, std=0.9), normal(size, seed=1)
    case = dict(shape=shape, reset=reset, detach_reset=False, v_reset=0.0, decay="float")
    trace = by_hand(x.double().requires_grad_() * 1.0, **neuron(case))
    torch.stack(trace.out).backward(grad_s.double())
    given = probe(device, len(x))
    leaf = x.to(device).requires_grad_()
    multistep_lif(leaf, **as_arguments(neuron(case), device), probe=given).backward(
        grad_s.to(device)
    )
    assert_sums(given.grad, probe_by_hand(trace, 0.7))


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_a_delayed_reset_is_counted_at_its_spike(backend, device, reset):
    """Of a hard one nothing gets past a spike, though the membrane is cleared a step later."""
    x, found = normal((T, *SIZE), device=device, mean=0.5).requires_grad_(), probe(device)
    spikes = multistep_lif(x, decay=0.7, reset=reset, reset_delay=True, probe=found)
    spikes.sum().backward()
    passes = 1 - spikes.detach() if reset == "hard" else torch.ones_like(spikes)
    factor = found.grad[:, PROBE_FIELDS.index("time_factor")]
    torch.testing.assert_close(factor, 0.7 * passes.flatten(1).sum(1))
    assert 0.05 < spikes.mean() < 0.95


def test_a_probe_changes_nothing(backend, device):
    """Spikes and gradients with and without it, to the bit; and it alone may want a gradient."""
    x = normal((T, *SIZE), torch.bfloat16, device)
    results = []
    for target in (None, probe(device)):
        leaf = x.clone().requires_grad_()
        spikes = multistep_lif(leaf, detach_reset=False, probe=target)
        spikes.sum().backward()
        results.append((spikes.detach(), leaf.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    alone = probe(device)
    multistep_lif(x, detach_reset=False, probe=alone).sum().backward()
    torch.testing.assert_close(alone.grad, target.grad)


def test_infinite_gradients_are_counted_and_left_out_of_the_largest(backend, device):
    x = torch.ones(1, 1, 1, 4, device=device, requires_grad=True)
    given = probe(device, 1)
    upstream = torch.tensor([1.0, float("inf"), float("nan"), -3.0], device=device)
    multistep_lif(x, probe=given).backward(upstream.view(1, 1, 1, 4))
    row = dict(zip(PROBE_FIELDS, given.grad[0].tolist(), strict=True))
    assert row["nonfinite"] == 2
    assert row["spikes"] == 4
    assert row["grad_input_max"] == 3


@pytest.mark.parametrize(
    ("shape", "reset", "detach_reset"),
    [
        *((shape, "hard", True) for shape in SHAPES),
        *(("rectangle", *other) for other in (("hard", False), ("soft", False), ("none", True))),
    ],
)
def test_a_current_that_is_no_number_is_never_lost(backend, device, shape, reset, detach_reset):
    """dL/dx is NaN where the equations say so, and nowhere else; the probe counts each one."""
    x = torch.full((4, 1, 3), 0.6)
    x[2, 0, 1] = float("nan")
    fixed = dict(reset=reset, detach_reset=detach_reset)
    current = x.double().requires_grad_()
    trace = by_hand(current, shape=shape, **fixed)
    (torch.stack(trace.out).sum() + trace.membrane[-1].sum()).backward()
    expected = current.grad.isnan()
    window = shape == "rectangle"  # |NaN| < 1 is false: its slope there is 0
    assert expected.any() == (not window or (reset, detach_reset) == ("hard", False))

    def gradient(function, place, **more):
        leaf = x.clone().to(place).requires_grad_()
        options = fixed | dict(surrogate=Surrogate(shape), return_v=True)
        spikes, v_last = function(leaf, **options, **more)
        (spikes.sum() + v_last.sum()).backward()
        return leaf.grad.isnan().cpu()

    given = probe(device, 4)
    assert torch.equal(gradient(multistep_lif, device, probe=given), expected)
    counted = given.grad[:, PROBE_FIELDS.index("nonfinite")].cpu()
    assert torch.equal(counted, expected.flatten(1).sum(1).float())
    if not window:
        assert torch.equal(gradient(multistep_lif_reference, "cpu"), expected)
