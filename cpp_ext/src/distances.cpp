#include "distances.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "edgealign.h"
#include "lanes.hpp"

namespace ea {
namespace {

struct Product {
    static EA_INLINE void add(Lanes &total, const Lanes &a, const Lanes &b) { total += a * b; }
};
struct Square {  // of the row alone
    static EA_INLINE void add(Lanes &total, const Lanes &, const Lanes &b) { total += b * b; }
};
struct SquaredDifference {
    static EA_INLINE void add(Lanes &total, const Lanes &a, const Lanes &b) {
        const Lanes difference = a - b;
        total += difference * difference;
    }
};

// out[j] = sum over i of Term(query[i], rows[j][i]). Four rows at a time, so that four additions are under way.
template <class Term>
EA_INLINE void accumulate(const float *query, const float *rows, size_t n_rows, size_t dim, float *out) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    const Lanes query_rest = load_some(query + whole, rest);
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4) {
        const float *a = rows + j * dim, *b = a + dim, *c = b + dim, *d = c + dim;
        Lanes sum_a = {}, sum_b = {}, sum_c = {}, sum_d = {};
        for (size_t i = 0; i < whole; i += N_LANES) {
            const Lanes q = load(query + i);
            Term::add(sum_a, q, load(a + i));
            Term::add(sum_b, q, load(b + i));
            Term::add(sum_c, q, load(c + i));
            Term::add(sum_d, q, load(d + i));
        }
        if (rest) {
            Term::add(sum_a, query_rest, load_some(a + whole, rest));
            Term::add(sum_b, query_rest, load_some(b + whole, rest));
            Term::add(sum_c, query_rest, load_some(c + whole, rest));
            Term::add(sum_d, query_rest, load_some(d + whole, rest));
        }
        out[j] = sum(sum_a), out[j + 1] = sum(sum_b), out[j + 2] = sum(sum_c), out[j + 3] = sum(sum_d);
    }
    for (; j < n_rows; j++) {
        const float *a = rows + j * dim;
        Lanes sum_a = {};
        for (size_t i = 0; i < whole; i += N_LANES) Term::add(sum_a, load(query + i), load(a + i));
        if (rest) Term::add(sum_a, query_rest, load_some(a + whole, rest));
        out[j] = sum(sum_a);
    }
}

}  // namespace

EA_CLONES void dot_row(const float *query, const float *rows, size_t n_rows, size_t dim, float *out) {
    accumulate<Product>(query, rows, n_rows, dim, out);
}

EA_CLONES void squares(const float *rows, size_t n_rows, size_t dim, float *out) {
    accumulate<Square>(rows, rows, n_rows, dim, out);
}

EA_CLONES void sq_l2_row(const float *query, const float *rows, size_t n_rows, size_t dim, float *out) {
    accumulate<SquaredDifference>(query, rows, n_rows, dim, out);
}

EA_CLONES bool all_within(const float *values, size_t count, float bound) {
    int bad = 0;
    for (size_t i = 0; i < count; i++) bad |= !(std::fabs(values[i]) <= bound);
    return !bad;
}

bool all_finite(const float *values, size_t count) { return all_within(values, count, FLT_MAX); }

double row_norm_exact(const float *row, size_t dim) {
    double squares = 0;
    for (size_t i = 0; i < dim; i++) squares += double(row[i]) * row[i];
    return std::sqrt(squares);
}

bool row_norms(const float *rows, size_t n_rows, size_t dim, float *norms) {
    squares(rows, n_rows, dim, norms);
    for (size_t j = 0; j < n_rows; j++) {
        if (norms[j] > SAFE_SQUARES_MIN && norms[j] < SAFE_SQUARES_MAX) {
            norms[j] = std::sqrt(norms[j]);
        } else {
            const float *row = rows + j * dim;
            if (!all_finite(row, dim)) return false;
            norms[j] = row_norm_exact(row, dim) == 0 ? 0.0f : NORM_EXTREME;
        }
    }
    return true;
}

void cosine_row(const float *query, float query_norm, const float *rows, const float *norms, size_t n_rows, size_t dim,
                float *out) {
    dot_row(query, rows, n_rows, dim, out);
    for (size_t j = 0; j < n_rows; j++) {
        if (query_norm > 0 && norms[j] > 0) {
            out[j] = std::min(std::max(1.0f - out[j] / (query_norm * norms[j]), 0.0f), 2.0f);
        } else if (query_norm == 0 || norms[j] == 0) {
            out[j] = query_norm == norms[j] ? 0.0f : 1.0f;
        } else {
            const float *row = rows + j * dim;
            double dot = 0;
            for (size_t i = 0; i < dim; i++) dot += double(query[i]) * row[i];
            const double cosine = dot / (row_norm_exact(query, dim) * row_norm_exact(row, dim));
            out[j] = float(std::min(std::max(1.0 - cosine, 0.0), 2.0));
        }
    }
}

// An insertion into a sorted list of k: k is small wherever this is used.
void smallest(const float *values, size_t count, size_t k, float *out_values, int *out_positions) {
    size_t held = 0;
    for (size_t j = 0; j < count; j++) {
        if (held == k && !(values[j] < out_values[k - 1])) continue;
        size_t at = held < k ? held++ : k - 1;
        for (; at > 0 && values[j] < out_values[at - 1]; at--) {
            out_values[at] = out_values[at - 1];
            out_positions[at] = out_positions[at - 1];
        }
        out_values[at] = values[j];
        out_positions[at] = int(j);
    }
}

}  // namespace ea

using namespace ea;

ea_status ea_sq_l2(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                   float *distances) {
    if (dim == 0) return EA_INVALID_ARGUMENT;
    bool finite = n_queries > 0 && n_prototypes > 0;
    for (size_t q = 0; q < n_queries; q++) {
        float *row = distances + q * n_prototypes;
        sq_l2_row(queries + q * dim, prototypes, n_prototypes, dim, row);
        finite = finite && all_finite(row, n_prototypes);
    }
    // A distance that is not finite comes from an input that is not, or from one beyond float32's range.
    if (finite || (all_finite(queries, n_queries * dim) && all_finite(prototypes, n_prototypes * dim))) return EA_OK;
    return EA_NOT_FINITE;
}

ea_status ea_cosine(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                    float *distances) {
    if (dim == 0) return EA_INVALID_ARGUMENT;
    if (n_prototypes == 0 && !all_finite(queries, n_queries * dim)) return EA_NOT_FINITE;
    // In blocks, so that the norms of the prototypes are computed once and kept without allocating.
    constexpr size_t BLOCK = 64;
    float norms[BLOCK];
    for (size_t first = 0; first < n_prototypes; first += BLOCK) {
        const float *block = prototypes + first * dim;
        const size_t count = std::min(BLOCK, n_prototypes - first);
        if (!row_norms(block, count, dim, norms)) return EA_NOT_FINITE;
        for (size_t q = 0; q < n_queries; q++) {
            float norm;
            if (!row_norms(queries + q * dim, 1, dim, &norm)) return EA_NOT_FINITE;
            cosine_row(queries + q * dim, norm, block, norms, count, dim, distances + q * n_prototypes + first);
        }
    }
    return EA_OK;
}

ea_status ea_nearest(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                     size_t k, int32_t metric, float *scratch, float *distances, int32_t *indices) {
    if (dim == 0 || k < 1 || k > n_prototypes || n_prototypes > INT32_MAX) return EA_INVALID_ARGUMENT;
    float *row = scratch, *norms = scratch + n_prototypes;
    switch (metric) {
        case EA_COSINE:
            if (!row_norms(prototypes, n_prototypes, dim, norms)) return EA_NOT_FINITE;
            for (size_t q = 0; q < n_queries; q++) {
                float norm;
                if (!row_norms(queries + q * dim, 1, dim, &norm)) return EA_NOT_FINITE;
                cosine_row(queries + q * dim, norm, prototypes, norms, n_prototypes, dim, row);
                smallest(row, n_prototypes, k, distances + q * k, indices + q * k);
            }
            return EA_OK;
        case EA_SQ_L2:
            for (size_t q = 0; q < n_queries; q++) {
                const ea_status status = ea_sq_l2(queries + q * dim, 1, prototypes, n_prototypes, dim, row);
                if (status != EA_OK) return status;
                smallest(row, n_prototypes, k, distances + q * k, indices + q * k);
            }
            return EA_OK;
    }
    return EA_INVALID_ARGUMENT;
}
