// One episode as src/episode.hpp states it: float32 in the vectors of an instruction set, float64 in pairs.
#pragma once

#include "../distances.hpp"
#include "../episode.hpp"
#include "lanes.hpp"

namespace ea::EA_SET {

constexpr double NO_DIRECTION = 1e-6;  // as in prototypes.cpp

// How many queries and prototypes have all their sums in registers, with a query's own square.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr size_t QUERIES_AT_ONCE = 4;
#else
constexpr size_t QUERIES_AT_ONCE = 2;
#endif
constexpr size_t PROTOTYPES_AT_ONCE = 5;
constexpr size_t MOST_QUERIES = 4;  // at once, with any instruction set: scratch memory is the same for all
// A batch is too large for the caches near the core. It is fetched so far ahead, into the second of them: the first has
// too few places for what is under way.
constexpr size_t FETCH_BYTES = 8192;

// Of a row where no whole vector fits; out of line, for it is rare and its code is long.
__attribute__((noinline)) static void copy_rest(void *to, const void *from, size_t n_bytes) {
    std::memcpy(to, from, n_bytes);
}

template <class Real>
struct Wide {
    using All = Vector;
    static EA_INLINE float root(float x) { return __builtin_sqrtf(x); }
    static EA_INLINE float sum(const All &lanes) { return EA_SET::sum(lanes); }
    static EA_INLINE void store_sums(float *to, const All *four) { store(to, sums(four)); }
};
template <>
struct Wide<double> {
    using All = double __attribute__((vector_size(16)));
    static EA_INLINE double root(double x) { return __builtin_sqrt(x); }
    static EA_INLINE double sum(const All &lanes) { return lanes[0] + lanes[1]; }
    static EA_INLINE void store_sums(double *to, const All *four) {
        for (size_t i = 0; i < 4; i++) to[i] = sum(four[i]);
    }
};
template <class Real>
using All = typename Wide<Real>::All;
template <class Real>
constexpr size_t N_ALL = sizeof(All<Real>) / sizeof(Real);

EA_INLINE All<double> exp(const All<double> &x) { return All<double>{__builtin_exp(x[0]), __builtin_exp(x[1])}; }
EA_INLINE All<double> log(const All<double> &x) { return All<double>{__builtin_log(x[0]), __builtin_log(x[1])}; }

// The first `count` elements, if there are so many lanes; the others are zero, or stay as they are.
template <class Real>
EA_INLINE All<Real> get(const Real *from, size_t count = N_ALL<Real>) {
    All<Real> lanes = {};
    if (count >= N_ALL<Real>)
        std::memcpy(&lanes, from, sizeof lanes);
    else
        copy_rest(&lanes, from, count * sizeof(Real));
    return lanes;
}
template <class Real>
EA_INLINE void put(Real *to, const All<Real> &lanes, size_t count = N_ALL<Real>) {
    if (count >= N_ALL<Real>)
        std::memcpy(to, &lanes, sizeof lanes);
    else
        copy_rest(to, &lanes, count * sizeof(Real));
}

// A whole vector on a line of the cache, past the caches.
EA_INLINE void put_past_caches(float *to, const Vector &lanes) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, (__m512)lanes);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, (__m256)lanes);
#elif defined(__SSE__)
    _mm_stream_ps(to, (__m128)lanes);
#else
    store(to, lanes);
#endif
}
EA_INLINE void put_past_caches(double *to, const All<double> &lanes) { put(to, lanes); }

EA_INLINE void end_of_writes_past_caches() {
#if defined(__SSE__)
    _mm_sfence();
#endif
}

// body(d, count) for every vector of a row: `count` elements from d on, all lanes of it but for the last.
template <class Real, class Body>
EA_INLINE void in_vectors(size_t dim, Body body) {
    const size_t whole = dim / N_ALL<Real> * N_ALL<Real>;
    for (size_t d = 0; d < whole; d += N_ALL<Real>) body(d, N_ALL<Real>);
    if (whole < dim) body(whole, dim - whole);
}

// body(first, n) for `count` rows, `most` at a time and then one by one; n is a constant.
template <size_t N>
struct Number {
    constexpr operator size_t() const { return N; }
};
template <size_t MOST, class Body>
EA_INLINE void in_tiles(size_t count, Body body) {
    size_t first = 0;
    for (; first + MOST <= count; first += MOST) body(first, Number<MOST>());
    for (; first < count; first++) body(first, Number<1>());
}

template <class T>
EA_INLINE void fetch(const T *from) {
    __builtin_prefetch(reinterpret_cast<const char *>(from) + FETCH_BYTES, 0, 2);
}

// The place of `count` results: stores wait for each other, and so would all for the memory of the first.
template <class T>
EA_INLINE void fetch_output(T *to, size_t count) {
    for (size_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(to + i, 1);
}

template <class Real>
struct Range {  // of sums of squares: outside of it, float32 hands the episode to float64
    static constexpr Real MIN = SAFE_SQUARES_MIN, MAX = SAFE_SQUARES_MAX;
};
template <>
struct Range<double> {
    static constexpr double MIN = 1e-300, MAX = 1e300;
};

// One over the length of a row with this sum of squares. A zero row has 0; in float32 it is for float64 to tell.
template <class Real>
EA_INLINE Real inverse_length(Real squares, int &trouble) {
    if (squares > Range<Real>::MIN && squares < Range<Real>::MAX) return 1 / Wide<Real>::root(squares);
    if (sizeof(Real) == sizeof(float) || !(squares < Range<Real>::MAX)) trouble |= BEYOND_RANGE;
    return 0;
}

// out[i] = one over the length of row i.
template <class Real>
EA_INLINE void inverse_lengths(const Real *rows, size_t n_rows, size_t dim, Real *out, int &trouble) {
    in_tiles<4>(n_rows, [&](size_t i, auto n) EA_BODY {
        constexpr size_t N = n;
        All<Real> squares[4] = {};
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            EA_UNROLL for (size_t j = 0; j < N; j++) {
                fetch(rows + (i + j) * dim + d);
                const auto x = get(rows + (i + j) * dim + d, count);
                squares[j] += x * x;
            }
        });
        Real found[4];
        Wide<Real>::store_sums(found, squares);
        for (size_t j = 0; j < N; j++) out[i + j] = inverse_length(found[j], trouble);
    });
}

// The prototype of n_shot rows; false if it has no direction.
template <class Real>
EA_INLINE bool prototype(const Real *rows, const Real *inverse, size_t n_shot, size_t dim, Real *made) {
    All<Real> squares = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        All<Real> total = {};
        for (size_t k = 0; k < n_shot; k++) total += get(rows + k * dim + d, count) * inverse[k];
        squares += total * total;
        put(made + d, total, count);
    });
    const Real length = Wide<Real>::root(Wide<Real>::sum(squares));
    const bool has_direction = length > Real(NO_DIRECTION) * Real(n_shot);
    const Real scale = has_direction ? 1 / length : 0;
    for (size_t d = 0; d < dim; d++) made[d] *= scale;
    return has_direction;
}

// out[j * stride + i] = squared distance, or dot product, of query i and row j, all in registers. With dot products goes
// own[i], the query's sum of squares.
template <bool IS_SQ_L2, size_t Q, size_t P, class Real>
EA_INLINE void tile(const Real *queries, const Real *rows, size_t dim, Real *out, size_t stride, Real *own) {
    constexpr size_t N_TOTALS = P + !IS_SQ_L2;
    All<Real> totals[N_TOTALS][4] = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        All<Real> of_queries[Q];
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            fetch(queries + i * dim + d);
            of_queries[i] = get(queries + i * dim + d, count);
            if constexpr (!IS_SQ_L2) totals[P][i] += of_queries[i] * of_queries[i];
        }
        EA_UNROLL for (size_t j = 0; j < P; j++) {
            const auto row = get(rows + j * dim + d, count);
            EA_UNROLL for (size_t i = 0; i < Q; i++) {
                const auto x = IS_SQ_L2 ? of_queries[i] - row : of_queries[i];
                totals[j][i] += x * (IS_SQ_L2 ? x : row);
            }
        }
    });
    EA_UNROLL for (size_t j = 0; j < N_TOTALS; j++) {
        Real found[4];
        Wide<Real>::store_sums(found, totals[j]);
        std::memcpy(j < P ? out + j * stride : own, found, Q * sizeof(Real));
    }
}

EA_INLINE size_t rounded_up(size_t count) { return (count + N_LANES - 1) / N_LANES * N_LANES; }

template <class Real>
EA_INLINE bool has_bad_target(const EpisodicStep<Real> &s, const int64_t *targets) {
    bool bad = false;
    for (size_t q = 0; q < s.n_query; q++) bad |= uint64_t(targets[q]) >= s.n_way;
    return bad;
}

template <class Real>
size_t forward_scratch(const EpisodicStep<Real> &s) {
    return (2 * s.n_way + 1) * rounded_up(s.n_query) + s.n_shot + s.n_way;
}

// Distances and log-probabilities are computed with many queries side by side: [n_way, stride]. What `scratch` holds
// beyond n_query of them was zero at first, and so it stays.
template <class Real>
static int forward(const EpisodicStep<Real> &s, size_t e, Real *scratch) {
    constexpr size_t N = N_ALL<Real>;
    const size_t n_way = s.n_way, n_query = s.n_query, dim = s.dim, stride = rounded_up(n_query);
    const Real *queries = s.queries + e * n_query * dim;
    const int64_t *targets = s.targets + e * n_query;
    Real *prototypes = s.prototypes + e * n_way * dim;
    Real *log_probabilities = s.log_probabilities + e * n_query * n_way;
    Real *distances = s.distances + e * n_query * n_way;
    Real *values = scratch, *logs = values + n_way * stride, *own = logs + n_way * stride;
    Real *inverse = own + stride, *has_direction = inverse + s.n_shot;
    int trouble = NONE;
    if (has_bad_target(s, targets)) return BAD_TARGET;
    fetch_output(prototypes, n_way * dim);
    fetch_output(distances, n_query * n_way);
    fetch_output(log_probabilities, n_query * n_way);
    for (size_t n = 0; n < n_way; n++) {
        const Real *rows = s.support + (e * n_way + n) * s.n_shot * dim;
        inverse_lengths(rows, s.n_shot, dim, inverse, trouble);
        has_direction[n] = prototype(rows, inverse, s.n_shot, dim, prototypes + n * dim);
    }
    const bool is_sq_l2 = s.metric == EA_SQ_L2;
    in_tiles<QUERIES_AT_ONCE>(n_query, [&](size_t q, auto n_queries) EA_BODY {
        constexpr size_t Q = n_queries;
        in_tiles<PROTOTYPES_AT_ONCE>(n_way, [&](size_t n, auto n_rows) EA_BODY {
            const Real *of_queries = queries + q * dim, *rows = prototypes + n * dim;
            Real *out = values + n * stride + q;
            if (is_sq_l2)
                tile<true, Q, n_rows>(of_queries, rows, dim, out, stride, own + q);
            else
                tile<false, Q, n_rows>(of_queries, rows, dim, out, stride, own + q);
        });
    });
    if (!is_sq_l2) {
        for (size_t q = 0; q < n_query; q++) own[q] = inverse_length(own[q], trouble);
        for (size_t n = 0; n < n_way; n++)
            for (size_t q = 0; q < n_query; q++) {
                Real distance = 1 - values[n * stride + q] * own[q];
                distance = distance < 0 ? 0 : distance;
                distance = distance > 2 ? 2 : distance;
                values[n * stride + q] = own[q] == 0 && has_direction[n] == 0 ? 0 : distance;
            }
    }
    for (size_t q = 0; q < n_query; q += N) {
        All<Real> closest = get(values + q), total = {};
        auto outside = closest != closest;
        for (size_t n = 0; n < n_way; n++) {
            const auto distance = get(values + n * stride + q);
            closest = distance < closest ? distance : closest;
            outside |= ~(distance < Range<Real>::MAX);
        }
        if (any(outside)) trouble |= BEYOND_RANGE;
        for (size_t n = 0; n < n_way; n++) total += exp((closest - get(values + n * stride + q)) * s.scale);
        const auto log_total = log(total);
        for (size_t n = 0; n < n_way; n++)
            put(logs + n * stride + q, (closest - get(values + n * stride + q)) * s.scale - log_total);
    }
    Real loss = 0;
    for (size_t q = 0; q < n_query; q++) {
        for (size_t n = 0; n < n_way; n++) {
            distances[q * n_way + n] = values[n * stride + q];
            log_probabilities[q * n_way + n] = logs[n * stride + q];
        }
        loss -= logs[size_t(targets[q]) * stride + q];
    }
    s.losses[e] = loss / Real(n_query);
    return trouble;
}

// gradient[i] = of_query[i] * query i - sum over rows j of of_pairs[i][j] * row j, and of_rows[j] -= of_pairs[i][j] *
// query i: both gradients in one pass over the queries. From the first rows to the last, `totals` hold the former.
template <bool PAST_CACHES, size_t Q, size_t P, class Real>
EA_INLINE void backward_tile(const Real *queries, const Real *of_query, const Real *rows, const Real *of_pairs,
                             size_t n_way, size_t dim, bool is_first, bool is_last, Real *totals, Real *of_rows,
                             Real *gradient) {
    All<Real> pairs[P][Q];
    EA_UNROLL for (size_t j = 0; j < P; j++)
        EA_UNROLL for (size_t i = 0; i < Q; i++) pairs[j][i] = All<Real>{} + of_pairs[i * n_way + j];
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        All<Real> query[Q], total[Q];
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            fetch(queries + i * dim + d);
            query[i] = get(queries + i * dim + d, count);
            total[i] = is_first ? query[i] * of_query[i] : get(totals + i * dim + d, count);
        }
        EA_UNROLL for (size_t j = 0; j < P; j++) {
            const auto row = get(rows + j * dim + d, count);
            auto of_row = get(of_rows + j * dim + d, count);
            EA_UNROLL for (size_t i = 0; i < Q; i++) {
                total[i] -= row * pairs[j][i];
                of_row -= query[i] * pairs[j][i];
            }
            put(of_rows + j * dim + d, of_row, count);
        }
        EA_UNROLL for (size_t i = 0; i < Q; i++) {
            if (PAST_CACHES && is_last)
                put_past_caches(gradient + i * dim + d, total[i]);
            else
                put((is_last ? gradient : totals) + i * dim + d, total[i], count);
        }
    });
}

// of_pairs = gradient of the distances; returns the gradient of the scale.
template <class Real>
EA_INLINE Real of_distances(const EpisodicStep<Real> &s, const EpisodicGradients<Real> &g, size_t e, Real *of_pairs) {
    const size_t n_way = s.n_way, n_query = s.n_query, count = n_query * n_way;
    const Real *log_probabilities = s.log_probabilities + e * count, *distances = s.distances + e * count;
    const Real of_query = g.losses ? g.losses[e] / Real(n_query) : 0;
    // Of the logits first: softmax times what arrives at a query, less what arrives at each label.
    in_vectors<Real>(count, [&](size_t i, size_t n) EA_BODY {
        put(of_pairs + i, exp(get(log_probabilities + i, n)) * of_query, n);
    });
    for (size_t q = 0; g.losses && q < n_query; q++)
        of_pairs[q * n_way + size_t(s.targets[e * n_query + q])] -= of_query;
    for (size_t q = 0; g.log_probabilities && q < n_query; q++) {
        const Real *given = g.log_probabilities + e * count + q * n_way;
        Real total = 0;
        for (size_t n = 0; n < n_way; n++) total += given[n];
        in_vectors<Real>(n_way, [&](size_t n, size_t some) EA_BODY {
            const auto softmax = exp(get(log_probabilities + q * n_way + n, some));
            put(of_pairs + q * n_way + n, get(of_pairs + q * n_way + n, some) + get(given + n, some) - softmax * total,
                some);
        });
    }
    All<Real> of_scale = {};
    in_vectors<Real>(count, [&](size_t i, size_t n) EA_BODY {
        const auto of_logits = get(of_pairs + i, n);
        of_scale -= of_logits * get(distances + i, n);
        put(of_pairs + i, of_logits * -s.scale, n);
    });
    for (size_t i = 0; g.distances && i < count; i++) of_pairs[i] += g.distances[e * count + i];
    return Wide<Real>::sum(of_scale);
}

// The gradient of n_shot rows from that of their prototype, which is worked on in place.
template <bool PAST_CACHES, class Real>
EA_INLINE void of_support(const Real *rows, size_t n_shot, size_t dim, const Real *made, Real *of_made, Real *inverse,
                          Real *along, Real *gradient, int &trouble) {
    inverse_lengths(rows, n_shot, dim, inverse, trouble);
    All<Real> radial_lanes = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        radial_lanes += get(of_made + d, count) * get(made + d, count);
    });
    const Real radial = Wide<Real>::sum(radial_lanes);
    for (size_t d = 0; d < dim; d++) of_made[d] -= made[d] * radial;
    Real length = 0;  // of the sum of the unit rows, which is along the prototype
    for (size_t k = 0; k < n_shot; k++) {
        All<Real> on_made = {}, on_gradient = {};
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            const auto row = get(rows + k * dim + d, count);
            on_made += row * get(made + d, count);
            on_gradient += row * get(of_made + d, count);
        });
        length += Wide<Real>::sum(on_made) * inverse[k];
        along[k] = Wide<Real>::sum(on_gradient) * inverse[k];
    }
    const Real scale = length > Real(NO_DIRECTION) * Real(n_shot) ? 1 / length : 0;
    for (size_t k = 0; k < n_shot; k++) {
        const Real outer = scale * inverse[k], inner = along[k] * inverse[k];
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            const auto row = get(rows + k * dim + d, count);
            const auto made = (get(of_made + d, count) - row * inner) * outer;
            if constexpr (PAST_CACHES)
                put_past_caches(gradient + k * dim + d, made);
            else
                put(gradient + k * dim + d, made, count);
        });
    }
}

template <class Real>
size_t backward_scratch(const EpisodicStep<Real> &s) {
    return rounded_up(s.n_way * s.dim) + rounded_up(MOST_QUERIES * s.dim) + s.n_query * s.n_way + 2 * s.n_shot;
}

template <bool PAST_CACHES, class Real>
EA_INLINE int backward(const EpisodicStep<Real> &s, const EpisodicGradients<Real> &g, size_t e, Real *scratch) {
    const size_t n_way = s.n_way, n_shot = s.n_shot, n_query = s.n_query, dim = s.dim;
    const Real *queries = s.queries + e * n_query * dim, *prototypes = s.prototypes + e * n_way * dim;
    const Real *distances = s.distances + e * n_query * n_way;
    Real *of_prototypes = scratch, *totals = of_prototypes + rounded_up(n_way * dim);
    Real *of_pairs = totals + rounded_up(MOST_QUERIES * dim);
    Real *inverse = of_pairs + n_query * n_way, *along = inverse + n_shot;
    int trouble = NONE;
    if (has_bad_target(s, s.targets + e * n_query)) return BAD_TARGET;
    const Real of_scale = g.scale[e] = of_distances(s, g, e, of_pairs);
    if (!(of_scale < Range<Real>::MAX && -of_scale < Range<Real>::MAX)) trouble |= BEYOND_RANGE;
    if (g.prototypes)
        std::memcpy(of_prototypes, g.prototypes + e * n_way * dim, n_way * dim * sizeof(Real));
    else
        std::memset(of_prototypes, 0, n_way * dim * sizeof(Real));
    Real *of_queries = g.queries + e * n_query * dim;
    in_tiles<QUERIES_AT_ONCE>(n_query, [&](size_t first, auto n_queries) EA_BODY {
        // What stretches a prototype is taken out in of_support(), so that both metrics give it of_pairs * query alone.
        constexpr size_t Q = n_queries;
        Real *pairs = of_pairs + first * n_way, of_query[Q], query_inverse[Q] = {};
        if (s.metric == EA_COSINE) inverse_lengths(queries + first * dim, Q, dim, query_inverse, trouble);
        for (size_t i = 0; i < Q; i++, pairs += n_way) {
            const Real *distance = distances + (first + i) * n_way;
            const Real factor = s.metric == EA_SQ_L2 ? 2 : query_inverse[i];
            Real total = 0;
            for (size_t n = 0; n < n_way; n++) {
                total += s.metric == EA_SQ_L2 ? pairs[n] : pairs[n] * (1 - distance[n]);
                pairs[n] *= factor;
            }
            of_query[i] = total * (s.metric == EA_SQ_L2 ? factor : factor * factor);
        }
        pairs = of_pairs + first * n_way;
        in_tiles<PROTOTYPES_AT_ONCE>(n_way, [&](size_t n, auto n_rows) EA_BODY {
            backward_tile<PAST_CACHES, Q, n_rows>(queries + first * dim, of_query, prototypes + n * dim, pairs + n,
                                                  n_way, dim, n == 0, n + n_rows == n_way, totals,
                                                  of_prototypes + n * dim, of_queries + first * dim);
        });
    });
    for (size_t n = 0; n < n_way; n++) {
        const size_t first = (e * n_way + n) * n_shot * dim;
        of_support<PAST_CACHES>(s.support + first, n_shot, dim, prototypes + n * dim, of_prototypes + n * dim, inverse,
                                along, g.support + first, trouble);
    }
    return trouble;
}

template <class Real>
static int backward(const EpisodicStep<Real> &s, const EpisodicGradients<Real> &g, size_t e, Real *scratch) {
    const bool on_lines = (s.dim * sizeof(Real) | uintptr_t(g.support) | uintptr_t(g.queries)) % 64 == 0;
    if (!g.beyond_caches || !on_lines) return backward<false>(s, g, e, scratch);
    const int trouble = backward<true>(s, g, e, scratch);
    end_of_writes_past_caches();
    return trouble;
}

}  // namespace ea::EA_SET
