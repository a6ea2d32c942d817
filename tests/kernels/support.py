"""What the kernel tests share: inputs, a neuron written out by hand, how results are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from spiketriton_kernels import Surrogate
from tests import covering

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF, torch.float64)
LAYOUTS = ("contiguous", "channels_last", "permuted", "strided", "time_inside", "expanded")
RESETS = ("soft", "hard", "none")
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


# ---- comparing


def assert_rounded(name: str, found: torch.Tensor, exact: torch.Tensor, ulps: float = 64) -> None:
    """What PyTorch gives in that dtype: a half precision gradient is rounded twice at most.

    The floor, ``ulps`` roundings of the membrane's dtype, is for sums.
    """
    assert found.shape == exact.shape, name
    if exact.numel() == 0:
        return
    error = (found.to(exact.dtype) - exact).abs()
    largest = max(1.0, float(exact.abs().max()))
    floor = ulps * torch.finfo(membrane_dtype(found.dtype)).eps * largest
    eps = torch.finfo(found.dtype).eps
    for measure in (rms, torch.max):
        given, bound = float(measure(error)), eps * float(measure(exact.abs())) + floor
        assert given <= bound, f"{name}: error {given:.3g}, accepted {bound:.3g}"


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


# ---- the neuron by hand


def by_hand(
    x: torch.Tensor,
    decay: float,
    gain: float,
    threshold: float,
    reset: str,
    v_reset: float,
    detach_reset: bool,
    surrogate: Surrogate,
    v_init: torch.Tensor,
    return_v: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations of docs/design.md section 2 a second time: LIF's spikes and last membrane."""
    v, spikes = v_init, []
    for x_t in x.unbind(0):
        h = decay * v + gain * x_t
        if reset == "hard":
            h = h + (1 - decay) * v_reset
        slope = surrogate.height * PHI[surrogate.shape]((h.detach() - threshold) / surrogate.width)
        s = (h >= threshold).to(h.dtype) + slope * (h - h.detach())
        kept = s.detach() if detach_reset else s
        if reset == "soft":
            v = h - threshold * kept
        elif reset == "hard":
            v = (1 - kept) * h + v_reset * kept
        else:
            v = h
        spikes.append(s)
    return torch.stack(spikes), v
