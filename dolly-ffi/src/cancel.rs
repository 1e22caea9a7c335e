//! Stopping requests from other threads and from signal handlers.

use std::ptr::{null_mut, without_provenance};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use dolly_core::CancelToken;

use crate::error::dolly_error;
use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::Out;
use crate::status::{Failure, dolly_status};

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
/// From any thread and from signal handlers: the call neither allocates nor waits. Should another
/// call be creating or freeing a handle at that very moment, the flag is triggered when that call
/// is done; DOLLY_STATUS_BUSY, with nothing done, tells that 8 cancels wait for it already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_cancel_trigger(cancel: *const dolly_cancel) -> dolly_status {
    // SAFETY: NULL is allowed as the place of an error.
    unsafe { guard(null_mut(), || trigger(cancel)) }
}

/// Handles whose flags wait to be triggered until the handle table may be read again; 0 is none.
static DEFERRED: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];

fn trigger(cancel: *const dolly_cancel) -> Result<(), Failure> {
    let now = || handle::try_with(cancel, CancelToken::cancel);
    let busy = match now() {
        Err(failure) if failure.status == dolly_status::Busy => failure,
        outcome => return outcome,
    };
    let take = |place: &AtomicUsize| {
        place.compare_exchange(0, cancel.addr(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    if !DEFERRED.iter().any(take) {
        return Err(busy);
    }
    // Either the table can be read now, or whoever changes it looks for deferred cancels after
    // this one was noted: the fences here and there order note and look.
    fence(Ordering::SeqCst);
    match now() {
        Err(failure) if failure.status == dolly_status::Busy => Ok(()),
        outcome => outcome,
    }
}

/// Triggers what was deferred; called after every change of the handle table, its lock released.
pub(crate) fn deliver_deferred() {
    fence(Ordering::SeqCst);
    for place in &DEFERRED {
        if place.load(Ordering::SeqCst) != 0 {
            let cancel = without_provenance::<dolly_cancel>(place.swap(0, Ordering::SeqCst));
            // A flag freed meanwhile needs no trigger.
            let _ = handle::get(cancel).map(|token| token.cancel());
        }
    }
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
