//! The backward pass's row kernels against f64 formulas and finite differences of those.

use super::{Numbers, sets, sizes};
use crate::model::Activation;

const LENGTHS: &[usize] = sizes(&[1, 2, 15, 16, 17, 33, 127, 768, 1023], &[1, 2, 15, 16, 17, 33]);

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// A layer norm in f64, weighted sum of its outputs: a function whose gradient is sought.
fn normed_sum(x: &[f64], w: &[f64], b: &[f64], eps: f64, dy: &[f64]) -> f64 {
    let count = x.len() as f64;
    let mean = x.iter().sum::<f64>() / count;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let scale = 1.0 / (variance + eps).sqrt();
    (0..x.len()).map(|i| ((x[i] - mean) * scale * w[i] + b[i]) * dy[i]).sum()
}

/// Budget: central differences in f64 are good to 1e-9, the kernel to f32's rounding.
#[test]
fn layer_norm_gradients_match_finite_differences() {
    for kernels in sets() {
        for &len in LENGTHS.iter().filter(|len| **len > 1) {
            let mut numbers = Numbers(len as u64);
            let mut x = numbers.normals(len);
            x.iter_mut().for_each(|x| *x = 2.0 * *x + 0.5);
            let (w, b, dy) = (numbers.normals(len), numbers.normals(len), numbers.normals(len));
            let start = numbers.normals(len);
            let (mut dx, mut dw, mut db) = (start.clone(), start.clone(), start.clone());
            let statistics = kernels.layer_norm_backward(&x, &w, 1e-5, &dy, &mut dx);
            kernels.layer_norm_weights(&x, &dy, statistics, &mut dw, &mut db);
            let (x, w, b, dy) = (wide(&x), wide(&w), wide(&b), wide(&dy));
            let slope = |f: &dyn Fn(f64) -> f64| (f(1e-4) - f(-1e-4)) / 2e-4;
            for i in 0..len.min(40) {
                let moved = |v: &[f64], by: f64| {
                    let mut v = v.to_vec();
                    v[i] += by;
                    v
                };
                let eps = f64::from(1e-5_f32);
                let expected = [
                    slope(&|by| normed_sum(&moved(&x, by), &w, &b, eps, &dy)),
                    slope(&|by| normed_sum(&x, &moved(&w, by), &b, eps, &dy)),
                    slope(&|by| normed_sum(&x, &w, &moved(&b, by), eps, &dy)),
                ];
                for (found, expected) in [dx[i], dw[i], db[i]].into_iter().zip(expected) {
                    let found = f64::from(found) - f64::from(start[i]);
                    let budget = 2e-5 * (1.0 + expected.abs());
                    assert!((found - expected).abs() < budget, "{len} [{i}]: {found} {expected}");
                }
            }
        }
    }
}

fn activation(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Gelu => x / 2.0 * libm::erfc(-x / 2.0_f64.sqrt()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            x / 2.0 * (1.0 + u.tanh())
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * sigmoid(x),
    }
}

#[test]
fn activation_slopes_match_finite_differences() {
    let all = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
    ];
    for kernels in sets() {
        for act in all {
            let steps = (-1200..=1200).step_by(if cfg!(miri) { 50 } else { 1 });
            let x: Vec<f32> = steps.map(|i| i as f32 * 0.01 + 0.003).collect();
            let mut d = vec![2.0; x.len()];
            kernels.activation_backward(act, &x, &mut d);
            let mut y = vec![0.0; x.len()];
            kernels.activate(act, &x, &mut y);
            for i in 0..x.len() {
                let at = f64::from(x[i]);
                let h = 1e-4;
                let slope = (activation(act, at + h) - activation(act, at - h)) / (2.0 * h);
                assert!((f64::from(d[i]) - 2.0 * slope).abs() < 6e-6, "{act:?} {at}: {}", d[i]);
                assert!((f64::from(y[i]) - activation(act, at)).abs() < 2e-6, "{act:?} {at}");
            }
            let mut special = [1.0; 3];
            kernels.activation_backward(act, &[f32::NAN, 80.0, -80.0], &mut special);
            assert!(special[0].is_nan() || act == Activation::Relu);
            assert!((special[1] - 1.0).abs() < 1e-6 && special[2].abs() < 1e-6, "{act:?}");
        }
    }
}

#[test]
fn softmax_parts_match_f64() {
    for kernels in sets() {
        for &len in LENGTHS {
            let mut numbers = Numbers(len as u64 + 9);
            let x: Vec<f32> = numbers.normals(len).iter().map(|x| 4.0 * x).collect();
            let (d, scale) = (numbers.normals(len), 0.125_f32);
            let most = kernels.max(&x);
            assert_eq!(most, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut p = x.clone();
            let sum = kernels.exp_minus(scale, most * scale, &mut p);
            let exact: Vec<f64> = x
                .iter()
                .map(|x| (f64::from(scale) * (f64::from(*x) - f64::from(most))).exp())
                .collect();
            let total: f64 = exact.iter().sum();
            assert!((f64::from(sum) - total).abs() < 1e-6 * total);
            kernels.scale(1.0 / sum, &mut p);
            let dot = kernels.dot(&p, &d);
            let exact_dot: f64 = (0..len).map(|i| exact[i] / total * f64::from(d[i])).sum();
            assert!((f64::from(dot) - exact_dot).abs() < 2e-6);
            let mut dx = d.clone();
            kernels.softmax_backward(&p, dot, scale, &mut dx);
            for i in 0..len {
                let p = exact[i] / total;
                let expected = p * (f64::from(d[i]) - exact_dot) * f64::from(scale);
                assert!((f64::from(dx[i]) - expected).abs() < 1e-6);
            }
        }
        assert_eq!(kernels.max(&[]), f32::NEG_INFINITY);
    }
}
