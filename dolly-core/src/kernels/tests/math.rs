//! Functions of one number, against f64: the largest error in units in the last place.

use super::sets;
use crate::kernels::LANES;
use crate::kernels::linear::Epilogue;
use crate::kernels::math::exp;
use crate::kernels::portable::Portable;
use crate::kernels::rows::Sums;
use crate::kernels::table::Kernels;
use crate::kernels::vector::Vector;
use crate::model::Activation;

/// `f` on whole groups of sixteen, with the lanes of the given set.
fn exp_of(kernels: Kernels, x: &mut [f32]) {
    /// # Safety
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn all<V: Vector>(x: &mut [f32]) {
        for group in x.as_chunks_mut::<LANES>().0 {
            // SAFETY: the caller proves the instructions; a group is sixteen floats.
            unsafe { exp(V::load(group.as_ptr())).store(group.as_mut_ptr()) };
        }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2(x: &mut [f32]) {
        // SAFETY: the features are this function's.
        unsafe { all::<crate::kernels::avx2::Avx2>(x) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn avx512(x: &mut [f32]) {
        // SAFETY: the features are this function's.
        unsafe { all::<crate::kernels::avx512::Avx512>(x) }
    }
    match kernels.name() {
        // SAFETY: every CPU runs plain Rust.
        "portable" => unsafe { all::<Portable>(x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `sets` hands out what the CPU has.
        "avx2" => unsafe { avx2(x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "avx512" | "avx512vnni" | "avx512bf16" => unsafe { avx512(x) },
        name => panic!("{name} has no test of its exponential"),
    }
}

fn activation_of(kernels: Kernels, activation: Activation, x: &mut [f32]) {
    let epilogue = Epilogue { activation: Some(activation), add: false };
    for group in x.as_chunks_mut::<LANES>().0 {
        let input = *group;
        // SAFETY: `sets` hands out what the CPU has.
        unsafe {
            (kernels.table().finish)(&Sums {
                acc: &input,
                rows: 1,
                together: 1,
                bias: &[[0.0; LANES]],
                epilogue,
                out: group.as_mut_ptr(),
                columns: LANES,
                stride: LANES,
            });
        }
    }
}

/// Distance in spacings of f32 at the expected value, subnormal spacing at least.
fn ulps(found: f32, expected: f64) -> f64 {
    let magnitude = (expected.abs() as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
    let spacing = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
    (f64::from(found) - expected).abs() / spacing
}

/// Dense on both sides of every power of two between 2^-20 and `limit`, in whole groups.
fn samples(limit: f32) -> Vec<f32> {
    let mut x = Vec::new();
    let mut at = 1e-6_f32;
    while at < limit {
        x.extend([at, -at]);
        at *= if cfg!(miri) { 1.05 } else { 1.000_01 };
    }
    x.extend([0.0; 64]);
    x.truncate(x.len() / LANES * LANES);
    x
}

#[test]
fn exp_is_good_to_two_ulp() {
    for kernels in sets() {
        let x = samples(88.7);
        let mut y = x.clone();
        exp_of(kernels, &mut y);
        let worst = x
            .iter()
            .zip(&y)
            .filter(|(x, _)| **x > -87.3)
            .map(|(x, y)| ulps(*y, f64::from(*x).exp()))
            .fold(0.0, f64::max);
        eprintln!("{}: exp errs by {worst:.3} ulp", kernels.name());
        assert!(worst < 2.0, "{}: {worst}", kernels.name());
    }
}

#[test]
fn exp_of_special_numbers() {
    for kernels in sets() {
        let mut y = [0.0; LANES];
        let x =
            [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -0.0, -1e30, 1e30, -95.0, -103.0, 88.8];
        y[..x.len()].copy_from_slice(&x);
        exp_of(kernels, &mut y);
        assert_eq!(&y[..2], &[0.0, f32::INFINITY]);
        assert!(y[2].is_nan());
        assert_eq!(&y[3..6], &[1.0, 0.0, f32::INFINITY]);
        // Subnormal results: within a spacing.
        for (y, x) in [(y[6], -95.0_f64), (y[7], -103.0)] {
            assert!(ulps(y, x.exp()) <= 1.0, "{x}: {y}");
        }
        assert_eq!(y[8], f32::INFINITY);
    }
}

/// The definitions, without cancellation.
fn expected(activation: Activation, x: f64) -> f64 {
    let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Gelu => x * libm::erfc(-x / std::f64::consts::SQRT_2) / 2.0,
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x * logistic(2.0 * u)
        }
        Activation::QuickGelu => x * logistic(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x * logistic(x),
    }
}

const ACTIVATIONS: [Activation; 5] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::QuickGelu,
    Activation::Relu,
    Activation::Silu,
];

/// Budget: 6 ulp from -1 up. Below, the functions decay as the exponential of x² (GELU) or of x,
/// which multiplies the rounding of that argument: 8 ulp for each unit of it. Results that nothing
/// beside any activation can notice are held to 1e-12 instead.
#[test]
fn activations_match_f64() {
    for kernels in sets() {
        for activation in ACTIVATIONS {
            let x = samples(30.0);
            let mut y = x.clone();
            activation_of(kernels, activation, &mut y);
            let mut worst: f64 = 0.0;
            for (x, y) in x.iter().zip(&y) {
                let expected = expected(activation, f64::from(*x));
                let error = ulps(*y, expected);
                let steep = match activation {
                    Activation::Gelu | Activation::GeluTanh => f64::from(*x).powi(2).max(1.0),
                    _ => 2.0 * f64::from(x.abs()).max(0.5),
                };
                let budget = if *x < -1.0 { 8.0 * steep } else { 6.0 };
                worst = worst.max(if *x > -1.0 { error } else { 0.0 });
                assert!(
                    error < budget || (f64::from(*y) - expected).abs() < 1e-12,
                    "{} {activation:?}({x}) = {y}, not {expected}: {error} ulp",
                    kernels.name()
                );
            }
            eprintln!("{}: {activation:?} errs by {worst:.3} ulp from -1 up", kernels.name());
        }
    }
}

#[test]
fn activations_of_special_numbers() {
    for kernels in sets() {
        for activation in ACTIVATIONS {
            let mut y = [0.0; LANES];
            y[..5].copy_from_slice(&[f32::NAN, f32::INFINITY, -1e30, 1e30, -200.0]);
            activation_of(kernels, activation, &mut y);
            let name = kernels.name();
            assert!(y[0].is_nan(), "{name} {activation:?}");
            assert_eq!(y[1], f32::INFINITY, "{name} {activation:?}");
            assert!(y[2].abs() < 1e-9 && y[4].abs() < 1e-30, "{name} {activation:?} {y:?}");
            assert_eq!(y[3], 1e30, "{name} {activation:?}");
            assert!(y[5..].iter().all(|y| *y == 0.0), "{name} {activation:?}");
        }
    }
}
