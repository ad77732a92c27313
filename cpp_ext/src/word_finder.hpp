// The clearest sound of a clip of any length: edgealign/words.py, in bounded memory.
#pragma once

#include <memory>

#include "bundle.hpp"

namespace ea {

// Memory that is not touched before it is used: room for a minute costs nothing for a clip of a second.
template <class T>
class Room {
public:
    explicit Room(size_t count) : data_(new T[count]) {}
    T *get() const { return data_.get(); }

private:
    std::unique_ptr<T[]> data_;
};

// What the encoder sees.
struct Word {
    explicit Word(const Model &model);
    // Frames first to end of log_mels [n_mels, n_frames], widened evenly within them to min_frames; what they lack is
    // silence.
    void take(const Model &model, const float *log_mels, size_t n_frames, size_t first, size_t end);

    // The samples under these frames, with zeros where they are silence; for encoders of waveforms.
    void take_samples(const Model &model, const float *samples, size_t n_all, size_t first, size_t end);
    void encode(const Model &model, float *embedding) const;

    Room<float> frames;  // [n_mels, n_frames]
    size_t n_frames = 0;
    Room<float> samples;  // [n_samples]
    size_t n_samples = 0;
};

class WordFinder {
public:
    explicit WordFinder(std::shared_ptr<const Model> model);

    void begin();
    void add(const float *samples, size_t count);
    void finish();  // the results below are then complete

    Word word;
    size_t n_sounds = 0;
    double start_s = 0, end_s = 0;

private:
    std::shared_ptr<const Model> model_;
    size_t window_, stride_, max_frames_;  // samples, samples, frames of a window
    Room<float> samples_, log_mels_, scratch_;
    Room<double> levels_, spans_;
    size_t n_held_ = 0;
    uint64_t start_ = 0;  // of the window, in samples
    double clearness_ = 0;

    void search(size_t n_samples, double highest_s);
};

// The spans of log_mels [n_mels, n_frames] by the model's window policy; how many there are.
size_t find_spans(const Model &model, const float *log_mels, size_t n_frames, double *levels, double *spans);

}  // namespace ea
