/*
 * Answers an instruction, with what can fail checked.
 *
 *     cc examples/c/generate.c $(pkg-config --cflags --libs dolly) -o generate
 *     ./generate [MODEL [INSTRUCTION]]
 */
#include <dolly.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Prints what an error says and frees it. */
static int failed(dolly_status status, dolly_error *error) {
    const char *message = "";
    size_t len = 0;
    if (error != NULL) {
        dolly_error_message(error, &message, &len);
    }
    fprintf(stderr, "%s: %.*s\n", dolly_status_name(status), (int)len, message);
    dolly_error_free(error);
    return 1;
}

static void print(const dolly_result *result) {
    const char *text;
    size_t len, prompt_tokens, completion_tokens;
    uint64_t seed;
    dolly_result_text(result, &text, &len);
    dolly_result_usage(result, &prompt_tokens, &completion_tokens);
    dolly_result_seed(result, &seed);
    printf("%.*s\n", (int)len, text);
    fprintf(stderr, "%zu prompt tokens, %zu generated, seed %" PRIu64 "\n", prompt_tokens,
            completion_tokens, seed);
}

int main(int argc, char **argv) {
    const char *model = argc > 1 ? argv[1] : "dolly-nano";
    const char *instruction = argc > 2 ? argv[2] : "Name three colours.";
    dolly_error *error = NULL;
    dolly_pipeline *pipeline = NULL;
    dolly_options *options = NULL;
    dolly_result *result = NULL;

    if (dolly_abi_version() != DOLLY_ABI_VERSION) {
        fprintf(stderr, "libdolly %s does not fit the header\n", dolly_version());
        return 1;
    }
    dolly_status status = dolly_pipeline_load(model, strlen(model), NULL, &pipeline, &error);
    if (status == DOLLY_STATUS_OK) {
        status = dolly_options_new(&options, &error);
    }
    if (status == DOLLY_STATUS_OK) {
        status = dolly_options_set_max_new_tokens(options, 64, &error);
    }
    if (status == DOLLY_STATUS_OK) {
        status = dolly_generate(pipeline, instruction, strlen(instruction), NULL, 0, options,
                                &result, &error);
    }
    if (status == DOLLY_STATUS_OK) {
        print(result);
    }
    dolly_result_free(result);
    dolly_options_free(options);
    dolly_pipeline_free(pipeline);
    return status == DOLLY_STATUS_OK ? 0 : failed(status, error);
}
