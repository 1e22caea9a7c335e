//! The cache of keys and values, laid out as the float micro-kernel reads weights.
//!
//! A head's keys are panels of sixteen positions with the head's dimensions inside: scores are the
//! product of queries with them. Its values are panels of sixteen dimensions with the positions
//! inside: the result is the product of the softmax with them. So attention has no kernels of its
//! own for either product.
//!
//! ```text
//! per layer and head   keys    (tokens / 16, dim, 16)
//!                      values  (dim / 16 rounded up, tokens, 16), padded with zeros
//!                      scales  of keys (tokens), of values (tokens): Q8_0 only, f32
//! ```
//!
//! In bf16 the dimensions of a key, and the positions of values, lie in pairs as those of weights do:
//! `(tokens / 16, dim / 2 rounded up, 16, 2)` and `(dim / 16 rounded up, tokens / 2, 16, 2)`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::backend::CacheFormat;
use crate::error::{Error, Result};
use crate::kernels::buffer::Buffer;
use crate::kernels::portable::f32_to_f16;
use crate::kernels::vector::LANES;

/// Elements that are narrowed to f16 together: singly, each asks anew what the CPU can do.
const PART: usize = 8 * LANES;

/// Keys and values of one sequence, all layers and heads.
pub(crate) struct KvCache {
    data: Buffer,
    layers: usize,
    heads: usize,
    tokens: usize,
    shape: HeadShape,
}

/// How one head of one layer lies in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadShape {
    /// Elements of a key.
    pub dim: usize,
    /// Tokens there is room for, a multiple of sixteen.
    pub tokens: usize,
    pub format: CacheFormat,
}

/// Bytes of a cache, whose room for tokens is rounded up to whole panels; `u64::MAX` beyond that range.
pub(crate) fn cache_bytes(
    layers: usize,
    heads: usize,
    head_dim: usize,
    tokens: usize,
    format: CacheFormat,
) -> u64 {
    let tokens = tokens.checked_next_multiple_of(LANES);
    let bytes =
        tokens.and_then(|tokens| HeadShape { dim: head_dim, tokens, format }.checked_bytes());
    [layers, heads]
        .iter()
        .try_fold(bytes.unwrap_or(usize::MAX) as u64, |all, &n| all.checked_mul(n as u64))
        .unwrap_or(u64::MAX)
}

impl HeadShape {
    /// Elements of a value: `dim` in whole groups of sixteen.
    pub(super) fn width(self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Bytes of an element.
    pub(super) fn element(self) -> usize {
        match self.format {
            CacheFormat::F32 => 4,
            CacheFormat::F16 | CacheFormat::Bf16 => 2,
            CacheFormat::Q8_0 => 1,
        }
    }

    /// Elements, of a key's dimensions or of a value's positions, that lie side by side.
    fn together(self) -> usize {
        if self.format == CacheFormat::Bf16 { 2 } else { 1 }
    }

    /// Bytes of the keys of sixteen positions.
    pub(super) fn key_panel_bytes(self) -> usize {
        self.dim.next_multiple_of(self.together()) * LANES * self.element()
    }

    /// Where values, the scales of keys and the scales of values begin, and all ends.
    fn places(self) -> [usize; 4] {
        let values = self.tokens / LANES * self.key_panel_bytes();
        let scales = values + self.tokens * self.width() * self.element();
        let each = if self.format == CacheFormat::Q8_0 { 4 * self.tokens } else { 0 };
        [values, scales, scales + each, scales + 2 * each]
    }

    fn checked_bytes(self) -> Option<usize> {
        let key = self.dim.checked_next_multiple_of(self.together())?;
        let elements = self.dim.checked_next_multiple_of(LANES)?.checked_add(key)?;
        let scales = if self.format == CacheFormat::Q8_0 { 8 } else { 0 };
        elements.checked_mul(self.element())?.checked_add(scales)?.checked_mul(self.tokens)
    }

    /// Bytes of one head of one layer.
    pub(super) fn bytes(self) -> usize {
        self.places()[3]
    }

    /// The parts of a head's bytes.
    pub(super) fn split(self, store: &mut [u8]) -> Head<'_> {
        let [values, key_scales, value_scales, _] = self.places();
        let (keys, rest) = store.split_at_mut(values);
        let (values, rest) = rest.split_at_mut(key_scales - values);
        let (key_scales, value_scales) = rest.split_at_mut(value_scales - key_scales);
        Head { shape: self, keys, values, key_scales, value_scales }
    }
}

/// One head of one layer of a cache.
pub(super) struct Head<'a> {
    pub shape: HeadShape,
    pub keys: &'a mut [u8],
    pub values: &'a mut [u8],
    key_scales: &'a mut [u8],
    value_scales: &'a mut [u8],
}

impl Head<'_> {
    /// Writes key and value of a position; both have `dim` elements.
    pub(super) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        match self.shape.format {
            CacheFormat::F32 => {
                scatter_key(self.shape, self.keys, (position, 0), key, |x| x.to_ne_bytes());
                scatter_value(self.shape, self.values, (position, 0), value, |x| x.to_ne_bytes());
            }
            CacheFormat::F16 => {
                let mut halves = [f16::ZERO; PART];
                for (part, (key, value)) in key.chunks(PART).zip(value.chunks(PART)).enumerate() {
                    let (at, halves) = ((position, part * PART), &mut halves[..key.len()]);
                    narrow(key, halves);
                    scatter_key(self.shape, self.keys, at, halves, |x| x.to_ne_bytes());
                    narrow(value, halves);
                    scatter_value(self.shape, self.values, at, halves, |x| x.to_ne_bytes());
                }
            }
            CacheFormat::Bf16 => {
                scatter_key_pairs(self.shape, self.keys, position, key);
                scatter_value_pairs(self.shape, self.values, position, value);
            }
            CacheFormat::Q8_0 => {
                let (key_scale, value_scale) = (scale_of(key), scale_of(value));
                set_scale(self.key_scales, position, key_scale);
                set_scale(self.value_scales, position, value_scale);
                let (k, v) = (inverse(key_scale), inverse(value_scale));
                let integer = |x: f32, by: f32| (x * by).round_ties_even() as i8 as u8;
                scatter_key(self.shape, self.keys, (position, 0), key, |x| [integer(x, k)]);
                scatter_value(self.shape, self.values, (position, 0), value, |x| [integer(x, v)]);
            }
        }
    }

    /// `scores[j] *= scale of key start + j`, where keys have scales.
    pub(super) fn scale_scores(&self, start: usize, scores: &mut [f32]) {
        times_scales(self.key_scales, start, scores);
    }

    /// `weights[j] *= scale of value start + j`, where values have scales.
    pub(super) fn scale_weights(&self, start: usize, weights: &mut [f32]) {
        times_scales(self.value_scales, start, weights);
    }
}

/// The nearest f16 of up to [`PART`] values, the largest one for finite values beyond: infinity would
/// make the row NaN.
fn narrow(from: &[f32], to: &mut [f16]) {
    let most = f32::from(f16::MAX);
    let mut clamped = [0.0; PART];
    for (to, x) in clamped.iter_mut().zip(from) {
        *to = if x.is_finite() { x.clamp(-most, most) } else { *x };
    }
    if cfg!(miri) {
        to.iter_mut().zip(clamped).for_each(|(to, x)| *to = f32_to_f16(x));
    } else {
        to.convert_from_f32_slice(&clamped[..to.len()]);
    }
}

/// The scale of a row's integers; NaN where the row has a value that is not finite.
fn scale_of(row: &[f32]) -> f32 {
    // Magnitudes compare as integers, NaN above infinity above all numbers.
    let most = row.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
    let most = f32::from_bits(most);
    if most.is_finite() { most / 127.0 } else { f32::NAN }
}

fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

fn set_scale(scales: &mut [u8], position: usize, scale: f32) {
    scales.as_chunks_mut::<4>().0[position] = scale.to_ne_bytes();
}

fn times_scales(scales: &[u8], start: usize, row: &mut [f32]) {
    for (x, scale) in row.iter_mut().zip(scales.as_chunks::<4>().0.iter().skip(start)) {
        *x *= f32::from_ne_bytes(*scale);
    }
}

/// Writes elements of a key from one on: `at` is position and element.
fn scatter_key<T: Copy, const N: usize>(
    shape: HeadShape,
    keys: &mut [u8],
    at: (usize, usize),
    key: &[T],
    convert: impl Fn(T) -> [u8; N],
) {
    let (position, element) = at;
    let first = (position / LANES * shape.dim + element) * LANES + position % LANES;
    let cells = keys.as_chunks_mut::<N>().0[first..].iter_mut().step_by(LANES);
    for (cell, x) in cells.zip(key) {
        *cell = convert(*x);
    }
}

/// Writes elements of a value from one on, a multiple of sixteen: `at` is position and element.
fn scatter_value<T: Copy, const N: usize>(
    shape: HeadShape,
    values: &mut [u8],
    at: (usize, usize),
    value: &[T],
    convert: impl Fn(T) -> [u8; N],
) {
    let (position, element) = at;
    let groups = values.as_chunks_mut::<N>().0.chunks_exact_mut(shape.tokens * LANES);
    for (group, value) in groups.skip(element / LANES).zip(value.chunks(LANES)) {
        for (cell, x) in group[position * LANES..].iter_mut().zip(value) {
            *cell = convert(*x);
        }
    }
}

/// A key in pairs of bf16, with a zero behind an odd last dimension.
fn scatter_key_pairs(shape: HeadShape, keys: &mut [u8], position: usize, key: &[f32]) {
    let panel = shape.key_panel_bytes();
    let keys = &mut keys[position / LANES * panel..][..panel];
    let cells = keys.as_chunks_mut::<4>().0[position % LANES..].iter_mut().step_by(LANES);
    for (cell, pair) in cells.zip(key.chunks(2)) {
        let second = pair.get(1).map_or(bf16::ZERO, |x| bf16::from_f32(*x));
        let [a, b] = bf16::from_f32(pair[0]).to_ne_bytes();
        let [c, d] = second.to_ne_bytes();
        *cell = [a, b, c, d];
    }
}

/// A value as one of its pair of positions, in bf16.
fn scatter_value_pairs(shape: HeadShape, values: &mut [u8], position: usize, value: &[f32]) {
    let groups = values.as_chunks_mut::<2>().0.chunks_exact_mut(shape.tokens * LANES);
    for (group, value) in groups.zip(value.chunks(LANES)) {
        let pair = &mut group[position / 2 * 2 * LANES..][..2 * LANES];
        for (cells, x) in pair.chunks_exact_mut(2).zip(value) {
            cells[position % 2] = bf16::from_f32(*x).to_ne_bytes();
        }
    }
}

impl KvCache {
    /// An empty cache; its memory is used as positions are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        tokens: usize,
        format: CacheFormat,
    ) -> Result<Self> {
        let bytes = cache_bytes(layers, heads, head_dim, tokens, format);
        let refused = || Error::OutOfMemory { what: format!("cache of {tokens} tokens"), bytes };
        let len = usize::try_from(bytes).map_err(|_| refused())?;
        let data = Buffer::zeroed(len, "cache").map_err(|_| refused())?;
        let shape = HeadShape { dim: head_dim, tokens: tokens.next_multiple_of(LANES), format };
        Ok(Self { data, layers, heads, tokens, shape })
    }

    /// Tokens it holds at most.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The shape of its heads where it has this layer and so many heads.
    pub(super) fn shape_of(&self, layer: usize, heads: usize) -> Option<HeadShape> {
        (layer < self.layers && heads == self.heads).then_some(self.shape)
    }

    /// All heads of a layer that exists.
    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut [u8] {
        let bytes = self.heads * self.shape.bytes();
        &mut self.data.bytes_mut()[layer * bytes..(layer + 1) * bytes]
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
        let kind = |c: &Self| (c.layers, c.heads, c.shape.dim, c.shape.format);
        let room = |c: &Self, first: usize| c.tokens.checked_sub(first) >= Some(tokens);
        if kind(self) != kind(from) || !room(self, start) || !room(from, at) {
            return Err(Error::Internal("a cache was copied to one that it does not fit".into()));
        }
        let (to_shape, from_shape) = (self.shape, from.shape);
        if tokens == 0 || to_shape.bytes() == 0 {
            return Ok(());
        }
        let stores = self.data.bytes_mut().chunks_exact_mut(to_shape.bytes());
        for (to, from) in stores.zip(from.data.bytes().chunks_exact(from_shape.bytes())) {
            let copy = HeadCopy { to_shape, from_shape, to, from };
            copy.run(start, at, tokens);
        }
        Ok(())
    }
}

/// The same head of two caches.
struct HeadCopy<'a> {
    to_shape: HeadShape,
    from_shape: HeadShape,
    to: &'a mut [u8],
    from: &'a [u8],
}

impl HeadCopy<'_> {
    fn run(mut self, start: usize, at: usize, tokens: usize) {
        self.keys(start, at, tokens);
        let [to_values, to_scales, to_scales_v, _] = self.to_shape.places();
        let [from_values, from_scales, from_scales_v, _] = self.from_shape.places();
        let row = LANES * self.to_shape.element();
        for group in 0..self.to_shape.width() / LANES {
            let to = to_values + group * self.to_shape.tokens * row;
            let from = from_values + group * self.from_shape.tokens * row;
            self.values((to, start), (from, at), tokens);
        }
        if self.to_shape.format == CacheFormat::Q8_0 {
            self.copy(to_scales + 4 * start, from_scales + 4 * at, 4 * tokens);
            self.copy(to_scales_v + 4 * start, from_scales_v + 4 * at, 4 * tokens);
        }
    }

    /// A group's values, from where the group begins and the first position of each side: whole pairs at
    /// once where both sides begin one, else an element at a time.
    fn values(&mut self, to: (usize, usize), from: (usize, usize), tokens: usize) {
        let (pair, element) = (self.to_shape.together(), self.to_shape.element());
        let row = LANES * element;
        let aligned = to.1.is_multiple_of(pair) && from.1.is_multiple_of(pair);
        let whole = if aligned { tokens - tokens % pair } else { 0 };
        self.copy(to.0 + to.1 * row, from.0 + from.1 * row, whole * row);
        for token in whole..tokens {
            let place = |(first, position): (usize, usize), lane: usize| {
                let position = position + token;
                first + position / pair * pair * row + (lane * pair + position % pair) * element
            };
            for lane in 0..LANES {
                self.copy(place(to, lane), place(from, lane), element);
            }
        }
    }

    /// Panels at a time where both sides begin one, else an element, or a pair, at a time.
    fn keys(&mut self, start: usize, at: usize, tokens: usize) {
        let (panel, pair) = (self.to_shape.key_panel_bytes(), self.to_shape.together());
        let element = self.to_shape.element() * pair;
        let place = |position: usize| position / LANES * panel + position % LANES * element;
        let mut done = 0;
        while done < tokens {
            let (to, from) = (place(start + done), place(at + done));
            let whole = (start + done).is_multiple_of(LANES) && (at + done).is_multiple_of(LANES);
            if whole && tokens - done >= LANES {
                self.copy(to, from, panel);
                done += LANES;
            } else {
                for skip in (0..panel).step_by(LANES * element) {
                    self.copy(to + skip, from + skip, element);
                }
                done += 1;
            }
        }
    }

    fn copy(&mut self, to: usize, from: usize, bytes: usize) {
        self.to[to..to + bytes].copy_from_slice(&self.from[from..from + bytes]);
    }
}
