//! The same work for every row, on all cores, with results in the order of the rows.

use std::num::NonZero;

use crate::error::{Error, Result, try_vec};

/// Most threads that are started.
const MOST_THREADS: usize = 16;
/// Fewer rows than this per thread are not worth one.
const LEAST_ROWS: usize = 64;

/// `work` of every row, or the error of the first row that fails.
pub(super) fn map<T: Sync, U: Send>(
    rows: &[T],
    work: impl Fn(&T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    let threads = cores.min(rows.len() / LEAST_ROWS).max(1);
    let part = |rows: &[T]| rows.iter().map(&work).collect::<Result<Vec<U>>>();
    if threads == 1 {
        return part(rows);
    }
    let parts: Vec<Result<Vec<U>>> = std::thread::scope(|scope| {
        let chunks = rows.chunks(rows.len().div_ceil(threads));
        let start = |rows| {
            let builder = std::thread::Builder::new().name("dolly-data".to_owned());
            let part = &part;
            builder.spawn_scoped(scope, move || part(rows))
        };
        let workers: Vec<_> = chunks.map(start).collect();
        let join = |worker: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| {
            let worker = worker.map_err(|e| Error::Internal(format!("starting a thread: {e}")))?;
            let lost = |_| Error::Internal("a thread that encodes rows panicked".to_owned());
            worker.join().map_err(lost)?
        };
        workers.into_iter().map(join).collect()
    });
    let mut all = try_vec(rows.len(), "results of rows")?;
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}
