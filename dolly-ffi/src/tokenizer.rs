//! Text to ids and back, with the tokenizer of a pipeline's checkpoint.

use std::ffi::c_char;

use crate::buffer::{Buffer, dolly_buffer};
use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle;
use crate::pipeline::dolly_pipeline;
use crate::pointers::{Out, slice, text};
use crate::status::dolly_status;
use crate::text::Text;

/// The ids of a text, as a buffer of ids.
///
/// With special, the framing tokens of the checkpoint that stand in the text become their ids;
/// without, they are text like any other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_tokenizer_encode(
    pipeline: *const dolly_pipeline,
    input: *const c_char,
    input_len: usize,
    special: bool,
    ids: *mut *mut dolly_buffer,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let pipe = handle::get(pipeline)?;
            let (input, ids) = (text(input, input_len, "input")?, Out::new(ids, "ids")?);
            let encoded = pipe.tokenizer().encode(input, special)?;
            ids.write(handle::insert(Buffer::Ids(encoded))?);
            Ok(())
        })
    }
}

/// The text of ids, as a buffer of text; bytes that are not UTF-8 become U+FFFD.
///
/// With skip_special, framing tokens leave no text. An id beyond the vocabulary is
/// DOLLY_STATUS_INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_tokenizer_decode(
    pipeline: *const dolly_pipeline,
    ids: *const u32,
    ids_count: usize,
    skip_special: bool,
    output: *mut *mut dolly_buffer,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let pipe = handle::get(pipeline)?;
            let (ids, output) = (slice(ids, ids_count, "ids")?, Out::new(output, "output")?);
            let decoded = pipe.tokenizer().decode(ids, skip_special)?;
            output.write(handle::insert(Buffer::Text(Text::new(decoded)))?);
            Ok(())
        })
    }
}
