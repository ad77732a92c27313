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
constexpr size_t MAX_WIDTH = 16;  // prototypes in a panel, at most
constexpr size_t MAX_THREADS = 256;
constexpr size_t MANY = 12;  // queries a thread: with fewer, the prototypes are divided instead
constexpr double WORTH_A_THREAD = 2e6;  // products: less is done before a thread has started
constexpr size_t SOME_QUERIES = 24, SOME_PROTOTYPES = 256;  // whose distances are on the stack

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

// Where the values of a prototype begin: one float, or four int8, every `step` bytes.
struct Column {
    char *first;
    size_t step;
};

Column column(const Panels &panels, size_t prototype) {
    const size_t width = kernels().width, panel = prototype / width;
    return {const_cast<char *>(panels.memory) + panel * panels.panel_bytes + prototype % width * 4,
            panel + 1 < panels.n_panels ? panels.step : panels.last_step};
}

float exact_float32(const Panels &panels, int32_t metric, const float *query, size_t prototype) {
    const Column c = column(panels, prototype);
    double dot = 0, query_squares = 0, prototype_squares = 0;
    for (size_t k = 0; k < panels.dim; k++) {
        float value;
        std::memcpy(&value, c.first + k * c.step, sizeof value);
        const double q = query[k], p = value;
        dot += q * p, query_squares += q * q, prototype_squares += p * p;
    }
    return exact(metric, dot, query_squares, prototype_squares);
}

float exact_int8(const Panels &panels, int32_t metric, const int8_t *query, double query_step, size_t prototype) {
    const Column c = column(panels, prototype);
    const auto *values = reinterpret_cast<const uint8_t *>(c.first);
    int64_t dot = 0, query_squares = 0, prototype_squares = 0;
    for (size_t k = 0; k < panels.dim; k++) {
        const int q = query[k], p = int(values[k / 4 * c.step + k % 4]) - 128;
        dot += q * p, query_squares += q * q, prototype_squares += p * p;
    }
    const double step = panels.scales[prototype];
    return exact(metric, query_step * step * double(dot), query_step * query_step * double(query_squares),
                 step * step * double(prototype_squares));
}

// What the kernel left as NaN in a row of distances to panels from `first` on; EA_NOT_FINITE where the query is to blame.
// Out of line, so that its buffers are not in the way of what is common.
__attribute__((noinline)) ea_status mend(const Panels &panels, int32_t metric, const float *query, size_t first,
                                         float *row, size_t count) {
    const size_t width = kernels().width;
    float differences[MAX_WIDTH];
    size_t have_panel = panels.n_panels;
    int8_t rounded[MAX_INT8_DIM];
    float step = -1;
    for (size_t j = 0; j < count; j++) {
        if (!std::isnan(row[j])) continue;
        const size_t prototype = first * width + j;
        if (step < 0) {  // the first of this row
            if (!all_finite(query, panels.dim)) return EA_NOT_FINITE;
            int32_t sum, squares;
            step = 0;
            if (panels.storage == EA_INT8) kernels().round_to_int8(query, panels.dim, rounded, &step, &sum, &squares);
        }
        if (panels.storage == EA_INT8) {
            row[j] = exact_int8(panels, metric, rounded, step, prototype);
        } else if (metric == EA_SQ_L2) {
            if (have_panel != prototype / width)
                kernels().panel_sq_differences(panels, query, prototype / width, differences);
            have_panel = prototype / width;
            row[j] = differences[prototype % width];
        } else {
            row[j] = exact_float32(panels, metric, query, prototype);
        }
    }
    return EA_OK;
}

// out [n_queries, out_stride] = distances to the panels [first, end).
ea_status to_panels(const Panels &panels, int32_t metric, const float *queries, size_t n_queries, size_t first,
                    size_t end, float *out, size_t out_stride) {
    if (first == end && !all_finite(queries, n_queries * panels.dim)) return EA_NOT_FINITE;
    if (first == end || kernels().packed_distances(panels, queries, n_queries, first, end, metric, out, out_stride))
        return EA_OK;
    const size_t width = kernels().width, count = std::min(end * width, panels.n_prototypes) - first * width;
    for (size_t i = 0; i < n_queries; i++) {
        const ea_status status =
            mend(panels, metric, queries + i * panels.dim, first, out + i * out_stride, count);
        if (status != EA_OK) return status;
    }
    return EA_OK;
}

// use(first query, number of queries, first prototype, number of prototypes, distances [., SOME_PROTOTYPES]) for all
// blocks of queries, the prototypes of a query in order.
template <class Use>
ea_status in_blocks(const Panels &panels, int32_t metric, const float *rows, size_t n_queries, Use use) {
    alignas(64) float distances[SOME_QUERIES * SOME_PROTOTYPES];
    const size_t width = kernels().width, some = SOME_PROTOTYPES / width;
    for (size_t query = 0; query < n_queries; query += SOME_QUERIES) {
        const size_t count = std::min(SOME_QUERIES, n_queries - query);
        for (size_t first = 0; first < std::max<size_t>(panels.n_panels, 1); first += some) {
            const size_t end = std::min(first + some, panels.n_panels);
            const ea_status status = to_panels(panels, metric, rows + query * panels.dim, count, first, end, distances,
                                               SOME_PROTOTYPES);
            if (status != EA_OK) return status;
            if (first < end)
                use(query, count, first * width, std::min(end * width, panels.n_prototypes) - first * width, distances);
        }
    }
    return EA_OK;
}

// How many of the threads that were allowed pay for so many distances.
size_t worth_threads(size_t allowed, const Panels &panels, size_t n_queries) {
    const double products = double(n_queries) * double(panels.n_prototypes) * double(panels.dim);
    return std::max<size_t>(1, size_t(std::min(double(std::min(allowed, MAX_THREADS)), products / WORTH_A_THREAD)));
}

// body(first, end) for ranges of n_items, each in a thread of its own but the first, which the caller's thread does. The
// worst status is returned.
template <class Body>
ea_status in_threads(size_t n_threads, size_t n_items, Body body) {
    n_threads = std::max<size_t>(1, std::min(n_threads, n_items));
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
        const size_t width = kernels().width, rest = n_prototypes % width;
        auto made = std::make_unique<ea_packed>();
        Panels &panels = made->panels;
        panels.n_prototypes = n_prototypes, panels.dim = dim, panels.storage = storage;
        panels.n_panels = (n_prototypes + width - 1) / width;
        const size_t n_steps = storage == EA_INT8 ? (dim + 3) / 4 : dim, n_lanes = panels.n_panels * width;
        panels.step = width * 4, panels.panel_bytes = n_steps * panels.step;
        // No wider than it has to be, but so that no value lies across two lines of the cache.
        panels.last_step = rest == 0 || rest > 8 ? panels.step : std::min<size_t>(panels.step, rest > 4 ? 32 : 16);
        made->squares.assign(n_lanes, 1), made->inverses.assign(n_lanes, 1), made->scales.assign(n_lanes, 1);
        // Large pages where it is worth one: fewer address translations when streaming.
        size_t bytes = panels.n_panels * panels.panel_bytes + 64;  // the kernels read whole vectors
        const size_t page = bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
        bytes = (bytes + page - 1) / page * page;
        void *memory = std::aligned_alloc(page, bytes);
        if (!memory) throw std::bad_alloc();
        made->memory.reset(memory);
#if defined(__linux__)
        if (page == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        std::memset(memory, storage == EA_INT8 ? 128 : 0, bytes);  // 128 stands for zero
        panels.memory = static_cast<const char *>(memory);
        panels.squares = made->squares.data(), panels.inverses = made->inverses.data();
        panels.scales = made->scales.data(), panels.ordinary = true;
        std::vector<int8_t> rounded(storage == EA_INT8 ? dim : 0);
        for (size_t j = 0; j < n_prototypes; j++) {
            const float *row = prototypes + j * dim;
            const Column c = column(panels, j);
            float square;
            if (storage == EA_INT8) {
                int32_t sum, squares;
                kernels().round_to_int8(row, dim, rounded.data(), &made->scales[j], &sum, &squares);
                auto *bytes_of = reinterpret_cast<uint8_t *>(c.first);
                for (size_t k = 0; k < dim; k++) bytes_of[k / 4 * c.step + k % 4] = uint8_t(int(rounded[k]) + 128);
                square = made->squares[j] = made->scales[j] * made->scales[j] * float(squares);
                made->inverses[j] = squares ? 1 / std::sqrt(float(squares)) : NAN;
            } else {
                for (size_t k = 0; k < dim; k++) std::memcpy(c.first + k * c.step, row + k, sizeof(float));
                kernels().squares(row, 1, dim, &square);
                const bool ordinary = square > SAFE_SQUARES_MIN && square < SAFE_SQUARES_MAX;
                made->squares[j] = ordinary ? square : NAN;
                made->inverses[j] = ordinary ? 1 / std::sqrt(square) : NAN;
            }
            panels.ordinary &= square > SAFE_SQUARES_MIN && square < SAFE_SQUARES_MAX;
        }
        *packed = made.release();
        return EA_OK;
    });
}

void ea_packed_free(ea_packed *packed) { delete packed; }

size_t ea_packed_n_prototypes(const ea_packed *packed) { return packed ? packed->panels.n_prototypes : 0; }

size_t ea_packed_dim(const ea_packed *packed) { return packed ? packed->panels.dim : 0; }

ea_status ea_packed_distances(const ea_packed *packed, const float *queries, size_t n_queries, int32_t metric,
                              size_t n_threads, float *distances) {
    if (!packed || !known_metric(metric) || !is_matrix(queries, n_queries, packed->panels.dim)
        || !is_matrix(distances, n_queries, packed->panels.n_prototypes, true))
        return EA_INVALID_ARGUMENT;
    const Panels &panels = packed->panels;
    const size_t stride = panels.n_prototypes;
    n_threads = worth_threads(n_threads, panels, n_queries);
    if (n_threads == 1) return to_panels(panels, metric, queries, n_queries, 0, panels.n_panels, distances, stride);
    if (n_queries >= n_threads * MANY || panels.n_panels == 0)
        return in_threads(n_threads, n_queries, [&](size_t first, size_t end) {
            return to_panels(panels, metric, queries + first * panels.dim, end - first, 0, panels.n_panels,
                             distances + first * stride, stride);
        });
    return in_threads(n_threads, panels.n_panels, [&](size_t first, size_t end) {
        return to_panels(panels, metric, queries, n_queries, first, end, distances + first * kernels().width, stride);
    });
}

ea_status ea_packed_nearest(const ea_packed *packed, const float *queries, size_t n_queries, size_t k, int32_t metric,
                            size_t n_threads, float *distances, int32_t *indices) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || k < 1 || k > packed->panels.n_prototypes
        || !is_matrix(queries, n_queries, packed->panels.dim) || !is_matrix(distances, n_queries, k)
        || !is_matrix(indices, n_queries, k))
        return EA_INVALID_ARGUMENT;
    const Panels &panels = packed->panels;
    return in_threads(worth_threads(n_threads, panels, n_queries), n_queries, [&](size_t begin, size_t end) {
        return in_blocks(panels, metric, queries + begin * panels.dim, end - begin,
                         [&](size_t query, size_t count, size_t first, size_t n, const float *found) {
            for (size_t i = 0; i < count; i++) {
                const float *row = found + i * SOME_PROTOTYPES;
                float *closest = distances + (begin + query + i) * k;
                int32_t *rows = indices + (begin + query + i) * k;
                for (size_t piece = 0; piece < n; piece += MAX_WIDTH) {
                    const size_t end_piece = std::min(piece + MAX_WIDTH, n);
                    if (first + piece >= k && !kernels().any_below(row + piece, end_piece - piece, closest[k - 1]))
                        continue;
                    for (size_t j = piece; j < end_piece; j++) {
                        const size_t held = std::min(k, first + j);
                        if (held == k && !(row[j] < closest[k - 1])) continue;
                        size_t at = std::min(held, k - 1);
                        for (; at > 0 && row[j] < closest[at - 1]; at--)
                            closest[at] = closest[at - 1], rows[at] = rows[at - 1];
                        closest[at] = row[j], rows[at] = int32_t(first + j);
                    }
                }
            }
        });
    });
}

ea_status ea_packed_label_distances(const ea_packed *packed, const int32_t *labels, size_t n_labels,
                                    const float *queries, size_t n_queries, int32_t metric, size_t n_threads,
                                    float *distances) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || !is_matrix(labels, packed->panels.n_prototypes, 1)
        || !is_matrix(queries, n_queries, packed->panels.dim) || !is_matrix(distances, n_queries, n_labels, true))
        return EA_INVALID_ARGUMENT;
    const Panels &panels = packed->panels;
    for (size_t j = 0; j < panels.n_prototypes; j++)
        if (labels[j] < 0 || size_t(labels[j]) >= n_labels) return EA_INVALID_ARGUMENT;
    std::fill(distances, distances + n_queries * n_labels, INFINITY);
    return in_threads(worth_threads(n_threads, panels, n_queries), n_queries, [&](size_t begin, size_t end) {
        return in_blocks(panels, metric, queries + begin * panels.dim, end - begin,
                         [&](size_t query, size_t count, size_t first, size_t n, const float *found) {
            for (size_t i = 0; i < count; i++)
                for (size_t j = 0; j < n; j++) {
                    float &d = distances[(begin + query + i) * n_labels + labels[first + j]];
                    d = std::min(d, found[i * SOME_PROTOTYPES + j]);
                }
        });
    });
}

ea_status ea_packed_log_softmax(const ea_packed *packed, const float *queries, size_t n_queries, int32_t metric,
                                float temperature, size_t n_threads, float *log_probabilities) {
    if (!packed || (metric != EA_COSINE && metric != EA_SQ_L2) || !(temperature > 0) || !std::isfinite(1 / temperature)
        || !is_matrix(queries, n_queries, packed->panels.dim) || packed->panels.n_prototypes == 0
        || !is_matrix(log_probabilities, n_queries, packed->panels.n_prototypes))
        return EA_INVALID_ARGUMENT;
    const Panels &panels = packed->panels;
    const size_t stride = panels.n_prototypes;
    return in_threads(worth_threads(n_threads, panels, n_queries), n_queries, [&](size_t begin, size_t end) {
        for (size_t query = begin; query < end; query += SOME_QUERIES) {
            const size_t count = std::min(SOME_QUERIES, end - query);
            float *rows = log_probabilities + query * stride;
            const ea_status status =
                to_panels(panels, metric, queries + query * panels.dim, count, 0, panels.n_panels, rows, stride);
            if (status != EA_OK) return status;
            for (size_t i = 0; i < count; i++) kernels().log_softmax(rows + i * stride, stride, 1 / temperature);
        }
        return EA_OK;
    });
}
