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
#define EA_BODY __attribute__((always_inline))  // of a lambda
#define EA_UNROLL _Pragma("GCC unroll 16")

namespace ea::EA_SET {

// Native vectors, and what has all its sums in registers: how many queries and vectors of packed prototypes, how many
// queries and rows as they lie.
#if defined(__AVX512F__)
constexpr size_t WIDTH = 16, TILE = 8, TILE_VECTORS = 3, ROW_TILE = 4, ROW_TILE_ROWS = 4;
#elif defined(__AVX2__)
constexpr size_t WIDTH = 8, TILE = 6, TILE_VECTORS = 2, ROW_TILE = 3, ROW_TILE_ROWS = 2;
#elif defined(__aarch64__)
constexpr size_t WIDTH = 4, TILE = 6, TILE_VECTORS = 4, ROW_TILE = 3, ROW_TILE_ROWS = 2;
#else
constexpr size_t WIDTH = 4, TILE = 4, TILE_VECTORS = 2, ROW_TILE = 3, ROW_TILE_ROWS = 1;
#endif
using Vector = float __attribute__((vector_size(4 * WIDTH)));
using IntVector = int32_t __attribute__((vector_size(4 * WIDTH)));

// Sixteen float32 lanes, whatever the native width: where the order of additions must be the same for every set. They are
// native vectors, for compilers keep wider ones in memory.
constexpr size_t N_LANES = 16, N_PARTS = N_LANES / WIDTH;
struct Lanes {
    Vector part[N_PARTS];
};

template <class V = Lanes>
EA_INLINE V load(const float *from) {
    V lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

// The first `count` lanes; the others are `rest`.
EA_INLINE Lanes load_some(const float *from, size_t count, float rest = 0) {
    Lanes lanes;
#if defined(__AVX512F__)
    lanes.part[0] = (Vector)_mm512_mask_loadu_ps((__m512)(Vector{} + rest), __mmask16((1u << count) - 1), from);
#elif defined(__AVX2__)
    EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) {
        const IntVector there = IntVector{0, 1, 2, 3, 4, 5, 6, 7} + int(p * WIDTH) < int(count);
        const Vector loaded = (Vector)_mm256_maskload_ps(from + p * WIDTH, (__m256i)there);
        lanes.part[p] = there ? loaded : Vector{} + rest;
    }
#else
    EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) lanes.part[p] = Vector{} + rest;
    std::memcpy(&lanes, from, count * sizeof(float));
#endif
    return lanes;
}

template <class V>
EA_INLINE void store(float *to, const V &lanes) {
    std::memcpy(to, &lanes, sizeof lanes);
}

template <class V>
EA_INLINE V larger(const V &a, const V &b) {
    return a > b ? a : b;
}
#if defined(__SSE__)  // one instruction is the same, NaN included; compilers do not see it
template <>
EA_INLINE Vector larger(const Vector &a, const Vector &b) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return (Vector)_mm_max_ps((__m128)a, (__m128)b);
#endif
}
#endif

EA_INLINE Vector root(const Vector &x) {
#if defined(__AVX512F__)
    return (Vector)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (Vector)_mm256_sqrt_ps((__m256)x);
#else
    Vector roots;
    EA_UNROLL for (size_t i = 0; i < WIDTH; i++) roots[i] = __builtin_sqrtf(x[i]);
    return roots;
#endif
}

// Whether any lane of a comparison is true.
template <class I>
EA_INLINE bool any(const I &comparison) {
    int64_t words[sizeof(I) / 8], all = 0;
    std::memcpy(words, &comparison, sizeof words);
    for (int64_t word : words) all |= word;
    return all != 0;
}

using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));
using IntFour = int32_t __attribute__((vector_size(16)));
using IntEight = int32_t __attribute__((vector_size(32)));

constexpr auto ADD = [](const auto &a, const auto &b) EA_BODY { return a + b; };

// What `both` makes of the lower half of the lanes and the upper one.
template <class Half, class V, class Both>
EA_INLINE Half folded(const V &lanes, Both both) {
    Half halves[2];
    std::memcpy(halves, &lanes, sizeof halves);
    return both(halves[0], halves[1]);
}

// Pairwise, so that the order of additions is the same for every instruction set.
EA_INLINE Four fold(const Vector &lanes) {
    if constexpr (WIDTH == 16) return folded<Four>(folded<Eight>(lanes, ADD), ADD);
    if constexpr (WIDTH == 8) return folded<Four>(lanes, ADD);
    Four four;
    std::memcpy(&four, &lanes, sizeof four);
    return four;
}
EA_INLINE Four fold(const Lanes &lanes) {
    const Vector *part = lanes.part;
    if constexpr (N_PARTS == 1) return fold(part[0]);
    if constexpr (N_PARTS == 2) return fold(part[0] + part[1]);
    return fold((part[0] + part[2 % N_PARTS]) + (part[1 % N_PARTS] + part[3 % N_PARTS]));
}

template <class L>
EA_INLINE float sum(const L &lanes) {
    const Four four = fold(lanes);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// Four values out of two vectors of four, counted through both.
#if defined(__clang__)
#define EA_JOIN(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
using Places = int32_t __attribute__((vector_size(16)));
#define EA_JOIN(x, y, i, j, k, l) __builtin_shuffle(x, y, Places{i, j, k, l})
#endif

// The sums of four at once, each in the order of sum().
template <class L>
EA_INLINE Four sums(const L *four) {
    const Four a = fold(four[0]), b = fold(four[1]), c = fold(four[2]), d = fold(four[3]);
    const Four low = EA_JOIN(a, b, 0, 4, 1, 5) + EA_JOIN(a, b, 2, 6, 3, 7);
    const Four high = EA_JOIN(c, d, 0, 4, 1, 5) + EA_JOIN(c, d, 2, 6, 3, 7);
    return EA_JOIN(low, high, 0, 1, 4, 5) + EA_JOIN(low, high, 2, 3, 6, 7);
}

// What `both` makes of all lanes, whose order must not matter to it.
template <class Both>
EA_INLINE int32_t of_all(const IntVector &lanes, Both both) {
    IntFour four;
    if constexpr (WIDTH == 16)
        four = folded<IntFour>(folded<IntEight>(lanes, both), both);
    else if constexpr (WIDTH == 8)
        four = folded<IntFour>(lanes, both);
    else
        std::memcpy(&four, &lanes, sizeof four);
    return both(both(four[0], four[1]), both(four[2], four[3]));
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
