// Mean and variance of each channel.

#pragma once

#include "blocks.h"

namespace {

// Sums over one channel, in double, of what lies away from a fixed `shift`.
struct Moments {
    double sum = 0, squares = 0;

    // n elements whose distances from `mean` sum to s, their squares to q.
    void add(double n, double mean, double s, double q, double shift) {
        const double offset = mean - shift;
        sum += s + n * offset;
        squares += q + offset * (2 * s + n * offset);
    }
};

// Mean and biased variance of a channel, by their memory and towards them the running ones.
void follow(const Call &c, int64_t channel, double mean, double var, double count) {
    const A mean_a = A(mean), var_a = A(var < 0 ? 0 : var);  // a NaN stays one
    ((A *)c.mean)[channel] = mean_a;
    ((A *)c.var)[channel] = var_a;
    if (!c.running_mean) return;
    A &running_mean = ((A *)c.running_mean)[channel], &running_var = ((A *)c.running_var)[channel];
    running_mean += A(c.momentum) * (mean_a - running_mean);
    running_var += A(c.momentum) * (var_a * A(count / (count - 1)) - running_var);
}

// Mean and biased variance per channel, `moments` where they are known. Floats are enough within a block, whatever it holds, because its elements are
// shifted by the mean of its first eighth, about which the squares add up to 8 times those about the block's own mean
// at most. Blocks join in double.
void statistics(const Call &c) {
    const T *x = (const T *)c.x;
    const int64_t C = c.channels, inner = c.inner, rows = c.steps * c.neurons / (C * inner);
    const double count = double(rows) * double(inner);
    if (const double *known = (const double *)c.moments) {
        for (int64_t j = 0; j < C; j++) follow(c, j, known[j], known[C + j], count);
        return;
    }
    const int64_t chunks = std::min(rows, chunk_count(rows * C * inner, 16384));
    const Array<double> shift(C);
    for (int64_t j = 0; j < C; j++) shift[j] = load(x[j * inner]);
    const Array<Moments> shares(chunks * C);
    const auto eighth = [](int64_t n) { return std::max<int64_t>(1, (n + 7) / 8); };
    on_threads(c, [&] { share(c, chunks, [&](int64_t k) {
        Moments *share = shares.data() + k * C;
        const int64_t first = rows * k / chunks, end = rows * (k + 1) / chunks;
        if (inner == 1) {
            // Several rows side by side, so that the vector units are full with few channels too, but no more: then a
            // block fits into the first-level cache, and four rows are one run of memory.
            const int64_t side = std::max<int64_t>(1, 64 / C), lanes = side * C;
            const Array<A> lane_s(lanes + LANES), lane_q(lanes + LANES), lane_mean(lanes + LANES);
            A *__restrict s = lane_s.data(), *__restrict q = lane_q.data(), *__restrict mean = lane_mean.data();
            for (int64_t start = first * C; start < end * C; start += 64 * lanes) {
                const int64_t stop = std::min(end * C, start + 64 * lanes), full = (stop - start) / lanes,
                              rest = (stop - start) % lanes, sample = eighth(full);
                std::fill(mean, mean + lanes, A(0));
                std::fill(s, s + lanes, A(0));
                std::fill(q, q + lanes, A(0));
                const A part = A(1) / A(sample);
                for (int64_t i = start; i < std::min(stop, start + sample * lanes); i += lanes) {
                    const T *__restrict p = x + i;
                    const int64_t n = std::min(lanes, stop - i);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) mean[j] += load(p[j]) * part;
                }
                int64_t i = start;
                for (; i + 4 * lanes <= stop; i += 4 * lanes) {  // four rows for each time that the sums are fetched
                    const T *p0 = x + i, *p1 = p0 + lanes, *p2 = p1 + lanes, *p3 = p2 + lanes;
                    vectors(int(lanes), [&](auto part, int j, int m) {
                        constexpr bool PART = decltype(part)::value;
                        const V about = load(mean + j);
                        const V d0 = get<PART>(p0 + j, m) - about, d1 = get<PART>(p1 + j, m) - about,
                                d2 = get<PART>(p2 + j, m) - about, d3 = get<PART>(p3 + j, m) - about;
                        store(s + j, load(s + j) + ((d0 + d1) + (d2 + d3)));
                        store(q + j, load(q + j) + ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)));
                    });
                }
                for (; i < stop; i += lanes) {
                    const T *__restrict p = x + i;
                    const int64_t n = std::min(lanes, stop - i);
#pragma omp simd
                    for (int64_t j = 0; j < n; j++) {
                        const A d = load(p[j]) - mean[j];
                        s[j] += d;
                        q[j] += d * d;
                    }
                }
                for (int64_t j = 0; j < lanes; j += C)
                    for (int64_t i = 0; i < C; i++)
                        share[i].add(double(full + (j + i < rest)), mean[j + i], s[j + i], q[j + i], shift[i]);
            }
        } else {
            for (int64_t row = first; row < end; row++)
                for (int64_t j = 0; j < C; j++)
                    for (int64_t i = 0; i < inner; i += 1024) {
                        const T *__restrict p = x + (row * C + j) * inner + i;
                        const int64_t n = std::min<int64_t>(1024, inner - i), sample = eighth(n);
                        A mean = 0, s = 0, q = 0;
#pragma omp simd reduction(+ : mean)
                        for (int64_t l = 0; l < sample; l++) mean += load(p[l]);
                        mean /= A(sample);
                        V sums[2] = {}, squares[2] = {};  // two chains of additions, and what comes next asked for early
                        int64_t l = 0;
                        for (; l + 2 * LANES <= n; l += 2 * LANES) {
                            prefetch(p + l + 1024, 2 * LANES);
                            for (int u = 0; u < 2; u++) {
                                const V d = load(p + l + u * LANES) - mean;
                                sums[u] += d;
                                squares[u] += d * d;
                            }
                        }
                        for (int u = 0; u < LANES; u++) {
                            s += sums[0][u] + sums[1][u];
                            q += squares[0][u] + squares[1][u];
                        }
                        for (; l < n; l++) {
                            const A d = load(p[l]) - mean;
                            s += d;
                            q += d * d;
                        }
                        share[j].add(double(n), mean, s, q, shift[j]);
                    }
        }
    }); });
    for (int64_t j = 0; j < C; j++) {
        Moments total;
        for (const Moments *share = shares.data() + j; share < shares.end(); share += C) {
            total.sum += share->sum;
            total.squares += share->squares;
        }
        const double mean = total.sum / count;
        follow(c, j, shift[j] + mean, total.squares / count - mean * mean, count);
    }
}

}  // namespace
