// What the other kernels need of distances.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ea {

// Whether `n_rows` rows of `dim` numbers can lie at that address. An output may have rows of no length.
template <class T>
bool is_matrix(const T *values, size_t n_rows, size_t dim, bool may_be_empty = false) {
    if (dim == 0) return may_be_empty;
    size_t count;  // no division: it would take longer than a small matrix
    return !__builtin_mul_overflow(n_rows, dim, &count) && count <= PTRDIFF_MAX / sizeof(T) && (values || n_rows == 0);
}

// A sum of squares outside these bounds is not trusted to float32: the row is then marked NORM_EXTREME.
constexpr float SAFE_SQUARES_MIN = 1e-20f, SAFE_SQUARES_MAX = 1e30f;
constexpr float NORM_EXTREME = -1.0f;

// Whether -bound <= value <= bound holds for all; a NaN never does.
bool all_within(const float *values, size_t count, float bound);
bool all_finite(const float *values, size_t count);

// Lengths of the rows: 0 for a zero row, NORM_EXTREME for one to be handled in float64. False if one is not finite.
bool row_norms(const float *rows, size_t n_rows, size_t dim, float *norms);
// The length of any finite row, in float64.
double row_norm_exact(const float *row, size_t dim);

// out[i * out_stride + j] = cosine distance of query i to row j, their norms given.
void cosine_distances(const float *queries, const float *query_norms, size_t n_queries, const float *rows,
                      const float *norms, size_t n_rows, size_t dim, float *out, size_t out_stride);

// Positions of the k smallest values, smallest first, of equals the lowest first; k <= count.
void smallest(const float *values, size_t count, size_t k, float *out_values, int *out_positions);

}  // namespace ea
