// Sixteen float32 lanes: the one vector shape that the kernels are written in. The compiler maps it to the widest
// registers of each instruction set in EA_CLONES, and the loader picks the clone that fits the processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if EA_HAVE_CLONES
#define EA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EA_CLONES
#endif
#define EA_INLINE inline __attribute__((always_inline))

namespace ea {

constexpr size_t N_LANES = 16;
using Lanes = float __attribute__((vector_size(4 * N_LANES)));
using IntLanes = int32_t __attribute__((vector_size(4 * N_LANES)));

EA_INLINE Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

// The first `count` lanes; the others are zero.
EA_INLINE Lanes load_some(const float *from, size_t count) {
    Lanes lanes = {};
    std::memcpy(&lanes, from, count * sizeof(float));
    return lanes;
}

EA_INLINE void store(float *to, const Lanes &lanes) { std::memcpy(to, &lanes, sizeof lanes); }

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

// Natural logarithm of positive normal values: Cephes' logf (S. Moshier), its error is below 2 units in the last place.
EA_INLINE Lanes log(const Lanes &x) {
    const IntLanes bits = (IntLanes)x;
    const IntLanes exponent = (bits - 0x3f3504f3) >> 23;  // so that the fraction is in [sqrt(1/2), sqrt(2))
    const Lanes f = (Lanes)(bits - (exponent << 23)) - 1.0f;
    const Lanes e = __builtin_convertvector(exponent, Lanes);
    const Lanes squared = f * f;
    Lanes y = f * 7.0376836292e-2f - 1.1514610310e-1f;
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

}  // namespace ea
