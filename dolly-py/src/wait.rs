//! Waiting without the interpreter, and still hearing Ctrl-C.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use dolly_core::{CancelToken, Error, Generation, Stream, StreamEvent};
use pyo3::prelude::*;

use crate::errors::{Failure, Outcome};

/// Longest time between two looks at the signals: Ctrl-C is promised to act within 200 ms.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own, detached; a signal whose handler raises cancels `token`.
///
/// Returns only when `work` has returned, so it may borrow. The exception wins over its result.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    token: &CancelToken,
    work: impl FnOnce() -> T + Send,
) -> Outcome<T> {
    py.detach(|| {
        std::thread::scope(|scope| {
            let (done, waiting) = sync_channel::<()>(1);
            let worker = std::thread::Builder::new()
                .name("dolly-call".to_owned())
                .spawn_scoped(scope, move || {
                    let _done = done;
                    work()
                })
                .map_err(|error| Error::Internal(format!("starting a thread: {error}")))?;
            let mut interrupt = Ok(());
            // The sender is dropped when the work returns or unwinds; nothing is ever sent.
            while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(SLICE) {
                if interrupt.is_ok() {
                    interrupt = Python::attach(|py| py.check_signals());
                    if interrupt.is_err() {
                        token.cancel();
                    }
                }
            }
            let result = worker.join();
            interrupt?;
            result.map_err(|panic| Failure::Core(Error::Internal(panic_text(&*panic))))
        })
    })
}

/// Reads `stream` to its end, detached; a signal whose handler raises drops it, which cancels.
pub(crate) fn finish(py: Python<'_>, mut stream: Stream) -> Outcome<Generation> {
    py.detach(|| {
        let mut looked = Instant::now();
        while !matches!(stream.next_within(SLICE)?, StreamEvent::End) {
            if looked.elapsed() >= SLICE {
                Python::attach(|py| py.check_signals())?;
                looked = Instant::now();
            }
        }
        Ok(stream.finish()?)
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a thread panicked")
        .to_owned()
}
