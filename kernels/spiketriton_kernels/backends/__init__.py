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
``current``; then the kind's step, ``definition.charge`` and ``discharge``; then ``spikes = s + spike_add``. ``v_last``
and ``m_last`` are the states after the last step, ``trace`` is v of every step. ``saved`` [rows, v or v and m, neurons]
are the states at the start of each chunk but the first, in the memory order of x; only Triton is given it, for windows
of several chunks (``triton_tiles.chunk_length``). Arithmetic is the membrane's, in the definition's
order: spikes and states are its to the bit, but for functions such as a sigmoid.

v[-1] is v_init, or ``neuron.v_start``; m[-1] is m_init, or 0.

**Backward.** Replays the window from x (from ``saved`` on, where there is one), and walks it back. With c = dL/dv[t],
carried from t + 1 and with ``upstream.v_last`` and ``upstream.trace[t]``, and dL/dm[t] likewise with
``upstream.m_last``, the gradients are those of autograd through the definition's step. ``detach_reset`` leaves s out of
the reset, never out of m.

    own = dL/dx[t] through the neuron
    dx = own + upstream.current     dz = step_gain * dx     (dz = dx without one)
    dy = weight * bn_scale * rstd * dz                                   count == 0: statistics were given
       = weight * bn_scale * rstd * (dz - sum(dz) / count - xhat * sum(dz * xhat) / count)
                                        the two sums are ``sums`` [2, C] (of all ranks), or None: those of this walk
    out.sums [2, C] = sum(dz), sum(dz * xhat)           out.step_gain [T] = sum(dx * (weight * bn_scale * xhat + bias))
    out.v_init, out.m_init = dL/dv[-1], dL/dm[-1]
    out.parameters [neuron.rows, C or 1]: rows in the order of ``neuron.PARAMETERS``, per channel where any of them has
        channels (``neuron.parameter_size``). Rows of floats may hold anything.
    out.probe [T, 8]: ``arguments.PROBE_FIELDS``, of one step
        (dL/ds)^2 is of upstream.spikes alone; dL/dx is ``own``; c as above; |dv[t]/dv[t-1]| at fixed x and other states
        (through s unless detached; a delayed reset counts as the detached one that it delays); outside: phi < REACH (of
        several spikes: where they pass no gradient); spikes: the sum of s

A surrogate of one's own (``neuron.shape`` is none of ``SHAPES``) reaches Triton where it is compiled
(``surrogate.own_surrogate``), eager else; never native.
"""
