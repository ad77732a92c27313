// Mean and standard deviation over spans of a sequence of frames, each span seen at as many places.
#include <algorithm>

#include "distances.hpp"
#include "edgealign.h"
#include "kernels.hpp"

ea_status ea_span_stats(const float *frames, size_t n_frames, size_t dim, const float *weights, size_t n_groups,
                        const float *profile, size_t n_places, const int32_t *spans, size_t n_spans,
                        float *stats) {
    using namespace ea;
    if (!is_matrix(frames, n_frames, dim) || n_groups == 0 || dim % n_groups || n_places == 0 || n_places > EA_MAX_PLACES
        || !is_matrix(weights, n_frames, n_groups) || !is_matrix(profile, n_groups, n_places)
        || !is_matrix(spans, n_spans, 2) || dim > SIZE_MAX / 2 || !is_matrix(stats, n_spans, 2 * dim))
        return EA_INVALID_ARGUMENT;
    if (!all_finite(frames, n_frames * dim) || !all_finite(weights, n_frames * n_groups)
        || !all_finite(profile, n_groups * n_places))
        return EA_NOT_FINITE;
    if (std::any_of(weights, weights + n_frames * n_groups, [](float weight) { return weight < 0; })
        || std::any_of(profile, profile + n_groups * n_places, [](float weight) { return weight < 0; }))
        return EA_INVALID_ARGUMENT;
    for (size_t i = 0; i < n_spans; i++)
        if (spans[2 * i] < 0 || spans[2 * i] >= spans[2 * i + 1] || size_t(spans[2 * i + 1]) > n_frames)
            return EA_INVALID_ARGUMENT;

    const size_t per_group = dim / n_groups;
    size_t places[EA_MAX_PLACES];
    const float *rows[EA_MAX_PLACES];
    float shares[EA_MAX_PLACES];
    for (size_t i = 0; i < n_spans; i++) {
        const size_t first = size_t(spans[2 * i]), length = size_t(spans[2 * i + 1]) - first;
        for (size_t p = 0; p < n_places; p++) places[p] = first + (2 * p + 1) * length / (2 * n_places);
        float *means = stats + i * 2 * dim, *deviations = means + dim;
        std::fill(means, means + 2 * dim, 0.0f);
        for (size_t g = 0; g < n_groups; g++) {
            // Places of a short span that fall on one frame are one.
            size_t n_rows = 0;
            double total = 0;
            for (size_t p = 0; p < n_places; p++) {
                const float share = weights[places[p] * n_groups + g] * profile[g * n_places + p];
                total += share;
                if (p && places[p] == places[p - 1]) {
                    shares[n_rows - 1] += share;
                } else {
                    rows[n_rows] = frames + places[p] * dim + g * per_group, shares[n_rows++] = share;
                }
            }
            if (!(total > 0)) continue;
            for (size_t r = 0; r < n_rows; r++) shares[r] = float(shares[r] / total);
            kernels().weighted_stats(rows, shares, n_rows, per_group, means + g * per_group, deviations + g * per_group);
        }
    }
    return EA_OK;
}
