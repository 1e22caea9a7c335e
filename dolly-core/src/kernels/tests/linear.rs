//! The linear layer: values, invariance, special numbers.

use half::{bf16, f16};

use proptest::prelude::{Just, Strategy};

use super::{Numbers, Rows, bits, pool, sets, sizes};
use crate::kernels::arena::Arena;
use crate::kernels::linear::{Epilogue, InputScratch, Matrix, linear};
use crate::kernels::pack::Layout;
use crate::kernels::pool::Pool;
use crate::kernels::quant::BlockSum;
use crate::kernels::table::Kernels;

const LAYOUTS: [Layout; 5] = [Layout::F32, Layout::F16, Layout::Bf16, Layout::Q8_0, Layout::Q4_0];

pub(super) fn product(
    kernels: Kernels,
    pool: &Pool,
    matrix: &Matrix,
    x: &[f32],
    rows: usize,
) -> Vec<f32> {
    // One float off any vector's boundary.
    let mut out = vec![f32::NAN; rows * matrix.shape().0 + 1];
    let x: Vec<f32> = std::iter::once(0.0).chain(x.iter().copied()).collect();
    let mut scratch = InputScratch::default();
    let plain = Epilogue { activation: None, add: false };
    linear(kernels, pool, matrix, (&x[1..], rows), None, plain, &mut out[1..], &mut scratch)
        .unwrap();
    assert!(out[0].is_nan(), "written before the first row");
    let product = out.split_off(1);
    added(kernels, pool, matrix, (&x[1..], rows), &product);
    product
}

/// The same product with a bias, added to what is there: two roundings more, in this order.
fn added(kernels: Kernels, pool: &Pool, matrix: &Matrix, x: (&[f32], usize), product: &[f32]) {
    let outputs = matrix.shape().0;
    let bias: Vec<f32> = (0..outputs).map(|i| i as f32 - 3.3).collect();
    let start: Vec<f32> = (0..product.len()).map(|i| (i % 77) as f32 * 0.37).collect();
    let mut out = start.clone();
    let (add, scratch) = (Epilogue { activation: None, add: true }, &mut InputScratch::default());
    linear(kernels, pool, matrix, x, Some(&bias), add, &mut out, scratch).unwrap();
    for (i, (found, start)) in out.iter().zip(start).enumerate() {
        let expected = start + (product[i] + bias[i % outputs]);
        assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
    }
}

/// What a layout keeps of a row, from the formats' definitions (ggml's `block_q8_0`, `block_q4_0`).
fn kept(layout: Layout, row: &[f32]) -> Vec<f64> {
    let block = |x: &[f32], quantize: &dyn Fn(f32, f32) -> f32, divisor: f32| -> Vec<f64> {
        let extreme = x.iter().fold(0.0_f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        let extreme = if divisor > 0.0 { extreme.abs() } else { extreme };
        let d = extreme / divisor;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        let stored = f64::from(f16::from_f32_const(d).to_f32());
        x.iter().map(|x| f64::from(quantize(*x, inverse)) * stored).collect()
    };
    match layout {
        Layout::F32 => row.iter().map(|x| f64::from(*x)).collect(),
        Layout::F16 => row.iter().map(|x| f16::from_f32_const(*x).to_f64()).collect(),
        Layout::Bf16 => row.iter().map(|x| bf16::from_f32_const(*x).to_f64()).collect(),
        Layout::Q8_0 => {
            row.chunks(32).flat_map(|x| block(x, &|x, i| (x * i).round(), 127.0)).collect()
        }
        Layout::Q4_0 => row
            .chunks(32)
            .flat_map(|x| block(x, &|x, i| (x * i + 8.5).floor().min(15.0) - 8.0, -8.0))
            .collect(),
        Layout::Q4K | Layout::Q6K => unreachable!("tested in blocks"),
    }
}

/// Activations as the products see them.
pub(super) fn rounded(kernels: Kernels, layout: Layout, x: &[f32], columns: usize) -> Vec<f64> {
    if !layout.quantized() || columns == 0 {
        let pairs = layout == Layout::Bf16 && kernels.table().round_bf16.is_some();
        let kept = |x: &f32| if pairs { bf16::from_f32_const(*x).to_f32() } else { *x };
        return x.iter().map(|x| f64::from(kept(x))).collect();
    }
    let blocks = columns.div_ceil(32);
    let mut all = Vec::new();
    for row in x.chunks(columns) {
        let (mut q, mut d, mut sums) =
            (vec![0; blocks * 32], vec![0.0; blocks], vec![BlockSum::default(); blocks]);
        kernels.quantize_row(row, &mut q, &mut d, &mut sums, 1);
        for (b, q) in q.chunks(32).enumerate() {
            let sum = |of: [usize; 2]| -> i16 {
                let all = q.iter().enumerate().filter(|(k, _)| of.contains(&(k % 4)));
                all.map(|(_, q)| i16::from(*q)).sum()
            };
            assert_eq!(sums[b], BlockSum { first: sum([0, 1]), last: sum([2, 3]) });
            let most =
                row[b * 32..columns.min(b * 32 + 32)].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let least = f64::from(most) / 127.0;
            let expected = if most == 0.0 { 1.0 } else { 2.0_f64.powi(least.log2().ceil() as i32) };
            assert_eq!(f64::from(d[b]), expected, "{most}");
            for (q, x) in q.iter().zip(&row[b * 32..]) {
                assert!((f32::from(*q) * d[b] - x).abs() <= 0.5 * d[b], "{q} {x} {}", d[b]);
            }
        }
        let values = q.iter().enumerate().map(|(i, q)| f64::from(*q) * f64::from(d[i / 32]));
        all.extend(values.take(columns));
    }
    all
}

/// Budget: the f32 sum of K products errs by at most about sqrt(K) + 8 roundings of the sum of
/// magnitudes (the worst case would be K). Integer products add only a block's two roundings.
#[test]
fn products_match_f64() {
    let shapes = sizes(
        &[
            (1, 1, 1),
            (1, 16, 16),
            (1, 15, 31),
            (1, 17, 33),
            (2, 64, 32),
            (3, 65, 100),
            (1, 200, 1023),
            (5, 33, 257),
            (7, 16, 64),
            (13, 50, 513),
            (32, 40, 300),
            (193, 18, 290),
            (2, 5, 0),
            (0, 5, 7),
        ],
        &[(1, 1, 1), (1, 15, 31), (1, 65, 33), (3, 33, 40), (12, 20, 35), (2, 5, 0), (0, 5, 7)],
    );
    let pool = pool(2);
    for kernels in sets() {
        for layout in LAYOUTS {
            for &(rows, outputs, inputs) in shapes {
                let mut numbers = Numbers(7);
                let weight = numbers.normals(outputs * inputs);
                let x = numbers.normals(rows * inputs);
                let source = Rows::new(weight.clone(), outputs, inputs);
                let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                let found = product(kernels, &pool, &matrix, &x, rows);
                let x = rounded(kernels, layout, &x, inputs);
                let w: Vec<f64> =
                    weight.chunks(inputs.max(1)).flat_map(|row| kept(layout, row)).collect();
                for r in 0..rows {
                    for n in 0..outputs {
                        let terms = (0..inputs).map(|k| x[r * inputs + k] * w[n * inputs + k]);
                        let size: f64 = terms.clone().map(f64::abs).sum();
                        let expected: f64 = terms.sum();
                        let budget =
                            ((inputs as f64).sqrt() + 8.0) * f64::from(f32::EPSILON) * size;
                        let found = f64::from(found[r * outputs + n]);
                        assert!(
                            (found - expected).abs() <= budget,
                            "{} {layout:?} {rows}x{outputs}x{inputs} [{r}, {n}]: {found} is not \
                             {expected}",
                            kernels.name(),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_rows_or_threads() {
    // Enough for several panels in a unit, slices of K in every format, and a second row chunk.
    let (outputs, inputs, most) = if cfg!(miri) { (35, 40, 26) } else { (603, 600, 100) };
    for kernels in sets() {
        for layout in LAYOUTS {
            let mut numbers = Numbers(11);
            let source = Rows::new(numbers.normals(outputs * inputs), outputs, inputs);
            let x = numbers.normals(most * inputs);
            let lone = pool(1);
            let matrix = Matrix::pack(&lone, &Arena::default(), &source, layout).unwrap();
            let expected: Vec<u32> = x
                .chunks(inputs)
                .flat_map(|row| bits(&product(kernels, &lone, &matrix, row, 1)))
                .collect();
            for &threads in sizes(&[1, 2, 3, 4], &[2]) {
                let pool = pool(threads);
                let packed = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                for rows in (1..=16).chain([31, 33, most]).filter(|rows| *rows <= most) {
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
    let (rows, outputs, inputs) = (3, 20, 40);
    let pool = pool(1);
    for kernels in sets() {
        for layout in LAYOUTS {
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let source = Rows::new(vec![1.0; outputs * inputs], outputs, inputs);
                let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
                let mut x = vec![1.0; rows * inputs];
                x[inputs + 35] = special;
                let found = product(kernels, &pool, &matrix, &x, rows);
                for (i, y) in found.iter().enumerate() {
                    let touched = i / outputs == 1;
                    assert_eq!(!y.is_finite(), touched, "{} {layout:?} {i}: {y}", kernels.name());
                    if touched && !layout.quantized() {
                        assert!(y.to_bits() == special.to_bits() || special.is_nan() && y.is_nan());
                    }
                }
            }
        }
    }
}

#[test]
fn every_f16_widens_exactly() {
    for bits in (0..=u16::MAX).step_by(if cfg!(miri) { 101 } else { 1 }) {
        let expected = f16::from_bits(bits).to_f32();
        let found = crate::kernels::portable::f16_to_f32(bits);
        assert!(
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
            "{bits:#x}: {found} is not {expected}"
        );
    }
}

/// Rows, outputs and inputs of random calls stay below.
const MOST: (usize, usize, usize) = if cfg!(miri) { (14, 40, 40) } else { (40, 80, 200) };

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    /// Rows in any two calls give what they give in one.
    #[test]
    fn a_call_may_be_split_anywhere(
        (rows, cut) in (1..MOST.0).prop_flat_map(|rows| (Just(rows), 0..=rows)),
        outputs in 1..MOST.1,
        inputs in 0..MOST.2,
        layout in proptest::sample::select(LAYOUTS.to_vec()),
        threads in 1..4_usize,
        seed in proptest::num::u64::ANY,
    ) {
        let mut numbers = Numbers(seed);
        let source = Rows::new(numbers.normals(outputs * inputs), outputs, inputs);
        let x = numbers.normals(rows * inputs);
        let pool = pool(threads);
        let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
        for kernels in sets() {
            let whole = product(kernels, &pool, &matrix, &x, rows);
            let (first, second) = x.split_at(cut * inputs);
            let mut parts = product(kernels, &pool, &matrix, first, cut);
            parts.extend(product(kernels, &pool, &matrix, second, rows - cut));
            assert_eq!(bits(&whole), bits(&parts), "{}", kernels.name());
        }
    }
}
