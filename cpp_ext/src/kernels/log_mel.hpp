// Sixteen frames are transformed side by side, one per lane, so that every step of the FFT is a plain vector operation
// and no step depends on how wide the processor's registers are.
#pragma once

#include "../kernels.hpp"
#include "lanes.hpp"

namespace ea::EA_SET {

EA_INLINE void multiply(Lanes &re, Lanes &im, float cosine, float sine) {
    const Lanes turned = re * cosine - im * sine;
    im = re * sine + im * cosine;
    re = turned;
}

// In place, over n_complex bit-reversed complex values of N_LANES lanes each: re[k] at data[2 k], im[k] after it.
// Two radix-2 steps are done in one pass over memory; an odd number of steps begins with a single one.
EA_INLINE void transform(const LogMelTables &tables, float *data) {
    const size_t n_complex = tables.n_fft / 2, pair = 2 * N_LANES;
    size_t half = 1;
    bool odd = false;
    for (size_t n = n_complex; n > 1; n /= 2) odd = !odd;
    if (odd) {
        for (size_t k = 0; k < n_complex; k += 2) {
            float *a = data + k * pair, *b = a + pair;
            const Lanes a_re = load(a), a_im = load(a + N_LANES), b_re = load(b), b_im = load(b + N_LANES);
            store(a, a_re + b_re), store(a + N_LANES, a_im + b_im);
            store(b, a_re - b_re), store(b + N_LANES, a_im - b_im);
        }
        half = 2;
    }
    for (; half < n_complex; half *= 4) {
        const size_t stride = tables.n_fft / (4 * half);  // in the table of exp(-2 pi i k / n_fft)
        for (size_t j = 0; j < half; j++) {
            const float cos_1 = tables.cosines[2 * j * stride], sin_1 = tables.sines[2 * j * stride];
            const float cos_2 = tables.cosines[j * stride], sin_2 = tables.sines[j * stride];
            for (size_t block = 0; block < n_complex; block += 4 * half) {
                float *a = data + (block + j) * pair, *b = a + half * pair, *c = b + half * pair, *d = c + half * pair;
                Lanes a_re = load(a), a_im = load(a + N_LANES), b_re = load(b), b_im = load(b + N_LANES);
                Lanes c_re = load(c), c_im = load(c + N_LANES), d_re = load(d), d_im = load(d + N_LANES);
                multiply(b_re, b_im, cos_1, sin_1);
                multiply(d_re, d_im, cos_1, sin_1);
                const Lanes ab_re = a_re + b_re, ab_im = a_im + b_im, amb_re = a_re - b_re, amb_im = a_im - b_im;
                Lanes cd_re = c_re + d_re, cd_im = c_im + d_im, cmd_re = c_re - d_re, cmd_im = c_im - d_im;
                multiply(cd_re, cd_im, cos_2, sin_2);
                multiply(cmd_re, cmd_im, cos_2, sin_2);
                store(a, ab_re + cd_re), store(a + N_LANES, ab_im + cd_im);
                store(c, ab_re - cd_re), store(c + N_LANES, ab_im - cd_im);
                // The second pair is a quarter turn further on: times -i.
                store(b, amb_re + cmd_im), store(b + N_LANES, amb_im - cmd_re);
                store(d, amb_re - cmd_im), store(d + N_LANES, amb_im + cmd_re);
            }
        }
    }
}

// Frames first_frame to first_frame + n_valid of a clip; scratch holds the complex values, then the powers.
static void log_mel_frames(const LogMelTables &tables, const float *samples, size_t n_samples, size_t first_frame,
                              size_t n_valid, size_t n_frames, float *scratch, float *log_mels) {
    const size_t n_complex = tables.n_fft / 2;
    float *data = scratch, *power = scratch + tables.n_fft * N_LANES;
    std::memset(data, 0, tables.n_fft * N_LANES * sizeof(float));
    const float *first = samples + first_frame * tables.hop_samples;
    const size_t last_start = (first_frame + n_valid - 1) * tables.hop_samples;
    const size_t left = n_samples > last_start ? n_samples - last_start : 0;
    const size_t count = left < tables.window_samples ? left : tables.window_samples;
    for (size_t i = 0; i < count; i++) {
        Lanes lanes = {};
        if (n_valid == N_LANES) {
            for (size_t lane = 0; lane < N_LANES; lane++) lanes[lane] = first[lane * tables.hop_samples + i];
        } else {
            for (size_t lane = 0; lane < n_valid; lane++) lanes[lane] = first[lane * tables.hop_samples + i];
        }
        // Even samples are the real parts, odd ones the imaginary parts.
        store(data + (2 * tables.reversed[i / 2] + i % 2) * N_LANES, lanes * tables.window[i]);
    }
    transform(tables, data);
    for (size_t k = 0; k <= n_complex; k++) {
        // The spectrum of the real signal out of that of its even and odd halves.
        const float *z = data + 2 * (k % n_complex) * N_LANES;
        const float *mirror = data + 2 * ((n_complex - k) % n_complex) * N_LANES;
        const Lanes z_re = load(z), z_im = load(z + N_LANES), m_re = load(mirror), m_im = load(mirror + N_LANES);
        const Lanes even_re = z_re + m_re, even_im = z_im - m_im;
        Lanes odd_re = z_im + m_im, odd_im = m_re - z_re;
        multiply(odd_re, odd_im, tables.cosines[k], tables.sines[k]);
        const Lanes re = even_re + odd_re, im = even_im + odd_im;
        store(power + k * N_LANES, (re * re + im * im) * 0.25f);
    }
    for (size_t m = 0; m < tables.n_mels; m++) {
        const LogMelTables::Band &band = tables.bands[m];
        const float *weights = tables.weights + band.first_weight;
        Lanes energy = {};
        for (size_t b = 0; b < band.n_bins; b++) energy += weights[b] * load(power + (band.first_bin + b) * N_LANES);
        const Lanes lowest = Lanes{} + tables.energy_floor;
        const Lanes value = log(larger(energy, lowest));
        std::memcpy(log_mels + m * n_frames + first_frame, &value, n_valid * sizeof(float));
    }
}

}  // namespace ea::EA_SET
