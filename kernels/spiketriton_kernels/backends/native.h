// What the CPU passes share: element types in memory and in registers, surrogate slopes, how work is cut.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

enum Reset { SOFT, HARD, NONE };
enum Shape { FAST_SIGMOID, ATAN, SIGMOID, TRIANGLE, RECTANGLE, GAUSSIAN };

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
#if SPIKETRITON_DTYPE == 3
inline float load(_Float16 v) { return float(v); }
inline void store(_Float16 *p, float v) { *p = _Float16(v); }
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
    if constexpr (SHAPE == TRIANGLE) return std::max(A(1) - a, A(0));  // in this order a NaN stays one
    if constexpr (SHAPE == RECTANGLE) return std::fabs(u) < width ? A(1) : A(0);
    return exp_negative(-z * z / A(2));
}

// Pieces of work, as many for any number of threads, so that sums do not depend on it.
inline int64_t chunk_count(int64_t items, int64_t least) { return std::max<int64_t>(1, std::min<int64_t>(64, items / least)); }

}  // namespace

// One build per element type, so that a user waits for the one in use only.
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
