#include <algorithm>
#include <cmath>

#include "distances.hpp"
#include "edgealign.h"
#include "kernels.hpp"

namespace ea {
namespace {

// A mean this much shorter than the rows that made it is rounding error: it has no direction.
constexpr double NO_DIRECTION = 1e-6;

// Refuses what the two functions below cannot work with; largest_weight is what the weights are relative to.
ea_status check(const int32_t *labels, size_t n_rows, size_t n_labels, size_t dim, const float *weights,
                double *largest_weight) {
    if (dim == 0 || n_labels > INT32_MAX) return EA_INVALID_ARGUMENT;
    *largest_weight = weights ? 0 : 1;
    for (size_t i = 0; i < n_rows; i++) {
        if (labels[i] < 0 || size_t(labels[i]) >= n_labels) return EA_INVALID_ARGUMENT;
        if (!weights) continue;
        if (!std::isfinite(weights[i])) return EA_NOT_FINITE;
        if (weights[i] < 0) return EA_INVALID_ARGUMENT;
        *largest_weight = std::max(*largest_weight, double(weights[i]));
    }
    if (*largest_weight == 0) *largest_weight = 1;
    return EA_OK;
}

}  // namespace
}  // namespace ea

using namespace ea;

ea_status ea_prototypes(const float *embeddings, const int32_t *labels, size_t n_rows, size_t n_labels, size_t dim,
                        const float *weights, float *scratch, float *prototypes) {
    double largest_weight;
    const ea_status status = check(labels, n_rows, n_labels, dim, weights, &largest_weight);
    if (status != EA_OK) return status;
    std::fill(prototypes, prototypes + n_labels * dim, 0.0f);
    float *total_weights = scratch;
    std::fill(total_weights, total_weights + n_labels, 0.0f);
    for (size_t i = 0; i < n_rows; i++) {
        const float *row = embeddings + i * dim;
        float *total = prototypes + size_t(labels[i]) * dim;
        const double weight = weights ? weights[i] / largest_weight : 1.0;
        float norm;
        if (!row_norms(row, 1, dim, &norm)) return EA_NOT_FINITE;
        total_weights[labels[i]] += float(weight);
        if (norm > 0) {
            kernels().add_scaled(total, row, float(weight / norm), dim);
        } else if (norm == NORM_EXTREME) {
            const double exact = row_norm_exact(row, dim);
            for (size_t j = 0; j < dim; j++) total[j] += float(weight * row[j] / exact);
        }
    }
    for (size_t l = 0; l < n_labels; l++) {
        float *row = prototypes + l * dim;
        const double norm = row_norm_exact(row, dim);
        const float scale = norm > NO_DIRECTION * total_weights[l] ? float(1 / norm) : 0.0f;
        for (size_t j = 0; j < dim; j++) row[j] *= scale;
    }
    return EA_OK;
}

ea_status ea_leave_one_out(const float *embeddings, const int32_t *labels, size_t n_rows, size_t n_labels, size_t dim,
                           const float *weights, double *scratch, float *distances, uint8_t *valid) {
    double largest_weight;
    const ea_status status = check(labels, n_rows, n_labels, dim, weights, &largest_weight);
    if (status != EA_OK) return status;
    if (!all_finite(embeddings, n_rows * dim)) return EA_NOT_FINITE;
    // Per label: the sum of its rows, its weight, its number of rows that weigh anything. In float64, because a row is
    // taken out of the sum again by subtraction.
    const size_t stride = dim + 2;
    std::fill(scratch, scratch + n_labels * stride, 0.0);
    for (size_t i = 0; i < n_rows; i++) {
        const float *row = embeddings + i * dim;
        double *total = scratch + size_t(labels[i]) * stride;
        const double weight = weights ? weights[i] / largest_weight : 1.0;
        const double norm = row_norm_exact(row, dim), scale = norm > 0 ? weight / norm : 0;
        for (size_t j = 0; j < dim; j++) total[j] += scale * row[j];
        total[dim] += weight;
        total[dim + 1] += weight > 0;
    }
    for (size_t i = 0; i < n_rows; i++) {
        const float *row = embeddings + i * dim;
        const double *total = scratch + size_t(labels[i]) * stride;
        const double weight = weights ? weights[i] / largest_weight : 1.0;
        const double norm = row_norm_exact(row, dim), scale = norm > 0 ? weight / norm : 0;
        double squares = 0, dot = 0;
        for (size_t j = 0; j < dim; j++) {
            const double rest = total[j] - scale * row[j];
            squares += rest * rest;
            dot += rest * row[j];
        }
        const double rest_norm = std::sqrt(squares);
        valid[i] = total[dim + 1] - (weight > 0) > 0 && rest_norm > NO_DIRECTION * (total[dim] - weight);
        distances[i] = 0;
        if (valid[i])
            distances[i] = norm > 0 ? float(std::min(std::max(1 - dot / (norm * rest_norm), 0.0), 2.0)) : 1.0f;
    }
    return EA_OK;
}
