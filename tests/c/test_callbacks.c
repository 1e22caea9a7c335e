/* Everything may be called from inside a callback: its own pipeline, its own options, free. */
#include "check.h"

struct inside {
    dolly_pipeline *pipeline;
    dolly_options *options;
    const char *expected;
    int calls;
};

/* The same pipeline answers while it answers, in every way. */
static void answer_again(const struct inside *inside);

static int32_t reenter(void *user_data, const char *piece, size_t piece_len) {
    struct inside *inside = user_data;
    CHECK(piece != NULL && piece_len > 0);
    if (inside->calls++ == 0) {
        answer_again(inside);
        /* What the call in progress uses may be freed under it. */
        OK(dolly_options_free(inside->options));
        OK(dolly_pipeline_free(inside->pipeline));
    }
    return 1;
}

static int32_t count(void *user_data, const char *piece, size_t piece_len) {
    CHECK(piece != NULL && piece_len > 0);
    ++*(int *)user_data;
    return 1;
}

static void answer_again(const struct inside *inside) {
    dolly_result *result = ask(inside->pipeline, inside->options);
    CHECK(strcmp(text_of(result), inside->expected) == 0);
    OK(dolly_result_free(result));
    dolly_stream *stream = NULL;
    OK(dolly_stream_open(inside->pipeline, TEXT("x"), NULL, 0, inside->options, &stream, ERR));
    OK(dolly_stream_free(stream));
    int calls = 0;
    OK(dolly_generate_stream(inside->pipeline, TEXT("x"), NULL, 0, inside->options, count, &calls,
                             &result, ERR));
    CHECK(calls > 0);
    OK(dolly_result_free(result));
}

static int32_t close_inside(void *user_data, const char *piece, size_t piece_len) {
    CHECK(piece != NULL && piece_len > 0);
    OK(dolly_pipeline_close(user_data));
    return 1;
}

int main(int argc, char **argv) {
    struct inside inside = {load(argc, argv), greedy(16), NULL, 0};
    dolly_result *expected = ask(inside.pipeline, inside.options), *result = NULL;
    inside.expected = text_of(expected);
    OK(dolly_generate_stream(inside.pipeline, TEXT("Name three colours."), NULL, 0, inside.options,
                             reenter, &inside, &result, ERR));
    CHECK(inside.calls >= 1 && strcmp(text_of(result), text_of(expected)) == 0);
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_pipeline_close(inside.pipeline));
    OK(dolly_result_free(result));
    OK(dolly_result_free(expected));

    /* Closed in its midst the call says so, unless the engine was done before. */
    dolly_status status = DOLLY_STATUS_OK;
    for (int rounds = 0; status == DOLLY_STATUS_OK; rounds++) {
        dolly_pipeline *pipeline = load(argc, argv);
        dolly_options *options = greedy(400);
        result = NULL;
        status = dolly_generate_stream(pipeline, TEXT("Name three colours."), NULL, 0, options,
                                       close_inside, pipeline, &result, NULL);
        CHECK(status == DOLLY_STATUS_CLOSED ||
              (status == DOLLY_STATUS_OK && tokens_of(result) == 400));
        OK(dolly_result_free(result));
        OK(dolly_options_free(options));
        OK(dolly_pipeline_free(pipeline));
        CHECK(rounds < 100);
    }
    return all_freed();
}
