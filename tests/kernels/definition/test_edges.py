"""Where kernels go wrong: ties, values that are no numbers, nothing at all, windows in pieces, memory orders."""

import itertools
import math

import pytest
import torch

from spiketriton_kernels import (
    Surrogate,
    multistep_ilif,
    multistep_lif,
    multistep_lif_reference,
)
from tests.covering import each
from tests.kernels.cases import EQUATIONS, KINDS, PLAIN, by_kernels, called, compiled, define, drawn
from tests.kernels.support import (
    HALF,
    LAYOUTS,
    RESETS,
    as_layout,
    dyadic,
    normal,
)

NAN, INF = float("nan"), float("inf")


def plain(kind: str, **changes):
    return PLAIN | dict(equation=KINDS[kind]) | changes


# ---- ties


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_a_tie_with_the_threshold_fires(backend, device, dtype):
    """h exactly at the threshold fires; one rounding below does not."""
    x = torch.tensor([1 - torch.finfo(dtype).eps, 1.0], dtype=dtype, device=device).view(1, 1, 2)
    # the LIF that C++ has of float16 without --slow
    delayed = (backend, dtype) == ("native", torch.float16)
    assert multistep_lif(x, reset_delay=delayed).flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("reset", "second"), [("soft", 0.5), ("hard", 1.0)])
def test_a_tie_with_the_threshold_resets_a_step_later(backend, device, reset, second):
    x = torch.ones(2, 1, 3, device=device)
    _, h = multistep_lif(x, reset=reset, reset_delay=True, return_trace=True)
    assert h[:, 0, 0].tolist() == [1.0, second]


def test_integer_spikes_round_ties_to_even(backend, device):
    x = torch.tensor([-1.0, 0.5, 1.5, 2.5, 3.5, 9.0, math.nextafter(0.5, 1)], device=device)
    assert multistep_ilif(x.view(1, -1), levels=4).flatten().tolist() == [0, 0, 2, 2, 4, 4, 0]


def test_what_bfloat16_cannot_hold_is_rounded_to_even(backend, device):
    """At the threshold a slope is 1, and dL/dx is dL/ds times the gain: of powers of two half way between numbers."""
    gain = 1 + 2**-8
    upstream = torch.cat([2.0 ** torch.arange(-4, 5), normal((300,))]).view(1, 1, -1)
    upstream = upstream.to(device, torch.bfloat16)
    x = torch.ones_like(upstream).requires_grad_()
    multistep_lif(x, threshold=gain, gain=gain).backward(upstream)
    assert torch.equal(x.grad, (upstream.float() * gain).bfloat16())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("rectangle", [0.0, 3.0, 3.0, 3.0, 0.0, 0.0]), ("triangle", [0.0, 1.5, 3.0, 1.5, 0.0, 0.0])],
)
@pytest.mark.parametrize("reset", RESETS)
def test_the_edge_of_a_window_surrogate_is_outside(backend, device, reset, shape, expected):
    """|u| = width gives no gradient, just inside gives the height; the triangle reaches zero."""
    u = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5, 0.75], device=device)
    x = (u + 1.0).view(1, 1, 6).requires_grad_()
    surrogate = Surrogate(shape, height=3.0, width=0.5)
    multistep_lif(x, reset=reset, surrogate=surrogate).sum().backward()
    assert x.grad.flatten().tolist() == expected


def test_a_width_that_floats_cannot_hold_keeps_the_rectangle_sharp(backend, device):
    """u = +-0.1 against width 0.1: the comparison is |u| < width, no division in between."""
    width = torch.tensor(0.1)
    u = torch.stack([-width, width, width * 0.999, width * 1.001]).to(device)
    x = (u + 0.0).view(1, 1, 4).requires_grad_()
    surrogate = Surrogate("rectangle", width=float(width))
    multistep_lif(x, threshold=0.0, surrogate=surrogate).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


# ---- nothing at all


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        *itertools.product([(4,), (5, 0), (0, 3, 4, 4), (2, 0, 4)], KINDS),
        ((0, 3, 4, 4), "lif, in evaluation"),
    ],
    ids=str,
)
def test_small_and_empty_steps(backend, device, kind, size):
    """[T, B] alone, and no neurons at all: results and gradients of the same shapes."""
    x = dyadic((3, *size), device=device).requires_grad_()
    decay = torch.full(size[1:2], 0.5, device=device, requires_grad=True)
    norm = {}
    threshold = torch.ones((), device=device, requires_grad=True)  # beside one of no channels
    tensors = {"x": x, "decay": decay, "threshold": threshold}
    kind, *given = kind.split(", ")
    case = plain(kind, norm="given" if given else "none")
    if given:
        tensors["weight"] = torch.ones(3, device=device, requires_grad=True)
        norm = {
            "running_mean": torch.zeros(3, device=device),
            "running_var": torch.ones(3, device=device),
        }
    out = called(by_kernels, case, tensors | norm)
    for name, right in called(define, case, tensors | norm).items():
        torch.testing.assert_close(out[name], right)
    sum(value.sum() for value in out.values() if value.requires_grad).backward()
    for leaf in tensors.values():
        assert leaf.grad.shape == leaf.shape
        assert leaf.grad.isfinite().all()


def test_no_gradient_is_offered_where_none_is_wanted(backend, device):
    x = dyadic((3, 2, 4), device=device)
    assert not multistep_lif(x).requires_grad
    with torch.no_grad():
        assert not multistep_lif(x.clone().requires_grad_()).requires_grad
    with torch.inference_mode():
        assert torch.equal(multistep_lif(x), multistep_lif_reference(x))


# ---- no numbers


@pytest.mark.parametrize(
    ("equation", "bad", "dtype"),
    each([*EQUATIONS], [NAN, INF, -INF], [torch.float32, torch.bfloat16]),
    ids=str,
)
def test_a_value_that_is_no_number_stays_in_its_neuron(backend, device, equation, bad, dtype):
    """The forward equals the definition; other neurons do not notice, forward nor backward."""
    case = PLAIN | dict(size=(2, 3, 5), T=4, equation=equation, dtype=dtype)
    case = compiled(case) if backend == "native" else case
    results = []
    for value in (None, bad):
        tensors = drawn(case, device)
        if value is not None:
            tensors["x"][1, 1, 2, 3] = value
        tensors["x"].requires_grad_()
        out = called(by_kernels, case, tensors)
        sum(one.sum() for one in out.values()).backward()
        results.append([*(one.detach() for one in out.values()), tensors["x"].grad])
    for found, right in zip(results[1], called(define, case, tensors).values(), strict=False):
        exactly = {} if equation == "clif" else dict(rtol=0, atol=0)
        torch.testing.assert_close(found, right, equal_nan=True, **exactly)
    others = torch.ones(2, 3, 5, dtype=torch.bool, device=device)
    others[1, 2, 3] = False
    for of_clean, of_dirty in zip(*results, strict=True):
        assert torch.equal(of_clean[..., others], of_dirty[..., others])
    if math.isnan(bad):
        assert results[1][1][1, 2, 3].isnan()


def test_a_gradient_that_is_no_number_stays_one_behind_a_reset(backend, device):
    """As in the definition, which multiplies what a hard reset cuts by 0."""
    grads = []
    for function in (multistep_lif, multistep_lif_reference):
        x = torch.full((2, 1, 3), 2.0, device=device, requires_grad=True)
        _, v_last = function(x, return_v=True)
        v_last.backward(torch.tensor([[1.0, NAN, 1.0]], device=device))
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=0, atol=0, equal_nan=True)
    assert grads[1].isnan().any()


# ---- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spikes_come_back_in_the_layout_of_the_input(backend, device, layout):
    """Dense layouts with time outermost are kept, gradients too; others become contiguous."""
    x = as_layout(dyadic((3, 2, 4, 3, 5), device=device), layout).requires_grad_()
    spikes = multistep_lif(x)
    spikes.backward(torch.ones_like(spikes))
    kept = layout in ("contiguous", "channels_last", "permuted")
    assert spikes.stride() == (x.stride() if kept else torch.empty(x.shape).stride())
    if kept:
        assert x.grad.stride() == x.stride()


# ---- windows in pieces


@pytest.mark.parametrize("norm", ["none", "given"])
@pytest.mark.parametrize(
    ("kind", "dtype", "cuts"),
    [
        ("lif", torch.bfloat16, (0, 1, 2, 20)),
        ("alif", torch.float32, (0, 17, 20)),
        ("cuba", torch.float32, (0, 3, 20)),
        ("clif", torch.float32, (0, 17, 20)),
    ],
    ids=str,
)
def test_pieces_of_a_window_equal_the_whole_bit_for_bit(backend, device, kind, dtype, cuts, norm):
    """Spikes, last states and, without a norm, gradients: the states handed on."""
    case = plain(kind, T=20, size=(2, 3, 4), dtype=dtype, norm=norm, step_gain=True)
    tensors = drawn(case, device)
    end = normal(tensors["x"].shape, dtype, device, seed=1)
    runs = []
    for bounds in ((0, 20), cuts):
        x, states, rows = tensors["x"].clone().requires_grad_(), {}, []
        for begin, stop in itertools.pairwise(bounds):
            piece = tensors | {"x": x[begin:stop]} | states
            if norm == "given":
                piece["step_gain"] = tensors["step_gain"][begin:stop]
            out = called(by_kernels, case | dict(T=stop - begin), piece)
            states = {n.replace("last", "init"): out[n] for n in ("v_last", "m_last") if n in out}
            rows.append(out["spikes"])
        spikes = torch.cat(rows)
        torch.autograd.backward(
            [spikes, states["v_init"]], [end, torch.ones_like(states["v_init"])]
        )
        runs.append([spikes, *states.values(), *([x.grad] if norm == "none" else [])])
    for whole, pieces in zip(*runs, strict=True):
        assert torch.equal(pieces, whole)
