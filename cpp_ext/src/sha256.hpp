#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ea {

using Digest = std::array<uint8_t, 32>;

// SHA-256 (FIPS 180-4) of bytes as they come.
class Sha256 {
public:
    void add(const void *bytes, size_t count);
    Digest finish() const;

private:
    uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint64_t count_ = 0;
    uint8_t rest_[64] = {};  // the bytes that do not fill a block yet
};

// Of all bytes at once.
Digest sha256(const uint8_t *bytes, size_t count);

}  // namespace ea
