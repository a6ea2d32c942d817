"""Surrogates: slopes are derivatives of their primitives, gradcheck of the relaxed neuron, words."""

import math

import pytest
import torch

from spiketriton_kernels import (
    REACH,
    SHAPES,
    Surrogate,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
)
from spiketriton_kernels.surrogate import phi, primitive
from spiketriton_kernels.triton_import import tl, triton
from tests.covering import each
from tests.kernels.support import PHI, RESETS, normal

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


# ---- the relaxed neuron is differentiable in the ordinary sense


@pytest.mark.parametrize(
    ("shape", "reset", "v_reset"), [*each(SHAPES, RESETS, [-0.4]), ("atan", "hard", 0.0)]
)
def test_gradcheck_of_the_relaxed_neuron(shape, reset, v_reset):
    """Every tensor argument at once: x, v_init, decay, threshold, width; spikes and last membrane."""
    inputs = [
        normal((3, 1, 2, 2), torch.float64, seed=2),
        normal((1, 2, 2), torch.float64, seed=3),
        torch.tensor([0.5, 0.9], dtype=torch.float64),
        torch.tensor(0.7, dtype=torch.float64),
        torch.tensor([0.8, 1.7], dtype=torch.float64),
    ]

    def relaxed(x, v_init, decay, threshold, width):
        return multistep_lif_reference(
            x,
            decay,
            0.8,
            threshold,
            reset,
            v_reset,
            detach_reset=False,
            surrogate=Surrogate(shape, 0.6, width),
            v_init=v_init,
            return_v=True,
            smooth=True,
        )

    assert torch.autograd.gradcheck(relaxed, [value.requires_grad_() for value in inputs])


@pytest.mark.parametrize(("shape", "training"), each(SHAPES, [True, False]))
def test_gradcheck_of_the_relaxed_neuron_behind_batch_norm(shape, training):
    y, residual, spike_add = (normal((3, 2, 2, 2), torch.float64, seed=s) for s in range(3))
    weight, bias, gains = (normal((n,), torch.float64, seed=n, mean=1, std=0.1) for n in (2, 2, 3))
    buffers = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def relaxed(y, weight, bias, residual, spike_add, gains):
        return multistep_bn_lif_reference(
            y,
            weight,
            bias,
            *(buffer.clone() for buffer in buffers),
            training=training,
            residual=residual,
            detach_reset=False,
            surrogate=Surrogate(shape, 0.6, 1.3),
            spike_add=spike_add,
            bn_scale=0.9,
            step_gain=gains,
            return_v=True,
            smooth=True,
        )

    inputs = [value.requires_grad_() for value in (y, weight, bias, residual, spike_add, gains)]
    assert torch.autograd.gradcheck(relaxed, inputs)


def test_the_surrogate_gradient_is_the_relaxed_one_when_nothing_is_reset():
    """T = 1: spike and relaxed spike have the same gradient at the same potential."""
    x = normal((1, 2, 3, 4), torch.float64).requires_grad_()
    gradients = []
    for smooth in (False, True):
        out = multistep_lif_reference(x, smooth=smooth)
        gradients.append(torch.autograd.grad(out.sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


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
