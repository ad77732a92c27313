#include "distances.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "edgealign.h"
#include "kernels.hpp"

namespace ea {

bool all_within(const float *values, size_t count, float bound) { return kernels().all_within(values, count, bound); }

bool all_finite(const float *values, size_t count) { return all_within(values, count, FLT_MAX); }

namespace {

// Rows that stay in the first cache while some queries pass, whose distances stay in the second one. A lone query is at
// one row after the other anyway.
constexpr size_t SOME_ROWS = 32, SOME_QUERIES = 128;
size_t some_rows(size_t n_queries, size_t n_rows) { return n_queries > 1 ? SOME_ROWS : n_rows; }

// use(first, number) for all blocks of at most `size` of them
template <class Use>
void in_blocks(size_t count, size_t size, Use use) {
    for (size_t first = 0; first < count; first += size) use(first, std::min(size, count - first));
}

}  // namespace

double row_norm_exact(const float *row, size_t dim) {
    double squares = 0;
    for (size_t i = 0; i < dim; i++) squares += double(row[i]) * row[i];
    return std::sqrt(squares);
}

namespace {

// Sums of squares to lengths, as in row_norms.
bool norms_of_squares(const float *rows, size_t n_rows, size_t dim, float *norms) {
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

}  // namespace

bool row_norms(const float *rows, size_t n_rows, size_t dim, float *norms) {
    kernels().squares(rows, n_rows, dim, norms);
    return norms_of_squares(rows, n_rows, dim, norms);
}

namespace {

// Dot products of a query to cosine distances.
void cosines_of_dots(const float *query, float query_norm, const float *rows, const float *norms, size_t n_rows,
                     size_t dim, float *dots) {
    if (kernels().cosine_from_dots(dots, query_norm, norms, n_rows)) return;
    for (size_t j = 0; j < n_rows; j++) {
        if (kernels().cosine_from_dots(dots + j, query_norm, norms + j, 1)) continue;
        if (query_norm == 0 || norms[j] == 0) {
            dots[j] = query_norm == norms[j] ? 0.0f : 1.0f;
            continue;
        }
        const float *row = rows + j * dim;
        double dot = 0;
        for (size_t k = 0; k < dim; k++) dot += double(query[k]) * row[k];
        const double cosine = dot / (row_norm_exact(query, dim) * row_norm_exact(row, dim));
        dots[j] = float(std::min(std::max(1.0 - cosine, 0.0), 2.0));
    }
}

}  // namespace

void cosine_distances(const float *queries, const float *query_norms, size_t n_queries, const float *rows,
                      const float *norms, size_t n_rows, size_t dim, float *out, size_t out_stride) {
    kernels().dots(queries, n_queries, rows, n_rows, dim, out, out_stride);
    for (size_t i = 0; i < n_queries; i++)
        cosines_of_dots(queries + i * dim, query_norms[i], rows, norms, n_rows, dim, out + i * out_stride);
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
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(distances, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    bool finite = n_queries > 0 && n_prototypes > 0;
    in_blocks(n_queries, SOME_QUERIES, [&](size_t q, size_t n) {
        float *of_queries = distances + q * n_prototypes;
        in_blocks(n_prototypes, some_rows(n, n_prototypes), [&](size_t first, size_t count) {
            kernels().sq_differences(queries + q * dim, n, prototypes + first * dim, count, dim, of_queries + first,
                                     n_prototypes);
        });
        finite = finite && all_finite(of_queries, n * n_prototypes);
    });
    // A distance that is not finite comes from an input that is not, or from one beyond float32's range.
    if (finite || (all_finite(queries, n_queries * dim) && all_finite(prototypes, n_prototypes * dim))) return EA_OK;
    return EA_NOT_FINITE;
}

ea_status ea_cosine(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                    float *distances) {
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(distances, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    bool finite = n_queries > 0 || all_finite(prototypes, n_prototypes * dim);
    in_blocks(n_queries, SOME_QUERIES, [&](size_t q, size_t n) {
        float query_norms[SOME_QUERIES];
        finite = finite && row_norms(queries + q * dim, n, dim, query_norms);
        in_blocks(n_prototypes, SOME_ROWS, [&](size_t first, size_t count) {
            float norms[SOME_ROWS];
            const float *rows = prototypes + first * dim;
            float *out = distances + q * n_prototypes + first;
            if (n_queries == 1) {
                kernels().dots_and_squares(queries, rows, count, dim, out, norms);
                finite = finite && norms_of_squares(rows, count, dim, norms);
                if (finite) cosines_of_dots(queries, query_norms[0], rows, norms, count, dim, out);
            } else {
                finite = finite && row_norms(rows, count, dim, norms);
                if (finite)
                    cosine_distances(queries + q * dim, query_norms, n, rows, norms, count, dim, out, n_prototypes);
            }
        });
    });
    return finite ? EA_OK : EA_NOT_FINITE;
}

ea_status ea_inner_product(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes,
                           size_t dim, float *products) {
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(products, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    bool finite = n_queries > 0 && n_prototypes > 0;
    in_blocks(n_queries, SOME_QUERIES, [&](size_t q, size_t n) {
        float *of_queries = products + q * n_prototypes;
        in_blocks(n_prototypes, some_rows(n, n_prototypes), [&](size_t first, size_t count) {
            kernels().dots(queries + q * dim, n, prototypes + first * dim, count, dim, of_queries + first, n_prototypes);
        });
        finite = finite && all_finite(of_queries, n * n_prototypes);
    });
    if (finite) return EA_OK;
    if (!all_finite(queries, n_queries * dim) || !all_finite(prototypes, n_prototypes * dim)) return EA_NOT_FINITE;
    for (size_t i = 0; i < n_queries * n_prototypes; i++) {
        if (std::isfinite(products[i])) continue;
        const float *query = queries + i / n_prototypes * dim, *row = prototypes + i % n_prototypes * dim;
        double dot = 0;
        for (size_t k = 0; k < dim; k++) dot += double(query[k]) * row[k];
        products[i] = float(dot);
    }
    return EA_OK;
}

ea_status ea_nearest(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                     size_t k, int32_t metric, float *scratch, float *distances, int32_t *indices) {
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim) || k < 1 || k > n_prototypes
        || n_prototypes > INT32_MAX || !scratch || !is_matrix(distances, n_queries, k)
        || !is_matrix(indices, n_queries, k))
        return EA_INVALID_ARGUMENT;
    float *row = scratch, *norms = scratch + n_prototypes;
    switch (metric) {
        case EA_COSINE:
            if (!row_norms(prototypes, n_prototypes, dim, norms)) return EA_NOT_FINITE;
            for (size_t q = 0; q < n_queries; q++) {
                float norm;
                if (!row_norms(queries + q * dim, 1, dim, &norm)) return EA_NOT_FINITE;
                cosine_distances(queries + q * dim, &norm, 1, prototypes, norms, n_prototypes, dim, row, n_prototypes);
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
