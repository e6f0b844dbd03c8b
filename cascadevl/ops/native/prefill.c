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

static void last_norm_item(void *context, int row, int thread) {
    const Call *call = context;
    const Stack *stack = call->stack;
    float *hidden = call->hidden + (size_t)row * stack->width;
    for (int i = 0; i < stack->width; i++) hidden[i] += call->change[(size_t)row * stack->width + i];
    norm_row(hidden, hidden, stack->norm, stack->width, stack->eps);
}

static void prefill_layer(int helped, Prefill *prefill, const Layer *layer, float *change) {
    Call *call = prefill->call;
    const int rows = call->places->num_tokens;
    call->layer = layer;
    call->norm = layer->input_norm;
    each(helped, rows, norm_item, call);
    Products qkv = {{{layer->q, &call->in, rows, call->q, layer->k},
                     {layer->k, &call->in, rows, call->k, layer->v},
                     {layer->v, &call->in, rows, call->v, layer->o}}, 3};
    apply(helped, &qkv);
    each(helped, rows, place_item, call);
    each(helped, prefill->num_runs * call->stack->num_kv_heads, run_item, prefill);
    each(helped, rows, prepare_out, call);
    Products o = {{{layer->o, &call->attended, rows, change, layer->gate}}, 1};
    apply(helped, &o);
    call->change = change;
    call->norm = layer->post_norm;
    each(helped, rows, norm_item, call);
    Products gate_up = {{{layer->gate, &call->in, rows, call->gate, layer->up},
                         {layer->up, &call->in, rows, call->up, layer->down}}, 2};
    apply(helped, &gate_up);
    each(helped, rows, swiglu_item, call);
    Products down = {{{layer->down, &call->act, rows, change, NULL}}, 1};
    apply(helped, &down);
}

// hidden (T, D), changed in place into what follows the last norm; cos and sin (T, H). 0: memory is short.
int prefill(const Stack *stack, const Places *places, float *hidden, const float *cos, const float *sin) {
    const int rows = places->num_tokens, size = stack->head_size, room = longest_of(places);
    const size_t wide = (size_t)rows * stack->num_heads * size, narrow = (size_t)rows * stack->num_kv_heads * size;
    const size_t width = (size_t)rows * stack->width, mlp = (size_t)rows * stack->mlp_size;
    const int group = stack->num_heads / stack->num_kv_heads, helped = begin();
    const Layer *first = stack->layers;
    Call call = {.stack = stack, .places = places, .cos = cos, .sin = sin, .hidden = hidden, .room = room, .layer = first};
    const Run longest = {0, 1, room};
    const ManyQueries most = queries_of(&call, &longest);
    size_t bytes = head_bytes(&most) + 2 * sizeof(float) * most.num_keys * size;
    if (bytes < scratch_bytes(group, room)) bytes = scratch_bytes(group, room);
    bytes = (bytes + 4095) / 4096 * 4096;
    Run *runs = malloc(rows * sizeof(Run));
    char *memory = malloc((2 * width + 2 * wide + 2 * narrow + 2 * mlp) * sizeof(float) + 16 * 64
                          + bytes * (helped ? pool.wanted : 1));
    int ready = runs && memory && get_rows(&call.in, first->q, rows) && get_rows(&call.attended, first->o, rows)
                && get_rows(&call.act, first->down, rows);
    if (ready) {
        char *free_from = (char *)(((uintptr_t)memory + 63) / 64 * 64);
        float *change = floats(&free_from, width);
        call.in.floats = call.x = floats(&free_from, width);
        call.q = floats(&free_from, wide);
        call.attended.floats = call.out = floats(&free_from, wide);
        call.k = floats(&free_from, narrow);
        call.v = floats(&free_from, narrow);
        call.act.floats = call.gate = floats(&free_from, mlp);
        call.up = floats(&free_from, mlp);
        call.scratch = free_from;
        Prefill prefill = {&call, runs, find_runs(places, runs), bytes};
        for (int index = 0; index < stack->num_layers; index++)
            prefill_layer(helped, &prefill, stack->layers + index, change);
        each(helped, rows, last_norm_item, &call);
    }
    end(helped);
    free_rows(&call.in);
    free_rows(&call.attended);
    free_rows(&call.act);
    free(runs);
    free(memory);
    return ready;
}
