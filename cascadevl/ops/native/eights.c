// Vectors of eight floats, which any processor has or is given by GCC: what attention, norms and fp32 weights need.

#include <stdint.h>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4)));
typedef float p8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

static inline v8 all8(float x) { return (v8){x, x, x, x, x, x, x, x}; }

static inline v8 fma8(v8 a, v8 b, v8 c) {
#if defined(__AVX2__) && defined(__FMA__)
    return (v8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline float sum8(v8 x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

// Eight vectors become one of their sums, each added up in the order of sum8.
static inline v8 sums8(const v8 x[8]) {
#define HALVES(a, b, ...) (__builtin_shuffle((p8)(a), (p8)(b), (i8){__VA_ARGS__}))
#define BY4(a, b) ((v8)(HALVES(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + HALVES(a, b, 4, 5, 6, 7, 12, 13, 14, 15)))
#define BY1(a, b) ((v8)(HALVES(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + HALVES(a, b, 1, 9, 3, 11, 5, 13, 7, 15)))
#define BY2(a, b) ((v8)(HALVES(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + HALVES(a, b, 2, 3, 10, 11, 6, 7, 14, 15)))
    v8 a = BY4(x[0], x[4]), b = BY4(x[1], x[5]), c = BY4(x[2], x[6]), d = BY4(x[3], x[7]);
    v8 ab = BY1(a, b), cd = BY1(c, d);
    return BY2(ab, cd);
#undef HALVES
#undef BY4
#undef BY1
#undef BY2
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
