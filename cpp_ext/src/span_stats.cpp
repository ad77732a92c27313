// Mean and standard deviation over spans of a sequence of frames, each span seen at as many places.
#include <algorithm>
#include <cmath>

#include "distances.hpp"
#include "edgealign.h"

namespace {

// Adds share * row to mean, or share * (row - mean)^2 to deviation, channel by channel.
void add_mean(float *__restrict mean, const float *__restrict row, float share, size_t count) {
    for (size_t c = 0; c < count; c++) mean[c] += share * row[c];
}
void add_squares(float *__restrict squares, const float *__restrict row, const float *__restrict mean, float share,
                 size_t count) {
    for (size_t c = 0; c < count; c++) squares[c] += share * (row[c] - mean[c]) * (row[c] - mean[c]);
}

}  // namespace

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
    float shares[EA_MAX_PLACES];
    for (size_t i = 0; i < n_spans; i++) {
        const size_t first = size_t(spans[2 * i]), length = size_t(spans[2 * i + 1]) - first;
        for (size_t p = 0; p < n_places; p++) places[p] = first + (2 * p + 1) * length / (2 * n_places);
        float *means = stats + i * 2 * dim, *deviations = means + dim;
        std::fill(means, means + 2 * dim, 0.0f);
        for (size_t g = 0; g < n_groups; g++) {
            // Places of a short span that fall on one frame are one.
            size_t rows[EA_MAX_PLACES], n_rows = 0;
            double total = 0;
            for (size_t p = 0; p < n_places; p++) {
                const float share = weights[places[p] * n_groups + g] * profile[g * n_places + p];
                total += share;
                if (n_rows && rows[n_rows - 1] == places[p]) {
                    shares[n_rows - 1] += share;
                } else {
                    rows[n_rows] = places[p], shares[n_rows++] = share;
                }
            }
            if (!(total > 0)) continue;
            float *mean = means + g * per_group, *deviation = deviations + g * per_group;
            const float *of_group = frames + g * per_group;
            for (size_t r = 0; r < n_rows; r++) {
                shares[r] = float(shares[r] / total);
                add_mean(mean, of_group + rows[r] * dim, shares[r], per_group);
            }
            for (size_t r = 0; r < n_rows; r++)
                add_squares(deviation, of_group + rows[r] * dim, mean, shares[r], per_group);
            for (size_t c = 0; c < per_group; c++) deviation[c] = std::sqrt(deviation[c]);
        }
    }
    return EA_OK;
}
