"""A neuron's call by its options: what it is, what it is given, and what it gives on the kernels or by definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from spiketriton_kernels import SHAPES, Surrogate
from spiketriton_kernels.functions import stacked, told
from spiketriton_kernels.neuron import Call, Inputs, Norm, Outputs
from spiketriton_kernels.neurons import ALIF, CLIF, ILIF, LIF, CuBaLIF
from spiketriton_kernels.neurons.stepping import Told
from spiketriton_kernels.window import fire
from tests.kernels.support import (
    DTYPES,
    LAYOUTS,
    as_layout,
    assert_rounded,
    dyadic,
    membrane_dtype,
    normal,
)

EQUATIONS: dict[str, dict[str, Any]] = {
    "lif soft": dict(kind="lif", reset="soft"),
    "lif hard": dict(kind="lif", reset="hard"),
    "lif to -0.25": dict(kind="lif", reset="hard", v_reset=-0.25),
    "lif none": dict(kind="lif", reset="none"),
    "lif soft, delayed": dict(kind="lif", reset="soft", reset_delay=True),
    "lif hard, delayed": dict(kind="lif", reset="hard", reset_delay=True),
    "ilif": dict(kind="ilif", levels=3),
    "clif": dict(kind="clif"),
    "alif soft": dict(kind="alif", reset="soft"),
    "alif hard": dict(kind="alif", reset="hard"),
    "alif none": dict(kind="alif", reset="none"),
    "cuba soft": dict(kind="cuba", reset="soft"),
    "cuba hard": dict(kind="cuba", reset="hard"),
    "cuba none": dict(kind="cuba", reset="none"),
}
KINDS = {equation["kind"]: name for name, equation in EQUATIONS.items()}
"""The last equation of each kind."""

CLASSES = {"lif": LIF, "ilif": ILIF, "clif": CLIF, "alif": ALIF, "cuba": CuBaLIF}

SIZES = [(3, 5, 7), (7, 3), (2, 8, 4, 4), (2, 1, 65), (2, 3, 2, 2, 3)]
"""[B, C, ...]: odd numbers, no space, powers of two, one channel, a volume."""

_FORMS = ["float", "scalar", "channel"]
_SWITCH = [False, True]
OPTIONS: dict[str, Any] = dict(
    equation=EQUATIONS,
    shape=SHAPES,
    layout=LAYOUTS,
    other_layout=LAYOUTS,
    size=SIZES,
    T=[5, 1, 2, 17],
    dtype=DTYPES,
    norm=["none", "batch", "given"],
    affine=["both", "weight", "bias", "none"],
    learns=["all", "x", "constants", "what is added"],
    upstream=["all", "spikes", "others"],
    states=["none", "wide", "narrow"],
    **dict.fromkeys(("decay", "threshold", "width", "gain", "rho", "beta"), _FORMS),
    **dict.fromkeys(("detach_reset", "residual", "spike_add", "step_gain"), _SWITCH),
    **dict.fromkeys(("trace", "current", "probe", "running", "as_operator"), _SWITCH),
    scale=[1.0, 0.7],
    height=[0.9, 0.25],
)  # fmt: skip
PLAIN = {name: next(iter(values)) for name, values in OPTIONS.items()}
"""The first value of each: a call to change from."""

COMPILED = {
    "lif": (torch.float32, torch.float64, torch.bfloat16),
    "ilif": (torch.float32, torch.float64, torch.float16),
}
"""Dtypes in which C++ is compiled without --slow, of other kinds float32: up to ten seconds each. A kind is the same in
every dtype, and what reads and writes a dtype is the same in every kind, but for binary spikes and whole numbers."""


def compiled(case: dict[str, Any]) -> dict[str, Any]:
    """The case, in a dtype of ``COMPILED``."""
    name = case["equation"]
    dtypes = COMPILED.get(EQUATIONS[name]["kind"], (torch.float32,))
    return case if case["dtype"] in dtypes else case | {"dtype": dtypes[-1]}


def on_each_backend(
    cases: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]
) -> list[Any]:
    """Parameters "backend" and "case"; in C++ as ``compiled`` has it, and as they are with --slow."""

    def given(backend: str, case: dict[str, Any], *marks: pytest.MarkDecorator) -> Any:
        return pytest.param(backend, case, marks=marks, id=f"{backend}-{name(case)}")

    found = [given(backend, case) for backend in ("triton", "torch") for case in cases]
    found += [given("native", compiled(case)) for case in cases]
    return found + [given("native", c, pytest.mark.slow) for c in cases if compiled(c) != c]


CONSTANTS = dict(decay=0.6, gain=0.9, threshold=0.8, width=0.7, rho=0.7, beta=0.4)
ADDED = ("v_init", "m_init", "residual", "spike_add")
BUFFERS = ("running_mean", "running_var")
RESULTS = ("spikes", "v_last", "m_last", "trace", "current")
_UNUSED = {
    "lif": ("rho", "beta"),
    "ilif": ("rho", "beta", "width"),
    "clif": ("rho", "beta"),
    "cuba": ("beta",),
}


def drawn(case: dict[str, Any], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a call, by name."""
    size, T, dtype, wide = case["size"], case["T"], case["dtype"], membrane_dtype(case["dtype"])
    kind, C, seeds = EQUATIONS[case["equation"]]["kind"], size[1], itertools.count()

    def small(n: int, mean: float, std: float) -> torch.Tensor:
        return normal((n,), wide, device, next(seeds), mean, std)

    def large(layout: str, mean: float, std: float) -> torch.Tensor:
        return as_layout(normal((T, *size), dtype, device, next(seeds), mean, std), case[layout])

    tensors = {"x": large("layout", 0.6, 1.5)}
    for name, value in CONSTANTS.items():
        if case[name] != "float" and name not in _UNUSED.get(kind, ()):
            spread = 0.2 * torch.arange(C) / C if case[name] == "channel" else torch.zeros(())
            narrow = dtype if case["states"] == "narrow" else wide
            strided = (value + spread).to(device, narrow).repeat(2, 1).T[:, 0]
            tensors[name] = strided if case[name] == "channel" else strided[0]
    if case["norm"] != "none":
        if case["affine"] in ("both", "weight"):
            tensors["weight"] = small(C, 1.2, 0.2)
        if case["affine"] in ("both", "bias"):
            tensors["bias"] = small(C, 0.4, 0.2)
        if case["norm"] == "given" or case["running"]:
            tensors["running_mean"] = small(C, 0.5, 0.3)
            tensors["running_var"] = small(C, 0.0, 1.0).square() + 0.5
        if case["step_gain"]:
            tensors["step_gain"] = small(T, 1.0, 0.3)
    if case["residual"]:
        tensors["residual"] = large("other_layout", 0.3, 0.7)
    if case["spike_add"]:
        add = dyadic((T, *size), dtype, device, next(seeds), low=0.0)
        tensors["spike_add"] = as_layout(add, case["other_layout"])
    if case["states"] != "none":
        for name in ADDED[: len(CLASSES[kind].states)]:
            state = large("other_layout", 0.1, 0.4)[0]
            tensors[name] = state.to(wide) if case["states"] == "wide" else state
    return tensors


def learning(case: dict[str, Any], name: str) -> bool:
    """Whether this tensor of a call wants a gradient."""
    constants = (*CONSTANTS, "weight", "bias", "step_gain")
    groups = {"x": ("x",), "constants": constants, "what is added": ADDED}
    return name not in BUFFERS and name in groups.get(case["learns"], (name,))


def neuron_of(case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Told:
    constants: dict[str, Any] = {
        name: tensors.get(name, value) for name, value in CONSTANTS.items()
    }
    surrogate = Surrogate(case["shape"], case["height"], constants.pop("width"))
    equation = dict(EQUATIONS[case["equation"]])
    cls = CLASSES[equation.pop("kind")]
    delayed = equation.pop("reset_delay", False)
    constants["v_threshold"] = constants.pop("threshold")
    constants |= {name: equation.get(name, 0.0) for name in ("v_reset", "levels")}
    options = dict(
        reset_mode=equation.get("reset", "soft"),
        detach_reset=case["detach_reset"] or delayed,
        reset_delay=delayed,
    )
    return told(
        cls,
        surrogate,
        tuple([options[name] for name in cls.options if name != "leaks_to_reset"]),
        tuple([constants[name] for name in cls.constants]),
    )


def by_kernels(
    inputs: Inputs, neuron: Told, call: Call, norm: Norm | None, probe: torch.Tensor | None = None
) -> Outputs:
    return fire.fire(inputs, neuron.record(inputs.x), call, norm, probe)


def define(
    inputs: Inputs, neuron: Told, call: Call, norm: Norm | None, smooth: bool = False
) -> Outputs:
    """By the definition, from a neuron whose class has the equations."""
    return neuron.define(inputs, call, norm, smooth=smooth)


def called(
    function: Callable[..., Outputs],
    case: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    **more: Any,
) -> dict[str, torch.Tensor]:
    """What ``by_kernels`` or ``define`` gives of these tensors, by name."""
    neuron, get = neuron_of(case, tensors), tensors.get
    norm = None
    if case["norm"] != "none":
        norms = [get(name) for name in ("weight", "bias", *BUFFERS)]
        norm = Norm(
            *norms, case["norm"] == "batch", momentum=0.3, eps=0.01, scale=case["scale"], step_gain=get("step_gain")
        )  # fmt: skip
    wanted = dict(return_trace=case["trace"], return_current=case["current"])
    call, x = Call(return_states=True, **wanted), tensors["x"]
    states = stacked(x, *[get(name) for name in ADDED[: len(neuron.neuron.states)]])
    inputs = Inputs(x, states, get("residual"), get("spike_add"))
    out = function(inputs, neuron, call, norm, **more)
    last = dict(zip(("v_last", "m_last"), out.states, strict=False))
    named = out._asdict() | last
    return {name: named[name] for name in RESULTS if named.get(name) is not None}


def answered(
    function: Callable[..., Outputs],
    case: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    place: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
    **more: Any,
) -> dict[str, torch.Tensor | None]:
    """Every result and gradient of a call by name.

    Args:
        dtype: computed in this one instead of the tensors' own.
        place: where inputs and upstream gradients lie.
    """
    leaves = {name: place(v.detach().to(dtype or v.dtype)) for name, v in tensors.items()}
    for name, leaf in leaves.items():
        leaves[name] = (
            leaf.clone() if name in BUFFERS else leaf.requires_grad_(learning(case, name))
        )
    found = called(function, case, leaves, **more)
    ends = {}
    for seed, (name, value) in enumerate(found.items(), start=50):
        if (
            case["upstream"] in ("all", "spikes" if name == "spikes" else "others")
            and value.requires_grad
        ):
            end = normal(value.shape, case["dtype"], value.device, seed).to(value.dtype)
            ends[name] = place(as_layout(end, case["other_layout"]) if name == "spikes" else end)
    if ends:
        torch.autograd.backward([found[name] for name in ends], list(ends.values()))
    results: dict[str, torch.Tensor | None] = {n: value.detach() for n, value in found.items()}
    for name, leaf in leaves.items():
        if name in BUFFERS:
            results[name] = leaf
        else:
            results[f"gradient of {name}"] = leaf.grad
    return results


def assert_as_defined(
    case: dict[str, Any], device: torch.device | str, ulps: float = 64
) -> dict[str, torch.Tensor]:
    """A call on the kernels is its definition in float64; returns what that gives."""
    tensors = drawn(case, device)
    probe = tensors["x"].new_zeros(case["T"], 8, dtype=torch.float32).requires_grad_()
    found = answered(by_kernels, case, tensors, probe=probe if case["probe"] else None)
    exact = answered(define, case, tensors, torch.float64)
    assert found.keys() == exact.keys()
    for name, right in exact.items():
        value = found[name]
        if right is None or value is None:  # autograd says None where nothing depends on a value
            assert all(other is None or not other.any() for other in (right, value)), name
            assert value is None or learning(case, name.removeprefix("gradient of ")), name
        elif name == "spikes":
            assert torch.equal(value, right.to(value.dtype)), "spikes differ"
        else:
            assert_rounded(name, value, right, ulps)
    wide = membrane_dtype(case["dtype"])
    dtypes = dict(spikes=case["dtype"], current=case["dtype"], v_last=wide, m_last=wide, trace=wide)
    dtypes |= {f"gradient of {name}": tensor.dtype for name, tensor in tensors.items()}
    assert all(v is None or v.dtype == dtypes[n] for n, v in found.items() if n in dtypes)
    return exact
