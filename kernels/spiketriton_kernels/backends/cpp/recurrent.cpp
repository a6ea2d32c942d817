// Neurons whose own spikes of the step before come back by a matrix: a block of samples through the whole window, and back.
// Forth, a row of the transposed matrix is added for each neuron that fired, in their order. Back, the gradient by the
// currents of a step is multiplied by the matrix: what earlier spikes receive. What a step's way back reads was kept on the
// way forth, so that no step is replayed. Sums run over chunks of samples fixed by their number, and are joined in order.

#include <utility>
#include <vector>

#include "steps.h"

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

using T = Element;
using Step = StepAt<0>;
using Emitted = decltype(Step::forth(std::declval<Step::Constants>(), V{}, nullptr, nullptr));
constexpr bool BINARY = std::is_same_v<Emitted, Mask>;

// ---- multiply and add, rounded once where there is an instruction for it: for gradients

#if defined(__AVX512F__) && SPIKETRITON_DTYPE == 1
inline V fused(V a, V b, V c) { return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__AVX512F__)
inline V fused(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__FMA__) && SPIKETRITON_DTYPE == 1
inline V fused(V a, V b, V c) { return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#elif defined(__FMA__)
inline V fused(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
inline V fused(V a, V b, V c) { return a * b + c; }
#endif

// Rows of samples that share what is read of the matrix, and vectors of each in registers, beside which one row's sums fit.
#if defined(__AVX512F__)
constexpr int ROWS = 8, TILE = 3;
#else
constexpr int ROWS = 4, TILE = 2;
#endif
constexpr int SAMPLES = 8, GROUP = 8;  // of a block; vectors of one sample's current that are summed side by side

template <class X>
X *from(const void *tensor, int64_t start) { return tensor ? static_cast<X *>(const_cast<void *>(tensor)) + start : nullptr; }

template <bool PART>
inline V only(V v, int n) {  // the lanes that are neurons
    if constexpr (PART)
        for (int l = n; l < LANES; l++) v[l] = 0;
    return v;
}

inline double total(V v) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += double(v[l]);
    return sum;
}

// What holds for all samples: the matrix of the call, its rows in whole vectors, and the constants, one for each neuron.
struct Layer {
    const Call &c;
    const int neurons, padded;
    Array<A> copy, constants[CONSTANTS + 1];
    const A *matrix;

    explicit Layer(const Call &call)
        : c(call), neurons(int(c.neurons)), padded((neurons + LANES - 1) / LANES * LANES), matrix(static_cast<const A *>(c.matrix)) {
        if (padded != neurons) {
            copy.resize(size_t(neurons) * padded);
            for (int j = 0; j < neurons; j++) std::copy_n(matrix + size_t(j) * neurons, neurons, copy.begin() + size_t(j) * padded);
            matrix = copy.data();
        }
        for (int p = 0; p < CONSTANTS; p++) {
            const Constant &of = c.constants[p];
            const A *values = static_cast<const A *>(of.values);
            constants[p].resize(padded);
            std::fill(constants[p].begin(), constants[p].end(), values ? values[0] : A(of.number));
            if (values && of.size > 1) std::copy_n(values, neurons, constants[p].begin());
        }
    }

    Step::Constants at(int i) const { return Step::of([&](int p) { return load(constants[p].data() + i); }); }
};

// Samples first to first + m - 1, whose rows in cache are `padded` apart; in memory a step of theirs is one run.
struct Block {
    const Layer &l;
    const int64_t first;
    const int m;

    int64_t place(int64_t t) const { return (t * l.c.samples + first) * l.neurons; }
    int64_t window() const { return l.c.steps * l.c.samples * l.neurons; }
    int64_t step() const { return l.c.samples * l.neurons; }

    // From memory into rows, and back.
    void read(const A *from_, A *rows) const {
        for (int b = 0; b < m; b++) std::copy_n(from_ + b * l.neurons, l.neurons, rows + b * l.padded);
    }
    void write(const A *rows, A *to) const {
        for (int b = 0; b < m; b++) std::copy_n(rows + b * l.padded, l.neurons, to + b * l.neurons);
    }
};

// ---- forth

template <int SIDE>
inline void add_rows(const A *matrix, int padded, const int *fired, const A *spikes, int count, A *out) {
    V sums[SIDE]{};
    for (int k = 0; k < count; k++) {
        const A *row = matrix + size_t(fired[k]) * padded;
        const V by = all(spikes[fired[k]]);
#pragma GCC unroll 8
        for (int v = 0; v < SIDE; v++) {
            const V w = load(row + v * LANES);
            if constexpr (BINARY) sums[v] = sums[v] + w;
            else sums[v] = sums[v] + by * w;
        }
    }
    for (int v = 0; v < SIDE; v++) store(out + v * LANES, sums[v]);
}

// The current that a sample's spikes cause; matrix: of the transposed one.
void returned(const Layer &l, const A *spikes, int *fired, A *out) {
    int count = 0;
    for (int j = 0; j < l.neurons; j++) fired[count] = j, count += spikes[j] != 0;
    int i = 0;
    for (; i + GROUP * LANES <= l.padded; i += GROUP * LANES) add_rows<GROUP>(l.matrix + i, l.padded, fired, spikes, count, out + i);
    for (; i < l.padded; i += LANES) add_rows<1>(l.matrix + i, l.padded, fired, spikes, count, out + i);
}

void forward_block(const Block &b) {
    const Layer &l = b.l;
    const Call &c = l.c;
    const int n = l.neurons, P = l.padded;
    const int64_t rows = int64_t(b.m) * P;
    Array<A> states(size_t((STATES + 1) * rows)), current(P);
    std::vector<int> fired(n + 1);
    for (int k = 0; k <= STATES; k++) {
        if (const A *given = from<A>(c.first, k * b.step() + b.place(0))) b.read(given, states.data() + k * rows);
        else std::fill_n(states.begin() + k * rows, rows, k < STATES ? A(c.starts[k]) : A(0));
    }
    for (int64_t t = 0; t < c.steps; t++)
        for (int s = 0; s < b.m; s++) {
            const int64_t here = b.place(t) + s * n;
            A *state = states.data() + s * P, *spikes = state + STATES * rows;
            returned(l, spikes, fired.data(), current.data());
            const T *x = from<T>(c.x, here);
            T *out = from<T>(c.spikes, here);
            A *trace = from<A>(c.trace, here), *kept = from<A>(c.kept, here);
            vectors(n, [&](auto part, int i, int left) {
                constexpr bool PART = decltype(part)::value;
                V before[STATES], of_step[KEPT];
                for (int k = 0; k < STATES; k++) before[k] = load(state + k * rows + i);
                const Emitted emitted = Step::forth(l.at(i), get<PART>(x + i, left) + load(current.data() + i), before, of_step);
                for (int k = 0; k < STATES; k++) store(state + k * rows + i, before[k]);
                store(spikes + i, counted(emitted));
                put<PART>(out + i, written(emitted), left, false);
                if (trace) std::memcpy(trace + i, before, size_t(left) * sizeof(A));
                if (kept)
                    for (int k = 0; k < KEEPS[0]; k++) std::memcpy(kept + k * b.window() + i, of_step + k, size_t(left) * sizeof(A));
            });
        }
    for (int k = 0; k <= STATES; k++)
        if (A *last = from<A>(c.last, k * b.step() + b.place(0))) b.write(states.data() + k * rows, last);
}

// ---- back

// out = dx @ matrix, of HIGH rows and WIDE vectors.
template <int HIGH, int WIDE>
inline void multiply(const Layer &l, const A *dx, const A *matrix, A *out) {
    V sums[HIGH][WIDE]{};
    for (int j = 0; j < l.neurons; j++) {
        V w[WIDE];
        for (int v = 0; v < WIDE; v++) w[v] = load(matrix + size_t(j) * l.padded + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < HIGH; r++) {
            const V by = all(dx[r * l.padded + j]);
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++) sums[r][v] = fused(by, w[v], sums[r][v]);
        }
    }
    for (int r = 0; r < HIGH; r++)
        for (int v = 0; v < WIDE; v++) store(out + r * l.padded + v * LANES, sums[r][v]);
}

template <int HIGH>
void multiply_rows(const Layer &l, const A *dx, A *out) {
    int i = 0;
    for (; i + TILE * LANES <= l.padded; i += TILE * LANES) multiply<HIGH, TILE>(l, dx, l.matrix + i, out + i);
    for (; i < l.padded; i += LANES) multiply<HIGH, 1>(l, dx, l.matrix + i, out + i);
}

// What the spikes before receive of the gradients by the currents; both have rows up to a multiple of ROWS.
void passed_back(const Layer &l, int m, const A *dx, A *out) {
    int r = 0;
    for (; 2 * (m - r) >= ROWS; r += ROWS) multiply_rows<ROWS>(l, dx + r * l.padded, out + r * l.padded);
    for (; r < m; r++) multiply_rows<1>(l, dx + r * l.padded, out + r * l.padded);
}

// The columns of a probe's row, in the order of PROBE_FIELDS in arguments.py.
enum Probe { GRAD_SPIKE_SQ, GRAD_INPUT_SQ, GRAD_CARRY_SQ, TIME_FACTOR, OUTSIDE, SPIKE_COUNT, GRAD_INPUT_MAX, NONFINITE, PROBE_FIELDS };
constexpr double REACH = 0.01;

// What one chunk of samples sums.
struct Sums {
    std::vector<double> constants, probe;

    explicit Sums(const Call &c) : constants(c.out_constants ? c.rows * c.row_size : 0), probe(c.out_probe ? c.steps * PROBE_FIELDS : 0) {}

    void join(const Sums &more) {
        for (size_t i = 0; i < constants.size(); i++) constants[i] += more.constants[i];
        for (size_t i = 0; i < probe.size(); i++)
            probe[i] = i % PROBE_FIELDS == GRAD_INPUT_MAX ? std::max(probe[i], more.probe[i]) : probe[i] + more.probe[i];
    }
};

void backward_block(const Block &b, Sums &sums) {
    const Layer &l = b.l;
    const Call &c = l.c;
    const int n = l.neurons, P = l.padded;
    const int64_t rows = int64_t(b.m) * P, whole = int64_t((b.m + ROWS - 1) / ROWS * ROWS) * P;
    Array<A> by(size_t(STATES * rows)), dx(whole), back(whole), learnt[CONSTANTS + 1];
    for (int p = 0; c.out_constants && p < CONSTANTS; p++)
        if (LEARNS[0][p] && c.constants[p].row >= 0) learnt[p].resize(rows);
    for (int k = 0; k <= STATES; k++)
        if (const A *given = from<A>(c.grad_states, k * b.step() + b.place(0))) b.read(given, k < STATES ? by.data() + k * rows : back.data());
    for (int64_t t = c.steps - 1; t >= 0; t--) {
        V probe[PROBE_FIELDS]{};
        for (int s = 0; s < b.m; s++) {
            const int64_t here = b.place(t) + s * n;
            const T *grad_s = from<T>(c.grad_spikes, here);
            const A *grad_trace = from<A>(c.grad_trace, here), *kept = from<A>(c.kept, here);
            T *out = from<T>(c.out_dx, here);
            vectors(n, [&](auto part, int i, int left) {
                constexpr bool PART = decltype(part)::value;
                const int at = s * P + i;
                const V grad = get<PART>(grad_s + i, left) + load(back.data() + at);
                V of_step[KEPT], carried[STATES];
                for (int k = 0; k < KEEPS[0]; k++) of_step[k] = get<PART>(kept + k * b.window() + i, left);
                for (int k = 0; k < STATES; k++) carried[k] = load(by.data() + k * rows + at);
                if (grad_trace) carried[0] = carried[0] + get<PART>(grad_trace + i, left);
                const auto w = Step::back(l.at(i), of_step, grad, carried);
                for (int k = 0; k < STATES; k++) store(by.data() + k * rows + at, w.states[k]);
                for (int p = 0; p < CONSTANTS; p++)
                    if (LEARNS[0][p] && !learnt[p].empty()) store(learnt[p].data() + at, load(learnt[p].data() + at) + w.learnt[p]);
                store(dx.data() + at, w.x);
                put<PART>(out + i, rounded(w.x), left, false);
                if (!c.out_probe) return;
                const V size = absolute(w.x);
                const Mask finite = size <= std::numeric_limits<A>::max();
                const auto add = [&](Probe field, V value) { probe[field] += only<PART>(value, left); };
                add(GRAD_SPIKE_SQ, grad * grad);
                add(GRAD_INPUT_SQ, w.x * w.x);
                add(GRAD_CARRY_SQ, carried[0] * carried[0]);
                add(TIME_FACTOR, absolute(w.jump));
                add(OUTSIDE, counted(w.unit < A(REACH)));
                add(SPIKE_COUNT, w.spikes);
                add(NONFINITE, counted(~finite));
                const V counts = only<PART>(finite ? size : V{}, left);
                probe[GRAD_INPUT_MAX] = counts > probe[GRAD_INPUT_MAX] ? counts : probe[GRAD_INPUT_MAX];
            });
        }
        if (t || c.out_states) passed_back(l, b.m, dx.data(), back.data());
        if (!c.out_probe) continue;
        double *fields = sums.probe.data() + t * PROBE_FIELDS;
        for (int p = 0; p < PROBE_FIELDS; p++)
            if (p != GRAD_INPUT_MAX) fields[p] += total(probe[p]);
        for (int lane = 0; lane < LANES; lane++) fields[GRAD_INPUT_MAX] = std::max(fields[GRAD_INPUT_MAX], double(probe[GRAD_INPUT_MAX][lane]));
    }
    for (int k = 0; k <= STATES; k++)
        if (A *out = from<A>(c.out_states, k * b.step() + b.place(0))) b.write(k < STATES ? by.data() + k * rows : back.data(), out);
    for (int p = 0; p < CONSTANTS; p++) {
        if (learnt[p].empty()) continue;
        double *row = sums.constants.data() + c.constants[p].row * c.row_size;
        for (int s = 0; s < b.m; s++)
            for (int j = 0; j < n; j++) row[c.row_size > 1 ? j : 0] += double(learnt[p][s * P + j]);
    }
}

// ---- both

// Each chunk of samples, whole blocks of them, on one of the call's threads.
template <class Go>
void chunks(const Call &c, int64_t count, Go go) {
    const int64_t blocks = (c.samples + SAMPLES - 1) / SAMPLES;
    const auto chunk = [&](int64_t k) {
        for (int64_t b = blocks * k / count; b < blocks * (k + 1) / count; b++)
            go(k, b * SAMPLES, int(std::min<int64_t>(SAMPLES, c.samples - b * SAMPLES)));
    };
    if (c.threads == 1) {
        for (int64_t k = 0; k < count; k++) chunk(k);
        return;
    }
#pragma omp parallel for num_threads(c.threads) schedule(dynamic)
    for (int64_t k = 0; k < count; k++) chunk(k);
}

}  // namespace

extern "C" void spiketriton_recurrent(const Call *call, int back) {
    const Call &c = *call;
    const Layer layer(c);
    const int64_t count = chunk_count(c.samples, SAMPLES);
    std::vector<Sums> sums(back ? count : 0, Sums(c));
    chunks(c, count, [&](int64_t k, int64_t first, int m) {
        const Block block{layer, first, m};
        if (back) backward_block(block, sums[k]);
        else forward_block(block);
    });
    if (!back) return;
    Sums joined(c);
    for (const Sums &some : sums) joined.join(some);
    const auto write = [](const std::vector<double> &from_, auto *to) {
        for (size_t i = 0; i < from_.size(); i++) to[i] = std::remove_reference_t<decltype(*to)>(from_[i]);
    };
    write(joined.constants, static_cast<A *>(c.out_constants));
    write(joined.probe, c.out_probe);
}

// Of the fields that this was compiled with, and how large they are.
extern "C" int64_t spiketriton_call_digest() { return CALL_DIGEST; }
extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }
