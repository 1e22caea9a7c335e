/* Answers the cases of a file with a model over the C ABI: route CASES MODEL > ANSWERS. */
#include <dolly.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void require(dolly_status status, const char *what) {
    if (status != DOLLY_STATUS_OK) {
        fprintf(stderr, "%s: %s\n", what, dolly_status_name(status));
        exit(1);
    }
}

static void answer(const dolly_pipeline *pipeline, dolly_options *options, const char *texts,
                   size_t instruction_len, size_t context_len, uint64_t seed) {
    dolly_result *result = NULL;
    const char *text = NULL;
    size_t len = 0;
    require(dolly_options_set_seed(options, seed, NULL), "seed");
    require(dolly_generate(pipeline, texts, instruction_len, texts + instruction_len, context_len,
                           options, &result, NULL),
            "generate");
    require(dolly_result_text(result, &text, &len), "text");
    printf("%zu\n", len);
    fwrite(text, 1, len, stdout);
    putchar('\n');
    require(dolly_result_free(result), "free");
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = NULL;
    dolly_options *options = NULL;
    size_t instruction_len, context_len;
    uint64_t seed;
    FILE *cases = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (cases == NULL) {
        fprintf(stderr, "usage: route CASES MODEL\n");
        return 1;
    }
    require(dolly_pipeline_load(argv[2], strlen(argv[2]), NULL, &pipeline, NULL), "load");
    require(dolly_options_new(&options, NULL), "options");
    require(dolly_options_set_max_new_tokens(options, 64, NULL), "max_new_tokens");
    while (fscanf(cases, "%zu %zu %" SCNu64, &instruction_len, &context_len, &seed) == 3) {
        const size_t len = instruction_len + context_len;
        char *texts = malloc(len + 2);
        /* The newline of the header, the texts, the newline behind them. */
        if (texts == NULL || fread(texts, 1, len + 2, cases) != len + 2) {
            fprintf(stderr, "a case ends early\n");
            return 1;
        }
        answer(pipeline, options, texts + 1, instruction_len, context_len, seed);
        free(texts);
    }
    fclose(cases);
    require(dolly_options_free(options), "free");
    require(dolly_pipeline_free(pipeline), "free");
    return 0;
}
