// The neurons: what a step makes of its current and the states before it, and the gradient's way back through it, printed from
// its definition in PyTorch (SPIKETRITON_STEP, see steps/), and the functions that it calls. A call is printed, too
// (SPIKETRITON_CALL, see call.py).

#pragma once

#include <tuple>

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

inline V sigmoid(V x) {
    const V e = exp_negative(-absolute(x)), r = A(1) / (A(1) + e);
    return x < 0 ? e * r : r;
}

inline V counted(Mask fired) { return fired ? all(A(1)) : V{}; }
inline V counted(V spikes) { return spikes; }

// The nearest whole number, ties to even; a NaN stays one.
inline V nearest(V x) {
    const A whole = A(sizeof(A) == 4 ? int64_t(1) << 23 : int64_t(1) << 52);  // from here on there are no fractions
    const V a = absolute(x), n = (a + whole) - whole;
    return a < whole ? (V)((Mask)n | ((Mask)x & (Mask)all(A(-0.0)))) : x;
}

// The same of small numbers, of which a sum has no room for a fraction.
inline V nearest_small(V x) {
    const A whole = A(3) * A(sizeof(A) == 4 ? int64_t(1) << 22 : int64_t(1) << 51);
    return (x + whole) - whole;
}

// phi and its primitive of the surrogate with this number, where one step is compiled for all.
__attribute__((noinline)) V phi_of(V shape, V z, V u, V width) {
    const V one = all(A(1));
    switch (int(shape[0])) {
        case FAST_SIGMOID: return phi<FAST_SIGMOID>(z, one, one);
        case ATAN: return phi<ATAN>(z, one, one);
        case SIGMOID: return phi<SIGMOID>(z, one, one);
        case TRIANGLE: return phi<TRIANGLE>(z, one, one);
        case RECTANGLE: return phi<RECTANGLE>(u, width, one);
        default: return phi<GAUSSIAN>(z, one, one);
    }
}
inline V primitive_of(V shape, V z) { return lane_by_lane(z, [&](A x) { return primitive(x, int(shape[0])); }); }

// As PyTorch's, a NaN stays one.
inline V maximum(V a, V b) { return (Mask)(a > b) | (Mask)(a != a) ? a : b; }
inline V minimum(V a, V b) { return (Mask)(a < b) | (Mask)(a != a) ? a : b; }
inline V sign(V x) { return x > 0 ? all(A(1)) : x < 0 ? all(A(-1)) : x * A(0); }

#include SPIKETRITON_STEP
#include SPIKETRITON_CALL

template <int FORM> using StepAt = std::tuple_element_t<FORM, Steps>;

inline Rounded written(Mask fired) { return spikes_of(fired); }
inline Rounded written(V spikes) { return rounded(spikes); }

}  // namespace
