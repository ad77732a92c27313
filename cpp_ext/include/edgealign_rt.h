/* edgealign_rt.h: sound in, label out, from plain C (level 2 of edgealign.h, and in the same library).

   The smallest useful program: which enrolled word is in a second of PCM?

       #include <edgealign_rt.h>
       #include <stdio.h>

       int main(int argc, char **argv)
       {
           static float samples[16000];
           char why[EA_MESSAGE_BYTES] = "";
           ea_runtime *runtime = NULL;
           ea_model *model = NULL;
           ea_recognizer *recognizer = NULL;
           ea_answer answer = {0};
           size_t count = fread(samples, sizeof *samples, 16000, stdin);

           answer.struct_size = sizeof answer;
           if (argc < 4 || ea_runtime_open(argv[1], &runtime, why) || ea_model_open(argv[2], runtime, NULL, &model, why)
               || ea_recognizer_open(model, argv[3], &recognizer, why)
               || ea_recognizer_begin(recognizer, 16000, 1, why) || ea_recognizer_push(recognizer, samples, count, why)
               || ea_recognizer_classify(recognizer, 2, &answer, why)) {
               fprintf(stderr, "%s\n", why);
               return 1;
           }
           printf("%s %.4f\n", answer.label ? answer.label : "(unknown)", answer.probability);
           ea_recognizer_free(recognizer);
           ea_model_free(model);
           ea_runtime_free(runtime);
           return 0;
       }

   Rules beyond those of edgealign.h
   - A runtime and a model may be used by many threads at once; each recognizer and each stream by one thread at a time,
     except that ea_stream_push may run in one thread while everything else of that stream runs in another. Any number
     of recognizers share one model, and the encoder's weights are in memory once.
   - What was made from something keeps it alive: a runtime may be freed before its models, a model before its
     recognizers. A recognizer must outlive its streams.
   - PCM is float32 in [-1, 1], or int16; the channels of a frame lie beside each other. NaN, infinity and values beyond
     +-EA_MAX_SAMPLE are refused, and nothing of that call is taken.
   - ea_recognizer_begin allocates where the format changes; ea_recognizer_push, _classify and _embed, and the ea_stream_*
     functions but _open and _free, allocate nothing themselves. ONNX Runtime, which they call, does in its own arena.
   - Strings and arrays in an answer live until the next call with the same recognizer.
   - All pointers may be NULL where it says so; elsewhere NULL is EA_INVALID_ARGUMENT, or 0 or NULL where no status is
     returned.
*/
#ifndef EDGEALIGN_RT_H
#define EDGEALIGN_RT_H

#include "edgealign.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- ONNX Runtime ------------------------------------------------------------------------------------------------ */

typedef struct ea_runtime ea_runtime;

/* The ONNX Runtime, 1.17 or newer, in a shared library, such as libonnxruntime.so.1 in the wheel of Python's
   onnxruntime. path: as for dlopen; NULL is $EDGEALIGN_ONNXRUNTIME, else libonnxruntime.so.1 where the system's loader
   finds it. EA_RUNTIME_MISSING says what was wrong.
   From 1.32 on it may report its use over the network: a host sets ORT_DISABLE_TELEMETRY=1 in its environment before. */
EA_API ea_status ea_runtime_open(const char *path, ea_runtime **runtime, char *message);

/* The ONNX Runtime that the program has already: what its OrtGetApiBase() returned. */
EA_API ea_status ea_runtime_adopt(const void *ort_api_base, ea_runtime **runtime, char *message);
EA_API void ea_runtime_free(ea_runtime *runtime);

/* Such as "1.31.1". */
EA_API const char *ea_runtime_version(const ea_runtime *runtime);

/* ---- The model: a bundle that is ready to run -------------------------------------------------------------------- */

typedef struct ea_model ea_model;

typedef struct ea_model_options {
    size_t struct_size;
    const char *variant; /* of the encoder, such as "fp32"; NULL is the bundle's default */
} ea_model_options;

/* Reads a bundle folder (docs/formats.md, formats 1 and 2) and gets its encoder ready, on one thread. Sizes and checksums
   are checked on the bytes that are used. The encoder may take log-mel energies or samples, of the word in a clip or of
   windows over all of it; a bundle for pictures is EA_BUNDLE_UNREADABLE. options may be NULL. */
EA_API ea_status ea_model_open(const char *bundle, const ea_runtime *runtime, const ea_model_options *options,
                               ea_model **model, char *message);
EA_API void ea_model_free(ea_model *model);

EA_API const char *ea_model_name(const ea_model *model);
EA_API const char *ea_model_modality(const ea_model *model);
EA_API const char *ea_model_variant(const ea_model *model);
EA_API size_t ea_model_dim(const ea_model *model);
EA_API const uint8_t *ea_model_encoder_sha256(const ea_model *model); /* 32 bytes: the fingerprint */
/* From which probability on a label is accepted. */
EA_API double ea_model_accept_probability(const ea_model *model);

/* ---- The recognizer: clips --------------------------------------------------------------------------------------- */

typedef struct ea_recognizer ea_recognizer;

/* What a sound was taken for. The caller sets struct_size. */
typedef struct ea_answer {
    size_t struct_size;
    int32_t has_sound;     /* 0: nothing stands out of the noise; then all below but heard_s is 0 or NULL */
    const char *label;     /* UTF-8; NULL is unknown */
    double probability;    /* of the closest label */
    double distance;       /* cosine distance to the closest label */
    double threshold;      /* the largest distance at which it would have been accepted */
    const ea_match *top;   /* the closest labels, closest first, for unknowns too */
    size_t n_top;
    size_t n_sounds;       /* in the clip; the clearest was used */
    double start_s, end_s; /* of that sound, from the beginning of the clip or the stream */
    double heard_s;        /* how much of the clip or the stream had been heard when the answer was given */
} ea_answer;

/* A recognizer over a store. The store need not exist before the first save; NULL is a store in memory only.
   EA_STORE_MISMATCH where the store is of another encoder. */
EA_API ea_status ea_recognizer_open(const ea_model *model, const char *store, ea_recognizer **recognizer,
                                    char *message);
EA_API void ea_recognizer_free(ea_recognizer *recognizer);

/* With a bundle whose windows cover the clip, what is said below of its clearest sound is said of all of it: every clip
   has_sound, n_sounds is 1, and the embedding is the mean of the windows'. ea_stream_open refuses such a bundle, and one
   that takes samples, with EA_INVALID_ARGUMENT.

   A clip is: begin, any number of pushes, then one of classify, embed and enroll. Clips may have any length: as in
   Python, the clearest sound is looked for in windows of 60 s. Rates of 4,000 to 500,000 Hz, 1 to 64 channels, which
   are averaged. Another rate than the encoder's is resampled by the core, see docs/formats.md. */
EA_API ea_status ea_recognizer_begin(ea_recognizer *recognizer, uint32_t sample_rate_hz, uint32_t n_channels,
                                     char *message);
EA_API ea_status ea_recognizer_push(ea_recognizer *recognizer, const float *samples, size_t n_frames, char *message);
EA_API ea_status ea_recognizer_push_i16(ea_recognizer *recognizer, const int16_t *samples, size_t n_frames,
                                        char *message);

/* Ends the clip with its label, or unknown. At least 25 ms of sound, and a store with at least one label
   (EA_WRONG_STATE without); 1 <= top_k <= EA_MAX_TOP. A clip in which nothing stands out is an answer, not an error. */
enum { EA_MAX_TOP = 100 };
EA_API ea_status ea_recognizer_classify(ea_recognizer *recognizer, size_t top_k, ea_answer *answer, char *message);

/* Ends the clip with the embedding [ea_model_dim] of its clearest sound; EA_NO_SOUND without one. */
EA_API ea_status ea_recognizer_embed(ea_recognizer *recognizer, float *embedding, char *message);

/* Ends the clip by learning it: the next answers know it; ea_recognizer_save keeps it. label: UTF-8, in Unicode's normal
   form NFC. name: of the recording, for people; may be NULL. n_added (may be NULL) is 0 where this very recording was
   there already. */
EA_API ea_status ea_recognizer_enroll(ea_recognizer *recognizer, const char *label, const char *name, size_t *n_added,
                                      char *message);

/* Adds what was enrolled since the last save to the store on disk, as one operation, and loses nothing of what others
   wrote meanwhile: their labels are then known here too. EA_BUSY where somebody else is writing for a second. */
EA_API ea_status ea_recognizer_save(ea_recognizer *recognizer, char *message);

/* Labels as they are now; a match's `label` counts in them. */
EA_API size_t ea_recognizer_n_labels(const ea_recognizer *recognizer);
EA_API const char *ea_recognizer_label(const ea_recognizer *recognizer, size_t label);
/* The store in memory, to look at. */
EA_API const ea_store *ea_recognizer_store(const ea_recognizer *recognizer);

/* ---- The stream: sound without an end ---------------------------------------------------------------------------- */

typedef struct ea_stream ea_stream;

typedef struct ea_stream_options {
    size_t struct_size;
    uint32_t sample_rate_hz; /* 4,000 to 500,000 */
    uint32_t n_channels;     /* 1 to 64, averaged */
    double ring_s;           /* how much sound waits for a poll; 0 is 2 s, at most 60 */
    double debounce_s;       /* the label of the last answer is not answered again so soon after its end; >= 0 */
} ea_stream_options;

/* Listens with the labels of a recognizer, those included that are enrolled later. The rule is in
   edgealign/listen.py: a known word is answered 0.2 to 0.3 s after it ended, an unknown sound 0.1 s later. */
EA_API ea_status ea_stream_open(ea_recognizer *recognizer, const ea_stream_options *options, ea_stream **stream,
                                char *message);
EA_API void ea_stream_free(ea_stream *stream);

/* Never waits: for the callback of an audio device. EA_LIMIT where the ring is full; nothing of this call is then
   taken, and ea_stream_n_dropped counts its frames. Times of answers count what was taken. */
EA_API ea_status ea_stream_push(ea_stream *stream, const float *samples, size_t n_frames);
EA_API ea_status ea_stream_push_i16(ea_stream *stream, const int16_t *samples, size_t n_frames);
EA_API uint64_t ea_stream_n_dropped(const ea_stream *stream);

/* Says that no more will come, so that a word at the very end is answered too. For the thread that pushes. */
EA_API ea_status ea_stream_end(ea_stream *stream);

/* Works through what was pushed, up to the next word that ended. *heard is 1 and answer is filled where there was one:
   poll again at once; it is 0 where everything has been worked through: poll again in 10 ms or so. */
EA_API ea_status ea_stream_poll(ea_stream *stream, size_t top_k, ea_answer *answer, int32_t *heard, char *message);

#ifdef __cplusplus
}
#endif
#endif
