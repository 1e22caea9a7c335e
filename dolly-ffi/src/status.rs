//! What a call says about itself: a number that keeps its meaning for ever.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use dolly_core::{Error, ErrorKind};

/// What became of a call.
///
/// Numbers never change their meaning and are never reused; later versions may add numbers, so
/// treat an unknown one as a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum dolly_status {
    /// The call did what it says; its out-pointers are written.
    Ok = 0,
    /// A value, option or text is outside its range.
    InvalidArgument = 1,
    /// A pointer that must not be NULL is NULL.
    NullPointer = 2,
    /// A handle that was freed, never existed, or is of another type.
    InvalidHandle = 3,
    /// Text that is not UTF-8.
    InvalidUtf8 = 4,
    /// A length above DOLLY_MAX_INPUT_BYTES, or a buffer too small for the result.
    InvalidLength = 5,
    /// Another thread is inside a call that uses the same stream.
    Busy = 6,
    /// An index beyond the last entry.
    OutOfRange = 7,
    /// The object does not hold what was asked for.
    NotAvailable = 8,
    /// The library failed and caught itself; please report it. Its handles stay usable.
    Panic = 9,
    /// Reading or writing a file failed.
    Io = 10,
    /// The model was not found.
    NotFound = 11,
    /// A file is malformed.
    Format = 12,
    /// The prompt is longer than the context.
    ContextOverflow = 13,
    /// The memory limit or the allocator refused.
    Memory = 14,
    /// The device cannot be used.
    Device = 15,
    /// A feature this library does not have.
    Unsupported = 16,
    /// A download failed.
    Network = 17,
    /// Cancelled before there was a result.
    Cancelled = 18,
    /// The deadline passed before there was a result.
    Deadline = 19,
    /// The pipeline was closed.
    Closed = 20,
    /// A defect of the library; please report it.
    Internal = 21,
    /// Training met a number that is not finite. No function of this version trains.
    Diverged = 22,
}

/// Every status with the name C programs know it by.
const NAMES: [(dolly_status, &CStr); 23] = [
    (dolly_status::Ok, c"DOLLY_STATUS_OK"),
    (dolly_status::InvalidArgument, c"DOLLY_STATUS_INVALID_ARGUMENT"),
    (dolly_status::NullPointer, c"DOLLY_STATUS_NULL_POINTER"),
    (dolly_status::InvalidHandle, c"DOLLY_STATUS_INVALID_HANDLE"),
    (dolly_status::InvalidUtf8, c"DOLLY_STATUS_INVALID_UTF8"),
    (dolly_status::InvalidLength, c"DOLLY_STATUS_INVALID_LENGTH"),
    (dolly_status::Busy, c"DOLLY_STATUS_BUSY"),
    (dolly_status::OutOfRange, c"DOLLY_STATUS_OUT_OF_RANGE"),
    (dolly_status::NotAvailable, c"DOLLY_STATUS_NOT_AVAILABLE"),
    (dolly_status::Panic, c"DOLLY_STATUS_PANIC"),
    (dolly_status::Io, c"DOLLY_STATUS_IO"),
    (dolly_status::NotFound, c"DOLLY_STATUS_NOT_FOUND"),
    (dolly_status::Format, c"DOLLY_STATUS_FORMAT"),
    (dolly_status::ContextOverflow, c"DOLLY_STATUS_CONTEXT_OVERFLOW"),
    (dolly_status::Memory, c"DOLLY_STATUS_MEMORY"),
    (dolly_status::Device, c"DOLLY_STATUS_DEVICE"),
    (dolly_status::Unsupported, c"DOLLY_STATUS_UNSUPPORTED"),
    (dolly_status::Network, c"DOLLY_STATUS_NETWORK"),
    (dolly_status::Cancelled, c"DOLLY_STATUS_CANCELLED"),
    (dolly_status::Deadline, c"DOLLY_STATUS_DEADLINE"),
    (dolly_status::Closed, c"DOLLY_STATUS_CLOSED"),
    (dolly_status::Internal, c"DOLLY_STATUS_INTERNAL"),
    (dolly_status::Diverged, c"DOLLY_STATUS_DIVERGED"),
];

/// The name of a status, such as "DOLLY_STATUS_OK"; "DOLLY_STATUS_UNKNOWN" for a number this
/// version does not have. NUL-terminated, never freed, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn dolly_status_name(status: i32) -> *const c_char {
    let known = NAMES.iter().find(|(known, _)| *known as i32 == status);
    known.map_or(c"DOLLY_STATUS_UNKNOWN", |(_, name)| name).as_ptr()
}

/// Why a call failed: a status and a sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    pub status: dolly_status,
    pub message: Cow<'static, str>,
}

impl Failure {
    pub fn new(status: dolly_status, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into() }
    }
}

/// The status of each kind of error of the core.
pub(crate) fn status_of(kind: ErrorKind) -> dolly_status {
    match kind {
        ErrorKind::Io => dolly_status::Io,
        ErrorKind::NotFound => dolly_status::NotFound,
        ErrorKind::Format => dolly_status::Format,
        ErrorKind::InvalidArgument => dolly_status::InvalidArgument,
        ErrorKind::ContextOverflow => dolly_status::ContextOverflow,
        ErrorKind::Memory => dolly_status::Memory,
        ErrorKind::Device => dolly_status::Device,
        ErrorKind::Unsupported => dolly_status::Unsupported,
        ErrorKind::Network => dolly_status::Network,
        ErrorKind::Diverged => dolly_status::Diverged,
        ErrorKind::Cancelled => dolly_status::Cancelled,
        ErrorKind::Deadline => dolly_status::Deadline,
        ErrorKind::Closed => dolly_status::Closed,
        _ => dolly_status::Internal,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(status_of(error.kind()), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind, its number in C, and the name in the core's source.
    const MAPPING: [(ErrorKind, i32, &str); 14] = [
        (ErrorKind::Io, 10, "Io"),
        (ErrorKind::NotFound, 11, "NotFound"),
        (ErrorKind::Format, 12, "Format"),
        (ErrorKind::InvalidArgument, 1, "InvalidArgument"),
        (ErrorKind::ContextOverflow, 13, "ContextOverflow"),
        (ErrorKind::Memory, 14, "Memory"),
        (ErrorKind::Device, 15, "Device"),
        (ErrorKind::Unsupported, 16, "Unsupported"),
        (ErrorKind::Network, 17, "Network"),
        (ErrorKind::Diverged, 22, "Diverged"),
        (ErrorKind::Cancelled, 18, "Cancelled"),
        (ErrorKind::Deadline, 19, "Deadline"),
        (ErrorKind::Closed, 20, "Closed"),
        (ErrorKind::Internal, 21, "Internal"),
    ];

    #[test]
    fn every_kind_has_its_number() {
        for (kind, number, _) in MAPPING {
            assert_eq!(status_of(kind) as i32, number, "{kind:?}");
        }
    }

    #[test]
    fn the_table_knows_every_kind_of_the_core() {
        let source = include_str!("../../dolly-core/src/error.rs");
        let body = source.split("pub enum ErrorKind {").nth(1).unwrap().split('}').next().unwrap();
        let kinds = body.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        let kinds: Vec<_> =
            kinds.map(|line| line.trim_end_matches(',')).filter(|k| !k.is_empty()).collect();
        let known: Vec<_> = MAPPING.iter().map(|(_, _, name)| *name).collect();
        assert_eq!(kinds, known);
    }

    #[test]
    fn names_are_numbered_without_gap() {
        for (index, (status, name)) in NAMES.iter().enumerate() {
            assert_eq!(*status as usize, index);
            let found = dolly_status_name(index as i32);
            // SAFETY: the function promises a NUL-terminated text.
            assert_eq!(unsafe { CStr::from_ptr(found) }, *name);
        }
        for unknown in [-1, 23, i32::MIN, i32::MAX] {
            // SAFETY: the function promises a NUL-terminated text.
            let name = unsafe { CStr::from_ptr(dolly_status_name(unknown)) };
            assert_eq!(name, c"DOLLY_STATUS_UNKNOWN");
        }
    }

    #[test]
    fn messages_are_those_of_the_core() {
        let error = Error::ContextOverflow { prompt_tokens: 9, context_length: 8 };
        let (text, failure) = (error.to_string(), Failure::from(error));
        assert_eq!(failure.status, dolly_status::ContextOverflow);
        assert_eq!(failure.message, text);
    }
}
