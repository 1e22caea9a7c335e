//! Text, ids or numbers the library made for the caller.

use std::ffi::c_char;
use std::ptr::null_mut;

use crate::guard::guard;
use crate::handle::{self, Handle};
use crate::pointers::Out;
use crate::status::{Failure, dolly_status};
use crate::text::Text;

/// A text, ids or floats made by the library. Freed with dolly_buffer_free.
pub struct dolly_buffer {
    _opaque: (),
}

impl Handle for dolly_buffer {
    type Object = Buffer;
    const TAG: u8 = 3;
    const NAME: &'static str = "dolly_buffer";
}

/// What stands behind a [`dolly_buffer`].
pub(crate) enum Buffer {
    Text(Text),
    Ids(Vec<u32>),
    Floats(Vec<f32>),
}

fn other_kind(wanted: &'static str) -> Failure {
    Failure::new(dolly_status::NotAvailable, format!("the buffer does not hold {wanted}"))
}

/// The text of a buffer, valid until the buffer is freed; a NUL follows it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_buffer_text(
    buffer: *const dolly_buffer,
    text: *mut *const c_char,
    text_len: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let object = handle::get(buffer)?;
            let (text, len) = (Out::new(text, "text")?, Out::new(text_len, "text_len")?);
            let Buffer::Text(held) = &*object else { return Err(other_kind("text")) };
            text.write(held.as_ptr());
            len.write(held.len());
            Ok(())
        })
    }
}

/// The ids of a buffer, valid until the buffer is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_buffer_ids(
    buffer: *const dolly_buffer,
    ids: *mut *const u32,
    ids_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let object = handle::get(buffer)?;
            let (ids, count) = (Out::new(ids, "ids")?, Out::new(ids_count, "ids_count")?);
            let Buffer::Ids(held) = &*object else { return Err(other_kind("ids")) };
            ids.write(held.as_ptr());
            count.write(held.len());
            Ok(())
        })
    }
}

/// The floats of a buffer, valid until the buffer is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_buffer_floats(
    buffer: *const dolly_buffer,
    floats: *mut *const f32,
    floats_count: *mut usize,
) -> dolly_status {
    // SAFETY: out-pointers are valid for writing by the header's contract.
    unsafe {
        guard(null_mut(), || {
            let object = handle::get(buffer)?;
            let floats = Out::new(floats, "floats")?;
            let count = Out::new(floats_count, "floats_count")?;
            let Buffer::Floats(held) = &*object else { return Err(other_kind("floats")) };
            floats.write(held.as_ptr());
            count.write(held.len());
            Ok(())
        })
    }
}

/// Frees a buffer; NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dolly_buffer_free(buffer: *mut dolly_buffer) -> dolly_status {
    handle::free(buffer)
}
