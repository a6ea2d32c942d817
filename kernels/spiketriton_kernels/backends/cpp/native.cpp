// The CPU pass: the whole time window of a block of neurons at a time, states in cache, one read and one write of
// memory per element and step. Same order of operations as the PyTorch reference, no contraction into fused
// multiply-adds (-ffp-contract=off), so spikes agree bit for bit. Sums run over chunks fixed by size, not by threads,
// and are joined in order: bit-equal from run to run and for any number of threads.

#include "norm.h"
#include "statistics.h"

namespace {

// One bit a spike, in memory order: x -> spikes as bytes, and back.
void pack(const Call &c) {
    const T *x = (const T *)c.x;
    uint8_t *bits = (uint8_t *)c.spikes;
    const int64_t n = c.neurons, bytes = (n + 7) / 8;
    on_threads(c, [&] { share(c, bytes, [&](int64_t j) {
        unsigned byte = 0;
        const int m = int(std::min<int64_t>(8, n - 8 * j));
        for (int i = 0; i < m; i++) byte |= unsigned(load(x[8 * j + i]) != 0) << i;
        bits[j] = uint8_t(byte);
    }); });
}

void unpack(const Call &c) {
    const uint8_t *bits = (const uint8_t *)c.x;
    T *out = (T *)c.spikes;
    const int64_t n = c.neurons, bytes = (n + 7) / 8;
    on_threads(c, [&] { share(c, bytes, [&](int64_t j) {
        const int m = int(std::min<int64_t>(8, n - 8 * j));
        for (int i = 0; i < m; i++) store(out + 8 * j + i, A(bits[j] >> i & 1));
    }); });
}

enum Pass { FORWARD, BACKWARD, STATISTICS, PACK, UNPACK, NORMALISE, NORMALISE_BACK };

void run(const Call &c, int pass) {
    switch (pass) {
        case FORWARD:
            if (c.measures) statistics(c);
            return forward(c);
        case BACKWARD: return backward(c);
        case STATISTICS: return statistics(c);
        case PACK: return pack(c);
        case UNPACK: return unpack(c);
        case NORMALISE: return normalise(c);
        default: return normalise_back(c);
    }
}

}  // namespace

extern "C" void spiketriton_run(const Call *call, int pass) { run(*call, pass); }

// Of the fields that this was compiled with, and how large they are.
extern "C" int64_t spiketriton_call_digest() { return CALL_DIGEST; }
extern "C" int spiketriton_call_size() { return int(sizeof(Call)); }

// Neurons in a vector.
extern "C" int spiketriton_lanes() { return LANES; }

// Whether spikes are left as bits where they are asked for: by vectors of 16 (`leave_bits`).
#if defined(__AVX512DQ__) && SPIKETRITON_DTYPE != 1
extern "C" int spiketriton_gives_bits() { return WIDE == 16; }
#else
extern "C" int spiketriton_gives_bits() { return 0; }
#endif

// Where a function of PyTorch's is, one of arrays or of vectors; and it by itself, of n, a multiple of WIDE, for a comparison,
// which only a step that calls one asks for.
extern "C" void spiketriton_find(int function, void *of_arrays, void *of_vectors) { found[function] = {(OfArrays)of_arrays, (OfVectors)of_vectors}; }

template <int F = printed::CALLS ? 0 : FUNCTIONS>
void apply(int function, const A *x, A *y, int64_t n) {
    if constexpr (F < FUNCTIONS) {
        if (F != function) return apply<F + 1>(function, x, y, n);
        for (int64_t i = 0; i < n; i += WIDE) stores(y + i, of_library<Function(F)>(loads<Vs>(x + i)));
    }
}
extern "C" void spiketriton_apply(int function, const A *x, A *y, int64_t n) { apply(function, x, y, n); }
