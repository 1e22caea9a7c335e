//! Attention: values against f64, invariance over chunks, batches and threads.

use super::{Numbers, bits, pool, sets, sizes};
use crate::backend::{RotaryTable, Span};
use crate::kernels::attention::{Heads, KvCache, attention};
use crate::kernels::pool::Pool;
use crate::kernels::table::Kernels;

struct Case {
    heads: usize,
    dim: usize,
    half: usize,
    tokens: usize,
}

impl Case {
    fn rotary(&self) -> RotaryTable {
        let angle = |i: usize| {
            (i / self.half) as f32 * 10000_f32.powf(-((i % self.half) as f32) / self.half as f32)
        };
        let count = self.tokens * self.half;
        RotaryTable {
            cos: (0..count).map(|i| angle(i).cos()).collect(),
            sin: (0..count).map(|i| angle(i).sin()).collect(),
            half: self.half,
            positions: self.tokens,
        }
    }

    fn qkv(&self, seed: u64) -> Vec<f32> {
        Numbers(seed).normals(self.tokens * 3 * self.heads * self.dim)
    }

    fn cache(&self) -> KvCache {
        KvCache::new(2, self.heads, self.dim, self.tokens).unwrap()
    }

    /// The whole sequence in chunks of the given size.
    fn run(&self, kernels: Kernels, pool: &Pool, qkv: &[f32], chunk: usize) -> Vec<f32> {
        let hidden = self.heads * self.dim;
        let heads = Heads { count: self.heads, dim: self.dim, layer: 1 };
        let (rotary, mut cache, mut all) = (self.rotary(), self.cache(), Vec::new());
        let mut scratch = Vec::new();
        for start in (0..self.tokens).step_by(chunk) {
            let rows = chunk.min(self.tokens - start);
            let part = &qkv[start * 3 * hidden..(start + rows) * 3 * hidden];
            let mut out = vec![f32::NAN; rows * hidden];
            let spans = [Span { first_row: 0, rows, position: start }];
            let caches = &mut [&mut cache];
            attention(kernels, pool, &heads, &rotary, part, &spans, caches, &mut out, &mut scratch)
                .unwrap();
            all.extend(out);
        }
        all
    }

    fn reference(&self, qkv: &[f32]) -> Vec<f64> {
        let (hidden, rotary) = (self.heads * self.dim, self.rotary());
        let part = |row: usize, head: usize, which: usize| -> Vec<f64> {
            let start = row * 3 * hidden + (3 * head + which) * self.dim;
            qkv[start..start + self.dim].iter().map(|x| f64::from(*x)).collect()
        };
        let rotate = |x: Vec<f64>, row: usize| -> Vec<f64> {
            let mut y = x.clone();
            for i in 0..self.half {
                let c = f64::from(rotary.cos[row * self.half + i]);
                let s = f64::from(rotary.sin[row * self.half + i]);
                y[i] = x[i] * c - x[i + self.half] * s;
                y[i + self.half] = x[i + self.half] * c + x[i] * s;
            }
            y
        };
        let mut out = vec![0.0; self.tokens * hidden];
        for head in 0..self.heads {
            let keys: Vec<_> = (0..self.tokens).map(|j| rotate(part(j, head, 1), j)).collect();
            for row in 0..self.tokens {
                let q = rotate(part(row, head, 0), row);
                let scores: Vec<f64> = keys[..=row]
                    .iter()
                    .map(|k| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>())
                    .map(|dot| dot / (self.dim as f64).sqrt())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = e.iter().sum();
                for (j, e) in e.iter().enumerate() {
                    for (d, v) in part(j, head, 2).iter().enumerate() {
                        out[row * hidden + head * self.dim + d] += e / sum * v;
                    }
                }
            }
        }
        out
    }
}

const CASES: &[Case] = sizes(
    &[
        Case { heads: 1, dim: 8, half: 1, tokens: 1 },
        Case { heads: 3, dim: 80, half: 10, tokens: 37 },
        Case { heads: 2, dim: 64, half: 8, tokens: 65 },
        Case { heads: 2, dim: 128, half: 64, tokens: 18 },
        Case { heads: 1, dim: 256, half: 32, tokens: 33 },
        Case { heads: 5, dim: 7, half: 3, tokens: 20 },
        Case { heads: 2, dim: 100, half: 12, tokens: 130 },
    ],
    &[
        Case { heads: 1, dim: 8, half: 1, tokens: 1 },
        Case { heads: 1, dim: 128, half: 64, tokens: 4 },
        Case { heads: 2, dim: 20, half: 3, tokens: 18 },
    ],
);

/// Budget: values are a few units; rounding of scores (|s| < 10) moves weights by about 1e-6.
#[test]
fn matches_f64() {
    let pool = pool(2);
    for kernels in sets() {
        for case in CASES {
            let qkv = case.qkv(3);
            let found = case.run(kernels, &pool, &qkv, case.tokens);
            for (i, (found, expected)) in found.iter().zip(case.reference(&qkv)).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 4e-6, "{} {}: {found} {expected} {i}", kernels.name(), case.dim);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_neighbours() {
    for kernels in sets() {
        for case in CASES {
            let qkv = case.qkv(5);
            let whole = bits(&case.run(kernels, &pool(1), &qkv, case.tokens));
            for &threads in sizes(&[1, 2, 3], &[2]) {
                for &chunk in sizes(&[1, 2, 3, 5, 16, 17], &[1, 3]) {
                    let found = case.run(kernels, &pool(threads), &qkv, chunk);
                    assert!(bits(&found) == whole, "{} {} {chunk}", kernels.name(), case.dim);
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let case = Case { heads: 3, dim: 80, half: 10, tokens: 12 };
    let (pool, hidden) = (pool(3), 240);
    for kernels in sets() {
        let (first, second) = (case.qkv(1), case.qkv(2));
        let alone = [&first, &second].map(|qkv| bits(&case.run(kernels, &pool, qkv, 12)));
        // Rows: the first sequence's last 5 tokens, then all of the second.
        let (mut a, mut b) = (case.cache(), case.cache());
        let (heads, rotary) = (Heads { count: 3, dim: 80, layer: 0 }, case.rotary());
        let mut scratch = Vec::new();
        let mut out = vec![0.0; 7 * hidden];
        let spans = [Span { first_row: 0, rows: 7, position: 0 }];
        let qkv = &first[..7 * 3 * hidden];
        attention(
            kernels,
            &pool,
            &heads,
            &rotary,
            qkv,
            &spans,
            &mut [&mut a],
            &mut out,
            &mut scratch,
        )
        .unwrap();
        let mut qkv = first[7 * 3 * hidden..].to_vec();
        qkv.extend(&second);
        let mut out = vec![0.0; 17 * hidden];
        let spans = [
            Span { first_row: 0, rows: 5, position: 7 },
            Span { first_row: 5, rows: 12, position: 0 },
        ];
        let caches = &mut [&mut a, &mut b];
        attention(kernels, &pool, &heads, &rotary, &qkv, &spans, caches, &mut out, &mut scratch)
            .unwrap();
        assert!(bits(&out[..5 * hidden]) == alone[0][7 * hidden..]);
        assert!(bits(&out[5 * hidden..]) == alone[1]);
    }
}

#[test]
fn special_numbers_reach_later_rows_of_their_head_only() {
    let (tokens, at) = if cfg!(miri) { (6, 3) } else { (40, 21) };
    let case = Case { heads: 2, dim: 24, half: 4, tokens };
    let (pool, hidden) = (pool(1), 48);
    for kernels in sets() {
        let clean = case.run(kernels, &pool, &case.qkv(9), tokens);
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // Query, key, value of head 1 at one position.
            for which in 0..3 {
                let mut qkv = case.qkv(9);
                qkv[at * 3 * hidden + (3 + which) * 24 + 5] = special;
                for chunk in [1, 7, tokens] {
                    let found = case.run(kernels, &pool, &qkv, chunk);
                    for (i, (found, clean)) in found.iter().zip(&clean).enumerate() {
                        let (row, head) = (i / hidden, i % hidden / 24);
                        let untouched = head == 0 || row < at || which == 0 && row > at;
                        if untouched {
                            assert_eq!(found.to_bits(), clean.to_bits(), "{which} {special} {i}");
                        } else if special.is_nan() && (which < 2 || i % 24 == 5) {
                            assert!(found.is_nan(), "{which} {i}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let case = Case { heads: 2, dim: 16, half: 4, tokens: 8 };
    let kernels = sets()[0];
    let (pool, rotary) = (pool(1), case.rotary());
    let attempt = |spans: &[Span], layer: usize, qkv_rows: usize| {
        let mut cache = case.cache();
        let mut other = case.cache();
        let mut caches = [&mut cache, &mut other];
        let qkv = vec![0.0; qkv_rows * 96];
        let mut out = vec![0.0; 4 * 32];
        let heads = Heads { count: 2, dim: 16, layer };
        let caches = &mut caches[..spans.len()];
        attention(kernels, &pool, &heads, &rotary, &qkv, spans, caches, &mut out, &mut Vec::new())
    };
    let span = |first_row, rows, position| Span { first_row, rows, position };
    assert!(attempt(&[span(0, 4, 4)], 1, 4).is_ok());
    assert!(attempt(&[span(0, 2, 0), span(2, 2, 0)], 1, 4).is_ok());
    assert!(attempt(&[span(0, 4, 5)], 1, 4).is_err(), "beyond the cache");
    assert!(attempt(&[span(0, 4, usize::MAX)], 1, 4).is_err(), "beyond any cache");
    assert!(attempt(&[span(1, 4, 0)], 1, 4).is_err(), "beyond the rows");
    assert!(attempt(&[span(0, 3, 0), span(2, 2, 0)], 1, 4).is_err(), "overlapping rows");
    assert!(attempt(&[span(0, 4, 0)], 2, 4).is_err(), "no such layer");
    assert!(attempt(&[span(0, 4, 0)], 1, 3).is_err(), "too few rows of qkv");
}
