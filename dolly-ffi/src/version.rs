//! Which library this is, and whether it fits the header a program was compiled with.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use crate::guard::guard;
use crate::handle;
use crate::pointers::Out;
use crate::status::dolly_status;

/// First number of the version this header belongs to.
pub const DOLLY_VERSION_MAJOR: u32 = 0;
/// Second number of the version this header belongs to.
pub const DOLLY_VERSION_MINOR: u32 = 1;
/// Third number of the version this header belongs to.
pub const DOLLY_VERSION_PATCH: u32 = 0;
/// Counts the changes that break programs compiled with an older header; compare it with
/// dolly_abi_version().
pub const DOLLY_ABI_VERSION: u32 = 1;

const fn number(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let (mut value, mut index) = (0, 0);
    while index < bytes.len() {
        value = value * 10 + (bytes[index] - b'0') as u32;
        index += 1;
    }
    value
}

// The header can hold literals only: these keep them equal to the package's version.
const _: () = assert!(DOLLY_VERSION_MAJOR == number(env!("CARGO_PKG_VERSION_MAJOR")));
const _: () = assert!(DOLLY_VERSION_MINOR == number(env!("CARGO_PKG_VERSION_MINOR")));
const _: () = assert!(DOLLY_VERSION_PATCH == number(env!("CARGO_PKG_VERSION_PATCH")));

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version with a NUL"),
    };

/// The version of the library, such as "0.1.0". NUL-terminated, never freed, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn dolly_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The DOLLY_ABI_VERSION of the library. A program may run when it equals the header's.
#[unsafe(no_mangle)]
pub extern "C" fn dolly_abi_version() -> u32 {
    DOLLY_ABI_VERSION
}

/// How many handles of this process are not freed yet: 0 after a program freed all it got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_live_handles(count: *mut usize) -> dolly_status {
    // SAFETY: the out-pointer is valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            Out::new(count, "count")?.write(handle::live());
            Ok(())
        })
    }
}
