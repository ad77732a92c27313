// Words in sound without an end. The rule is stated in edgealign/listen.py, which computes the same.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>

#include "recognizer.hpp"

using namespace ea;

namespace {

constexpr size_t STEP_FRAMES = 5;     // how often, at least, it is looked for words that ended
constexpr size_t LATEST_FRAMES = 50;  // a word that is found later than this is no news any more
constexpr size_t LONGEST_WAIT_FRAMES = 20;
constexpr double DEFAULT_RING_S = 2, MAX_RING_S = 60;

// Counted from the padded end of a sound.
size_t after_padding(size_t off_frames, const ea_span_options &spans) {
    return off_frames > spans.pad_frames ? off_frames - spans.pad_frames : 1;
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
    size_t context_frames_, wait_frames_, hold_frames_, rest_frames_;
    std::vector<float> resampled_, samples_, log_mels_, step_, scratch_;
    std::vector<double> levels_, spans_;
    size_t n_samples_ = 0, n_frames_ = 0;
    // In frames of the stream: all of it, the last sound that was answered, the end of the last that was put off, and when
    // nothing can be joined to that any more.
    uint64_t total_frames_ = 0, answered_until_ = 0, answered_middle_ = 0, put_off_until_ = 0, due_ = 0;
    bool more_ = false, flushed_ = false;  // more_: these frames may hold another answer
    Word word_;
    const double debounce_s_;
    std::string last_label_;  // of the last answer, empty: unknown; its number may change when the recognizer saves
    double last_end_s_ = 0;

    size_t samples_to_next_look() const;
    void append_frames(size_t n_samples);
    bool hear(bool at_end, size_t top_k, ea_answer *answer);
    ea_answer name(double start_s, double end_s, size_t top_k, size_t struct_size);
};

ea_stream::ea_stream(ea_recognizer *recognizer, const ea_stream_options &options)
    : ring(size_t(std::ceil((options.ring_s > 0 ? options.ring_s : DEFAULT_RING_S) * options.sample_rate_hz))),
      sample_rate_hz(options.sample_rate_hz),
      n_channels(options.n_channels),
      recognizer_(recognizer),
      model_(recognizer->model),
      resampler_(options.sample_rate_hz, model_->sample_rate_hz),
      context_frames_((2 * model_->spans.max_frames + STEP_FRAMES - 1) / STEP_FRAMES * STEP_FRAMES),
      wait_frames_(after_padding(std::min(model_->spans.merge_frames, LONGEST_WAIT_FRAMES), model_->spans)),
      hold_frames_(after_padding(model_->spans.merge_frames, model_->spans)),
      rest_frames_(wait_frames_ + model_->spans.min_frames + model_->spans.pad_frames),
      resampled_(resampler_.max_output()),
      samples_(model_->window_samples + (STEP_FRAMES - 1) * model_->hop_samples + resampler_.max_output()),
      log_mels_(model_->n_mels * context_frames_),
      step_(model_->n_mels * STEP_FRAMES),
      scratch_(ea_log_mel_scratch_floats(model_->log_mel.get())),
      levels_(2 * context_frames_ + 1),
      spans_(3 * (context_frames_ / 2 + 1)),
      word_(*model_),
      debounce_s_(options.debounce_s) {
    last_label_.reserve(EA_MAX_LABEL_BYTES);  // nothing is allocated while it listens
}

size_t ea_stream::samples_to_next_look() const {
    const size_t to_step = STEP_FRAMES - size_t(total_frames_ % STEP_FRAMES);
    const bool due_before = due_ > total_frames_ && due_ < total_frames_ + to_step;
    const size_t n_frames = due_before ? size_t(due_ - total_frames_) : to_step;
    return model_->window_samples + (n_frames - 1) * model_->hop_samples;
}

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

bool ea_stream::hear(bool at_end, size_t top_k, ea_answer *answer) {
    const Model &model = *model_;
    const size_t count = find_spans(model, log_mels_.data(), n_frames_, levels_.data(), spans_.data());
    const uint64_t context_start = total_frames_ - n_frames_;
    for (size_t i = 0; i < count; i++) {
        uint64_t first = context_start + uint64_t(spans_[3 * i]);
        const uint64_t end = context_start + uint64_t(spans_[3 * i + 1]), age = total_frames_ - end;
        if ((age < wait_frames_ && !at_end) || age > LATEST_FRAMES) continue;
        // What was answered, and goes on; else a sound that begins where that one ended at the earliest.
        const bool rest = answered_until_ > 0 && first <= answered_middle_;
        if (rest ? end < answered_until_ + rest_frames_ : first + end <= 2 * answered_until_) continue;
        if (rest) first = answered_until_;
        const bool only_if_known = rest || (age < hold_frames_ && !at_end);
        if (only_if_known && end == put_off_until_) continue;
        word_.take(model, log_mels_.data(), n_frames_, size_t(first - context_start), size_t(end - context_start));
        const ea_answer made =
            name(model.seconds(double(first)), model.seconds(double(end)), top_k, answer->struct_size);
        if (only_if_known && !made.label) {
            put_off_until_ = end;
            if (!rest) due_ = end + hold_frames_;
            continue;
        }
        answered_until_ = end, answered_middle_ = (first + end) / 2;
        const bool again = made.label && made.label == last_label_ && made.start_s - last_end_s_ < debounce_s_;
        last_label_ = made.label ? made.label : "", last_end_s_ = made.end_s;
        if (again) continue;
        *answer = made;
        return true;
    }
    return false;
}

// What word_ is taken for.
ea_answer ea_stream::name(double start_s, double end_s, size_t top_k, size_t struct_size) {
    ea_answer made = {};
    made.struct_size = struct_size;
    made.has_sound = 1;
    if (recognizer_->matcher) recognizer_->name_word(word_, top_k, &made);
    made.n_sounds = 1;
    made.start_s = start_s, made.end_s = end_s;
    made.heard_s = double(ring.n_read()) / double(sample_rate_hz);
    return made;
}

bool ea_stream::poll(size_t top_k, ea_answer *answer) {
    while (true) {
        while (more_ || n_samples_ >= samples_to_next_look()) {
            if (!more_) append_frames(samples_to_next_look());
            more_ = hear(false, top_k, answer);
            if (more_) return true;
        }
        // Read before the ring is looked at, so that nothing pushed before the end is missed.
        const bool last = ended.load(std::memory_order_acquire);
        size_t count, made;
        const float *from = ring.peek(Resampler::BLOCK, &count);
        if (count > 0) {
            made = resampler_.push(from, count, resampled_.data());
            ring.drop(count);
        } else if (!last) {
            return false;
        } else if (flushed_ || (made = resampler_.finish(resampled_.data())) == 0) {
            if (!flushed_ && n_samples_ >= model_->window_samples) append_frames(n_samples_);
            flushed_ = true;
            return n_frames_ > 0 && hear(true, top_k, answer);
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
        if (!recognizer->model->finds_words() || recognizer->model->takes_waveform)
            refuse(EA_INVALID_ARGUMENT,
                   "the bundle '%s' names whole clips or takes waveforms: a stream needs one that finds words by their "
                   "log-mel energies",
                   recognizer->model->name.c_str());
        *stream = new ea_stream(recognizer, *options);
    });
}

void ea_stream_free(ea_stream *stream) { delete stream; }

namespace {

template <class Sample>
ea_status push(ea_stream *stream, const Sample *samples, size_t n_frames) {
    if (!stream || (!samples && n_frames) || !fits_memory<Sample>(n_frames, stream->n_channels))
        return EA_INVALID_ARGUMENT;
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

uint64_t ea_stream_n_dropped(const ea_stream *stream) {
    return stream ? stream->n_dropped.load(std::memory_order_relaxed) : 0;
}

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
