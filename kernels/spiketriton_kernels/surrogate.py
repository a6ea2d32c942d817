"""Surrogate slopes: the stand-in for ds/dh in the backward pass, in PyTorch. ``triton_pointwise.py`` has Triton's.

A surrogate is ``height * phi((h - threshold) / width)`` with ``phi(0) = 1``. Height and width are two numbers and are
always stated apart: with unit height a wider surrogate makes gradients explode, with unit area a narrower one does,
so a library's single "alpha" says nothing by itself (Zenke & Vogels 2021, Neural Comput. 33(4); Ledinauskas et al.
2020, arXiv 2006.04436). The classmethods translate other libraries' parameters.

===============  ==========================  =====================================
shape            phi(z)                      Phi(z), its primitive with Phi(0) = 0
===============  ==========================  =====================================
fast_sigmoid     1 / (1 + |z|)^2             z / (1 + |z|)
atan             1 / (1 + z^2)               atan(z)
sigmoid          4 sig(z) (1 - sig(z))       2 tanh(z / 2)
triangle         max(0, 1 - |z|)             z - z |z| / 2, constant outside |z| < 1
rectangle        1 if |z| < 1 else 0         clamp(z, -1, 1)
gaussian         exp(-z^2 / 2)               sqrt(pi / 2) erf(z / sqrt 2)
===============  ==========================  =====================================
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

SHAPES = ("fast_sigmoid", "atan", "sigmoid", "triangle", "rectangle", "gaussian")

REACH = 0.01
"""A neuron is outside the surrogate's reach where phi(z) < REACH: it passes less than 1 % of the peak gradient."""


@dataclass(frozen=True)
class OwnSurrogate:
    """A user's own phi and Phi; ``compiled``: both are @triton.jit, else both take and give tensors."""

    name: str
    slope: Callable[..., Any]
    primitive: Callable[..., Any]
    compiled: bool


_own: dict[str, OwnSurrogate] = {}


def register_surrogate(name: str, slope: Callable[..., Any], primitive: Callable[..., Any]) -> None:
    """Makes ``Surrogate(name, height, width)`` a surrogate of one's own, for ``multistep_lif`` and the neurons of it.

    Args:
        name: a word that is none of ``SHAPES``. Registered again, it means the new functions.
        slope: phi(z) with phi(0) = 1. A ``@triton.jit`` function of a float32 tile is compiled into the kernels and
            serves GPUs; a function of a tensor serves every device, in eager PyTorch.
        primitive: Phi(z) with Phi(0) = 0 and the derivative phi, of the same kind.

    Raises:
        ValueError: a name that is taken or no word, one function of each kind.
    """
    if name in SHAPES or not name.isidentifier():
        raise ValueError(
            f"surrogate name {name!r}: accepted: a word other than {', '.join(SHAPES)}"
        )
    kinds = {hasattr(function, "arg_names") for function in (slope, primitive)}
    if len(kinds) > 1:
        raise ValueError(
            f"surrogate {name!r}: one function is @triton.jit, the other is not; accepted: both, or none"
        )
    _own[name] = OwnSurrogate(name, slope, primitive, kinds.pop())


def own_surrogate(shape: str) -> OwnSurrogate | None:
    """What was registered under the name; None for one of ``SHAPES``."""
    return _own.get(shape)


def _in_torch(shape: str, function: str, z: torch.Tensor) -> torch.Tensor:
    own = _own[shape]
    if own.compiled:
        raise RuntimeError(
            f"surrogate {shape!r} is written in Triton, and has no definition in PyTorch"
        )
    return getattr(own, function)(z)


def unit_slope(shape: str, z: torch.Tensor) -> torch.Tensor:
    """phi(z) of the table above, or the user's own."""
    if shape in _own:
        return _in_torch(shape, "slope", z)
    if shape == "fast_sigmoid":
        return 1 / (1 + z.abs()) ** 2
    if shape == "atan":
        return 1 / (1 + z * z)
    if shape == "sigmoid":
        e = torch.exp(-z.abs())
        return 4 * e / (1 + e) ** 2
    if shape == "triangle":
        return (1 - z.abs()).clamp(min=0)
    if shape == "rectangle":
        return (z.abs() < 1).to(z.dtype)
    return torch.exp(-z * z / 2)


def unit_primitive(shape: str, z: torch.Tensor) -> torch.Tensor:
    """Phi(z) of the table above, or the user's own."""
    if shape in _own:
        return _in_torch(shape, "primitive", z)
    if shape == "fast_sigmoid":
        return z / (1 + z.abs())
    if shape == "atan":
        return torch.atan(z)
    if shape == "sigmoid":
        return 2 * torch.tanh(z / 2)
    if shape == "triangle":
        # not clamp, which gives a NaN the gradient 0
        inside = torch.where(z.abs() >= 1, z.sign(), z)
        return inside - inside * inside.abs() / 2
    if shape == "rectangle":  # not clamp, whose gradient at |z| = 1 would be 1
        return torch.where(z.abs() < 1, z, z.sign())
    return math.sqrt(math.pi / 2) * torch.erf(z / math.sqrt(2))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The slope that stands in for the derivative of the spike.

    Args:
        shape: one of ``SHAPES``, or a name given to ``register_surrogate``.
        height: slope at the threshold; finite, >= 0.
        width: scale of the membrane axis; finite, > 0. A tensor of shape ``()`` or ``(C,)`` (C is dim 2 of the
            neuron's input) gets the gradient of the relaxed spike ``height * width * Phi((h - threshold) / width)``.

    Raises:
        ValueError: unknown shape, or a height or width out of range.
    """

    shape: str
    height: float = 1.0
    width: float | torch.Tensor = 0.3

    def __post_init__(self) -> None:
        if self.shape not in SHAPES and self.shape not in _own:
            raise ValueError(
                f"surrogate shape {self.shape!r} is unknown; accepted: {', '.join((*SHAPES, *_own))}"
            )
        if isinstance(self.height, bool) or not isinstance(self.height, (int, float)):
            raise TypeError(f"surrogate height must be a float, got {type(self.height).__name__}")
        if not 0 <= self.height <= sys.float_info.max:
            raise ValueError(f"surrogate height must be finite and >= 0, got {self.height}")
        if isinstance(self.width, torch.Tensor):
            if not self.width.is_floating_point() or self.width.dim() > 1:
                raise ValueError(
                    "surrogate width as a tensor must be floating point of shape () or (C,), got "
                    f"{self.width.dtype} of shape {tuple(self.width.shape)}"
                )
        elif isinstance(self.width, bool) or not isinstance(self.width, (int, float)):
            raise TypeError(
                f"surrogate width must be a float or a tensor, got {type(self.width).__name__}"
            )
        elif not 0 < self.width <= sys.float_info.max:
            raise ValueError(f"surrogate width must be finite and > 0, got {self.width}")

    def slope(self, u: torch.Tensor) -> torch.Tensor:
        """``height * phi(u / width)`` for u = h - threshold, any shape that broadcasts with the width."""
        return self.height * unit_slope(self.shape, u / self.width)

    def primitive(self, u: torch.Tensor) -> torch.Tensor:
        """The relaxed spike ``height * width * Phi(u / width)``, whose derivative by u is ``slope(u)``."""
        return self.height * self.width * unit_primitive(self.shape, u / self.width)

    @classmethod
    def atan(cls, alpha: float = 2.0) -> Surrogate:
        """ATan of SpikingJelly, snnTorch and jaxpike: ``(alpha/2) / (1 + (pi/2 alpha u)^2)``, unit area."""
        return cls("atan", height=alpha / 2, width=2 / (math.pi * alpha))

    @classmethod
    def sigmoid(cls, alpha: float = 4.0) -> Surrogate:
        """SpikingJelly's Sigmoid (snnTorch's sigmoid with slope alpha): ``alpha sig(alpha u) (1 - sig(alpha u))``."""
        return cls("sigmoid", height=alpha / 4, width=1 / alpha)

    @classmethod
    def fast_sigmoid(cls, slope: float = 25.0) -> Surrogate:
        """snnTorch's fast_sigmoid, SuperSpike: ``1 / (1 + slope |u|)^2``, unit height."""
        return cls("fast_sigmoid", height=1.0, width=1 / slope)

    @classmethod
    def triangle(cls, gamma: float = 1.0) -> Surrogate:
        """The triangle of TET and LSNN codes: ``max(0, gamma - |u|) / gamma^2``, unit area with half-width gamma."""
        return cls("triangle", height=1 / gamma, width=gamma)

    @classmethod
    def rectangle(cls, a: float = 1.0) -> Surrogate:
        """STBP's rectangle: ``1/a`` where ``|u| < a/2``, unit area with full width a."""
        return cls("rectangle", height=1 / a, width=a / 2)

    @classmethod
    def piecewise_quadratic(cls, alpha: float = 1.0) -> Surrogate:
        """SpikingJelly's PiecewiseQuadratic: its slope ``alpha max(0, 1 - alpha |u|)`` is a triangle, unit area."""
        return cls("triangle", height=alpha, width=1 / alpha)

    @classmethod
    def soft_sign(cls, alpha: float = 2.0) -> Surrogate:
        """SpikingJelly's SoftSign: ``alpha / (2 (1 + alpha |u|)^2)``, unit area."""
        return cls("fast_sigmoid", height=alpha / 2, width=1 / alpha)

    @classmethod
    def super_spike(cls, alpha: float = 1.0) -> Surrogate:
        """SpikingJelly's SuperSpike, norse's "super" (alpha 1): ``alpha / (1 + |u|)^2``."""
        return cls("fast_sigmoid", height=alpha, width=1.0)

    @classmethod
    def erf(cls, alpha: float = 2.0) -> Surrogate:
        """SpikingJelly's Erf: ``alpha / sqrt(pi) exp(-(alpha u)^2)``, unit area."""
        return cls("gaussian", height=alpha / math.sqrt(math.pi), width=1 / (alpha * math.sqrt(2)))

    @classmethod
    def gaussian(cls, sigma: float = 1.0) -> Surrogate:
        """The normal density of standard deviation sigma, unit area."""
        return cls("gaussian", height=1 / (sigma * math.sqrt(2 * math.pi)), width=sigma)
