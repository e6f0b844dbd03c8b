// Linear layers with weights of 8 or 4 bits and activations quantised on the way in, to 8 bits in groups of a row.
//
// What is computed is exact but for a few roundings, always the same and in the same order:
//     out = (dot_1 · scale_1) · row_scale_1 + (dot_2 · scale_2) · row_scale_2 + … + bias
//     dot_g = Σ quant · activation - zero · Σ activation
// where int8, whose weights have one scale for all of a row, is multiplied with it at the end. Groups of activations
// are those of the weights, or of 64: a few large activations, which language models have, spoil their own group only.
// in fp32, the dots in whole numbers. So a row's result depends neither on other rows nor on the instructions used,
// and cascadevl/ops/quantize.py gives the same bits. FP8 and fp32 weights are multiplied with activations as they are;
// there too, a row's bits are the same in any company.
//
// A panel holds LANES outputs, one in each lane of a vector; four neighbouring inputs of one output fill a lane. A
// row's four activations are sent to all lanes, and no sum ever crosses lanes. Eight products of a nibble and an
// activation fit 16 bits (2 · 8 · 15 · 127 = 30480), so AVX2 widens once for every 32 inputs.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.c"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define WITH_VNNI
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#define WITH_AVX2
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { INT8, INT4, INT4_ZEROS, MXFP4, FP8, FP32 };

enum { ROW_BLOCK = 96, INPUT_PADDING = 64, MAX_PANELS = 4, ACTIVATION_GROUP = 64 };

typedef struct {
    int32_t kind, num_outputs, num_inputs, group;
    // int8, raised by 128: [panel][input / 4][lane][4]; nibbles, low ones first: [panel][input / 8][lane][4];
    // fp8: [panel][input][lane]; fp32: plain, [output][input].
    const uint8_t *quants;
    const void *scales;    // [panel][group][lane]: fp32 for int8 and fp8, fp16 for int4, an exponent byte for MXFP4
    const uint8_t *zeros;  // [panel][group][lane], for INT4_ZEROS
    const float *bias;     // [panel][lane], or NULL; fp32 without padding
} Weight;

// For several rows at once, arithmetic takes long enough that the processor does not fetch ahead by itself.
INLINE void fetch(const uint8_t *quants, int rows) {
    if (rows > 1) __builtin_prefetch(quants + 1024);
}

// ---- The three machines: a vector of LANES numbers, and the dots.

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
                      const Activation8 *const activations[MAX_ROWS], int num_inputs) {
    for (int k = 0; k < num_inputs; k += 4) {
        Ints weights[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k * LANES, rows);
            weights[p] = _mm512_loadu_si512(quants[p] + k * LANES);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            Ints x = four(activations[r] + k);
            UNROLL for (int p = 0; p < panels; p++) sums[p][r] = _mm512_dpbusd_epi32(sums[p][r], weights[p], x);
        }
    }
}

INLINE void dot_nibbles(int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS], const uint8_t *const quants[MAX_PANELS],
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, const int8_t *table) {
    const Ints mask = _mm512_set1_epi8(15);
    Ints values = table ? _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)) : mask;
    for (int k = 0; k < num_inputs; k += 8) {
        Ints low[MAX_PANELS], high[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k / 2 * LANES, rows);
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
                      const Activation8 *const activations[MAX_ROWS], int num_inputs) {
    for (int k = 0; k < num_inputs; k += 4) {
        Ints even[MAX_PANELS], odd[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            fetch(quants[p] + k * LANES, rows);
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
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, const int8_t *table) {
    const Ints mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int run = table ? 16 : 32;  // inputs whose products fit 16 bits: those of a table go up to 24
    Ints values = table ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)) : mask;
    for (int start = 0; start < num_inputs; start += run) {
        Ints narrow[MAX_PANELS][MAX_ROWS];
        UNROLL for (int k = start; k < start + run; k += 8) {
            Ints low[MAX_PANELS], high[MAX_PANELS];
            UNROLL for (int p = 0; p < panels; p++) {
                fetch(quants[p] + k / 2 * LANES, rows);
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
                      const Activation8 *const activations[MAX_ROWS], int num_inputs) {
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
                        const Activation4 *const activations[MAX_ROWS], int num_inputs, const int8_t *table) {
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

// ---- Activations: a block of rows, quantised.

typedef struct {
    int num_inputs, num_groups, group;  // inputs include padding
    const float *floats;                // [row][input], unpadded
    int8_t *quants;                     // [row][input]
    int16_t *wide;                      // the same in the order 0 2 1 3 of every four; or NULL
    int32_t *sums;                      // [row][group]
    float *scales;                      // [row][group]
} Rows;

static int get_memory(Rows *rows, int num_rows, int kind) {
    size_t size = (size_t)num_rows * rows->num_inputs;
    int widen = kind == INT8 ? sizeof(Activation8) > 1 : sizeof(Activation4) > 1;
    rows->quants = malloc(size);
    rows->wide = widen ? malloc(size * sizeof(int16_t)) : NULL;
    rows->sums = malloc((size_t)num_rows * rows->num_groups * sizeof(int32_t));
    rows->scales = malloc((size_t)num_rows * rows->num_groups * sizeof(float));
    return rows->quants && (rows->wide || !widen) && rows->sums && rows->scales;
}

INLINE uint32_t magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7FFFFFFF;
}

// 127 levels on either side of zero. A group with an infinity or NaN has the scale NaN, and so has all that comes of it.
static void quantise_row(Rows *rows, int row, int num_inputs) {
    const int group = rows->group;
    for (int g = 0; g < rows->num_groups; g++) {
        const float *restrict in = rows->floats + (size_t)row * num_inputs + g * group;
        int8_t *restrict quants = rows->quants + (size_t)row * rows->num_inputs + g * group;
        int here = num_inputs - g * group;
        here = here < 0 ? 0 : here > group ? group : here;
        uint32_t most = 0;
        for (int i = 0; i < here; i++) {
            uint32_t bits = magnitude_bits(in[i]);
            most = bits > most ? bits : most;
        }
        float highest;
        memcpy(&highest, &most, 4);
        int finite = most < 0x7F800000;
        float scale = finite ? highest / 127.0f : NAN, divisor = scale > 0 ? scale : 1.0f;
        if (!finite) here = 0;
        int32_t sum = 0;
        for (int i = 0; i < here; i++) {
            int32_t level = (int32_t)((in[i] / divisor + 0x1.8p23f) - 0x1.8p23f);  // to the nearest, ties to even
            level = level > 127 ? 127 : level < -127 ? -127 : level;  // more only where the scale is subnormal
            quants[i] = level;
            sum += level;
        }
        memset(quants + here, 0, group - here);
        rows->scales[(size_t)row * rows->num_groups + g] = scale;
        rows->sums[(size_t)row * rows->num_groups + g] = sum;
    }
    int16_t *wide = rows->wide ? rows->wide + (size_t)row * rows->num_inputs : NULL;
    const int8_t *quants = rows->quants + (size_t)row * rows->num_inputs;
    for (int i = 0; wide && i < rows->num_inputs; i += 4)
        for (int j = 0; j < 4; j++) wide[i + j] = quants[i + 2 * (j & 1) + (j >> 1)];
}

// A row's quantised activations from one input on, in the order and width of Activation4 or Activation8.
#define ACTIVATIONS(type, rows, row, input)                                                       \
    ((const type *)(sizeof(type) > 1 ? (const void *)(rows)->wide : (const void *)(rows)->quants) \
     + (size_t)(row) * (rows)->num_inputs + (input))

// ---- One tile: `panels` panels for `rows` rows, both known when this is compiled.

// Values of E2M1, doubled and raised by 12.
static const int8_t MXFP4_TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

INLINE void store(const Weight *weight, int panel, float *out, Floats x) {
    if (weight->bias) x = add(x, load_floats(weight->bias + panel * LANES));
    int first = panel * LANES, left = weight->num_outputs - first;
    if (left >= LANES) {
        store_floats(out + first, x);
    } else if (left > 0) {
        float lanes[LANES];
        store_floats(lanes, x);
        memcpy(out + first, lanes, left * sizeof(float));
    }
}

INLINE void tile_bytes(const Weight *weight, int panel, const Rows *in, int row, float *out, int panels, int rows) {
    const int group = in->group, num_groups = in->num_groups, grouped = weight->group > 0;
    const float *scales = weight->scales;
    Floats totals[MAX_PANELS][MAX_ROWS];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = all_floats(0);
    for (int g = 0; g < num_groups; g++) {
        Ints sums[MAX_PANELS][MAX_ROWS];
        const uint8_t *quants[MAX_PANELS];
        const Activation8 *activations[MAX_ROWS];
        UNROLL for (int r = 0; r < rows; r++) activations[r] = ACTIVATIONS(Activation8, in, row + r, g * group);
        UNROLL for (int p = 0; p < panels; p++) {
            quants[p] = weight->quants + ((size_t)(panel + p) * num_groups + g) * LANES * group;
            UNROLL for (int r = 0; r < rows; r++) sums[p][r] = all_ints(-128 * in->sums[(row + r) * num_groups + g]);
        }
        dot_bytes(panels, rows, sums, quants, activations, group);
        UNROLL for (int p = 0; p < panels; p++) {
            Floats scale = all_floats(0);
            if (grouped) scale = load_floats(scales + ((size_t)(panel + p) * num_groups + g) * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                Floats dot = to_floats(sums[p][r]);
                if (grouped) dot = mul(dot, scale);
                totals[p][r] = add(totals[p][r], mul(dot, all_floats(in->scales[(row + r) * num_groups + g])));
            }
        }
    }
    for (int p = 0; p < panels; p++) {
        Floats scale = grouped ? all_floats(1) : load_floats(scales + (panel + p) * LANES);
        for (int r = 0; r < rows; r++)
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs, mul(totals[p][r], scale));
    }
}

INLINE Floats group_scale(const Weight *weight, int kind, size_t at) {
    if (kind == MXFP4) return load_exponents((const uint8_t *)weight->scales + at);
    return load_halves((const uint16_t *)weight->scales + at);
}

INLINE void tile_nibbles(const Weight *weight, int panel, const Rows *in, int row, float *out, int panels, int rows,
                         int kind) {
    const int zero = kind == INT4 ? 8 : kind == MXFP4 ? 12 : 0;
    const int group = weight->group, num_groups = in->num_groups;
    Floats totals[MAX_PANELS][MAX_ROWS];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = all_floats(0);
    for (int g = 0; g < num_groups; g++) {
        Ints sums[MAX_PANELS][MAX_ROWS];
        const uint8_t *quants[MAX_PANELS];
        const Activation4 *activations[MAX_ROWS];
        UNROLL for (int r = 0; r < rows; r++) activations[r] = ACTIVATIONS(Activation4, in, row + r, g * group);
        UNROLL for (int p = 0; p < panels; p++) {
            quants[p] = weight->quants + ((size_t)(panel + p) * num_groups + g) * LANES * group / 2;
            UNROLL for (int r = 0; r < rows; r++)
                sums[p][r] = all_ints(-zero * in->sums[(row + r) * num_groups + g]);
        }
        dot_nibbles(panels, rows, sums, quants, activations, group, kind == MXFP4 ? MXFP4_TABLE : NULL);
        UNROLL for (int p = 0; p < panels; p++) {
            size_t at = ((size_t)(panel + p) * num_groups + g) * LANES;
            Floats scale = group_scale(weight, kind, at), zeros = all_floats(0);
            if (kind == INT4_ZEROS) zeros = to_floats(load_bytes(weight->zeros + at));
            UNROLL for (int r = 0; r < rows; r++) {
                Floats dot = to_floats(sums[p][r]);  // under 2^24, so whole numbers stay whole
                if (kind == INT4_ZEROS)
                    dot = mul_add(zeros, all_floats((float)-in->sums[(row + r) * num_groups + g]), dot);
                Floats of_row = all_floats(in->scales[(row + r) * num_groups + g]);
                totals[p][r] = add(totals[p][r], mul(mul(dot, scale), of_row));
            }
        }
    }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++)
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs, totals[p][r]);
}

// Activations as they are; FP8 comes out of load_fp8 too small by 2^8, which its scales make good.
INLINE void tile_fp8(const Weight *weight, int panel, const Rows *in, int row, float *out, int panels, int rows) {
    const int group = weight->group, num_inputs = weight->num_inputs, num_groups = (num_inputs + group - 1) / group;
    Floats totals[MAX_PANELS][MAX_ROWS];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = all_floats(0);
    for (int g = 0; g < num_groups; g++) {
        int end = (g + 1) * group < num_inputs ? (g + 1) * group : num_inputs;
        Floats sums[MAX_PANELS][MAX_ROWS];
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++) sums[p][r] = all_floats(0);
        for (int k = g * group; k < end; k++) {
            Floats weights[MAX_PANELS];
            UNROLL for (int p = 0; p < panels; p++)
                weights[p] = load_fp8(weight->quants + ((size_t)(panel + p) * num_inputs + k) * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                Floats x = all_floats(in->floats[(size_t)(row + r) * num_inputs + k]);
                UNROLL for (int p = 0; p < panels; p++) sums[p][r] = mul_add(weights[p], x, sums[p][r]);
            }
        }
        UNROLL for (int p = 0; p < panels; p++) {
            Floats scale = load_floats((const float *)weight->scales + ((size_t)(panel + p) * num_groups + g) * LANES);
            UNROLL for (int r = 0; r < rows; r++) totals[p][r] = add(totals[p][r], mul(sums[p][r], scale));
        }
    }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++)
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs, totals[p][r]);
}

// Plain weights, which lie as torch has them: sums run along the inputs, LANES at a time, then across the lanes.
typedef float Plain __attribute__((vector_size(4 * LANES)));
typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));

// Of two vectors' lanes, numbered on: the first's where the bit `h` of the lane's number is clear; and their partners.
#define STRAIGHT(h, l) ((l) & (h) ? (l) + LANES : (l))
#define CROSSED(h, l) (((l) ^ (h)) + ((l) & (h) ? LANES : 0))
#define EIGHT(of, h, l) of(h, l), of(h, l + 1), of(h, l + 2), of(h, l + 3), of(h, l + 4), of(h, l + 5), of(h, l + 6), of(h, l + 7)
#if defined(WITH_VNNI)
#define ALL(of, h) {EIGHT(of, h, 0), EIGHT(of, h, 8)}
#else
#define ALL(of, h) {EIGHT(of, h, 0)}
#endif

#define FOLD(h)                                                                                        \
    UNROLL for (int i = 0; i < h; i++)                                                                 \
        x[i] = add((Floats)__builtin_shuffle((Plain)x[i], (Plain)x[i + h], (Lanes)ALL(STRAIGHT, h)),   \
                   (Floats)__builtin_shuffle((Plain)x[i], (Plain)x[i + h], (Lanes)ALL(CROSSED, h)))

// As many vectors as they have lanes become one: of each the sum, whose order is the same whichever vector it is.
INLINE Floats across(Floats x[LANES]) {
#if defined(WITH_VNNI)
    FOLD(8);
#endif
    FOLD(4);
    FOLD(2);
    FOLD(1);
    return x[0];
}

INLINE void tile_fp32(const Weight *weight, int output, const Rows *in, int row, float *out, int outputs, int rows) {
    const int num_inputs = weight->num_inputs, whole = num_inputs / LANES * LANES;
    const float *weights = (const float *)weight->quants + (size_t)output * num_inputs;
    const float *activations = in->floats + (size_t)row * num_inputs;
    Floats sums[LANES];
    UNROLL for (int i = 0; i < LANES; i++) sums[i] = all_floats(0);
    for (int k = 0; k < whole; k += LANES) {
        Floats w[8];
        UNROLL for (int o = 0; o < outputs; o++) w[o] = load_floats(weights + (size_t)o * num_inputs + k);
        UNROLL for (int r = 0; r < rows; r++) {
            Floats x = load_floats(activations + (size_t)r * num_inputs + k);
            UNROLL for (int o = 0; o < outputs; o++) sums[o * rows + r] = mul_add(w[o], x, sums[o * rows + r]);
        }
    }
    float lanes[LANES];
    store_floats(lanes, across(sums));
    for (int o = 0; o < outputs; o++)
        for (int r = 0; r < rows; r++) {
            float sum = lanes[o * rows + r];
            for (int k = whole; k < num_inputs; k++)
                sum += weights[(size_t)o * num_inputs + k] * activations[(size_t)r * num_inputs + k];
            if (weight->bias) sum += weight->bias[output + o];
            out[(size_t)(row + r) * weight->num_outputs + output + o] = sum;
        }
}

// Some outputs of some rows. As many sums are under way as a vector has lanes; for a single row, eight.
static void multiply_fp32(const Weight *weight, int output, int end, const Rows *in, int num_rows, float *out) {
#define ROWS(rows, outputs)                                                                                    \
    for (; row + rows <= num_rows; row += rows) {                                                              \
        int o = output;                                                                                        \
        for (; o + outputs <= end; o += outputs) tile_fp32(weight, o, in, row, out, outputs, rows);            \
        for (; o < end; o++) tile_fp32(weight, o, in, row, out, 1, rows);                                      \
    }
    int row = 0;
#if defined(WITH_VNNI)
    ROWS(8, 2)
#endif
    ROWS(4, LANES / 4)
    ROWS(2, LANES / 2)
    ROWS(1, 8)
#undef ROWS
}

// ---- All tiles. Few rows share several panels, so that enough independent sums are under way.

typedef void Tile(const Weight *, int panel, const Rows *, int row, float *out);

#define TILE(panels, rows)                                                                                           \
    static void int8_##rows(const Weight *w, int panel, const Rows *in, int row, float *out) {                       \
        tile_bytes(w, panel, in, row, out, panels, rows);                                                            \
    }                                                                                                                \
    static void int4_##rows(const Weight *w, int panel, const Rows *in, int row, float *out) {                       \
        tile_nibbles(w, panel, in, row, out, panels, rows, INT4);                                                    \
    }                                                                                                                \
    static void zeros_##rows(const Weight *w, int panel, const Rows *in, int row, float *out) {                      \
        tile_nibbles(w, panel, in, row, out, panels, rows, INT4_ZEROS);                                              \
    }                                                                                                                \
    static void mxfp4_##rows(const Weight *w, int panel, const Rows *in, int row, float *out) {                      \
        tile_nibbles(w, panel, in, row, out, panels, rows, MXFP4);                                                   \
    }                                                                                                                \
    static void fp8_##rows(const Weight *w, int panel, const Rows *in, int row, float *out) {                        \
        tile_fp8(w, panel, in, row, out, panels, rows);                                                              \
    }
#define TILES_OF(panels, rows) {panels, {int8_##rows, int4_##rows, zeros_##rows, mxfp4_##rows, fp8_##rows}}

TILE(4, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4)
#if defined(WITH_VNNI)
TILE(1, 5) TILE(1, 6) TILE(1, 7) TILE(1, 8)
#endif

static const struct { int panels; Tile *of_kind[5]; } TILES[MAX_ROWS + 1] = {
    {0}, TILES_OF(4, 1), TILES_OF(2, 2), TILES_OF(2, 3), TILES_OF(2, 4),
#if defined(WITH_VNNI)
    TILES_OF(1, 5), TILES_OF(1, 6), TILES_OF(1, 7), TILES_OF(1, 8),
#endif
};

// Outputs of a panel; weights are padded to a multiple of MAX_PANELS panels.
int lanes(void) { return LANES; }

// All that a loop over rows, and one over outputs, need to know.
typedef struct {
    const Weight *weight;
    Rows *in;
    int num_rows;
    float *out;
} Product;

enum { TOGETHER = MAX_PANELS * LANES };  // outputs of an item

static int num_items(const Product *product) {
    int blocks = (product->num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
    return blocks * ((product->weight->num_outputs + TOGETHER - 1) / TOGETHER);
}

static void quantise_item(void *context, int row, int thread) {
    Product *product = context;
    quantise_row(product->in, row, product->weight->num_inputs);
}

// Some outputs for a block of rows: the weights come from memory once for each block.
static void multiply(void *context, int item, int thread) {
    const Product *product = context;
    const Weight *weight = product->weight;
    int blocks = (product->num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
    int first = item % blocks * ROW_BLOCK, panel = item / blocks * MAX_PANELS;
    int end = first + ROW_BLOCK < product->num_rows ? first + ROW_BLOCK : product->num_rows;
    if (weight->kind == FP32) {
        int output = panel * LANES, last = output + TOGETHER;
        if (last > weight->num_outputs) last = weight->num_outputs;
        Rows in = {.floats = product->in->floats + (size_t)first * weight->num_inputs};
        multiply_fp32(weight, output, last, &in, end - first, product->out + (size_t)first * weight->num_outputs);
        return;
    }
    for (int row = first; row < end; row += MAX_ROWS) {
        int together = end - row < MAX_ROWS ? end - row : MAX_ROWS, step = TILES[together].panels;
        for (int p = panel; p < panel + MAX_PANELS; p += step)
            TILES[together].of_kind[weight->kind](weight, p, product->in, row, product->out);
    }
}

static Rows rows_for(const Weight *weight) {
    const int padding = weight->group ? weight->group : INPUT_PADDING;
    Rows rows = {.num_inputs = (weight->num_inputs + padding - 1) / padding * padding};
    rows.group = weight->group ? weight->group : ACTIVATION_GROUP;
    rows.num_groups = rows.num_inputs / rows.group;
    return rows;
}

static void free_rows(Rows *rows) {
    free(rows->quants);
    free(rows->wide);
    free(rows->sums);
    free(rows->scales);
}

static int is_quantised(const Weight *weight) { return weight->kind != FP8 && weight->kind != FP32; }

// out [rows][outputs] and in [rows][inputs] are contiguous. Returns 0 where memory is short.
int linear(float *out, const float *in, int64_t num_rows, const Weight *weight) {
    enum { MOST_ROWS = 64 * ROW_BLOCK };
    int most = num_rows < MOST_ROWS ? (int)num_rows : MOST_ROWS, quantised = is_quantised(weight);
    Rows rows = rows_for(weight);
    int ready = !quantised || !most || get_memory(&rows, most, weight->kind), helped = begin();
    for (int64_t start = 0; ready && start < num_rows; start += most) {
        int here = num_rows - start < most ? (int)(num_rows - start) : most;
        rows.floats = in + start * weight->num_inputs;
        Product product = {weight, &rows, here, out + start * weight->num_outputs};
        if (quantised) each(helped && here > 8, here, quantise_item, &product);
        each(helped, num_items(&product), multiply, &product);
    }
    end(helped);
    free_rows(&rows);
    return ready;
}
