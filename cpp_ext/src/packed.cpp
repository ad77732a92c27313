#include "packed.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "distances.hpp"
#include "status.hpp"

using namespace ea;

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;
constexpr size_t MAX_INT8_DIM = 32768;
constexpr size_t MAX_THREADS = 256;
constexpr size_t MANY = 12;  // queries a thread: with fewer, the prototypes are divided instead
constexpr size_t INT8_BLOCK_BYTES = 1 << 15;  // of the queries of a block, on the stack

// What a row is multiplied with before it is rounded, and what one step then stands for. A power of two first, so that the
// scale of no row is out of float32's range.
struct Int8Scale {
    float before, scale, step;
};

Int8Scale int8_scale(const float *row, size_t dim) {
    float largest = kernels().largest(row, dim);
    if (largest == 0) return {1, 0, 0};
    const float before = largest < 1e-30f ? 0x1p100f : 1.0f;
    largest *= before;
    return {before, 127.0f / largest, largest / 127.0f / before};
}

void round_row(const float *row, size_t dim, int8_t *out, float *step, int32_t *sum, int32_t *squares) {
    const Int8Scale scale = int8_scale(row, dim);
    if (scale.before == 1) {
        kernels().round_to_int8(row, scale.scale, dim, out, sum, squares);
    } else {
        float work[64];
        *sum = *squares = 0;
        for (size_t first = 0; first < dim; first += 64) {
            const size_t count = std::min<size_t>(64, dim - first);
            for (size_t i = 0; i < count; i++) work[i] = row[first + i] * scale.before;
            int32_t part, part_squares;
            kernels().round_to_int8(work, scale.scale, count, out + first, &part, &part_squares);
            *sum += part, *squares += part_squares;
        }
    }
    *step = scale.step;
}

Terms ordinary_terms(float squares) {
    if (squares > SAFE_SQUARES_MIN && squares < SAFE_SQUARES_MAX) return {squares, 1 / std::sqrt(squares)};
    return {NAN, NAN};
}

// The formulas in float64, for what float32 cannot be trusted with.
float exact(int32_t metric, double dot, double query_squares, double prototype_squares) {
    switch (metric) {
        case EA_COSINE:
            if (query_squares == 0 || prototype_squares == 0) return query_squares == prototype_squares ? 0.0f : 1.0f;
            return float(std::clamp(1 - dot / (std::sqrt(query_squares) * std::sqrt(prototype_squares)), 0.0, 2.0));
        case EA_SQ_L2: return float(std::max(query_squares + prototype_squares - 2 * dot, 0.0));
        default: return float(dot);
    }
}

// Where the values of a prototype begin: one float, or four int8, every `panel` of them.
struct Column {
    const char *first;
    size_t panel;
};

Column column(const ea_packed &packed, size_t prototype) {
    const size_t panel = kernels().strip / 2, item = packed.storage == EA_INT8 ? 4 : sizeof(float);
    return {static_cast<const char *>(packed.strips.get()) + prototype / panel * (packed.strip_bytes / 2)
                + prototype % panel * item,
            panel};
}

float exact_float32(const ea_packed &packed, int32_t metric, const float *query, size_t prototype) {
    const Column c = column(packed, prototype);
    const auto *values = reinterpret_cast<const float *>(c.first);
    double dot = 0, query_squares = 0, prototype_squares = 0;
    for (size_t k = 0; k < packed.dim; k++) {
        const double q = query[k], p = values[k * c.panel];
        dot += q * p, query_squares += q * q, prototype_squares += p * p;
    }
    return exact(metric, dot, query_squares, prototype_squares);
}

float exact_int8(const ea_packed &packed, int32_t metric, const int8_t *query, double query_step, size_t prototype) {
    const Column c = column(packed, prototype);
    const auto *values = reinterpret_cast<const uint8_t *>(c.first);
    int64_t dot = 0, query_squares = 0, prototype_squares = 0;
    for (size_t k = 0; k < packed.dim; k++) {
        const int q = query[k], p = int(values[k / 4 * 4 * c.panel + k % 4]) - 128;
        dot += q * p, query_squares += q * q, prototype_squares += p * p;
    }
    const double step = packed.scales[prototype];
    return exact(metric, query_step * step * double(dot), query_step * query_step * double(query_squares),
                 step * step * double(prototype_squares));
}

// A block of queries, ready for the panels.
struct Queries {
    const float *rows;
    size_t count;
    Terms terms[MAX_BLOCK];
    // Only for int8.
    float scales[MAX_BLOCK];
    int32_t sums[MAX_BLOCK], square_sums[MAX_BLOCK];
    alignas(64) int8_t bytes[INT8_BLOCK_BYTES];
};

size_t block_size(const ea_packed &packed) {
    return packed.storage == EA_INT8 ? std::min(MAX_BLOCK, INT8_BLOCK_BYTES / packed.stride) : MAX_BLOCK;
}

ea_status prepare(const ea_packed &packed, const float *rows, size_t count, Queries *queries) {
    const size_t dim = packed.dim;
    queries->rows = rows, queries->count = count;
    float squares[MAX_BLOCK];
    kernels().squares(rows, count, dim, squares);
    for (size_t i = 0; i < count; i++) {
        queries->terms[i] = ordinary_terms(squares[i]);
        if (std::isnan(queries->terms[i].square) && !all_finite(rows + i * dim, dim)) return EA_NOT_FINITE;
        if (packed.storage != EA_INT8) continue;
        int8_t *bytes = queries->bytes + i * packed.stride;
        int32_t square_sum;
        round_row(rows + i * dim, dim, bytes, &queries->scales[i], &queries->sums[i], &square_sum);
        for (size_t k = dim; k < packed.stride; k++) bytes[k] = 0;
        queries->square_sums[i] = square_sum;
        queries->terms[i] = {queries->scales[i] * queries->scales[i] * float(square_sum),
                             square_sum ? 1 / std::sqrt(float(square_sum)) : NAN};
    }
    return EA_OK;
}

// out [count, kernels().strip] = distances of a block to a strip.
void strip_distances(const ea_packed &packed, int32_t metric, const Queries &queries, size_t strip, float *out) {
    const Kernels &k = kernels();
    const size_t dim = packed.dim, first = strip * k.strip, n_used = std::min(k.strip, packed.n_prototypes - first);
    const Finish finish = {metric, packed.squares.data() + first, packed.inverses.data() + first,
                           packed.scales.data() + first};
    const char *memory = static_cast<const char *>(packed.strips.get()) + strip * packed.strip_bytes;
    const bool int8 = packed.storage == EA_INT8;
    const bool sure =
        int8 ? k.strip_distances_int8(queries.bytes, packed.stride, queries.count, queries.terms, queries.sums,
                                      queries.scales, reinterpret_cast<const uint8_t *>(memory), n_used, dim, finish,
                                      out)
             : k.strip_distances(queries.rows, dim, queries.count, queries.terms,
                                 reinterpret_cast<const float *>(memory), n_used, dim, finish, out);
    if (sure) return;
    for (size_t i = 0; i < queries.count; i++) {
        float *row = out + i * k.strip, differences[MAX_STRIP];
        const float *query = queries.rows + i * dim;
        bool have_differences = false;
        for (size_t j = 0; j < n_used; j++) {
            if (!std::isnan(row[j])) continue;
            if (int8) {
                row[j] = exact_int8(packed, metric, queries.bytes + i * packed.stride, queries.scales[i], first + j);
            } else if (metric == EA_SQ_L2) {
                if (!have_differences)
                    k.strip_sq_differences(query, reinterpret_cast<const float *>(memory), dim, differences);
                have_differences = true;
                row[j] = differences[j];
            } else {
                row[j] = exact_float32(packed, metric, query, first + j);
            }
        }
    }
}

// use(first query, number of queries, strip, distances [number, kernels().strip]) for all blocks of queries, the strips
// of a query in order.
template <class Use>
ea_status for_each_strip(const ea_packed &packed, int32_t metric, const float *rows, size_t n_queries,
                         size_t first_strip, size_t end_strip, Use use) {
    const size_t block = block_size(packed);
    Queries queries;
    alignas(64) float distances[MAX_BLOCK * MAX_STRIP];
    for (size_t first = 0; first < n_queries; first += block) {
        const ea_status status =
            prepare(packed, rows + first * packed.dim, std::min(block, n_queries - first), &queries);
        if (status != EA_OK) return status;
        for (size_t strip = first_strip; strip < end_strip; strip++) {
            strip_distances(packed, metric, queries, strip, distances);
            use(first, queries.count, strip, distances);
        }
    }
    return EA_OK;
}

// body(first, end) for ranges of n_items, each in a thread of its own but the first, which the caller's thread does. The
// worst status is returned.
template <class Body>
ea_status in_threads(size_t n_threads, size_t n_items, Body body) {
    n_threads = std::max<size_t>(1, std::min({n_threads, n_items, MAX_THREADS}));
    if (n_threads == 1) return body(size_t(0), n_items);
    std::vector<ea_status> statuses(n_threads, EA_OK);
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    const auto work = [&](size_t t) { statuses[t] = body(n_items * t / n_threads, n_items * (t + 1) / n_threads); };
    size_t started = 1;
    try {
        for (; started < n_threads; started++) threads.emplace_back(work, started);
    } catch (const std::exception &) {  // the system has no more threads: what is left is done here
    }
    work(0);
    for (size_t t = started; t < n_threads; t++) work(t);
    for (std::thread &thread : threads) thread.join();
    return *std::max_element(statuses.begin(), statuses.end());
}

bool known_metric(int32_t metric) { return metric == EA_COSINE || metric == EA_SQ_L2 || metric == EA_INNER_PRODUCT; }

}  // namespace

ea_status ea_pack(const float *prototypes, size_t n_prototypes, size_t dim, int32_t storage, ea_packed **packed,
                  char *message) {
    if (!packed) return fail(message, EA_INVALID_ARGUMENT, "there is no place for the result");
    *packed = nullptr;
    if (!is_matrix(prototypes, n_prototypes, dim) || n_prototypes > INT32_MAX)
        return fail(message, EA_INVALID_ARGUMENT, "%zu prototypes of %zu values make no sense", n_prototypes, dim);
    if (storage != EA_FLOAT32 && storage != EA_INT8)
        return fail(message, EA_INVALID_ARGUMENT, "unknown storage %d", int(storage));
    if (storage == EA_INT8 && dim > MAX_INT8_DIM)
        return fail(message, EA_LIMIT, "prototypes of %zu values cannot be stored as int8, which takes up to %zu", dim,
                    MAX_INT8_DIM);
    if (!all_finite(prototypes, n_prototypes * dim))
        return fail(message, EA_NOT_FINITE, "NaN or infinity in prototypes");
    return guarded(message, [&] {
        const size_t width = kernels().strip, panel = width / 2;
        auto made = std::make_unique<ea_packed>();
        made->n_prototypes = n_prototypes, made->dim = dim, made->storage = storage;
        made->stride = (dim + 3) / 4 * 4;
        made->n_strips = (n_prototypes + width - 1) / width;
        made->strip_bytes = width * (storage == EA_INT8 ? made->stride : dim * sizeof(float));
        const size_t n_lanes = made->n_strips * width;
        made->squares.assign(n_lanes, 1), made->inverses.assign(n_lanes, 1), made->scales.assign(n_lanes, 1);
        // Large pages where it is worth one: fewer address translations when streaming.
        size_t bytes = made->n_strips * made->strip_bytes;
        const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
        bytes = (bytes + page - 1) / page * page;
        void *memory = std::aligned_alloc(page, std::max(bytes, page));
        if (!memory) throw std::bad_alloc();
        made->strips.reset(memory);
#if defined(__linux__)
        if (page == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        std::memset(memory, storage == EA_INT8 ? 128 : 0, bytes);  // 128 stands for zero
        std::vector<int8_t> rounded(made->stride);
        for (size_t j = 0; j < n_prototypes; j++) {
            const float *row = prototypes + j * dim;
            char *first = static_cast<char *>(memory) + j / panel * (made->strip_bytes / 2);
            if (storage == EA_INT8) {
                int32_t sum, squares;
                round_row(row, dim, rounded.data(), &made->scales[j], &sum, &squares);
                auto *bytes_of = reinterpret_cast<uint8_t *>(first) + j % panel * 4;
                for (size_t k = 0; k < dim; k++) bytes_of[k / 4 * 4 * panel + k % 4] = uint8_t(int(rounded[k]) + 128);
                made->squares[j] = made->scales[j] * made->scales[j] * float(squares);
                made->inverses[j] = squares ? 1 / std::sqrt(float(squares)) : NAN;
            } else {
                float squares;
                kernels().squares(row, 1, dim, &squares);
                const Terms terms = ordinary_terms(squares);
                made->squares[j] = terms.square, made->inverses[j] = terms.inverse_length;
                auto *column_of = reinterpret_cast<float *>(first) + j % panel;
                for (size_t k = 0; k < dim; k++) column_of[k * panel] = row[k];
            }
        }
        *packed = made.release();
        return EA_OK;
    });
}

void ea_packed_free(ea_packed *packed) { delete packed; }

size_t ea_packed_n_prototypes(const ea_packed *packed) { return packed->n_prototypes; }

size_t ea_packed_dim(const ea_packed *packed) { return packed->dim; }

ea_status ea_packed_distances(const ea_packed *packed, const float *queries, size_t n_queries, int32_t metric,
                              size_t n_threads, float *distances) {
    if (!packed || !known_metric(metric) || !is_matrix(queries, n_queries, packed->dim)
        || !is_matrix(distances, n_queries, packed->n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    const size_t width = kernels().strip, n_prototypes = packed->n_prototypes, dim = packed->dim;
    const auto part = [&](size_t first, size_t end, size_t first_strip, size_t end_strip) {
        return for_each_strip(*packed, metric, queries + first * dim, end - first, first_strip, end_strip,
                              [&](size_t query, size_t count, size_t strip, const float *found) {
                                  const size_t n_used = std::min(width, n_prototypes - strip * width);
                                  float *out = distances + (first + query) * n_prototypes + strip * width;
                                  for (size_t i = 0; i < count; i++)
                                      std::memcpy(out + i * n_prototypes, found + i * width, n_used * sizeof(float));
                              });
    };
    if (n_queries >= n_threads * MANY)
        return in_threads(n_threads, n_queries,
                          [&](size_t first, size_t end) { return part(first, end, 0, packed->n_strips); });
    return in_threads(n_threads, packed->n_strips,
                      [&](size_t first, size_t end) { return part(0, n_queries, first, end); });
}

ea_status ea_packed_nearest(const ea_packed *packed, const float *queries, size_t n_queries, size_t k, int32_t metric,
                            size_t n_threads, float *distances, int32_t *indices) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || k < 1 || k > packed->n_prototypes
        || !is_matrix(queries, n_queries, packed->dim) || !is_matrix(distances, n_queries, k)
        || !is_matrix(indices, n_queries, k))
        return EA_INVALID_ARGUMENT;
    const size_t width = kernels().strip;
    return in_threads(n_threads, n_queries, [&](size_t begin, size_t end) {
        return for_each_strip(
            *packed, metric, queries + begin * packed->dim, end - begin, 0, packed->n_strips,
            [&](size_t query, size_t count, size_t strip, const float *found) {
                const size_t first = strip * width, n_used = std::min(width, packed->n_prototypes - first);
                for (size_t i = 0; i < count; i++) {
                    const float *row = found + i * width;
                    float *closest = distances + (begin + query + i) * k;
                    int32_t *rows = indices + (begin + query + i) * k;
                    if (first >= k && !kernels().any_below(row, n_used, closest[k - 1])) continue;
                    for (size_t j = 0; j < n_used; j++) {
                        const size_t held = std::min(k, first + j);
                        if (held == k && !(row[j] < closest[k - 1])) continue;
                        size_t at = std::min(held, k - 1);
                        for (; at > 0 && row[j] < closest[at - 1]; at--)
                            closest[at] = closest[at - 1], rows[at] = rows[at - 1];
                        closest[at] = row[j], rows[at] = int32_t(first + j);
                    }
                }
            });
    });
}

ea_status ea_packed_label_distances(const ea_packed *packed, const int32_t *labels, size_t n_labels,
                                    const float *queries, size_t n_queries, int32_t metric, size_t n_threads,
                                    float *distances) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || !is_matrix(labels, packed->n_prototypes, 1)
        || !is_matrix(queries, n_queries, packed->dim) || !is_matrix(distances, n_queries, n_labels, true))
        return EA_INVALID_ARGUMENT;
    for (size_t j = 0; j < packed->n_prototypes; j++)
        if (labels[j] < 0 || size_t(labels[j]) >= n_labels) return EA_INVALID_ARGUMENT;
    std::fill(distances, distances + n_queries * n_labels, INFINITY);
    const size_t width = kernels().strip;
    return in_threads(n_threads, n_queries, [&](size_t begin, size_t end) {
        return for_each_strip(*packed, metric, queries + begin * packed->dim, end - begin, 0, packed->n_strips,
                              [&](size_t query, size_t count, size_t strip, const float *found) {
                                  const size_t first = strip * width;
                                  const size_t n_used = std::min(width, packed->n_prototypes - first);
                                  for (size_t i = 0; i < count; i++)
                                      for (size_t j = 0; j < n_used; j++) {
                                          float &d = distances[(begin + query + i) * n_labels + labels[first + j]];
                                          d = std::min(d, found[i * width + j]);
                                      }
                              });
    });
}

ea_status ea_packed_log_softmax(const ea_packed *packed, const float *queries, size_t n_queries, int32_t metric,
                                float temperature, size_t n_threads, float *log_probabilities) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || !(temperature > 0) || !std::isfinite(1 / temperature)
        || !is_matrix(queries, n_queries, packed->dim) || packed->n_prototypes == 0
        || !is_matrix(log_probabilities, n_queries, packed->n_prototypes))
        return EA_INVALID_ARGUMENT;
    const size_t width = kernels().strip, n_prototypes = packed->n_prototypes;
    return in_threads(n_threads, n_queries, [&](size_t begin, size_t end) {
        return for_each_strip(
            *packed, metric, queries + begin * packed->dim, end - begin, 0, packed->n_strips,
            [&](size_t query, size_t count, size_t strip, const float *found) {
                const size_t first = strip * width, n_used = std::min(width, n_prototypes - first);
                for (size_t i = 0; i < count; i++) {
                    float *row = log_probabilities + (begin + query + i) * n_prototypes;
                    std::memcpy(row + first, found + i * width, n_used * sizeof(float));
                    if (strip + 1 == packed->n_strips) kernels().log_softmax(row, n_prototypes, 1 / temperature);
                }
            });
    });
}
