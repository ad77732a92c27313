#include "resampler.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "edgealign.h"
#include "kernels.hpp"

namespace ea {
namespace {

constexpr size_t N_LANES = 16;  // of the kernels: rows of taps are filled up to as many

constexpr double PI = 3.14159265358979323846;
// Of the lower of the two Nyquist frequencies: flat up to 0.913 of it, silent from 1 on.
constexpr double PASS = 0.913, STOP = 1.0;
constexpr double ATTENUATION_DB = 110;
constexpr size_t MOST_TAPS = size_t(1) << 19;  // 2 MiB; beyond it phases are interpolated
constexpr double INTERPOLATED_PHASES = 1024;   // -118 dB, per sample of the lower rate

double bessel_i0(double x) {
    double term = 1, total = 1;
    for (int k = 1; term > 1e-17 * total; k++) {
        term *= (x / (2 * k)) * (x / (2 * k));
        total += term;
    }
    return total;
}

}  // namespace

Resampler::Resampler(uint32_t from_hz, uint32_t to_hz) {
    const uint32_t shared = std::gcd(from_hz, to_hz);
    from_ = from_hz / shared, to_ = to_hz / shared;
    const double narrowing = std::min(1.0, double(to_) / from_);
    const double width = PI * (STOP - PASS) * narrowing;
    half_ = size_t(std::ceil((ATTENUATION_DB - 7.95) / (2.285 * width) / 2));  // Kaiser's formula
    stride_ = (2 * half_ + N_LANES - 1) / N_LANES * N_LANES;
    n_phases_ = to_;
    if (n_phases_ * stride_ > MOST_TAPS) n_phases_ = size_t(std::ceil(INTERPOLATED_PHASES * narrowing));

    const double cutoff = (PASS + STOP) / 2 * narrowing, beta = 0.1102 * (ATTENUATION_DB - 8.7);
    taps_.assign((n_phases_ + 1) * stride_, 0.0f);
    std::vector<double> row(2 * half_);
    for (size_t phase = 0; phase <= n_phases_; phase++) {
        double total = 0;
        for (size_t k = 0; k < 2 * half_; k++) {
            const double t = double(k) - double(half_ - 1) - double(phase) / double(n_phases_);
            const double x = PI * cutoff * t, edge = t / double(half_);
            row[k] = (x == 0 ? 1 : std::sin(x) / x) * bessel_i0(beta * std::sqrt(std::max(0.0, 1 - edge * edge)));
            total += row[k];
        }
        for (size_t k = 0; k < 2 * half_; k++) taps_[phase * stride_ + k] = float(row[k] / total);
    }
    held_.assign(stride_ + from_ / to_ + 1 + BLOCK + N_LANES, 0.0f);
    reset();
}

void Resampler::reset() {
    std::fill(held_.begin(), held_.end(), 0.0f);
    n_held_ = half_ - 1;  // silence before the first sample
    n_in_ = n_out_ = remainder_ = 0;
    next_ = 0;
}

size_t Resampler::max_output() const { return BLOCK * to_ / from_ + 2; }

size_t Resampler::push(const float *samples, size_t count, float *output) {
    if (from_ == to_) {
        std::copy(samples, samples + count, output);
        return count;
    }
    n_in_ += count;
    return produce(samples, count, UINT64_MAX, output);
}

size_t Resampler::finish(float *output) {
    if (from_ == to_) return 0;
    const uint64_t total = (2 * n_in_ * to_ + from_) / (2 * uint64_t(from_));
    if (n_out_ >= total) return 0;
    const float silence[BLOCK] = {};
    size_t made = 0;
    while (made == 0) made = produce(silence, BLOCK, total - n_out_, output);
    return made;
}

size_t Resampler::produce(const float *samples, size_t count, uint64_t most, float *output) {
    // next_ may lie beyond what is held where many samples go in for one that comes out.
    const size_t gone = std::min(next_, n_held_);
    std::copy(held_.begin() + long(gone), held_.begin() + long(n_held_), held_.begin());
    n_held_ -= gone, next_ -= gone;
    std::copy(samples, samples + count, held_.begin() + long(n_held_));
    n_held_ += count;
    if (n_held_ < next_ + 2 * half_) return 0;
    // The last position whose taps are all held: next + (remainder + n from) / to <= n_held - 2 half.
    const uint64_t room = n_held_ - 2 * half_ - next_;
    const uint64_t fitting = ((room + 1) * to_ - 1 - remainder_) / from_ + 1;
    const size_t n = size_t(std::min(fitting, most));
    const ResamplerTables tables = {from_, to_, n_phases_, stride_, taps_.data()};
    kernels().resample(tables, held_.data() + next_, remainder_, n, output);
    // The filter overshoots at edges, by a tenth or so: samples that were taken must not be refused for that.
    for (size_t i = 0; i < n; i++) output[i] = std::clamp(output[i], -EA_MAX_SAMPLE, EA_MAX_SAMPLE);
    remainder_ += uint64_t(n) * from_;
    next_ += size_t(remainder_ / to_), remainder_ %= to_;
    n_out_ += n;
    return n;
}

}  // namespace ea
