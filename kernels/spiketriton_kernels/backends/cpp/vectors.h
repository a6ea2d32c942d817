// What the CPU passes share: element types in memory and in registers, surrogate slopes, how work is cut.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

namespace {

enum Shape { FAST_SIGMOID, ATAN, SIGMOID, TRIANGLE, RECTANGLE, GAUSSIAN };

// ---- element types: T in memory, A in registers. One build each, so that a user waits for the one in use only --------

struct bf16 { uint16_t bits; };

#if SPIKETRITON_DTYPE == 0
using Element = float;
using Accumulator = float;
#elif SPIKETRITON_DTYPE == 1
using Element = double;
using Accumulator = double;
#elif SPIKETRITON_DTYPE == 2
using Element = bf16;
using Accumulator = float;
#else
using Element = _Float16;
using Accumulator = float;
#endif

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
#if SPIKETRITON_DTYPE == 3
inline float load(_Float16 v) { return float(v); }
inline void store(_Float16 *p, float v) { *p = _Float16(v); }
#endif

// ---- vectors: a register full of accumulators --------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / int(sizeof(Accumulator));

typedef Accumulator V __attribute__((vector_size(BYTES)));
using Mask = decltype(V{} < V{});  // integers: -1 where true

inline V all(Accumulator x) { return x - V{}; }
inline V absolute(V x) { return (V)((Mask)x & ~(Mask)all(Accumulator(-0.0))); }

// Zeros in memory that begins on a line of the caches: malloc's 16 bytes would let every other vector straddle two. Aligned by
// hand: what libraries align themselves they take from no cache, and a call on a tiny tensor is mostly its arrays. Not a
// std::vector, whose code each place that makes one long would compile again.
__attribute__((noinline)) char *zeros(size_t bytes) {
    char *taken = static_cast<char *>(::operator new(bytes + 64));
    char *line = taken + 64 - reinterpret_cast<uintptr_t>(taken) % 64;
    line[-1] = char(line - taken);
    return static_cast<char *>(std::memset(line, 0, bytes));
}

template <class X>
class Array {
    X *first = nullptr;
    size_t count = 0;

public:
    Array() = default;
    explicit Array(size_t n) { resize(n); }
    Array(const Array &) = delete;
    ~Array() {
        if (first) ::operator delete((char *)first - ((char *)first)[-1]);
    }
    void resize(size_t n) {  // of one that is empty
        if (n) first = reinterpret_cast<X *>(zeros(n * sizeof(X)));
        count = n;
    }
    X *data() const { return first; }
    X *begin() const { return first; }
    X *end() const { return first + count; }
    size_t size() const { return count; }
    bool empty() const { return !count; }
    X &operator[](size_t i) const { return first[i]; }
};

// LANES elements of memory as accumulators, and back.
typedef Accumulator Line __attribute__((vector_size(BYTES), aligned(alignof(Accumulator))));  // a vector anywhere
inline V load(const Accumulator *p) { return *(const Line *)p; }
inline void store(Accumulator *p, V v) { *(Line *)p = v; }

#if SPIKETRITON_DTYPE >= 2
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));

// The low half of each word, which has nothing above it. Compilers take twice the instructions for a conversion of vectors, and
// a fifth of a second to read the header of intrinsics: instructions by their names, then.
#ifdef __clang__  // which of both takes memory always
#define SPIKETRITON_READ "v"
#else
#define SPIKETRITON_READ "vm"
#endif
#ifdef __AVX2__
inline Words words(Halves h) {
    Words w;
    asm("vpmovzxwd %1, %0" : "=v"(w) : SPIKETRITON_READ(h));
    return w;
}
inline Halves halves(Words w) {
    Halves h;
#ifdef __AVX512F__
    asm("vpmovdw %1, %0" : "=v"(h) : "v"(w));
#else
    asm("vextracti128 $1, %1, %0" : "=x"(h) : "x"(w));
    asm("vpackusdw %0, %x1, %0" : "+x"(h) : "x"(w));
#endif
    return h;
}
#else
inline Words words(Halves h) { return __builtin_convertvector(h, Words); }
inline Halves halves(Words w) { return __builtin_convertvector(w, Halves); }
#endif

#if SPIKETRITON_DTYPE == 2
inline V widen(Halves h) { return (V)(words(h) << 16); }
inline Halves narrow(V v) {
    const Words word = (Words)v, rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    return halves(v == v ? rounded : Words{} + 0x7fc0u);
}
#elif defined(__F16C__)
inline V widen(Halves h) {
    V v;
    asm("vcvtph2ps %1, %0" : "=v"(v) : SPIKETRITON_READ(h));
    return v;
}
inline Halves narrow(V v) {  // to the nearest
    Halves h;
    asm("vcvtps2ph $8, %1, %0" : "=v"(h) : "v"(v));
    return h;
}
#else
inline V widen(Halves h) {
    _Float16 in[LANES];
    V out;
    std::memcpy(in, &h, sizeof in);
    for (int i = 0; i < LANES; i++) out[i] = float(in[i]);
    return out;
}
inline Halves narrow(V v) {
    _Float16 out[LANES];
    Halves h;
    for (int i = 0; i < LANES; i++) out[i] = _Float16(v[i]);
    std::memcpy(&h, out, sizeof h);
    return h;
}
#endif

inline V load(const Element *p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return widen(h);
}
inline void store(Element *p, Halves h) { std::memcpy(p, &h, sizeof h); }
inline void store(Element *p, V v) { store(p, narrow(v)); }
#endif

// What memory holds of a vector, and of spikes, which are 0 or 1 and need no rounding.
#if SPIKETRITON_DTYPE >= 2
inline Halves rounded(V v) { return narrow(v); }
inline Halves spikes_of(Mask fired) { return halves((Words)fired & (SPIKETRITON_DTYPE == 2 ? 0x3f80u : 0x3c00u)); }
#else
inline V rounded(V v) { return v; }
inline V spikes_of(Mask fired) { return fired ? all(Accumulator(1)) : V{}; }
#endif
using Rounded = decltype(rounded(V{}));

// The first n of LANES elements; the rest reads as 0 and is not written.
template <class T>
inline V load(const T *p, int n) {
    T line[LANES] = {};
    std::memcpy(line, p, n * sizeof(T));
    return load((const T *)line);
}
inline void store(Element *p, Rounded v, int n) { std::memcpy(p, &v, n * sizeof(Element)); }

// Past the caches, to an address that is a multiple of what is written.
inline void stream(Element *p, Rounded v) {
#ifdef __AVX__
    asm("vmovntps %1, %0" : "=m"(*(char (*)[sizeof v])p) : "v"(v));
#else
    store(p, v);
#endif
}

inline void finish_stream() {
#ifdef __AVX__
    __builtin_ia32_sfence();
#endif
}

// A vector of memory: PART of it where a block ends, m elements then.
template <bool PART, class T>
inline V get(const T *p, int m) {
    if constexpr (PART) return load(p, m);
    return load(p);
}

template <bool PART>
inline void put(Element *p, Rounded v, int m, bool past) {
    if constexpr (PART) store(p, v, m);
    else if (past) stream(p, v);
    else store(p, v);
}

// Rows of a time window lie far apart, and hardware prefetchers restart on each: ask early for what is read, or written.
template <class T>
inline void prefetch(const T *p, int n) {
    for (int i = 0; i < n * int(sizeof(T)); i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

inline void prefetch_for_writing(const void *p) { __builtin_prefetch(p, 1, 2); }

// The distance to the row that comes AHEAD rows later: of this block, or of the next one, which begins `size` elements on.
constexpr int64_t AHEAD = 2;
inline int64_t later(int64_t t, int64_t steps, int64_t stride, int size) {
    return ((t + AHEAD) % steps - t) * stride + (t + AHEAD) / steps * size;
}
inline int64_t earlier(int64_t t, int64_t steps, int64_t stride, int size) {  // the same on the way back
    const int64_t done = steps - 1 - t;
    return (done - (done + AHEAD) % steps) * stride + (done + AHEAD) / steps * size;
}

// A row, vector by vector, and what is left of it.
template <class Cell>
inline void vectors(int n, Cell cell) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) cell(std::false_type{}, i, LANES);
    if (i < n) cell(std::true_type{}, i, n - i);
}

// ---- surrogate ----------------------------------------------------------------------------------------------------

#if SPIKETRITON_DTYPE != 1
// exp of what is left of a float beside a whole number of ln 2 (Cephes expf, about 1 ulp).
inline V exp_of_rest(V r) {
    V p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}
#endif

// exp for x <= 0; of floats written out.
inline V exp_negative(V x) {
#if SPIKETRITON_DTYPE == 1
    for (int i = 0; i < LANES; i++) x[i] = std::exp(x[i]);
    return x;
#else
    x = x < -87.0f ? all(-87.0f) : x;
    // A float of 1.5 * 2^23 has no room for a fraction: the sum rounds, and its last bits are the whole number.
    const V shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
    const V r = x - n * 0.693359375f - n * -2.12194440e-4f;
    return exp_of_rest(r) * (V)(((Mask)shifted + 127) << 23);
#endif
}

// phi(u / width). The rectangle's edge is compared, not divided, so that ties fall as in the reference.
template <int SHAPE>
inline V phi(V u, V width, V inverse_width) {
    using A = Accumulator;
    const V z = u * inverse_width, a = absolute(z);
    if constexpr (SHAPE == FAST_SIGMOID) { const V r = A(1) / (A(1) + a); return r * r; }
    if constexpr (SHAPE == ATAN) return A(1) / (A(1) + z * z);
    if constexpr (SHAPE == SIGMOID) { const V e = exp_negative(-a), r = A(1) / (A(1) + e); return A(4) * e * r * r; }
    if constexpr (SHAPE == TRIANGLE) { const V left = A(1) - a; return left < 0 ? V{} : left; }  // in this order a NaN stays one
    if constexpr (SHAPE == RECTANGLE) return absolute(u) < width ? all(A(1)) : V{};
    return exp_negative(-z * z / A(2));
}

// The surrogate's primitive.
inline Accumulator primitive(Accumulator z, int shape) {
    using A = Accumulator;
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

// Pieces of work, as many for any number of threads, so that sums do not depend on it.
inline int64_t chunk_count(int64_t items, int64_t least) { return std::max<int64_t>(1, std::min<int64_t>(64, items / least)); }

}  // namespace
