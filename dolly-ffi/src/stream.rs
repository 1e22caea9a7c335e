//! An answer while it is written, read at the caller's pace.

use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use dolly_core::{CancelToken, Prompt, Stream, StreamEvent};

use crate::error::dolly_error;
use crate::generate::Request;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::options::{dolly_options, settings};
use crate::pipeline::dolly_pipeline;
use crate::pointers::{Out, text};
use crate::result::{self, dolly_result};
use crate::status::{Failure, dolly_status};
use crate::text::Text;

/// A wait or a deadline without end.
pub const DOLLY_FOREVER: u64 = 0xFFFFFFFFFFFFFFFF;

/// An answer being written. Freed with dolly_stream_free, which cancels it.
pub struct dolly_stream {
    _opaque: (),
}

impl Handle for dolly_stream {
    type Object = Reader;
    const TAG: u8 = 8;
    const NAME: &'static str = "dolly_stream";
}

/// What dolly_stream_next found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum dolly_stream_event {
    /// More text.
    Piece = 0,
    /// Nothing within the time given; ask again.
    Pending = 1,
    /// The answer is complete; dolly_stream_finish gives it.
    End = 2,
}

/// What stands behind a [`dolly_stream`].
pub(crate) struct Reader {
    cancel: CancelToken,
    reading: Mutex<Reading>,
}

struct Reading {
    stream: Stream,
    piece: Text,
}

impl Reader {
    fn new(stream: Stream) -> Self {
        let cancel = stream.cancel_token();
        Self { cancel, reading: Mutex::new(Reading { stream, piece: Text::default() }) }
    }

    /// One reader at a time: a second is refused, never blocked.
    fn reading(&self) -> Result<MutexGuard<'_, Reading>, Failure> {
        match self.reading.try_lock() {
            Ok(reading) => Ok(reading),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(dolly_status::Busy, "another thread reads this stream"))
            }
        }
    }
}

/// Starts to answer an instruction, with a context passage unless context_len is 0.
///
/// options may be NULL for the defaults. A stream does not keep its pipeline: freed or closed under
/// an open stream, the stream ends with DOLLY_STATUS_CLOSED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_open(
    pipeline: *const dolly_pipeline,
    instruction: *const c_char,
    instruction_len: usize,
    context: *const c_char,
    context_len: usize,
    options: *const dolly_options,
    stream: *mut *mut dolly_stream,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (instruction, context) = ((instruction, instruction_len), (context, context_len));
            let asked = Request::new(pipeline, instruction, context, options)?;
            let out = Out::new(stream, "stream")?;
            let opened = asked.pipe.stream(asked.prompt, &asked.options)?;
            out.write(handle::insert(Reader::new(opened))?);
            Ok(())
        })
    }
}

/// Starts to continue a text as it is, without Dolly's prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_open_completion(
    pipeline: *const dolly_pipeline,
    prompt: *const c_char,
    prompt_len: usize,
    options: *const dolly_options,
    stream: *mut *mut dolly_stream,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: pointers are valid for their lengths by the header's contract.
    unsafe {
        guard(error, || {
            let (pipe, options) = (handle::get(pipeline)?, settings(options)?);
            let prompt = Prompt::Text(text(prompt, prompt_len, "prompt")?);
            let out = Out::new(stream, "stream")?;
            out.write(handle::insert(Reader::new(pipe.complete_stream(prompt, &options)?))?);
            Ok(())
        })
    }
}

/// Waits for the next piece, at most timeout_ms milliseconds (DOLLY_FOREVER: without end).
///
/// event becomes a dolly_stream_event; piece and piece_len are empty unless it is
/// DOLLY_STREAM_EVENT_PIECE. A piece is whole UTF-8 followed by a NUL, valid until the next call
/// on this stream. While one thread is inside this call, others get DOLLY_STATUS_BUSY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_next(
    stream: *const dolly_stream,
    timeout_ms: u64,
    event: *mut i32,
    piece: *mut *const c_char,
    piece_len: *mut usize,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let reader = handle::get(stream)?;
            let event = Out::new(event, "event")?;
            let (piece, len) = (Out::new(piece, "piece")?, Out::new(piece_len, "piece_len")?);
            let mut reading = reader.reading()?;
            let found = reading.stream.next_within(Duration::from_millis(timeout_ms))?;
            let (found, text) = match found {
                StreamEvent::Piece(text) => (dolly_stream_event::Piece, text),
                StreamEvent::End => (dolly_stream_event::End, String::new()),
                _ => (dolly_stream_event::Pending, String::new()),
            };
            reading.piece = Text::new(text);
            event.write(found as i32);
            piece.write(reading.piece.as_ptr());
            len.write(reading.piece.len());
            Ok(())
        })
    }
}

/// Waits for the end and gives the whole answer; pieces not read are in its text.
///
/// May be called again, each time for a new result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_finish(
    stream: *const dolly_stream,
    result: *mut *mut dolly_result,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let reader = handle::get(stream)?;
            let out = Out::new(result, "result")?;
            let mut reading = reader.reading()?;
            for piece in reading.stream.by_ref() {
                drop(piece?);
            }
            let answer = reading.stream.generation().cloned().ok_or_else(|| {
                Failure::new(dolly_status::NotAvailable, "the stream ended without an answer")
            })?;
            out.write(result::insert(answer)?);
            Ok(())
        })
    }
}

/// Asks the engine to stop at its next step; the text so far stays. From any thread, while another
/// waits in dolly_stream_next too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_cancel(stream: *const dolly_stream) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe {
        guard(null_mut(), || {
            handle::get(stream)?.cancel.cancel();
            Ok(())
        })
    }
}

/// Frees a stream and cancels its request; NULL is allowed. A thread that waits in
/// dolly_stream_next wakes up with what there was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_stream_free(stream: *mut dolly_stream) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe {
        guard(null_mut(), || {
            if let Some(reader) = handle::remove(stream)? {
                reader.cancel.cancel();
            }
            Ok(())
        })
    }
}
