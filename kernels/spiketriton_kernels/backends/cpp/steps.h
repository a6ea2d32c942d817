// The neurons: what a step makes of its current and the states before it, and the gradient's way back through it, printed from
// its definition in PyTorch (SPIKETRITON_STEP, see steps/), and the functions that it calls. A call is printed, too
// (SPIKETRITON_CALL, see call.py).

#pragma once

#include <tuple>

#include "group.h"

namespace {

using A = Accumulator;

// A function of the C++ library, which takes one number at a time.
template <class Of>
inline V lane_by_lane(V x, Of of) {
    for (int i = 0; i < LANES; i++) x[i] = of(A(x[i]));
    return x;
}

// ---- functions of PyTorch's own libraries, so that spikes are those of the loop to the bit

// Of arrays (Intel's VML), which take tens of nanoseconds a call, or of vectors (SLEEF); null where there is none that gives
// PyTorch's numbers. `native.py` looks for them. SIGMOID_EXP is the exponential inside PyTorch's sigmoid, which is another.
enum Function { EXP, LOG, TANH, SIN, COS, ERF, EXPM1, LOG1P, SIGMOID_EXP, FUNCTIONS };
using OfArrays = void (*)(int, const A *, A *, int64_t);
using OfVectors = V (*)(V);
struct Found { OfArrays of_arrays; OfVectors of_vectors; } found[FUNCTIONS];
constexpr int64_t MODE_OF_VML = 0x140102;  // VML_HA | VML_FTZDAZ_OFF | VML_ERRMODE_IGNORE, as PyTorch has it

template <Function F, class Own>
inline V called(V x, Own own) {
    if (const auto of = found[F].of_vectors) return of(x);
    if (const auto of = found[F].of_arrays) {
        alignas(BYTES) A in[LANES], out[LANES];
        std::memcpy(in, &x, sizeof in);
        of(LANES, in, out, MODE_OF_VML);
        std::memcpy(&x, out, sizeof out);
        return x;
    }
    return own(x);
}

inline V own_exponential(V x) {
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

template <Function F>
inline V of_library(V x) {
    return called<F>(x, [](V y) {
        if constexpr (F == EXP || F == SIGMOID_EXP) return own_exponential(y);
        return lane_by_lane(y, [](A z) {
            switch (F) {
                case LOG: return std::log(z);
                case TANH: return std::tanh(z);
                case SIN: return std::sin(z);
                case COS: return std::cos(z);
                case ERF: return std::erf(z);
                case EXPM1: return std::expm1(z);
                default: return std::log1p(z);
            }
        });
    });
}

#if SPIKETRITON_GROUP > 1
// Of a group at once.
template <Function F>
inline Group<V> of_library(const Group<V> &x) {
    if (const auto of = found[F].of_arrays) {
        Group<V> out;
        of(WIDE, (const A *)&x, (A *)&out, MODE_OF_VML);
        return out;
    }
    return each([](V v) { return of_library<F>(v); }, x);
}
#endif

inline V sigmoid(V x) { return A(1) / (A(1) + of_library<SIGMOID_EXP>(-x)); }

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
inline V chosen(Mask yes, V a, V b) { return yes ? a : b; }

inline Rounded written(Mask fired) { return spikes_of(fired); }
inline Rounded written(V spikes) { return rounded(spikes); }

#if SPIKETRITON_GROUP > 1
// The same of groups.
#define SPIKETRITON_OF_GROUPS(function) \
    template <class... X> \
    inline auto function(const Group<X> &...x) { return each([](auto... v) { return function(v...); }, x...); }
SPIKETRITON_OF_GROUPS(absolute)
SPIKETRITON_OF_GROUPS(sigmoid)
SPIKETRITON_OF_GROUPS(counted)
SPIKETRITON_OF_GROUPS(nearest)
SPIKETRITON_OF_GROUPS(nearest_small)
SPIKETRITON_OF_GROUPS(phi_of)
SPIKETRITON_OF_GROUPS(primitive_of)
SPIKETRITON_OF_GROUPS(maximum)
SPIKETRITON_OF_GROUPS(minimum)
SPIKETRITON_OF_GROUPS(sign)
SPIKETRITON_OF_GROUPS(chosen)
SPIKETRITON_OF_GROUPS(written)
template <int SHAPE> inline Group<V> phi(const Group<V> &z, const Group<V> &width, const Group<V> &inverse_width) {
    return each([](V u, V w, V i) { return phi<SHAPE>(u, w, i); }, z, width, inverse_width);
}
template <class Of> inline Group<V> lane_by_lane(const Group<V> &x, Of of) { return each([&](V v) { return lane_by_lane(v, of); }, x); }
#endif

// What a step computes on.
namespace printed {

#if SPIKETRITON_GROUP > 1
using V = Group<::V>;
using Mask = Group<::Mask>;
#else
using V = ::V;
using Mask = ::Mask;
#endif
inline V number(double x) { return all_of<V>(A(x)); }

#include SPIKETRITON_STEP

}  // namespace printed

using printed::CONSTANTS, printed::FORMS, printed::FORTH_AS, printed::KEEPS, printed::KEPT, printed::LEARNING, printed::LEARNS,
    printed::REPLAY_AS, printed::STATES, printed::VARIES, printed::WAITS, printed::WHOLE;
using Vs = printed::V;

#include SPIKETRITON_CALL

template <int FORM> using StepAt = std::tuple_element_t<FORM, printed::Steps>;

}  // namespace
