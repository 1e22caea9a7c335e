//! Attention: values against f64, invariance over chunks, batches and threads.

use half::{bf16, f16};

use super::{Numbers, bits, pool, sets, sizes};
use crate::backend::{CacheFormat, RotaryTable, Span};
use crate::kernels::attention::{AttentionScratch, Heads, KvCache, attention};
use crate::kernels::pool::Pool;
use crate::kernels::table::Kernels;

#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    dim: usize,
    half: usize,
    tokens: usize,
}

impl Case {
    /// No rotation: what is written to the cache is what was passed in.
    fn still(&self) -> RotaryTable {
        let count = self.tokens * self.half;
        let (cos, sin) = (vec![1.0; count], vec![0.0; count]);
        RotaryTable { cos, sin, half: self.half, positions: self.tokens }
    }

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

    fn cache(&self, format: CacheFormat) -> KvCache {
        KvCache::new(2, self.heads, self.dim, self.tokens, format).unwrap()
    }

    /// The whole sequence in chunks of the given size, with a cache in f32.
    fn run(&self, kernels: Kernels, pool: &Pool, qkv: &[f32], chunk: usize) -> Vec<f32> {
        self.run_with(kernels, pool, qkv, chunk, CacheFormat::F32, &self.rotary())
    }

    fn run_with(
        &self,
        kernels: Kernels,
        pool: &Pool,
        qkv: &[f32],
        chunk: usize,
        format: CacheFormat,
        rotary: &RotaryTable,
    ) -> Vec<f32> {
        let hidden = self.heads * self.dim;
        let heads = Heads { count: self.heads, dim: self.dim, layer: 1 };
        let (mut cache, mut all) = (self.cache(format), Vec::new());
        let mut scratch = AttentionScratch::default();
        for start in (0..self.tokens).step_by(chunk) {
            let rows = chunk.min(self.tokens - start);
            let part = &qkv[start * 3 * hidden..(start + rows) * 3 * hidden];
            let mut out = vec![f32::NAN; rows * hidden];
            let spans = [Span { first_row: 0, rows, position: start }];
            let caches = std::iter::once(&mut cache);
            attention(kernels, pool, &heads, rotary, part, &spans, caches, &mut out, &mut scratch)
                .unwrap();
            all.extend(out);
        }
        all
    }

    fn reference(&self, qkv: &[f32], rotary: &RotaryTable) -> Vec<f64> {
        let hidden = self.heads * self.dim;
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
        // More than two blocks of 256 positions.
        Case { heads: 1, dim: 24, half: 4, tokens: 530 },
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
            for (i, (found, expected)) in
                found.iter().zip(case.reference(&qkv, &case.rotary())).enumerate()
            {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 4e-6, "{} {}: {found} {expected} {i}", kernels.name(), case.dim);
            }
        }
    }
}

/// Keys and values that a format holds exactly: as good as f32.
#[test]
fn formats_lose_nothing_where_nothing_is_rounded() {
    let pool = pool(2);
    for case in CASES {
        let rotary = case.still();
        let mut halves = case.qkv(8);
        halves.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        // Integers of at most 127 with a 127 in each key and value: the scale is a power of two.
        let mut integers = case.qkv(8);
        for row in integers.chunks_exact_mut(case.dim) {
            row.iter_mut().for_each(|x| *x = (*x * 40.0).round().clamp(-126.0, 126.0) / 64.0);
            row[row.len() / 2] = 127.0 / 64.0;
        }
        let mut shorts = case.qkv(8);
        shorts.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        for (format, qkv) in
            [(CacheFormat::F16, halves), (CacheFormat::Bf16, shorts), (CacheFormat::Q8_0, integers)]
        {
            // Those that multiply bf16 round the queries and the softmax too.
            let rounds = |k: &Kernels| format == CacheFormat::Bf16 && k.multiplies_bf16();
            for kernels in sets().into_iter().filter(|k| !rounds(k)) {
                let found = case.run_with(kernels, &pool, &qkv, 7, format, &rotary);
                for (found, expected) in found.iter().zip(case.reference(&qkv, &rotary)) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error < 4e-6, "{format} {} {}: {found}", kernels.name(), case.dim);
                }
            }
        }
    }
}

/// What rounding may cost: keys and values of a few units, off by 2^-12, 2^-9 or 1/254 of the largest.
#[test]
fn formats_round_as_stated() {
    let pool = pool(2);
    for case in CASES {
        let qkv = case.qkv(8);
        let exact = case.reference(&qkv, &case.rotary());
        for (format, bound) in
            [(CacheFormat::F16, 3e-3), (CacheFormat::Bf16, 2.4e-2), (CacheFormat::Q8_0, 5e-2)]
        {
            for kernels in sets() {
                let rotary = case.rotary();
                let found = case.run_with(kernels, &pool, &qkv, 64, format, &rotary);
                let errors = found.iter().zip(&exact).map(|(x, y)| (f64::from(*x) - y).abs());
                let largest = errors.fold(0.0, f64::max);
                assert!(largest < bound, "{format} {} {}: {largest}", kernels.name(), case.dim);
            }
        }
    }
}

/// Finite values beyond the largest f16 stay finite; others stay what they are.
#[test]
fn large_values_do_not_become_infinite() {
    let case = Case { heads: 1, dim: 16, half: 4, tokens: 3 };
    for kernels in sets() {
        for (value, finite) in [(1e9, true), (-3e38, true), (f32::INFINITY, false)] {
            let mut qkv = case.qkv(2);
            qkv[32 + 3] = value;
            let still = case.still();
            let found = case.run_with(kernels, &pool(1), &qkv, 3, CacheFormat::F16, &still);
            assert_eq!(found.iter().all(|x| x.is_finite()), finite, "{value}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_neighbours() {
    for kernels in sets() {
        for case in CASES {
            let (qkv, rotary) = (case.qkv(5), case.rotary());
            for format in CacheFormat::ALL {
                let run = |threads, chunk| {
                    let pool = pool(threads);
                    bits(&case.run_with(kernels, &pool, &qkv, chunk, format, &rotary))
                };
                let whole = run(1, case.tokens);
                const SPLITS: &[(usize, usize)] =
                    &[(1, 1), (2, 2), (1, 3), (3, 5), (2, 6), (3, 16), (1, 17), (2, 257)];
                for &(threads, chunk) in sizes(SPLITS, &[(2, 1), (1, 7)]) {
                    assert!(
                        run(threads, chunk) == whole,
                        "{} {} {chunk}",
                        kernels.name(),
                        case.dim
                    );
                }
            }
        }
    }
}

/// Rows copied to another place of another cache serve as if they had been computed there.
#[test]
fn copied_rows_are_the_rows() {
    let case = Case { heads: 2, dim: 20, half: 4, tokens: 70 };
    let heads = Heads { count: 2, dim: 20, layer: 0 };
    let (qkv, rotary, kernels) = (case.qkv(4), case.rotary(), sets()[0]);
    let run = |cache: &mut KvCache, rows: std::ops::Range<usize>| {
        let part = &qkv[rows.start * 120..rows.end * 120];
        let mut out = vec![f32::NAN; rows.len() * 40];
        let spans = [Span { first_row: 0, rows: rows.len(), position: rows.start }];
        let caches = std::iter::once(cache);
        attention(
            kernels,
            &pool(1),
            &heads,
            &rotary,
            part,
            &spans,
            caches,
            &mut out,
            &mut AttentionScratch::default(),
        )
        .unwrap();
        bits(&out)
    };
    for format in CacheFormat::ALL {
        let mut whole = case.cache(format);
        run(&mut whole, 0..65);
        let expected = run(&mut whole, 65..70);
        for first in [0, 1, 16, 33, 64] {
            // By way of a cache where the rows lie elsewhere.
            let mut between = KvCache::new(2, 2, 20, 65 - first + 3, format).unwrap();
            between.copy_from(3, &whole, first, 65 - first).unwrap();
            let mut copy = case.cache(format);
            copy.copy_from(0, &whole, 0, first).unwrap();
            copy.copy_from(first, &between, 3, 65 - first).unwrap();
            assert!(run(&mut copy, 65..70) == expected, "{format} {first}");
            assert!(copy.copy_from(60, &between, 3, 11).is_err(), "beyond the end");
        }
        let other = if format == CacheFormat::F32 { CacheFormat::F16 } else { CacheFormat::F32 };
        assert!(whole.copy_from(0, &case.cache(other), 0, 1).is_err(), "of another format");
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
        let (mut a, mut b) = (case.cache(CacheFormat::F32), case.cache(CacheFormat::F32));
        let (heads, rotary) = (Heads { count: 3, dim: 80, layer: 0 }, case.rotary());
        let mut scratch = AttentionScratch::default();
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
            std::iter::once(&mut a),
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
        let caches = [&mut a, &mut b].into_iter();
        attention(kernels, &pool, &heads, &rotary, &qkv, &spans, caches, &mut out, &mut scratch)
            .unwrap();
        assert!(bits(&out[..5 * hidden]) == alone[0][7 * hidden..]);
        assert!(bits(&out[5 * hidden..]) == alone[1]);
    }
}

#[test]
fn special_numbers_reach_later_rows_of_their_head_only() {
    // The first and the second of a pair of positions.
    let (tokens, places) = if cfg!(miri) { (6, [2, 3]) } else { (40, [20, 21]) };
    let case = Case { heads: 2, dim: 24, half: 4, tokens };
    for (kernels, format) in sets().into_iter().flat_map(|k| CacheFormat::ALL.map(|f| (k, f))) {
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            places.iter().for_each(|&at| special_number_at(case, kernels, format, special, at));
        }
    }
}

fn special_number_at(case: Case, kernels: Kernels, format: CacheFormat, special: f32, at: usize) {
    let (pool, hidden, rotary) = (pool(1), 48, case.rotary());
    let run = |qkv: &[f32], chunk| case.run_with(kernels, &pool, qkv, chunk, format, &rotary);
    let clean = run(&case.qkv(9), case.tokens);
    // Query, key, value of head 1 at one position.
    for which in 0..3 {
        let mut qkv = case.qkv(9);
        qkv[at * 3 * hidden + (3 + which) * 24 + 5] = special;
        for chunk in [1, 7, case.tokens] {
            for (i, (found, clean)) in run(&qkv, chunk).iter().zip(&clean).enumerate() {
                let (row, head) = (i / hidden, i % hidden / 24);
                let untouched = head == 0 || row < at || which == 0 && row > at;
                if untouched {
                    assert_eq!(found.to_bits(), clean.to_bits(), "{format} {which} {special} {i}");
                } else if special.is_nan() && (which < 2 || i % 24 == 5) {
                    assert!(found.is_nan(), "{format} {which} {i}");
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
        let mut cache = case.cache(CacheFormat::F16);
        let mut other = case.cache(CacheFormat::F16);
        let mut caches = [&mut cache, &mut other];
        let qkv = vec![0.0; qkv_rows * 96];
        let mut out = vec![0.0; 4 * 32];
        let heads = Heads { count: 2, dim: 16, layer };
        let caches = caches.iter_mut().map(|cache| &mut **cache).take(spans.len());
        attention(
            kernels,
            &pool,
            &heads,
            &rotary,
            &qkv,
            spans,
            caches,
            &mut out,
            &mut AttentionScratch::default(),
        )
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
