"""One step of a neuron in Triton, of every kind: charge, spike and reset, and the way back.

The equations: see the docstring of ``backends``.

Arithmetic is float32. The membrane's is in the order of the definition; the gradient's takes fused multiply-adds where
they are written out. What a kind or a call does not need is left out when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..surrogate import phi, primitive
from ..triton_import import tl, triton
from .triton_pointwise import sigmoid


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
    """One step back; ``through`` is dL/ds with what comes through the reset and the second state."""

    by_h: Any
    by_m: Any  # before the step
    jump: Any  # dv/dh
    unit: Any  # phi
    s: Any
    through: Any
    by_decay: Any  # apart from the charge
    by_threshold: Any
    by_rho: Any
    by_beta: Any


class Rules(NamedTuple):
    """What a kernel is compiled for."""

    kind: str
    reset: str
    leaks_to_reset: bool
    detach: bool
    shape: str
    levels: int
    has_m: bool
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
def filtered(current, m, c, RULES: tl.constexpr):
    """(what the membrane is charged from, second state after that): of CuBa-LIF both are the synaptic current."""
    if RULES.kind == "cuba":
        m = c.rho * m + current
        current = m
    return current, m


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
def gate(h, c, RULES: tl.constexpr):
    """What CLIF keeps of its second state in a step; a walk back has it from its replay."""
    if RULES.kind == "clif":
        kept = sigmoid(c.leak * h)
    else:
        kept = h
    return kept


@triton.jit
def _level(z, LEVELS: tl.constexpr):
    """round(clamp(z, 0, LEVELS)), ties to even: adding 1.5 * 2^23 leaves no bits behind the point. A NaN stays one."""
    top = tl.minimum(z, LEVELS * 1.0, propagate_nan=tl.PropagateNan.ALL)
    clamped = tl.maximum(top, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return (clamped + 12582912.0) - 12582912.0


@triton.jit
def spike(h, m, c, RULES: tl.constexpr):
    """The spikes of a step with the potential h, and m before it."""
    if RULES.kind == "ilif":
        LEVELS: tl.constexpr = RULES.levels
        s = _level(tl.div_rn(h, c.threshold + tl.zeros(h.shape, tl.float32)), LEVELS)
    elif RULES.kind == "alif":
        s = tl.where(h >= c.threshold + c.beta * m, 1.0, 0.0)
    else:
        s = tl.where(h >= c.threshold, 1.0, 0.0)
    return s


@triton.jit
def settle(h, m, s, kept, c, RULES: tl.constexpr):
    """(membrane, second state) after a step; ``kept``: ``gate`` of h."""
    if RULES.kind == "ilif":
        v = h - c.threshold * s
    elif RULES.kind == "clif":
        m = m * kept + s
        v = h - s * (c.threshold + sigmoid(m))
    else:
        level = c.threshold
        if RULES.kind == "alif":
            level = c.threshold + c.beta * m
            m = c.rho * m + c.rest * s
        fired = h >= level
        if RULES.reset == "hard":
            v = tl.where(fired, c.v_reset, h)
        elif RULES.reset == "soft":
            v = tl.where(fired, h - level, h)
        else:
            v = h
    return v, m


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
def step_back(h, m, kept, grad_s, by_v, by_m, c, RULES: tl.constexpr, OWN: tl.constexpr):
    """``Back`` of one step: m is the second state before it, ``by_v`` and ``by_m`` are dL/dv and dL/dm after it."""
    SHAPE: tl.constexpr = RULES.shape
    s = spike(h, m, c, RULES)
    _, after = settle(h, m, s, kept, c, RULES)
    earlier = by_m
    by_decay = 0.0
    by_rho = 0.0
    by_beta = 0.0
    through = grad_s
    of_v = tl.zeros(h.shape, tl.float32)  # dv/dthreshold, apart from what comes through s
    if RULES.kind == "ilif":
        z = tl.div_rn(h, c.threshold + of_v)
        inside = (z >= 0.0) & (z <= RULES.levels * 1.0)
        unit = tl.where(inside, 1.0, 0.0)
        slope = tl.where(inside, 1.0 / c.threshold, 0.0)
        jump = tl.full(h.shape, 1.0, tl.float32)
        if not RULES.detach:
            jump = tl.where(inside, 0.0, 1.0)
            through = grad_s - by_v * c.threshold
        by_h = tl.fma(grad_s, slope, by_v * jump)
        by_threshold = -(through * slope * z) - by_v * s
    elif RULES.kind == "clif":
        unit = _surrogate(h - c.threshold, c, SHAPE, OWN)
        slope = c.height * unit
        g = sigmoid(after)
        deeper = s * g * (1.0 - g)  # -dv/dm
        bend = m * kept * (1.0 - kept)
        m_by_h = tl.fma(bend, c.leak, slope)
        jump = tl.fma(-deeper, m_by_h, 1.0)
        inner = tl.fma(-by_v, deeper, by_m)  # dL/dm with what comes through the reset
        through = grad_s + inner
        if not RULES.detach:
            jump = jump - (c.threshold + g) * slope
            through = through - by_v * (c.threshold + g)
        by_h = tl.fma(grad_s, slope, tl.fma(by_m, m_by_h, by_v * jump))
        earlier = inner * kept
        by_decay = -(inner * bend) * h
        by_threshold = -through * slope - by_v * s
    else:
        level = c.threshold
        if RULES.kind == "alif":
            level = c.threshold + c.beta * m
            through = grad_s + c.rest * by_m
        fired = h >= level
        unit = _surrogate(h - level, c, SHAPE, OWN)
        slope = c.height * unit
        if RULES.reset == "hard":
            jump = tl.where(fired, 0.0, 1.0)
            if not RULES.detach:
                jump = jump + (c.v_reset - h) * slope
        else:
            jump = tl.full(h.shape, 1.0, tl.float32)
            if RULES.reset == "soft" and not RULES.detach:
                jump = jump - level * slope
        by_h = tl.fma(through, slope, by_v * jump)
        if RULES.reset == "delayed_hard":  # for a probe; dL/dv gets it a step later
            jump = tl.where(fired, 0.0, 1.0)
        if RULES.reset == "soft":
            of_v = tl.where(fired, -1.0, 0.0)
            if not RULES.detach:
                through = through - by_v * level
        if RULES.reset == "hard" and not RULES.detach:
            through = through + by_v * (c.v_reset - h)
        by_threshold = by_v * of_v - through * slope
        if RULES.kind == "cuba":
            by_input = c.gain * by_h + by_m
            earlier = c.rho * by_input
            by_rho = by_input * m
        if RULES.kind == "alif":
            earlier = c.rho * by_m + c.beta * by_threshold
            by_rho = by_m * (m - s)
            by_beta = by_threshold * m
    return Back(by_h, earlier, jump, unit, s, through, by_decay, by_threshold, by_rho, by_beta)


@triton.jit
def by_width(h, m, back, c, RULES: tl.constexpr, OWN: tl.constexpr):
    """dL/dwidth of one step, from the relaxed spike height * width * Phi(u / width)."""
    u = h - c.threshold
    if RULES.kind == "alif":
        u = h - (c.threshold + c.beta * m)
    z = u * c.inverse_width
    if OWN is not None:
        area = OWN(z)
    else:
        SHAPE: tl.constexpr = RULES.shape
        area = primitive(z, SHAPE)
    return back.through * c.height * (area - z * back.unit)
