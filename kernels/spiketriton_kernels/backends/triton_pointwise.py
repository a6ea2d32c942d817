"""Functions of a number that a step of one's own may call and Triton's core lacks, or has only rounded otherwise."""

from __future__ import annotations

from ..surrogate import reciprocal
from ..triton_import import tl, triton


@triton.jit
def divided(a, b):
    """a / b, rounded to the nearest as IEEE 754 says, which Triton's own division is not on every GPU."""
    zero = tl.zeros((a + b).shape, tl.float32)
    return tl.div_rn(zero + a, zero + b)


@triton.jit
def sigmoid(x):
    return reciprocal(1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """With x - x^3 / 3 where the difference of exponentials would lose digits."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = tl.abs(x) * (1.0 - square * (0.3333333333333333 - square * 0.13333333333333333))
    size = tl.where(tl.abs(x) < 0.04, near, far)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def expm1(x):
    """exp(x) - 1 (Kahan's formula, which keeps the digits near 0)."""
    u = tl.exp(x)
    safe = tl.where((u == 1.0) | (u - 1.0 == -1.0) | (u == float("inf")), 2.0, u)
    value = (safe - 1.0) * x / tl.log(safe)
    value = tl.where(u - 1.0 == -1.0, -1.0, value)
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, value))


@triton.jit
def log1p(x):
    """log(1 + x) (Kahan's formula)."""
    u = 1.0 + x
    safe = tl.where((u == 1.0) | (u == float("inf")), 2.0, u)
    value = tl.log(safe) * (x / (safe - 1.0))
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, value))


@triton.jit
def sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x * 0.0))


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def nearest(x):
    """The nearest whole number, ties to even: 1.5 * 2^23 leaves no bits behind the point."""
    whole = (x + 12582912.0) - 12582912.0
    return tl.where(tl.abs(x) < 4194304.0, whole, x)
