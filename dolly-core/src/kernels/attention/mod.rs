//! Rotary embedding, the cache of keys and values, and attention over a ragged batch.

mod cache;
mod stream;

pub(crate) use cache::{KvCache, cache_bytes};

use cache::{Head, HeadShape};
use stream::{Scratch, Stream};

use super::linear::{Groups, resize};
use super::pool::{Pool, Shared};
use super::table::Kernels;
use crate::backend::{RotaryTable, Span};
use crate::error::{Error, Result};

/// Below this many multiplications a second thread costs more than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// Shape of one attention call.
pub(crate) struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Width of each.
    pub dim: usize,
    /// Layer of the cache.
    pub layer: usize,
}

/// Memory of a call, kept for the next.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    floats: Vec<f32>,
    stores: Vec<Store>,
}

/// A layer of one sequence's cache, of each head as many bytes as its shape has: valid in the call that
/// listed it.
struct Store {
    shape: HeadShape,
    bytes: Shared<u8>,
}

impl AttentionScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let stores = self.stores.capacity() * size_of::<Store>();
        (4 * self.floats.capacity() + stores) as u64
    }
}

/// What a thread needs of one call.
struct Call<'a> {
    kernels: Kernels,
    heads: &'a Heads,
    rotary: &'a RotaryTable,
    qkv: &'a [f32],
    out: Shared<f32>,
}

/// Rotates, appends to the caches, attends; see
/// [`Backend::attention`](crate::backend::Backend::attention).
///
/// `caches` has one for each span; `scratch` is memory to work in, grown when needed.
///
/// # Errors
/// [`Error::OutOfMemory`], and [`Error::Internal`] when spans, caches and shapes do not fit.
#[allow(clippy::too_many_arguments, reason = "one fused operation has this many operands")]
pub(crate) fn attention<'a>(
    kernels: Kernels,
    pool: &Pool,
    heads: &Heads,
    rotary: &RotaryTable,
    qkv: &[f32],
    spans: &[Span],
    caches: impl ExactSizeIterator<Item = &'a mut KvCache>,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) -> Result<()> {
    let AttentionScratch { floats: scratch, stores } = scratch;
    check(heads, rotary, qkv, spans, caches, out, stores)?;
    let rows = kernels.table().float_rows;
    let room = stream::room(rows, heads.dim);
    resize(scratch, pool.threads().saturating_mul(room), "attention scores")?;
    let work = spans.iter().map(|s| s.rows.saturating_mul(s.position + s.rows)).sum::<usize>();
    let parallel = work.saturating_mul(heads.count * heads.dim) >= PARALLEL_FROM;
    let scratch = Shared::new(scratch);
    let call = Call { kernels, heads, rotary, qkv, out: Shared::new(out) };
    pool.run(spans.len() * heads.count, parallel, |worker, items| {
        // SAFETY: each worker has its own `room` floats, and a worker number has one user.
        let scratch =
            unsafe { std::slice::from_raw_parts_mut(scratch.get().add(worker * room), room) };
        let mut scratch = Scratch::new(scratch, rows, heads.dim);
        for item in items {
            let (span, head) = (item / heads.count, item % heads.count);
            let Store { shape, bytes: store } = &stores[span];
            let bytes = shape.bytes();
            // SAFETY: `check` saw that the cache has this layer and head, and each (span, head) is
            // in one range only, so nobody else has this part of the cache.
            let store =
                unsafe { std::slice::from_raw_parts_mut(store.get().add(head * bytes), bytes) };
            call.head(&spans[span], head, shape.split(store), &mut scratch);
        }
    });
    Ok(())
}

/// Sees that every access below stays inside its slice, and lists the layer's part of each cache.
fn check<'a>(
    heads: &Heads,
    rotary: &RotaryTable,
    qkv: &[f32],
    spans: &[Span],
    caches: impl ExactSizeIterator<Item = &'a mut KvCache>,
    out: &[f32],
    stores: &mut Vec<Store>,
) -> Result<()> {
    let wrong = |what: &str| Err(Error::Internal(format!("attention: {what}")));
    let hidden = heads.count.saturating_mul(heads.dim);
    if hidden == 0 || qkv.len() != out.len().saturating_mul(3) || !out.len().is_multiple_of(hidden)
    {
        return wrong("activations do not have the shape of the heads");
    }
    if spans.len() != caches.len() || 2 * rotary.half > heads.dim {
        return wrong("spans, caches and rotary table do not fit");
    }
    stores.clear();
    stores.try_reserve(spans.len()).map_err(|_| Error::OutOfMemory {
        what: "attention spans".to_owned(),
        bytes: (spans.len() as u64).saturating_mul(size_of::<Store>() as u64),
    })?;
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
        match cache.shape_of(heads.layer, heads.count) {
            Some(shape) if shape.dim == heads.dim && end <= shape.tokens => {
                stores.push(Store { shape, bytes: Shared::new(cache.layer_mut(heads.layer)) });
            }
            _ => return wrong("a cache is too short or of another shape"),
        }
    }
    Ok(())
}

impl Call<'_> {
    /// One head of one sequence: appends all its new positions, then attends for each.
    fn head(&self, span: &Span, head: usize, mut store: Head<'_>, scratch: &mut Scratch<'_>) {
        let dim = self.heads.dim;
        let hidden = self.heads.count * dim;
        let part = |row: usize, which: usize| {
            let start = (span.first_row + row) * 3 * hidden + (3 * head + which) * dim;
            &self.qkv[start..start + dim]
        };
        for row in 0..span.rows {
            let position = span.position + row;
            let key = &mut scratch.query[..dim];
            self.rotate(part(row, 1), position, key);
            store.write(position, key, part(row, 2));
        }
        let scale = 1.0 / (dim as f32).sqrt();
        let most = self.kernels.table().float_rows;
        let stream = Stream { kernels: self.kernels, head: &store };
        let groups = Groups::new(span.rows, most);
        for (first, rows) in (0..groups.count).map(|group| groups.get(group)) {
            let position = span.position + first;
            for (r, query) in scratch.query.chunks_exact_mut(dim).take(rows).enumerate() {
                self.rotate(part(first + r, 0), position + r, query);
                query.iter_mut().for_each(|x| *x *= scale);
            }
            stream.rows(rows, position + 1, scratch);
            let width = store.shape.width();
            for (r, result) in scratch.out.chunks_exact(width).take(rows).enumerate() {
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
