//! The caller's pointers, checked before they are read or written.

use std::ffi::c_char;
use std::ptr::NonNull;

use crate::status::{Failure, dolly_status};

/// Most bytes of one text or array given to the library (1 GiB). A longer length is refused with
/// DOLLY_STATUS_INVALID_LENGTH before anything is read.
pub const DOLLY_MAX_INPUT_BYTES: usize = 1073741824;

/// A text as pointer and length, for arrays of texts. UTF-8; no NUL is needed behind it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct dolly_str {
    /// First byte; may be NULL when len is 0.
    pub data: *const c_char,
    /// Bytes.
    pub len: usize,
}

fn null(name: &'static str) -> Failure {
    Failure::new(dolly_status::NullPointer, format!("{name} is NULL"))
}

fn misaligned(name: &'static str) -> Failure {
    Failure::new(dolly_status::InvalidArgument, format!("{name} is not aligned for its type"))
}

/// Where a result goes; written once, after everything that can fail.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// Checks an out-pointer.
    ///
    /// # Safety
    /// `pointer` is NULL or valid for writing one `T` until the value is written.
    pub unsafe fn new(pointer: *mut T, name: &'static str) -> Result<Self, Failure> {
        let pointer = NonNull::new(pointer).ok_or_else(|| null(name))?;
        match pointer.is_aligned() {
            true => Ok(Self(pointer)),
            false => Err(misaligned(name)),
        }
    }

    /// Hands the value over.
    pub fn write(self, value: T) {
        // SAFETY: not NULL, aligned, and valid by the contract of `new`.
        unsafe { self.0.write(value) };
    }
}

/// An array of the caller; an empty one may be NULL.
///
/// # Safety
/// `data` is NULL or valid for reading `len` values for as long as the slice is used.
pub(crate) unsafe fn slice<'a, T>(
    data: *const T,
    len: usize,
    name: &'static str,
) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    check_len::<T>(len, name)?;
    if data.is_null() {
        return Err(null(name));
    }
    if !data.is_aligned() {
        return Err(misaligned(name));
    }
    // SAFETY: not NULL, aligned, far below isize::MAX bytes, valid by this function's contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

fn check_len<T>(len: usize, name: &'static str) -> Result<(), Failure> {
    let bytes = len.checked_mul(size_of::<T>());
    match bytes.is_some_and(|bytes| bytes <= DOLLY_MAX_INPUT_BYTES) {
        true => Ok(()),
        false => {
            let message = format!("{name}: {len} entries; at most {DOLLY_MAX_INPUT_BYTES} bytes");
            Err(Failure::new(dolly_status::InvalidLength, message))
        }
    }
}

/// A text of the caller; an empty one may be NULL.
///
/// # Safety
/// As for [`slice`].
pub(crate) unsafe fn text<'a>(
    data: *const c_char,
    len: usize,
    name: &'static str,
) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise is passed on; `c_char` and `u8` have one size.
    let bytes = unsafe { slice(data.cast::<u8>(), len, name) }?;
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Failure::new(dolly_status::InvalidUtf8, format!("{name} is not UTF-8 from byte {at} on"))
    })
}

/// A copy of a text, without aborting where memory ends.
pub(crate) fn owned(text: &str) -> Result<String, Failure> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| {
        let message = format!("out of memory: a copy of a text needs {} bytes", text.len());
        Failure::new(dolly_status::Memory, message)
    })?;
    copy.push_str(text);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::{null, without_provenance};

    fn status<T>(result: Result<T, Failure>) -> dolly_status {
        result.err().map_or(dolly_status::Ok, |failure| failure.status)
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        let nowhere = without_provenance::<c_char>(64);
        for len in [DOLLY_MAX_INPUT_BYTES + 1, isize::MAX as usize, usize::MAX] {
            // SAFETY: refused before it is read, which is what is tested.
            assert_eq!(status(unsafe { text(nowhere, len, "t") }), dolly_status::InvalidLength);
        }
        let ids = without_provenance::<u32>(64);
        for len in [DOLLY_MAX_INPUT_BYTES / 4 + 1, usize::MAX / 4 + 1, usize::MAX] {
            // SAFETY: refused before it is read, which is what is tested.
            assert_eq!(status(unsafe { slice(ids, len, "t") }), dolly_status::InvalidLength);
        }
    }

    #[test]
    fn null_needs_length_zero() {
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { text(null(), 0, "t") }.unwrap(), "");
        // SAFETY: NULL is allowed.
        assert_eq!(status(unsafe { text(null(), 1, "t") }), dolly_status::NullPointer);
        // SAFETY: NULL is allowed.
        assert_eq!(status(unsafe { slice::<u32>(null(), 1, "t") }), dolly_status::NullPointer);
    }

    #[test]
    fn misaligned_arrays_are_refused() {
        let ids = without_provenance::<u32>(65);
        // SAFETY: refused before it is read, which is what is tested.
        assert_eq!(status(unsafe { slice(ids, 1, "t") }), dolly_status::InvalidArgument);
    }

    #[test]
    fn bad_utf8_says_where() {
        for (bytes, at) in [(&b"ab\xff"[..], "2"), (b"\xc3", "0"), (b"\xed\xa0\x80", "0")] {
            // SAFETY: a live slice.
            let failure = unsafe { text(bytes.as_ptr().cast(), bytes.len(), "t") }.unwrap_err();
            assert_eq!(failure.status, dolly_status::InvalidUtf8);
            assert!(failure.message.contains(at), "{}", failure.message);
        }
    }
}
