// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace ea {

struct Character {
    uint32_t code;
    size_t length;  // in bytes; 0 where the bytes are no character
};

// The character that begins at byte `at` < text.size().
inline Character character_at(std::string_view text, size_t at) {
    const auto byte = [&](size_t k) { return at + k < text.size() ? uint8_t(text[at + k]) : uint8_t(0); };
    const uint8_t first = byte(0);
    if (first < 0x80) return {first, 1};
    const size_t length = (first & 0xe0) == 0xc0 ? 2 : (first & 0xf0) == 0xe0 ? 3 : (first & 0xf8) == 0xf0 ? 4 : 0;
    uint32_t code = first & (0x7f >> length);
    for (size_t k = 1; k < length; k++) {
        if ((byte(k) & 0xc0) != 0x80) return {0, 0};
        code = code << 6 | (byte(k) & 0x3f);
    }
    const bool overlong = code < 0x80 || (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (length == 0 || overlong || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) return {0, 0};
    return {code, length};
}

}  // namespace ea
