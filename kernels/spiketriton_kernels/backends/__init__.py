"""The backends: the same passes in Triton, compiled C++ and eager PyTorch. This is what each of them offers.

    forward(inputs: Inputs, neuron: Neuron, out: Outputs, measures: bool, running: Running | None) -> None
    backward(
        upstream: Upstream, inputs: Inputs, saved: Tensor | None, neuron: Neuron, count: float, sums: Tensor | None,
        out: Gradients,
    ) -> None
    channel_statistics(y, mean, var, running: Running | None) -> None

They fill the tensors that they are given, and those alone: a field of ``out`` that is None is not wanted, one of
``upstream`` that is None is 0. ``passes`` allocates, and hands everything over in order: x is dense with time
outermost and not empty, everything of its size or of a step's has its memory order; ``residual``, ``spike_add``,
``upstream.spikes`` and ``upstream.current`` have its dtype; states, their gradients, ``trace`` and everything small
have the membrane's (``neuron.membrane_dtype``); a parameter or norm tensor is 1-d and contiguous, of 1 or C values. A
``probe`` is float32 always. Every constant of ``neuron.PARAMETERS`` may be a float or a tensor, in every kind.

**Forward.** In order: the norm, ``x[t] = step_gain[t] * (weight * bn_scale * xhat[t] + bias)`` (``bn_lif``), where the
neuron has one (``measures``: of mean and var, which are filled first, with ``running``); plus ``residual``: that is
``current``; then the kind's equations below; then ``spikes = s + spike_add``. ``v_last`` and ``m_last`` are the states
after the last step, ``trace`` is v of every step. ``saved`` [rows, v or v and m, neurons] are the states at the start
of each chunk but the first, in the memory order of x; only Triton is given it, for windows of several chunks
(``layout.chunk_length(T, neuron.holds_more)``).

    h[t] = decay * v[t-1] + gain * x[t]     hard reset with v_reset != 0 (``neuron.leaks_to_reset``, lif only):
                                            h[t] = v[t-1] + gain * x[t] - (1 - decay) * (v[t-1] - v_reset)

    lif    s = h >= threshold               soft: v = h - threshold * s   hard: v = v_reset if s else h   none: v = h
           delayed_soft: v = h, h[t] = decay * v[t-1] + gain * x[t] - threshold * (v[t-1] >= threshold)
           delayed_hard: v = h, h[t] = decay * (0 if v[t-1] >= threshold else v[t-1]) + gain * x[t]
    ilif   s = round(clamp(h / threshold, 0, levels))   v = h - threshold * s                (reset is "soft")
    clif   s = h >= threshold               m = m * sigmoid((1 - decay) * h) + s
           v = h - s * (threshold + sigmoid(m))                                              (reset is "soft")
    alif   level = threshold + beta * m[t-1]            s = h >= level     m = rho * m[t-1] + (1 - rho) * s
           reset with the level in the threshold's place: soft, none, hard (to 0); never delayed
    cuba   m[t] = rho * m[t-1] + x[t], and h[t] reads m[t] in the place of x[t]; the rest as lif: soft, none, hard
           (to 0); never delayed

v[-1] is v_init, or ``neuron.v_start``; m[-1] is m_init, or 0. Arithmetic is the membrane's, in this order.

**Backward.** Replays the window from x (from ``saved`` on, where there is one), and walks it back. With c = dL/dv[t],
carried from t + 1 and with ``upstream.v_last`` and ``upstream.trace[t]``, and b = dL/dm[t] likewise with
``upstream.m_last``; g = height * phi((h - threshold) / width), with the level for alif; I-LIF's g is 1 / threshold
where 0 <= h / threshold <= levels, else 0. All of it follows ``definition``, which is the same in code.
``detach_reset`` leaves s out of the reset, never out of m. Delayed resets are always detached.

    own = gain * dL/dh      (cuba: own = gain * dL/dh + b, and dL/dm[t-1] = rho * own)
    dx = own + upstream.current     dz = step_gain * dx     (dz = dx without one)
    dy = weight * bn_scale * rstd * dz                                   count == 0: statistics were given
       = weight * bn_scale * rstd * (dz - sum(dz) / count - xhat * sum(dz * xhat) / count)
                                        the two sums are ``sums`` [2, C] (of all ranks), or None: those of this walk
    out.sums [2, C] = sum(dz), sum(dz * xhat)           out.step_gain [T] = sum(dx * (weight * bn_scale * xhat + bias))
    out.v_init, out.m_init = dL/dv[-1], dL/dm[-1]
    out.parameters [neuron.rows, C or 1]: rows in the order of ``neuron.PARAMETERS``, per channel where any of them has
        channels (``neuron.parameter_size``). Rows of floats may hold anything.
        decay: dL/dh * v[t-1] (minus v_reset where it leaks to it, after a delayed hard reset), and through clif's m
        gain: dL/dh * current (cuba: * m[t])      rho of cuba: own * m[t-1]
             width: through_s * height * (Phi(z) - z * phi(z)), with z = (h - level) / width and
        through_s all that reaches s: upstream, m, and the reset unless it is detached. I-LIF has none.
    out.probe [T, 8]: ``arguments.PROBE_FIELDS``, of one step
        (dL/ds)^2 is of upstream.spikes alone; dL/dx is ``own``; c as above; |decay * dv/dh| with dv/dh the total
        derivative at fixed v[t-1] and m[t-1] (through m for clif, through s unless detached; a delayed reset counts as
        the detached one that it delays); outside: phi < REACH (I-LIF: g == 0); spikes: the sum of s

A surrogate of one's own (``neuron.shape`` is none of ``SHAPES``) reaches Triton where it is compiled
(``surrogate.own_surrogate``), eager else; never native.
"""
