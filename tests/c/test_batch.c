/* Rows answer as alone; a bad row keeps its failure to itself. */
#include "check.h"

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(12);
    const dolly_str instructions[] = {
        {TEXT("Name three colours.")}, {"\xff", 1}, {TEXT("Count to five.")}, {NULL, 3},
        {"x", SIZE_MAX},
    };
    const dolly_str contexts[] = {{NULL, 0}, {NULL, 0}, {TEXT("One, two")}, {NULL, 0}, {NULL, 0}};
    dolly_batch *batch = NULL;
    dolly_result *row = NULL, *alone = NULL;
    size_t rows = 0;

    OK(dolly_generate_batch(pipeline, instructions, contexts, 5, options, &batch, ERR));
    OK(dolly_batch_len(batch, &rows));
    CHECK(rows == 5);
    GIVES(DOLLY_STATUS_INVALID_UTF8, dolly_batch_result(batch, 1, &row, ERR));
    GIVES(DOLLY_STATUS_NULL_POINTER, dolly_batch_result(batch, 3, &row, ERR));
    GIVES(DOLLY_STATUS_INVALID_LENGTH, dolly_batch_result(batch, 4, &row, ERR));
    GIVES(DOLLY_STATUS_OUT_OF_RANGE, dolly_batch_result(batch, 5, &row, ERR));
    CHECK(row == NULL);
    OK(dolly_batch_result(batch, 0, &row, ERR));
    alone = ask(pipeline, options);
    CHECK(strcmp(text_of(row), text_of(alone)) == 0);
    OK(dolly_result_free(row));
    OK(dolly_result_free(alone));
    OK(dolly_batch_result(batch, 2, &row, ERR));
    OK(dolly_batch_free(batch));
    OK(dolly_generate(pipeline, TEXT("Count to five."), TEXT("One, two"), options, &alone, ERR));
    CHECK(strcmp(text_of(row), text_of(alone)) == 0);
    OK(dolly_result_free(row));
    OK(dolly_result_free(alone));

    /* Several answers a row, without contexts. */
    OK(dolly_options_set_num_return_sequences(options, 3, ERR));
    OK(dolly_generate_batch(pipeline, instructions, NULL, 3, options, &batch, ERR));
    OK(dolly_batch_len(batch, &rows));
    CHECK(rows == 9);
    for (size_t i = 0; i < 9; i++) {
        if (i / 3 == 1) {
            GIVES(DOLLY_STATUS_INVALID_UTF8, dolly_batch_result(batch, i, &row, ERR));
        } else {
            OK(dolly_batch_result(batch, i, &row, ERR));
            CHECK(tokens_of(row) == 12);
            OK(dolly_result_free(row));
        }
    }
    OK(dolly_batch_free(batch));
    OK(dolly_generate_batch(pipeline, NULL, NULL, 0, options, &batch, ERR));
    OK(dolly_batch_len(batch, &rows));
    CHECK(rows == 0);
    OK(dolly_batch_free(batch));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
