//! Layer norm, sums and rounding of rows, at every kind of length and alignment.

use super::{Numbers, bits, sets, sizes};
use crate::kernels::quant::BlockSum;

const LENGTHS: &[usize] =
    sizes(&[0, 1, 2, 15, 16, 17, 31, 33, 127, 1023, 2560, 5121], &[0, 1, 15, 16, 17, 33, 127]);

/// Budget: 4 ulp of the largest normalised value, about 6, plus the mean's error.
#[test]
fn layer_norm_matches_f64() {
    for kernels in sets() {
        for &len in LENGTHS {
            for (shift, offset) in [(0, 0.0), (1, 3.0), (3, -100.0)] {
                let mut numbers = Numbers(len as u64);
                let mut data = |offset: f32| -> Vec<f32> {
                    numbers.normals(len + shift).iter().map(|x| x + offset).collect()
                };
                let (x, w, b) = (data(offset), data(1.0), data(0.0));
                // Slices that start off any boundary.
                let (x, w, b) = (&x[shift..], &w[shift..], &b[shift..]);
                let mut out = vec![f32::NAN; len + shift];
                kernels.layer_norm(x, w, b, 1e-5, &mut out[shift..]);
                let (mut first, mut second) = (vec![0.0; len], vec![0.0; len]);
                let halved: Vec<f32> = w.iter().map(|w| w / 2.0).collect();
                let both = ((w, b), (&halved[..], b));
                kernels.layer_norm_pair(x, both, 1e-5, (&mut first, &mut second));
                assert!(bits(&first) == bits(&out[shift..]));
                kernels.layer_norm(x, &halved, b, 1e-5, &mut first);
                assert!(bits(&first) == bits(&second));
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / len as f64;
                let variance =
                    x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / len as f64;
                let eps = f64::from(1e-5_f32);
                for i in 0..len {
                    let unit = (f64::from(x[i]) - mean) / (variance + eps).sqrt();
                    let expected = unit * f64::from(w[i]) + f64::from(b[i]);
                    // The mean errs in proportion to the values, divided by their spread.
                    let spread = (variance + eps).sqrt();
                    let scale = f64::from(w[i]).abs() * (1.0 + f64::from(offset.abs()) / spread);
                    let budget = 1e-6 * (scale + expected.abs() + 1.0);
                    let found = f64::from(out[shift + i]);
                    assert!(
                        (found - expected).abs() < budget,
                        "{} {len} {offset} [{i}]: {found} is not {expected}",
                        kernels.name()
                    );
                }
            }
        }
    }
}

#[test]
fn layer_norm_spreads_special_numbers_over_their_row() {
    for kernels in sets() {
        for len in [1, 16, 33] {
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; len];
                x[len - 1] = special;
                let mut out = vec![0.0; len];
                kernels.layer_norm(&x, &vec![1.0; len], &vec![0.0; len], 1e-5, &mut out);
                assert!(out.iter().all(|y| y.is_nan()), "{} {len} {special}", kernels.name());
            }
        }
    }
}

#[test]
fn sums_are_exact() {
    for kernels in sets() {
        for &len in LENGTHS {
            for shift in [0, 1, 5] {
                let (x, y) = (Numbers(1).normals(len + shift), Numbers(2).normals(len + shift));
                let mut sum = x.clone();
                kernels.add(&mut sum[shift..], &y[shift..]);
                for i in shift..len + shift {
                    assert_eq!(sum[i], x[i] + y[i], "{} {len}", kernels.name());
                }
            }
        }
    }
}

/// Half a step of the block's scale, a power of two: quotient and product are exact.
#[test]
fn rounding_to_integers_keeps_half_a_step() {
    for kernels in sets() {
        for &len in LENGTHS {
            let x: Vec<f32> = Numbers(4).normals(len).iter().map(|x| x * 3.0).collect();
            let blocks = len.div_ceil(32);
            let (mut q, mut d) = (vec![1; blocks * 32], vec![0.0; blocks]);
            let mut s = vec![BlockSum::default(); blocks];
            assert_eq!(kernels.quantize_row(&x, &mut q, &mut d, &mut s, 1), 0.0);
            for (i, q) in q.iter().enumerate() {
                let (x, d) = (x.get(i).copied().unwrap_or(0.0), d[i / 32]);
                assert!((f32::from(*q) * d - x).abs() <= 0.5 * d);
            }
        }
    }
}

#[test]
fn rounding_of_special_blocks() {
    for kernels in sets() {
        for (value, scale, integer, begin) in [
            (0.0, 1.0, 0, 0.0),
            (1e-38, 1.0, 0, 0.0),
            (f32::MIN_POSITIVE / 4.0, 1.0, 0, 0.0),
            (127.0, 1.0, 127, 0.0),
            (-63.5, 0.5, -127, 0.0),
            (127.001, 2.0, 64, 0.0),
            (2.0_f32.powi(116), 2.0_f32.powi(110), 64, 0.0),
            (f32::MAX, 1.0, 0, f32::NAN),
            (f32::NAN, 1.0, 0, f32::NAN),
            (-f32::NAN, 1.0, 0, f32::NAN),
            (f32::INFINITY, 1.0, 0, f32::NAN),
            (f32::NEG_INFINITY, 1.0, 0, f32::NAN),
        ] {
            // A block of ones on each side, which a special one does not touch.
            let mut x = [1.0; 96];
            x[32..64].fill(value);
            x[35] = 0.0;
            let (mut q, mut d, mut s) = ([1; 96], [0.0; 3], [BlockSum { first: 1, last: 1 }; 3]);
            let found = kernels.quantize_row(&x, &mut q, &mut d, &mut s, 1);
            assert_eq!(found.to_bits() & 0x7fff_ffff, begin.to_bits(), "{value}");
            let one = 1.0 / 64.0;
            assert_eq!(d, [one, scale, one], "{value}");
            assert_eq!((q[0], q[32], q[35], q[64]), (64, integer, 0, 64), "{value}");
            // x[35] is none of the first.
            let (all, sum) = (i16::from(integer), s[1]);
            assert_eq!((sum.first, sum.last), (16 * all, 15 * all), "{value}");
        }
    }
}
