// Streaming change of sample rate: a windowed sinc in polyphase form. docs/formats.md states it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ea {

class Resampler {
public:
    static constexpr size_t BLOCK = 1024;  // the most samples of one push

    Resampler(uint32_t from_hz, uint32_t to_hz);
    void reset();

    size_t max_output() const;  // of one push or of one finish
    // Returns how many samples it wrote to output [max_output()]; count <= BLOCK.
    size_t push(const float *samples, size_t count, float *output);
    // What is still inside, a part at a time: until it returns 0. In all there are round(count * to / from) samples.
    size_t finish(float *output);

private:
    uint32_t from_, to_;      // in lowest terms: `to_` samples out for `from_` samples in
    size_t half_, stride_;    // taps on each side; taps of a phase, filled up to whole lanes
    size_t n_phases_;         // to_, or fewer with linear interpolation between them
    std::vector<float> taps_;  // [n_phases + 1, stride]
    std::vector<float> held_;
    size_t n_held_ = 0;
    uint64_t n_in_ = 0, n_out_ = 0;
    size_t next_ = 0;         // where in held_ the taps of the next sample begin
    uint64_t remainder_ = 0;  // of its position, in units of 1 / to_ sample

    size_t produce(const float *samples, size_t count, uint64_t most, float *output);
};

}  // namespace ea
