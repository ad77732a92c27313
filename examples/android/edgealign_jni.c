/* A wrapper for class org.example.Edgealign: open, push, poll, close. One listening at a time and thread. */
#include <edgealign_rt.h>
#include <jni.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Listening {
    ea_recognizer *recognizer;
    ea_stream *stream;
} Listening;

static void raise(JNIEnv *env, const char *why)
{
    jclass error = (*env)->FindClass(env, "java/lang/IllegalStateException");
    if (error) (*env)->ThrowNew(env, error, why);
}

/* static native long open(String runtime, String bundle, String store, int sampleRateHz); */
JNIEXPORT jlong JNICALL Java_org_example_Edgealign_open(JNIEnv *env, jclass owner, jstring runtime_path,
                                                        jstring bundle, jstring store, jint sample_rate_hz)
{
    char why[EA_MESSAGE_BYTES] = "out of memory";
    const char *paths[3] = {NULL, NULL, NULL};
    const jstring given[3] = {runtime_path, bundle, store};
    ea_runtime *runtime = NULL;
    ea_model *model = NULL;
    ea_stream_options options = {0};
    Listening *made = calloc(1, sizeof *made);
    int i, failed = !made;
    (void)owner;
    options.struct_size = sizeof options;
    options.sample_rate_hz = (uint32_t)sample_rate_hz;
    options.n_channels = 1;
    options.debounce_s = 0.5;
    for (i = 0; i < 3; i++) failed |= !(paths[i] = (*env)->GetStringUTFChars(env, given[i], NULL));
    failed = failed || ea_runtime_open(paths[0], &runtime, why) || ea_model_open(paths[1], runtime, NULL, &model, why)
             || ea_recognizer_open(model, paths[2], &made->recognizer, why)
             || ea_stream_open(made->recognizer, &options, &made->stream, why);
    for (i = 0; i < 3; i++)
        if (paths[i]) (*env)->ReleaseStringUTFChars(env, given[i], paths[i]);
    ea_model_free(model); /* the recognizer keeps what it needs */
    ea_runtime_free(runtime);
    if (!failed) return (jlong)(intptr_t)made;
    if (made) ea_recognizer_free(made->recognizer);
    free(made);
    raise(env, why);
    return 0;
}

/* static native void push(long handle, short[] samples, int count); */
JNIEXPORT void JNICALL Java_org_example_Edgealign_push(JNIEnv *env, jclass owner, jlong handle, jshortArray samples,
                                                       jint count)
{
    Listening *listening = (Listening *)(intptr_t)handle;
    jshort *pcm = (*env)->GetShortArrayElements(env, samples, NULL);
    (void)owner;
    if (!pcm) return;
    if (count > 0 && count <= (*env)->GetArrayLength(env, samples))
        ea_stream_push_i16(listening->stream, pcm, (size_t)count);
    (*env)->ReleaseShortArrayElements(env, samples, pcm, JNI_ABORT);
}

/* static native String poll(long handle); a line "start_s<TAB>end_s<TAB>label<TAB>probability", or null */
JNIEXPORT jstring JNICALL Java_org_example_Edgealign_poll(JNIEnv *env, jclass owner, jlong handle)
{
    Listening *listening = (Listening *)(intptr_t)handle;
    char why[EA_MESSAGE_BYTES] = "", line[1200];
    ea_answer answer = {0};
    int32_t heard = 1;
    (void)owner;
    answer.struct_size = sizeof answer;
    while (heard) {
        if (ea_stream_poll(listening->stream, 1, &answer, &heard, why)) return raise(env, why), NULL;
        if (!heard || !answer.label) continue;
        snprintf(line, sizeof line, "%.3f\t%.3f\t%s\t%.3f", answer.start_s, answer.end_s, answer.label,
                 answer.probability);
        return (*env)->NewStringUTF(env, line);
    }
    return NULL;
}

/* static native void close(long handle); */
JNIEXPORT void JNICALL Java_org_example_Edgealign_close(JNIEnv *env, jclass owner, jlong handle)
{
    Listening *listening = (Listening *)(intptr_t)handle;
    (void)env, (void)owner;
    if (!listening) return;
    ea_stream_free(listening->stream);
    ea_recognizer_free(listening->recognizer);
    free(listening);
}
