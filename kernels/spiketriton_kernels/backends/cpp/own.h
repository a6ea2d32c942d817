// A step of one's own: the functions that what is printed of it calls, and that print (SPIKETRITON_STEP, see steps/).

#pragma once

#include "vectors.h"

namespace {

using A = Accumulator;

inline V number(double x) { return all(A(x)); }

// A function of the C++ library, which takes one number at a time.
template <class Of>
inline V lane_by_lane(V x, Of of) {
    for (int i = 0; i < LANES; i++) x[i] = of(A(x[i]));
    return x;
}

inline V exponential(V x) {
#if SPIKETRITON_DTYPE == 1
    return exp_negative(x);
#else
    // as exp_negative, with a whole number that 2 takes in two steps, because 2^128 is none
    const V y = x > 89.0f ? all(89.0f) : x < -104.0f ? all(-104.0f) : x;
    const V shifted = y * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
    const V r = y - n * 0.693359375f - n * -2.12194440e-4f;
    const Mask whole = (Mask)shifted - (Mask)all(12582912.0f), half = whole >> 1;
    const V e = exp_of_rest(r) * (V)((half + 127) << 23) * (V)((whole - half + 127) << 23);
    return x == x ? e : x;
#endif
}

// As PyTorch's, a NaN stays one.
inline V maximum(V a, V b) { return (Mask)(a > b) | (Mask)(a != a) ? a : b; }
inline V minimum(V a, V b) { return (Mask)(a < b) | (Mask)(a != a) ? a : b; }
inline V sign(V x) { return x > 0 ? all(A(1)) : x < 0 ? all(A(-1)) : x * A(0); }

}  // namespace
