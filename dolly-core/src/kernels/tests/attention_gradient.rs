//! Attention over whole sequences and its backward pass against f64 sums written out plainly.

use super::{Numbers, bits, pool, sets, sizes};
use crate::kernels::attention_gradient::{Attention, AttentionScratch, Heads, Rows};
use crate::kernels::table::Kernels;

/// Lengths around the block of 64 queries.
const LENGTHS: &[usize] = sizes(&[1, 63, 64, 65, 130], &[1, 17]);

struct Case {
    heads: Heads,
    sequences: Vec<Rows>,
    qkv: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case {
    fn new(width: usize) -> Self {
        let heads = Heads { count: 2, width };
        let mut first = 0;
        let sequences = LENGTHS.iter().map(|&count| {
            first += count;
            Rows { first: first - count, count }
        });
        let sequences = sequences.collect();
        let mut numbers = Numbers(width as u64);
        let hidden = 2 * width;
        let (qkv, d_out) = (numbers.normals(3 * first * hidden), numbers.normals(first * hidden));
        Self { heads, sequences, qkv, d_out }
    }

    fn hidden(&self) -> usize {
        self.heads.count * self.heads.width
    }

    /// Outputs and the gradient of the projection.
    fn run(&self, kernels: Kernels, threads: usize) -> (Vec<f32>, Vec<f32>) {
        let pool = pool(threads);
        let scratch = AttentionScratch::new(threads).unwrap();
        let (heads, qkv, sequences) = (self.heads, &self.qkv, &self.sequences);
        let attention = Attention { kernels, pool: &pool, heads, qkv, sequences };
        let mut out = vec![f32::NAN; self.d_out.len()];
        let mut log_sums = vec![f32::NAN; self.d_out.len() / self.heads.width];
        let mut d_qkv = vec![f32::NAN; self.qkv.len()];
        attention.forward(&scratch, &mut out, &mut log_sums).unwrap();
        attention.backward(&scratch, &log_sums, &self.d_out, &mut d_qkv).unwrap();
        (out, d_qkv)
    }

    /// One head of one sequence in f64: `(out, dq, dk, dv)`, each `(count, width)`.
    fn exact(&self, rows: Rows, head: usize) -> [Vec<f64>; 4] {
        let (width, hidden) = (self.heads.width, self.hidden());
        let at = |row: usize, part: usize, d: usize| {
            f64::from(self.qkv[(rows.first + row) * 3 * hidden + (3 * head + part) * width + d])
        };
        let up = |row: usize, d: usize| {
            f64::from(self.d_out[(rows.first + row) * hidden + head * width + d])
        };
        let scale = 1.0 / (width as f64).sqrt();
        let mut all = [(); 4].map(|()| vec![0.0; rows.count * width]);
        for i in 0..rows.count {
            let score =
                |j: usize| (0..width).map(|d| at(i, 0, d) * at(j, 1, d)).sum::<f64>() * scale;
            let weights: Vec<f64> = (0..=i).map(|j| score(j).exp()).collect();
            let total: f64 = weights.iter().sum();
            let p: Vec<f64> = weights.iter().map(|w| w / total).collect();
            let dp: Vec<f64> =
                (0..=i).map(|j| (0..width).map(|d| up(i, d) * at(j, 2, d)).sum()).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for j in 0..=i {
                let ds = p[j] * (dp[j] - mean) * scale;
                for d in 0..width {
                    all[0][i * width + d] += p[j] * at(j, 2, d);
                    all[1][i * width + d] += ds * at(j, 1, d);
                    all[2][j * width + d] += ds * at(i, 0, d);
                    all[3][j * width + d] += p[j] * up(i, d);
                }
            }
        }
        all
    }
}

/// Budget: rounding of up to 130 terms of size one.
#[test]
fn attention_and_its_gradients_match_f64() {
    for kernels in sets() {
        for &width in sizes(&[8, 16, 20, 80], &[20]) {
            let case = Case::new(width);
            let (out, d_qkv) = case.run(kernels, 2);
            let hidden = case.hidden();
            for (rows, head) in case.sequences.iter().flat_map(|rows| [(rows, 0), (rows, 1)]) {
                let exact = case.exact(*rows, head);
                for i in 0..rows.count * width {
                    let (row, d) = (rows.first + i / width, i % width);
                    let found = [
                        out[row * hidden + head * width + d],
                        d_qkv[row * 3 * hidden + 3 * head * width + d],
                        d_qkv[row * 3 * hidden + (3 * head + 1) * width + d],
                        d_qkv[row * 3 * hidden + (3 * head + 2) * width + d],
                    ];
                    for (part, found) in found.into_iter().enumerate() {
                        let expected = exact[part][i];
                        let off = (f64::from(found) - expected).abs();
                        let place = format!("{} width {width}, part {part}", kernels.name());
                        assert!(off < 1e-5 * (1.0 + expected.abs()), "{place}: off by {off}");
                    }
                }
            }
        }
    }
}

#[test]
fn threads_and_neighbours_change_no_bit() {
    for kernels in sets() {
        let case = Case::new(16);
        let (out, d_qkv) = case.run(kernels, 1);
        let (out_3, d_qkv_3) = case.run(kernels, 3);
        assert!(bits(&out) == bits(&out_3) && bits(&d_qkv) == bits(&d_qkv_3));
        let last = case.sequences[LENGTHS.len() - 1];
        let hidden = case.hidden();
        let alone = Case {
            heads: case.heads,
            sequences: vec![Rows { first: 0, count: last.count }],
            qkv: case.qkv[last.first * 3 * hidden..].to_vec(),
            d_out: case.d_out[last.first * hidden..].to_vec(),
        };
        let (out_alone, d_qkv_alone) = alone.run(kernels, 2);
        assert!(bits(&out[last.first * hidden..]) == bits(&out_alone));
        assert!(bits(&d_qkv[last.first * 3 * hidden..]) == bits(&d_qkv_alone));
    }
}
