// The CPU pass: the whole time window of a block of neurons at a time, membranes in cache, one read and one write of
// memory per element and step. Same order of operations as the PyTorch reference, no contraction into fused
// multiply-adds (-ffp-contract=off), so spikes agree bit for bit. Sums run over chunks fixed by size, not by threads,
// and are joined in order: bit-equal from run to run and for any number of threads.
//
// A time step is one gapless block of `neurons` elements; the element at offset n has channel (n / inner) % channels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Reset { SOFT, HARD, NONE };
enum Shape { FAST_SIGMOID, ATAN, SIGMOID, TRIANGLE, RECTANGLE, GAUSSIAN };
constexpr int PROBE_FIELDS = 8;
constexpr double REACH = 0.01;

}  // namespace

// Mirrored field by field in _native.py.
struct Call {
    int64_t steps, neurons, channels, inner;
    int64_t decay_size, threshold_size, width_size, parameter_size;
    int32_t dtype, reset, detach_reset, leaks_to_reset, shape, threads;
    double decay, gain, threshold, v_reset, v_start, height, width, eps, bn_scale, count;
    const void *x, *v_init, *residual, *spike_add, *grad_s, *grad_v_last;
    const void *decay_p, *threshold_p, *width_p;                         // float (double for double), null: the number
    const void *mean, *var, *weight, *bias, *step_gain, *sums;           // likewise; mean null: no norm
    void *spikes, *v_last, *dx, *dy, *out_sums, *out_v_init, *out_parameters, *out_step_gain;
    float *probe;
};

namespace {

// ---- element types: T in memory, A in registers -----------------------------------------------------------------

struct bf16 { uint16_t bits; };

inline float load(float v) { return v; }
inline double load(double v) { return v; }
inline float load(bf16 v) {
    uint32_t word = uint32_t(v.bits) << 16;
    float out;
    std::memcpy(&out, &word, 4);
    return out;
}
inline void store(float *p, float v) { *p = v; }
inline void store(double *p, double v) { *p = v; }
inline void store(bf16 *p, float v) {  // round to nearest even; a NaN stays one
    uint32_t word;
    std::memcpy(&word, &v, 4);
    uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    p->bits = uint16_t((word & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
#ifdef __FLT16_MAX__
using half = _Float16;
inline float load(half v) { return float(v); }
inline void store(half *p, float v) { *p = half(v); }
#endif

// ---- surrogate ----------------------------------------------------------------------------------------------------

inline double exp_negative(double x) { return std::exp(x); }

// exp for x <= 0, written out so that compilers vectorise it (Cephes expf, about 1 ulp).
inline float exp_negative(float x) {
    x = std::max(x, -87.0f);
    float n = std::floor(x * 1.44269504088896341f + 0.5f);
    float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// phi(u / width). The rectangle's edge is compared, not divided, so that ties fall as in the reference.
template <class A, int SHAPE>
inline A phi(A u, A width, A inverse_width) {
    const A z = u * inverse_width, a = std::fabs(z);
    if constexpr (SHAPE == FAST_SIGMOID) { A r = A(1) / (A(1) + a); return r * r; }
    if constexpr (SHAPE == ATAN) return A(1) / (A(1) + z * z);
    if constexpr (SHAPE == SIGMOID) { A e = exp_negative(-a); A r = A(1) / (A(1) + e); return A(4) * e * r * r; }
    if constexpr (SHAPE == TRIANGLE) return a < A(1) ? A(1) - a : A(0);
    if constexpr (SHAPE == RECTANGLE) return std::fabs(u) < width ? A(1) : A(0);
    return exp_negative(-z * z / A(2));
}

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

int64_t chunk_count(int64_t items, int64_t least) { return std::max<int64_t>(1, std::min<int64_t>(64, items / least)); }

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
        : decay(size), leak(size), threshold(size), width(size), inverse_width(size), mean(size), scale(size), bias(size), rstd(size),
          affine(size), mean_dz(size), mean_dz_xhat(size), c(call), aligned(aligned_) {
        if (!c.mean) return;
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

// The normalised (and residual) current of one step in float; xhat too where asked for.
template <class T, class A>
void current(const Block<A> &b, int64_t t, int64_t start, int n, A *__restrict out, A *__restrict xhat) {
    const Call &c = b.c;
    const T *__restrict x = (const T *)c.x + t * c.neurons + start;
    if (c.mean) {
        const A *__restrict mean = b.mean.data(), *__restrict scale = b.scale.data(), *__restrict bias = b.bias.data();
        const A *__restrict rstd = b.rstd.data();
        const A k = c.step_gain ? ((const A *)c.step_gain)[t] : A(1);
        if (xhat) {
#pragma omp simd
            for (int i = 0; i < n; i++) {
                const A centred = load(x[i]) - mean[i];
                xhat[i] = centred * rstd[i];
                out[i] = k * (centred * scale[i] + bias[i]);
            }
        } else {
#pragma omp simd
            for (int i = 0; i < n; i++) out[i] = k * ((load(x[i]) - mean[i]) * scale[i] + bias[i]);
        }
    } else {
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] = load(x[i]);
    }
    if (c.residual) {
        const T *__restrict r = (const T *)c.residual + t * c.neurons + start;
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] = out[i] + load(r[i]);
    }
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

// One step of a block. `in` is the current; out receives h (A) or, with FIRE, spikes (in memory's dtype).
template <class I, class O, class A, int KIND, bool FIRE>
void step_loop(const Block<A> &b, const I *__restrict in, A *__restrict v, O *__restrict out, int n) {
    const A *__restrict decay = b.decay.data(), *__restrict leak = b.leak.data(), *__restrict threshold = b.threshold.data();
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset);
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const A h = charge<A, KIND>(v[i], load(in[i]), decay[i], leak[i], gain, v_reset);
        if constexpr (FIRE) store(out + i, h >= threshold[i] ? A(1) : A(0));
        else out[i] = h;
        v[i] = discharge<A, KIND>(h, threshold[i], v_reset);
    }
}

template <class I, class O, class A, bool FIRE>
void step(const Block<A> &b, const I *in, A *v, O *out, int n) {
    switch (kind_of(b.c)) {
        case SUBTRACT: return step_loop<I, O, A, SUBTRACT, FIRE>(b, in, v, out, n);
        case TO_ZERO_LEAK: return step_loop<I, O, A, TO_ZERO_LEAK, FIRE>(b, in, v, out, n);
        case TO_RESET_LEAK: return step_loop<I, O, A, TO_RESET_LEAK, FIRE>(b, in, v, out, n);
        default: return step_loop<I, O, A, NO_RESET, FIRE>(b, in, v, out, n);
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

// One step back of a block: (dL/ds, c) -> (dL/dx, c). KEEP leaves phi, dv/dh, dL/dh and the incoming c for observers.
template <class A>
struct Kept {
    std::vector<A> phi, jump, dh, carry;
    explicit Kept(int size) : phi(size), jump(size), dh(size), carry(size) {}
};

template <class T, class A, int SHAPE, int PATH, bool KEEP>
void back_loop(const Block<A> &b, const A *__restrict h, const T *__restrict gs, A *__restrict carry, A *__restrict dx,
               Kept<A> &kept, int n) {
    const A *__restrict decay = b.decay.data(), *__restrict threshold = b.threshold.data(),
                       *__restrict width = b.width.data(), *__restrict inverse_width = b.inverse_width.data();
    A *__restrict kept_phi = kept.phi.data(), *__restrict kept_jump = kept.jump.data(),
      *__restrict kept_dh = kept.dh.data(), *__restrict kept_carry = kept.carry.data();
    const A gain = A(b.c.gain), v_reset = A(b.c.v_reset), height = A(b.c.height);
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const A unit = phi<A, SHAPE>(h[i] - threshold[i], width[i], inverse_width[i]), slope = height * unit;
        A jump = A(1);
        if constexpr (PATH == STOPS_AT_SPIKE || PATH == HARD_ATTACHED) jump = h[i] >= threshold[i] ? A(0) : A(1);
        if constexpr (PATH == HARD_ATTACHED) jump = jump + (v_reset - h[i]) * slope;
        if constexpr (PATH == SOFT_ATTACHED) jump = A(1) - threshold[i] * slope;
        const A dh = A(load(gs[i])) * slope + carry[i] * jump;
        if constexpr (KEEP) {
            kept_phi[i] = unit;
            kept_jump[i] = jump;
            kept_dh[i] = dh;
            kept_carry[i] = carry[i];
        }
        dx[i] = gain * dh;
        carry[i] = decay[i] * dh;
    }
}

template <class T, class A, int SHAPE, bool KEEP>
void back_path(const Block<A> &b, const A *h, const T *gs, A *carry, A *dx, Kept<A> &kept, int n) {
    switch (path_of(b.c)) {
        case PASSES: return back_loop<T, A, SHAPE, PASSES, KEEP>(b, h, gs, carry, dx, kept, n);
        case STOPS_AT_SPIKE: return back_loop<T, A, SHAPE, STOPS_AT_SPIKE, KEEP>(b, h, gs, carry, dx, kept, n);
        case SOFT_ATTACHED: return back_loop<T, A, SHAPE, SOFT_ATTACHED, KEEP>(b, h, gs, carry, dx, kept, n);
        default: return back_loop<T, A, SHAPE, HARD_ATTACHED, KEEP>(b, h, gs, carry, dx, kept, n);
    }
}

template <class T, class A, bool KEEP>
void step_back(const Block<A> &b, const A *h, const T *gs, A *carry, A *dx, Kept<A> &kept, int n) {
    switch (b.c.shape) {
        case FAST_SIGMOID: return back_path<T, A, FAST_SIGMOID, KEEP>(b, h, gs, carry, dx, kept, n);
        case ATAN: return back_path<T, A, ATAN, KEEP>(b, h, gs, carry, dx, kept, n);
        case SIGMOID: return back_path<T, A, SIGMOID, KEEP>(b, h, gs, carry, dx, kept, n);
        case TRIANGLE: return back_path<T, A, TRIANGLE, KEEP>(b, h, gs, carry, dx, kept, n);
        case RECTANGLE: return back_path<T, A, RECTANGLE, KEEP>(b, h, gs, carry, dx, kept, n);
        default: return back_path<T, A, GAUSSIAN, KEEP>(b, h, gs, carry, dx, kept, n);
    }
}

// Rows of a time window lie far apart, and hardware prefetchers restart on each: ask for the next block's part early.
template <class T>
inline void prefetch_next(const T *row, int n) {
    const char *p = (const char *)(row + n);
    for (size_t i = 0; i < n * sizeof(T); i += 64) __builtin_prefetch(p + i, 0, 2);
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
        std::vector<A> v(size), h(size);
        const int64_t end = cut.edge(c, k + 1);
        for (int64_t start = cut.edge(c, k); start < end; start += size) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_membrane(c, start, n, v.data());
            for (int64_t t = 0; t < c.steps; t++) {
                const T *x = (const T *)c.x + t * c.neurons + start;
                T *__restrict s = (T *)c.spikes + t * c.neurons + start;
                prefetch_next(x, n);
                if (c.mean || c.residual) {
                    current<T, A>(b, t, start, n, h.data(), nullptr);
                    step<A, T, A, true>(b, h.data(), v.data(), s, n);
                } else {
                    step<T, T, A, true>(b, x, v.data(), s, n);
                }
                if (c.spike_add) {
                    const T *__restrict add = (const T *)c.spike_add + t * c.neurons + start;
#pragma omp simd
                    for (int i = 0; i < n; i++) store(s + i, A(load(s[i])) + A(load(add[i])));
                }
            }
            if (c.v_last) std::memcpy((A *)c.v_last + start, v.data(), n * sizeof(A));
        }
    }
}

// Everything that one chunk sums, joined later in chunk order.
struct Sums {
    std::vector<double> norm, parameters, step_gain, probe;
    Sums(const Call &c)
        : norm(c.out_sums ? 2 * c.channels : 0), parameters(c.out_parameters ? 3 * c.parameter_size : 0),
          step_gain(c.out_step_gain ? c.steps : 0), probe(c.probe ? c.steps * PROBE_FIELDS : 0) {}
};

template <class T, class A>
void backward(const Call &c) {
    const Cut cut(c);
    const int size = cut.size;
    std::vector<Sums> sums(cut.chunks, Sums(c));
    const bool attached = !c.detach_reset && c.reset != NONE, observed = c.probe || c.out_parameters;
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < cut.chunks; k++) {
        Sums &mine = sums[k];
        Block<A> b(c, size, cut.aligned);
        std::vector<A> v(size), window(size * c.steps), xhats(c.mean ? size * c.steps : 0), in(size), carry(size),
            dx(size), sum_dz(size), sum_dz_xhat(size);
        Kept<A> kept(size);
        std::vector<A> d_parameters[3];
        if (c.out_parameters) for (auto &d : d_parameters) d.resize(size);
        const A v_reset = A(c.v_reset), height = A(c.height);
        const int64_t end = cut.edge(c, k + 1);
        for (int64_t start = cut.edge(c, k), blocks = 0; start < end; start += size, blocks++) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_membrane(c, start, n, v.data());
            for (int64_t t = 0; t < c.steps; t++) {
                A *h = window.data() + t * size;
                prefetch_next((const T *)c.x + t * c.neurons + start, n);
                if (c.mean || c.residual) {
                    current<T, A>(b, t, start, n, in.data(), c.mean ? xhats.data() + t * size : nullptr);
                    step<A, A, A, false>(b, in.data(), v.data(), h, n);
                } else {
                    step<T, A, A, false>(b, (const T *)c.x + t * c.neurons + start, v.data(), h, n);
                }
            }
            if (c.grad_v_last) std::memcpy(carry.data(), (const A *)c.grad_v_last + start, n * sizeof(A));
            else std::fill(carry.begin(), carry.end(), A(0));
            // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
            const bool fresh = !cut.aligned || blocks % 16 == 0, flush = !cut.aligned || blocks % 16 == 15 || start + size >= end;
            if (fresh) {
                std::fill(sum_dz.begin(), sum_dz.end(), A(0));
                std::fill(sum_dz_xhat.begin(), sum_dz_xhat.end(), A(0));
            }
            for (auto &d : d_parameters) std::fill(d.begin(), d.end(), A(0));

            const A *__restrict threshold = b.threshold.data(), *__restrict decay = b.decay.data();
            A *__restrict dxp = dx.data();
            const A *__restrict phi = kept.phi.data(), *__restrict jump = kept.jump.data(),
                               *__restrict dh = kept.dh.data(), *__restrict before = kept.carry.data();
            for (int64_t t = c.steps - 1; t >= 0; t--) {
                const A *__restrict h = window.data() + t * size;
                const T *__restrict gs = (const T *)c.grad_s + t * c.neurons + start;
                prefetch_next(gs, n);
                if (observed) step_back<T, A, true>(b, h, gs, carry.data(), dxp, kept, n);
                else step_back<T, A, false>(b, h, gs, carry.data(), dxp, kept, n);
                if (c.dx) {
                    T *__restrict out = (T *)c.dx + t * c.neurons + start;
#pragma omp simd
                    for (int i = 0; i < n; i++) store(out + i, dxp[i]);
                }
                if (c.probe) {
                    double f[PROBE_FIELDS] = {0};
                    for (int i = 0; i < n; i++) {
                        double g = load(gs[i]), d = dxp[i], carried = before[i];
                        f[0] += g * g;
                        f[1] += d * d;
                        f[2] += carried * carried;
                        f[3] += std::fabs(double(decay[i] * jump[i]));
                        f[4] += phi[i] < A(REACH);
                        f[5] += h[i] >= threshold[i];
                        f[6] = std::fabs(d) > f[6] || std::isnan(d) ? std::fabs(d) : f[6];
                        f[7] += !std::isfinite(d);
                    }
                    double *row = mine.probe.data() + t * PROBE_FIELDS;
                    for (int j = 0; j < PROBE_FIELDS; j++) {
                        if (j == 6) row[6] = f[6] > row[6] || std::isnan(f[6]) ? f[6] : row[6];
                        else row[j] += f[j];
                    }
                }
                if (c.out_parameters) {
                    if (t) membrane_after(b, window.data() + (t - 1) * size, v.data(), n);
                    else start_membrane(c, start, n, v.data());
                    for (int i = 0; i < n; i++) {
                        const A z = (h[i] - threshold[i]) / b.width[i], g = load(gs[i]);
                        const bool fired = h[i] >= threshold[i];
                        A through_s = g, through_v = A(0);
                        if (c.reset == SOFT) {
                            through_v = fired ? A(-1) : A(0);
                            if (attached) through_s = g - before[i] * threshold[i];
                        } else if (attached) {
                            through_s = g + before[i] * (v_reset - h[i]);
                        }
                        d_parameters[0][i] += dh[i] * (c.leaks_to_reset ? v[i] - v_reset : v[i]);
                        d_parameters[1][i] += before[i] * through_v - through_s * (height * phi[i]);
                        d_parameters[2][i] += through_s * height * (primitive(z, c.shape) - z * phi[i]);
                    }
                }
                if (!c.mean) continue;
                const A *__restrict xhat = xhats.data() + t * size;
                if (c.out_step_gain) {
                    double sum = 0;
                    for (int i = 0; i < n; i++) sum += double(dxp[i] * (xhat[i] * b.affine[i] + b.bias[i]));
                    mine.step_gain[t] += sum;
                }
                if (c.step_gain) {
                    const A kt = ((const A *)c.step_gain)[t];
#pragma omp simd
                    for (int i = 0; i < n; i++) dxp[i] = kt * dxp[i];
                }
                if (c.out_sums) {
                    A *__restrict s0 = sum_dz.data(), *__restrict s1 = sum_dz_xhat.data();
#pragma omp simd
                    for (int i = 0; i < n; i++) {
                        s0[i] += dxp[i];
                        s1[i] += dxp[i] * xhat[i];
                    }
                }
                if (c.dy) {
                    T *__restrict out = (T *)c.dy + t * c.neurons + start;
                    const A *__restrict scale = b.scale.data(), *__restrict m0 = b.mean_dz.data(),
                                       *__restrict m1 = b.mean_dz_xhat.data();
#pragma omp simd
                    for (int i = 0; i < n; i++) store(out + i, scale[i] * (dxp[i] - m0[i] - xhat[i] * m1[i]));
                }
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
    }
    Sums total(c);
    for (const Sums &s : sums) {
        for (size_t i = 0; i < s.norm.size(); i++) total.norm[i] += s.norm[i];
        for (size_t i = 0; i < s.parameters.size(); i++) total.parameters[i] += s.parameters[i];
        for (size_t i = 0; i < s.step_gain.size(); i++) total.step_gain[i] += s.step_gain[i];
        for (size_t i = 0; i < s.probe.size(); i++) {
            if (i % PROBE_FIELDS == 6) total.probe[i] = s.probe[i] > total.probe[i] || std::isnan(s.probe[i]) ? s.probe[i] : total.probe[i];
            else total.probe[i] += s.probe[i];
        }
    }
    for (size_t i = 0; i < total.norm.size(); i++) ((A *)c.out_sums)[i] = A(total.norm[i]);
    for (size_t i = 0; i < total.parameters.size(); i++) ((A *)c.out_parameters)[i] = A(total.parameters[i]);
    for (size_t i = 0; i < total.step_gain.size(); i++) ((A *)c.out_step_gain)[i] = A(total.step_gain[i]);
    for (size_t i = 0; i < total.probe.size(); i++) c.probe[i] = float(total.probe[i]);
}

// Second pass of batch norm where dL/dx is stored: dy = scale * (dz - mean_dz - xhat * mean_dz_xhat).
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
                const T *__restrict g = (const T *)c.grad_s + t * c.neurons + start;
                T *__restrict out = (T *)c.dy + t * c.neurons + start;
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

// Mean and biased variance per channel, sums shifted by the channel's first element. Results in dx (mean), dy (var).
template <class T, class A>
void statistics(const Call &c) {
    const T *x = (const T *)c.x;
    const int64_t C = c.channels, inner = c.inner, rows = c.steps * c.neurons / (C * inner);
    const int64_t chunks = chunk_count(rows, 1);
    std::vector<A> shift(C);
    for (int64_t j = 0; j < C; j++) shift[j] = load(x[j * inner]);
    std::vector<std::vector<double>> sums(chunks, std::vector<double>(2 * C, 0.0));
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < chunks; k++) {
        double *total = sums[k].data(), *squares = total + C;
        const int64_t first = rows * k / chunks, end = rows * (k + 1) / chunks;
        if (inner == 1) {
            // Several rows side by side, so that the vector units are full with few channels too.
            const int64_t side = std::max<int64_t>(1, 512 / C), lanes = side * C;
            std::vector<A> s(lanes), q(lanes), base(lanes);
            for (int64_t j = 0; j < lanes; j++) base[j] = shift[j % C];
            for (int64_t row = first; row < end;) {
                std::fill(s.begin(), s.end(), A(0));
                std::fill(q.begin(), q.end(), A(0));
                A *__restrict sp = s.data(), *__restrict qp = q.data();
                const A *__restrict base_p = base.data();
                for (const int64_t stop = std::min(end, row + 64 * side); row < stop; row += side) {
                    const T *__restrict p = x + row * C;
                    const int64_t n = std::min(lanes, (stop - row) * C);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) {
                        A d = load(p[j]) - base_p[j];
                        sp[j] += d;
                        qp[j] += d * d;
                    }
                }
                row = std::min(row, end);
                for (int64_t j = 0; j < lanes; j++) { total[j % C] += s[j]; squares[j % C] += q[j]; }
            }
        } else {
            for (int64_t row = first; row < end; row++)
                for (int64_t j = 0; j < C; j++)
                    for (int64_t i = 0; i < inner; i += 1024) {
                        const T *__restrict p = x + (row * C + j) * inner + i;
                        const int64_t n = std::min<int64_t>(1024, inner - i);
                        const A base = shift[j];
                        A s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
                        for (int64_t l = 0; l < n; l++) {
                            A d = load(p[l]) - base;
                            s += d;
                            q += d * d;
                        }
                        total[j] += s;
                        squares[j] += q;
                    }
        }
    }
    const double count = double(rows) * double(inner);
    for (int64_t j = 0; j < C; j++) {
        double s = 0, q = 0;
        for (const auto &part : sums) { s += part[j]; q += part[C + j]; }
        const double mean = s / count;
        ((A *)c.dx)[j] = A(double(shift[j]) + mean);
        ((A *)c.dy)[j] = A(std::max(0.0, q / count - mean * mean));
        if (std::isnan(q)) ((A *)c.dy)[j] = A(q);
    }
}

enum Pass { FORWARD, BACKWARD, NORM_BACKWARD, STATISTICS };

template <class T, class A>
void run(const Call &c, int pass) {
    switch (pass) {
        case FORWARD: return forward<T, A>(c);
        case BACKWARD: return backward<T, A>(c);
        case NORM_BACKWARD: return norm_backward<T, A>(c);
        default: return statistics<T, A>(c);
    }
}

}  // namespace

// 0: done; 1: this build does not know the element type.
extern "C" int spiketriton_run(const Call *call, int pass) {
    switch (call->dtype) {
        case 0: run<float, float>(*call, pass); return 0;
        case 1: run<double, double>(*call, pass); return 0;
        case 2: run<bf16, float>(*call, pass); return 0;
#ifdef __FLT16_MAX__
        case 3: run<half, float>(*call, pass); return 0;
#endif
        default: return 1;
    }
}

extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
