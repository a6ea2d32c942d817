// The CPU pass: the whole time window of a block of neurons at a time, membranes in cache, one read and one write of
// memory per element and step. Same order of operations as the PyTorch reference, no contraction into fused
// multiply-adds (-ffp-contract=off), so spikes agree bit for bit. Sums run over chunks fixed by size, not by threads,
// and are joined in order: bit-equal from run to run and for any number of threads.
//
// A time step is one gapless block of `neurons` elements; the element at offset n has channel (n / inner) % channels.

#include "native.h"

namespace {

// The columns of a probe's row, in the order of PROBE_FIELDS in arguments.py.
enum Probe { GRAD_SPIKE_SQ, GRAD_INPUT_SQ, GRAD_CARRY_SQ, TIME_FACTOR, OUTSIDE, SPIKE_COUNT, GRAD_INPUT_MAX, NONFINITE, PROBE_FIELDS };
constexpr double REACH = 0.01;

}  // namespace

// Mirrored field by field in native.py.
struct Call {
    int64_t steps, neurons, channels, inner;
    int32_t threads, measures;
    int32_t reset, detach_reset, leaks_to_reset, shape;
    int64_t decay_size, threshold_size, width_size, parameter_size;
    double decay, gain, threshold, v_reset, v_start, height, width, eps, bn_scale, count, momentum;
    const void *decay_p, *threshold_p, *width_p;                         // float (double for double), null: the number
    const void *mean, *var, *weight, *bias, *step_gain;                  // likewise; mean null: no norm
    const void *x, *v_init, *residual, *spike_add, *grad_s, *grad_v_last, *grad_current, *sums;
    void *spikes, *v_last, *current, *dx, *dy, *out_sums, *out_v_init, *out_parameters, *out_step_gain;
    void *running_mean, *running_var;
    float *probe;
};

namespace {

// ---- the surrogate's primitive -------------------------------------------------------------------------------------

template <class A>
inline A primitive(A z, int shape) {
    A inside = std::min(std::max(z, A(-1)), A(1));
    switch (shape) {
        case FAST_SIGMOID: return z / (A(1) + std::fabs(z));
        case ATAN: return std::atan(z);
        case SIGMOID: return A(2) * std::tanh(z / A(2));
        case TRIANGLE: return inside - inside * std::fabs(inside) / A(2);
        case RECTANGLE: return inside;
        default: return A(1.2533141373155003) * std::erf(z * A(0.7071067811865476));
    }
}

// ---- chunks of neurons, blocks inside them ---------------------------------------------------------------------------

// How the neurons of a time step are cut. A block's window (h of every step) stays in the second-level cache, and its rows
// are long runs of memory: as short as lines, with one from each step in turn, they come at half the speed. With channels
// innermost, blocks hold whole runs of channels, so that every block sees the same per-channel values.
struct Cut {
    int size;
    bool aligned;
    int64_t chunks, unit;

    explicit Cut(const Call &c) {
        size = int(std::max<int64_t>(64, std::min<int64_t>(1024, 16384 / c.steps / 64 * 64)));
        aligned = c.inner == 1 && c.channels <= size;
        if (aligned) size = int(size / c.channels * c.channels);
        unit = aligned ? c.channels : 64;
        chunks = chunk_count(c.neurons, size);
        size = int(std::min<int64_t>(size, c.neurons));  // no more memory than there are neurons
    }
    int64_t edge(const Call &c, int64_t k) const { return k == chunks ? c.neurons : c.neurons / unit * k / chunks * unit; }
    // What arrays of a block hold: whole vectors, so that only memory has ragged ends.
    int padded() const { return (size + LANES - 1) / LANES * LANES; }
};

// Per-channel values spread over the elements [start, start + n) of a time step.
template <class A>
void spread(A *out, const A *values, int64_t start, int n, const Call &c) {
    int64_t row = start / c.inner, within = start % c.inner;
    for (int i = 0; i < n;) {
        int64_t channel = row % c.channels;
        if (c.inner == 1) {
            int run = int(std::min<int64_t>(n - i, c.channels - channel));
            std::memcpy(out + i, values + channel, run * sizeof(A));
            i += run;
            row += run;
        } else {
            int run = int(std::min<int64_t>(n - i, c.inner - within));
            std::fill(out + i, out + i + run, values[channel]);
            i += run;
            within = 0;
            row++;
        }
    }
}

template <class A>
double total(const A *values, int n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += double(values[i]);
    return sum;
}

// The reverse: add the elements of a block to their channels' sums.
template <class A>
void gather(double *sums, const A *values, int64_t start, int n, const Call &c) {
    int64_t row = start / c.inner, within = start % c.inner;
    for (int i = 0; i < n;) {
        int64_t channel = row % c.channels;
        if (c.inner == 1) {
            int run = int(std::min<int64_t>(n - i, c.channels - channel));
            for (int j = 0; j < run; j++) sums[channel + j] += double(values[i + j]);
            i += run;
            row += run;
        } else {
            int run = int(std::min<int64_t>(n - i, c.inner - within));
            sums[channel] += total(values + i, run);
            i += run;
            within = 0;
            row++;
        }
    }
}

// What the norm makes of its statistics, channel by channel: current = (x - mean) * scale + bias, and on the way back
// dy = scale * dz + (slope * (x - mean) + offset), slope and offset being 0 where the statistics were given.
template <class A>
struct Norm {
    Array<A> scale, bias, rstd, affine, slope, offset;

    explicit Norm(const Call &c) {
        if (!c.mean) return;
        const size_t channels = size_t(c.channels);
        scale.resize(channels);
        rstd.resize(channels);
        affine.resize(channels);
        bias.assign(channels, A(0));
        if (c.bias) std::memcpy(bias.data(), c.bias, channels * sizeof(A));
        for (size_t k = 0; k < channels; k++) {
            rstd[k] = A(1) / std::sqrt(((const A *)c.var)[k] + A(c.eps));
            affine[k] = (c.weight ? ((const A *)c.weight)[k] : A(1)) * A(c.bn_scale);
            scale[k] = affine[k] * rstd[k];
        }
        if (!c.dy) return;
        slope.assign(channels, A(0));
        offset.assign(channels, A(0));
        if (!c.sums) return;
        for (size_t k = 0; k < channels; k++) {
            slope[k] = -scale[k] * rstd[k] * (((const A *)c.sums)[channels + k] / A(c.count));
            offset[k] = -scale[k] * (((const A *)c.sums)[k] / A(c.count));
        }
    }
};

// One layer's constants, spread over the block at hand.
template <class A>
struct Block {
    const Call &c;
    const Norm<A> &norm;
    Array<A> decay, leak, threshold, width, inverse_width, mean, scale, bias, rstd, affine, slope, offset;
    bool aligned;
    int filled = 0;       // values
    int64_t one = -1;     // the channel of all of them, if it is one

    Block(const Call &call, const Norm<A> &norm_, const Cut &cut) : c(call), norm(norm_), aligned(cut.aligned) {
        const size_t size = size_t(cut.padded());
        for (auto *values : {&decay, &threshold, &width, &inverse_width}) values->resize(size);
        if (c.leaks_to_reset) leak.resize(size);
        if (!c.mean) return;
        for (auto *values : {&mean, &scale, &bias, &rstd}) values->resize(size);
        if (c.out_step_gain) affine.resize(size);
        if (c.dy) for (auto *values : {&slope, &offset}) values->resize(size);
    }

    void parameter(Array<A> &out, double number, const void *values, int64_t size, int64_t start, int n) {
        if (size > 1) return spread(out.data(), (const A *)values, start, n, c);
        std::fill(out.begin(), out.end(), values ? *(const A *)values : A(number));
    }

    // Values for the block [start, start + n). Those of an earlier block at least as long still hold where blocks are
    // aligned, nothing depends on the channel, or both lie in the same channel.
    void at(int64_t start, int n) {
        const int64_t run = start / c.inner, channel = (start + n - 1) / c.inner == run ? run % c.channels : -1;
        const bool constant = aligned || !(c.mean || c.decay_size > 1 || c.threshold_size > 1 || c.width_size > 1);
        if (n <= filled && (constant || (channel >= 0 && channel == one))) return;
        const bool first = filled == 0;
        filled = n;
        one = channel;
        if (first || c.decay_size > 1) {
            parameter(decay, c.decay, c.decay_p, c.decay_size, start, n);
            for (size_t i = 0; i < leak.size(); i++) leak[i] = c.decay_p ? A(1) - decay[i] : A(1 - c.decay);
        }
        if (first || c.threshold_size > 1) parameter(threshold, c.threshold, c.threshold_p, c.threshold_size, start, n);
        if (first || c.width_size > 1) {
            parameter(width, c.width, c.width_p, c.width_size, start, n);
            for (size_t i = 0; i < width.size(); i++) inverse_width[i] = A(1) / width[i];
        }
        if (!c.mean) return;
        spread(mean.data(), (const A *)c.mean, start, n, c);
        spread(scale.data(), norm.scale.data(), start, n, c);
        spread(bias.data(), norm.bias.data(), start, n, c);
        spread(rstd.data(), norm.rstd.data(), start, n, c);
        if (c.out_step_gain) spread(affine.data(), norm.affine.data(), start, n, c);
        if (!c.dy) return;
        spread(slope.data(), norm.slope.data(), start, n, c);
        spread(offset.data(), norm.offset.data(), start, n, c);
    }
};

// Tensors beyond the caches are written past them: an ordinary store would first read the line that it overwrites. With
// what is read and written beside it, such a tensor fills what a core has of a shared cache.
constexpr int64_t BEYOND_CACHES = int64_t(1) << 23;

// Whether this tensor is written past the caches: rows of whole lines, or a line would travel twice.
template <class T>
bool streams(const Call &c, const void *to) {
    const int64_t row = c.neurons * int64_t(sizeof(T));
    return to && c.steps * row > BEYOND_CACHES && row % 64 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
}

// A parameter's values of a block, or the ONE of all neurons, which stays in a register: a load less for each vector.
template <bool ONE>
struct Values {
    const Accumulator *values;
    V first;

    explicit Values(const Array<Accumulator> &of) : values(of.data()), first(load(of.data())) {}
    V at(int i) const { return ONE ? first : load(values + i); }
};

// Whether decay, threshold and width are those of all neurons.
inline bool uniform(const Call &c) { return c.decay_size <= 1 && c.threshold_size <= 1 && c.width_size <= 1; }

// The recurrence, written once: (v, current) -> (h, v). KIND is the reset, and for hard reset where the leak pulls.
enum Kind { SUBTRACT, TO_ZERO_LEAK, TO_RESET_LEAK, NO_RESET };

inline int kind_of(const Call &c) {
    return c.reset == SOFT ? SUBTRACT : c.reset == NONE ? NO_RESET : c.leaks_to_reset ? TO_RESET_LEAK : TO_ZERO_LEAK;
}

template <int KIND>
inline V charge(V v, V current, V decay, V leak, Accumulator gain, Accumulator v_reset) {
    if constexpr (KIND == TO_RESET_LEAK) return v + gain * current - leak * (v - v_reset);
    return decay * v + gain * current;
}

template <int KIND>
inline V discharge(V h, V threshold, Accumulator v_reset) {
    if constexpr (KIND == SUBTRACT) return h >= threshold ? h - threshold : h;
    if constexpr (KIND == NO_RESET) return h;
    if constexpr (KIND == TO_ZERO_LEAK) return h >= threshold ? V{} : h;  // v_reset is 0
    return h >= threshold ? all(v_reset) : h;
}

// The way of a block through the window. Memory is at (0, start), its steps `stride` apart; those of h are `size` apart.
template <class T, class A>
struct Forth {
    const T *x, *residual, *spike_add;  // the last two may be null
    T *spikes, *current;                // null: h alone is wanted; null: it is not kept
    A *h, *v;
    const A *step_gain;  // or null
    int64_t steps, stride;
    int size, n;
    bool past;
};

// STEPS steps from t on, in which the membrane and the constants of a vector of neurons stay in registers.
template <class T, class A, int KIND, bool NORM, bool RESIDUAL, bool FIRE, bool ONE, int STEPS>
void forth_steps(const Block<A> &b, const Forth<T, A> &s, int64_t t) {
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset);
    const A *leaks = b.leak.data(), *means = b.mean.data(), *scales = b.scale.data(), *biases = b.bias.data();
    const Values<ONE> decays(b.decay), thresholds(b.threshold);
    const int64_t row = t * s.stride, stride = s.stride, next = later(t, s.steps, stride, s.size);
    const T *x = s.x + row, *residual = RESIDUAL ? s.residual + row : nullptr, *spike_add = FIRE && s.spike_add ? s.spike_add + row : nullptr;
    T *spikes = FIRE ? s.spikes + row : nullptr, *currents = FIRE && NORM && s.current ? s.current + row : nullptr;
    A *vs = s.v, *hs = FIRE ? nullptr : s.h + t * s.size;
    const int size = s.size;
    const bool past = s.past;
    A step_gains[STEPS];
    for (int j = 0; j < STEPS; j++) step_gains[j] = s.step_gain ? s.step_gain[t + j] : A(1);
    vectors(s.n, [&](auto part, int i, int m) {
        constexpr bool PART = decltype(part)::value;
        if constexpr (STEPS == 1) {  // hardware prefetchers keep up with columns
            prefetch(x + next + i, LANES);
            if (FIRE && !past) prefetch_for_writing(spikes + next + i);
            if constexpr (RESIDUAL) prefetch(residual + next + i, LANES);
        }
        const V threshold = thresholds.at(i), decay = decays.at(i), leak = KIND == TO_RESET_LEAK ? load(leaks + i) : V{};
        V mean{}, scale{}, bias{}, v = load(vs + i);
        if constexpr (NORM) mean = load(means + i), scale = load(scales + i), bias = load(biases + i);
#pragma GCC unroll 4
        for (int j = 0; j < STEPS; j++) {
            const int64_t here = j * stride + i;
            V current = get<PART>(x + here, m);
            if constexpr (NORM) current = step_gains[j] * ((current - mean) * scale + bias);
            if constexpr (RESIDUAL) current = current + get<PART>(residual + here, m);
            const V h = charge<KIND>(v, current, decay, leak, gain, v_reset);
            if constexpr (FIRE) {
                if (NORM && currents) put<PART>(currents + here, rounded(current), m, past);
                const Mask fired = h >= threshold;
                if (spike_add) put<PART>(spikes + here, rounded((fired ? all(A(1)) : V{}) + get<PART>(spike_add + here, m)), m, past);
                else put<PART>(spikes + here, spikes_of(fired), m, past);
            } else {
                store(hs + j * size + i, h);
            }
            v = discharge<KIND>(h, threshold, v_reset);
        }
        store(vs + i, v);
    });
}

// Steps by twos or fours where spikes stay in the caches: rows lie about a power of two apart, so that few streams fit side
// by side. What is written past the caches, or kept for the way back, goes row by row (profiling/LOG.md has the times).
template <class T, class A, int KIND, bool NORM, bool RESIDUAL, bool FIRE, bool ONE>
void forth_block(const Block<A> &b, const Forth<T, A> &s) {
    int64_t t = 0;
    if constexpr (FIRE) {
        if (!s.past) {
            if constexpr (!RESIDUAL && sizeof(T) >= 4)
                if (!s.spike_add && !s.current)
                    for (; t + 4 <= s.steps; t += 4) forth_steps<T, A, KIND, NORM, RESIDUAL, FIRE, ONE, 4>(b, s, t);
            for (; t + 2 <= s.steps; t += 2) forth_steps<T, A, KIND, NORM, RESIDUAL, FIRE, ONE, 2>(b, s, t);
        }
    }
    for (; t < s.steps; t++) forth_steps<T, A, KIND, NORM, RESIDUAL, FIRE, ONE, 1>(b, s, t);
}

template <class T, class A, int KIND, bool FIRE, bool ONE>
void forth_inputs(const Block<A> &b, const Forth<T, A> &s) {
    if (b.c.mean && s.residual) return forth_block<T, A, KIND, true, true, FIRE, ONE>(b, s);
    if (b.c.mean) return forth_block<T, A, KIND, true, false, FIRE, ONE>(b, s);
    if (s.residual) return forth_block<T, A, KIND, false, true, FIRE, ONE>(b, s);
    return forth_block<T, A, KIND, false, false, FIRE, ONE>(b, s);
}

template <class T, class A, bool FIRE, bool ONE>
void forth_kind(const Block<A> &b, const Forth<T, A> &s) {
    switch (kind_of(b.c)) {
        case SUBTRACT: return forth_inputs<T, A, SUBTRACT, FIRE, ONE>(b, s);
        case TO_ZERO_LEAK: return forth_inputs<T, A, TO_ZERO_LEAK, FIRE, ONE>(b, s);
        case TO_RESET_LEAK: return forth_inputs<T, A, TO_RESET_LEAK, FIRE, ONE>(b, s);
        default: return forth_inputs<T, A, NO_RESET, FIRE, ONE>(b, s);
    }
}

template <class T, class A, bool FIRE>
void forth(const Block<A> &b, const Forth<T, A> &s) {
    if (uniform(b.c)) return forth_kind<T, A, FIRE, true>(b, s);
    return forth_kind<T, A, FIRE, false>(b, s);
}

// v after the reset of a stored h.
template <class A>
void membrane_after(const Block<A> &b, const A *__restrict h, A *__restrict v, int n) {
    const A v_reset = A(b.c.v_reset), *__restrict threshold = b.threshold.data();
    const int reset = b.c.reset;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const A after = reset == HARD ? v_reset : h[i] - threshold[i];
        v[i] = (h[i] >= threshold[i]) & (reset != NONE) ? after : h[i];
    }
}

// The way the gradient takes through the reset.
enum Path { PASSES, STOPS_AT_SPIKE, SOFT_ATTACHED, HARD_ATTACHED };

inline int path_of(const Call &c) {
    if (c.reset == HARD) return c.detach_reset ? STOPS_AT_SPIKE : HARD_ATTACHED;
    return c.reset == SOFT && !c.detach_reset ? SOFT_ATTACHED : PASSES;
}

// What the way back leaves besides the carried gradient.
enum Mode {
    WRITE,       // dL/dx in memory: the neuron alone
    ACCUMULATE,  // the channel sums of dz and dz * (x - mean), and in memory dL/dx or dy where asked for: batch norm
    OBSERVE,     // dL/dx, phi, dv/dh, dL/dh and the incoming c in cache, for everything rarer: a step at a time
};

// The way of a block back through the steps [first, last). Memory and h as in Forth.
template <class T, class A>
struct Back {
    const T *x, *grad_s, *grad_current;  // the last may be null
    T *out, *dy;                         // dL/dx, and dL/dy where it needs no sums; or null
    const A *h, *step_gain;
    A *carry, *sum_dz, *sum_dz_x, *dx, *phi, *jump, *dh, *before;
    int64_t stride;
    int size, n;
    bool past;
};

template <class T, class A, int SHAPE, int PATH, int MODE, bool ONE>
void back_block(const Block<A> &b, const Back<T, A> &s, int64_t first, int64_t last) {
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset), height = A(b.c.height);
    const Values<ONE> decays(b.decay), thresholds(b.threshold), widths(b.width), inverse_widths(b.inverse_width);
    const A *means = b.mean.data(), *scales = b.scale.data(), *tilts = b.slope.data(), *offsets = b.offset.data();
    A *carries = s.carry, *sum_dz = s.sum_dz, *sum_dz_x = s.sum_dz_x, *dxs = s.dx, *phis = s.phi, *jumps = s.jump, *dhs = s.dh,
      *befores = s.before;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t row = t * s.stride;
        const A k = s.step_gain ? s.step_gain[t] : A(1);
        const T *gs = s.grad_s + row, *x = s.x + row, *grad_current = s.grad_current ? s.grad_current + row : nullptr;
        const int64_t next = earlier(t, b.c.steps, s.stride, s.size);
        T *out = s.out ? s.out + row : nullptr, *dy = s.dy ? s.dy + row : nullptr;
        const A *hs = s.h + t * s.size;
        const bool past_caches = s.past;
        vectors(s.n, [&](auto part, int i, int m) {
            constexpr bool PART = decltype(part)::value;
            prefetch(gs + next + i, LANES);
            if (out && !past_caches) prefetch_for_writing(out + next + i);
            if (grad_current) prefetch(grad_current + next + i, LANES);
            const V h = load(hs + i), threshold = thresholds.at(i), carry = load(carries + i);
            const V unit = phi<SHAPE>(h - threshold, widths.at(i), inverse_widths.at(i)), slope = height * unit;
            // Through the spike (also by way of the reset, where that carries a gradient), and past it.
            V through = get<PART>(gs + i, m), past = carry;
            if constexpr (PATH == SOFT_ATTACHED) through = through - carry * threshold;
            if constexpr (PATH == HARD_ATTACHED) through = through + carry * (v_reset - h);
            if constexpr (PATH == HARD_ATTACHED) past = h >= threshold ? V{} : past;
            if constexpr (PATH == STOPS_AT_SPIKE) past = past * (h >= threshold ? V{} : all(A(1)));  // 0 * NaN stays one
            const V dh = through * slope + past;
            V dx = gain * dh;
            if constexpr (MODE == OBSERVE) {
                V jump = all(A(1));
                if constexpr (PATH == STOPS_AT_SPIKE || PATH == HARD_ATTACHED) jump = h >= threshold ? V{} : jump;
                if constexpr (PATH == HARD_ATTACHED) jump = jump + (v_reset - h) * slope;
                if constexpr (PATH == SOFT_ATTACHED) jump = A(1) - threshold * slope;
                store(dxs + i, dx);
                store(phis + i, unit);
                store(jumps + i, jump);
                store(dhs + i, dh);
                store(befores + i, carry);
            } else {
                if (grad_current) dx = dx + get<PART>(grad_current + i, m);
                if (MODE == WRITE || out) put<PART>(out + i, rounded(dx), m, past_caches);
            }
            if constexpr (MODE == ACCUMULATE) {
                const V dz = k * dx, centred = get<PART>(x + i, m) - load(means + i);
                store(sum_dz + i, load(sum_dz + i) + dz);
                store(sum_dz_x + i, load(sum_dz_x + i) + dz * centred);
                if (dy) put<PART>(dy + i, rounded(load(scales + i) * dz + (load(tilts + i) * centred + load(offsets + i))), m, past_caches);
            }
            store(carries + i, decays.at(i) * dh);
        });
    }
}

template <class T, class A, int SHAPE, int PATH>
void back_mode(const Block<A> &b, const Back<T, A> &s, int64_t first, int64_t last, int mode) {
    if (mode == OBSERVE) return back_block<T, A, SHAPE, PATH, OBSERVE, false>(b, s, first, last);
    const bool one = uniform(b.c);
    if (mode == WRITE && one) return back_block<T, A, SHAPE, PATH, WRITE, true>(b, s, first, last);
    if (mode == WRITE) return back_block<T, A, SHAPE, PATH, WRITE, false>(b, s, first, last);
    if (one) return back_block<T, A, SHAPE, PATH, ACCUMULATE, true>(b, s, first, last);
    return back_block<T, A, SHAPE, PATH, ACCUMULATE, false>(b, s, first, last);
}

template <class T, class A, int SHAPE>
void back_path(const Block<A> &b, const Back<T, A> &s, int64_t first, int64_t last, int mode) {
    switch (path_of(b.c)) {
        case PASSES: return back_mode<T, A, SHAPE, PASSES>(b, s, first, last, mode);
        case STOPS_AT_SPIKE: return back_mode<T, A, SHAPE, STOPS_AT_SPIKE>(b, s, first, last, mode);
        case SOFT_ATTACHED: return back_mode<T, A, SHAPE, SOFT_ATTACHED>(b, s, first, last, mode);
        default: return back_mode<T, A, SHAPE, HARD_ATTACHED>(b, s, first, last, mode);
    }
}

template <class T, class A>
void back(const Block<A> &b, const Back<T, A> &s, int64_t first, int64_t last, int mode) {
    switch (b.c.shape) {
        case FAST_SIGMOID: return back_path<T, A, FAST_SIGMOID>(b, s, first, last, mode);
        case ATAN: return back_path<T, A, ATAN>(b, s, first, last, mode);
        case SIGMOID: return back_path<T, A, SIGMOID>(b, s, first, last, mode);
        case TRIANGLE: return back_path<T, A, TRIANGLE>(b, s, first, last, mode);
        case RECTANGLE: return back_path<T, A, RECTANGLE>(b, s, first, last, mode);
        default: return back_path<T, A, GAUSSIAN>(b, s, first, last, mode);
    }
}

template <class A>
void start_membrane(const Call &c, int64_t start, int n, A *v) {
    if (c.v_init) std::memcpy(v, (const A *)c.v_init + start, n * sizeof(A));
    else std::fill(v, v + n, A(c.v_start));
}

template <class T, class A>
Forth<T, A> forth_of(const Call &c, int64_t start, int n, int size, A *v) {
    Forth<T, A> s{};
    s.x = (const T *)c.x + start;
    s.residual = c.residual ? (const T *)c.residual + start : nullptr;
    s.v = v;
    s.step_gain = (const A *)c.step_gain;
    s.steps = c.steps;
    s.stride = c.neurons;
    s.size = size;
    s.n = n;
    return s;
}

template <class T, class A>
void forward(const Call &c) {
    const Cut cut(c);
    const int size = cut.padded();
    const Norm<A> norm(c);
    const bool past = streams<T>(c, c.spikes) && (!c.current || streams<T>(c, c.current));
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block<A> b(c, norm, cut);
        Array<A> v(size);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < cut.chunks; k++) {
            const int64_t end = cut.edge(c, k + 1);
            for (int64_t start = cut.edge(c, k); start < end; start += cut.size) {
                const int n = int(std::min<int64_t>(cut.size, end - start));
                b.at(start, n);
                start_membrane(c, start, n, v.data());
                Forth<T, A> s = forth_of<T>(c, start, n, size, v.data());
                s.spike_add = c.spike_add ? (const T *)c.spike_add + start : nullptr;
                s.spikes = (T *)c.spikes + start;
                s.current = c.current ? (T *)c.current + start : nullptr;
                s.past = past && start % LANES == 0;
                forth<T, A, true>(b, s);
                if (c.v_last) std::memcpy((A *)c.v_last + start, v.data(), n * sizeof(A));
            }
        }
        finish_stream();
    }
}

// Everything that one chunk sums, joined later in chunk order.
struct Sums {
    std::vector<double> norm, parameters, step_gain, probe;
    Sums(const Call &c)
        : norm(c.out_sums ? 2 * c.channels : 0), parameters(c.out_parameters ? 3 * c.parameter_size : 0),
          step_gain(c.out_step_gain ? c.steps : 0), probe(c.probe ? c.steps * PROBE_FIELDS : 0) {}
};

// The rarer results of one step back, from what OBSERVE left in cache.
template <class T, class A>
void observe(const Block<A> &b, const Back<T, A> &s, Sums &mine, Array<A> *d_parameters, A *v, int64_t t,
             int64_t start, bool attached) {
    const Call &c = b.c;
    const int n = s.n;
    const A *threshold = b.threshold.data(), *decay = b.decay.data(), *here = s.h + t * s.size;
    const A k = s.step_gain ? s.step_gain[t] : A(1);
    const T *gs = s.grad_s + t * s.stride, *x = s.x + t * s.stride;
    if (c.probe) {
        const A *__restrict dx = s.dx, *__restrict carried = s.before, *__restrict jump = s.jump, *__restrict unit = s.phi,
                           *__restrict h = here;
        A grad_spike = 0, grad_input = 0, grad_carry = 0, factor = 0, top = 0;
        int outside = 0, spikes = 0, strange = 0;
#pragma omp simd reduction(+ : grad_spike, grad_input, grad_carry, factor, outside, spikes, strange) reduction(max : top)
        for (int i = 0; i < n; i++) {
            const A g = load(gs[i]), size_of = std::fabs(dx[i]);
            const bool finite = size_of <= std::numeric_limits<A>::max();
            grad_spike += g * g;
            grad_input += dx[i] * dx[i];
            grad_carry += carried[i] * carried[i];
            factor += std::fabs(decay[i] * jump[i]);
            outside += unit[i] < A(REACH);
            spikes += h[i] >= threshold[i];
            strange += !finite;
            const A counted = finite ? size_of : A(0);
            top = counted > top ? counted : top;
        }
        double *row = mine.probe.data() + t * PROBE_FIELDS;
        row[GRAD_SPIKE_SQ] += double(grad_spike);
        row[GRAD_INPUT_SQ] += double(grad_input);
        row[GRAD_CARRY_SQ] += double(grad_carry);
        row[TIME_FACTOR] += double(factor);
        row[OUTSIDE] += double(outside);
        row[SPIKE_COUNT] += double(spikes);
        row[GRAD_INPUT_MAX] = std::max(row[GRAD_INPUT_MAX], double(top));
        row[NONFINITE] += double(strange);
    }
    if (s.grad_current)  // after the probe, which measures what passes the neuron
        for (int i = 0; i < n; i++) s.dx[i] = s.dx[i] + load(s.grad_current[t * s.stride + i]);
    if (s.out)
        for (int i = 0; i < n; i++) store(s.out + t * s.stride + i, s.dx[i]);
    if (c.out_parameters) {
        const A v_reset = A(c.v_reset), height = A(c.height);
        if (t) membrane_after(b, here - s.size, v, n);
        else start_membrane(c, start, n, v);
        const bool soft = c.reset == SOFT, follows = soft && attached, jumps = attached && !soft, pulls = c.leaks_to_reset;
        const A *__restrict h = here, *__restrict before = s.before, *__restrict unit = s.phi, *__restrict dh = s.dh,
                           *__restrict top = threshold, *__restrict membrane = v;
        A *__restrict d_decay = d_parameters[0].data(), *__restrict d_threshold = d_parameters[1].data(),
                     *__restrict d_width = d_parameters[2].data();
#pragma omp simd
        for (int i = 0; i < n; i++) {
            const A g = load(gs[i]), by_soft = g - before[i] * top[i], by_hard = g + before[i] * (v_reset - h[i]);
            const A through_s = follows ? by_soft : jumps ? by_hard : g;
            const A through_v = soft & (h[i] >= top[i]) ? A(-1) : A(0);
            d_decay[i] += dh[i] * (pulls ? membrane[i] - v_reset : membrane[i]);
            d_threshold[i] += before[i] * through_v - through_s * (height * unit[i]);
        }
        if (c.width_p)  // its primitive takes longer than all of the rest
            for (int i = 0; i < n; i++) {
                const A z = (h[i] - top[i]) / b.width[i], g = load(gs[i]);
                const A through_s = follows ? g - before[i] * top[i] : jumps ? g + before[i] * (v_reset - h[i]) : g;
                d_width[i] += through_s * height * (primitive(z, c.shape) - z * unit[i]);
            }
    }
    if (!c.mean) return;
    double step_gain = 0;
    for (int i = 0; i < n; i++) {
        const A centred = load(x[i]) - b.mean[i], dz = k * s.dx[i];
        if (c.out_step_gain) step_gain += double(s.dx[i] * (centred * b.rstd[i] * b.affine[i] + b.bias[i]));
        s.sum_dz[i] += dz;
        s.sum_dz_x[i] += dz * centred;
        if (s.dy) store(s.dy + t * s.stride + i, b.scale[i] * dz + (b.slope[i] * centred + b.offset[i]));
    }
    if (c.out_step_gain) mine.step_gain[t] += step_gain;
}

template <class T, class A>
void walk_back(const Call &c) {
    const Cut cut(c);
    const int size = cut.padded();
    const Norm<A> norm(c);
    std::vector<Sums> sums(cut.chunks, Sums(c));
    const bool attached = !c.detach_reset && c.reset != NONE;
    const bool rare = c.probe || c.out_parameters || c.out_step_gain;
    const int mode = rare ? OBSERVE : c.mean ? ACCUMULATE : WRITE;
    const bool past = (!c.dx || streams<T>(c, c.dx)) && (!c.dy || streams<T>(c, c.dy));
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block<A> b(c, norm, cut);
        Array<A> v(size), window(size * c.steps), carry(size), sum_dz(size), sum_dz_x(size);
        Array<A> observed[5], d_parameters[3];
        if (rare) for (auto &o : observed) o.resize(size);
        if (c.out_parameters) for (auto &d : d_parameters) d.resize(size);
        Back<T, A> s{};
        s.h = window.data();
        s.step_gain = (const A *)c.step_gain;
        s.carry = carry.data();
        s.sum_dz = sum_dz.data();
        s.sum_dz_x = sum_dz_x.data();
        s.dx = observed[0].data();
        s.phi = observed[1].data();
        s.jump = observed[2].data();
        s.dh = observed[3].data();
        s.before = observed[4].data();
        s.stride = c.neurons;
        s.size = size;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < cut.chunks; k++) {
            Sums &mine = sums[k];
            const int64_t end = cut.edge(c, k + 1);
            for (int64_t start = cut.edge(c, k), blocks = 0; start < end; start += cut.size, blocks++) {
                const int n = s.n = int(std::min<int64_t>(cut.size, end - start));
                b.at(start, n);
                start_membrane(c, start, n, v.data());
                Forth<T, A> replay = forth_of<T>(c, start, n, size, v.data());
                replay.h = window.data();
                forth<T, A, false>(b, replay);
                std::fill(carry.begin(), carry.end(), A(0));
                if (c.grad_v_last) std::memcpy(carry.data(), (const A *)c.grad_v_last + start, n * sizeof(A));
                // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
                const bool fresh = !cut.aligned || blocks % 16 == 0;
                const bool flush = !cut.aligned || blocks % 16 == 15 || start + cut.size >= end;
                if (fresh && c.mean) {
                    std::fill(sum_dz.begin(), sum_dz.end(), A(0));
                    std::fill(sum_dz_x.begin(), sum_dz_x.end(), A(0));
                }
                for (auto &d : d_parameters) std::fill(d.begin(), d.end(), A(0));
                s.x = (const T *)c.x + start;
                s.grad_s = (const T *)c.grad_s + start;
                s.grad_current = c.grad_current ? (const T *)c.grad_current + start : nullptr;
                s.out = c.dx ? (T *)c.dx + start : nullptr;
                s.dy = c.dy ? (T *)c.dy + start : nullptr;
                s.past = past && start % LANES == 0;
                if (!rare) back(b, s, 0, c.steps, mode);
                else
                    for (int64_t t = c.steps - 1; t >= 0; t--) {
                        back(b, s, t, t + 1, mode);
                        observe(b, s, mine, d_parameters, v.data(), t, start, attached);
                    }
                if (c.out_v_init) std::memcpy((A *)c.out_v_init + start, carry.data(), n * sizeof(A));
                if (c.out_sums && flush) {
                    const int lanes = cut.aligned ? cut.size : n;
                    gather(mine.norm.data(), sum_dz.data(), start, lanes, c);
                    gather(mine.norm.data() + c.channels, sum_dz_x.data(), start, lanes, c);
                }
                if (c.out_parameters)
                    for (int p = 0; p < 3; p++) {
                        double *row = mine.parameters.data() + p * c.parameter_size;
                        if (c.parameter_size > 1) gather(row, d_parameters[p].data(), start, n, c);
                        else *row += total(d_parameters[p].data(), n);
                    }
            }
        }
        finish_stream();
    }
    Sums joined(c);
    for (const Sums &s : sums) {
        for (size_t i = 0; i < s.norm.size(); i++) joined.norm[i] += s.norm[i];
        for (size_t i = 0; i < s.parameters.size(); i++) joined.parameters[i] += s.parameters[i];
        for (size_t i = 0; i < s.step_gain.size(); i++) joined.step_gain[i] += s.step_gain[i];
        for (size_t i = 0; i < s.probe.size(); i++) {
            if (i % PROBE_FIELDS == GRAD_INPUT_MAX) joined.probe[i] = std::max(joined.probe[i], s.probe[i]);
            else joined.probe[i] += s.probe[i];
        }
    }
    for (size_t i = 0; i < joined.norm.size(); i++) {  // dz * xhat is dz * (x - mean) * rstd
        const bool second = i >= size_t(c.channels);
        ((A *)c.out_sums)[i] = A(second ? joined.norm[i] * double(norm.rstd[i - c.channels]) : joined.norm[i]);
    }
    for (size_t i = 0; i < joined.parameters.size(); i++) ((A *)c.out_parameters)[i] = A(joined.parameters[i]);
    for (size_t i = 0; i < joined.step_gain.size(); i++) ((A *)c.out_step_gain)[i] = A(joined.step_gain[i]);
    for (size_t i = 0; i < joined.probe.size(); i++) c.probe[i] = float(joined.probe[i]);
}

// Second pass of batch norm where dL/dx is stored: dy = scale * dz + (slope * (x - mean) + offset). dy may be dL/dx.
template <class T, class A>
void norm_block(const Block<A> &b, const Back<T, A> &s, int64_t steps) {
    const A *means = b.mean.data(), *scales = b.scale.data(), *tilts = b.slope.data(), *offsets = b.offset.data();
    for (int64_t t = 0; t < steps; t++) {
        const int64_t next = later(t, steps, s.stride, s.size);
        const A k = s.step_gain ? s.step_gain[t] : A(1);
        const T *x = s.x + t * s.stride, *grad = s.grad_s + t * s.stride;
        T *dy = s.dy + t * s.stride;
        const bool past = s.past;
        vectors(s.n, [&](auto part, int i, int m) {
            constexpr bool PART = decltype(part)::value;
            prefetch(x + next + i, LANES);
            prefetch(grad + next + i, LANES);
            if (!past && dy != grad) prefetch_for_writing(dy + next + i);
            const V centred = get<PART>(x + i, m) - load(means + i), dz = k * get<PART>(grad + i, m);
            put<PART>(dy + i, rounded(load(scales + i) * dz + (load(tilts + i) * centred + load(offsets + i))), m, past);
        });
    }
}

template <class T, class A>
void norm_backward(const Call &c) {
    const Cut cut(c);
    const Norm<A> norm(c);
    const bool past = streams<T>(c, c.dy);
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block<A> b(c, norm, cut);
        Back<T, A> s{};
        s.step_gain = (const A *)c.step_gain;
        s.stride = c.neurons;
        s.size = cut.size;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < cut.chunks; k++) {
            const int64_t end = cut.edge(c, k + 1);
            for (int64_t start = cut.edge(c, k); start < end; start += cut.size) {
                s.n = int(std::min<int64_t>(cut.size, end - start));
                b.at(start, s.n);
                s.x = (const T *)c.x + start;
                s.grad_s = (const T *)c.grad_s + start;
                s.dy = (T *)c.dy + start;
                s.past = past && start % LANES == 0;
                norm_block(b, s, c.steps);
            }
        }
        finish_stream();
    }
}

// The walk back, and through the statistics of a batch the second pass, from dL/dx in the place of dy where nobody wants it.
template <class T, class A>
void backward(const Call &c) {
    if (!c.dy || c.count == 0 || c.sums) return walk_back<T, A>(c);
    Call first = c, second = c;
    first.dx = c.dx ? c.dx : c.dy;
    first.dy = nullptr;
    walk_back<T, A>(first);
    second.grad_s = first.dx;
    second.sums = c.out_sums;
    second.out_step_gain = nullptr;
    norm_backward<T, A>(second);
}

// Sums over one channel, in double, of what lies away from a fixed `shift`.
struct Moments {
    double sum = 0, squares = 0;

    // n elements whose distances from `mean` sum to s, their squares to q.
    void add(double n, double mean, double s, double q, double shift) {
        const double offset = mean - shift;
        sum += s + n * offset;
        squares += q + offset * (2 * s + n * offset);
    }
};

// Mean and biased variance per channel. Floats are enough within a block, whatever it holds, because its elements are
// shifted by the mean of its first eighth, about which the squares add up to 8 times those about the block's own mean
// at most. Blocks join in double. Results in dx (mean), dy (var).
template <class T, class A>
void statistics(const Call &c) {
    const T *x = (const T *)c.x;
    const int64_t C = c.channels, inner = c.inner, rows = c.steps * c.neurons / (C * inner);
    const int64_t chunks = std::min(rows, chunk_count(rows * C * inner, 16384));
    std::vector<double> shift(C);
    for (int64_t j = 0; j < C; j++) shift[j] = load(x[j * inner]);
    std::vector<std::vector<Moments>> shares(chunks, std::vector<Moments>(C));
    const auto eighth = [](int64_t n) { return std::max<int64_t>(1, (n + 7) / 8); };
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1)
    for (int64_t k = 0; k < chunks; k++) {
        Moments *share = shares[k].data();
        const int64_t first = rows * k / chunks, end = rows * (k + 1) / chunks;
        if (inner == 1) {
            // Several rows side by side, so that the vector units are full with few channels too, but no more: then a
            // block fits into the first-level cache, and four rows are one run of memory.
            const int64_t side = std::max<int64_t>(1, 64 / C), lanes = side * C;
            Array<A> lane_s(lanes + LANES), lane_q(lanes + LANES), lane_mean(lanes + LANES);
            A *__restrict s = lane_s.data(), *__restrict q = lane_q.data(), *__restrict mean = lane_mean.data();
            for (int64_t start = first * C; start < end * C; start += 64 * lanes) {
                const int64_t stop = std::min(end * C, start + 64 * lanes), full = (stop - start) / lanes,
                              rest = (stop - start) % lanes, sample = eighth(full);
                std::fill(mean, mean + lanes, A(0));
                std::fill(s, s + lanes, A(0));
                std::fill(q, q + lanes, A(0));
                const A part = A(1) / A(sample);
                for (int64_t i = start; i < std::min(stop, start + sample * lanes); i += lanes) {
                    const T *__restrict p = x + i;
                    const int64_t n = std::min(lanes, stop - i);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) mean[j] += load(p[j]) * part;
                }
                int64_t i = start;
                for (; i + 4 * lanes <= stop; i += 4 * lanes) {  // four rows for each time that the sums are fetched
                    const T *p0 = x + i, *p1 = p0 + lanes, *p2 = p1 + lanes, *p3 = p2 + lanes;
                    vectors(int(lanes), [&](auto part, int j, int m) {
                        constexpr bool PART = decltype(part)::value;
                        const V about = load(mean + j);
                        const V d0 = get<PART>(p0 + j, m) - about, d1 = get<PART>(p1 + j, m) - about,
                                d2 = get<PART>(p2 + j, m) - about, d3 = get<PART>(p3 + j, m) - about;
                        store(s + j, load(s + j) + ((d0 + d1) + (d2 + d3)));
                        store(q + j, load(q + j) + ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)));
                    });
                }
                for (; i < stop; i += lanes) {
                    const T *__restrict p = x + i;
                    const int64_t n = std::min(lanes, stop - i);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) {
                        const A d = load(p[j]) - mean[j];
                        s[j] += d;
                        q[j] += d * d;
                    }
                }
                for (int64_t j = 0; j < lanes; j += C)
                    for (int64_t i = 0; i < C; i++)
                        share[i].add(double(full + (j + i < rest)), mean[j + i], s[j + i], q[j + i], shift[i]);
            }
        } else {
            for (int64_t row = first; row < end; row++)
                for (int64_t j = 0; j < C; j++)
                    for (int64_t i = 0; i < inner; i += 1024) {
                        const T *__restrict p = x + (row * C + j) * inner + i;
                        const int64_t n = std::min<int64_t>(1024, inner - i), sample = eighth(n);
                        A mean = 0, s = 0, q = 0;
#pragma omp simd reduction(+ : mean)
                        for (int64_t l = 0; l < sample; l++) mean += load(p[l]);
                        mean /= A(sample);
                        V sums[2] = {}, squares[2] = {};  // two chains of additions, and what comes next asked for early
                        int64_t l = 0;
                        for (; l + 2 * LANES <= n; l += 2 * LANES) {
                            prefetch(p + l + 1024, 2 * LANES);
                            for (int u = 0; u < 2; u++) {
                                const V d = load(p + l + u * LANES) - mean;
                                sums[u] += d;
                                squares[u] += d * d;
                            }
                        }
                        for (int u = 0; u < LANES; u++) {
                            s += sums[0][u] + sums[1][u];
                            q += squares[0][u] + squares[1][u];
                        }
                        for (; l < n; l++) {
                            const A d = load(p[l]) - mean;
                            s += d;
                            q += d * d;
                        }
                        share[j].add(double(n), mean, s, q, shift[j]);
                    }
        }
    }
    const double count = double(rows) * double(inner);
    for (int64_t j = 0; j < C; j++) {
        Moments total;
        for (const auto &share : shares) {
            total.sum += share[j].sum;
            total.squares += share[j].squares;
        }
        const double mean = total.sum / count, var = total.squares / count - mean * mean;
        const A mean_a = A(shift[j] + mean), var_a = A(var < 0 ? 0 : var);  // a NaN stays one
        ((A *)c.dx)[j] = mean_a;
        ((A *)c.dy)[j] = var_a;
        if (!c.running_mean) continue;
        A &running_mean = ((A *)c.running_mean)[j], &running_var = ((A *)c.running_var)[j];
        running_mean += A(c.momentum) * (mean_a - running_mean);
        running_var += A(c.momentum) * (var_a * A(count / (count - 1)) - running_var);
    }
}

// One bit a spike, in memory order: x -> spikes as bytes, and back.
template <class T>
void pack(const Call &c) {
    const T *x = (const T *)c.x;
    uint8_t *bits = (uint8_t *)c.spikes;
    const int64_t n = c.neurons, bytes = (n + 7) / 8;
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1)
    for (int64_t j = 0; j < bytes; j++) {
        unsigned byte = 0;
        const int m = int(std::min<int64_t>(8, n - 8 * j));
        for (int i = 0; i < m; i++) byte |= unsigned(load(x[8 * j + i]) != 0) << i;
        bits[j] = uint8_t(byte);
    }
}

template <class T, class A>
void unpack(const Call &c) {
    const uint8_t *bits = (const uint8_t *)c.x;
    T *out = (T *)c.spikes;
    const int64_t n = c.neurons, bytes = (n + 7) / 8;
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1)
    for (int64_t j = 0; j < bytes; j++) {
        const int m = int(std::min<int64_t>(8, n - 8 * j));
        for (int i = 0; i < m; i++) store(out + 8 * j + i, A(bits[j] >> i & 1));
    }
}

// Where the call measures, mean and var are of this very x, and filled first.
template <class T, class A>
void measure_and_fire(const Call &c) {
    if (c.measures) {
        Call statistics_of = c;
        statistics_of.dx = const_cast<void *>(c.mean);
        statistics_of.dy = const_cast<void *>(c.var);
        statistics<T, A>(statistics_of);
    }
    forward<T, A>(c);
}

enum Pass { FORWARD, BACKWARD, NORM_BACKWARD, STATISTICS, PACK, UNPACK };

template <class T, class A>
void run(const Call &c, int pass) {
    switch (pass) {
        case FORWARD: return measure_and_fire<T, A>(c);
        case BACKWARD: return backward<T, A>(c);
        case NORM_BACKWARD: return norm_backward<T, A>(c);
        case STATISTICS: return statistics<T, A>(c);
        case PACK: return pack<T>(c);
        default: return unpack<T, A>(c);
    }
}

}  // namespace

extern "C" void spiketriton_run(const Call *call, int pass) { run<Element, Accumulator>(*call, pass); }

extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
