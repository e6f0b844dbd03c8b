// A whole decoder for few tokens in one call: norms, linear layers, rotary positions, cache, attention, SwiGLU.
//
// One token of a small model takes less time than the calls of a framework for it would. Helpers join whatever loop
// is running (pool.c). Each row's result depends on that row alone: it has the same bits in any batch.

#include "linear.c"
#include "paged_attention.c"
#include "huge_pages.c"

typedef struct {
    const float *input_norm, *post_norm, *q_norm, *k_norm, *sinks;  // the last three may be NULL
    const Weight *q, *k, *v, *o, *gate, *up, *down;
    Cached keys, values;
    int32_t window;
} Layer;

typedef struct {
    int32_t num_layers, width, num_heads, num_kv_heads, head_size, mlp_size;
    float eps, scale;
    const float *norm;
    Layer *layers;
} Stack;

// A call at work.
typedef struct {
    const Stack *stack;
    const Places *places;
    const Layer *layer;
    const float *cos, *sin, *norm;
    float *hidden, *change;  // (T, D): what layers add to, and what the last one adds; NULL at first
    Rows in, attended, act;  // inputs of q, k, v, gate and up; of o; of down
    float *x, *q, *k, *v, *out, *gate, *up;
    char *scratch;
    int room;
} Call;

static void norm_row(float *out, const float *in, const float *weight, int size, float eps) {
    v8 squares = {0};
    int i = 0;
    for (; i + 8 <= size; i += 8) squares = fma8(*(const v8 *)(in + i), *(const v8 *)(in + i), squares);
    float sum = sum8(squares);
    for (; i < size; i++) sum += in[i] * in[i];
    const float factor = 1.0f / sqrtf(sum / size + eps);
    for (i = 0; i < size; i++) out[i] = weight[i] * (in[i] * factor);
}

// Add what the last sublayer made, norm, and prepare for the next one.
static void norm_item(void *context, int row, int thread) {
    Call *call = context;
    const int width = call->stack->width;
    float *hidden = call->hidden + (size_t)row * width;
    for (int i = 0; call->change && i < width; i++) hidden[i] += call->change[(size_t)row * width + i];
    norm_row(call->x + (size_t)row * width, hidden, call->norm, width, call->stack->eps);
    prepare_row(&call->in, row, width);
}

static void rotate_head(float *head, const float *cos, const float *sin, int size) {
    for (int i = 0; i < size / 2; i++) {
        float first = head[i], second = head[i + size / 2];
        head[i] = first * cos[i] - second * sin[i];
        head[i + size / 2] = second * cos[i + size / 2] + first * sin[i + size / 2];
    }
}

// Norm and turn the queries and keys of a token; keep its keys and values.
static void place_item(void *context, int t, int thread) {
    Call *call = context;
    const Stack *stack = call->stack;
    const Layer *layer = call->layer;
    const int size = stack->head_size, num_keys = stack->num_kv_heads;
    const float *cos = call->cos + (size_t)t * size, *sin = call->sin + (size_t)t * size;
    float *q = call->q + (size_t)t * stack->num_heads * size, *k = call->k + (size_t)t * num_keys * size;
    for (int head = 0; head < stack->num_heads; head++, q += size) {
        if (layer->q_norm) norm_row(q, q, layer->q_norm, size, stack->eps);
        rotate_head(q, cos, sin, size);
    }
    for (int head = 0; head < num_keys; head++) {
        if (layer->k_norm) norm_row(k + head * size, k + head * size, layer->k_norm, size, stack->eps);
        rotate_head(k + head * size, cos, sin, size);
    }
    const Places one = {call->places->tables, call->places->request + t, call->places->position + t, 1,
                        call->places->page_size, call->places->max_pages};
    store_pages(&one, (Cached *)&layer->keys, k, num_keys, size);
    store_pages(&one, (Cached *)&layer->values, call->v + (size_t)t * num_keys * size, num_keys, size);
}

static void attend_item(void *context, int item, int thread) {
    Call *call = context;
    const Stack *stack = call->stack;
    const Heads heads = {stack->num_heads, stack->num_kv_heads, stack->head_size, call->layer->window, stack->scale,
                         call->layer->sinks};
    const Scratch scratch = scratch_in(call->scratch, stack->num_heads / stack->num_kv_heads, call->room, thread);
    attend(&heads, call->places, &call->layer->keys, &call->layer->values, item / stack->num_kv_heads,
           item % stack->num_kv_heads, call->q, call->out, &scratch);
}

static void prepare_out(void *context, int row, int thread) {
    Call *call = context;
    prepare_row(&call->attended, row, call->stack->num_heads * call->stack->head_size);
}

static void swiglu_item(void *context, int row, int thread) {
    Call *call = context;
    const int size = call->stack->mlp_size;
    float *gate = call->gate + (size_t)row * size;
    const float *up = call->up + (size_t)row * size;
    int i = 0;
    for (; i + 8 <= size; i += 8) {  // x · sigmoid(x), by way of e^-|x|
        v8 x = *(const v8 *)(gate + i);
        i8 below = x < (v8){0};
        v8 e = exp8((v8)((i8)x | (int32_t)0x80000000));
        v8 top = (v8)(((i8)e & below) | (~below & (i8)((v8){} + 1.0f)));
        *(v8 *)(gate + i) = x * top / (1.0f + e) * *(const v8 *)(up + i);
    }
    for (; i < size; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    prepare_row(&call->act, row, size);
}

// Several linear layers with the same inputs, as one loop.
typedef struct {
    Product products[3];
    int num_products;
} Products;

static void products_item(void *context, int item, int thread) {
    Products *all = context;
    int p = 0;
    for (; item >= num_items(&all->products[p]); p++) item -= num_items(&all->products[p]);
    multiply(&all->products[p], item, thread);
}

static void apply(int helped, Products *all) {
    int items = 0;
    for (int p = 0; p < all->num_products; p++) items += num_items(&all->products[p]);
    each(helped, items, products_item, all);
}

static float *floats(char **memory, size_t num) {
    float *found = (float *)*memory;
    *memory += (num * sizeof(float) + 63) / 64 * 64;
    return found;
}

// How the tokens of a layer are attended: a loop of items, and what each thread needs for it.
typedef struct {
    Work *item;
    void *context;
    int num_items;
    size_t scratch_bytes;
} Attention;

static void compute_layer(int helped, Call *call, const Layer *layer, const Weight *next, const Attention *attention,
                          float *change) {
    const int rows = call->places->num_tokens;
    call->layer = layer;
    call->norm = layer->input_norm;
    each(helped, rows, norm_item, call);
    Products qkv = {{{layer->q, &call->in, rows, call->q, layer->k},
                     {layer->k, &call->in, rows, call->k, layer->v},
                     {layer->v, &call->in, rows, call->v, layer->o}}, 3};
    apply(helped, &qkv);
    each(helped, rows, place_item, call);
    each(helped, attention->num_items, attention->item, attention->context);
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
    Products down = {{{layer->down, &call->act, rows, change, next}}, 1};
    apply(helped, &down);
}

static void last_norm_item(void *context, int row, int thread) {
    const Call *call = context;
    const Stack *stack = call->stack;
    float *hidden = call->hidden + (size_t)row * stack->width;
    for (int i = 0; i < stack->width; i++) hidden[i] += call->change[(size_t)row * stack->width + i];
    norm_row(hidden, hidden, stack->norm, stack->width, stack->eps);
}

// All layers and the last norm. 0: memory is short.
static int compute(Call *call, const Attention *attention) {
    const Stack *stack = call->stack;
    const Layer *first = stack->layers;
    const int rows = call->places->num_tokens, size = stack->head_size, helped = begin();
    const size_t wide = (size_t)rows * stack->num_heads * size, narrow = (size_t)rows * stack->num_kv_heads * size;
    const size_t width = (size_t)rows * stack->width, mlp = (size_t)rows * stack->mlp_size;
    char *memory = malloc((2 * width + 2 * wide + 2 * narrow + 2 * mlp) * sizeof(float) + 16 * 64
                          + attention->scratch_bytes * (helped ? pool.wanted : 1));
    int ready = memory && get_rows(&call->in, first->q, rows) && get_rows(&call->attended, first->o, rows)
                && get_rows(&call->act, first->down, rows);
    if (ready) {
        char *free_from = (char *)(((uintptr_t)memory + 63) / 64 * 64);
        float *change = floats(&free_from, width);
        call->in.floats = call->x = floats(&free_from, width);
        call->q = floats(&free_from, wide);
        call->attended.floats = call->out = floats(&free_from, wide);
        call->k = floats(&free_from, narrow);
        call->v = floats(&free_from, narrow);
        call->act.floats = call->gate = floats(&free_from, mlp);
        call->up = floats(&free_from, mlp);
        call->scratch = free_from;
        for (int index = 0; index < stack->num_layers; index++) {
            const Weight *next = index + 1 < stack->num_layers ? first[index + 1].q : NULL;
            compute_layer(helped, call, first + index, next, attention, change);
        }
        each(helped, rows, last_norm_item, call);
    }
    end(helped);
    free_rows(&call->in);
    free_rows(&call->attended);
    free_rows(&call->act);
    free(memory);
    return ready;
}

// hidden (T, D), changed in place into what follows the last norm; cos and sin (T, H). 0: memory is short.
int decode(const Stack *stack, const Places *places, float *hidden, const float *cos, const float *sin) {
    const int room = longest_of(places);
    Call call = {.stack = stack, .places = places, .cos = cos, .sin = sin, .hidden = hidden, .room = room};
    const Attention attention = {attend_item, &call, places->num_tokens * stack->num_kv_heads,
                                 scratch_bytes(stack->num_heads / stack->num_kv_heads, room)};
    return compute(&call, &attention);
}
