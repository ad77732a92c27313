/* Uses all of level 2: every_call RUNTIME BUNDLE STORE, with float32 PCM at 16 kHz on standard input, in which two words
   are three quarters of a second apart. With -DCOUNT_ALLOCATIONS it also fails where the audio path allocates. */
#include <edgealign_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RATE = 16000, MOST = 60 * RATE, BLOCK = 160 };
static float samples[MOST];
static char why[EA_MESSAGE_BYTES];
static long n_allocations;

#ifdef COUNT_ALLOCATIONS
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t size) { n_allocations++; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { n_allocations++; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { n_allocations++; return __libc_realloc(old, size); }
#endif

static void must(ea_status status, const char *what)
{
    if (status == EA_OK) return;
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void must_allocate_nothing(long before, const char *what)
{
    if (n_allocations == before) return;
    fprintf(stderr, "%s: %ld allocations\n", what, n_allocations - before);
    exit(1);
}

static void enroll(ea_recognizer *recognizer, const char *label, const float *clip, size_t count)
{
    must(ea_recognizer_begin(recognizer, RATE, 1, why), "begin");
    must(ea_recognizer_push(recognizer, clip, count, why), "push");
    must(ea_recognizer_enroll(recognizer, label, "clip", NULL, why), "enroll");
}

int main(int argc, char **argv)
{
    ea_runtime *runtime = NULL;
    ea_model *model = NULL;
    ea_recognizer *recognizer = NULL;
    ea_stream *stream = NULL;
    ea_answer answer = {0};
    ea_stream_options options = {0};
    float *embedding;
    size_t count = fread(samples, sizeof *samples, MOST, stdin), at;
    int32_t heard;
    int turn, n_heard = 0;
    long before;

    if (argc != 4) return 2;
    answer.struct_size = sizeof answer;
    options.struct_size = sizeof options;
    options.sample_rate_hz = 44100;
    options.n_channels = 2;
    must(ea_runtime_open(argv[1], &runtime, why), "runtime");
    must(ea_model_open(argv[2], runtime, NULL, &model, why), "model");
    must(ea_recognizer_open(model, argv[3], &recognizer, why), "recognizer");
    embedding = malloc(ea_model_dim(model) * sizeof *embedding);
    enroll(recognizer, "the first of the two words", samples, count / 2); /* no string of C++ holds it in place */
    enroll(recognizer, "the second of the two words", samples + count / 2, count - count / 2);
    must(ea_recognizer_save(recognizer, why), "save");

    /* The second turn is one with everything at hand. */
    for (turn = 0; turn < 2; turn++) {
        before = n_allocations;
        must(ea_recognizer_begin(recognizer, RATE, 1, why), "begin");
        for (at = 0; at + BLOCK <= count / 2; at += BLOCK)
            must(ea_recognizer_push(recognizer, samples + at, BLOCK, why), "push");
        must(ea_recognizer_classify(recognizer, 2, &answer, why), "classify");
        must(ea_recognizer_begin(recognizer, RATE, 1, why), "begin");
        must(ea_recognizer_push(recognizer, samples, count / 2, why), "push");
        must(ea_recognizer_embed(recognizer, embedding, why), "embed");
        if (turn) must_allocate_nothing(before, "clip");
    }
    printf("%s\n", answer.label ? answer.label : "(unknown)");

    must(ea_stream_open(recognizer, &options, &stream, why), "stream");
    before = n_allocations;
    for (at = 0; at + BLOCK / 2 <= count / 2 * 2; at += BLOCK / 2) { /* mono taken for two channels: twice as fast */
        must(ea_stream_push(stream, samples + at, BLOCK / 4), "stream push");
        do {
            must(ea_stream_poll(stream, 1, &answer, &heard, why), "poll");
            n_heard += heard;
        } while (heard);
    }
    ea_stream_end(stream);
    do {
        must(ea_stream_poll(stream, 1, &answer, &heard, why), "poll");
        n_heard += heard;
    } while (heard);
    must_allocate_nothing(before, "stream");
    printf("%d heard, %lu dropped\n", n_heard, (unsigned long)ea_stream_n_dropped(stream));

    /* What is refused must lose nothing either. */
    if (ea_recognizer_push(recognizer, samples, 1, why) != EA_WRONG_STATE) return 3;
    if (ea_recognizer_begin(recognizer, 1, 1, why) != EA_INVALID_ARGUMENT) return 3;
    if (ea_model_open("nowhere", runtime, NULL, &model, why) != EA_BUNDLE_UNREADABLE) return 3;
    if (ea_runtime_open("nowhere.so", &runtime, why) != EA_RUNTIME_MISSING) return 3;
    ea_stream_free(stream);
    ea_recognizer_free(recognizer);
    ea_model_free(model);
    ea_runtime_free(runtime);
    free(embedding);
    return 0;
}
