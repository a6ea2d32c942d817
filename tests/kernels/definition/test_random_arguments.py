"""Arguments by machine: every call gives what the definition gives, or is refused in one line.

hypothesis draws shapes, layouts, dtypes and options. Drawn anew, one argument of a public function is spoiled, which
must raise a TypeError or ValueError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from spiketriton_kernels import (
    PROBE_FIELDS,
    Surrogate,
    multistep_bn_lif,
    multistep_lif,
    pack_spikes,
    unpack_spikes,
)
from tests.kernels.cases import OPTIONS, assert_as_defined, compiled
from tests.kernels.support import DTYPES, as_layout, dyadic

EXAMPLES = {"triton": 8, "native": 30, "torch": 30}
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
def cases(draw: st.DrawFn, norms: list[str]) -> dict[str, Any]:
    """Options of a call, some of them outside the table's."""
    case = {name: draw(st.sampled_from(list(values))) for name, values in OPTIONS.items()}
    rank = draw(st.integers(2, 5))
    size = tuple(draw(st.sampled_from([1, 2, 3, 5])) for _ in range(rank))
    changes = dict(
        size=size, T=draw(st.sampled_from([1, 2, 3, 6, 18])), norm=draw(st.sampled_from(norms))
    )
    assume(changes["norm"] != "batch" or changes["T"] * math.prod(size) > 5 * size[1])
    return case | changes | dict(as_operator=False)


@st.composite
def spoiled(draw: st.DrawFn, norm: bool) -> tuple[str, dict[str, Any]]:
    """(the argument that is wrong, all of them) of a call."""
    shape = (
        draw(st.sampled_from([1, 2, 5])),
        *(draw(st.lists(st.sampled_from([2, 3]), min_size=2, max_size=4))),
    )
    name, x = "y" if norm else "x", dyadic(shape, draw(st.sampled_from(DTYPES)))
    numbers = ["gain", "v_reset"] + ["eps", "momentum", "bn_scale"] * norm
    likes = ["v_init"] + ["residual", "spike_add", "bn_weight", "running_mean", "step_gain"] * norm
    others = [name, "reset", "detach_reset", "surrogate", "decay", "threshold", "width", "probe"]
    victim = draw(st.sampled_from([*numbers, *likes, *others]))
    value = draw(wrong_values(victim, x))
    arguments = (
        dict.fromkeys(("bn_weight", "bn_bias", "running_mean", "running_var")) if norm else {}
    )
    if victim == "width":
        return "surrogate width", arguments | {name: x, "surrogate": Surrogate("atan", width=value)}
    return victim, arguments | {name: x, victim: value}


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


def both(
    request: pytest.FixtureRequest, backend: str, function: Callable[..., Any], norms: list[str]
) -> None:
    def refused(call: tuple[str, dict[str, Any]]) -> None:
        name, arguments = call
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**arguments)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 300
        assert name in message

    few = backend == "native" and not request.config.getoption("--slow")

    def defined(case: dict[str, Any]) -> None:
        case = compiled(case) if few else case
        assert_as_defined(case, "cpu", ulps=1024)

    hunt(request, backend, cases(norms), defined)
    hunt(request, backend, spoiled("none" not in norms), refused)


def test_calls_of_the_neuron(request, backend):
    both(request, backend, multistep_lif, ["none"])


def test_calls_of_the_neuron_behind_batch_norm(request, backend):
    both(request, backend, multistep_bn_lif, ["batch", "given"])


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
