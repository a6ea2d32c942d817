"""What the kernel tests share: inputs, a neuron written out by hand, how results are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spiketriton_kernels import SHAPES, Surrogate
from tests import covering

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
WINDOWS = (1, 2, 4, 10, 16, 17, 32, 37, 64)
LAYOUTS = ("contiguous", "channels_last", "permuted", "strided", "time_inside", "expanded")
RESETS = ("soft", "hard", "none")
EVERY_PATH = [
    dict(reset=reset, detach_reset=detach, shape=shape, dtype=DTYPES[(i + j) % len(DTYPES)])
    for i, (reset, detach) in enumerate(itertools.product(RESETS, (True, False)))
    for j, shape in enumerate(SHAPES)
]
"""What is compiled apart, all of it; each dtype meets each reset and each surrogate."""

PHI: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "fast_sigmoid": lambda z: (1 + z.abs()) ** -2,
    "atan": lambda z: 1 / (1 + z**2),
    "sigmoid": lambda z: 4 * torch.sigmoid(z) * (1 - torch.sigmoid(z)),
    "triangle": lambda z: (1 - z.abs()) * (z.abs() < 1),
    "rectangle": lambda z: (z.abs() < 1).to(z.dtype),
    "gaussian": lambda z: torch.exp(-(z**2) / 2),
}
"""The surrogates of docs/design.md, written here a second time."""


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- inputs


def dyadic(
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    low: float = -1.0,
    high: float = 2.0,
) -> torch.Tensor:
    """Multiples of 1/4 in [low, high]: with decay 1/2 potentials are exact, spikes must match."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randint(round(4 * low), round(4 * high) + 1, tuple(size), generator=generator)
    return (quarters / 4).to(device, dtype)


def normal(
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(tuple(size), generator=generator)).to(device, dtype)


def as_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of x [T, B, C, ...] in another layout ("expanded" repeats the first image)."""
    if layout == "channels_last":
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "permuted":  # gapless, time outermost, but neither of the two usual orders
        return x.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "strided":  # every second element, NaN between
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "time_inside":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "expanded":
        return x[:, :1].expand_as(x)
    return x.contiguous()


def pairwise(factors: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Cases, by name, in which every two values of different factors meet at least once."""
    return [dict(zip(factors, case, strict=True)) for case in covering.pairwise(*factors.values())]


def case_id(case: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return str(value).removeprefix("torch.")

    return "-".join(word(value) for value in case.values())


# ---- running a function and comparing what it gives

BUFFERS = ("running_mean", "running_var")


def evaluate(
    function: Callable[..., Any],
    tensors: dict[str, torch.Tensor],
    options: dict[str, Any],
    upstream: dict[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    surrogate: tuple[str, float, float] = ("atan", 1.0, 1.0),
) -> dict[str, torch.Tensor]:
    """Call a neuron function, walk back from ``upstream`` and return every result by name.

    Args:
        tensors: tensor arguments by name ("width": the surrogate's); all but buffers learn.
        options: the other arguments. upstream: gradients of "spikes" and / or "v_last".
        dtype: compute in this dtype instead of the tensors' own.
    """
    given: dict[str, Any] = {}
    for name, value in tensors.items():
        value = value.detach() if dtype is None else value.detach().to(dtype)
        given[name] = value.clone() if name in BUFFERS else value.requires_grad_()
    shape, height, width = surrogate
    slope = Surrogate(shape, height=height, width=given.get("width", width))
    arguments = {name: value for name, value in given.items() if name != "width"}
    spikes, v_last = function(**arguments, **options, surrogate=slope, return_v=True)
    results = {"spikes": spikes, "v_last": v_last}
    starts = [name for name in results if name in upstream]
    ends = [upstream[name].to(results[name].dtype) for name in starts]
    torch.autograd.backward([results[name] for name in starts], ends)
    results = {name: value.detach() for name, value in results.items()}
    for name, value in given.items():
        if name in BUFFERS:
            results[name] = value
        else:  # autograd says None where nothing depends on a value, the fused operator 0
            zero = torch.zeros_like(value)
            results[f"gradient of {name}"] = zero if value.grad is None else value.grad
    return results


def assert_as_good_as_torch(
    ours: dict[str, torch.Tensor],
    composed: dict[str, torch.Tensor],
    exact: dict[str, torch.Tensor],
    ulps: float = 64,
) -> None:
    """Spikes equal; every other value errs at most twice as much as PyTorch in the same dtype.

    Twice in root mean square, and four times at the worst element, which is a matter of luck.
    ``composed`` is PyTorch's in the dtype of ours, ``exact`` the reference in float64. The floor,
    ``ulps`` roundings of the membrane's dtype, is for what PyTorch happens to get exactly.
    """
    assert ours.keys() == composed.keys() == exact.keys()
    for name, expected in exact.items():
        value, theirs = ours[name], composed[name]
        assert value.shape == expected.shape, name
        assert value.dtype == theirs.dtype, name
        if name == "spikes":
            assert torch.equal(value.to(expected.dtype), expected), "spikes differ"
            continue
        if expected.numel() == 0:
            continue
        error, torchs = ((v.to(expected.dtype) - expected).abs() for v in (value, theirs))
        floor = (
            ulps
            * torch.finfo(membrane_dtype(value.dtype)).eps
            * max(1.0, float(expected.abs().max()))
        )
        for measure, factor in ((rms, 2), (torch.max, 4)):
            given, bound = float(measure(error)), factor * float(measure(torchs)) + floor
            assert given <= bound, f"{name}: error {given:.3g}, accepted {bound:.3g}"


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


# ---- the neuron by hand


class _Spike(torch.autograd.Function):
    """A step whose derivative is the given slope."""

    @staticmethod
    def forward(ctx, h, threshold, slope):
        ctx.save_for_backward(slope)
        return (h >= threshold).to(h.dtype)

    @staticmethod
    def backward(ctx, grad):
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


@dataclass
class Trace:
    """Every intermediate of a window, one entry a time step, with gradients kept."""

    current: list[torch.Tensor]  # x
    over: list[torch.Tensor]  # u = h - threshold
    out: list[torch.Tensor]  # the spikes as they leave the neuron
    membrane: list[torch.Tensor]  # v
    unit_slope: list[torch.Tensor]  # phi
    jump: list[torch.Tensor]  # dv/dh

    def margin(self, edge: float | torch.Tensor | None = None) -> float:
        """Distance of the closest potential to the threshold, or to threshold +- edge."""
        u = torch.stack(self.over)
        closest = u.abs().min()
        if edge is not None:
            closest = torch.minimum(closest, (u.abs() - edge).abs().min())
        return float(closest)


def by_hand(
    current: torch.Tensor,
    *,
    decay: float | torch.Tensor = 0.5,
    gain: float = 1.0,
    threshold: float | torch.Tensor = 1.0,
    reset: str = "hard",
    v_reset: float = 0.0,
    detach_reset: bool = True,
    shape: str = "atan",
    height: float = 1.0,
    width: float | torch.Tensor = 1.0,
    v_init: torch.Tensor | None = None,
    learn: bool = True,
) -> Trace:
    """The equations of docs/design.md section 2 as a loop that keeps everything.

    ``learn=False`` keeps no gradients and no dv/dh: potentials and spikes only.
    """
    trace = Trace([], [], [], [], [], [])
    start = v_reset if reset == "hard" else 0.0
    v = torch.full_like(current[0], start) if v_init is None else v_init
    for x in current.unbind(0):
        h = decay * v + gain * x
        if reset == "hard":
            h = h + (1 - decay) * v_reset
        unit = PHI[shape]((h.detach() - threshold) / width)
        s = _Spike.apply(h, threshold, height * unit)
        kept = s.detach() if detach_reset else s
        if reset == "soft":
            v = h - threshold * kept
        elif reset == "hard":
            v = (1 - kept) * h + v_reset * kept
        else:
            v = h * 1.0
        out = s.clone()
        if learn:
            trace.jump.extend(torch.autograd.grad(v.sum(), h, retain_graph=True))
            for tensor in (x, out, v):
                tensor.retain_grad()
        trace.current.append(x)
        trace.over.append((h - threshold).detach())
        trace.out.append(out)
        trace.membrane.append(v)
        trace.unit_slope.append(unit)
    return trace


def probe_by_hand(trace: Trace, decay: float | torch.Tensor) -> torch.Tensor:
    """The sums of PROBE_FIELDS [T, 8] from a trace whose backward has run."""
    rows = []
    for t, out in enumerate(trace.out):
        zero = torch.zeros_like(trace.membrane[t])
        grad_s, grad_x, carry = (
            zero if tensor.grad is None else tensor.grad
            for tensor in (out, trace.current[t], trace.membrane[t])
        )
        rows.append(
            [
                grad_s.square().sum(),
                grad_x.square().sum(),
                carry.square().sum(),
                (decay * trace.jump[t]).abs().sum(),
                (trace.unit_slope[t] < 0.01).sum(),
                out.detach().sum(),
                grad_x.abs().max(),
                (~grad_x.isfinite()).sum(),
            ]
        )
    return torch.tensor(rows, dtype=torch.float64)
