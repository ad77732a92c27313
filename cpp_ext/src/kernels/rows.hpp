// Rows as they lie in memory, one after the other: a lane holds every sixteenth element of a row.
#pragma once

#include "lanes.hpp"

namespace ea::EA_SET {

struct Product {
    static EA_INLINE void add(Vector &total, const Vector &a, const Vector &b) { total += a * b; }
};
struct Square {  // of the row alone
    static EA_INLINE void add(Vector &total, const Vector &, const Vector &b) { total += b * b; }
};
struct SquaredDifference {
    static EA_INLINE void add(Vector &total, const Vector &a, const Vector &b) {
        const Vector difference = a - b;
        total += difference * difference;
    }
};

// sums [N_QUERIES][N_ROWS] = sum over k of Term(queries[i][k], rows[j][k]), few enough to stay in registers.
template <class Term, size_t N_QUERIES, size_t N_ROWS>
EA_INLINE void add_terms(const float *queries, const float *rows, size_t dim, Lanes *sums) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    EA_UNROLL for (size_t s = 0; s < N_QUERIES * N_ROWS; s++) sums[s] = Lanes{};
    _Pragma("GCC unroll 2") for (size_t k = 0; k < whole; k += N_LANES)
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) {
            const size_t at = k + p * WIDTH;
            Vector of_rows[N_ROWS];
            EA_UNROLL for (size_t j = 0; j < N_ROWS; j++) of_rows[j] = load<Vector>(rows + j * dim + at);
            EA_UNROLL for (size_t i = 0; i < N_QUERIES; i++) {
                const Vector query = load<Vector>(queries + i * dim + at);
                EA_UNROLL for (size_t j = 0; j < N_ROWS; j++)
                    Term::add(sums[i * N_ROWS + j].part[p], query, of_rows[j]);
            }
        }
    if (rest) {
        Lanes of_rows[N_ROWS];
        EA_UNROLL for (size_t j = 0; j < N_ROWS; j++) of_rows[j] = load_some(rows + j * dim + whole, rest);
        EA_UNROLL for (size_t i = 0; i < N_QUERIES; i++) {
            const Lanes query = load_some(queries + i * dim + whole, rest);
            EA_UNROLL for (size_t j = 0; j < N_ROWS; j++)
                EA_UNROLL for (size_t p = 0; p < N_PARTS; p++)
                    Term::add(sums[i * N_ROWS + j].part[p], query.part[p], of_rows[j].part[p]);
        }
    }
}

// out[i][j] = sum over k of Term(queries[i][k], rows[j][k]).
template <class Term, size_t N_QUERIES, size_t N_ROWS>
EA_INLINE void tile(const float *queries, const float *rows, size_t dim, float *out, size_t out_stride) {
    if constexpr (N_QUERIES > 1)  // so that what is stored does not wait for memory
        for (size_t i = 0; i < N_QUERIES; i++) __builtin_prefetch(out + i * out_stride, 1);
    Lanes found[N_QUERIES * N_ROWS];
    add_terms<Term, N_QUERIES, N_ROWS>(queries, rows, dim, found);
    EA_UNROLL for (size_t i = 0; i < N_QUERIES; i++) {
        const Lanes *of_query = found + i * N_ROWS;
        if constexpr (N_ROWS == 4) {
            store(out + i * out_stride, sums(of_query));
        } else {
            EA_UNROLL for (size_t j = 0; j < N_ROWS; j++) out[i * out_stride + j] = sum(of_query[j]);
        }
    }
}

// The same for whole matrices. A pair is summed in the same order whatever tile it falls into, so its distance does not
// depend on its neighbors.
template <class Term>
EA_INLINE void matrix(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                      size_t out_stride) {
    const size_t in_tiles = n_queries / ROW_TILE * ROW_TILE, in_tile_rows = n_rows / ROW_TILE_ROWS * ROW_TILE_ROWS;
    for (size_t i = 0; i < in_tiles; i += ROW_TILE)
        for (size_t j = 0; j < in_tile_rows; j += ROW_TILE_ROWS)
            tile<Term, ROW_TILE, ROW_TILE_ROWS>(queries + i * dim, rows + j * dim, dim, out + i * out_stride + j,
                                                   out_stride);
    for (size_t i = 0; i < n_queries; i++) {
        const float *query = queries + i * dim;
        float *of_query = out + i * out_stride;
        size_t j = i < in_tiles ? in_tile_rows : 0;
        for (; j + 4 <= n_rows; j += 4) tile<Term, 1, 4>(query, rows + j * dim, dim, of_query + j, 0);
        for (; j < n_rows; j++) tile<Term, 1, 1>(query, rows + j * dim, dim, of_query + j, 0);
    }
}

static void dots(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                 size_t out_stride) {
    matrix<Product>(queries, n_queries, rows, n_rows, dim, out, out_stride);
}

static void squares(const float *rows, size_t n_rows, size_t dim, float *out) {
    for (size_t j = 0; j < n_rows; j++) tile<Square, 1, 1>(rows, rows + j * dim, dim, out + j, 0);
}

EA_INLINE void add_product_and_square(const float *query, const float *row, size_t dim, Lanes &products, Lanes &own) {
    const size_t whole = dim / N_LANES * N_LANES, rest = dim - whole;
    products = own = Lanes{};
    for (size_t k = 0; k < whole; k += N_LANES)
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) {
            const Vector of_row = load<Vector>(row + k + p * WIDTH);
            products.part[p] += load<Vector>(query + k + p * WIDTH) * of_row;
            own.part[p] += of_row * of_row;
        }
    if (rest) {
        const Lanes of_query = load_some(query + whole, rest), of_row = load_some(row + whole, rest);
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) {
            products.part[p] += of_query.part[p] * of_row.part[p];
            own.part[p] += of_row.part[p] * of_row.part[p];
        }
    }
}

// dots() of one query and squares() in one pass over the rows, one after the other: four at once are slower where no cache
// holds them.
static void dots_and_squares(const float *query, const float *rows, size_t n_rows, size_t dim, float *dots_out,
                             float *squares_out) {
    Lanes a[4], b[4];
    size_t j = 0;
    for (; j + 4 <= n_rows; j += 4, rows += 4 * dim) {
        EA_UNROLL for (size_t r = 0; r < 4; r++) add_product_and_square(query, rows + r * dim, dim, a[r], b[r]);
        store(dots_out + j, sums(a));
        store(squares_out + j, sums(b));
    }
    for (; j < n_rows; j++, rows += dim) {
        add_product_and_square(query, rows, dim, *a, *b);
        dots_out[j] = sum(*a), squares_out[j] = sum(*b);
    }
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

static void weighted_stats(const float *const *rows, const float *shares, size_t n_rows, size_t dim, float *mean,
                           float *deviation) {
    for (size_t c = 0; c < dim; c += N_LANES) {
        const size_t n = dim - c < N_LANES ? dim - c : N_LANES;
        Lanes means{}, squares{};
        for (size_t r = 0; r < n_rows; r++) {
            const Lanes row = n < N_LANES ? load_some(rows[r] + c, n) : load(rows[r] + c);
            EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) means.part[p] += shares[r] * row.part[p];
        }
        for (size_t r = 0; r < n_rows; r++) {
            const Lanes row = n < N_LANES ? load_some(rows[r] + c, n) : load(rows[r] + c);
            EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) {
                const Vector difference = row.part[p] - means.part[p];
                squares.part[p] += shares[r] * difference * difference;
            }
        }
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) squares.part[p] = root(squares.part[p]);
        std::memcpy(mean + c, &means, n * sizeof(float));
        std::memcpy(deviation + c, &squares, n * sizeof(float));
    }
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
        const size_t n = count - i;
        Lanes lanes = n < N_LANES ? load_some(values + i, n, __builtin_inff()) : load(values + i);
        EA_UNROLL for (size_t p = 0; p < N_PARTS; p++) lanes.part[p] = exp((smallest - lanes.part[p]) * factor);
        total += sum(lanes);
    }
    const float shift = smallest * factor - float(__builtin_log(total));
    for (size_t i = 0; i < count; i++) values[i] = shift - values[i] * factor;
}

}  // namespace ea::EA_SET
