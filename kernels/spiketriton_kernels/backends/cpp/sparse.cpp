// 3x3 convolutions of spikes, stride 1, padding 1, float32: only inputs that are not 0 are multiplied. Images, weights and
// outputs are channels_last. A block of LANES output channels at a time: of nine taps each has a register, so that an
// input takes nine additions and no write. Of several images, so that what a block reads stays in the first-level cache.
// Images are summed up in chunks fixed by their number, not by threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int TAPS = 9, CHUNKS = 8;
constexpr int64_t CACHE = 24 * 1024, TOGETHER = 8;  // bytes of the first-level cache for what is read again; the most images
typedef float V __attribute__((vector_size(4 * LANES)));
struct Lanes { V v; };

struct Sizes { int64_t images, read, height, width, written, threads; };

// The inputs of an image that are not 0, pixel by pixel: their channels and values.
struct Spikes {
    std::vector<int32_t> starts, channels;
    std::vector<float> values;

    Spikes(const Sizes &s)
        : starts(s.height * s.width + 1), channels(s.height * s.width * s.read), values(channels.size()) {}

    // x: of the image. Returns their number.
    int find(const Sizes &s, const float *x) {
        const int pixels = int(s.height * s.width), C = int(s.read);
        int count = 0;
        const auto keep = [&](int c) { channels[count] = c; values[count++] = x[c]; };
        for (int pixel = 0; pixel < pixels; pixel++, x += C) {
            starts[pixel] = count;
            int c = 0;
#if defined(__AVX512F__)
            for (; c + 16 <= C; c += 16) {
                unsigned left = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + c), _mm512_setzero_ps(), _CMP_NEQ_UQ);
                for (; left; left &= left - 1) keep(c + __builtin_ctz(left));
            }
#elif defined(__AVX2__)
            for (; c + 8 <= C; c += 8) {
                const __m256 unequal = _mm256_cmp_ps(_mm256_loadu_ps(x + c), _mm256_setzero_ps(), _CMP_NEQ_UQ);
                for (unsigned left = _mm256_movemask_ps(unequal); left; left &= left - 1) keep(c + __builtin_ctz(left));
            }
#endif
            for (; c < C; c++)
                if (x[c] != 0) keep(c);
        }
        starts[pixels] = count;
        return count;
    }
};

// Where tap k of an input lies, in an image with a border of one pixel, after its pixel there.
inline int64_t place(int k, int64_t row) { return (2 - k / 3) * row + 2 - k % 3; }

// A block of output channels; w: its weights by input channel and tap; out: with a border.
void forward_block(const Sizes &s, const Spikes &spikes, const Lanes *w, Lanes *out) {
    const int64_t row = s.width + 2;
    for (int64_t y = 0, pixel = 0; y < s.height; y++)
        for (int64_t x = 0; x < s.width; x++, pixel++) {
            const int begin = spikes.starts[pixel], end = spikes.starts[pixel + 1];
            if (begin == end) continue;
            V sums[TAPS] = {};
            for (int i = begin; i < end; i++) {
                const Lanes *u = w + spikes.channels[i] * TAPS;
                for (int k = 0; k < TAPS; k++) sums[k] += spikes.values[i] * u[k].v;
            }
            for (int k = 0; k < TAPS; k++) out[y * row + x + place(k, row)].v += sums[k];
        }
}

// Inputs of a few images, sorted: those of channel c from first[c] on, by their pixels with a border.
struct Sorted {
    std::vector<int32_t> first, places;
    std::vector<float> values;
};

// dy: the images' gradients by block of output channels, each with a border; area: of all of them.
void by_weight_images(const Sizes &s, const Sorted &sorted, int64_t area, const Lanes *dy, Lanes *dw) {
    const int64_t row = s.width + 2;
    for (int64_t o = 0; o < s.written / LANES; o++, dy += area)
        for (int64_t c = 0; c < s.read; c++, dw += TAPS) {
            V sums[TAPS];
            for (int k = 0; k < TAPS; k++) sums[k] = dw[k].v;
            for (int i = sorted.first[c]; i < sorted.first[c + 1]; i++) {
                const Lanes *u = dy + sorted.places[i];
                for (int k = 0; k < TAPS; k++) sums[k] += sorted.values[i] * u[place(k, row)].v;
            }
            for (int k = 0; k < TAPS; k++) dw[k].v = sums[k];
        }
}

// A chunk of images; dw [written / LANES, read, TAPS].
void by_weight_chunk(const Sizes &s, const float *x, const float *dy, int64_t begin, int64_t end, Lanes *dw) {
    const int64_t row = s.width + 2, one = (s.height + 2) * row, blocks = s.written / LANES, C = s.read, pixels = s.height * s.width;
    const int64_t most = std::max<int64_t>(1, std::min(TOGETHER, CACHE / (one * int64_t(sizeof(V))))), area = one * most;
    std::vector<Spikes> spikes(most, Spikes(s));
    std::vector<Lanes> bordered(area * blocks);
    std::vector<int32_t> next(C);
    Sorted sorted{std::vector<int32_t>(C + 1), std::vector<int32_t>(most * pixels * C), std::vector<float>(most * pixels * C)};
    auto &[first, places, values] = sorted;
    for (int64_t n = begin; n < end; n += most) {
        const int64_t here = std::min(most, end - n);
        std::fill(first.begin(), first.end(), 0);
        for (int64_t m = 0; m < here; m++) {
            const int count = spikes[m].find(s, x + (n + m) * pixels * C);
            for (int i = 0; i < count; i++) first[spikes[m].channels[i] + 1]++;
        }
        // sorted by channel
        for (int64_t c = 0; c < C; c++) first[c + 1] += first[c];
        if (!first[C]) continue;
        std::copy(first.begin(), first.end() - 1, next.begin());
        const float *from = dy + n * pixels * s.written;
        for (int64_t m = 0; m < here; m++)
            for (int64_t y = 0, pixel = 0; y < s.height; y++)
                for (int64_t across = 0; across < s.width; across++, pixel++) {
                    for (int i = spikes[m].starts[pixel]; i < spikes[m].starts[pixel + 1]; i++) {
                        const int to = next[spikes[m].channels[i]]++;
                        places[to] = int32_t(m * one + y * row + across);
                        values[to] = spikes[m].values[i];
                    }
                    for (int64_t o = 0; o < blocks; o++, from += LANES)
                        std::memcpy(&bordered[o * area + m * one + (y + 1) * row + across + 1], from, sizeof(V));
                }
        by_weight_images(s, sorted, area, bordered.data(), dw);
    }
}

}  // namespace

extern "C" int spiketriton_lanes() { return LANES; }

// x [images, height, width, read], w [written / LANES, read, TAPS, LANES] -> y [images, height, width, written]
extern "C" void spiketriton_output(const Sizes *sizes, const float *x, const Lanes *w, float *y) {
    const Sizes &s = *sizes;
    const int64_t row = s.width + 2, blocks = s.written / LANES;
    const int64_t pixels = s.height * s.width, groups = (s.images + TOGETHER - 1) / TOGETHER;
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<Spikes> spikes(std::min(TOGETHER, s.images), Spikes(s));
        std::vector<Lanes> bordered((s.height + 2) * row);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t begin = g * TOGETHER, end = std::min(s.images, begin + TOGETHER);
            for (int64_t n = begin; n < end; n++) spikes[n - begin].find(s, x + n * pixels * s.read);
            for (int64_t o = 0; o < blocks; o++)
                for (int64_t n = begin; n < end; n++) {
                    std::fill(bordered.begin(), bordered.end(), Lanes{});
                    forward_block(s, spikes[n - begin], w + o * s.read * TAPS, bordered.data());
                    float *to = y + n * pixels * s.written + o * LANES;
                    for (int64_t down = 1; down <= s.height; down++)
                        for (int64_t across = 1; across <= s.width; across++, to += s.written)
                            std::memcpy(to, &bordered[down * row + across], sizeof(V));
                }
        }
    }
}

// x, dy [images, height, width, written] -> dw, as w above
extern "C" void spiketriton_by_weight(const Sizes *sizes, const float *x, const float *dy, Lanes *dw) {
    const Sizes &s = *sizes;
    const int64_t size = s.written / LANES * s.read * TAPS, chunks = std::min<int64_t>(CHUNKS, s.images);
    std::vector<Lanes> sums(size * chunks);
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int64_t k = 0; k < chunks; k++)
        by_weight_chunk(s, x, dy, s.images * k / chunks, s.images * (k + 1) / chunks, &sums[size * k]);
    for (int64_t i = 0; i < size; i++) {
        V sum = {};
        for (int64_t k = 0; k < chunks; k++) sum += sums[size * k + i].v;
        std::memcpy(dw + i, &sum, sizeof sum);
    }
}
