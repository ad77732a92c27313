#include "distances.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "edgealign.h"
#include "kernels.hpp"

namespace ea {

bool all_within(const float *values, size_t count, float bound) { return kernels().all_within(values, count, bound); }

bool all_finite(const float *values, size_t count) { return all_within(values, count, FLT_MAX); }

double row_norm_exact(const float *row, size_t dim) {
    double squares = 0;
    for (size_t i = 0; i < dim; i++) squares += double(row[i]) * row[i];
    return std::sqrt(squares);
}

bool row_norms(const float *rows, size_t n_rows, size_t dim, float *norms) {
    kernels().squares(rows, n_rows, dim, norms);
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

void cosine_distances(const float *queries, const float *query_norms, size_t n_queries, const float *rows,
                      const float *norms, size_t n_rows, size_t dim, float *out, size_t out_stride) {
    kernels().dots(queries, n_queries, rows, n_rows, dim, out, out_stride);
    for (size_t i = 0; i < n_queries; i++) {
        const float *query = queries + i * dim;
        float *of_query = out + i * out_stride;
        if (kernels().cosine_from_dots(of_query, query_norms[i], norms, n_rows)) continue;
        for (size_t j = 0; j < n_rows; j++) {
            if (kernels().cosine_from_dots(of_query + j, query_norms[i], norms + j, 1)) continue;
            if (query_norms[i] == 0 || norms[j] == 0) {
                of_query[j] = query_norms[i] == norms[j] ? 0.0f : 1.0f;
                continue;
            }
            const float *row = rows + j * dim;
            double dot = 0;
            for (size_t k = 0; k < dim; k++) dot += double(query[k]) * row[k];
            const double cosine = dot / (row_norm_exact(query, dim) * row_norm_exact(row, dim));
            of_query[j] = float(std::min(std::max(1.0 - cosine, 0.0), 2.0));
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
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(distances, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    // In blocks of rows that stay in the cache while all queries pass.
    constexpr size_t BLOCK = 64;
    for (size_t first = 0; first < n_prototypes; first += BLOCK)
        kernels().sq_differences(queries, n_queries, prototypes + first * dim, std::min(BLOCK, n_prototypes - first), dim,
                       distances + first, n_prototypes);
    const bool finite = n_queries > 0 && n_prototypes > 0 && all_finite(distances, n_queries * n_prototypes);
    // A distance that is not finite comes from an input that is not, or from one beyond float32's range.
    if (finite || (all_finite(queries, n_queries * dim) && all_finite(prototypes, n_prototypes * dim))) return EA_OK;
    return EA_NOT_FINITE;
}

ea_status ea_cosine(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes, size_t dim,
                    float *distances) {
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(distances, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    if (n_prototypes == 0 && !all_finite(queries, n_queries * dim)) return EA_NOT_FINITE;
    // In blocks that stay in the cache, and whose norms fit on the stack.
    constexpr size_t BLOCK = 64;
    float norms[BLOCK], query_norms[BLOCK];
    for (size_t first = 0; first < n_prototypes; first += BLOCK) {
        const float *block = prototypes + first * dim;
        const size_t count = std::min(BLOCK, n_prototypes - first);
        if (!row_norms(block, count, dim, norms)) return EA_NOT_FINITE;
        for (size_t q = 0; q < n_queries; q += BLOCK) {
            const size_t n = std::min(BLOCK, n_queries - q);
            if (!row_norms(queries + q * dim, n, dim, query_norms)) return EA_NOT_FINITE;
            cosine_distances(queries + q * dim, query_norms, n, block, norms, count, dim,
                             distances + q * n_prototypes + first, n_prototypes);
        }
    }
    return EA_OK;
}

ea_status ea_inner_product(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes,
                           size_t dim, float *products) {
    if (!is_matrix(queries, n_queries, dim) || !is_matrix(prototypes, n_prototypes, dim)
        || !is_matrix(products, n_queries, n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    constexpr size_t BLOCK = 64;
    for (size_t first = 0; first < n_prototypes; first += BLOCK)
        kernels().dots(queries, n_queries, prototypes + first * dim, std::min(BLOCK, n_prototypes - first), dim,
                       products + first, n_prototypes);
    const size_t count = n_queries * n_prototypes;
    if (count > 0 && all_finite(products, count)) return EA_OK;
    if (!all_finite(queries, n_queries * dim) || !all_finite(prototypes, n_prototypes * dim)) return EA_NOT_FINITE;
    for (size_t i = 0; i < count; i++) {
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
