// Reads PCM WAV files: 8, 16, 24 and 32 bits, float32 and float64, EXTENSIBLE, any channel count.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

class WavFile {
public:
    // std::runtime_error says what is wrong with the file.
    explicit WavFile(const std::string &path);
    uint32_t sample_rate_hz() const { return rate_; }
    uint32_t n_channels() const { return channels_; }
    // Interleaved float32 in [-1, 1]; at most n_frames of them, none at the end. A file that is shorter than its header
    // says ends where it ends.
    std::vector<float> read(size_t n_frames);

private:
    struct Close {
        void operator()(std::FILE *file) const { std::fclose(file); }
    };
    std::unique_ptr<std::FILE, Close> file_;
    uint32_t rate_ = 0, channels_ = 0, bits_ = 0;
    bool is_float_ = false;
    uint64_t left_ = 0;  // bytes
};
