// The bundle on disk: docs/formats.md, bundle formats 1 and 2. The checks are those of edgealign/manifest.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "edgealign.h"
#include "json.hpp"
#include "ort.hpp"
#include "sha256.hpp"

namespace ea {

struct LogMelPlanFree {
    void operator()(ea_log_mel_plan *plan) const { ea_log_mel_plan_free(plan); }
};

// Windows over all of a clip, in samples; none where the encoder sees the word in it.
struct ClipWindows {
    size_t window = 0, hop = 0, least = 0;
};

// Everything of a bundle that turns sound into answers. Never changed once it is made: any thread may use it.
struct Model {
    std::string name, modality, variant;
    size_t dim = 0;
    Digest encoder_sha256 = {};
    uint32_t sample_rate_hz = 0;
    size_t hop_samples = 0, window_samples = 0, n_mels = 0;
    double energy_floor = 0;
    bool takes_waveform = false;  // the encoder sees samples; otherwise log-mel energies
    ClipWindows clip;
    size_t min_frames = 0;
    ea_span_options spans = {};
    ea_calibration calibration = {};
    float text_weight = 1;
    std::vector<float> bank;  // [n_bank, dim]
    size_t n_bank = 0;
    std::unique_ptr<ea_log_mel_plan, LogMelPlanFree> log_mel;
    std::unique_ptr<OrtSession> encoder;

    bool finds_words() const { return clip.window == 0; }
    // The embedding [dim] of one input: `size` samples, or log_mels [n_mels, size].
    void encode(float *input, size_t size, float *embedding) const;
    double seconds(double frames) const { return frames * double(hop_samples) / double(sample_rate_hz); }

    static std::shared_ptr<const Model> open(const std::string &folder, std::shared_ptr<const Ort> ort,
                                             const char *variant);
};

// rows [n_rows, dim] of unit length from little-endian halves; false where one is not of unit length to begin with.
bool unit_rows_from_halves(const uint8_t *halves, size_t n_rows, size_t dim, float *rows);

}  // namespace ea
