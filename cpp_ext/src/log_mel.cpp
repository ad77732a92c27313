// Sixteen frames are transformed side by side, one per lane, so that every step of the FFT is a plain vector operation
// and no step depends on how wide the processor's registers are.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <new>
#include <vector>

#include "distances.hpp"
#include "edgealign.h"
#include "lanes.hpp"

using namespace ea;

struct ea_log_mel_plan {
    struct Band {
        size_t first_bin, n_bins, first_weight;
    };
    size_t n_fft, n_mels, window_samples, hop_samples;
    float energy_floor;
    std::vector<float> window;        // [window_samples]
    std::vector<uint32_t> reversed;   // [n_fft / 2], bit-reversed positions
    std::vector<float> cosines, sines;  // [n_fft / 2 + 1], exp(-2 pi i k / n_fft)
    std::vector<Band> bands;          // [n_mels]: where each filter is not zero
    std::vector<float> weights;
};

namespace ea {
namespace {

EA_INLINE void multiply(Lanes &re, Lanes &im, float cosine, float sine) {
    const Lanes turned = re * cosine - im * sine;
    im = re * sine + im * cosine;
    re = turned;
}

// In place, over n_complex bit-reversed complex values of N_LANES lanes each: re[k] at data[2 k], im[k] after it.
// Two radix-2 steps are done in one pass over memory; an odd number of steps begins with a single one.
EA_INLINE void transform(const ea_log_mel_plan &plan, float *data) {
    const size_t n_complex = plan.n_fft / 2, pair = 2 * N_LANES;
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
        const size_t stride = plan.n_fft / (4 * half);  // in the table of exp(-2 pi i k / n_fft)
        for (size_t j = 0; j < half; j++) {
            const float cos_1 = plan.cosines[2 * j * stride], sin_1 = plan.sines[2 * j * stride];
            const float cos_2 = plan.cosines[j * stride], sin_2 = plan.sines[j * stride];
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

}  // namespace

// Frames first_frame to first_frame + n_valid of a clip; scratch holds the complex values, then the powers.
EA_CLONES void log_mel_frames(const ea_log_mel_plan &plan, const float *samples, size_t n_samples, size_t first_frame,
                              size_t n_valid, size_t n_frames, float *scratch, float *log_mels) {
    const size_t n_complex = plan.n_fft / 2;
    float *data = scratch, *power = scratch + plan.n_fft * N_LANES;
    std::memset(data, 0, plan.n_fft * N_LANES * sizeof(float));
    const float *first = samples + first_frame * plan.hop_samples;
    const size_t last_start = (first_frame + n_valid - 1) * plan.hop_samples;
    const size_t count = std::min(plan.window_samples, n_samples - std::min(n_samples, last_start));
    for (size_t i = 0; i < count; i++) {
        Lanes lanes = {};
        if (n_valid == N_LANES) {
            for (size_t lane = 0; lane < N_LANES; lane++) lanes[lane] = first[lane * plan.hop_samples + i];
        } else {
            for (size_t lane = 0; lane < n_valid; lane++) lanes[lane] = first[lane * plan.hop_samples + i];
        }
        // Even samples are the real parts, odd ones the imaginary parts.
        store(data + (2 * plan.reversed[i / 2] + i % 2) * N_LANES, lanes * plan.window[i]);
    }
    transform(plan, data);
    for (size_t k = 0; k <= n_complex; k++) {
        // The spectrum of the real signal out of that of its even and odd halves.
        const float *z = data + 2 * (k % n_complex) * N_LANES;
        const float *mirror = data + 2 * ((n_complex - k) % n_complex) * N_LANES;
        const Lanes z_re = load(z), z_im = load(z + N_LANES), m_re = load(mirror), m_im = load(mirror + N_LANES);
        const Lanes even_re = z_re + m_re, even_im = z_im - m_im;
        Lanes odd_re = z_im + m_im, odd_im = m_re - z_re;
        multiply(odd_re, odd_im, plan.cosines[k], plan.sines[k]);
        const Lanes re = even_re + odd_re, im = even_im + odd_im;
        store(power + k * N_LANES, (re * re + im * im) * 0.25f);
    }
    for (size_t m = 0; m < plan.n_mels; m++) {
        const ea_log_mel_plan::Band &band = plan.bands[m];
        const float *weights = plan.weights.data() + band.first_weight;
        Lanes energy = {};
        for (size_t b = 0; b < band.n_bins; b++) energy += weights[b] * load(power + (band.first_bin + b) * N_LANES);
        const Lanes lowest = Lanes{} + plan.energy_floor;
        const Lanes value = log(energy > lowest ? energy : lowest);
        std::memcpy(log_mels + m * n_frames + first_frame, &value, n_valid * sizeof(float));
    }
}

}  // namespace ea

ea_status ea_log_mel_plan_create(const ea_log_mel_options *options, const float *filters, ea_log_mel_plan **plan) {
    if (!options || options->struct_size < sizeof *options || !filters || !plan) return EA_INVALID_ARGUMENT;
    const size_t n_fft = options->n_fft, n_bins = n_fft / 2 + 1;
    if (n_fft < 4 || n_fft > 65536 || (n_fft & (n_fft - 1)) || options->n_mels == 0 || options->window_samples == 0
        || options->window_samples > n_fft || options->hop_samples == 0 || !(options->energy_floor >= FLT_MIN)
        || options->energy_floor > FLT_MAX)
        return EA_INVALID_ARGUMENT;
    if (!all_finite(filters, options->n_mels * n_bins)) return EA_NOT_FINITE;
    try {
        auto *made = new ea_log_mel_plan{n_fft, options->n_mels, options->window_samples, options->hop_samples,
                                         options->energy_floor, {}, {}, {}, {}, {}, {}};
        *plan = made;
        const double turn = 2 * 3.14159265358979323846;
        for (size_t i = 0; i < made->window_samples; i++)
            made->window.push_back(float(0.5 - 0.5 * std::cos(turn * double(i) / double(made->window_samples))));
        for (size_t k = 0; k < n_bins; k++) {
            made->cosines.push_back(float(std::cos(turn * double(k) / double(n_fft))));
            made->sines.push_back(float(-std::sin(turn * double(k) / double(n_fft))));
        }
        made->reversed.assign(n_fft / 2, 0);
        for (size_t k = 1; k < n_fft / 2; k++)
            made->reversed[k] = uint32_t(made->reversed[k / 2] / 2 + (k % 2 ? n_fft / 4 : 0));
        for (size_t m = 0; m < made->n_mels; m++) {
            const float *row = filters + m * n_bins;
            size_t first = 0, end = n_bins;
            while (first < end && row[first] == 0) first++;
            while (end > first && row[end - 1] == 0) end--;
            made->bands.push_back({first, end - first, made->weights.size()});
            made->weights.insert(made->weights.end(), row + first, row + end);
        }
    } catch (const std::bad_alloc &) {
        ea_log_mel_plan_free(*plan);
        *plan = nullptr;
        return EA_OUT_OF_MEMORY;
    }
    return EA_OK;
}

void ea_log_mel_plan_free(ea_log_mel_plan *plan) { delete plan; }

size_t ea_log_mel_frames(const ea_log_mel_plan *plan, size_t n_samples) {
    return 1 + (std::max(n_samples, plan->window_samples) - plan->window_samples) / plan->hop_samples;
}

size_t ea_log_mel_scratch_floats(const ea_log_mel_plan *plan) {
    return (plan->n_fft + plan->n_fft / 2 + 1) * N_LANES;
}

ea_status ea_log_mel(const ea_log_mel_plan *plan, const float *samples, size_t n_samples, float *scratch,
                     float *log_mels) {
    if (!all_within(samples, n_samples, EA_MAX_SAMPLE))
        return all_finite(samples, n_samples) ? EA_INVALID_ARGUMENT : EA_NOT_FINITE;
    const size_t n_frames = ea_log_mel_frames(plan, n_samples);
    for (size_t first = 0; first < n_frames; first += N_LANES)
        log_mel_frames(*plan, samples, n_samples, first, std::min(N_LANES, n_frames - first), n_frames, scratch,
                       log_mels);
    return EA_OK;
}
