/* What the C tests share: every check names its place and ends the program when it fails. */
#ifndef DOLLY_TESTS_CHECK_H
#define DOLLY_TESTS_CHECK_H

#include "dolly.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

/* The call must give this status, and an error object that says the same. */
#define GIVES(status, call) check_status(__FILE__, __LINE__, #call, status, call)
#define OK(call) GIVES(DOLLY_STATUS_OK, call)

/* A text as the two arguments of a call. */
#define TEXT(text) (text), strlen(text)

/* The last argument of calls that give error objects. */
#define ERR (&check_error)

static dolly_error *check_error = NULL;

static inline void check_failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
    exit(1);
}

static inline void check_status(const char *file, int line, const char *call, dolly_status wanted,
                                dolly_status got) {
    const char *message = "";
    size_t len = 0;
    int32_t held = got;
    if (check_error != NULL) {
        if (dolly_error_message(check_error, &message, &len) != DOLLY_STATUS_OK ||
            dolly_error_status(check_error, &held) != DOLLY_STATUS_OK || len == 0 || held != got ||
            strlen(message) != len) {
            check_failed(file, line, "the error object agrees with the status");
        }
    }
    if (wanted != got) {
        fprintf(stderr, "%s:%d: %s gave %s (%s), not %s\n", file, line, call,
                dolly_status_name(got), message, dolly_status_name(wanted));
        exit(1);
    }
    if (dolly_error_free(check_error) != DOLLY_STATUS_OK) {
        check_failed(file, line, "the error object is freed");
    }
    check_error = NULL;
}

/* The model given as first argument or in DOLLY_TEST_MODEL. */
static inline const char *model_path(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : getenv("DOLLY_TEST_MODEL");
    CHECK(path != NULL);
    return path;
}

static inline dolly_pipeline *load(int argc, char **argv) {
    dolly_pipeline *pipeline = NULL;
    const char *path = model_path(argc, argv);
    OK(dolly_pipeline_load(TEXT(path), NULL, &pipeline, ERR));
    return pipeline;
}

/* Greedy options that run to the length, so that every model answers with so many tokens. */
static inline dolly_options *greedy(size_t tokens) {
    dolly_options *options = NULL;
    OK(dolly_options_new(&options, ERR));
    OK(dolly_options_set_do_sample(options, false, ERR));
    OK(dolly_options_set_ignore_end(options, true, ERR));
    OK(dolly_options_set_max_new_tokens(options, tokens, ERR));
    return options;
}

static inline const char *text_of(const dolly_result *result) {
    const char *text = NULL;
    size_t len = 0;
    OK(dolly_result_text(result, &text, &len));
    CHECK(text[len] == '\0');
    return text;
}

static inline int32_t reason_of(const dolly_result *result) {
    int32_t reason = -1;
    OK(dolly_result_finish_reason(result, &reason));
    return reason;
}

static inline size_t tokens_of(const dolly_result *result) {
    size_t prompt = 0, completion = 0;
    OK(dolly_result_usage(result, &prompt, &completion));
    CHECK(prompt > 0);
    return completion;
}

static inline dolly_result *ask(const dolly_pipeline *pipeline, const dolly_options *options) {
    dolly_result *result = NULL;
    OK(dolly_generate(pipeline, TEXT("Name three colours."), NULL, 0, options, &result, ERR));
    return result;
}

/*
 * Whether an answer of at most `most` tokens was cancelled before it was complete. The engine may
 * be quicker than a cancel: such an answer must be whole, and the test is made again (`rounds`).
 */
static inline bool was_cancelled(const dolly_result *result, size_t most, int *rounds) {
    const int32_t reason = reason_of(result);
    CHECK(++*rounds < 100);
    if (reason == DOLLY_FINISH_REASON_CANCELLED) {
        CHECK(tokens_of(result) < most);
        return true;
    }
    CHECK(reason == DOLLY_FINISH_REASON_LENGTH && tokens_of(result) == most);
    return false;
}

/* The last check of every test: nothing the library gave out is still held. */
static inline int all_freed(void) {
    size_t live = 1;
    OK(dolly_live_handles(&live));
    CHECK(live == 0);
    return 0;
}

#endif
