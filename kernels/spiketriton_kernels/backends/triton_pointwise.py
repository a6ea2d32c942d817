"""Functions of a number that a step of one's own may call and Triton's core lacks, or has only rounded otherwise."""

from __future__ import annotations

from ..triton_import import tl, triton


@triton.jit
def reciprocal(x):
    """1 / x to 5e-7 for x >= 1: two instructions on any GPU, where a division takes ten."""
    r = tl.rsqrt(x)
    return r * r


@triton.jit
def phi(z, SHAPE: tl.constexpr):
    """phi(z) of the table in surrogate.py, in the registers' dtype (float32)."""
    if SHAPE == "fast_sigmoid":
        r = reciprocal(1.0 + tl.abs(z))
        value = r * r
    elif SHAPE == "atan":
        value = reciprocal(tl.fma(z, z, 1.0))
    elif SHAPE == "sigmoid":
        e = tl.exp(-tl.abs(z))
        r = reciprocal(1.0 + e)
        value = 4.0 * e * r * r
    elif SHAPE == "triangle":
        value = tl.maximum(1.0 - tl.abs(z), 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif SHAPE == "rectangle":
        value = tl.where(tl.abs(z) < 1.0, 1.0, 0.0)
    else:
        value = tl.exp(-0.5 * z * z)
    return value


@triton.jit
def primitive(z, SHAPE: tl.constexpr):
    """Phi(z) of the table in surrogate.py, in float32. Triton's core has an erf, but no atan: see ``_atan``."""
    if SHAPE == "fast_sigmoid":
        value = z / (1.0 + tl.abs(z))
    elif SHAPE == "atan":
        value = _atan(z)
    elif SHAPE == "sigmoid":
        e = tl.exp(-tl.abs(z))
        value = 2.0 * (1.0 - e) / (1.0 + e)
        value = tl.where(z < 0.0, -value, value)
    elif SHAPE == "triangle":
        inside = tl.minimum(tl.maximum(z, -1.0), 1.0)
        value = inside - 0.5 * inside * tl.abs(inside)
    elif SHAPE == "rectangle":
        value = tl.minimum(tl.maximum(z, -1.0), 1.0)
    else:
        value = 1.2533141373155003 * tl.erf(z * 0.7071067811865476)
    return value


@triton.jit
def _atan(z):
    """Arc tangent to 1e-7 (Cephes atanf): Triton's core has none, libdevice is not portable to AMD."""
    a = tl.abs(z)
    big = a > 2.414213562373095
    middle = (a > 0.4142135623730950) & (a <= 2.414213562373095)
    safe = tl.where(big, a, 1.0)
    r = tl.where(big, -1.0 / safe, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    start = tl.where(big, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    q = r * r
    poly = ((8.05374449538e-2 * q - 1.38776856032e-1) * q + 1.99777106478e-1) * q - 3.33329491539e-1
    value = start + (poly * q * r + r)
    return tl.where(z < 0.0, -value, value)


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
