/* Runs each hot path of the core once: hot_paths RUNTIME BUNDLE STORE. benchmarks/instructions.py counts what the
   functions path_* take. RUNTIME is stand_in_runtime.c, so that the encoder is not counted. */
#include <edgealign_rt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define PATH __attribute__((noinline, noclone)) void
enum {
    RATE = 16000, N_QUERIES = 64, N_PROTOTYPES = 1000, DIM = 192, N_LABELS = 200, N_SHOTS = 5, N_BANK = 1400,
    N_FFT = 512, N_MELS = 48, WINDOW = 400, HOP = 160, TOP = 5
};

static char why[EA_MESSAGE_BYTES];
static float samples[RATE], filters[N_MELS * (N_FFT / 2 + 1)], log_mels[N_MELS * RATE / HOP], *log_mel_scratch;
static float prototypes[N_PROTOTYPES * DIM], queries[N_QUERIES * DIM], distances[N_QUERIES * N_PROTOTYPES];
static float bank[N_BANK * DIM], embedding[DIM], *matcher_scratch;
static double levels[2 * RATE], spans[RATE];
static ea_match matches[TOP];

static void must(ea_status status, const char *what)
{
    if (status == EA_OK) return;
    fprintf(stderr, "%s: %s %s\n", what, ea_status_text(status), why);
    exit(1);
}

PATH path_packed_distances(const ea_packed *packed)
{
    must(ea_packed_distances(packed, queries, N_QUERIES, EA_COSINE, 1, distances), "packed distances");
}
PATH path_packed_distances_int8(const ea_packed *packed)
{
    must(ea_packed_distances(packed, queries, N_QUERIES, EA_COSINE, 1, distances), "packed distances, int8");
}
PATH path_packed_nearest(const ea_packed *packed)
{
    static int32_t indices[N_QUERIES * TOP];
    must(ea_packed_nearest(packed, queries, N_QUERIES, TOP, EA_COSINE, 1, distances, indices), "packed nearest");
}
PATH path_log_mel(const ea_log_mel_plan *plan)
{
    must(ea_log_mel(plan, samples, RATE, log_mel_scratch, log_mels), "log-mel");
}
PATH path_word_finding(const ea_span_options *options, size_t n_frames)
{
    size_t count;
    must(ea_sound_spans(log_mels, N_MELS, n_frames, options, levels, spans, n_frames / 2 + 1, &count), "spans");
}
PATH path_store_open(const char *path, ea_store **store) { must(ea_store_load(path, store, why), "store open"); }
PATH path_match(const ea_matcher *matcher)
{
    size_t count;
    must(ea_classify(matcher, queries, TOP, matcher_scratch, matches, &count), "match");
}
PATH path_model_open(const char *bundle, const ea_runtime *runtime, ea_model **model)
{
    must(ea_model_open(bundle, runtime, NULL, model, why), "model open");
}
PATH path_pcm_to_embedding(ea_recognizer *recognizer)
{
    must(ea_recognizer_begin(recognizer, RATE, 1, why), "begin");
    must(ea_recognizer_push(recognizer, samples, RATE, why), "push");
    must(ea_recognizer_embed(recognizer, embedding, why), "embed");
}

/* The same numbers everywhere: the top bits of a linear congruential generator. */
static float number(void)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static void unit_rows(float *rows, size_t n_rows)
{
    size_t row, i;
    for (row = 0; row < n_rows; row++, rows += DIM) {
        double squares = 0;
        for (i = 0; i < DIM; i++) rows[i] = number(), squares += (double)rows[i] * rows[i];
        for (i = 0; i < DIM; i++) rows[i] = (float)(rows[i] / sqrt(squares));
    }
}

static void make_store(const char *path, const ea_model *model)
{
    ea_store *store = NULL;
    ea_store_lock *lock = NULL;
    size_t label, i, n_added;
    must(ea_store_create("speech", ea_model_encoder_sha256(model), DIM, &store, why), "create");
    for (label = 0; label < N_LABELS; label++) {
        uint8_t sha256[N_SHOTS * 32];
        const char *names[N_SHOTS];
        char text[16];
        for (i = 0; i < sizeof sha256; i++) sha256[i] = (uint8_t)(label * 5 + i);
        for (i = 0; i < N_SHOTS; i++) names[i] = "clip.wav";
        sprintf(text, "label%d", (int)label);
        must(ea_store_add(store, text, EA_RECORDING, prototypes + label * N_SHOTS * DIM, N_SHOTS, sha256, names,
                          &n_added, why), "add");
    }
    must(ea_store_lock_acquire(path, &lock, why), "lock");
    must(ea_store_save(store, path, lock, why), "save");
    ea_store_lock_release(lock);
    ea_store_free(store);
}

int main(int argc, char **argv)
{
    ea_runtime *runtime = NULL;
    ea_model *model = NULL;
    ea_recognizer *recognizer = NULL;
    ea_store *store = NULL;
    ea_matcher *matcher = NULL;
    ea_packed *packed = NULL, *packed_int8 = NULL;
    ea_log_mel_plan *plan = NULL;
    ea_log_mel_options mel = {sizeof mel, N_FFT, N_MELS, WINDOW, HOP, 1e-10f};
    ea_span_options span = {sizeof span, 0.05, 6, 32, 30, 6, 10, 300};
    ea_calibration calibration = {sizeof calibration, -3, 0.35, 0.37, -2.2, 2.6, 0.9, 0, 0, 0, 40, 0.136, 2, 0.25};
    size_t i;

    if (argc != 4) return 2;
    for (i = 0; i < RATE; i++) /* half a second of tone in faint noise */
        samples[i] = 1e-4f * number() + (i > 4000 && i < 12000 ? 0.1f * (float)sin((double)i * 0.3) : 0.0f);
    for (i = 0; i < N_MELS * (N_FFT / 2 + 1); i++) filters[i] = i % (N_FFT / 2 + 1) / 5 == i / (N_FFT / 2 + 1) ? 1 : 0;
    unit_rows(prototypes, N_PROTOTYPES);
    unit_rows(queries, N_QUERIES);
    unit_rows(bank, N_BANK);

    must(ea_pack(prototypes, N_PROTOTYPES, DIM, EA_FLOAT32, &packed, why), "pack");
    must(ea_pack(prototypes, N_PROTOTYPES, DIM, EA_INT8, &packed_int8, why), "pack int8");
    path_packed_distances(packed);
    path_packed_distances_int8(packed_int8);
    path_packed_nearest(packed);

    must(ea_log_mel_plan_create(&mel, filters, &plan), "plan");
    log_mel_scratch = malloc(ea_log_mel_scratch_floats(plan) * sizeof *log_mel_scratch);
    path_log_mel(plan);
    path_word_finding(&span, ea_log_mel_frames(plan, RATE));

    must(ea_runtime_open(argv[1], &runtime, why), "runtime");
    path_model_open(argv[2], runtime, &model);
    if (ea_model_dim(model) != DIM) return 3;
    make_store(argv[3], model);
    path_store_open(argv[3], &store);
    must(ea_matcher_from_store(store, bank, N_BANK, &calibration, 0.5f, &matcher, why), "matcher");
    matcher_scratch = malloc(ea_matcher_scratch_floats(matcher) * sizeof *matcher_scratch);
    path_match(matcher);
    must(ea_recognizer_open(model, NULL, &recognizer, why), "recognizer");
    path_pcm_to_embedding(recognizer); /* allocates for the format */
    path_pcm_to_embedding(recognizer);

    printf("%s\n", ea_instruction_set());
    free(matcher_scratch);
    free(log_mel_scratch);
    ea_recognizer_free(recognizer);
    ea_matcher_free(matcher);
    ea_store_free(store);
    ea_model_free(model);
    ea_runtime_free(runtime);
    ea_log_mel_plan_free(plan);
    ea_packed_free(packed);
    ea_packed_free(packed_int8);
    return 0;
}
