/*
 * What the generated torture program stands on: one valid handle of every type, one freed of every
 * type, forged ones, and the check that a refused call changed nothing.
 *
 * `xtask/src/torture.rs` reads include/dolly.h and writes one call for every function, parameter
 * and attack. A new handle type needs an entry in HANDLES and a maker in make_handles().
 */
#ifndef DOLLY_TESTS_TORTURE_H
#define DOLLY_TESTS_TORTURE_H

#include "check.h"

#define HANDLES(X) \
    X(dolly_error) \
    X(dolly_cancel) \
    X(dolly_loader) \
    X(dolly_pipeline) \
    X(dolly_options) \
    X(dolly_result) \
    X(dolly_batch) \
    X(dolly_stream) \
    X(dolly_scores) \
    X(dolly_buffer)

#define DECLARE(type) static type *valid_##type = NULL, *freed_##type = NULL;
HANDLES(DECLARE)

/* Places whose bits no call may change. */
#define MARK 0xA5

static unsigned long attacks = 0;
static const char *attacked = "";

static inline void untouched(const void *place, size_t size) {
    const unsigned char *bytes = place;
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != MARK) {
            check_failed(attacked, 0, "a refused call wrote to an out-pointer");
        }
    }
}

/* One attack: the status must be the wanted one, and the error object agree with it. */
static inline void refuse(const char *what, dolly_status wanted, dolly_status got) {
    attacked = what;
    attacks++;
    check_status(what, 0, "the call", wanted, got);
}

static inline int32_t no_piece(void *user_data, const char *piece, size_t piece_len) {
    (void)user_data;
    (void)piece;
    (void)piece_len;
    check_failed(attacked, 0, "a refused call called back");
    return 0;
}

static inline void no_progress(void *user_data, uint64_t loaded, uint64_t total,
                               const char *tensor, size_t tensor_len) {
    (void)loaded;
    (void)total;
    (void)no_piece(user_data, tensor, tensor_len);
}

static inline void make_handles(const char *model) {
    const dolly_str row = {TEXT("x")};
    dolly_options *options = greedy(2);
    CHECK(dolly_pipeline_load(TEXT("/no/such/model"), NULL, &valid_dolly_pipeline,
                              &valid_dolly_error) == DOLLY_STATUS_NOT_FOUND);
    OK(dolly_cancel_new(&valid_dolly_cancel, ERR));
    OK(dolly_loader_new(&valid_dolly_loader, ERR));
    OK(dolly_pipeline_load(TEXT(model), NULL, &valid_dolly_pipeline, ERR));
    valid_dolly_options = options;
    OK(dolly_options_set_logprobs(options, 1, ERR));
    valid_dolly_result = ask(valid_dolly_pipeline, options);
    OK(dolly_generate_batch(valid_dolly_pipeline, &row, NULL, 1, options, &valid_dolly_batch, ERR));
    OK(dolly_stream_open(valid_dolly_pipeline, TEXT("x"), NULL, 0, options, &valid_dolly_stream,
                         ERR));
    OK(dolly_score(valid_dolly_pipeline, TEXT("x"), NULL, 0, TEXT("y"), NULL, &valid_dolly_scores,
                   ERR));
    OK(dolly_tokenizer_encode(valid_dolly_pipeline, TEXT("x"), false, &valid_dolly_buffer, ERR));
}

#define FREE_FIRST(type) \
    CHECK(valid_##type != NULL); \
    OK(type##_free(valid_##type)); \
    freed_##type = valid_##type; \
    valid_##type = NULL;

/* Makes every handle and frees it, then makes the ones to be used: slots are used again. */
static inline void set_up(const char *model) {
    make_handles(model);
    HANDLES(FREE_FIRST)
    make_handles(model);
}

#define FREE_LAST(type) \
    OK(type##_free(valid_##type)); \
    GIVES(DOLLY_STATUS_INVALID_HANDLE, type##_free(valid_##type)); \
    OK(type##_free(NULL));

/* After all attacks every handle still works: it can be freed, once. */
static inline int tear_down(void) {
    dolly_result *result = NULL;
    OK(dolly_stream_finish(valid_dolly_stream, &result, ERR));
    OK(dolly_result_free(result));
    result = ask(valid_dolly_pipeline, valid_dolly_options);
    CHECK(strcmp(text_of(result), text_of(valid_dolly_result)) == 0);
    OK(dolly_result_free(result));
    HANDLES(FREE_LAST)
    printf("%lu attacks\n", attacks);
    return all_freed();
}

/* Numbers that are no handle of this type: addresses, small numbers, near misses. */
enum { FORGED = 64 + 10 };

static inline uintptr_t forged(const void *valid, int index) {
    static int on_data;
    int on_stack = 0;
    if (index < 64) {
        return (uintptr_t)valid ^ ((uintptr_t)1 << index);
    }
    const uintptr_t others[FORGED - 64] = {
        1, 8, 4096, UINTPTR_MAX, UINTPTR_MAX - 7, (uintptr_t)&on_data, (uintptr_t)&on_stack,
        (uintptr_t)&dolly_version, (uintptr_t)valid - 1, (uintptr_t)valid + 1,
    };
    return others[index - 64];
}

#endif
