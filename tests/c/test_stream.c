/* An answer read at the caller's pace: pieces, waits, cancel, one reader at a time. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

static dolly_stream *open_stream(const dolly_pipeline *pipeline, const dolly_options *options) {
    dolly_stream *stream = NULL;
    OK(dolly_stream_open(pipeline, TEXT("Name three colours."), NULL, 0, options, &stream, ERR));
    return stream;
}

/* Reads to the end; gives the number of pieces. */
static size_t read_all(dolly_stream *stream, uint64_t timeout, char *text, size_t room) {
    size_t pieces = 0, len = 0, used = 0;
    for (;;) {
        int32_t event = -1;
        const char *piece = NULL;
        OK(dolly_stream_next(stream, timeout, &event, &piece, &len, ERR));
        CHECK(piece[len] == '\0');
        if (event == DOLLY_STREAM_EVENT_END) {
            break;
        }
        CHECK((event == DOLLY_STREAM_EVENT_PIECE) == (len > 0) && used + len < room);
        memcpy(text + used, piece, len);
        used += len;
        pieces += event == DOLLY_STREAM_EVENT_PIECE;
    }
    text[used] = '\0';
    return pieces;
}

struct reader {
    dolly_stream *stream;
    dolly_status last;
    bool done;
    pthread_mutex_t lock;
};

static bool is_done(struct reader *reader) {
    pthread_mutex_lock(&reader->lock);
    bool done = reader->done;
    pthread_mutex_unlock(&reader->lock);
    return done;
}

/* Waits without end until the stream ends, by itself or because it was freed. */
static void *read_on(void *data) {
    struct reader *reader = data;
    int32_t event = -1;
    const char *piece;
    size_t len;
    do {
        reader->last = dolly_stream_next(reader->stream, DOLLY_FOREVER, &event, &piece, &len, NULL);
    } while ((reader->last == DOLLY_STATUS_OK && event == DOLLY_STREAM_EVENT_PIECE) ||
             reader->last == DOLLY_STATUS_BUSY);
    pthread_mutex_lock(&reader->lock);
    reader->done = true;
    pthread_mutex_unlock(&reader->lock);
    return NULL;
}

/* A second reader is refused while the first waits; freeing the stream wakes the first. */
static void two_readers(const dolly_pipeline *pipeline, const dolly_options *options) {
    bool refused = false;
    for (int round = 0; !refused; round++) {
        struct reader reader = {NULL, DOLLY_STATUS_OK, false, PTHREAD_MUTEX_INITIALIZER};
        pthread_t thread;
        reader.stream = open_stream(pipeline, options);
        CHECK(pthread_create(&thread, NULL, read_on, &reader) == 0);
        while (!refused && !is_done(&reader)) {
            int32_t event = -1;
            const char *piece = NULL;
            size_t len = 0;
            const dolly_status status =
                dolly_stream_next(reader.stream, 0, &event, &piece, &len, NULL);
            CHECK(status == DOLLY_STATUS_OK || status == DOLLY_STATUS_BUSY);
            refused = status == DOLLY_STATUS_BUSY;
        }
        OK(dolly_stream_free(reader.stream));
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(reader.last == DOLLY_STATUS_OK || reader.last == DOLLY_STATUS_INVALID_HANDLE);
        CHECK(round < 1000);
    }
}

int main(int argc, char **argv) {
    dolly_pipeline *pipeline = load(argc, argv);
    dolly_options *options = greedy(24);
    dolly_result *whole = ask(pipeline, options), *result;
    char text[4096];

    /* Waiting and polling read the same text. */
    const uint64_t waits[] = {DOLLY_FOREVER, 60000, 0};
    for (size_t i = 0; i < 3; i++) {
        dolly_stream *stream = open_stream(pipeline, options);
        CHECK(read_all(stream, waits[i], text, sizeof text) > 1);
        CHECK(strcmp(text, text_of(whole)) == 0);
        for (int round = 0; round < 2; round++) {
            OK(dolly_stream_finish(stream, &result, ERR));
            CHECK(strcmp(text_of(result), text_of(whole)) == 0);
            OK(dolly_result_free(result));
        }
        OK(dolly_stream_free(stream));
        GIVES(DOLLY_STATUS_INVALID_HANDLE, dolly_stream_free(stream));
    }

    /* A completion, finished without reading. */
    dolly_stream *stream = NULL;
    OK(dolly_stream_open_completion(pipeline, TEXT("Once"), options, &stream, ERR));
    OK(dolly_stream_finish(stream, &result, ERR));
    CHECK(tokens_of(result) == 24);
    OK(dolly_result_free(result));
    OK(dolly_stream_free(stream));

    /* Cancelled after its first piece. */
    OK(dolly_options_set_max_new_tokens(options, 400, ERR));
    bool cancelled = false;
    for (int rounds = 0; !cancelled;) {
        int32_t event = -1;
        const char *piece = NULL;
        size_t len = 0;
        stream = open_stream(pipeline, options);
        OK(dolly_stream_next(stream, DOLLY_FOREVER, &event, &piece, &len, ERR));
        CHECK(event == DOLLY_STREAM_EVENT_PIECE);
        OK(dolly_stream_cancel(stream));
        OK(dolly_stream_finish(stream, &result, ERR));
        cancelled = was_cancelled(result, 400, &rounds);
        OK(dolly_result_free(result));
        OK(dolly_stream_free(stream));
    }
    OK(dolly_stream_free(NULL));

    two_readers(pipeline, options);

    /* A stream does not keep its pipeline. */
    stream = open_stream(pipeline, options);
    result = NULL;
    OK(dolly_pipeline_free(pipeline));
    const dolly_status last = dolly_stream_finish(stream, &result, NULL);
    CHECK(last == DOLLY_STATUS_CLOSED || (last == DOLLY_STATUS_OK && tokens_of(result) == 400));
    OK(dolly_result_free(result));
    OK(dolly_stream_free(stream));
    OK(dolly_result_free(whole));
    OK(dolly_options_free(options));
    return all_freed();
}
