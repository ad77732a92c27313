#include "sha256.hpp"

#include <algorithm>
#include <cstring>

#include "kernels.hpp"

#if EA_HAVE_CLONES
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace ea {
namespace {

// The first 32 bits of the fractions of the cube roots of the first 64 primes.
constexpr uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline uint32_t rotate(uint32_t x, int by) { return x >> by | x << (32 - by); }

// The schedule is kept as the 16 words that are still needed, and the eight variables change their names from round to
// round instead of moving: both only save instructions.
#if EA_HAVE_CLONES  // the loader picks among them
__attribute__((target_clones("arch=x86-64-v3", "default")))
#endif
void add_blocks(uint32_t *state, const uint8_t *bytes, size_t n_blocks) {
    for (; n_blocks; n_blocks--, bytes += 64) {
        uint32_t w[16];
        for (int i = 0; i < 16; i++)
            w[i] = uint32_t(bytes[4 * i]) << 24 | uint32_t(bytes[4 * i + 1]) << 16 | uint32_t(bytes[4 * i + 2]) << 8
                   | bytes[4 * i + 3];
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
#define EA_ROUND(a, b, c, d, e, f, g, h, i)                                                        \
    do {                                                                                           \
        h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + k[i] + w[i];   \
        d += h;                                                                                    \
        h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));           \
    } while (false)
#define EA_EXTEND(i)                                                                                \
    (w[i] += w[(i + 9) % 16] + (rotate(w[(i + 1) % 16], 7) ^ rotate(w[(i + 1) % 16], 18) ^ w[(i + 1) % 16] >> 3) \
             + (rotate(w[(i + 14) % 16], 17) ^ rotate(w[(i + 14) % 16], 19) ^ w[(i + 14) % 16] >> 10))
#define EA_EIGHT_ROUNDS(i)                  \
    EA_ROUND(a, b, c, d, e, f, g, h, i);     \
    EA_ROUND(h, a, b, c, d, e, f, g, i + 1); \
    EA_ROUND(g, h, a, b, c, d, e, f, i + 2); \
    EA_ROUND(f, g, h, a, b, c, d, e, i + 3); \
    EA_ROUND(e, f, g, h, a, b, c, d, i + 4); \
    EA_ROUND(d, e, f, g, h, a, b, c, i + 5); \
    EA_ROUND(c, d, e, f, g, h, a, b, i + 6); \
    EA_ROUND(b, c, d, e, f, g, h, a, i + 7)
        for (const uint32_t *k = ROUND;; k += 16) {
            EA_EIGHT_ROUNDS(0);
            EA_EIGHT_ROUNDS(8);
            if (k == ROUND + 48) break;
            EA_EXTEND(0), EA_EXTEND(1), EA_EXTEND(2), EA_EXTEND(3), EA_EXTEND(4), EA_EXTEND(5);
            EA_EXTEND(6), EA_EXTEND(7), EA_EXTEND(8), EA_EXTEND(9), EA_EXTEND(10), EA_EXTEND(11);
            EA_EXTEND(12), EA_EXTEND(13), EA_EXTEND(14), EA_EXTEND(15);
        }
#undef EA_EIGHT_ROUNDS
#undef EA_EXTEND
#undef EA_ROUND
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if EA_HAVE_CLONES
// By the instructions that a processor may have for it: four rounds at a time. The two halves of the state are ordered as
// these want it, from the highest lane: a b e f and c d g h.
__attribute__((target("sha,sse4.1"))) void add_blocks_in_hardware(uint32_t *state, const uint8_t *bytes,
                                                                  size_t n_blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    auto *const halves = reinterpret_cast<__m128i *>(state);
    const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(halves), 0xb1);
    const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(halves + 1), 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
    for (; n_blocks; n_blocks--, bytes += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes) + i), big_endian);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i &first = w[i % 4], second = w[(i + 1) % 4], third = w[(i + 2) % 4], last = w[(i + 3) % 4];
            const __m128i added = _mm_add_epi32(first, _mm_loadu_si128(reinterpret_cast<const __m128i *>(ROUND) + i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0e));
            const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(first, second), _mm_alignr_epi8(last, third, 4));
            first = _mm_sha256msg2_epu32(sum, last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(halves, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(halves + 1, _mm_alignr_epi8(dchg, feba, 8));
}

// Never with the instruction set "baseline", so that each of the two bodies can be had.
bool has_hardware() {
    unsigned a, b, c, d;
    if (!std::strcmp(kernels().name, "baseline") || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1)) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA;
}

void hash_blocks(uint32_t *state, const uint8_t *bytes, size_t n_blocks) {
    static const bool in_hardware = has_hardware();
    (in_hardware ? add_blocks_in_hardware : add_blocks)(state, bytes, n_blocks);
}
#else
constexpr auto *hash_blocks = add_blocks;
#endif

}  // namespace

void Sha256::add(const void *bytes, size_t count) {
    const auto *from = static_cast<const uint8_t *>(bytes);
    const size_t held = count_ % 64;
    count_ += count;
    if (held) {
        const size_t taken = std::min(count, 64 - held);
        std::memcpy(rest_ + held, from, taken);
        from += taken, count -= taken;
        if (held + taken < 64) return;
        hash_blocks(state_, rest_, 1);
    }
    hash_blocks(state_, from, count / 64);
    if (count % 64) std::memcpy(rest_, from + count / 64 * 64, count % 64);
}

Digest Sha256::finish() const {
    uint32_t state[8];
    std::memcpy(state, state_, sizeof state);
    uint8_t tail[128] = {};
    const size_t rest = count_ % 64, tail_bytes = rest < 56 ? 64 : 128;
    std::memcpy(tail, rest_, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) tail[tail_bytes - 1 - i] = uint8_t(count_ * 8 >> (8 * i));
    hash_blocks(state, tail, tail_bytes / 64);
    Digest digest;
    for (int i = 0; i < 32; i++) digest[i] = uint8_t(state[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

Digest sha256(const uint8_t *bytes, size_t count) {
    Sha256 hash;
    hash.add(bytes, count);
    return hash.finish();
}

}  // namespace ea
