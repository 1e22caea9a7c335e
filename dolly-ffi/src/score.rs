//! Log-probabilities: of a response, among given answers, of every token.

use std::ffi::c_char;
use std::ptr::null_mut;

use dolly_core::generate::Score;
use dolly_core::{GenerateOptions, RequestOptions};

use crate::buffer::{Buffer, dolly_buffer};
use crate::error::dolly_error;
use crate::generate::Request;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::options::{dolly_options, settings};
use crate::pipeline::dolly_pipeline;
use crate::pointers::{Out, dolly_str, slice, text};
use crate::status::dolly_status;

/// The log-probabilities of a response. Freed with dolly_scores_free; what its getters point to is
/// valid until then.
pub struct dolly_scores {
    _opaque: (),
}

impl Handle for dolly_scores {
    type Object = Score;
    const TAG: u8 = 9;
    const NAME: &'static str = "dolly_scores";
}

/// Of the options only deadline and cancel matter to calls that give numbers.
fn limits(options: GenerateOptions) -> RequestOptions {
    RequestOptions { deadline: options.deadline, cancel: options.cancel }
}

/// How likely the model finds a response as the answer to an instruction, token by token.
///
/// The response is scored as Dolly was trained, followed by a blank line and "### End" where the
/// checkpoint has that token. Of options (may be NULL) only deadline and cancel are used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_score(
    pipeline: *const dolly_pipeline,
    instruction: *const c_char,
    instruction_len: usize,
    context: *const c_char,
    context_len: usize,
    response: *const c_char,
    response_len: usize,
    options: *const dolly_options,
    scores: *mut *mut dolly_scores,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (instruction, context) = ((instruction, instruction_len), (context, context_len));
            let Request { pipe, prompt, options } =
                Request::new(pipeline, instruction, context, options)?;
            let response = text(response, response_len, "response")?;
            let out = Out::new(scores, "scores")?;
            out.write(handle::insert(pipe.score_with(prompt, response, &limits(options))?)?);
            Ok(())
        })
    }
}

/// The response's ids, its end token included where the model has one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_scores_token_ids(
    scores: *const dolly_scores,
    ids: *mut *const u32,
    ids_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let held = handle::get(scores)?;
            let (ids, count) = (Out::new(ids, "ids")?, Out::new(ids_count, "ids_count")?);
            ids.write(held.token_ids.as_ptr());
            count.write(held.token_ids.len());
            Ok(())
        })
    }
}

/// Natural log-probability of each of the response's ids, given all before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_scores_logprobs(
    scores: *const dolly_scores,
    logprobs: *mut *const f32,
    logprobs_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let held = handle::get(scores)?;
            let logprobs = Out::new(logprobs, "logprobs")?;
            let count = Out::new(logprobs_count, "logprobs_count")?;
            logprobs.write(held.logprobs.as_ptr());
            count.write(held.logprobs.len());
            Ok(())
        })
    }
}

/// The sum of the log-probabilities, and the perplexity exp(-sum / tokens).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_scores_total(
    scores: *const dolly_scores,
    sum: *mut f64,
    perplexity: *mut f64,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let held = handle::get(scores)?;
            let (sum, perplexity) = (Out::new(sum, "sum")?, Out::new(perplexity, "perplexity")?);
            sum.write(held.sum);
            perplexity.write(held.perplexity);
            Ok(())
        })
    }
}

/// Frees scores; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_scores_free(scores: *mut dolly_scores) -> dolly_status {
    handle::free(scores)
}

/// The probability of each of the given answers, as whole responses to an instruction.
///
/// probabilities and logprobs have room for answers_count entries, in the order of answers:
/// probabilities add up to 1, logprobs are natural and of the whole response. Both are written
/// only on success. Of options (may be NULL) only deadline and cancel are used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_classify(
    pipeline: *const dolly_pipeline,
    instruction: *const c_char,
    instruction_len: usize,
    context: *const c_char,
    context_len: usize,
    answers: *const dolly_str,
    answers_count: usize,
    options: *const dolly_options,
    probabilities: *mut f64,
    logprobs: *mut f64,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (instruction, context) = ((instruction, instruction_len), (context, context_len));
            let Request { pipe, prompt, options } =
                Request::new(pipeline, instruction, context, options)?;
            let answers = slice(answers, answers_count, "answers")?.iter();
            let answers = answers.map(|answer| text(answer.data, answer.len, "an answer"));
            let answers: Vec<&str> = answers.collect::<Result<_, _>>()?;
            Out::new(probabilities, "probabilities")?;
            Out::new(logprobs, "logprobs")?;
            let classes = pipe.classify_with(prompt, &answers, &limits(options))?;
            // The two places are the caller's; plain writes allow them to be one and the same.
            for (index, class) in classes.iter().enumerate().take(answers_count) {
                probabilities.add(index).write(class.probability);
                logprobs.add(index).write(class.logprob);
            }
            Ok(())
        })
    }
}

/// Logits after each of the ids, as a buffer of floats: ids_count rows of
/// dolly_pipeline_vocab_size entries. Of options (may be NULL) only deadline and cancel are used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_logits(
    pipeline: *const dolly_pipeline,
    ids: *const u32,
    ids_count: usize,
    options: *const dolly_options,
    logits: *mut *mut dolly_buffer,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (pipe, options) = (handle::get(pipeline)?, limits(settings(options)?));
            let (ids, out) = (slice(ids, ids_count, "ids")?, Out::new(logits, "logits")?);
            let numbers = pipe.logits_with(ids, &options)?;
            out.write(handle::insert(Buffer::Floats(numbers))?);
            Ok(())
        })
    }
}
