//! Products of memory against f64, at sizes around every block's edge.

use super::{Numbers, bits, pool, sets, sizes};
use crate::kernels::matmul::{MatmulScratch, Operand, Target, matmul, matmul_here};

/// Sizes around 6 rows, 16 columns, 192 rows, 256 steps and 2,048 columns.
const EXTENTS: &[(usize, usize, usize)] = sizes(
    &[
        (1, 1, 1),
        (6, 16, 16),
        (7, 3, 17),
        (5, 257, 15),
        (13, 256, 33),
        (193, 20, 50),
        (400, 70, 31),
        (3, 9, 2100),
        (2, 0, 5),
        (0, 4, 4),
        (4, 4, 0),
        (197, 300, 2065),
    ],
    &[(1, 1, 1), (6, 16, 16), (7, 3, 17), (6, 9, 32), (8, 13, 63), (2, 0, 5), (3, 258, 33)],
);

fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize), c: &[f32]) -> Vec<f64> {
    let mut out: Vec<f64> = c.iter().map(|x| f64::from(*x)).collect();
    for i in 0..m {
        for p in 0..k {
            let x = f64::from(a[i * k + p]);
            for j in 0..n {
                out[i * n + j] += x * f64::from(b[p * n + j]);
            }
        }
    }
    out
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Budget: k roundings of sums that grow as the root of k.
#[test]
fn products_match_f64_in_every_orientation() {
    for kernels in sets() {
        for &extent in EXTENTS {
            let (m, k, n) = extent;
            let mut numbers = Numbers((m * 31 + k * 7 + n) as u64);
            let (a, b, start) =
                (numbers.normals(m * k), numbers.normals(k * n), numbers.normals(m * n));
            let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
            for (flip_a, flip_b, accumulate) in [
                (false, false, false),
                (true, false, true),
                (false, true, true),
                (true, true, false),
            ] {
                let left = if flip_a { Operand::transposed(&at, m) } else { Operand::rows(&a, k) };
                let right = if flip_b { Operand::transposed(&bt, k) } else { Operand::rows(&b, n) };
                let mut c = start.clone();
                let target = Target { data: &mut c, stride: n, accumulate };
                let mut scratch = MatmulScratch::default();
                matmul(kernels, &pool(2), &mut scratch, left, right, target, extent).unwrap();
                let zero = vec![0.0; m * n];
                let expected = product(&a, &b, extent, if accumulate { &start } else { &zero });
                for (found, expected) in c.iter().zip(&expected) {
                    let budget = 3e-7 * (k as f64 + 1.0).sqrt() * (k as f64 + 4.0).sqrt();
                    assert!((f64::from(*found) - expected).abs() <= budget, "{extent:?}");
                }
            }
        }
    }
}

#[test]
fn threads_and_tiles_change_no_bit() {
    for kernels in sets() {
        let extent @ (m, k, n) = if cfg!(miri) { (25, 33, 50) } else { (421, 530, 2100) };
        let mut numbers = Numbers(5);
        let (a, b) = (numbers.normals(m * k), numbers.normals(k * n));
        let run = |threads: Option<usize>| {
            let mut c = vec![f32::NAN; m * n];
            let target = Target { data: &mut c, stride: n, accumulate: false };
            let (left, right) = (Operand::rows(&a, k), Operand::rows(&b, n));
            let mut scratch = MatmulScratch::default();
            match threads {
                Some(threads) => {
                    matmul(kernels, &pool(threads), &mut scratch, left, right, target, extent)
                }
                None => matmul_here(kernels, &mut scratch, left, right, target, extent),
            }
            .unwrap();
            bits(&c)
        };
        let one = run(Some(1));
        for threads in [Some(2), Some(3), None] {
            assert!(run(threads) == one, "{} {threads:?}", kernels.name());
        }
    }
}

#[test]
fn strides_leave_the_space_between_rows_alone() {
    for kernels in sets() {
        let (m, k, n, stride) = (9, 5, 20, 29);
        let mut numbers = Numbers(8);
        let (a, b) = (numbers.normals(m * k), numbers.normals(k * n));
        let mut c = vec![7.0; m * stride];
        let target = Target { data: &mut c, stride, accumulate: false };
        let (left, right) = (Operand::rows(&a, k), Operand::rows(&b, n));
        let mut scratch = MatmulScratch::default();
        matmul(kernels, &pool(1), &mut scratch, left, right, target, (m, k, n)).unwrap();
        let expected = product(&a, &b, (m, k, n), &vec![0.0; m * n]);
        for (i, row) in c.chunks(stride).enumerate() {
            assert!(row[n..].iter().all(|x| *x == 7.0));
            for j in 0..n {
                assert!((f64::from(row[j]) - expected[i * n + j]).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn special_numbers_reach_their_row_and_no_other() {
    for kernels in sets() {
        let (m, k, n) = (8, 4, 18);
        let mut a = vec![1.0; m * k];
        a[2 * k] = f32::NAN;
        a[5 * k] = f32::INFINITY;
        let b = vec![1.0; k * n];
        let mut c = vec![0.0; m * n];
        let target = Target { data: &mut c, stride: n, accumulate: false };
        let (left, right) = (Operand::rows(&a, k), Operand::rows(&b, n));
        let mut scratch = MatmulScratch::default();
        matmul(kernels, &pool(1), &mut scratch, left, right, target, (m, k, n)).unwrap();
        for (i, row) in c.chunks(n).enumerate() {
            match i {
                2 => assert!(row.iter().all(|x| x.is_nan())),
                5 => assert!(row.iter().all(|x| *x == f32::INFINITY)),
                _ => assert!(row.iter().all(|x| *x == 4.0)),
            }
        }
    }
}
