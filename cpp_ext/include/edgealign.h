/* edgealign.h: few-shot recognition on the device, from plain C.

   The smallest useful program: which label of a store is an embedding closest to?

       #include <edgealign.h>
       #include <stdio.h>
       #include <stdlib.h>

       int main(int argc, char **argv)
       {
           char why[EA_MESSAGE_BYTES] = "";
           ea_store *store = NULL;
           ea_matcher *matcher = NULL;
           ea_match best;
           ea_calibration calibration = {0};
           float *embedding, *scratch;
           size_t n_matches = 0;

           calibration.struct_size = sizeof calibration;
           calibration.w_bias = 4.0;
           calibration.w_distance = -8.0;
           calibration.prior_weight = 1.0;
           if (argc < 2 || ea_store_load(argv[1], &store, why)
               || ea_matcher_from_store(store, NULL, 0, &calibration, 1.0f, &matcher, why)) {
               fprintf(stderr, "%s\n", why);
               return 1;
           }
           embedding = calloc(ea_store_dim(store), sizeof(float));
           scratch = malloc(ea_matcher_scratch_floats(matcher) * sizeof(float));
           embedding[0] = 1.0f;
           if (ea_classify(matcher, embedding, 1, scratch, &best, &n_matches) == EA_OK)
               printf("%s %.4f %s\n", ea_store_label(store, best.label), best.distance,
                      best.accepted ? "accepted" : "unknown");
           free(scratch);
           free(embedding);
           ea_matcher_free(matcher);
           ea_store_free(store);
           return 0;
       }

   (The calibration of a real program comes with its bundle.)

   Rules that hold for every function
   - Matrices are float32, row after row, without gaps. Sizes count elements. The formulas are in edgealign/kernels.py.
   - A NaN or an infinity in an input is refused with EA_NOT_FINITE; outputs then hold nothing of use.
   - Kernels (EA_KERNEL) with at most one thread allocate nothing, keep nothing and may run in any number of threads.
     `scratch` is the caller's memory, at least as large as its comment says; nothing needs to be set in it, and it must
     not be shared by threads.
   - No function throws, prints, exits or keeps global state; threads are started only where one takes n_threads.
   - `message`, where present, is a buffer of EA_MESSAGE_BYTES or NULL; a failing call leaves one sentence in it.
   - A NULL handle, path, label or array, where it says nothing else, is EA_INVALID_ARGUMENT; functions that return no
     status give 0 or NULL for a NULL handle.
   - What a *_create or *_load function returned, the caller gives back with the *_free function of the same name; NULL
     may be freed. A matcher may be used by many threads at once, and so may a store where its pointer is const; while
     one thread changes a store, no other may use it. After EA_OUT_OF_MEMORY a store is good for nothing but freeing.
   - Structs for options begin with struct_size, set by the caller to sizeof, so that they can grow.
*/
#ifndef EDGEALIGN_H
#define EDGEALIGN_H

#include <stddef.h>
#include <stdint.h>

#define EA_VERSION "0.1.0"

#if defined(_WIN32)
#define EA_API
#else
#define EA_API __attribute__((visibility("default")))
#endif
#define EA_KERNEL EA_API

#ifdef __cplusplus
extern "C" {
#endif

enum { EA_MESSAGE_BYTES = 512 };

typedef enum ea_status {
    EA_OK = 0,
    EA_INVALID_ARGUMENT = 1, /* a size, an index or an option that makes no sense */
    EA_NOT_FINITE = 2,       /* NaN or infinity in an input */
    EA_OUT_OF_MEMORY = 3,
    EA_IO = 4,               /* the operating system said no; errno is in the message */
    EA_NOT_FOUND = 5,        /* no such file, no such label */
    EA_STORE_UNREADABLE = 6, /* not a store, damaged, or of a format this version does not read */
    EA_STORE_MISMATCH = 7,   /* another modality, encoder or dim */
    EA_LIMIT = 8,            /* beyond a limit of the format, see docs/formats.md */
    EA_BUSY = 9,             /* somebody else is writing the store */
    EA_NOTHING_TO_UNDO = 10,
    EA_BUNDLE_UNREADABLE = 11, /* not a bundle, damaged, or of a format this version does not read */
    EA_RUNTIME_MISSING = 12,   /* no ONNX Runtime there, or none that is new enough */
    EA_RUNTIME_FAILED = 13,    /* ONNX Runtime refused a model or failed to run it */
    EA_NO_SOUND = 14,          /* nothing stands out of the noise, so there is no word to enroll or to embed */
    EA_WRONG_STATE = 15        /* a call that the state of the handle does not allow */
} ea_status;

/* What a status means, in a few lower-case words; never NULL. */
EA_API const char *ea_status_text(ea_status status);

/* The version of the library that is loaded, such as "0.1.0". */
EA_API const char *ea_version(void);

/* The instruction set that the kernels use: "avx512vnni", "avx512", "avx2" or "baseline" on x86-64, "neon" on arm64. It
   is the widest that this processor and this build of the library have, or the one that the environment variable
   EDGEALIGN_INSTRUCTION_SET names when the library is loaded. */
EA_API const char *ea_instruction_set(void);

/* EA_INVALID_ARGUMENT, and a sentence, where EDGEALIGN_INSTRUCTION_SET named a set that is not there: the widest is in
   use then. */
EA_API ea_status ea_instruction_set_check(char *message);

/* ---- Level 0: kernels ------------------------------------------------------------------------------------------- */

/* EA_INNER_PRODUCT is no distance, larger is closer: only ea_packed_distances takes it. */
typedef enum ea_metric { EA_COSINE = 0, EA_SQ_L2 = 1, EA_INNER_PRODUCT = 2 } ea_metric;

/* distances [n_queries, n_prototypes] = squared Euclidean distance, in [0, 4] for unit vectors.
   float32 in 16 lanes: relative error at most (dim / 16 + 6) * 2^-24. */
EA_KERNEL ea_status ea_sq_l2(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes,
                             size_t dim, float *distances);

/* distances [n_queries, n_prototypes] = 1 - cosine of the angle, in [0, 2]; smaller is closer.
   float32 in 16 lanes: absolute error at most (dim / 8 + 16) * 2^-24. */
EA_KERNEL ea_status ea_cosine(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes,
                              size_t dim, float *distances);

/* products [n_queries, n_prototypes] = inner products, infinite beyond the range of float32; larger is closer.
   float32 in 16 lanes: absolute error at most (dim / 16 + 6) * 2^-24 |q| |p|. */
EA_KERNEL ea_status ea_inner_product(const float *queries, size_t n_queries, const float *prototypes,
                                     size_t n_prototypes, size_t dim, float *products);

/* The k closest prototypes of each query, closest first; of equals, the lowest row first. 1 <= k <= n_prototypes;
   metric is an ea_metric; scratch float [2 * n_prototypes]; distances and indices [n_queries, k]. */
EA_KERNEL ea_status ea_nearest(const float *queries, size_t n_queries, const float *prototypes, size_t n_prototypes,
                               size_t dim, size_t k, int32_t metric, float *scratch, float *distances,
                               int32_t *indices);

/* Prototypes that are used many times, rearranged for that. They are copied; nothing changes them, so that any number of
   threads may use them. EA_FLOAT32 keeps the values. EA_INT8 keeps a quarter of the bytes: of every row
   round(value * 127 / largest absolute value), ties to even; queries are rounded in the same way when they come, and the
   distance is that of the two rounded rows. dim is at most 32768 for EA_INT8. */
typedef enum ea_storage { EA_FLOAT32 = 0, EA_INT8 = 1 } ea_storage;
typedef struct ea_packed ea_packed;

EA_API ea_status ea_pack(const float *prototypes, size_t n_prototypes, size_t dim, int32_t storage, ea_packed **packed,
                         char *message);
EA_API void ea_packed_free(ea_packed *packed);
EA_API size_t ea_packed_n_prototypes(const ea_packed *packed);
EA_API size_t ea_packed_dim(const ea_packed *packed);

/* distances [n_queries, n_prototypes] for any ea_metric. n_threads: up to so many threads, which end with the call; 0 and
   1 start none. EA_FLOAT32: the error is at most (dim / 2 + 8) * 2^-24 times 1 for cosine, |q|^2 + |p|^2 for sq_l2,
   |q| |p| for the inner product, and never more than (dim + 600) * 2^-20 of a squared distance itself. */
EA_KERNEL ea_status ea_packed_distances(const ea_packed *packed, const float *queries, size_t n_queries, int32_t metric,
                                        size_t n_threads, float *distances);

/* The k closest prototypes of each query, closest first, of equals the lowest row first, without the matrix of distances.
   metric: EA_COSINE or EA_SQ_L2, here and below; distances and indices [n_queries, k]. Threads share the queries. */
EA_KERNEL ea_status ea_packed_nearest(const ea_packed *packed, const float *queries, size_t n_queries, size_t k,
                                      int32_t metric, size_t n_threads, float *distances, int32_t *indices);

/* distances [n_queries, n_labels] = distance to the closest prototype of each label: several prototypes may have one
   label, labels [n_prototypes] in [0, n_labels). Infinite for a label without prototypes. */
EA_KERNEL ea_status ea_packed_label_distances(const ea_packed *packed, const int32_t *labels, size_t n_labels,
                                              const float *queries, size_t n_queries, int32_t metric,
                                              size_t n_threads, float *distances);

/* log_probabilities [n_queries, n_prototypes] = logarithm of the softmax of -distance / temperature over the prototypes,
   at least one. temperature > 0. */
EA_KERNEL ea_status ea_packed_log_softmax(const ea_packed *packed, const float *queries, size_t n_queries,
                                          int32_t metric, float temperature, size_t n_threads,
                                          float *log_probabilities);

/* prototypes [n_labels, dim], from embeddings [n_rows, dim] with labels [n_rows] in [0, n_labels) and weights [n_rows],
   finite and >= 0, or NULL for equal ones. scratch float [n_labels]. */
EA_KERNEL ea_status ea_prototypes(const float *embeddings, const int32_t *labels, size_t n_rows, size_t n_labels,
                                  size_t dim, const float *weights, float *scratch, float *prototypes);

/* distances [n_rows] = cosine distance of each row to the prototype of its label made without that row;
   valid [n_rows] = 0 where nothing is left to make it from (the distance is then 0), else 1.
   scratch double [n_labels * (dim + 2)]. */
EA_KERNEL ea_status ea_leave_one_out(const float *embeddings, const int32_t *labels, size_t n_rows, size_t n_labels,
                                     size_t dim, const float *weights, double *scratch, float *distances,
                                     uint8_t *valid);

/* stats [n_rows, 2] = mean and standard deviation (at least 1e-4) of the `top` smallest cosine distances of each row to
   the bank [n_bank, dim]; top is cut to n_bank; both must be at least 1. scratch float [5 * n_bank]. */
EA_KERNEL ea_status ea_cohort_stats(const float *rows, size_t n_rows, const float *bank, size_t n_bank, size_t dim,
                                    size_t top, float *scratch, float *stats);

/* How many windows of window_frames, one every hop_frames, lie in n_frames; a last part that is shorter does not count. */
EA_API size_t ea_n_windows(size_t n_frames, size_t window_frames, size_t hop_frames);
EA_API size_t ea_window_scratch_doubles(size_t n_frames, size_t dim, size_t n_groups, int32_t has_profile);

/* stats [ea_n_windows, 2 * dim] = weighted mean of every channel over the frames [n_frames, dim] of a window, then the
   standard deviations. Channels come in n_groups groups of dim / n_groups neighbors that share weights
   [n_frames, n_groups], finite and >= 0, or NULL for equal ones. profile [n_groups, window_frames], or NULL, is a second
   factor that goes with the place in the window. Both are 0 where no frame of a window weighs anything.
   Float64 inside. Without a profile: prefix sums, one pass whatever the overlap, so that a window that weighs next to
   nothing beside what went before it is off by that much. scratch double [ea_window_scratch_doubles]. */
EA_KERNEL ea_status ea_window_stats(const float *frames, size_t n_frames, size_t dim, const float *weights,
                                    size_t n_groups, const float *profile, size_t window_frames, size_t hop_frames,
                                    double *scratch, float *stats);

enum { EA_MAX_PLACES = 64 };

/* The same over spans [n_spans, 2] of first frame and one past the last, each seen at n_places evenly spaced places, at
   most EA_MAX_PLACES: place k is the frame first + (2 k + 1) length / (2 n_places), rounded down. The weight of a place is
   weights [n_frames, n_groups] of its frame times profile [n_groups, n_places], both finite and >= 0.
   stats [n_spans, 2 * dim]. Float32 inside. */
EA_KERNEL ea_status ea_span_stats(const float *frames, size_t n_frames, size_t dim, const float *weights,
                                  size_t n_groups, const float *profile, size_t n_places, const int32_t *spans,
                                  size_t n_spans, float *stats);

typedef struct ea_log_mel_options {
    size_t struct_size;
    size_t n_fft; /* a power of two, 4 to 65536; the filterbank has n_fft / 2 + 1 columns */
    size_t n_mels;
    size_t window_samples; /* 1 to n_fft */
    size_t hop_samples;
    float energy_floor; /* > 0 */
} ea_log_mel_options;

typedef struct ea_log_mel_plan ea_log_mel_plan; /* tables only: one plan serves any number of threads */

EA_API ea_status ea_log_mel_plan_create(const ea_log_mel_options *options, const float *filters,
                                        ea_log_mel_plan **plan);
EA_API void ea_log_mel_plan_free(ea_log_mel_plan *plan);
EA_API size_t ea_log_mel_frames(const ea_log_mel_plan *plan, size_t n_samples);
EA_API size_t ea_log_mel_scratch_floats(const ea_log_mel_plan *plan);

/* log_mels [n_mels, ea_log_mel_frames(plan, n_samples)]. Samples beyond +-EA_MAX_SAMPLE are not audio and are refused
   with EA_INVALID_ARGUMENT. float32: the root of an energy is off by at most 2e-6 of itself plus 5e-8 sqrt(n_fft W S),
   W the sum of the filter's weights and S the sum of squares of the windowed frame.
   scratch float [ea_log_mel_scratch_floats(plan)]. */
#define EA_MAX_SAMPLE 1e6f
EA_KERNEL ea_status ea_log_mel(const ea_log_mel_plan *plan, const float *samples, size_t n_samples, float *scratch,
                               float *log_mels);

typedef struct ea_span_options {
    size_t struct_size;
    double floor_quantile; /* in [0, 1] */
    double above_floor_db;
    double below_peak_db;
    size_t merge_frames;
    size_t min_frames;
    size_t pad_frames;
    size_t max_frames; /* at least 1 */
} ea_span_options;

/* Where the sounds of log_mels [n_mels, n_frames] are: spans [capacity, 3] = first frame, one past the last frame,
   clearness in dB x frames, in time order. n_spans is how many there are; EA_LIMIT if they do not fit, and they always
   do where capacity >= n_frames / 2 + 1. scratch double [2 * n_frames + 1]. */
EA_KERNEL ea_status ea_sound_spans(const float *log_mels, size_t n_mels, size_t n_frames,
                                   const ea_span_options *options, double *scratch, double *spans, size_t capacity,
                                   size_t *n_spans);

/* ---- Level 1: the matcher --------------------------------------------------------------------------------------- */

/* Weights of the decision between a label and unknown. They come with a bundle, never from the user. */
typedef struct ea_calibration {
    size_t struct_size;
    double w_bias, w_z, w_t, w_distance, w_margin, w_loo, w_shots, w_text;
    double accept_logit;
    size_t top;         /* how many rows of the bank make up a cohort */
    double prior_loo;   /* leave-one-out distance expected of a label before it is seen */
    double prior_weight; /* worth this many recordings */
    double lone_margin; /* stands for the margin while there is only one label */
} ea_calibration;

typedef struct ea_match {
    int32_t label;
    int32_t accepted; /* 1: this label; 0: unknown */
    float distance;   /* cosine distance to the prototype */
    double threshold; /* the largest distance that would have been accepted, all else equal */
    double probability;
    double logit;
} ea_match;

/* What an embedding was made from. */
typedef enum ea_kind { EA_RECORDING = 1, EA_TEXT = 2, EA_PICTURE = 3 } ea_kind;

typedef struct ea_matcher ea_matcher;

/* embeddings [n_rows, dim], labels [n_rows] in [0, n_labels), kinds [n_rows] of ea_kind; every label has a row.
   A recording weighs 1 in its prototype, everything else text_weight. bank [n_bank, dim], n_bank may be 0. */
EA_API ea_status ea_matcher_create(const float *embeddings, const int32_t *labels, const int32_t *kinds, size_t n_rows,
                                   size_t n_labels, size_t dim, const float *bank, size_t n_bank,
                                   const ea_calibration *calibration, float text_weight, ea_matcher **matcher,
                                   char *message);
EA_API void ea_matcher_free(ea_matcher *matcher);
EA_API size_t ea_matcher_scratch_floats(const ea_matcher *matcher);

/* The top_k closest labels, closest first, of equals the lowest label first; the answer is matches[0].
   matches [min(top_k, n_labels)]; scratch float [ea_matcher_scratch_floats(matcher)]. */
EA_KERNEL ea_status ea_classify(const ea_matcher *matcher, const float *embedding, size_t top_k, float *scratch,
                                ea_match *matches, size_t *n_matches);

/* The same for embeddings [n_embeddings, dim], which share passes over the bank: matches [n_embeddings,
   min(top_k, n_labels)], and *n_matches of each; scratch float [4 * ea_matcher_scratch_floats(matcher)]. */
EA_KERNEL ea_status ea_classify_many(const ea_matcher *matcher, const float *embeddings, size_t n_embeddings,
                                     size_t top_k, float *scratch, ea_match *matches, size_t *n_matches);

/* ---- Level 1: the store (docs/formats.md) ------------------------------------------------------------------------ */

/* Limits of format 1. */
enum {
    EA_STORE_FORMAT = 1,
    EA_MAX_MODALITY_BYTES = 32,
    EA_MAX_LABEL_BYTES = 1024, /* UTF-8 */
    EA_MAX_NAME_BYTES = 255,   /* UTF-8 */
    EA_MAX_DIM = 4096,
    EA_MAX_LABELS = 100000,
    EA_MAX_ROWS = 1000000,
    EA_MAX_UNDO = 100 /* operations */
};

typedef struct ea_store ea_store;
typedef struct ea_store_lock ea_store_lock;

EA_API ea_status ea_store_create(const char *modality, const uint8_t encoder_sha256[32], size_t dim, ea_store **store,
                                 char *message);
EA_API ea_status ea_store_load(const char *path, ea_store **store, char *message);
EA_API void ea_store_free(ea_store *store);

/* Take the only right to write `path`, so that load, change, save loses nothing; EA_BUSY if somebody else has it.
   The lock is on the file `<path>.lock`, which stays. It ends with the process at the latest. */
EA_API ea_status ea_store_lock_acquire(const char *path, ea_store_lock **lock, char *message);
EA_API void ea_store_lock_release(ea_store_lock *lock);

/* Replace `path` in one step: after a crash there is the old store or the new one. Takes the lock of the same path. */
EA_API ea_status ea_store_save(ea_store *store, const char *path, const ea_store_lock *lock, char *message);

EA_API const char *ea_store_modality(const ea_store *store);
EA_API const uint8_t *ea_store_encoder_sha256(const ea_store *store);
EA_API size_t ea_store_dim(const ea_store *store);
EA_API uint64_t ea_store_n_ops(const ea_store *store);
/* The checksum that ends the file that this store would be saved as. */
EA_API ea_status ea_store_sha256(ea_store *store, uint8_t sha256[32]);

/* Labels that have rows, in the order of their first enrollment. Strings live until the next change. */
EA_API size_t ea_store_n_labels(const ea_store *store);
EA_API const char *ea_store_label(const ea_store *store, size_t label);

typedef struct ea_store_row {
    int32_t label; /* counts as in ea_store_label */
    int32_t kind;  /* ea_kind */
    const char *name;
    const uint8_t *source_sha256;
    const float *embedding;
} ea_store_row;

EA_API size_t ea_store_n_rows(const ea_store *store);
EA_API ea_status ea_store_get_row(const ea_store *store, size_t index, ea_store_row *row);

/* Changes from here to the next call are one operation, which one ea_store_undo takes back. */
EA_API void ea_store_begin_op(ea_store *store);
/* Add rows [n_rows, dim] of one ea_kind to a label, new or known; a row that is there already (same label, kind and
   source_sha256 [n_rows, 32]) is skipped. names [n_rows] are UTF-8, at most 255 bytes. */
EA_API ea_status ea_store_add(ea_store *store, const char *label, int32_t kind, const float *embeddings, size_t n_rows,
                              const uint8_t *source_sha256s, const char *const *names, size_t *n_added, char *message);
EA_API ea_status ea_store_remove(ea_store *store, const char *label, size_t *n_removed, char *message);
/* Take one row out; index as in ea_store_get_row, and those behind it move up. */
EA_API ea_status ea_store_remove_row(ea_store *store, size_t index, char *message);
/* Give the rows of a label to another one, new or known, where they come last; those that it has already are not there
   twice. *n_moved counts the others. */
EA_API ea_status ea_store_rename(ea_store *store, const char *label, const char *new_label, size_t *n_moved,
                                 char *message);
/* Add what `other` holds and this store does not. */
EA_API ea_status ea_store_merge(ea_store *store, const ea_store *other, size_t *n_added, char *message);
EA_API ea_status ea_store_undo(ea_store *store, char *message);

/* A matcher over the labels of a store as they are now; its labels count as in ea_store_label. */
EA_API ea_status ea_matcher_from_store(const ea_store *store, const float *bank, size_t n_bank,
                                       const ea_calibration *calibration, float text_weight, ea_matcher **matcher,
                                       char *message);

#ifdef __cplusplus
}
#endif
#endif
