/* Error objects: made on failure only, say what the status says, are freed once. */
#include "check.h"

int main(void) {
    dolly_error *error = NULL;
    dolly_pipeline *pipeline = NULL;
    const char *message = NULL;
    size_t len = 0;
    int32_t status = -1;

    CHECK(dolly_pipeline_load(TEXT("/no/such/model"), NULL, &pipeline, &error) ==
          DOLLY_STATUS_NOT_FOUND);
    CHECK(pipeline == NULL && error != NULL);
    OK(dolly_error_status(error, &status));
    CHECK(status == DOLLY_STATUS_NOT_FOUND);
    OK(dolly_error_message(error, &message, &len));
    CHECK(strlen(message) == len && strstr(message, "/no/such/model") != NULL);
    OK(dolly_error_free(error));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_error_free(error));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_error_status(error, &status));
    OK(dolly_error_free(NULL));

    /* Without a place for it there is none; on success it is left alone. */
    CHECK(dolly_pipeline_load(TEXT("/no/such/model"), NULL, &pipeline, NULL) ==
          DOLLY_STATUS_NOT_FOUND);
    dolly_error *const mark = (dolly_error *)&status;
    dolly_options *options = NULL;
    error = mark;
    CHECK(dolly_options_new(&options, &error) == DOLLY_STATUS_OK && error == mark);
    OK(dolly_options_free(options));
    return all_freed();
}
