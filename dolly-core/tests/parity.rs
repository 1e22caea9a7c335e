//! The network against transformers: `tests/golden/parity`, made by `make_parity.py`.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use dolly_core::{Error, FinishReason, GenerateOptions, Prompt, TokenLogprob, WeightFormat};
#[cfg(feature = "candle")]
use support::is_about_kernels;
use support::{
    goldens, largest_difference, on_kernels, parity_model, parity_names, parity_pipeline, same,
    tolerance,
};

/// Position-dependent frequencies cannot be combined with a cache: refused by name.
const REFUSED: &str = "rope_dynamic";

/// Largest difference of a logit that counts as equal.
const TOLERANCE: f32 = 1e-4;

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: tokens, ignore_end: true, ..GenerateOptions::greedy() }
}

fn check(name: &str, reference: bool) {
    let pipe = parity_pipeline(name, reference);
    for golden in goldens(name) {
        let logits = pipe.logits(&golden.ids).unwrap();
        let difference = largest_difference(&logits, &golden.logits);
        let length = golden.ids.len();
        let allowed = if reference { TOLERANCE } else { TOLERANCE.max(tolerance()) };
        assert!(difference <= allowed, "{name}, {length} ids: off by {difference}");
        let answer = pipe.complete(Prompt::Ids(&golden.ids), &greedy(64)).unwrap();
        assert_eq!(answer.token_ids, golden.greedy, "{name}, {length} ids");
        assert_eq!(answer.finish_reason, FinishReason::Length);
    }
}

#[test]
fn logits_and_greedy_tokens_equal_transformers() {
    for name in parity_names().iter().filter(|name| *name != REFUSED) {
        check(name, false);
    }
}

#[cfg(feature = "candle")]
#[test]
fn reference_backend_equals_transformers() {
    for name in parity_names().iter().filter(|name| *name != REFUSED) {
        check(name, true);
    }
}

#[test]
fn dynamic_rope_scaling_is_refused_by_name() {
    let directory = parity_model(REFUSED);
    match support::builder(directory.path().to_str().unwrap()).build() {
        Err(Error::Config { reason, .. }) => assert!(reason.contains("dynamic"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn cached_decode_equals_full_forward_bit_for_bit() {
    let directory = parity_model("standard");
    let id = directory.path().to_str().unwrap();
    let pipe = support::builder(id).prefix_cache(0).build().unwrap();
    let golden = &goldens("standard")[2];
    let options = GenerateOptions { logprobs: Some(5), ..greedy(24) };
    let answer = pipe.complete(Prompt::Ids(&golden.ids), &options).unwrap();
    let tokens = answer.logprobs.unwrap();
    for (index, token) in tokens.iter().enumerate() {
        // The same token drawn right after a prefill of everything before it.
        let before = [golden.ids.as_slice(), &answer.token_ids[..index]].concat();
        let options = GenerateOptions { logprobs: Some(5), ..greedy(1) };
        let fresh = pipe.complete(Prompt::Ids(&before), &options).unwrap().logprobs.unwrap();
        let numbers = |token: &TokenLogprob| -> Vec<f32> {
            token.top.iter().map(|top| top.1).chain([token.logprob]).collect()
        };
        assert_eq!(fresh[0].id, token.id, "token {index}");
        assert!(same(&numbers(&fresh[0]), &numbers(token)), "token {index}");
        assert!(fresh[0] == *token || !on_kernels(), "token {index}");
    }
}

#[test]
fn batch_and_threads_change_no_bit() {
    let directory = parity_model("head_dim_80");
    let id = directory.path().to_str().unwrap().to_owned();
    let golden = goldens("head_dim_80");
    let alone = support::builder(id.as_str()).threads(1).build().unwrap();
    let expected: Vec<Vec<f32>> = golden.iter().map(|g| alone.logits(&g.ids).unwrap()).collect();
    let together = support::builder(id).threads(2).build().unwrap();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|n| {
                let (pipe, golden) = (together.clone(), &golden[n % golden.len()]);
                scope.spawn(move || (n, pipe.logits(&golden.ids).unwrap()))
            })
            .collect();
        for worker in workers {
            let (n, logits) = worker.join().unwrap();
            let expected = &expected[n % golden.len()];
            assert!(same(&logits, expected));
        }
    });
}

/// Largest error of each format against f32, as a share of the logits' spread; measured on the
/// golden `standard` model and bounded with a margin of about two.
const FORMATS: [(WeightFormat, f32); 4] = [
    (WeightFormat::F16, 2e-3),
    (WeightFormat::Bf16, 2e-2),
    (WeightFormat::Q8_0, 4e-2),
    (WeightFormat::Q4_0, 3e-1),
];

#[test]
fn every_format_stays_near_f32() {
    let directory = parity_model("standard");
    let id = directory.path().to_str().unwrap();
    let load = |format| support::builder(id).weights(format).build().unwrap();
    let ids = &goldens("standard")[2].ids;
    let exact = load(WeightFormat::F32).logits(ids).unwrap();
    let spread = (exact.iter().map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt();
    for (format, bound) in FORMATS {
        let logits = load(format).logits(ids).unwrap();
        let error: f32 = logits.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        let error = (error / exact.len() as f32).sqrt() / spread;
        println!("{format}: {error:.2e} of the logits' spread");
        assert!(error <= bound, "{format}: {error}");
        assert!(error > 0.0, "{format} changed nothing: was it applied?");
    }
}

#[cfg(feature = "candle")]
#[test]
fn formats_agree_with_candles_own_rounding() {
    if !is_about_kernels("a device rounds activations to the type of the weights") {
        return;
    }
    let directory = parity_model("head_dim_80");
    let id = directory.path().to_str().unwrap();
    let ids = &goldens("head_dim_80")[2].ids;
    for format in [WeightFormat::F16, WeightFormat::Bf16] {
        if format == WeightFormat::Bf16 && support::rounds_bf16() {
            println!("left out in bf16: this CPU rounds activations too; see tests/device");
            continue;
        }
        let load = |reference| {
            let builder =
                support::builder(id).weights(format).kv_cache(dolly_core::CacheFormat::F32);
            builder.reference(reference).build().unwrap().logits(ids).unwrap()
        };
        let difference = largest_difference(&load(false), &load(true));
        assert!(difference <= 1e-4, "{format}: {difference}");
    }
}
