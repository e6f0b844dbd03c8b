// Linear layers with weights of 8 or 4 bits and activations quantised on the way in, to 8 bits in groups of a row.
//
// The loops over outputs and rows; how a tile of them is computed stands in rows.c and many_rows.c.

#include "pool.c"
#include "rows.c"
#include "many_rows.c"

enum { ROW_BLOCK = 80 };  // with its activations, and four panels, it fits the second cache

// Outputs of a panel; weights are padded to a multiple of MAX_PANELS panels.
int lanes(void) { return LANES; }

// All that a loop over rows, and one over outputs, need to know.
typedef struct {
    const Weight *weight;
    Rows *in;
    int num_rows;
    float *out;
    const Weight *then;  // which is read next; or NULL
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
    int row = multiply_many(weight, panel, product->in, first, end, product->out);
    const int next = panel + MAX_PANELS, more = next * LANES < weight->num_outputs || !product->then;
    Ahead ahead = ahead_of(weight, panel, more ? weight : product->then, more ? next : 0);
    multiply_rows(weight, panel, product->in, row, end, product->out, ahead);
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
