/*
 * dolly: run Dolly 2.0 and other GPT-NeoX models from C and C++.
 *
 * CONVENTIONS
 *
 * Status      Every call returns a dolly_status; DOLLY_STATUS_OK is 0. The exceptions cannot fail
 *             and return their value: dolly_version, dolly_abi_version, dolly_status_name.
 * Results     Out-pointers come last, must not be NULL, and are written only on success.
 * Errors      Calls that can fail for more reasons than their handles take a dolly_error ** as
 *             their very last parameter. It may be NULL. When such a call fails and it is not
 *             NULL, *error becomes a new error object (NULL should memory have ended) to be freed
 *             with dolly_error_free; when it succeeds, *error is left alone.
 * Ownership   What a call gives through a T ** belongs to the caller and is freed with its own
 *             dolly_..._free. Freeing NULL does nothing. Pointers that getters give belong to the
 *             object they were got from and are valid until it is freed.
 * Handles     Handles are numbers in the guise of pointers: they are looked up, never
 *             dereferenced. NULL gives DOLLY_STATUS_NULL_POINTER; a handle that was freed, forged,
 *             or is of another type gives DOLLY_STATUS_INVALID_HANDLE. A freed handle never
 *             becomes valid again.
 * Text        Text in is a pointer and a length in bytes and must be UTF-8; with length 0 the
 *             pointer may be NULL. Text out is a pointer and a length too; objects put a NUL
 *             behind it that is not counted. Lengths above DOLLY_MAX_INPUT_BYTES are refused.
 *             Pointers with a true length are all that is trusted.
 * Threads     Every call may be made from any thread, with the same handles at the same time. An
 *             object freed during a call lives until the call returns, but not the memory that
 *             getters of it pointed to.
 * Callbacks   A callback gets its user_data first and runs on the thread that made the call, with
 *             no lock held: it may call everything, its own pipeline included, and may free the
 *             objects in use. It must return: no longjmp, no C++ exception.
 * Signals     Only dolly_cancel_trigger may be called from a signal handler.
 * Panics      A defect inside the library becomes DOLLY_STATUS_PANIC; its handles stay usable.
 *
 * EXAMPLE (what can fail is checked in examples/c/generate.c)
 *
 *     dolly_pipeline *pipeline = NULL;
 *     dolly_result *result = NULL;
 *     const char *text;
 *     size_t len;
 *     dolly_pipeline_load("dolly-nano", 10, NULL, &pipeline, NULL);
 *     dolly_generate(pipeline, "Name a colour.", 14, NULL, 0, NULL, &result, NULL);
 *     dolly_result_text(result, &text, &len);
 *     printf("%.*s\n", (int)len, text);
 *     dolly_result_free(result);
 *     dolly_pipeline_free(pipeline);
 */


#ifndef DOLLY_H
#define DOLLY_H

/* Generated from dolly-ffi by `cargo xtask header`; edit the sources instead. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * First number of the version this header belongs to.
 */
#define DOLLY_VERSION_MAJOR 0

/**
 * Second number of the version this header belongs to.
 */
#define DOLLY_VERSION_MINOR 1

/**
 * Third number of the version this header belongs to.
 */
#define DOLLY_VERSION_PATCH 0

/**
 * Counts the changes that break programs compiled with an older header; compare it with
 * dolly_abi_version().
 */
#define DOLLY_ABI_VERSION 1

/**
 * Most bytes of one text or array given to the library (1 GiB). A longer length is refused with
 * DOLLY_STATUS_INVALID_LENGTH before anything is read.
 */
#define DOLLY_MAX_INPUT_BYTES 1073741824

/**
 * A wait or a deadline without end.
 */
#define DOLLY_FOREVER 18446744073709551615ull

/**
 * What became of a call.
 *
 * Numbers never change their meaning and are never reused; later versions may add numbers, so
 * treat an unknown one as a failure.
 */
enum dolly_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The call did what it says; its out-pointers are written.
     */
    DOLLY_STATUS_OK = 0,
    /**
     * A value, option or text is outside its range.
     */
    DOLLY_STATUS_INVALID_ARGUMENT = 1,
    /**
     * A pointer that must not be NULL is NULL.
     */
    DOLLY_STATUS_NULL_POINTER = 2,
    /**
     * A handle that was freed, never existed, or is of another type.
     */
    DOLLY_STATUS_INVALID_HANDLE = 3,
    /**
     * Text that is not UTF-8.
     */
    DOLLY_STATUS_INVALID_UTF8 = 4,
    /**
     * A length above DOLLY_MAX_INPUT_BYTES, or a buffer too small for the result.
     */
    DOLLY_STATUS_INVALID_LENGTH = 5,
    /**
     * Another thread is inside a call that uses the same stream.
     */
    DOLLY_STATUS_BUSY = 6,
    /**
     * An index beyond the last entry.
     */
    DOLLY_STATUS_OUT_OF_RANGE = 7,
    /**
     * The object does not hold what was asked for.
     */
    DOLLY_STATUS_NOT_AVAILABLE = 8,
    /**
     * The library failed and caught itself; please report it. Its handles stay usable.
     */
    DOLLY_STATUS_PANIC = 9,
    /**
     * Reading or writing a file failed.
     */
    DOLLY_STATUS_IO = 10,
    /**
     * The model was not found.
     */
    DOLLY_STATUS_NOT_FOUND = 11,
    /**
     * A file is malformed.
     */
    DOLLY_STATUS_FORMAT = 12,
    /**
     * The prompt is longer than the context.
     */
    DOLLY_STATUS_CONTEXT_OVERFLOW = 13,
    /**
     * The memory limit or the allocator refused.
     */
    DOLLY_STATUS_MEMORY = 14,
    /**
     * The device cannot be used.
     */
    DOLLY_STATUS_DEVICE = 15,
    /**
     * A feature this library does not have.
     */
    DOLLY_STATUS_UNSUPPORTED = 16,
    /**
     * A download failed.
     */
    DOLLY_STATUS_NETWORK = 17,
    /**
     * Cancelled before there was a result.
     */
    DOLLY_STATUS_CANCELLED = 18,
    /**
     * The deadline passed before there was a result.
     */
    DOLLY_STATUS_DEADLINE = 19,
    /**
     * The pipeline was closed.
     */
    DOLLY_STATUS_CLOSED = 20,
    /**
     * A defect of the library; please report it.
     */
    DOLLY_STATUS_INTERNAL = 21,
    /**
     * Training met a number that is not finite. No function of this version trains.
     */
    DOLLY_STATUS_DIVERGED = 22,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dolly_status dolly_status;
#else
typedef int32_t dolly_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why an answer ended.
 */
enum dolly_finish_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The model wrote its end token.
     */
    DOLLY_FINISH_REASON_END = 0,
    /**
     * max_new_tokens or the context was used up.
     */
    DOLLY_FINISH_REASON_LENGTH = 1,
    /**
     * A stop text was found.
     */
    DOLLY_FINISH_REASON_STOP = 2,
    /**
     * The caller cancelled.
     */
    DOLLY_FINISH_REASON_CANCELLED = 3,
    /**
     * The deadline passed.
     */
    DOLLY_FINISH_REASON_DEADLINE = 4,
    /**
     * A reason this header does not know.
     */
    DOLLY_FINISH_REASON_OTHER = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dolly_finish_reason dolly_finish_reason;
#else
typedef int32_t dolly_finish_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What dolly_stream_next found.
 */
enum dolly_stream_event
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * More text.
     */
    DOLLY_STREAM_EVENT_PIECE = 0,
    /**
     * Nothing within the time given; ask again.
     */
    DOLLY_STREAM_EVENT_PENDING = 1,
    /**
     * The answer is complete; dolly_stream_finish gives it.
     */
    DOLLY_STREAM_EVENT_END = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dolly_stream_event dolly_stream_event;
#else
typedef int32_t dolly_stream_event;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the text of an instruction meets the framing of the prompt.
 */
enum dolly_prompt_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * User text is data: it can never become a framing token. The default.
     */
    DOLLY_PROMPT_MODE_SAFE = 0,
    /**
     * The original pipeline's behaviour: special tokens inside user text take effect.
     */
    DOLLY_PROMPT_MODE_HF = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dolly_prompt_mode dolly_prompt_mode;
#else
typedef int32_t dolly_prompt_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What becomes of a prompt that is longer than the context.
 */
enum dolly_prompt_overflow
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * DOLLY_STATUS_CONTEXT_OVERFLOW. The default.
     */
    DOLLY_PROMPT_OVERFLOW_ERROR = 0,
    /**
     * Tokens are dropped from the end of the context passage.
     */
    DOLLY_PROMPT_OVERFLOW_TRUNCATE_CONTEXT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum dolly_prompt_overflow dolly_prompt_overflow;
#else
typedef int32_t dolly_prompt_overflow;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The answers to many instructions. Freed with dolly_batch_free.
 */
typedef struct dolly_batch dolly_batch;

/**
 * A text, ids or floats made by the library. Freed with dolly_buffer_free.
 */
typedef struct dolly_buffer dolly_buffer;

/**
 * A flag that stops every request whose options carry it. Freed with dolly_cancel_free.
 */
typedef struct dolly_cancel dolly_cancel;

/**
 * Why a call failed. Owned by the caller; freed with dolly_error_free.
 */
typedef struct dolly_error dolly_error;

/**
 * Settings of dolly_pipeline_load. Freed with dolly_loader_free.
 */
typedef struct dolly_loader dolly_loader;

/**
 * Options of requests. Freed with dolly_options_free.
 *
 * A request copies its options when it is made: changing or freeing them later does not touch it.
 * A setter refuses a value outside its range with DOLLY_STATUS_INVALID_ARGUMENT and leaves the
 * options as they were.
 */
typedef struct dolly_options dolly_options;

/**
 * A loaded model; every call takes it from any thread, calls at the same time share its work.
 * Freed with dolly_pipeline_free.
 */
typedef struct dolly_pipeline dolly_pipeline;

/**
 * The answer to one request. Freed with dolly_result_free; what its getters point to is valid
 * until then.
 */
typedef struct dolly_result dolly_result;

/**
 * The log-probabilities of a response. Freed with dolly_scores_free; what its getters point to is
 * valid until then.
 */
typedef struct dolly_scores dolly_scores;

/**
 * An answer being written. Freed with dolly_stream_free, which cancels it.
 */
typedef struct dolly_stream dolly_stream;

/**
 * Hears of every tensor loaded: weights so far, weights of the whole model, the tensor's name (not
 * NUL-terminated, valid during the call).
 *
 * Called on the thread inside dolly_pipeline_load, which holds no lock: every function of this
 * library may be called from it. It must return: no longjmp, no C++ exception.
 */
typedef void (*dolly_progress_callback)(void *user_data,
                                        uint64_t loaded,
                                        uint64_t total,
                                        const char *tensor,
                                        size_t tensor_len);

/**
 * Takes one piece of an answer: whole UTF-8, not NUL-terminated, valid during the call. Returns
 * nonzero to go on, 0 to stop.
 *
 * Called on the thread that made the request, which holds no lock: every function of this library
 * may be called from it, with the same pipeline too. It must return: no longjmp, no C++ exception.
 */
typedef int32_t (*dolly_text_callback)(void *user_data,
                                       const char *piece,
                                       size_t piece_len);

/**
 * A text as pointer and length, for arrays of texts. UTF-8; no NUL is needed behind it.
 */
typedef struct {
    /**
     * First byte; may be NULL when len is 0.
     */
    const char *data;
    /**
     * Bytes.
     */
    size_t len;
} dolly_str;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/* ---- status ---- */

/**
 * The name of a status, such as "DOLLY_STATUS_OK"; "DOLLY_STATUS_UNKNOWN" for a number this
 * version does not have. NUL-terminated, never freed, never NULL.
 */
const char *dolly_status_name(int32_t status);

/* ---- error ---- */

/**
 * The status the failed call returned.
 */
dolly_status dolly_error_status(const dolly_error *error,
                                int32_t *status);

/**
 * The message: which file, tensor, field or option, and the numbers.
 *
 * Valid until the error is freed; a NUL follows it. Wording may change between versions.
 */
dolly_status dolly_error_message(const dolly_error *error,
                                 const char **message,
                                 size_t *message_len);

/**
 * Frees an error; NULL is allowed.
 */
dolly_status dolly_error_free(dolly_error *error);

/* ---- version ---- */

/**
 * The version of the library, such as "0.1.0". NUL-terminated, never freed, never NULL.
 */
const char *dolly_version(void);

/**
 * The DOLLY_ABI_VERSION of the library. A program may run when it equals the header's.
 */
uint32_t dolly_abi_version(void);

/**
 * How many handles of this process are not freed yet: 0 after a program freed all it got.
 */
dolly_status dolly_live_handles(size_t *count);

/* ---- cancel ---- */

/**
 * Makes a flag that is not triggered.
 */
dolly_status dolly_cancel_new(dolly_cancel **cancel,
                              dolly_error **error);

/**
 * Stops every request whose options carry the flag, at its next step; it stays triggered.
 *
 * A generation then ends with DOLLY_FINISH_REASON_CANCELLED and the text so far; calls that give
 * numbers end with DOLLY_STATUS_CANCELLED.
 *
 * From any thread and from signal handlers: the call neither allocates nor waits. Should another
 * call be creating or freeing a handle at that very moment, the flag is triggered when that call
 * is done; DOLLY_STATUS_BUSY, with nothing done, tells that 8 cancels wait for it already.
 */
dolly_status dolly_cancel_trigger(const dolly_cancel *cancel);

/**
 * Whether the flag was triggered.
 */
dolly_status dolly_cancel_is_triggered(const dolly_cancel *cancel,
                                       bool *triggered);

/**
 * Frees a flag; NULL is allowed. Requests and options that carry it keep it, untriggered unless
 * it was triggered before.
 */
dolly_status dolly_cancel_free(dolly_cancel *cancel);

/* ---- loader ---- */

/**
 * Makes settings with their defaults: device and format "auto", one thread per core, the
 * checkpoint's context length, no memory limit.
 */
dolly_status dolly_loader_new(dolly_loader **loader,
                              dolly_error **error);

/**
 * Where the network runs: "auto", "cpu", "cuda" or "cuda:N". A GPU needs a library built with CUDA
 * and a driver; "auto" takes it where both are.
 */
dolly_status dolly_loader_set_device(dolly_loader *loader,
                                     const char *device,
                                     size_t device_len,
                                     dolly_error **error);

/**
 * How weights are held in memory: "auto" (as stored), "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"
 * or "q6_k"; GGUF's blocks of the last two are kept as they are.
 */
dolly_status dolly_loader_set_format(dolly_loader *loader,
                                     const char *format,
                                     size_t format_len,
                                     dolly_error **error);

/**
 * Threads of the pipeline, 1 to 1024 (checked when loading).
 */
dolly_status dolly_loader_set_threads(dolly_loader *loader,
                                      size_t threads,
                                      dolly_error **error);

/**
 * Longest sequence in tokens, prompt and answer together (checked when loading).
 */
dolly_status dolly_loader_set_context_length(dolly_loader *loader,
                                             size_t tokens,
                                             dolly_error **error);

/**
 * Bytes weights and caches may take together; a model beyond it is DOLLY_STATUS_MEMORY before
 * anything is allocated.
 */
dolly_status dolly_loader_set_memory_limit(dolly_loader *loader,
                                           uint64_t bytes,
                                           dolly_error **error);

/**
 * Most requests that share a step, 1 to 1024 (checked when loading); 64 unless set.
 */
dolly_status dolly_loader_set_max_batch(dolly_loader *loader,
                                        size_t sequences,
                                        dolly_error **error);

/**
 * How keys and values of running sequences are held: "f32", "f16", "bf16" or "q8_0"; unless set,
 * "f32" with weights in f32, "f16" with f16, and with others "bf16" where the CPU multiplies bf16,
 * else "f16".
 */
dolly_status dolly_loader_set_kv_cache(dolly_loader *loader,
                                       const char *format,
                                       size_t format_len,
                                       dolly_error **error);

/**
 * Bytes for the cache rows of prompts that were read, from which requests that begin alike copy;
 * 0 is off; a sixteenth of the weights, at least 64 MiB, unless set. Results do not depend on it.
 */
dolly_status dolly_loader_set_prefix_cache(dolly_loader *loader,
                                           uint64_t bytes,
                                           dolly_error **error);

/**
 * Branch, tag or commit of a hub id; "main" unless set.
 */
dolly_status dolly_loader_set_revision(dolly_loader *loader,
                                       const char *revision,
                                       size_t revision_len,
                                       dolly_error **error);

/**
 * Whether the network is left alone; else it may be asked for files that are not on disk.
 */
dolly_status dolly_loader_set_offline(dolly_loader *loader,
                                      bool offline,
                                      dolly_error **error);

/**
 * A directory that holds dolly-nano/, looked in before the directories beside the library.
 */
dolly_status dolly_loader_set_bundled_dir(dolly_loader *loader,
                                          const char *directory,
                                          size_t directory_len,
                                          dolly_error **error);

/**
 * A directory with a low-rank adapter as PEFT writes it, merged into the weights while loading.
 *
 * It is read when loading: one that is malformed or does not fit the model is DOLLY_STATUS_FORMAT
 * there, a setting that is not computed (DoRA, biases) DOLLY_STATUS_UNSUPPORTED.
 */
dolly_status dolly_loader_set_adapter(dolly_loader *loader,
                                      const char *directory,
                                      size_t directory_len,
                                      dolly_error **error);

/**
 * A directory for packed weights: the first load of a model in a format leaves a file there, as
 * large as the weights in memory, and later loads read that instead of converting.
 *
 * It is checked against the model's files, and must be as trusted as they are. A directory that
 * cannot be written to is no error.
 */
dolly_status dolly_loader_set_packed_weights(dolly_loader *loader,
                                             const char *directory,
                                             size_t directory_len,
                                             dolly_error **error);

/**
 * A callback for the progress of loading; NULL takes it away. user_data is given back to it.
 */
dolly_status dolly_loader_set_progress(dolly_loader *loader,
                                       dolly_progress_callback callback,
                                       void *user_data,
                                       dolly_error **error);

/**
 * Frees settings; NULL is allowed. Pipelines loaded with them are not affected.
 */
dolly_status dolly_loader_free(dolly_loader *loader);

/* ---- pipeline ---- */

/**
 * Loads a model: a hub id ("databricks/dolly-v2-3b"), a directory, a .gguf file, or "dolly-nano",
 * the small model installed with the library.
 *
 * loader may be NULL for the defaults. The call blocks until the model is in memory. It reads and
 * checks untrusted files: DOLLY_STATUS_NOT_FOUND, _IO, _FORMAT, _MEMORY, _DEVICE, _UNSUPPORTED,
 * _NETWORK and _INVALID_ARGUMENT say what is wrong, the error's message where.
 */
dolly_status dolly_pipeline_load(const char *model,
                                 size_t model_len,
                                 const dolly_loader *loader,
                                 dolly_pipeline **pipeline,
                                 dolly_error **error);

/**
 * Ends every running request of the pipeline and frees its weights at once.
 *
 * Running requests and later calls end with DOLLY_STATUS_CLOSED; what tells about the model
 * (config, tokenizer) stays. The handle must still be freed.
 */
dolly_status dolly_pipeline_close(const dolly_pipeline *pipeline);

/**
 * Frees a pipeline; NULL is allowed.
 *
 * Calls of other threads that are inside the library finish as if it still lived; streams that
 * are open end with DOLLY_STATUS_CLOSED once no such call is left.
 */
dolly_status dolly_pipeline_free(dolly_pipeline *pipeline);

/**
 * What the model was called when it was loaded; valid until the pipeline is freed.
 */
dolly_status dolly_pipeline_id(const dolly_pipeline *pipeline,
                               const char **id,
                               size_t *id_len);

/**
 * The format the weights are held in, such as "q8_0"; valid until the pipeline is freed.
 */
dolly_status dolly_pipeline_weight_format(const dolly_pipeline *pipeline,
                                          const char **format,
                                          size_t *format_len);

/**
 * Longest sequence in tokens, prompt and answer together.
 */
dolly_status dolly_pipeline_context_length(const dolly_pipeline *pipeline,
                                           size_t *tokens);

/**
 * Rows of the embedding: the number of logits of each token.
 */
dolly_status dolly_pipeline_vocab_size(const dolly_pipeline *pipeline,
                                       size_t *ids);

/**
 * Width of the network's residual stream.
 */
dolly_status dolly_pipeline_hidden_size(const dolly_pipeline *pipeline,
                                        size_t *width);

/**
 * Blocks of the network.
 */
dolly_status dolly_pipeline_layers(const dolly_pipeline *pipeline,
                                   size_t *layers);

/**
 * Attention heads of each block.
 */
dolly_status dolly_pipeline_heads(const dolly_pipeline *pipeline,
                                  size_t *heads);

/**
 * Whether dolly_pipeline_close was called.
 */
dolly_status dolly_pipeline_is_closed(const dolly_pipeline *pipeline,
                                      bool *closed);

/**
 * What the pipeline holds, in bytes: weights, caches of running requests, buffers of a step, and
 * what one more token of one request adds to the caches.
 */
dolly_status dolly_pipeline_memory(const dolly_pipeline *pipeline,
                                   uint64_t *weights,
                                   uint64_t *cache,
                                   uint64_t *workspace,
                                   uint64_t *cache_per_token);

/**
 * Bytes of the rows of earlier prompts that are kept for requests that begin alike
 * (dolly_loader_set_prefix_cache); not part of what dolly_pipeline_memory tells.
 */
dolly_status dolly_pipeline_prefix_cache(const dolly_pipeline *pipeline,
                                         uint64_t *bytes);

/* ---- options ---- */

/**
 * Makes options with Dolly's defaults.
 */
dolly_status dolly_options_new(dolly_options **options,
                               dolly_error **error);

/**
 * Most tokens to generate, 1 or more; 256 unless set. Less when the context ends first.
 */
dolly_status dolly_options_set_max_new_tokens(dolly_options *options,
                                              size_t tokens,
                                              dolly_error **error);

/**
 * Draw from the distribution (true, the default) or take the likeliest token (false).
 */
dolly_status dolly_options_set_do_sample(dolly_options *options,
                                         bool do_sample,
                                         dolly_error **error);

/**
 * Divides the logits; 0 to 100, 0 is greedy; 1 unless set.
 */
dolly_status dolly_options_set_temperature(dolly_options *options,
                                           float temperature,
                                           dolly_error **error);

/**
 * Smallest set of likeliest tokens whose probability reaches this; above 0 to 1, 1 is off; 0.92
 * unless set.
 */
dolly_status dolly_options_set_top_p(dolly_options *options,
                                     float top_p,
                                     dolly_error **error);

/**
 * The k likeliest tokens; 0 is off, the default.
 */
dolly_status dolly_options_set_top_k(dolly_options *options,
                                     size_t top_k,
                                     dolly_error **error);

/**
 * Tokens at least this fraction as likely as the likeliest; 0 to below 1, 0 is off, the default.
 */
dolly_status dolly_options_set_min_p(dolly_options *options,
                                     float min_p,
                                     dolly_error **error);

/**
 * Locally typical sampling; above 0 to 1, 1 is off, the default.
 */
dolly_status dolly_options_set_typical_p(dolly_options *options,
                                         float typical_p,
                                         dolly_error **error);

/**
 * Divides positive and multiplies negative logits of tokens seen in prompt or answer; above 0 to
 * 100, 1 is off, the default.
 */
dolly_status dolly_options_set_repetition_penalty(dolly_options *options,
                                                  float penalty,
                                                  dolly_error **error);

/**
 * Subtracted once from the logit of every token already generated; -100 to 100, 0 is off, the
 * default.
 */
dolly_status dolly_options_set_presence_penalty(dolly_options *options,
                                                float penalty,
                                                dolly_error **error);

/**
 * Subtracted per occurrence from the logit of tokens already generated; -100 to 100, 0 is off, the
 * default.
 */
dolly_status dolly_options_set_frequency_penalty(dolly_options *options,
                                                 float penalty,
                                                 dolly_error **error);

/**
 * No n-gram of this length occurs twice in prompt and answer; 0 is off, the default.
 */
dolly_status dolly_options_set_no_repeat_ngram(dolly_options *options,
                                               size_t length,
                                               dolly_error **error);

/**
 * Guess up to this many tokens of each step from what was read and written before, 1 to 64; 0 is
 * off, the default. The answer is the same, token for token; where it quotes its prompt it takes
 * fewer steps.
 */
dolly_status dolly_options_set_prompt_lookup(dolly_options *options,
                                             size_t tokens,
                                             dolly_error **error);

/**
 * Seed of the draws. Unset, each request takes a fresh one and reports it in its result.
 */
dolly_status dolly_options_set_seed(dolly_options *options,
                                    uint64_t seed,
                                    dolly_error **error);

/**
 * Generate on past the end token until the length limit; false unless set.
 */
dolly_status dolly_options_set_ignore_end(dolly_options *options,
                                          bool ignore_end,
                                          dolly_error **error);

/**
 * Answers per instruction of dolly_generate_batch, 1 to 1024; 1 unless set. Other calls allow 1 only.
 */
dolly_status dolly_options_set_num_return_sequences(dolly_options *options,
                                                    size_t count,
                                                    dolly_error **error);

/**
 * Report the log-probability of each token and of this many likeliest alternatives, 0 to 100.
 */
dolly_status dolly_options_set_logprobs(dolly_options *options,
                                        size_t top,
                                        dolly_error **error);

/**
 * Put the instruction and a newline before the answer; false unless set.
 */
dolly_status dolly_options_set_return_full_text(dolly_options *options,
                                                bool full_text,
                                                dolly_error **error);

/**
 * Takes the seed away: each request draws with a fresh one.
 */
dolly_status dolly_options_clear_seed(dolly_options *options,
                                      dolly_error **error);

/**
 * No log-probabilities, the default.
 */
dolly_status dolly_options_clear_logprobs(dolly_options *options,
                                          dolly_error **error);

/**
 * Takes all stop texts away.
 */
dolly_status dolly_options_clear_stop(dolly_options *options,
                                      dolly_error **error);

/**
 * Takes all biases away.
 */
dolly_status dolly_options_clear_logit_bias(dolly_options *options,
                                            dolly_error **error);

/**
 * Adds a text that ends the answer and is not part of it; at most 64, none empty.
 */
dolly_status dolly_options_add_stop(dolly_options *options,
                                    const char *stop,
                                    size_t stop_len,
                                    dolly_error **error);

/**
 * Adds biases[i] to the logit of ids[i] at every step; finite or negative infinity.
 */
dolly_status dolly_options_add_logit_bias(dolly_options *options,
                                          const uint32_t *ids,
                                          const float *biases,
                                          size_t ids_count,
                                          dolly_error **error);

/**
 * Milliseconds a request may take from its call on, waiting included; a generation then ends with
 * the text so far. DOLLY_FOREVER, the default, is no deadline.
 */
dolly_status dolly_options_set_deadline_ms(dolly_options *options,
                                           uint64_t milliseconds,
                                           dolly_error **error);

/**
 * A flag that stops requests made with these options; NULL takes it away. The options keep the
 * flag alive: the cancel handle may be freed, but then nothing can trigger it.
 */
dolly_status dolly_options_set_cancel(dolly_options *options,
                                      const dolly_cancel *cancel,
                                      dolly_error **error);

/**
 * How user text meets the framing of the prompt: a dolly_prompt_mode.
 */
dolly_status dolly_options_set_prompt_mode(dolly_options *options,
                                           int32_t mode,
                                           dolly_error **error);

/**
 * What becomes of a prompt that is longer than the context: a dolly_prompt_overflow.
 */
dolly_status dolly_options_set_prompt_overflow(dolly_options *options,
                                               int32_t overflow,
                                               dolly_error **error);

/**
 * Frees options; NULL is allowed.
 */
dolly_status dolly_options_free(dolly_options *options);

/* ---- result ---- */

/**
 * The answer's text; a NUL follows it.
 */
dolly_status dolly_result_text(const dolly_result *result,
                               const char **text,
                               size_t *text_len);

/**
 * Every generated id, the end token included.
 */
dolly_status dolly_result_token_ids(const dolly_result *result,
                                    const uint32_t **ids,
                                    size_t *ids_count);

/**
 * Why the answer ended: a dolly_finish_reason.
 */
dolly_status dolly_result_finish_reason(const dolly_result *result,
                                        int32_t *finish_reason);

/**
 * Tokens of the rendered prompt, and tokens generated (the end token included).
 */
dolly_status dolly_result_usage(const dolly_result *result,
                                size_t *prompt_tokens,
                                size_t *completion_tokens);

/**
 * Work that was saved: prompt tokens taken from the rows of requests that began alike, tokens that
 * dolly_options_set_prompt_lookup guessed, and those of them that were right and saved a step.
 */
dolly_status dolly_result_savings(const dolly_result *result,
                                  size_t *cached_tokens,
                                  size_t *drafted_tokens,
                                  size_t *accepted_tokens);

/**
 * Seconds: waiting for the engine, running the prompt, generating, and all from call to result.
 */
dolly_status dolly_result_timings(const dolly_result *result,
                                  double *queue,
                                  double *prefill,
                                  double *decode,
                                  double *total);

/**
 * Seconds from the call to each generated token, one entry a token.
 */
dolly_status dolly_result_token_times(const dolly_result *result,
                                      const double **seconds,
                                      size_t *seconds_count);

/**
 * The seed that gives this answer again with the same options.
 */
dolly_status dolly_result_seed(const dolly_result *result,
                               uint64_t *seed);

/**
 * Natural log-probability of each generated token under the model's own distribution.
 *
 * DOLLY_STATUS_NOT_AVAILABLE unless dolly_options_set_logprobs asked for them.
 */
dolly_status dolly_result_logprobs(const dolly_result *result,
                                   const float **logprobs,
                                   size_t *logprobs_count);

/**
 * The likeliest tokens at one generated token, likeliest first, with their log-probabilities.
 *
 * index counts generated tokens from 0; DOLLY_STATUS_OUT_OF_RANGE beyond the last,
 * DOLLY_STATUS_NOT_AVAILABLE as for dolly_result_logprobs.
 */
dolly_status dolly_result_top_logprobs(const dolly_result *result,
                                       size_t index,
                                       const uint32_t **ids,
                                       const float **logprobs,
                                       size_t *top_count);

/**
 * Frees a result; NULL is allowed.
 */
dolly_status dolly_result_free(dolly_result *result);

/* ---- generate ---- */

/**
 * Answers an instruction, with a context passage unless context_len is 0.
 *
 * options may be NULL for the defaults. The call blocks until the answer ends; a cancel or a
 * deadline ends it with the text so far.
 */
dolly_status dolly_generate(const dolly_pipeline *pipeline,
                            const char *instruction,
                            size_t instruction_len,
                            const char *context,
                            size_t context_len,
                            const dolly_options *options,
                            dolly_result **result,
                            dolly_error **error);

/**
 * Answers an instruction piece by piece through a callback on the calling thread.
 *
 * The pieces put together are the text of the result. A callback that returns 0 ends the answer
 * with the text so far and DOLLY_FINISH_REASON_CANCELLED.
 */
dolly_status dolly_generate_stream(const dolly_pipeline *pipeline,
                                   const char *instruction,
                                   size_t instruction_len,
                                   const char *context,
                                   size_t context_len,
                                   const dolly_options *options,
                                   dolly_text_callback callback,
                                   void *user_data,
                                   dolly_result **result,
                                   dolly_error **error);

/**
 * Continues a text as it is, without Dolly's prompt: for base models.
 */
dolly_status dolly_complete(const dolly_pipeline *pipeline,
                            const char *prompt,
                            size_t prompt_len,
                            const dolly_options *options,
                            dolly_result **result,
                            dolly_error **error);

/**
 * Continues token ids as they are.
 */
dolly_status dolly_complete_ids(const dolly_pipeline *pipeline,
                                const uint32_t *ids,
                                size_t ids_count,
                                const dolly_options *options,
                                dolly_result **result,
                                dolly_error **error);

/* ---- batch ---- */

/**
 * Answers many instructions, sharing every pass over the weights.
 *
 * contexts is NULL or holds as many texts as instructions, empty where there is none. The batch
 * holds num_return_sequences rows for the first instruction, then those of the next. Failures of
 * a row (its text, its length) are reported by dolly_batch_result for that row alone.
 */
dolly_status dolly_generate_batch(const dolly_pipeline *pipeline,
                                  const dolly_str *instructions,
                                  const dolly_str *contexts,
                                  size_t instructions_count,
                                  const dolly_options *options,
                                  dolly_batch **batch,
                                  dolly_error **error);

/**
 * Rows of a batch: instructions times num_return_sequences.
 */
dolly_status dolly_batch_len(const dolly_batch *batch,
                             size_t *rows);

/**
 * The result of one row, to be freed by the caller; or the status and error of that row.
 *
 * Results live on when the batch is freed.
 */
dolly_status dolly_batch_result(const dolly_batch *batch,
                                size_t row,
                                dolly_result **result,
                                dolly_error **error);

/**
 * Frees a batch; NULL is allowed.
 */
dolly_status dolly_batch_free(dolly_batch *batch);

/* ---- stream ---- */

/**
 * Starts to answer an instruction, with a context passage unless context_len is 0.
 *
 * options may be NULL for the defaults. A stream does not keep its pipeline: freed or closed under
 * an open stream, the stream ends with DOLLY_STATUS_CLOSED.
 */
dolly_status dolly_stream_open(const dolly_pipeline *pipeline,
                               const char *instruction,
                               size_t instruction_len,
                               const char *context,
                               size_t context_len,
                               const dolly_options *options,
                               dolly_stream **stream,
                               dolly_error **error);

/**
 * Starts to continue a text as it is, without Dolly's prompt.
 */
dolly_status dolly_stream_open_completion(const dolly_pipeline *pipeline,
                                          const char *prompt,
                                          size_t prompt_len,
                                          const dolly_options *options,
                                          dolly_stream **stream,
                                          dolly_error **error);

/**
 * Waits for the next piece, at most timeout_ms milliseconds (DOLLY_FOREVER: without end).
 *
 * event becomes a dolly_stream_event; piece and piece_len are empty unless it is
 * DOLLY_STREAM_EVENT_PIECE. A piece is whole UTF-8 followed by a NUL, valid until the next call
 * on this stream. While one thread is inside this call, others get DOLLY_STATUS_BUSY.
 */
dolly_status dolly_stream_next(const dolly_stream *stream,
                               uint64_t timeout_ms,
                               int32_t *event,
                               const char **piece,
                               size_t *piece_len,
                               dolly_error **error);

/**
 * Waits for the end and gives the whole answer; pieces not read are in its text.
 *
 * May be called again, each time for a new result.
 */
dolly_status dolly_stream_finish(const dolly_stream *stream,
                                 dolly_result **result,
                                 dolly_error **error);

/**
 * Asks the engine to stop at its next step; the text so far stays. From any thread, while another
 * waits in dolly_stream_next too.
 */
dolly_status dolly_stream_cancel(const dolly_stream *stream);

/**
 * Frees a stream and cancels its request; NULL is allowed. A thread that waits in
 * dolly_stream_next wakes up with what there was.
 */
dolly_status dolly_stream_free(dolly_stream *stream);

/* ---- score ---- */

/**
 * How likely the model finds a response as the answer to an instruction, token by token.
 *
 * The response is scored as Dolly was trained, followed by a blank line and "### End" where the
 * checkpoint has that token. Of options (may be NULL) only deadline and cancel are used.
 */
dolly_status dolly_score(const dolly_pipeline *pipeline,
                         const char *instruction,
                         size_t instruction_len,
                         const char *context,
                         size_t context_len,
                         const char *response,
                         size_t response_len,
                         const dolly_options *options,
                         dolly_scores **scores,
                         dolly_error **error);

/**
 * The response's ids, its end token included where the model has one.
 */
dolly_status dolly_scores_token_ids(const dolly_scores *scores,
                                    const uint32_t **ids,
                                    size_t *ids_count);

/**
 * Natural log-probability of each of the response's ids, given all before.
 */
dolly_status dolly_scores_logprobs(const dolly_scores *scores,
                                   const float **logprobs,
                                   size_t *logprobs_count);

/**
 * The sum of the log-probabilities, and the perplexity exp(-sum / tokens).
 */
dolly_status dolly_scores_total(const dolly_scores *scores,
                                double *sum,
                                double *perplexity);

/**
 * Frees scores; NULL is allowed.
 */
dolly_status dolly_scores_free(dolly_scores *scores);

/**
 * The probability of each of the given answers, as whole responses to an instruction.
 *
 * probabilities and logprobs have room for answers_count entries, in the order of answers:
 * probabilities add up to 1, logprobs are natural and of the whole response. Both are written
 * only on success. Of options (may be NULL) only deadline and cancel are used.
 */
dolly_status dolly_classify(const dolly_pipeline *pipeline,
                            const char *instruction,
                            size_t instruction_len,
                            const char *context,
                            size_t context_len,
                            const dolly_str *answers,
                            size_t answers_count,
                            const dolly_options *options,
                            double *probabilities,
                            double *logprobs,
                            dolly_error **error);

/**
 * Logits after each of the ids, as a buffer of floats: ids_count rows of
 * dolly_pipeline_vocab_size entries. Of options (may be NULL) only deadline and cancel are used.
 */
dolly_status dolly_logits(const dolly_pipeline *pipeline,
                          const uint32_t *ids,
                          size_t ids_count,
                          const dolly_options *options,
                          dolly_buffer **logits,
                          dolly_error **error);

/* ---- tokenizer ---- */

/**
 * The ids of a text, as a buffer of ids.
 *
 * With special, the framing tokens of the checkpoint that stand in the text become their ids;
 * without, they are text like any other.
 */
dolly_status dolly_tokenizer_encode(const dolly_pipeline *pipeline,
                                    const char *input,
                                    size_t input_len,
                                    bool special,
                                    dolly_buffer **ids,
                                    dolly_error **error);

/**
 * The text of ids, as a buffer of text; bytes that are not UTF-8 become U+FFFD.
 *
 * With skip_special, framing tokens leave no text. An id beyond the vocabulary is
 * DOLLY_STATUS_INVALID_ARGUMENT.
 */
dolly_status dolly_tokenizer_decode(const dolly_pipeline *pipeline,
                                    const uint32_t *ids,
                                    size_t ids_count,
                                    bool skip_special,
                                    dolly_buffer **output,
                                    dolly_error **error);

/* ---- buffer ---- */

/**
 * The text of a buffer, valid until the buffer is freed; a NUL follows it.
 */
dolly_status dolly_buffer_text(const dolly_buffer *buffer,
                               const char **text,
                               size_t *text_len);

/**
 * The ids of a buffer, valid until the buffer is freed.
 */
dolly_status dolly_buffer_ids(const dolly_buffer *buffer,
                              const uint32_t **ids,
                              size_t *ids_count);

/**
 * The floats of a buffer, valid until the buffer is freed.
 */
dolly_status dolly_buffer_floats(const dolly_buffer *buffer,
                                 const float **floats,
                                 size_t *floats_count);

/**
 * Frees a buffer; NULL is allowed.
 */
dolly_status dolly_buffer_free(dolly_buffer *buffer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* DOLLY_H */
