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
    Array<A> values[PARAMETERS], leak;
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
};

// The rules of a block: a copy on the stack of where they are, which no store can reach.
struct Rules {
    const A *decay, *leak, *threshold, *rho, *beta, *gain;
    A v_reset, levels;
    int reset;
    bool leaks;

    explicit Rules(const Block &b)
        : decay(b.values[DECAY].data()), leak(b.leak.data()), threshold(b.values[THRESHOLD].data()), rho(b.values[RHO].data()),
          beta(b.values[BETA].data()), gain(b.values[GAIN].data()), v_reset(A(b.c.v_reset)), levels(A(b.c.levels)),
          reset(b.c.reset), leaks(b.c.leaks_to_reset) {}

    Rule at(int i) const {
        return {load(decay + i), load(leak + i), load(threshold + i), load(rho + i), load(beta + i), load(gain + i),
                v_reset, levels, reset, leaks};
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
int block_size(const Call &c) { return int(std::max<int64_t>(64, std::min<int64_t>(1024, 16384 / c.steps / 64 * 64))); }

void start_state(const void *given, int64_t start, int n, A *state, A value = 0) {
    if (given) std::memcpy(state, (const A *)given + start, n * sizeof(A));
    else std::fill(state, state + n, value);
}

// What is kept of a block's window: the potentials, and where the walk back needs them the states before each step.
struct Window {
    Array<A> h, m, v, slope;
};


// Where a block's vectors of neurons are: memory at (0, start), rows of the window `size` apart.
struct Place {
    int64_t start;
    int size, n;
    A *v, *m;  // states
};

// A block through all steps, to spikes or to the window.
template <int KIND, bool FIRE>
void forth(const Block &b, const Place &p, Window *kept) {
    const Call &c = b.c;
    const Rules rules(b);
    start_state(c.v_init, p.start, p.n, p.v, A(c.v_start));
    start_state(c.m_init, p.start, p.n, p.m);
    for (int64_t t = 0; t < c.steps; t++) {
        const int64_t row = t * c.neurons + p.start, next = later(t, c.steps, c.neurons, p.size);
        const T *x = (const T *)c.x + row;
        T *spikes = (T *)c.spikes + row;
        A *trace = c.trace ? (A *)c.trace + row : nullptr, *vs = p.v, *ms = p.m, *h_at = nullptr, *m_at = nullptr, *v_at = nullptr;
        if constexpr (!FIRE) {
            h_at = kept->h.data() + t * p.size;
            if (remembers<KIND>) m_at = kept->m.data() + t * p.size;
            if (!kept->v.empty()) v_at = kept->v.data() + t * p.size;
        }
        vectors(p.n, [&](auto part, int i, int left) {
            constexpr bool PART = decltype(part)::value;
            prefetch(x + next + i, LANES);
            const Rule r = rules.at(i);
            V v = load(vs + i), m = load(ms + i);
            const V h = charge<KIND>(r, v, get<PART>(x + i, left));
            if constexpr (!FIRE) {
                store(h_at + i, h);
                if constexpr (remembers<KIND>) store(m_at + i, m);
                if (v_at) store(v_at + i, v);
            }
            const V s = settle<KIND>(r, h, v, m);
            if constexpr (FIRE) {
                prefetch_for_writing(spikes + next + i);
                put<PART>(spikes + i, rounded(s), left, false);
                if (trace) std::memcpy(trace + i, &v, size_t(left) * sizeof(A));
            }
            store(vs + i, v);
            if constexpr (remembers<KIND>) store(ms + i, m);
        });
    }
}

template <int KIND>
void forward(const Call &c) {
    const int size = block_size(c);
    const int64_t chunks = chunk_count(c.neurons, size);
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block b(c, size);
        Array<A> v(size), m(size);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++) {
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
}

// The surrogate's slopes at h - threshold - beta * m: a loop of its own, so that the walk is compiled once a kind.
template <int SHAPE>
void slope_loop(const Block &b, const Place &p, Window &w) {
    const A height = A(b.c.height);
    const V width = all(A(b.c.width)), inverse_width = A(1) / width;
    const bool adaptive = b.c.kind == ADAPTIVE;
    for (int64_t t = 0; t < b.c.steps; t++)
        for (int i = 0; i < p.n; i += LANES) {
            const int64_t here = t * p.size + i;
            V top = load(b.values[THRESHOLD].data() + i);
            if (adaptive) top = top + load(b.values[BETA].data() + i) * load(w.m.data() + here);
            store(w.slope.data() + here, height * phi<SHAPE>(load(w.h.data() + here) - top, width, inverse_width));
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

// A block back through all steps, from the gradients of the last states to those of the first.
template <int KIND, bool LEARNING>
void back(const Block &b, const Place &p, const Window &w, Array<A> *learnt) {
    const Call &c = b.c;
    const Rules rules(b);
    const bool attached = !c.detach_reset;
    const V one = all(A(1));
    A *by_vs = p.v, *by_ms = p.m, *sums[PARAMETERS];
    for (int k = 0; k < PARAMETERS; k++) sums[k] = learnt[k].data();
    for (int64_t t = c.steps - 1; t >= 0; t--) {
        const int64_t row = t * c.neurons + p.start, kept = t * p.size, next = earlier(t, c.steps, c.neurons, p.size);
        const T *gs = (const T *)c.grad_s + row, *x = (const T *)c.x + row;
        const A *more = c.grad_trace ? (const A *)c.grad_trace + row : nullptr, *hs = w.h.data() + kept,
                *ms = remembers<KIND> ? w.m.data() + kept : nullptr, *slope_at = KIND == INTEGER ? nullptr : w.slope.data() + kept,
                *vs = w.v.empty() ? nullptr : w.v.data() + kept;
        T *dx = (T *)c.dx + row;
        vectors(p.n, [&](auto part, int i, int left) {
            constexpr bool PART = decltype(part)::value;
            prefetch(gs + next + i, LANES);
            prefetch_for_writing(dx + next + i);
            const Rule r = rules.at(i);
            const V h = load(hs + i), grad = get<PART>(gs + i, left);
            const V before = remembers<KIND> ? load(ms + i) : V{};
            V c_v = load(by_vs + i), c_m = load(by_ms + i), by_h, by_threshold, by_decay = {}, by_rho = {}, by_beta = {}, earlier_m = {};
            if (more) c_v = c_v + get<PART>(more + i, left);
            if constexpr (KIND == INTEGER) {
                const V z = h / r.threshold, s = level(z, r.levels);
                const V slope = (z >= A(0)) & (z <= r.levels) ? one / r.threshold : V{};
                const V through = attached ? grad - c_v * r.threshold : grad;
                by_h = through * slope + c_v;
                by_threshold = -(through * slope * z) - c_v * s;
            } else if constexpr (KIND == COMPLEMENTARY) {
                const V s = h >= r.threshold ? one : V{}, q = sigmoid(r.leak * h), g = sigmoid(before * q + s);
                const V slope = load(slope_at + i);
                c_m = c_m - c_v * s * g * (A(1) - g);
                V through = grad + c_m;
                if (attached) through = through - c_v * (r.threshold + g);
                const V bend = c_m * before * q * (A(1) - q);
                by_h = through * slope + c_v + bend * r.leak;
                by_decay = -bend * h;
                earlier_m = c_m * q;
                by_threshold = -through * slope - c_v * s;
            } else {
                const V top = KIND == ADAPTIVE ? r.threshold + r.beta * before : r.threshold, s = h >= top ? one : V{};
                const V slope = load(slope_at + i);
                V through = KIND == ADAPTIVE ? grad + (A(1) - r.rho) * c_m : grad;
                if (attached && r.reset == SOFT) through = through - c_v * top;
                if (attached && r.reset == HARD) through = through + c_v * (r.v_reset - h);
                by_h = through * slope + (r.reset == HARD ? c_v * (A(1) - s) : c_v);
                by_threshold = (r.reset == SOFT ? -c_v * s : V{}) - through * slope;
                if constexpr (KIND == ADAPTIVE) {
                    earlier_m = r.rho * c_m + r.beta * by_threshold;
                    by_rho = c_m * (before - s);
                    by_beta = by_threshold * before;
                }
            }
            put<PART>(dx + i, rounded(r.gain * by_h), left, false);
            V earlier_v = r.decay * by_h, v_before = vs ? load(vs + i) : V{};
            if constexpr (KIND == LEAKY) {
                if (r.reset == DELAYED_SOFT) by_threshold = v_before >= r.threshold ? by_threshold - by_h : by_threshold;
                if (r.reset == DELAYED_HARD) {
                    const Mask zeroed = v_before >= r.threshold;
                    earlier_v = zeroed ? V{} : earlier_v;
                    v_before = zeroed ? V{} : v_before;
                } else if (r.leaks) v_before = v_before - r.v_reset;
            }
            if constexpr (LEARNING) {
                const auto add = [&](Parameter to, V amount) { store(sums[to] + i, load(sums[to] + i) + amount); };
                add(DECAY, by_h * v_before + by_decay);
                add(THRESHOLD, by_threshold);
                add(GAIN, by_h * get<PART>(x + i, left));
                if constexpr (KIND == ADAPTIVE) {
                    add(RHO, by_rho);
                    add(BETA, by_beta);
                }
            }
            store(by_vs + i, earlier_v);
            store(by_ms + i, earlier_m);
        });
    }
}

template <int KIND, bool LEARNING>
void backward(const Call &c) {
    const int size = block_size(c);
    const int64_t chunks = chunk_count(c.neurons, size), row = c.parameter_size;
    const bool delayed = c.reset == DELAYED_SOFT || c.reset == DELAYED_HARD;
    std::vector<std::vector<double>> sums(chunks, std::vector<double>(LEARNING ? PARAMETERS * row : 0));
#pragma omp parallel num_threads(c.threads) if (c.threads > 1)
    {
        Block b(c, size);
        Window w;
        w.h.resize(size * c.steps);
        if (remembers<KIND>) w.m.resize(size * c.steps);
        if (KIND != INTEGER) w.slope.resize(size * c.steps);
        if (LEARNING || delayed) w.v.resize(size * c.steps);
        Array<A> v(size), m(size), learnt[PARAMETERS];
        for (auto &l : learnt) l.resize(LEARNING ? size : 0);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < chunks; k++) {
            const int64_t end = c.neurons * (k + 1) / chunks;
            for (int64_t start = c.neurons * k / chunks; start < end; start += size) {
                const Place p{start, size, int(std::min<int64_t>(size, end - start)), v.data(), m.data()};
                b.at(start, p.n);
                forth<KIND, false>(b, p, &w);
                if (KIND != INTEGER) slopes(b, p, w);
                start_state(c.grad_v, start, p.n, p.v);
                start_state(c.grad_m, start, p.n, p.m);
                for (auto &l : learnt) std::fill(l.begin(), l.end(), A(0));
                back<KIND, LEARNING>(b, p, w, learnt);
                if (c.dv_init) std::memcpy((A *)c.dv_init + start, p.v, p.n * sizeof(A));
                if (c.dm_init) std::memcpy((A *)c.dm_init + start, p.m, p.n * sizeof(A));
                if constexpr (LEARNING)
                    for (int j = 0; j < PARAMETERS; j++)
                        for (int i = 0; i < p.n; i++) sums[k][j * row + (row > 1 ? b.channel[i] : 0)] += double(learnt[j][i]);
            }
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
