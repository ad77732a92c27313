// Reads PCM WAV files: 8, 16, 24 and 32 bits, float32 and float64, EXTENSIBLE, any channel count; and their headers in pipes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

struct WavFormat {
    uint32_t tag = 0;  // 1 is PCM, 3 is float
    uint32_t n_channels = 0, rate_hz = 0, bits = 0;
};

// Where the samples of a WAV begin in its bytes, and how many bytes are samples: UINT64_MAX where the writer could not
// know, as it began while the sound was still to come.
struct WavSamples {
    size_t at;
    uint64_t bytes;
};

// The samples of a WAV of which a pipe has given the first bytes, and their format; nothing before enough of it has
// come. std::runtime_error for what no samples follow.
std::optional<WavSamples> find_samples(const uint8_t *bytes, size_t count, WavFormat *format);

class WavFile {
public:
    // std::runtime_error says what is wrong with the file.
    explicit WavFile(const std::string &path);
    uint32_t sample_rate_hz() const { return format_.rate_hz; }
    uint32_t n_channels() const { return format_.n_channels; }
    // Interleaved float32 in [-1, 1]; at most n_frames of them, none at the end. A file that is shorter than its header
    // says ends where it ends.
    std::vector<float> read(size_t n_frames);

private:
    struct Close {
        void operator()(std::FILE *file) const { std::fclose(file); }
    };
    std::unique_ptr<std::FILE, Close> file_;
    WavFormat format_;
    uint64_t left_ = 0;  // bytes
};
