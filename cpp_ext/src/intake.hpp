// PCM as a program has it -> mono at the encoder's rate.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "distances.hpp"
#include "level2.hpp"
#include "resampler.hpp"

namespace ea {

constexpr uint32_t MIN_RATE_HZ = 4000, MAX_RATE_HZ = 500000, MAX_CHANNELS = 64;
constexpr double MIN_DURATION_S = 0.025;  // one window of the front end

// False for what a negative number becomes as a size_t.
template <class Sample>
bool fits_memory(size_t n_frames, size_t n_channels) {
    return n_frames <= SIZE_MAX / sizeof(Sample) / n_channels;
}

// Refuses a whole block before any of it is taken.
inline ea_status check_samples(const float *samples, size_t count) {
    if (all_within(samples, count, EA_MAX_SAMPLE)) return EA_OK;
    return all_finite(samples, count) ? EA_INVALID_ARGUMENT : EA_NOT_FINITE;
}
inline ea_status check_samples(const int16_t *, size_t) { return EA_OK; }

inline float in_full_scale(float sample) { return sample; }
inline float in_full_scale(int16_t sample) { return float(sample) / 32768.0f; }

// mono [n_frames] = mean of the channels, in float64 where there are several.
template <class Sample>
void mix(const Sample *frames, size_t n_frames, size_t n_channels, float *mono) {
    if (n_channels == 1) {
        for (size_t i = 0; i < n_frames; i++) mono[i] = in_full_scale(frames[i]);
        return;
    }
    for (size_t i = 0; i < n_frames; i++) {
        double total = 0;
        for (size_t c = 0; c < n_channels; c++) total += double(in_full_scale(frames[i * n_channels + c]));
        mono[i] = float(total / double(n_channels));
    }
}

inline void check_format(uint32_t sample_rate_hz, uint32_t n_channels) {
    if (sample_rate_hz < MIN_RATE_HZ || sample_rate_hz > MAX_RATE_HZ)
        refuse(EA_INVALID_ARGUMENT, "a sample rate of %u Hz: %u to %u Hz are read", sample_rate_hz, MIN_RATE_HZ,
               MAX_RATE_HZ);
    if (n_channels < 1 || n_channels > MAX_CHANNELS)
        refuse(EA_INVALID_ARGUMENT, "%u channels: 1 to %u are read", n_channels, MAX_CHANNELS);
}

}  // namespace ea
