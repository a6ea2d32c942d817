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
have the membrane's (``neuron.membrane_dtype``); a constant or norm tensor is 1-d and contiguous, of 1 or C values. A
``probe`` is float32 always. Every constant may be a float or a tensor, in every step.

**Forward.** In order: the norm, ``x[t] = step_gain[t] * (weight * bn_scale * xhat[t] + bias)`` (``bn_lif``), where the
neuron has one (``measures``: of mean and var, which are filled first, with ``running``); plus ``residual``: that is
``current``; then ``neuron.step``; then ``spikes = s + spike_add``. ``states`` are those after the last step, ``trace``
the first of them after every step. ``saved`` [rows, states, neurons] are the states at the start of each chunk but the
first, in the memory order of x; only Triton is given it, for windows of several chunks
(``chunk_length(T, neuron.holds_more)``). Arithmetic is the membrane's, in the step's order: spikes and states are the
definition's to the bit, but for functions such as a sigmoid.

The states before the window are ``inputs.states``, or ``neuron.starts``.

**Backward.** Replays the window from x (from ``saved`` on, where there is one), and walks it back by the step's way
back: with the gradients by the states carried from t + 1, ``upstream.states`` after the last step, and
``upstream.trace[t]`` added to that by the first. They are those of autograd through the step.

    own = dL/dx[t] through the neuron
    dx = own + upstream.current     dz = step_gain * dx     (dz = dx without one)
    dy = weight * bn_scale * rstd * dz                                   count == 0: statistics were given
       = weight * bn_scale * rstd * (dz - sum(dz) / count - xhat * sum(dz * xhat) / count)
                                        the two sums are ``sums`` [2, C] (of all ranks), or None: those of this walk
    out.sums [2, C] = sum(dz), sum(dz * xhat)           out.step_gain [T] = sum(dx * (weight * bn_scale * xhat + bias))
    out.states = those by the states before the window
    out.constants [neuron.rows, C or 1]: of those that learn, in the order of ``step.constants`` (``step.rows``), per
        channel where any of them has channels (``neuron.channels``)
    out.probe [T, 8]: ``arguments.PROBE_FIELDS``, of one step
        (dL/ds)^2 is of upstream.spikes alone; dL/dx is ``own``; c is the gradient carried to the first state;
        |dv[t]/dv[t-1]| at fixed x and other states (through s unless detached); outside: phi < REACH (of several
        spikes: where they pass no gradient); spikes: the sum of s

A surrogate of one's own that no step is printed with (``step.own_surrogate``) reaches Triton where it is compiled
(``surrogate.own_surrogate``), eager else; never native.
"""
