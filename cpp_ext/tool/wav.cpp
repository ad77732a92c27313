#include "wav.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include <sys/stat.h>

namespace {

constexpr uint16_t FORMAT_PCM = 1, FORMAT_FLOAT = 3, FORMAT_EXTENSIBLE = 0xfffe;
constexpr size_t HEAD_BYTES = 12, CHUNK_HEAD_BYTES = 8, LEAST_FORMAT_BYTES = 16, FORMAT_BYTES = 40, SUBFORMAT_AT = 24;
constexpr uint64_t MOST_BEFORE_SAMPLES = 1 << 16;  // in a pipe, where nothing can be passed over unheard
constexpr uint32_t ENDLESS_BYTES = 0x7fff0000;  // what recorders write into a pipe, or more: arecord, sox, ffmpeg

uint32_t little(const uint8_t *bytes, int count) {
    uint32_t value = 0;
    for (int i = count; i-- > 0;) value = value << 8 | bytes[i];
    return value;
}

bool is(const uint8_t *bytes, const char *name) { return std::memcmp(bytes, name, 4) == 0; }

// What a chunk "fmt " of at least 16 bytes says.
WavFormat format_of(const uint8_t *bytes, size_t count) {
    const uint32_t tag = little(bytes, 2);
    const bool extended = tag == FORMAT_EXTENSIBLE && count >= FORMAT_BYTES;
    return {extended ? little(bytes + SUBFORMAT_AT, 2) : tag, little(bytes + 2, 2), little(bytes + 4, 4),
            little(bytes + 14, 2)};
}

}  // namespace

std::optional<WavSamples> find_samples(const uint8_t *bytes, size_t count, WavFormat *format) {
    uint64_t at = HEAD_BYTES;
    while (at + CHUNK_HEAD_BYTES <= count) {
        const uint8_t *chunk = bytes + at;
        const uint32_t size = little(chunk + 4, 4);
        at += CHUNK_HEAD_BYTES;
        if (is(chunk, "data")) {
            if (format->n_channels == 0) throw std::runtime_error("has its samples before their format");
            return WavSamples{size_t(at), size == 0 || size >= ENDLESS_BYTES ? UINT64_MAX : size};
        }
        if (is(chunk, "fmt ")) {
            if (size < LEAST_FORMAT_BYTES) throw std::runtime_error("has a damaged format");
            const size_t wanted = std::min<size_t>(size, FORMAT_BYTES);
            if (at + wanted > count) return std::nullopt;
            *format = format_of(bytes + at, wanted);
        }
        at += uint64_t(size) + size % 2;
        if (at > MOST_BEFORE_SAMPLES) throw std::runtime_error("has no samples in its first 64 KiB");
    }
    return std::nullopt;
}

WavFile::WavFile(const std::string &path) : file_(std::fopen(path.c_str(), "rb")) {
    const auto refuse = [&](const std::string &why) { throw std::runtime_error("'" + path + "' " + why); };
    if (!file_) refuse(std::string("cannot be read: ") + std::strerror(errno));
    struct stat info;
    if (fstat(fileno(file_.get()), &info) != 0 || !S_ISREG(info.st_mode)) refuse("is not a regular file");
    if (info.st_size == 0) refuse("is empty (0 bytes)");
    const auto size = uint64_t(info.st_size);
    uint8_t head[FORMAT_BYTES];
    if (std::fread(head, 1, HEAD_BYTES, file_.get()) != HEAD_BYTES || !(is(head, "RIFF") || is(head, "RF64"))
        || !is(head + 8, "WAVE"))
        refuse("is not a WAV file: edgealign-rt reads no other format, `edgealign classify` does");
    uint64_t at = HEAD_BYTES;
    while (std::fread(head, 1, CHUNK_HEAD_BYTES, file_.get()) == CHUNK_HEAD_BYTES) {
        const uint32_t bytes = little(head + 4, 4);
        at += CHUNK_HEAD_BYTES;
        if (is(head, "data")) {
            if (format_.rate_hz == 0) refuse("has its samples before their format");
            left_ = std::min<uint64_t>(bytes == UINT32_MAX ? size : bytes, size - at);  // the header may lie
            return;
        }
        if (is(head, "fmt ")) {
            const size_t count = std::min<size_t>(bytes, FORMAT_BYTES);
            if (count < LEAST_FORMAT_BYTES || std::fread(head, 1, count, file_.get()) != count)
                refuse("has a damaged format");
            format_ = format_of(head, count);
            const auto &[tag, n_channels, rate_hz, bits] = format_;
            const bool known = tag == FORMAT_FLOAT ? bits == 32 || bits == 64
                                                   : tag == FORMAT_PCM && bits % 8 == 0 && bits >= 8 && bits <= 32;
            if (!known || n_channels == 0 || rate_hz == 0)
                refuse("holds format " + std::to_string(tag) + " with " + std::to_string(bits)
                       + " bits: PCM of 8 to 32 bits or float is read");
        }
        at += bytes + bytes % 2;
        if (at >= size || fseeko(file_.get(), off_t(at), SEEK_SET) != 0) break;
    }
    refuse("is cut short: it has no samples");
}

std::vector<float> WavFile::read(size_t n_frames) {
    const size_t width = format_.bits / 8, frame = width * format_.n_channels;
    const bool is_float = format_.tag == FORMAT_FLOAT;
    std::vector<uint8_t> bytes(size_t(std::min<uint64_t>(n_frames, left_ / frame)) * frame);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file_.get()) / frame * frame);
    left_ = bytes.empty() ? 0 : left_ - bytes.size();
    std::vector<float> samples(bytes.size() / width);
    for (size_t i = 0; i < samples.size(); i++) {
        const uint8_t *from = bytes.data() + i * width;
        if (is_float && width == 8) {
            double value;
            std::memcpy(&value, from, sizeof value);
            samples[i] = float(value);
        } else if (is_float) {
            std::memcpy(&samples[i], from, sizeof(float));
        } else if (width == 1) {
            samples[i] = float(int(from[0]) - 128) / 128.0f;  // 8 bits are the only ones without a sign
        } else {
            const auto shifted = int32_t(little(from, int(width)) << (32 - format_.bits));
            samples[i] = float(shifted) / 2147483648.0f;
        }
    }
    return samples;
}
