/* Every option reaches the engine, and a value outside its range is refused when it is set. */
#include "check.h"

#include <math.h>

#define REFUSED(call) GIVES(DOLLY_STATUS_INVALID_ARGUMENT, call)

static void ranges(void) {
    dolly_options *o = NULL;
    OK(dolly_options_new(&o, ERR));
    REFUSED(dolly_options_set_max_new_tokens(o, 0, ERR));
    REFUSED(dolly_options_set_temperature(o, -1.0f, ERR));
    REFUSED(dolly_options_set_temperature(o, NAN, ERR));
    REFUSED(dolly_options_set_top_p(o, 0.0f, ERR));
    REFUSED(dolly_options_set_top_p(o, 1.5f, ERR));
    REFUSED(dolly_options_set_min_p(o, 1.0f, ERR));
    REFUSED(dolly_options_set_typical_p(o, 0.0f, ERR));
    REFUSED(dolly_options_set_repetition_penalty(o, 0.0f, ERR));
    REFUSED(dolly_options_set_presence_penalty(o, INFINITY, ERR));
    REFUSED(dolly_options_set_frequency_penalty(o, 101.0f, ERR));
    REFUSED(dolly_options_set_num_return_sequences(o, 0, ERR));
    REFUSED(dolly_options_set_logprobs(o, 101, ERR));
    REFUSED(dolly_options_add_stop(o, NULL, 0, ERR));
    REFUSED(dolly_options_set_prompt_mode(o, 2, ERR));
    REFUSED(dolly_options_set_prompt_overflow(o, -1, ERR));
    const uint32_t id = 1;
    const float nan = NAN;
    REFUSED(dolly_options_add_logit_bias(o, &id, &nan, 1, ERR));
    for (int i = 0; i < 64; i++) {
        OK(dolly_options_add_stop(o, TEXT("stop"), ERR));
    }
    REFUSED(dolly_options_add_stop(o, TEXT("one more"), ERR));
    OK(dolly_options_clear_stop(o, ERR));
    OK(dolly_options_add_stop(o, TEXT("again"), ERR));
    OK(dolly_options_free(o));
}

/* Ids of an answer under options, copied out. */
static size_t ids_of(const dolly_pipeline *pipeline, const dolly_options *options, uint32_t *out,
                     size_t room) {
    dolly_result *result = ask(pipeline, options);
    const uint32_t *ids = NULL;
    size_t count = 0;
    OK(dolly_result_token_ids(result, &ids, &count));
    CHECK(count <= room);
    memcpy(out, ids, count * sizeof *ids);
    OK(dolly_result_free(result));
    return count;
}

static void sampling(const dolly_pipeline *pipeline) {
    uint32_t first[16], second[16];
    dolly_options *o = greedy(16);
    size_t count = ids_of(pipeline, o, first, 16);
    CHECK(count == 16);

    /* Options that leave nothing but the likeliest token give the greedy answer. */
    OK(dolly_options_set_do_sample(o, true, ERR));
    OK(dolly_options_set_top_k(o, 1, ERR));
    CHECK(ids_of(pipeline, o, second, 16) == 16 && memcmp(first, second, sizeof first) == 0);
    OK(dolly_options_set_top_k(o, 0, ERR));
    OK(dolly_options_set_temperature(o, 0.0f, ERR));
    CHECK(ids_of(pipeline, o, second, 16) == 16 && memcmp(first, second, sizeof first) == 0);
    OK(dolly_options_set_temperature(o, 1.0f, ERR));
    OK(dolly_options_set_top_p(o, 1e-6f, ERR));
    CHECK(ids_of(pipeline, o, second, 16) == 16 && memcmp(first, second, sizeof first) == 0);
    OK(dolly_options_set_top_p(o, 1.0f, ERR));
    OK(dolly_options_set_min_p(o, 0.999999f, ERR));
    CHECK(ids_of(pipeline, o, second, 16) == 16 && memcmp(first, second, sizeof first) == 0);
    OK(dolly_options_set_min_p(o, 0.0f, ERR));

    /* A seed gives its answer again; a fresh one comes out and does so too. */
    OK(dolly_options_set_seed(o, 7, ERR));
    CHECK(ids_of(pipeline, o, first, 16) == 16);
    CHECK(ids_of(pipeline, o, second, 16) == 16 && memcmp(first, second, sizeof first) == 0);
    OK(dolly_options_clear_seed(o, ERR));
    dolly_result *result = ask(pipeline, o);
    uint64_t seed = 0;
    const uint32_t *ids = NULL;
    OK(dolly_result_seed(result, &seed));
    OK(dolly_result_token_ids(result, &ids, &count));
    OK(dolly_options_set_seed(o, seed, ERR));
    CHECK(ids_of(pipeline, o, second, 16) == count &&
          memcmp(ids, second, count * sizeof *ids) == 0);
    OK(dolly_result_free(result));
    OK(dolly_options_free(o));
}

static void logits(const dolly_pipeline *pipeline) {
    uint32_t ids[16];
    dolly_options *o = greedy(16);
    ids_of(pipeline, o, ids, 16);
    /* A bias forces one token, then forbids it. */
    const uint32_t forced = ids[0] == 9 ? 10 : 9;
    float bias = 1e9f;
    OK(dolly_options_add_logit_bias(o, &forced, &bias, 1, ERR));
    ids_of(pipeline, o, ids, 16);
    for (int i = 0; i < 16; i++) {
        CHECK(ids[i] == forced);
    }
    OK(dolly_options_clear_logit_bias(o, ERR));
    bias = -INFINITY;
    OK(dolly_options_add_logit_bias(o, &forced, &bias, 1, ERR));
    ids_of(pipeline, o, ids, 16);
    for (int i = 0; i < 16; i++) {
        CHECK(ids[i] != forced);
    }
    OK(dolly_options_clear_logit_bias(o, ERR));
    /* No token twice. */
    OK(dolly_options_set_no_repeat_ngram(o, 1, ERR));
    ids_of(pipeline, o, ids, 16);
    for (int i = 0; i < 16; i++) {
        for (int j = 0; j < i; j++) {
            CHECK(ids[i] != ids[j]);
        }
    }
    OK(dolly_options_set_no_repeat_ngram(o, 0, ERR));
    /* Drafts change the work, not the answer. */
    uint32_t drafted[16];
    size_t cached = 9, guessed = 9, accepted = 9;
    ids_of(pipeline, o, ids, 16);
    OK(dolly_options_set_prompt_lookup(o, 8, ERR));
    dolly_result *result = ask(pipeline, o);
    OK(dolly_result_savings(result, &cached, &guessed, &accepted));
    CHECK(cached > 0 && accepted <= guessed);
    OK(dolly_result_free(result));
    ids_of(pipeline, o, drafted, 16);
    CHECK(memcmp(ids, drafted, sizeof ids) == 0);
    GIVES(DOLLY_STATUS_INVALID_ARGUMENT, dolly_options_set_prompt_lookup(o, 65, ERR));
    OK(dolly_options_set_prompt_lookup(o, 0, ERR));
    /* Penalties and typical_p are taken. */
    OK(dolly_options_set_repetition_penalty(o, 1.2f, ERR));
    OK(dolly_options_set_presence_penalty(o, 100.0f, ERR));
    OK(dolly_options_set_frequency_penalty(o, 100.0f, ERR));
    OK(dolly_options_set_typical_p(o, 0.9f, ERR));
    CHECK(ids_of(pipeline, o, ids, 16) == 16);
    OK(dolly_options_free(o));
}

static void ends(const dolly_pipeline *pipeline) {
    dolly_options *o = greedy(24);
    dolly_result *whole = ask(pipeline, o);
    CHECK(reason_of(whole) == DOLLY_FINISH_REASON_LENGTH && tokens_of(whole) == 24);

    /* A stop text out of the answer ends it before that text. */
    const char *text = text_of(whole);
    size_t at = strlen(text) / 2;
    while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80) {
        at--;
    }
    if (strlen(text + at) > 0) {
        OK(dolly_options_add_stop(o, text + at, strlen(text + at), ERR));
        dolly_result *cut = ask(pipeline, o);
        CHECK(reason_of(cut) == DOLLY_FINISH_REASON_STOP);
        CHECK(strlen(text_of(cut)) <= at && strncmp(text, text_of(cut), strlen(text_of(cut))) == 0);
        OK(dolly_result_free(cut));
        OK(dolly_options_clear_stop(o, ERR));
    }
    OK(dolly_result_free(whole));

    OK(dolly_options_set_deadline_ms(o, 0, ERR));
    dolly_result *late = ask(pipeline, o);
    CHECK(reason_of(late) == DOLLY_FINISH_REASON_DEADLINE);
    OK(dolly_result_free(late));
    OK(dolly_options_set_deadline_ms(o, DOLLY_FOREVER, ERR));

    OK(dolly_options_set_return_full_text(o, true, ERR));
    dolly_result *full = ask(pipeline, o);
    CHECK(strncmp(text_of(full), "Name three colours.\n", 20) == 0);
    OK(dolly_result_free(full));

    OK(dolly_options_set_num_return_sequences(o, 2, ERR));
    dolly_result *none = NULL;
    REFUSED(dolly_generate(pipeline, TEXT("x"), NULL, 0, o, &none, ERR));
    OK(dolly_options_free(o));
}

static void overflow(const dolly_pipeline *pipeline) {
    size_t context = 0;
    OK(dolly_pipeline_context_length(pipeline, &context));
    size_t len = context * 16;
    char *passage = malloc(len);
    CHECK(passage != NULL);
    for (size_t i = 0; i < len; i++) {
        passage[i] = " qzxj"[i % 5];
    }
    dolly_options *o = greedy(1);
    dolly_result *result = NULL;
    GIVES(DOLLY_STATUS_CONTEXT_OVERFLOW,
          dolly_generate(pipeline, TEXT("Sum up."), passage, len, o, &result, ERR));
    OK(dolly_options_set_prompt_overflow(o, DOLLY_PROMPT_OVERFLOW_TRUNCATE_CONTEXT, ERR));
    OK(dolly_generate(pipeline, TEXT("Sum up."), passage, len, o, &result, ERR));
    OK(dolly_result_free(result));
    OK(dolly_options_set_prompt_mode(o, DOLLY_PROMPT_MODE_HF, ERR));
    OK(dolly_generate(pipeline, TEXT("Sum up."), NULL, 0, o, &result, ERR));
    OK(dolly_result_free(result));
    OK(dolly_options_free(o));
    free(passage);
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    ranges();
    sampling(pipeline);
    logits(pipeline);
    ends(pipeline);
    overflow(pipeline);
    OK(dolly_pipeline_free(pipeline));
    return all_freed();
}
