// The way forth: a block's neurons through the window.

#pragma once

#include "blocks.h"

namespace {

// The way of a block through the window. Memory is at (0, start), its steps `stride` apart. States are `size` apart; of what
// is kept the steps are, and each kind of it a window further.
struct Forth {
    const T *x, *residual, *spike_add;  // the last two may be null
    T *spikes, *current;                // the last may be null
    uint16_t *bits;                     // the same spikes, 16 in a word; or null
    A *kept, *states, *trace;           // the first of a replay; the last, of the first state, may be null
    const A *step_gain;                 // or null
    int64_t steps, stride;
    int size, n;
    bool past;
    int64_t stop;                       // how many steps are taken
    bool given, wanted;                 // whether the states before the first step are in memory; whether those after the last are read
    A start[STATES];                    // where they are not given

    Vs before(int64_t t, int k, int i) const { return t || given ? loads<Vs>(states + k * size + i) : all_of<Vs>(start[k]); }
};

// Whether there is a norm, a residual: ASK at run time, which also writes what is rarer, the trace and the current without norm.
enum Given { NO, YES, ASK };

// Sixteen spikes in a word; of vectors of other sizes nobody asks.
template <class Fired>
inline void leave_bits(uint16_t *, const Fired &) {}
#if defined(__AVX512DQ__) && SPIKETRITON_DTYPE != 1
typedef int Lanes16 __attribute__((vector_size(64)));
inline void leave_bits(uint16_t *to, const Mask &fired) { *to = uint16_t(__builtin_ia32_cvtd2mask512((Lanes16)fired)); }
#endif

// STEPS steps from t on, in which the states and the constants of a vector of neurons, or a group, stay in registers.
template <int FORM, int NORM, int RESIDUAL, bool FIRE, bool ONE, int STEPS>
__attribute__((noinline)) void forth_steps(const Block &b, const Forth &s, int64_t t) {
    const bool norm = NORM == ASK ? b.c.mean != nullptr : NORM == YES, joined = RESIDUAL == ASK ? s.residual != nullptr : RESIDUAL == YES;
    const A *means = b.of[MEAN].data(), *scales = b.of[SCALE].data(), *biases = b.of[BIAS].data();
    const Rules<FORM, ONE> rules(b);
    const int64_t row = t * s.stride, stride = s.stride, next = later(t, s.steps, stride, s.size);
    const T *x = s.x + row, *residual = joined ? s.residual + row : nullptr, *spike_add = FIRE && STEPS < 4 && s.spike_add ? s.spike_add + row : nullptr;
    T *spikes = FIRE ? s.spikes + row : nullptr, *currents = FIRE && NORM != NO && STEPS < 4 && s.current ? s.current + row : nullptr;
    uint16_t *bits = FIRE && s.bits ? s.bits + row / 16 : nullptr;
    A *states = s.states, *kept_at = FIRE ? nullptr : s.kept + t * s.size,
      *trace = FIRE && NORM == ASK && s.trace ? s.trace + row : nullptr;
    const int size = s.size;
    const int64_t window = s.steps * size;
    const bool past = STEPS == 1 && s.past, leaves = s.wanted || t + STEPS < s.stop;
    A step_gains[STEPS];
    for (int j = 0; j < STEPS; j++) step_gains[j] = s.step_gain ? s.step_gain[t + j] : A(1);
    groups(s.n, [&](auto part, int i, int n) {
        constexpr bool PART = decltype(part)::value;
        if constexpr (STEPS == 1) {  // hardware prefetchers keep up with columns
            prefetch(x + next + i, WIDE);
            if (FIRE && !past) prefetch_for_writing(spikes + next + i);
            if (joined) prefetch(residual + next + i, WIDE);
        }
        const auto &r = rules.at(i);
        Vs mean{}, scale{}, bias{}, state[STATES], kept[KEPT];
        for (int k = 0; k < STATES; k++) state[k] = s.before(t, k, i);
        if (norm) mean = loads<Vs>(means + i), scale = loads<Vs>(scales + i), bias = loads<Vs>(biases + i);
#pragma GCC unroll 4
        for (int j = 0; j < STEPS; j++) {
            const int64_t here = j * stride + i;
            Vs current = gets<Vs, PART>(x + here, n);
            if (norm) current = step_gains[j] * ((current - mean) * scale + bias);
            if (joined) current = current + gets<Vs, PART>(residual + here, n);
            const auto fired = StepAt<FORM>::forth(r, current, state, kept);
            if constexpr (!FIRE)
                for (int k = 0; k < KEEPS[FORM]; k++) stores(kept_at + k * window + j * size + i, kept[k]);
            if constexpr (FIRE) {
                if (NORM != NO && currents) puts<PART>(currents + here, rounded(current), n, past);
                if (__builtin_expect(spike_add != nullptr, false)) puts<PART>(spikes + here, rounded(counted(fired) + gets<Vs, PART>(spike_add + here, n)), n, past);
                else puts<PART>(spikes + here, written(fired), n, past);
                if (bits) leave_bits(bits + here / 16, fired);
                if constexpr (NORM == ASK)
                    if (trace) std::memcpy(trace + i, &state[0], size_t(n) * sizeof(A));
            }
        }
        if (leaves)
            for (int k = 0; k < STATES; k++) stores(states + k * size + i, state[k]);
    });
}

// Steps by twos or fours where spikes stay in the caches: rows lie about a power of two apart, so that few streams fit side
// by side. What is written past the caches, or kept for the way back, goes row by row (studies/speed/log.md has the times); so
// does a printed step that waits long for the one before, while vectors side by side do not.
template <int FORM, int NORM, int RESIDUAL, bool FIRE, bool ONE>
void forth_block(const Block &b, const Forth &s) {
    int64_t t = 0;
    if constexpr (FIRE && NORM != ASK && !WAITS) {
        if (!s.past) {
            if constexpr (RESIDUAL == NO && sizeof(T) >= 4)
                if (!s.spike_add && !s.current)
                    for (; t + 4 <= s.stop; t += 4) forth_steps<FORM, NORM, RESIDUAL, FIRE, ONE, 4>(b, s, t);
            for (; t + 2 <= s.stop; t += 2) forth_steps<FORM, NORM, RESIDUAL, FIRE, ONE, 2>(b, s, t);
        }
    }
    for (; t < s.stop; t++) forth_steps<FORM, NORM, RESIDUAL, FIRE, ONE, 1>(b, s, t);
}

template <bool FIRE>
void forth(const Block &b, const Forth &s) {
    with_form<FIRE ? FORTH_AS : REPLAY_AS>(int(b.c.form), [&](auto number) {
        constexpr int FORM = decltype(number)::value;
        if constexpr (FIRE)
            if (s.trace || (s.current && !b.c.mean)) return forth_block<FORM, ASK, ASK, FIRE, false>(b, s);
        with_one<FORM>(b, [&](auto one) {
            with(b.c.mean, [&](auto norm) {
                constexpr int NORM = decltype(norm)::value;
                // a replay is compiled once for both: the first call waits for less
                if constexpr (!FIRE) forth_block<FORM, NORM, ASK, FIRE, decltype(one)::value>(b, s);
                else with(s.residual, [&](auto residual) {
                    forth_block<FORM, NORM, decltype(residual)::value, FIRE, decltype(one)::value>(b, s);
                });
            });
        });
    });
}

// State k of the block that begins at start: one after the other, each as large as a step.
A *state_at(const Call &c, const void *states, int k, int64_t start) { return from<A>(states, k * c.neurons + start); }

// A block before its first step.
Forth forth_of(const Call &c, const Place &at, int size, A *states) {
    Forth s{};
    s.given = c.first;
    for (int k = 0; k < STATES; k++) {
        s.start[k] = A(c.starts[k]);
        if (const A *given = state_at(c, c.first, k, at.start)) std::copy_n(given, at.n, states + k * size);
    }
    s.x = from<T>(c.x, at.start);
    s.residual = from<T>(c.residual, at.start);
    s.states = states;
    s.step_gain = reals(c.step_gain);
    s.steps = s.stop = c.steps;
    s.stride = c.neurons;
    s.size = size;
    s.n = at.n;
    return s;
}

// Writes the states of a block, or their gradients, where there is memory for them; the reverse of `forth_of`.
void leave_states(const Call &c, const Array<A> &states, const Place &at, int size, void *memory) {
    for (int k = 0; k < STATES; k++)
        if (A *to = state_at(c, memory, k, at.start))
            std::copy_n(states.begin() + k * size, at.n, to);
}

void forward(const Call &c) {
    const Cut cut(c);
    const int size = cut.padded();
    const bool past = streams(c, c.spikes) && (!c.current || streams(c, c.current));
    visit_blocks(c, Norm(c), cut, [&](const Block &b) {
        return [&, states = Array<A>(STATES * size)](const Place &at) mutable {
            Forth s = forth_of(c, at, size, states.data());
            s.spike_add = from<T>(c.spike_add, at.start);
            s.spikes = from<T>(c.spikes, at.start);
            s.current = from<T>(c.current, at.start);
            s.bits = from<uint16_t>(c.bits, at.start / 16);
            s.trace = from<A>(c.trace, at.start);
            s.past = past && at.start % LANES == 0;
            s.wanted = c.last;
            forth<true>(b, s);
            leave_states(c, states, at, size, c.last);
        };
    });
}

}  // namespace
