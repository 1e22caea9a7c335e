//! A configuration as `config.json` has it.

use serde_json::{Map, Value, json};

use super::Config;
use crate::json::shortest;
use crate::weights::WeightFormat;

impl Config {
    /// The fields of a `config.json` by the names of transformers' `GPTNeoXConfig`.
    ///
    /// Rotary settings stand there twice: as version 4 reads them (`rotary_pct`,
    /// `rotary_emb_base`, `rope_scaling`) and as version 5 does (`rope_parameters`).
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let (pct, base) = (self.rotary_pct(), shortest(self.rotary_base));
        let eos = match self.eos_token_ids[..] {
            [] => Value::Null,
            [id] => id.into(),
            _ => self.eos_token_ids.clone().into(),
        };
        let mut rope = json!({
            "rope_type": "default", "rope_theta": base, "partial_rotary_factor": pct,
        });
        let scaled = self.rotary_scale != 1.0;
        if scaled {
            rope["rope_type"] = "linear".into();
            rope["factor"] = shortest(self.rotary_scale).into();
        }
        let mut fields = json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "hidden_act": self.hidden_act.name(),
            "layer_norm_eps": shortest(self.layer_norm_eps),
            "rotary_pct": pct,
            "rotary_emb_base": base,
            "rope_parameters": rope,
            "max_position_embeddings": self.max_position_embeddings,
            "use_parallel_residual": self.use_parallel_residual,
            "attention_bias": self.attention_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        if scaled {
            rope["type"] = "linear".into();
            fields["rope_scaling"] = rope;
        }
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// A share of the head's width which gives `rotary_dims` when it is multiplied and cut off, as
    /// readers do.
    fn rotary_pct(&self) -> f64 {
        let (dims, head_dim) = (self.rotary_dims, self.head_dim());
        let share = dims as f64 / head_dim as f64;
        match (head_dim as f64 * share) as usize == dims {
            true => share,
            false => (dims as f64 + 0.5) / head_dim as f64,
        }
    }
}

/// The name of a plain type in `config.json`; what was quantized is stored as the nearest one.
pub(crate) fn dtype_name(format: WeightFormat) -> (WeightFormat, &'static str) {
    match format {
        WeightFormat::F32 => (format, "float32"),
        WeightFormat::Bf16 => (format, "bfloat16"),
        _ => (WeightFormat::F16, "float16"),
    }
}
