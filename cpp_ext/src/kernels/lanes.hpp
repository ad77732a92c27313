// The vectors that the kernels are written in, and what the instruction set that is being compiled for makes of them.
//
// Nothing in this folder may call an inline function of the standard library: the linker keeps one copy of such a
// function, and it could be the copy that needs AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define EA_INLINE inline __attribute__((always_inline))
#define EA_UNROLL _Pragma("GCC unroll 16")

namespace ea::EA_SET {

// Native vectors, and how many queries and vectors of prototypes have all their sums in registers.
#if defined(__AVX512F__)
constexpr size_t WIDTH = 16, TILE = 6, TILE_VECTORS = 4;
#elif defined(__AVX2__)
constexpr size_t WIDTH = 8, TILE = 6, TILE_VECTORS = 2;
#elif defined(__aarch64__)
constexpr size_t WIDTH = 4, TILE = 6, TILE_VECTORS = 4;
#else
constexpr size_t WIDTH = 4, TILE = 4, TILE_VECTORS = 2;
#endif
using Vector = float __attribute__((vector_size(4 * WIDTH)));
using IntVector = int32_t __attribute__((vector_size(4 * WIDTH)));

// Sixteen float32 lanes, whatever the native width: where the order of additions must be the same for every set.
constexpr size_t N_LANES = 16;
using Lanes = float __attribute__((vector_size(4 * N_LANES)));
using IntLanes = int32_t __attribute__((vector_size(4 * N_LANES)));

template <class V = Lanes>
EA_INLINE V load(const float *from) {
    V lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

// The first `count` lanes; the others are zero.
EA_INLINE Lanes load_some(const float *from, size_t count) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
#else
    Lanes lanes = {};
    std::memcpy(&lanes, from, count * sizeof(float));
    return lanes;
#endif
}

template <class V>
EA_INLINE void store(float *to, const V &lanes) {
    std::memcpy(to, &lanes, sizeof lanes);
}

template <class V>
EA_INLINE V smaller(const V &a, const V &b) {
    return a < b ? a : b;
}

template <class V>
EA_INLINE V larger(const V &a, const V &b) {
    return a > b ? a : b;
}

// Whether any lane of a comparison is true.
template <class I>
EA_INLINE bool any(const I &comparison) {
    int64_t words[sizeof(I) / 8], all = 0;
    std::memcpy(words, &comparison, sizeof words);
    for (int64_t word : words) all |= word;
    return all != 0;
}

// Pairwise, so that the order of additions is the same for every instruction set.
EA_INLINE float sum(const Lanes &lanes) {
    using Eight = float __attribute__((vector_size(32)));
    using Four = float __attribute__((vector_size(16)));
    Eight eight[2];
    std::memcpy(eight, &lanes, sizeof eight);
    eight[0] += eight[1];
    Four four[2];
    std::memcpy(four, &eight[0], sizeof four);
    four[0] += four[1];
    return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}

// Four values out of two vectors of four, counted through both.
using Four = float __attribute__((vector_size(16)));
#if defined(__clang__)
#define EA_JOIN(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
using Places = int32_t __attribute__((vector_size(16)));
#define EA_JOIN(x, y, i, j, k, l) __builtin_shuffle(x, y, Places{i, j, k, l})
#endif

// The sums of four at once, each in the order of sum().
EA_INLINE void store_sums(float *to, const Lanes *lanes) {
    using Eight = float __attribute__((vector_size(32)));
    Four folded[4];
    EA_UNROLL for (size_t i = 0; i < 4; i++) {
        Eight eight[2];
        std::memcpy(eight, &lanes[i], sizeof eight);
        eight[0] += eight[1];
        Four four[2];
        std::memcpy(four, &eight[0], sizeof four);
        folded[i] = four[0] + four[1];
    }
    const Four low = EA_JOIN(folded[0], folded[1], 0, 4, 1, 5) + EA_JOIN(folded[0], folded[1], 2, 6, 3, 7);
    const Four high = EA_JOIN(folded[2], folded[3], 0, 4, 1, 5) + EA_JOIN(folded[2], folded[3], 2, 6, 3, 7);
    store(to, EA_JOIN(low, high, 0, 1, 4, 5) + EA_JOIN(low, high, 2, 3, 6, 7));
}

// Natural logarithm of positive normal values: Cephes' logf (S. Moshier), its error is below 2 units in the last place.
template <class V>
EA_INLINE V log(const V &x) {
    using I = decltype(x < x);
    const I bits = (I)x;
    const I exponent = (bits - 0x3f3504f3) >> 23;  // so that the fraction is in [sqrt(1/2), sqrt(2))
    const V f = (V)(bits - (exponent << 23)) - 1.0f;
    const V e = __builtin_convertvector(exponent, V);
    const V squared = f * f;
    V y = f * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * f + 1.1676998740e-1f;
    y = y * f - 1.2420140846e-1f;
    y = y * f + 1.4249322787e-1f;
    y = y * f - 1.6668057665e-1f;
    y = y * f + 2.0000714765e-1f;
    y = y * f - 2.4999993993e-1f;
    y = y * f + 3.3333331174e-1f;
    y = y * f * squared;
    y += e * -2.12194440e-4f;
    y -= 0.5f * squared;
    return f + y + e * 0.693359375f;
}

// e^x for x <= 0, zero below -87: Cephes' expf, its error is below 2 units in the last place.
template <class V>
EA_INLINE V exp(const V &x) {
    using I = decltype(x < x);
    const V inside = larger(x, V{} - 87.0f);
    // 1.5 * 2^23 rounds what is added to it to a whole number.
    const V whole = (inside * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    V r = inside - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    V y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const I power = (__builtin_convertvector(whole, I) + 127) << 23;
    return x < -87.0f ? V{} : y * (V)power;
}

}  // namespace ea::EA_SET
