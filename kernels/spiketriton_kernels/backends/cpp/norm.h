// Batch norm by itself, of an x of one step: z = (x - mean) * scale + bias at each of `count` steps, and the way back.

#pragma once

#include "backward.h"

namespace {

void normalise(const Call &c) {
    const Cut cut(c);
    const Norm norm(c);
    const int64_t copies = int64_t(c.count);
    visit_blocks(c, norm, cut, [&](const Block &b) {
        return [&](const Place &at) {
            const A *means = b.of[MEAN].data(), *scales = b.of[SCALE].data(), *biases = b.of[BIAS].data();
            const T *x = from<T>(c.x, at.start);
            T *out = from<T>(c.spikes, at.start);
            vectors(at.n, [&](auto part, int i, int m) {
                constexpr bool PART = decltype(part)::value;
                const V z = (get<PART>(x + i, m) - load(means + i)) * load(scales + i) + load(biases + i);
                for (int64_t t = 0; t < copies; t++) put<PART>(out + t * c.neurons + i, rounded(z), m, false);
            });
        };
    });
}

// The gradients by the z of all steps, whose sum goes through the norm: the sums of dz and dz * xhat, then dy. Sums of chunks
// as on the walk back.
void normalise_back(const Call &c) {
    const Cut cut(c);
    const Norm norm(c);
    const int64_t copies = int64_t(c.count);
    const bool summed = copies > 1;
    const Array<double> sums(cut.chunks * 2 * c.channels);
    visit_blocks(c, norm, cut, [&](const Block &b) {
        return [&, dz_of = Array<A>(cut.padded() + LANES), x_of = Array<A>(cut.padded() + LANES)](const Place &at) mutable {
            if (!b.aligned || at.number % 16 == 0)
                for (auto *of : {&dz_of, &x_of}) std::fill(of->begin(), of->end(), A(0));
            const A *means = b.of[MEAN].data();
            A *sum = dz_of.data(), *sum_x = x_of.data();
            const T *x = from<T>(c.x, at.start), *grad = from<T>(c.grad_spikes, at.start);
            T *dy = from<T>(c.out_dy, at.start);
            vectors(at.n, [&](auto part, int i, int m) {
                constexpr bool PART = decltype(part)::value;
                V dz = get<PART>(grad + i, m);
                for (int64_t t = 1; t < copies; t++) dz += get<PART>(grad + t * c.neurons + i, m);
                if (summed) {
                    put<PART>(dy + i, rounded(dz), m, false);
                    dz = get<PART>(dy + i, m);
                }
                store(sum + i, load(sum + i) + dz);
                store(sum_x + i, load(sum_x + i) + dz * (get<PART>(x + i, m) - load(means + i)));
            });
            if (b.aligned && at.number % 16 != 15 && !at.last) return;
            const int lanes = b.aligned ? b.size : at.n;
            double *by_channel = sums.data() + at.chunk * 2 * c.channels;
            gather(c, b.channel, at.start, lanes, sum, by_channel);
            gather(c, b.channel, at.start, lanes, sum_x, by_channel + c.channels);
        };
    });
    A *joined = (A *)c.out_sums;
    for (int64_t k = 0; k < 2 * c.channels; k++) {
        double all = 0;
        for (int64_t chunk = 0; chunk < cut.chunks; chunk++) all += sums[chunk * 2 * c.channels + k];
        joined[k] = A(k < c.channels ? all : all * double(norm.of[RSTD][k - c.channels]));
    }
    Call second = c;
    second.grad_spikes = summed ? c.out_dy : c.grad_spikes;
    second.sums = c.out_sums;
    second.count = double(c.neurons / c.channels);
    norm_backward(second);
}

}  // namespace
