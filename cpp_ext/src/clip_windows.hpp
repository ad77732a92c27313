// All of a clip in windows: ClipWindows of edgealign/inputs.py, in bounded memory.
#pragma once

#include <memory>
#include <vector>

#include "bundle.hpp"

namespace ea {

// Encodes a clip window by window and averages.
class ClipEncoder {
public:
    explicit ClipEncoder(std::shared_ptr<const Model> model);

    void begin();
    void add(const float *samples, size_t count);
    void finish(float *embedding);  // [dim]

private:
    std::shared_ptr<const Model> model_;
    std::vector<float> samples_, log_mels_, scratch_, row_;
    std::vector<double> total_;
    size_t n_held_ = 0, n_windows_ = 0;

    void encode(const float *samples, size_t count);
};

}  // namespace ea
