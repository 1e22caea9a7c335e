/* Text to ids and back; framing tokens are special only when asked for. */
#include "check.h"

static size_t ids_of(const dolly_pipeline *pipeline, const char *text, bool special,
                     dolly_buffer **buffer, const uint32_t **ids) {
    size_t count = 0;
    OK(dolly_tokenizer_encode(pipeline, TEXT(text), special, buffer, ERR));
    OK(dolly_buffer_ids(*buffer, ids, &count));
    return count;
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    const char *texts[] = {"Hello, world!", "gr\xc3\xbc\xc3\x9f dich", "\xf0\x9f\xa6\x80 crab",
                           "  two  spaces\n\n### End"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        dolly_buffer *buffer = NULL, *back = NULL;
        const uint32_t *ids = NULL;
        const char *text = NULL;
        size_t len = 0;
        const size_t count = ids_of(pipeline, texts[i], false, &buffer, &ids);
        CHECK(count > 0);
        OK(dolly_tokenizer_decode(pipeline, ids, count, false, &back, ERR));
        OK(dolly_buffer_text(back, &text, &len));
        CHECK(strcmp(text, texts[i]) == 0 && len == strlen(texts[i]));
        OK(dolly_buffer_free(buffer));
        OK(dolly_buffer_free(back));
    }
    dolly_buffer *plain = NULL, *special = NULL, *none = NULL;
    const uint32_t *ids = NULL, *end = NULL;
    const size_t many = ids_of(pipeline, "### End", false, &plain, &ids);
    const size_t one = ids_of(pipeline, "### End", true, &special, &end);
    CHECK(many > 1 && one == 1);
    for (size_t i = 0; i < many; i++) {
        CHECK(ids[i] != end[0]);
    }
    const char *text = NULL;
    size_t len = 1;
    OK(dolly_tokenizer_decode(pipeline, end, 1, true, &none, ERR));
    OK(dolly_buffer_text(none, &text, &len));
    CHECK(len == 0);
    OK(dolly_buffer_free(none));
    OK(dolly_buffer_free(plain));
    OK(dolly_buffer_free(special));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
