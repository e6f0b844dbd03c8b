// The three machines: a vector of LANES numbers, and dots of weights of few bits with activations of eight.
//
// A panel holds LANES outputs, one in each lane of a vector; four neighbouring inputs of one output fill a lane. A
// row's four activations are sent to all lanes, and no sum ever crosses lanes. Eight products of a nibble and an
// activation fit 16 bits (2 · 8 · 15 · 127 = 30480), so AVX2 widens once for every 32 inputs.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define WITH_VNNI
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define WITH_AVX2
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { MAX_PANELS = 4 };  // neighbours that are multiplied together, at most

// Panels are short, and at the beginning of each the processor has yet to find out that it is read from end to end.
// So while one is multiplied, what stands `ahead` bytes behind it is fetched, into the second cache.
INLINE void fetch(const uint8_t *quants, ptrdiff_t ahead) { __builtin_prefetch(quants + ahead, 0, 2); }

#if defined(WITH_VNNI)

enum { LANES = 16, MAX_ROWS = 8 };
typedef __m512i Ints;
typedef __m512 Floats;

INLINE Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
INLINE Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats load_floats(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store_floats(float *p, Floats x) { _mm512_storeu_ps(p, x); }
INLINE Floats load_halves(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE Ints load_bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
INLINE Floats load_exponents(const uint8_t *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(load_bytes(p), 23)); }

INLINE Floats load_fp8(const uint8_t *p) {  // too small by 2^8: as fp16, whose exponents have another bias
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p));
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((short)0xBFFF)));
}

INLINE Ints four(const int8_t *activations) {
    int32_t x;
    memcpy(&x, activations, 4);
    return _mm512_set1_epi32(x);
}

typedef int8_t Activation4;  // as nibbles want them
typedef int8_t Activation8;  // as bytes want them

INLINE void dot_bytes(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                      const Activation8 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead) {
    for (int k = 0; k < num_inputs; k += 4) {
        Ints weights[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k * LANES, ahead);
            weights[p] = _mm512_loadu_si512(quants[p] + k * LANES);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            Ints x = four(activations[r] + k);
            UNROLL for (int p = 0; p < panels; p++) sums[p][r] = _mm512_dpbusd_epi32(sums[p][r], weights[p], x);
        }
    }
}

INLINE void dot_nibbles(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead,
                        const int8_t *table) {
    const Ints mask = _mm512_set1_epi8(15);
    Ints values = table ? _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)) : mask;
    for (int k = 0; k < num_inputs; k += 8) {
        Ints low[MAX_PANELS], high[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k / 2 * LANES, ahead);
            Ints both = _mm512_loadu_si512(quants[p] + k / 2 * LANES);
            low[p] = _mm512_and_si512(both, mask);
            high[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
            if (table) low[p] = _mm512_shuffle_epi8(values, low[p]), high[p] = _mm512_shuffle_epi8(values, high[p]);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            Ints x = four(activations[r] + k), y = four(activations[r] + k + 4);
            UNROLL for (int p = 0; p < panels; p++) {
                sums[p][r] = _mm512_dpbusd_epi32(sums[p][r], low[p], x);
                sums[p][r] = _mm512_dpbusd_epi32(sums[p][r], high[p], y);
            }
        }
    }
}

#elif defined(WITH_AVX2)

enum { LANES = 8, MAX_ROWS = 4 };
typedef __m256i Ints;
typedef __m256 Floats;

INLINE Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
INLINE Floats all_floats(float x) { return _mm256_set1_ps(x); }
INLINE Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats load_floats(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store_floats(float *p, Floats x) { _mm256_storeu_ps(p, x); }
INLINE Floats load_halves(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
INLINE Ints load_bytes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
INLINE Floats load_exponents(const uint8_t *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(load_bytes(p), 23)); }

INLINE Floats load_fp8(const uint8_t *p) {
    __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const void *)p));
    return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16((short)0xBFFF)));
}

INLINE Ints four(const void *activations) {
    int32_t x;
    memcpy(&x, activations, 4);
    return _mm256_set1_epi32(x);
}

// 255 · 127 · 2 does not fit 16 bits, so bytes are widened first: the even ones, then the odd ones of each four.
typedef int8_t Activation4;
typedef int16_t Activation8;

INLINE void dot_bytes(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                      const Activation8 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead) {
    for (int k = 0; k < num_inputs; k += 4) {
        Ints even[MAX_PANELS], odd[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k * LANES, ahead);
            Ints both = _mm256_loadu_si256((const void *)(quants[p] + k * LANES));
            even[p] = _mm256_and_si256(both, _mm256_set1_epi16(255));
            odd[p] = _mm256_srli_epi16(both, 8);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            Ints x = four(activations[r] + k), y = four(activations[r] + k + 2);
            UNROLL for (int p = 0; p < panels; p++) {
                sums[p][r] = _mm256_add_epi32(sums[p][r], _mm256_madd_epi16(even[p], x));
                sums[p][r] = _mm256_add_epi32(sums[p][r], _mm256_madd_epi16(odd[p], y));
            }
        }
    }
}

INLINE void dot_nibbles(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead,
                        const int8_t *table) {
    const Ints mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int run = table ? 16 : 32;  // inputs whose products fit 16 bits: those of a table go up to 24
    Ints values = table ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)) : mask;
    for (int start = 0; start < num_inputs; start += run) {
        Ints narrow[MAX_PANELS][MAX_ROWS];
        UNROLL for (int k = start; k < start + run; k += 8) {
            Ints low[MAX_PANELS], high[MAX_PANELS];
            UNROLL for (int p = 0; p < panels; p++) {
                fetch(quants[p] + k / 2 * LANES, ahead);
                Ints both = _mm256_loadu_si256((const void *)(quants[p] + k / 2 * LANES));
                low[p] = _mm256_and_si256(both, mask);
                high[p] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
                if (table) low[p] = _mm256_shuffle_epi8(values, low[p]), high[p] = _mm256_shuffle_epi8(values, high[p]);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                Ints x = four(activations[r] + k), y = four(activations[r] + k + 4);
                UNROLL for (int p = 0; p < panels; p++) {
                    Ints first = _mm256_maddubs_epi16(low[p], x);
                    narrow[p][r] = k == start ? first : _mm256_add_epi16(narrow[p][r], first);
                    narrow[p][r] = _mm256_add_epi16(narrow[p][r], _mm256_maddubs_epi16(high[p], y));
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int p = 0; p < panels; p++)
                sums[p][r] = _mm256_add_epi32(sums[p][r], _mm256_madd_epi16(narrow[p][r], ones));
    }
}

#else  // any processor, by way of the vectors that GCC and Clang know

enum { LANES = 8, MAX_ROWS = 4 };
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

INLINE Ints all_ints(int32_t x) { return (Ints){} + x; }
INLINE Floats all_floats(float x) { return (Floats){} + x; }
INLINE Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
INLINE Floats add(Floats a, Floats b) { return a + b; }
INLINE Floats mul(Floats a, Floats b) { return a * b; }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE void store_floats(float *p, Floats x) { memcpy(p, &x, sizeof x); }

INLINE Floats load_floats(const float *p) {
    Floats x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE Ints load_bytes(const uint8_t *p) { return (Ints){p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}; }
INLINE Floats load_exponents(const uint8_t *p) { return (Floats)(load_bytes(p) << 23); }

INLINE Floats of_halves(Ints x) {  // 2^112 mends the exponent, and makes normal what was subnormal
    return (Floats)((x & 0x8000) << 16 | (x & 0x7FFF) << 13) * 0x1p112f;
}

INLINE Floats load_halves(const uint16_t *p) {
    return of_halves((Ints){p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]});
}

INLINE Floats load_fp8(const uint8_t *p) {
    Ints x = load_bytes(p);
    return of_halves((x & 0x80) << 8 | (x & 0x7F) << 7);
}

INLINE Shorts load_shorts(const uint8_t *p) {
    Shorts x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE Shorts two(const int16_t *activations) {
    int32_t x;
    memcpy(&x, activations, 4);
    return (Shorts)((Ints){} + x);
}

INLINE Ints widened(Shorts x) { return ((Ints)x << 16 >> 16) + ((Ints)x >> 16); }

typedef int16_t Activation4;
typedef int16_t Activation8;

INLINE void dot_bytes(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                      const Activation8 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead) {
    for (int k = 0; k < num_inputs; k += 4) {
        Shorts even[MAX_PANELS], odd[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            Shorts both = load_shorts(quants[p] + k * LANES);
            even[p] = both & 255;
            odd[p] = both >> 8;
        }
        UNROLL for (int r = 0; r < rows; r++) {
            Shorts x = two(activations[r] + k), y = two(activations[r] + k + 2);
            UNROLL for (int p = 0; p < panels; p++) sums[p][r] += widened(even[p] * x) + widened(odd[p] * y);
        }
    }
}

// Values of E2M1, doubled and raised by 12, as MXFP4_TABLE has them: looking up is slow where no instruction does it.
INLINE Shorts mxfp4_value(Shorts code) {
    Shorts x = code & 7;
    x += ((Shorts)(x > 6) & 3) - (Shorts)(x > 4) - (Shorts)(x > 5);
    Shorts minus = (Shorts)(code > 7);
    return (x ^ minus) - minus + 12;
}

INLINE void dot_nibbles(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, ptrdiff_t ahead,
                        const int8_t *table) {
    const int run = table ? 16 : 32;
    for (int start = 0; start < num_inputs; start += run) {
        Shorts narrow[MAX_PANELS][MAX_ROWS];
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++) narrow[p][r] = (Shorts){};
        for (int k = start; k < start + run; k += 8)
            UNROLL for (int p = 0; p < panels; p++) {
                Shorts all = load_shorts(quants[p] + k / 2 * LANES);
                Shorts values[4] = {all & 15, all >> 8 & 15, all >> 4 & 15, all >> 12};
                UNROLL for (int i = 0; i < 4; i++) {
                    if (table) values[i] = mxfp4_value(values[i]);
                    UNROLL for (int r = 0; r < rows; r++)
                        narrow[p][r] += values[i] * two(activations[r] + k + 2 * i);
                }
            }
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++) sums[p][r] += widened(narrow[p][r]);
    }
}

#endif
