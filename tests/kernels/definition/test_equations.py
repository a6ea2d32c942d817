"""The definition that all tests lean on: the papers' equations, other libraries' neurons, its own derivative."""

import functools
import itertools

import pytest
import snntorch
import torch
from spikingjelly.activation_based import neuron, surrogate
from torch.utils._python_dispatch import TorchDispatchMode

from spiketriton_kernels import (
    SHAPES,
    Surrogate,
    multistep_alif,
    multistep_clif,
    multistep_cuba,
    multistep_ilif,
    multistep_ilif_reference,
    multistep_lif,
    multistep_lif_reference,
    virtual_steps,
)
from tests.covering import each
from tests.kernels.cases import EQUATIONS, PLAIN, called, define, drawn
from tests.kernels.support import RESETS, by_hand, normal


@pytest.mark.parametrize(
    ("reset", "detach_reset", "shape"),
    [(*ways, shape) for ways, shape in zip(
        itertools.product(RESETS, (True, False)), SHAPES, strict=True
    )],
)  # fmt: skip
def test_the_definition_of_lif_is_the_equations_written_out(reset, detach_reset, shape):
    found = []
    options = dict(decay=0.8, gain=0.9, threshold=0.6, reset=reset, v_reset=-0.2)
    options |= dict(detach_reset=detach_reset, return_v=True, surrogate=Surrogate(shape, 0.7, 0.4))
    for function in (by_hand, multistep_lif_reference):
        x = normal((7, 2, 3, 4), torch.float64, seed=3).requires_grad_()
        v_init = normal((2, 3, 4), torch.float64, seed=4).requires_grad_()
        spikes, v_last = function(x, **options, v_init=v_init)
        ends = [normal(out.shape, torch.float64, seed=5) for out in (spikes, v_last)]
        found.append((spikes, v_last, *torch.autograd.grad((spikes, v_last), (x, v_init), ends)))
    for given, wanted in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("equation", "shape", "norm", "form"),
    each([*EQUATIONS], SHAPES, ["none", "batch", "given"], ["scalar", "channel"]),
)
def test_the_relaxed_definition_is_its_own_derivative(equation, shape, norm, form):
    """gradcheck of every tensor at once, where no reset is detached: surrogates are their primitives' derivatives."""
    case = PLAIN | dict(
        equation=equation, shape=shape, norm=norm, T=3, size=(2, 2, 2), states="wide"
    )
    case |= dict.fromkeys(("decay", "threshold", "width", "gain", "rho", "beta"), form)
    case |= dict.fromkeys(("residual", "spike_add", "step_gain", "trace", "current"), True)
    case["detach_reset"] = "delayed" in equation  # whose resets have no gradient
    tensors = {n: value.double() for n, value in drawn(case).items()}
    buffers = {n: tensors.pop(n) for n in list(tensors) if n.startswith("running")}
    if case["detach_reset"]:  # no threshold is crossed then
        tensors["x"] *= 0.1
    for value in tensors.values():
        value.requires_grad_()

    def relaxed(*values):
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        given = dict(zip(tensors, values, strict=True)) | copies
        return tuple(called(functools.partial(define, smooth=True), case, given).values())

    assert torch.autograd.gradcheck(relaxed, tuple(tensors.values()))


# ---- other libraries


def ilif(detach):
    count = surrogate.MultiLevelSpikeCount(4)
    return neuron.ILIFNode(
        v_threshold=0.5, surrogate_function=count, detach_reset=detach, step_mode="m"
    )


def clif():
    return neuron.ComplementaryLIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="m")


@pytest.mark.parametrize(
    ("node", "function", "options"),
    [
        (lambda: ilif(True), multistep_ilif, dict(decay=0.25, threshold=0.5, detach_reset=True)),
        (lambda: ilif(False), multistep_ilif, dict(decay=0.25, threshold=0.5)),
        (clif, multistep_clif, dict(surrogate=Surrogate.atan(2.0))),
    ],
)
def test_ilif_and_clif_are_spikingjellys(node, function, options, backend, device):
    weight = normal((6, 2, 3, 50), device=device)
    runs = []
    for call in (node(), functools.partial(function, **options)):
        x = normal(weight.shape, device=device, mean=0.7, std=1.5).requires_grad_()
        spikes = call(x)
        (spikes * weight).sum().backward()
        runs.append((spikes, x.grad))
    (expected, expected_grad), (found, grad) = runs
    assert expected.max() == (4 if function is multistep_ilif else 1)
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_cuba_is_snntorchs_synaptic(backend, device):
    """Without a reset, which snnTorch applies a step later."""
    synaptic = snntorch.Synaptic(alpha=0.8, beta=0.75, reset_mechanism="none", threshold=1.5)
    x = normal((6, 2, 3, 50), device=device, mean=0.3, std=1.5)  # no ties, where snnTorch is silent
    current, membrane = synaptic.init_synaptic()
    expected = []
    for x_t in x:
        spikes, current, membrane = synaptic(x_t, current, membrane)
        expected.append(spikes)
    found, last = multistep_cuba(x, 0.75, threshold=1.5, rho=0.8, reset="none", return_state=True)
    assert torch.equal(found, torch.stack(expected))
    torch.testing.assert_close(last.v, membrane)
    torch.testing.assert_close(last.m, current)


# ---- one neuron by hand


def test_alif_is_the_published_equation():
    """Bellec et al. 2018: the threshold rises with a spike and decays."""
    x, v, m, rho, beta = [2.0, 2.0, 2.0, 0.0, 2.0], 0.0, 0.0, 0.5, 2.0
    expected = []
    for current in x:
        h = 0.5 * v + current
        level = 1.0 + beta * m
        s = float(h >= level)
        v, m = h - level * s, rho * m + (1 - rho) * s
        expected.append(s)
    assert expected == [1.0, 1.0, 0.0, 0.0, 1.0]
    given = torch.tensor(x).view(-1, 1)
    spikes, last = multistep_alif(given, rho=rho, beta=beta, return_state=True)
    assert spikes.flatten().tolist() == expected
    assert (float(last.v), float(last.m)) == (v, m)


def test_a_delayed_reset_is_snntorchs():
    """mem = beta * mem + x - threshold * (mem > threshold)."""
    x, mem, expected = [1.5, 0.5, 0.5, 2.0], 0.0, []
    for current in x:
        mem = 0.5 * mem + current - (1.0 if mem > 1 else 0.0)
        expected.append(mem)
    assert expected == [1.5, 0.25, 0.625, 2.3125]
    given = torch.tensor(x).view(-1, 1, 1)
    spikes, trace = multistep_lif(given, reset="soft", reset_delay=True, return_trace=True)
    assert trace.flatten().tolist() == expected
    assert spikes.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]


def test_virtual_steps_sum_to_the_integers():
    spikes = multistep_ilif(normal((3, 2, 5), mean=1.0, std=2.0), levels=4)
    binary = virtual_steps(spikes, 4)
    assert binary.shape == (12, 2, 5)
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binary.unflatten(0, (3, 4)).sum(1), spikes)
    with pytest.raises(ValueError, match=r"\[T, B, \.\.\.\]"):
        virtual_steps(torch.tensor(1.0), 4)


def test_ilif_divides_by_a_tensor_as_a_gpu_does_not_by_a_number():
    """It multiplies by a number's reciprocal, so that ties would fall otherwise than in the kernels."""
    by_tensors = []

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten.div.Tensor:
                by_tensors.append(isinstance(args[1], torch.Tensor) and args[1].dim() > 0)
            return operation(*args, **(kwargs or {}))

    with Divisions():
        multistep_ilif_reference(torch.ones(2, 3), threshold=0.7)
    assert by_tensors
    assert all(by_tensors)
