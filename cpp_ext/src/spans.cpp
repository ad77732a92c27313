#include <algorithm>
#include <cmath>

#include "distances.hpp"
#include "edgealign.h"

ea_status ea_sound_spans(const float *log_mels, size_t n_mels, size_t n_frames, const ea_span_options *options,
                         double *scratch, double *spans, size_t capacity, size_t *n_spans) {
    if (!options || options->struct_size < sizeof *options || n_mels == 0 || n_frames == 0 || options->max_frames == 0
        || !(options->floor_quantile >= 0 && options->floor_quantile <= 1) || !std::isfinite(options->above_floor_db)
        || !std::isfinite(options->below_peak_db))
        return EA_INVALID_ARGUMENT;
    if (!ea::all_finite(log_mels, n_mels * n_frames)) return EA_NOT_FINITE;

    double *levels = scratch, *work = scratch + n_frames;  // in dB; work has one element more
    std::fill(levels, levels + n_frames, 0.0);
    for (size_t m = 0; m < n_mels; m++)
        for (size_t f = 0; f < n_frames; f++) levels[f] += std::exp(double(log_mels[m * n_frames + f]));
    for (size_t f = 0; f < n_frames; f++) levels[f] = 10 * std::log10(levels[f] / double(n_mels));

    std::copy(levels, levels + n_frames, work);
    double *rank = work + size_t(options->floor_quantile * double(n_frames - 1));
    std::nth_element(work, rank, work + n_frames);
    const double peak = *std::max_element(levels, levels + n_frames);
    const double threshold = std::max(*rank + options->above_floor_db, peak - options->below_peak_db);

    // Runs of frames that are on, joined over short gaps; the long enough ones are kept.
    size_t count = 0, first = 0, end = 0;
    bool open = false;
    const auto keep = [&] {
        if (!open || end - first < options->min_frames) return;
        if (count < capacity) spans[3 * count] = double(first), spans[3 * count + 1] = double(end);
        count++;
    };
    for (size_t f = 0; f < n_frames; f++) {
        if (!(levels[f] > threshold)) continue;
        if (open && (f == end || f - end < options->merge_frames)) {
            end = f + 1;
            continue;
        }
        keep();
        first = f, end = f + 1, open = true;
    }
    keep();
    *n_spans = count;
    if (count > capacity) return EA_LIMIT;

    size_t previous_end = 0;
    for (size_t i = 0; i < count; i++) {
        first = size_t(spans[3 * i]), end = size_t(spans[3 * i + 1]);
        const size_t lowest = i ? (previous_end + first) / 2 : 0;
        const size_t highest = i + 1 < count ? (end + size_t(spans[3 * i + 3])) / 2 : n_frames;
        previous_end = end;
        double clearness = 0;
        for (size_t f = first; f < end; f++) clearness += std::max(levels[f] - threshold, 0.0);
        first = std::max(first > options->pad_frames ? first - options->pad_frames : 0, lowest);
        end = end + std::min(options->pad_frames, highest - end);
        if (end - first > options->max_frames) {
            // Running sums of energy: the loudest stretch is the largest difference of two that lie max_frames apart.
            work[0] = 0;
            for (size_t f = first; f < end; f++) work[f - first + 1] = work[f - first] + std::pow(10, levels[f] / 10);
            size_t offset = 0;
            double loudest = -1;
            for (size_t f = 0; f + options->max_frames <= end - first; f++) {
                const double energy = work[f + options->max_frames] - work[f];
                if (energy > loudest) loudest = energy, offset = f;
            }
            first += offset, end = first + options->max_frames;
        }
        spans[3 * i] = double(first), spans[3 * i + 1] = double(end), spans[3 * i + 2] = clearness;
    }
    return EA_OK;
}
