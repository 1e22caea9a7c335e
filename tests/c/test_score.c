/* Log-probabilities of responses agree with each other and with their definitions. */
#include "check.h"

#include <math.h>

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    const dolly_str answers[] = {{TEXT("yes")}, {TEXT("no")}, {TEXT("perhaps, who knows")}};
    double probabilities[3], logprobs[3], exponentials = 0, total = 0;

    OK(dolly_classify(pipeline, TEXT("Is the sky blue?"), NULL, 0, answers, 3, NULL, probabilities,
                      logprobs, ERR));
    for (size_t i = 0; i < 3; i++) {
        exponentials += exp(logprobs[i] - logprobs[0]);
    }
    for (size_t i = 0; i < 3; i++) {
        dolly_scores *scores = NULL;
        const uint32_t *ids = NULL;
        const float *each = NULL;
        size_t count = 0, each_count = 0;
        double sum = 0, perplexity = 0, added = 0;
        OK(dolly_score(pipeline, TEXT("Is the sky blue?"), NULL, 0, answers[i].data,
                       answers[i].len, NULL, &scores, ERR));
        OK(dolly_scores_token_ids(scores, &ids, &count));
        OK(dolly_scores_logprobs(scores, &each, &each_count));
        OK(dolly_scores_total(scores, &sum, &perplexity));
        CHECK(count > 0 && count == each_count);
        for (size_t j = 0; j < count; j++) {
            CHECK(each[j] <= 0.0f);
            added += each[j];
        }
        CHECK(fabs(added - sum) < 1e-6 * fabs(sum) + 1e-9);
        CHECK(fabs(log(perplexity) + sum / (double)count) < 1e-6);
        CHECK(fabs(logprobs[i] - sum) < 1e-4);
        CHECK(fabs(probabilities[i] - exp(logprobs[i] - logprobs[0]) / exponentials) < 1e-9);
        total += probabilities[i];
        OK(dolly_scores_free(scores));
        GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_scores_free(scores));
    }
    CHECK(fabs(total - 1.0) < 1e-9);

    /* Deadline and cancel end them with a status. */
    dolly_options *options = NULL;
    dolly_cancel *cancel = NULL;
    dolly_scores *scores = NULL;
    dolly_buffer *logits = NULL;
    const uint32_t id = 3;
    OK(dolly_options_new(&options, ERR));
    OK(dolly_options_set_deadline_ms(options, 0, ERR));
    GIVES(DOLLY_STATUS_DEADLINE, dolly_score(pipeline, TEXT("a"), NULL, 0, TEXT("b"), options,
                                             &scores, ERR));
    GIVES(DOLLY_STATUS_DEADLINE, dolly_logits(pipeline, &id, 1, options, &logits, ERR));
    OK(dolly_options_set_deadline_ms(options, DOLLY_FOREVER, ERR));
    OK(dolly_cancel_new(&cancel, ERR));
    OK(dolly_options_set_cancel(options, cancel, ERR));
    OK(dolly_cancel_trigger(cancel));
    GIVES(DOLLY_STATUS_CANCELLED, dolly_logits(pipeline, &id, 1, options, &logits, ERR));
    GIVES(DOLLY_STATUS_CANCELLED,
          dolly_classify(pipeline, TEXT("a"), NULL, 0, answers, 3, options, probabilities,
                         logprobs, ERR));
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT,
          dolly_classify(pipeline, TEXT("a"), NULL, 0, NULL, 0, NULL, probabilities, logprobs,
                         ERR));
    OK(dolly_cancel_free(cancel));
    OK(dolly_options_free(options));
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
