//! Answers to instructions, and raw continuations.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::sync::Arc;

use dolly_core::prompt::Instruction;
use dolly_core::{GenerateOptions, Generation, Pipeline, Prompt};

use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle;
use crate::options::{dolly_options, settings};
use crate::pipeline::{Loaded, dolly_pipeline};
use crate::pointers::{Out, owned, slice, text};
use crate::result::{self, dolly_result};
use crate::status::{Failure, dolly_status};

/// Takes one piece of an answer: whole UTF-8, not NUL-terminated, valid during the call. Returns
/// nonzero to go on, 0 to stop.
///
/// Called on the thread that made the request, which holds no lock: every function of this library
/// may be called from it, with the same pipeline too. It must return: no longjmp, no C++ exception.
pub type dolly_text_callback = Option<
    unsafe extern "C" fn(user_data: *mut c_void, piece: *const c_char, piece_len: usize) -> i32,
>;

/// The caller's instruction with its context.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn instruction(
    instruction: (*const c_char, usize),
    context: (*const c_char, usize),
) -> Result<Instruction, Failure> {
    // SAFETY: the caller's promise is passed on.
    let (instruction, context) = unsafe {
        (text(instruction.0, instruction.1, "instruction")?, text(context.0, context.1, "context")?)
    };
    let built = Instruction::new(owned(instruction)?);
    Ok(match context.is_empty() {
        true => built,
        false => built.context(owned(context)?),
    })
}

/// What most requests are made of.
pub(crate) struct Request {
    pub pipe: Arc<Loaded>,
    pub prompt: Instruction,
    pub options: GenerateOptions,
}

impl Request {
    /// Checks and takes what the caller gave.
    ///
    /// # Safety
    /// As for [`text`], for both texts.
    pub(crate) unsafe fn new(
        pipeline: *const dolly_pipeline,
        instruction: (*const c_char, usize),
        context: (*const c_char, usize),
        options: *const dolly_options,
    ) -> Result<Self, Failure> {
        let (pipe, options) = (handle::get(pipeline)?, settings(options)?);
        // SAFETY: the caller's promise is passed on.
        let prompt = unsafe { self::instruction(instruction, context) }?;
        Ok(Self { pipe, prompt, options })
    }
}

/// Answers an instruction, with a context passage unless context_len is 0.
///
/// options may be NULL for the defaults. The call blocks until the answer ends; a cancel or a
/// deadline ends it with the text so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_generate(
    pipeline: *const dolly_pipeline,
    instruction: *const c_char,
    instruction_len: usize,
    context: *const c_char,
    context_len: usize,
    options: *const dolly_options,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (instruction, context) = ((instruction, instruction_len), (context, context_len));
            let asked = Request::new(pipeline, instruction, context, options)?;
            let out = Out::new(result, "result")?;
            out.write(result::insert(asked.pipe.generate(asked.prompt, &asked.options)?)?);
            Ok(())
        })
    }
}

/// Answers an instruction piece by piece through a callback on the calling thread.
///
/// The pieces put together are the text of the result. A callback that returns 0 ends the answer
/// with the text so far and DOLLY_FINISH_REASON_CANCELLED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_generate_stream(
    pipeline: *const dolly_pipeline,
    instruction: *const c_char,
    instruction_len: usize,
    context: *const c_char,
    context_len: usize,
    options: *const dolly_options,
    callback: dolly_text_callback,
    user_data: *mut c_void,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract, the callback may be
    // called with its data.
    unsafe {
        guard(error, || {
            let (instruction, context) = ((instruction, instruction_len), (context, context_len));
            let asked = Request::new(pipeline, instruction, context, options)?;
            let call = callback
                .ok_or_else(|| Failure::new(dolly_status::NullPointer, "callback is NULL"))?;
            let out = Out::new(result, "result")?;
            let answer =
                asked.pipe.generate_to(asked.prompt, &asked.options, |piece| {
                    match call(user_data, piece.as_ptr().cast(), piece.len()) {
                        0 => ControlFlow::Break(()),
                        _ => ControlFlow::Continue(()),
                    }
                })?;
            out.write(result::insert(answer)?);
            Ok(())
        })
    }
}

/// Continues a text as it is, without Dolly's prompt: for base models.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_complete(
    pipeline: *const dolly_pipeline,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const dolly_options,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let pipe = handle::get(pipeline)?;
            complete(&pipe, Prompt::Text(text(prompt, prompt_len, "prompt")?), options, result)
        })
    }
}

/// Continues token ids as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_complete_ids(
    pipeline: *const dolly_pipeline,
    ids: *const u32,
    ids_count: usize,
    options: *const dolly_options,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let pipe = handle::get(pipeline)?;
            complete(&pipe, Prompt::Ids(slice(ids, ids_count, "ids")?), options, result)
        })
    }
}

/// # Safety
/// `out` is NULL or valid for writing.
unsafe fn complete(
    pipe: &Pipeline,
    prompt: Prompt<'_>,
    options: *const dolly_options,
    out: *mut *mut dolly_result,
) -> Result<(), Failure> {
    let options = settings(options)?;
    // SAFETY: the caller's promise is passed on.
    let out = unsafe { Out::new(out, "result") }?;
    let answer: Generation = pipe.complete(prompt, &options)?;
    out.write(result::insert(answer)?);
    Ok(())
}
