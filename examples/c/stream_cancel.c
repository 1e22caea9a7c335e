/*
 * Prints an answer while it is written; another thread stops it after its third piece.
 *
 *     cc examples/c/stream_cancel.c $(pkg-config --cflags --libs dolly) -pthread -o stream_cancel
 *     ./stream_cancel [MODEL]
 */
#define _POSIX_C_SOURCE 200809L
#include <dolly.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* What the two threads share. */
struct shared {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int pieces;
    int ended;
    dolly_cancel *cancel;
};

/* Waits for three pieces, then triggers the flag. */
static void *stop_after_three(void *data) {
    struct shared *shared = data;
    pthread_mutex_lock(&shared->lock);
    while (shared->pieces < 3 && !shared->ended) {
        pthread_cond_wait(&shared->changed, &shared->lock);
    }
    pthread_mutex_unlock(&shared->lock);
    while (dolly_cancel_trigger(shared->cancel) == DOLLY_STATUS_BUSY) {
    }
    return NULL;
}

/* Runs on the thread that called dolly_generate_stream. */
static int32_t on_piece(void *user_data, const char *piece, size_t piece_len) {
    struct shared *shared = user_data;
    fwrite(piece, 1, piece_len, stdout);
    fflush(stdout);
    pthread_mutex_lock(&shared->lock);
    shared->pieces++;
    pthread_cond_signal(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
    return 1;
}

int main(int argc, char **argv) {
    const char *model = argc > 1 ? argv[1] : "dolly-nano";
    const char *instruction = "Write a long story about the sea.";
    struct shared shared = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, NULL};
    dolly_pipeline *pipeline = NULL;
    dolly_options *options = NULL;
    dolly_result *result = NULL;
    int32_t reason = -1;
    pthread_t stopper;

    if (dolly_pipeline_load(model, strlen(model), NULL, &pipeline, NULL) != DOLLY_STATUS_OK ||
        dolly_cancel_new(&shared.cancel, NULL) != DOLLY_STATUS_OK ||
        dolly_options_new(&options, NULL) != DOLLY_STATUS_OK ||
        dolly_options_set_cancel(options, shared.cancel, NULL) != DOLLY_STATUS_OK ||
        dolly_options_set_ignore_end(options, true, NULL) != DOLLY_STATUS_OK ||
        dolly_options_set_max_new_tokens(options, 400, NULL) != DOLLY_STATUS_OK) {
        fprintf(stderr, "the model or its options failed\n");
        return 1;
    }
    if (pthread_create(&stopper, NULL, stop_after_three, &shared) != 0) {
        return 1;
    }
    const dolly_status status =
        dolly_generate_stream(pipeline, instruction, strlen(instruction), NULL, 0, options,
                              on_piece, &shared, &result, NULL);
    pthread_mutex_lock(&shared.lock);
    shared.ended = 1;
    pthread_cond_signal(&shared.changed);
    pthread_mutex_unlock(&shared.lock);
    pthread_join(stopper, NULL);
    if (status == DOLLY_STATUS_OK) {
        dolly_result_finish_reason(result, &reason);
    }
    printf("\n%s, finish reason %d\n", dolly_status_name(status), (int)reason);
    dolly_result_free(result);
    dolly_options_free(options);
    dolly_cancel_free(shared.cancel);
    dolly_pipeline_free(pipeline);
    return status == DOLLY_STATUS_OK ? 0 : 1;
}
