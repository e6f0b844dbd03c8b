// Linear layers with weights of 8 or 4 bits and activations quantised on the way in, to 8 bits in groups of a row.
//
// The loops over outputs and rows; how a tile of them is computed stands in rows.c and many_rows.c, and in plain.c for
// weights in fp32.

#include "pool.c"
#include "rows.c"
#include "many_rows.c"
#include "plain.c"

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

// What products need of a row besides its floats.
static void prepare_row(Rows *rows, int row, int num_inputs) {
    if (rows->quants) quantise_row(rows, row, num_inputs);
    if (rows->turned) turn_row(rows, row, num_inputs);
}

static void prepare_item(void *context, int row, int thread) {
    Product *product = context;
    prepare_row(product->in, row, product->weight->num_inputs);
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
        multiply_plain(weight, output, last, product->in, first, end, product->out);
        return;
    }
    int row = multiply_many(weight, panel, product->in, first, end, product->out);
    const int next = panel + MAX_PANELS, more = next * LANES < weight->num_outputs || !product->then;
    Ahead ahead = ahead_of(weight, panel, more ? weight : product->then, more ? next : 0);
    multiply_rows(weight, panel, product->in, row, end, product->out, ahead);
}

// Memory for rows on their way into a product. 0: it is short.
static int get_rows(Rows *rows, const Weight *weight, int num_rows) {
    const int padding = weight->group ? weight->group : INPUT_PADDING;
    *rows = (Rows){.num_inputs = (weight->num_inputs + padding - 1) / padding * padding};
    rows->group = weight->group ? weight->group : ACTIVATION_GROUP;
    rows->num_groups = rows->num_inputs / rows->group;
    if (weight->kind == FP8 || num_rows == 0) return 1;
    if (weight->kind != FP32) return get_memory(rows, num_rows, weight->kind);
    if (num_rows <= FEW_ROWS) return 1;
    rows->turned = calloc((size_t)(num_rows + SIDE - 1) / SIDE * SIDE, weight->num_inputs * sizeof(float));
    return rows->turned != NULL;
}

static void free_rows(Rows *rows) {
    free(rows->quants);
    free(rows->wide);
    free(rows->sums);
    free(rows->scales);
    free(rows->turned);
}

// out [rows][outputs] and in [rows][inputs] are contiguous. Returns 0 where memory is short.
int linear(float *out, const float *in, int64_t num_rows, const Weight *weight) {
    enum { MOST_ROWS = 64 * ROW_BLOCK };
    int most = num_rows < MOST_ROWS ? (int)num_rows : MOST_ROWS;
    Rows rows;
    int ready = get_rows(&rows, weight, most), helped = begin();
    for (int64_t start = 0; ready && start < num_rows; start += most) {
        int here = num_rows - start < most ? (int)(num_rows - start) : most;
        rows.floats = in + start * weight->num_inputs;
        Product product = {weight, &rows, here, out + start * weight->num_outputs};
        each(helped && here > 8, here, prepare_item, &product);
        each(helped, num_items(&product), multiply, &product);
    }
    end(helped);
    free_rows(&rows);
    return ready;
}
