//! Zeroed memory on cache-line boundaries, taken fallibly and touched only when used.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

const LINE: usize = 64;
/// What x86-64 and AArch64 with pages of 4 KiB have; elsewhere the advice is one for nothing.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that start on a 64-byte boundary.
///
/// Not a `Vec`: that guarantees no alignment. Not an over-aligned allocation either: the standard
/// allocator zeroes those by writing, while a plain zeroed allocation of some size costs no memory
/// until its pages are touched. So the boundary is found inside a slightly larger block.
pub(crate) struct Buffer {
    block: Option<(NonNull<u8>, Layout)>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its block; shared access is read-only, as for a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes, or [`Error::OutOfMemory`] for `what`.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self> {
        if len == 0 {
            return Ok(Self { block: None, start: NonNull::<Line>::dangling().cast(), len });
        }
        let refused = || Error::OutOfMemory { what: what.to_owned(), bytes: len as u64 };
        let padded = len.checked_add(LINE).ok_or_else(refused)?;
        let layout = Layout::from_size_align(padded, 16).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        let skip = base.as_ptr().align_offset(LINE).min(LINE);
        // SAFETY: at most 64 bytes into a block of `len + 64`.
        let start = unsafe { base.add(skip) };
        Ok(Self { block: Some((base, layout)), start, len })
    }

    /// As [`zeroed`](Self::zeroed), for memory that will be filled and then read from end to end again
    /// and again: in huge pages where the system has them.
    ///
    /// Small pages hold such reads up: the CPU looks each one up, and its prefetchers stop at every
    /// boundary. Only whole huge pages inside the buffer are asked for, so it takes no more memory.
    pub(crate) fn streamed(len: usize, what: &str) -> Result<Self> {
        let buffer = Self::zeroed(len, what)?;
        #[cfg(target_os = "linux")]
        {
            let skip = buffer.start.as_ptr().align_offset(HUGE_PAGE);
            let whole = len.saturating_sub(skip) / HUGE_PAGE * HUGE_PAGE;
            if whole > 0 {
                // SAFETY: the range is inside the block; the advice changes no content. A system that
                // does not take it goes on with small pages.
                unsafe {
                    let from = buffer.start.as_ptr().add(skip);
                    libc::madvise(from.cast(), whole, libc::MADV_HUGEPAGE);
                }
            }
        }
        Ok(buffer)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes from `start` belong to this buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, writable.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((base, layout)) = self.block {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[repr(align(64))]
struct Line;

const _: () = assert!(align_of::<Line>() == LINE);
