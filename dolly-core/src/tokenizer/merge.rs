//! The merges of byte-pair encoding, in O(n log n) for a word of n bytes.
//!
//! ```text
//! while some neighbours are a merge: join the leftmost pair of the best rank
//! ```
//!
//! A word can be a whole text (a megabyte without a blank), so pairs wait in a heap by rank and
//! position, and symbols are linked, never moved. Twice the text takes a little over twice the time,
//! and more where its buffers are the first to need fresh pages (the ignored test
//! `timings_of_long_texts` prints it for each hostile kind). The `tokenizers` crate does the same, but
//! copies the string of every token and takes twice the time the longest words are allowed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::{Error, Result, try_vec};

/// No symbol: the end of the links, and the id of a symbol that was joined to its left.
const NONE: u32 = u32::MAX;

/// Which neighbours join, how early, and to what.
pub(super) struct Merges {
    /// By left id: where its pairs start.
    starts: Vec<u32>,
    /// Sorted by left and right id.
    pairs: Vec<Pair>,
}

#[derive(Clone, Copy)]
struct Pair {
    right: u32,
    rank: u32,
    joined: u32,
}

/// Room for one word, used again for the next.
#[derive(Default)]
pub(super) struct Scratch {
    pub ids: Vec<u32>,
    next: Vec<u32>,
    prev: Vec<u32>,
    /// Rank and position of pairs that may be there still.
    heap: BinaryHeap<Reverse<u64>>,
}

impl Merges {
    /// The table of merges `(left, right, joined)`, best first, over `ids` ids.
    ///
    /// Of equal pairs the last one counts, as in the crate.
    pub fn new(ids: usize, merges: &[(u32, u32, u32)]) -> Result<Self> {
        let mut sorted: Vec<(u32, u32, Reverse<u32>, u32)> = try_vec(merges.len(), "merges")?;
        for (rank, (left, right, joined)) in merges.iter().enumerate() {
            sorted.push((*left, *right, Reverse(rank as u32), *joined));
        }
        sorted.sort_unstable();
        sorted.dedup_by_key(|merge| (merge.0, merge.1));
        let mut starts = try_vec(ids + 1, "merges")?;
        let mut pairs = try_vec(sorted.len(), "merges")?;
        for (left, right, Reverse(rank), joined) in sorted {
            while starts.len() <= left as usize {
                starts.push(pairs.len() as u32);
            }
            pairs.push(Pair { right, rank, joined });
        }
        while starts.len() <= ids {
            starts.push(pairs.len() as u32);
        }
        Ok(Self { starts, pairs })
    }

    fn get(&self, left: u32, right: u32) -> Option<Pair> {
        let left = left as usize;
        let (start, end) = (*self.starts.get(left)?, *self.starts.get(left + 1)?);
        let pairs = self.pairs.get(start as usize..end as usize)?;
        let found = pairs.binary_search_by_key(&right, |pair| pair.right).ok()?;
        pairs.get(found).copied()
    }

    /// Joins the ids in `scratch.ids` until no merge is left.
    pub fn apply(&self, scratch: &mut Scratch) -> Result<()> {
        let Scratch { ids, next, prev, heap } = scratch;
        let len = ids.len();
        if len >= NONE as usize {
            return Err(Error::InvalidInput(format!("a word of {len} bytes")));
        }
        let refused = |_| Error::OutOfMemory {
            what: "a word's pairs".into(),
            bytes: (len as u64).saturating_mul(32),
        };
        next.clear();
        prev.clear();
        heap.clear();
        next.try_reserve(len).map_err(refused)?;
        prev.try_reserve(len).map_err(refused)?;
        // Each join takes a symbol away and adds two pairs at most.
        heap.try_reserve(len.saturating_mul(3)).map_err(refused)?;
        next.extend((1..=len as u32).map(|at| if at as usize == len { NONE } else { at }));
        prev.extend((0..len as u32).map(|at| at.checked_sub(1).unwrap_or(NONE)));
        let first = ids.windows(2).enumerate().filter_map(|(at, pair)| match pair {
            [left, right] => self.get(*left, *right).map(|pair| entry(pair.rank, at as u32)),
            _ => None,
        });
        heap.extend(first);
        while let Some(Reverse(top)) = heap.pop() {
            let (rank, at) = ((top >> 32) as u32, top as u32);
            // A joined symbol is in no pair, a pair that changed has another rank.
            let Some(right) = link(next, at) else { continue };
            let Some(pair) = self.get(id(ids, at), id(ids, right)) else { continue };
            if pair.rank != rank {
                continue;
            }
            let after = link(next, right);
            set(ids, at, pair.joined);
            set(ids, right, NONE);
            set(next, at, after.unwrap_or(NONE));
            set(next, right, NONE);
            if let Some(after) = after {
                set(prev, after, at);
                heap.extend(self.get(pair.joined, id(ids, after)).map(|p| entry(p.rank, at)));
            }
            if let Some(before) = link(prev, at) {
                heap.extend(self.get(id(ids, before), pair.joined).map(|p| entry(p.rank, before)));
            }
        }
        ids.retain(|id| *id != NONE);
        Ok(())
    }
}

/// The heap gives the least: rank first, then position.
fn entry(rank: u32, at: u32) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | u64::from(at))
}

fn id(ids: &[u32], at: u32) -> u32 {
    ids.get(at as usize).copied().unwrap_or(NONE)
}

fn link(links: &[u32], at: u32) -> Option<u32> {
    links.get(at as usize).copied().filter(|to| *to != NONE)
}

fn set(values: &mut [u32], at: u32, value: u32) {
    if let Some(slot) = values.get_mut(at as usize) {
        *slot = value;
    }
}
