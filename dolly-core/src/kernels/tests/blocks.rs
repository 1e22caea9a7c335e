//! Q8_0, Q4_0, Q4_K and Q6_K: stored blocks repacked, and their products.
//!
//! The reference is `weights::dequantize`, which the tests of `weights` hold against gguf-py.

use half::{bf16, f16};

use super::linear::{product, rounded};
use super::{Numbers, Rows, bits, pool, sets};
use crate::error::Result;
use crate::kernels::arena::Arena;
use crate::kernels::embedding::RowTable;
use crate::kernels::linear::{Matrix, matrix_bytes};
use crate::kernels::pack::Layout;
use crate::kernels::quant::{quantize_q4_0, quantize_q8_0};
use crate::weights::{RowSource, StoredType, dequantize, quantize_q4_k, quantize_q6_k};

const LAYOUTS: [Layout; 4] = [Layout::Q8_0, Layout::Q4_0, Layout::Q4K, Layout::Q6K];

/// A matrix as a file stores it.
struct Blocks {
    bytes: Vec<u8>,
    stored: StoredType,
    shape: (usize, usize),
}

fn stored(layout: Layout) -> StoredType {
    match layout {
        Layout::F32 => StoredType::F32,
        Layout::F16 => StoredType::F16,
        Layout::Bf16 => StoredType::Bf16,
        Layout::Q8_0 => StoredType::Q8_0,
        Layout::Q4_0 => StoredType::Q4_0,
        Layout::Q4K => StoredType::Q4K,
        _ => StoredType::Q6K,
    }
}

/// Where a block has its f16 scales.
fn halves(stored: StoredType) -> &'static [usize] {
    match stored {
        StoredType::Q4K => &[0, 2],
        StoredType::Q6K => &[208],
        _ => &[0],
    }
}

impl Blocks {
    /// Every byte of `fill`, with scales of up to 0.1 of either sign.
    fn new(layout: Layout, outputs: usize, inputs: usize, mut fill: impl FnMut() -> u8) -> Self {
        let stored = stored(layout);
        let (weights, size) = stored.block();
        let count = outputs * inputs / weights * size;
        let mut bytes: Vec<u8> = (0..count).map(|_| fill()).collect();
        let mut numbers = Numbers(5);
        for block in bytes.chunks_mut(size) {
            for &at in halves(stored) {
                let scale = f16::from_f32(0.2 * numbers.uniform() - 0.1);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Self { bytes, stored, shape: (outputs, inputs) }
    }

    fn random(layout: Layout, outputs: usize, inputs: usize) -> Self {
        let mut numbers = Numbers(3);
        Self::new(layout, outputs, inputs, || (numbers.bits() >> 40) as u8)
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.0 * self.shape.1];
        dequantize(self.stored, &self.bytes, &mut values);
        values
    }

    /// Magnitudes of the parts that a weight is the sum of: `d s q` and `dmin m` of Q4_K.
    fn sizes(&self) -> Vec<f64> {
        let values = self.values();
        let mut without = Self { bytes: self.bytes.clone(), ..*self };
        if self.stored == StoredType::Q4K {
            without.bytes.chunks_mut(144).for_each(|block| block[2..4].fill(0));
        }
        let parts = values.iter().zip(without.values());
        parts.map(|(w, scaled)| f64::from(scaled.abs()) + f64::from((scaled - w).abs())).collect()
    }

    /// Block `b` of row `row`.
    fn block(&mut self, row: usize, b: usize) -> &mut [u8] {
        let (weights, size) = self.stored.block();
        &mut self.bytes[(row * self.shape.1 / weights + b) * size..][..size]
    }
}

impl RowSource for Blocks {
    fn name(&self) -> &str {
        "test.weight"
    }

    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read_rows(&self, _first: usize, _out: &mut [f32]) -> Result<()> {
        panic!("blocks are to be kept as they are");
    }

    fn blocks(&self) -> Option<StoredType> {
        Some(self.stored)
    }

    fn read_blocks(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let (weights, size) = self.stored.block();
        let row = self.shape.1 / weights * size;
        out.copy_from_slice(&self.bytes[first * row..][..out.len()]);
        Ok(())
    }
}

/// Budget: that of the other formats, over the parts of a weight (Q4_K adds two products a block).
fn check(layout: Layout, source: &Blocks, x: &[f32], rows: usize, exact: bool) {
    let (outputs, inputs) = source.shape;
    let pool = pool(2);
    for kernels in sets() {
        let matrix = Matrix::pack(&pool, &Arena::default(), source, layout).unwrap();
        let found = product(kernels, &pool, &matrix, x, rows);
        let x = rounded(kernels, layout, x, inputs);
        let (w, sizes) = (source.values(), source.sizes());
        for r in 0..rows {
            for n in 0..outputs {
                let terms = |w: &dyn Fn(usize) -> f64| -> f64 {
                    (0..inputs).map(|k| x[r * inputs + k] * w(n * inputs + k)).sum()
                };
                let expected = terms(&|at| f64::from(w[at]));
                let size: f64 =
                    (0..inputs).map(|k| x[r * inputs + k].abs() * sizes[n * inputs + k]).sum();
                let budget = ((inputs as f64).sqrt() + 8.0) * f64::from(f32::EPSILON) * size;
                let found = f64::from(found[r * outputs + n]);
                let most = if exact { 0.0 } else { budget };
                assert!(
                    (found - expected).abs() <= most,
                    "{} {layout:?} {rows}x{outputs}x{inputs} [{r}, {n}]: {found} is not {expected}",
                    kernels.name(),
                );
            }
        }
    }
}

#[test]
fn products_of_stored_blocks_match_f64() {
    for layout in LAYOUTS {
        for (rows, outputs, inputs) in [
            (1, 1, 256),
            (1, 15, 512),
            (1, 16, 256),
            (1, 65, 1280),
            (1, 200, 768),
            (2, 33, 2304),
            (3, 17, 768),
            (4, 50, 256),
            (5, 31, 1536),
            (7, 16, 512),
            (33, 40, 1792),
            (130, 18, 512),
            (2, 5, 0),
            (0, 5, 256),
        ] {
            let source = Blocks::random(layout, outputs, inputs);
            let x = Numbers(7).normals(rows * inputs);
            check(layout, &source, &x, rows, false);
        }
    }
}

/// The largest integers of either sign on both sides: 16-bit sums stay below their limits.
#[test]
fn extreme_integers_do_not_saturate() {
    for layout in LAYOUTS {
        for fill in [0x00, 0xff, 0x0f, 0xf0, 0x80, 0x7f] {
            for signs in 0..4 {
                let mut source = Blocks::new(layout, 16, 512, || fill);
                for row in 0..16 {
                    for b in 0..512 / stored(layout).block().0 {
                        // 1.0 and 0.5: every term is a number of few bits, and the sums exact.
                        let block = source.block(row, b);
                        match layout {
                            Layout::Q4K => block[..4].copy_from_slice(&[0, 0x3c, 0, 0x38]),
                            Layout::Q8_0 | Layout::Q4_0 => block[..2].copy_from_slice(&[0, 0x3c]),
                            _ => {
                                block[192..208].fill(0x80);
                                block[208..].copy_from_slice(&[0, 0x38]);
                            }
                        }
                    }
                }
                // 127 steps of either sign, in four patterns; the scale is 1.
                let odd = |k: usize| [0, k, k / 4, 1][signs] % 2;
                let sign = |k: usize| [127.0, -127.0][odd(k)];
                // Few rows, and as many as have tiles of their own.
                let x: Vec<f32> = (0..16 * 512).map(sign).collect();
                check(layout, &source, &x[..3 * 512], 3, true);
                check(layout, &source, &x, 16, true);
            }
        }
    }
}

/// Zeros of both signs, the ends of f16 and everything between, times activations of every size that has
/// integers: the products of scales stay within f32 wherever they are exact.
#[test]
fn scales_of_every_size_match_f64() {
    let halves_of = [0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff_u16];
    for layout in LAYOUTS {
        for exponent in [-92, -40, -1, 0, 1, 60, 99, 113] {
            // Beyond these the sums themselves leave f32's range.
            let most = f64::from(f32::MAX) / 2.0_f64.powi(exponent) / 1e12;
            let usable = halves_of.map(f16::from_bits).map(|d| d.to_f64().abs() < most);
            let mut source = Blocks::random(layout, halves_of.len(), 512);
            for (row, usable) in usable.into_iter().enumerate() {
                for b in 0..512 / stored(layout).block().0 {
                    for &at in halves(stored(layout)) {
                        let scale = if usable { halves_of[row] } else { 0x8000 };
                        source.block(row, b)[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
            }
            let x = Numbers(9).normals(9 * 512);
            let x: Vec<f32> = x.iter().map(|x| x * 2.0_f32.powi(exponent)).collect();
            check(layout, &source, &x[..2 * 512], 2, false);
            check(layout, &source, &x, 9, false);
        }
    }
}

#[test]
fn bits_do_not_depend_on_rows_or_threads() {
    // Several panels in a unit, several slices of K, and a second row chunk.
    let (outputs, inputs, most) = (303, 1280, 100);
    for kernels in sets() {
        for layout in LAYOUTS {
            let source = Blocks::random(layout, outputs, inputs);
            let x = Numbers(11).normals(most * inputs);
            let lone = pool(1);
            let matrix = Matrix::pack(&lone, &Arena::default(), &source, layout).unwrap();
            let expected: Vec<u32> = x
                .chunks(inputs)
                .flat_map(|row| bits(&product(kernels, &lone, &matrix, row, 1)))
                .collect();
            for threads in 1..=3 {
                let pool = pool(threads);
                let packed = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                for rows in (1..=16).chain([31, 33, most]) {
                    let found = product(kernels, &pool, &packed, &x[..rows * inputs], rows);
                    assert!(
                        bits(&found) == expected[..rows * outputs],
                        "{} {layout:?}: {rows} rows, {threads} threads",
                        kernels.name(),
                    );
                }
            }
        }
    }
}

#[test]
fn special_numbers_reach_their_outputs_and_no_others() {
    let (rows, outputs, inputs) = (3, 20, 512);
    let pool = pool(1);
    for kernels in sets() {
        for layout in LAYOUTS {
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut source = Blocks::random(layout, outputs, inputs);
                let mut x = vec![1.0; rows * inputs];
                x[inputs + 300] = special;
                let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                for (i, y) in product(kernels, &pool, &matrix, &x, rows).iter().enumerate() {
                    assert_eq!(y.is_finite(), i / outputs != 1, "{} {i}: {y}", kernels.name());
                }
                for &at in halves(stored(layout)) {
                    let bytes = f16::from_f32(special).to_le_bytes();
                    source.block(17, 1)[at..at + 2].copy_from_slice(&bytes);
                    let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                    let x = vec![1.0; rows * inputs];
                    for (i, y) in product(kernels, &pool, &matrix, &x, rows).iter().enumerate() {
                        let hit = i % outputs == 17;
                        assert_eq!(y.is_finite(), !hit, "{} {layout:?} {i}: {y}", kernels.name());
                    }
                }
            }
        }
    }
}

/// Blocks of 32: the scale, then the integers' bytes.
fn of_32(values: &[f32], quantize: impl Fn(&[f32; 32]) -> (f16, Vec<u8>)) -> Vec<u8> {
    let blocks = values.as_chunks().0.iter().map(quantize);
    blocks.flat_map(|(scale, q)| scale.to_le_bytes().into_iter().chain(q)).collect()
}

/// Floats are packed as the writers round them, and floats of a file as they are, so that a converted file gives the same bits.
#[test]
fn floats_pack_as_their_stored_blocks() {
    let (outputs, inputs) = (35, 768);
    let pool = pool(2);
    let values = Numbers(13).normals(outputs * inputs);
    for layout in LAYOUTS.into_iter().chain([Layout::F32, Layout::F16, Layout::Bf16]) {
        let bytes = match layout {
            Layout::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Layout::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Layout::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            Layout::Q8_0 => of_32(&values, |block| {
                let (scale, q) = quantize_q8_0(block);
                (scale, q.map(|q| q as u8).to_vec())
            }),
            Layout::Q4_0 => of_32(&values, |block| {
                let (scale, q) = quantize_q4_0(block);
                (scale, (0..16).map(|k| q[k] | q[k + 16] << 4).collect())
            }),
            Layout::Q4K => values.as_chunks().0.iter().flat_map(quantize_q4_k).collect(),
            _ => values.as_chunks().0.iter().flat_map(quantize_q6_k).collect(),
        };
        let kept = Blocks { bytes, stored: stored(layout), shape: (outputs, inputs) };
        let floats = Rows::new(values.clone(), outputs, inputs);
        let x = Numbers(17).normals(2 * inputs);
        for kernels in sets() {
            let of = |source: &dyn RowSource| {
                let matrix = Matrix::pack(&pool, &Arena::default(), source, layout).unwrap();
                bits(&product(kernels, &pool, &matrix, &x, 2))
            };
            assert_eq!(of(&kept), of(&floats), "{layout:?}");
        }
        // Held in bytes, whatever is stored.
        if layout == Layout::Q4_0 {
            continue;
        }
        let table = |source: &dyn RowSource| {
            let table = RowTable::load(&pool, &Arena::default(), source, layout).unwrap();
            let mut row = vec![0.0; inputs];
            table.read(33, &mut row);
            bits(&row)
        };
        assert_eq!(table(&kept), table(&floats));
        assert_eq!(table(&kept), bits(&kept.values()[33 * inputs..34 * inputs]));
    }
}

/// Rows that super-blocks do not divide: held as Q8_0, and counted so.
#[test]
fn other_rows_are_held_as_q8_0() {
    let (outputs, inputs) = (20, 320);
    let pool = pool(1);
    let source = Rows::new(Numbers(19).normals(outputs * inputs), outputs, inputs);
    let x = Numbers(23).normals(inputs);
    for layout in [Layout::Q4K, Layout::Q6K] {
        for kernels in sets() {
            let of = |layout| {
                let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                bits(&product(kernels, &pool, &matrix, &x, 1))
            };
            assert_eq!(of(layout), of(Layout::Q8_0));
        }
        let bytes = |layout| matrix_bytes(outputs, inputs, layout);
        assert_eq!(bytes(layout), bytes(Layout::Q8_0));
    }
    // 4.625 and 6.5625 bits a weight.
    assert_eq!(matrix_bytes(32, 512, Layout::Q4K), 32 * 512 * 148 / 256);
    assert_eq!(matrix_bytes(32, 512, Layout::Q6K), 32 * 512 * 210 / 256);
}
