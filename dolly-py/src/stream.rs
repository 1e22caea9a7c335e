//! An answer while it is written, as Python reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dolly_core::{CancelToken, Generation, Stream, StreamEvent};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::errors::Outcome;
use crate::results::{self, GenerationParts};
use crate::wait::SLICE;

/// Pieces of one answer.
///
/// The lock is held for one slice at a time and never while attached or while signal handlers
/// run: a handler may call any method of the same stream.
#[pyclass(frozen, module = "dolly_rs._native", name = "Stream")]
pub(crate) struct NativeStream {
    state: Mutex<State>,
    cancel: CancelToken,
    reading: AtomicBool,
}

enum State {
    Open(Stream),
    Ended(Option<Generation>),
}

impl State {
    /// Waits one slice; a stream that ended or failed is let go of.
    fn step(&mut self) -> dolly_core::Result<StreamEvent> {
        let Self::Open(stream) = self else { return Ok(StreamEvent::End) };
        let event = stream.next_within(SLICE);
        if matches!(event, Ok(StreamEvent::End) | Err(_)) {
            *self = Self::Ended(stream.generation().cloned());
        }
        event
    }
}

impl NativeStream {
    /// `cancel` is the token the request was made with.
    pub fn new(stream: Stream, cancel: CancelToken) -> Self {
        let state = Mutex::new(State::Open(stream));
        Self { state, cancel, reading: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, py: Python<'_>) -> Outcome<Option<String>> {
        loop {
            match py.detach(|| self.state().step())? {
                StreamEvent::Piece(piece) => return Ok(Some(piece)),
                StreamEvent::End => return Ok(None),
                _ => (),
            }
            py.check_signals().inspect_err(|_| self.cancel.cancel())?;
        }
    }
}

#[pymethods]
impl NativeStream {
    /// The next piece, or None at the end; one reader at a time.
    fn next(&self, py: Python<'_>) -> Outcome<Option<String>> {
        if self.reading.swap(true, Ordering::AcqRel) {
            let text = "this stream is being read by another thread; give each reader its own";
            return Err(PyRuntimeError::new_err(text).into());
        }
        let piece = self.read(py);
        self.reading.store(false, Ordering::Release);
        piece
    }

    /// Asks the engine to stop; reading then ends within one step.
    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Cancels and waits until the engine has let go of the request.
    fn close(&self, py: Python<'_>) -> Outcome<()> {
        self.cancel.cancel();
        while !matches!(py.detach(|| self.state().step()), Ok(StreamEvent::End) | Err(_)) {
            py.check_signals()?;
        }
        Ok(())
    }

    /// The whole answer once the end was read, else None.
    fn generation(&self, py: Python<'_>) -> Option<GenerationParts> {
        let generation = py.detach(|| match &*self.state() {
            State::Ended(generation) => generation.clone(),
            State::Open(_) => None,
        });
        generation.map(results::generation)
    }
}
