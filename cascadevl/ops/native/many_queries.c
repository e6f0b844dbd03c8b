// Attention of many queries at once, for prefill and the vision tower: products of small matrices.
//
// As in FlashAttention (arXiv 2205.14135) some queries see some keys at a time, and sums of earlier keys shrink when a
// higher score comes; keys that no query of a tile sees are left out. Keys are turned and values laid end to end
// first, so that both products read vectors and send one number of a query, or weight, to all lanes. Which queries come
// together changes no bit: keys are cut at multiples of KEYS from the first, and what a query does not see counts 0.
//
// With `brief`, numbers have the 8 significant bits of bf16 and sums those of fp32, where the processor has such dots.

#if defined(WITH_VNNI) && defined(__AVX512BF16__)
#define WITH_BF16
#endif

enum { VECTORS = LANES == 16 ? 4 : 2, WIDE = VECTORS * LANES, TILE = 6, TILES_TOGETHER = 8, KEYS = 256 };
enum { STEP = KEYS + LANES };  // from one row of a tile to the next: not a power of 2, which would share places of a cache
enum { TOGETHER_QUERIES = TILE * TILES_TOGETHER };

// q (R, N, T, H), k and v (R, K, U, H), out like q. Numbers of a head are neighbours; the rest lies as strides say.
typedef struct {
    int32_t num_sequences, num_queries, num_keys, num_heads, num_kv_heads, head_size;
    int32_t causal, window, brief;  // causal: the last query sees every key; window: so many keys at most, or 0
    float scale;
    const float *sinks;                                    // of each head, or NULL
    int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3];  // of sequence, head, token
} ManyQueries;

typedef struct {
    const ManyQueries *of;
    const float *q, *k, *v;
    float *out;
    char *scratch;
    int brief;
} Attending;

// What one thread keeps of a head. Of bf16, two neighbours along the sum stand together.
typedef struct {
    float *keys;                                  // [key / WIDE][H][WIDE]
    float *values;                                // [key][padded H]
    float *sums;                                  // [query][padded H]
    float totals[TOGETHER_QUERIES][LANES];
    float most[TOGETHER_QUERIES];
    float query[TILE][STEP], scores[TILE][STEP];
} Head;

#define LOG2_E 1.44269504f  // scores are multiplied with it, so that powers of 2 do for those of e

INLINE int up_to(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

static size_t head_bytes(const ManyQueries *of) {
    const size_t keys = up_to(of->num_keys, WIDE), padded = up_to(of->head_size, LANES), even = up_to(of->head_size, 2);
    const size_t floats = keys * even + keys * padded + TOGETHER_QUERIES * padded;
    return (sizeof(Head) + 4 * floats + 3 * 64 + 4095) / 4096 * 4096;
}

static Head *head_in(char *memory, const ManyQueries *of) {
    Head *head = (Head *)memory;
    const size_t keys = up_to(of->num_keys, WIDE), padded = up_to(of->head_size, LANES);
    head->keys = (float *)(memory + (sizeof(Head) + 63) / 64 * 64);
    head->values = head->keys + keys * up_to(of->head_size, 2);
    head->sums = head->values + keys * padded;
    return head;
}

INLINE uint16_t bf16(float x) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Lay out the keys and values of one head; what pads them is zero.
static void lay_out(Head *head, const ManyQueries *of, const float *k, const float *v, int brief) {
    const int size = of->head_size, padded = up_to(size, LANES), even = up_to(size, 2);
    uint16_t *keys = (uint16_t *)head->keys, *values = (uint16_t *)head->values;
    for (int key = 0; key < up_to(of->num_keys, WIDE); key++) {
        const float *from_k = k + key * of->k_strides[2], *from_v = v + key * of->v_strides[2];
        const size_t panel = (size_t)(key / WIDE) * WIDE * (brief ? even : size);
        const int lane = key % WIDE, real = key < of->num_keys;
        if (brief) {
            for (int i = 0; i < even; i++)
                keys[panel + (i / 2 * WIDE + lane) * 2 + i % 2] = real && i < size ? bf16(from_k[i]) : 0;
            for (int i = 0; i < padded; i++)
                values[((size_t)(key / 2) * padded + i) * 2 + key % 2] = real && i < size ? bf16(from_v[i]) : 0;
        } else {
            for (int i = 0; i < size; i++) head->keys[panel + i * WIDE + lane] = real ? from_k[i] : 0;
            float *to = head->values + (size_t)key * padded;
            if (real) memcpy(to, from_v, size * sizeof(float));
            memset(to + (real ? size : 0), 0, (padded - (real ? size : 0)) * sizeof(float));
        }
    }
}

// sums[r] += Σ x[r][i] · m[i]: rows of m are `step` numbers apart, those of x STEP.
INLINE void products(int vectors, Floats sums[TILE][VECTORS], const float *x, const float *m, size_t step, int num) {
    for (int i = 0; i < num; i++, m += step) {
        Floats columns[VECTORS];
        UNROLL for (int c = 0; c < vectors; c++) columns[c] = load_floats(m + c * LANES);
        UNROLL for (int r = 0; r < TILE; r++) {
            Floats here = all_floats(x[r * STEP + i]);
            UNROLL for (int c = 0; c < vectors; c++) sums[r][c] = mul_add(columns[c], here, sums[r][c]);
        }
    }
}

// The same in bf16, whose rows of m stand together by two.
INLINE void products_brief(int vectors, Floats sums[TILE][VECTORS], const float *x, const float *m, size_t step,
                           int num) {
#if defined(WITH_BF16)
    for (int i = 0; i < (num + 1) / 2; i++, m += step) {
        __m512bh columns[VECTORS];
        UNROLL for (int c = 0; c < vectors; c++) columns[c] = (__m512bh)load_floats(m + c * LANES);
        UNROLL for (int r = 0; r < TILE; r++) {
            __m512bh here = (__m512bh)all_floats(x[r * STEP + i]);
            UNROLL for (int c = 0; c < vectors; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], columns[c], here);
        }
    }
#endif
}

typedef float Plain __attribute__((vector_size(4 * LANES)));
typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));

// 2^x for x <= 0, relative error below 3e-7; 0 below the least normal number.
INLINE Plain power_of_2(Plain x) {
    Lanes tiny = x < -126.0f;
    Plain raised = x + 0x1.8p23f;  // a whole number, and its bits
    Plain r = x - (raised - 0x1.8p23f);
    Floats p = all_floats(1.54035304e-4f), f = (Floats)r;
    p = mul_add(p, f, all_floats(1.33335581e-3f));
    p = mul_add(p, f, all_floats(9.61812911e-3f));
    p = mul_add(p, f, all_floats(5.55041087e-2f));
    p = mul_add(p, f, all_floats(2.40226507e-1f));
    p = mul_add(p, f, all_floats(6.93147181e-1f));
    p = mul_add(p, f, all_floats(1.0f));
    return (Plain)(((Lanes)p + ((Lanes)raised << 23)) & ~tiny);
}

static float highest(Plain x) {
    float lanes[LANES];
    memcpy(lanes, &x, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

// Scores of a query become weights, in place; only those from `begin` up to `end` are seen. Gives what sums shrink by.
INLINE float soften_row(Head *head, int query, float *scores, int begin, int end, int num, int brief) {
    for (int j = 0; j < begin; j++) scores[j] = -INFINITY;
    for (int j = end; j < num; j++) scores[j] = -INFINITY;
    Plain most = (Plain){} - INFINITY;
    for (int j = 0; j < num; j += LANES) {
        Plain x = (Plain)load_floats(scores + j);
        Lanes more = x > most;
        most = (Plain)(((Lanes)x & more) | ((Lanes)most & ~more));
    }
    const float before = head->most[query], here = highest(most), now = here > before ? here : before;
    const float base = now == -INFINITY ? 0.0f : now;
    const float factor = power_of_2((Plain){} + (before - base))[0];
    Plain total = (Plain)load_floats(head->totals[query]) * factor;
    for (int j = 0; j < num; j += LANES) {
        Plain weight = power_of_2((Plain)load_floats(scores + j) - base);
        total += weight;
#if defined(WITH_BF16)
        if (brief) {
            _mm256_storeu_si256((void *)((uint16_t *)scores + j), (__m256i)_mm512_cvtneps_pbh((__m512)weight));
            continue;
        }
#endif
        store_floats(scores + j, (Floats)weight);
    }
    store_floats(head->totals[query], (Floats)total);
    head->most[query] = now;
    return factor;
}

INLINE void mix_tile(int vectors, const Head *head, float *sums, int padded, const float *factors, const float *values,
                int num, int brief) {
    Floats tile[TILE][VECTORS];
    UNROLL for (int r = 0; r < TILE; r++)
        UNROLL for (int c = 0; c < vectors; c++)
            tile[r][c] = mul(load_floats(sums + r * padded + c * LANES), all_floats(factors[r]));
    if (brief) products_brief(vectors, tile, head->scores[0], values, padded, num);
    else products(vectors, tile, head->scores[0], values, padded, num);
    UNROLL for (int r = 0; r < TILE; r++)
        UNROLL for (int c = 0; c < vectors; c++) store_floats(sums + r * padded + c * LANES, tile[r][c]);
}

// A tile of queries and the block of keys from `start` on. `row` is the tile's first query among those together.
INLINE void attend_tile(Head *head, const ManyQueries *of, const float *q, int query, int row, int start, int brief) {
    const int size = of->head_size, padded = up_to(size, LANES), even = up_to(size, 2);
    const int first = of->causal ? of->num_keys - of->num_queries : of->num_keys - 1;  // the last key of query 0
    const int last_query = query + TILE < of->num_queries ? query + TILE - 1 : of->num_queries - 1;
    const int end = (of->causal ? first + last_query : first) + 1, num = end - start < KEYS ? end - start : KEYS;
    const int seen_from = of->window && of->causal ? first + query + 1 - of->window : 0;
    if (num <= 0 || seen_from >= start + num) return;
    for (int r = 0; r < TILE; r++) {
        const int t = query + r < of->num_queries ? query + r : of->num_queries - 1;
        const float factor = of->scale * LOG2_E;
        for (int i = 0; i < even; i++) {
            float x = i < size ? q[t * of->q_strides[2] + i] * factor : 0;
            if (brief) ((uint16_t *)head->query[r])[i] = bf16(x);
            else head->query[r][i] = x;
        }
    }
    for (int key = 0; key < num; key += WIDE) {
        Floats tile[TILE][VECTORS];
        UNROLL for (int r = 0; r < TILE; r++)
            UNROLL for (int c = 0; c < VECTORS; c++) tile[r][c] = all_floats(0);
        if (brief) products_brief(VECTORS, tile, head->query[0], head->keys + (size_t)(start + key) * even / 2, WIDE, size);
        else products(VECTORS, tile, head->query[0], head->keys + (size_t)(start + key) * size, WIDE, size);
        UNROLL for (int r = 0; r < TILE; r++)
            UNROLL for (int c = 0; c < VECTORS; c++) store_floats(head->scores[r] + key + c * LANES, tile[r][c]);
    }
    float factors[TILE];
    for (int r = 0; r < TILE; r++) {
        const int seen = of->causal && first + query + r + 1 < end ? first + query + r + 1 - start : end - start;
        const int from = of->window && of->causal ? first + query + r + 1 - of->window - start : 0;
        const int until = seen < 0 ? 0 : seen < num ? seen : num, begin = from < 0 ? 0 : from < until ? from : until;
        factors[r] = soften_row(head, row + r, head->scores[r], begin, until, up_to(num, LANES), brief);
    }
    const float *values = head->values + (size_t)start * padded / (brief ? 2 : 1);
    float *sums = head->sums + (size_t)row * padded;
    for (int column = 0; column < padded; column += WIDE) {
        const int vectors = padded - column < WIDE ? (padded - column) / LANES : VECTORS;
        switch (vectors) {
            case 1: mix_tile(1, head, sums + column, padded, factors, values + column, num, brief); break;
            case 2: mix_tile(2, head, sums + column, padded, factors, values + column, num, brief); break;
#if defined(WITH_VNNI)
            case 3: mix_tile(3, head, sums + column, padded, factors, values + column, num, brief); break;
            default: mix_tile(4, head, sums + column, padded, factors, values + column, num, brief);
#endif
        }
    }
}

static void in_fp32(Head *head, const ManyQueries *of, const float *q, int query, int row, int start) {
    attend_tile(head, of, q, query, row, start, 0);
}

static void in_bf16(Head *head, const ManyQueries *of, const float *q, int query, int row, int start) {
    attend_tile(head, of, q, query, row, start, 1);
}

// All queries of head `n` of one sequence, whose keys and values are laid out.
static void attend_head(Head *head, const ManyQueries *of, int n, const float *q, float *out, int brief) {
    const int size = of->head_size, padded = up_to(size, LANES);
    for (int query = 0; query < of->num_queries; query += TOGETHER_QUERIES) {
        const int here = of->num_queries - query < TOGETHER_QUERIES ? of->num_queries - query : TOGETHER_QUERIES;
        memset(head->sums, 0, TOGETHER_QUERIES * padded * sizeof(float));
        memset(head->totals, 0, sizeof head->totals);
        for (int r = 0; r < TOGETHER_QUERIES; r++) {  // the sink is a score without a value
            head->most[r] = of->sinks ? of->sinks[n] * LOG2_E : -INFINITY;
            if (of->sinks) head->totals[r][0] = 1;
        }
        for (int start = 0; start < of->num_keys; start += KEYS)
            for (int row = 0; row < here; row += TILE)
                (brief ? in_bf16 : in_fp32)(head, of, q, query + row, row, start);
        for (int r = 0; r < here; r++) {
            float total = 0, *to = out + (query + r) * of->out_strides[2];
            for (int lane = 0; lane < LANES; lane++) total += head->totals[r][lane];
            for (int i = 0; i < size; i++) to[i] = head->sums[(size_t)r * padded + i] / total;
        }
    }
}

static void head_item(void *context, int item, int thread) {
    const Attending *call = context;
    const ManyQueries *of = call->of;
    const int sequence = item / of->num_heads, n = item % of->num_heads, kv = n / (of->num_heads / of->num_kv_heads);
    Head *head = head_in(call->scratch + thread * head_bytes(of), of);
    lay_out(head, of, call->k + sequence * of->k_strides[0] + kv * of->k_strides[1],
            call->v + sequence * of->v_strides[0] + kv * of->v_strides[1], call->brief);
    attend_head(head, of, n, call->q + sequence * of->q_strides[0] + n * of->q_strides[1],
                call->out + sequence * of->out_strides[0] + n * of->out_strides[1], call->brief);
}

// Returns 0 where memory is short.
int attend_many(float *out, const float *q, const float *k, const float *v, const ManyQueries *of) {
    const int helped = begin();
    char *memory = malloc(head_bytes(of) * (helped ? pool.wanted : 1) + 64);
    Attending call = {of, q, k, v, out, (char *)(((uintptr_t)memory + 63) / 64 * 64), 0};
#if defined(WITH_BF16)
    call.brief = of->brief;
#endif
    if (memory) each(helped, of->num_sequences * of->num_heads, head_item, &call);
    end(helped);
    free(memory);
    return memory != NULL;
}
