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
struct Four {
    __m512i query;
    explicit EA_INLINE Four(const int8_t *from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        query = _mm512_set1_epi32(four);
    }
    EA_INLINE void add(IntVector &sums, const IntVector &bytes) const {
        sums = (IntVector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, query);
    }
};
#else
struct Four {
    using Pairs = int16_t __attribute__((vector_size(4 * WIDTH)));
    Pairs even, odd;  // values 0 and 2, 1 and 3
    explicit EA_INLINE Four(const int8_t *from) {
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

EA_INLINE IntVector load_bytes(const uint8_t *from) {
    IntVector bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

// out [Q][STRIP] = sums for V vectors, which may reach into the second panel.
template <size_t Q, size_t V>
static void int8_tile(const int8_t *queries, size_t stride, const uint8_t *panel, size_t n_fours, int32_t *out) {
    const auto at = [&](size_t f, size_t v) {
        return load_bytes(panel + 4 * (v / 2 * (n_fours * PANEL) + f * PANEL + v % 2 * WIDTH));
    };
    IntVector sums[Q][V], others[V];  // others: of every second four of a lone query, for more sums in flight
    EA_UNROLL for (size_t v = 0; v < V; v++) {
        others[v] = IntVector{};
        EA_UNROLL for (size_t i = 0; i < Q; i++) sums[i][v] = IntVector{};
    }
    constexpr size_t AT_ONCE = Q == 1 ? 2 : 1;
    size_t f = 0;
    for (; f + AT_ONCE <= n_fours; f += AT_ONCE) {
        IntVector prototypes[V];
        EA_UNROLL for (size_t v = 0; v < V; v++) prototypes[v] = at(f, v);
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            const Four query(queries + i * stride + f * 4);
            EA_UNROLL for (size_t v = 0; v < V; v++) query.add(sums[i][v], prototypes[v]);
        }
        if constexpr (AT_ONCE == 2) {
            const Four query(queries + f * 4 + 4);
            EA_UNROLL for (size_t v = 0; v < V; v++) query.add(others[v], at(f + 1, v));
        }
    }
    if (f < n_fours) {
        const Four query(queries + f * 4);
        EA_UNROLL for (size_t v = 0; v < V; v++) query.add(others[v], at(f, v));
    }
    EA_UNROLL for (size_t v = 0; v < V; v++) sums[0][v] += others[v];
    EA_UNROLL for (size_t i = 0; i < Q; i++)
        EA_UNROLL for (size_t v = 0; v < V; v++)
            std::memcpy(out + i * STRIP + v * WIDTH, &sums[i][v], sizeof(IntVector));
}

#if defined(__AVX512VNNI__)
constexpr size_t INT8_TILE = 12;
#else
constexpr size_t INT8_TILE = 4;  // a query takes two registers here, and so does a vector of prototypes
#endif

template <size_t V>
static void int8_dots(const int8_t *queries, size_t stride, size_t n_queries, const uint8_t *panel, size_t n_fours,
                      int32_t *out) {
    for (size_t i = 0; i < n_queries;) {
        const size_t left = n_queries - i;
        const int8_t *from = queries + i * stride;
        int32_t *to = out + i * STRIP;
        if (left >= INT8_TILE) {
            int8_tile<INT8_TILE, V>(from, stride, panel, n_fours, to), i += INT8_TILE;
        } else if (left >= 4) {
            int8_tile<4, V>(from, stride, panel, n_fours, to), i += 4;
        } else if (left >= 2) {
            int8_tile<2, V>(from, stride, panel, n_fours, to), i += 2;
        } else {
            int8_tile<1, V>(from, stride, panel, n_fours, to), i += 1;
        }
    }
}

static bool strip_distances_int8(const int8_t *queries, size_t stride, size_t n_queries, const Terms *terms,
                                 const int32_t *query_sums, const float *query_scales, const uint8_t *strip,
                                 size_t n_used, size_t dim, const Finish &finish, float *out) {
    const size_t n_vectors = (n_used + WIDTH - 1) / WIDTH, n_fours = (dim + 3) / 4;
    int32_t sums[MAX_BLOCK * STRIP];
    if (n_queries == 1 && n_vectors > 2) {
        if (n_vectors == 3) {
            int8_tile<1, 3>(queries, stride, strip, n_fours, sums);
        } else {
            int8_tile<1, 4>(queries, stride, strip, n_fours, sums);
        }
    } else {
        for (size_t v = 0; v < n_vectors; v += 2) {
            const uint8_t *panel = strip + v / 2 * (n_fours * 4 * PANEL);
            if (n_vectors - v == 1) {
                int8_dots<1>(queries, stride, n_queries, panel, n_fours, sums + v * WIDTH);
            } else {
                int8_dots<2>(queries, stride, n_queries, panel, n_fours, sums + v * WIDTH);
            }
        }
    }
    bool sure = true;
    for (size_t i = 0; i < n_queries; i++) {
        float *row = out + i * STRIP;
        for (size_t v = 0; v < n_vectors; v++) {
            IntVector dots;
            std::memcpy(&dots, sums + i * STRIP + v * WIDTH, sizeof dots);
            dots -= 128 * query_sums[i];  // the prototypes are stored with 128 added
            const Vector plain = __builtin_convertvector(dots, Vector);
            // A cosine does not change with the lengths.
            const Vector scales = load<Vector>(finish.scales + v * WIDTH) * query_scales[i];
            store(row + v * WIDTH, finish.metric == EA_COSINE ? plain : plain * scales);
        }
        sure &= finish_row<true>(row, n_vectors, terms[i], finish);
    }
    return sure;
}

static void round_to_int8(const float *row, float scale, size_t dim, int8_t *out, int32_t *sum, int32_t *squares) {
    using Bytes = int8_t __attribute__((vector_size(WIDTH)));
    IntVector sums = {}, square_sums = {};
    for (size_t k = 0; k < dim; k += WIDTH) {
        const size_t count = dim - k < WIDTH ? dim - k : WIDTH;
        Vector values = {};
        if (count == WIDTH) {
            values = load<Vector>(row + k);
        } else {
            std::memcpy(&values, row + k, count * sizeof(float));
        }
        values *= scale;
        // The product is rounded before the sum: otherwise sets with fused operations would differ from those without.
#if defined(__aarch64__)
        __asm__("" : "+w"(values));
#else
        __asm__("" : "+v"(values));
#endif
        const Vector whole = (values + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23
        const IntVector rounded = __builtin_convertvector(whole, IntVector);
        sums += rounded, square_sums += rounded * rounded;
        const Bytes bytes = __builtin_convertvector(rounded, Bytes);
        if (count == WIDTH) {
            std::memcpy(out + k, &bytes, WIDTH);
        } else {
            std::memcpy(out + k, &bytes, count);
        }
    }
    *sum = 0, *squares = 0;
    for (size_t lane = 0; lane < WIDTH; lane++) *sum += sums[lane], *squares += square_sums[lane];
}

}  // namespace ea::EA_SET
