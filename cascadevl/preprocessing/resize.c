// Pillow's antialiased bicubic for RGB pictures, bit for bit, cut into tiles.
//
// The arithmetic is that of Pillow 13 (src/libImaging/Resample.c): weights in double, then with 22 bits behind the
// point; sums in 32 bits; 8 bits between the two passes; no pass along an axis that keeps its length; the height
// first where it shrinks by more than twice what the width does. The order of the work is ours: LANES bytes at a
// time, which compilers turn into vector instructions, and tile column by tile column, which stays in the cache.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PRECISION_BITS = 32 - 8 - 2, LANES = 64, BLOCK = LANES / 4 };

static int min(int a, int b) { return a < b ? a : b; }

static double bicubic(double x) {
    const double a = -0.5;
    if (x < 0) x = -x;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

// What each of `length` new values is made of. A recipe holds the first of the old values, their number, their weights.
typedef struct {
    int length;
    size_t recipe_size;
    int32_t *recipes;
} Filter;

static Filter make_filter(int old_length, int new_length) {
    double scale = (double)old_length / new_length, stretch = scale < 1 ? 1 : scale;
    double support = 2 * stretch, inverse = 1 / stretch;
    Filter filter = {new_length, 2 + 2 * (size_t)support + 3, NULL};
    filter.recipes = calloc(new_length, filter.recipe_size * sizeof(int32_t));
    for (int i = 0; filter.recipes && i < new_length; i++) {
        int32_t *recipe = filter.recipes + i * filter.recipe_size;
        double center = (i + 0.5) * scale, sum = 0;
        int first = (int)(center - support + 0.5), end = min((int)(center + support + 0.5), old_length);
        if (first < 0) first = 0;
        for (int x = first; x < end; x++) sum += bicubic((x - center + 0.5) * inverse);
        recipe[0] = first;
        recipe[1] = end - first;
        for (int x = first; x < end; x++) {
            double weight = bicubic((x - center + 0.5) * inverse) / sum;
            recipe[2 + x - first] = (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << PRECISION_BITS));
        }
    }
    return filter;
}

// out[i] = the weighted sum of in[i], in[i + stride], in[i + 2 * stride], …, for n bytes at once.
static inline void mix_lanes(uint8_t *restrict out, const uint8_t *restrict in, size_t stride,
                             const int32_t *restrict recipe, int n) {
    int32_t sum[LANES];
    for (int i = 0; i < n; i++) sum[i] = 1 << (PRECISION_BITS - 1);
    for (int k = 0; k < recipe[1]; k++, in += stride)
        for (int i = 0; i < n; i++) sum[i] += in[i] * recipe[2 + k];
    for (int i = 0; i < n; i++) {
        int32_t level = sum[i] >> PRECISION_BITS;
        out[i] = level < 0 ? 0 : level > 255 ? 255 : level;
    }
}

// One new row of n bytes out of the old rows.
static void mix_row(uint8_t *out, const uint8_t *in, size_t stride, const int32_t *recipe, size_t n) {
    in += recipe[0] * stride;
    if (n < LANES) mix_lanes(out, in, stride, recipe, (int)n);
    else for (size_t i = 0; i < n; i += LANES) {
        size_t at = i + LANES <= n ? i : n - LANES;  // the last lanes overlap those before
        mix_lanes(out + at, in + at, stride, recipe, LANES);
    }
}

// Copies pixels to where the steps of x and y are others, in blocks that the cache holds.
static inline void turn(uint8_t *restrict out, size_t out_x, size_t out_y, const uint8_t *restrict in, size_t in_x,
                        size_t in_y, int width, int height) {
    for (int left = 0; left < width; left += BLOCK)
        for (int y = 0, end = min(left + BLOCK, width); y < height; y++)
            for (int x = left; x < end; x++) memcpy(out + x * out_x + y * out_y, in + x * in_x + y * in_y, 3);
}

// filter.length new columns out of the old ones: BLOCK rows are turned, so that a pixel of each fills the lanes.
static int mix_columns(uint8_t *out, const uint8_t *in, size_t in_row, int height, Filter filter) {
    const int32_t *last = filter.recipes + (filter.length - 1) * filter.recipe_size;
    int first = filter.recipes[0], width = last[0] + last[1] - first;
    size_t out_row = 3 * (size_t)filter.length;
    uint8_t *turned = calloc(width, LANES), *mixed = malloc((size_t)filter.length * LANES);
    int ready = turned && mixed;
    for (int y = 0; ready && y < height; y += BLOCK) {
        int rows = min(height - y, BLOCK);
        turn(turned, LANES, 4, in + y * in_row + 3 * (size_t)first, 3, in_row, width, rows);
        for (int x = 0; x < filter.length; x++) {
            const int32_t *recipe = filter.recipes + x * filter.recipe_size;
            mix_lanes(mixed + (size_t)x * LANES, turned + (size_t)(recipe[0] - first) * LANES, LANES, recipe, LANES);
        }
        turn(out + y * out_row, 3, out_row, mixed, LANES, 4, filter.length, rows);
    }
    free(turned);
    free(mixed);
    return ready;
}

// `picture` has height × width × 3 bytes, `tiles` columns · rows × 3 × side × side. Returns 0 where memory is short.
int resize_into_tiles(uint8_t *tiles, int columns, int rows, int side, const uint8_t *picture, int width, int height) {
    int new_width = columns * side, new_height = rows * side;
    int height_first = height > new_height && height - new_height > 2 * (width - new_width);
    size_t row = 3 * (size_t)width, tile_row = 3 * (size_t)side, plane = (size_t)side * side;
    Filter across = make_filter(width, new_width), down = make_filter(height, new_height);
    uint8_t *shrunk = malloc(height_first ? new_height * row : 1);
    uint8_t *strip = malloc((height_first ? new_height : height) * tile_row), *mixed = malloc(tile_row);
    int ready = across.recipes && down.recipes && shrunk && strip && mixed;
    if (ready && height_first) {
        for (int y = 0; y < new_height; y++)
            mix_row(shrunk + y * row, picture, row, down.recipes + y * down.recipe_size, row);
        picture = shrunk;
        height = new_height;
    }
    for (int column = 0; ready && column < columns; column++) {
        const uint8_t *in = picture + column * tile_row;
        size_t stride = row;
        if (width != new_width) {
            Filter part = {side, across.recipe_size, across.recipes + (size_t)column * side * across.recipe_size};
            ready = mix_columns(strip, picture, row, height, part);
            in = strip;
            stride = tile_row;
        }
        for (int y = 0; ready && y < new_height; y++) {
            const uint8_t *pixels = in + y * stride;
            if (height != new_height) {
                mix_row(mixed, in, stride, down.recipes + y * down.recipe_size, tile_row);
                pixels = mixed;
            }
            uint8_t *out = tiles + ((size_t)(y / side) * columns + column) * 3 * plane + (size_t)(y % side) * side;
            for (int x = 0; x < side; x++)
                for (int c = 0; c < 3; c++) out[c * plane + x] = pixels[3 * x + c];
        }
    }
    free(across.recipes);
    free(down.recipes);
    free(shrunk);
    free(strip);
    free(mixed);
    return ready;
}
