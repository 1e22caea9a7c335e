use candle_core::{DType, Device, Tensor};

use super::*;
use crate::GenerateOptions;
use crate::generate::sampler::Sampler;

/// SplitMix64 (Steele et al., 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal, of deviation 2.
    fn logit(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        (2.0 * (sum - 6.0)) as f32
    }
}

/// Rows of one length: without pattern, with many equal values, with some or most impossible.
fn rows(width: usize) -> Vec<Vec<f32>> {
    let mut numbers = Numbers(width as u64);
    let plain: Vec<f32> = (0..width).map(|_| numbers.logit()).collect();
    let coarse = |step: f32| plain.iter().map(|x| (x / step).round() * step).collect::<Vec<_>>();
    let level = vec![1.5; width];
    let mut banned = plain.clone();
    banned.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
    let mut few = vec![f32::NEG_INFINITY; width];
    few[width / 2] = -3.0;
    few[width - 1] = -3.0;
    let zeros = plain.iter().map(|x| if *x > 0.0 { -0.0 } else { 0.0 }).collect();
    vec![coarse(0.25), coarse(4.0), plain, level, banned, few, zeros]
}

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    let (count, width) = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), (count, width), &Device::Cpu).unwrap()
}

fn find(x: &Tensor, count: usize) -> Largest {
    let width = x.dim(1).unwrap();
    assert!(can_find(count, width));
    largest(x, &columns(width, &Device::Cpu).unwrap(), count).unwrap()
}

const WIDTHS: [usize; 8] = [1, 5, 72, 2047, 2048, 2049, 9000, 50_280];

#[test]
fn values_are_the_largest_and_columns_theirs() {
    for width in WIDTHS {
        let rows = rows(width);
        for count in [1, 2, 50, 256] {
            let found = find(&tensor(&rows), count);
            for (index, row) in rows.iter().enumerate() {
                let sum: f32 = row.iter().sum();
                let Some(few) = found.row(index) else {
                    assert!(!sum.is_finite(), "{width}, row {index}");
                    continue;
                };
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                assert!(few.pairs.len() >= count.min(width));
                assert_eq!(few.complete, few.pairs.len() == width);
                for ((id, value), expected) in few.pairs.iter().zip(sorted) {
                    assert_eq!(*value, expected, "{width}, row {index}");
                    assert_eq!(*value, row[*id as usize], "{width}, row {index}");
                }
                let mut ids: Vec<u32> = few.pairs.iter().map(|pair| pair.0).collect();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), few.pairs.len(), "{width}, row {index}: a column twice");
            }
        }
    }
}

/// Options of which a few logits may decide.
fn choices() -> Vec<GenerateOptions> {
    let drawn = |top_k| GenerateOptions { top_k, top_p: 1.0, ..Default::default() };
    vec![
        GenerateOptions::greedy(),
        GenerateOptions { temperature: 1e-6, ..drawn(7) },
        drawn(1),
        drawn(3),
        drawn(50),
        GenerateOptions { top_p: 0.92, ..drawn(50) },
        GenerateOptions { temperature: 0.3, top_p: 0.8, ..drawn(40) },
        GenerateOptions { temperature: 1.7, min_p: 0.05, ..drawn(256) },
        GenerateOptions { typical_p: 0.7, ..drawn(20) },
        // Quotients that overflow, and some that become equal.
        GenerateOptions { temperature: 2e-5, ..drawn(4) },
    ]
}

#[test]
fn choices_are_those_of_whole_rows() {
    let mut decided = 0;
    for width in WIDTHS {
        let rows = rows(width);
        for (number, options) in choices().iter().enumerate() {
            let new = || Sampler::new(options, 11, width).unwrap();
            let (mut whole, mut short) = (new(), new());
            let Some(needed) = short.needed() else { continue };
            // Alone, and beside others that need more.
            for asked in [needed, needed + 60] {
                let found = find(&tensor(&rows), asked);
                let possible = |row: &[f32]| row.iter().any(|x| x.is_finite());
                for (index, row) in rows.iter().enumerate().filter(|(_, row)| possible(row)) {
                    let few = found.row(index).filter(|few| short.decides(*few));
                    let expected = whole.pick(row, &[], &[]).unwrap();
                    let picked = match few {
                        Some(few) => {
                            decided += 1;
                            short.pick_of_few(few).unwrap()
                        }
                        None => short.pick(row, &[], &[]).unwrap(),
                    };
                    assert_eq!(picked, expected, "width {width}, row {index}, choice {number}");
                }
            }
        }
    }
    assert!(decided > 300, "only {decided} choices were made of a few logits");
}

#[test]
fn of_equals_the_first_is_chosen() {
    for width in [72, 2049, 50_280] {
        let mut row = vec![-1.0; width];
        for id in [width - 1, width / 2, width / 3] {
            row[id] = 2.0;
        }
        let mut greedy = Sampler::new(&GenerateOptions::greedy(), 1, width).unwrap();
        let found = find(&tensor(&[row.clone()]), greedy.needed().unwrap());
        let few = found.row(0).unwrap();
        assert!(greedy.decides(few));
        assert_eq!(few.pairs, [((width / 3) as u32, 2.0)]);
        assert_eq!(greedy.pick_of_few(few).unwrap().id as usize, width / 3);
        // All are equal: no few of them decide which k there are, one alone does.
        let level = tensor(&[vec![0.5; width]]);
        assert_eq!(greedy.pick_of_few(find(&level, 1).row(0).unwrap()).unwrap().id, 0);
        let options = GenerateOptions { top_k: 2, ..Default::default() };
        let drawn = Sampler::new(&options, 1, width).unwrap();
        let few = find(&level, 2);
        assert_eq!(drawn.decides(few.row(0).unwrap()), few.row(0).unwrap().complete);
    }
}

#[test]
fn rows_with_nan_or_infinity_are_left_to_the_host() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
        for width in [5, 2048, 5000] {
            for at in [0, width / 2, width - 1] {
                let mut row = rows(width).remove(0);
                row[at] = bad;
                let good = rows(width).remove(0);
                for count in [1, 40] {
                    let found = find(&tensor(&[good.clone(), row.clone()]), count);
                    assert!(found.row(0).is_some() && found.row(1).is_none(), "{bad} at {at}");
                }
            }
        }
    }
    // Infinity and its opposite cancel out to NaN.
    let found = find(&tensor(&[vec![f32::INFINITY, f32::NEG_INFINITY, 0.0]]), 1);
    assert!(found.row(0).is_none());
}

#[test]
fn halves_are_compared_as_the_floats_they_are() {
    let rows = rows(3000);
    for dtype in [DType::F16, DType::BF16] {
        let x = tensor(&rows).to_dtype(dtype).unwrap();
        let wide = x.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        let options = GenerateOptions { top_k: 30, ..Default::default() };
        for options in [options, GenerateOptions::greedy()] {
            let new = || Sampler::new(&options, 3, 3000).unwrap();
            let (mut whole, mut short) = (new(), new());
            let found = find(&x, short.needed().unwrap());
            let few = found.row(2).filter(|few| short.decides(*few)).unwrap();
            let expected = whole.pick(&wide[2], &[], &[]).unwrap();
            assert_eq!(short.pick_of_few(few).unwrap(), expected);
        }
    }
}

#[test]
fn what_no_device_finds_is_said_beforehand() {
    assert!(can_find(1, 50_280) && can_find(256, MOST_COLUMNS));
    assert!(!can_find(0, 5) && !can_find(PIECE, 50_280) && !can_find(1, MOST_COLUMNS + 1));
}
