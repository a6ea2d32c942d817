// The CPU pass: the whole time window of a block of neurons at a time, states in cache, one read and one write of
// memory per element and step. Same order of operations as the PyTorch reference, no contraction into fused
// multiply-adds (-ffp-contract=off), so spikes agree bit for bit. Sums run over chunks fixed by size, not by threads,
// and are joined in order: bit-equal from run to run and for any number of threads.
//
// A time step is one gapless block of `neurons` elements; the element at offset n has channel (n / inner) % channels.

#include "neurons.h"

namespace {

using T = Element;
using A = Accumulator;

// The columns of a probe's row, in the order of PROBE_FIELDS in arguments.py.
enum Probe { GRAD_SPIKE_SQ, GRAD_INPUT_SQ, GRAD_CARRY_SQ, TIME_FACTOR, OUTSIDE, SPIKE_COUNT, GRAD_INPUT_MAX, NONFINITE, PROBE_FIELDS };
constexpr double REACH = 0.01;

}  // namespace

// Mirrored field by field in native.py: the input, the neuron, the rest.
struct Call {
    int64_t steps, neurons, channels, inner;
    int32_t threads, measures;

    int32_t reset, detach_reset, shape, levels;
    int64_t rows, parameter_size, sizes[PARAMETERS];
    double numbers[PARAMETERS], v_reset, v_start, height;
    const void *parameters[PARAMETERS];                     // float (double for double), null: the number

    double eps, bn_scale, count, momentum;
    const void *mean, *var, *weight, *bias, *step_gain;     // as the parameters; mean null: no norm
    const void *x, *v_init, *m_init, *residual, *spike_add, *grad_s, *grad_v_last, *grad_m_last, *grad_trace, *grad_current, *sums;
    void *spikes, *v_last, *m_last, *trace, *current, *dx, *dy, *out_sums, *out_v_init, *out_m_init, *out_parameters, *out_step_gain;
    void *running_mean, *running_var;
    float *probe;
};

namespace {

// ---- the surrogate's primitive -------------------------------------------------------------------------------------

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

double total(const A *values, int n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += double(values[i]);
    return sum;
}

// The reverse: add the elements of a block to their channels' sums.
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

// Whether no parameter differs between neurons.
inline bool uniform(const Call &c) {
    return std::all_of(c.sizes, c.sizes + PARAMETERS, [](int64_t size) { return size <= 1; });
}

// One layer's constants, spread over the block at hand.
struct Block {
    const Call &c;
    const Norm &norm;
    Array<A> parameters[PARAMETERS], leak, rest, inverse_width;  // 1 - decay, 1 - rho, 1 / width
    Array<A> mean, scale, bias, rstd, affine, slope, offset;
    bool aligned;
    int filled = 0;       // values
    int64_t one = -1;     // the channel of all of them, if it is one

    Block(const Call &call, const Norm &norm_, const Cut &cut) : c(call), norm(norm_), aligned(cut.aligned) {
        const size_t size = size_t(cut.padded());
        for (int p = 0; p < (HAS_RHO ? PARAMETERS : RHO); p++) parameters[p].resize(size);
        inverse_width.resize(size);
        if (KIND == CLIF || c.reset == TO_RESET_LEAK) leak.resize(size);
        if (KIND == ALIF) rest.resize(size);
        if (!c.mean) return;
        for (auto *values : {&mean, &scale, &bias, &rstd}) values->resize(size);
        if (c.out_step_gain) affine.resize(size);
        if (c.dy) for (auto *values : {&slope, &offset}) values->resize(size);
    }

    void parameter(int p, int64_t start, int n) {
        const A *given = (const A *)c.parameters[p];
        Array<A> &out = parameters[p];
        if (c.sizes[p] > 1) return spread(out.data(), given, start, n, c);
        std::fill(out.begin(), out.end(), given ? *given : A(c.numbers[p]));
    }

    void complement(Array<A> &out, int p) {
        for (size_t i = 0; i < out.size(); i++) out[i] = c.parameters[p] ? A(1) - parameters[p][i] : A(1 - c.numbers[p]);
    }

    // Values for the block [start, start + n). Those of an earlier block at least as long still hold where blocks are
    // aligned, nothing depends on the channel, or both lie in the same channel.
    void at(int64_t start, int n) {
        const int64_t run = start / c.inner, channel = (start + n - 1) / c.inner == run ? run % c.channels : -1;
        if (n <= filled && (aligned || !(c.mean || !uniform(c)) || (channel >= 0 && channel == one))) return;
        const bool first = filled == 0;
        filled = n;
        one = channel;
        for (int p = 0; p < PARAMETERS; p++) {
            if (parameters[p].empty() || !(first || c.sizes[p] > 1)) continue;
            parameter(p, start, n);
            if (p == DECAY) complement(leak, p);
            if (p == RHO) complement(rest, p);
            if (p == WIDTH)
                for (size_t i = 0; i < inverse_width.size(); i++) inverse_width[i] = A(1) / parameters[p][i];
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
bool streams(const Call &c, const void *to) {
    const int64_t row = c.neurons * int64_t(sizeof(T));
    return to && c.steps * row > BEYOND_CACHES && row % 64 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
}

// A parameter's values of a block, or the ONE of all neurons, which stays in a register: a load less for each vector.
template <bool ONE>
struct Values {
    const A *values;
    V first;

    explicit Values(const Array<A> &of) : values(of.data()), first(ONE && !of.empty() ? load(of.data()) : V{}) {}
    V at(int i) const { return ONE ? first : load(values + i); }
};

// The rules of a block's neurons.
template <bool ONE>
struct Rules {
    Values<ONE> decay, leak, threshold, gain, rho, rest, beta;
    A v_reset, levels;

    explicit Rules(const Block &b)
        : decay(b.parameters[DECAY]), leak(b.leak), threshold(b.parameters[THRESHOLD]), gain(b.parameters[GAIN]),
          rho(b.parameters[RHO]), rest(b.rest), beta(b.parameters[BETA]), v_reset(A(b.c.v_reset)), levels(A(b.c.levels)) {}

    template <int RESET>
    Rule at(int i) const {
        Rule r{decay.at(i), {}, threshold.at(i), gain.at(i), {}, {}, {}, v_reset, levels};
        if constexpr (KIND == CLIF || RESET == TO_RESET_LEAK) r.leak = leak.at(i);
        if constexpr (KIND == ALIF) r.rest = rest.at(i), r.beta = beta.at(i);
        if constexpr (HAS_RHO) r.rho = rho.at(i);
        return r;
    }
};

// ---- from a number of the call to a compile-time constant --------------------------------------------------------------

template <int N> using Number = std::integral_constant<int, N>;

template <class Go>
void with(bool yes, Go go) {
    if (yes) go(std::true_type{});
    else go(std::false_type{});
}

template <int N = 0, class Go>
void with_number(int number, Go go) {  // of a reset that the kind has
    if constexpr (N <= NO_RESET) {
        if constexpr (has(N))
            if (number == N) return go(Number<N>{});
        with_number<N + 1>(number, go);
    }
}

// ---- forth -----------------------------------------------------------------------------------------------------------

// The way of a block through the window. Memory is at (0, start), its steps `stride` apart; those of h and m_before are
// `size` apart.
struct Forth {
    const T *x, *residual, *spike_add;  // the last two may be null
    T *spikes, *current;                // the last may be null
    A *h, *m_before;                    // of a replay: potentials, and second states before them
    A *v, *m, *trace;                   // the last may be null
    const A *step_gain;                 // or null
    int64_t steps, stride;
    int size, n;
    bool past;
};

// Whether there is a norm, a residual: ASK at run time, which also writes what is rarer, the trace and the current without norm.
enum Given { NO, YES, ASK };

// STEPS steps from t on, in which the states and the constants of a vector of neurons stay in registers.
template <int RESET, int NORM, int RESIDUAL, bool FIRE, bool ONE, int STEPS>
__attribute__((noinline)) void forth_steps(const Block &b, const Forth &s, int64_t t) {
    const bool norm = NORM == ASK ? b.c.mean != nullptr : NORM == YES, joined = RESIDUAL == ASK ? s.residual != nullptr : RESIDUAL == YES;
    const A *means = b.mean.data(), *scales = b.scale.data(), *biases = b.bias.data();
    const Rules<ONE> rules(b);
    const int64_t row = t * s.stride, stride = s.stride, next = later(t, s.steps, stride, s.size);
    const T *x = s.x + row, *residual = joined ? s.residual + row : nullptr, *spike_add = FIRE && STEPS < 4 && s.spike_add ? s.spike_add + row : nullptr;
    T *spikes = FIRE ? s.spikes + row : nullptr, *currents = FIRE && NORM != NO && STEPS < 4 && s.current ? s.current + row : nullptr;
    A *vs = s.v, *ms = s.m, *hs = FIRE ? nullptr : s.h + t * s.size, *m_before = FIRE || !SECOND ? nullptr : s.m_before + t * s.size,
      *trace = FIRE && NORM == ASK && s.trace ? s.trace + row : nullptr;
    const int size = s.size;
    const bool past = STEPS == 1 && s.past;
    A step_gains[STEPS];
    for (int j = 0; j < STEPS; j++) step_gains[j] = s.step_gain ? s.step_gain[t + j] : A(1);
    vectors(s.n, [&](auto part, int i, int n) {
        constexpr bool PART = decltype(part)::value;
        if constexpr (STEPS == 1) {  // hardware prefetchers keep up with columns
            prefetch(x + next + i, LANES);
            if (FIRE && !past) prefetch_for_writing(spikes + next + i);
            if (joined) prefetch(residual + next + i, LANES);
        }
        const Rule r = rules.template at<RESET>(i);
        V mean{}, scale{}, bias{}, v = load(vs + i), m{};
        if constexpr (SECOND) m = load(ms + i);
        if (norm) mean = load(means + i), scale = load(scales + i), bias = load(biases + i);
#pragma GCC unroll 4
        for (int j = 0; j < STEPS; j++) {
            const int64_t here = j * stride + i;
            V current = get<PART>(x + here, n);
            if (norm) current = step_gains[j] * ((current - mean) * scale + bias);
            if (joined) current = current + get<PART>(residual + here, n);
            if constexpr (SECOND && !FIRE) store(m_before + j * size + i, m);
            const V h = charge<RESET>(r, v, filtered(r, current, m));
            if constexpr (!FIRE) store(hs + j * size + i, h);
            const auto fired = settle<RESET>(r, h, v, m);
            if constexpr (FIRE) {
                if (NORM != NO && currents) put<PART>(currents + here, rounded(current), n, past);
                if (__builtin_expect(spike_add != nullptr, false)) put<PART>(spikes + here, rounded(counted(fired) + get<PART>(spike_add + here, n)), n, past);
                else put<PART>(spikes + here, written(fired), n, past);
                if constexpr (NORM == ASK)
                    if (trace) std::memcpy(trace + i, &v, size_t(n) * sizeof(A));
            }
        }
        store(vs + i, v);
        if constexpr (SECOND) store(ms + i, m);
    });
}

// Steps by twos or fours where spikes stay in the caches: rows lie about a power of two apart, so that few streams fit side
// by side. What is written past the caches, or kept for the way back, goes row by row (profiling/LOG.md has the times); so
// does CLIF, each of whose steps waits for the two sigmoids of the one before, while vectors side by side do not.
template <int RESET, int NORM, int RESIDUAL, bool FIRE, bool ONE>
void forth_block(const Block &b, const Forth &s) {
    int64_t t = 0;
    if constexpr (FIRE && NORM != ASK && KIND != CLIF) {
        if (!s.past) {
            if constexpr (RESIDUAL == NO && sizeof(T) >= 4)
                if (!s.spike_add && !s.current)
                    for (; t + 4 <= s.steps; t += 4) forth_steps<RESET, NORM, RESIDUAL, FIRE, ONE, 4>(b, s, t);
            for (; t + 2 <= s.steps; t += 2) forth_steps<RESET, NORM, RESIDUAL, FIRE, ONE, 2>(b, s, t);
        }
    }
    for (; t < s.steps; t++) forth_steps<RESET, NORM, RESIDUAL, FIRE, ONE, 1>(b, s, t);
}

template <bool FIRE>
void forth(const Block &b, const Forth &s) {
    with_number(b.c.reset, [&](auto number) {
        constexpr int RESET = decltype(number)::value;
        if constexpr (FIRE)
            if (s.trace || (s.current && !b.c.mean)) return forth_block<RESET, ASK, ASK, FIRE, false>(b, s);
        with(uniform(b.c), [&](auto one) {
            with(b.c.mean, [&](auto norm) {
                with(s.residual, [&](auto residual) {
                    forth_block<RESET, decltype(norm)::value, decltype(residual)::value, FIRE, decltype(one)::value>(b, s);
                });
            });
        });
    });
}

void start_state(const void *given, int64_t start, int n, A *state, double value = 0) {
    if (given) std::memcpy(state, (const A *)given + start, n * sizeof(A));
    else std::fill(state, state + n, A(value));
}

// What became of a second state; where a kind has none, it is what it was.
void last_state(const Array<A> &m, const void *given, int64_t start, int n, A *out) {
    if (SECOND) std::copy(m.begin(), m.begin() + n, out);
    else start_state(given, start, n, out);
}

// A block before its first step, with its states in v and m.
Forth forth_of(const Call &c, int64_t start, int n, int size, A *v, A *m) {
    start_state(c.v_init, start, n, v, c.v_start);
    if (SECOND) start_state(c.m_init, start, n, m);
    Forth s{};
    s.x = (const T *)c.x + start;
    s.residual = c.residual ? (const T *)c.residual + start : nullptr;
    s.v = v;
    s.m = m;
    s.step_gain = (const A *)c.step_gain;
    s.steps = c.steps;
    s.stride = c.neurons;
    s.size = size;
    s.n = n;
    return s;
}

void forward(const Call &c) {
    const Cut cut(c);
    const int size = cut.padded();
    const Norm norm(c);
    const bool past = streams(c, c.spikes) && (!c.current || streams(c, c.current));
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block b(c, norm, cut);
        Array<A> v(size), m(SECOND ? size : 0);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < cut.chunks; k++) {
            const int64_t end = cut.edge(c, k + 1);
            for (int64_t start = cut.edge(c, k); start < end; start += cut.size) {
                const int n = int(std::min<int64_t>(cut.size, end - start));
                b.at(start, n);
                Forth s = forth_of(c, start, n, size, v.data(), m.data());
                s.spike_add = c.spike_add ? (const T *)c.spike_add + start : nullptr;
                s.spikes = (T *)c.spikes + start;
                s.current = c.current ? (T *)c.current + start : nullptr;
                s.trace = c.trace ? (A *)c.trace + start : nullptr;
                s.past = past && start % LANES == 0;
                forth<true>(b, s);
                if (c.v_last) std::memcpy((A *)c.v_last + start, v.data(), n * sizeof(A));
                if (c.m_last) last_state(m, c.m_init, start, n, (A *)c.m_last + start);
            }
        }
        finish_stream();
    }
}

// ---- back --------------------------------------------------------------------------------------------------------------

// Everything that one chunk sums, joined later in chunk order.
struct Sums {
    std::vector<double> norm, parameters, step_gain, probe;
    Sums(const Call &c)
        : norm(c.out_sums ? 2 * c.channels : 0), parameters(c.out_parameters ? c.rows * c.parameter_size : 0),
          step_gain(c.out_step_gain ? c.steps : 0), probe(c.probe ? c.steps * PROBE_FIELDS : 0) {}
};

// What the way back leaves besides the carried gradients.
enum Mode {
    WRITE,       // dL/dx in memory: the neuron alone
    ACCUMULATE,  // the channel sums of dz and dz * (x - mean), and in memory dL/dx or dy where asked for: batch norm
    OBSERVE,     // everything rarer besides, with the surrogate from cache, so that this is compiled once for all shapes
};

// The way of a block back through the window. Memory, h and m_before as in Forth.
struct Back {
    const T *x, *residual, *grad_s, *grad_current;  // residual and grad_current may be null
    T *out, *dy;                                    // dL/dx, and dL/dy where it needs no sums; or null
    const A *h, *m_before, *start, *step_gain, *grad_trace;  // start: v before the first step; the last two may be null
    A *by_v, *by_m, *sum_dz, *sum_dz_x;
    A *unit, *turn;          // of a window: phi; primitive(z) - z * phi where a width learns
    A *learnt[PARAMETERS];   // sums over the steps; null of what is a number
    Sums *sums;
    int64_t stride;
    int size, n;
    bool past;
};

// phi over a block's window, and what a width learns by.
template <int SHAPE>
void surrogates(const Block &b, const Back &s) {
    const Rules<false> rules(b);
    const A *widths = b.parameters[WIDTH].data(), *inverse_widths = b.inverse_width.data();
    for (int64_t t = 0; t < b.c.steps; t++)
        for (int i = 0; i < s.n; i += LANES) {
            const int64_t here = t * s.size + i;
            const V z = load(s.h + here) - top_of(rules.template at<SUBTRACT>(i), SECOND ? load(s.m_before + here) : V{});
            const V width = load(widths + i), unit = phi<SHAPE>(z, width, load(inverse_widths + i));
            store(s.unit + here, unit);
            if (!s.turn) continue;
            const V scaled = z / width;
            V turn{};
            for (int l = 0; l < LANES; l++) turn[l] = primitive(scaled[l], SHAPE);
            store(s.turn + here, turn - scaled * unit);
        }
}

template <bool PART>
inline V only(V v, int n) {  // the lanes that are neurons
    if constexpr (PART)
        for (int l = n; l < LANES; l++) v[l] = 0;
    return v;
}

inline double total(V v) {
    A lanes[LANES];
    std::memcpy(lanes, &v, sizeof lanes);
    return total(lanes, LANES);
}

template <int RESET, bool ATTACHED, int SHAPE, int MODE, bool ONE>
__attribute__((noinline)) void back_block(const Block &b, const Back &s) {
    const Call &c = b.c;
    const A height = A(c.height);
    const Rules<ONE> rules(b);
    const Values<ONE> widths(b.parameters[WIDTH]), inverse_widths(b.inverse_width);
    const A *means = b.mean.data(), *scales = b.scale.data(), *biases = b.bias.data(), *rstds = b.rstd.data(), *affines = b.affine.data(),
            *tilts = b.slope.data(), *offsets = b.offset.data();
    A *by_vs = s.by_v, *by_ms = s.by_m, *sum_dz = s.sum_dz, *sum_dz_x = s.sum_dz_x;
    for (int64_t t = c.steps - 1; t >= 0; t--) {
        const int64_t row = t * s.stride, kept = t * s.size;
        const A k = s.step_gain ? s.step_gain[t] : A(1);
        const T *gs = s.grad_s + row, *x = s.x + row, *grad_current = s.grad_current ? s.grad_current + row : nullptr,
                *residual = s.residual ? s.residual + row : nullptr;
        const int64_t next = earlier(t, c.steps, s.stride, s.size);
        T *out = s.out ? s.out + row : nullptr, *dy = s.dy ? s.dy + row : nullptr;
        const A *hs = s.h + kept, *ms = SECOND ? s.m_before + kept : nullptr, *grad_trace = s.grad_trace ? s.grad_trace + row : nullptr;
        const bool past_caches = s.past;
        V probe[PROBE_FIELDS] = {}, by_step_gain{};
        vectors(s.n, [&](auto part, int i, int n) {
            constexpr bool PART = decltype(part)::value;
            prefetch(gs + next + i, LANES);
            if (out && !past_caches) prefetch_for_writing(out + next + i);
            if (grad_current) prefetch(grad_current + next + i, LANES);
            const Rule r = rules.template at<RESET>(i);
            const V h = load(hs + i), grad = get<PART>(gs + i, n);
            V m{}, by_m{}, by_v = load(by_vs + i), unit{};
            if constexpr (SECOND) m = load(ms + i), by_m = load(by_ms + i);
            if (MODE == OBSERVE && grad_trace) by_v = by_v + get<PART>(grad_trace + i, n);
            if constexpr (KIND == ILIF) unit = between(r, h);
            else if constexpr (MODE == OBSERVE) unit = load(s.unit + kept + i);
            else unit = phi<SHAPE>(h - top_of(r, m), widths.at(i), inverse_widths.at(i));
            const V carried = by_v, slope = KIND == ILIF ? unit / r.threshold : height * unit;
            Found f = step_back<RESET, ATTACHED>(r, h, m, grad, slope, by_v, by_m);
            V dx = r.gain * f.h;
            if constexpr (KIND == CUBA) {
                dx = dx + by_m;
                f.rho = dx * m;
                by_m = r.rho * dx;
            }
            by_v = r.decay * f.h;
            V v{};  // before the step
            if ((MODE == OBSERVE && s.learnt[DECAY]) || KIND == DELAYED) {
                if (t) {
                    v = load(hs - s.size + i);
                    V before = SECOND ? load(ms - s.size + i) : V{};
                    settle<RESET>(r, v, v, before);
                } else {
                    v = load(s.start + i);
                }
            }
            if constexpr (KIND == DELAYED) {
                const Mask reset = v >= r.threshold;
                if constexpr (RESET == SUBTRACT) f.threshold = f.threshold - (reset ? f.h : V{});
                if constexpr (RESET == TO_ZERO_LEAK) by_v = reset ? V{} : by_v, v = reset ? V{} : v;
            }
            if constexpr (MODE == OBSERVE) {
                if (c.probe) {
                    const V size_of = absolute(dx), jump = jump_of<RESET, ATTACHED>(r, h, m, slope);
                    const Mask finite = size_of <= std::numeric_limits<A>::max();
                    const auto add = [&](Probe field, V value) { probe[field] += only<PART>(value, n); };
                    add(GRAD_SPIKE_SQ, grad * grad);
                    add(GRAD_INPUT_SQ, dx * dx);
                    add(GRAD_CARRY_SQ, carried * carried);
                    add(TIME_FACTOR, absolute(r.decay * jump));
                    add(OUTSIDE, counted(unit < A(REACH)));
                    V after = m;
                    V left{};
                    add(SPIKE_COUNT, counted(settle<RESET>(r, h, left, after)));
                    add(NONFINITE, counted(~finite));
                    const V counts = only<PART>(finite ? size_of : V{}, n);
                    probe[GRAD_INPUT_MAX] = counts > probe[GRAD_INPUT_MAX] ? counts : probe[GRAD_INPUT_MAX];
                }
                if (c.out_parameters) {
                    const auto add = [&](Parameter p, V value) {
                        if (s.learnt[p]) store(s.learnt[p] + i, load(s.learnt[p] + i) + value);
                    };
                    add(DECAY, f.h * (RESET == TO_RESET_LEAK ? v - r.v_reset : v) + f.decay);
                    add(THRESHOLD, f.threshold);
                    if (s.turn) add(WIDTH, f.spike * height * load(s.turn + kept + i));
                    if (s.learnt[GAIN]) {
                        V current = get<PART>(x + i, n);
                        if (c.mean) current = k * ((current - load(means + i)) * load(scales + i) + load(biases + i));
                        if (residual) current = current + get<PART>(residual + i, n);
                        V before = m;
                        add(GAIN, f.h * filtered(r, current, before));
                    }
                    if constexpr (HAS_RHO) add(RHO, f.rho);
                    if constexpr (KIND == ALIF) add(BETA, f.beta);
                }
            }
            // after the probe, which measures what passes the neuron
            if (grad_current) dx = dx + get<PART>(grad_current + i, n);
            if (MODE == WRITE || out) put<PART>(out + i, rounded(dx), n, past_caches);
            if (MODE == ACCUMULATE || (MODE == OBSERVE && c.mean)) {
                const V dz = k * dx, centred = get<PART>(x + i, n) - load(means + i);
                store(sum_dz + i, load(sum_dz + i) + dz);
                store(sum_dz_x + i, load(sum_dz_x + i) + dz * centred);
                if (dy) put<PART>(dy + i, rounded(load(scales + i) * dz + (load(tilts + i) * centred + load(offsets + i))), n, past_caches);
                if (MODE == OBSERVE && c.out_step_gain)
                    by_step_gain += only<PART>(dx * (centred * load(rstds + i) * load(affines + i) + load(biases + i)), n);
            }
            store(by_vs + i, by_v);
            if constexpr (SECOND) store(by_ms + i, by_m);
        });
        if constexpr (MODE == OBSERVE) {
            if (c.out_step_gain) s.sums->step_gain[t] += total(by_step_gain);
            if (!c.probe) continue;
            double *fields = s.sums->probe.data() + t * PROBE_FIELDS;
            for (int p = 0; p < PROBE_FIELDS; p++)
                if (p != GRAD_INPUT_MAX) fields[p] += total(probe[p]);
            for (int l = 0; l < LANES; l++) fields[GRAD_INPUT_MAX] = std::max(fields[GRAD_INPUT_MAX], double(probe[GRAD_INPUT_MAX][l]));
        }
    }
}

template <class Go>
void with_shape(int shape, Go go) {
    if constexpr (KIND == ILIF) return go(Number<RECTANGLE>{});
    switch (shape) {
        case FAST_SIGMOID: return go(Number<FAST_SIGMOID>{});
        case ATAN: return go(Number<ATAN>{});
        case SIGMOID: return go(Number<SIGMOID>{});
        case TRIANGLE: return go(Number<TRIANGLE>{});
        case RECTANGLE: return go(Number<RECTANGLE>{});
        default: return go(Number<GAUSSIAN>{});
    }
}

// The way the gradient takes through the reset: of LIF without what is rare, four ways serve all of them.
template <int MODE, class Go>
void with_path(const Call &c, Go go) {
    constexpr bool merged = KIND == LIF && MODE != OBSERVE;
    int reset = c.reset;
    if (merged && reset == TO_RESET_LEAK) reset = TO_ZERO_LEAK;
    if (merged && reset == SUBTRACT && c.detach_reset) reset = NO_RESET;
    with_number(reset, [&](auto number) {
        constexpr int RESET = decltype(number)::value;
        if constexpr (RESET == NO_RESET || KIND == DELAYED) go(number, std::false_type{});
        else if constexpr (merged && RESET == SUBTRACT) go(number, std::true_type{});
        else if constexpr (!(merged && RESET == TO_RESET_LEAK)) with(!c.detach_reset, [&](auto attached) { go(number, attached); });
    });
}

template <int MODE>
void back_mode(const Block &b, const Back &s) {
    const auto go = [&](auto shape, auto one) {
        with_path<MODE>(b.c, [&](auto reset, auto attached) {
            back_block<decltype(reset)::value, decltype(attached)::value, decltype(shape)::value, MODE, decltype(one)::value>(b, s);
        });
    };
    if constexpr (MODE == OBSERVE) go(Number<0>{}, std::false_type{});
    else with_shape(b.c.shape, [&](auto shape) { with(uniform(b.c), [&](auto one) { go(shape, one); }); });
}

void back(const Block &b, const Back &s, int mode) {
    if (mode == WRITE) return back_mode<WRITE>(b, s);
    if (mode == ACCUMULATE) return back_mode<ACCUMULATE>(b, s);
    if (KIND != ILIF) with_shape(b.c.shape, [&](auto shape) { surrogates<decltype(shape)::value>(b, s); });
    back_mode<OBSERVE>(b, s);
}

void walk_back(const Call &c) {
    const Cut cut(c);
    const int size = cut.padded();
    const Norm norm(c);
    std::vector<Sums> sums(cut.chunks, Sums(c));
    const bool rare = c.probe || c.out_parameters || c.out_step_gain || c.grad_trace;
    const int mode = rare ? OBSERVE : c.mean ? ACCUMULATE : WRITE;
    const bool past = (!c.dx || streams(c, c.dx)) && (!c.dy || streams(c, c.dy));
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        const size_t window = size_t(size) * c.steps, second = SECOND ? size : 0;
        Block b(c, norm, cut);
        Array<A> v(size), m(second), h(window), m_before(second * c.steps), start_v(size), by_v(size), by_m(second), sum_dz(size), sum_dz_x(size);
        Array<A> unit(rare ? window : 0), turn(c.out_parameters && c.parameters[WIDTH] ? window : 0), learnt[PARAMETERS];
        Back s{};
        s.h = h.data();
        s.m_before = m_before.data();
        s.start = start_v.data();
        s.step_gain = (const A *)c.step_gain;
        s.by_v = by_v.data();
        s.by_m = by_m.data();
        s.sum_dz = sum_dz.data();
        s.sum_dz_x = sum_dz_x.data();
        s.unit = unit.data();
        s.turn = turn.data();
        s.stride = c.neurons;
        s.size = size;
        if (c.out_parameters)
            for (int p = 0; p < c.rows; p++)
                if (c.parameters[p]) learnt[p].resize(size), s.learnt[p] = learnt[p].data();
#pragma omp for schedule(static)
        for (int64_t k = 0; k < cut.chunks; k++) {
            Sums &mine = sums[k];
            s.sums = &mine;
            const int64_t end = cut.edge(c, k + 1);
            for (int64_t start = cut.edge(c, k), blocks = 0; start < end; start += cut.size, blocks++) {
                const int n = s.n = int(std::min<int64_t>(cut.size, end - start));
                b.at(start, n);
                Forth replay = forth_of(c, start, n, size, v.data(), m.data());
                replay.h = h.data();
                replay.m_before = m_before.data();
                if (rare || KIND == DELAYED) std::copy(v.begin(), v.end(), start_v.begin());
                forth<false>(b, replay);
                std::fill(by_v.begin(), by_v.end(), A(0));
                if (c.grad_v_last) std::memcpy(by_v.data(), (const A *)c.grad_v_last + start, n * sizeof(A));
                std::fill(by_m.begin(), by_m.end(), A(0));
                if (SECOND && c.grad_m_last) std::memcpy(by_m.data(), (const A *)c.grad_m_last + start, n * sizeof(A));
                // Aligned blocks share their channels: a few of them add up in float before they join the channel's sum.
                const bool fresh = !cut.aligned || blocks % 16 == 0;
                const bool flush = !cut.aligned || blocks % 16 == 15 || start + cut.size >= end;
                if (fresh && c.mean) {
                    std::fill(sum_dz.begin(), sum_dz.end(), A(0));
                    std::fill(sum_dz_x.begin(), sum_dz_x.end(), A(0));
                }
                for (auto &l : learnt) std::fill(l.begin(), l.end(), A(0));
                s.x = replay.x;
                s.residual = replay.residual;
                s.grad_s = (const T *)c.grad_s + start;
                s.grad_current = c.grad_current ? (const T *)c.grad_current + start : nullptr;
                s.grad_trace = c.grad_trace ? (const A *)c.grad_trace + start : nullptr;
                s.out = c.dx ? (T *)c.dx + start : nullptr;
                s.dy = c.dy ? (T *)c.dy + start : nullptr;
                s.past = past && start % LANES == 0;
                back(b, s, mode);
                if (c.out_v_init) std::memcpy((A *)c.out_v_init + start, by_v.data(), n * sizeof(A));
                if (c.out_m_init) last_state(by_m, c.grad_m_last, start, n, (A *)c.out_m_init + start);
                if (c.out_sums && flush) {
                    const int lanes = cut.aligned ? cut.size : n;
                    gather(mine.norm.data(), sum_dz.data(), start, lanes, c);
                    gather(mine.norm.data() + c.channels, sum_dz_x.data(), start, lanes, c);
                }
                if (c.out_parameters)
                    for (int p = 0; p < c.rows; p++) {
                        if (!s.learnt[p]) continue;
                        double *row = mine.parameters.data() + p * c.parameter_size;
                        if (c.parameter_size > 1) gather(row, learnt[p].data(), start, n, c);
                        else *row += total(learnt[p].data(), n);
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
void norm_block(const Block &b, const Back &s, int64_t steps) {
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

void norm_backward(const Call &c) {
    const Cut cut(c);
    const Norm norm(c);
    const bool past = streams(c, c.dy);
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block b(c, norm, cut);
        Back s{};
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
void backward(const Call &c) {
    if (!c.dy || c.count == 0 || c.sums) return walk_back(c);
    Call first = c, second = c;
    first.dx = c.dx ? c.dx : c.dy;
    first.dy = nullptr;
    walk_back(first);
    second.grad_s = first.dx;
    second.sums = c.out_sums;
    second.out_step_gain = nullptr;
    norm_backward(second);
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
void measure_and_fire(const Call &c) {
    if (c.measures) {
        Call statistics_of = c;
        statistics_of.dx = const_cast<void *>(c.mean);
        statistics_of.dy = const_cast<void *>(c.var);
        statistics(statistics_of);
    }
    forward(c);
}

enum Pass { FORWARD, BACKWARD, NORM_BACKWARD, STATISTICS, PACK, UNPACK };

void run(const Call &c, int pass) {
    switch (pass) {
        case FORWARD: return measure_and_fire(c);
        case BACKWARD: return backward(c);
        case NORM_BACKWARD: return norm_backward(c);
        case STATISTICS: return statistics(c);
        case PACK: return pack(c);
        default: return unpack(c);
    }
}

}  // namespace

extern "C" void spiketriton_run(const Call *call, int pass) { run(*call, pass); }

extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
