//! What a generation gave: text, ids, why it ended, counts, times, log-probabilities.

use std::ffi::c_char;
use std::ptr::null_mut;

use dolly_core::Generation;
use dolly_core::generate::FinishReason;

use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::Out;
use crate::status::{Failure, dolly_status};
use crate::text::Text;

/// The answer to one request. Freed with dolly_result_free; what its getters point to is valid
/// until then.
pub struct dolly_result {
    _opaque: (),
}

impl Handle for dolly_result {
    type Object = Answer;
    const TAG: u8 = 6;
    const NAME: &'static str = "dolly_result";
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum dolly_finish_reason {
    /// The model wrote its end token.
    End = 0,
    /// max_new_tokens or the context was used up.
    Length = 1,
    /// A stop text was found.
    Stop = 2,
    /// The caller cancelled.
    Cancelled = 3,
    /// The deadline passed.
    Deadline = 4,
    /// A reason this header does not know.
    Other = 5,
}

fn reason(reason: FinishReason) -> dolly_finish_reason {
    match reason {
        FinishReason::End => dolly_finish_reason::End,
        FinishReason::Length => dolly_finish_reason::Length,
        FinishReason::Stop => dolly_finish_reason::Stop,
        FinishReason::Cancelled => dolly_finish_reason::Cancelled,
        FinishReason::Deadline => dolly_finish_reason::Deadline,
        _ => dolly_finish_reason::Other,
    }
}

/// What stands behind a [`dolly_result`]: a generation laid out for pointers.
pub(crate) struct Answer {
    generation: Generation,
    text: Text,
    token_seconds: Vec<f64>,
    logprobs: Option<Logprobs>,
}

struct Logprobs {
    chosen: Vec<f32>,
    top: Vec<(Vec<u32>, Vec<f32>)>,
}

impl Answer {
    pub fn new(mut generation: Generation) -> Self {
        let text = Text::new(std::mem::take(&mut generation.text));
        let token_seconds = generation.timings.tokens.iter().map(|time| time.as_secs_f64());
        let logprobs = generation.logprobs.take().map(|tokens| Logprobs {
            chosen: tokens.iter().map(|token| token.logprob).collect(),
            top: tokens.into_iter().map(|token| token.top.into_iter().unzip()).collect(),
        });
        Self { token_seconds: token_seconds.collect(), text, logprobs, generation }
    }

    fn logprobs(&self) -> Result<&Logprobs, Failure> {
        self.logprobs.as_ref().ok_or_else(|| {
            Failure::new(
                dolly_status::NotAvailable,
                "the options did not ask for log-probabilities",
            )
        })
    }
}

/// A new handle to an answer of its own.
pub(crate) fn insert(generation: Generation) -> Result<*mut dolly_result, Failure> {
    handle::insert(Answer::new(generation))
}

/// The answer's text; a NUL follows it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_text(
    result: *const dolly_result,
    text: *mut *const c_char,
    text_len: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let (text, len) = (Out::new(text, "text")?, Out::new(text_len, "text_len")?);
            text.write(answer.text.as_ptr());
            len.write(answer.text.len());
            Ok(())
        })
    }
}

/// Every generated id, the end token included.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_token_ids(
    result: *const dolly_result,
    ids: *mut *const u32,
    ids_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let (ids, count) = (Out::new(ids, "ids")?, Out::new(ids_count, "ids_count")?);
            ids.write(answer.generation.token_ids.as_ptr());
            count.write(answer.generation.token_ids.len());
            Ok(())
        })
    }
}

/// Why the answer ended: a dolly_finish_reason.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_finish_reason(
    result: *const dolly_result,
    finish_reason: *mut i32,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let out = Out::new(finish_reason, "finish_reason")?;
            out.write(reason(answer.generation.finish_reason) as i32);
            Ok(())
        })
    }
}

/// Tokens of the rendered prompt, and tokens generated (the end token included).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_usage(
    result: *const dolly_result,
    prompt_tokens: *mut usize,
    completion_tokens: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let prompt = Out::new(prompt_tokens, "prompt_tokens")?;
            let completion = Out::new(completion_tokens, "completion_tokens")?;
            prompt.write(answer.generation.usage.prompt_tokens);
            completion.write(answer.generation.usage.completion_tokens);
            Ok(())
        })
    }
}

/// Work that was saved: prompt tokens taken from the rows of requests that began alike, tokens that
/// dolly_options_set_prompt_lookup guessed, and those of them that were right and saved a step.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_savings(
    result: *const dolly_result,
    cached_tokens: *mut usize,
    drafted_tokens: *mut usize,
    accepted_tokens: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let cached = Out::new(cached_tokens, "cached_tokens")?;
            let drafted = Out::new(drafted_tokens, "drafted_tokens")?;
            let accepted = Out::new(accepted_tokens, "accepted_tokens")?;
            cached.write(answer.generation.usage.cached_tokens);
            drafted.write(answer.generation.usage.drafted_tokens);
            accepted.write(answer.generation.usage.accepted_tokens);
            Ok(())
        })
    }
}

/// Seconds: waiting for the engine, running the prompt, generating, and all from call to result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_timings(
    result: *const dolly_result,
    queue: *mut f64,
    prefill: *mut f64,
    decode: *mut f64,
    total: *mut f64,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let (queue, prefill) = (Out::new(queue, "queue")?, Out::new(prefill, "prefill")?);
            let (decode, total) = (Out::new(decode, "decode")?, Out::new(total, "total")?);
            let timings = &answer.generation.timings;
            queue.write(timings.queue.as_secs_f64());
            prefill.write(timings.prefill.as_secs_f64());
            decode.write(timings.decode.as_secs_f64());
            total.write(timings.total.as_secs_f64());
            Ok(())
        })
    }
}

/// Seconds from the call to each generated token, one entry a token.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_token_times(
    result: *const dolly_result,
    seconds: *mut *const f64,
    seconds_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let seconds = Out::new(seconds, "seconds")?;
            let count = Out::new(seconds_count, "seconds_count")?;
            seconds.write(answer.token_seconds.as_ptr());
            count.write(answer.token_seconds.len());
            Ok(())
        })
    }
}

/// The seed that gives this answer again with the same options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_seed(
    result: *const dolly_result,
    seed: *mut u64,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            Out::new(seed, "seed")?.write(answer.generation.seed);
            Ok(())
        })
    }
}

/// Natural log-probability of each generated token under the model's own distribution.
///
/// DOLLY_STATUS_NOT_AVAILABLE unless dolly_options_set_logprobs asked for them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_logprobs(
    result: *const dolly_result,
    logprobs: *mut *const f32,
    logprobs_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let logprobs = Out::new(logprobs, "logprobs")?;
            let count = Out::new(logprobs_count, "logprobs_count")?;
            let held = answer.logprobs()?;
            logprobs.write(held.chosen.as_ptr());
            count.write(held.chosen.len());
            Ok(())
        })
    }
}

/// The likeliest tokens at one generated token, likeliest first, with their log-probabilities.
///
/// index counts generated tokens from 0; DOLLY_STATUS_OUT_OF_RANGE beyond the last,
/// DOLLY_STATUS_NOT_AVAILABLE as for dolly_result_logprobs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_top_logprobs(
    result: *const dolly_result,
    index: usize,
    ids: *mut *const u32,
    logprobs: *mut *const f32,
    top_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let answer = handle::get(result)?;
            let (ids, logprobs) = (Out::new(ids, "ids")?, Out::new(logprobs, "logprobs")?);
            let count = Out::new(top_count, "top_count")?;
            let held = &answer.logprobs()?.top;
            let (top_ids, top_logprobs) =
                held.get(index).ok_or_else(|| out_of_range("token", index, held.len()))?;
            ids.write(top_ids.as_ptr());
            logprobs.write(top_logprobs.as_ptr());
            count.write(top_ids.len());
            Ok(())
        })
    }
}

/// Frees a result; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_result_free(result: *mut dolly_result) -> dolly_status {
    handle::free(result)
}

/// The failure of an index beyond the last of `len` entries.
pub(crate) fn out_of_range(what: &str, index: usize, len: usize) -> Failure {
    Failure::new(dolly_status::OutOfRange, format!("{what} {index} of {len}"))
}
