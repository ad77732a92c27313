#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ea {

using Digest = std::array<uint8_t, 32>;

// SHA-256 (FIPS 180-4) of all bytes at once.
Digest sha256(const uint8_t *bytes, size_t count);

}  // namespace ea
