// Rows as they lie in memory, one after the other: a lane holds every sixteenth element of a row.
#pragma once

#include "lanes.hpp"

namespace ea::EA_SET {

struct Product {
    static EA_INLINE void add(Lanes &total, const Lanes &a, const Lanes &b) { total += a * b; }
};
struct Square {  // of the row alone
    static EA_INLINE void add(Lanes &total, const Lanes &, const Lanes &b) { total += b * b; }
};
struct SquaredDifference {
    static EA_INLINE void add(Lanes &total, const Lanes &a, const Lanes &b) {
        const Lanes difference = a - b;
        total += difference * difference;
    }
};

// out[i][j] = sum over k of Term(queries[i][k], rows[j][k]) for a tile small enough to stay in registers.
template <class Term, size_t N_QUERIES, size_t N_ROWS>
EA_INLINE void tile(const float *queries, const float *rows, size_t dim, float *out, size_t out_stride) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    Lanes sums[N_QUERIES][N_ROWS], of_rows[N_ROWS];
    for (size_t i = 0; i < N_QUERIES; i++)
        for (size_t j = 0; j < N_ROWS; j++) sums[i][j] = Lanes{};
    for (size_t k = 0; k < whole; k += N_LANES) {
        for (size_t j = 0; j < N_ROWS; j++) of_rows[j] = load(rows + j * dim + k);
        for (size_t i = 0; i < N_QUERIES; i++) {
            const Lanes query = load(queries + i * dim + k);
            for (size_t j = 0; j < N_ROWS; j++) Term::add(sums[i][j], query, of_rows[j]);
        }
    }
    if (rest) {
        for (size_t j = 0; j < N_ROWS; j++) of_rows[j] = load_some(rows + j * dim + whole, rest);
        for (size_t i = 0; i < N_QUERIES; i++) {
            const Lanes query = load_some(queries + i * dim + whole, rest);
            for (size_t j = 0; j < N_ROWS; j++) Term::add(sums[i][j], query, of_rows[j]);
        }
    }
    for (size_t i = 0; i < N_QUERIES; i++)
        if constexpr (N_ROWS == 4) {
            store_sums(out + i * out_stride, sums[i]);
        } else {
            for (size_t j = 0; j < N_ROWS; j++) out[i * out_stride + j] = sum(sums[i][j]);
        }
}

// The same for whole matrices. A pair is summed in the same order whatever tile it falls into, so its distance does not
// depend on its neighbors.
template <class Term>
EA_INLINE void matrix(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                      size_t out_stride) {
    constexpr size_t N_ROWS = WIDTH == N_LANES ? 4 : 2;  // whose sums fit the registers
    size_t i = 0;
    for (; i + 4 <= n_queries; i += 4) {
        size_t j = 0;
        for (; j + N_ROWS <= n_rows; j += N_ROWS)
            tile<Term, 4, N_ROWS>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j, out_stride);
        for (; j < n_rows; j++)
            tile<Term, 4, 1>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j, out_stride);
    }
    for (; i < n_queries; i++) {
        size_t j = 0;
        for (; j + 4 <= n_rows; j += 4)
            tile<Term, 1, 4>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j, out_stride);
        for (; j < n_rows; j++)
            tile<Term, 1, 1>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j, out_stride);
    }
}

static void dots(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                 size_t out_stride) {
    matrix<Product>(queries, n_queries, rows, n_rows, dim, out, out_stride);
}

static void squares(const float *rows, size_t n_rows, size_t dim, float *out) {
    matrix<Square>(rows, 1, rows, n_rows, dim, out, n_rows);
}

static void sq_differences(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim,
                           float *out, size_t out_stride) {
    matrix<SquaredDifference>(queries, n_queries, rows, n_rows, dim, out, out_stride);
}

static bool all_within(const float *values, size_t count, float bound) {
    int bad = 0;
    for (size_t i = 0; i < count; i++) bad |= !(__builtin_fabsf(values[i]) <= bound);
    return !bad;
}

static bool any_below(const float *values, size_t count, float bound) {
    int below = 0;
    for (size_t i = 0; i < count; i++) below |= values[i] < bound;
    return below;
}

static bool cosine_from_dots(float *dots, float query_norm, const float *norms, size_t n_rows) {
    bool ordinary = query_norm > 0;
    for (size_t j = 0; j < n_rows; j++) ordinary &= norms[j] > 0;
    if (!ordinary) return false;
    for (size_t j = 0; j < n_rows; j++) {
        const float distance = 1.0f - dots[j] / (query_norm * norms[j]), bounded = distance < 0 ? 0 : distance;
        dots[j] = bounded > 2 ? 2 : bounded;
    }
    return true;
}

static void add_scaled(float *total, const float *row, float scale, size_t dim) {
    for (size_t i = 0; i < dim; i++) total[i] += scale * row[i];
}

// Sums in float64: a row may have a million values.
static void log_softmax(float *values, size_t count, float factor) {
    float smallest = values[0];
    for (size_t i = 1; i < count; i++) smallest = values[i] < smallest ? values[i] : smallest;
    if (smallest == __builtin_inff()) {
        for (size_t i = 0; i < count; i++) values[i] = -float(__builtin_log(double(count)));
        return;
    }
    double total = 0;
    for (size_t i = 0; i < count; i += N_LANES) {
        const size_t n = count - i < N_LANES ? count - i : N_LANES;
        Lanes lanes = Lanes{} + __builtin_inff();
        std::memcpy(&lanes, values + i, n * sizeof(float));
        total += sum(exp((smallest - lanes) * factor));
    }
    const float shift = smallest * factor - float(__builtin_log(total));
    for (size_t i = 0; i < count; i++) values[i] = shift - values[i] * factor;
}

}  // namespace ea::EA_SET
