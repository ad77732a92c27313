/* Records 16-bit mono WAV and marks the enrolled words in it while it records: cue points with labels, GUANO metadata,
   and an Audacity label track beside it (OUT.wav -> OUT.txt).

     field_recorder RUNTIME BUNDLE STORE OUT.wav            from the ALSA device "default" until Ctrl-C
     field_recorder RUNTIME BUNDLE STORE OUT.wav IN.wav     a 16-bit mono WAV file in place of the microphone

   RUNTIME is ONNX Runtime's shared library. */
#define _POSIX_C_SOURCE 200809L
#include <edgealign_rt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef HAVE_ALSA
#include <alsa/asoundlib.h>
#endif

enum { BLOCK = 480, MOST_MARKS = 10000, MOST_LABEL = 200, MICROPHONE_HZ = 48000, HEADER_BYTES = 44 };
enum { MOST_SAMPLES = 2146000000 }; /* of a WAV file, whose sizes have 32 bits; 12 hours at 48 kHz */

typedef struct Mark {
    double start_s;
    char label[MOST_LABEL];
} Mark;

static Mark marks[MOST_MARKS];
static size_t n_marks;
static volatile sig_atomic_t stopped;
static char why[EA_MESSAGE_BYTES];

static void stop(int number) { (void)number, stopped = 1; }

static int fail(const char *what, const char *reason)
{
    fprintf(stderr, "error: %s: %s\n", what, reason);
    return 1;
}

/* ---- The WAV file that is written ---- */

static void u16(FILE *file, unsigned value) { fputc((int)(value & 255), file), fputc((int)(value >> 8 & 255), file); }
static void u32(FILE *file, unsigned long value) { u16(file, value & 65535), u16(file, value >> 16 & 65535); }
static void name4(FILE *file, const char *name) { fwrite(name, 1, 4, file); }

/* Also written once a second while recording, so that a power cut leaves a file that opens. */
static void write_header(FILE *file, unsigned long rate, unsigned long data_bytes, unsigned long riff_bytes)
{
    rewind(file);
    name4(file, "RIFF"), u32(file, riff_bytes), name4(file, "WAVE"), name4(file, "fmt ");
    u32(file, 16), u16(file, 1), u16(file, 1), u32(file, rate), u32(file, 2 * rate), u16(file, 2), u16(file, 16);
    name4(file, "data"), u32(file, data_bytes);
    fseek(file, 0, SEEK_END);
}

static void write_cues(FILE *file, unsigned long rate)
{
    unsigned long bytes = 4;
    size_t i;
    name4(file, "cue "), u32(file, 4 + 24 * n_marks), u32(file, n_marks);
    for (i = 0; i < n_marks; i++) {
        const unsigned long at = (unsigned long)(marks[i].start_s * (double)rate);
        u32(file, i + 1), u32(file, at), name4(file, "data"), u32(file, 0), u32(file, 0), u32(file, at);
    }
    for (i = 0; i < n_marks; i++) bytes += 12 + (strlen(marks[i].label) + 2) / 2 * 2;
    name4(file, "LIST"), u32(file, bytes), name4(file, "adtl");
    for (i = 0; i < n_marks; i++) {
        const size_t count = strlen(marks[i].label) + 1;
        name4(file, "labl"), u32(file, 4 + count), u32(file, i + 1);
        fwrite(marks[i].label, 1, count, file);
        if (count % 2) fputc(0, file);
    }
}

static void write_guano(FILE *file, unsigned long rate, double length_s, const char *started)
{
    char text[512];
    int count = snprintf(text, sizeof text,
                         "GUANO|Version:1.0\nTimestamp:%s\nSamplerate:%lu\nLength:%.3f\nMake:edgealign\n"
                         "Model:field_recorder\nNote:%lu marked words\n",
                         started, rate, length_s, (unsigned long)n_marks);
    name4(file, "guan"), u32(file, (unsigned long)count);
    fwrite(text, 1, (size_t)count, file);
    if (count % 2) fputc(0, file);
}

/* ---- Where sound comes from: the next samples, 0 at the end, or -1 ---- */

typedef struct Source {
    FILE *file;
    unsigned long left, rate;
#ifdef HAVE_ALSA
    snd_pcm_t *device;
#endif
} Source;

static unsigned long little(const unsigned char *bytes, int count)
{
    return count ? bytes[0] | little(bytes + 1, count - 1) << 8 : 0;
}

static int open_wav(Source *source, const char *path)
{
    unsigned char head[16];
    source->file = fopen(path, "rb");
    if (!source->file) return fail(path, "cannot be read");
    if (fread(head, 1, 12, source->file) != 12 || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4))
        return fail(path, "is not a WAV file");
    while (fread(head, 1, 8, source->file) == 8) {
        const unsigned long bytes = little(head + 4, 4);
        if (!memcmp(head, "data", 4) && source->rate) return source->left = bytes / 2, 0;
        if (!memcmp(head, "fmt ", 4)) {
            if (bytes < 16 || fread(head, 1, 16, source->file) != 16) break;
            if (little(head, 2) != 1 || little(head + 2, 2) != 1 || little(head + 14, 2) != 16)
                return fail(path, "16-bit mono PCM is read");
            source->rate = little(head + 4, 4);
            if (fseek(source->file, (long)(bytes - 16 + bytes % 2), SEEK_CUR)) break;
        } else if (fseek(source->file, (long)(bytes + bytes % 2), SEEK_CUR)) {
            break;
        }
    }
    return fail(path, "is cut short");
}

static int open_microphone(Source *source)
{
#ifdef HAVE_ALSA
    int error = snd_pcm_open(&source->device, "default", SND_PCM_STREAM_CAPTURE, 0);
    source->rate = MICROPHONE_HZ;
    if (!error)
        error = snd_pcm_set_params(source->device, SND_PCM_FORMAT_S16_LE, SND_PCM_ACCESS_RW_INTERLEAVED, 1,
                                   MICROPHONE_HZ, 1, 200000);
    return error ? fail("the microphone", snd_strerror(error)) : 0;
#else
    (void)source;
    return fail("the microphone", "this program was built without ALSA: name a WAV file");
#endif
}

static long read_samples(Source *source, int16_t *samples)
{
    const unsigned long most = source->left < BLOCK ? source->left : BLOCK;
    size_t i;
#ifdef HAVE_ALSA
    if (source->device) {
        long count = snd_pcm_readi(source->device, samples, BLOCK);
        if (count < 0) count = snd_pcm_recover(source->device, (int)count, 1); /* an overrun, or it is gone */
        if (count < 0) fail("the microphone", snd_strerror((int)count));
        return count ? count : snd_pcm_readi(source->device, samples, BLOCK);
    }
#endif
    i = fread(samples, 2, most, source->file);
    source->left -= i;
    return (long)i;
}

int main(int argc, char **argv)
{
    ea_runtime *runtime = NULL;
    ea_model *model = NULL;
    ea_recognizer *recognizer = NULL;
    ea_stream *stream = NULL;
    ea_stream_options options = {0};
    ea_answer answer = {0};
    Source source = {0};
    int16_t samples[BLOCK];
    unsigned long n_samples = 0, said_at = 0;
    char started[32], track[4096], *dot;
    time_t now = time(NULL);
    FILE *out, *labels;
    long count;
    int32_t heard;
    int failed = 0;

    if (argc < 5 || argc > 6) return fprintf(stderr, "usage: %s RUNTIME BUNDLE STORE OUT.wav [IN.wav]\n", argv[0]), 2;
    if (argc == 6 ? open_wav(&source, argv[5]) : open_microphone(&source)) return 4;
    answer.struct_size = sizeof answer;
    options.struct_size = sizeof options;
    options.sample_rate_hz = (uint32_t)source.rate;
    options.n_channels = 1;
    if (ea_runtime_open(argv[1], &runtime, why) || ea_model_open(argv[2], runtime, NULL, &model, why)
        || ea_recognizer_open(model, argv[3], &recognizer, why)
        || ea_stream_open(recognizer, &options, &stream, why))
        return fail("edgealign", why), 3;
    snprintf(track, sizeof track - 4, "%s", argv[4]);
    dot = strrchr(track, '.');
    if (dot && !strchr(dot, '/')) *dot = 0;
    strcat(track, ".txt");
    labels = fopen(track, "wx"); /* neither labels nor a recording are written over */
    if (!labels) return fail(track, "exists or cannot be written");
    out = fopen(argv[4], "wbx");
    if (!out) return fclose(labels), remove(track), fail(argv[4], "exists or cannot be written");
    signal(SIGINT, stop);
    strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    write_header(out, source.rate, 0, HEADER_BYTES - 8);

    do {
        count = stopped ? 0 : read_samples(&source, samples);
        if (count > 0) {
            if (fwrite(samples, 2, (size_t)count, out) != (size_t)count) failed = fail(argv[4], "the disk is full");
            n_samples += (unsigned long)count;
            ea_stream_push_i16(stream, samples, (size_t)count);
            if (n_samples >= MOST_SAMPLES) stopped = 1, fprintf(stderr, "the WAV file is full: start another one\n");
        } else {
            failed |= count < 0;
            ea_stream_end(stream);
        }
        for (;;) {
            char *c;
            if (ea_stream_poll(stream, 1, &answer, &heard, why)) failed = fail("edgealign", why);
            if (failed || !heard) break;
            if (!answer.label || n_marks == MOST_MARKS) continue;
            marks[n_marks].start_s = answer.start_s;
            snprintf(marks[n_marks].label, MOST_LABEL, "%s", answer.label);
            printf("%8.2f s  %s (%.0f%% sure)\n", answer.start_s, marks[n_marks].label, 100 * answer.probability);
            for (c = marks[n_marks].label; *c; c++)
                if (*c == '\t' || *c == '\n' || *c == '\r') *c = ' ';
            fprintf(labels, "%.6f\t%.6f\t%s %.2f\n", answer.start_s, answer.end_s, marks[n_marks].label,
                    answer.probability);
            fflush(labels); /* a power cut takes no word that was heard */
            if (++n_marks == MOST_MARKS) fprintf(stderr, "no more words are marked after %d\n", MOST_MARKS);
        }
        if (n_samples - said_at >= source.rate) {
            write_header(out, source.rate, 2 * n_samples, HEADER_BYTES - 8 + 2 * n_samples);
            fflush(out);
            said_at = n_samples;
        }
    } while (count > 0 && !failed);

    if (n_marks) write_cues(out, source.rate);
    write_guano(out, source.rate, (double)n_samples / (double)source.rate, started);
    write_header(out, source.rate, 2 * n_samples, (unsigned long)ftell(out) - 8);
    if (fclose(out)) failed = fail(argv[4], "could not be written to its end");
    if (fclose(labels)) failed = fail(track, "could not be written to its end");
    ea_stream_free(stream);
    ea_recognizer_free(recognizer);
    ea_model_free(model);
    ea_runtime_free(runtime);
#ifdef HAVE_ALSA
    if (source.device) snd_pcm_close(source.device);
#endif
    if (source.file) fclose(source.file);
    return failed;
}
