//! Losses and every gradient against PyTorch (`tests/golden/gradients`), and against differences of
//! the loss itself.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;

use super::{Network, NetworkOptions, Sequence, Start, Trained};
use crate::kernels::pool::Pool;
use crate::model::Config;
use crate::train::LoraConfig;
use crate::train::optimizer::{AdamSettings, AdamW, clip_scale, gradient_norm};
use crate::weights::{Checkpoint, ModelFiles};

pub(super) const CASES: [&str; 10] = [
    "standard",
    "sequential",
    "tied",
    "no_attention_bias",
    "rotary_full",
    "act_gelu_new",
    "act_quick_gelu",
    "act_relu",
    "act_silu",
    "lora",
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

#[derive(Deserialize)]
pub(super) struct Golden {
    pub(super) loss: f64,
    pub(super) ten_losses: Vec<f64>,
    sequences: Vec<GoldenSequence>,
}

#[derive(Deserialize)]
struct GoldenSequence {
    ids: Vec<u32>,
    first_label: usize,
}

impl Golden {
    pub(super) fn read(case: &str) -> Self {
        let path = golden().join("gradients").join(format!("{case}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    pub(super) fn batch(&self) -> Vec<Sequence<'_>> {
        let all = self.sequences.iter();
        all.map(|s| Sequence { ids: &s.ids, first_label: s.first_label }).collect()
    }

    pub(super) fn labels(&self) -> usize {
        self.batch().iter().map(Sequence::labels).sum()
    }
}

pub(super) fn tensors(case: &str) -> Vec<(String, Vec<f32>)> {
    let path = golden().join("gradients").join(format!("{case}.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats =
        |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    file.iter().map(|(name, view)| (name.to_owned(), floats(view.data()))).collect()
}

pub(super) fn lora(case: &str) -> Option<LoraConfig> {
    (case == "lora").then(|| LoraConfig { rank: 4, alpha: 6.0, ..LoraConfig::default() })
}

pub(super) fn options(case: &str, threads: usize, gradient_checkpointing: bool) -> NetworkOptions {
    let trained = lora(case).map_or(Trained::All, Trained::Adapters);
    NetworkOptions { threads, gradient_checkpointing, dropout: 0.0, trained }
}

/// The golden model's weights, and for `lora` the adapters'.
pub(super) fn start(case: &str, trained: &Trained) -> Start {
    let name = if case == "lora" { "standard" } else { case };
    let directory = golden().join("parity").join(name);
    let config = directory.join("config.json");
    let files = ModelFiles::Directory {
        config: config.clone(),
        tokenizer: None,
        weights: vec![directory.join("model.safetensors")],
        index: None,
    };
    let checkpoint = Checkpoint::open(&files).unwrap();
    let config = Config::from_json(&config).unwrap();
    let rows = config.vocab_size;
    let mut start = Start::load(&checkpoint, config, rows, trained, 1).unwrap();
    let adapters = if case == "lora" { tensors(case) } else { Vec::new() };
    for (name, values) in adapters {
        if let Some(name) = name.strip_prefix("value.") {
            let parameter = start.parameters.iter_mut().find(|p| p.name == name).unwrap();
            assert_eq!(parameter.values.len(), values.len(), "{name}");
            parameter.values = values;
        }
    }
    start
}

pub(super) fn network(case: &str, options: &NetworkOptions) -> Network {
    Network::new(start(case, &options.trained), options).unwrap()
}

/// Budget of the promise: 1e-4 of a tensor's own norm, and of its largest element for each one.
#[test]
fn loss_and_every_gradient_equal_pytorch() {
    for case in CASES {
        for (threads, again) in [(1, false), (2, true)] {
            let (golden, mut network) =
                (Golden::read(case), network(case, &options(case, threads, again)));
            let scale = 1.0 / golden.labels() as f32;
            let sum = network.accumulate(&golden.batch(), scale, 0).unwrap();
            let loss = sum.nats / sum.tokens as f64;
            assert!((loss - golden.loss).abs() < 1e-5, "{case}: {loss} is not {}", golden.loss);
            let expected: Vec<_> =
                tensors(case).into_iter().filter(|(name, _)| !name.starts_with("value.")).collect();
            let trained = network.parameters().iter().filter(|p| p.trainable).count();
            assert_eq!(expected.len(), trained, "{case}");
            for (name, expected) in expected {
                let found = network.parameters().iter().find(|p| p.name == name).unwrap();
                assert_eq!(found.gradient.len(), expected.len(), "{case} {name}");
                let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                assert!(largest > 0.0, "{case} {name}: a gradient of zeros shows nothing");
                let mut square = (0.0, 0.0);
                for (found, expected) in found.gradient.iter().zip(&expected) {
                    assert!((found - expected).abs() <= 1e-4 * largest, "{case} {name}");
                    square.0 += f64::from(found - expected).powi(2);
                    square.1 += f64::from(*expected).powi(2);
                }
                assert!(square.0.sqrt() <= 1e-4 * square.1.sqrt(), "{case} {name}");
            }
        }
    }
}

/// Ten steps of AdamW (rate 1e-3, decay 0.01 of matrices, clipped to 1.0) on two batches of one
/// sequence each: the losses before every step.
#[test]
fn ten_steps_give_pytorchs_losses() {
    let settings = AdamSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
    for case in CASES {
        for (threads, again) in [(1, true), (2, false)] {
            let golden = Golden::read(case);
            let mut network = network(case, &options(case, threads, again));
            let mut optimizer = AdamW::new(settings, network.parameters()).unwrap();
            let (batch, pool) = (golden.batch(), Pool::new(threads).unwrap());
            for (step, expected) in golden.ten_losses.iter().enumerate() {
                let parts = [0, 1].map(|i| batch[(2 * step + i) % batch.len()]);
                let labels: usize = parts.iter().map(Sequence::labels).sum();
                network.zero_gradients();
                let nats: f64 = parts
                    .iter()
                    .map(|part| network.accumulate(&[*part], 1.0 / labels as f32, 0).unwrap().nats)
                    .sum();
                let off = (nats / labels as f64 - expected).abs();
                assert!(off <= 1e-4, "{case}, step {step}: off by {off}");
                let norm = gradient_norm(network.parameters(), &pool).unwrap();
                let clip = clip_scale(norm, 1.0);
                optimizer.update(network.parameters_mut(), &pool, 1e-3, clip).unwrap();
            }
        }
    }
}

#[test]
fn a_network_that_is_only_rated_holds_no_gradients() {
    let frozen = NetworkOptions { trained: Trained::Nothing, ..options("standard", 1, false) };
    let golden = Golden::read("standard");
    let mut network = network("standard", &frozen);
    assert!(network.parameters().iter().all(|p| p.gradient.is_empty() && !p.trainable));
    let sums = network.losses(&golden.batch()).unwrap();
    let nats: f64 = sums.iter().map(|s| s.nats).sum();
    assert!((nats / golden.labels() as f64 - golden.loss).abs() < 1e-5);
}

#[test]
fn checkpointing_accumulation_and_threads_change_no_bit() {
    for case in ["standard", "sequential", "lora"] {
        let golden = Golden::read(case);
        let gradients = |threads, again, parts: usize| -> Vec<Vec<u32>> {
            let mut network = network(case, &options(case, threads, again));
            for part in golden.batch().chunks(parts) {
                network.accumulate(part, 0.01, 0).unwrap();
            }
            let bits = |g: &Vec<f32>| g.iter().map(|x| x.to_bits()).collect();
            network.parameters().iter().map(|p| bits(&p.gradient)).collect()
        };
        let one = gradients(1, false, 4);
        assert!(one == gradients(2, false, 4), "{case}: threads");
        assert!(one == gradients(1, true, 4), "{case}: checkpointing");
        assert!(gradients(1, true, 2) == gradients(3, false, 2), "{case}: accumulated");
    }
}

/// Central differences of the loss along the gradient of every tensor, with dropout of both kinds:
/// the masks of forward and backward pass must agree.
#[test]
fn gradients_are_the_slopes_of_the_loss_under_dropout() {
    for case in ["standard", "sequential", "lora"] {
        for again in [false, true] {
            let golden = Golden::read(case);
            let lora = lora(case).map(|lora| LoraConfig { dropout: 0.3, ..lora });
            let trained = lora.map_or(Trained::All, Trained::Adapters);
            let options = NetworkOptions { dropout: 0.2, trained, ..options(case, 2, again) };
            let mut network = network(case, &options);
            let scale = 1.0 / golden.labels() as f32;
            let loss = |network: &mut Network| {
                network.accumulate(&golden.batch(), scale, 77).unwrap().nats * f64::from(scale)
            };
            loss(&mut network);
            let gradients: Vec<_> =
                network.parameters().iter().map(|p| p.gradient.clone()).collect();
            for (index, gradient) in gradients.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
                let norm = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let step = (2e-3 / norm.max(1e-3)) as f32;
                let start = network.parameters()[index].values.clone();
                let mut at = |by: f32| {
                    let values = &mut network.parameters_mut()[index].values;
                    for ((to, from), g) in values.iter_mut().zip(&start).zip(gradient) {
                        *to = from + by * g;
                    }
                    loss(&mut network)
                };
                let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
                at(0.0);
                let name = &network.parameters()[index].name;
                let (expected, budget) = (norm * norm, 0.02 * norm * norm + 2e-6 / f64::from(step));
                assert!((slope - expected).abs() < budget, "{case} {name}: {slope} {expected}");
            }
        }
    }
}

#[test]
fn losses_leave_gradients_alone_and_agree_with_training() {
    let golden = Golden::read("standard");
    let mut network = network("standard", &options("standard", 1, false));
    let each = network.losses(&golden.batch()).unwrap();
    assert!(network.parameters().iter().all(|p| p.gradient.iter().all(|g| *g == 0.0)));
    let whole = network.accumulate(&golden.batch(), 1.0, 0).unwrap();
    assert_eq!(each.iter().map(|s| s.tokens).sum::<usize>(), whole.tokens);
    assert!((each.iter().map(|s| s.nats).sum::<f64>() - whole.nats).abs() < 1e-6 * whole.nats);
    for (alone, sequence) in each.iter().zip(golden.batch()) {
        assert_eq!(network.losses(&[sequence]).unwrap()[0], *alone, "a batch changes nothing");
    }
}

#[test]
fn embeddings_grow_and_shrink() {
    let directory = golden().join("parity/standard");
    let files = ModelFiles::Directory {
        config: directory.join("config.json"),
        tokenizer: None,
        weights: vec![directory.join("model.safetensors")],
        index: None,
    };
    let checkpoint = Checkpoint::open(&files).unwrap();
    let config = Config::from_json(&directory.join("config.json")).unwrap();
    let load = |rows| {
        let options = options("standard", 1, false);
        let start = Start::load(&checkpoint, config.clone(), rows, &options.trained, 3).unwrap();
        Network::new(start, &options).unwrap()
    };
    let (kept, more, fewer) = (load(96), load(99), load(50));
    for name in ["gpt_neox.embed_in.weight", "embed_out.weight"] {
        let of =
            |n: &Network| n.parameters().iter().find(|p| p.name == name).unwrap().values.clone();
        assert_eq!(of(&more)[..96 * 32], of(&kept));
        assert_eq!(of(&fewer), of(&kept)[..50 * 32]);
        let new = &of(&more)[96 * 32..];
        let spread = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
        assert!((0.5..2.0).contains(&(spread(new) / spread(&of(&kept)))));
    }
    assert_eq!(more.config().vocab_size, 99);
}

#[test]
fn impossible_batches_are_refused() {
    let mut network = network("standard", &options("standard", 1, false));
    let long = vec![1; 101];
    for (ids, first_label) in
        [(vec![1, 2, 3], 3), (vec![1, 2, 3], 0), (vec![1, 96, 3], 1), (vec![], 1), (long, 1)]
    {
        let error = network.losses(&[Sequence { ids: &ids, first_label }]).unwrap_err();
        assert!(matches!(error, crate::Error::InvalidInput(_)), "{error}");
    }
    assert!(network.losses(&[]).is_err());
    let targets = vec!["dense".to_owned(), "mlp.nothing".to_owned()];
    let trained = Trained::Adapters(LoraConfig { targets, ..LoraConfig::default() });
    let error = Start::initialised(network.config().clone(), &trained, 1).err().unwrap();
    assert!(error.to_string().contains("mlp.nothing"), "{error}");
}
