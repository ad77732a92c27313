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

// A lone query waits for memory alone. Rows from beyond the caches are fetched so many ahead, which the processor does
// not do by itself: to it, four rows are four short streams.
constexpr size_t AHEAD = 8, FAR_BYTES = 2 << 20;

// out[i][j] = sum over k of Term(queries[i][k], rows[j][k]) for a tile small enough to stay in registers.
template <class Term, size_t N_QUERIES, size_t N_ROWS, bool FAR = false>
EA_INLINE void tile(const float *queries, const float *rows, size_t dim, float *out, size_t out_stride) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    Lanes sums[N_QUERIES][N_ROWS], of_rows[N_ROWS];
    if constexpr (N_QUERIES > 1)  // so that what is stored does not wait for memory
        for (size_t i = 0; i < N_QUERIES; i++) __builtin_prefetch(out + i * out_stride, 1);
    for (size_t i = 0; i < N_QUERIES; i++)
        for (size_t j = 0; j < N_ROWS; j++) sums[i][j] = Lanes{};
    for (size_t k = 0; k < whole; k += N_LANES) {
        for (size_t j = 0; j < N_ROWS; j++) {
            if constexpr (FAR) __builtin_prefetch(rows + (j + AHEAD) * dim + k);
            of_rows[j] = load(rows + j * dim + k);
        }
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
    const size_t in_fours = n_queries / 4 * 4, in_tiles = n_rows / N_ROWS * N_ROWS;
    for (size_t i = 0; i < in_fours; i += 4)
        for (size_t j = 0; j < in_tiles; j += N_ROWS)
            tile<Term, 4, N_ROWS>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j, out_stride);
    const bool far = n_rows * dim * sizeof(float) > FAR_BYTES;
    for (size_t i = 0; i < n_queries; i++) {
        const float *query = queries + i * dim;
        float *of_query = out + i * out_stride;
        size_t j = i < in_fours ? in_tiles : 0;
        if (far)
            for (; j + 4 <= n_rows; j += 4) tile<Term, 1, 4, true>(query, rows + j * dim, dim, of_query + j, 0);
        for (; j + 4 <= n_rows; j += 4) tile<Term, 1, 4>(query, rows + j * dim, dim, of_query + j, 0);
        for (; j < n_rows; j++) tile<Term, 1, 1>(query, rows + j * dim, dim, of_query + j, 0);
    }
}

static void dots(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                 size_t out_stride) {
    matrix<Product>(queries, n_queries, rows, n_rows, dim, out, out_stride);
}

static void squares(const float *rows, size_t n_rows, size_t dim, float *out) {
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4) tile<Square, 1, 4>(rows, rows + j * dim, dim, out + j, 0);
    for (; j < n_rows; j++) tile<Square, 1, 1>(rows, rows + j * dim, dim, out + j, 0);
}

// dots() of one query and squares() in one pass over the rows.
static void dots_and_squares(const float *query, const float *rows, size_t n_rows, size_t dim, float *dots_out,
                             float *squares_out) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4, rows += 4 * dim) {
        Lanes products[4] = {}, own[4] = {};
        const auto add = [&](size_t r, const Lanes &of_query, const Lanes &of_row) __attribute__((always_inline)) {
            Product::add(products[r], of_query, of_row);
            Square::add(own[r], of_query, of_row);
        };
        for (size_t k = 0; k < whole; k += N_LANES) {
            const Lanes of_query = load(query + k);
            for (size_t r = 0; r < 4; r++) {
                __builtin_prefetch(rows + (r + AHEAD) * dim + k);
                add(r, of_query, load(rows + r * dim + k));
            }
        }
        if (rest)
            for (size_t r = 0; r < 4; r++)
                add(r, load_some(query + whole, rest), load_some(rows + r * dim + whole, rest));
        store_sums(dots_out + j, products);
        store_sums(squares_out + j, own);
    }
    dots(query, 1, rows, n_rows - j, dim, dots_out + j, n_rows - j);
    squares(rows, n_rows - j, dim, squares_out + j);
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
