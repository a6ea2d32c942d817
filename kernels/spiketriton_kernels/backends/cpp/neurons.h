// The neurons: what a step makes of its current and the states before it, and the gradient's way back through it. LIF is
// written by hand; every other step is printed from its definition in PyTorch (OWN, see steps/). The kind is a compile-time
// constant, one build each, so that a user waits for the kinds in use only. Order of operations as in backends/__init__.py.

#pragma once

#include "own.h"

namespace {

enum { LIF, DELAYED, OWN };  // DELAYED: LIF whose reset belongs to the next step
constexpr int KIND = SPIKETRITON_KIND;

// What a call says of its neuron: what may learn, and numbers.
enum Parameter { DECAY, THRESHOLD, WIDTH, GAIN, RHO, BETA, PARAMETERS, HEIGHT = PARAMETERS, LEVELS, SHAPE, GIVEN };
// What a constant is of what was given.
enum Made { AS_GIVEN, ONE_MINUS, ONE_OVER };

// What a build is restricted to, so that the first call of a neuron waits for less; -1: nothing.
#ifdef SPIKETRITON_RESET
constexpr int ONLY_RESET = SPIKETRITON_RESET, ONLY_SHAPE = SPIKETRITON_SHAPE;
#else
constexpr int ONLY_RESET = -1, ONLY_SHAPE = -1;
#endif

// The reset, and for a hard one where the leak pulls.
enum Reset { SUBTRACT, TO_ZERO_LEAK, TO_RESET_LEAK, NO_RESET };
constexpr bool is_hard(int reset) { return reset == TO_ZERO_LEAK || reset == TO_RESET_LEAK; }

#ifdef SPIKETRITON_STEP
#include SPIKETRITON_STEP
template <int FORM> using StepAt = std::tuple_element_t<FORM, Steps>;
#else
// What is carried from step to step, what a way back keeps of a step (h), and what may learn; a form is a reset.
struct ByHand { struct Constants {}; };
template <int> using StepAt = ByHand;
constexpr int FORMS = 4, STATES = 1, KEPT = 1, CONSTANTS = RHO, ROWS = RHO;
constexpr int FROM[CONSTANTS] = {DECAY, THRESHOLD, WIDTH, GAIN}, MADE[CONSTANTS] = {};
constexpr bool APART = false, WAITS = false, LEARNING[FORMS] = {}, LEARNS[FORMS][ROWS + 1] = {};
constexpr double STARTS[STATES] = {0};
constexpr int KEEPS[FORMS] = {1, 1, 1, 1}, FORTH_AS[FORMS] = {0, 1, 2, 3}, REPLAY_AS[FORMS] = {0, 1, 2, 3};
#endif

constexpr bool has(int form) { return KIND != DELAYED || form == SUBTRACT || form == TO_ZERO_LEAK; }

// The constants of a vector of neurons. leak is 1 - decay.
struct Rule {
    V decay, leak, threshold, gain;
    Accumulator v_reset;
};

inline Rounded written(Mask fired) { return spikes_of(fired); }
inline Rounded written(V spikes) { return rounded(spikes); }

// h of a step from the membrane before it; a delayed reset comes first.
template <int RESET>
inline V charge(const Rule &r, V v, V current) {
    if constexpr (RESET == TO_RESET_LEAK) return v + r.gain * current - r.leak * (v - r.v_reset);
    if constexpr (KIND == DELAYED && RESET == TO_ZERO_LEAK) v = v >= r.threshold ? V{} : v;
    const V h = r.decay * v + r.gain * current;
    if constexpr (KIND == DELAYED && RESET == SUBTRACT) return v >= r.threshold ? h - r.threshold : h;
    return h;
}

// Spikes of a step with the potential h; v becomes the membrane after it.
template <int RESET>
inline Mask settle(const Rule &r, V h, V &v) {
    const Mask fired = h >= r.threshold;
    v = h;
    if constexpr (KIND != DELAYED) {
        if constexpr (RESET == SUBTRACT) v = fired ? h - r.threshold : h;
        if constexpr (RESET == TO_ZERO_LEAK) v = fired ? V{} : h;
        if constexpr (RESET == TO_RESET_LEAK) v = fired ? all(r.v_reset) : h;
    }
    return fired;
}

// Spikes of a step; the states become those after it, and kept is what its way back reads.
template <int FORM, class R>
inline auto forth_step(const R &r, V current, V *states, V *kept) {
    if constexpr (KIND == OWN) {
        return StepAt<FORM>::forth(r, current, states, kept);
    } else {
        kept[0] = charge<FORM>(r, states[0], current);
        return settle<FORM>(r, kept[0], states[0]);
    }
}

// What a step back finds: the gradients by h, by what goes through the spike, and by the threshold.
struct Found { V h, spike, threshold; };

// From the gradients by the spikes and the membrane after a step to that before it, but for its decay. slope: the surrogate's.
template <int RESET, bool ATTACHED>
inline Found step_back(const Rule &r, V h, V grad, V slope, V by_v) {
    using A = Accumulator;
    Found f{};
    const Mask fired = h >= r.threshold;
    V past = by_v;
    f.spike = grad;
    if constexpr (RESET == SUBTRACT && ATTACHED) f.spike = f.spike - by_v * r.threshold;
    if constexpr (is_hard(RESET) && ATTACHED) f.spike = f.spike + by_v * (r.v_reset - h), past = fired ? V{} : past;
    if constexpr (is_hard(RESET) && !ATTACHED && KIND != DELAYED) past = past * (fired ? V{} : all(A(1)));  // 0 * NaN stays one
    f.h = f.spike * slope + past;
    f.threshold = -f.spike * slope;
    if constexpr (RESET == SUBTRACT && KIND != DELAYED) f.threshold = f.threshold - by_v * counted(fired);
    return f;
}

// dv/dh of a step, which the probe reports; of a delayed reset as of the one that it delays.
template <int RESET, bool ATTACHED>
inline V jump_of(const Rule &r, V h, V slope) {
    const V one = all(Accumulator(1));
    V jump = is_hard(RESET) ? (h >= r.threshold ? V{} : one) : one;
    if constexpr (is_hard(RESET) && ATTACHED) jump = jump + (r.v_reset - h) * slope;
    if constexpr (RESET == SUBTRACT && ATTACHED) jump = jump - r.threshold * slope;
    return jump;
}

}  // namespace
