// Packed prototypes: value k of PANEL prototypes side by side, so that a lane belongs to one prototype and a query's value
// is the same for all lanes. Two panels, one after the other, make a strip.
//
// The sum of a pair is that of its first floor(dim / 2) products, one after the other, plus that of the others, one after
// the other: so in every tile and with every instruction set, and a distance does not depend on its neighbors.
#pragma once

#include "../kernels.hpp"
#include "edgealign.h"
#include "lanes.hpp"

namespace ea::EA_SET {

// Squared distances below this share of |q|^2 + |p|^2 have lost too many digits and are computed from differences.
constexpr float NEAR = 1.0f / 32;
constexpr float TRUSTED_MIN = 1e-20f;

// out [Q][STRIP] = sums over k in [first, end) for V vectors of a panel, or out += these.
template <size_t Q, size_t V, bool ADD>
static void panel_part(const float *queries, size_t stride, const float *panel, size_t first, size_t end, float *out) {
    Vector sums[Q][V];
    EA_UNROLL for (size_t i = 0; i < Q; i++) EA_UNROLL for (size_t v = 0; v < V; v++) sums[i][v] = Vector{};
    for (size_t k = first; k < end; k++) {
        Vector prototypes[V];
        EA_UNROLL for (size_t v = 0; v < V; v++) prototypes[v] = load<Vector>(panel + k * PANEL + v * WIDTH);
        EA_UNROLL for (size_t i = 0; i < Q; i++)
            EA_UNROLL for (size_t v = 0; v < V; v++) sums[i][v] += queries[i * stride + k] * prototypes[v];
    }
    EA_UNROLL for (size_t i = 0; i < Q; i++) EA_UNROLL for (size_t v = 0; v < V; v++) {
        float *to = out + i * STRIP + v * WIDTH;
        store(to, ADD ? load<Vector>(to) + sums[i][v] : sums[i][v]);
    }
}

// Both parts at once, so that enough sums are in flight where there are few queries. V may reach into the second panel.
template <size_t Q, size_t V>
static void panel_parts(const float *queries, size_t stride, const float *panel, size_t dim, float *out) {
    const size_t half = dim / 2;
    const auto at = [&](size_t k, size_t v) {
        return load<Vector>(panel + v / 2 * (dim * PANEL) + k * PANEL + v % 2 * WIDTH);
    };
    Vector first[Q][V], second[Q][V];
    EA_UNROLL for (size_t i = 0; i < Q; i++)
        EA_UNROLL for (size_t v = 0; v < V; v++) first[i][v] = second[i][v] = Vector{};
    for (size_t k = 0; k < half; k++)
        EA_UNROLL for (size_t v = 0; v < V; v++) {
            const Vector a = at(k, v), b = at(half + k, v);
            EA_UNROLL for (size_t i = 0; i < Q; i++) first[i][v] += queries[i * stride + k] * a;
            EA_UNROLL for (size_t i = 0; i < Q; i++) second[i][v] += queries[i * stride + half + k] * b;
        }
    if (dim % 2)
        EA_UNROLL for (size_t i = 0; i < Q; i++)
            EA_UNROLL for (size_t v = 0; v < V; v++) second[i][v] += queries[i * stride + dim - 1] * at(dim - 1, v);
    EA_UNROLL for (size_t i = 0; i < Q; i++)
        EA_UNROLL for (size_t v = 0; v < V; v++) store(out + i * STRIP + v * WIDTH, first[i][v] + second[i][v]);
}

template <size_t V>
static void panel_rest(const float *queries, size_t stride, size_t n_queries, const float *panel, size_t dim,
                       float *out) {
    switch (n_queries) {
        case 1: return panel_parts<1, V>(queries, stride, panel, dim, out);
        case 2: return panel_parts<2, V>(queries, stride, panel, dim, out);
        case 3: return panel_parts<3, V>(queries, stride, panel, dim, out);
        case 4: return panel_parts<4, V>(queries, stride, panel, dim, out);
        case 5: return panel_parts<5, V>(queries, stride, panel, dim, out);
        case 6: return panel_parts<6, V>(queries, stride, panel, dim, out);
    }
}

// Dots of n_queries to V vectors of a panel. A part of the panel stays in the first cache while all queries pass.
template <size_t V>
static void panel_dots(const float *queries, size_t stride, size_t n_queries, const float *panel, size_t dim,
                       float *out) {
    constexpr size_t REST = TILE / 2;  // so many queries can have both parts at once
    const size_t whole = n_queries / TILE * TILE;
    for (size_t i = 0; i < whole; i += TILE)
        panel_part<TILE, V, false>(queries + i * stride, stride, panel, 0, dim / 2, out + i * STRIP);
    for (size_t i = 0; i < whole; i += TILE)
        panel_part<TILE, V, true>(queries + i * stride, stride, panel, dim / 2, dim, out + i * STRIP);
    for (size_t i = whole; i < n_queries; i += REST)
        panel_rest<V>(queries + i * stride, stride, n_queries - i < REST ? n_queries - i : REST, panel, dim,
                      out + i * STRIP);
}

static void strip_dots(const float *queries, size_t stride, size_t n_queries, const float *strip, size_t n_vectors,
                       size_t dim, float *out) {
    if (n_queries == 1 && n_vectors > 2) {
        if (n_vectors == 3) return panel_parts<1, 3>(queries, stride, strip, dim, out);
        return panel_parts<1, 4>(queries, stride, strip, dim, out);
    }
    for (size_t v = 0; v < n_vectors; v += 2, strip += dim * PANEL, out += PANEL) {
        if (n_vectors - v == 1) {
            panel_dots<1>(queries, stride, n_queries, strip, dim, out);
        } else {
            panel_dots<2>(queries, stride, n_queries, strip, dim, out);
        }
    }
}

// Dot products to distances where they are, for one query. NaN: to be computed otherwise. Returns whether there is none.
// ROUNDED: the rows were rounded before, so that a small distance may have lost digits.
template <bool ROUNDED = false>
EA_INLINE bool finish_row(float *row, size_t n_vectors, const Terms &query, const Finish &finish) {
    IntVector unsure = {};
    const Vector nan = Vector{} + __builtin_nanf("");
    switch (finish.metric) {
        case EA_SQ_L2:
            for (size_t v = 0; v < n_vectors; v++) {
                const Vector both = load<Vector>(finish.squares + v * WIDTH) + query.square;
                const Vector distance = both - 2.0f * load<Vector>(row + v * WIDTH);
                const IntVector ordinary = (both > TRUSTED_MIN) & (distance - distance == 0.0f);
                const IntVector sure = ROUNDED ? ordinary : ordinary & (distance > both * NEAR);
                store(row + v * WIDTH, sure ? larger(distance, Vector{}) : nan);
                unsure |= ~sure;
            }
            break;
        case EA_COSINE:
            for (size_t v = 0; v < n_vectors; v++) {
                const Vector inverse = load<Vector>(finish.inverses + v * WIDTH) * query.inverse_length;
                const Vector distance = 1.0f - load<Vector>(row + v * WIDTH) * inverse;
                unsure |= distance != distance;
                const Vector above = distance < 0.0f ? Vector{} : distance;
                store(row + v * WIDTH, above > 2.0f ? Vector{} + 2.0f : above);
            }
            break;
        default:
            for (size_t v = 0; v < n_vectors; v++) {
                const Vector dot = load<Vector>(row + v * WIDTH);
                const IntVector sure = dot - dot == 0.0f;
                store(row + v * WIDTH, sure ? dot : nan);
                unsure |= ~sure;
            }
    }
    return !any(unsure);
}

static bool strip_distances(const float *queries, size_t stride, size_t n_queries, const Terms *terms,
                            const float *strip, size_t n_used, size_t dim, const Finish &finish, float *out) {
    const size_t n_vectors = (n_used + WIDTH - 1) / WIDTH;
    strip_dots(queries, stride, n_queries, strip, n_vectors, dim, out);
    bool sure = true;
    for (size_t i = 0; i < n_queries; i++) sure &= finish_row(out + i * STRIP, n_vectors, terms[i], finish);
    return sure;
}

static void strip_sq_differences(const float *query, const float *strip, size_t dim, float *out) {
    for (size_t panel = 0; panel < 2; panel++, strip += dim * PANEL, out += PANEL) {
        Vector sums[2] = {};
        for (size_t k = 0; k < dim; k++)
            for (size_t v = 0; v < 2; v++) {
                const Vector difference = query[k] - load<Vector>(strip + k * PANEL + v * WIDTH);
                sums[v] += difference * difference;
            }
        for (size_t v = 0; v < 2; v++) store(out + v * WIDTH, sums[v]);
    }
}

}  // namespace ea::EA_SET
