/* A pipeline tells what it is, closes, and outlives nobody. */
#include "check.h"

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    const char *id = NULL;
    size_t len = 0, context = 0, vocab = 0, hidden = 0, layers = 0, heads = 0;
    OK(dolly_pipeline_id(pipeline, &id, &len));
    CHECK(strcmp(id, model_path(argc, argv)) == 0 && strlen(id) == len);
    OK(dolly_pipeline_context_length(pipeline, &context));
    OK(dolly_pipeline_vocab_size(pipeline, &vocab));
    OK(dolly_pipeline_hidden_size(pipeline, &hidden));
    OK(dolly_pipeline_layers(pipeline, &layers));
    OK(dolly_pipeline_heads(pipeline, &heads));
    CHECK(context > 1 && vocab > 1 && layers > 0 && heads > 0 && hidden % heads == 0);

    uint64_t weights = 0, cache = 1, workspace = 0, per_token = 0;
    OK(dolly_pipeline_memory(pipeline, &weights, &cache, &workspace, &per_token));
    CHECK(weights >= vocab * hidden / 2 && cache == 0 && per_token > 0);

    dolly_stream *stream = NULL;
    dolly_options *options = greedy(context);
    OK(dolly_stream_open(pipeline, TEXT("Go on."), NULL, 0, options, &stream, ERR));
    bool closed = true;
    OK(dolly_pipeline_is_closed(pipeline, &closed));
    CHECK(!closed);
    OK(dolly_pipeline_close(pipeline));
    OK(dolly_pipeline_close(pipeline));
    OK(dolly_pipeline_is_closed(pipeline, &closed));
    CHECK(closed);
    dolly_result *result = NULL;
    const dolly_status last = dolly_stream_finish(stream, &result, NULL);
    CHECK(last == DOLLY_STATUS_CLOSED ||
          (last == DOLLY_STATUS_OK && reason_of(result) == DOLLY_FINISH_REASON_LENGTH));
    OK(dolly_result_free(result));
    GIVES(DOLLY_STATUS_CLOSED,
          dolly_generate(pipeline, TEXT("Hello"), NULL, 0, NULL, &result, ERR));
    OK(dolly_pipeline_memory(pipeline, &weights, &cache, &workspace, &per_token));
    CHECK(weights == 0);
    OK(dolly_stream_free(stream));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_pipeline_free(pipeline));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_pipeline_close(pipeline));
    OK(dolly_pipeline_free(NULL));
    return all_freed();
}
