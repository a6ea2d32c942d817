"""multistep_bn_lif against torch's batch norm in front of the reference neuron."""

import itertools

import pytest
import torch
from torch.nn import functional

from spiketriton_kernels import (
    SHAPES,
    Surrogate,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif_reference,
)
from tests.kernels.support import (
    DTYPES,
    LAYOUTS,
    RESETS,
    WINDOWS,
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

SIZES = [(2, 3, 5), (4, 1, 3), (7, 3), (2, 4, 3, 3), (2, 3, 2, 2, 3)]
"""[B, C, ...]: odd numbers, one channel, no space, an image, a volume."""

MARGIN = 1e-5
"""Closest that a potential may come to the threshold (and to the rectangle's edges): some roundings
of the batch norm in float32, so that every way to compute it gives the same spikes."""


def parameter(kind: str, name: str, C: int) -> float | torch.Tensor:
    value, step = {"decay": (0.6, 0.2), "threshold": (0.8, 0.25), "width": (0.9, 0.5)}[name]
    if kind == "float":
        return value
    if kind == "scalar":
        return torch.tensor(value)
    return value + step * torch.tensor([0.0, 1.0, -1.0]).repeat(C)[:C]


def per_channel(value: float | torch.Tensor, y: torch.Tensor) -> float | torch.Tensor:
    """A parameter as it broadcasts against one time step of y, in float64."""
    if not isinstance(value, torch.Tensor):
        return value
    value = value.double()
    return value.view(-1, *[1] * (y.dim() - 3)) if value.dim() else value


def currents(tensors: dict[str, torch.Tensor], options: dict) -> torch.Tensor:
    """What the neuron integrates, in float64, by torch's batch_norm."""
    get = lambda name: None if name not in tensors else tensors[name].detach().double()  # noqa: E731
    y, weight = get("y"), get("bn_weight")
    scale = options.get("bn_scale", 1.0)
    weight = scale * (y.new_ones(y.shape[2]) if weight is None else weight)
    z = functional.batch_norm(
        y.flatten(0, 1),
        get("running_mean"),
        get("running_var"),
        weight,
        get("bn_bias"),
        options["training"],
        options.get("momentum", 0.1),
        options.get("eps", 1e-5),
    ).unflatten(0, y.shape[:2])
    if "step_gain" in tensors:
        z = z * get("step_gain").view(-1, *[1] * (y.dim() - 1))
    return z + get("residual") if "residual" in tensors else z


class _GradientInDtype(torch.autograd.Function):
    """The identity; what comes back is rounded to a dtype."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).to(grad.dtype), None


def composed_of_torch(y: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """batch_norm and the neuron as two operations with a gradient in the dtype of y in between.

    That is what PyTorch's own modules hand on. Forward, the current between them stays float32:
    rounded, it would fire other neurons and there were nothing to compare.
    """
    given = {name: options.pop(name, None) for name in ("residual", "step_gain", "spike_add")}
    norm = [options.pop(name) for name in ("bn_weight", "bn_bias", "running_mean", "running_var")]
    training, momentum, eps, scale = (
        options.pop(name) for name in ("training", "momentum", "eps", "bn_scale")
    )
    wide = membrane_dtype(y.dtype)
    norm[0] = scale * (y.new_ones(y.shape[2]) if norm[0] is None else norm[0]).to(wide)
    folded = y.to(wide).flatten(0, 1)
    z = functional.batch_norm(folded, norm[2], norm[3], norm[0], norm[1], training, momentum, eps)
    x = z.unflatten(0, y.shape[:2])
    if given["step_gain"] is not None:
        x = x * given["step_gain"].view(-1, *[1] * (y.dim() - 1))
    if given["residual"] is not None:
        x = x + given["residual"].to(wide)
    v_init = options.pop("v_init", None)
    v_init = None if v_init is None else v_init.to(wide)
    x = _GradientInDtype.apply(x, y.dtype)
    spikes, v_last = multistep_lif_reference(x, v_init=v_init, **options)
    if given["spike_add"] is not None:
        spikes = spikes + given["spike_add"].to(wide)
    return spikes.to(y.dtype), v_last


def margin(tensors: dict, options: dict, shape: str) -> float:
    y = tensors["y"]
    of = lambda name: per_channel(tensors.get(name, options.get(name)), y)  # noqa: E731
    v_init = tensors.get("v_init")
    trace = by_hand(
        currents(tensors, options),
        decay=of("decay"),
        threshold=of("threshold"),
        gain=options["gain"],
        reset=options["reset"],
        v_reset=options["v_reset"],
        v_init=None if v_init is None else v_init.detach().double(),
        learn=False,
    )
    width = per_channel(tensors.get("width", 0.9), y)
    return trace.margin(width if shape == "rectangle" else None)


def inputs(
    size: tuple[int, ...],
    T: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: str,
    training: bool,
    affine: str,
    running: bool,
    residual: bool,
    spike_add: bool,
    step_gain: bool,
    v_init: str,
    parameters: dict[str, str],
    seed: int,
) -> dict[str, torch.Tensor]:
    C, wide = size[1], membrane_dtype(dtype)
    make = lambda shape, n, **kind: normal(shape, wide, device, 100 * seed + n, **kind)  # noqa: E731
    y = normal((T, *size), dtype, device, 100 * seed, mean=0.5, std=1.5)
    tensors = {"y": as_layout(y, layout)}
    if affine in ("both", "weight"):
        tensors["bn_weight"] = make((C,), 1, mean=1.0, std=0.2)
    if affine in ("both", "bias"):
        tensors["bn_bias"] = make((C,), 2, mean=0.3, std=0.2)
    if running or not training:
        tensors["running_mean"] = make((C,), 3, mean=0.5, std=0.3)
        tensors["running_var"] = make((C,), 4).square() + 0.5
    if residual:
        tensors["residual"] = normal((T, *size), dtype, device, 100 * seed + 5, std=0.5)
    if spike_add:
        tensors["spike_add"] = dyadic((T, *size), dtype, device, seed + 6, low=0.0, high=2.0)
    if step_gain:
        tensors["step_gain"] = make((T,), 7, mean=1.0, std=0.3)
    if v_init != "none":
        v_dtype = wide if v_init == "wide" else dtype
        tensors["v_init"] = dyadic(size, v_dtype, device, seed + 8, low=-0.5, high=0.5)
    for name, kind in parameters.items():
        value = parameter(kind, name, C)
        if isinstance(value, torch.Tensor):
            tensors[name] = value.to(device, wide)
    return tensors


def compare(
    size: tuple[int, ...],
    T: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: str = "contiguous",
    training: bool = True,
    affine: str = "both",
    running: bool = True,
    residual: bool = False,
    spike_add: bool = False,
    step_gain: bool = False,
    bn_scale: float = 1.0,
    momentum: float = 0.1,
    eps: float = 1e-5,
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
) -> dict[str, torch.Tensor]:
    """One case of every option: fused, composed of torch's ops in the same dtype, and in float64."""
    kinds = dict(decay=decay, threshold=threshold, width=width)
    options = dict(training=training, bn_scale=bn_scale, momentum=momentum, eps=eps)
    options |= dict(reset=reset, detach_reset=detach_reset, v_reset=v_reset, gain=gain)
    for name in ("decay", "threshold"):
        if kinds[name] == "float":
            options[name] = parameter("float", name, 1)
    for seed in itertools.count():
        tensors = inputs(
            size, T, dtype, device, layout, training, affine, running, residual, spike_add, step_gain,
            v_init, kinds, seed,
        )  # fmt: skip
        if margin(tensors, options, shape) > MARGIN:
            break
    missing = {"bn_weight", "bn_bias", "running_mean", "running_var"} - tensors.keys()
    options |= dict.fromkeys(missing)
    wide = membrane_dtype(dtype)
    gradients = {
        "spikes": normal((T, *size), dtype, device, 1),
        "v_last": normal(size, wide, device, 2),
    }
    if upstream != "both":
        gradients = {upstream: gradients[upstream]}
    surrogate = (shape, height, parameter("float", "width", 1))
    arguments = (tensors, options, gradients)
    ours = evaluate(multistep_bn_lif, *arguments, surrogate=surrogate)
    composed = evaluate(composed_of_torch, *arguments, surrogate=surrogate)
    exact = evaluate(multistep_bn_lif_reference, *arguments, torch.float64, surrogate)
    assert_as_good_as_torch(ours, composed, exact)
    assert ours["spikes"].dtype == dtype
    assert ours["v_last"].dtype == wide
    return ours


# ---- every option


EVERY_PAIR = pairwise(
    dict(
        layout=LAYOUTS,
        shape=SHAPES,
        size=SIZES,
        T=[1, 2, 4, 10, 17],
        affine=["both", "weight", "bias", "none"],
        upstream=["both", "spikes", "v_last"],
        v_init=["none", "wide", "same"],
        dtype=DTYPES[:3],
        reset=RESETS,
        decay=["float", "scalar", "channel"],
        threshold=["float", "scalar", "channel"],
        width=["float", "scalar", "channel"],
        training=[True, False],
        running=[True, False],
        residual=[False, True],
        spike_add=[False, True],
        step_gain=[False, True],
        detach_reset=[True, False],
        bn_scale=[1.0, 0.7],
        momentum=[0.1, 0.5],
        eps=[1e-5, 1e-2],
        v_reset=[0.0, -0.5],
        gain=[1.0, 0.5],
        height=[1.0, 0.25],
    )
)


@pytest.mark.parametrize("case", EVERY_PAIR, ids=case_id)
def test_every_pair_of_options(backend, device, case):
    compare(device=device, **case)


RESETS_AND_SURROGATES = pairwise(
    dict(reset=RESETS, detach_reset=[True, False], shape=SHAPES, dtype=DTYPES[:3])
)


@pytest.mark.parametrize("case", RESETS_AND_SURROGATES, ids=case_id)
def test_resets_and_surrogates(backend, device, case):
    compare((3, 2, 3), 2, device=device, layout="channels_last", **case)


@pytest.mark.parametrize("backend", ["native", "torch"], indirect=True)
@pytest.mark.parametrize("T", WINDOWS)
def test_every_window_size_and_layout(backend, device, T):
    switch = [False, True]
    factors = dict(layout=LAYOUTS, size=SIZES, dtype=DTYPES, training=switch, residual=switch)
    cases = pairwise(factors | dict(step_gain=switch))
    for case in cases[WINDOWS.index(T) % 3 :: 3]:
        compare(T=T, device=device, **case, reset="soft", detach_reset=False)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize(("T", "residual"), [(16, False), (37, True), (64, False)])
def test_long_windows_interpreted(backend, device, T, residual):
    compare((2, 2, 2), T, torch.bfloat16, device, "channels_last", residual=residual)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(3, 130), (1, 3, 33, 40), (2, 2, 1, 700)], ids=str)
def test_channels_and_images_larger_than_a_block(backend, device, size, layout):
    compare(size, 2, torch.bfloat16, device, layout, residual=True)


@pytest.mark.parametrize("given", ["other layout", "expanded"])
def test_residual_and_added_spikes_of_another_layout(backend, device, given):
    """They are brought into the order of y; their gradients come back right."""
    y = as_layout(normal((3, 2, 4, 2, 3), device=device), "channels_last")
    extra = normal(y.shape, device=device, seed=1)
    laid = as_layout(extra, {"other layout": "contiguous"}.get(given, given))
    ones, zeros = torch.ones(4, device=device), torch.zeros(4, device=device)
    results = []
    for value in (laid, laid.contiguous()):
        residual, add = (value.detach().requires_grad_() for _ in range(2))
        options = dict(residual=residual, spike_add=add, detach_reset=False)
        out = multistep_bn_lif(y, ones, zeros, None, None, **options)
        out.backward(extra)
        results.append((out.detach(), residual.grad, add.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert torch.equal(results[0][2], extra)


def test_one_argument_alone_can_want_a_gradient(backend, device):
    """Only the weight, only the bias, only the residual, ...: the others stay without."""
    size = (2, 3, 2)
    tensors = inputs(
        size, 2, torch.float32, device, "channels_last", True, "both", True, True, True, True, "wide",
        dict(decay="channel", threshold="scalar", width="channel"), seed=0,
    )  # fmt: skip
    learnable = [name for name in tensors if not name.startswith("running")]

    def run(function, wanted):
        given = {k: v.clone().requires_grad_(k == wanted) for k, v in tensors.items()}
        surrogate = Surrogate("atan", width=given["width"])
        rest = {name: value for name, value in given.items() if name != "width"}
        out = function(**rest, surrogate=surrogate, detach_reset=False)
        out.backward(normal(out.shape, device=device, seed=9))
        return {name: value.grad for name, value in given.items()}

    for wanted in learnable:
        ours, plain = run(multistep_bn_lif, wanted), run(multistep_bn_lif_reference, wanted)
        assert [name for name, grad in ours.items() if grad is not None] == [wanted]
        torch.testing.assert_close(ours[wanted], plain[wanted], rtol=1e-4, atol=1e-5)


# ---- statistics


def statistics(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance as the running statistics receive them."""
    mean, var = torch.zeros(y.shape[2], device=y.device), torch.ones(y.shape[2], device=y.device)
    multistep_bn_lif(y, None, None, mean, var, momentum=1.0)
    return mean, var


def assert_statistics(y: torch.Tensor, rtol: float) -> None:
    """The variance to rtol, the mean to rtol of the deviation plus its own rounding."""
    mean, var = statistics(y)
    dims = [d for d in range(y.dim()) if d != 2]
    exact_var, exact_mean = torch.var_mean(y.double(), dim=dims)
    assert torch.all((var - exact_var).abs() <= rtol * exact_var), (var, exact_var)
    rounding = 1.2e-7 * exact_mean.abs()
    assert torch.all((mean - exact_mean).abs() <= rtol * exact_var.sqrt() + rounding)


@pytest.mark.parametrize(
    ("layout", "ratio"),
    [("contiguous", 100.0), ("channels_last", -100.0), ("channels_last", 0.0)],
)
def test_statistics_with_a_mean_far_from_zero(backend, device, layout, ratio):
    """The mean 100 times the deviation, in float32: E[y^2] - E[y]^2 would lose four digits."""
    y = normal((2, 3, 3, 9, 11), device=device, mean=ratio)
    assert_statistics(as_layout(y, layout), rtol=1e-5)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
@pytest.mark.parametrize(
    ("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)], ids=str
)
def test_statistics_of_a_million_elements_a_channel(backend, device, layout, dtype):
    y = normal((2, 64, 2, 128, 64), dtype, device, mean=100.0)
    assert y.numel() // 2 > 10**6
    assert_statistics(as_layout(y, layout), rtol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_of_a_channel_that_is_silent_but_for_its_first_pixel(backend, device, layout):
    """Sparse activity: the first element of a channel says nothing about the others."""
    y = torch.zeros(2, 3, 2, 32, 32, device=device)
    y[0, 0, :, 0, 0] = 7.7
    y[:, :, 1] += 3.1
    assert_statistics(as_layout(y, layout), rtol=1e-5)


def test_statistics_of_constant_channels_are_exact(backend, device):
    """No variance, no NaN: xhat is 0 and the neuron sees the bias."""
    y = torch.full((3, 2, 2, 7), 1e3, device=device)
    mean, var = statistics(y)
    assert mean.eq(1e3).all()
    assert var.eq(0).all()
    leaf = y.clone().requires_grad_()
    bias = torch.tensor([0.0, 1.0], device=device)
    spikes = multistep_bn_lif(leaf, None, bias, None, None, decay=0.0)
    spikes.sum().backward()
    assert torch.equal(spikes, bias.view(1, 1, 2, 1).expand_as(y))
    assert leaf.grad.isfinite().all()


def test_training_without_gradients_still_counts(backend, device):
    """no_grad: statistics of the batch, running buffers updated, as torch does."""
    y = normal((2, 3, 3, 4), device=device, mean=2.0)
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    with torch.no_grad():
        multistep_bn_lif(y, None, None, mean, var)
    torch.testing.assert_close(mean, 0.1 * y.mean((0, 1, 3)))


def test_half_precision_buffers_and_weights(backend, device):
    """A model cast to bfloat16 keeps working: buffers and affine in the dtype of y."""
    y = normal((3, 2, 3, 8), torch.bfloat16, device)
    weight, bias = (torch.full((3,), v, dtype=torch.bfloat16, device=device) for v in (1.0, 0.5))
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    weight.requires_grad_()
    multistep_bn_lif(y, weight, bias, mean, var, momentum=1.0).sum().backward()
    assert weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(mean.double(), y.double().mean((0, 1, 3)), rtol=1e-2, atol=1e-3)


# ---- edges


def test_values_that_are_no_numbers_stay_in_their_channel(backend, device):
    """Training mixes a channel's elements, so its neurons all feel a NaN; others do not."""
    clean = normal((3, 2, 3, 5), device=device)
    dirty = clean.clone()
    dirty[1, 1, 1, 2] = float("nan")
    results = []
    for y in (clean, dirty):
        leaf = y.requires_grad_()
        spikes = multistep_bn_lif(leaf, None, None, None, None)
        spikes.backward(torch.ones_like(spikes))
        results.append((spikes.detach(), leaf.grad))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one[:, :, [0, 2]], two[:, :, [0, 2]])
    assert results[1][0][:, :, 1].eq(0).all()
    assert results[1][1][:, :, 1].isnan().all()


def test_an_empty_batch_in_evaluation(backend, device):
    y = torch.zeros(3, 0, 4, 2, 2, device=device, requires_grad=True)
    weight = torch.ones(4, device=device, requires_grad=True)
    buffers = torch.zeros(4, device=device), torch.ones(4, device=device)
    spikes, v_last = multistep_bn_lif(y, weight, None, *buffers, training=False, return_v=True)
    assert spikes.shape == y.shape
    assert v_last.shape == y.shape[1:]
    spikes.sum().backward()
    assert y.grad.shape == y.shape
    assert weight.grad.eq(0).all()


def test_pieces_of_a_window_equal_the_whole_in_evaluation(backend, device):
    """Streaming inference: running statistics, the membrane handed on; every bit."""
    y = normal((12, 2, 3, 4), torch.bfloat16, device, mean=0.4)
    norm = (None, None, torch.zeros(3, device=device), torch.ones(3, device=device))
    gains = torch.linspace(0.5, 1.5, 12, device=device)
    whole, v_last = multistep_bn_lif(y, *norm, training=False, step_gain=gains, return_v=True)
    v, rows = None, []
    for begin, end in itertools.pairwise((0, 3, 12)):
        piece = dict(training=False, step_gain=gains[begin:end], v_init=v, return_v=True)
        out, v = multistep_bn_lif(y[begin:end], *norm, **piece)
        rows.append(out)
    assert torch.equal(torch.cat(rows), whole)
    assert torch.equal(v, v_last)
