//! Against PyTorch's golden values (`tests/golden/gradients`) and against the kernels, on candle's
//! CPU device.

use super::*;
use crate::train::LoraConfig;
use crate::train::network::tests::{CASES, Golden, lora, options, start, tensors};
use crate::train::network::{Network, Trained};
use crate::train::optimizer::{AdamSettings, clip_scale};

const SETTINGS: AdamSettings =
    AdamSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };

fn network(case: &str, options: &NetworkOptions, precision: Precision) -> CandleNetwork {
    let start = start(case, &options.trained);
    CandleNetwork::new(start, options, &Gpu::stand_in(), precision).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn gradient(network: &CandleNetwork, name: &str) -> Option<Vec<f32>> {
    let weight = network.weights.iter().find(|weight| weight.name == name).unwrap();
    assert_eq!(weight.gradient.is_some(), weight.trainable, "{name}");
    weight.gradient.as_ref().map(values)
}

/// Largest and mean error of a tensor, as shares of its own largest element and norm.
fn errors(found: &[f32], expected: &[f32]) -> (f32, f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.0, "a gradient of zeros shows nothing");
    let (mut off, mut square) = (0.0_f32, (0.0, 0.0));
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.is_finite());
        off = off.max((found - expected).abs());
        square.0 += f64::from(found - expected).powi(2);
        square.1 += f64::from(*expected).powi(2);
    }
    (off / largest, (square.0 / square.1).sqrt())
}

/// The budgets of the kernels: 1e-4 of a tensor's norm, and of its largest element for each one.
#[test]
fn loss_and_every_gradient_equal_pytorch() {
    for case in CASES {
        for (again, scores) in [(false, SCORES), (true, SCORES), (true, 0)] {
            let golden = Golden::read(case);
            let mut network = network(case, &options(case, 1, again), Precision::F32);
            network.scores = scores;
            let batch = golden.batch();
            let scale = 1.0 / golden.labels() as f32;
            let sum = network.accumulate(&batch, scale, 0).unwrap();
            let off = (sum.nats / sum.tokens as f64 - golden.loss).abs();
            assert!(off <= 1e-5, "{case}: loss off by {off}");
            for (name, expected) in tensors(case) {
                if name.starts_with("value.") {
                    continue;
                }
                let (most, mean) = errors(&gradient(&network, &name).unwrap(), &expected);
                assert!(most <= 1e-4 && mean <= 1e-4, "{case} {name}: {most:e}, {mean:e}");
            }
        }
    }
}

/// Products in bf16, each number rounded by up to 2^-9: all gradients together within 5 %, a tensor
/// within 10 % (those behind a relu flip where it bends), the loss within 0.2 %.
#[test]
fn bf16_stays_within_its_budget() {
    for case in CASES {
        let golden = Golden::read(case);
        let mut network = network(case, &options(case, 1, true), Precision::Bf16);
        let scale = 1.0 / golden.labels() as f32;
        let sum = network.accumulate(&golden.batch(), scale, 0).unwrap();
        let off = (sum.nats / sum.tokens as f64 - golden.loss).abs() / golden.loss;
        let (mut found, mut expected, mut worst) = (Vec::new(), Vec::new(), 0.0_f64);
        for (name, tensor) in tensors(case) {
            if !name.starts_with("value.") {
                let own = gradient(&network, &name).unwrap();
                worst = worst.max(errors(&own, &tensor).1);
                found.extend(own);
                expected.extend(tensor);
            }
        }
        let whole = errors(&found, &expected).1;
        eprintln!("{case}: loss {off:.1e}, gradients {whole:.1e}, the worst {worst:.1e}");
        let all = off <= 2e-3 && whole <= 5e-2 && worst <= 1e-1;
        assert!(all, "{case}: loss {off:e}, gradients {whole:e}, the worst {worst:e}");
        assert!(whole > 1e-4, "{case}: nothing was rounded");
    }
}

/// The steps of the kernels' test: AdamW on two batches of one sequence each.
#[test]
fn ten_steps_give_pytorchs_losses() {
    for case in CASES {
        for (precision, budget) in [(Precision::F32, 1e-4), (Precision::Bf16, 2e-2)] {
            let golden = Golden::read(case);
            let mut network = network(case, &options(case, 1, true), precision);
            let mut optimizer = AdamW::new(SETTINGS, network.parameters()).unwrap();
            let (batch, pool) = (golden.batch(), Pool::new(1).unwrap());
            for (step, expected) in golden.ten_losses.iter().enumerate() {
                let parts = [0, 1].map(|i| batch[(2 * step + i) % batch.len()]);
                let labels: usize = parts.iter().map(Sequence::labels).sum();
                network.zero_gradients();
                let nats: f64 = parts
                    .iter()
                    .map(|part| network.accumulate(&[*part], 1.0 / labels as f32, 0).unwrap().nats)
                    .sum();
                let off = (nats / labels as f64 - expected).abs();
                assert!(off <= budget, "{case} {precision}, step {step}: off by {off}");
                let norm = network.gradient_norm(&pool).unwrap();
                network.update(&mut optimizer, &pool, 1e-3, clip_scale(norm, 1.0)).unwrap();
            }
        }
    }
}

/// Dropout of both kinds drops the same elements as the kernels' passes do.
#[test]
fn dropout_and_norms_equal_the_kernels() {
    for case in ["standard", "sequential", "lora"] {
        let lora = lora(case).map(|lora| LoraConfig { dropout: 0.3, ..lora });
        let trained = lora.map_or(Trained::All, Trained::Adapters);
        for again in [false, true] {
            let trained = trained.clone();
            let options = NetworkOptions { dropout: 0.2, trained, ..options(case, 2, again) };
            let golden = Golden::read(case);
            let mut device = network(case, &options, Precision::F32);
            let mut kernels = Network::new(start(case, &options.trained), &options).unwrap();
            let scale = 1.0 / golden.labels() as f32;
            let a = device.accumulate(&golden.batch(), scale, 77).unwrap();
            let b = kernels.accumulate(&golden.batch(), scale, 77).unwrap();
            assert!((a.nats - b.nats).abs() <= 1e-5 * b.nats, "{case}: {} {}", a.nats, b.nats);
            for parameter in kernels.parameters().iter().filter(|p| p.trainable) {
                let found = gradient(&device, &parameter.name).unwrap();
                let (most, mean) = errors(&found, &parameter.gradient);
                assert!(most <= 1e-4 && mean <= 1e-4, "{case} {}: {most:e}", parameter.name);
            }
            let pool = Pool::new(1).unwrap();
            let (a, b) = (&device as &dyn Model, &kernels as &dyn Model);
            let (a, b) = (a.gradient_norm(&pool).unwrap(), b.gradient_norm(&pool).unwrap());
            assert!((a - b).abs() <= 1e-5 * b, "{case}: {a} {b}");
        }
    }
}

#[test]
fn losses_leave_gradients_alone_and_equal_the_kernels() {
    for case in ["standard", "odd_shapes"] {
        let golden = Golden::read("standard");
        let options = NetworkOptions { trained: Trained::Nothing, ..options(case, 1, false) };
        let mut device = network(case, &options, Precision::F32);
        let mut kernels = Network::new(start(case, &Trained::Nothing), &options).unwrap();
        let vocabulary = kernels.config().vocab_size as u32;
        let ids: Vec<Vec<u32>> = golden
            .batch()
            .iter()
            .map(|sequence| sequence.ids.iter().map(|id| id % vocabulary).collect())
            .collect();
        let batch: Vec<_> = ids.iter().map(|ids| Sequence { ids, first_label: 3 }).collect();
        let (a, b) = (device.losses(&batch).unwrap(), kernels.losses(&batch).unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a.tokens, b.tokens);
            assert!((a.nats - b.nats).abs() <= 1e-5 * b.nats, "{case}: {a:?} {b:?}");
        }
        assert_eq!(a.len(), b.len());
        assert!(device.weights.iter().all(|weight| weight.gradient.is_none()));
    }
}

/// The device's updates against the optimizer's own, the form of a large weight of `lerp` included.
#[test]
fn updates_equal_the_optimizers() {
    for beta1 in [0.9, 0.3] {
        let options = options("standard", 1, true);
        let settings = AdamSettings { beta1, ..SETTINGS };
        let (mut device, golden) =
            (network("standard", &options, Precision::F32), Golden::read("standard"));
        let mut kernels = Network::new(start("standard", &Trained::All), &options).unwrap();
        let mut optimizers =
            [(); 2].map(|()| AdamW::new(settings, Model::parameters(&device)).unwrap());
        let pool = Pool::new(1).unwrap();
        for step in 0..3 {
            kernels.zero_gradients();
            kernels.accumulate(&golden.batch(), 1.0 + step as f32, 0).unwrap();
            // The same gradients, so that only the updates can differ.
            for (weight, parameter) in device.weights.iter_mut().zip(kernels.parameters()) {
                let shape = parameter.shape.as_slice();
                let gradient = Tensor::from_slice(&parameter.gradient, shape, &Device::Cpu);
                weight.gradient = Some(gradient.unwrap());
            }
            let [a, b] = &mut optimizers;
            device.update(a, &pool, 1e-2, 0.7).unwrap();
            b.update(kernels.parameters_mut(), &pool, 1e-2, 0.7).unwrap();
        }
        let [a, b] = &mut optimizers;
        device.fetch(a).unwrap();
        assert_eq!(a.updates, b.updates);
        let both = device.parameters.iter().zip(kernels.parameters());
        for ((found, expected), (a, b)) in both.zip(a.moments.iter().zip(&b.moments)) {
            for (found, expected) in
                [(&found.values, &expected.values), (&a.first, &b.first), (&a.second, &b.second)]
            {
                let (most, mean) = errors(found, expected);
                assert!(most <= 1e-6 && mean <= 1e-6, "{most:e} {mean:e}");
            }
        }
    }
}

#[test]
fn a_missing_gradient_is_named_and_changes_nothing() {
    let mut network = network("standard", &options("standard", 1, true), Precision::F32);
    let mut optimizer = AdamW::new(SETTINGS, network.parameters()).unwrap();
    let pool = Pool::new(1).unwrap();
    for error in [
        network.gradient_norm(&pool).unwrap_err(),
        network.update(&mut optimizer, &pool, 1e-3, 1.0).unwrap_err(),
    ] {
        assert!(error.to_string().contains("embed_in.weight"), "{error}");
    }
    assert_eq!(optimizer.updates, 0);
}

/// Against differences in f64, and finite where `exp(-x)` is not.
#[test]
fn slopes_are_those_of_the_activations() {
    use crate::model::Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu};
    for activation in [Gelu, GeluTanh, QuickGelu, Relu, Silu] {
        let points: Vec<f64> = (-80..80).map(|i| f64::from(i) / 10.0 + 0.013).collect();
        let x = Tensor::new(points.as_slice(), &Device::Cpu).unwrap();
        let at = |by: f64| {
            let y = crate::backend::candle::activate((&x + by).unwrap(), activation).unwrap();
            y.to_vec1::<f64>().unwrap()
        };
        let found = x.to_dtype(DType::F32).unwrap();
        let found = values(&layers::slopes(&found, activation).unwrap());
        for ((x, found), (up, down)) in points.iter().zip(found).zip(at(1e-4).iter().zip(at(-1e-4)))
        {
            let expected = (up - down) / 2e-4;
            let off = (f64::from(found) - expected).abs();
            assert!(off <= 1e-5, "{activation:?} at {x}: {found}, {expected}");
        }
        let far = Tensor::new(&[-1e4_f32, -200.0, 200.0, 1e4], &Device::Cpu).unwrap();
        let far = values(&layers::slopes(&far, activation).unwrap());
        for (found, expected) in far.iter().zip([0.0, 0.0, 1.0, 1.0]) {
            assert!((found - expected).abs() < 1e-6, "{activation:?}: {far:?}");
        }
    }
}

#[test]
fn impossible_batches_are_refused() {
    let mut network = network("standard", &options("standard", 1, false), Precision::F32);
    let long = vec![1; 101];
    for (ids, first_label) in [(vec![1, 96, 3], 1), (vec![], 1), (long, 1)] {
        let error = network.losses(&[Sequence { ids: &ids, first_label }]).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
    assert!(network.accumulate(&[], 1.0, 0).is_err());
}
