// The background bank on its way from a bundle into memory: a loop over a quarter of a million numbers, so not in bundle.cpp,
// which is compiled to be small.
#include <cmath>
#include <cstring>

#include "bundle.hpp"

namespace ea {
namespace {

constexpr float NORM_TOLERANCE = 1e-2f;

// Exact: every finite half is a float, and the bits of its exponent and fraction are those of a float that is 2^112 times
// smaller. What is infinite or no number becomes 2^16 or more.
float from_half(const uint8_t *half) {
    const uint32_t bits = uint32_t(half[0] | half[1] << 8), moved = (bits & 0x7fff) << 13 | (bits & 0x8000) << 16;
    float value;
    std::memcpy(&value, &moved, sizeof value);
    return value * 0x1p112f;
}

}  // namespace

bool unit_rows_from_halves(const uint8_t *halves, size_t n_rows, size_t dim, float *rows) {
    for (size_t row = 0; row < n_rows; row++, halves += 2 * dim, rows += dim) {
        // The squares of halves are exact in float64, and so are their sums near 1: in whatever order they are added.
        double even = 0, odd = 0;
        for (size_t i = 0; i < dim; i++) rows[i] = from_half(halves + 2 * i);
        for (size_t i = 0; i + 1 < dim; i += 2) {
            even += double(rows[i]) * rows[i];
            odd += double(rows[i + 1]) * rows[i + 1];
        }
        if (dim % 2) even += double(rows[dim - 1]) * rows[dim - 1];
        const auto norm = float(std::sqrt(even + odd));
        if (!(std::abs(norm - 1) < NORM_TOLERANCE)) return false;
        for (size_t i = 0; i < dim; i++) rows[i] /= norm;
    }
    return true;
}

}  // namespace ea
