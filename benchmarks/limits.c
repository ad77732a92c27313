/* What this processor can do at most, and what a call costs from C: printed as one JSON object.
   benchmarks/kernels.py compiles it with -march=native and links it to the core. */
#include <edgealign.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
typedef float vector __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float vector __attribute__((vector_size(32)));
#else
typedef float vector __attribute__((vector_size(16)));
#endif

enum { N_REPEATS = 25 };
#define KEEP(v) __asm__ volatile("" : "+m"(v))

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* 12 independent chains of one instruction, `ops` operations each: more than its latency times its ports. */
#define CHAINS(type, instruction, ops)                                                            \
    double best = 0;                                                                              \
    for (int repeat = 0; repeat < N_REPEATS; repeat++) {                                          \
        type s0 = {0}, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0,    \
             s9 = s0, s10 = s0, s11 = s0, x = s0, y = s0;                                         \
        const long n = 400000;                                                                    \
        const double start = now();                                                               \
        for (long i = 0; i < n; i++) {                                                            \
            STEP(instruction, s0) STEP(instruction, s1) STEP(instruction, s2)                     \
            STEP(instruction, s3) STEP(instruction, s4) STEP(instruction, s5)                     \
            STEP(instruction, s6) STEP(instruction, s7) STEP(instruction, s8)                     \
            STEP(instruction, s9) STEP(instruction, s10) STEP(instruction, s11)                   \
        }                                                                                         \
        const double rate = 12.0 * (ops) * (double)n / (now() - start) / 1e9;                     \
        if (rate > best) best = rate;                                                             \
    }                                                                                             \
    return best;
#if defined(__aarch64__)
#define STEP(instruction, s) __asm__ volatile(instruction " %0.4s, %1.4s, %2.4s" : "+w"(s) : "w"(x), "w"(y));
#else
#define STEP(instruction, s) __asm__ volatile(instruction " %2, %1, %0" : "+v"(s) : "v"(x), "v"(y));
#endif

static double fma_gflops(void)
{
#if defined(__aarch64__)
    CHAINS(vector, "fmla", 8)
#elif defined(__FMA__)
    CHAINS(vector, "vfmadd231ps", 2.0 * sizeof(vector) / 4)
#else
    return 0;
#endif
}

static double int8_gops(void)
{
#if defined(__AVX512VNNI__)
    CHAINS(vector, "vpdpbusd", 128)
#else
    return 0;
#endif
}

static inline __attribute__((always_inline)) void add_all(const vector *from, size_t n, int fetch_ahead, vector *sums)
{
    for (size_t i = 0; i < n; i += 8)
        for (int c = 0; c < 8; c++) {
            if (fetch_ahead) __builtin_prefetch((const char *)&from[i + (size_t)c] + 4096, 0, 2);
            sums[c] += from[i + (size_t)c];
        }
}

/* Reading `bytes` again and again, in large pages as numpy and packed prototypes lie, with and without fetching ahead; the
   sum is kept so that nothing is left out. */
static double read_gb_s(size_t bytes, int repeats)
{
    float *memory = aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) >> 21 << 21);
    const size_t n = bytes / sizeof(vector) / 8 * 8;
    const vector *from = (const vector *)(void *)memory;
    double best = 0;
#if defined(__linux__)
    if (bytes >= 1 << 21) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    memset(memory, 0, bytes);
    for (int repeat = 0; repeat < repeats; repeat++) {
        vector sums[8];
        memset(sums, 0, sizeof sums);
        const double start = now();
        if (repeat % 2)
            add_all(from, n, 1, sums);
        else
            add_all(from, n, 0, sums);
        const double rate = (double)(n * sizeof(vector)) / (now() - start) / 1e9;
        for (int c = 0; c < 8; c++) KEEP(sums[c]);
        if (rate > best) best = rate;
    }
    free(memory);
    return best;
}

/* One query against prototypes in half precision, sixteen side by side: no more than reading, widening and multiplying. */
static double half_us(size_t n_prototypes, size_t dim)
{
    double best = 0;
#if defined(__AVX512F__)
    const size_t bytes = (n_prototypes + 15) / 16 * 16 * dim * 2;
    char *memory = aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) >> 21 << 21);
    float *query = calloc(dim, sizeof(float));
    const int calls = (int)(2e7 / (double)bytes) + 1;
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    memset(memory, 0, bytes);
    best = 1e9;
    for (int repeat = 0; repeat < N_REPEATS; repeat++) {
        const double start = now();
        for (int call = 0; call < calls; call++) {
            const char *at = memory;
            while (at < memory + bytes) {
                __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
                for (size_t k = 0; k + 4 <= dim; k += 4, at += 128) {
                    const __m256i *from = (const __m256i *)(const void *)at;
                    a = _mm512_fmadd_ps(_mm512_set1_ps(query[k]), _mm512_cvtph_ps(_mm256_loadu_si256(from)), a);
                    b = _mm512_fmadd_ps(_mm512_set1_ps(query[k + 1]), _mm512_cvtph_ps(_mm256_loadu_si256(from + 1)), b);
                    c = _mm512_fmadd_ps(_mm512_set1_ps(query[k + 2]), _mm512_cvtph_ps(_mm256_loadu_si256(from + 2)), c);
                    d = _mm512_fmadd_ps(_mm512_set1_ps(query[k + 3]), _mm512_cvtph_ps(_mm256_loadu_si256(from + 3)), d);
                }
                a = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
                KEEP(a);
            }
        }
        const double us = (now() - start) / calls * 1e6;
        if (us < best) best = us;
    }
    free(query);
    free(memory);
#else
    (void)n_prototypes, (void)dim;
#endif
    return best;
}

static double call_us(size_t n_queries, size_t n_prototypes, size_t dim, int32_t storage, int32_t metric)
{
    float *rows = malloc((n_prototypes + n_queries) * dim * sizeof(float));
    float *out = malloc(n_queries * n_prototypes * sizeof(float));
    ea_packed *packed = NULL;
    double best = 1e9;
    const double work = (double)n_queries * (double)n_prototypes * (double)dim;
    const long calls = work > 2e7 ? 1 : (long)(2e7 / work) + 1;
    for (size_t i = 0; i < (n_prototypes + n_queries) * dim; i++) rows[i] = (float)(rand() % 2001 - 1000) * 1e-3f;
    if (ea_pack(rows, n_prototypes, dim, storage, &packed, NULL) != EA_OK) return -1;
    for (int repeat = 0; repeat < N_REPEATS; repeat++) {
        const double start = now();
        for (long c = 0; c < calls; c++)
            if (ea_packed_distances(packed, rows + n_prototypes * dim, n_queries, metric, 1, out) != EA_OK) return -1;
        const double us = (now() - start) / (double)calls * 1e6;
        if (us < best) best = us;
    }
    ea_packed_free(packed);
    free(rows);
    free(out);
    return best;
}

int main(void)
{
    static const size_t shapes[][3] = {
        {1, 50, 128}, {1, 1000, 256}, {256, 50, 128}, {4096, 1000, 256}, {1, 100000, 256}};
    printf("{\"fma_gflops\": %.1f, \"int8_gops\": %.1f", fma_gflops(), int8_gops());
    printf(", \"read_gb_s\": %.2f, \"read_int8_gb_s\": %.2f", read_gb_s(102400000, 100), read_gb_s(25600000, 200));
    printf(", \"read_1024kb_gb_s\": %.2f, \"read_256kb_gb_s\": %.2f", read_gb_s(1024000, 2000), read_gb_s(256000, 4000));
    printf(", \"float16 loop 1x1000x256 us\": %.3f, \"float16 loop 1x100000x256 us\": %.3f", half_us(1000, 256),
           half_us(100000, 256));
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int32_t storage = EA_FLOAT32; storage <= EA_INT8; storage++)
            printf(", \"%s %zux%zux%zu us\": %.3f", storage ? "int8" : "fp32", shapes[s][0], shapes[s][1], shapes[s][2],
                   call_us(shapes[s][0], shapes[s][1], shapes[s][2], storage, EA_SQ_L2));
    printf("}\n");
    return 0;
}
