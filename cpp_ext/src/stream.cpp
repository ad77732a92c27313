// Words in sound without an end. The rule is stated in edgealign/listen.py, which computes the same.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "recognizer.hpp"

using namespace ea;

namespace {

constexpr size_t STEP_FRAMES = 5;     // how often it is looked for words that ended
constexpr size_t LATEST_FRAMES = 50;  // a word that is found later than this is no news any more
constexpr size_t LONGEST_WAIT_FRAMES = 20;
constexpr double DEFAULT_RING_S = 2, MAX_RING_S = 60;

// After the padded end of a sound.
size_t frames_to_wait(const ea_span_options &spans) {
    const size_t off = std::min(spans.merge_frames, LONGEST_WAIT_FRAMES);
    return off > spans.pad_frames ? off - spans.pad_frames : 1;
}

// One thread writes, one reads, neither waits.
class Ring {
public:
    explicit Ring(size_t capacity) : samples_(capacity) {}

    template <class Sample>
    bool push(const Sample *frames, size_t count, size_t n_channels) {
        const uint64_t end = end_.load(std::memory_order_relaxed);
        if (count > samples_.size() - size_t(end - start_.load(std::memory_order_acquire))) return false;
        const size_t at = size_t(end % samples_.size()), before_wrap = std::min(count, samples_.size() - at);
        mix(frames, before_wrap, n_channels, samples_.data() + at);
        mix(frames + before_wrap * n_channels, count - before_wrap, n_channels, samples_.data());
        end_.store(end + count, std::memory_order_release);
        return true;
    }

    // Up to `most` samples that lie beside each other; they stay valid until `drop`.
    const float *peek(size_t most, size_t *count) const {
        const uint64_t start = start_.load(std::memory_order_relaxed);
        const size_t at = size_t(start % samples_.size());
        *count = std::min({most, samples_.size() - at, size_t(end_.load(std::memory_order_acquire) - start)});
        return samples_.data() + at;
    }
    void drop(size_t count) {
        start_.store(start_.load(std::memory_order_relaxed) + count, std::memory_order_release);
    }
    uint64_t n_read() const { return start_.load(std::memory_order_relaxed); }

private:
    std::vector<float> samples_;
    std::atomic<uint64_t> start_{0}, end_{0};
};

}  // namespace

struct ea_stream {
    ea_stream(ea_recognizer *recognizer, const ea_stream_options &options);
    bool poll(size_t top_k, ea_answer *answer);

    Ring ring;
    const uint32_t sample_rate_hz, n_channels;
    std::atomic<uint64_t> n_dropped{0};
    std::atomic<bool> ended{false};

private:
    // From here on of the polling thread only.
    ea_recognizer *recognizer_;
    std::shared_ptr<const Model> model_;
    Resampler resampler_;
    size_t step_samples_, context_frames_, wait_frames_;
    std::vector<float> resampled_, samples_, log_mels_, step_, scratch_;
    std::vector<double> levels_, spans_;
    size_t n_samples_ = 0, n_frames_ = 0;
    uint64_t total_frames_ = 0, answered_until_ = 0;  // in frames of the stream
    bool flushed_ = false;
    Word word_;
    double start_s_ = 0, end_s_ = 0, debounce_s_;
    size_t last_label_ = SIZE_MAX;
    double last_end_s_ = 0;

    void append_frames(size_t n_samples);
    bool find_word(size_t wait_frames);
    bool name(size_t top_k, ea_answer *answer);
};

ea_stream::ea_stream(ea_recognizer *recognizer, const ea_stream_options &options)
    : ring(size_t(std::ceil((options.ring_s > 0 ? options.ring_s : DEFAULT_RING_S) * options.sample_rate_hz))),
      sample_rate_hz(options.sample_rate_hz),
      n_channels(options.n_channels),
      recognizer_(recognizer),
      model_(recognizer->model),
      resampler_(options.sample_rate_hz, model_->sample_rate_hz),
      step_samples_(model_->window_samples + (STEP_FRAMES - 1) * model_->hop_samples),
      context_frames_((2 * model_->spans.max_frames + STEP_FRAMES - 1) / STEP_FRAMES * STEP_FRAMES),
      wait_frames_(frames_to_wait(model_->spans)),
      resampled_(resampler_.max_output()),
      samples_(step_samples_ + resampler_.max_output()),
      log_mels_(model_->n_mels * context_frames_),
      step_(model_->n_mels * STEP_FRAMES),
      scratch_(ea_log_mel_scratch_floats(model_->log_mel.get())),
      levels_(2 * context_frames_ + 1),
      spans_(3 * (context_frames_ / 2 + 1)),
      word_(*model_),
      debounce_s_(options.debounce_s) {}

// The next `n_samples` become frames: one for each hop that the window fits.
void ea_stream::append_frames(size_t n_samples) {
    const Model &model = *model_;
    const size_t count = ea_log_mel_frames(model.log_mel.get(), n_samples);
    require(ea_log_mel(model.log_mel.get(), samples_.data(), n_samples, scratch_.data(), step_.data()),
            "the samples cannot be analyzed");
    const size_t kept = std::min(n_frames_, context_frames_ - count), n_new = kept + count;
    // Rows are laid out anew: backwards where they grow, so that none is written over before it has moved.
    const auto move_row = [&](size_t m) {
        const float *from = log_mels_.data() + m * n_frames_ + (n_frames_ - kept);
        float *to = log_mels_.data() + m * n_new;
        std::memmove(to, from, kept * sizeof(float));
        std::copy_n(step_.data() + m * count, count, to + kept);
    };
    if (n_new > n_frames_) {
        for (size_t m = model.n_mels; m-- > 0;) move_row(m);
    } else {
        for (size_t m = 0; m < model.n_mels; m++) move_row(m);
    }
    n_frames_ = n_new;
    total_frames_ += count;
    const size_t used = count * model.hop_samples;
    std::copy(samples_.begin() + long(used), samples_.begin() + long(n_samples_), samples_.begin());
    n_samples_ -= used;
}

bool ea_stream::find_word(size_t wait_frames) {
    const Model &model = *model_;
    const size_t count = find_spans(model, log_mels_.data(), n_frames_, levels_.data(), spans_.data());
    const uint64_t context_start = total_frames_ - n_frames_;
    for (size_t i = 0; i < count; i++) {
        const auto first = size_t(spans_[3 * i]), end = size_t(spans_[3 * i + 1]);
        const size_t age = n_frames_ - end;
        if (age < wait_frames || age > LATEST_FRAMES) continue;
        if (2 * context_start + first + end <= 2 * answered_until_) continue;
        answered_until_ = context_start + end;
        word_.take(model, log_mels_.data(), n_frames_, first, end);
        start_s_ = model.seconds(double(context_start + first));
        end_s_ = model.seconds(double(context_start + end));
        return true;
    }
    return false;
}

bool ea_stream::name(size_t top_k, ea_answer *answer) {
    ea_answer made = {};
    made.struct_size = answer->struct_size;
    made.has_sound = 1;
    if (recognizer_->matcher) recognizer_->name_word(word_, top_k, &made);
    made.n_sounds = 1;
    made.start_s = start_s_, made.end_s = end_s_;
    made.heard_s = double(ring.n_read()) / double(sample_rate_hz);
    const size_t label = made.label ? size_t(made.top[0].label) : SIZE_MAX;
    const bool again = label != SIZE_MAX && label == last_label_ && start_s_ - last_end_s_ < debounce_s_;
    last_label_ = label, last_end_s_ = end_s_;
    if (!again) *answer = made;
    return !again;
}

bool ea_stream::poll(size_t top_k, ea_answer *answer) {
    while (true) {
        while (n_samples_ >= step_samples_) {
            append_frames(step_samples_);
            if (find_word(wait_frames_) && name(top_k, answer)) return true;
        }
        // Read before the ring is looked at, so that nothing pushed before the end is missed.
        const bool last = ended.load(std::memory_order_acquire);
        size_t count, made;
        const float *from = ring.peek(Resampler::BLOCK, &count);
        if (count > 0) {
            made = resampler_.push(from, count, resampled_.data());
            ring.drop(count);
        } else if (!last || flushed_) {
            return false;
        } else if (made = resampler_.finish(resampled_.data()); made == 0) {
            flushed_ = true;
            if (n_samples_ >= model_->window_samples) append_frames(n_samples_);
            return n_frames_ > 0 && find_word(0) && name(top_k, answer);
        }
        std::copy_n(resampled_.data(), made, samples_.data() + n_samples_);
        n_samples_ += made;
    }
}

ea_status ea_stream_open(ea_recognizer *recognizer, const ea_stream_options *options, ea_stream **stream,
                         char *message) {
    return at_boundary(message, [&] {
        require_pointers(recognizer && stream);
        require_struct(options, "ea_stream_options");
        check_format(options->sample_rate_hz, options->n_channels);
        if (!(options->ring_s >= 0 && options->ring_s <= MAX_RING_S))
            refuse(EA_INVALID_ARGUMENT, "ring_s is %g: 0 to %g", options->ring_s, MAX_RING_S);
        if (!(options->debounce_s >= 0) || !std::isfinite(options->debounce_s))
            refuse(EA_INVALID_ARGUMENT, "debounce_s is %g: at least 0 is expected", options->debounce_s);
        *stream = new ea_stream(recognizer, *options);
    });
}

void ea_stream_free(ea_stream *stream) { delete stream; }

namespace {

template <class Sample>
ea_status push(ea_stream *stream, const Sample *samples, size_t n_frames) {
    if (!stream || (!samples && n_frames)) return EA_INVALID_ARGUMENT;
    if (stream->ended.load(std::memory_order_relaxed)) return EA_WRONG_STATE;
    const ea_status status = check_samples(samples, n_frames * stream->n_channels);
    if (status != EA_OK) return status;
    if (stream->ring.push(samples, n_frames, stream->n_channels)) return EA_OK;
    stream->n_dropped.fetch_add(n_frames, std::memory_order_relaxed);
    return EA_LIMIT;
}

}  // namespace

ea_status ea_stream_push(ea_stream *stream, const float *samples, size_t n_frames) {
    return push(stream, samples, n_frames);
}

ea_status ea_stream_push_i16(ea_stream *stream, const int16_t *samples, size_t n_frames) {
    return push(stream, samples, n_frames);
}

uint64_t ea_stream_n_dropped(const ea_stream *stream) { return stream->n_dropped.load(std::memory_order_relaxed); }

ea_status ea_stream_end(ea_stream *stream) {
    if (!stream) return EA_INVALID_ARGUMENT;
    stream->ended.store(true, std::memory_order_release);
    return EA_OK;
}

ea_status ea_stream_poll(ea_stream *stream, size_t top_k, ea_answer *answer, int32_t *heard, char *message) {
    return at_boundary(message, [&] {
        require_pointers(stream && heard);
        require_struct(answer, "the answer");
        if (top_k < 1 || top_k > EA_MAX_TOP) refuse(EA_INVALID_ARGUMENT, "top_k is %zu: 1 to %d", top_k, EA_MAX_TOP);
        *heard = stream->poll(top_k, answer) ? 1 : 0;
    });
}
