// Linear layers with weights in fp32 as torch has them, [output][input], for few and for many rows.
//
// Each sum runs along the inputs one after the other, so that its bits are the same however many rows there are. The
// weights stay where they are, which may be a file. For one or two rows, lanes are outputs: squares of weights are
// turned on their side in registers. For more, lanes are rows: eight of them are turned once for all outputs, and a
// weight is sent to all lanes. Nothing is ever added up across lanes. With 16 registers, eight sums are under way, with
// 32 sixteen: about 90 % of what a core of AMD's Zen 4 can multiply.

#include "eights.c"

enum { SIDE = 8, FEW_ROWS = 2, MOST_SQUARES = 2 };
#if defined(WITH_VNNI)
enum { MOST_SIDES = 2 };
#else
enum { MOST_SIDES = 1 };
#endif

INLINE float with_bias(const Weight *weight, int output, float sum) {
    return weight->bias ? sum + weight->bias[output] : sum;
}

// A row becomes a column, eight of which lie side by side: [row / 8][input][row % 8].
static void turn_row(Rows *rows, int row, int num_inputs) {
    const float *restrict from = rows->floats + (size_t)row * num_inputs;
    float *restrict to = rows->turned + (size_t)(row / SIDE * SIDE) * num_inputs + row % SIDE;
    for (int k = 0; k < num_inputs; k++) to[(size_t)k * SIDE] = from[k];
}

// Some outputs of `sides` times eight rows, of which `num` are there.
INLINE void tile_rows(const Weight *weight, int output, const Rows *in, int row, int num, float *out, int outputs,
                      int sides) {
    const int num_inputs = weight->num_inputs;
    const float *w = (const float *)weight->quants + (size_t)output * num_inputs;
    const float *x = in->turned + (size_t)row * num_inputs;
    v8 sums[SIDE][MOST_SIDES];
    UNROLL for (int o = 0; o < outputs; o++)
        UNROLL for (int s = 0; s < sides; s++) sums[o][s] = all8(0);
    for (int start = 0; start < num_inputs; start += 2 * SIDE) {  // a line of memory from each output
        int end = start + 2 * SIDE < num_inputs ? start + 2 * SIDE : num_inputs;
        UNROLL for (int o = 0; o < outputs; o++)
            fetch((const uint8_t *)(w + (size_t)o * num_inputs + start), (ptrdiff_t)outputs * num_inputs * 4);
        for (int k = start; k < end; k++) {
            v8 columns[MOST_SIDES];
            UNROLL for (int s = 0; s < sides; s++)
                columns[s] = *(const v8 *)(x + ((size_t)s * num_inputs + k) * SIDE);
            UNROLL for (int o = 0; o < outputs; o++) {
                const v8 factor = all8(w[(size_t)o * num_inputs + k]);
                UNROLL for (int s = 0; s < sides; s++) sums[o][s] = fma8(columns[s], factor, sums[o][s]);
            }
        }
    }
    out += (size_t)row * weight->num_outputs + output;
    for (int r = 0; r < num; r++, out += weight->num_outputs)
        for (int o = 0; o < outputs; o++)
            out[o] = with_bias(weight, output + o, sums[o][r / SIDE][r % SIDE]);
}

// Rows become columns.
INLINE void transpose(v8 x[SIDE]) {
#define OF(a, b, ...) (v8)__builtin_shuffle((p8)(a), (p8)(b), (i8){__VA_ARGS__})
    v8 y[SIDE];
    UNROLL for (int i = 0; i < 8; i += 2) {
        y[i] = OF(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = OF(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const int from = i % 2 + i / 2 * 4, to = i % 2 * 2 + i / 2 * 4;
        x[to] = OF(y[from], y[from + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        x[to + 1] = OF(y[from], y[from + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        y[i] = OF(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        y[i + 4] = OF(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 8; i++) x[i] = y[i];
#undef OF
}

// A sum goes on along some inputs, those that fill no square.
static float go_on(float sum, const float *w, const float *x, int start, int end) {
    for (int k = start; k < end; k++) sum = fma8(all8(w[k]), all8(x[k]), all8(sum))[0];
    return sum;
}

// `squares` times eight outputs of one or two rows.
INLINE void tile_outputs(const Weight *weight, int output, const Rows *in, int row, float *out, int squares, int rows) {
    const int num_inputs = weight->num_inputs, whole = num_inputs / SIDE * SIDE, outputs = SIDE * squares;
    const float *w = (const float *)weight->quants + (size_t)output * num_inputs;
    const float *x = in->floats + (size_t)row * num_inputs;
    v8 sums[MOST_SQUARES][FEW_ROWS];
    UNROLL for (int q = 0; q < squares; q++)
        UNROLL for (int r = 0; r < rows; r++) sums[q][r] = all8(0);
    for (int k = 0; k < whole; k += SIDE)
        UNROLL for (int q = 0; q < squares; q++) {
            v8 factors[SIDE];
            UNROLL for (int o = 0; o < SIDE; o++) {
                const float *at = w + (size_t)(q * SIDE + o) * num_inputs + k;
                fetch((const uint8_t *)at, (ptrdiff_t)outputs * num_inputs * 4);
                factors[o] = *(const v8 *)at;
            }
            transpose(factors);
            UNROLL for (int i = 0; i < SIDE; i++)
                UNROLL for (int r = 0; r < rows; r++)
                    sums[q][r] = fma8(factors[i], all8(x[(size_t)r * num_inputs + k + i]), sums[q][r]);
        }
    out += (size_t)row * weight->num_outputs + output;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int q = 0; q < squares; q++) {
            v8 sum = sums[q][r];
            for (int o = 0; whole < num_inputs && o < SIDE; o++)
                sum[o] = go_on(sum[o], w + (size_t)(q * SIDE + o) * num_inputs, x + (size_t)r * num_inputs, whole,
                               num_inputs);
            if (weight->bias) sum += *(const v8 *)(weight->bias + output + q * SIDE);
            *(v8 *)(out + (size_t)r * weight->num_outputs + q * SIDE) = sum;
        }
}

static void plain_few(const Weight *weight, int output, int end, const Rows *in, int row, int rows, float *out) {
    for (; output + SIDE * MOST_SQUARES <= end; output += SIDE * MOST_SQUARES) {
        if (rows == 1) tile_outputs(weight, output, in, row, out, MOST_SQUARES, 1);
        else tile_outputs(weight, output, in, row, out, MOST_SQUARES, FEW_ROWS);
    }
    for (; output < end; output++) {
        const float *w = (const float *)weight->quants + (size_t)output * weight->num_inputs;
        for (int r = row; r < row + rows; r++) {
            float sum = go_on(0, w, in->floats + (size_t)r * weight->num_inputs, 0, weight->num_inputs);
            out[(size_t)r * weight->num_outputs + output] = with_bias(weight, output, sum);
        }
    }
}

static void plain_many(const Weight *weight, int output, int end, const Rows *in, int row, int num, float *out) {
#define TILES(outputs, sides) \
    for (; output + outputs <= end; output += outputs) tile_rows(weight, output, in, row, num, out, outputs, sides);
    if (num > SIDE) {
        TILES(SIDE, MOST_SIDES)
        TILES(1, MOST_SIDES)
    } else {
        TILES(SIDE, 1)
        TILES(1, 1)
    }
#undef TILES
}

// Some outputs of some rows.
static void multiply_plain(const Weight *weight, int output, int end, const Rows *in, int row, int last, float *out) {
    if (!in->turned) {
        plain_few(weight, output, end, in, row, last - row, out);
        return;
    }
    for (; row < last; row += SIDE * MOST_SIDES) {
        int num = last - row < SIDE * MOST_SIDES ? last - row : SIDE * MOST_SIDES;
        plain_many(weight, output, end, in, row, num, out);
    }
}
