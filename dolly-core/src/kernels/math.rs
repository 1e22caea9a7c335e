//! Exponential and activation functions over any lanes, good to a few units in the last place.

use super::vector::Lanes;
use crate::model::Activation;

/// `1.5 * 2^23`: adding and subtracting it rounds |x| < 2^22 to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// e^x: 0 below -104, infinity above 89, NaN for NaN; at most 2 ulp in the normal range.
///
/// x = n ln 2 + r with ln 2 split in two, a degree 7 polynomial in r, and 2^n in two halves so that
/// subnormal results and 2^128 need no branch. Split and coefficients: Cephes `expf` (S. Moshier).
#[inline(always)]
pub(super) fn exp<V: Lanes>(x: V) -> V {
    let x = x.like(-104.0).max(x);
    let x = x.like(89.0).min(x);
    let n = round(x.mul(x.like(std::f32::consts::LOG2_E)));
    let r = n.mul_add(x.like(-0.693_359_4), x);
    let r = n.mul_add(x.like(2.121_944_4e-4), r);
    let p = polynomial(
        r,
        &[1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_58e-2, 1.666_666_5e-1, 0.5],
    );
    let y = p.mul_add(r.mul(r), r).add(x.like(1.0));
    let half = round(n.mul(x.like(0.5)));
    y.mul(half.exp2_integral()).mul(n.sub(half).exp2_integral())
}

/// The nearest integer, ties to even, for |x| < 2^22.
#[inline(always)]
fn round<V: Lanes>(x: V) -> V {
    let magic = x.like(ROUND);
    x.add(magic).sub(magic)
}

/// Horner's rule, highest power first.
#[inline(always)]
fn polynomial<V: Lanes>(x: V, coefficients: &[f32]) -> V {
    let mut p = x.like(0.0);
    for (i, &c) in coefficients.iter().enumerate() {
        p = if i == 0 { x.like(c) } else { p.mul_add(x, x.like(c)) };
    }
    p
}

/// The logistic function 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid<V: Lanes>(x: V) -> V {
    let one = x.like(1.0);
    one.div(one.add(exp(x.like(0.0).sub(x))))
}

/// Φ(x) = (1 + erf(x/√2)) / 2, without cancellation in the left tail.
///
/// With t = |x|/√2. Below t = 1: erf(t) = t P(t²). From 1 on: erfc(t) = exp(Q(t)), the form of
/// N. Juffa's `erff`. P and Q are minimax fits made for this crate (`tests/golden/erf_fit.py`):
/// P within 1.2e-9, Q within 4e-9 of what moves erfc by as much at t = 1; beyond t = 10 the argument is held, where
/// Φ is below 1e-43.
#[inline(always)]
fn normal_cdf<V: Lanes>(x: V) -> V {
    #[allow(clippy::approx_constant, reason = "a fitted coefficient, one spacing off 2/√π")]
    const P: [f32; 7] = [
        7.889_123e-5,
        -8.020_842e-4,
        5.189_535_7e-3,
        -2.685_444_4e-2,
        0.112_836,
        -0.376_126_26,
        1.128_379_1,
    ];
    const Q: [f32; 9] = [
        1.202_195_7e-6,
        -3.76e-5,
        5.279_879e-4,
        -4.454_342e-3,
        2.561_43e-2,
        -0.108_777_06,
        -0.633_084_9,
        -1.129_566_2,
        1.710_795_3e-4,
    ];
    let (zero, half, one) = (x.like(0.0), x.like(0.5), x.like(1.0));
    let t = x.abs().mul(x.like(std::f32::consts::FRAC_1_SQRT_2));
    let t = x.like(10.0).min(t);
    let inner = polynomial(t.mul(t), &P).mul(t).mul(half);
    let inner = x.select_below(zero, half.sub(inner), half.add(inner));
    let tail = exp(polynomial(t, &Q)).mul(half);
    let outer = x.select_below(zero, tail, one.sub(tail));
    t.select_below(one, inner, outer)
}

/// The activation function of the feed-forward layer, as `transformers` defines it.
#[inline(always)]
pub(super) fn activate<V: Lanes>(x: V, activation: Activation) -> V {
    match activation {
        Activation::Gelu => x.mul(normal_cdf(x)),
        // (1 + tanh(u)) / 2 is the logistic function of 2u; 2 √(2/π) = 1.595769.
        Activation::GeluTanh => {
            let cube = x.mul(x).mul_add(x.like(0.044_715), x.like(1.0)).mul(x);
            x.mul(sigmoid(cube.mul(x.like(1.595_769))))
        }
        Activation::QuickGelu => x.mul(sigmoid(x.mul(x.like(1.702)))),
        // `max` yields its argument where unordered: NaN stays NaN.
        Activation::Relu => x.like(0.0).max(x),
        Activation::Silu => x.mul(sigmoid(x)),
    }
}

/// The derivative of [`activate`].
#[inline(always)]
pub(super) fn activation_slope<V: Lanes>(x: V, activation: Activation) -> V {
    let one = x.like(1.0);
    match activation {
        // Φ(x) + x φ(x), φ(x) = e^(-x²/2) / √(2π).
        Activation::Gelu => {
            let density = exp(x.mul(x).mul(x.like(-0.5))).mul(x.like(0.398_942_3));
            x.mul_add(density, normal_cdf(x))
        }
        // y = x σ(u): σ + x σ (1 - σ) u', u = 2 √(2/π) (x + 0.044715 x³).
        Activation::GeluTanh => {
            let square = x.mul(x);
            let cube = square.mul_add(x.like(0.044_715), one).mul(x);
            let s = sigmoid(cube.mul(x.like(1.595_769)));
            let slope = square.mul_add(x.like(3.0 * 0.044_715), one).mul(x.like(1.595_769));
            x.mul(s).mul(one.sub(s)).mul_add(slope, s)
        }
        Activation::QuickGelu => {
            let s = sigmoid(x.mul(x.like(1.702)));
            x.mul(s).mul(one.sub(s)).mul_add(x.like(1.702), s)
        }
        // 0 at 0, as PyTorch has it; NaN counts as not above it.
        Activation::Relu => x.like(0.0).select_below(x, one, x.like(0.0)),
        Activation::Silu => {
            let s = sigmoid(x);
            x.mul(s).mul_add(one.sub(s), s)
        }
    }
}
