// Attention of single queries over paged keys and values of 32, 16, 8 or 4 bits.
//
// A cache layer is (pages, K, page_size, …), a page of one head being contiguous. Query heads that share a key head
// are done together, so that each key and value is read, and made a float, once. Everything that a token's result
// depends on is its own: it has the same bits in any batch. H must be a multiple of 8 (of 16 for 4 bits).
//
// A vector of 8 or 4 bits has a scale and a lowest value of its own (TurboMind's scheme, arXiv 2508.15601):
// number = scale · code + lowest. The lowest values need no work for each number: q · key = scale · (q · code) +
// lowest · Σ q, and likewise for values.

enum { KV_FP32, KV_BF16, KV_FP8, KV_INT8, KV_INT4 };

typedef uint8_t b8 __attribute__((vector_size(8), aligned(1)));
typedef uint16_t h8 __attribute__((vector_size(16), aligned(1)));

// Keys or values of one layer.
typedef struct {
    int32_t kind;
    uint8_t *numbers;
    float *ranges;  // scale and lowest of each vector, for 8 and 4 bits
} Cached;

// Where the tokens of a batch stand.
typedef struct {
    const int32_t *tables, *request, *position;  // (R, max_pages), (T), (T)
    int32_t num_tokens, page_size, max_pages;
} Places;

typedef struct {
    int32_t num_heads, num_kv_heads, head_size, window;
    float scale;
    const float *sinks;
} Heads;

static inline int vector_bytes(int kind, int size) {
    return kind == KV_FP32 ? 4 * size : kind == KV_BF16 ? 2 * size : kind == KV_INT4 ? size / 2 : size;
}

// Eight numbers of a vector, from the one at `i` on. Of two nibbles in a byte, the low one is of the first half.
static inline v8 load8(int kind, const uint8_t *vector, int i, int size) {
    if (kind == KV_FP32) return *(const v8 *)(vector + 4 * i);
    if (kind == KV_BF16) return (v8)(__builtin_convertvector(*(const h8 *)(vector + 2 * i), i8) << 16);
    if (kind == KV_FP8) {  // as a float whose exponent is too small by 120
        i8 x = __builtin_convertvector(*(const b8 *)(vector + i), i8);
        return (v8)((x & 0x80) << 24 | (x & 0x7F) << 20) * 0x1p120f;
    }
    if (kind == KV_INT8) return __builtin_convertvector(__builtin_convertvector(*(const b8 *)(vector + i), i8), v8);
    int half = size / 2;
    i8 bytes = __builtin_convertvector(*(const b8 *)(vector + i % half), i8);
    return __builtin_convertvector(i < half ? bytes & 15 : bytes >> 4, v8);
}

// Keep `size` numbers as a vector of the cache; ops/kv_formats.py gives the same bits.
static void store_vector(Cached *to, size_t at, const float *in, int size) {
    uint8_t *out = to->numbers + at * vector_bytes(to->kind, size);
    if (to->kind == KV_FP32) {
        memcpy(out, in, size * sizeof(float));
    } else if (to->kind == KV_BF16) {
        for (int i = 0; i < size; i++) {
            uint32_t bits;
            memcpy(&bits, in + i, 4);
            uint16_t kept = in[i] != in[i] ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // ties to even
            memcpy(out + 2 * i, &kept, 2);
        }
    } else if (to->kind == KV_FP8) {
        for (int i = 0; i < size; i++) {
            uint32_t bits;
            memcpy(&bits, in + i, 4);
            uint32_t sign = bits >> 24 & 0x80, rest = bits & 0x7FFFFFFF;
            float magnitude;
            memcpy(&magnitude, &rest, 4);
            if (magnitude > 448.0f) magnitude = 448.0f;  // what is larger is kept as the largest; NaN stays NaN
            uint32_t code;
            if (magnitude != magnitude) {
                code = 0x7F;
            } else if (magnitude < 0x1p-6f) {
                code = (uint32_t)((magnitude * 0x1p9f + 0x1.8p23f) - 0x1.8p23f);  // subnormal: steps of 2^-9
            } else {
                memcpy(&rest, &magnitude, 4);
                code = ((rest + 0x7FFFF + (rest >> 20 & 1)) >> 20) - (120 << 3);
            }
            out[i] = sign | code;
        }
    } else {
        const float levels = to->kind == KV_INT8 ? 255.0f : 15.0f;
        float lowest = in[0], highest = in[0];
        for (int i = 1; i < size; i++) {
            lowest = in[i] < lowest ? in[i] : lowest;
            highest = in[i] > highest ? in[i] : highest;
        }
        float scale = (highest - lowest) / levels, divisor = scale > 0 ? scale : 1.0f;
        for (int i = 0; i < size; i++)
            if (in[i] - in[i] != 0) scale = NAN;  // an infinity or NaN: the vector is lost, and says so
        to->ranges[2 * at] = scale;
        to->ranges[2 * at + 1] = lowest;
        if (to->kind == KV_INT4) memset(out, 0, size / 2);
        for (int i = 0; i < size && scale == scale; i++) {
            float level = (in[i] - lowest) / divisor;
            int32_t code = (int32_t)((level + 0x1.8p23f) - 0x1.8p23f);
            code = code > (int)levels ? (int)levels : code;
            if (to->kind == KV_INT8) out[i] = code;
            else out[i % (size / 2)] |= i < size / 2 ? code : code << 4;
        }
    }
}

static inline size_t place_of(const Places *places, const int32_t *table, int num_kv_heads, int head, int j) {
    const int size = places->page_size;
    return ((size_t)table[j / size] * num_kv_heads + head) * size + j % size;
}

// Memory for one token and key head: scores [group][room], and where its keys and values lie.
typedef struct {
    float *scores;
    size_t *where;
    int room;
} Scratch;

static size_t scratch_bytes(int group, int room) { return (size_t)room * (group * sizeof(float) + sizeof(size_t)); }

static Scratch scratch_in(char *memory, int group, int room, int thread) {
    memory += scratch_bytes(group, room) * thread;
    return (Scratch){(float *)(memory + room * sizeof(size_t)), (size_t *)memory, room};
}

enum { AHEAD = 24, ROOM_AHEAD = 48 };  // vectors that are fetched before they are due: pages lie anywhere

#define ATTEND_INLINE static inline __attribute__((always_inline))

// Products of all queries with all keys, several keys at a time: one sum after the other would only wait for itself.
ATTEND_INLINE void score(int kind, int group, const Heads *heads, const Cached *keys, const float *queries, int num,
                         const Scratch *scratch) {
    enum { MOST = 8 };
    const int size = heads->head_size, bytes = vector_bytes(kind, size), ranged = kind == KV_INT8 || kind == KV_INT4;
    const int together = group >= MOST ? 1 : MOST / group;
    float sums[group];
    for (int g = 0; ranged && g < group; g++) {
        v8 sum = {0};
        for (int i = 0; i < size; i += 8) sum += *(const v8 *)(queries + g * size + i);
        sums[g] = sum8(sum);
    }
    for (int j = 0; j < num; j += together) {
        const uint8_t *key[MOST];
        v8 dots[group > MOST ? group : MOST];
        _Pragma("GCC unroll 8") for (int s = 0; s < together; s++)
            key[s] = keys->numbers + scratch->where[j + s < num ? j + s : num - 1] * bytes;
        if (j + AHEAD < num)
            for (int i = 0; i < together * bytes; i += 64)
                __builtin_prefetch(keys->numbers + scratch->where[j + AHEAD] * bytes + i);
        _Pragma("GCC unroll 8") for (int d = 0; d < together * group; d++) dots[d] = (v8){0};
        for (int i = 0; i < size; i += 8)
            _Pragma("GCC unroll 8") for (int s = 0; s < together; s++) {
                v8 numbers = load8(kind, key[s], i, size);
                _Pragma("GCC unroll 8") for (int g = 0; g < group; g++)
                    dots[s * group + g] = fma8(*(const v8 *)(queries + g * size + i), numbers, dots[s * group + g]);
            }
        float sum[group > MOST ? group : MOST];
        if (group <= MOST) {
            _Pragma("GCC unroll 8") for (int d = together * group; d < MOST; d++) dots[d] = (v8){0};
            *(v8 *)sum = sums8(dots);
        }
        for (int s = 0; s < together && j + s < num; s++)
            for (int g = 0; g < group; g++) {
                float dot = group <= MOST ? sum[s * group + g] : sum8(dots[s * group + g]);
                if (ranged) {
                    const float *range = keys->ranges + 2 * scratch->where[j + s];
                    dot = range[0] * dot + range[1] * sums[g];
                }
                scratch->scores[(size_t)g * scratch->room + j + s] = dot * heads->scale;
            }
    }
}

// A row of scores becomes weights that sum to one, with the sink that has no value.
static void soften(float *row, int num, const float *sink) {
    const int padded = (num + 7) / 8 * 8;
    float highest = sink ? *sink : row[0];
    for (int j = 0; j < num; j++)
        if (row[j] > highest) highest = row[j];
    for (int j = num; j < padded; j++) row[j] = -INFINITY;
    v8 total = {0};
    for (int j = 0; j < padded; j += 8) {
        v8 weight = exp8(*(v8 *)(row + j) - highest);
        *(v8 *)(row + j) = weight;
        total += weight;
    }
    float all = sum8(total);
    if (sink) all += expf(*sink - highest);
    const float share = 1.0f / all;
    for (int j = 0; j < num; j++) row[j] *= share;
}

// Values times weights, some numbers of all heads at a time, so that their sums stay in registers.
ATTEND_INLINE void mix(int kind, int group, const Heads *heads, const Cached *values, float *outs, int num,
                       const Scratch *scratch) {
#if defined(__AVX512VL__)
    enum { MOST = 24 };  // of 32 registers
#else
    enum { MOST = 8 };
#endif
    const int size = heads->head_size, bytes = vector_bytes(kind, size), ranged = kind == KV_INT8 || kind == KV_INT4;
    const int most = group >= MOST ? 1 : MOST / group;
    float lows[group];
    for (int g = 0; g < group; g++) {
        float *row = scratch->scores + (size_t)g * scratch->room, low = 0;
        for (int j = 0; ranged && j < num; j++) {
            const float *range = values->ranges + 2 * scratch->where[j];
            low += row[j] * range[1];
            row[j] *= range[0];
        }
        lows[g] = low;
    }
    for (int first = 0; first < size; first += 8 * most) {
        v8 sums[group > MOST ? group : MOST];
        const int here = size - first < 8 * most ? (size - first) / 8 : most;
        _Pragma("GCC unroll 8") for (int g = 0; g < group; g++)
            _Pragma("GCC unroll 8") for (int i = 0; i < most; i++) sums[i * group + g] = (v8){} + lows[g];
        if (here == most) {
            for (int j = 0; j < num; j++) {
                const uint8_t *value = values->numbers + scratch->where[j] * bytes;
                if (first == 0 && j + AHEAD < num)
                    for (int i = 0; i < bytes; i += 64)
                        __builtin_prefetch(values->numbers + scratch->where[j + AHEAD] * bytes + i);
                _Pragma("GCC unroll 8") for (int i = 0; i < most; i++) {
                    v8 numbers = load8(kind, value, first + 8 * i, size);
                    _Pragma("GCC unroll 8") for (int g = 0; g < group; g++)
                        sums[i * group + g] = fma8((v8){} + scratch->scores[(size_t)g * scratch->room + j], numbers,
                                                   sums[i * group + g]);
                }
            }
        } else {
            for (int j = 0; j < num; j++) {
                const uint8_t *value = values->numbers + scratch->where[j] * bytes;
                for (int i = 0; i < here; i++) {
                    v8 numbers = load8(kind, value, first + 8 * i, size);
                    for (int g = 0; g < group; g++)
                        sums[i * group + g] = fma8((v8){} + scratch->scores[(size_t)g * scratch->room + j], numbers,
                                                   sums[i * group + g]);
                }
            }
        }
        for (int i = 0; i < here; i++)
            for (int g = 0; g < group; g++) *(v8 *)(outs + g * size + first + 8 * i) = sums[i * group + g];
    }
}

#include "attention_wide.c"

// Where the keys and values of a token's past lie, the last of them repeated for whoever takes several at a time or
// fetches ahead. Gives how many there are.
static int find_past(const Heads *heads, const Places *places, int t, int head, const Scratch *scratch) {
    const int32_t *table = places->tables + (size_t)places->request[t] * places->max_pages;
    const int end = places->position[t] + 1;
    const int begin = heads->window > 0 && end > heads->window ? end - heads->window : 0;
    size_t *where = scratch->where;
    int page = begin / places->page_size, inside = begin % places->page_size;
    for (int j = begin; j < end; page++, inside = 0) {
        size_t start = ((size_t)table[page] * heads->num_kv_heads + head) * places->page_size;
        for (; inside < places->page_size && j < end; inside++, j++) *where++ = start + inside;
    }
    const int num = end - begin;
    for (size_t *stop = scratch->where + (num + 15) / 16 * 16 + ROOM_AHEAD; where < stop; where++) *where = where[-1];
    return num;
}

// One token's queries of one key head.
ATTEND_INLINE void attend_as(int kind, int group, const Heads *heads, const Cached *keys, const Cached *values, int num,
                             const float *sinks, const float *q, float *out, const Scratch *scratch) {
    score(kind, group, heads, keys, q, num, scratch);
    for (int g = 0; g < group; g++)
        soften(scratch->scores + (size_t)g * scratch->room, num, sinks ? sinks + g : NULL);
    mix(kind, group, heads, values, out, num, scratch);
}

static void attend(const Heads *heads, const Places *places, const Cached *keys, const Cached *values, int t, int head,
                   const float *q, float *out, const Scratch *scratch) {
    const int group = heads->num_heads / heads->num_kv_heads, num = find_past(heads, places, t, head, scratch);
    const size_t at = ((size_t)t * heads->num_heads + (size_t)head * group) * heads->head_size;
    const float *sinks = heads->sinks ? heads->sinks + head * group : NULL;
    q += at;
    out += at;
#if defined(WITH_WIDE_ATTENTION)
    if (is_wide(keys->kind, heads->head_size)) {
        for (int g = 0; g < group; g += MOST_QUERIES)
            attend_wide(heads, keys, values, num, group - g < MOST_QUERIES ? group - g : MOST_QUERIES,
                        sinks ? sinks + g : NULL, q + g * heads->head_size, out + g * heads->head_size, scratch);
        return;
    }
#endif
#define CALL(kind, group) attend_as(kind, group, heads, keys, values, num, sinks, q, out, scratch); break;
#if defined(WITH_WIDE_ATTENTION)  // only unusual sizes come here
#define CASE(kind) case kind: CALL(kind, group)
#else
#define CASE(kind)                      \
    case kind:                          \
        switch (group) {                \
            case 1: CALL(kind, 1)       \
            case 2: CALL(kind, 2)       \
            case 3: CALL(kind, 3)       \
            case 4: CALL(kind, 4)       \
            default: CALL(kind, group)  \
        }                               \
        break;
#endif
    switch (keys->kind) { CASE(KV_FP32) CASE(KV_BF16) CASE(KV_FP8) CASE(KV_INT8) CASE(KV_INT4) }
#undef CASE
#undef CALL
}

static int longest_of(const Places *places) {
    int longest = 0;
    for (int t = 0; t < places->num_tokens; t++)
        if (places->position[t] >= longest) longest = places->position[t] + 1;
    return (longest + 15) / 16 * 16 + ROOM_AHEAD;
}

// out and q (T, N, H); keys and values are stored already. Returns 0 where there is no memory for the scores.
int paged_attention(float *out, const float *q, const Heads *heads, const Places *places, const Cached *keys,
                    const Cached *values) {
    const int room = longest_of(places);
    const int group = heads->num_heads / heads->num_kv_heads;
    char *memory = malloc(scratch_bytes(group, room));
    if (!memory) return 0;
    const Scratch scratch = scratch_in(memory, group, room, 0);
    for (int t = 0; t < places->num_tokens; t++)
        for (int head = 0; head < heads->num_kv_heads; head++)
            attend(heads, places, keys, values, t, head, q, out, &scratch);
    free(memory);
    return 1;
}

// Keep x (T, K, H) in the pages of its tokens.
void store_pages(const Places *places, Cached *to, const float *x, int num_kv_heads, int head_size) {
    for (int t = 0; t < places->num_tokens; t++) {
        const int32_t *table = places->tables + (size_t)places->request[t] * places->max_pages;
        for (int head = 0; head < num_kv_heads; head++)
            store_vector(to, place_of(places, table, num_kv_heads, head, places->position[t]),
                         x + ((size_t)t * num_kv_heads + head) * head_size, head_size);
    }
}
