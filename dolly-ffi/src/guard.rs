//! The one way into the library: no panic leaves it, every failure becomes a status.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{ErrorObject, dolly_error};
use crate::handle;
use crate::status::{Failure, dolly_status};

/// Runs the body of one call; on failure writes an error object through `error` unless it is NULL.
///
/// # Safety
/// `error` is NULL or valid for writing one pointer.
pub(crate) unsafe fn guard(
    error: *mut *mut dolly_error,
    body: impl FnOnce() -> Result<(), Failure>,
) -> dolly_status {
    // Unwind safety: objects are reached through the handle table and locks whose poisoning is
    // looked through, and each is replaced as a whole, never left half changed.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return dolly_status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic_text(&*panic);
            // Dropping a foreign payload may panic again.
            std::mem::forget(panic);
            Failure::new(dolly_status::Panic, text)
        }
    };
    let status = failure.status;
    if !error.is_null() && error.is_aligned() {
        let object = catch_unwind(|| handle::insert::<dolly_error>(ErrorObject::new(failure)));
        // Without room for the object the status has to do.
        let object = object.ok().and_then(Result::ok).unwrap_or(std::ptr::null_mut());
        // SAFETY: not NULL and aligned; the caller promises it is valid for writing.
        unsafe { error.write(object) };
    }
    status
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the library panicked (please report it): {}", text.as_deref().unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null_mut;

    #[test]
    fn a_panic_becomes_a_status_and_a_message() {
        let mut error = null_mut();
        // SAFETY: `error` is a local.
        let status = unsafe { guard(&raw mut error, || panic!("row {}", 7)) };
        assert_eq!(status, dolly_status::Panic);
        let object = handle::get(error).unwrap();
        assert!(object.message().contains("row 7"));
        handle::remove(error).unwrap();
    }

    #[test]
    fn a_failure_without_a_place_for_it_is_a_status() {
        // SAFETY: NULL is allowed.
        let status =
            unsafe { guard(null_mut(), || Err(Failure::new(dolly_status::Busy, "later"))) };
        assert_eq!(status, dolly_status::Busy);
    }

    #[test]
    fn success_leaves_the_error_alone() {
        let mut error = std::ptr::without_provenance_mut(8);
        // SAFETY: `error` is a local.
        assert_eq!(unsafe { guard(&raw mut error, || Ok(())) }, dolly_status::Ok);
        assert_eq!(error.addr(), 8);
    }
}
