/* Cancelling before, during, from a signal handler; the flag outlives its handle. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <signal.h>

static dolly_cancel *volatile to_trigger;
static volatile sig_atomic_t handled = -1;

static void on_signal(int number) {
    (void)number;
    handled = (sig_atomic_t)dolly_cancel_trigger(to_trigger);
}

static int32_t raise_once(void *user_data, const char *piece, size_t piece_len) {
    (void)piece;
    (void)piece_len;
    int *calls = user_data;
    if ((*calls)++ == 0) {
        raise(SIGUSR1);
    }
    return 1;
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(400);
    dolly_cancel *cancel = NULL;
    bool triggered = true;
    /* From a signal handler, in the midst of an answer. */
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    dolly_result *result = NULL;
    bool cancelled = false;
    for (int rounds = 0; !cancelled;) {
        int calls = 0;
        OK(dolly_cancel_free(cancel));
        OK(dolly_cancel_new(&cancel, ERR));
        OK(dolly_cancel_is_triggered(cancel, &triggered));
        CHECK(!triggered);
        OK(dolly_options_set_cancel(options, cancel, ERR));
        to_trigger = cancel;
        OK(dolly_generate_stream(pipeline, TEXT("Go on."), NULL, 0, options, raise_once, &calls,
                                 &result, ERR));
        CHECK(handled == DOLLY_STATUS_OK);
        OK(dolly_cancel_is_triggered(cancel, &triggered));
        CHECK(triggered);
        cancelled = was_cancelled(result, 400, &rounds);
        OK(dolly_result_free(result));
    }

    /* It stays triggered, without its handle too, until taken away. */
    OK(dolly_cancel_free(cancel));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_cancel_trigger(cancel));
    result = ask(pipeline, options);
    CHECK(reason_of(result) == DOLLY_FINISH_REASON_CANCELLED && tokens_of(result) == 0);
    OK(dolly_result_free(result));
    OK(dolly_options_set_cancel(options, NULL, ERR));
    OK(dolly_options_set_max_new_tokens(options, 3, ERR));
    result = ask(pipeline, options);
    CHECK(reason_of(result) == DOLLY_FINISH_REASON_LENGTH);
    OK(dolly_result_free(result));
    OK(dolly_cancel_free(NULL));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
