// The neurons: what a step makes of its current and the states before it, and the gradient's way back through it. The
// kind is a compile-time constant, one build each, so that a user waits for the kinds in use only. Equations and order of
// operations as in backends/__init__.py; of a step of one's own (OWN) they are printed, see steps/.

#pragma once

#include "own.h"

namespace {

enum { LIF, ILIF, CLIF, ALIF, CUBA, DELAYED, OWN };  // DELAYED: LIF whose reset belongs to the next step
constexpr int KIND = SPIKETRITON_KIND;
constexpr bool HAS_RHO = KIND == ALIF || KIND == CUBA, SECOND = KIND == CLIF || HAS_RHO;  // SECOND: a state m beside the membrane

enum Parameter { DECAY, THRESHOLD, WIDTH, GAIN, RHO, BETA, PARAMETERS };

// What a build is restricted to, so that the first call of a neuron waits for less; -1: nothing.
#ifdef SPIKETRITON_RESET
constexpr int ONLY_RESET = SPIKETRITON_RESET, ONLY_SHAPE = SPIKETRITON_SHAPE;
#else
constexpr int ONLY_RESET = -1, ONLY_SHAPE = -1;
#endif

// The reset, and for a hard one where the leak pulls.
enum Reset { SUBTRACT, TO_ZERO_LEAK, TO_RESET_LEAK, NO_RESET };
constexpr bool is_hard(int reset) { return reset == TO_ZERO_LEAK || reset == TO_RESET_LEAK; }
constexpr bool has(int reset) {
    if (KIND == ILIF || KIND == CLIF) return reset == SUBTRACT;
    if (KIND == ALIF || KIND == CUBA) return reset != TO_RESET_LEAK;
    if (KIND == OWN) return reset == NO_RESET;
    return KIND == LIF || reset == SUBTRACT || reset == TO_ZERO_LEAK;
}

inline V sigmoid(V x) {
    const V e = exp_negative(-absolute(x)), r = Accumulator(1) / (Accumulator(1) + e);
    return x < 0 ? e * r : r;
}

inline V counted(Mask fired) { return fired ? all(Accumulator(1)) : V{}; }
inline V counted(V spikes) { return spikes; }

#ifdef SPIKETRITON_STEP
#include SPIKETRITON_STEP
#else
constexpr int OWN_STATES = 0, OWN_KEPT = 0, OWN_CONSTANTS = 0;
constexpr double OWN_STARTS[] = {0};
constexpr bool OWN_LEARNS[] = {false}, OWN_WAITS = false;
struct Own {};
#endif
// What is carried from step to step, what a way back keeps of a step (h, and m before it), and what may learn.
constexpr int STATES = KIND == OWN ? OWN_STATES : 1 + SECOND, KEPT = KIND == OWN ? OWN_KEPT : 1 + SECOND;
constexpr int CONSTANTS = KIND == OWN ? OWN_CONSTANTS : PARAMETERS;

// The constants of a vector of neurons. rest is 1 - rho, leak 1 - decay.
struct Rule {
    V decay, leak, threshold, gain, rho, rest, beta;
    Accumulator v_reset, levels;
};

// The nearest of 0 to `levels`, ties to even; a NaN stays one.
inline V level(V z, Accumulator levels) {
    using A = Accumulator;
    constexpr A whole = A(sizeof(A) == 4 ? int64_t(1) << 23 : int64_t(1) << 52);  // from here on there are no fractions
    z = z < 0 ? V{} : z;
    z = z > levels ? all(levels) : z;
    return (z + whole) - whole;
}

inline Rounded written(Mask fired) { return spikes_of(fired); }
inline Rounded written(V spikes) { return rounded(spikes); }

// What h is compared with.
inline V top_of(const Rule &r, V m) {
    if constexpr (KIND == ALIF) return r.threshold + r.beta * m;
    return r.threshold;
}

// What the membrane is charged from: of CuBa-LIF the synaptic current, which is m after the step.
inline V filtered(const Rule &r, V current, V &m) {
    if constexpr (KIND == CUBA) return m = r.rho * m + current;
    return current;
}

// h of a step from the membrane before it; a delayed reset comes first.
template <int RESET>
inline V charge(const Rule &r, V v, V current) {
    if constexpr (RESET == TO_RESET_LEAK) return v + r.gain * current - r.leak * (v - r.v_reset);
    if constexpr (KIND == DELAYED && RESET == TO_ZERO_LEAK) v = v >= r.threshold ? V{} : v;
    const V h = r.decay * v + r.gain * current;
    if constexpr (KIND == DELAYED && RESET == SUBTRACT) return v >= r.threshold ? h - r.threshold : h;
    return h;
}

// Spikes of a step with the potential h, as a mask where they are 0 or 1; v and m become those after it.
template <int RESET>
inline auto settle(const Rule &r, V h, V &v, V &m) {
    if constexpr (KIND == ILIF) {
        const V s = level(h / r.threshold, r.levels);
        v = h - r.threshold * s;
        return s;
    } else if constexpr (KIND == CLIF) {
        const Mask fired = h >= r.threshold;
        m = m * sigmoid(r.leak * h) + counted(fired);
        v = h - counted(fired) * (r.threshold + sigmoid(m));
        return fired;
    } else {
        const V top = top_of(r, m);
        const Mask fired = h >= top;
        if constexpr (KIND == ALIF) m = r.rho * m + r.rest * counted(fired);
        v = h;
        if constexpr (KIND != DELAYED) {
            if constexpr (RESET == SUBTRACT) v = fired ? h - top : h;
            if constexpr (RESET == TO_ZERO_LEAK) v = fired ? V{} : h;
            if constexpr (RESET == TO_RESET_LEAK) v = fired ? all(r.v_reset) : h;
        }
        return fired;
    }
}

// Spikes of a step; the states become those after it, and kept is what its way back reads.
template <int RESET, class R>
inline auto forth_step(const R &r, V current, V *states, V *kept) {
    if constexpr (KIND == OWN) {
        return own_forth(r, current, states, kept);
    } else {
        V m{};
        if constexpr (SECOND) kept[1] = m = states[1];
        const V h = kept[0] = charge<RESET>(r, states[0], filtered(r, current, m));
        const auto fired = settle<RESET>(r, h, states[0], m);
        if constexpr (SECOND) states[1] = m;
        return fired;
    }
}

// What a step back finds: the gradients by h, by what goes through the spike, and by constants (of decay, only what does
// not come with h).
struct Found { V h, spike, threshold, decay, rho, beta; };

// I-LIF's stand-in for phi: 1 where h lies between its levels.
inline V between(const Rule &r, V h) {
    const V z = h / r.threshold;
    return counted((z >= 0) & (z <= r.levels));
}

// From the gradients by the spikes and the states after a step to those before it, but for the decay of v. m is the second
// state before the step, slope the surrogate's.
template <int RESET, bool ATTACHED>
inline Found step_back(const Rule &r, V h, V m, V grad, V slope, V by_v, V &by_m) {
    using A = Accumulator;
    Found f{};
    if constexpr (KIND == ILIF) {
        const V z = h / r.threshold, s = level(z, r.levels);
        f.spike = ATTACHED ? grad - by_v * r.threshold : grad;
        f.h = f.spike * slope + by_v;
        f.threshold = -(f.spike * slope * z) - by_v * s;
    } else if constexpr (KIND == CLIF) {
        const V s = counted(h >= r.threshold), q = sigmoid(r.leak * h), g = sigmoid(m * q + s);
        by_m = by_m - by_v * s * g * (A(1) - g);
        f.spike = grad + by_m;
        if constexpr (ATTACHED) f.spike = f.spike - by_v * (r.threshold + g);
        const V bend = by_m * m * q * (A(1) - q);
        f.h = f.spike * slope + by_v + bend * r.leak;
        f.decay = -bend * h;
        f.threshold = -f.spike * slope - by_v * s;
        by_m = by_m * q;
    } else {
        const V top = top_of(r, m);
        const Mask fired = h >= top;
        V past = by_v;
        f.spike = KIND == ALIF ? grad + r.rest * by_m : grad;
        if constexpr (RESET == SUBTRACT && ATTACHED) f.spike = f.spike - by_v * top;
        if constexpr (is_hard(RESET) && ATTACHED) f.spike = f.spike + by_v * (r.v_reset - h), past = fired ? V{} : past;
        if constexpr (is_hard(RESET) && !ATTACHED && KIND != DELAYED) past = past * (fired ? V{} : all(A(1)));  // 0 * NaN stays one
        f.h = f.spike * slope + past;
        f.threshold = -f.spike * slope;
        if constexpr (RESET == SUBTRACT && KIND != DELAYED) f.threshold = f.threshold - by_v * counted(fired);
        if constexpr (KIND == ALIF) {
            f.rho = by_m * (m - counted(fired));
            f.beta = f.threshold * m;
            by_m = r.rho * by_m + r.beta * f.threshold;
        }
    }
    return f;
}

// dv/dh of a step at given states before it, which the probe reports; of a delayed reset as of the one that it delays.
template <int RESET, bool ATTACHED>
inline V jump_of(const Rule &r, V h, V m, V slope) {
    using A = Accumulator;
    const V one = all(A(1)), top = top_of(r, m);
    if constexpr (KIND == ILIF) return ATTACHED ? one - r.threshold * slope : one;
    if constexpr (KIND == CLIF) {
        const V s = counted(h >= top), q = sigmoid(r.leak * h), g = sigmoid(m * q + s);
        const V by_m = one - s * g * (A(1) - g) * (slope + m * q * (A(1) - q) * r.leak);
        return ATTACHED ? by_m - slope * (top + g) : by_m;
    }
    V jump = is_hard(RESET) ? (h >= top ? V{} : one) : one;
    if constexpr (is_hard(RESET) && ATTACHED) jump = jump + (r.v_reset - h) * slope;
    if constexpr (RESET == SUBTRACT && ATTACHED) jump = jump - top * slope;
    return jump;
}

}  // namespace
