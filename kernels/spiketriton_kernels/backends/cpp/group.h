// What a step computes on at a time: a vector, or a group of them, so that a function of arrays is called for many neurons at once.

#pragma once

#include "vectors.h"

#ifndef SPIKETRITON_GROUP
#define SPIKETRITON_GROUP 1
#endif

namespace {

constexpr int WIDE = SPIKETRITON_GROUP * LANES;  // neurons at a time

#if SPIKETRITON_GROUP > 1
// Written out in all that follows: what a loop indexes, compilers keep in memory.
static_assert(SPIKETRITON_GROUP == 4);
template <class X>
struct Group {
    X of[SPIKETRITON_GROUP];
    auto &operator+=(const Group &more);
};

template <class X> inline const X &member(const Group<X> &group, int k) { return group.of[k]; }
inline Accumulator member(Accumulator same, int) { return same; }

// What a function of vectors makes of each; numbers are the same for all.
template <class Of, class... X>
inline auto each(Of of, const X &...x) {
    return Group<decltype(of(member(x, 0)...))>{{of(member(x, 0)...), of(member(x, 1)...), of(member(x, 2)...), of(member(x, 3)...)}};
}

#define SPIKETRITON_OF_TWO(sign) \
    template <class X> inline auto operator sign(const Group<X> &a, const Group<X> &b) { return each([](X u, X v) { return u sign v; }, a, b); } \
    inline auto operator sign(const Group<V> &a, Accumulator b) { return each([](V u, Accumulator v) { return u sign v; }, a, b); } \
    inline auto operator sign(Accumulator a, const Group<V> &b) { return each([](Accumulator u, V v) { return u sign v; }, a, b); }
SPIKETRITON_OF_TWO(+)
SPIKETRITON_OF_TWO(-)
SPIKETRITON_OF_TWO(*)
SPIKETRITON_OF_TWO(/)
SPIKETRITON_OF_TWO(<)
SPIKETRITON_OF_TWO(<=)
SPIKETRITON_OF_TWO(>)
SPIKETRITON_OF_TWO(>=)
SPIKETRITON_OF_TWO(==)
SPIKETRITON_OF_TWO(!=)
inline auto operator&(const Group<Mask> &a, const Group<Mask> &b) { return each([](Mask u, Mask v) { return u & v; }, a, b); }
inline auto operator|(const Group<Mask> &a, const Group<Mask> &b) { return each([](Mask u, Mask v) { return u | v; }, a, b); }
inline auto operator~(const Group<Mask> &a) { return each([](Mask u) { return ~u; }, a); }
inline auto operator-(const Group<V> &a) { return each([](V u) { return -u; }, a); }
template <class X> auto &Group<X>::operator+=(const Group &more) { return *this = *this + more; }
inline Group<Rounded> rounded(const Group<V> &x) { return each([](V v) { return rounded(v); }, x); }
#endif

// How many of n belong to vector k of a group.
inline int share_of(int n, int k) { return std::max(0, std::min(LANES, n - k * LANES)); }

template <class W>
inline W all_of(Accumulator x) {
    if constexpr (std::is_same_v<W, V>) return all(x);
    else return W{{all(x), all(x), all(x), all(x)}};
}

// A vector or a group of memory, as `get` and `put` have one: PART of it where a block ends, n elements then.
template <class W, bool PART, class T>
inline W gets(const T *p, int n) {
    if constexpr (std::is_same_v<W, V>) return get<PART>(p, n);
    else {
        const auto at = [&](int k) {
            const int m = PART ? share_of(n, k) : LANES;
            return m == LANES ? load(p + k * LANES) : m ? load(p + k * LANES, m) : V{};
        };
        return W{{at(0), at(1), at(2), at(3)}};
    }
}

template <class W> inline W loads(const Accumulator *p) { return gets<W, false>(p, WIDE); }

template <bool PART>
inline void puts(Element *p, Rounded v, int n, bool past) { put<PART>(p, v, n, past); }

inline void stores(Accumulator *p, V v) { store(p, v); }

#if SPIKETRITON_GROUP > 1
template <bool PART>
inline void puts(Element *p, const Group<Rounded> &v, int n, bool past) {
    const auto to = [&](int k, Rounded part) {
        const int m = PART ? share_of(n, k) : LANES;
        if (m == LANES) put<false>(p + k * LANES, part, m, past);
        else if (m) put<true>(p + k * LANES, part, m, past);
    };
    to(0, v.of[0]), to(1, v.of[1]), to(2, v.of[2]), to(3, v.of[3]);
}

inline void stores(Accumulator *p, const Group<V> &x) {
    store(p, x.of[0]), store(p + LANES, x.of[1]), store(p + 2 * LANES, x.of[2]), store(p + 3 * LANES, x.of[3]);
}
#endif

// A row, group by group, and what is left of it.
template <class Cell>
inline void groups(int n, Cell cell) {
    int i = 0;
    for (; i + WIDE <= n; i += WIDE) cell(std::false_type{}, i, WIDE);
    if (i < n) cell(std::true_type{}, i, n - i);
}

}  // namespace
