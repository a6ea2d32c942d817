"""What LIF does beyond its usual arguments: the membrane's trace, tensor gains, delayed resets, custom surrogates."""

import pytest
import torch

from spiketriton_kernels import (
    Surrogate,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
    register_surrogate,
    use_backend,
)
from spiketriton_kernels.triton_import import tl, triton
from tests.covering import each
from tests.kernels.support import normal

SHAPE = (5, 2, 3, 4)
RESETS = [
    dict(reset="soft", detach_reset=True),
    dict(reset="soft", detach_reset=False),
    dict(reset="hard", detach_reset=False, v_reset=-0.25),
    dict(reset="hard", detach_reset=True),
    dict(reset="none"),
    dict(reset="soft", reset_delay=True),
    dict(reset="hard", reset_delay=True),
    dict(reset="none", reset_delay=True),
]


def run(function, x, **options):
    """Spikes, last membrane and trace, and the gradients of a sum of all three."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    given = {
        n: v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) else v
        for n, v in options.items()
    }
    out = function(x, **given, return_v=True, return_trace=True)
    loss = sum((o * normal(o.shape, device=x.device, seed=i)).sum() for i, o in enumerate(out))
    loss.backward()
    grads = {"x": x.grad} | {n: v.grad for n, v in given.items() if isinstance(v, torch.Tensor)}
    return [o.detach() for o in out], grads


def assert_equal_runs(found, expected):
    (spikes, *rest), grads = found
    (spikes_, *rest_), grads_ = expected
    assert 0.05 < spikes_.mean() < 0.95
    assert torch.equal(spikes, spikes_)
    for a, b in zip(rest, rest_, strict=True):
        assert torch.equal(a, b)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads_[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("options", "shape"), each(RESETS, [SHAPE, (18, 2, 3, 2), SHAPE]), ids=str)
def test_the_trace_and_its_gradient(options, shape, backend, device):
    x = normal(shape, device=device, mean=0.6, std=1.5)
    options = options | dict(v_init=normal(shape[1:], device=device, seed=5), decay=0.75)
    expected = run(multistep_lif_reference, x, **options)
    assert_equal_runs(run(multistep_lif, x, **options), expected)
    spikes, _, trace = expected[0]
    assert torch.equal(multistep_lif(x, **options, return_trace=True)[1], trace)
    plain = multistep_lif(x, **options)
    assert torch.equal(plain, spikes)


@pytest.mark.parametrize(("options", "size"), each(RESETS, [(), (3,), (3,)]), ids=str)
def test_parameters_learn(options, size, backend, device):
    spread = torch.linspace(0, 0.25, 3, device=device) if size else 0.0
    values = {
        name: torch.full(size, start, device=device) + spread
        for name, start in dict(decay=0.5, threshold=0.75, gain=1.25).items()
    }
    x = normal(SHAPE, device=device, mean=0.5, std=1.5)
    expected = run(multistep_lif_reference, x, **values, **options)
    assert all(g.abs().min() > 1e-3 for n, g in expected[1].items() if n != "x")
    assert_equal_runs(run(multistep_lif, x, **values, **options), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_trace_is_as_wide_as_the_membrane(dtype, backend, device):
    x = normal(SHAPE, dtype, device, mean=0.6, std=1.5).requires_grad_()
    spikes, trace = multistep_lif(x, reset="soft", reset_delay=True, return_trace=True)
    wide = x.detach() if dtype == torch.float64 else x.detach().float()
    expected, trace_ = multistep_lif_reference(
        wide, reset="soft", reset_delay=True, return_trace=True
    )
    assert spikes.dtype == dtype
    assert trace.dtype == trace_.dtype
    assert torch.equal(spikes.to(trace_.dtype), expected)
    assert torch.equal(trace, trace_)
    trace.sum().backward()
    assert x.grad.dtype == dtype


def test_the_definition_of_the_trace_is_its_own_derivative():
    x = normal((4, 2, 3), torch.float64, mean=0.4).requires_grad_()
    gain = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    for reset in ("soft", "hard", "none"):
        assert torch.autograd.gradcheck(
            lambda x, gain, reset=reset: multistep_lif_reference(
                x, gain=gain, reset=reset, detach_reset=False, return_trace=True, smooth=True
            ),
            (x, gain),
        )


def test_a_delayed_reset_by_hand():
    """snnTorch's equation: mem = beta * mem + x - threshold * (mem > threshold)."""
    x, mem, expected = [1.5, 0.5, 0.5, 2.0], 0.0, []
    for current in x:
        mem = 0.5 * mem + current - (1.0 if mem > 1 else 0.0)
        expected.append(mem)
    assert expected == [1.5, 0.25, 0.625, 2.3125]
    spikes, trace = multistep_lif(
        torch.tensor(x).view(-1, 1, 1), reset="soft", reset_delay=True, return_trace=True
    )
    assert trace.flatten().tolist() == expected
    assert spikes.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_trace_in_one_graph_under_compile(backend, device):
    x = normal(SHAPE, device=device, mean=0.5)
    call = lambda x: multistep_lif(x, return_trace=True)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), call(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("affine", [True, False])
def test_a_tensor_gain_behind_batch_norm(affine, backend, device):
    y = normal(SHAPE, device=device)
    residual = normal(SHAPE, device=device, seed=1, mean=0.5)
    runs = []
    for function, norms in ((multistep_bn_lif, 1), (multistep_bn_lif_reference, 0)):
        weight, bias, gain = (
            torch.linspace(0.5, 1.5, 3, device=device).requires_grad_() for _ in range(3)
        )
        given = (weight, bias) if affine else (None, None)
        if norms:
            spikes = function(y, *given, None, None, residual=residual, gain=gain)
        else:
            spikes = function(
                y,
                gain * weight if affine else gain,
                gain * bias if affine else None,
                None,
                None,
                residual=residual * gain.view(-1, 1),
            )
        (spikes * normal(SHAPE, device=device, seed=2)).sum().backward()
        runs.append([spikes, gain.grad, *(p.grad for p in given if p is not None)])
    for found, expected in zip(*runs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---- custom surrogates


def steep(z):
    return 1.0 / (1.0 + 4.0 * tl.abs(z) * tl.abs(z))


def steep_primitive(z):
    return 0.5 * z


def test_a_surrogate_of_two_functions(device):
    """Plain PyTorch: eager, on any device. Here an atan of half the width, which is among the shapes."""
    register_surrogate("steep", lambda z: 1 / (1 + 4 * z * z), lambda z: torch.atan(2 * z) / 2)
    x = normal(SHAPE, device=device, mean=0.6, std=1.5)
    with use_backend("torch"):
        expected = run(multistep_lif_reference, x, surrogate=Surrogate("atan", 1.0, 0.5))
        found = run(multistep_lif, x, surrogate=Surrogate("steep", width=1))
    assert_equal_runs(found, expected)
    assert_equal_runs(
        run(multistep_lif_reference, x, surrogate=Surrogate("steep", width=1)), expected
    )
    with use_backend("torch"):
        names = (Surrogate("steep", width=1), Surrogate("atan", 1.0, 0.5))
        one, other = (multistep_bn_lif(x, None, None, None, None, surrogate=s) for s in names)
    assert torch.equal(one, other)


def test_a_surrogate_in_triton_is_compiled_in(triton_backend, device):
    register_surrogate("jitted", triton.jit(steep), triton.jit(steep_primitive))
    x = normal(SHAPE, device=device, mean=0.6, std=1.5)
    with use_backend("triton"):
        found = run(multistep_lif, x, surrogate=Surrogate("jitted", width=1))
    assert_equal_runs(found, run(multistep_lif_reference, x, surrogate=Surrogate("atan", 1.0, 0.5)))
    with use_backend("torch"), pytest.raises(RuntimeError, match="'jitted' is written in Triton"):
        multistep_lif(x, surrogate=Surrogate("jitted"))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: register_surrogate("atan", abs, abs), ["'atan'", "a word other than"]),
        (lambda: register_surrogate("two words", abs, abs), ["'two words'"]),
        (lambda: register_surrogate("half", triton.jit(steep), abs), ["'half'", "@triton.jit", "both, or none"]),
        (lambda: Surrogate("unheard"), ["'unheard'", "accepted: fast_sigmoid"]),
        (
            lambda: multistep_lif(torch.zeros(2, 3), reset_delay=True, detach_reset=False),
            ["reset_delay goes with detach_reset=True", "got detach_reset=False"],
        ),
        (
            lambda: multistep_lif(torch.zeros(2, 3, 4), gain=torch.ones(3)),
            ["gain has shape (3,)", "dim 2 of the input = 4"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(call, names):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    for name in names:
        assert name in str(error.value)
