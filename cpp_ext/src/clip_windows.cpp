#include "clip_windows.hpp"

#include <algorithm>
#include <cmath>

#include "level2.hpp"

namespace ea {

ClipEncoder::ClipEncoder(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      samples_(model_->clip.window + model_->clip.hop),
      row_(model_->dim),
      total_(model_->dim) {
    if (model_->log_mel) {
        log_mels_.resize(model_->n_mels * ea_log_mel_frames(model_->log_mel.get(), model_->clip.window));
        scratch_.resize(ea_log_mel_scratch_floats(model_->log_mel.get()));
    }
}

void ClipEncoder::begin() {
    n_held_ = n_windows_ = 0;
    std::fill(total_.begin(), total_.end(), 0);
}

// The latest window stays in front until the next one is full: it may have to lend its end to the last one.
void ClipEncoder::add(const float *samples, size_t count) {
    const size_t window = model_->clip.window, hop = model_->clip.hop;
    while (count > 0) {
        const size_t full = n_windows_ ? window + hop : window, taken = std::min(count, full - n_held_);
        std::copy_n(samples, taken, samples_.data() + n_held_);
        n_held_ += taken, samples += taken, count -= taken;
        if (n_held_ < full) return;
        if (n_windows_) {
            std::copy_n(samples_.data() + hop, window, samples_.data());
            n_held_ = window;
        }
        encode(samples_.data(), window);
    }
}

void ClipEncoder::finish(float *embedding) {
    const size_t window = model_->clip.window, hop = model_->clip.hop, least = model_->clip.least;
    if (n_windows_ == 0) {
        if (n_held_ < least) std::fill(samples_.data() + n_held_, samples_.data() + least, 0.0f);
        encode(samples_.data(), std::max(n_held_, least));
    } else if (2 * (n_held_ - window) >= hop) {
        encode(samples_.data() + (n_held_ - window), window);
    }
    if (n_windows_ == 1) {
        std::copy(row_.begin(), row_.end(), embedding);
        return;
    }
    double squares = 0;
    for (double value : total_) squares += value * value;
    const auto norm = float(std::sqrt(squares));
    if (!(norm > 1e-6 * double(n_windows_)))
        refuse(EA_BUNDLE_UNREADABLE, "the embeddings of the windows of a clip cancel each other: the bundle is of no use");
    for (size_t i = 0; i < total_.size(); i++) embedding[i] = float(total_[i]) / norm;
}

void ClipEncoder::encode(const float *samples, size_t count) {
    if (model_->log_mel) {
        const ea_log_mel_plan *plan = model_->log_mel.get();
        require(ea_log_mel(plan, samples, count, scratch_.data(), log_mels_.data()), "the samples cannot be analyzed");
        model_->encode(log_mels_.data(), ea_log_mel_frames(plan, count), row_.data());
    } else {
        model_->encode(const_cast<float *>(samples), count, row_.data());
    }
    for (size_t i = 0; i < row_.size(); i++) total_[i] += double(row_[i]);
    n_windows_++;
}

}  // namespace ea
