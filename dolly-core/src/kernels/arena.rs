//! Memory of weights, which are filled once and then read from end to end again and again.
//!
//! In small pages the CPU looks each one up, and its prefetchers stop at every boundary. Huge pages,
//! where the system has them, need 2 MiB side by side, and most matrices would cover few of them. So
//! the matrices of a model lie one after the other in blocks of their own.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::buffer::{Block, Buffer};
use super::vector::CACHE_LINE;
use crate::error::Result;

/// What x86-64 and AArch64 with pages of 4 KiB have; elsewhere the advice is one for nothing.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a block, which cost no memory until they are used. Elsewhere than on Linux that is not
/// certain, and nobody asks for huge pages: buffers are blocks of their own. An interpreter (Miri)
/// writes every byte of a block.
const BLOCK: usize = match (cfg!(miri), cfg!(target_os = "linux")) {
    (true, _) => 64 << 10,
    (false, true) => 256 << 20,
    (false, false) => 0,
};

/// Hands out memory side by side. What is dropped is free again when its block's other buffers are too.
#[derive(Default)]
pub(crate) struct Arena {
    open: Mutex<Open>,
}

/// The block that buffers are taken from, while one of them lives, and how much of it they have.
#[derive(Default)]
struct Open {
    block: Weak<Block>,
    used: usize,
}

impl Arena {
    /// `len` zero bytes on a 64-byte boundary, or [`Error::OutOfMemory`](crate::Error::OutOfMemory)
    /// for `what`.
    pub(crate) fn take(&self, len: usize, what: &str) -> Result<Buffer> {
        if len == 0 || BLOCK == 0 {
            return Buffer::zeroed(len, what);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |block: &Arc<Block>| block.len().checked_sub(open.used) >= Some(len);
        let block = match open.block.upgrade().filter(fits) {
            Some(block) => block,
            None => {
                let Some(block) = Block::zeroed(len.max(BLOCK), HUGE_PAGE) else {
                    // Where address space is scarce, the rest of a block may be what is too much.
                    return Buffer::zeroed(len, what);
                };
                advise(&block);
                let block = Arc::new(block);
                *open = Open { block: Arc::downgrade(&block), used: 0 };
                block
            }
        };
        let offset = open.used;
        open.used = (offset + len).next_multiple_of(CACHE_LINE);
        // SAFETY: the block was seen to have `len` bytes from `offset` on, a multiple of 64, and what
        // comes after them is the next buffer's.
        Ok(unsafe { Buffer::part(block, offset, len) })
    }
}

/// Asks for huge pages; a system that does not take the advice goes on with small ones.
fn advise(block: &Block) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: whole pages of the block; the advice changes no content.
    unsafe {
        let whole = block.len() / HUGE_PAGE * HUGE_PAGE;
        libc::madvise(block.start().as_ptr().cast(), whole, libc::MADV_HUGEPAGE);
    }
    #[cfg(any(not(target_os = "linux"), miri))]
    let _ = block;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn buffers_are_apart_aligned_and_zero() {
        let arena = Arena::default();
        let sizes = [1, 63, 64, 65, 4096, if cfg!(miri) { 1 << 12 } else { 3 << 20 }, 0, 7];
        let mut buffers = sizes.map(|len| arena.take(len, "test").unwrap());
        for (i, (buffer, len)) in buffers.iter_mut().zip(sizes).enumerate() {
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(CACHE_LINE));
            assert!(buffer.bytes().iter().all(|x| *x == 0));
            buffer.bytes_mut().fill(i as u8 + 1);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.bytes().iter().all(|x| *x == i as u8 + 1));
        }
    }

    #[test]
    fn a_buffer_outlives_its_neighbours_and_the_arena() {
        let arena = Arena::default();
        let first = arena.take(100, "test").unwrap();
        let mut second = arena.take(100, "test").unwrap();
        second.bytes_mut().fill(7);
        drop(first);
        drop(arena);
        assert_eq!(second.bytes(), [7; 100]);
    }

    #[test]
    fn memory_of_dropped_buffers_is_not_given_out_again() {
        let arena = Arena::default();
        for _ in 0..3 {
            let mut buffer = arena.take(1000, "test").unwrap();
            assert!(buffer.bytes().iter().all(|x| *x == 0));
            buffer.bytes_mut().fill(1);
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let refused = Arena::default().take(usize::MAX, "weight").unwrap_err();
        assert!(matches!(refused, crate::Error::OutOfMemory { bytes: u64::MAX, .. }), "{refused}");
    }

    #[test]
    fn buffers_of_one_block_lie_side_by_side() {
        if BLOCK == 0 {
            return;
        }
        let arena = Arena::default();
        let [first, second] = [100, 64].map(|len| arena.take(len, "test").unwrap());
        assert_eq!(second.bytes().as_ptr().addr() - first.bytes().as_ptr().addr(), 128);
        let large = arena.take(BLOCK, "test").unwrap();
        assert_eq!(large.bytes().len(), BLOCK);
    }
}
