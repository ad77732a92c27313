// One sample out of many between which it lies: the inner loop of src/resampler.cpp.
#pragma once

#include "lanes.hpp"

namespace ea::EA_SET {

// `count` is a multiple of N_LANES.
EA_INLINE float tapped(const float *samples, const float *taps, size_t count) {
    Lanes first = {}, second = {};
    const auto add = [&](Lanes &total, size_t i) EA_BODY {
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++)
            total.part[p] += load<Vector>(samples + i + p * WIDTH) * load<Vector>(taps + i + p * WIDTH);
    };
    size_t i = 0;
    for (; i + 2 * N_LANES <= count; i += 2 * N_LANES) add(first, i), add(second, i + N_LANES);
    if (i < count) add(first, i);
    EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) first.part[p] += second.part[p];
    return sum(first);
}

static void resample(const ResamplerTables &tables, const float *samples, uint64_t remainder, size_t count,
                     float *output) {
    for (size_t i = 0; i < count; i++) {
        const uint64_t scaled = remainder * tables.n_phases;
        const float *row = tables.taps + size_t(scaled / tables.to) * tables.stride;
        const float share = float(double(scaled % tables.to) / double(tables.to));
        float value = tapped(samples, row, tables.stride);
        if (share > 0) value += share * (tapped(samples, row + tables.stride, tables.stride) - value);
        output[i] = value;
        remainder += tables.from;
        samples += size_t(remainder / tables.to), remainder %= tables.to;
    }
}

}  // namespace ea::EA_SET
