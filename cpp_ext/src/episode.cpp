#include "episode.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <string_view>
#include <type_traits>
#include <vector>

#include "distances.hpp"
#include "lanes.hpp"

namespace ea {
namespace {

constexpr double NO_DIRECTION = 1e-6;  // as in prototypes.cpp

// What is left of a row where no whole vector fits; out of line, for it is rare and its code is long.
__attribute__((noinline)) void copy_rest(void *to, const void *from, size_t n_bytes) { std::memcpy(to, from, n_bytes); }

// One body for float32, in sixteen lanes of the widest instructions there are, and for float64, in four lanes. Sums are
// made in the order of ea::sum().
template <class Real>
struct Wide {
    static constexpr size_t N = std::is_same_v<Real, float> ? N_LANES : 4;
    using All __attribute__((vector_size(N * sizeof(Real)))) = Real;
    using Four __attribute__((vector_size(4 * sizeof(Real)))) = Real;

    static EA_INLINE All load(const Real *from, size_t count = N) {
        All lanes = {};
        if (count >= N)
            std::memcpy(&lanes, from, sizeof lanes);
        else
            copy_rest(&lanes, from, count * sizeof(Real));
        return lanes;
    }
    static EA_INLINE void store(Real *to, const All &lanes, size_t count = N) {
        if (count >= N)
            std::memcpy(to, &lanes, sizeof lanes);
        else
            copy_rest(to, &lanes, count * sizeof(Real));
    }
    static EA_INLINE Four fold(const All &lanes) {
        if constexpr (N == 4) {
            return lanes;
        } else {
            using Eight __attribute__((vector_size(8 * sizeof(Real)))) = Real;
            Eight halves[2];
            std::memcpy(halves, &lanes, sizeof halves);
            halves[0] += halves[1];
            Four quarters[2];
            std::memcpy(quarters, &halves[0], sizeof quarters);
            return quarters[0] + quarters[1];
        }
    }
    static EA_INLINE Real sum(const All &lanes) {
        const Four q = fold(lanes);
        return (q[0] + q[2]) + (q[1] + q[3]);
    }
#if defined(__clang__)
#define EA_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
    using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
    using Indices __attribute__((vector_size(4 * sizeof(Real)))) = Index;
#define EA_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Indices{i, j, k, l})
#endif
    // The sums of four at once.
    static EA_INLINE Four sums(const All *four) {
        const Four a = fold(four[0]), b = fold(four[1]), c = fold(four[2]), d = fold(four[3]);
        const Four ab = EA_SHUFFLE(a, b, 0, 4, 1, 5) + EA_SHUFFLE(a, b, 2, 6, 3, 7);
        const Four cd = EA_SHUFFLE(c, d, 0, 4, 1, 5) + EA_SHUFFLE(c, d, 2, 6, 3, 7);
        return EA_SHUFFLE(ab, cd, 0, 1, 4, 5) + EA_SHUFFLE(ab, cd, 2, 3, 6, 7);
    }
#undef EA_SHUFFLE
};

// body(d, count) for every vector of a row: `count` elements from d on, all lanes of it but for the last.
#define EA_BODY __attribute__((always_inline))
template <class Real, class Body>
EA_INLINE void in_vectors(size_t dim, Body body) {
    constexpr size_t N = Wide<Real>::N;
    const size_t whole = dim / N * N;
    for (size_t d = 0; d < whole; d += N) body(d, N);
    if (whole < dim) body(whole, dim - whole);
}

using DoubleLanes = Wide<double>::All;

using ea::exp;  // of values that are not positive
EA_INLINE DoubleLanes exp(DoubleLanes x) {
    for (size_t i = 0; i < Wide<double>::N; i++) x[i] = std::exp(x[i]);
    return x;
}
using ea::log;
EA_INLINE DoubleLanes log(DoubleLanes x) {
    for (size_t i = 0; i < Wide<double>::N; i++) x[i] = std::log(x[i]);
    return x;
}

// What an episode cannot be computed from in this precision.
enum Trouble { NONE = 0, BEYOND_RANGE = 1, BAD_TARGET = 2 };

template <class Real>
struct Range {  // of sums of squares: outside of it, float32 hands the episode to float64
    static constexpr Real MIN = SAFE_SQUARES_MIN, MAX = SAFE_SQUARES_MAX;
};
template <>
struct Range<double> {
    static constexpr double MIN = 1e-300, MAX = 1e300;
};

constexpr size_t AHEAD = 4;  // rows to prefetch: a batch is too large for the caches near the core

EA_INLINE size_t rounded_up(size_t count) { return (count + N_LANES - 1) / N_LANES * N_LANES; }

// One over the length of a row with this sum of squares. A zero row has 0; in float32 it is for float64 to tell.
template <class Real>
EA_INLINE Real inverse_length(Real squares, int &trouble) {
    if (squares > Range<Real>::MIN && squares < Range<Real>::MAX) return 1 / std::sqrt(squares);
    if (!std::is_same_v<Real, double> || !(squares < Range<Real>::MAX)) trouble |= BEYOND_RANGE;
    return 0;
}

// out[i] = one over the length of row i.
template <class Real>
EA_INLINE void inverse_lengths(const Real *rows, size_t n_rows, size_t dim, Real *out, int &trouble) {
    using W = Wide<Real>;
    size_t i = 0;
    for (; i + 4 <= n_rows; i += 4) {
        typename W::All squares[4] = {};
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            for (size_t j = 0; j < 4; j++) {
                const auto x = W::load(rows + (i + j) * dim + d, count);
                squares[j] += x * x;
            }
        });
        const auto sums = W::sums(squares);
        for (size_t j = 0; j < 4; j++) out[i + j] = inverse_length<Real>(sums[j], trouble);
    }
    for (; i < n_rows; i++) {
        typename W::All squares = {};
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            const auto x = W::load(rows + i * dim + d, count);
            squares += x * x;
        });
        out[i] = inverse_length<Real>(W::sum(squares), trouble);
    }
}

// The prototype of n_shot rows; false if it has no direction.
template <class Real>
EA_INLINE bool prototype(const Real *rows, const Real *inverse, size_t n_shot, size_t dim, Real *made) {
    using W = Wide<Real>;
    typename W::All squares = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        typename W::All total = {};
        for (size_t k = 0; k < n_shot; k++) total += W::load(rows + k * dim + d, count) * inverse[k];
        squares += total * total;
        W::store(made + d, total, count);
    });
    const Real length = std::sqrt(W::sum(squares));
    const bool has_direction = length > Real(NO_DIRECTION) * Real(n_shot);
    const Real scale = has_direction ? 1 / length : 0;
    for (size_t d = 0; d < dim; d++) made[d] *= scale;
    return has_direction;
}

// out[j * stride + i] = squared distance, or dot product, of query i and row j of a tile that stays in registers.
template <bool IS_SQ_L2, size_t N_QUERIES, size_t N_ROWS, class Real>
EA_INLINE void tile(const Real *queries, const Real *rows, size_t dim, Real *out, size_t stride) {
    using W = Wide<Real>;
    typename W::All sums[N_ROWS][N_QUERIES] = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        typename W::All of_queries[N_QUERIES];
        for (size_t i = 0; i < N_QUERIES; i++) {
            __builtin_prefetch(queries + (i + AHEAD) * dim + d);
            of_queries[i] = W::load(queries + i * dim + d, count);
        }
        for (size_t j = 0; j < N_ROWS; j++) {
            const auto row = W::load(rows + j * dim + d, count);
            for (size_t i = 0; i < N_QUERIES; i++) {
                const auto x = IS_SQ_L2 ? of_queries[i] - row : of_queries[i];
                sums[j][i] += x * (IS_SQ_L2 ? x : row);
            }
        }
    });
    for (size_t j = 0; j < N_ROWS; j++) {
        if constexpr (N_QUERIES == 4) {
            const auto four = W::sums(sums[j]);
            std::memcpy(out + j * stride, &four, sizeof four);
        } else {
            for (size_t i = 0; i < N_QUERIES; i++) out[j * stride + i] = W::sum(sums[j][i]);
        }
    }
}

template <bool IS_SQ_L2, size_t N_QUERIES, class Real>
EA_INLINE void tiles(const Real *queries, const Real *rows, size_t n_rows, size_t dim, Real *out, size_t stride) {
    size_t j = 0;
    for (; j + 5 <= n_rows; j += 5)
        tile<IS_SQ_L2, N_QUERIES, 5>(queries, rows + j * dim, dim, out + j * stride, stride);
    for (; j < n_rows; j++) tile<IS_SQ_L2, N_QUERIES, 1>(queries, rows + j * dim, dim, out + j * stride, stride);
}

// out [n_rows, stride]: transposed, so that the labels of sixteen queries are in the lanes of one vector.
template <bool IS_SQ_L2, class Real>
EA_INLINE void transposed_matrix(const Real *queries, size_t n_queries, const Real *rows, size_t n_rows, size_t dim,
                                 Real *out, size_t stride) {
    size_t i = 0;
    for (; i + 4 <= n_queries; i += 4) tiles<IS_SQ_L2, 4>(queries + i * dim, rows, n_rows, dim, out + i, stride);
    for (; i < n_queries; i++) tiles<IS_SQ_L2, 1>(queries + i * dim, rows, n_rows, dim, out + i, stride);
}

template <class Real>
size_t forward_scratch(const EpisodicStep<Real> &s) {
    return s.n_shot + s.n_way + (s.n_way + 1) * rounded_up(s.n_query);
}

template <class Real>
EA_INLINE bool has_bad_target(const EpisodicStep<Real> &s, size_t e) {
    const int64_t *targets = s.targets + e * s.n_query;
    return std::any_of(targets, targets + s.n_query, [&](int64_t t) { return t < 0 || size_t(t) >= s.n_way; });
}

template <class Real>
EA_INLINE int forward(const EpisodicStep<Real> &s, size_t e, Real *scratch) {
    using W = Wide<Real>;
    const size_t n_way = s.n_way, n_query = s.n_query, dim = s.dim, stride = rounded_up(n_query);
    const Real *queries = s.queries + e * n_query * dim;
    const int64_t *targets = s.targets + e * n_query;
    Real *prototypes = s.prototypes + e * n_way * dim;
    Real *log_probabilities = s.log_probabilities + e * n_query * n_way;
    Real *distances = s.distances + e * n_query * n_way;
    Real *values = scratch, *query_inverse = values + n_way * stride, *inverse = query_inverse + stride;
    Real *has_direction = inverse + s.n_shot;
    int trouble = NONE;
    if (has_bad_target(s, e)) return BAD_TARGET;
    for (size_t n = 0; n < n_way; n++) {
        const Real *rows = s.support + (e * n_way + n) * s.n_shot * dim;
        inverse_lengths(rows, s.n_shot, dim, inverse, trouble);
        has_direction[n] = prototype(rows, inverse, s.n_shot, dim, prototypes + n * dim);
    }
    if (s.metric == EA_SQ_L2) {
        transposed_matrix<true>(queries, n_query, prototypes, n_way, dim, values, stride);
    } else {
        transposed_matrix<false>(queries, n_query, prototypes, n_way, dim, values, stride);
        inverse_lengths(queries, n_query, dim, query_inverse, trouble);
        for (size_t n = 0; n < n_way; n++)
            for (size_t q = 0; q < n_query; q++) {
                const Real distance = 1 - values[n * stride + q] * query_inverse[q];
                values[n * stride + q] = std::min(std::max(distance, Real(0)), Real(2));
                if (query_inverse[q] == 0 && has_direction[n] == 0) values[n * stride + q] = 0;
            }
    }
    Real loss = 0;
    for (size_t q = 0; q < n_query; q += W::N) {
        const size_t count = std::min(W::N, n_query - q);
        typename W::All closest = W::load(values + q, count), total = {};
        for (size_t n = 1; n < n_way; n++) {
            const auto distance = W::load(values + n * stride + q, count);
            closest = distance < closest ? distance : closest;
        }
        for (size_t n = 0; n < n_way; n++)
            total += exp((closest - W::load(values + n * stride + q, count)) * s.scale);
        const auto log_total = log(total);
        for (size_t n = 0; n < n_way; n++) {
            const auto distance = W::load(values + n * stride + q, count);
            const auto log_probability = (closest - distance) * s.scale - log_total;
            for (size_t i = 0; i < count; i++) {
                distances[(q + i) * n_way + n] = distance[i];
                log_probabilities[(q + i) * n_way + n] = log_probability[i];
            }
        }
        for (size_t i = 0; i < count; i++) loss -= log_probabilities[(q + i) * n_way + size_t(targets[q + i])];
    }
    s.losses[e] = loss / Real(n_query);
    for (size_t i = 0; i < n_query * n_way; i++) trouble |= distances[i] < Range<Real>::MAX ? NONE : BEYOND_RANGE;
    return trouble;
}

// gradient[i] = of_query[i] * query i - sum over rows j of of_pairs[i][j] * row j, and of_rows[j] -= of_pairs[i][j] *
// query i: both gradients in one pass over the queries.
template <size_t N_QUERIES, size_t N_ROWS, class Real>
EA_INLINE void backward_tile(const Real *queries, const Real *of_query, const Real *rows, const Real *of_pairs,
                             size_t pair_stride, size_t dim, bool is_first, Real *of_rows, Real *gradient) {
    using W = Wide<Real>;
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        typename W::All query[N_QUERIES], total[N_QUERIES];
        for (size_t i = 0; i < N_QUERIES; i++) {
            __builtin_prefetch(queries + (i + AHEAD) * dim + d);
            __builtin_prefetch(gradient + (i + AHEAD) * dim + d, 1);
            query[i] = W::load(queries + i * dim + d, count);
            total[i] = is_first ? query[i] * of_query[i] : W::load(gradient + i * dim + d, count);
        }
        for (size_t j = 0; j < N_ROWS; j++) {
            const auto row = W::load(rows + j * dim + d, count);
            auto of_row = W::load(of_rows + j * dim + d, count);
            for (size_t i = 0; i < N_QUERIES; i++) {
                total[i] -= row * of_pairs[i * pair_stride + j];
                of_row -= query[i] * of_pairs[i * pair_stride + j];
            }
            W::store(of_rows + j * dim + d, of_row, count);
        }
        for (size_t i = 0; i < N_QUERIES; i++) W::store(gradient + i * dim + d, total[i], count);
    });
}

template <size_t N_QUERIES, class Real>
EA_INLINE void backward_tiles(const Real *queries, const Real *of_query, const Real *rows, const Real *of_pairs,
                              size_t n_rows, size_t dim, Real *of_rows, Real *gradient) {
    size_t j = 0;
    for (; j + 5 <= n_rows; j += 5)
        backward_tile<N_QUERIES, 5>(queries, of_query, rows + j * dim, of_pairs + j, n_rows, dim, j == 0,
                                    of_rows + j * dim, gradient);
    for (; j < n_rows; j++)
        backward_tile<N_QUERIES, 1>(queries, of_query, rows + j * dim, of_pairs + j, n_rows, dim, j == 0,
                                    of_rows + j * dim, gradient);
}

// of_pairs = gradient of the distances; returns the gradient of the scale.
template <class Real>
EA_INLINE Real of_distances(const EpisodicStep<Real> &s, const EpisodicGradients<Real> &g, size_t e, Real *of_pairs) {
    using W = Wide<Real>;
    const size_t n_way = s.n_way, n_query = s.n_query, count = n_query * n_way;
    const Real *log_probabilities = s.log_probabilities + e * count, *distances = s.distances + e * count;
    const Real of_query = g.losses ? g.losses[e] / Real(n_query) : 0;
    // Of the logits first: softmax times what arrives at a query, less what arrives at each label.
    in_vectors<Real>(count, [&](size_t i, size_t n) EA_BODY {
        W::store(of_pairs + i, exp(W::load(log_probabilities + i, n)) * of_query, n);
    });
    for (size_t q = 0; g.losses && q < n_query; q++)
        of_pairs[q * n_way + size_t(s.targets[e * n_query + q])] -= of_query;
    for (size_t q = 0; g.log_probabilities && q < n_query; q++) {
        const Real *given = g.log_probabilities + e * count + q * n_way;
        Real total = 0;
        for (size_t n = 0; n < n_way; n++) total += given[n];
        for (size_t n = 0; n < n_way; n++)
            of_pairs[q * n_way + n] += given[n] - std::exp(log_probabilities[q * n_way + n]) * total;
    }
    typename W::All of_scale = {};
    in_vectors<Real>(count, [&](size_t i, size_t n) EA_BODY {
        const auto of_logits = W::load(of_pairs + i, n);
        of_scale -= of_logits * W::load(distances + i, n);
        W::store(of_pairs + i, of_logits * -s.scale, n);
    });
    for (size_t i = 0; g.distances && i < count; i++) of_pairs[i] += g.distances[e * count + i];
    return W::sum(of_scale);
}

// The gradient of n_shot rows from that of their prototype, which is worked on in place.
template <class Real>
EA_INLINE void of_support(const Real *rows, size_t n_shot, size_t dim, const Real *made, Real *of_made, Real *inverse,
                          Real *along, Real *gradient, int &trouble) {
    using W = Wide<Real>;
    inverse_lengths(rows, n_shot, dim, inverse, trouble);
    typename W::All radial_lanes = {};
    in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
        radial_lanes += W::load(of_made + d, count) * W::load(made + d, count);
    });
    const Real radial = W::sum(radial_lanes);
    for (size_t d = 0; d < dim; d++) of_made[d] -= made[d] * radial;
    Real length = 0;  // of the sum of the unit rows, which is along the prototype
    for (size_t k = 0; k < n_shot; k++) {
        typename W::All on_made = {}, on_gradient = {};
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            const auto row = W::load(rows + k * dim + d, count);
            on_made += row * W::load(made + d, count);
            on_gradient += row * W::load(of_made + d, count);
        });
        length += W::sum(on_made) * inverse[k];
        along[k] = W::sum(on_gradient) * inverse[k];
    }
    const Real scale = length > Real(NO_DIRECTION) * Real(n_shot) ? 1 / length : 0;
    for (size_t k = 0; k < n_shot; k++) {
        const Real outer = scale * inverse[k], inner = along[k] * inverse[k];
        in_vectors<Real>(dim, [&](size_t d, size_t count) EA_BODY {
            const auto row = W::load(rows + k * dim + d, count);
            W::store(gradient + k * dim + d, (W::load(of_made + d, count) - row * inner) * outer, count);
        });
    }
}

template <class Real>
size_t backward_scratch(const EpisodicStep<Real> &s) {
    return s.n_query * (s.n_way + 2) + s.n_way * s.dim + 2 * s.n_shot;
}

template <class Real>
EA_INLINE int backward(const EpisodicStep<Real> &s, const EpisodicGradients<Real> &g, size_t e, Real *scratch) {
    const size_t n_way = s.n_way, n_shot = s.n_shot, n_query = s.n_query, dim = s.dim;
    const Real *queries = s.queries + e * n_query * dim, *prototypes = s.prototypes + e * n_way * dim;
    const Real *distances = s.distances + e * n_query * n_way;
    Real *of_pairs = scratch, *of_query = of_pairs + n_query * n_way, *query_inverse = of_query + n_query;
    Real *of_prototypes = query_inverse + n_query, *inverse = of_prototypes + n_way * dim, *along = inverse + n_shot;
    int trouble = NONE;
    if (has_bad_target(s, e)) return BAD_TARGET;
    g.scale[e] = of_distances(s, g, e, of_pairs);
    if (!(std::fabs(g.scale[e]) < Range<Real>::MAX)) trouble |= BEYOND_RANGE;
    // What stretches a prototype is taken out in of_support(), so that both metrics give it of_pairs * query alone.
    if (s.metric == EA_SQ_L2) {
        for (size_t q = 0; q < n_query; q++) {
            of_query[q] = 0;
            for (size_t n = 0; n < n_way; n++) of_query[q] += of_pairs[q * n_way + n] *= 2;
        }
    } else {
        inverse_lengths(queries, n_query, dim, query_inverse, trouble);
        for (size_t q = 0; q < n_query; q++) {
            of_query[q] = 0;
            for (size_t n = 0; n < n_way; n++) {
                of_query[q] += of_pairs[q * n_way + n] * (1 - distances[q * n_way + n]);
                of_pairs[q * n_way + n] *= query_inverse[q];
            }
            of_query[q] *= query_inverse[q] * query_inverse[q];
        }
    }
    if (g.prototypes)
        std::copy_n(g.prototypes + e * n_way * dim, n_way * dim, of_prototypes);
    else
        std::fill_n(of_prototypes, n_way * dim, Real(0));
    Real *of_queries = g.queries + e * n_query * dim;
    size_t q = 0;
    for (; q + 4 <= n_query; q += 4)
        backward_tiles<4>(queries + q * dim, of_query + q, prototypes, of_pairs + q * n_way, n_way, dim, of_prototypes,
                          of_queries + q * dim);
    for (; q < n_query; q++)
        backward_tiles<1>(queries + q * dim, of_query + q, prototypes, of_pairs + q * n_way, n_way, dim, of_prototypes,
                          of_queries + q * dim);
    for (size_t n = 0; n < n_way; n++) {
        const size_t first = (e * n_way + n) * n_shot * dim;
        of_support(s.support + first, n_shot, dim, prototypes + n * dim, of_prototypes + n * dim, inverse, along,
                   g.support + first, trouble);
    }
    return trouble;
}

}  // namespace

namespace {

// The body for float32 is compiled for each instruction set; the core says which one is in use.
#define EA_FOR_SET(set, target)                                                                                   \
    target int forward_##set(const EpisodicStep<float> &s, size_t e, float *scratch) { return forward(s, e, scratch); } \
    target int backward_##set(const EpisodicStep<float> &s, const EpisodicGradients<float> &g, size_t e,          \
                              float *scratch) {                                                                   \
        return backward(s, g, e, scratch);                                                                        \
    }
EA_FOR_SET(baseline, )
#if EA_HAVE_CLONES
EA_FOR_SET(avx2, __attribute__((target("arch=x86-64-v3"))))
EA_FOR_SET(avx512, __attribute__((target("arch=x86-64-v4"))))
#endif

struct Set {
    decltype(&forward_baseline) forward;
    decltype(&backward_baseline) backward;
};

Set chosen() {
#if EA_HAVE_CLONES
    const std::string_view name = ea_instruction_set();
    if (name.substr(0, 6) == "avx512") return {forward_avx512, backward_avx512};
    if (name == "avx2") return {forward_avx2, backward_avx2};
#endif
    return {forward_baseline, backward_baseline};
}

int run_forward(const EpisodicStep<float> &s, size_t e, float *scratch) { return chosen().forward(s, e, scratch); }
int run_forward(const EpisodicStep<double> &s, size_t e, double *scratch) { return forward(s, e, scratch); }
int run_backward(const EpisodicStep<float> &s, const EpisodicGradients<float> &g, size_t e, float *scratch) {
    return chosen().backward(s, g, e, scratch);
}
int run_backward(const EpisodicStep<double> &s, const EpisodicGradients<double> &g, size_t e, double *scratch) {
    return backward(s, g, e, scratch);
}

ea_status status_of(int trouble) {
    if (trouble & BAD_TARGET) return EA_INVALID_ARGUMENT;
    return trouble ? EA_NOT_FINITE : EA_OK;
}

// One episode of float32 in float64: for rows that are zero, or beyond what float32 can square.
class Widened {
  public:
    Widened(const EpisodicStep<float> &s, size_t e) : s(s), e(e) {
        const size_t n_support = s.n_way * s.n_shot * s.dim, n_queries = s.n_query * s.dim;
        const size_t n_pairs = s.n_query * s.n_way, n_prototypes = s.n_way * s.dim;
        step = {s.n_way, s.n_shot, s.n_query, s.dim, s.metric, s.scale, copy(s.support, n_support),
                copy(s.queries, n_queries), s.targets + e * s.n_query, empty(1), empty(n_pairs), empty(n_pairs),
                empty(n_prototypes)};
        scratch = empty(std::max(forward_scratch(step), backward_scratch(step)));
        trouble = run_forward(step, 0, scratch);
    }
    ea_status forward_step() {
        give(step.losses, s.losses, 1);
        give(step.log_probabilities, s.log_probabilities, s.n_query * s.n_way);
        give(step.distances, s.distances, s.n_query * s.n_way);
        give(step.prototypes, s.prototypes, s.n_way * s.dim);
        return status_of(trouble);
    }
    ea_status backward_step(const EpisodicGradients<float> &g) {
        if (trouble) return status_of(trouble);
        const size_t n_pairs = s.n_query * s.n_way, n_support = s.n_way * s.n_shot * s.dim;
        const EpisodicGradients<double> wide = {copy(g.losses, 1), copy(g.log_probabilities, n_pairs),
                                                copy(g.distances, n_pairs), copy(g.prototypes, s.n_way * s.dim),
                                                empty(n_support), empty(s.n_query * s.dim), empty(1)};
        trouble = run_backward(step, wide, 0, scratch);
        give(wide.support, g.support, n_support);
        give(wide.queries, g.queries, s.n_query * s.dim);
        give(wide.scale, g.scale, 1);
        return status_of(trouble);
    }

  private:
    double *empty(size_t count) { return kept.emplace_back(count).data(); }
    const double *copy(const float *values, size_t count) {
        return values ? kept.emplace_back(values + e * count, values + (e + 1) * count).data() : nullptr;
    }
    void give(const double *values, float *to, size_t count) const {
        for (size_t i = 0; i < count; i++) to[e * count + i] = float(values[i]);
    }

    const EpisodicStep<float> &s;
    const size_t e;
    EpisodicStep<double> step;
    std::vector<std::vector<double>> kept;  // moving a vector leaves its elements where they are
    double *scratch;
    int trouble;
};

template <class Real>
bool makes_sense(const EpisodicStep<Real> &s) {
    return s.n_way && s.n_shot && s.n_query && s.dim && (s.metric == EA_COSINE || s.metric == EA_SQ_L2) && s.scale >= 0
           && s.scale <= std::numeric_limits<Real>::max();
}

// Every episode in turn, until one fails. `fast` computes in Real; what float32 cannot do, `exact` does in float64.
template <class Real, class Fast, class Exact>
ea_status each(const EpisodicStep<Real> &step, size_t first, size_t end, size_t n_scratch, Fast fast, Exact exact) {
    if (!makes_sense(step)) return EA_INVALID_ARGUMENT;
    try {
        std::vector<Real> scratch(n_scratch);
        for (size_t e = first; e < end; e++) {
            const int trouble = fast(e, scratch.data());
            ea_status status = status_of(trouble);
            if constexpr (std::is_same_v<Real, float>)
                if (trouble == BEYOND_RANGE) status = exact(Widened(step, e));
            if (status != EA_OK) return status;
        }
        return EA_OK;
    } catch (const std::bad_alloc &) {
        return EA_OUT_OF_MEMORY;
    }
}

}  // namespace

template <class Real>
ea_status episodic_step(const EpisodicStep<Real> &step, size_t first, size_t end) {
    return each(
        step, first, end, forward_scratch(step), [&](size_t e, Real *scratch) { return run_forward(step, e, scratch); },
        [&](Widened episode) { return episode.forward_step(); });
}

template <class Real>
ea_status episodic_step_backward(const EpisodicStep<Real> &step, const EpisodicGradients<Real> &gradients, size_t first,
                                 size_t end) {
    return each(
        step, first, end, backward_scratch(step),
        [&](size_t e, Real *scratch) { return run_backward(step, gradients, e, scratch); },
        [&](Widened episode) {
            if constexpr (std::is_same_v<Real, float>) return episode.backward_step(gradients);
        });
}

template ea_status episodic_step(const EpisodicStep<float> &, size_t, size_t);
template ea_status episodic_step(const EpisodicStep<double> &, size_t, size_t);
template ea_status episodic_step_backward(const EpisodicStep<float> &, const EpisodicGradients<float> &, size_t,
                                          size_t);
template ea_status episodic_step_backward(const EpisodicStep<double> &, const EpisodicGradients<double> &, size_t,
                                          size_t);

}  // namespace ea
