#include "word_finder.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "level2.hpp"

namespace ea {
namespace {

constexpr size_t SEARCH_WINDOW_S = 60, SEARCH_OVERLAP_S = 3;

// Whole hops, so that a window of a long recording has the frames that the recording itself would have.
size_t whole_hops(const Model &model, size_t seconds) {
    return seconds * model.sample_rate_hz / model.hop_samples * model.hop_samples;
}

size_t samples_under(const Model &model, size_t n_frames) {
    return (n_frames - 1) * model.hop_samples + model.window_samples;
}

// Frames first to end, widened evenly within a clip of n_all frames to min_frames.
void widen(const Model &model, size_t n_all, size_t &first, size_t &end) {
    if (end - first >= model.min_frames) return;
    const size_t before = (model.min_frames - (end - first)) / 2;
    first = first > before ? first - before : 0;
    first = std::min(first, n_all > model.min_frames ? n_all - model.min_frames : 0);
    end = std::min(n_all, first + model.min_frames);
}

}  // namespace

size_t find_spans(const Model &model, const float *log_mels, size_t n_frames, double *levels, double *spans) {
    size_t count = 0;
    require(ea_sound_spans(log_mels, model.n_mels, n_frames, &model.spans, levels, spans, n_frames / 2 + 1, &count),
            "the word cannot be looked for");
    return count;
}

Word::Word(const Model &model)
    : frames(model.n_mels * std::max(model.min_frames, model.spans.max_frames)),
      samples(model.takes_waveform && model.finds_words()
                  ? samples_under(model, std::max(model.min_frames, model.spans.max_frames))
                  : 0) {}

void Word::take(const Model &model, const float *log_mels, size_t n_all, size_t first, size_t end) {
    widen(model, n_all, first, end);
    const size_t count = end - first;
    n_frames = std::max(model.min_frames, count);
    const size_t before = (n_frames - count) / 2;
    const auto silence = float(std::log(model.energy_floor));
    for (size_t m = 0; m < model.n_mels; m++) {
        float *row = frames.get() + m * n_frames;
        std::fill(row, row + n_frames, silence);
        std::copy_n(log_mels + m * n_all + first, count, row + before);
    }
}

void Word::take_samples(const Model &model, const float *all, size_t n_all, size_t first, size_t end) {
    widen(model, ea_log_mel_frames(model.log_mel.get(), n_all), first, end);
    const size_t count = std::max(model.min_frames, end - first), before = (count - (end - first)) / 2;
    n_samples = samples_under(model, count);
    std::fill(samples.get(), samples.get() + n_samples, 0.0f);
    const size_t begin = first * model.hop_samples;
    const size_t inside = std::min(samples_under(model, end - first), n_all - begin);
    std::copy_n(all + begin, inside, samples.get() + before * model.hop_samples);
}

void Word::encode(const Model &model, float *embedding) const {
    if (model.takes_waveform)
        model.encode(samples.get(), n_samples, embedding);
    else
        model.encode(frames.get(), n_frames, embedding);
}

WordFinder::WordFinder(std::shared_ptr<const Model> model)
    : word(*model),
      model_(std::move(model)),
      window_(whole_hops(*model_, SEARCH_WINDOW_S)),
      stride_(window_ - whole_hops(*model_, SEARCH_OVERLAP_S)),
      max_frames_(ea_log_mel_frames(model_->log_mel.get(), window_)),
      samples_(window_),
      log_mels_(model_->n_mels * max_frames_),
      scratch_(ea_log_mel_scratch_floats(model_->log_mel.get())),
      levels_(2 * max_frames_ + 1),
      spans_(3 * (max_frames_ / 2 + 1)) {}

void WordFinder::begin() {
    n_held_ = n_sounds = 0;
    start_ = 0;
    clearness_ = start_s = end_s = 0;
}

void WordFinder::add(const float *samples, size_t count) {
    while (count > 0) {
        if (n_held_ == window_) {
            search(window_, double(stride_) / double(model_->sample_rate_hz) + SEARCH_OVERLAP_S / 2.0);
            std::copy(samples_.get() + stride_, samples_.get() + window_, samples_.get());
            n_held_ -= stride_;
            start_ += stride_;
        }
        const size_t taken = std::min(count, window_ - n_held_);
        std::copy_n(samples, taken, samples_.get() + n_held_);
        n_held_ += taken, samples += taken, count -= taken;
    }
}

void WordFinder::finish() { search(n_held_, std::numeric_limits<double>::infinity()); }

void WordFinder::search(size_t n_samples, double highest_s) {
    const Model &model = *model_;
    const double rate = double(model.sample_rate_hz), lowest_s = start_ ? SEARCH_OVERLAP_S / 2.0 : 0.0;
    require(ea_log_mel(model.log_mel.get(), samples_.get(), n_samples, scratch_.get(), log_mels_.get()),
            "the samples cannot be analyzed");
    const size_t n_frames = ea_log_mel_frames(model.log_mel.get(), n_samples);
    const size_t count = find_spans(model, log_mels_.get(), n_frames, levels_.get(), spans_.get());
    for (size_t i = 0; i < count; i++) {
        const double first = spans_.get()[3 * i], end = spans_.get()[3 * i + 1], clearness = spans_.get()[3 * i + 2];
        // A sound in the overlap of two windows belongs to the one that holds its middle.
        const double middle_s = model.seconds((first + end) / 2);
        if (!(middle_s >= lowest_s && middle_s < highest_s)) continue;
        n_sounds++;
        if (n_sounds > 1 && !(clearness > clearness_)) continue;
        clearness_ = clearness;
        word.take(model, log_mels_.get(), n_frames, size_t(first), size_t(end));
        if (model.takes_waveform) word.take_samples(model, samples_.get(), n_samples, size_t(first), size_t(end));
        start_s = double(start_) / rate + model.seconds(first);
        end_s = start_s + model.seconds(end - first);
    }
}

}  // namespace ea
