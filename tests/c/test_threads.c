/* Many threads on one pipeline get what one thread gets; one frees what the others use. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

enum { THREADS = 4, ROUNDS = 6 };

struct job {
    dolly_pipeline *pipeline;
    dolly_options *options;
    const char *expected;
    int freed;
};

static void *same_answers(void *data) {
    const struct job *job = data;
    for (int round = 0; round < ROUNDS; round++) {
        dolly_result *result = NULL;
        const char *text = NULL;
        size_t len = 0;
        CHECK(dolly_generate(job->pipeline, TEXT("Name three colours."), NULL, 0, job->options,
                             &result, NULL) == DOLLY_STATUS_OK);
        CHECK(dolly_result_text(result, &text, &len) == DOLLY_STATUS_OK);
        CHECK(strcmp(text, job->expected) == 0);
        CHECK(dolly_result_free(result) == DOLLY_STATUS_OK);
    }
    return NULL;
}

/* Every call works, or tells that the handle is gone. */
static void *use_until_freed(void *data) {
    struct job *job = data;
    for (int round = 0; round < ROUNDS; round++) {
        dolly_result *result = NULL;
        const dolly_status status = dolly_generate(job->pipeline, TEXT("Name three colours."), NULL,
                                                   0, job->options, &result, NULL);
        CHECK(status == DOLLY_STATUS_OK || status == DOLLY_STATUS_INVALID_HANDLE);
        CHECK((status == DOLLY_STATUS_OK) == (result != NULL));
        CHECK(dolly_result_free(result) == DOLLY_STATUS_OK);
    }
    job->freed = dolly_pipeline_free(job->pipeline) == DOLLY_STATUS_OK;
    return NULL;
}

static void run(void *(*body)(void *), struct job *jobs) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, body, &jobs[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(8);
    dolly_result *expected = ask(pipeline, options);
    struct job jobs[THREADS];
    for (int i = 0; i < THREADS; i++) {
        const struct job job = {pipeline, options, text_of(expected), 0};
        jobs[i] = job;
    }
    run(same_answers, jobs);
    run(use_until_freed, jobs);
    int freed = 0;
    for (int i = 0; i < THREADS; i++) {
        freed += jobs[i].freed;
    }
    CHECK(freed == 1);
    OK(dolly_result_free(expected));
    OK(dolly_options_free(options));
    return all_freed();
}
