"""Surrogates: slopes are derivatives of their primitives, in PyTorch and in Triton; words; those of one's own."""

import math

import pytest
import torch

from spiketriton_kernels import (
    REACH,
    SHAPES,
    Surrogate,
    multistep_lif,
    register_surrogate,
    use_backend,
)
from spiketriton_kernels.backends.triton_pointwise import phi, primitive
from spiketriton_kernels.steps.fire import count, fire, relaxed
from spiketriton_kernels.triton_import import tl, triton
from tests.covering import each
from tests.kernels.cases import PLAIN, answered, by_kernels, define, drawn
from tests.kernels.support import PHI, normal

U = torch.linspace(-4, 4, 1601, dtype=torch.float64)
every_shape = pytest.mark.parametrize(
    ("shape", "height", "width"), each(SHAPES, [0.3, 7.0], [2.5, 0.1])
)


@every_shape
def test_slope_is_the_formula_of_the_design(shape, height, width):
    slope = Surrogate(shape, height, width).slope(U)
    torch.testing.assert_close(slope, height * PHI[shape](U / width), rtol=1e-12, atol=1e-13)
    at_zero = Surrogate(shape, height, width).slope(torch.zeros(1))
    assert at_zero.item() == pytest.approx(height)


@every_shape
def test_slope_is_the_derivative_of_the_primitive(shape, height, width):
    """By autograd everywhere (edges included), and by differences away from the kinks."""
    surrogate = Surrogate(shape, height, width)
    u = U.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(surrogate.primitive(u).sum(), u)
    torch.testing.assert_close(derivative, surrogate.slope(U), rtol=1e-9, atol=1e-12)
    step = 1e-6 * width
    kinks = torch.stack([U.abs(), (U.abs() - width).abs()]).min(0).values
    away = U[kinks > 2 * step]
    difference = (surrogate.primitive(away + step) - surrogate.primitive(away - step)) / (2 * step)
    torch.testing.assert_close(difference, surrogate.slope(away), rtol=1e-4, atol=1e-6 * height)
    assert surrogate.primitive(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_slopes_stay_finite_far_away(shape):
    """Steep surrogates on large potentials: no NaN, no infinity (a known bug of a peer's sigmoid)."""
    u = torch.tensor([-1e30, -100.0, -5.0, 5.0, 100.0, 1e30])
    for slope in (1.0, 25.0, 100.0):
        surrogate = Surrogate(shape, width=1 / slope)
        assert surrogate.slope(u).isfinite().all()
        assert surrogate.slope(u).max() <= 1
        if shape not in ("fast_sigmoid", "atan"):
            assert surrogate.slope(u)[[0, -1]].eq(0).all()


@pytest.mark.parametrize(("shape", "reach"), [("sigmoid", 60.0), ("gaussian", 12.0), ("atan", 1e4)])
def test_slopes_keep_their_digits_far_away(shape, reach, backend, device):
    """What is below any peak's rounding is a gradient too, where nothing else is left."""
    x = torch.linspace(-reach, reach, 241, device=device).view(1, -1).requires_grad_()
    multistep_lif(x, threshold=0.0, surrogate=Surrogate(shape, width=1)).sum().backward()
    right = PHI[shape](x.detach().double())
    if shape == "sigmoid":  # 1 - sigmoid has lost its own
        right = 4 * torch.sigmoid(x.detach().double()) * torch.sigmoid(-x.detach().double())
    torch.testing.assert_close(x.grad.double(), right, rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("widths", [(), (5, 1)], ids=["one width", "a width of each channel"])
def test_a_spikes_gradients_are_those_of_the_relaxed_one(shape, widths):
    """By the distance and by the width, of which ``test_equations.py`` knows the relaxed one's to be right."""
    given = normal((4, 5, 6), torch.float64), 0.5 + normal(widths, torch.float64, seed=1).abs()
    upstream = normal((4, 5, 6), torch.float64, seed=2)
    found = []
    for function in (fire, relaxed):
        u, width = (value.clone().requires_grad_() for value in given)
        out = function(u, shape, 0.7, width)
        found.append(torch.autograd.grad(out, (u, width), upstream))
    for ours, right in zip(*found, strict=True):
        assert right.abs().max() > 0.01
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_count_are_those_without_rounding():
    """Both ends of its range belong to it."""
    h = torch.tensor([[-0.5, 0.0, 0.7, 1.5, 2.0], [2.1, 1.0, -1.0, 0.3, 5.0]]).double()
    upstream, found = normal(h.shape, torch.float64), []
    for function in (lambda h, unit: count(h, unit, 4), lambda h, unit: (h / unit).clamp(0, 4)):
        leaves = h.clone().requires_grad_(), torch.tensor(0.5).double().requires_grad_()
        found.append(torch.autograd.grad(function(*leaves), leaves, upstream))
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)


# ---- other libraries' words


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_classmethods_say_what_other_libraries_mean(alpha):
    """The formulas as SpikingJelly's and snnTorch's documentation print them."""
    sigmoid = torch.sigmoid(alpha * U)
    formulas = {
        "atan": alpha / 2 / (1 + (math.pi / 2 * alpha * U) ** 2),
        "sigmoid": alpha * sigmoid * (1 - sigmoid),
        "fast_sigmoid": 1 / (1 + alpha * U.abs()) ** 2,
        "triangle": torch.clamp(alpha - U.abs(), min=0) / alpha**2,
        "rectangle": (U.abs() < alpha / 2).double() / alpha,
        "gaussian": torch.exp(-((U / alpha) ** 2) / 2) / (alpha * math.sqrt(2 * math.pi)),
    }
    for name, formula in formulas.items():
        given = getattr(Surrogate, name)(alpha).slope(U)
        torch.testing.assert_close(given, formula, rtol=1e-9, atol=1e-12, msg=name)


def test_defaults_of_the_classmethods():
    """ATan 2 and Sigmoid 4 of SpikingJelly, snnTorch's slope of 25."""
    assert Surrogate.atan().height == 1
    assert Surrogate.atan().width == pytest.approx(1 / math.pi)
    assert (Surrogate.sigmoid().height, Surrogate.sigmoid().width) == (1, 0.25)
    assert (Surrogate.fast_sigmoid().height, Surrogate.fast_sigmoid().width) == (1, 1 / 25)
    assert REACH == 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("tanh",), ValueError, "'tanh' is unknown; accepted: fast_sigmoid"),
        (("atan", -1.0), ValueError, "height must be finite and >= 0, got -1.0"),
        (("atan", math.nan), ValueError, "height must be finite and >= 0, got nan"),
        (("atan", True), TypeError, "height must be a float, got bool"),
        (("atan", 1.0, 0.0), ValueError, "width must be finite and > 0, got 0.0"),
        (("atan", 1.0, math.inf), ValueError, "width must be finite and > 0, got inf"),
        (("atan", 1.0, None), TypeError, "width must be a float or a tensor, got NoneType"),
        (("atan", 1.0, torch.ones(2, 2)), ValueError, r"shape \(\) or \(C,\), got torch.float32"),
        (("atan", 1.0, torch.ones(2).long()), ValueError, "floating point .* got torch.int64"),
    ],
    ids=str,
)
def test_wrong_surrogates_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Surrogate(*arguments)


# ---- the kernels' copy of the formulas


def both_kernel(z_ptr, phi_ptr, primitive_ptr, SHAPE: tl.constexpr):
    at = tl.arange(0, 64)
    z = tl.load(z_ptr + at)
    tl.store(phi_ptr + at, phi(z, SHAPE))
    tl.store(primitive_ptr + at, primitive(z, SHAPE))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_formulas_are_those_of_torch(triton_backend, shape):
    z = torch.cat([torch.linspace(-6, 6, 56), torch.tensor([0.0, -1, 1, 0.5, -0.5, 100, -100, 0])])
    slope, area = torch.empty_like(z), torch.empty_like(z)
    triton.jit(both_kernel)[(1,)](z, slope, area, SHAPE=shape)
    exact = Surrogate(shape, width=1)
    torch.testing.assert_close(slope.double(), exact.slope(z.double()), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(area.double(), exact.primitive(z.double()), rtol=1e-6, atol=1e-7)


# ---- of one's own: an atan of half the width, which is among the shapes


def steep(z):
    return 1.0 / (1.0 + 4.0 * tl.abs(z) * tl.abs(z))


def steep_primitive(z):
    return 0.5 * z


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
def test_a_surrogate_of_two_functions(backend, device, norm):
    """Plain PyTorch: eager, on any device. In Triton it is compiled into the kernels."""
    if backend == "torch":
        register_surrogate("own", lambda z: 1 / (1 + 4 * z * z), lambda z: torch.atan(2 * z) / 2)
    else:
        register_surrogate("own", triton.jit(steep), triton.jit(steep_primitive))
    case = PLAIN | dict(shape="own", norm=norm, learns="x", width="scalar")
    tensors = drawn(case, device)
    found = answered(by_kernels, case, tensors)
    half = tensors | {"width": tensors["width"] / 2}
    assert_same(found, answered(define, case | {"shape": "atan"}, half))
    if backend == "torch":
        assert_same(found, answered(define, case, tensors))
        return
    with use_backend("torch"), pytest.raises(RuntimeError, match="'own' is written in Triton"):
        answered(by_kernels, case, tensors)


def assert_same(found, expected):
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=2e-5)
