// Convolutions in bfloat16 by AMX: matrix products of tiles, 16 pixels by 16 channels, of images that are channels_last.
// 3x3 and 1x1 kernels, padded by (k - 1) / 2, strides 1 and 2; channels read and written are multiples of 16. Products are
// summed up in float32 in an order that does not depend on the number of threads.

#include <cstdint>

struct Sizes { int64_t images, height, width, read, written, kernel, stride, threads; };

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__linux__)

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <memory>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

namespace {

constexpr int64_t TILE = 1024, LANES = 16, DEPTH = 32;  // bytes of a tile; its rows and columns; what one product sums up
constexpr int64_t KEPT = 384 << 10, WEIGHTS = 512 << 10;  // bytes of images and of weights that stay in a second-level cache
constexpr int64_t AHEAD = 2048;  // bytes
typedef uint16_t Half;

// Memory that a thread keeps between calls.
struct Kept {
    char *at = nullptr;
    size_t size = 0;
    ~Kept() { std::free(at); }
    char *of(size_t bytes) {
        if (bytes > size) {
            std::free(at);
            size = (bytes + 4095) / 4096 * 4096;
            at = static_cast<char *>(std::aligned_alloc(4096, size));
            if (!at) std::abort();
        }
        return at;
    }
};

struct alignas(64) Shape {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles of a thread while it lives: `halves`: 6 and 7 are of half the depth.
struct Tiles {
    explicit Tiles(bool halves) {
        Shape shape;
        for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
        if (halves) shape.bytes[6] = 32, shape.rows[7] = 8;
        asm volatile("ldtilecfg %0" ::"m"(shape) : "memory");
    }
    ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
};

#define ZERO(t) asm volatile("tilezero %%tmm" #t ::)
#define LOAD(t, from, step) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"((const void *)(from)), "r"((int64_t)(step)) : "memory")
#define STORE(t, to, step) \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"((void *)(to)), "r"((int64_t)(step)) : "memory")
#define MULTIPLY(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

// Asks for as many values as are read now, some kilobytes behind them: rows are read too unevenly for the hardware to foresee.
template <class In>
inline void ahead(const In *at, int64_t values) {
    const char *from = (const char *)at + AHEAD;
    for (int64_t i = 0; i < values * int64_t(sizeof(In)); i += 64) _mm_prefetch(from + i, _MM_HINT_T0);
}

// 16 rows of 16 dwords, turned.
inline void turn(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Two rows of 16 values, pair by pair.
inline __m512i paired(const Half *one, const Half *other) {
    alignas(64) static constexpr uint16_t TURNS[32] = {
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i a = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)one));
    const __m512i both = _mm512_inserti64x4(a, _mm256_loadu_si256((const __m256i *)other), 1);
    return _mm512_permutexvar_epi16(_mm512_load_si512(TURNS), both);
}

// A float32 is the sum of three values of bfloat16, which have eight bits each: the words of one of them, in their upper half.
inline __m512i piece(__m512 v, int64_t part) {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000u)), word = _mm512_castps_si512(v);
    const __m512i high = _mm512_and_si512(_mm512_mask_or_epi32(word, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), word, _mm512_set1_epi32(0x400000)), upper);
    if (part == 0) return high;
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
    const __m512 rest = _mm512_maskz_sub_ps(finite, v, _mm512_castsi512_ps(high));
    const __m512i middle = _mm512_and_si512(_mm512_castps_si512(rest), upper);
    return part == 1 ? middle : _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(middle)));
}

// Two rows of 16 float32 values, pair by pair: of each a part.
inline __m512i paired(const float *one, const float *other, int64_t part) {
    const __m512i a = piece(_mm512_loadu_ps(one), part), b = piece(_mm512_loadu_ps(other), part);
    return _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
}
inline __m512i paired(const Half *one, const Half *other, int64_t) { return paired(one, other); }

inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// 32 weights, rounded or a part of them.
inline __m512i weights_of(__m512 low, __m512 high, int64_t parts, int64_t part) {
    if (parts == 1) return rounded(low, high);
    const __m256i a = _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece(low, part), 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), _mm512_cvtepi32_epi16(_mm512_srli_epi32(piece(high, part), 16)), 1);
}

// A product over pixels. Every image has a grid of outputs; several grids (`Class`) where outputs lie between those that
// a stride leaves out. Inputs are copied into planes, one for each remainder of a pixel by the stride, with a border of
// zeros that neighbours share, so that 16 pixels which follow each other, over ends of rows and images, are a tile.
struct Tap { int64_t plane, down, across, place; };  // of a plane, and where in the kernel its weights lie
struct Class { int64_t down, across; std::vector<Tap> taps; };

struct Plan {
    int64_t images, threads;
    int64_t from_height, from_width, from, to_height, to_width, to;  // of inputs and outputs, and their channels
    int64_t height, width;  // of the grid
    int64_t split, spread;  // by which inputs are split into planes, and outputs lie apart
    int64_t edge;
    std::vector<Class> classes;
    int64_t parts = 1;  // of each weight

    int64_t pitch() const { return width + edge; }
    int64_t area() const { return (height + edge) * pitch(); }
    int64_t lead() const { return edge * (pitch() + 1); }
    int64_t planes() const { return edge ? split * split : 1; }  // of a kernel of one pixel only that under it
    int64_t full() const { return from / DEPTH; }
    bool halves() const { return from % DEPTH != 0; }
};

// Images in planes [plane, pixel, channel], from `first` on.
void copy_planes(const Plan &p, const Half *x, int64_t images, int64_t length, Half *planes) {
    const int64_t C = p.from, bytes = C * 2;
    for (int64_t plane = 0; plane < p.planes(); plane++) {
        const int64_t down = plane / p.split, across = plane % p.split;
        const int64_t rows = (p.from_height - down + p.split - 1) / p.split;
        const int64_t columns = (p.from_width - across + p.split - 1) / p.split;
        char *base = (char *)(planes + plane * length * C), *to = base;
        std::memset(to, 0, p.lead() * bytes);
        to += p.lead() * bytes;
        for (int64_t n = 0; n < images; n++) {
            const char *image = (const char *)(x + n * p.from_height * p.from_width * C);
            for (int64_t i = 0; i < p.height + p.edge; i++, to += p.pitch() * bytes) {
                if (i >= rows) {
                    std::memset(to, 0, p.pitch() * bytes);
                    continue;
                }
                const char *row = image + ((i * p.split + down) * p.from_width + across) * bytes;
                if (p.split == 1) std::memcpy(to, row, columns * bytes);
                else
                    for (int64_t j = 0; j < columns; j++) {
                        const char *one = row + j * p.split * bytes;
                        for (int64_t b = 0; b < bytes; b += 32)
                            _mm256_storeu_si256((__m256i *)(to + j * bytes + b), _mm256_loadu_si256((const __m256i *)(one + b)));
                    }
                std::memset(to + columns * bytes, 0, (p.pitch() - columns) * bytes);
            }
        }
        std::memset(to, 0, base + length * bytes - to);
    }
}

// Two tiles of pixels by two of channels, two by one, and four by one; sums of 16 pixels by 16 channels in float32.
inline void two_by_two(const char *a, int64_t step, const int64_t *offsets, int64_t steps, const char *b, const char *c, float *sums) {
    ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    for (int64_t k = 0; k < steps; k++) {
        LOAD(4, a + offsets[k], step);
        LOAD(6, b + k * TILE, 64);
        LOAD(7, c + k * TILE, 64);
        LOAD(5, a + offsets[k] + 16 * step, step);
        MULTIPLY(0, 4, 6);
        MULTIPLY(1, 4, 7);
        MULTIPLY(2, 5, 6);
        MULTIPLY(3, 5, 7);
    }
    STORE(0, sums, 64); STORE(1, sums + 256, 64); STORE(2, sums + 512, 64); STORE(3, sums + 768, 64);
}

inline void two_by_one(const char *a, int64_t step, const int64_t *offsets, int64_t steps, const char *b, float *sums) {
    ZERO(0); ZERO(1);
    for (int64_t k = 0; k < steps; k++) {
        LOAD(6, b + k * TILE, 64);
        LOAD(4, a + offsets[k], step);
        MULTIPLY(0, 4, 6);
        LOAD(5, a + offsets[k] + 16 * step, step);
        MULTIPLY(1, 5, 6);
    }
    STORE(0, sums, 64); STORE(1, sums + 256, 64);
}

inline void four_by_one(
    const char *a, int64_t step, const int64_t *offsets, int64_t full, int64_t steps, const char *b, float *sums
) {
    ZERO(0); ZERO(1); ZERO(2); ZERO(3);
    for (int64_t k = 0; k < full; k++) {
        const char *at = a + offsets[k];
        LOAD(5, b + k * TILE, 64);
        LOAD(4, at, step); MULTIPLY(0, 4, 5);
        LOAD(4, at + 16 * step, step); MULTIPLY(1, 4, 5);
        LOAD(4, at + 32 * step, step); MULTIPLY(2, 4, 5);
        LOAD(4, at + 48 * step, step); MULTIPLY(3, 4, 5);
    }
    for (int64_t k = full; k < steps; k++) {
        const char *at = a + offsets[k];
        LOAD(7, b + k * TILE, 64);
        LOAD(6, at, step); MULTIPLY(0, 6, 7);
        LOAD(6, at + 16 * step, step); MULTIPLY(1, 6, 7);
        LOAD(6, at + 32 * step, step); MULTIPLY(2, 6, 7);
        LOAD(6, at + 48 * step, step); MULTIPLY(3, 6, 7);
    }
    STORE(0, sums, 64); STORE(1, sums + 256, 64); STORE(2, sums + 512, 64); STORE(3, sums + 768, 64);
}

struct Steps { std::vector<int64_t> offsets; int64_t full, all; };

// In which order a class multiplies: pairs of 16 channels of a tap, whole tiles first.
struct Order { int64_t tap, channel, pairs, part; };
std::vector<Order> order_of_parts(const Plan &p, const Class &c);
std::vector<Order> order_of(const Plan &p, const Class &c) {
    std::vector<Order> found;
    for (Order step : order_of_parts(p, c))
        for (step.part = 0; step.part < p.parts; step.part++) found.push_back(step);
    return found;
}
std::vector<Order> order_of_parts(const Plan &p, const Class &c) {
    std::vector<Order> found;
    const int64_t taps = int64_t(c.taps.size());
    if (p.from == LANES) {  // two taps that are neighbours in a row lie together in memory
        std::vector<Order> halves;
        for (int64_t t = 0; t < taps; t++) {
            const Tap &one = c.taps[t];
            const bool two = t + 1 < taps && c.taps[t + 1].plane == one.plane && c.taps[t + 1].down == one.down
                && c.taps[t + 1].across == one.across + 1;
            if (two) found.push_back({t++, 0, 2, 0});
            else halves.push_back({t, 0, 1, 0});
        }
        found.insert(found.end(), halves.begin(), halves.end());
        return found;
    }
    for (int64_t t = 0; t < taps; t++)
        for (int64_t k = 0; k < p.full(); k++) found.push_back({t, k * DEPTH, 2, 0});
    if (p.halves())
        for (int64_t t = 0; t < taps; t++) found.push_back({t, p.full() * DEPTH, 1, 0});
    return found;
}

inline void write(Half *to, const float *row) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(row))); }
inline void write(float *to, const float *row) { _mm512_storeu_ps(to, _mm512_load_ps(row)); }
inline void write_two(Half *to, const float *row) { _mm512_storeu_si512(to, rounded(_mm512_load_ps(row), _mm512_load_ps(row + 256))); }
inline void write_two(float *to, const float *row) { write(to, row); write(to + 16, row + 256); }

// Sums of tiles of pixels by `side` tiles of channels, of those pixels that have a place.
template <class Out>
void write_sums(const float *sums, int64_t tiles, int64_t side, const int32_t *places, Out *y, int64_t channels) {
    for (int64_t m = 0; m < tiles; m++)
        for (int64_t i = 0; i < 16; i++) {
            const int32_t place = places[m * 16 + i];
            if (place < 0) continue;
            const float *row = sums + m * side * 256 + i * 16;
            if (side == 2) write_two(y + place * channels, row);
            else write(y + place * channels, row);
        }
}

// b: weights by class, 16 channels written, step: tiles of pairs of channels read.
template <class Out>
void multiply(const Plan &p, const Half *x, const std::vector<const char *> &b, Out *y) {
    const bool copied = p.edge || p.split > 1;
    const int64_t bytes = p.from * 2, blocks = p.to / LANES;
    const int64_t each = p.area() * p.planes() * bytes;
    const int64_t most = std::max<int64_t>(1, KEPT / each), chunks = std::max<int64_t>(1, (p.images + most - 1) / most);
    const int64_t chunk = (p.images + chunks - 1) / chunks;
    const int64_t length = p.lead() + chunk * p.area() + p.lead() + 66;
    std::vector<std::vector<Order>> orders;
    std::vector<std::vector<int64_t>> offsets;
    for (const Class &c : p.classes) {
        orders.push_back(order_of(p, c));
        std::vector<int64_t> found;
        for (const Order &o : orders.back()) {
            const Tap &t = c.taps[o.tap];
            found.push_back(((t.plane * length + p.lead() + t.down * p.pitch() + t.across) * p.from + o.channel) * 2);
        }
        offsets.push_back(found);
    }
    // where the outputs of a chunk lie
    const int64_t positions = (chunk * p.area() + 63) / 64 * 64;
    std::vector<std::vector<int32_t>> places(p.classes.size(), std::vector<int32_t>(positions, -1));
    for (size_t k = 0; k < p.classes.size(); k++)
        for (int64_t n = 0; n < chunk; n++)
            for (int64_t i = 0; i < p.height; i++)
                for (int64_t j = 0; j < p.width; j++) {
                    const int64_t down = i * p.spread + p.classes[k].down, across = j * p.spread + p.classes[k].across;
                    if (down < p.to_height && across < p.to_width)
                        places[k][n * p.area() + i * p.pitch() + j] = int32_t((n * p.to_height + down) * p.to_width + across);
                }
    const bool halves = p.halves();
#pragma omp parallel num_threads(p.threads)
    {
        static thread_local Kept kept;
        alignas(64) float sums[1024];
        Tiles tiles(halves);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < chunks; at++) {
            const int64_t first = at * chunk, images = std::min(chunk, p.images - first);
            if (images <= 0) continue;
            const Half *from = x + first * p.from_height * p.from_width * p.from;
            Out *to = y + first * p.to_height * p.to_width * p.to;
            const int64_t end = images * p.area();
            Half *planes = (Half *)kept.of(size_t(length * p.planes() * bytes));
            if (copied) copy_planes(p, from, images, length, planes);
            const char *base = copied ? (const char *)planes : (const char *)from;
            for (size_t k = 0; k < p.classes.size(); k++) {
                const std::vector<int64_t> &off = offsets[k];
                const int64_t steps = int64_t(off.size());
                int64_t full = 0;
                while (full < steps && orders[k][full].pairs == 2) full++;
                const int64_t wide = halves || blocks == 1 ? 64 : 32, group = halves ? 1 : 2;  // pixels, blocks of channels
                const auto at_pixels = [&](int64_t m, int64_t begin, int64_t until) {
                    const char *a = base + m * bytes;
                    const int32_t *where = places[k].data() + m;
                    alignas(64) int32_t last[64];
                    if (m + wide > end) {  // nothing behind x is read
                        for (int64_t i = 0; i < wide; i++) last[i] = m + i < end ? where[i] : -1;
                        where = last;
                        if (!copied) {
                            std::memset(planes, 0, wide * bytes);
                            std::memcpy(planes, a, (end - m) * bytes);
                            a = (const char *)planes;
                        }
                    }
                    for (int64_t o = begin; o < until; o += group) {
                        const char *one = b[k] + o * steps * TILE;
                        if (group == 2 && o + 1 < blocks) {
                            two_by_two(a, bytes, off.data(), steps, one, one + steps * TILE, sums);
                            write_sums(sums, 2, 2, where, to + o * LANES, p.to);
                        } else {
                            if (wide == 64) four_by_one(a, bytes, off.data(), full, steps, one, sums);
                            else two_by_one(a, bytes, off.data(), steps, one, sums);
                            write_sums(sums, wide / 16, 1, where, to + o * LANES, p.to);
                        }
                    }
                };
                // weights that fit into a second-level cache are read again for all pixels, else pixels for all weights
                if (steps * blocks * TILE <= WEIGHTS)
                    for (int64_t m = 0; m < end; m += wide) at_pixels(m, 0, blocks);
                else
                    for (int64_t o = 0; o < blocks; o += group)
                        for (int64_t m = 0; m < end; m += wide) at_pixels(m, o, std::min(o + group, blocks));
            }
        }
    }
}

// A tile of 16 channels that a product writes, from `o * 16` on, by `pairs * 16` that it reads, of weights [written, kernel,
// kernel, read] in float32. `turned`: gradients return, and what was written is read. next: the tap of the second half.
void pack_tile(
    const Sizes &s, const float *w, bool turned, int64_t o, int64_t place, int64_t next, const Order &step, int64_t parts, char *at
) {
    const int64_t channel = step.channel, pairs = step.pairs;
    const int64_t taps = s.kernel * s.kernel;
    if (turned) {
        alignas(64) static constexpr uint16_t TURNS[32] = {
            0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        for (int64_t i = 0; i < 8 * pairs; i++) {
            const bool second = next >= 0 && i >= 8;
            const float *one = w + ((channel + 2 * (second ? i - 8 : i)) * taps + (second ? next : place)) * s.read + o * LANES;
            const __m512i both = weights_of(_mm512_loadu_ps(one), _mm512_loadu_ps(one + taps * s.read), parts, step.part);
            _mm512_store_si512(at + i * 64, _mm512_permutexvar_epi16(_mm512_load_si512(TURNS), both));
        }
        return;
    }
    __m512i rows[16];
    for (int64_t i = 0; i < 16; i++) {
        const float *one = w + ((o * LANES + i) * taps + place) * s.read + channel;
        const float *other = next >= 0 ? one + (next - place) * s.read : one + LANES;
        rows[i] = weights_of(_mm512_loadu_ps(one), pairs == 2 ? _mm512_loadu_ps(other) : _mm512_setzero_ps(), parts, step.part);
    }
    turn(rows);
    for (int64_t i = 0; i < 8 * pairs; i++) _mm512_store_si512(at + i * 64, rows[i]);
}

// All weights, by class.
std::vector<const char *> pack(const Plan &p, const Sizes &s, const float *w, bool turned, Kept &kept) {
    const int64_t blocks = p.to / LANES;
    std::vector<std::vector<Order>> orders;
    int64_t all = 0;
    for (const Class &c : p.classes) {
        orders.push_back(order_of(p, c));
        all += int64_t(orders.back().size()) * blocks;
    }
    char *at = kept.of(size_t(all * TILE + 64));
    std::vector<const char *> found;
    for (size_t k = 0; k < p.classes.size(); k++) {
        found.push_back(at);
        for (int64_t o = 0; o < blocks; o++)
            for (const Order &step : orders[k]) {
                const Tap *tap = &p.classes[k].taps[step.tap];
                const bool two_taps = p.from == LANES && step.pairs == 2;
                pack_tile(s, w, turned, o, tap->place, two_taps ? tap[1].place : -1, step, p.parts, at);
                at += TILE;
            }
    }
    return found;
}

// Small maps: a tile is a pixel of 16 images, which multiplies only the weights that lie on the map.
bool by_images_pays(const Plan &p) {
    const int64_t pixels = p.to_height * p.to_width;
    return p.edge && !p.halves() && p.images >= 16 && pixels <= 16 && p.from_height * p.from_width <= 64;
}

template <class Out>
void by_images(const Plan &p, const Sizes &s, const Half *x, const float *w, bool turned, Out *y) {
    const int64_t size = p.from_height * p.from_width * p.from * 2, step = size + 64;  // bytes; not a multiple of a page
    const int64_t blocks = p.to / LANES, taps = s.kernel * s.kernel, full = p.full(), pixels = p.to_height * p.to_width;
    const int64_t groups = (p.images + 31) / 32, pairs = (blocks + 1) / 2;
    struct Pixel { int64_t at; std::vector<int64_t> offsets, weights; };  // of an output: what it reads, and by which weights
    std::vector<Pixel> outputs;
    for (const Class &c : p.classes)
        for (int64_t i = 0; i < p.height; i++)
            for (int64_t j = 0; j < p.width; j++) {
                const int64_t down = i * p.spread + c.down, across = j * p.spread + c.across;
                if (down >= p.to_height || across >= p.to_width) continue;
                Pixel one{down * p.to_width + across, {}, {}};
                for (const Tap &t : c.taps) {
                    const int64_t row = (i + t.down) * p.split + t.plane / p.split, column = (j + t.across) * p.split + t.plane % p.split;
                    if (row < 0 || column < 0 || row >= p.from_height || column >= p.from_width) continue;
                    for (int64_t k = 0; k < full * p.parts; k++) {
                        one.offsets.push_back(((row * p.from_width + column) * p.from + k / p.parts * DEPTH) * 2);
                        one.weights.push_back((t.place * full * p.parts + k) * TILE);
                    }
                }
                outputs.push_back(one);
            }
    static thread_local Kept kept_images;
    char *const images = kept_images.of(size_t(groups * 32 * step));
#pragma omp parallel num_threads(p.threads)
    {
        static thread_local Kept kept;
        char *const panel = kept.of(size_t(2 * taps * full * p.parts * TILE)), *const second = panel + taps * full * p.parts * TILE;
        alignas(64) float sums[1024];
#pragma omp for schedule(static)
        for (int64_t n = 0; n < groups * 32; n++) {
            if (n < p.images) std::memcpy(images + n * step, (const char *)x + n * size, size);
            else std::memset(images + n * step, 0, size);
        }
        Tiles tiles(false);
#pragma omp for schedule(static)
        for (int64_t pair = 0; pair < pairs; pair++) {
            const int64_t o = pair * 2;
            const bool two = o + 1 < blocks;
            for (int64_t t = 0; t < taps; t++)
                for (int64_t k = 0; k < full * p.parts; k++) {
                    const int64_t at = (t * full * p.parts + k) * TILE;
                    const Order step{t, k / p.parts * DEPTH, 2, k % p.parts};
                    pack_tile(s, w, turned, o, t, -1, step, p.parts, panel + at);
                    if (two) pack_tile(s, w, turned, o + 1, t, -1, step, p.parts, second + at);
                }
            for (const Pixel &pixel : outputs) {
                const int64_t steps = int64_t(pixel.offsets.size());
                for (int64_t g = 0; g < groups; g++) {
                    const char *a = images + g * 32 * step;
                    ZERO(0); ZERO(1); ZERO(2); ZERO(3);
                    for (int64_t k = 0; k < steps; k++) {
                        const char *at = a + pixel.offsets[k];
                        LOAD(4, at, step);
                        LOAD(6, panel + pixel.weights[k], 64);
                        MULTIPLY(0, 4, 6);
                        LOAD(5, at + 16 * step, step);
                        MULTIPLY(2, 5, 6);
                        if (two) {
                            LOAD(7, second + pixel.weights[k], 64);
                            MULTIPLY(1, 4, 7);
                            MULTIPLY(3, 5, 7);
                        }
                    }
                    STORE(0, sums, 64); STORE(1, sums + 256, 64); STORE(2, sums + 512, 64); STORE(3, sums + 768, 64);
                    for (int64_t i = 0; i < std::min<int64_t>(32, p.images - g * 32); i++) {
                        const float *row = sums + i / 16 * 512 + i % 16 * 16;
                        Out *to = y + ((g * 32 + i) * pixels + pixel.at) * p.to + o * LANES;
                        if (two) write_two(to, row);
                        else write(to, row);
                    }
                }
            }
        }
    }
}

int64_t out_of(int64_t side, int64_t stride) { return (side + stride - 1) / stride; }

Plan forwards(const Sizes &s) {
    const int64_t height = out_of(s.height, s.stride), width = out_of(s.width, s.stride), edge = s.kernel / 2;
    Plan p{s.images, s.threads, s.height, s.width, s.read, height, width, s.written, height, width, s.stride, 1, edge, {}};
    Class all{0, 0, {}};
    for (int64_t i = 0; i < s.kernel; i++)
        for (int64_t j = 0; j < s.kernel; j++) {
            const int64_t down = i - edge, across = j - edge, n = s.stride;
            const int64_t rest = (down + n) % n, beside = (across + n) % n;  // -1 is the last of the row before
            all.taps.push_back({rest * n + beside, (down - rest) / n, (across - beside) / n, i * s.kernel + j});
        }
    p.classes.push_back(all);
    return p;
}

Plan backwards(const Sizes &s) {
    const int64_t height = out_of(s.height, s.stride), width = out_of(s.width, s.stride), edge = s.kernel / 2;
    Plan p{s.images, s.threads, height, width, s.written, s.height, s.width, s.read, height, width, 1, s.stride, edge, {}};
    for (int64_t a = 0; a < s.stride; a++)
        for (int64_t b = 0; b < s.stride; b++) {
            Class one{a, b, {}};
            for (int64_t i = s.kernel - 1; i >= 0; i--)
                for (int64_t j = s.kernel - 1; j >= 0; j--) {
                    const int64_t down = a + edge - i, across = b + edge - j;
                    if (down % s.stride || across % s.stride) continue;
                    one.taps.push_back({0, down / s.stride, across / s.stride, i * s.kernel + j});
                }
            if (!one.taps.empty()) p.classes.push_back(one);
        }
    return p;
}

// The gradient by the weights: a product over pixels, 32 at a time, of channels written by channels read. What is read
// lies in pairs of pixels, 64 bytes of 16 channels: a tile may start at any pair, so that taps which are an even number
// of pixels apart read one copy.
struct Weights {
    int64_t height, width, taps, in, out;  // of an output; blocks of 16 channels
    bool joined;  // small maps follow each other in tiles, and every tap has a copy of its own
    int64_t rows, pitch;  // of an image's outputs in tiles
    int64_t below, beside;  // of what is read: positions of an image, and of a row
    std::vector<int64_t> copy, shift;  // of a tap: what it reads, and from which pair on
    struct Copy { int64_t down, across, cut; };  // of the first position; row by row: columns before 0, or behind the last, are no pixels
    std::vector<Copy> copies;

    explicit Weights(const Sizes &s)
        : height(out_of(s.height, s.stride)), width(out_of(s.width, s.stride)), taps(s.kernel * s.kernel),
          in(s.read / LANES), out(s.written / LANES), copy(taps), shift(taps) {
        const int64_t across = width > 16 ? DEPTH : width > 8 ? 16 : 8, edge = s.kernel / 2;
        pitch = (width + across - 1) / across * across;
        rows = (height * pitch + DEPTH - 1) / DEPTH * DEPTH / pitch;
        joined = s.kernel != 3 || s.stride != 1 || 2 * rows * pitch > 3 * height * width;
        if (joined) {
            rows = height, pitch = width;
            below = height * width, beside = width;
            for (int64_t t = 0; t < taps; t++) {
                copy[t] = t, shift[t] = 0;
                copies.push_back({t / s.kernel - edge, t % s.kernel - edge, 0});
            }
            return;
        }
        const bool wide = pitch % DEPTH == 0, shared = wide || pitch > width;
        beside = wide ? pitch + 2 : pitch;
        below = (rows + 2) * beside + 2;
        for (int64_t t = 0; t < taps; t++) {
            const int64_t i = t / 3, j = t % 3;
            // an even and an odd copy, or one for each column of the kernel
            copy[t] = shared ? j % 2 : j;
            shift[t] = i * beside / 2 + (shared ? j / 2 : 0);
        }
        if (shared) copies = {{-1, -1, 0}, {-1, 0, 0}};
        else copies = {{-1, -1, 0}, {-1, 0, 0}, {-1, 1, 0}};
    }

    int64_t tiles(int64_t images) const { return (images * rows * pitch + DEPTH - 1) / DEPTH; }
    // of a tile, its first pair of a copy
    int64_t pair(int64_t tile) const {
        if (joined) return tile * DEPTH / 2;
        const int64_t at = tile * DEPTH, n = at / (rows * pitch), r = at % (rows * pitch);
        return (n * below + r / pitch * beside + r % pitch) / 2;
    }
};

// dy may be of float32, and is then three parts of bfloat16, whose products with x are exact.
template <class In>
struct Walk {  // pixels one after another, from a position on; nullptr: of none
    const int64_t *table;
    const In *base;
    int64_t area, image, images, n, r;
    Walk(const int64_t *table, const In *base, int64_t area, int64_t image, int64_t images, int64_t begin)
        : table(table), base(base + begin / area * image), area(area), image(image), images(images), n(begin / area), r(begin % area) {}
    const In *next() {
        const int64_t place = n < images ? table[r] : -1;
        const In *found = place < 0 ? nullptr : base + place;
        if (++r == area) r = 0, n++, base += image;
        return found;
    }
};

template <class In>
void by_weight(const Sizes &s, const Half *x, const In *dy, float *dw) {
    constexpr int64_t PARTS = sizeof(In) == 4 ? 3 : 1;
    const Weights p(s);
    const int64_t C = s.read, O = s.written, inputs = s.height * s.width, outputs = p.height * p.width;
    const int64_t copies = int64_t(p.copies.size()), lists = p.taps * p.in;
    // a chunk of images whose tiles stay in a second-level cache; enough of them to be worth the way of the sums
    const int64_t each = (copies * p.below * C + PARTS * p.rows * p.pitch * O) * 2;
    const int64_t least = std::min<int64_t>(8, C * O / 4096) * DEPTH / outputs;
    const int64_t chunk = std::min(std::max<int64_t>({1, least, KEPT / each}), s.images);
    const int64_t tiles = p.tiles(chunk), span = (chunk * p.below + 1) / 2 + DEPTH;  // tiles, and pairs of a copy
    // where each position of an image lies, in values; -1: nowhere
    std::vector<int64_t> read(copies * p.below, -1), written(p.rows * p.pitch, -1);
    for (int64_t k = 0; k < copies; k++)
        for (int64_t q = 0; q < p.below; q++) {
            const int64_t down = q / p.beside * s.stride + p.copies[k].down, column = q % p.beside;
            int64_t across = column * s.stride + p.copies[k].across, row = down;
            if (!p.joined && p.beside == p.pitch && p.pitch > p.width && across < 0) across = -1;
            if (row >= 0 && row < s.height && across >= 0 && across < s.width) read[k * p.below + q] = (row * s.width + across) * C;
        }
    for (int64_t i = 0; i < p.height; i++)
        for (int64_t j = 0; j < p.width; j++) written[i * p.pitch + j] = (i * p.width + j) * O;
    std::vector<int64_t> starts(tiles * PARTS);
    for (int64_t q = 0; q < tiles * PARTS; q++) starts[q] = p.pair(q / PARTS) * 64;
    static thread_local Kept kept_pairs, kept_turned;
    char *const pairs = kept_pairs.of(size_t(copies * p.in * span * 64));
    char *const turned = kept_turned.of(size_t(PARTS * tiles * p.out * TILE));
    alignas(64) static const Half zeros[64] = {};
    alignas(64) static const In none[64] = {};
    const int64_t step = p.taps * C * 4;  // bytes from a row of sums to the next
    for (int64_t first = 0; first < s.images; first += chunk) {
        const int64_t images = std::min(chunk, s.images - first), used = p.tiles(images);
        const Half *from = x + first * inputs * C;
        const In *gradients = dy + first * outputs * O;
        const int64_t all = images * p.below, half = p.joined ? used * DEPTH / 2 : all / 2;
#pragma omp parallel num_threads(s.threads)
        {
#pragma omp for schedule(static) nowait
            for (int64_t task = 0; task < copies * ((half + 63) / 64); task++) {
                const int64_t k = task % copies, begin = task / copies * 64, end = std::min(half, begin + 64);
                Walk<Half> walk(read.data() + k * p.below, from, p.below, inputs * C, images, 2 * begin);
                for (int64_t q = begin; q < end; q++) {
                    const Half *one = walk.next(), *other = walk.next();
                    if (k == 0 && one) ahead(one, 2 * C);
                    char *to = pairs + (k * p.in * span + q) * 64;
                    for (int64_t c = 0; c < p.in; c++, to += span * 64)
                        _mm512_store_si512(to, paired(one ? one + c * LANES : zeros, other ? other + c * LANES : zeros));
                }
            }
#pragma omp for schedule(static)
            for (int64_t q = 0; q < used; q++) {
                const In *places[DEPTH];
                Walk<In> walk(written.data(), gradients, p.rows * p.pitch, outputs * O, images, q * DEPTH);
                for (int64_t i = 0; i < DEPTH; i++) places[i] = walk.next();
                if (places[0]) ahead(places[0], DEPTH * O);
                for (int64_t o = 0; o < p.out * PARTS; o++) {
                    const int64_t part = o % PARTS, block = o / PARTS;
                    __m512i lines[16];
                    for (int64_t i = 0; i < 16; i++) {
                        const In *one = places[2 * i], *other = places[2 * i + 1];
                        lines[i] = paired(one ? one + block * LANES : none, other ? other + block * LANES : none, part);
                    }
                    turn(lines);
                    char *to = turned + ((block * tiles + q) * PARTS + part) * TILE;
                    for (int64_t i = 0; i < 16; i++) _mm512_store_si512(to + i * 64, lines[i]);
                }
            }
            Tiles shape(false);
            const auto of_list = [&](int64_t l) {
                const int64_t t = l / p.in;
                return pairs + ((p.copy[t] * p.in + l % p.in) * span + p.shift[t]) * 64;
            };
            const auto sum_of = [&](int64_t o, int64_t l) {  // in dw [written, taps, read]
                return (char *)(dw + (o * LANES * p.taps + l / p.in) * C + l % p.in * LANES);
            };
            const bool wide = p.out > 1;
            const int64_t group = wide ? 2 : 4, groups = (lists + group - 1) / group;
#pragma omp for schedule(static)
            for (int64_t task = 0; task < groups; task++) {
                const int64_t l = task * group, there = std::min(group, lists - l);
                const char *b[4];
                for (int64_t i = 0; i < 4; i++) b[i] = of_list(std::min(l + i, lists - 1));
                for (int64_t o = 0; o < p.out; o += 2) {
                    const bool two = o + 1 < p.out;
                    const char *a = turned + o * tiles * PARTS * TILE, *a2 = a + (two ? tiles * PARTS * TILE : 0);
                    char *sums[4];
                    for (int64_t i = 0; i < 4; i++) sums[i] = wide ? sum_of(o + i / 2, l + i % 2) : sum_of(o, l + i);
                    const bool have[4] = {true, there > 1, wide ? two : there > 2, wide ? two && there > 1 : there > 3};
                    if (first == 0) { ZERO(0); ZERO(1); ZERO(2); ZERO(3); }
                    else {
                        LOAD(0, sums[0], step);
                        if (have[1]) LOAD(1, sums[1], step);
                        if (have[2]) LOAD(2, sums[2], step);
                        if (have[3]) LOAD(3, sums[3], step);
                    }
                    if (wide)
                        for (int64_t q = 0; q < used * PARTS; q++) {
                            LOAD(4, a + q * TILE, 64);
                            LOAD(6, b[0] + starts[q], 64);
                            LOAD(7, b[1] + starts[q], 64);
                            LOAD(5, a2 + q * TILE, 64);
                            MULTIPLY(0, 4, 6);
                            MULTIPLY(1, 4, 7);
                            MULTIPLY(2, 5, 6);
                            MULTIPLY(3, 5, 7);
                        }
                    else
                        for (int64_t q = 0; q < used * PARTS; q++) {
                            LOAD(4, a + q * TILE, 64);
                            LOAD(5, b[0] + starts[q], 64);
                            MULTIPLY(0, 4, 5);
                            LOAD(6, b[1] + starts[q], 64);
                            MULTIPLY(1, 4, 6);
                            LOAD(7, b[2] + starts[q], 64);
                            MULTIPLY(2, 4, 7);
                            LOAD(5, b[3] + starts[q], 64);
                            MULTIPLY(3, 4, 5);
                        }
                    STORE(0, sums[0], step);
                    if (have[1]) STORE(1, sums[1], step);
                    if (have[2]) STORE(2, sums[2], step);
                    if (have[3]) STORE(3, sums[3], step);
                }
            }
        }
    }
}

}  // namespace

// Whether this process may use tiles.
extern "C" int spiketriton_tiles() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM of Linux
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// x [images, height, width, read], w [written, kernel, kernel, read] -> y [images, height', width', written]
extern "C" void spiketriton_tiles_output(const Sizes *s, const Half *x, const float *w, Half *y) {
    static thread_local Kept kept;
    const Plan p = forwards(*s);
    if (by_images_pays(p)) return by_images(p, *s, x, w, false, y);
    multiply(p, x, pack(p, *s, w, false, kept), y);
}

// dy, w -> dx, as x. Where a 1x1 kernel leaves pixels out, dx is 0 before.
extern "C" void spiketriton_tiles_by_input(const Sizes *s, const Half *dy, const float *w, Half *dx) {
    static thread_local Kept kept;
    const Plan p = backwards(*s);
    if (by_images_pays(p)) return by_images(p, *s, dy, w, true, dx);
    multiply(p, dy, pack(p, *s, w, true, kept), dx);
}

// The same in float32 of an x of spikes, whose values bfloat16 has: weights and dy are sums of three values of bfloat16.
extern "C" void spiketriton_spikes_output(const Sizes *s, const Half *x, const float *w, float *y) {
    static thread_local Kept kept;
    Plan p = forwards(*s);
    p.parts = 3;
    if (by_images_pays(p)) return by_images(p, *s, x, w, false, y);
    multiply(p, x, pack(p, *s, w, false, kept), y);
}

extern "C" void spiketriton_spikes_by_weight(const Sizes *s, const Half *x, const float *dy, float *dw) { by_weight(*s, x, dy, dw); }

// n values of float32 -> bfloat16. Whether they are finite and the same; else what is written is of no use.
extern "C" int spiketriton_spikes(int64_t n, int64_t threads, const float *x, Half *halves) {
    constexpr int64_t RUN = 4096;
    int differs = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : differs)
    for (int64_t start = 0; start < n; start += RUN) {
        if (differs) continue;
        const int64_t end = std::min(n, start + RUN);
        __m512i lost = _mm512_setzero_si512();
        __mmask16 infinite = 0;
        for (int64_t i = start; i < end; i += 16) {
            const __mmask16 there = end - i < 16 ? __mmask16((1u << (end - i)) - 1) : __mmask16(-1);
            const __m512i word = _mm512_maskz_loadu_epi32(there, x + i);
            lost = _mm512_or_si512(lost, word);
            infinite |= _mm512_cmpge_epu32_mask(_mm512_slli_epi32(word, 1), _mm512_set1_epi32(int(0xff000000u)));
            _mm512_mask_cvtepi32_storeu_epi16(halves + i, there, _mm512_srli_epi32(word, 16));
        }
        differs |= infinite || _mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff));
    }
    return !differs;
}

// x, dy -> dw, as w
extern "C" void spiketriton_tiles_by_weight(const Sizes *s, const Half *x, const Half *dy, float *dw) { by_weight(*s, x, dy, dw); }

#else

extern "C" int spiketriton_tiles() { return 0; }
extern "C" void spiketriton_tiles_output(const Sizes *, const void *, const void *, void *) {}
extern "C" void spiketriton_tiles_by_input(const Sizes *, const void *, const void *, void *) {}
extern "C" void spiketriton_tiles_by_weight(const Sizes *, const void *, const void *, void *) {}
extern "C" void spiketriton_spikes_output(const Sizes *, const void *, const void *, void *) {}
extern "C" void spiketriton_spikes_by_weight(const Sizes *, const void *, const void *, void *) {}
extern "C" int spiketriton_spikes(int64_t, int64_t, const void *, void *) { return 0; }

#endif
