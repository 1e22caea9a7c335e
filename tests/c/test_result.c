/* What a generation gave, against the raw logits of the same tokens. */
#include "check.h"

#include <math.h>

/* log-softmax of one row at one id, in double precision. */
static double logprob_at(const float *row, size_t vocab, uint32_t id) {
    double max = row[0], sum = 0.0;
    for (size_t i = 1; i < vocab; i++) {
        max = row[i] > max ? row[i] : max;
    }
    for (size_t i = 0; i < vocab; i++) {
        sum += exp(row[i] - max);
    }
    return row[id] - max - log(sum);
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(6);
    dolly_result *result = NULL;
    const uint32_t prompt[3] = {5, 17, 300};
    const float *logprobs = NULL, *top = NULL;
    const uint32_t *ids = NULL, *top_ids = NULL;
    size_t count = 0, top_count = 0, vocab = 0;

    OK(dolly_complete_ids(pipeline, prompt, 3, options, &result, ERR));
    GIVES(DOLLY_STATUS_NOT_AVAILABLE, dolly_result_logprobs(result, &logprobs, &count));
    GIVES(DOLLY_STATUS_NOT_AVAILABLE,
          dolly_result_top_logprobs(result, 0, &top_ids, &top, &top_count));
    OK(dolly_result_free(result));

    OK(dolly_options_set_logprobs(options, 3, ERR));
    OK(dolly_complete_ids(pipeline, prompt, 3, options, &result, ERR));
    OK(dolly_result_token_ids(result, &ids, &count));
    CHECK(count == 6 && tokens_of(result) == 6);
    CHECK(reason_of(result) == DOLLY_FINISH_REASON_LENGTH);
    OK(dolly_result_logprobs(result, &logprobs, &count));
    CHECK(count == 6);

    uint32_t all[9];
    memcpy(all, prompt, sizeof prompt);
    memcpy(all + 3, ids, 6 * sizeof *ids);
    dolly_buffer *logits = NULL;
    const float *rows = NULL;
    OK(dolly_pipeline_vocab_size(pipeline, &vocab));
    OK(dolly_logits(pipeline, all, 9, NULL, &logits, ERR));
    OK(dolly_buffer_floats(logits, &rows, &count));
    CHECK(count == 9 * vocab);
    for (size_t i = 0; i < 6; i++) {
        const float *row = rows + (2 + i) * vocab;
        CHECK(fabs(logprob_at(row, vocab, ids[i]) - logprobs[i]) < 1e-4);
        for (size_t j = 0; j < vocab; j++) {
            CHECK(row[j] <= row[ids[i]]);
        }
        OK(dolly_result_top_logprobs(result, i, &top_ids, &top, &top_count));
        CHECK(top_count == 3 && top_ids[0] == ids[i] && top[0] == logprobs[i]);
        CHECK(top[0] >= top[1] && top[1] >= top[2]);
        CHECK(fabs(logprob_at(row, vocab, top_ids[2]) - top[2]) < 1e-4);
    }
    GIVES(DOLLY_STATUS_OUT_OF_RANGE,
          dolly_result_top_logprobs(result, 6, &top_ids, &top, &top_count));
    GIVES(DOLLY_STATUS_OUT_OF_RANGE,
          dolly_result_top_logprobs(result, SIZE_MAX, &top_ids, &top, &top_count));

    double queue = -1, prefill = -1, decode = -1, total = -1;
    const double *times = NULL;
    OK(dolly_result_timings(result, &queue, &prefill, &decode, &total));
    CHECK(queue >= 0 && prefill >= 0 && decode >= 0 && total >= queue + prefill + decode - 1e-6);
    OK(dolly_result_token_times(result, &times, &count));
    CHECK(count == 6);
    for (size_t i = 0; i < 6; i++) {
        CHECK(times[i] <= total && (i == 0 || times[i] >= times[i - 1]));
    }
    OK(dolly_buffer_free(logits));
    OK(dolly_result_free(result));
    GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_result_free(result));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
