/* Text in: pointer and length, checked before anything is read. */
#include "check.h"

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(2);
    dolly_result *result = NULL;
    dolly_buffer *ids = NULL;

    /* A text needs no NUL behind it, may hold NULs, and may be NULL when empty. */
    const char page[] = {'r', 'e', 'd', '\0', 'x'};
    OK(dolly_generate(pipeline, page, 3, NULL, 0, options, &result, ERR));
    OK(dolly_result_free(result));
    OK(dolly_generate(pipeline, page, 5, NULL, 0, options, &result, ERR));
    OK(dolly_result_free(result));
    const uint32_t *found = NULL;
    size_t count = 1;
    OK(dolly_tokenizer_encode(pipeline, NULL, 0, false, &ids, ERR));
    OK(dolly_buffer_ids(ids, &found, &count));
    CHECK(count == 0);
    OK(dolly_buffer_free(ids));

    GIVES(DOLLY_STATUS_NULL_POINTER,
          dolly_generate(pipeline, NULL, 1, NULL, 0, options, &result, ERR));
    GIVES(DOLLY_STATUS_INVALID_UTF8,
          dolly_generate(pipeline, "a\xff", 2, NULL, 0, options, &result, ERR));
    const size_t huge[] = {(size_t)DOLLY_MAX_INPUT_BYTES + 1, SIZE_MAX / 2, SIZE_MAX};
    for (size_t i = 0; i < 3; i++) {
        GIVES(DOLLY_STATUS_INVALID_LENGTH,
              dolly_generate(pipeline, "a", huge[i], NULL, 0, options, &result, ERR));
        GIVES(DOLLY_STATUS_INVALID_LENGTH,
              dolly_generate(pipeline, "a", 1, "a", huge[i], options, &result, ERR));
    }
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
