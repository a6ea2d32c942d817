"""Constants of a tile in Triton, and one step of LIF by hand: charge, spike and reset, and the way back.

The other kinds' steps are printed from their definition (``kinds``). The equations: see the docstring of ``backends``.

Arithmetic is float32. The membrane's is in the order of the definition; the gradient's takes fused multiply-adds where
they are written out. What a kind or a call does not need is left out when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..surrogate import phi, primitive
from ..triton_import import tl, triton


class Constants(NamedTuple):
    """A neuron's constants. A kernel is given floats, pointers to what learns, None for what it does not need."""

    decay: Any
    leak: Any  # 1 - decay
    gain: Any
    threshold: Any
    rho: Any
    rest: Any  # 1 - rho
    beta: Any
    v_reset: Any
    v_start: Any
    height: Any
    width: Any
    inverse_width: Any  # made by ``of_tile``
    eps: Any
    bn_scale: Any


class Forms(NamedTuple):
    """How what may learn is given, in the order of ``neuron.PARAMETERS``: "float", "scalar" or "channel"."""

    decay: str
    threshold: str
    width: str
    gain: str
    rho: str
    beta: str


class Back(NamedTuple):
    """One step back; ``through`` is dL/ds with what comes through the reset."""

    by_h: Any
    jump: Any  # dv/dh
    unit: Any  # phi
    s: Any
    through: Any
    by_threshold: Any


class Rules(NamedTuple):
    """What a kernel is compiled for."""

    kind: str
    reset: str
    leaks_to_reset: bool
    detach: bool
    shape: str
    states: int


@triton.jit
def _parameter(given, tile, FORM: tl.constexpr):
    if given is None:
        value = 0.0
    elif FORM == "float":
        value = given
    elif FORM == "scalar":
        value = tl.load(given)
    else:
        value = tl.load(given + tile.channels, mask=tile.valid, other=1.0)
    return value


@triton.jit
def of_tile(given, tile, FORMS: tl.constexpr):
    """The constants of a tile: scalars, or one value for each column or for its channel."""
    # Names of their own, because Triton 3.6 passes no field of a constant on to a function.
    DECAY: tl.constexpr = FORMS.decay
    GAIN: tl.constexpr = FORMS.gain
    THRESHOLD: tl.constexpr = FORMS.threshold
    WIDTH: tl.constexpr = FORMS.width
    RHO: tl.constexpr = FORMS.rho
    BETA: tl.constexpr = FORMS.beta
    decay = _parameter(given.decay, tile, DECAY)
    leak = _parameter(given.leak, tile, "float")
    if DECAY != "float":
        leak = 1.0 - decay
    rho = _parameter(given.rho, tile, RHO)
    rest = _parameter(given.rest, tile, "float")
    if RHO != "float":
        rest = 1.0 - rho
    width = _parameter(given.width, tile, WIDTH)
    inverse_width = 0.0
    if given.width is not None:
        inverse_width = 1.0 / width
    return Constants(
        decay,
        leak,
        _parameter(given.gain, tile, GAIN),
        _parameter(given.threshold, tile, THRESHOLD),
        rho,
        rest,
        _parameter(given.beta, tile, BETA),
        given.v_reset,
        given.v_start,
        _parameter(given.height, tile, "float"),
        width,
        inverse_width,
        given.eps,
        given.bn_scale,
    )


# ---- forward


@triton.jit
def charge(v, current, c, RULES: tl.constexpr):
    """h of a step from the membrane before it; a delayed reset comes first."""
    if RULES.leaks_to_reset:
        h = v + c.gain * current - c.leak * (v - c.v_reset)
    elif RULES.reset == "delayed_soft":
        h = c.decay * v + c.gain * current - tl.where(v >= c.threshold, c.threshold, 0.0)
    elif RULES.reset == "delayed_hard":
        h = c.decay * tl.where(v >= c.threshold, 0.0, v) + c.gain * current
    else:
        h = c.decay * v + c.gain * current
    return h


@triton.jit
def settle(h, c, RULES: tl.constexpr):
    """(spikes, membrane) after a step with the potential h."""
    fired = h >= c.threshold
    if RULES.reset == "hard":
        v = tl.where(fired, c.v_reset, h)
    elif RULES.reset == "soft":
        v = tl.where(fired, h - c.threshold, h)
    else:
        v = h
    return tl.where(fired, 1.0, 0.0), v


# ---- back


@triton.jit
def _surrogate(u, c, SHAPE: tl.constexpr, OWN: tl.constexpr):
    """phi of the potential's distance to the threshold."""
    if OWN is not None:
        unit = OWN(u * c.inverse_width)
    elif SHAPE == "rectangle":
        unit = tl.where(tl.abs(u) < c.width, 1.0, 0.0)
    else:
        unit = phi(u * c.inverse_width, SHAPE)
    return unit


@triton.jit
def step_back(h, grad_s, by_v, c, RULES: tl.constexpr, OWN: tl.constexpr):
    """``Back`` of one step; ``by_v`` is dL/dv after it."""
    SHAPE: tl.constexpr = RULES.shape
    fired = h >= c.threshold
    through = grad_s
    of_v = tl.zeros(h.shape, tl.float32)  # dv/dthreshold, apart from what comes through s
    unit = _surrogate(h - c.threshold, c, SHAPE, OWN)
    slope = c.height * unit
    if RULES.reset == "hard":
        jump = tl.where(fired, 0.0, 1.0)
        if not RULES.detach:
            jump = jump + (c.v_reset - h) * slope
    else:
        jump = tl.full(h.shape, 1.0, tl.float32)
        if RULES.reset == "soft" and not RULES.detach:
            jump = jump - c.threshold * slope
    by_h = tl.fma(through, slope, by_v * jump)
    if RULES.reset == "delayed_hard":  # for a probe; dL/dv gets it a step later
        jump = tl.where(fired, 0.0, 1.0)
    if RULES.reset == "soft":
        of_v = tl.where(fired, -1.0, 0.0)
        if not RULES.detach:
            through = through - by_v * c.threshold
    if RULES.reset == "hard" and not RULES.detach:
        through = through + by_v * (c.v_reset - h)
    by_threshold = by_v * of_v - through * slope
    return Back(by_h, jump, unit, tl.where(fired, 1.0, 0.0), through, by_threshold)


@triton.jit
def by_width(h, back, c, RULES: tl.constexpr, OWN: tl.constexpr):
    """dL/dwidth of one step, from the relaxed spike height * width * Phi(u / width)."""
    z = (h - c.threshold) * c.inverse_width
    if OWN is not None:
        area = OWN(z)
    else:
        SHAPE: tl.constexpr = RULES.shape
        area = primitive(z, SHAPE)
    return back.through * c.height * (area - z * back.unit)
