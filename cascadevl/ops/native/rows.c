// Linear layers for few rows: weights, activations quantised on the way in, and tiles of some panels by some rows.
//
// What is computed is exact but for a few roundings, always the same and in the same order:
//     out = (dot_1 · scale_1) · row_scale_1 + (dot_2 · scale_2) · row_scale_2 + … + bias
//     dot_g = Σ quant · activation - zero · Σ activation
// where int8, whose weights have one scale for all of a row, is multiplied with it at the end. Groups of activations
// are those of the weights, or of 64: a few large activations, which language models have, spoil their own group only.
// in fp32, the dots in whole numbers. So a row's result depends neither on other rows nor on the instructions used,
// and cascadevl/ops/quantize.py gives the same bits. FP8 and fp32 weights are multiplied with activations as they are;
// there too, a row's bits are the same in any company.

#include "vectors.c"

enum { INT8, INT4, INT4_ZEROS, MXFP4, FP8, FP32 };

enum { INPUT_PADDING = 64, ACTIVATION_GROUP = 64 };

typedef struct {
    int32_t kind, num_outputs, num_inputs, group;
    // int8, raised by 128: [panel][input / 4][lane][4]; nibbles, low ones first: [panel][input / 8][lane][4];
    // fp8: [panel][input][lane]; fp32: [output][input].
    const uint8_t *quants;
    const void *scales;    // [panel][group][lane]: fp32 for int8 and fp8, fp16 for int4, an exponent byte for MXFP4
    const uint8_t *zeros;  // [panel][group][lane], for INT4_ZEROS
    const float *bias;     // [panel][lane], or NULL; fp32 without padding
} Weight;

// From what a tile reads to what will be read next.
typedef struct {
    ptrdiff_t quants, scales, zeros;
} Ahead;

static Ahead ahead_of(const Weight *weight, int panel, const Weight *next, int next_panel) {
    const uint8_t *at[2][3];
    for (int i = 0; i < 2; i++) {
        const Weight *w = i ? next : weight;
        const size_t inputs = (w->num_inputs + INPUT_PADDING - 1) / INPUT_PADDING * INPUT_PADDING;
        const size_t p = i ? next_panel : panel;
        const size_t groups = w->group ? inputs / w->group : 1, wide = w->kind == INT8 || w->kind == FP8;
        at[i][0] = w->quants + p * LANES * (wide ? inputs : inputs / 2);
        at[i][1] = (const uint8_t *)w->scales + p * LANES * groups * (wide ? 4 : w->kind == MXFP4 ? 1 : 2);
        at[i][2] = w->zeros ? w->zeros + p * LANES * groups : at[i][1];
    }
    return (Ahead){at[1][0] - at[0][0], at[1][1] - at[0][1], at[1][2] - at[0][2]};
}

// ---- Activations: a block of rows, quantised.

typedef struct {
    int num_inputs, num_groups, group;  // inputs include padding
    const float *floats;                // [row][input], unpadded
    int8_t *quants;                     // [row][input]
    int16_t *wide;                      // the same in the order 0 2 1 3 of every four; or NULL
    int32_t *sums;                      // [row][group]
    float *scales;                      // [row][group]
    float *turned;                      // floats for fp32 weights, see plain.c; or NULL
} Rows;

static int get_memory(Rows *rows, int num_rows, int kind) {
    size_t size = (size_t)num_rows * rows->num_inputs;
    int widen = kind == INT8 ? sizeof(Activation8) > 1 : sizeof(Activation4) > 1;
    rows->quants = malloc(size);
    rows->wide = widen ? malloc(size * sizeof(int16_t)) : NULL;
    rows->sums = malloc((size_t)num_rows * rows->num_groups * sizeof(int32_t));
    rows->scales = malloc((size_t)num_rows * rows->num_groups * sizeof(float));
    return rows->quants && (rows->wide || !widen) && rows->sums && rows->scales;
}

INLINE uint32_t magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7FFFFFFF;
}

// 127 levels on either side of zero. A group with an infinity or NaN has the scale NaN, and so has all that comes of it.
static void quantise_row(Rows *rows, int row, int num_inputs) {
    const int group = rows->group;
    for (int g = 0; g < rows->num_groups; g++) {
        const float *restrict in = rows->floats + (size_t)row * num_inputs + g * group;
        int8_t *restrict quants = rows->quants + (size_t)row * rows->num_inputs + g * group;
        int here = num_inputs - g * group;
        here = here < 0 ? 0 : here > group ? group : here;
        uint32_t most = 0;
        for (int i = 0; i < here; i++) {
            uint32_t bits = magnitude_bits(in[i]);
            most = bits > most ? bits : most;
        }
        float highest;
        memcpy(&highest, &most, 4);
        int finite = most < 0x7F800000;
        float scale = finite ? highest / 127.0f : NAN, divisor = scale > 0 ? scale : 1.0f;
        if (!finite) here = 0;
        int32_t sum = 0;
        for (int i = 0; i < here; i++) {
            int32_t level = (int32_t)((in[i] / divisor + 0x1.8p23f) - 0x1.8p23f);  // to the nearest, ties to even
            level = level > 127 ? 127 : level < -127 ? -127 : level;  // more only where the scale is subnormal
            quants[i] = level;
            sum += level;
        }
        memset(quants + here, 0, group - here);
        rows->scales[(size_t)row * rows->num_groups + g] = scale;
        rows->sums[(size_t)row * rows->num_groups + g] = sum;
    }
    int16_t *wide = rows->wide ? rows->wide + (size_t)row * rows->num_inputs : NULL;
    const int8_t *quants = rows->quants + (size_t)row * rows->num_inputs;
    for (int i = 0; wide && i < rows->num_inputs; i += 4)
        for (int j = 0; j < 4; j++) wide[i + j] = quants[i + 2 * (j & 1) + (j >> 1)];
}

// A row's quantised activations from one input on, in the order and width of Activation4 or Activation8.
#define ACTIVATIONS(type, rows, row, input)                                                       \
    ((const type *)(sizeof(type) > 1 ? (const void *)(rows)->wide : (const void *)(rows)->quants) \
     + (size_t)(row) * (rows)->num_inputs + (input))

// ---- One tile: `panels` panels for `rows` rows, both known when this is compiled.

// Values of E2M1, doubled and raised by 12.
static const int8_t MXFP4_TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

INLINE void store(const Weight *weight, int panel, float *out, Floats x) {
    if (weight->bias) x = add(x, load_floats(weight->bias + panel * LANES));
    int first = panel * LANES, left = weight->num_outputs - first;
    if (left >= LANES) {
        store_floats(out + first, x);
    } else if (left > 0) {
        float lanes[LANES];
        store_floats(lanes, x);
        memcpy(out + first, lanes, left * sizeof(float));
    }
}

INLINE Floats group_scale(const Weight *weight, int kind, size_t at) {
    if (kind == INT8) return load_floats((const float *)weight->scales + at);
    if (kind == MXFP4) return load_exponents((const uint8_t *)weight->scales + at);
    return load_halves((const uint16_t *)weight->scales + at);
}

// What stands for zero in weights that are kept without signs.
INLINE int zero_of(int kind) { return kind == INT8 ? 128 : kind == INT4 ? 8 : kind == MXFP4 ? 12 : 0; }

INLINE void dot_group(int kind, int panels, int rows, Ints sums[MAX_PANELS][MAX_ROWS],
                      const uint8_t *const quants[MAX_PANELS], const Rows *in, int row, int input, ptrdiff_t ahead) {
    if (kind == INT8) {
        const Activation8 *activations[MAX_ROWS];
        UNROLL for (int r = 0; r < rows; r++) activations[r] = ACTIVATIONS(Activation8, in, row + r, input);
        dot_bytes(panels, rows, sums, quants, activations, in->group, ahead);
    } else {
        const Activation4 *activations[MAX_ROWS];
        UNROLL for (int r = 0; r < rows; r++) activations[r] = ACTIVATIONS(Activation4, in, row + r, input);
        dot_nibbles(panels, rows, sums, quants, activations, in->group, ahead, kind == MXFP4 ? MXFP4_TABLE : NULL);
    }
}

// Weights of 8 or 4 bits; of int8, whose scales are those of groups or of whole rows, the latter come last.
INLINE void tile_quants(const Weight *weight, int panel, const Rows *in, int row, float *out, int panels, int rows,
                        int kind, const Ahead *ahead) {
    const int group = in->group, num_groups = in->num_groups, grouped = kind != INT8 || weight->group > 0;
    const int scale_bytes = kind == INT8 ? 4 : kind == MXFP4 ? 1 : 2;
    Floats totals[MAX_PANELS][MAX_ROWS];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = all_floats(0);
    for (int g = 0; g < num_groups; g++) {
        Ints sums[MAX_PANELS][MAX_ROWS];
        const uint8_t *quants[MAX_PANELS];
        UNROLL for (int p = 0; p < panels; p++) {
            const size_t before = (((size_t)(panel + p) * num_groups + g) * LANES) * group;
            quants[p] = weight->quants + (kind == INT8 ? before : before / 2);
            UNROLL for (int r = 0; r < rows; r++)
                sums[p][r] = all_ints(-zero_of(kind) * in->sums[(row + r) * num_groups + g]);
        }
        dot_group(kind, panels, rows, sums, quants, in, row, g * group, ahead->quants);
        UNROLL for (int p = 0; p < panels; p++) {
            const size_t at = ((size_t)(panel + p) * num_groups + g) * LANES;
            Floats scale = all_floats(0), zeros = all_floats(0);
            if (grouped) {
                scale = group_scale(weight, kind, at);
                fetch((const uint8_t *)weight->scales + at * scale_bytes, ahead->scales);
            }
            if (kind == INT4_ZEROS) {
                zeros = to_floats(load_bytes(weight->zeros + at));
                if (g % 4 == 0) fetch(weight->zeros + at, ahead->zeros);
            }
            UNROLL for (int r = 0; r < rows; r++) {
                Floats dot = to_floats(sums[p][r]);  // of nibbles under 2^24, so whole numbers stay whole
                if (kind == INT4_ZEROS)
                    dot = mul_add(zeros, all_floats((float)-in->sums[(row + r) * num_groups + g]), dot);
                if (grouped) dot = mul(dot, scale);
                totals[p][r] = add(totals[p][r], mul(dot, all_floats(in->scales[(row + r) * num_groups + g])));
            }
        }
    }
    for (int p = 0; p < panels; p++) {
        Floats scale = grouped ? all_floats(1) : group_scale(weight, kind, (panel + p) * LANES);
        for (int r = 0; r < rows; r++)
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs,
                  grouped ? totals[p][r] : mul(totals[p][r], scale));
    }
}

// Activations as they are; FP8 comes out of load_fp8 too small by 2^8, which its scales make good.
INLINE void tile_fp8(const Weight *weight, int panel, const Rows *in, int row, float *out, int panels, int rows) {
    const int group = weight->group, num_inputs = weight->num_inputs, num_groups = (num_inputs + group - 1) / group;
    Floats totals[MAX_PANELS][MAX_ROWS];
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) totals[p][r] = all_floats(0);
    for (int g = 0; g < num_groups; g++) {
        int end = (g + 1) * group < num_inputs ? (g + 1) * group : num_inputs;
        Floats sums[MAX_PANELS][MAX_ROWS];
        UNROLL for (int p = 0; p < panels; p++)
            UNROLL for (int r = 0; r < rows; r++) sums[p][r] = all_floats(0);
        for (int k = g * group; k < end; k++) {
            Floats weights[MAX_PANELS];
            UNROLL for (int p = 0; p < panels; p++)
                weights[p] = load_fp8(weight->quants + ((size_t)(panel + p) * num_inputs + k) * LANES);
            UNROLL for (int r = 0; r < rows; r++) {
                Floats x = all_floats(in->floats[(size_t)(row + r) * num_inputs + k]);
                UNROLL for (int p = 0; p < panels; p++) sums[p][r] = mul_add(weights[p], x, sums[p][r]);
            }
        }
        UNROLL for (int p = 0; p < panels; p++) {
            Floats scale = load_floats((const float *)weight->scales + ((size_t)(panel + p) * num_groups + g) * LANES);
            UNROLL for (int r = 0; r < rows; r++) totals[p][r] = add(totals[p][r], mul(sums[p][r], scale));
        }
    }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++)
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs, totals[p][r]);
}

// ---- All tiles. Few rows share several panels, so that enough independent sums are under way.

typedef void Tile(const Weight *, int panel, const Rows *, int row, float *out, const Ahead *);

#define TILE_OF(name, rows, call)                                                                                \
    static void name##_##rows(const Weight *w, int panel, const Rows *in, int row, float *out, const Ahead *ahead) { \
        call;                                                                                                    \
    }
#define TILE(panels, rows)                                                                                       \
    TILE_OF(int8, rows, tile_quants(w, panel, in, row, out, panels, rows, INT8, ahead))                          \
    TILE_OF(int4, rows, tile_quants(w, panel, in, row, out, panels, rows, INT4, ahead))                          \
    TILE_OF(zeros, rows, tile_quants(w, panel, in, row, out, panels, rows, INT4_ZEROS, ahead))                   \
    TILE_OF(mxfp4, rows, tile_quants(w, panel, in, row, out, panels, rows, MXFP4, ahead))                        \
    TILE_OF(fp8, rows, tile_fp8(w, panel, in, row, out, panels, rows))
#define TILES_OF(panels, rows) {panels, {int8_##rows, int4_##rows, zeros_##rows, mxfp4_##rows, fp8_##rows}}

TILE(4, 1) TILE(2, 2) TILE(2, 3) TILE(2, 4)
#if defined(WITH_VNNI)
TILE(1, 5) TILE(1, 6) TILE(1, 7) TILE(1, 8)
#endif

static const struct { int panels; Tile *of_kind[5]; } TILES[MAX_ROWS + 1] = {
    {0}, TILES_OF(4, 1), TILES_OF(2, 2), TILES_OF(2, 3), TILES_OF(2, 4),
#if defined(WITH_VNNI)
    TILES_OF(1, 5), TILES_OF(1, 6), TILES_OF(1, 7), TILES_OF(1, 8),
#endif
};

// MAX_PANELS panels for some rows: the weights come from memory once.
static void multiply_rows(const Weight *weight, int panel, const Rows *in, int row, int end, float *out, Ahead ahead) {
    for (; row < end; row += MAX_ROWS) {
        int together = end - row < MAX_ROWS ? end - row : MAX_ROWS, step = TILES[together].panels;
        for (int p = panel; p < panel + MAX_PANELS; p += step)
            TILES[together].of_kind[weight->kind](weight, p, in, row, out, &ahead);
        ahead = (Ahead){1024, 0, 0};
    }
}
