/*
 * Nothing grows over many requests, everything is given back by free: memory, threads, files.
 *
 *     test_growth MODEL [REQUESTS [LOADS]]
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <dirent.h>
#include <time.h>
#include <unistd.h>

static long entries(const char *directory) {
    long count = 0;
    DIR *open = opendir(directory);
    CHECK(open != NULL);
    while (readdir(open) != NULL) {
        count++;
    }
    closedir(open);
    return count;
}

/* Threads that were told to end may still be on their way out: waits for them, not for ever. */
static void await_threads(long wanted) {
    const struct timespec moment = {0, 1000000};
    for (int i = 0; entries("/proc/self/task") != wanted; i++) {
        CHECK(i < 20000);
        nanosleep(&moment, NULL);
    }
}

static long resident_bytes(void) {
    long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &size, &resident) == 2);
    fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

static void requests(const dolly_pipeline *pipeline, long count) {
    dolly_options *options = greedy(1);
    for (long i = 0; i < count; i++) {
        dolly_result *result = ask(pipeline, options);
        OK(dolly_result_free(result));
        result = NULL;
        dolly_stream *stream = NULL;
        OK(dolly_stream_open(pipeline, TEXT("x"), NULL, 0, options, &stream, ERR));
        OK(dolly_stream_free(stream));
        GIVES(DOLLY_STATUS_INVALID_UTF8,
              dolly_generate(pipeline, "\xff", 1, NULL, 0, options, &result, ERR));
    }
    OK(dolly_options_free(options));
}

int main(int argc, char **argv) {
    const long count = argc > 2 ? atol(argv[2]) : 1000;
    const long loads = argc > 3 ? atol(argv[3]) : 60;
    const long files = entries("/proc/self/fd"), threads = entries("/proc/self/task");

    dolly_pipeline *pipeline = load(argc, argv);
    requests(pipeline, count / 5);
    const long before = resident_bytes(), working = entries("/proc/self/task");
    requests(pipeline, count);
    const long grown = resident_bytes() - before;
    printf("%ld bytes more after %ld requests\n", grown, count);
    CHECK(grown <= 2L << 20);
    CHECK(entries("/proc/self/task") == working && entries("/proc/self/fd") == files);
    OK(dolly_pipeline_free(pipeline));

    long first = 0;
    for (long i = 0; i < loads; i++) {
        pipeline = load(argc, argv);
        requests(pipeline, 1);
        OK(dolly_pipeline_free(pipeline));
        first = i == loads / 3 ? resident_bytes() : first;
    }
    printf("%ld bytes more after %ld loads\n", resident_bytes() - first, loads - loads / 3);
    CHECK(resident_bytes() - first <= 2L << 20);
    await_threads(threads);
    CHECK(entries("/proc/self/fd") == files);
    return all_freed();
}
