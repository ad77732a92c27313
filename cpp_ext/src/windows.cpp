// Mean and standard deviation over sliding windows of a sequence of frames.
#include <algorithm>
#include <cmath>

#include "distances.hpp"
#include "edgealign.h"

size_t ea_n_windows(size_t n_frames, size_t window_frames, size_t hop_frames) {
    if (window_frames == 0 || hop_frames == 0 || n_frames < window_frames) return 0;
    return 1 + (n_frames - window_frames) / hop_frames;
}

ea_status ea_window_stats(const float *frames, size_t n_frames, size_t dim, const float *weights, size_t n_groups,
                          const float *profile, size_t window_frames, size_t hop_frames, double *scratch,
                          float *stats) {
    using namespace ea;
    const size_t n_windows = ea_n_windows(n_frames, window_frames, hop_frames);
    if (!is_matrix(frames, n_frames, dim) || n_groups == 0 || dim % n_groups || window_frames == 0 || hop_frames == 0
        || dim > SIZE_MAX / 32 || n_frames > SIZE_MAX / 32 / (dim + n_groups) || !scratch
        || (!weights && !profile && n_groups != 1) || !is_matrix(stats, n_windows, 2 * dim))
        return EA_INVALID_ARGUMENT;
    if (!all_finite(frames, n_frames * dim)) return EA_NOT_FINITE;
    if (weights && !all_finite(weights, n_frames * n_groups)) return EA_NOT_FINITE;
    if (profile && !all_finite(profile, n_groups * window_frames)) return EA_NOT_FINITE;
    for (size_t i = 0; weights && i < n_frames * n_groups; i++)
        if (weights[i] < 0) return EA_INVALID_ARGUMENT;
    for (size_t i = 0; profile && i < n_groups * window_frames; i++)
        if (profile[i] < 0) return EA_INVALID_ARGUMENT;

    // A window's sums: weights [n_groups], weighted values [dim], weighted squares [dim].
    const size_t width = n_groups + 2 * dim, per_group = dim / n_groups;
    const auto add = [&](size_t frame, size_t in_window, double *sums) {
        const float *row = frames + frame * dim;
        double *values = sums + n_groups, *squares = values + dim;
        for (size_t g = 0; g < n_groups; g++) {
            double weight = weights ? weights[frame * n_groups + g] : 1.0;
            if (profile) weight *= profile[g * window_frames + in_window];
            sums[g] += weight;
            for (size_t c = g * per_group; c < (g + 1) * per_group; c++) {
                const double value = row[c];
                values[c] += weight * value;
                squares[c] += weight * value * value;
            }
        }
    };
    const auto finish = [&](const double *end, const double *begin, float *out) {
        for (size_t g = 0; g < n_groups; g++) {
            const double weight = end[g] - (begin ? begin[g] : 0);
            for (size_t c = g * per_group; c < (g + 1) * per_group; c++) {
                const size_t v = n_groups + c, s = v + dim;
                const double total = end[v] - (begin ? begin[v] : 0), squares = end[s] - (begin ? begin[s] : 0);
                const double mean = weight > 0 ? total / weight : 0;
                out[c] = float(mean);
                out[dim + c] = weight > 0 ? float(std::sqrt(std::max(squares / weight - mean * mean, 0.0))) : 0.0f;
            }
        }
    };
    if (profile) {
        for (size_t w = 0; w < n_windows; w++) {
            std::fill(scratch, scratch + width, 0.0);
            for (size_t t = 0; t < window_frames; t++) add(w * hop_frames + t, t, scratch);
            finish(scratch, nullptr, stats + w * 2 * dim);
        }
        return EA_OK;
    }
    std::fill(scratch, scratch + width, 0.0);
    for (size_t t = 0; t < n_frames; t++) {
        double *next = scratch + (t + 1) * width;
        std::copy(next - width, next, next);
        add(t, 0, next);
    }
    for (size_t w = 0; w < n_windows; w++) {
        const double *begin = scratch + w * hop_frames * width;
        finish(begin + window_frames * width, begin, stats + w * 2 * dim);
    }
    return EA_OK;
}

size_t ea_window_scratch_doubles(size_t n_frames, size_t dim, size_t n_groups, int32_t has_profile) {
    const size_t width = n_groups + 2 * dim;
    return has_profile ? width : (n_frames + 1) * width;
}
