// Neurons beyond LIF on the CPU: I-LIF, CLIF and ALIF, the whole time window of a block of neurons at a time. Order of
// operations, cutting and sums as in native.cpp; the equations are those of states.py.

#include "native.h"

namespace {

enum Kind { INTEGER, COMPLEMENTARY, ADAPTIVE, LEAKY };
enum Parameter { DECAY, THRESHOLD, RHO, BETA, GAIN, PARAMETERS };
enum Delayed { DELAYED_SOFT = NONE + 1, DELAYED_HARD };  // further resets

}  // namespace

// Mirrored field by field in native_states.py.
struct Call {
    int64_t steps, neurons, channels, inner, parameter_size, sizes[PARAMETERS];
    int32_t kind, reset, detach_reset, leaks_to_reset, levels, shape, threads;
    double values[PARAMETERS], v_reset, v_start, height, width;
    const void *x, *v_init, *m_init, *grad_s, *grad_v, *grad_m, *grad_trace, *parameters[PARAMETERS];
    void *spikes, *v_last, *m_last, *trace, *dx, *dv_init, *dm_init, *out_parameters;
};

namespace {

template <class A>
inline A sigmoid(A x) {
    const A e = exp_negative(-std::fabs(x)), r = A(1) / (A(1) + e);
    return x < 0 ? e * r : r;
}

template <class A>
inline A level(A z, A levels) {
    return std::nearbyint(std::min(std::max(z, A(0)), levels));  // ties to even; in this order a NaN stays one
}

// The constants of a block of neurons.
template <class A>
struct Block {
    const Call &c;
    std::vector<A> values[PARAMETERS], leak;
    std::vector<int64_t> channel;
    bool filled = false;

    Block(const Call &call, int size) : c(call), leak(size), channel(call.parameter_size > 1 ? size : 0) {
        for (auto &v : values) v.resize(size);
    }

    void at(int64_t start, int n) {
        if (filled && channel.empty()) return;
        filled = true;
        if (channel.empty()) n = int(leak.size());
        else for (int i = 0; i < n; i++) channel[i] = (start + i) / c.inner % c.channels;
        for (int p = 0; p < PARAMETERS; p++) {
            const A *given = (const A *)c.parameters[p];
            if (c.sizes[p] > 1) for (int i = 0; i < n; i++) values[p][i] = given[channel[i]];
            else std::fill(values[p].begin(), values[p].begin() + n, given ? *given : A(c.values[p]));
        }
        for (int i = 0; i < n; i++) leak[i] = c.parameters[DECAY] ? A(1) - values[DECAY][i] : A(1 - c.values[DECAY]);
    }
};

// h of a step from the membrane before it; a delayed reset comes first.
template <class A, int KIND>
inline A charge(A v, A x, A decay, A leak, A threshold, A gain, A v_reset, int reset, bool leaks) {
    if constexpr (KIND == LEAKY) {  // no branches, so that compilers vectorise it
        const bool fired = v >= threshold, zeroed = (reset == DELAYED_HARD) & fired, taken = (reset == DELAYED_SOFT) & fired;
        const A plain = decay * (zeroed ? A(0) : v) + gain * x, pulled = v + gain * x - leak * (v - v_reset);
        const A h = leaks ? pulled : plain;
        return taken ? h - threshold : h;
    }
    return decay * v + gain * x;
}

// Spikes, membrane and second state after a step with the potential h and the second state m before it.
template <class A, int KIND>
inline A settle(A h, A leak, A threshold, A rho, A beta, A v_reset, A levels, int reset, A &v, A &m) {
    if constexpr (KIND == INTEGER) {
        const A s = level(h / threshold, levels);
        v = h - threshold * s;
        return s;
    }
    if constexpr (KIND == COMPLEMENTARY) {
        const A s = h >= threshold ? A(1) : A(0);
        m = m * sigmoid(leak * h) + s;
        v = h - s * (threshold + sigmoid(m));
        return s;
    }
    const A top = KIND == ADAPTIVE ? threshold + beta * m : threshold, s = h >= top ? A(1) : A(0);
    if constexpr (KIND == ADAPTIVE) m = rho * m + (A(1) - rho) * s;
    const A soft = h - top * s, hard = s > 0 ? v_reset : h;
    v = reset == SOFT ? soft : reset == HARD ? hard : h;
    return s;
}

// Cut as in native.cpp: a block's window of three values a step stays in the second-level cache.
int block_size(const Call &c) { return int(std::max<int64_t>(64, std::min<int64_t>(512, 16384 / c.steps / 64 * 64))); }

template <class A>
void start_state(const void *given, int64_t start, int n, A *state, A value = 0) {
    if (given) std::memcpy(state, (const A *)given + start, n * sizeof(A));
    else std::fill(state, state + n, value);
}

template <class T, class A, int KIND>
void forward(const Call &c) {
    const int size = block_size(c), reset = c.reset;
    const int64_t chunks = chunk_count(c.neurons, 4 * size);
    const A levels = A(c.levels), v_reset = A(c.v_reset);
    const bool leaks = c.leaks_to_reset;
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < chunks; k++) {
        Block<A> b(c, size);
        std::vector<A> states_v(size), states_m(size);
        A *__restrict v = states_v.data(), *__restrict m = states_m.data();
        const A *__restrict decay = b.values[DECAY].data(), *__restrict threshold = b.values[THRESHOLD].data(),
                           *__restrict rho = b.values[RHO].data(), *__restrict beta = b.values[BETA].data(),
                           *__restrict gain = b.values[GAIN].data(), *__restrict leak = b.leak.data();
        const int64_t end = c.neurons * (k + 1) / chunks;
        for (int64_t start = c.neurons * k / chunks; start < end; start += size) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_state(c.v_init, start, n, v, A(c.v_start));
            start_state(c.m_init, start, n, m);
            for (int64_t t = 0; t < c.steps; t++) {
                const T *__restrict x = (const T *)c.x + t * c.neurons + start;
                T *__restrict out = (T *)c.spikes + t * c.neurons + start;
#pragma omp simd
                for (int i = 0; i < n; i++) {
                    const A h = charge<A, KIND>(v[i], A(load(x[i])), decay[i], leak[i], threshold[i], gain[i], v_reset, reset, leaks);
                    store(out + i, settle<A, KIND>(h, leak[i], threshold[i], rho[i], beta[i], v_reset, levels, reset, v[i], m[i]));
                }
                if (c.trace) std::memcpy((A *)c.trace + t * c.neurons + start, v, n * sizeof(A));
            }
            if (c.v_last) std::memcpy((A *)c.v_last + start, v, n * sizeof(A));
            if (c.m_last) std::memcpy((A *)c.m_last + start, m, n * sizeof(A));
        }
    }
}

// The surrogate's slopes at h - threshold - beta * m: a loop of its own, so that the walk is compiled once a kind.
template <class A, int SHAPE>
void slope_loop(const Block<A> &b, const A *__restrict h, const A *__restrict m, A *__restrict slope, int n) {
    const A *__restrict threshold = b.values[THRESHOLD].data(), *__restrict beta = b.values[BETA].data();
    const A height = A(b.c.height), width = A(b.c.width), inverse_width = A(1) / width;
    const bool adaptive = b.c.kind == ADAPTIVE;
#pragma omp simd
    for (int i = 0; i < n; i++) {
        const A top = adaptive ? threshold[i] + beta[i] * m[i] : threshold[i];
        slope[i] = height * phi<A, SHAPE>(h[i] - top, width, inverse_width);
    }
}

template <class A>
void slopes(const Block<A> &b, const A *h, const A *m, A *slope, int n) {
    switch (b.c.shape) {
        case FAST_SIGMOID: return slope_loop<A, FAST_SIGMOID>(b, h, m, slope, n);
        case ATAN: return slope_loop<A, ATAN>(b, h, m, slope, n);
        case SIGMOID: return slope_loop<A, SIGMOID>(b, h, m, slope, n);
        case TRIANGLE: return slope_loop<A, TRIANGLE>(b, h, m, slope, n);
        case RECTANGLE: return slope_loop<A, RECTANGLE>(b, h, m, slope, n);
        default: return slope_loop<A, GAUSSIAN>(b, h, m, slope, n);
    }
}

template <class T, class A, int KIND, bool LEARNING>
void backward(const Call &c) {
    const int size = block_size(c);
    const int64_t chunks = chunk_count(c.neurons, 4 * size), row = c.parameter_size;
    const bool attached = !c.detach_reset;
    const int reset = c.reset;
    const A levels = A(c.levels), v_reset = A(c.v_reset);
    const bool leaks = c.leaks_to_reset;
    std::vector<std::vector<double>> sums(chunks, std::vector<double>(LEARNING ? PARAMETERS * row : 0));
#pragma omp parallel for schedule(static) num_threads(c.threads)
    for (int64_t k = 0; k < chunks; k++) {
        Block<A> b(c, size);
        std::vector<A> states[5], window[3], learnt[PARAMETERS];
        for (auto &s : states) s.resize(size);
        for (auto &w : window) w.resize(size * c.steps);
        for (auto &l : learnt) l.resize(LEARNING ? size : 0);
        A *__restrict v = states[0].data(), *__restrict m = states[1].data(), *__restrict by_v = states[2].data(),
                     *__restrict by_m = states[3].data(), *__restrict slope_of = states[4].data();
        A *__restrict d_decay = learnt[DECAY].data(), *__restrict d_threshold = learnt[THRESHOLD].data(),
                     *__restrict d_rho = learnt[RHO].data(), *__restrict d_beta = learnt[BETA].data(),
                     *__restrict d_gain = learnt[GAIN].data();
        const A *__restrict decay = b.values[DECAY].data(), *__restrict threshold = b.values[THRESHOLD].data(),
                           *__restrict rho = b.values[RHO].data(), *__restrict beta = b.values[BETA].data(),
                           *__restrict gain = b.values[GAIN].data(), *__restrict leak = b.leak.data();
        const int64_t end = c.neurons * (k + 1) / chunks;
        for (int64_t start = c.neurons * k / chunks; start < end; start += size) {
            const int n = int(std::min<int64_t>(size, end - start));
            b.at(start, n);
            start_state(c.v_init, start, n, v, A(c.v_start));
            start_state(c.m_init, start, n, m);
            for (int64_t t = 0; t < c.steps; t++) {
                const T *__restrict x = (const T *)c.x + t * c.neurons + start;
                A *__restrict hs = window[0].data() + t * size, *__restrict ms = window[1].data() + t * size,
                             *__restrict vs = window[2].data() + t * size;
#pragma omp simd
                for (int i = 0; i < n; i++) {
                    const A h = charge<A, KIND>(v[i], A(load(x[i])), decay[i], leak[i], threshold[i], gain[i], v_reset, reset, leaks);
                    hs[i] = h;
                    ms[i] = m[i];
                    vs[i] = v[i];
                    settle<A, KIND>(h, leak[i], threshold[i], rho[i], beta[i], v_reset, levels, reset, v[i], m[i]);
                }
            }
            start_state(c.grad_v, start, n, by_v);
            start_state(c.grad_m, start, n, by_m);
            for (auto &l : learnt) std::fill(l.begin(), l.end(), A(0));
            for (int64_t t = c.steps - 1; t >= 0; t--) {
                const T *__restrict gs = (const T *)c.grad_s + t * c.neurons + start;
                const T *__restrict x = (const T *)c.x + t * c.neurons + start;
                T *__restrict dx = (T *)c.dx + t * c.neurons + start;
                const A *__restrict hs = window[0].data() + t * size, *__restrict ms = window[1].data() + t * size,
                                   *__restrict vs = window[2].data() + t * size;
                if (c.grad_trace) {
                    const A *__restrict more = (const A *)c.grad_trace + t * c.neurons + start;
                    for (int i = 0; i < n; i++) by_v[i] += more[i];
                }
                if constexpr (KIND != INTEGER) slopes(b, hs, ms, slope_of, n);
#pragma omp simd
                for (int i = 0; i < n; i++) {
                    const A h = hs[i], before = ms[i], grad = A(load(gs[i]));
                    A after_v = 0, after_m = before;
                    const A s = settle<A, KIND>(h, leak[i], threshold[i], rho[i], beta[i], v_reset, levels, reset, after_v, after_m);
                    A c_v = by_v[i], c_m = by_m[i], by_h, by_decay = 0, by_threshold, by_rho = 0, by_beta = 0, earlier_m = 0;
                    if constexpr (KIND == INTEGER) {
                        const A z = h / threshold[i], slope = z >= 0 && z <= levels ? A(1) / threshold[i] : A(0);
                        const A through = attached ? grad - c_v * threshold[i] : grad;
                        by_h = through * slope + c_v;
                        by_threshold = -(through * slope * z) - c_v * s;
                    } else if constexpr (KIND == COMPLEMENTARY) {
                        const A slope = slope_of[i], g = sigmoid(after_m), q = sigmoid(leak[i] * h);
                        c_m = c_m - c_v * s * g * (A(1) - g);
                        A through = grad + c_m;
                        if (attached) through = through - c_v * (threshold[i] + g);
                        const A bend = c_m * before * q * (A(1) - q);
                        by_h = through * slope + c_v + bend * leak[i];
                        by_decay = -bend * h;
                        earlier_m = c_m * q;
                        by_threshold = -through * slope - c_v * s;
                    } else {
                        const A slope = slope_of[i], top = KIND == ADAPTIVE ? threshold[i] + beta[i] * before : threshold[i];
                        A through = KIND == ADAPTIVE ? grad + (A(1) - rho[i]) * c_m : grad, kept = reset == HARD ? c_v * (A(1) - s) : c_v;
                        const A soft = through - c_v * top, hard = through + c_v * (v_reset - h);
                        through = attached & (reset == SOFT) ? soft : attached & (reset == HARD) ? hard : through;
                        by_h = through * slope + kept;
                        by_threshold = (reset == SOFT ? -c_v * s : A(0)) - through * slope;
                        if constexpr (KIND == ADAPTIVE) {
                            earlier_m = rho[i] * c_m + beta[i] * by_threshold;
                            by_rho = c_m * (before - s);
                            by_beta = by_threshold * before;
                        }
                    }
                    store(dx + i, gain[i] * by_h);
                    A earlier_v = decay[i] * by_h, v_before = vs[i];
                    if constexpr (KIND == LEAKY) {
                        const bool fired_before = v_before >= threshold[i];
                        const bool taken = (reset == DELAYED_SOFT) & fired_before, zeroed = (reset == DELAYED_HARD) & fired_before;
                        by_threshold = taken ? by_threshold - by_h : by_threshold;
                        earlier_v = zeroed ? A(0) : earlier_v;
                        v_before = zeroed ? A(0) : leaks ? v_before - v_reset : v_before;
                    }
                    if constexpr (LEARNING) {
                        d_decay[i] += by_h * v_before + by_decay;
                        d_gain[i] += by_h * A(load(x[i]));
                        d_threshold[i] += by_threshold;
                        d_rho[i] += by_rho;
                        d_beta[i] += by_beta;
                    }
                    by_v[i] = earlier_v;
                    by_m[i] = earlier_m;
                }
            }
            if (c.dv_init) std::memcpy((A *)c.dv_init + start, by_v, n * sizeof(A));
            if (c.dm_init) std::memcpy((A *)c.dm_init + start, by_m, n * sizeof(A));
            if constexpr (LEARNING)
                for (int p = 0; p < PARAMETERS; p++)
                    for (int i = 0; i < n; i++) sums[k][p * row + (row > 1 ? b.channel[i] : 0)] += double(learnt[p][i]);
        }
    }
    if constexpr (!LEARNING) return;
    for (int64_t i = 0; i < PARAMETERS * row; i++) {
        double total = 0;
        for (const auto &share : sums) total += share[i];
        ((A *)c.out_parameters)[i] = A(total);
    }
}

template <class T, class A, int KIND>
void pass(const Call &c, bool forwards) {
    if (forwards) return forward<T, A, KIND>(c);
    if (c.out_parameters) return backward<T, A, KIND, true>(c);
    return backward<T, A, KIND, false>(c);
}

template <class T, class A>
void run(const Call &c, bool forwards) {
    switch (c.kind) {
        case INTEGER: return pass<T, A, INTEGER>(c, forwards);
        case COMPLEMENTARY: return pass<T, A, COMPLEMENTARY>(c, forwards);
        case ADAPTIVE: return pass<T, A, ADAPTIVE>(c, forwards);
        default: return pass<T, A, LEAKY>(c, forwards);
    }
}

}  // namespace

extern "C" void spiketriton_run(const Call *call, int pass) { run<Element, Accumulator>(*call, pass == 0); }

extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
