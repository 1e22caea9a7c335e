//! What a step costs beside the network.

use std::path::Path;
use std::sync::mpsc::channel;

use allocation_counter::measure;
use serde_json::json;

use super::*;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::generate::request::Control;
use crate::model::Config;
use crate::weights::WeightFormat;

fn model() -> NeoX<CpuBackend> {
    let json = json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 256, "hidden_act": "gelu",
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5, "use_parallel_residual": true, "tie_word_embeddings": false,
    });
    let json = serde_json::to_vec(&json).unwrap();
    let config = Config::from_json_bytes(&json, Path::new("config.json")).unwrap();
    let backend = CpuBackend::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
    NeoX::random(backend, config, WeightFormat::F32, 128).unwrap()
}

#[test]
fn a_step_allocates_nothing_once_its_buffers_have_grown() {
    let limits = Limits { max_batch: 8, prefill_chunk: 3, cache_bytes: None, prefix_bytes: 0 };
    let mut scheduler = Scheduler::new(Arc::new(model()), limits, Arc::default());
    let (events, received) = channel();
    for _ in 0..2 {
        // Scores, which want logits of every row as answers do, but no text is made of them.
        let work = Work::Score { from: 1, logprobs: Vec::with_capacity(100) };
        let (ids, events) = ((0..100).collect(), events.clone());
        scheduler.waiting.push_back(Request { ids, work, control: Control::none(), events });
    }
    scheduler.admit();
    (0..4).for_each(|_| scheduler.guarded_step());
    let found = measure(|| {
        for _ in 0..10 {
            scheduler.drop_interrupted();
            scheduler.guarded_step();
        }
    });
    assert_eq!(found.count_total, 0, "{found:?}");
    assert_eq!(scheduler.live[0].cached, 14 * 3, "steps were run");
    assert!(received.try_recv().is_err(), "none has ended");
}
