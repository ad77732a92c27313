// Packed prototypes: value k of WIDTH prototypes side by side, so that a lane belongs to one prototype and a query's value
// is the same for all lanes. These are a panel; the last one is only as wide as it has to be.
//
// The sum of a pair is that of its first floor(dim / 2) products, one after the other, plus that of the others, one after
// the other: so in every tile and with every instruction set, and a distance does not depend on its neighbors.
#pragma once

#include "../kernels.hpp"
#include "edgealign.h"
#include "rows.hpp"

namespace ea::EA_SET {

// Squared distances below this share of |q|^2 + |p|^2 have lost too many digits and are computed from differences.
constexpr float NEAR = 1.0f / 32;
constexpr float TRUSTED_MIN = 1e-20f, TRUSTED_MAX = 1e30f;  // of sums of squares
// A lone query meets more than this in no cache; it then goes through one panel after the other, for memory is fastest
// read from front to back, and fetches so far ahead.
constexpr size_t FAR_PANEL_BYTES = 16 << 20, AHEAD_BYTES = 4096;
// Of panels that stay in the second cache while all queries pass; processors with AVX-512 have 1 MiB of it.
constexpr size_t CACHE_BYTES = (WIDTH == 16 ? 512 : 384) << 10;

// A query as the formulas see it, its values already compared with what float32 can be trusted with.
struct Query {
    float square, inverse_length;
    float scale;  // int8: what one step stands for
};

EA_INLINE Query query_of(float square) {
    if (square > TRUSTED_MIN && square < TRUSTED_MAX) return {square, 1 / __builtin_sqrtf(square), 1};
    return {__builtin_nanf(""), __builtin_nanf(""), 1};
}

EA_INLINE void store_some(float *to, const Vector &lanes, size_t count) {
    if (count >= WIDTH) return store(to, lanes);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)lanes);
#else
    std::memcpy(to, &lanes, count * sizeof(float));
#endif
}

// V panels next to each other, read from some value on.
template <size_t V>
struct Reader {
    const char *at[V];
    size_t last_step;
    EA_INLINE Reader(const Panels &panels, size_t first, size_t value) {
        last_step = first + V == panels.n_panels ? panels.last_step : panels.step;
        EA_UNROLL for (size_t v = 0; v < V; v++)
            at[v] = panels.memory + (first + v) * panels.panel_bytes + value * (v + 1 < V ? WIDTH * 4 : last_step);
    }
    template <class T>
    EA_INLINE T load(size_t v) const {
        T lanes;
        std::memcpy(&lanes, at[v], sizeof lanes);  // beyond the end of a narrow panel lies the next value, or padding
        return lanes;
    }
    EA_INLINE void next() {
        EA_UNROLL for (size_t v = 0; v + 1 < V; v++) at[v] += WIDTH * 4;
        at[V - 1] += last_step;
    }
    // Pointers, so that the compiler does not make an index of them: with one, a load cannot go with what uses it.
    EA_INLINE void keep() {
        EA_UNROLL for (size_t v = 0; v < V; v++) __asm__("" : "+r"(at[v]));
    }
};

EA_INLINE bool is_far(const Panels &panels) { return panels.n_panels * panels.panel_bytes > FAR_PANEL_BYTES; }

// Rows of Q queries, each with its pointer: loops then have one index for all of them.
template <size_t Q, class T>
struct Rows {
    const T *at[Q];
    EA_INLINE Rows(const T *rows, size_t stride) {
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            at[i] = rows + i * stride;
            __asm__("" : "+r"(at[i]));
        }
    }
};

template <size_t Q, size_t V>
EA_INLINE void add_products(const Rows<Q, float> &queries, Reader<V> prototypes, size_t first, size_t end,
                            Vector (&sums)[Q][V]) {
    for (size_t k = first; k < end; k++) {
        if constexpr (Q == 1) __builtin_prefetch(prototypes.at[0] + AHEAD_BYTES, 0, 2);
        Vector values[V];
        EA_UNROLL for (size_t v = 0; v < V; v++) values[v] = prototypes.template load<Vector>(v);
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            const float query = queries.at[i][k];
            EA_UNROLL for (size_t v = 0; v < V; v++) sums[i][v] += query * values[v];
        }
        prototypes.next();
    }
}

// out [Q][V] = dot products. SIDE_BY_SIDE: both parts of a sum at once, so that enough of them are in flight.
template <size_t Q, size_t V, bool SIDE_BY_SIDE = Q == 1>
__attribute__((noinline)) static void tile(const float *queries, size_t stride, const Panels &panels, size_t first,
                                           size_t dim, Vector *out) {
    const size_t half = dim / 2;
    Vector sums[Q][V];
    EA_UNROLL for (size_t i = 0; i < Q; i++) EA_UNROLL for (size_t v = 0; v < V; v++) sums[i][v] = Vector{};
    if constexpr (SIDE_BY_SIDE) {
        Vector others[V];
        EA_UNROLL for (size_t v = 0; v < V; v++) others[v] = Vector{};
        Reader<V> a(panels, first, 0), b(panels, first, half);
        const float *query = queries;
        const auto step = [&]() EA_BODY {
            const float of_a = query[0], of_b = query[half];
            EA_UNROLL for (size_t v = 0; v < V; v++) sums[0][v] += of_a * a.template load<Vector>(v);
            EA_UNROLL for (size_t v = 0; v < V; v++) others[v] += of_b * b.template load<Vector>(v);
            a.next(), b.next(), query++;
        };
        size_t k = 0;
        for (; k + 4 <= half; k += 4) {
            step(), step(), step(), step();
            a.keep(), b.keep();
        }
        for (; k < half; k++) step();
        if (dim % 2)
            EA_UNROLL for (size_t v = 0; v < V; v++) others[v] += query[half] * b.template load<Vector>(v);
        EA_UNROLL for (size_t v = 0; v < V; v++) out[v] = sums[0][v] + others[v];
    } else {
        const Rows<Q, float> rows(queries, stride);
        add_products<Q, V>(rows, {panels, first, 0}, 0, half, sums);
        EA_UNROLL for (size_t i = 0; i < Q; i++)
            EA_UNROLL for (size_t v = 0; v < V; v++) out[i * V + v] = sums[i][v], sums[i][v] = Vector{};
        add_products<Q, V>(rows, {panels, first, half}, half, dim, sums);
        EA_UNROLL for (size_t i = 0; i < Q; i++)
            EA_UNROLL for (size_t v = 0; v < V; v++) out[i * V + v] += sums[i][v];
    }
}

// Dot products, or what int8 has of them, to distances; true if float32 could be trusted with all of them.
// ORDINARY: the lengths of all rows are known to be of a size that needs no watching. Q: how many queries there are, where
// that is worth its code, else 0.
template <int32_t METRIC, bool INT8, bool ORDINARY, size_t Q, class Sum>
static bool finish(const Sum *sums, size_t n_queries, size_t n_vectors, const Query *queries, const Panels &panels,
                   size_t first, float *out, size_t out_stride) {
    const Vector nan = Vector{} + __builtin_nanf("");
    IntVector unsure = {};
    for (size_t v = 0; v < n_vectors; v++, first++) {
        const Vector squares = load<Vector>(panels.squares + first * WIDTH);
        const Vector inverses = load<Vector>(panels.inverses + first * WIDTH);
        Vector scales = INT8 && METRIC != EA_COSINE ? load<Vector>(panels.scales + first * WIDTH) : Vector{};
        if (METRIC == EA_SQ_L2) scales *= 2.0f;
        const size_t left = panels.n_prototypes - first * WIDTH, count = left < WIDTH ? left : WIDTH;
        IntVector unsure_here = {};
        const auto of_query = [&](size_t i) EA_BODY {
            const Query &query = queries[i];
            Vector dot, distance;
            if constexpr (INT8) {
                dot = __builtin_convertvector(sums[i * n_vectors + v], Vector);
                if (METRIC != EA_COSINE) dot *= scales;  // a cosine does not change with the lengths
            } else {
                dot = sums[i * n_vectors + v];
            }
            if constexpr (METRIC == EA_SQ_L2) {
                const Vector both = squares + query.square;
                distance = both - dot * (INT8 ? query.scale : 2.0f);
                const IntVector far = INT8 ? IntVector{} - 1 : distance > both * NEAR;
                const IntVector sure = ORDINARY ? far : far & (both > TRUSTED_MIN) & (distance - distance == 0.0f);
                distance = larger(distance, Vector{});
                if (!INT8 || !ORDINARY) distance = sure ? distance : nan, unsure_here |= ~sure;
            } else if constexpr (METRIC == EA_COSINE) {
                distance = 1.0f - dot * (inverses * query.inverse_length);
                if (!ORDINARY) unsure_here |= distance != distance;
                const Vector above = distance < 0.0f ? Vector{} : distance;
                distance = above > 2.0f ? Vector{} + 2.0f : above;
            } else {
                distance = INT8 ? dot * query.scale : dot;
                const IntVector sure = distance - distance == 0.0f;
                if (!ORDINARY) distance = sure ? distance : nan, unsure_here |= ~sure;
            }
            store_some(out + i * out_stride + v * WIDTH, distance, count);
        };
        if constexpr (Q > 0)
            EA_UNROLL for (size_t i = 0; i < Q; i++) of_query(i);
        else
            for (size_t i = 0; i < n_queries; i++) of_query(i);
        if (count < WIDTH)
            for (size_t lane = count; lane < WIDTH; lane++) unsure_here[lane] = 0;
        unsure |= unsure_here;
    }
    return !any(unsure);
}

template <bool INT8, class Sum>
using FinishFunction = bool (*)(const Sum *, size_t, size_t, const Query *, const Panels &, size_t, float *, size_t);

template <bool INT8, class Sum, size_t Q = 0>
EA_INLINE FinishFunction<INT8, Sum> finish_for(int32_t metric, bool ordinary) {
    switch (metric) {
        case EA_COSINE:
            return ordinary ? finish<EA_COSINE, INT8, true, Q, Sum> : finish<EA_COSINE, INT8, false, 0, Sum>;
        case EA_SQ_L2:
            return ordinary ? finish<EA_SQ_L2, INT8, true, Q, Sum> : finish<EA_SQ_L2, INT8, false, 0, Sum>;
    }
    return ordinary ? finish<EA_INNER_PRODUCT, INT8, true, Q, Sum> : finish<EA_INNER_PRODUCT, INT8, false, 0, Sum>;
}

// The places of a tile's distances are fetched while it is computed: otherwise the stores wait for memory, and all later
// ones for them.
template <size_t Q>
EA_INLINE void fetch_output(float *out, size_t out_stride, size_t n_vectors) {
    if constexpr (Q > 1)
        for (size_t i = 0; i < Q; i++)
            for (size_t v = 0; v < n_vectors; v++) __builtin_prefetch(out + i * out_stride + v * WIDTH, 1);
}

// The queries that come after these are fetched while these meet so many panels that it pays.
template <size_t Q>
EA_INLINE void fetch_next(const float *queries, size_t dim, size_t n_panels) {
    if (Q > 1 && n_panels > 4 * TILE_VECTORS)
        for (size_t k = Q * dim; k < 2 * Q * dim; k += 16) __builtin_prefetch(queries + k, 0, 2);
}

template <size_t N>
struct Constant {
    static constexpr size_t value = N;
};

// Distances of Q queries to the panels [first, end), MOST of them at a time: `sum(panel, n, side_by_side, sums)` adds up
// the products of n panels from `panel` on, n being a constant, and `finished` makes distances of them.
template <size_t Q, size_t MOST, class Sum, class Tile, class Finished>
EA_INLINE bool in_panel_tiles(const Panels &panels, size_t first, size_t end, const Query *queries, float *out,
                              size_t out_stride, Tile sum, Finished finished) {
    Sum sums[Q * MOST];
    const bool far = is_far(panels);
    bool sure = true;
    while (first < end) {
        const size_t n = end - first < MOST ? end - first : MOST;
        fetch_output<Q>(out, out_stride, n);
        switch (Q == 1 && far ? 0 : n) {
            case 0:
                for (size_t v = 0; v < n; v++) sum(first + v, Constant<1>(), Constant<false>(), sums + v);
                break;
            case 1: sum(first, Constant<1>(), Constant<Q == 1>(), sums); break;
            case 2: sum(first, Constant<2>(), Constant<Q == 1>(), sums); break;
            case 3: sum(first, Constant<(MOST < 3 ? 1 : 3)>(), Constant<Q == 1>(), sums); break;
            default: sum(first, Constant<MOST>(), Constant<Q == 1>(), sums);
        }
        sure &= finished(sums, Q, n, queries, panels, first, out, out_stride);
        first += n, out += n * WIDTH;
    }
    return sure;
}

template <size_t Q>
static bool some_queries(const Panels &panels, const float *queries, size_t first, size_t end, int32_t metric,
                         float *out, size_t out_stride) {
    const size_t dim = panels.dim;
    Query known[Q];
    bool ordinary = panels.ordinary;
    for (size_t i = 0; i < Q; i++) {
        float square;
        tile<Square, 1, 1>(queries, queries + i * dim, dim, &square, 1);
        known[i] = query_of(square);
        ordinary &= known[i].square == known[i].square;
    }
    fetch_next<Q>(queries, dim, end - first);
    const auto finished = finish_for<false, Vector>(metric, ordinary);
    const auto sum = [&](size_t panel, auto n, auto side_by_side, Vector *sums) EA_BODY {
        tile<Q, n.value, side_by_side.value>(queries, dim, panels, panel, dim, sums);
    };
    constexpr size_t MOST = Q == 1 ? 4 : TILE_VECTORS;
    return in_panel_tiles<Q, MOST, Vector>(panels, first, end, known, out, out_stride, sum, finished);
}

static bool distances_float32(const Panels &panels, const float *queries, size_t n_queries, size_t first, size_t end,
                              int32_t metric, float *out, size_t out_stride) {
    bool sure = true;
    const auto do_some = [&](size_t n, auto some) {
        for (; n_queries >= n; n_queries -= n, queries += n * panels.dim, out += n * out_stride)
            sure &= some(panels, queries, first, end, metric, out, out_stride);
    };
    do_some(TILE, some_queries<TILE>);
    do_some(TILE / 2, some_queries<TILE / 2>);
    do_some(1, some_queries<1>);
    return sure;
}

static void panel_sq_differences(const Panels &panels, const float *query, size_t panel, float *out) {
    Reader<1> prototypes(panels, panel, 0);
    Vector sums = {};
    for (size_t k = 0; k < panels.dim; k++, prototypes.next()) {
        const Vector difference = query[k] - prototypes.load<Vector>(0);
        sums += difference * difference;
    }
    store(out, sums);
}

}  // namespace ea::EA_SET
