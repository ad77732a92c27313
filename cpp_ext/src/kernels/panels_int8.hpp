// Packed prototypes rounded to int8, four values of a prototype side by side. Sums are exact in int32: a product is at most
// 255 * 127, so that up to 66000 of them fit.
#pragma once

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "panels.hpp"

namespace ea::EA_SET {

// sums += for each lane the four products of its unsigned bytes and the four signed bytes of the query.
#if defined(__AVX512VNNI__)
struct Bytes4 {
    __m512i query;
    explicit EA_INLINE Bytes4(const int8_t *from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        query = _mm512_set1_epi32(four);
    }
    EA_INLINE void add(IntVector &sums, const IntVector &bytes) const {
        sums = (IntVector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, query);
    }
};
#else
struct Bytes4 {
    using Pairs = int16_t __attribute__((vector_size(4 * WIDTH)));
    Pairs even, odd;  // values 0 and 2, 1 and 3
    explicit EA_INLINE Bytes4(const int8_t *from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        const Pairs bytes = (Pairs)(IntVector{} + four);
        even = (bytes << 8) >> 8, odd = bytes >> 8;
    }
    static EA_INLINE void add_pairs(IntVector &sums, const IntVector &a, const Pairs &b) {
#if defined(__AVX512BW__)
        sums += (IntVector)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
        sums += (IntVector)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
        sums += (IntVector)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
        sums = (IntVector)vpadalq_s16((int32x4_t)sums, vmulq_s16((int16x8_t)a, (int16x8_t)b));
#else
#error "no int8 products for this processor"
#endif
    }
    EA_INLINE void add(IntVector &sums, const IntVector &bytes) const {
        add_pairs(sums, bytes & 0x00ff00ff, even);
        add_pairs(sums, (bytes >> 8) & 0x00ff00ff, odd);
    }
};
#endif

// out [Q][V] = sums, from `starts` on, which take out what the 128 makes that is added to stored prototypes.
template <size_t Q, size_t V>
__attribute__((noinline)) static void int8_tile(const int8_t *queries, size_t stride, const int32_t *starts,
                                                const Panels &panels, size_t first, IntVector *out) {
    const size_t n_fours = (panels.dim + 3) / 4;
    IntVector sums[Q][V], others[V];  // others: of every second four of a lone query, for more sums in flight
    EA_UNROLL for (size_t v = 0; v < V; v++) {
        others[v] = IntVector{};
        EA_UNROLL for (size_t i = 0; i < Q; i++) sums[i][v] = IntVector{} + starts[i];
    }
    Reader<V> prototypes(panels, first, 0);
    const Rows<Q, int8_t> rows(queries, stride);
    size_t f = 0;
    if constexpr (Q == 1) {
        for (; f + 2 <= n_fours; f += 2) {
            const Bytes4 a(queries + 4 * f), b(queries + 4 * f + 4);
            EA_UNROLL for (size_t v = 0; v < V; v++) a.add(sums[0][v], prototypes.template load<IntVector>(v));
            prototypes.next();
            EA_UNROLL for (size_t v = 0; v < V; v++) b.add(others[v], prototypes.template load<IntVector>(v));
            prototypes.next(), prototypes.keep();
        }
    }
    for (; f < n_fours; f++) {
        IntVector values[V];
        EA_UNROLL for (size_t v = 0; v < V; v++) values[v] = prototypes.template load<IntVector>(v);
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            const Bytes4 query(rows.at[i] + 4 * f);
            EA_UNROLL for (size_t v = 0; v < V; v++) query.add(sums[i][v], values[v]);
        }
        prototypes.next();
    }
    EA_UNROLL for (size_t v = 0; v < V; v++) sums[0][v] += others[v];
    EA_UNROLL for (size_t i = 0; i < Q; i++) EA_UNROLL for (size_t v = 0; v < V; v++) out[i * V + v] = sums[i][v];
}

#if defined(__AVX512VNNI__)
// Products are so fast here that what is done with a tile's sums is a sixth of the time: it is unrolled.
constexpr size_t INT8_TILE = TILE, INT8_VECTORS = TILE_VECTORS, INT8_UNROLLED = INT8_TILE;
#else
// A query takes two registers here, as does a vector of prototypes.
constexpr size_t INT8_TILE = 4, INT8_VECTORS = 2, INT8_UNROLLED = 0;
#endif
constexpr size_t INT8_BYTES = 1 << 15;  // of rounded queries, on the stack

// A row rounded to int8.
struct Rounded {
    float step;  // what one stands for; NaN where the row has NaN or infinity
    int32_t sum, squares;
};

// Less than a vector, and zeros.
EA_INLINE Vector load_rest(const float *from, size_t count) {
    Vector rest = {};
    std::memcpy(&rest, from, count * sizeof(float));
    return rest;
}

// The bits of the largest absolute value: of finite ones, then infinity, then NaN.
EA_INLINE int32_t largest_bits(const float *row, size_t dim) {
    const size_t whole = dim / WIDTH * WIDTH;
    IntVector most = {};
    for (size_t k = 0; k < whole; k += WIDTH) most = larger(most, (IntVector)load<Vector>(row + k) & 0x7fffffff);
    if (whole < dim) most = larger(most, (IntVector)load_rest(row + whole, dim - whole) & 0x7fffffff);
    return of_all(most, [](const auto &a, const auto &b) EA_BODY { return a > b ? a : b; });
}

// Of a row whose largest value is tiny, a power of two goes first, so that no scale is out of float32's range.
EA_INLINE Rounded round_by(int32_t most_bits, const float *row, size_t dim, int8_t *out) {
    using Bytes = int8_t __attribute__((vector_size(WIDTH)));
    if (most_bits >= 0x7f800000) {
        std::memset(out, 0, dim);
        return {__builtin_nanf(""), 0, 0};
    }
    float largest;
    std::memcpy(&largest, &most_bits, sizeof largest);
    const float before = largest < 1e-30f ? 0x1p100f : 1.0f;
    largest *= before;
    const float scale = largest > 0 ? 127.0f / largest : 0.0f;
    IntVector sums = {}, square_sums = {};
    const auto round = [&](Vector values) EA_BODY {
        values = values * before * scale;
        // The product is rounded before the sum: otherwise sets with fused operations would differ from those without.
#if defined(__aarch64__)
        __asm__("" : "+w"(values));
#else
        __asm__("" : "+v"(values));
#endif
        const Vector shift = Vector{} + 12582912.0f;  // 1.5 * 2^23: a sum with it is a whole number, in its low bits
        const IntVector rounded = (IntVector)(values + shift) - (IntVector)shift;
        sums += rounded, square_sums += rounded * rounded;
        return __builtin_convertvector(rounded, Bytes);
    };
    const size_t whole = dim / WIDTH * WIDTH;
    for (size_t k = 0; k < whole; k += WIDTH) {
        const Bytes bytes = round(load<Vector>(row + k));
        std::memcpy(out + k, &bytes, WIDTH);
    }
    if (whole < dim) {
        const Bytes bytes = round(load_rest(row + whole, dim - whole));
        std::memcpy(out + whole, &bytes, dim - whole);
    }
    return {largest / 127.0f / before, of_all(sums, ADD), of_all(square_sums, ADD)};
}

static void round_to_int8(const float *row, size_t dim, int8_t *out, float *step, int32_t *sum, int32_t *squares) {
    const Rounded made = round_by(largest_bits(row, dim), row, dim, out);
    *step = made.step, *sum = made.sum, *squares = made.squares;
}

template <size_t Q>
static bool some_queries_int8(const Panels &panels, const float *queries, size_t first, size_t end, int32_t metric,
                              float *out, size_t out_stride) {
    const size_t dim = panels.dim, stride = (dim + 3) / 4 * 4;
    alignas(64) int8_t rounded[INT8_BYTES];
    Query known[Q];
    int32_t starts[Q], most_bits[Q];
    bool ordinary = panels.ordinary;
    // Of all first, so that rows do not wait for each other.
    for (size_t i = 0; i < Q; i++) most_bits[i] = largest_bits(queries + i * dim, dim);
    for (size_t i = 0; i < Q; i++) {
        int8_t *row = rounded + i * stride;
        for (size_t k = dim; k < stride; k++) row[k] = 0;
        const Rounded made = round_by(most_bits[i], queries + i * dim, dim, row);
        const float square = made.step * made.step * float(made.squares);
        known[i] = {square, made.squares ? 1 / __builtin_sqrtf(float(made.squares)) : __builtin_nanf(""), made.step};
        starts[i] = -128 * made.sum;
        ordinary &= square > TRUSTED_MIN && square < TRUSTED_MAX;
    }
    fetch_next<Q>(queries, dim, end - first);
    const auto finished = finish_for<true, IntVector, Q == INT8_UNROLLED ? Q : 0>(metric, ordinary);
    const auto sum = [&](size_t panel, auto n, auto, IntVector *sums) EA_BODY {
        int8_tile<Q, n.value>(rounded, stride, starts, panels, panel, sums);
    };
    constexpr size_t MOST = Q == 1 ? 4 : INT8_VECTORS;
    return in_panel_tiles<Q, MOST, IntVector>(panels, first, end, known, out, out_stride, sum, finished);
}

static bool distances_int8(const Panels &panels, const float *queries, size_t n_queries, size_t first, size_t end,
                           int32_t metric, float *out, size_t out_stride) {
    bool sure = true;
    const size_t fit = INT8_BYTES / ((panels.dim + 3) / 4 * 4);
    const auto do_some = [&](size_t n, auto some) {
        for (; n_queries >= n && fit >= n; n_queries -= n, queries += n * panels.dim, out += n * out_stride)
            sure &= some(panels, queries, first, end, metric, out, out_stride);
    };
    do_some(INT8_TILE, some_queries_int8<INT8_TILE>);
    do_some(INT8_TILE / 2, some_queries_int8<INT8_TILE / 2>);
    do_some(1, some_queries_int8<1>);
    return sure;
}

static bool packed_distances(const Panels &panels, const float *queries, size_t n_queries, size_t first, size_t end,
                             int32_t metric, float *out, size_t out_stride) {
    const size_t fit = CACHE_BYTES / panels.panel_bytes, some = fit < 4 ? 4 : fit;
    bool sure = true;
    while (first < end) {
        const size_t n = n_queries > TILE && end - first > some + some / 2 ? some : end - first;
        sure &= (panels.storage == EA_INT8 ? distances_int8 : distances_float32)(panels, queries, n_queries, first,
                                                                                first + n, metric, out, out_stride);
        first += n, out += n * WIDTH;
    }
    return sure;
}

}  // namespace ea::EA_SET
