// What every instruction set brings: the same functions, compiled once for each from kernels/table.cpp. Sizes are checked
// by the callers. Which set is used is decided once, when the library is loaded (dispatch.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ea {

// Packed prototypes (kernels/panels.hpp).
struct Panels {
    size_t n_prototypes, dim, n_panels;
    size_t step;        // bytes from value k to k + 1 of a panel, for int8 from four values to the next four
    size_t last_step;   // the same for the last panel, which may be narrower
    size_t panel_bytes; // of all but the last
    int32_t storage;    // ea_storage
    bool ordinary;      // whether float32 can be trusted with the lengths of all
    const char *memory;
    // [n_panels * width], filled up with such as disturb nothing. A prototype that float32 cannot be trusted with has NaN
    // in the first two; what comes out is then NaN and is computed again by other means.
    const float *squares;   // sums of squares
    const float *inverses;  // 1 / root of these
    const float *scales;    // int8: what one step stands for
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

struct ResamplerTables {
    uint64_t from, to, n_phases;  // a phase is 1 / n_phases of a sample; `to` samples come out for `from` that go in
    size_t stride;                // a multiple of 16
    const float *taps;            // [n_phases + 1, stride]
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
    // dots() of one query and squares() in one pass over the rows.
    void (*dots_and_squares)(const float *query, const float *rows, size_t n_rows, size_t dim, float *dots,
                             float *squares);
    // Whether -bound <= value <= bound holds for all; a NaN never does.
    bool (*all_within)(const float *values, size_t count, float bound);
    // Dot products of a query to cosine distances where all norms are ordinary; false, and nothing done, where not.
    bool (*cosine_from_dots)(float *dots, float query_norm, const float *norms, size_t n_rows);
    void (*add_scaled)(float *total, const float *row, float scale, size_t dim);
    // Of [dim] values of each row: the mean with these shares, whose sum is 1, and the root of the mean of what is left,
    // squared.
    void (*weighted_stats)(const float *const *rows, const float *shares, size_t n_rows, size_t dim, float *mean,
                           float *deviation);

    // ---- packed prototypes (kernels/panels.hpp) ----
    size_t width;  // prototypes in a panel
    // out[i * out_stride + j] = distance of query i to prototype j of the panels [first, end), NaN where it has to be done
    // otherwise; true if there is none.
    bool (*packed_distances)(const Panels &panels, const float *queries, size_t n_queries, size_t first, size_t end,
                             int32_t metric, float *out, size_t out_stride);
    // out [width] = sums of squared differences of one query to a panel of float32
    void (*panel_sq_differences)(const Panels &panels, const float *query, size_t panel, float *out);
    // A row rounded to int8: what one step stands for, the sum of the rounded values and that of their squares.
    void (*round_to_int8)(const float *row, size_t dim, int8_t *out, float *step, int32_t *sum, int32_t *squares);

    // values[i] = -values[i] * factor - log(sum of exp(-values * factor)); equal where all are infinite
    void (*log_softmax)(float *values, size_t count, float factor);
    // Whether a value is below the bound.
    bool (*any_below)(const float *values, size_t count, float bound);

    // Frames first_frame to first_frame + n_valid <= 16 of a clip.
    void (*log_mel_frames)(const LogMelTables &tables, const float *samples, size_t n_samples, size_t first_frame,
                           size_t n_valid, size_t n_frames, float *scratch, float *log_mels);
    // `count` samples, the first at `remainder` / to beyond where `samples` begin.
    void (*resample)(const ResamplerTables &tables, const float *samples, uint64_t remainder, size_t count,
                     float *output);
};

// The set in use; never changes once the library is loaded.
const Kernels &kernels();

}  // namespace ea
