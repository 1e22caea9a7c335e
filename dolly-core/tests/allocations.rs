//! What a step of decoding allocates once its buffers have grown: nothing.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use allocation_counter::measure;
use dolly_core::backend::cpu::{CpuBackend, CpuOptions};
use dolly_core::backend::{Backend, Few, Span};
use dolly_core::model::{LogitReader, Logits, NeoX};
use dolly_core::{Config, WeightFormat};
use serde_json::json;

/// Tokens that a sequence has before the steps that count.
const BEFORE: usize = 5;
const CONTEXT: usize = 64;

fn config() -> Config {
    let json = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "intermediate_size": 256, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": CONTEXT,
        "layer_norm_eps": 1e-5, "use_parallel_residual": true, "tie_word_embeddings": false,
    });
    Config::from_json_bytes(&serde_json::to_vec(&json).unwrap(), Path::new("config.json")).unwrap()
}

/// Takes whole rows and keeps their first number.
struct First(f32);

impl LogitReader for First {
    fn needed(&self, _: usize) -> Option<usize> {
        Some(1)
    }

    fn decides(&self, _: usize, _: Few<'_>) -> bool {
        true
    }

    fn take(&mut self, _: usize, logits: Logits<'_>) {
        if let Logits::Whole(row) = logits {
            self.0 += row[0];
        }
    }
}

#[test]
fn decoding_allocates_nothing() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0, WeightFormat::Q4_0] {
        for sequences in [1, 3, 8, 20] {
            let options = CpuOptions { threads: Some(1), ..Default::default() };
            let backend = CpuBackend::new(options).unwrap();
            let model = NeoX::random(backend, config(), format, CONTEXT).unwrap();
            let cache = |_| model.backend().new_cache(model.config(), CONTEXT).unwrap();
            let mut caches: Vec<_> = (0..sequences).map(cache).collect();
            let mut caches: Vec<_> = caches.iter_mut().collect();
            let (mut work, mut host) = (model.workspace(), Vec::new());
            let ids: Vec<u32> = (0..sequences as u32).collect();
            let rows: Vec<usize> = (0..sequences).collect();
            let mut spans: Vec<Span> =
                rows.iter().map(|row| Span { first_row: *row, rows: 1, position: 0 }).collect();
            let mut reader = First(0.0);
            let mut step = || {
                model.forward(&ids, &spans, &mut caches, &mut work).unwrap();
                model.logits(&rows, &mut work, &mut host, &mut reader).unwrap();
                spans.iter_mut().for_each(|span| span.position += 1);
            };
            (0..BEFORE).for_each(|_| step());
            let found = measure(|| (0..20).for_each(|_| step()));
            assert_eq!(found.count_total, 0, "{format}, {sequences} sequences: {found:?}");
            assert!(reader.0.is_finite() && reader.0 != 0.0);
        }
    }
}
