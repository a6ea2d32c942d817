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

using A = Accumulator;
using T = Element;

inline V sigmoid(V x) {
    const V e = exp_negative(-absolute(x)), r = A(1) / (A(1) + e);
    return x < A(0) ? e * r : r;
}

// The nearest of 0 to `levels`, ties to even; a NaN stays one.
inline V level(V z, A levels) {
    constexpr A whole = A(sizeof(A) == 4 ? int64_t(1) << 23 : int64_t(1) << 52);  // from here on there are no fractions
    z = z < A(0) ? V{} : z;
    z = z > levels ? all(levels) : z;
    return (z + whole) - whole;
}

// The constants of a block of neurons.
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

// Kinds whose second state the walk back needs.
template <int KIND>
constexpr bool remembers = KIND == COMPLEMENTARY || KIND == ADAPTIVE;

// What a vector of neurons obeys.
struct Rule {
    V decay, leak, threshold, rho, beta, gain;
    A v_reset, levels;
    int reset;
    bool leaks;

    void at(const Block &b, int i) {
        decay = load(b.values[DECAY].data() + i);
        leak = load(b.leak.data() + i);
        threshold = load(b.values[THRESHOLD].data() + i);
        rho = load(b.values[RHO].data() + i);
        beta = load(b.values[BETA].data() + i);
        gain = load(b.values[GAIN].data() + i);
        v_reset = A(b.c.v_reset);
        levels = A(b.c.levels);
        reset = b.c.reset;
        leaks = b.c.leaks_to_reset;
    }
};

// h of a step from the membrane before it; a delayed reset comes first.
template <int KIND>
inline V charge(const Rule &r, V v, V x) {
    if constexpr (KIND == LEAKY) {
        if (r.leaks) return v + r.gain * x - r.leak * (v - r.v_reset);
        if (r.reset == DELAYED_HARD) return r.decay * (v >= r.threshold ? V{} : v) + r.gain * x;
        const V h = r.decay * v + r.gain * x;
        return r.reset == DELAYED_SOFT ? (v >= r.threshold ? h - r.threshold : h) : h;
    }
    return r.decay * v + r.gain * x;
}

// Spikes, membrane and second state after a step with the potential h and the second state m before it.
template <int KIND>
inline V settle(const Rule &r, V h, V &v, V &m) {
    const V one = all(A(1));
    if constexpr (KIND == INTEGER) {
        const V s = level(h / r.threshold, r.levels);
        v = h - r.threshold * s;
        return s;
    }
    if constexpr (KIND == COMPLEMENTARY) {
        const V s = h >= r.threshold ? one : V{};
        m = m * sigmoid(r.leak * h) + s;
        v = h - s * (r.threshold + sigmoid(m));
        return s;
    }
    const V top = KIND == ADAPTIVE ? r.threshold + r.beta * m : r.threshold, s = h >= top ? one : V{};
    if constexpr (KIND == ADAPTIVE) m = r.rho * m + (A(1) - r.rho) * s;
    v = r.reset == SOFT ? h - top * s : r.reset == HARD ? (h >= top ? all(r.v_reset) : h) : h;
    return s;
}

// Cut as in native.cpp: a block's window of up to four values a step stays in the second-level cache.
int block_size(const Call &c) { return int(std::max<int64_t>(64, std::min<int64_t>(512, 8192 / c.steps / 64 * 64))); }

void start_state(const void *given, int64_t start, int n, A *state, A value = 0) {
    if (given) std::memcpy(state, (const A *)given + start, n * sizeof(A));
    else std::fill(state, state + n, value);
}

// What is kept of a block's window: the potentials, and where the walk back needs them the states before each step.
struct Window {
    std::vector<A> h, m, v, slope;
};


// Where a block's vectors of neurons are: memory at (0, start), rows of the window `size` apart.
struct Place {
    int64_t start;
    int size, n;
    A *v, *m;  // states
};

// U vectors of neurons through all steps, to spikes or to the window.
template <int KIND, bool FIRE, int U, bool PART>
inline void forth_tile(const Block &b, const Place &p, Window *kept, int i, int part) {
    const Call &c = b.c;
    const T *x = (const T *)c.x + p.start;
    T *spikes = (T *)c.spikes + p.start;
    A *trace = c.trace ? (A *)c.trace + p.start : nullptr;
    Rule r[U];
    V v[U], m[U];
    for (int u = 0; u < U; u++) {
        r[u].at(b, i + u * LANES);
        v[u] = load(p.v + i + u * LANES);
        m[u] = load(p.m + i + u * LANES);
    }
    for (int64_t t = 0; t < c.steps; t++) {
        prefetch(x + t * c.neurons + i + p.size, U * LANES);
        for (int u = 0; u < U; u++) {
            const int64_t at = t * c.neurons + i + u * LANES, here = t * p.size + i + u * LANES;
            const V h = charge<KIND>(r[u], v[u], get<PART>(x + at, part));
            if constexpr (!FIRE) {
                store(kept->h.data() + here, h);
                if constexpr (remembers<KIND>) store(kept->m.data() + here, m[u]);
                if (!kept->v.empty()) store(kept->v.data() + here, v[u]);
            }
            const V s = settle<KIND>(r[u], h, v[u], m[u]);
            if constexpr (FIRE) {
                put<PART>(spikes + at, s, part, false);
                if (trace) put<PART>(trace + at, v[u], part, false);
            }
        }
    }
    for (int u = 0; u < U; u++) {
        store(p.v + i + u * LANES, v[u]);
        store(p.m + i + u * LANES, m[u]);
    }
}

template <int KIND, bool FIRE>
void forth(const Block &b, const Place &p, Window *kept) {
    start_state(b.c.v_init, p.start, p.n, p.v, A(b.c.v_start));
    start_state(b.c.m_init, p.start, p.n, p.m);
    tiles<2>(
        p.n, [&](int i) { forth_tile<KIND, FIRE, 2, false>(b, p, kept, i, LANES); },
        [&](int i, int part) { forth_tile<KIND, FIRE, 1, true>(b, p, kept, i, part); });
}

template <int KIND>
void forward(const Call &c) {
    const int size = block_size(c);
    const int64_t chunks = chunk_count(c.neurons, 4 * size);
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1)
    for (int64_t k = 0; k < chunks; k++) {
        Block b(c, size);
        std::vector<A> v(size), m(size);
        const int64_t end = c.neurons * (k + 1) / chunks;
        for (int64_t start = c.neurons * k / chunks; start < end; start += size) {
            const Place p{start, size, int(std::min<int64_t>(size, end - start)), v.data(), m.data()};
            b.at(start, p.n);
            forth<KIND, true>(b, p, nullptr);
            if (c.v_last) std::memcpy((A *)c.v_last + start, v.data(), p.n * sizeof(A));
            if (c.m_last) std::memcpy((A *)c.m_last + start, m.data(), p.n * sizeof(A));
        }
    }
}

// The surrogate's slopes at h - threshold - beta * m: a loop of its own, so that the walk is compiled once a kind.
template <int SHAPE>
void slope_loop(const Block &b, const Place &p, Window &w) {
    const A height = A(b.c.height);
    const V width = all(A(b.c.width)), inverse_width = A(1) / width;
    const bool adaptive = b.c.kind == ADAPTIVE;
    for (int i = 0; i < p.n; i += LANES) {
        const V threshold = load(b.values[THRESHOLD].data() + i), beta = load(b.values[BETA].data() + i);
        for (int64_t t = 0; t < b.c.steps; t++) {
            const int64_t here = t * p.size + i;
            const V top = adaptive ? threshold + beta * load(w.m.data() + here) : threshold;
            store(w.slope.data() + here, height * phi<SHAPE>(load(w.h.data() + here) - top, width, inverse_width));
        }
    }
}

void slopes(const Block &b, const Place &p, Window &w) {
    switch (b.c.shape) {
        case FAST_SIGMOID: return slope_loop<FAST_SIGMOID>(b, p, w);
        case ATAN: return slope_loop<ATAN>(b, p, w);
        case SIGMOID: return slope_loop<SIGMOID>(b, p, w);
        case TRIANGLE: return slope_loop<TRIANGLE>(b, p, w);
        case RECTANGLE: return slope_loop<RECTANGLE>(b, p, w);
        default: return slope_loop<GAUSSIAN>(b, p, w);
    }
}

// U vectors of neurons back through all steps, from the gradients of the last states to those of the first.
template <int KIND, bool LEARNING, int U, bool PART>
inline void back_tile(const Block &b, const Place &p, const Window &w, std::vector<A> *learnt, int i, int part) {
    const Call &c = b.c;
    const T *gs = (const T *)c.grad_s + p.start, *x = (const T *)c.x + p.start;
    const A *more = c.grad_trace ? (const A *)c.grad_trace + p.start : nullptr;
    T *dx = (T *)c.dx + p.start;
    const bool attached = !c.detach_reset;
    const V one = all(A(1));
    Rule rules[U];
    V by_v[U], by_m[U], d[U][PARAMETERS];
    for (int u = 0; u < U; u++) {
        rules[u].at(b, i + u * LANES);
        by_v[u] = load(p.v + i + u * LANES);
        by_m[u] = load(p.m + i + u * LANES);
        for (V &sum : d[u]) sum = V{};
    }
    for (int64_t t = c.steps - 1; t >= 0; t--) {
        prefetch(gs + t * c.neurons + i + p.size, U * LANES);
        for (int u = 0; u < U; u++) {
            const Rule &r = rules[u];
            const int64_t at = t * c.neurons + i + u * LANES, here = t * p.size + i + u * LANES;
            const V h = load(w.h.data() + here), grad = get<PART>(gs + at, part);
            const V before = remembers<KIND> ? load(w.m.data() + here) : V{};
            V c_v = by_v[u], c_m = by_m[u], by_h, by_threshold, by_decay = {}, by_rho = {}, by_beta = {};
            if (more) c_v = c_v + get<PART>(more + at, part);
            by_m[u] = V{};
            if constexpr (KIND == INTEGER) {
                const V z = h / r.threshold, s = level(z, r.levels);
                const V slope = (z >= A(0)) & (z <= r.levels) ? one / r.threshold : V{};
                const V through = attached ? grad - c_v * r.threshold : grad;
                by_h = through * slope + c_v;
                by_threshold = -(through * slope * z) - c_v * s;
            } else if constexpr (KIND == COMPLEMENTARY) {
                const V s = h >= r.threshold ? one : V{}, q = sigmoid(r.leak * h), g = sigmoid(before * q + s);
                const V slope = load(w.slope.data() + here);
                c_m = c_m - c_v * s * g * (A(1) - g);
                V through = grad + c_m;
                if (attached) through = through - c_v * (r.threshold + g);
                const V bend = c_m * before * q * (A(1) - q);
                by_h = through * slope + c_v + bend * r.leak;
                by_decay = -bend * h;
                by_m[u] = c_m * q;
                by_threshold = -through * slope - c_v * s;
            } else {
                const V top = KIND == ADAPTIVE ? r.threshold + r.beta * before : r.threshold, s = h >= top ? one : V{};
                const V slope = load(w.slope.data() + here);
                V through = KIND == ADAPTIVE ? grad + (A(1) - r.rho) * c_m : grad;
                if (attached && r.reset == SOFT) through = through - c_v * top;
                if (attached && r.reset == HARD) through = through + c_v * (r.v_reset - h);
                by_h = through * slope + (r.reset == HARD ? c_v * (A(1) - s) : c_v);
                by_threshold = (r.reset == SOFT ? -c_v * s : V{}) - through * slope;
                if constexpr (KIND == ADAPTIVE) {
                    by_m[u] = r.rho * c_m + r.beta * by_threshold;
                    by_rho = c_m * (before - s);
                    by_beta = by_threshold * before;
                }
            }
            put<PART>(dx + at, r.gain * by_h, part, false);
            by_v[u] = r.decay * by_h;
            V v_before = w.v.empty() ? V{} : load(w.v.data() + here);
            if constexpr (KIND == LEAKY) {
                if (r.reset == DELAYED_SOFT) by_threshold = v_before >= r.threshold ? by_threshold - by_h : by_threshold;
                if (r.reset == DELAYED_HARD) {
                    const Mask zeroed = v_before >= r.threshold;
                    by_v[u] = zeroed ? V{} : by_v[u];
                    v_before = zeroed ? V{} : v_before;
                } else if (r.leaks) v_before = v_before - r.v_reset;
            }
            if constexpr (LEARNING) {
                d[u][DECAY] += by_h * v_before + by_decay;
                d[u][THRESHOLD] += by_threshold;
                d[u][RHO] += by_rho;
                d[u][BETA] += by_beta;
                d[u][GAIN] += by_h * get<PART>(x + at, part);
            }
        }
    }
    for (int u = 0; u < U; u++) {
        store(p.v + i + u * LANES, by_v[u]);
        store(p.m + i + u * LANES, by_m[u]);
        if constexpr (LEARNING)
            for (int k = 0; k < PARAMETERS; k++) store(learnt[k].data() + i + u * LANES, d[u][k]);
    }
}

template <int KIND, bool LEARNING>
void backward(const Call &c) {
    const int size = block_size(c);
    const int64_t chunks = chunk_count(c.neurons, 4 * size), row = c.parameter_size;
    const bool delayed = c.reset == DELAYED_SOFT || c.reset == DELAYED_HARD;
    std::vector<std::vector<double>> sums(chunks, std::vector<double>(LEARNING ? PARAMETERS * row : 0));
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1)
    for (int64_t k = 0; k < chunks; k++) {
        Block b(c, size);
        Window w;
        w.h.resize(size * c.steps);
        if (remembers<KIND>) w.m.resize(size * c.steps);
        if (KIND != INTEGER) w.slope.resize(size * c.steps);
        if (LEARNING || delayed) w.v.resize(size * c.steps);
        std::vector<A> v(size), m(size), learnt[PARAMETERS];
        for (auto &l : learnt) l.resize(LEARNING ? size : 0);
        const int64_t end = c.neurons * (k + 1) / chunks;
        for (int64_t start = c.neurons * k / chunks; start < end; start += size) {
            const Place p{start, size, int(std::min<int64_t>(size, end - start)), v.data(), m.data()};
            b.at(start, p.n);
            forth<KIND, false>(b, p, &w);
            if (KIND != INTEGER) slopes(b, p, w);
            start_state(c.grad_v, start, p.n, p.v);
            start_state(c.grad_m, start, p.n, p.m);
            tiles<2>(
                p.n, [&](int i) { back_tile<KIND, LEARNING, 2, false>(b, p, w, learnt, i, LANES); },
                [&](int i, int part) { back_tile<KIND, LEARNING, 1, true>(b, p, w, learnt, i, part); });
            if (c.dv_init) std::memcpy((A *)c.dv_init + start, p.v, p.n * sizeof(A));
            if (c.dm_init) std::memcpy((A *)c.dm_init + start, p.m, p.n * sizeof(A));
            if constexpr (LEARNING)
                for (int j = 0; j < PARAMETERS; j++)
                    for (int i = 0; i < p.n; i++) sums[k][j * row + (row > 1 ? b.channel[i] : 0)] += double(learnt[j][i]);
        }
    }
    if constexpr (!LEARNING) return;
    for (int64_t i = 0; i < PARAMETERS * row; i++) {
        double total = 0;
        for (const auto &share : sums) total += share[i];
        ((A *)c.out_parameters)[i] = A(total);
    }
}

template <int KIND>
void pass(const Call &c, bool forwards) {
    if (forwards) return forward<KIND>(c);
    if (c.out_parameters) return backward<KIND, true>(c);
    return backward<KIND, false>(c);
}

void run(const Call &c, bool forwards) {
    switch (c.kind) {
        case INTEGER: return pass<INTEGER>(c, forwards);
        case COMPLEMENTARY: return pass<COMPLEMENTARY>(c, forwards);
        case ADAPTIVE: return pass<ADAPTIVE>(c, forwards);
        default: return pass<LEAKY>(c, forwards);
    }
}

}  // namespace

extern "C" void spiketriton_run(const Call *call, int pass) { run(*call, pass == 0); }

extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
