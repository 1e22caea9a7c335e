//! Many instructions at once: one result a row, one row's failure never loses the others.

use std::ptr::null_mut;
use std::sync::Arc;

use dolly_core::prompt::Instruction;

use crate::error::dolly_error;
use crate::generate::instruction;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::options::{dolly_options, settings};
use crate::pipeline::dolly_pipeline;
use crate::pointers::{Out, dolly_str, slice};
use crate::result::{Answer, dolly_result, out_of_range};
use crate::status::{Failure, dolly_status};

/// The answers to many instructions. Freed with dolly_batch_free.
pub struct dolly_batch {
    _opaque: (),
}

impl Handle for dolly_batch {
    type Object = Vec<Row>;
    const TAG: u8 = 7;
    const NAME: &'static str = "dolly_batch";
}

/// One answer, or why there is none.
pub(crate) type Row = Result<Arc<Answer>, (dolly_status, String)>;

/// Answers many instructions, sharing every pass over the weights.
///
/// contexts is NULL or holds as many texts as instructions, empty where there is none. The batch
/// holds num_return_sequences rows for the first instruction, then those of the next. Failures of
/// a row (its text, its length) are reported by dolly_batch_result for that row alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_generate_batch(
    pipeline: *const dolly_pipeline,
    instructions: *const dolly_str,
    contexts: *const dolly_str,
    instructions_count: usize,
    options: *const dolly_options,
    batch: *mut *mut dolly_batch,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (pipe, options) = (handle::get(pipeline)?, settings(options)?);
            let prompts = prompts(instructions, contexts, instructions_count)?;
            let out = Out::new(batch, "batch")?;
            let good: Vec<Instruction> =
                prompts.iter().filter_map(|row| row.as_ref().ok()).cloned().collect();
            let answers = pipe.generate_batch(&good, &options);
            out.write(handle::insert(rows(prompts, answers, options.num_return_sequences))?);
            Ok(())
        })
    }
}

/// # Safety
/// As for [`slice`], for the arrays and for each text in them.
unsafe fn prompts(
    instructions: *const dolly_str,
    contexts: *const dolly_str,
    count: usize,
) -> Result<Vec<Result<Instruction, Failure>>, Failure> {
    // SAFETY: the caller's promise is passed on.
    let instructions = unsafe { slice(instructions, count, "instructions") }?;
    let contexts = match contexts.is_null() {
        true => None,
        // SAFETY: the caller's promise is passed on.
        false => Some(unsafe { slice(contexts, count, "contexts") }?),
    };
    let none = dolly_str { data: std::ptr::null(), len: 0 };
    let pairs = instructions.iter().enumerate().map(|(index, row)| {
        let context = contexts.and_then(|contexts| contexts.get(index)).copied().unwrap_or(none);
        // SAFETY: the caller's promise is passed on.
        unsafe { instruction((row.data, row.len), (context.data, context.len)) }
    });
    Ok(pairs.collect())
}

/// Puts the rows that never reached the engine back between those that did.
fn rows(
    prompts: Vec<Result<Instruction, Failure>>,
    answers: Vec<dolly_core::Result<dolly_core::Generation>>,
    per_prompt: usize,
) -> Vec<Row> {
    let plain = |failure: Failure| (failure.status, failure.message.into_owned());
    let mut answers = answers.into_iter().map(|answer| match answer {
        Ok(generation) => Ok(Arc::new(Answer::new(generation))),
        Err(error) => Err(plain(error.into())),
    });
    let mut rows = Vec::new();
    for prompt in prompts {
        match prompt {
            Ok(_) => rows.extend(answers.by_ref().take(per_prompt)),
            Err(failure) => rows.extend(std::iter::repeat_n(Err(plain(failure)), per_prompt)),
        }
    }
    rows
}

/// Rows of a batch: instructions times num_return_sequences.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_batch_len(
    batch: *const dolly_batch,
    rows: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let held = handle::get(batch)?;
            Out::new(rows, "rows")?.write(held.len());
            Ok(())
        })
    }
}

/// The result of one row, to be freed by the caller; or the status and error of that row.
///
/// Results live on when the batch is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_batch_result(
    batch: *const dolly_batch,
    row: usize,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let held = handle::get(batch)?;
            let result = Out::new(result, "result")?;
            match held.get(row).ok_or_else(|| out_of_range("row", row, held.len()))? {
                Ok(answer) => result.write(handle::insert_shared(Arc::clone(answer))?),
                Err((status, message)) => return Err(Failure::new(*status, message.clone())),
            }
            Ok(())
        })
    }
}

/// Frees a batch; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_batch_free(batch: *mut dolly_batch) -> dolly_status {
    handle::free(batch)
}
