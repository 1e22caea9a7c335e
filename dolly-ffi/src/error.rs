//! The owned error object: what failed, in words.

use std::ffi::c_char;
use std::ptr::null_mut;

use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::Out;
use crate::status::{Failure, dolly_status};
use crate::text::Text;

/// Why a call failed. Owned by the caller; freed with dolly_error_free.
pub struct dolly_error {
    _opaque: (),
}

impl Handle for dolly_error {
    type Object = ErrorObject;
    const TAG: u8 = 1;
    const NAME: &'static str = "dolly_error";
}

/// What stands behind a [`dolly_error`].
pub(crate) struct ErrorObject {
    status: dolly_status,
    message: Text,
}

impl ErrorObject {
    pub fn new(failure: Failure) -> Self {
        Self { status: failure.status, message: Text::new(failure.message.into_owned()) }
    }

    #[cfg(test)]
    pub fn message(&self) -> String {
        // SAFETY: pointer and length belong together.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.message.as_ptr().cast::<u8>(), self.message.len())
        };
        String::from_utf8(bytes.to_vec()).unwrap()
    }
}

/// The status the failed call returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_error_status(
    error: *const dolly_error,
    status: *mut i32,
) -> dolly_status {
    // SAFETY: the out-pointer is valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let object = handle::get(error)?;
            Out::new(status, "status")?.write(object.status as i32);
            Ok(())
        })
    }
}

/// The message: which file, tensor, field or option, and the numbers.
///
/// Valid until the error is freed; a NUL follows it. Wording may change between versions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_error_message(
    error: *const dolly_error,
    message: *mut *const c_char,
    message_len: *mut usize,
) -> dolly_status {
    // SAFETY: the out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let object = handle::get(error)?;
            let (message, len) =
                (Out::new(message, "message")?, Out::new(message_len, "message_len")?);
            message.write(object.message.as_ptr());
            len.write(object.message.len());
            Ok(())
        })
    }
}

/// Frees an error; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_error_free(error: *mut dolly_error) -> dolly_status {
    handle::free(error)
}
