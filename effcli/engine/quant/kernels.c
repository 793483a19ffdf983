/* Products of codes of 2, 4 or 8 bits with activations of 8 bits, summed exactly in 32 bits.
 *
 * 32 rows are multiplied together: 128 bytes hold, for each of them, 4 neighboring columns (with
 * 2 bits 16: a byte holds the codes of 4 columns that are 4 apart). A dot-product instruction
 * adds 4 columns to the sum of their row, so no sum crosses rows. Codes are stored without sign,
 * raised by half their range; what that adds is taken off at the end of a group of columns,
 * where the group's scale is due.
 *
 * The file includes itself once for each set of instructions.
 */
#ifndef PATH

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { ROWS = 32, STEP = 16, AT_ONCE = 4, CHUNK = 32, BYTES_PER_THREAD = 1 << 17 };

typedef struct {
    const uint8_t *codes; /* [blocks of rows][groups][steps][2 * ROWS * bits] */
    const float *scales;  /* [blocks of rows][groups][ROWS] */
    const float *bias;    /* [blocks of rows][ROWS] */
    const float *gain;    /* [columns] of a norm before the product, or null */
    int64_t rows, groups, size; /* columns of a group; where stored, a multiple of STEP */
    int32_t bits, times;  /* times: 2 where codes have an offset of a half, else 1 */
} Layer;

typedef struct {
    int8_t *codes; /* [tokens][groups][steps * STEP] */
    int32_t *sums; /* [tokens][groups] of the codes */
    float *steps;  /* [tokens]: what a code of 1 stands for */
    float *normed; /* [tokens][columns], where there is a gain */
    int64_t stride;
} Input;

typedef struct {
    void (*read)(const Layer *, const float *, const Input *, int64_t);
    void (*multiply)(const Layer *, const Input *, float *, int64_t, int64_t, int64_t);
} Path;

typedef int16_t H16 __attribute__((vector_size(16)));
typedef int32_t V16 __attribute__((vector_size(16)));
typedef int32_t V32 __attribute__((vector_size(32)));
typedef int32_t V64 __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))
#define JOIN_(path, name) path##_##name
#define JOIN(path, name) JOIN_(path, name)
#define NAME(name) JOIN(PATH, name)

INLINE int64_t padded(int64_t count) { return (count + STEP - 1) / STEP * STEP; }

INLINE int32_t bits_of(float value)
{
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Each product fits 16 bits; pairs of them are added in 32. */
INLINE V16 plain_pairs(H16 u, H16 x)
{
    V16 pairs = (V16)(u * x);
    return (pairs << 16 >> 16) + (pairs >> 16);
}
INLINE V16 plain_dot(V16 sum, V16 u, V16 x)
{
    return sum + plain_pairs((H16)(u & 0x00ff00ff), (H16)x << 8 >> 8) +
           plain_pairs((H16)(u >> 8 & 0x00ff00ff), (H16)x >> 8);
}
#define PATH plain
#define TARGET
#define VECTOR V16
#define DOT plain_dot
#include "kernels.c"

#if defined(__x86_64__) && !defined(PLAIN)
#include <immintrin.h>

#define PATH avx2
#define TARGET __attribute__((target("avx2")))
#define VECTOR V32
#define DOT avx2_dot
#define DOT8 avx2_dot8
/* Pairs are summed in 16 bits: room enough for codes of 4 bits, and so for halves of 8. */
TARGET INLINE V32 avx2_dot(V32 sum, V32 u, V32 x)
{
    __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)x);
    return sum + (V32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
TARGET INLINE V32 avx2_dot8(V32 sum, V32 u, V32 x)
{
    V32 half = (V32)_mm256_set1_epi8(15), high = avx2_dot((V32){0}, (u >> 4) & half, x);
    return avx2_dot(sum, u & half, x) + (high << 4);
}
#include "kernels.c"

#define PATH avxvnni
#define TARGET __attribute__((target("avx2,avxvnni")))
#define VECTOR V32
#define DOT(sum, u, x) (V32)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(u), (__m256i)(x))
#include "kernels.c"

#define PATH avx512vnni
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define VECTOR V64
#define DOT(sum, u, x) (V64)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(u), (__m512i)(x))
#include "kernels.c"

#elif defined(__aarch64__) && !defined(PLAIN)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#define HAS_DOTPROD (getauxval(AT_HWCAP) >> 20 & 1)
#else
#define HAS_DOTPROD 1
#endif

#define PATH neon
#ifdef __ARM_FEATURE_DOTPROD
#define TARGET
#else
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#define VECTOR V16
#define ZERO8 0 /* both factors have a sign here */
#define DOT(sum, u, x) (V16)vdotq_s32((int32x4_t)(sum), (int8x16_t)(u), (int8x16_t)(x))
#define DOT8(sum, u, x) DOT(sum, (u) ^ (int32_t)0x80808080, x)
#include "kernels.c"
#endif

/* The functions of a set of instructions; null where the processor lacks them. */
const Path *eff_path(const char *name)
{
#if defined(__x86_64__) && !defined(PLAIN)
    if (!strcmp(name, "avx512vnni"))
        return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")
            ? &avx512vnni_path : NULL;
    if (!strcmp(name, "avxvnni"))
        return __builtin_cpu_supports("avxvnni") ? &avxvnni_path : NULL;
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") ? &avx2_path : NULL;
#elif defined(__aarch64__) && !defined(PLAIN)
    if (!strcmp(name, "neon")) return HAS_DOTPROD ? &neon_path : NULL;
#endif
    return strcmp(name, "plain") ? NULL : &plain_path;
}

/* How many threads a product may use. */
int eff_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* Some tokens at a time, so that the nearest cache holds them while all rows pass by. */
static int chunks(const Path *path, const Layer *layer, const float *x, float *y, int64_t tokens,
                  int64_t parts)
{
    int64_t columns = layer->groups * layer->size, blocks = (layer->rows + ROWS - 1) / ROWS;
    int64_t chunk = tokens < CHUNK ? tokens : CHUNK, stride = layer->groups * padded(layer->size);
    int64_t floats = chunk * (1 + layer->groups + (layer->gain ? columns : 0));
    Input in = {.stride = stride, .steps = malloc(4 * floats + chunk * stride + 1)};
    if (!in.steps) return 0;
    in.sums = (int32_t *)(in.steps + chunk);
    in.normed = (float *)(in.sums + chunk * layer->groups);
    in.codes = (int8_t *)(in.steps + floats);
    for (; tokens > 0; tokens -= chunk, x += chunk * columns, y += chunk * layer->rows) {
        int64_t now = tokens < chunk ? tokens : chunk;
        for (int64_t t = 0; t < now; t++) path->read(layer, x + t * columns, &in, t);
#pragma omp parallel for num_threads(parts) if (parts > 1)
        for (int64_t part = 0; part < parts; part++)
            path->multiply(layer, &in, y, now, blocks * part / parts, blocks * (part + 1) / parts);
    }
    free(in.steps);
    return 1;
}

/* y[tokens][rows] from x[tokens][columns]; returns whether there was memory. Threads share many
 * tokens, or else the rows: they meet once. */
int eff_product(const Path *path, const Layer *layer, const float *x, float *y, int64_t tokens)
{
    int64_t rows = layer->rows, columns = layer->groups * layer->size;
    int64_t work = rows * columns * layer->bits / 8 * tokens, parts = eff_threads();
    parts = parts < work / BYTES_PER_THREAD ? parts : work / BYTES_PER_THREAD;
    if (parts <= 1) return chunks(path, layer, x, y, tokens, 1);
    if (tokens < parts * CHUNK) return chunks(path, layer, x, y, tokens, parts);
    int missed = 0;
#pragma omp parallel for num_threads(parts) reduction(+ : missed)
    for (int64_t part = 0; part < parts; part++) {
        int64_t first = tokens * part / parts, count = tokens * (part + 1) / parts - first;
        missed += !chunks(path, layer, x + first * columns, y + first * rows, count, 1);
    }
    return !missed;
}

#else

#ifndef DOT8 /* the product of codes of 8 bits, and what they were raised by */
#define DOT8 DOT
#endif
#ifndef ZERO8
#define ZERO8 128
#endif

/* One token in 8 bits. The bits of a float without its sign have the order of its size, with NaN
 * above all; the sum of a small float and 1.5 * 2^23 has the nearest integer in its last bits. */
TARGET static void NAME(read)(const Layer *layer, const float *x, const Input *in, int64_t token)
{
    int64_t columns = layer->groups * layer->size;
    if (layer->gain) {
        float *normed = in->normed + token * columns;
        double sum = 0;
        for (int64_t i = 0; i < columns; i++) sum += (double)x[i] * x[i];
        float inverse = (float)(1 / sqrt(sum / columns + 1e-6));
        for (int64_t i = 0; i < columns; i++) normed[i] = x[i] * inverse * layer->gain[i];
        x = normed;
    }
    int32_t most = bits_of(1e-5f);
    for (int64_t i = 0; i < columns; i++) {
        int32_t size = bits_of(x[i]) & 0x7fffffff;
        most = size > most ? size : most;
    }
    float peak;
    memcpy(&peak, &most, 4);
    float scale = 1 / peak * 127;
    int8_t *to = in->codes + token * in->stride;
    for (int64_t g = 0; g < layer->groups; g++, x += layer->size, to += padded(layer->size)) {
        int32_t sum = 0;
        for (int64_t i = 0; i < layer->size; i++) {
            int8_t code = (int8_t)bits_of(x[i] * scale + 12582912.0f);
            to[i] = code;
            sum += code;
        }
        memset(to + layer->size, 0, padded(layer->size) - layer->size);
        in->sums[token * layer->groups + g] = sum;
    }
    in->steps[token] = peak / 127 + (peak - peak); /* NaN where a token is not finite */
}

/* Sums of a block of rows over the columns of a group, for one token or AT_ONCE of them. What is
 * read of the tokens meets two vectors of rows; one token has 4 sums for each, so that none waits
 * for the one before it. */
TARGET INLINE void NAME(dots)(const uint8_t *w, const int8_t *x, int64_t stride, int64_t steps,
                              const int bits, const int tokens, int32_t out[AT_ONCE][ROWS])
{
    enum { WIDTH = sizeof(VECTOR), BYTES = 4 * ROWS };
    for (int part = 0; part < BYTES; part += 2 * WIDTH) {
        VECTOR sums[2][AT_ONCE] = {{{0}}};
        for (int64_t step = 0; step < steps; step++) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const uint8_t *at = w + (step * bits / 2 + j * bits / 8) * BYTES + part;
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    VECTOR u;
                    memcpy(&u, at + i * WIDTH, WIDTH);
                    if (bits < 8) u = u >> j * bits % 8 & (bits == 2 ? 0x03030303 : 0x0f0f0f0f);
#pragma GCC unroll 4
                    for (int t = 0; t < tokens; t++) {
                        int32_t four;
                        memcpy(&four, x + t * stride + step * STEP + 4 * j, 4);
                        VECTOR same = four + (VECTOR){0}, *sum = &sums[i][tokens == 1 ? j : t];
                        *sum = bits == 8 ? DOT8(*sum, u, same) : DOT(*sum, u, same);
                    }
                }
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++)
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                VECTOR *s = sums[i], sum = tokens == 1 ? s[0] + s[1] + s[2] + s[3] : s[t];
                memcpy((uint8_t *)out[t] + part + i * WIDTH, &sum, WIDTH);
            }
    }
}

TARGET INLINE void NAME(block)(const Layer *layer, const Input *in, float *y, int64_t block,
                               int64_t token, const int bits, const int tokens)
{
    int64_t size = padded(layer->size), groups = layer->groups, row = block * ROWS;
    const uint8_t *w = layer->codes + row * groups * size / 8 * bits;
    const float *scales = layer->scales + row * groups, *bias = layer->bias + row;
    const int32_t times = layer->times, zero = bits == 8 ? ZERO8 : 1 << (bits - 1);
    float out[AT_ONCE][ROWS] = {{0}};
    for (int64_t g = 0; g < groups; g++, w += ROWS * size / 8 * bits, scales += ROWS) {
        int32_t sums[AT_ONCE][ROWS];
        NAME(dots)(w, in->codes + token * in->stride + g * size, in->stride, size / STEP, bits,
                   tokens, sums);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            int32_t off = (times * zero - (times - 1)) * in->sums[(token + t) * groups + g];
            for (int r = 0; r < ROWS; r++)
                out[t][r] += (float)(times * sums[t][r] - off) * scales[r];
        }
    }
    int64_t count = layer->rows - row < ROWS ? layer->rows - row : ROWS;
#pragma GCC unroll 4
    for (int t = 0; t < tokens; t++) {
        const float step = in->steps[token + t];
        for (int r = 0; r < ROWS; r++) out[t][r] = out[t][r] * step + bias[r];
        memcpy(y + (token + t) * layer->rows + row, out[t], 4 * count);
    }
}

#define CASE(bits)                                                                                \
    case bits:                                                                                    \
        for (; token + AT_ONCE <= tokens; token += AT_ONCE)                                       \
            NAME(block)(layer, in, y, block, token, bits, AT_ONCE);                               \
        for (; token < tokens; token++) NAME(block)(layer, in, y, block, token, bits, 1);         \
        break;

TARGET static void NAME(multiply)(const Layer *layer, const Input *in, float *y, int64_t tokens,
                                  int64_t first, int64_t end)
{
    for (int64_t block = first; block < end; block++) {
        int64_t token = 0;
        switch (layer->bits) { CASE(2) CASE(4) CASE(8) }
    }
}

static const Path NAME(path) = {NAME(read), NAME(multiply)};

#undef PATH
#undef TARGET
#undef VECTOR
#undef ZERO8
#undef DOT
#undef DOT8
#undef CASE
#endif
