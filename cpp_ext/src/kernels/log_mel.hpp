// Sixteen frames are transformed side by side, one per lane, so that every step of the FFT is a plain vector operation
// and no step depends on how wide the processor's registers are.
#pragma once

#include "../kernels.hpp"
#include "lanes.hpp"

namespace ea::EA_SET {

EA_INLINE void multiply(Vector &re, Vector &im, float cosine, float sine) {
    const Vector turned = re * cosine - im * sine;
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
        for (float *a = data; a < data + n_complex * pair; a += 2 * pair)
            EA_UNROLL for (size_t at = 0; at < pair; at += WIDTH) {
                const Vector of_a = load<Vector>(a + at), of_b = load<Vector>(a + pair + at);
                store(a + at, of_a + of_b), store(a + pair + at, of_a - of_b);
            }
        half = 2;
    }
    const auto butterfly = [=](float *a, size_t half, const float *turns) EA_BODY {
        for (const float *end = a + N_LANES; a < end; a += WIDTH) {
            float *b = a + half * pair, *c = b + half * pair, *d = c + half * pair;
            const Vector a_re = load<Vector>(a), a_im = load<Vector>(a + N_LANES);
            Vector b_re = load<Vector>(b), b_im = load<Vector>(b + N_LANES), c_re = load<Vector>(c);
            Vector c_im = load<Vector>(c + N_LANES), d_re = load<Vector>(d), d_im = load<Vector>(d + N_LANES);
            if (turns) multiply(b_re, b_im, turns[0], turns[1]), multiply(d_re, d_im, turns[0], turns[1]);
            const Vector ab_re = a_re + b_re, ab_im = a_im + b_im, amb_re = a_re - b_re, amb_im = a_im - b_im;
            Vector cd_re = c_re + d_re, cd_im = c_im + d_im, cmd_re = c_re - d_re, cmd_im = c_im - d_im;
            if (turns) multiply(cd_re, cd_im, turns[2], turns[3]), multiply(cmd_re, cmd_im, turns[2], turns[3]);
            store(a, ab_re + cd_re), store(a + N_LANES, ab_im + cd_im);
            store(c, ab_re - cd_re), store(c + N_LANES, ab_im - cd_im);
            // The second pair is a quarter turn further on: times -i.
            store(b, amb_re + cmd_im), store(b + N_LANES, amb_im - cmd_re);
            store(d, amb_re - cmd_im), store(d + N_LANES, amb_im + cmd_re);
        }
    };
    for (; half < n_complex; half *= 4) {
        const size_t stride = tables.n_fft / (4 * half);  // in the table of exp(-2 pi i k / n_fft)
        for (size_t block = 0; block < n_complex; block += 4 * half) butterfly(data + block * pair, half, nullptr);
        for (size_t j = 1; j < half; j++) {
            const float turns[4] = {tables.cosines[2 * j * stride], tables.sines[2 * j * stride],
                                    tables.cosines[j * stride], tables.sines[j * stride]};
            for (size_t block = 0; block < n_complex; block += 4 * half)
                butterfly(data + (block + j) * pair, half, turns);
        }
    }
}

// Windowed samples of sixteen frames to where the transform wants them, a frame to a lane. Lanes beyond n_valid repeat the
// first frame. `count` samples of a frame are there, the others are zero.
EA_INLINE void load_frames(const LogMelTables &tables, const float *first, size_t n_valid, size_t count, float *data) {
    // Even samples are the real parts, odd ones the imaginary parts.
    const auto place = [&](size_t i) EA_BODY {
        return data + (2 * tables.reversed[i / 2] + i % 2) * N_LANES;
    };
    const size_t whole = count / 4 * 4;
    for (size_t lane = 0; lane < N_LANES; lane += 4) {
        const float *row[4];
        for (size_t r = 0; r < 4; r++) row[r] = first + (lane + r < n_valid ? lane + r : 0) * tables.hop_samples;
        for (size_t i = 0; i < whole; i += 4) {  // four by four, turned over the diagonal
            const Four a = load<Four>(row[0] + i), b = load<Four>(row[1] + i);
            const Four c = load<Four>(row[2] + i), d = load<Four>(row[3] + i);
            const Four ab_low = EA_JOIN(a, b, 0, 4, 1, 5), ab_high = EA_JOIN(a, b, 2, 6, 3, 7);
            const Four cd_low = EA_JOIN(c, d, 0, 4, 1, 5), cd_high = EA_JOIN(c, d, 2, 6, 3, 7);
            const float *window = tables.window + i;
            store(place(i) + lane, EA_JOIN(ab_low, cd_low, 0, 1, 4, 5) * window[0]);
            store(place(i + 1) + lane, EA_JOIN(ab_low, cd_low, 2, 3, 6, 7) * window[1]);
            store(place(i + 2) + lane, EA_JOIN(ab_high, cd_high, 0, 1, 4, 5) * window[2]);
            store(place(i + 3) + lane, EA_JOIN(ab_high, cd_high, 2, 3, 6, 7) * window[3]);
        }
        for (size_t i = whole; i < count; i++)
            for (size_t r = 0; r < 4; r++) place(i)[lane + r] = row[r][i] * tables.window[i];
    }
    for (size_t i = count; i < tables.n_fft; i++) store(place(i), Lanes{});
}

// Frames first_frame to first_frame + n_valid of a clip; scratch holds the complex values, then the powers.
static void log_mel_frames(const LogMelTables &tables, const float *samples, size_t n_samples, size_t first_frame,
                              size_t n_valid, size_t n_frames, float *scratch, float *log_mels) {
    const size_t n_complex = tables.n_fft / 2;
    float *data = scratch, *power = scratch + tables.n_fft * N_LANES;
    const size_t last_start = (first_frame + n_valid - 1) * tables.hop_samples;
    const size_t left = n_samples > last_start ? n_samples - last_start : 0;
    const size_t count = left < tables.window_samples ? left : tables.window_samples;
    load_frames(tables, samples + first_frame * tables.hop_samples, n_valid, count, data);
    transform(tables, data);
    // The spectrum of the real signal out of that of its even and odd halves, k and its mirror image together.
    for (size_t k = 0; k <= n_complex / 2; k++) {
        const float *z = data + 2 * k * N_LANES;
        const float *mirror = data + 2 * (k ? n_complex - k : 0) * N_LANES;
        float *low = power + k * N_LANES, *high = power + (n_complex - k) * N_LANES;
        for (size_t at = 0; at < N_LANES; at += WIDTH) {
            const Vector z_re = load<Vector>(z + at), z_im = load<Vector>(z + N_LANES + at);
            const Vector m_re = load<Vector>(mirror + at), m_im = load<Vector>(mirror + N_LANES + at);
            const Vector even_re = z_re + m_re, even_im = z_im - m_im;
            Vector odd_re = z_im + m_im, odd_im = m_re - z_re;
            multiply(odd_re, odd_im, tables.cosines[k], tables.sines[k]);
            const Vector re = even_re + odd_re, im = even_im + odd_im;
            const Vector other_re = even_re - odd_re, other_im = even_im - odd_im;
            store(high + at, (other_re * other_re + other_im * other_im) * 0.25f);
            store(low + at, (re * re + im * im) * 0.25f);
        }
    }
    for (size_t m = 0; m < tables.n_mels; m++) {
        const LogMelTables::Band &band = tables.bands[m];
        const float *weights = tables.weights + band.first_weight, *powers = power + band.first_bin * N_LANES;
        Lanes energy = {};
        for (size_t b = 0; b < band.n_bins; b++)
            EA_UNROLL for (size_t p = 0; p < N_PARTS; p++)
                energy.part[p] += weights[b] * load<Vector>(powers + b * N_LANES + p * WIDTH);
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++)
            energy.part[p] = log(larger(energy.part[p], Vector{} + tables.energy_floor));
        std::memcpy(log_mels + m * n_frames + first_frame, &energy, n_valid * sizeof(float));
    }
}

}  // namespace ea::EA_SET
