/* A buffer holds one kind of thing and says so. */
#include "check.h"

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_buffer *buffers[3] = {NULL, NULL, NULL};
    const char *text = NULL;
    const uint32_t *ids = NULL;
    const float *floats = NULL;
    const uint32_t id = 4;
    size_t count = 0;
    OK(dolly_tokenizer_decode(pipeline, &id, 1, true, &buffers[0], ERR));
    OK(dolly_tokenizer_encode(pipeline, TEXT("a b"), false, &buffers[1], ERR));
    OK(dolly_logits(pipeline, &id, 1, NULL, &buffers[2], ERR));
    for (int i = 0; i < 3; i++) {
        const dolly_status no = DOLLY_STATUS_NOT_AVAILABLE;
        GIVES(i == 0 ? DOLLY_STATUS_OK : no, dolly_buffer_text(buffers[i], &text, &count));
        GIVES(i == 1 ? DOLLY_STATUS_OK : no, dolly_buffer_ids(buffers[i], &ids, &count));
        GIVES(i == 2 ? DOLLY_STATUS_OK : no, dolly_buffer_floats(buffers[i], &floats, &count));
        OK(dolly_buffer_free(buffers[i]));
        GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_buffer_free(buffers[i]));
    }
    OK(dolly_buffer_free(NULL));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
