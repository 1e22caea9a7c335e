//! Stopping requests from other threads and from signal handlers.

use std::ptr::null_mut;

use dolly_core::CancelToken;

use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::Out;
use crate::status::dolly_status;

/// A flag that stops every request whose options carry it. Freed with dolly_cancel_free.
pub struct dolly_cancel {
    _opaque: (),
}

impl Handle for dolly_cancel {
    type Object = CancelToken;
    const TAG: u8 = 2;
    const NAME: &'static str = "dolly_cancel";
}

/// Makes a flag that is not triggered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_cancel_new(
    cancel: *mut *mut dolly_cancel,
    error: *mut *mut dolly_error,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(error, || {
            let cancel = Out::new(cancel, "cancel")?;
            cancel.write(handle::insert(CancelToken::new())?);
            Ok(())
        })
    }
}

/// Stops every request whose options carry the flag, at its next step; it stays triggered.
///
/// A generation then ends with DOLLY_FINISH_REASON_CANCELLED and the text so far; calls that give
/// numbers end with DOLLY_STATUS_CANCELLED.
///
/// From any thread. From a signal handler too: the call neither allocates nor waits. It gives
/// DOLLY_STATUS_BUSY, and does nothing, when some thread is creating or freeing a handle at that
/// very moment; outside signal handlers simply call again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_cancel_trigger(cancel: *const dolly_cancel) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe { guard(null_mut(), || handle::try_with(cancel, CancelToken::cancel)) }
}

/// Whether the flag was triggered.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_cancel_is_triggered(
    cancel: *const dolly_cancel,
    triggered: *mut bool,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let token = handle::get(cancel)?;
            Out::new(triggered, "triggered")?.write(token.is_cancelled());
            Ok(())
        })
    }
}

/// Frees a flag; NULL is allowed. Requests and options that carry it keep it, untriggered unless
/// it was triggered before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_cancel_free(cancel: *mut dolly_cancel) -> dolly_status {
    handle::free(cancel)
}
