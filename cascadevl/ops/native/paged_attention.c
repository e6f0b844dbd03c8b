/* Attention of single queries over paged keys and values, fp32.
 *
 * A cache layer is (pages, K, page_size, H), a page of one head being contiguous. Query heads that share a key
 * head are done together, so that each key and value is read once. Everything that a token's result depends on
 * is its own: it has the same bits in any batch. H must be a multiple of 8.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef int i8 __attribute__((vector_size(32)));

static inline float sum8(v8 x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

/* e^x for x <= 0: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7. */
static inline v8 exp8(v8 x) {
    const v8 low = {-87.0f, -87.0f, -87.0f, -87.0f, -87.0f, -87.0f, -87.0f, -87.0f};
    i8 small = x < low;
    x = (v8)(((i8)x & ~small) | ((i8)low & small));
    v8 scaled = x * 1.44269504088896341f;
    i8 n = __builtin_convertvector(scaled - 0.5f, i8); /* towards zero: rounds, as scaled <= 0 */
    v8 whole = __builtin_convertvector(n, v8);
    v8 r = x - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    v8 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    v8 result = p * (v8)((n + 127) << 23);
    return (v8)((i8)result & ~small);
}

/* out (T, N, H); q (T, N, H); keys, values: one layer; tables (R, max_pages): pages of each request in order;
 * request (T), position (T): whose token it is and where it stands; window 0 sees all; sinks (N) or NULL.
 * Returns 0 where there is no memory for the scores. */
int paged_attention(float *out, const float *q, const float *keys, const float *values, const int *tables,
                    const int *request, const int *position, int num_tokens, int num_heads, int num_kv_heads,
                    int head_size, int page_size, int max_pages, float scale, int window, const float *sinks) {
    const int group = num_heads / num_kv_heads, vectors = head_size / 8;
    int longest = 0;
    for (int t = 0; t < num_tokens; t++)
        if (position[t] >= longest) longest = position[t] + 1;
    const int room = (longest + 7) / 8 * 8;
    float *scores = malloc(sizeof(float) * (size_t)room * group);
    if (!scores) return 0;
    for (int t = 0; t < num_tokens; t++) {
        const int *table = tables + (size_t)request[t] * max_pages;
        const int end = position[t] + 1;
        const int begin = window > 0 && end > window ? end - window : 0;
        for (int head = 0; head < num_kv_heads; head++) {
            const float *queries = q + ((size_t)t * num_heads + (size_t)head * group) * head_size;
            float *outs = out + ((size_t)t * num_heads + (size_t)head * group) * head_size;
            for (int j = begin; j < end; j++) {
                const float *key = keys + (((size_t)table[j / page_size] * num_kv_heads + head) * page_size
                                           + j % page_size) * head_size;
                for (int g = 0; g < group; g++) {
                    v8 sum = {0};
                    for (int i = 0; i < vectors; i++)
                        sum += *(const v8 *)(queries + g * head_size + 8 * i) * *(const v8 *)(key + 8 * i);
                    scores[(size_t)g * room + j - begin] = sum8(sum) * scale;
                }
            }
            const int num = end - begin, padded = (num + 7) / 8 * 8;
            for (int g = 0; g < group; g++) {
                float *row = scores + (size_t)g * room;
                float highest = sinks ? sinks[head * group + g] : row[0];
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
                if (sinks) all += expf(sinks[head * group + g] - highest);
                const float share = 1.0f / all;
                for (int j = 0; j < num; j++) row[j] *= share;
            }
            memset(outs, 0, sizeof(float) * group * head_size);
            for (int j = begin; j < end; j++) {
                const float *value = values + (((size_t)table[j / page_size] * num_kv_heads + head) * page_size
                                               + j % page_size) * head_size;
                for (int g = 0; g < group; g++) {
                    const float weight = scores[(size_t)g * room + j - begin];
                    for (int i = 0; i < vectors; i++)
                        *(v8 *)(outs + g * head_size + 8 * i) += weight * *(const v8 *)(value + 8 * i);
                }
            }
        }
    }
    free(scores);
    return 1;
}
