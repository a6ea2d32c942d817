"""multistep_lif against its definition: spikes bit for bit, gradients against float64."""

import itertools

import pytest
import torch

from spiketriton_kernels import (
    SHAPES,
    Surrogate,
    multistep_lif,
    multistep_lif_reference,
)
from tests.kernels.support import (
    DTYPES,
    EVERY_PATH,
    HALF,
    LAYOUTS,
    RESETS,
    as_layout,
    assert_as_good_as_torch,
    by_hand,
    case_id,
    dyadic,
    evaluate,
    membrane_dtype,
    normal,
    pairwise,
)

SIZES = [(1, 1, 1), (3, 5, 7), (2, 8, 4, 4), (2, 3, 2, 2, 3), (1, 1, 131)]
"""[B, C, ...]: one neuron, odd numbers, powers of two, five dimensions, one channel."""


def parameter(kind: str, name: str, C: int, dtype: torch.dtype) -> float | torch.Tensor:
    """A decay, threshold or width: its float, a tensor (), or a tensor (C,) around it."""
    value, step = {"decay": (0.5, 0.25), "threshold": (1.0, 0.25), "width": (1.0, 0.5)}[name]
    if kind == "float":
        return value
    if kind == "scalar":
        return torch.tensor(value, dtype=dtype)
    return value + step * torch.tensor([0.0, 1.0, -1.0], dtype=dtype).repeat(C)[:C]


def compare(
    size: tuple[int, ...],
    T: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: str = "contiguous",
    reset: str = "hard",
    detach_reset: bool = True,
    shape: str = "atan",
    height: float = 1.0,
    v_reset: float = 0.0,
    gain: float = 1.0,
    decay: str = "float",
    threshold: str = "float",
    width: str = "float",
    v_init: str = "none",
    upstream: str = "both",
    seed: int = 0,
) -> None:
    """One case of every option: fused against the reference in the same dtype and in float64."""
    wide = membrane_dtype(dtype)
    tensors = {"x": as_layout(dyadic((T, *size), dtype, device, seed), layout)}
    if v_init != "none":
        v_dtype = wide if v_init == "wide" else dtype
        tensors["v_init"] = dyadic(size, v_dtype, device, seed + 1, low=-0.5, high=0.75)
    options = dict(reset=reset, detach_reset=detach_reset, v_reset=v_reset, gain=gain)
    for name, kind in dict(decay=decay, threshold=threshold, width=width).items():
        value = parameter(kind, name, size[1], wide)
        if isinstance(value, torch.Tensor):
            tensors[name] = value.to(device)
        elif name != "width":
            options[name] = value
    gradients = {
        "spikes": dyadic((T, *size), dtype, device, seed + 2, low=-1.0, high=1.0),
        "v_last": dyadic(size, wide, device, seed + 3, low=-1.0, high=1.0),
    }
    if upstream != "both":
        gradients = {upstream: gradients[upstream]}
    surrogate = (shape, height, 1.0)
    arguments = (tensors, options, gradients)
    ours = evaluate(multistep_lif, *arguments, surrogate=surrogate)
    composed = evaluate(multistep_lif_reference, *arguments, surrogate=surrogate)
    exact = evaluate(multistep_lif_reference, *arguments, torch.float64, surrogate)
    assert_as_good_as_torch(ours, composed, exact)
    assert torch.equal(ours["v_last"], composed["v_last"]), "the last membrane differs in a bit"
    assert ours["spikes"].dtype == dtype
    assert ours["v_last"].dtype == wide


# ---- gradients and spikes, option by option


@pytest.mark.parametrize("case", EVERY_PATH, ids=case_id)
def test_every_reset_and_surrogate(backend, device, case):
    """float64 takes the eager path where Triton is forced."""
    compare((2, 3, 5), 3, device=device, **case)


EVERY_PAIR = pairwise(
    dict(
        T=[1, 2, 5, 16, 17],
        size=SIZES,
        layout=LAYOUTS,
        shape=SHAPES,
        upstream=["both", "spikes", "v_last"],
        v_init=["none", "wide", "same"],
        dtype=DTYPES[:3],
        reset=RESETS,
        decay=["float", "scalar", "channel"],
        threshold=["float", "scalar", "channel"],
        width=["float", "scalar", "channel"],
        detach_reset=[True, False],
        v_reset=[0.0, -0.5],
        gain=[1.0, 0.5],
        height=[1.0, 0.25],
    )
)


@pytest.mark.parametrize("case", EVERY_PAIR, ids=case_id)
def test_every_pair_of_options(backend, device, case):
    compare(device=device, **case)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("T", [32, 37])
def test_long_windows_of_several_full_chunks(backend, device, T):
    compare((1, 3, 5), T, torch.bfloat16, device, reset="soft", detach_reset=False)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("v_reset", [0.0, 0.3])
def test_spikes_and_membranes_agree_in_every_bit_on_any_input(backend, device, reset, v_reset):
    """No contraction into multiply-adds, no reordering: arbitrary numbers, not only dyadic ones."""
    x = normal((12, 2, 5, 9), torch.float32, device, seed=1, std=0.8)
    options = dict(decay=0.87, gain=1.3, threshold=0.7, reset=reset, v_reset=v_reset)
    ours = multistep_lif(x, **options, return_v=True)
    plain = multistep_lif_reference(x, **options, return_v=True)
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    assert 0.05 < plain[0].mean() < 0.95


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_input_keeps_a_float32_membrane(backend, device, dtype):
    """1/512 a step is lost in a bfloat16 membrane near 1; in float32 it reaches the threshold."""
    x = torch.full((64, 1, 1, 3), 1 / 512, dtype=dtype, device=device)
    v_init = torch.full((1, 1, 3), 1 - 60 / 512, device=device)
    spikes = multistep_lif(x, decay=1.0, v_init=v_init)
    assert spikes.sum(0).eq(1).all()
    assert spikes[59].eq(1).all()


# ---- the definition itself


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("detach_reset", [True, False], ids=["detached", "through"])
@pytest.mark.parametrize("reset", RESETS)
def test_reference_equals_the_equations_written_out(reset, detach_reset, shape):
    """The reference that all tests lean on, against a second text of the same equations."""
    x = normal((7, 2, 3, 4), torch.float64, seed=3).requires_grad_()
    v_init = normal((2, 3, 4), torch.float64, seed=4).requires_grad_()
    grad_s, grad_v = normal(x.shape, torch.float64, seed=5), normal(v_init.shape, seed=6).double()
    options = dict(decay=0.8, gain=0.9, threshold=0.6, reset=reset, v_reset=-0.2)
    trace = by_hand(
        x, **options, detach_reset=detach_reset, shape=shape, height=0.7, width=0.4, v_init=v_init
    )
    out = torch.stack(trace.out)
    torch.autograd.backward([out, trace.membrane[-1]], [grad_s, grad_v])
    expected = [out.detach(), trace.membrane[-1].detach(), x.grad, v_init.grad]
    x.grad = v_init.grad = None
    surrogate = Surrogate(shape, height=0.7, width=0.4)
    spikes, v_last = multistep_lif_reference(
        x, **options, detach_reset=detach_reset, surrogate=surrogate, v_init=v_init, return_v=True
    )
    torch.autograd.backward([spikes, v_last], [grad_s, grad_v])
    for given, wanted in zip([spikes, v_last, x.grad, v_init.grad], expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


# ---- edges


def test_a_tie_with_the_threshold_fires(backend, device):
    """h exactly at the threshold fires; one rounding below does not; all dtypes."""
    for dtype in (*HALF, torch.float32):
        below = 1 - torch.finfo(dtype).eps
        x = torch.tensor([below, 1.0], dtype=dtype, device=device).view(1, 1, 2)
        assert multistep_lif(x).flatten().tolist() == [0.0, 1.0], dtype


@pytest.mark.parametrize(("reset", "second"), [("soft", 0.5), ("hard", 1.0)])
def test_a_tie_with_the_threshold_resets_a_step_later(backend, device, reset, second):
    x = torch.ones(2, 1, 3, device=device)
    _, h = multistep_lif(x, reset=reset, reset_delay=True, return_trace=True)
    assert h[:, 0, 0].tolist() == [1.0, second]


@pytest.mark.parametrize("reset", RESETS)
def test_the_edge_of_a_window_surrogate_is_outside(backend, device, reset):
    """|u| = width gives no gradient, just inside gives the height; the triangle reaches zero."""
    u = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5, 0.75], device=device)
    for shape, expected in {
        "rectangle": [0.0, 3.0, 3.0, 3.0, 0.0, 0.0],
        "triangle": [0.0, 1.5, 3.0, 1.5, 0.0, 0.0],
    }.items():
        x = (u + 1.0).view(1, 1, 6).requires_grad_()
        surrogate = Surrogate(shape, height=3.0, width=0.5)
        multistep_lif(x, reset=reset, surrogate=surrogate).sum().backward()
        assert x.grad.flatten().tolist() == expected, shape


def test_a_width_that_floats_cannot_hold_keeps_the_rectangle_sharp(backend, device):
    """u = +-0.1 against width 0.1: the comparison is |u| < width, no division in between."""
    width = torch.tensor(0.1)
    u = torch.stack([-width, width, width * 0.999, width * 1.001]).to(device)
    x = (u + 0.0).view(1, 1, 4).requires_grad_()
    surrogate = Surrogate("rectangle", width=float(width))
    multistep_lif(x, threshold=0.0, surrogate=surrogate).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("size", [(4,), (5, 0), (0, 3, 4, 4)], ids=str)
def test_small_and_empty_steps(backend, device, size):
    """[T, B] alone, and no neurons at all: spikes and gradients of the same shape."""
    x = dyadic((3, *size), device=device).requires_grad_()
    v_init = torch.zeros(size, device=device, requires_grad=True)
    spikes, v_last = multistep_lif(x, v_init=v_init, return_v=True)
    reference = multistep_lif_reference(x, v_init=v_init, return_v=True)
    assert torch.equal(spikes, reference[0])
    assert torch.equal(v_last, reference[1])
    (spikes.sum() + v_last.sum()).backward()
    assert x.grad.shape == x.shape
    assert v_init.grad.shape == v_init.shape
    assert x.grad.isfinite().all()


def test_parameters_of_no_channels(backend, device):
    """(0,) and () beside each other: gradients of those shapes, all zero."""
    x = torch.zeros(3, 2, 0, 4, device=device, requires_grad=True)
    decay, threshold = (torch.ones(size, device=device, requires_grad=True) for size in ((0,), ()))
    multistep_lif(x, decay, threshold=threshold).sum().backward()
    assert decay.grad.shape == (0,)
    assert threshold.grad.item() == 0.0


@pytest.mark.parametrize(
    "case",
    pairwise(
        dict(
            bad=[float("nan"), float("inf"), float("-inf")],
            dtype=[torch.float32, torch.bfloat16],
            reset=RESETS,
        )
    ),
    ids=case_id,
)
def test_a_value_that_is_no_number_stays_in_its_neuron(backend, device, case):
    """The forward equals the reference; other neurons do not notice, forward nor backward."""
    bad, dtype, reset = case["bad"], case["dtype"], case["reset"]
    clean = dyadic((4, 2, 3, 5), dtype, device).requires_grad_()
    dirty = clean.detach().clone()
    dirty[1, 1, 2, 3] = bad
    dirty.requires_grad_()
    results = []
    for x in (clean, dirty):
        spikes, v_last = multistep_lif(x, reset=reset, detach_reset=False, return_v=True)
        (spikes.sum() + v_last.sum()).backward()
        results.append((spikes.detach(), v_last.detach(), x.grad))
    reference = multistep_lif_reference(dirty, reset=reset, detach_reset=False, return_v=True)
    torch.testing.assert_close(results[1][0], reference[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(results[1][1], reference[1], rtol=0, atol=0, equal_nan=True)
    others = torch.ones(2, 3, 5, dtype=torch.bool, device=device)
    others[1, 2, 3] = False
    for of_clean, of_dirty in zip(*results, strict=True):
        assert torch.equal(of_clean[..., others], of_dirty[..., others])


def test_a_gradient_that_is_no_number_stays_one_behind_a_reset(backend, device):
    """As in the definition, which multiplies what a hard reset cuts by 0."""
    grads = []
    for function in (multistep_lif, multistep_lif_reference):
        x = torch.full((2, 1, 3), 2.0, device=device, requires_grad=True)
        _, v_last = function(x, return_v=True)
        v_last.backward(torch.tensor([[1.0, float("nan"), 1.0]], device=device))
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


@pytest.mark.parametrize(
    ("layout", "upstream"),
    [
        ("contiguous", "expanded"),
        ("channels_last", "strided"),
        ("channels_last", "other layout"),
    ],
)
def test_upstream_gradients_of_any_layout(backend, device, layout, upstream):
    x = as_layout(dyadic((3, 2, 4, 3, 5), device=device), layout)
    values = dyadic(x.shape, device=device, seed=1)
    grad = {
        "expanded": torch.tensor(0.5, device=device).expand_as(x),
        "strided": as_layout(values, "strided"),
        "other layout": values,
    }[upstream]
    v_grad = torch.tensor(0.25, device=device).expand_as(x[0])
    results = []
    for g, g_v in ((grad, v_grad), (grad.contiguous(), v_grad.contiguous())):
        leaf = x.detach().requires_grad_()
        torch.autograd.backward(multistep_lif(leaf, return_v=True), [g, g_v])
        results.append(leaf.grad)
    assert torch.equal(*results)


def test_v_init_of_another_layout(backend, device):
    x = as_layout(dyadic((3, 2, 4, 3, 5), device=device), "channels_last")
    v_init = dyadic((2, 4, 3, 5), device=device, seed=1)
    reference = multistep_lif_reference(x, v_init=v_init)
    for layout in ("contiguous", "strided", "permuted"):
        laid = as_layout(v_init.unsqueeze(0), layout)[0].requires_grad_()
        spikes = multistep_lif(x, v_init=laid)
        spikes.sum().backward()
        assert torch.equal(spikes, reference)
        plain = v_init.detach().clone().requires_grad_()
        multistep_lif(x, v_init=plain).sum().backward()
        assert torch.equal(laid.grad, plain.grad), layout


# ---- windows in pieces


@pytest.mark.parametrize(
    ("dtype", "cuts"), [(torch.float32, (0, 1, 2, 20)), (torch.bfloat16, (0, 17, 20))], ids=str
)
def test_pieces_of_a_window_equal_the_whole_bit_for_bit(backend, device, dtype, cuts):
    """Spikes, last membrane and gradient, the state handed on by v_init and return_v."""
    whole = normal((20, 2, 3, 4), dtype, device, std=0.9)
    grad_s = normal(whole.shape, dtype, device, seed=1)
    options = dict(decay=0.8, reset="soft", detach_reset=False, return_v=True)
    x = whole.clone().requires_grad_()
    spikes, v_last = multistep_lif(x, **options)
    torch.autograd.backward([spikes, v_last], [grad_s, torch.ones_like(v_last)])

    pieces = whole.clone().requires_grad_()
    v, rows = None, []
    for begin, end in itertools.pairwise(cuts):
        out, v = multistep_lif(pieces[begin:end], **options, v_init=v)
        rows.append(out)
    torch.autograd.backward([torch.cat(rows), v], [grad_s, torch.ones_like(v)])
    assert torch.equal(torch.cat(rows), spikes)
    assert torch.equal(v, v_last)
    assert torch.equal(pieces.grad, x.grad)


# ---- who wants a gradient


@pytest.mark.parametrize(
    "wanted", ["x", "v_init", "decay", "threshold", "width", "decay and width"], ids=str
)
def test_one_argument_alone_can_want_a_gradient(backend, device, wanted):
    size = (2, 3, 4)
    tensors = {
        "x": dyadic((4, *size), device=device),
        "v_init": dyadic(size, device=device, seed=1, high=0.5),
        "decay": torch.tensor([0.5, 0.25, 0.75], device=device),
        "threshold": torch.tensor(1.0, device=device),
        "width": torch.tensor([1.0, 0.5, 2.0], device=device),
    }

    def run(function):
        learns = wanted.split(" and ")
        given = {k: v.clone().requires_grad_(k in learns) for k, v in tensors.items()}
        surrogate = Surrogate("atan", width=given["width"])
        rest = {name: value for name, value in given.items() if name != "width"}
        function(**rest, surrogate=surrogate, detach_reset=False).sum().backward()
        return {name: value.grad for name, value in given.items()}

    ours, plain = run(multistep_lif), run(multistep_lif_reference)
    for name in tensors:
        assert (ours[name] is None) == (name not in wanted.split(" and ")), name
        if ours[name] is not None:
            torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-5)


def test_no_gradient_is_offered_where_none_is_wanted(backend, device):
    x = dyadic((3, 2, 4), device=device)
    assert not multistep_lif(x).requires_grad
    with torch.no_grad():
        assert not multistep_lif(x.clone().requires_grad_()).requires_grad
    with torch.inference_mode():
        assert torch.equal(multistep_lif(x), multistep_lif_reference(x))
