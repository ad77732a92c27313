#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "distances.hpp"
#include "edgealign.h"
#include "kernels.hpp"

using namespace ea;

namespace {

constexpr size_t MAX_MELS = 65536, FRAMES = 16;  // frames that are transformed together

}  // namespace

struct ea_log_mel_plan {
    LogMelTables tables;  // points into what follows
    std::vector<float> window, cosines, sines, weights;
    std::vector<uint32_t> reversed;
    std::vector<LogMelTables::Band> bands;
};

ea_status ea_log_mel_plan_create(const ea_log_mel_options *options, const float *filters, ea_log_mel_plan **plan) {
    if (!options || options->struct_size < sizeof *options || !filters || !plan) return EA_INVALID_ARGUMENT;
    *plan = nullptr;
    const size_t n_fft = options->n_fft, n_bins = n_fft / 2 + 1;
    if (n_fft < 4 || n_fft > 65536 || (n_fft & (n_fft - 1)) || options->n_mels == 0 || options->n_mels > MAX_MELS || options->window_samples == 0
        || options->window_samples > n_fft || options->hop_samples == 0 || !(options->energy_floor >= FLT_MIN)
        || options->energy_floor > FLT_MAX)
        return EA_INVALID_ARGUMENT;
    if (!all_finite(filters, options->n_mels * n_bins)) return EA_NOT_FINITE;
    try {
        auto made = std::make_unique<ea_log_mel_plan>();
        const double turn = 2 * 3.14159265358979323846;
        for (size_t i = 0; i < options->window_samples; i++)
            made->window.push_back(float(0.5 - 0.5 * std::cos(turn * double(i) / double(options->window_samples))));
        for (size_t k = 0; k < n_bins; k++) {
            made->cosines.push_back(float(std::cos(turn * double(k) / double(n_fft))));
            made->sines.push_back(float(-std::sin(turn * double(k) / double(n_fft))));
        }
        made->reversed.assign(n_fft / 2, 0);
        for (size_t k = 1; k < n_fft / 2; k++)
            made->reversed[k] = uint32_t(made->reversed[k / 2] / 2 + (k % 2 ? n_fft / 4 : 0));
        for (size_t m = 0; m < options->n_mels; m++) {
            const float *row = filters + m * n_bins;
            size_t first = 0, end = n_bins;
            while (first < end && row[first] == 0) first++;
            while (end > first && row[end - 1] == 0) end--;
            made->bands.push_back({first, end - first, made->weights.size()});
            made->weights.insert(made->weights.end(), row + first, row + end);
        }
        made->tables = {n_fft,
                        options->n_mels,
                        options->window_samples,
                        options->hop_samples,
                        options->energy_floor,
                        made->window.data(),
                        made->reversed.data(),
                        made->cosines.data(),
                        made->sines.data(),
                        made->bands.data(),
                        made->weights.data()};
        *plan = made.release();
    } catch (const std::bad_alloc &) {
        return EA_OUT_OF_MEMORY;
    }
    return EA_OK;
}

void ea_log_mel_plan_free(ea_log_mel_plan *plan) { delete plan; }

size_t ea_log_mel_frames(const ea_log_mel_plan *plan, size_t n_samples) {
    if (!plan) return 0;
    const LogMelTables &t = plan->tables;
    return 1 + (std::max(n_samples, t.window_samples) - t.window_samples) / t.hop_samples;
}

size_t ea_log_mel_scratch_floats(const ea_log_mel_plan *plan) {
    return !plan ? 0 : (plan->tables.n_fft + plan->tables.n_fft / 2 + 1) * FRAMES;
}

ea_status ea_log_mel(const ea_log_mel_plan *plan, const float *samples, size_t n_samples, float *scratch,
                     float *log_mels) {
    if (!plan || !scratch || !log_mels || (!samples && n_samples)) return EA_INVALID_ARGUMENT;
    if (!all_within(samples, n_samples, EA_MAX_SAMPLE))
        return all_finite(samples, n_samples) ? EA_INVALID_ARGUMENT : EA_NOT_FINITE;
    const size_t n_frames = ea_log_mel_frames(plan, n_samples);
    for (size_t first = 0; first < n_frames; first += FRAMES)
        kernels().log_mel_frames(plan->tables, samples, n_samples, first, std::min(FRAMES, n_frames - first), n_frames,
                                 scratch, log_mels);
    return EA_OK;
}
