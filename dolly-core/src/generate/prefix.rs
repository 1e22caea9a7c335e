//! Rows of prompts that were read, kept for later requests that begin alike.
//!
//! A cache row is a function of the ids up to it and of nothing else (the contract of
//! [`Backend`]), so a copy of it is the row that would be computed.
//!
//! Entries form trees: an entry knows all the ids of its prefix and holds the rows that its parent
//! does not, so what prompts have in common is held once. An entry serves every shorter prefix of
//! its ids. Using one uses those it stands on, so the least recently used entry is a leaf.

use crate::backend::Backend;
use crate::error::{Result, try_vec};
use crate::model::Config;

/// Bounds the time of a look-up, which compares with every entry.
const MOST_ENTRIES: usize = 256;

/// The kept prefixes of one model.
pub(super) struct Prefixes<B: Backend> {
    /// Most bytes to hold; 0 keeps nothing.
    budget: u64,
    bytes: u64,
    /// Counts uses.
    clock: u64,
    entries: Vec<Entry<B>>,
}

struct Entry<B: Backend> {
    /// Unlike an index, stays when others go.
    key: u64,
    /// Holds the rows before `start`; its own rows begin before that.
    parent: Option<u64>,
    start: usize,
    /// Of the whole prefix.
    ids: Vec<u32>,
    /// Rows `start..ids.len()`, and maybe some that are nobody's.
    rows: B::Cache,
    bytes: u64,
    /// The clock at its last use.
    used: u64,
}

/// How many ids both begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<B: Backend> Prefixes<B> {
    pub fn new(budget: u64) -> Self {
        Self { budget, bytes: 0, clock: 0, entries: Vec::new() }
    }

    /// Whether nothing is ever kept.
    pub fn is_off(&self) -> bool {
        self.budget == 0
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of `ids`, from the first on, have kept rows.
    pub fn known(&self, ids: &[u32]) -> usize {
        self.longest(ids).map_or(0, |(_, known)| known)
    }

    /// Notes a use of what is kept of `ids`.
    pub fn touch(&mut self, ids: &[u32]) {
        self.clock += 1;
        let mut next = self.longest(ids).map(|(index, _)| index);
        while let Some(index) = next {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.used = self.clock;
            }
            next = self.parent(index);
        }
    }

    /// Copies the kept rows of `ids` to the front of an empty cache; gives their number.
    pub fn copy_to(&mut self, backend: &B, ids: &[u32], cache: &mut B::Cache) -> Result<usize> {
        self.touch(ids);
        let Some((index, known)) = self.longest(ids) else { return Ok(0) };
        // From the leaf to the root, each with the end of the rows that are wanted of it.
        let (mut parts, mut next, mut end) = (Vec::new(), Some(index), known);
        while let Some(entry) = next.and_then(|index| self.entries.get(index)) {
            if entry.start < end {
                parts.push((entry, end - entry.start));
                end = entry.start;
            }
            next = next.and_then(|index| self.parent(index));
        }
        for (entry, rows) in parts.into_iter().rev() {
            backend.copy_cache(&entry.rows, 0, cache, entry.start, rows)?;
        }
        Ok(known)
    }

    /// Keeps as many of the first rows of a cache, those of `ids`, as `room` bytes and the budget
    /// allow; others go for them, least recently used first. The cache, of `held` bytes, is kept itself
    /// where little of it is something else.
    ///
    /// Where memory cannot be had, nothing is kept: no request needs it.
    pub fn keep(
        &mut self,
        (backend, config): (&B, &Config),
        ids: &[u32],
        (cache, held): (B::Cache, u64),
        room: u64,
    ) {
        let room = room.min(self.budget);
        self.touch(ids);
        let (mut parent, start) = self.longest(ids).map_or((None, 0), |(at, n)| (Some(at), n));
        let with_ids = |rows: usize, bytes: u64| {
            bytes.saturating_add((start + rows).saturating_mul(size_of::<u32>()) as u64)
        };
        let cost = |rows: usize| with_ids(rows, backend.cache_bytes(config, rows));
        if start == ids.len() || room < cost(1) {
            return;
        }
        // The one that holds the last common row.
        while let Some(at) = parent.filter(|at| self.entries[*at].start >= start) {
            parent = self.parent(at);
        }
        let parent = parent.map(|at| self.entries[at].key);
        let (copy, whole) = (cost(ids.len() - start), with_ids(ids.len() - start, held));
        let moves = start == 0
            && backend.owns_caches()
            && whole <= room
            && whole.saturating_sub(copy) <= copy / 4;
        let wanted = if moves { whole } else { copy };
        let full = |held: &Self| held.bytes.saturating_add(wanted) > room;
        while self.entries.len() >= MOST_ENTRIES || full(self) {
            // What was touched just now is what the new entry stands on.
            if !self.evict(self.clock) {
                break;
            }
        }
        let free = room.saturating_sub(self.bytes);
        let rows = most(ids.len() - start, |rows| cost(rows) <= free);
        if rows == 0 || self.entries.len() >= MOST_ENTRIES {
            return;
        }
        let ids = &ids[..start + rows];
        let (bytes, kept) = match moves && whole <= free {
            true => (whole, owned(ids).map(|ids| (ids, cache))),
            false => (cost(rows), copy_rows(backend, config, ids, &cache, start)),
        };
        match kept {
            Ok((ids, rows)) => {
                let (key, used) = (self.clock, self.clock);
                self.bytes += bytes;
                self.entries.push(Entry { key, parent, start, ids, rows, bytes, used });
            }
            Err(error) => tracing::debug!(%error, "a prefix was not kept"),
        }
    }

    /// Lets entries go, least recently used first, until at most `bytes` are held.
    pub fn shrink_to(&mut self, bytes: u64) {
        while self.bytes > bytes && self.evict(u64::MAX) {}
    }

    /// The entry that has the most of `ids` in common, and how many.
    fn longest(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let found = self.entries.iter().map(|entry| common(&entry.ids, ids)).enumerate();
        found.max_by_key(|(_, common)| *common).filter(|(_, common)| *common > 0)
    }

    fn parent(&self, index: usize) -> Option<usize> {
        let key = self.entries.get(index)?.parent?;
        self.entries.iter().position(|entry| entry.key == key)
    }

    /// Removes the leaf whose last use is the longest ago, and before `clock`; false without one.
    fn evict(&mut self, clock: u64) -> bool {
        let is_leaf = |key| !self.entries.iter().any(|entry| entry.parent == Some(key));
        let leaves = self.entries.iter().enumerate().filter(|(_, entry)| is_leaf(entry.key));
        let oldest = leaves.min_by_key(|(_, entry)| entry.used);
        let Some((index, _)) = oldest.filter(|(_, entry)| entry.used < clock) else { return false };
        self.bytes -= self.entries.swap_remove(index).bytes;
        true
    }
}

/// The largest number up to `limit` that fits, where all below one that fits do; 0 without any.
fn most(limit: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = high - (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// Copies of `ids` and of the rows of a cache from `start` on.
fn copy_rows<B: Backend>(
    backend: &B,
    config: &Config,
    ids: &[u32],
    cache: &B::Cache,
    start: usize,
) -> Result<(Vec<u32>, B::Cache)> {
    let (ids, rows) = (owned(ids)?, ids.len() - start);
    let mut kept = backend.new_cache(config, rows)?;
    backend.copy_cache(cache, start, &mut kept, 0, rows)?;
    Ok((ids, kept))
}

fn owned(ids: &[u32]) -> Result<Vec<u32>> {
    let mut owned = try_vec(ids.len(), "ids of a kept prefix")?;
    owned.extend_from_slice(ids);
    Ok(owned)
}

#[cfg(test)]
mod tests;
