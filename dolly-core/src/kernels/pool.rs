//! The threads of one backend: splits an operation's items among them and waits.
//!
//! Everything above sees only [`Pool::run`] and [`Pool::install`], so that what is behind them can
//! change. Results cannot depend on it: items write disjoint memory and compute alone.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::error::{Error, Result};

/// A thread takes its share of what is left, divided by this: little at the end, so that a delayed
/// thread holds the others up little.
const SHARES: usize = 2;

/// A fixed number of threads, one of which is the caller's.
///
/// After `fork` a child has none of its parent's threads; the pool notices by the process id and
/// starts its own.
pub(crate) struct Pool {
    threads: usize,
    state: ArcSwap<State>,
}

struct State {
    process: u32,
    /// `None`: one thread, or a child process that could start none; the caller does the work.
    pool: Option<rayon::ThreadPool>,
    /// Held by the caller whose work the threads do. Without it a thread that waits for its
    /// siblings takes up the next caller's work on top of its own, as deep as there are callers.
    gate: Mutex<()>,
}

impl State {
    fn new(threads: usize) -> std::result::Result<Self, rayon::ThreadPoolBuildError> {
        let pool = match threads {
            0 | 1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("dolly-cpu-{i}"))
                    .build()?,
            ),
        };
        Ok(Self { process: std::process::id(), pool, gate: Mutex::new(()) })
    }

    fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            None => work(),
            Some(pool) if pool.current_thread_index().is_some() => work(),
            Some(pool) => {
                let _turn = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
                pool.install(work)
            }
        }
    }
}

impl Pool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// [`Error::Device`] when the system refuses to start them.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let state = State::new(threads).map_err(|error| Error::Device {
            device: "cpu".to_owned(),
            reason: format!("cannot start {threads} threads: {error}"),
        })?;
        Ok(Self { threads, state: ArcSwap::from_pointee(state) })
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    fn state(&self) -> arc_swap::Guard<Arc<State>> {
        let state = self.state.load();
        if state.process == std::process::id() {
            return state;
        }
        let mut fresh = State::new(self.threads).ok();
        let parents = self.state.rcu(|current| {
            if current.process == std::process::id() {
                return Arc::clone(current);
            }
            let lone = State { process: std::process::id(), pool: None, gate: Mutex::new(()) };
            Arc::new(fresh.take().unwrap_or(lone))
        });
        // Dropping it would signal threads that do not exist, through locks they may have held.
        std::mem::forget(parents);
        self.state.load()
    }

    /// Runs `work` on one of the threads, so that the operations inside start without a hand-over.
    ///
    /// One caller's work at a time; others wait. Inside `work` a further call runs at once.
    pub(crate) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.state().install(work)
    }

    /// Calls `work(worker, items)` with consecutive ranges that cover `0..items` once.
    ///
    /// `worker` is below [`threads`](Self::threads) and never used by two calls at a time. Work
    /// worth less than waking a thread should pass `parallel: false`.
    pub(crate) fn run(
        &self,
        items: usize,
        parallel: bool,
        work: impl Fn(usize, Range<usize>) + Sync,
    ) {
        let workers = self.threads.min(items);
        let state = self.state();
        if state.pool.is_none() || !parallel || workers <= 1 {
            if items > 0 {
                work(0, 0..items);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        let end = |start: usize| start + ((items - start) / (workers * SHARES)).max(1);
        let claim = |start| (start < items).then(|| end(start));
        let worker = |worker: usize| {
            while let Ok(start) = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim) {
                work(worker, start..end(start));
            }
        };
        state.install(|| fan_out(0..workers, &worker));
    }
}

/// Calls `worker` for each number of the range, halving it: its depth is the logarithm of threads.
fn fan_out(range: Range<usize>, worker: &(impl Fn(usize) + Sync)) {
    if range.len() <= 1 {
        return range.for_each(worker);
    }
    let middle = range.start + range.len() / 2;
    rayon::join(|| fan_out(range.start..middle, worker), || fan_out(middle..range.end, worker));
}

/// A pointer that several threads write through, each to its own elements.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: only the pointer travels; users promise disjoint elements where they dereference it.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Shares the elements of a slice.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The first element.
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

/// Fills `buffer`, `items` pieces of `piece` bytes, from all threads: `work(items, their bytes)`.
///
/// # Errors
/// The first error of any piece.
pub(crate) fn fill(
    pool: &Pool,
    buffer: &mut [u8],
    items: usize,
    piece: usize,
    work: impl Fn(Range<usize>, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    assert_eq!(Some(buffer.len()), items.checked_mul(piece));
    // Without bytes the number of items is bounded by nothing.
    if buffer.is_empty() {
        return Ok(());
    }
    let base = Shared::new(buffer);
    let failure = Mutex::new(None);
    pool.run(items, true, |_, range| {
        // SAFETY: the pieces of `range` are inside the buffer and in no other range.
        let bytes = unsafe {
            let start = base.get().add(range.start * piece);
            std::slice::from_raw_parts_mut(start, range.len() * piece)
        };
        if let Err(error) = work(range, bytes) {
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Calls `work(first row, their floats)` for groups of the `rows` rows of `data`.
pub(crate) fn rows(
    pool: &Pool,
    data: &mut [f32],
    rows: usize,
    width: usize,
    parallel: bool,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    assert_eq!(Some(data.len()), rows.checked_mul(width));
    if data.is_empty() {
        return;
    }
    let base = Shared::new(data);
    pool.run(rows, parallel, |_, range| {
        // SAFETY: the rows of `range` are inside the slice and in no other range.
        let rows = unsafe {
            let start = base.get().add(range.start * width);
            std::slice::from_raw_parts_mut(start, range.len() * width)
        };
        work(range.start, rows);
    });
}

/// Calls `work(piece, its elements of a, its elements of b)` for `count` pieces of both slices.
///
/// A piece is `sizes.0` elements of `a` and `sizes.1` of `b`; the last may be shorter in either.
pub(crate) fn pieces(
    pool: &Pool,
    (a, b): (&mut [f32], &mut [f32]),
    sizes: (usize, usize),
    count: usize,
    parallel: bool,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let covers = |len: usize, size: usize| size.saturating_mul(count) >= len;
    assert!(covers(a.len(), sizes.0) && covers(b.len(), sizes.1));
    let (a_len, b_len) = (a.len(), b.len());
    let (a, b) = (Shared::new(a), Shared::new(b));
    pool.run(count, parallel, |_, range| {
        for i in range {
            let part = |len: usize, size: usize| (len.min(i * size), len.min((i + 1) * size));
            let (a_part, b_part) = (part(a_len, sizes.0), part(b_len, sizes.1));
            // SAFETY: both parts are inside their slices and belong to piece `i` only.
            unsafe {
                use std::slice::from_raw_parts_mut;
                let a = from_raw_parts_mut(a.get().add(a_part.0), a_part.1 - a_part.0);
                let b = from_raw_parts_mut(b.get().add(b_part.0), b_part.1 - b_part.0);
                work(i, a, b);
            }
        }
    });
}
