/* Answers whole, through a callback, and raw continuations: one and the same text. */
#include "check.h"

struct pieces {
    char text[4096];
    size_t len, calls, stop_after;
};

static int32_t on_piece(void *user_data, const char *piece, size_t piece_len) {
    struct pieces *pieces = user_data;
    CHECK(piece_len > 0 && pieces->len + piece_len < sizeof pieces->text);
    memcpy(pieces->text + pieces->len, piece, piece_len);
    pieces->len += piece_len;
    return ++pieces->calls != pieces->stop_after;
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(24);
    dolly_result *whole = ask(pipeline, options), *streamed = NULL, *again = NULL;
    struct pieces pieces = {{0}, 0, 0, 0};

    OK(dolly_generate_stream(pipeline, TEXT("Name three colours."), NULL, 0, options, on_piece,
                             &pieces, &streamed, ERR));
    CHECK(strcmp(text_of(whole), text_of(streamed)) == 0);
    CHECK(pieces.len == strlen(pieces.text) && strcmp(pieces.text, text_of(whole)) == 0);
    CHECK(pieces.calls > 1);
    OK(dolly_result_free(streamed));

    /* 0 from the callback ends the answer with the text so far. */
    bool cancelled = false;
    OK(dolly_options_set_max_new_tokens(options, 200, ERR));
    for (int rounds = 0; !cancelled;) {
        struct pieces few = {{0}, 0, 0, 1};
        OK(dolly_generate_stream(pipeline, TEXT("Name three colours."), NULL, 0, options, on_piece,
                                 &few, &streamed, ERR));
        CHECK(few.calls == 1 && strncmp(text_of(streamed), few.text, few.len) == 0);
        cancelled = was_cancelled(streamed, 200, &rounds);
        OK(dolly_result_free(streamed));
    }
    OK(dolly_options_set_max_new_tokens(options, 24, ERR));

    /* A context is another prompt. */
    size_t bare = 0, with = 0, completion = 0;
    OK(dolly_generate(pipeline, TEXT("Name three colours."), TEXT("Red, green and blue."), options,
                      &again, ERR));
    OK(dolly_result_usage(whole, &bare, &completion));
    OK(dolly_result_usage(again, &with, &completion));
    CHECK(with > bare);
    OK(dolly_result_free(again));

    /* A text and its ids continue alike. */
    dolly_buffer *buffer = NULL;
    const uint32_t *ids = NULL;
    size_t count = 0;
    dolly_result *by_text = NULL, *by_ids = NULL;
    OK(dolly_tokenizer_encode(pipeline, TEXT("Once upon a time"), false, &buffer, ERR));
    OK(dolly_buffer_ids(buffer, &ids, &count));
    OK(dolly_complete(pipeline, TEXT("Once upon a time"), options, &by_text, ERR));
    OK(dolly_complete_ids(pipeline, ids, count, options, &by_ids, ERR));
    CHECK(strcmp(text_of(by_text), text_of(by_ids)) == 0);
    OK(dolly_result_free(by_text));
    OK(dolly_result_free(by_ids));
    OK(dolly_buffer_free(buffer));

    const uint32_t beyond = UINT32_MAX;
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT,
          dolly_complete_ids(pipeline, &beyond, 1, options, &by_ids, ERR));
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT,
          dolly_complete_ids(pipeline, NULL, 0, options, &by_ids, ERR));
    OK(dolly_result_free(whole));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
