//! Options of a request, through setters; the defaults are Dolly's.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dolly_core::{CancelToken, GenerateOptions, PromptMode, PromptOverflow};

use crate::cancel::dolly_cancel;
use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::{Out, owned, slice, text};
use crate::status::{Failure, dolly_status};
use crate::stream::DOLLY_FOREVER;

/// Options of requests. Freed with dolly_options_free.
///
/// A request copies its options when it is made: changing or freeing them later does not touch it.
/// A setter refuses a value outside its range with DOLLY_STATUS_INVALID_ARGUMENT and leaves the
/// options as they were.
pub struct dolly_options {
    _opaque: (),
}

impl Handle for dolly_options {
    type Object = Mutex<GenerateOptions>;
    const TAG: u8 = 10;
    const NAME: &'static str = "dolly_options";
}

/// How the text of an instruction meets the framing of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum dolly_prompt_mode {
    /// User text is data: it can never become a framing token. The default.
    Safe = 0,
    /// The original pipeline's behaviour: special tokens inside user text take effect.
    Hf = 1,
}

/// What becomes of a prompt that is longer than the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum dolly_prompt_overflow {
    /// DOLLY_STATUS_CONTEXT_OVERFLOW. The default.
    Error = 0,
    /// Tokens are dropped from the end of the context passage.
    TruncateContext = 1,
}

/// Copies the options out, the defaults for NULL.
pub(crate) fn settings(options: *const dolly_options) -> Result<GenerateOptions, Failure> {
    Ok(handle::get_optional(options)?.map_or_else(GenerateOptions::default, |object| {
        object.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }))
}

/// Edits a copy and takes it over when it is valid.
fn change(
    options: *mut dolly_options,
    edit: impl FnOnce(&mut GenerateOptions),
) -> Result<(), Failure> {
    let object = handle::get(options)?;
    let mut held = object.lock().unwrap_or_else(PoisonError::into_inner);
    let mut next = held.clone();
    edit(&mut next);
    next.validate()?;
    *held = next;
    Ok(())
}

unsafe fn set(
    options: *mut dolly_options,
    error: *mut *mut dolly_error,
    edit: impl FnOnce(&mut GenerateOptions),
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe { guard(error, || change(options, edit)) }
}

/// Makes options with Dolly's defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_new(
    options: *mut *mut dolly_options,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let options = Out::new(options, "options")?;
            options.write(handle::insert(Mutex::new(GenerateOptions::default()))?);
            Ok(())
        })
    }
}

/// Most tokens to generate, 1 or more; 256 unless set. Less when the context ends first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_max_new_tokens(
    options: *mut dolly_options,
    tokens: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.max_new_tokens = tokens) }
}

/// Draw from the distribution (true, the default) or take the likeliest token (false).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_do_sample(
    options: *mut dolly_options,
    do_sample: bool,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.do_sample = do_sample) }
}

/// Divides the logits; 0 to 100, 0 is greedy; 1 unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_temperature(
    options: *mut dolly_options,
    temperature: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.temperature = temperature) }
}

/// Smallest set of likeliest tokens whose probability reaches this; above 0 to 1, 1 is off; 0.92
/// unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_top_p(
    options: *mut dolly_options,
    top_p: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.top_p = top_p) }
}

/// The k likeliest tokens; 0 is off, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_top_k(
    options: *mut dolly_options,
    top_k: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.top_k = top_k) }
}

/// Tokens at least this fraction as likely as the likeliest; 0 to below 1, 0 is off, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_min_p(
    options: *mut dolly_options,
    min_p: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.min_p = min_p) }
}

/// Locally typical sampling; above 0 to 1, 1 is off, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_typical_p(
    options: *mut dolly_options,
    typical_p: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.typical_p = typical_p) }
}

/// Divides positive and multiplies negative logits of tokens seen in prompt or answer; above 0 to
/// 100, 1 is off, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_repetition_penalty(
    options: *mut dolly_options,
    penalty: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.repetition_penalty = penalty) }
}

/// Subtracted once from the logit of every token already generated; -100 to 100, 0 is off, the
/// default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_presence_penalty(
    options: *mut dolly_options,
    penalty: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.presence_penalty = penalty) }
}

/// Subtracted per occurrence from the logit of tokens already generated; -100 to 100, 0 is off, the
/// default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_frequency_penalty(
    options: *mut dolly_options,
    penalty: f32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.frequency_penalty = penalty) }
}

/// No n-gram of this length occurs twice in prompt and answer; 0 is off, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_no_repeat_ngram(
    options: *mut dolly_options,
    length: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.no_repeat_ngram = length) }
}

/// Guess up to this many tokens of each step from what was read and written before, 1 to 64; 0 is
/// off, the default. The answer is the same, token for token; where it quotes its prompt it takes
/// fewer steps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_prompt_lookup(
    options: *mut dolly_options,
    tokens: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    let lookup = Some(tokens).filter(|tokens| *tokens > 0);
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.prompt_lookup = lookup) }
}

/// Seed of the draws. Unset, each request takes a fresh one and reports it in its result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_seed(
    options: *mut dolly_options,
    seed: u64,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.seed = Some(seed)) }
}

/// Generate on past the end token until the length limit; false unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_ignore_end(
    options: *mut dolly_options,
    ignore_end: bool,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.ignore_end = ignore_end) }
}

/// Answers per instruction of dolly_generate_batch, 1 to 1024; 1 unless set. Other calls allow 1 only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_num_return_sequences(
    options: *mut dolly_options,
    count: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.num_return_sequences = count) }
}

/// Report the log-probability of each token and of this many likeliest alternatives, 0 to 100.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_logprobs(
    options: *mut dolly_options,
    top: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.logprobs = Some(top)) }
}

/// Put the instruction and a newline before the answer; false unless set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_return_full_text(
    options: *mut dolly_options,
    full_text: bool,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.return_full_text = full_text) }
}

/// Takes the seed away: each request draws with a fresh one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_clear_seed(
    options: *mut dolly_options,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.seed = None) }
}

/// No log-probabilities, the default.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_clear_logprobs(
    options: *mut dolly_options,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.logprobs = None) }
}

/// Takes all stop texts away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_clear_stop(
    options: *mut dolly_options,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.stop = Vec::new()) }
}

/// Takes all biases away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_clear_logit_bias(
    options: *mut dolly_options,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.logit_bias = Vec::new()) }
}

/// Adds a text that ends the answer and is not part of it; at most 64, none empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_add_stop(
    options: *mut dolly_options,
    stop: *const c_char,
    stop_len: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(options)?;
            let stop = owned(text(stop, stop_len, "stop")?)?;
            change(options, |held| held.stop.push(stop))
        })
    }
}

/// Adds biases[i] to the logit of ids[i] at every step; finite or negative infinity.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_add_logit_bias(
    options: *mut dolly_options,
    ids: *const u32,
    biases: *const f32,
    ids_count: usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(options)?;
            let ids = slice(ids, ids_count, "ids")?;
            let biases = slice(biases, ids_count, "biases")?;
            let pairs = ids.iter().copied().zip(biases.iter().copied());
            change(options, |held| held.logit_bias.extend(pairs))
        })
    }
}

/// Milliseconds a request may take from its call on, waiting included; a generation then ends with
/// the text so far. DOLLY_FOREVER, the default, is no deadline.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_deadline_ms(
    options: *mut dolly_options,
    milliseconds: u64,
    error: *mut *mut dolly_error,
) -> dolly_status {
    let deadline = (milliseconds != DOLLY_FOREVER).then(|| Duration::from_millis(milliseconds));
    // SAFETY: passed on.
    unsafe { set(options, error, |held| held.deadline = deadline) }
}

/// A flag that stops requests made with these options; NULL takes it away. The options keep the
/// flag alive: the cancel handle may be freed, but then nothing can trigger it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_cancel(
    options: *mut dolly_options,
    cancel: *const dolly_cancel,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(options)?;
            let token = handle::get_optional(cancel)?.map(|token| CancelToken::clone(&token));
            change(options, |held| held.cancel = token)
        })
    }
}

/// How user text meets the framing of the prompt: a dolly_prompt_mode.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_prompt_mode(
    options: *mut dolly_options,
    mode: i32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    const SAFE: i32 = dolly_prompt_mode::Safe as i32;
    const HF: i32 = dolly_prompt_mode::Hf as i32;
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(options)?;
            let mode = match mode {
                SAFE => PromptMode::Safe,
                HF => PromptMode::Hf,
                other => return Err(unknown("dolly_prompt_mode", other)),
            };
            change(options, |held| held.prompt_mode = mode)
        })
    }
}

/// What becomes of a prompt that is longer than the context: a dolly_prompt_overflow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_set_prompt_overflow(
    options: *mut dolly_options,
    overflow: i32,
    error: *mut *mut dolly_error,
) -> dolly_status {
    const ERROR: i32 = dolly_prompt_overflow::Error as i32;
    const TRUNCATE: i32 = dolly_prompt_overflow::TruncateContext as i32;
    // SAFETY: `error` is NULL or valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            handle::get(options)?;
            let overflow = match overflow {
                ERROR => PromptOverflow::Error,
                TRUNCATE => PromptOverflow::TruncateContext,
                other => return Err(unknown("dolly_prompt_overflow", other)),
            };
            change(options, |held| held.prompt_overflow = overflow)
        })
    }
}

fn unknown(kind: &str, value: i32) -> Failure {
    Failure::new(dolly_status::InvalidArgument, format!("{value} is no {kind}"))
}

/// Frees options; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_options_free(options: *mut dolly_options) -> dolly_status {
    handle::free(options)
}
