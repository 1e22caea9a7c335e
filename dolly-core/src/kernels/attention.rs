//! Rotary embedding, the cache of keys and values, and attention over a ragged batch.

use super::attend::{Attend, ROWS};
use super::buffer::Buffer;
use super::linear::resize;
use super::pool::{Pool, Shared};
use super::table::Kernels;
use super::vector::LANES;
use crate::backend::{RotaryTable, Span};
use crate::error::{Error, Result, try_vec};

/// Below this many multiplications a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// Keys and values of one sequence: `(layers, heads, 2, tokens, padded head)`.
///
/// A head's keys lie together so that attention reads them in one stream; heads are padded with
/// zeros to whole groups of sixteen, which add exactly nothing.
pub(crate) struct KvCache {
    data: Buffer,
    layers: usize,
    heads: usize,
    tokens: usize,
    width: usize,
}

/// Bytes of a cache; `u64::MAX` beyond that range.
pub(crate) fn cache_bytes(layers: usize, heads: usize, head_dim: usize, tokens: usize) -> u64 {
    let width = head_dim.checked_next_multiple_of(LANES);
    [layers, heads, 2, tokens, size_of::<f32>()]
        .iter()
        .try_fold(width.unwrap_or(usize::MAX) as u64, |all, &n| all.checked_mul(n as u64))
        .unwrap_or(u64::MAX)
}

impl KvCache {
    /// An empty cache; its memory is used as positions are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(layers: usize, heads: usize, head_dim: usize, tokens: usize) -> Result<Self> {
        let bytes = cache_bytes(layers, heads, head_dim, tokens);
        let refused = || Error::OutOfMemory { what: format!("cache of {tokens} tokens"), bytes };
        let len = usize::try_from(bytes).map_err(|_| refused())?;
        let data = Buffer::zeroed(len, "cache").map_err(|_| refused())?;
        Ok(Self { data, layers, heads, tokens, width: head_dim.next_multiple_of(LANES) })
    }

    /// Tokens it holds at most.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Copies `tokens` tokens, from token `at` of `from` to token `start` of this cache.
    ///
    /// # Errors
    /// [`Error::Internal`] when one of them has no such tokens, or their shapes differ.
    pub(crate) fn copy_from(
        &mut self,
        start: usize,
        from: &Self,
        at: usize,
        tokens: usize,
    ) -> Result<()> {
        let shape = |cache: &Self| (cache.layers, cache.heads, cache.width);
        let room = |cache: &Self, first: usize| cache.tokens.checked_sub(first) >= Some(tokens);
        if shape(self) != shape(from) || !room(self, start) || !room(from, at) {
            return Err(Error::Internal("a cache was copied to one that it does not fit".into()));
        }
        if tokens == 0 {
            return Ok(());
        }
        let row = self.width * size_of::<f32>();
        let heads = self.data.bytes_mut().chunks_exact_mut(self.tokens * row);
        for (to, from) in heads.zip(from.data.bytes().chunks_exact(from.tokens * row)) {
            let from = &from[at * row..(at + tokens) * row];
            to[start * row..(start + tokens) * row].copy_from_slice(from);
        }
        Ok(())
    }
}

/// Shape of one attention call.
pub(crate) struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Width of each.
    pub dim: usize,
    /// Layer of the cache.
    pub layer: usize,
}

/// What a thread needs of one call.
struct Call<'a> {
    kernels: Kernels,
    heads: &'a Heads,
    rotary: &'a RotaryTable,
    qkv: &'a [f32],
    width: usize,
    out: Shared<f32>,
}

/// Rotates, appends to the caches, attends; see
/// [`Backend::attention`](crate::backend::Backend::attention).
///
/// `scratch` is memory to work in, grown when needed.
///
/// # Errors
/// [`Error::OutOfMemory`], and [`Error::Internal`] when spans, caches and shapes do not fit.
#[allow(clippy::too_many_arguments, reason = "one fused operation has this many operands")]
pub(crate) fn attention(
    kernels: Kernels,
    pool: &Pool,
    heads: &Heads,
    rotary: &RotaryTable,
    qkv: &[f32],
    spans: &[Span],
    caches: &mut [&mut KvCache],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) -> Result<()> {
    let width = check(heads, rotary, qkv, spans, caches, out)?;
    let longest = spans.iter().map(|span| span.position + span.rows).max().unwrap_or(0);
    let stride = longest.next_multiple_of(LANES);
    let room = ROWS * (2 * width + stride);
    resize(scratch, pool.threads().saturating_mul(room), "attention scores")?;
    let mut stores = try_vec(spans.len(), "attention spans")?;
    stores.extend(caches.iter_mut().map(|cache| {
        let layer = 2 * cache.heads * cache.tokens * width;
        (Shared::new(&mut cache.data.floats_mut()[heads.layer * layer..]), cache.tokens)
    }));
    let work = spans.iter().map(|s| s.rows.saturating_mul(s.position + s.rows)).sum::<usize>();
    let parallel = work.saturating_mul(heads.count * width) >= PARALLEL_FROM;
    let scratch = Shared::new(scratch);
    let call = Call { kernels, heads, rotary, qkv, width, out: Shared::new(out) };
    pool.run(spans.len() * heads.count, parallel, |worker, items| {
        // SAFETY: each worker has its own `room` floats, and a worker number has one user.
        let scratch =
            unsafe { std::slice::from_raw_parts_mut(scratch.get().add(worker * room), room) };
        for item in items {
            let (span, head) = (item / heads.count, item % heads.count);
            let (store, tokens) = &stores[span];
            let head_floats = 2 * tokens * width;
            // SAFETY: `check` saw that the cache has this layer and head, and each (span, head) is
            // in one range only, so nobody else has this part of the cache.
            let store = unsafe {
                std::slice::from_raw_parts_mut(store.get().add(head * head_floats), head_floats)
            };
            call.head(&spans[span], head, store, scratch);
        }
    });
    Ok(())
}

/// Sees that every access below stays inside its slice, and returns the padded head width.
fn check(
    heads: &Heads,
    rotary: &RotaryTable,
    qkv: &[f32],
    spans: &[Span],
    caches: &[&mut KvCache],
    out: &[f32],
) -> Result<usize> {
    let wrong = |what: &str| Err(Error::Internal(format!("attention: {what}")));
    let hidden = heads.count.saturating_mul(heads.dim);
    let width = heads.dim.next_multiple_of(LANES);
    if hidden == 0 || qkv.len() != out.len().saturating_mul(3) || !out.len().is_multiple_of(hidden)
    {
        return wrong("activations do not have the shape of the heads");
    }
    if spans.len() != caches.len() || 2 * rotary.half > heads.dim {
        return wrong("spans, caches and rotary table do not fit");
    }
    let mut free_row = 0;
    for (span, cache) in spans.iter().zip(caches) {
        let end = span.position.saturating_add(span.rows);
        if span.first_row < free_row
            || span.first_row.saturating_add(span.rows) > out.len() / hidden
        {
            return wrong("spans overlap or leave the rows");
        }
        free_row = span.first_row + span.rows;
        let rotated = end.saturating_mul(rotary.half);
        if rotary.cos.len() < rotated || rotary.sin.len() < rotated {
            return wrong("a position is beyond the rotary table");
        }
        let fits = cache.heads == heads.count && cache.width == width && heads.layer < cache.layers;
        if !fits || end > cache.tokens {
            return wrong("a cache is too short or of another shape");
        }
    }
    Ok(width)
}

impl Call<'_> {
    /// One head of one sequence: appends all its new positions, then attends for each.
    fn head(&self, span: &Span, head: usize, store: &mut [f32], scratch: &mut [f32]) {
        let (dim, width) = (self.heads.dim, self.width);
        let (keys, values) = store.split_at_mut(store.len() / 2);
        let hidden = self.heads.count * dim;
        let part = |row: usize, which: usize| {
            let start = (span.first_row + row) * 3 * hidden + (3 * head + which) * dim;
            &self.qkv[start..start + dim]
        };
        for row in 0..span.rows {
            let position = span.position + row;
            let to = position * width..position * width + dim;
            self.rotate(part(row, 1), position, &mut keys[to.clone()]);
            values[to].copy_from_slice(part(row, 2));
        }
        let (query, rest) = scratch.split_at_mut(ROWS * width);
        let (result, scores) = rest.split_at_mut(ROWS * width);
        query.fill(0.0);
        for first in (0..span.rows).step_by(ROWS) {
            let rows = ROWS.min(span.rows - first);
            let position = span.position + first;
            for (r, query) in query.chunks_exact_mut(width).take(rows).enumerate() {
                self.rotate(part(first + r, 0), position + r, &mut query[..dim]);
            }
            // SAFETY: keys and values have `position + rows` rows, query and result `rows`, each
            // row of scores room for the longest span in whole groups; the instructions are there.
            unsafe {
                (self.kernels.table().attend)(&Attend {
                    query: query.as_ptr(),
                    rows,
                    keys: keys.as_ptr(),
                    values: values.as_ptr(),
                    width,
                    positions: position + 1,
                    scale: 1.0 / (dim as f32).sqrt(),
                    scores: scores.as_mut_ptr(),
                    stride: scores.len() / ROWS,
                    out: result.as_mut_ptr(),
                });
            }
            for (r, result) in result.chunks_exact(width).take(rows).enumerate() {
                let to = (span.first_row + first + r) * hidden + head * dim;
                // SAFETY: inside `out`, and this row and head belong to this call of `head` only.
                let to = unsafe { std::slice::from_raw_parts_mut(self.out.get().add(to), dim) };
                to.copy_from_slice(&result[..dim]);
            }
        }
    }

    /// Rotates the first `2 half` dimensions (NeoX pairs i with i + half) and copies the rest.
    fn rotate(&self, from: &[f32], position: usize, to: &mut [f32]) {
        let half = self.rotary.half;
        let angles = position * half..(position + 1) * half;
        let (cos, sin) = (&self.rotary.cos[angles.clone()], &self.rotary.sin[angles]);
        let (low, rest) = from.split_at(half);
        let (high, plain) = rest.split_at(half);
        let (to_low, to_rest) = to.split_at_mut(half);
        let (to_high, to_plain) = to_rest.split_at_mut(half);
        to_plain.copy_from_slice(plain);
        for i in 0..half {
            to_low[i] = low[i] * cos[i] - high[i] * sin[i];
            to_high[i] = high[i] * cos[i] + low[i] * sin[i];
        }
    }
}
