// A whole decoder for many tokens in one call: as decoder.c, but a prompt's tokens are attended together.
//
// Norms, products, turning, SwiGLU and rounding are those of decoder.c and have the same bits. Attention has other sums:
// which of the two ways a token goes must not depend on its company where batches may not change bits.

// Neighbouring tokens of one request.
typedef struct {
    int first, num, start;  // in the batch; how many; position of the first
} Run;

typedef struct {
    Call *call;
    Run *runs;
    int num_runs;
    size_t bytes;  // of a thread's scratch
} Prefill;

enum { SHORT_RUN = 8 };  // so many tokens are attended one by one

static int find_runs(const Places *places, Run *runs) {
    int num = 0;
    for (int t = 0; t < places->num_tokens; t++) {
        Run *last = runs + num - 1;
        int follows = num && places->request[t] == places->request[t - 1] && places->position[t] == last->start + last->num;
        if (follows) last->num++;
        else runs[num++] = (Run){t, 1, places->position[t]};
    }
    return num;
}

static ManyQueries queries_of(const Call *call, const Run *run) {
    const Stack *stack = call->stack;
    const int64_t size = stack->head_size, q_token = stack->num_heads * size;
    return (ManyQueries){
        .num_sequences = 1, .num_queries = run->num, .num_keys = run->start + run->num, .num_heads = stack->num_heads,
        .num_kv_heads = stack->num_kv_heads, .head_size = stack->head_size, .causal = 1, .window = call->layer->window,
        .scale = stack->scale, .sinks = call->layer->sinks, .q_strides = {0, size, q_token}, .k_strides = {0, 0, size},
        .v_strides = {0, 0, size}, .out_strides = {0, size, q_token}};
}

// One head's keys or values from their pages, as floats, end to end.
static void gather(float *to, const Cached *from, const Places *places, int request, int head, int num_heads, int num,
                   int size) {
    const int32_t *table = places->tables + (size_t)request * places->max_pages;
    const int bytes = vector_bytes(from->kind, size);
    for (int j = 0; j < num; j++, to += size) {
        const size_t at = place_of(places, table, num_heads, head, j);
        for (int i = 0; i < size; i += 8) {
            v8 numbers = load8(from->kind, from->numbers + at * bytes, i, size);
            if (from->kind == KV_INT8 || from->kind == KV_INT4)
                numbers = numbers * from->ranges[2 * at] + from->ranges[2 * at + 1];
            *(v8 *)(to + i) = numbers;
        }
    }
}

static void run_item(void *context, int item, int thread) {
    const Prefill *prefill = context;
    Call *call = prefill->call;
    const Stack *stack = call->stack;
    const Run *run = prefill->runs + item / stack->num_kv_heads;
    const int kv = item % stack->num_kv_heads, size = stack->head_size, group = stack->num_heads / stack->num_kv_heads;
    char *scratch = call->scratch + thread * prefill->bytes;
    if (run->num <= SHORT_RUN) {
        const Heads heads = {stack->num_heads, stack->num_kv_heads, size, call->layer->window, stack->scale,
                             call->layer->sinks};
        const Scratch one = scratch_in(scratch, group, call->room, 0);
        for (int t = run->first; t < run->first + run->num; t++)
            attend(&heads, call->places, &call->layer->keys, &call->layer->values, t, kv, call->q, call->out, &one);
        return;
    }
    const ManyQueries of = queries_of(call, run);
    Head *head = head_in(scratch, &of);
    float *k = (float *)(scratch + head_bytes(&of)), *v = k + (size_t)of.num_keys * size;
    const int request = call->places->request[run->first];
    gather(k, &call->layer->keys, call->places, request, kv, stack->num_kv_heads, of.num_keys, size);
    gather(v, &call->layer->values, call->places, request, kv, stack->num_kv_heads, of.num_keys, size);
    lay_out(head, &of, k, v, 0);
    for (int n = kv * group; n < (kv + 1) * group; n++) {
        const size_t at = ((size_t)run->first * stack->num_heads + n) * size;
        attend_head(head, &of, n, call->q + at, call->out + at, 0);
    }
}

// As `decode`.
int prefill(const Stack *stack, const Places *places, float *hidden, const float *cos, const float *sin) {
    const int room = longest_of(places);
    const size_t few = scratch_bytes(stack->num_heads / stack->num_kv_heads, room);
    Call call = {.stack = stack, .places = places, .cos = cos, .sin = sin, .hidden = hidden, .room = room,
                 .layer = stack->layers};
    const Run longest = {0, 1, room};
    const ManyQueries most = queries_of(&call, &longest);
    size_t bytes = head_bytes(&most) + 2 * sizeof(float) * most.num_keys * stack->head_size;
    bytes = ((bytes < few ? few : bytes) + 4095) / 4096 * 4096;
    Run *runs = malloc(places->num_tokens * sizeof(Run));
    if (!runs) return 0;
    Prefill prefill = {&call, runs, find_runs(places, runs), bytes};
    const Attention attention = {run_item, &prefill, prefill.num_runs * stack->num_kv_heads, bytes};
    int ready = compute(&call, &attention);
    free(runs);
    return ready;
}
