"""Arguments by machine: every call gives what the definition gives, or is refused in one line.

hypothesis draws shapes, layouts, dtypes and options, and spoils some of them. An unspoiled call must
equal the reference; a spoiled one must raise a TypeError or ValueError that names what was spoiled.
Values are dyadic, so that spikes are compared bit for bit, or hold NaN and infinities here and there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from spiketriton_kernels import (
    PROBE_FIELDS,
    SHAPES,
    Surrogate,
    multistep_bn_lif,
    multistep_bn_lif_reference,
    multistep_lif,
    multistep_lif_reference,
    pack_spikes,
    unpack_spikes,
)
from tests.kernels.support import BUFFERS, LAYOUTS, RESETS, as_layout, dyadic, membrane_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EXAMPLES = {"triton": 8, "native": 60, "torch": 60}
MORE = 10  # times as many with --slow

WRONG_NUMBERS = ["0.5", None, True, math.nan, math.inf, -math.inf, 1j, [0.5], 10**400]
WRONG_TENSORS = [
    torch.ones(3, 1),
    torch.ones(7),
    torch.ones(9),
    torch.ones((), dtype=torch.int64),
    torch.ones((), dtype=torch.bool),
    torch.ones((), dtype=torch.complex64),
    torch.ones((), device="meta"),
]


def wrong_like(x: torch.Tensor) -> list[Any]:
    """What is no tensor of the shape, dtype and device of x."""
    grown = torch.zeros((*x.shape[:-1], x.shape[-1] + 1), dtype=x.dtype)
    wide = torch.float32 if x.dtype == torch.float64 else torch.float64
    return [0.5, "x", grown, x[None], x.long(), x.bool(), x.to(wide), x.cfloat(), x.to("meta")]


def wrong_inputs(x: torch.Tensor) -> list[Any]:
    flat = torch.zeros(x.shape[0])
    kinds = [x.long(), x.bool(), x.to(torch.complex64), x.to(torch.float8_e4m3fn), x.to_sparse()]
    return [None, 1.0, [1.0], flat, torch.tensor(1.0), x[:0], *kinds]


@st.composite
def calls(draw: st.DrawFn, norm: bool) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(tensors, options, names of the arguments that are wrong) of a call."""
    dtype = draw(st.sampled_from(DTYPES))
    rank = draw(st.integers(3 if norm else 2, 6))
    T = draw(st.sampled_from([1, 2, 3, 5, 17]))
    size = [draw(st.sampled_from([1, 2, 3, 5] + [0] * (not norm))) for _ in range(rank - 1)]
    seed = draw(st.integers(0, 99))
    shape = (T, *size)
    channels = size[1] if rank > 2 else None
    wide = membrane_dtype(dtype)

    x = dyadic(shape, dtype, seed=seed)
    if rank > 2 and x.numel():
        x = as_layout(x, draw(st.sampled_from(LAYOUTS)))
    name = "y" if norm else "x"
    tensors: dict[str, Any] = {name: x}
    options: dict[str, Any] = dict(
        reset=draw(st.sampled_from(RESETS)),
        detach_reset=draw(st.booleans()),
        v_reset=draw(st.sampled_from([0, 0.0, -0.5])),
        gain=draw(st.sampled_from([1, 1.0, 0.5, -1.0, 0.0])),
    )
    # behind batch norm a dyadic threshold could be met exactly, and rounding would decide the spike
    thresholds = (0.93710, 0.71230) if norm else (1.0, 0.75)
    for parameter, values in dict(decay=(0.5, 0.0, 1), threshold=thresholds).items():
        certain = norm and parameter == "threshold"
        kind = draw(st.sampled_from(["absent"] * (not certain) + ["float", "()", "(C,)"]))
        value = draw(st.sampled_from(values))
        if kind == "()" or (kind == "(C,)" and channels):
            sizes = () if kind == "()" else (channels,)
            narrow = wide if certain else draw(st.sampled_from([wide, dtype]))
            tensors[parameter] = torch.full(sizes, float(value), dtype=narrow)
        elif kind != "absent":
            options[parameter] = value
    if draw(st.booleans()):
        tensors["v_init"] = dyadic(size, draw(st.sampled_from([wide, dtype])), seed=seed + 1)
    if not norm and x.numel() and draw(st.integers(0, 3)) == 0:
        tensors[name] = x = spoiled_by(x, draw(st.sampled_from([math.nan, math.inf, -math.inf])))
    if norm:
        add_norm(draw, tensors, options, x, seed)
    surrogate = Surrogate(
        draw(st.sampled_from(SHAPES)), height=draw(st.sampled_from([1, 0.5, 0.0])), width=1.0
    )
    options["surrogate"] = surrogate

    wrong: dict[str, Any] = {}
    if draw(st.booleans()):
        numbers = ["gain", "v_reset"] + ["eps", "momentum", "bn_scale"] * norm
        likes = ["v_init"] + [
            "residual",
            "spike_add",
            "bn_weight",
            "running_mean",
            "step_gain",
        ] * norm
        victim = draw(st.sampled_from([name, "reset", "detach_reset", "surrogate", *numbers, *likes,
                                       "decay", "threshold", "width", "probe"]))  # fmt: skip
        wrong[victim] = draw(wrong_values(victim, x))
    for victim, value in wrong.items():
        tensors.pop(victim, None)
        options.pop(victim, None)
        if victim == "width":
            options["surrogate"] = Surrogate("atan", width=value)
        else:
            options[victim] = value
    return tensors, options, list(wrong)


def add_norm(
    draw: st.DrawFn, tensors: dict[str, Any], options: dict[str, Any], y: torch.Tensor, seed: int
) -> None:
    wide, channels = membrane_dtype(y.dtype), y.shape[2]
    training = options["training"] = draw(st.booleans()) and y.numel() > channels
    options["eps"] = draw(st.sampled_from([1e-5, 1, 0.25]))
    options["momentum"] = draw(st.sampled_from([0.1, 0, 1.0]))
    options["bn_scale"] = draw(st.sampled_from([1.0, 2, 0.5]))
    for name in ("bn_weight", "bn_bias"):
        options[name] = None
        if draw(st.booleans()):
            tensors[name] = dyadic(
                [channels], draw(st.sampled_from([wide, y.dtype])), seed=seed + 2
            )
    options["running_mean"] = options["running_var"] = None
    if not training or draw(st.booleans()):
        tensors["running_mean"] = dyadic([channels], wide, seed=seed + 3)
        tensors["running_var"] = dyadic([channels], wide, seed=seed + 4, low=0.5, high=2.0)
    for name in ("residual", "spike_add"):
        if draw(st.integers(0, 2)) == 0:
            layout = draw(st.sampled_from(LAYOUTS[:4]))
            tensors[name] = as_layout(dyadic(y.shape, y.dtype, seed=seed + 5), layout)
    if draw(st.integers(0, 2)) == 0:
        tensors["step_gain"] = dyadic([y.shape[0]], wide, seed=seed + 6, low=0.5)
    for name in tensors:
        options.pop(name, None)


def spoiled_by(x: torch.Tensor, value: float) -> torch.Tensor:
    """x with one element in the middle replaced."""
    x = x.clone()
    x[tuple(side // 2 for side in x.shape)] = value
    return x


def wrong_values(name: str, x: torch.Tensor) -> st.SearchStrategy[Any]:
    if name in ("x", "y"):
        return st.sampled_from(wrong_inputs(x))
    if name == "reset":
        return st.sampled_from(["Hard", "", None, 1, ["hard"], {"hard"}]) | st.text(max_size=5)
    if name == "detach_reset":
        return st.sampled_from([0, 1, None, "True", torch.tensor(True)])
    if name == "surrogate":
        return st.sampled_from([None, "atan", Surrogate, 1.0])
    if name in ("decay", "threshold"):
        return st.sampled_from([*WRONG_NUMBERS, *WRONG_TENSORS])
    if name == "width":
        return st.sampled_from([torch.ones(7), torch.ones((), device="meta")])
    if name == "probe":
        shape = (x.shape[0], len(PROBE_FIELDS))
        return st.sampled_from(wrong_like(torch.zeros(shape)))
    if name == "v_init":
        return st.sampled_from(wrong_like(torch.zeros(x.shape[1:], dtype=x.dtype)))
    if name in ("residual", "spike_add"):
        return st.sampled_from(wrong_like(torch.zeros(x.shape, dtype=x.dtype)))
    if name in ("bn_weight", "running_mean"):
        return st.sampled_from(wrong_like(torch.zeros(x.shape[2], dtype=x.dtype)))
    if name == "step_gain":
        return st.sampled_from(wrong_like(torch.zeros(x.shape[0], dtype=x.dtype)))
    return st.sampled_from([*WRONG_NUMBERS, torch.ones(())])


# ---- running both sides


def outcome(
    function: Callable[..., Any], tensors: dict[str, Any], options: dict[str, Any]
) -> dict[str, torch.Tensor] | Exception:
    """Every result and gradient by name, or what the call raised."""
    leaves = {
        name: value.detach().clone(memory_format=torch.preserve_format)
        if name in BUFFERS
        else value.detach().requires_grad_()
        for name, value in tensors.items()
    }
    try:
        spikes, v_last = function(**leaves, **options, return_v=True)
    except Exception as error:
        return error
    results = {"spikes": spikes, "v_last": v_last}
    if spikes.requires_grad:
        ends = [dyadic(r.shape, r.dtype, seed=7 + i) for i, r in enumerate(results.values())]
        torch.autograd.backward(list(results.values()), ends)
    results = {name: value.detach() for name, value in results.items()}
    for name, leaf in leaves.items():
        if name in BUFFERS:
            results[name] = leaf
        else:  # autograd says None where nothing depends on a value, the fused operator 0
            results[f"gradient of {name}"] = (
                torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            )
    return results


def assert_refused(error: Any, names: list[str]) -> None:
    assert isinstance(error, (TypeError, ValueError)), repr(error)
    message = str(error)
    assert "\n" not in message
    assert len(message) < 300
    words = {"width": "surrogate width"}
    assert any(words.get(name, name) in message for name in names), message


def assert_equal_results(ours: Any, theirs: Any, finite: torch.Tensor) -> None:
    """Spikes bit for bit, the rest to the rounding of its dtype.

    A neuron that met NaN or an infinity has no gradient to agree on, its neighbours have: `finite`
    [B, ...] says which. Sums over neurons are compared when all of them are.
    """
    assert isinstance(theirs, dict), theirs
    assert isinstance(ours, dict), ours
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        value = ours[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype, name
        if name == "spikes":
            assert torch.equal(value, expected), name
        if name.startswith("gradient") and not finite.all():
            if name not in ("gradient of x", "gradient of v_init"):
                continue
            value, expected = value[..., finite], expected[..., finite]
        largest = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 1.0
        rounding = max(4 * torch.finfo(value.dtype).eps, 1e-4)
        torch.testing.assert_close(
            value, expected, rtol=rounding, atol=rounding * max(1.0, largest), equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


def check(function: Callable[..., Any], reference: Callable[..., Any], call: Any) -> None:
    tensors, options, wrong = call
    ours = outcome(function, tensors, options)
    if wrong:
        assert_refused(ours, wrong)
        return
    x = tensors.get("x", tensors.get("y"))
    assert_equal_results(ours, outcome(reference, tensors, options), x.isfinite().all(0))


def hunt(request: pytest.FixtureRequest, backend: str, strategy: Any, test: Callable[[Any], None]):
    """Runs `test` on examples of `strategy`: the same ones every time, more with --slow."""
    more = MORE if request.config.getoption("--slow") else 1
    settings(
        max_examples=EXAMPLES[backend] * more,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # what failed is printed as it is
    )(given(strategy)(test))()


def test_calls_of_the_neuron(request, backend):
    def run(call: Any) -> None:
        check(multistep_lif, multistep_lif_reference, call)

    hunt(request, backend, calls(norm=False), run)


def test_calls_of_the_neuron_behind_batch_norm(request, backend):
    def run(call: Any) -> None:
        check(multistep_bn_lif, multistep_bn_lif_reference, call)

    hunt(request, backend, calls(norm=True), run)


@pytest.mark.parametrize("layout", ["strided", "time_inside", "expanded"])
@pytest.mark.parametrize("size", [(3, 1, 2, 2), (3, 4, 1, 1)], ids=str)
def test_one_channel_or_pixel_in_a_layout_that_needs_a_copy(backend, device, size, layout):
    """A folded copy of these looks like channels_last, the tensor itself is not."""
    x = as_layout(dyadic((5, *size), device=device), layout)
    assert torch.equal(multistep_lif(x), multistep_lif_reference(x))


@st.composite
def tensors_of_spikes(draw: st.DrawFn) -> tuple[torch.Tensor, bool]:
    """(spikes in some layout, whether they can be packed)."""
    size = draw(st.lists(st.sampled_from([0, 1, 2, 3, 9]), max_size=5))
    dtype = draw(st.sampled_from([*DTYPES, torch.int32, torch.bool, torch.complex64]))
    x = dyadic(size, torch.float32, seed=draw(st.integers(0, 9))).to(dtype)
    if len(size) >= 3:
        x = as_layout(x, draw(st.sampled_from(["contiguous", "permuted", "time_inside"])))
    good = dtype in DTYPES
    if x.numel() and draw(st.booleans()):
        x = draw(st.sampled_from([x.expand(2, *size), x[..., ::2] if size else x[None]]))
        places = torch.arange(x.untyped_storage().nbytes()).as_strided(x.shape, x.stride())
        good &= places.unique().tolist() == list(range(x.numel()))
    return x, good


def test_packing(request, backend):
    """What goes in comes out as 0 and 1 in its own layout, or is refused."""

    def run(case: tuple[torch.Tensor, bool]) -> None:
        x, good = case
        if not good:
            with pytest.raises((TypeError, ValueError), match="spikes") as caught:
                pack_spikes(x)
            assert "\n" not in str(caught.value)
            return
        bits = pack_spikes(x)
        back = unpack_spikes(bits, x.shape, x.stride(), x.dtype)
        assert torch.equal(back, (x != 0).to(x.dtype))
        assert bits.numel() == (x.numel() + 7) // 8

    hunt(request, backend, tensors_of_spikes(), run)
