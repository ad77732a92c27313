/* Times level 2 of the C library in a process of its own: level2_process RUNTIME BUNDLE STORE N_RUNS, with a second of
   int16 PCM at 16 kHz on standard input. Prints one JSON object; benchmarks/latency.py compiles and runs it. */
#define _POSIX_C_SOURCE 199309L
#include <edgealign_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RATE = 16000, N_WARM_UP = 20, MOST_RUNS = 10000 };
static int16_t samples[RATE];
static double taken_ms[MOST_RUNS], cpu_ms[MOST_RUNS];
static char why[EA_MESSAGE_BYTES];

/* By the clock, and of the processor, which other processes disturb less. */
typedef struct { double clock, cpu; } Times;

static double read_ms(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static Times since(Times start)
{
    Times now = {read_ms(CLOCK_MONOTONIC) - start.clock, read_ms(CLOCK_PROCESS_CPUTIME_ID) - start.cpu};
    return now;
}

static void must(ea_status status)
{
    if (status == EA_OK) return;
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static long peak_kib(void)
{
    char line[256];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1) break;
    if (status) fclose(status);
    return kib;
}

int main(int argc, char **argv)
{
    ea_runtime *runtime = NULL;
    ea_model *model = NULL;
    ea_recognizer *recognizer = NULL;
    ea_answer answer = {0};
    const Times zero = {0, 0};
    Times start, runtime_ms, model_ms, store_ms, first_ms = zero;
    size_t count = fread(samples, sizeof *samples, RATE, stdin);
    int turn, n_runs = argc == 5 ? atoi(argv[4]) : 0;

    if (n_runs < 1 || n_runs > MOST_RUNS) return 2;
    answer.struct_size = sizeof answer;
    start = since(zero);
    must(ea_runtime_open(argv[1], &runtime, why));
    runtime_ms = since(start);
    start = since(zero);
    must(ea_model_open(argv[2], runtime, NULL, &model, why));
    model_ms = since(start);
    start = since(zero);
    must(ea_recognizer_open(model, argv[3], &recognizer, why));
    store_ms = since(start);
    for (turn = -N_WARM_UP; turn < n_runs; turn++) {
        Times taken;
        start = since(zero);
        must(ea_recognizer_begin(recognizer, RATE, 1, why));
        must(ea_recognizer_push_i16(recognizer, samples, count, why));
        must(ea_recognizer_classify(recognizer, 2, &answer, why));
        taken = since(start);
        if (turn == -N_WARM_UP) first_ms = taken;
        if (turn >= 0) taken_ms[turn] = taken.clock, cpu_ms[turn] = taken.cpu;
    }
    qsort(taken_ms, (size_t)n_runs, sizeof *taken_ms, by_size);
    qsort(cpu_ms, (size_t)n_runs, sizeof *cpu_ms, by_size);
    printf("{\"runtime_ms\": [%.3f, %.3f], \"model_ms\": [%.3f, %.3f], \"store_ms\": [%.3f, %.3f], "
           "\"first_ms\": [%.3f, %.3f], \"median_ms\": %.4f, \"p95_ms\": %.4f, \"cpu_median_ms\": %.4f, "
           "\"peak_rss_mb\": %.1f}\n",
           runtime_ms.clock, runtime_ms.cpu, model_ms.clock, model_ms.cpu, store_ms.clock, store_ms.cpu, first_ms.clock,
           first_ms.cpu, taken_ms[n_runs / 2], taken_ms[n_runs * 95 / 100], cpu_ms[n_runs / 2],
           (double)peak_kib() * 1024 / 1e6);
    ea_recognizer_free(recognizer);
    ea_model_free(model);
    ea_runtime_free(runtime);
    return 0;
}
