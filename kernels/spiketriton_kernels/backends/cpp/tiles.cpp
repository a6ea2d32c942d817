// Convolutions in bfloat16 by AMX: matrix products of tiles, 16 pixels by 16 channels, of images that are channels_last.
// 3x3 and 1x1 kernels, padded by (k - 1) / 2, strides 1 and 2; channels read and written are multiples of 16. Products are
// summed up in float32 in an order that does not depend on the number of threads.

#include <cstdint>

// bits: whether x has one bit a spike, 16 channels in a word; floats: whether y and dy are float32, and x has spikes.
struct Sizes { int64_t images, height, width, read, written, kernel, stride, threads, bits, floats; };

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__BMI2__) && defined(__linux__)

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <memory>
#include <sys/syscall.h>
#include <type_traits>
#include <unistd.h>
#include <vector>

namespace {

constexpr int64_t TILE = 1024, LANES = 16, DEPTH = 32;  // bytes of a tile; its rows and columns; what one product sums up
constexpr int64_t KEPT = 384 << 10, WEIGHTS = 512 << 10;  // bytes of images and of weights that stay in a second-level cache
constexpr int64_t AHEAD = 2048;  // bytes
typedef uint16_t Half;
struct Word { uint16_t bits; };  // of 16 spikes
constexpr short ONE = 0x3f80;    // in bfloat16

// Where value i of a tensor is; of spikes as bits a multiple of 16.
template <class In>
inline const In *value_at(const In *x, int64_t i) { return x + i; }
inline const Word *value_at(const Word *x, int64_t i) { return x + i / 16; }

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

// A float32 is the sum of three values of bfloat16, which have eight bits each, the nearest first: the words of one of them,
// in their upper half. Of what is not finite the first is all.
inline __m512i nearest(__m512 v) {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000u)), word = _mm512_castps_si512(v);
    const __m512i near = _mm512_and_si512(_mm512_add_epi32(word, _mm512_set1_epi32(0x8000)), upper);
    // the largest numbers would become infinite
    const __mmask16 small = _mm512_cmplt_epu32_mask(_mm512_slli_epi32(near, 1), _mm512_set1_epi32(int(0xff000000u)));
    return _mm512_mask_blend_epi32(small, _mm512_and_si512(word, upper), near);
}
inline __mmask16 finite(__m512 v) { return _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ); }
inline __m512i piece(__m512 v, int64_t part) {
    const __m512i high = nearest(v);
    if (part == 0) return _mm512_mask_or_epi32(high, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x7fc00000));
    const __m512 rest = _mm512_maskz_sub_ps(finite(v), v, _mm512_castsi512_ps(high));
    const __m512i middle = nearest(rest);
    return part == 1 ? middle : _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(middle)));
}

inline __m512i paired(const Word *one, const Word *other) {
    return _mm512_maskz_set1_epi16(_pdep_u32(one->bits, 0x55555555) | _pdep_u32(other->bits, 0xaaaaaaaa), ONE);
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
    int64_t from_parts = 1;  // of each input

    int64_t pitch() const { return width + edge; }
    int64_t area() const { return (height + edge) * pitch(); }
    int64_t lead() const { return edge * (pitch() + 1); }
    int64_t planes() const { return edge ? split * split : 1; }  // of a kernel of one pixel only that under it
    // Parts of 16 channels lie side by side, so that tiles are full: the first and the second, and the third and the first.
    bool joined() const { return from_parts > 1 && from == LANES; }
    int64_t sets() const { return joined() ? 2 : from_parts; }   // of planes
    int64_t depth() const { return joined() ? DEPTH : from; }    // values of a pixel in a plane
    int64_t full() const { return depth() / DEPTH; }
    bool halves() const { return depth() % DEPTH != 0; }
};

// 16 values, into the first plane that has them and, of float32, their other parts into the planes `part` bytes behind.
inline __mmask16 copy(const Half *from, char *to, int64_t, bool) {
    _mm256_storeu_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    return __mmask16(-1);
}
inline __mmask16 copy(const Word *from, char *to, int64_t, bool) {
    _mm256_storeu_si256((__m256i *)to, _mm256_maskz_set1_epi16(from->bits, ONE));
    return __mmask16(-1);
}
inline __mmask16 copy(const float *from, char *to, int64_t part, bool joined) {
    const __m512 v = _mm512_loadu_ps(from);
    const __m512i high = nearest(v);
    const __m512 rest = _mm512_sub_ps(v, _mm512_castsi512_ps(high));
    const __m512i middle = nearest(rest), low = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(middle)));
    const auto upper = [](__m512i words) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)); };
    __m256i *const first = (__m256i *)to, *const second = (__m256i *)(to + part);
    _mm256_storeu_si256(first, upper(high));
    _mm256_storeu_si256(joined ? first + 1 : second, upper(middle));
    _mm256_storeu_si256(joined ? second : (__m256i *)(to + 2 * part), upper(low));
    if (joined) _mm256_storeu_si256(second + 1, upper(high));
    return finite(v);
}

// Images in planes [part, plane, pixel, channel], from `first` on. Whether all values are finite; of bfloat16 nobody asks.
template <class In>
bool copy_planes(const Plan &p, const In *x, int64_t images, int64_t length, Half *planes) {
    const int64_t C = p.from, bytes = p.depth() * 2, part = p.planes() * length * bytes, value = bytes / C;
    const bool joined = p.joined();
    __mmask16 good = __mmask16(-1);
    for (int64_t plane = 0; plane < p.planes(); plane++) {
        const int64_t down = plane / p.split, across = plane % p.split;
        const int64_t rows = (p.from_height - down + p.split - 1) / p.split;
        const int64_t columns = (p.from_width - across + p.split - 1) / p.split;
        char *base = (char *)planes + plane * length * bytes, *to = base;
        const auto zeros = [&](char *at, int64_t size) {
            for (int64_t q = 0; q < p.sets(); q++) std::memset(at + q * part, 0, size);
        };
        zeros(to, p.lead() * bytes);
        to += p.lead() * bytes;
        for (int64_t n = 0; n < images; n++) {
            const In *image = value_at(x, n * p.from_height * p.from_width * C);
            for (int64_t i = 0; i < p.height + p.edge; i++, to += p.pitch() * bytes) {
                if (i >= rows) {
                    zeros(to, p.pitch() * bytes);
                    continue;
                }
                const In *row = value_at(image, ((i * p.split + down) * p.from_width + across) * C);
                if (p.split == 1 && std::is_same<In, Half>()) std::memcpy(to, row, columns * bytes);
                else if (p.split == 1)
                    for (int64_t c = 0; c < columns * C; c += LANES) good &= copy(value_at(row, c), to + c * value, part, joined);
                else
                    for (int64_t j = 0; j < columns; j++)
                        for (int64_t c = 0; c < C; c += LANES) good &= copy(value_at(row, j * p.split * C + c), to + j * bytes + c * value, part, joined);
                zeros(to + columns * bytes, (p.pitch() - columns) * bytes);
            }
        }
        zeros(to, base + length * bytes - to);
    }
    return good == __mmask16(-1);
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
// part, from_part: of the weights, and of what is read the set; behind: of the weights in a tile's second half.
struct Order { int64_t tap, channel, pairs, part, from_part = 0, behind = 0; };
std::vector<Order> order_of_parts(const Plan &p, const Class &c);
std::vector<Order> order_of(const Plan &p, const Class &c) {
    std::vector<Order> found;
    for (Order step : order_of_parts(p, c))
        if (p.joined()) found.insert(found.end(), {{step.tap, 0, 2, 0, 0, 0}, {step.tap, 0, 2, 1, 0, 1}, {step.tap, 0, 2, 0, 1, 2}});
        else
            for (step.from_part = 0; step.from_part < p.from_parts; step.from_part++)  // products below a float32's last bit are left out
                for (step.part = 0; step.part < p.parts - step.from_part; step.part++) step.behind = step.part, found.push_back(step);
    return found;
}
std::vector<Order> order_of_parts(const Plan &p, const Class &c) {
    std::vector<Order> found;
    const int64_t taps = int64_t(c.taps.size());
    if (p.depth() == LANES) {  // two taps that are neighbours in a row lie together in memory
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

inline __m512 values(const Half *of) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)of)), 16)); }
inline __m512 values(const float *of) { return _mm512_loadu_ps(of); }
// 16 sums, and what is added to them, if anything is.
template <class Out>
inline __m512 summed(const float *row, const Out *more) { return more ? _mm512_add_ps(_mm512_load_ps(row), values(more)) : _mm512_load_ps(row); }
// What is written of 16 or 32 sums, and that in float32, which is what a norm behind it reads.
inline __m512 wide(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
inline __m512 write(Half *to, __m512 sums) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(sums);
    _mm256_storeu_si256((__m256i *)to, halves);
    return wide(halves);
}
inline __m512 write(float *to, __m512 sums) { return _mm512_storeu_ps(to, sums), sums; }
struct Two { __m512 of[2]; };
inline Two write(Half *to, __m512 low, __m512 high) {
    const __m512i halves = rounded(low, high);
    _mm512_storeu_si512(to, halves);
    return {{wide(_mm512_castsi512_si256(halves)), wide(_mm512_extracti64x4_epi64(halves, 1))}};
}
inline Two write(float *to, __m512 low, __m512 high) { return {{write(to, low), write(to + LANES, high)}}; }

// Of what is written the mean of each channel and the sum of the squares about it: in float32 of about RUN pixels, whose distances
// are from the mean of the first of them, and in double of those together (Chan et al. 1979), chunk of images by chunk.
struct Moments {
    static constexpr int64_t RUN = 256;
    struct Run { __m512 about{}, distances{}, powers{}; int64_t n = 0; };  // powers: the distances squared
    const int64_t channels;
    std::vector<double> means, squares, counts;  // of each chunk: by channel; by 16 channels
    std::vector<Run> runs;                       // as counts
    Moments(int64_t chunks, int64_t channels)
        : channels(channels), means(chunks * channels), squares(chunks * channels), counts(chunks * channels / LANES), runs(counts.size()) {}

    // Of the 16 channels at a place among the runs.
    void end(int64_t at) {
        Run &run = runs[at];
        if (!run.n) return;
        const double n = double(run.n), share = n / (counts[at] + n);
        const __m512d part = _mm512_set1_pd(1 / n), moved = _mm512_set1_pd(share), spread = _mm512_set1_pd(counts[at] * share);
        const auto half = [](__m512 v, int h) { return _mm512_cvtps_pd(h ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v)); };
        for (int h = 0; h < 2; h++) {
            double *mean = &means[at * LANES + 8 * h], *square = &squares[at * LANES + 8 * h];
            const __m512d sums = half(run.distances, h), away = _mm512_mul_pd(sums, part), before = _mm512_loadu_pd(mean);
            const __m512d step = _mm512_sub_pd(_mm512_add_pd(half(run.about, h), away), before);
            const __m512d own = _mm512_fnmadd_pd(sums, away, half(run.powers, h)), between = _mm512_mul_pd(_mm512_mul_pd(step, step), spread);
            _mm512_storeu_pd(mean, _mm512_fmadd_pd(step, moved, before));
            _mm512_storeu_pd(square, _mm512_add_pd(_mm512_loadu_pd(square), _mm512_add_pd(own, between)));
        }
        counts[at] += n;
        run = Run();
    }

    // found [2, channels]: mean and biased variance.
    void join(double *found) {
        for (size_t at = 0; at < runs.size(); at++) end(int64_t(at));
        for (int64_t c = 0; c < channels; c++) {
            double n = 0, mean = 0, square = 0;
            for (int64_t at = c; at < int64_t(means.size()); at += channels) {
                const double more = counts[at / LANES], step = means[at] - mean;
                if (more == 0) continue;
                mean += step * (more / (n + more));
                square += squares[at] + step * step * (n * more / (n + more));
                n += more;
            }
            found[c] = mean, found[channels + c] = square / n;
        }
    }
};

// Sums of tiles of pixels, `pitch` floats apart, by one or two of channels, of those pixels that have a place, and `more` of the
// same shape. moments: gets what is written, from a channel of a chunk on; or null.
template <class Out>
void write_sums(
    const float *sums, int64_t tiles, int64_t pitch, int64_t side, const int32_t *places, Out *y, const Out *more, int64_t channels,
    Moments *moments = nullptr, int64_t chunk = 0, int64_t channel = 0
) {
    if (!moments) {
        for (int64_t m = 0; m < tiles; m++)
            for (int64_t i = 0; i < 16; i++) {
                const int32_t place = places[m * 16 + i];
                if (place < 0) continue;
                const float *row = sums + m * pitch + i * 16;
                const Out *added = more ? more + place * channels : nullptr;
                if (side == 2) write(y + place * channels, summed(row, added), summed(row + 256, added ? added + LANES : nullptr));
                else write(y + place * channels, summed(row, added));
            }
        return;
    }
    const int64_t first = (chunk * channels + channel) / LANES;
    Moments::Run now[2];
    for (int64_t o = 0; o < side; o++) now[o] = moments->runs[first + o];
    int64_t n = 0;
    for (int64_t i = 0; i < tiles * 16; i++) n += places[i] >= 0;
    if (!n) return;
    if (!now[0].n) {
        const __m512 share = _mm512_set1_ps(1 / float(n));
        for (int64_t i = 0; i < tiles * 16; i++) {
            if (places[i] < 0) continue;
            for (int64_t o = 0; o < side; o++)
                now[o].about = _mm512_fmadd_ps(_mm512_load_ps(sums + i / 16 * pitch + o * 256 + i % 16 * 16), share, now[o].about);
        }
        if (sizeof(Out) == 2)  // distances of values of few bits from one of few bits are exact
            for (auto &run : now) run.about = wide((__m256i)_mm512_cvtneps_pbh(run.about));
    }
    __m512 distances[2] = {}, powers[2] = {};
    const auto gather = [&](int o, __m512 v) {
        v = _mm512_sub_ps(v, now[o].about);
        distances[o] = _mm512_add_ps(distances[o], v);
        powers[o] = _mm512_fmadd_ps(v, v, powers[o]);
    };
    for (int64_t m = 0; m < tiles; m++)
        for (int64_t i = 0; i < 16; i++) {
            const int32_t place = places[m * 16 + i];
            if (place < 0) continue;
            const float *row = sums + m * pitch + i * 16;
            if (side == 2) {
                const Two both = write(y + place * channels, _mm512_load_ps(row), _mm512_load_ps(row + 256));
                gather(0, both.of[0]), gather(1, both.of[1]);
            } else
                gather(0, write(y + place * channels, _mm512_load_ps(row)));
        }
    for (int64_t o = 0; o < side; o++) {
        now[o].n += n;
        now[o].distances = _mm512_add_ps(now[o].distances, distances[o]);
        now[o].powers = _mm512_add_ps(now[o].powers, powers[o]);
        moments->runs[first + o] = now[o];
        if (now[o].n >= Moments::RUN) moments->end(first + o);
    }
}

// b: weights by class, 16 channels written, step: tiles of pairs of channels read. more: is added to y; or null.
// found: as of `Moments::join`; or null. Whether all x are finite, if they are float32; else what is written is of no use.
template <class In, class Out>
bool multiply(const Plan &p, const In *x, const std::vector<const char *> &b, Out *y, const Out *more = nullptr, double *found = nullptr) {
    const bool copied = p.edge || p.split > 1 || !std::is_same<In, Half>();
    const int64_t bytes = p.depth() * 2, blocks = p.to / LANES;
    const int64_t each = p.area() * p.planes() * p.sets() * bytes;
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
            found.push_back((((o.from_part * p.planes() + t.plane) * length + p.lead() + t.down * p.pitch() + t.across) * p.depth() + o.channel) * 2);
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
    Moments moments(found ? chunks : 0, p.to);
    Moments *const gathers = found ? &moments : nullptr;
    int bad = 0;
#pragma omp parallel num_threads(p.threads) reduction(| : bad)
    {
        static thread_local Kept kept;
        alignas(64) float sums[1024];
        Tiles tiles(halves);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < chunks; at++) {
            const int64_t first = at * chunk, images = std::min(chunk, p.images - first);
            if (images <= 0) continue;
            const In *from = value_at(x, first * p.from_height * p.from_width * p.from);
            Out *to = y + first * p.to_height * p.to_width * p.to;
            const Out *added = more ? more + first * p.to_height * p.to_width * p.to : nullptr;
            const int64_t end = images * p.area();
            Half *planes = (Half *)kept.of(size_t(length * p.planes() * p.sets() * bytes));
            if (copied) bad |= !copy_planes(p, from, images, length, planes);
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
                            write_sums(sums, 2, 512, 2, where, to + o * LANES, added ? added + o * LANES : nullptr, p.to, gathers, at, o * LANES);
                        } else {
                            if (wide == 64) four_by_one(a, bytes, off.data(), full, steps, one, sums);
                            else two_by_one(a, bytes, off.data(), steps, one, sums);
                            write_sums(sums, wide / 16, 256, 1, where, to + o * LANES, added ? added + o * LANES : nullptr, p.to, gathers, at, o * LANES);
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
    if (found) moments.join(found);
    return !bad;
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
            const __m512i both = weights_of(_mm512_loadu_ps(one), _mm512_loadu_ps(one + taps * s.read), parts, second ? step.behind : step.part);
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
                const bool two_taps = p.depth() == LANES && step.pairs == 2;
                const int64_t next = two_taps ? tap[1].place : p.joined() ? tap->place : -1;
                pack_tile(s, w, turned, o, tap->place, next, step, p.parts, at);
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

template <class In, class Out>
void by_images(
    const Plan &p, const Sizes &s, const In *x, const float *w, bool turned, Out *y, const Out *more = nullptr, double *found = nullptr
) {
    Moments moments(found ? 1 : 0, p.to);
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
            if (n >= p.images) std::memset(images + n * step, 0, size);
            else
                for (int64_t i = 0; i < size / 2; i += LANES) copy(value_at(x, n * size / 2 + i), images + n * step + i * 2, 0, false);
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
                    alignas(64) int32_t places[32];
                    for (int64_t i = 0; i < 32; i++) places[i] = g * 32 + i < p.images ? int32_t((g * 32 + i) * pixels + pixel.at) : -1;
                    const Out *added = more ? more + o * LANES : nullptr;
                    write_sums(sums, 2, 512, two ? 2 : 1, places, y + o * LANES, added, p.to, found ? &moments : nullptr, 0, o * LANES);
                }
            }
        }
    }
    if (found) moments.join(found);
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
        : table(table), base(value_at(base, begin / area * image)), area(area), image(image), images(images), n(begin / area), r(begin % area) {}
    const In *next() {
        const int64_t place = n < images ? table[r] : -1;
        const In *found = place < 0 ? nullptr : value_at(base, place);
        if (++r == area) r = 0, n++, base = value_at(base, image);
        return found;
    }
};

// Of 16 channels written, by up to six lists at a time.
template <class OfList, class SumOf>
void by_six(
    int64_t used, const int64_t *starts, bool begins, const char *a, int64_t lists, OfList of_list, SumOf sum_of, int64_t step
) {
    constexpr int64_t GROUP = 6;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (lists + GROUP - 1) / GROUP; task++) {
        const int64_t l = task * GROUP, there = std::min(GROUP, lists - l);
        const char *b[GROUP];
        char *sums[GROUP];
        for (int64_t i = 0; i < there; i++) b[i] = of_list(l + i), sums[i] = sum_of(l + i);
#define EACH(go) go(0) if (there > 1) { go(1) } if (there > 2) { go(2) } if (there > 3) { go(3) } if (there > 4) { go(4) } if (there > 5) { go(5) }
#define CLEAR(i) ZERO(i);
#define FETCH(i) LOAD(i, sums[i], step);
#define ADD(i) LOAD(7, b[i] + starts[q], 64); MULTIPLY(i, 6, 7);
#define LEAVE(i) STORE(i, sums[i], step);
        if (begins) { EACH(CLEAR) } else { EACH(FETCH) }
        for (int64_t q = 0; q < used; q++) {
            LOAD(6, a + q * TILE, 64);
            EACH(ADD)
        }
        EACH(LEAVE)
#undef EACH
#undef CLEAR
#undef FETCH
#undef ADD
#undef LEAVE
    }
}

template <class Read, class In>
void by_weight(const Sizes &s, const Read *x, const In *dy, float *dw) {
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
    alignas(64) static const Read zeros[64] = {};
    alignas(64) static const In none[64] = {};
    const int64_t step = p.taps * C * 4;  // bytes from a row of sums to the next
    for (int64_t first = 0; first < s.images; first += chunk) {
        const int64_t images = std::min(chunk, s.images - first), used = p.tiles(images);
        const Read *from = value_at(x, first * inputs * C);
        const In *gradients = dy + first * outputs * O;
        const int64_t all = images * p.below, half = p.joined ? used * DEPTH / 2 : all / 2;
#pragma omp parallel num_threads(s.threads)
        {
#pragma omp for schedule(static) nowait
            for (int64_t task = 0; task < copies * ((half + 63) / 64); task++) {
                const int64_t k = task % copies, begin = task / copies * 64, end = std::min(half, begin + 64);
                Walk<Read> walk(read.data() + k * p.below, from, p.below, inputs * C, images, 2 * begin);
                for (int64_t q = begin; q < end; q++) {
                    const Read *one = walk.next(), *other = walk.next();
                    if (k == 0 && one && std::is_same<Read, Half>()) ahead(one, 2 * C);
                    char *to = pairs + (k * p.in * span + q) * 64;
                    for (int64_t c = 0; c < p.in; c++, to += span * 64)
                        _mm512_store_si512(to, paired(one ? value_at(one, c * LANES) : zeros, other ? value_at(other, c * LANES) : zeros));
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
            const bool narrow = p.out == 1;
            if (narrow) by_six(used * PARTS, starts.data(), first == 0, turned, lists, of_list, [&](int64_t l) { return sum_of(0, l); }, step);
            constexpr int64_t group = 2;
            const int64_t groups = narrow ? 0 : (lists + group - 1) / group;
#pragma omp for schedule(static)
            for (int64_t task = 0; task < groups; task++) {
                const int64_t l = task * group, there = std::min(group, lists - l);
                const char *b[2];
                for (int64_t i = 0; i < 2; i++) b[i] = of_list(std::min(l + i, lists - 1));
                for (int64_t o = 0; o < p.out; o += 2) {
                    const bool two = o + 1 < p.out;
                    const char *a = turned + o * tiles * PARTS * TILE, *a2 = a + (two ? tiles * PARTS * TILE : 0);
                    char *sums[4];
                    for (int64_t i = 0; i < 4; i++) sums[i] = sum_of(o + i / 2, l + i % 2);
                    const bool have[4] = {true, there > 1, two, two && there > 1};
                    if (first == 0) { ZERO(0); ZERO(1); ZERO(2); ZERO(3); }
                    else {
                        LOAD(0, sums[0], step);
                        if (have[1]) LOAD(1, sums[1], step);
                        if (have[2]) LOAD(2, sums[2], step);
                        if (have[3]) LOAD(3, sums[3], step);
                    }
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

// x [images, height, width, read], w [written, kernel, kernel, read] -> y [images, height', width', written], and its moments,
// as of `Moments::join`, if they are not null. In float32 of an x of spikes, whose values bfloat16 has: weights and dy are sums
// of three values of bfloat16.
template <class In, class Out>
void output(const Sizes &s, const In *x, const float *w, double *moments, Out *y) {
    static thread_local Kept kept;
    Plan p = forwards(s);
    p.parts = s.floats ? 3 : 1;
    if (by_images_pays(p)) return by_images(p, s, x, w, false, y, (const Out *)nullptr, moments);
    multiply(p, x, pack(p, s, w, false, kept), y, (const Out *)nullptr, moments);
}
template <class In>
void output_of(const Sizes &s, const In *x, const float *w, double *moments, void *y) {
    s.floats ? output(s, x, w, moments, (float *)y) : output(s, x, w, moments, (Half *)y);
}
extern "C" void spiketriton_tiles_output(const Sizes *s, const void *x, const float *w, double *moments, void *y) {
    s->bits ? output_of(*s, (const Word *)x, w, moments, y) : output_of(*s, (const Half *)x, w, moments, y);
}

// x, dy -> dw, as w
template <class In>
void by_weight_of(const Sizes &s, const In *x, const void *dy, float *dw) { s.floats ? by_weight(s, x, (const float *)dy, dw) : by_weight(s, x, (const Half *)dy, dw); }
extern "C" void spiketriton_tiles_by_weight(const Sizes *s, const void *x, const void *dy, float *dw) {
    s->bits ? by_weight_of(*s, (const Word *)x, dy, dw) : by_weight_of(*s, (const Half *)x, dy, dw);
}

// dy, w -> dx, as x, to which `more` is added if it is not null. Where a 1x1 kernel leaves pixels out, dx is that before, or 0.
extern "C" void spiketriton_tiles_by_input(const Sizes *s, const Half *dy, const float *w, const Half *more, Half *dx) {
    static thread_local Kept kept;
    const Plan p = backwards(*s);
    if (by_images_pays(p)) return by_images(p, *s, dy, w, true, dx, more);
    multiply(p, dy, pack(p, *s, w, true, kept), dx, more);
}

// The same in float32, of three parts each. Whether dy and w are finite; else what is written is of no use.
extern "C" int spiketriton_floats_by_input(const Sizes *s, const float *dy, const float *w, const float *more, float *dx) {
    static thread_local Kept kept;
    Plan p = backwards(*s);
    p.parts = p.from_parts = 3;
    const int64_t weights = s->written * s->kernel * s->kernel * s->read;
    __mmask16 good = __mmask16(-1);
    for (int64_t i = 0; i < weights; i += LANES) good &= finite(_mm512_loadu_ps(w + i));
    return good == __mmask16(-1) && multiply(p, dy, pack(p, *s, w, true, kept), dx, more);
}

// Whether `run(start, end)` says so of all runs of n values. None begins on a thread that has met another.
template <int64_t RUN, class Run>
int all_runs(int64_t n, int64_t threads, Run run) {
    int differs = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : differs)
    for (int64_t start = 0; start < n; start += RUN)
        if (!differs) differs = !run(start, std::min(n, start + RUN));
    return !differs;
}

// n values of float32 -> bfloat16. Whether they are finite and the same; else what is written is of no use.
extern "C" int spiketriton_spikes(int64_t n, int64_t threads, const float *x, Half *halves) {
    return all_runs<4096>(n, threads, [=](int64_t start, int64_t end) {
        __m512i lost = _mm512_setzero_si512();
        __mmask16 infinite = 0;
        for (int64_t i = start; i < end; i += 16) {
            const __mmask16 there = end - i < 16 ? __mmask16((1u << (end - i)) - 1) : __mmask16(-1);
            const __m512i word = _mm512_maskz_loadu_epi32(there, x + i);
            lost = _mm512_or_si512(lost, word);
            infinite |= _mm512_cmpge_epu32_mask(_mm512_slli_epi32(word, 1), _mm512_set1_epi32(int(0xff000000u)));
            _mm512_mask_cvtepi32_storeu_epi16(halves + i, there, _mm512_srli_epi32(word, 16));
        }
        return !infinite && !_mm512_test_epi32_mask(lost, _mm512_set1_epi32(0xffff));
    });
}

// n values, a multiple of 16, of 0 and 1 -> bits. Whether they are that; else what is written is of no use.
template <class In>
int bits_of(int64_t n, int64_t threads, const In *x, Word *bits) {
    return all_runs<16384>(n, threads, [=](int64_t start, int64_t end) {
        unsigned all = 0xffff;
        for (int64_t i = start; i < end; i += 16) {
            __mmask16 fired, none;
            if constexpr (sizeof(In) == 4) {
                const __m512i v = _mm512_loadu_si512(x + i);
                fired = _mm512_cmpeq_epi32_mask(v, _mm512_set1_epi32(0x3f800000)), none = _mm512_testn_epi32_mask(v, v);
            } else {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(x + i));
                fired = _mm256_cmpeq_epi16_mask(v, _mm256_set1_epi16(ONE)), none = _mm256_testn_epi16_mask(v, v);
            }
            bits[i / 16].bits = fired;
            all &= fired | none;
        }
        return all == 0xffff;
    });
}
extern "C" int spiketriton_bits(int64_t n, int64_t threads, int floats, const void *x, Word *bits) {
    return floats ? bits_of(n, threads, (const float *)x, bits) : bits_of(n, threads, (const Half *)x, bits);
}

#else

extern "C" int spiketriton_tiles() { return 0; }
extern "C" void spiketriton_tiles_output(const Sizes *, const void *, const void *, void *, void *) {}
extern "C" void spiketriton_tiles_by_input(const Sizes *, const void *, const void *, const void *, void *) {}
extern "C" int spiketriton_floats_by_input(const Sizes *, const void *, const void *, const void *, void *) { return 0; }
extern "C" void spiketriton_tiles_by_weight(const Sizes *, const void *, const void *, void *) {}
extern "C" int spiketriton_bits(int64_t, int64_t, int, const void *, void *) { return 0; }
extern "C" int spiketriton_spikes(int64_t, int64_t, const void *, void *) { return 0; }

#endif
