// How the neurons of a call are cut: chunks for the threads, blocks inside them, and what the constants are there.
//
// A time step is one gapless block of `neurons` elements; the element at offset n has channel (n / inner) % channels.

#pragma once

#include "steps.h"

namespace {

using T = Element;

inline const A *reals(const void *of) { return static_cast<const A *>(of); }

// The elements of a tensor from `start` on; null where there is none.
template <class X>
X *from(const void *tensor, int64_t start) { return tensor ? static_cast<X *>(const_cast<void *>(tensor)) + start : nullptr; }

// How the neurons of a time step are cut. A block's window (h of every step) stays in the second-level cache, and its rows
// are long runs of memory: as short as lines, with one from each step in turn, they come at half the speed. Of several such
// windows blocks are smaller. With channels innermost, blocks hold whole runs of channels, so that every
// block sees the same per-channel values.
struct Cut {
    int size;
    bool aligned;
    int64_t chunks, unit;

    explicit Cut(const Call &c, int windows = 0) {
        const int64_t most = windows > 2 && (c.inner > 1 || c.channels <= 256) ? 256 : 1024;
        size = int(std::max<int64_t>(64, std::min<int64_t>(most, 16384 / c.steps / 64 * 64)));
        aligned = c.inner == 1 && c.channels <= size;
        if (aligned) size = int(size / c.channels * c.channels);
        unit = aligned ? c.channels : 64;
        chunks = chunk_count(c.neurons, size);
        size = int(std::min<int64_t>(size, c.neurons));  // no more memory than there are neurons
    }
    int64_t edge(const Call &c, int64_t k) const { return k == chunks ? c.neurons : c.neurons / unit * k / chunks * unit; }
    // What arrays of a block hold: whole vectors, or groups, so that only memory has ragged ends.
    int padded() const { return (size + WIDE - 1) / WIDE * WIDE; }
};

// The elements [start, start + n) of a time step by runs, which lie in a row of channels, or in one channel.
template <class Go>
void runs(const Call &c, int64_t start, int n, Go go) {
    const bool rows = c.inner == 1;
    int64_t channel = start / c.inner % c.channels, left = rows ? c.channels - channel : c.inner - start % c.inner;
    for (int i = 0; i < n;) {
        const int length = int(std::min<int64_t>(n - i, left));
        go(i, channel, length);
        i += length;
        left = rows ? c.channels : c.inner;
        channel = rows || channel + 1 == c.channels ? 0 : channel + 1;
    }
}

// Per-channel values spread over elements; up to a vector past them is overwritten, too.
void spread(const Call &c, int64_t start, int n, const A *values, A *out) {
    runs(c, start, n, [&](int i, int64_t channel, int length) {
        if (c.inner == 1) return void(std::memcpy(out + i, values + channel, length * sizeof(A)));
        const V value = all(values[channel]);
        for (int j = 0; j < length; j += LANES) store(out + i + j, value);
    });
}

// Four of a kind join in A: as close as their own rounding, for a third of the conversions.
__attribute__((always_inline)) inline double total(const A *values, int n) {
    typedef double Wide __attribute__((vector_size(BYTES)));
    constexpr int COUNT = BYTES / int(sizeof(double));
    typedef A Narrow __attribute__((vector_size(COUNT * sizeof(A)), aligned(alignof(A))));
    const auto at = [&](int i) { return *(const Narrow *)(values + i); };
    Wide sums{};
    int i = 0;
    for (; i + 4 * COUNT <= n; i += 4 * COUNT)
        sums += __builtin_convertvector((at(i) + at(i + COUNT)) + (at(i + 2 * COUNT) + at(i + 3 * COUNT)), Wide);
    for (; i + COUNT <= n; i += COUNT) sums += __builtin_convertvector(at(i), Wide);
    double sum = 0;
    for (int l = 0; l < COUNT; l++) sum += sums[l];
    for (; i < n; i++) sum += double(values[i]);
    return sum;
}

// The reverse of `spread`: elements added to their channels' sums, or to that of the one that is theirs.
void gather(const Call &c, int64_t one, int64_t start, int n, const A *values, double *sums) {
    if (one >= 0) return void(sums[one] += total(values, n));
    runs(c, start, n, [&](int i, int64_t channel, int length) {
        if (c.inner > 1) sums[channel] += total(values + i, length);
        else for (int j = 0; j < length; j++) sums[channel + j] += double(values[i + j]);
    });
}

// What the norm makes of its statistics, channel by channel: current = (x - mean) * scale + bias, and on the way back
// dy = scale * dz + (slope * (x - mean) + offset), slope and offset being 0 where the statistics were given.
enum OfNorm { MEAN, SCALE, BIAS, SLOPE, OFFSET, RSTD, AFFINE, OF_NORM };

struct Norm {
    Array<A> of[OF_NORM];

    explicit Norm(const Call &c) {
        if (!c.mean) return;
        for (int v = 0; v < (c.grad_spikes ? OF_NORM : SLOPE); v++) of[v].resize(size_t(c.channels));
        for (int64_t k = 0; k < c.channels; k++) {
            const A rstd = A(1) / std::sqrt(reals(c.var)[k] + A(c.eps)), affine = (c.weight ? reals(c.weight)[k] : A(1)) * A(c.bn_scale);
            of[MEAN][k] = reals(c.mean)[k];
            of[SCALE][k] = affine * rstd;
            of[BIAS][k] = c.bias ? reals(c.bias)[k] : A(0);
            if (!c.grad_spikes) continue;
            of[RSTD][k] = rstd;
            of[AFFINE][k] = affine;
            if (!c.sums) continue;
            of[SLOPE][k] = -of[SCALE][k] * rstd * (reals(c.sums)[c.channels + k] / A(c.count));
            of[OFFSET][k] = -of[SCALE][k] * (reals(c.sums)[k] / A(c.count));
        }
    }
};

// Whether a constant differs between neurons: one that all channels learn from the same start, or share, does not.
inline bool differs(const Constant &of) {
    const A *values = reals(of.values);
    return values && of.size > 1 && !std::equal(values + 1, values + of.size, values);
}

// One layer's constants, spread over the block at hand.
struct Block {
    const Call &c;
    const Norm &norm;
    Array<A> constants[CONSTANTS + 1];
    Array<A> of[OF_NORM];
    int size;
    bool aligned;
    bool varies[CONSTANTS + 1] = {}, uniform = true;  // of each constant whether it differs between neurons; whether none does
    int64_t channel = -1;  // of the block at hand, -1: several
    int64_t filled = -2;   // the channel that all values are of, -1: several; -2: there are no values yet

    Block(const Call &call, const Norm &norm_, const Cut &cut)
        : c(call), norm(norm_), size(cut.size), aligned(cut.aligned) {
        for (int p = 0; p < CONSTANTS; p++)
            if (differs(c.constants[p])) varies[p] = true, uniform = false;
        const size_t padded = size_t(cut.padded() + LANES);  // for `spread`
        for (int p = 0; p < CONSTANTS; p++) constants[p].resize(padded);
        for (int v = 0; c.mean && v < OF_NORM; v++)
            if (v <= BIAS || (v <= OFFSET ? c.out_dy : c.out_step_gain)) of[v].resize(padded);
    }

    // Whether each constant is one number in the block at hand.
    bool one() const { return uniform || channel >= 0; }

    // Values for the block that begins at start. Those of the block before still hold where blocks are aligned, where nothing
    // depends on the channel, or where both lie in the same one.
    void at(int64_t start) {
        const int64_t run = start / c.inner;
        channel = (start + size - 1) / c.inner == run ? run % c.channels : -1;
        const bool first = filled == -2;
        if (!first && (aligned || (uniform && !c.mean) || (channel >= 0 && channel == filled))) return;
        filled = channel;
        for (int p = 0; p < CONSTANTS; p++) {
            if (!(first || varies[p])) continue;
            const A *values = reals(c.constants[p].values);
            if (varies[p] && channel < 0) spread(c, start, size, values, constants[p].data());
            else std::fill(constants[p].begin(), constants[p].end(), values ? values[varies[p] ? channel : 0] : A(c.constants[p].number));
        }
        for (int v = 0; v < OF_NORM; v++)
            if (of[v].empty()) continue;
            else if (channel < 0) spread(c, start, size, norm.of[v].data(), of[v].data());
            else std::fill(of[v].begin(), of[v].end(), norm.of[v][channel]);
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

// The constants of a block's neurons, or of the ONE that all are, which stay in registers: a load less for each vector.
template <int FORM, bool ONE>
struct Rules {
    using Own = typename StepAt<FORM>::Constants;
    const Block &b;
    const Own first;

    explicit Rules(const Block &b_) : b(b_), first(StepAt<FORM>::of([&](int p) { return ONE ? loads<Vs>(b_.constants[p].data()) : Vs{}; })) {}

    decltype(auto) at(int i) const {
        if constexpr (ONE) return (first);
        else return StepAt<FORM>::of([&](int p) { return loads<Vs>(b.constants[p].data() + i); });
    }
};

// From a number of the call to a compile-time constant.
template <int N> using Number = std::integral_constant<int, N>;

template <class Go>
void with(bool yes, Go go) {
    if (yes) go(std::true_type{});
    else go(std::false_type{});
}

// Whether each constant is one number in the block at hand; asked only where a constant may be a tensor.
template <int FORM, class Go>
void with_one(const Block &b, Go go) {
    if constexpr (VARIES[FORM]) with(b.one(), go);
    else go(std::true_type{});
}

// The step of the call. AS: in place of each the first one that does the same.
template <const int *AS = nullptr, int N = 0, class Go>
void with_form(int number, Go go) {
    if constexpr (N < FORMS) {
        if constexpr (!AS || AS[N] == N)
            if ((AS ? AS[number] : number) == N) return go(Number<N>{});
        with_form<AS, N + 1>(number, go);
    }
}

// A block of the call: its chunk, its number there and whether it is the last one, its first neuron and how many there are.
struct Place {
    int64_t chunk, number;
    bool last;
    int64_t start;
    int n;
};

// On each of the call's threads. One alone needs no team, which takes as long as a tiny call's arithmetic.
template <class Work>
void on_threads(const Call &c, Work work) {
    if (c.threads == 1) return work();
#pragma omp parallel num_threads(c.threads)
    work();
}

// A thread's share of the pieces 0 to n - 1.
template <class Piece>
void share(const Call &c, int64_t n, Piece piece) {
    if (c.threads == 1) {
        for (int64_t k = 0; k < n; k++) piece(k);
        return;
    }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < n; k++) piece(k);
}

// Every block, chunk by chunk, on the call's threads: each begins with what it needs, which then visits its blocks. A call's
// one thread and a team share the code, or a first call would wait for it twice.
template <class Begin>
void visit_blocks(const Call &c, const Norm &norm, const Cut &cut, Begin begin) {
    on_threads(c, [&]() __attribute__((noinline)) {
        Block b(c, norm, cut);
        auto visit = begin(b);
        share(c, cut.chunks, [&](int64_t k) __attribute__((noinline)) {
            const int64_t end = cut.edge(c, k + 1);
            int64_t number = 0;
            for (int64_t start = cut.edge(c, k); start < end; start += cut.size) {
                b.at(start);
                visit(Place{k, number++, start + cut.size >= end, start, int(std::min<int64_t>(cut.size, end - start))});
            }
        });
        finish_stream();
    });
}

}  // namespace
