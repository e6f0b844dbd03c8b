// Tiles for many rows, with AVX-512 VNNI: five rows by four panels, whose twenty sums stay in registers.
//
// A panel's vector then serves five rows and a row's activations four panels, so that the dots wait for neither. What
// groups of inputs add up to lies in the first cache meanwhile. The roundings and their order are those of rows.c.

#if defined(WITH_VNNI)

enum { MANY = 5, MANY_FROM = 16, FETCHED = 512 };

// GCC 12 moves such sums through memory at every step when left to choose; it costs half the speed.
INLINE void dot(Ints *sum, Ints weights, Ints activations) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(activations));
}

INLINE void dots(Ints sums[MAX_PANELS][MANY], const Ints weights[MAX_PANELS], const int8_t *activations, size_t step) {
    UNROLL for (int r = 0; r < MANY; r++) {
        Ints x = four(activations + r * step);
        UNROLL for (int p = 0; p < MAX_PANELS; p++) dot(&sums[p][r], weights[p], x);
    }
}

// One group of inputs: `quants` of the first panel, `stride` bytes before those of the next.
INLINE void dot_many(int kind, Ints sums[MAX_PANELS][MANY], const uint8_t *quants, size_t stride,
                     const int8_t *activations, size_t step, int group) {
    const Ints mask = _mm512_set1_epi8(15);
    const Ints values = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)MXFP4_TABLE));
    for (int k = 0; k < group; k += kind == INT8 ? 4 : 8, quants += 4 * LANES) {
        Ints both[MAX_PANELS], low[MAX_PANELS];
        UNROLL for (int p = 0; p < MAX_PANELS; p++) {
            __builtin_prefetch(quants + p * stride + FETCHED);
            both[p] = _mm512_loadu_si512(quants + p * stride);
            low[p] = kind == INT8 ? both[p] : _mm512_and_si512(both[p], mask);
            if (kind == MXFP4) low[p] = _mm512_shuffle_epi8(values, low[p]);
        }
        dots(sums, low, activations + k, step);
        if (kind == INT8) continue;
        UNROLL for (int p = 0; p < MAX_PANELS; p++) {
            both[p] = _mm512_and_si512(_mm512_srli_epi16(both[p], 4), mask);
            if (kind == MXFP4) both[p] = _mm512_shuffle_epi8(values, both[p]);
        }
        dots(sums, both, activations + k + 4, step);
    }
}

// `grouped`: the scale of a weight is that of its group, and not of its row.
INLINE void tile_many(const Weight *weight, int panel, const Rows *in, int row, float *out, int kind, int grouped) {
    const int group = in->group, num_groups = in->num_groups, bytes = kind == INT8 ? LANES * group : LANES * group / 2;
    float totals[MAX_PANELS * MANY][LANES] __attribute__((aligned(64)));
    for (int g = 0; g < num_groups; g++) {
        const int at_row = row * num_groups + g;
        Ints sums[MAX_PANELS][MANY];
        UNROLL for (int r = 0; r < MANY; r++) {
            Ints first = all_ints(-zero_of(kind) * in->sums[at_row + r * num_groups]);
            UNROLL for (int p = 0; p < MAX_PANELS; p++) sums[p][r] = first;
        }
        dot_many(kind, sums, weight->quants + ((size_t)panel * num_groups + g) * bytes, (size_t)num_groups * bytes,
                 in->quants + (size_t)row * in->num_inputs + g * group, in->num_inputs, group);
        UNROLL for (int p = 0; p < MAX_PANELS; p++) {
            const size_t at = ((size_t)(panel + p) * num_groups + g) * LANES;
            Floats scale = all_floats(0), zeros = all_floats(0);
            if (grouped) scale = group_scale(weight, kind, at);
            if (kind == INT4_ZEROS) zeros = to_floats(load_bytes(weight->zeros + at));
            UNROLL for (int r = 0; r < MANY; r++) {
                Floats found = to_floats(sums[p][r]);
                if (kind == INT4_ZEROS)
                    found = mul_add(zeros, all_floats((float)-in->sums[at_row + r * num_groups]), found);
                if (grouped) found = mul(found, scale);
                float *total = totals[p * MANY + r];
                store_floats(total, add(g ? load_floats(total) : all_floats(0), mul(found, all_floats(in->scales[at_row + r * num_groups]))));
            }
        }
    }
    for (int p = 0; p < MAX_PANELS; p++) {
        Floats scale = grouped ? all_floats(1) : group_scale(weight, kind, (panel + p) * LANES);
        for (int r = 0; r < MANY; r++) {
            Floats total = load_floats(totals[p * MANY + r]);
            store(weight, panel + p, out + (size_t)(row + r) * weight->num_outputs, grouped ? total : mul(total, scale));
        }
    }
}

#define MANY_OF(name, kind, grouped)                                                                   \
    static void name(const Weight *weight, int panel, const Rows *in, int row, float *out) {           \
        tile_many(weight, panel, in, row, out, kind, grouped);                                         \
    }
MANY_OF(many_int8, INT8, 0) MANY_OF(many_int8_grouped, INT8, 1) MANY_OF(many_int4, INT4, 1)
MANY_OF(many_zeros, INT4_ZEROS, 1) MANY_OF(many_mxfp4, MXFP4, 1)

// Does rows from `row` on, five at a time; gives the first that is left.
static int multiply_many(const Weight *weight, int panel, const Rows *in, int row, int end, float *out) {
    if (end - row < MANY_FROM || weight->kind > MXFP4) return row;
    for (; row + MANY <= end; row += MANY) {
        switch (weight->kind) {
            case INT8: (weight->group ? many_int8_grouped : many_int8)(weight, panel, in, row, out); break;
            case INT4: many_int4(weight, panel, in, row, out); break;
            case INT4_ZEROS: many_zeros(weight, panel, in, row, out); break;
            default: many_mxfp4(weight, panel, in, row, out);
        }
    }
    return row;
}

#else

static int multiply_many(const Weight *weight, int panel, const Rows *in, int row, int end, float *out) { return row; }

#endif
