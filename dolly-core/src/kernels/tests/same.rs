//! Sets that fuse multiplication and addition differ in registers, not in a bit of any result.

use super::{Numbers, Rows, bits, pool, sets, sizes};
use crate::kernels::arena::Arena;
use crate::kernels::linear::{Epilogue, InputScratch, Matrix, linear};
use crate::kernels::matmul::{MatmulScratch, Operand, Target, matmul};
use crate::kernels::pack::Layout;
use crate::kernels::table::Kernels;
use crate::model::Activation;

/// Every set's results equal those of the first one tested that fuses.
fn equal(what: &str, run: impl Fn(Kernels) -> Vec<f32>) {
    equal_among(what, sets(), run);
}

fn equal_among(what: &str, sets: Vec<Kernels>, run: impl Fn(Kernels) -> Vec<f32>) {
    let mut fused = sets.into_iter().filter(|kernels| kernels.name() != "portable");
    let Some(first) = fused.next() else { return };
    let expected = bits(&run(first));
    for other in fused {
        assert!(bits(&run(other)) == expected, "{what}: {} {}", first.name(), other.name());
    }
}

/// Every number of rows that a tile takes, several slices of K, an odd panel, and a block of nothing
/// but extremes on both sides: the largest sums of integers there are.
#[test]
fn linear_layers_agree() {
    let (outputs, inputs) = if cfg!(miri) { (33, 40) } else { (147, 600) };
    let rows = || (1..=13).chain(sizes(&[24, 25, 26, 31, 64, 97], &[26]).iter().copied());
    let most = rows().max().unwrap();
    let (pool, mut numbers) = (pool(1), Numbers(3));
    let mut weight = numbers.normals(outputs * inputs);
    let (mut x, bias) = (numbers.normals(most * inputs), numbers.normals(outputs));
    for i in 0..32 {
        (weight[i], x[i]) = if i < 16 { (5.0, 3.0) } else { (-5.0, -3.0) };
        x[inputs + i] = -x[i];
    }
    for layout in [Layout::F32, Layout::F16, Layout::Bf16, Layout::Q8_0, Layout::Q4_0] {
        let source = Rows::new(weight.clone(), outputs, inputs);
        let matrix = Matrix::pack(&pool, &Arena::default(), &source, layout).unwrap();
        for rows in rows() {
            let mut sets = sets();
            if layout == Layout::Bf16 {
                // What rounds activations too has other results.
                sets.retain(|kernels| kernels.table().round_bf16.is_none());
            }
            equal_among(&format!("{layout:?}, {rows} rows"), sets, |kernels| {
                let mut out = vec![f32::NAN; rows * outputs];
                let (x, bias) = ((&x[..rows * inputs], rows), Some(&bias[..]));
                let scratch = &mut InputScratch::default();
                for add in [false, true] {
                    let epilogue = Epilogue { activation: Some(Activation::Relu), add };
                    linear(kernels, &pool, &matrix, x, bias, epilogue, &mut out, scratch).unwrap();
                }
                out
            });
        }
    }
}

#[test]
fn products_of_memory_agree() {
    let extents = sizes(&[(13, 530, 115), (200, 30, 33), (6, 7, 32)], &[(7, 260, 35), (6, 7, 32)]);
    for &(m, k, n) in extents {
        let mut numbers = Numbers(n as u64);
        let (a, b, start) =
            (numbers.normals(m * k), numbers.normals(k * n), numbers.normals(m * n));
        for accumulate in [false, true] {
            equal(&format!("{m} {k} {n} {accumulate}"), |kernels| {
                let mut c = start.clone();
                let target = Target { data: &mut c, stride: n, accumulate };
                let (left, right) = (Operand::rows(&a, k), Operand::rows(&b, n));
                let mut scratch = MatmulScratch::default();
                matmul(kernels, &pool(1), &mut scratch, left, right, target, (m, k, n)).unwrap();
                c
            });
        }
    }
}

#[test]
fn rows_agree() {
    for &len in sizes(&[1, 16, 17, 100, 1023], &[17, 100]) {
        let mut numbers = Numbers(len as u64);
        let (x, w, b) = (numbers.normals(len), numbers.normals(len), numbers.normals(len));
        equal(&format!("{len} numbers"), |kernels| {
            let mut out = vec![0.0; len];
            kernels.layer_norm(&x, &w, &b, 1e-5, &mut out);
            kernels.add(&mut out, &w);
            let mut pair = (vec![0.0; len], vec![0.0; len]);
            let norms = ((&w[..], &b[..]), (&b[..], &w[..]));
            kernels.layer_norm_pair(&x, norms, 1e-5, (&mut pair.0, &mut pair.1));
            out.extend(pair.0.into_iter().chain(pair.1));
            let mut e = x.clone();
            let sum = kernels.exp_minus(0.3, 0.5, &mut e);
            out.extend(e);
            out.extend([sum, kernels.max(&x), kernels.dot(&x, &w)]);
            for act in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
                let mut y = vec![0.0; len];
                kernels.activate(act, &x, &mut y);
                out.extend(y);
                let mut d = w.clone();
                kernels.activation_backward(act, &x, &mut d);
                out.extend(d);
            }
            out
        });
    }
}
