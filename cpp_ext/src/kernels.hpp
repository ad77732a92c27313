// What every instruction set brings: the same functions, compiled once for each from kernels/table.cpp. Sizes are checked
// by the callers. Which set is used is decided once, when the library is loaded (dispatch.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ea {

constexpr size_t MAX_STRIP = 64;  // prototypes in a strip, at most; how many is the instruction set's choice
constexpr size_t MAX_BLOCK = 96;  // queries that pass over a strip in one call, at most

// A query, or a packed prototype, as the formulas see it. One that float32 cannot be trusted with holds NaN; what comes
// out is then NaN and is computed again by other means.
struct Terms {
    float square;          // sum of squares
    float inverse_length;  // 1 / root of it
};

// What turns dot products into distances.
struct Finish {
    int metric;                      // ea_metric
    const float *squares, *inverses; // of the prototypes of the strip, see Terms
    const float *scales;             // int8: of the prototypes of the strip
};

struct LogMelTables {
    size_t n_fft, n_mels, window_samples, hop_samples;
    float energy_floor;
    const float *window;           // [window_samples]
    const uint32_t *reversed;      // [n_fft / 2], bit-reversed positions
    const float *cosines, *sines;  // [n_fft / 2 + 1], exp(-2 pi i k / n_fft)
    struct Band {
        size_t first_bin, n_bins, first_weight;
    };
    const Band *bands;  // [n_mels]: where each filter is not zero
    const float *weights;
};

struct Kernels {
    const char *name;

    // ---- rows as they lie ----
    // out[i * out_stride + j] = sum over k of queries[i][k] * rows[j][k], or of the squared differences
    void (*dots)(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim, float *out,
                 size_t out_stride);
    void (*sq_differences)(const float *queries, size_t n_queries, const float *rows, size_t n_rows, size_t dim,
                           float *out, size_t out_stride);
    void (*squares)(const float *rows, size_t n_rows, size_t dim, float *out);
    // Whether -bound <= value <= bound holds for all; a NaN never does.
    bool (*all_within)(const float *values, size_t count, float bound);
    // Dot products of a query to cosine distances where all norms are ordinary; false, and nothing done, where not.
    bool (*cosine_from_dots)(float *dots, float query_norm, const float *norms, size_t n_rows);
    void (*add_scaled)(float *total, const float *row, float scale, size_t dim);

    // ---- strips: packed prototypes (kernels/panels.hpp) ----
    size_t strip;  // prototypes in a strip
    // out [n_queries, strip] = distances of n_queries <= MAX_BLOCK to the first n_used prototypes of a strip, NaN where it
    // has to be done otherwise; true if there is none.
    bool (*strip_distances)(const float *queries, size_t query_stride, size_t n_queries, const Terms *terms,
                            const float *strip, size_t n_used, size_t dim, const Finish &finish, float *out);
    // out [strip] = sums of squared differences of one query
    void (*strip_sq_differences)(const float *query, const float *strip, size_t dim, float *out);
    // The same for int8: queries of query_stride >= dim bytes rounded up to 4, zero beyond dim; prototypes + 128 as
    // uint8, four values of one prototype side by side. sums [n_queries]: of the values of a query.
    bool (*strip_distances_int8)(const int8_t *queries, size_t query_stride, size_t n_queries, const Terms *terms,
                                 const int32_t *sums, const float *scales, const uint8_t *strip, size_t n_used,
                                 size_t dim, const Finish &finish, float *out);
    // The largest absolute value.
    float (*largest)(const float *values, size_t count);
    // Values of a row times scale, rounded to the nearest (ties to even); their sum and sum of squares.
    void (*round_to_int8)(const float *row, float scale, size_t dim, int8_t *out, int32_t *sum, int32_t *squares);

    // values[i] = -values[i] * factor - log(sum of exp(-values * factor)); equal where all are infinite
    void (*log_softmax)(float *values, size_t count, float factor);
    // Whether a value is below the bound.
    bool (*any_below)(const float *values, size_t count, float bound);

    // Frames first_frame to first_frame + n_valid <= 16 of a clip.
    void (*log_mel_frames)(const LogMelTables &tables, const float *samples, size_t n_samples, size_t first_frame,
                           size_t n_valid, size_t n_frames, float *scratch, float *log_mels);
};

// The set in use; never changes once the library is loaded.
const Kernels &kernels();

}  // namespace ea
