// Attention of single queries with AVX-512 VNNI, for heads of a multiple of 64: sixteen keys or values at a time.
//
// Keys and values of 8 or 4 bits are never made floats. A query is rounded to 16 bits and multiplied with the codes as
// they are; so are the weights of the values, times their scales, two tokens to an instruction. Both are far finer than
// the codes themselves. Tokens take their places by number, not by page: the size of pages changes no bit.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define WITH_WIDE_ATTENTION

enum { BLOCK = 16, MOST_QUERIES = 4, CHUNK = 64, AHEAD16 = 2 * BLOCK };
enum { MOST_SIZE = 256 };  // of a head: 256 · 255 · 32767 fits 32 bits

// Where the fold below wants the vector of each key, so that its sums come out in the order of the keys.
static const uint8_t FOLD_ORDER[BLOCK] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};

// Sixteen vectors become one of their sums.
#define FOLDED(name, vector, add, shuffle4, unpack_low, unpack_high, shuffle)                           \
    ATTEND_INLINE vector name(vector x[BLOCK]) {                                                         \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++)                                              \
            x[i] = add(shuffle4(x[i], x[i + 8], 0x44), shuffle4(x[i], x[i + 8], 0xEE));                  \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)                                              \
            x[i] = add(shuffle4(x[i], x[i + 4], 0x88), shuffle4(x[i], x[i + 4], 0xDD));                  \
        _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++)                                              \
            x[i] = add(unpack_low(x[i], x[i + 2]), unpack_high(x[i], x[i + 2]));                         \
        return add(shuffle(x[0], x[1], 0x88), shuffle(x[0], x[1], 0xDD));                                \
    }

#define AS_FLOATS(x) _mm512_castpd_ps(x)
#define UNPACK_LOW(a, b) AS_FLOATS(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#define UNPACK_HIGH(a, b) AS_FLOATS(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
#define SHUFFLE_INTS(a, b, how) \
    _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), how))
FOLDED(folded, __m512, _mm512_add_ps, _mm512_shuffle_f32x4, UNPACK_LOW, UNPACK_HIGH, _mm512_shuffle_ps)
FOLDED(folded_ints, __m512i, _mm512_add_epi32, _mm512_shuffle_i32x4, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64,
       SHUFFLE_INTS)

// Sixteen numbers of a vector, from the one at `i` on.
ATTEND_INLINE __m512 load16(int kind, const uint8_t *vector, int i) {
    if (kind == KV_FP32) return _mm512_loadu_ps(vector + 4 * i);
    if (kind == KV_BF16)
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(vector + 2 * i))), 16));
    __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(vector + i)));
    __m512i sign = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0x80)), 24);
    __m512i rest = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(0x7F)), 20);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(sign, rest)), _mm512_set1_ps(0x1p120f));
}

// Codes of 8 or 4 bits, widened to 16: the half of CHUNK codes from the one at `i` on.
ATTEND_INLINE __m512i load_codes(int kind, const uint8_t *vector, int i, int size) {
    if (kind == KV_INT8) return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(vector + i)));
    const int half = size / 2;
    __m256i bytes = _mm256_loadu_si256((const void *)(vector + (i < half ? i : i - half)));
    if (i >= half) bytes = _mm256_srli_epi16(bytes, 4);
    return _mm512_cvtepu8_epi16(_mm256_and_si256(bytes, _mm256_set1_epi8(15)));
}

// CHUNK codes as bytes.
ATTEND_INLINE __m512i load_bytes64(int kind, const uint8_t *vector, int i, int size) {
    if (kind == KV_INT8) return _mm512_loadu_si512(vector + i);
    const int half = size / 2;
    const __m512i mask = _mm512_set1_epi8(15);
    if (half % CHUNK == 0) {
        __m512i bytes = _mm512_loadu_si512(vector + (i < half ? i : i - half));
        return _mm512_and_si512(i < half ? bytes : _mm512_srli_epi16(bytes, 4), mask);
    }
    __m256i bytes = _mm256_loadu_si256((const void *)vector);
    return _mm512_and_si512(_mm512_inserti64x4(_mm512_castsi256_si512(bytes), _mm256_srli_epi16(bytes, 4), 1), mask);
}

// Scales and lowest numbers of sixteen vectors.
ATTEND_INLINE void load_ranges(const Cached *from, const size_t *where, __m512 *scales, __m512 *lowest) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    float pairs[2 * BLOCK];
    const float *found = from->ranges + 2 * where[0];
    __builtin_prefetch(from->ranges + 2 * where[AHEAD16]);
    __builtin_prefetch(from->ranges + 2 * where[AHEAD16 + BLOCK - 1]);
    const __m512i start = _mm512_add_epi64(_mm512_set1_epi64(where[0]), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    if (_mm512_cmpneq_epi64_mask(start, _mm512_loadu_si512(where))
        | _mm512_cmpneq_epi64_mask(_mm512_add_epi64(start, _mm512_set1_epi64(8)), _mm512_loadu_si512(where + 8))) {
        for (int s = 0; s < BLOCK; s++) memcpy(pairs + 2 * s, from->ranges + 2 * where[s], 2 * sizeof(float));
        found = pairs;
    }
    __m512 first = _mm512_loadu_ps(found), second = _mm512_loadu_ps(found + BLOCK);
    *scales = _mm512_permutex2var_ps(first, even, second);
    *lowest = _mm512_permutex2var_ps(first, _mm512_add_epi32(even, _mm512_set1_epi32(1)), second);
}

// e^x for x <= 0, relative error below 2e-7.
ATTEND_INLINE __m512 exp16(__m512 x) {
    __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);  // NaN too
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(1.9875691500e-4f), _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(kept, p, whole);
}

ATTEND_INLINE void fetch_vector(const uint8_t *numbers, size_t where, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(numbers + where * bytes + i);
}

// A query in 16 bits.
typedef struct {
    float step, sum;  // what a step is, NaN where the query is no number; Σ of the query
    float lost;       // and how much of it rounding has lost
} Rounded;

static Rounded round_query(int16_t *out, const float *in, int size) {
    __m512i most = _mm512_setzero_si512();
    for (int i = 0; i < size; i += BLOCK)
        most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(in + i), _mm512_set1_epi32(0x7FFFFFFF)));
    const uint32_t bits = _mm512_reduce_max_epu32(most);
    float highest;
    memcpy(&highest, &bits, 4);
    if (bits >= 0x7F800000) return (Rounded){NAN, NAN, NAN};
    const float step = highest / 32767.0f, inverse = step > 0x1p-126f ? 1.0f / step : 0.0f;
    __m512 sum = _mm512_setzero_ps();
    __m512i levels = _mm512_setzero_si512();
    for (int i = 0; i < size; i += BLOCK) {
        __m512 numbers = _mm512_loadu_ps(in + i);
        __m512i level = _mm512_cvtps_epi32(_mm512_mul_ps(numbers, _mm512_set1_ps(inverse)));
        _mm256_storeu_si256((void *)(out + i), _mm512_cvtsepi32_epi16(level));
        sum = _mm512_add_ps(sum, numbers);
        levels = _mm512_add_epi32(levels, level);
    }
    Rounded rounded = {step, _mm512_reduce_add_ps(sum)};
    rounded.lost = rounded.sum - step * _mm512_reduce_add_epi32(levels);
    return rounded;
}

ATTEND_INLINE void score16(int kind, int group, int size, const Heads *heads, const Cached *keys, const float *queries,
                           int num, const Scratch *scratch) {
    const int bytes = vector_bytes(kind, size), ranged = kind == KV_INT8 || kind == KV_INT4;
    const float middle = kind == KV_INT8 ? 127.5f : 7.5f;  // of the codes: what rounding loses is multiplied with it
    int16_t levels[MOST_QUERIES * MOST_SIZE];
    Rounded rounded[MOST_QUERIES];
    for (int g = 0; ranged && g < group; g++)
        rounded[g] = round_query(levels + g * size, queries + g * size, size);
    for (int j = 0; j < num; j += BLOCK) {
        const size_t *where = scratch->where + j;
        __m512 dots[MOST_QUERIES][BLOCK], scales, lowest;
        __m512i whole[MOST_QUERIES][BLOCK];
        for (int s = 0; s < BLOCK; s++) {
            const uint8_t *key = keys->numbers + where[s] * bytes;
            const int to = FOLD_ORDER[s];
            fetch_vector(keys->numbers, where[s + AHEAD16], bytes);
            __m512 sum[MOST_QUERIES];
            __m512i sum_whole[MOST_QUERIES];
            _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
                sum[g] = _mm512_setzero_ps(), sum_whole[g] = _mm512_setzero_si512();
            if (ranged) {
                _Pragma("GCC unroll 4") for (int i = 0; i < size; i += CHUNK / 2) {
                    __m512i codes = load_codes(kind, key, i, size);
                    _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
                        sum_whole[g] = _mm512_dpwssd_epi32(sum_whole[g], codes,
                                                           _mm512_loadu_si512(levels + g * size + i));
                }
                _Pragma("GCC unroll 4") for (int g = 0; g < group; g++) whole[g][to] = sum_whole[g];
            } else {
                _Pragma("GCC unroll 4") for (int i = 0; i < size; i += BLOCK) {
                    __m512 numbers = load16(kind, key, i);
                    _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
                        sum[g] = _mm512_fmadd_ps(numbers, _mm512_loadu_ps(queries + g * size + i), sum[g]);
                }
                _Pragma("GCC unroll 4") for (int g = 0; g < group; g++) dots[g][to] = sum[g];
            }
        }
        if (ranged) load_ranges(keys, where, &scales, &lowest);
        _Pragma("GCC unroll 4") for (int g = 0; g < group; g++) {
            __m512 dot;
            if (ranged) {
                dot = _mm512_fmadd_ps(_mm512_cvtepi32_ps(folded_ints(whole[g])), _mm512_set1_ps(rounded[g].step),
                                      _mm512_set1_ps(middle * rounded[g].lost));
                dot = _mm512_fmadd_ps(lowest, _mm512_set1_ps(rounded[g].sum), _mm512_mul_ps(dot, scales));
            } else {
                dot = folded(dots[g]);
            }
            _mm512_storeu_ps(scratch->scores + (size_t)g * scratch->room + j,
                             _mm512_mul_ps(dot, _mm512_set1_ps(heads->scale)));
        }
    }
}

// What the weights of a query's values come to.
typedef struct {
    float share, low, step;  // one over their sum; Σ weight · lowest; what a step of the rounded ones is
} Softened;

// Scores become weights that have yet to be shared out; with ranges, times the scales of the values, in 16 bits.
static Softened soften16(int ranged, float *row, int num, const float *sink, const Cached *values,
                         const size_t *where) {
    const int padded = (num + BLOCK - 1) / BLOCK * BLOCK;
    for (int j = num; j < padded; j++) row[j] = -INFINITY;
    __m512 highest16 = _mm512_loadu_ps(row), total = _mm512_setzero_ps(), low = total, most = total, sum = total;
    for (int j = BLOCK; j < padded; j += BLOCK) highest16 = _mm512_max_ps(highest16, _mm512_loadu_ps(row + j));
    float highest = _mm512_reduce_max_ps(highest16);
    if (sink && *sink > highest) highest = *sink;
    for (int j = 0; j < padded; j += BLOCK) {
        __m512 weight = exp16(_mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(highest)));
        total = _mm512_add_ps(total, weight);
        if (ranged) {
            __m512 scales, lowest;
            load_ranges(values, where + j, &scales, &lowest);
            low = _mm512_fmadd_ps(weight, lowest, low);
            weight = _mm512_mul_ps(weight, scales);
            most = _mm512_max_ps(most, weight);
            sum = _mm512_add_ps(sum, weight);
        }
        _mm512_storeu_ps(row + j, weight);
    }
    Softened softened = {.step = 1.0f};
    float all = _mm512_reduce_add_ps(total);
    if (sink) all += expf(*sink - highest);
    softened.share = 1.0f / all;
    if (!ranged) return softened;
    softened.low = _mm512_reduce_add_ps(low);
    // Σ weight · code must fit 32 bits.
    const float by_sum = _mm512_reduce_add_ps(sum) * (255.5f / 0x1p31f);
    const float by_most = _mm512_reduce_max_ps(most) / 32767.0f;
    softened.step = by_sum > by_most || by_sum != by_sum ? by_sum : by_most;
    const float inverse = softened.step > 0x1p-126f ? 1.0f / softened.step : 0.0f;
    for (int j = 0; j < padded; j += BLOCK) {
        __m512i level = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(inverse)));
        _mm256_storeu_si256((__m256i *)row + j / BLOCK, _mm512_cvtsepi32_epi16(level));
    }
    return softened;
}

// Values as floats times weights.
ATTEND_INLINE void mix16(int kind, int group, int size, const Cached *values, float *outs, int num,
                         const Scratch *scratch, const Softened *softened) {
    const int bytes = vector_bytes(kind, size);
    for (int first = 0; first < size; first += CHUNK) {
        __m512 sums[MOST_QUERIES][4];
        _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) sums[g][i] = _mm512_setzero_ps();
        for (int j = 0; j < num; j++) {
            const uint8_t *value = values->numbers + scratch->where[j] * bytes;
            if (first == 0) fetch_vector(values->numbers, scratch->where[j + AHEAD16], bytes);
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {
                __m512 numbers = load16(kind, value, first + BLOCK * i);
                _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
                    sums[g][i] = _mm512_fmadd_ps(
                        numbers, _mm512_set1_ps(scratch->scores[(size_t)g * scratch->room + j]), sums[g][i]);
            }
        }
        _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
                _mm512_storeu_ps(outs + g * size + first + BLOCK * i,
                                 _mm512_mul_ps(sums[g][i], _mm512_set1_ps(softened[g].share)));
    }
}

// Codes of values times weights: two tokens side by side in a lane.
ATTEND_INLINE void mix_codes(int kind, int group, int size, const Cached *values, float *outs, int num,
                             const Scratch *scratch, const Softened *softened) {
    const int bytes = vector_bytes(kind, size);
    const __m512i zero = _mm512_setzero_si512();
    for (int first = 0; first < size; first += CHUNK) {
        __m512i sums[MOST_QUERIES][4];
        _Pragma("GCC unroll 4") for (int g = 0; g < group; g++)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) sums[g][i] = zero;
        for (int j = 0; j < num; j += 2) {
            const size_t *where = scratch->where + j;
            if (first == 0) {
                fetch_vector(values->numbers, where[AHEAD16], bytes);
                fetch_vector(values->numbers, where[AHEAD16 + 1], bytes);
            }
            __m512i a = load_bytes64(kind, values->numbers + where[0] * bytes, first, size);
            __m512i b = load_bytes64(kind, values->numbers + where[1] * bytes, first, size);
            __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
            __m512i pairs[4] = {_mm512_unpacklo_epi8(low, zero), _mm512_unpackhi_epi8(low, zero),
                                _mm512_unpacklo_epi8(high, zero), _mm512_unpackhi_epi8(high, zero)};
            _Pragma("GCC unroll 4") for (int g = 0; g < group; g++) {
                int32_t two;
                memcpy(&two, (const int16_t *)(scratch->scores + (size_t)g * scratch->room) + j, 4);
                __m512i weights = _mm512_set1_epi32(two);
                _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)
                    sums[g][i] = _mm512_dpwssd_epi32(sums[g][i], pairs[i], weights);
            }
        }
        for (int g = 0; g < group; g++)
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {
                // Of every sixteen numbers, sums[i] has the four from 4 · i on.
                __m512 out = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[g][i]), _mm512_set1_ps(softened[g].step),
                                             _mm512_set1_ps(softened[g].low));
                out = _mm512_mul_ps(out, _mm512_set1_ps(softened[g].share));
                float lanes[BLOCK];
                _mm512_storeu_ps(lanes, out);
                for (int part = 0; part < 4; part++)
                    memcpy(outs + g * size + first + BLOCK * part + 4 * i, lanes + 4 * part, 4 * sizeof(float));
            }
    }
}

// One token's queries, of at most MOST_QUERIES heads, of one key head; scratch->where is full.
ATTEND_INLINE void attend16(int kind, int group, int size, const Heads *heads, const Cached *keys, const Cached *values,
                            int num, const float *sinks, const float *q, float *out, const Scratch *scratch) {
    const int ranged = kind == KV_INT8 || kind == KV_INT4;
    Softened softened[MOST_QUERIES];
    score16(kind, group, size, heads, keys, q, num, scratch);
    for (int s = 0; s < AHEAD16; s++) fetch_vector(values->numbers, scratch->where[s], vector_bytes(kind, size));
    for (int g = 0; g < group; g++)
        softened[g] = soften16(ranged, scratch->scores + (size_t)g * scratch->room, num, sinks ? sinks + g : NULL,
                               values, scratch->where);
    if (ranged) mix_codes(kind, group, size, values, out, num, scratch, softened);
    else mix16(kind, group, size, values, out, num, scratch, softened);
}

static int is_wide(int kind, int size) {
    return size <= MOST_SIZE && size % (kind == KV_INT4 && size > CHUNK ? 2 * CHUNK : CHUNK) == 0;
}

#define WIDE(kind)                                                                                     \
    case kind:                                                                                         \
        switch (group) {                                                                               \
            case 1: attend16(kind, 1, size, heads, keys, values, num, sinks, q, out, scratch); break;  \
            case 2: attend16(kind, 2, size, heads, keys, values, num, sinks, q, out, scratch); break;  \
            case 3: attend16(kind, 3, size, heads, keys, values, num, sinks, q, out, scratch); break;  \
            default: attend16(kind, 4, size, heads, keys, values, num, sinks, q, out, scratch);        \
        }                                                                                              \
        break;

static void attend_wide(const Heads *heads, const Cached *keys, const Cached *values, int num, int group,
                        const float *sinks, const float *q, float *out, const Scratch *scratch) {
    const int size = heads->head_size;
    switch (keys->kind) { WIDE(KV_FP32) WIDE(KV_BF16) WIDE(KV_FP8) WIDE(KV_INT8) WIDE(KV_INT4) }
}
#undef WIDE
#endif
