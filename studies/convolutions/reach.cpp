// The gradient by the input of a 3x3 convolution, stride 1, padding 1, where a mask is set and nowhere else: a dot product of
// 9 * C for each element. dy [N, H + 2, W + 2, C] with a border of zeros, w [C, 9, C], mask and dx [N, H, W, C]; C a multiple of 16.
#include <immintrin.h>

#include <cstdint>

extern "C" void reach(int64_t N, int64_t H, int64_t W, int64_t C, const float *dy, const float *w, const uint8_t *mask, float *dx) {
    const int64_t row = (W + 2) * C;
    for (int64_t n = 0; n < N; n++)
        for (int64_t y = 0; y < H; y++)
            for (int64_t x = 0; x < W; x++) {
                const int64_t pixel = ((n * H + y) * W + x) * C;
                const float *at = dy + (n * (H + 2) + y) * row + x * C;
                for (int64_t first = 0; first < C; first += 16) {
                    _mm512_storeu_ps(dx + pixel + first, _mm512_setzero_ps());
                    unsigned left = _mm_test_epi8_mask(_mm_loadu_si128((const __m128i *)(mask + pixel + first)), _mm_set1_epi8(1));
                    for (; left; left &= left - 1) {
                        const int64_t c = first + __builtin_ctz(left);
                        __m512 sums[3] = {};
                        for (int64_t down = 0; down < 3; down++)
                            for (int64_t k = 0; k < C; k += 16)
                                for (int64_t across = 0; across < 3; across++)
                                    sums[across] = _mm512_fmadd_ps(_mm512_loadu_ps(at + down * row + across * C + k),
                                                                   _mm512_loadu_ps(w + (c * 9 + down * 3 + across) * C + k), sums[across]);
                        dx[pixel + c] = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], _mm512_add_ps(sums[1], sums[2])));
                    }
                }
            }
}
