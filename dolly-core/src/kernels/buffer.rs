//! Zeroed memory on cache-line boundaries, taken fallibly and touched only when used.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use super::vector::CACHE_LINE;
use crate::error::{Error, Result};

/// Bytes that start on a 64-byte boundary: a block of their own, or a part of one (`arena`).
///
/// Not a `Vec`: that guarantees no alignment. Not an over-aligned allocation either: the standard
/// allocator zeroes those by writing, while a plain zeroed allocation of some size costs no memory
/// until its pages are touched. So the boundary is found inside a slightly larger block.
pub(crate) struct Buffer {
    /// Keeps the bytes alive.
    #[expect(dead_code, reason = "held for its Drop")]
    block: Option<Arc<Block>>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer's bytes are its own; shared access is read-only, as for a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Zeroed memory that is freed when the last of its buffers goes.
pub(super) struct Block {
    base: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
}

// SAFETY: a block gives out addresses and frees them, and touches nothing.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// At least `len` zero bytes, which begin on a boundary of `align`; `None` where there are none.
    pub(super) fn zeroed(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.checked_add(align)?, 16).ok()?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = base.as_ptr().align_offset(align).min(align);
        // SAFETY: at most `align` bytes into a block of `len + align`.
        let start = unsafe { base.add(skip) };
        Some(Self { base, layout, start })
    }

    /// Bytes from its boundary on.
    pub(super) fn len(&self) -> usize {
        self.layout.size() - (self.start.as_ptr() as usize - self.base.as_ptr() as usize)
    }

    /// The boundary.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

impl Buffer {
    /// `len` zero bytes, or [`Error::OutOfMemory`] for `what`.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self> {
        if len == 0 {
            return Ok(Self { block: None, start: NonNull::<Line>::dangling().cast(), len });
        }
        let refused = || Error::OutOfMemory { what: what.to_owned(), bytes: len as u64 };
        let block = Arc::new(Block::zeroed(len, CACHE_LINE).ok_or_else(refused)?);
        // SAFETY: the whole of a new block.
        Ok(unsafe { Self::part(block, 0, len) })
    }

    /// `len` bytes of a block, from `offset` on.
    ///
    /// # Safety
    /// The block has them, `offset` is a multiple of 64, and no other buffer has any of them.
    pub(super) unsafe fn part(block: Arc<Block>, offset: usize, len: usize) -> Self {
        // SAFETY: the caller's promise.
        let start = unsafe { block.start.add(offset) };
        Self { block: Some(block), start, len }
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

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[repr(align(64))]
struct Line;

const _: () = assert!(align_of::<Line>() == CACHE_LINE);
