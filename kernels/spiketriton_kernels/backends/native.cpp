// The CPU pass: the whole time window of a block of neurons at a time, membranes in cache, one read and one write of
// memory per element and step. Same order of operations as the PyTorch reference, no contraction into fused
// multiply-adds (-ffp-contract=off), so spikes agree bit for bit. Sums run over chunks fixed by size, not by threads,
// and are joined in order: bit-equal from run to run and for any number of threads.
//
// A time step is one gapless block of `neurons` elements; the element at offset n has channel (n / inner) % channels.

#include "native.h"

#ifdef __AVX__
#include <immintrin.h>
#endif

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

// How the neurons of a time step are cut. A block's window (h and xhat of every step) stays in the second-level cache.
// With channels innermost, blocks hold whole runs of channels, so that every block sees the same per-channel values.
struct Cut {
    int size;
    bool aligned;
    int64_t chunks, unit;

    explicit Cut(const Call &c) {
        size = int(std::max<int64_t>(64, std::min<int64_t>(512, 16384 / c.steps / 64 * 64)));
        aligned = c.inner == 1 && c.channels <= size;
        if (aligned) size = int(size / c.channels * c.channels);
        unit = aligned ? c.channels : 1;
        chunks = chunk_count(c.neurons, 4 * size);
        size = int(std::min<int64_t>(size, c.neurons));  // no more memory than there are neurons
    }
    int64_t edge(const Call &c, int64_t k) const { return c.neurons / unit * k / chunks * unit; }
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
            double sum = 0;
            for (int j = 0; j < run; j++) sum += double(values[i + j]);
            sums[channel] += sum;
            i += run;
            within = 0;
            row++;
        }
    }
}

// One layer's constants, spread over the block at hand.
template <class A>
struct Block {
    std::vector<A> decay, leak, threshold, width, inverse_width, mean, scale, bias, rstd, affine, mean_dz,
        mean_dz_xhat;
    const Call &c;
    std::vector<A> channel_scale, channel_rstd, channel_affine, channel_bias, channel_mean_dz, channel_mean_dz_xhat;
    bool aligned, filled = false;
    int longest = 0;

    Block(const Call &call, int size, bool aligned_)
        : decay(size), leak(call.leaks_to_reset ? size : 0), threshold(size), width(size), inverse_width(size), c(call), aligned(aligned_) {
        if (!c.mean) return;
        for (auto *values : {&mean, &scale, &bias, &rstd}) values->resize(size);
        if (c.out_step_gain) affine.resize(size);
        if (c.dy) for (auto *values : {&mean_dz, &mean_dz_xhat}) values->resize(size);
        channel_scale.resize(c.channels);
        channel_rstd.resize(c.channels);
        channel_affine.resize(c.channels);
        channel_bias.assign(c.channels, A(0));
        for (int64_t k = 0; k < c.channels; k++) {
            channel_rstd[k] = A(1) / std::sqrt(((const A *)c.var)[k] + A(c.eps));
            channel_affine[k] = (c.weight ? ((const A *)c.weight)[k] : A(1)) * A(c.bn_scale);
            channel_scale[k] = channel_affine[k] * channel_rstd[k];
            if (c.bias) channel_bias[k] = ((const A *)c.bias)[k];
            if (!c.sums) continue;
            channel_mean_dz.push_back(((const A *)c.sums)[k] / A(c.count));
            channel_mean_dz_xhat.push_back(((const A *)c.sums)[c.channels + k] / A(c.count));
        }
    }

    void parameter(std::vector<A> &out, double number, const void *values, int64_t size, int64_t start, int n) {
        if (size > 1) return spread(out.data(), (const A *)values, start, n, c);
        std::fill(out.begin(), out.begin() + n, values ? *(const A *)values : A(number));
    }

    // Values for the block [start, start + n). Where blocks are aligned, or nothing depends on the channel, the values
    // of an earlier block at least as long still hold.
    void at(int64_t start, int n) {
        const bool constant = aligned || !(c.mean || c.decay_size > 1 || c.threshold_size > 1 || c.width_size > 1);
        if (constant && n <= longest) return;
        longest = n;
        parameter(decay, c.decay, c.decay_p, c.decay_size, start, n);
        parameter(threshold, c.threshold, c.threshold_p, c.threshold_size, start, n);
        parameter(width, c.width, c.width_p, c.width_size, start, n);
        for (int i = 0; i < n; i++) inverse_width[i] = A(1) / width[i];
        if (c.leaks_to_reset)
            for (int i = 0; i < n; i++) leak[i] = c.decay_p ? A(1) - decay[i] : A(1 - c.decay);
        if (!c.mean) return;
        spread(mean.data(), (const A *)c.mean, start, n, c);
        spread(scale.data(), channel_scale.data(), start, n, c);
        spread(bias.data(), channel_bias.data(), start, n, c);
        spread(rstd.data(), channel_rstd.data(), start, n, c);
        if (c.out_step_gain) spread(affine.data(), channel_affine.data(), start, n, c);
        if (!c.sums) return;
        spread(mean_dz.data(), channel_mean_dz.data(), start, n, c);
        spread(mean_dz_xhat.data(), channel_mean_dz_xhat.data(), start, n, c);
    }
};

// Rows of a time window lie far apart, and hardware prefetchers restart on each: ask for the next block's part early.
template <class T>
inline void prefetch_next(const T *row, int n) {
    const char *p = (const char *)(row + n);
    for (size_t i = 0; i < n * sizeof(T); i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Tensors beyond the caches are written past them: an ordinary store would first read the line that it overwrites.
constexpr int64_t BEYOND_CACHES = int64_t(1) << 25;

template <class T>
bool streams(const Call &c) { return c.steps * c.neurons * int64_t(sizeof(T)) > BEYOND_CACHES; }

template <class T>
void stream(T *to, const T *from, int n) {
    size_t bytes = n * sizeof(T), done = 0;
#ifdef __AVX__
    if (reinterpret_cast<uintptr_t>(to) % 32 == 0)
        for (; done + 32 <= bytes; done += 32)
            _mm256_stream_si256((__m256i *)((char *)to + done), _mm256_loadu_si256((const __m256i *)((const char *)from + done)));
#endif
    std::memcpy((char *)to + done, (const char *)from + done, bytes - done);
}

inline void finish_stream() {
#ifdef __AVX__
    _mm_sfence();
#endif
}

// The recurrence, written once: (v, current) -> (h, v). KIND is the reset, and for hard reset where the leak pulls.
enum Kind { SUBTRACT, TO_ZERO_LEAK, TO_RESET_LEAK, NO_RESET };

inline int kind_of(const Call &c) {
    return c.reset == SOFT ? SUBTRACT : c.reset == NONE ? NO_RESET : c.leaks_to_reset ? TO_RESET_LEAK : TO_ZERO_LEAK;
}

template <class A, int KIND>
inline A charge(A v, A current, A decay, A leak, A gain, A v_reset) {
    if constexpr (KIND == TO_RESET_LEAK) return v + gain * current - leak * (v - v_reset);
    return decay * v + gain * current;
}

template <class A, int KIND>
inline A discharge(A h, A threshold, A v_reset) {
    if constexpr (KIND == SUBTRACT) return h >= threshold ? h - threshold : h;
    if constexpr (KIND == NO_RESET) return h;
    return h >= threshold ? v_reset : h;
}

// One step of a block from memory's x (and residual r): out receives h (A) or, with FIRE, spikes (in memory's dtype).
template <class T, class A, class O, int KIND, bool NORM, bool RESIDUAL, bool FIRE, bool KEEP>
void step_loop(const Block<A> &b, const T *__restrict x, const T *__restrict r, A k, A *__restrict v, O *__restrict out,
               T *__restrict kept, int n) {
    const A *__restrict decay = b.decay.data(), *__restrict leak = b.leak.data(), *__restrict threshold = b.threshold.data(),
                       *__restrict mean = b.mean.data(), *__restrict scale = b.scale.data(), *__restrict bias = b.bias.data();
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset);
#pragma omp simd
    for (int i = 0; i < n; i++) {
        A current = load(x[i]);
        if constexpr (NORM) current = k * ((current - mean[i]) * scale[i] + bias[i]);
        if constexpr (RESIDUAL) current = current + load(r[i]);
        if constexpr (KEEP) store(kept + i, current);
        const A h = charge<A, KIND>(v[i], current, decay[i], leak[i], gain, v_reset);
        if constexpr (FIRE) store(out + i, h >= threshold[i] ? A(1) : A(0));
        else out[i] = h;
        v[i] = discharge<A, KIND>(h, threshold[i], v_reset);
    }
}

template <class T, class A, class O, int KIND, bool FIRE, bool KEEP>
void step_kind(const Block<A> &b, const T *x, const T *r, A k, A *v, O *out, T *kept, int n) {
    if (b.c.mean && r) return step_loop<T, A, O, KIND, true, true, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
    if (b.c.mean) return step_loop<T, A, O, KIND, true, false, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
    if constexpr (KEEP) return;  // without a norm the current is x
    else if (r) return step_loop<T, A, O, KIND, false, true, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
    else return step_loop<T, A, O, KIND, false, false, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
}

template <class T, class A, class O, bool FIRE, bool KEEP>
void step(const Block<A> &b, int64_t t, int64_t start, A *v, O *out, T *kept, int n) {
    const Call &c = b.c;
    const T *x = (const T *)c.x + t * c.neurons + start;
    const T *r = c.residual ? (const T *)c.residual + t * c.neurons + start : nullptr;
    const A k = c.step_gain ? ((const A *)c.step_gain)[t] : A(1);
    prefetch_next(x, n);
    if (r) prefetch_next(r, n);
    switch (kind_of(c)) {
        case SUBTRACT: return step_kind<T, A, O, SUBTRACT, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
        case TO_ZERO_LEAK: return step_kind<T, A, O, TO_ZERO_LEAK, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
        case TO_RESET_LEAK: return step_kind<T, A, O, TO_RESET_LEAK, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
        default: return step_kind<T, A, O, NO_RESET, FIRE, KEEP>(b, x, r, k, v, out, kept, n);
    }
}

// v after the reset of a stored h.
template <class A>
void membrane_after(const Block<A> &b, const A *h, A *v, int n) {
    const A v_reset = A(b.c.v_reset);
    for (int i = 0; i < n; i++) {
        const bool fired = h[i] >= b.threshold[i];
        v[i] = !fired || b.c.reset == NONE ? h[i] : b.c.reset == HARD ? v_reset : h[i] - b.threshold[i];
    }
}

// The way the gradient takes through the reset.
enum Path { PASSES, STOPS_AT_SPIKE, SOFT_ATTACHED, HARD_ATTACHED };

inline int path_of(const Call &c) {
    if (c.reset == HARD) return c.detach_reset ? STOPS_AT_SPIKE : HARD_ATTACHED;
    return c.reset == SOFT && !c.detach_reset ? SOFT_ATTACHED : PASSES;
}

// What one step back leaves besides the carried gradient.
enum Mode {
    WRITE,     // dL/dx in memory: the neuron alone
    ACCUMULATE,  // the channel sums of dz and dz * xhat, and dL/dx in memory where asked for: batch norm
    OBSERVE,   // dL/dx, phi, dv/dh, dL/dh and the incoming c in cache, for everything rarer
};

template <class T, class A>
struct Back {
    const T *x, *grad_s;  // memory at (t, start)
    const T *grad_current;  // likewise, or null
    T *out;               // memory at (t, start), or null
    const A *h;
    A k;                  // step gain
    A *carry, *sum_dz, *sum_dz_xhat, *dx, *phi, *jump, *dh, *before;
};

template <class T, class A, int SHAPE, int PATH, int MODE, bool OUT, bool JOIN>
void back_loop(const Block<A> &b, const Back<T, A> &s, int n) {
    const A *__restrict decay = b.decay.data(), *__restrict threshold = b.threshold.data(),
                       *__restrict width = b.width.data(), *__restrict inverse_width = b.inverse_width.data(),
                       *__restrict mean = b.mean.data(), *__restrict rstd = b.rstd.data(), *__restrict h = s.h;
    const T *__restrict gs = s.grad_s, *__restrict x = s.x, *__restrict gc = s.grad_current;
    A *__restrict carry = s.carry, *__restrict sum_dz = s.sum_dz, *__restrict sum_dz_xhat = s.sum_dz_xhat;
    T *__restrict out = s.out;
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset), height = A(b.c.height), k = s.k;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const A unit = phi<A, SHAPE>(h[i] - threshold[i], width[i], inverse_width[i]), slope = height * unit;
        A jump = A(1);
        if constexpr (PATH == STOPS_AT_SPIKE || PATH == HARD_ATTACHED) jump = h[i] >= threshold[i] ? A(0) : A(1);
        if constexpr (PATH == HARD_ATTACHED) jump = jump + (v_reset - h[i]) * slope;
        if constexpr (PATH == SOFT_ATTACHED) jump = A(1) - threshold[i] * slope;
        const A dh = A(load(gs[i])) * slope + carry[i] * jump;
        A dx = gain * dh;
        if constexpr (JOIN) dx = dx + load(gc[i]);
        if constexpr (MODE == OBSERVE) {
            s.dx[i] = dx;
            s.phi[i] = unit;
            s.jump[i] = jump;
            s.dh[i] = dh;
            s.before[i] = carry[i];
        }
        if constexpr (MODE == ACCUMULATE) {
            const A dz = k * dx;
            sum_dz[i] += dz;
            sum_dz_xhat[i] += dz * ((load(x[i]) - mean[i]) * rstd[i]);
        }
        if constexpr (OUT) store(out + i, dx);
        carry[i] = decay[i] * dh;
    }
}

template <class T, class A, int SHAPE, int PATH>
void back_mode(const Block<A> &b, const Back<T, A> &s, int n, int mode) {
    if (mode == WRITE) return back_loop<T, A, SHAPE, PATH, WRITE, true, false>(b, s, n);
    if (mode == OBSERVE) return back_loop<T, A, SHAPE, PATH, OBSERVE, false, false>(b, s, n);
    if (s.grad_current && s.out) return back_loop<T, A, SHAPE, PATH, ACCUMULATE, true, true>(b, s, n);
    if (s.grad_current) return back_loop<T, A, SHAPE, PATH, ACCUMULATE, false, true>(b, s, n);
    if (s.out) return back_loop<T, A, SHAPE, PATH, ACCUMULATE, true, false>(b, s, n);
    return back_loop<T, A, SHAPE, PATH, ACCUMULATE, false, false>(b, s, n);
}

template <class T, class A, int SHAPE>
void back_path(const Block<A> &b, const Back<T, A> &s, int n, int mode) {
    switch (path_of(b.c)) {
        case PASSES: return back_mode<T, A, SHAPE, PASSES>(b, s, n, mode);
        case STOPS_AT_SPIKE: return back_mode<T, A, SHAPE, STOPS_AT_SPIKE>(b, s, n, mode);
        case SOFT_ATTACHED: return back_mode<T, A, SHAPE, SOFT_ATTACHED>(b, s, n, mode);
        default: return back_mode<T, A, SHAPE, HARD_ATTACHED>(b, s, n, mode);
    }
}

template <class T, class A>
void step_back(const Block<A> &b, const Back<T, A> &s, int n, int mode) {
    prefetch_next(s.grad_s, n);
    if (s.grad_current) prefetch_next(s.grad_current, n);
    switch (b.c.shape) {
        case FAST_SIGMOID: return back_path<T, A, FAST_SIGMOID>(b, s, n, mode);
        case ATAN: return back_path<T, A, ATAN>(b, s, n, mode);
        case SIGMOID: return back_path<T, A, SIGMOID>(b, s, n, mode);
        case TRIANGLE: return back_path<T, A, TRIANGLE>(b, s, n, mode);
        case RECTANGLE: return back_path<T, A, RECTANGLE>(b, s, n, mode);
        default: return back_path<T, A, GAUSSIAN>(b, s, n, mode);
    }
}

template <class A>
void start_membrane(const Call &c, int64_t start, int n, A *v) {
    if (c.v_init) std::memcpy(v, (const A *)c.v_init + start, n * sizeof(A));
    else std::fill(v, v + n, A(c.v_start));
}

template <class T, class A>
void forward(const Call &c) {
    const Cut cut(c);
    const int size = cut.size;
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < cut.chunks; k++) {
        Block<A> b(c, size, cut.aligned);
        std::vector<A> v(size);
        std::vector<T> line(size), current_line(c.current ? size : 0);
        const bool beyond = streams<T>(c);
        const int64_t end = cut.edge(c, k + 1);
        for (int64_t start = cut.edge(c, k); start < end; start += size) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_membrane(c, start, n, v.data());
            for (int64_t t = 0; t < c.steps; t++) {
                T *place = (T *)c.spikes + t * c.neurons + start, *s = beyond ? line.data() : place;
                if (c.current) {
                    T *current = (T *)c.current + t * c.neurons + start, *kept = beyond ? current_line.data() : current;
                    step<T, A, T, true, true>(b, t, start, v.data(), s, kept, n);
                    if (beyond) stream(current, kept, n);
                } else {
                    step<T, A, T, true, false>(b, t, start, v.data(), s, (T *)nullptr, n);
                }
                if (c.spike_add) {
                    const T *__restrict add = (const T *)c.spike_add + t * c.neurons + start;
#pragma omp simd
                    for (int i = 0; i < n; i++) store(s + i, A(load(s[i])) + A(load(add[i])));
                }
                if (beyond) stream(place, s, n);
            }
            if (c.v_last) std::memcpy((A *)c.v_last + start, v.data(), n * sizeof(A));
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
void observe(const Block<A> &b, const Back<T, A> &s, Sums &mine, std::vector<A> *d_parameters, const A *window, A *v,
             int64_t t, int64_t start, int n, bool attached, int size) {
    const Call &c = b.c;
    const A *threshold = b.threshold.data(), *decay = b.decay.data();
    const T *gs = s.grad_s;
    if (c.probe) {
        const A *__restrict dx = s.dx, *__restrict carried = s.before, *__restrict jump = s.jump, *__restrict unit = s.phi,
                           *__restrict h = s.h;
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
        for (int i = 0; i < n; i++) s.dx[i] = s.dx[i] + load(s.grad_current[i]);
    if (s.out)
        for (int i = 0; i < n; i++) store(s.out + i, s.dx[i]);
    if (c.out_parameters) {
        const A v_reset = A(c.v_reset), height = A(c.height);
        if (t) membrane_after(b, window + (t - 1) * size, v, n);
        else start_membrane(c, start, n, v);
        for (int i = 0; i < n; i++) {
            const A z = (s.h[i] - threshold[i]) / b.width[i], g = load(gs[i]);
            const bool fired = s.h[i] >= threshold[i];
            A through_s = g, through_v = A(0);
            if (c.reset == SOFT) {
                through_v = fired ? A(-1) : A(0);
                if (attached) through_s = g - s.before[i] * threshold[i];
            } else if (attached) {
                through_s = g + s.before[i] * (v_reset - s.h[i]);
            }
            d_parameters[0][i] += s.dh[i] * (c.leaks_to_reset ? v[i] - v_reset : v[i]);
            d_parameters[1][i] += s.before[i] * through_v - through_s * (height * s.phi[i]);
            d_parameters[2][i] += through_s * height * (primitive(z, c.shape) - z * s.phi[i]);
        }
    }
    if (!c.mean) return;
    double step_gain = 0;
    T *dy = c.dy ? (T *)c.dy + t * c.neurons + start : nullptr;
    for (int i = 0; i < n; i++) {
        const A xhat = (load(s.x[i]) - b.mean[i]) * b.rstd[i], dz = s.k * s.dx[i];
        if (c.out_step_gain) step_gain += double(s.dx[i] * (xhat * b.affine[i] + b.bias[i]));
        s.sum_dz[i] += dz;
        s.sum_dz_xhat[i] += dz * xhat;
        if (dy) store(dy + i, b.scale[i] * (dz - b.mean_dz[i] - xhat * b.mean_dz_xhat[i]));
    }
    if (c.out_step_gain) mine.step_gain[t] += step_gain;
}

template <class T, class A>
void walk_back(const Call &c) {
    const Cut cut(c);
    const int size = cut.size;
    std::vector<Sums> sums(cut.chunks, Sums(c));
    const bool attached = !c.detach_reset && c.reset != NONE;
    const bool rare = c.probe || c.out_parameters || c.out_step_gain || c.dy;
    const int mode = rare ? OBSERVE : c.out_sums ? ACCUMULATE : WRITE;
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < cut.chunks; k++) {
        Sums &mine = sums[k];
        Block<A> b(c, size, cut.aligned);
        std::vector<A> v(size), window(size * c.steps), carry(size), sum_dz(size), sum_dz_xhat(size);
        std::vector<A> observed[5], d_parameters[3];
        std::vector<T> line(size);
        const bool beyond = c.dx && streams<T>(c);
        if (rare) for (auto &o : observed) o.resize(size);
        if (c.out_parameters) for (auto &d : d_parameters) d.resize(size);
        Back<T, A> back{};
        back.carry = carry.data();
        back.sum_dz = sum_dz.data();
        back.sum_dz_xhat = sum_dz_xhat.data();
        back.dx = observed[0].data();
        back.phi = observed[1].data();
        back.jump = observed[2].data();
        back.dh = observed[3].data();
        back.before = observed[4].data();
        const int64_t end = cut.edge(c, k + 1);
        for (int64_t start = cut.edge(c, k), blocks = 0; start < end; start += size, blocks++) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_membrane(c, start, n, v.data());
            for (int64_t t = 0; t < c.steps; t++) 
                step<T, A, A, false, false>(b, t, start, v.data(), window.data() + t * size, (T *)nullptr, n);
            if (c.grad_v_last) std::memcpy(carry.data(), (const A *)c.grad_v_last + start, n * sizeof(A));
            else std::fill(carry.begin(), carry.end(), A(0));
            // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
            const bool fresh = !cut.aligned || blocks % 16 == 0;
            const bool flush = !cut.aligned || blocks % 16 == 15 || start + size >= end;
            if (fresh) {
                std::fill(sum_dz.begin(), sum_dz.end(), A(0));
                std::fill(sum_dz_xhat.begin(), sum_dz_xhat.end(), A(0));
            }
            for (auto &d : d_parameters) std::fill(d.begin(), d.end(), A(0));
            for (int64_t t = c.steps - 1; t >= 0; t--) {
                const int64_t at = t * c.neurons + start;
                back.x = (const T *)c.x + at;
                back.grad_s = (const T *)c.grad_s + at;
                back.grad_current = c.grad_current ? (const T *)c.grad_current + at : nullptr;
                back.out = beyond ? line.data() : c.dx ? (T *)c.dx + at : nullptr;
                back.h = window.data() + t * size;
                back.k = c.step_gain ? ((const A *)c.step_gain)[t] : A(1);
                step_back(b, back, n, mode);
                if (rare) observe(b, back, mine, d_parameters, window.data(), v.data(), t, start, n, attached, size);
                if (beyond) stream((T *)c.dx + at, line.data(), n);
            }
            if (c.out_v_init) std::memcpy((A *)c.out_v_init + start, carry.data(), n * sizeof(A));
            if (c.out_sums && flush) {
                const int lanes = cut.aligned ? size : n;
                gather(mine.norm.data(), sum_dz.data(), start, lanes, c);
                gather(mine.norm.data() + c.channels, sum_dz_xhat.data(), start, lanes, c);
            }
            if (c.out_parameters)
                for (int p = 0; p < 3; p++) {
                    double *row = mine.parameters.data() + p * c.parameter_size;
                    if (c.parameter_size > 1) gather(row, d_parameters[p].data(), start, n, c);
                    else for (int i = 0; i < n; i++) *row += double(d_parameters[p][i]);
                }
        }
        finish_stream();
    }
    Sums total(c);
    for (const Sums &s : sums) {
        for (size_t i = 0; i < s.norm.size(); i++) total.norm[i] += s.norm[i];
        for (size_t i = 0; i < s.parameters.size(); i++) total.parameters[i] += s.parameters[i];
        for (size_t i = 0; i < s.step_gain.size(); i++) total.step_gain[i] += s.step_gain[i];
        for (size_t i = 0; i < s.probe.size(); i++) {
            if (i % PROBE_FIELDS == GRAD_INPUT_MAX) total.probe[i] = std::max(total.probe[i], s.probe[i]);
            else total.probe[i] += s.probe[i];
        }
    }
    for (size_t i = 0; i < total.norm.size(); i++) ((A *)c.out_sums)[i] = A(total.norm[i]);
    for (size_t i = 0; i < total.parameters.size(); i++) ((A *)c.out_parameters)[i] = A(total.parameters[i]);
    for (size_t i = 0; i < total.step_gain.size(); i++) ((A *)c.out_step_gain)[i] = A(total.step_gain[i]);
    for (size_t i = 0; i < total.probe.size(); i++) c.probe[i] = float(total.probe[i]);
}

// Second pass of batch norm where dL/dx is stored: dy = scale * (dz - mean_dz - xhat * mean_dz_xhat). dy may be dL/dx.
template <class T, class A>
void norm_backward(const Call &c) {
    const Cut cut(c);
    const int size = cut.size;
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < cut.chunks; k++) {
        Block<A> b(c, size, cut.aligned);
        const int64_t end = cut.edge(c, k + 1);
        for (int64_t start = cut.edge(c, k); start < end; start += size) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            const A *__restrict mean = b.mean.data(), *__restrict scale = b.scale.data(), *__restrict rstd = b.rstd.data(),
                               *__restrict m0 = b.mean_dz.data(), *__restrict m1 = b.mean_dz_xhat.data();
            for (int64_t t = 0; t < c.steps; t++) {
                const T *__restrict x = (const T *)c.x + t * c.neurons + start;
                const T *g = (const T *)c.grad_s + t * c.neurons + start;
                T *out = (T *)c.dy + t * c.neurons + start;
                prefetch_next(x, n);
                prefetch_next(g, n);
                const A kt = c.step_gain ? ((const A *)c.step_gain)[t] : A(1);
#pragma omp simd
                for (int i = 0; i < n; i++) {
                    A xhat = (load(x[i]) - mean[i]) * rstd[i];
                    store(out + i, scale[i] * (kt * load(g[i]) - m0[i] - xhat * m1[i]));
                }
            }
        }
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
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < chunks; k++) {
        Moments *share = shares[k].data();
        const int64_t first = rows * k / chunks, end = rows * (k + 1) / chunks;
        if (inner == 1) {
            // Several rows side by side, so that the vector units are full with few channels too.
            const int64_t side = std::max<int64_t>(1, 512 / C), lanes = side * C;
            std::vector<A> lane_s(lanes), lane_q(lanes), lane_mean(lanes);
            A *__restrict s = lane_s.data(), *__restrict q = lane_q.data(), *__restrict mean = lane_mean.data();
            for (int64_t start = first * C; start < end * C; start += 64 * lanes) {
                const int64_t stop = std::min(end * C, start + 64 * lanes), full = (stop - start) / lanes,
                              rest = (stop - start) % lanes, sample = eighth(full);
                std::fill(mean, mean + lanes, A(0));
                std::fill(s, s + lanes, A(0));
                std::fill(q, q + lanes, A(0));
                for (int64_t i = start; i < std::min(stop, start + sample * lanes); i += lanes) {
                    const T *__restrict p = x + i;
                    const int64_t n = std::min(lanes, stop - i);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) mean[j] += load(p[j]) / A(sample);
                }
                for (int64_t i = start; i < stop; i += lanes) {
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
#pragma omp simd reduction(+ : s, q)
                        for (int64_t l = 0; l < n; l++) {
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
#pragma omp parallel for schedule(static) num_threads(c.threads)
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
#pragma omp parallel for schedule(static) num_threads(c.threads)
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
