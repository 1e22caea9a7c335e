//! Metadata of a GGUF file to a checked [`Config`].

use std::path::Path;

use super::parse::{ROTARY_BASE, shorten};
use super::{Activation, Config};
use crate::error::{Error, Result};
use crate::weights::WeightFormat;

/// The activation by its name in `config.json`; llama.cpp, whose `gptneox` has one only, passes
/// over keys it does not know.
pub(crate) const HIDDEN_ACT: &str = "gptneox.hidden_act";

/// Metadata of a GGUF file, by key: what [`Config::from_gguf`] needs of a reader.
///
/// Getters give `None` both for a missing key and for one of another type.
pub trait MetadataView {
    /// An integer of any width that fits.
    fn get_u32(&self, key: &str) -> Option<u32>;
    /// A 32-bit float (or a 64-bit one, rounded).
    fn get_f32(&self, key: &str) -> Option<f32>;
    /// A boolean.
    fn get_bool(&self, key: &str) -> Option<bool>;
    /// A text.
    fn get_str(&self, key: &str) -> Option<&str>;
    /// Number of elements of an array.
    fn array_len(&self, key: &str) -> Option<usize>;
    /// Whether the file holds a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool;
}

/// A view with errors that name file and key.
struct Keys<'a> {
    file: &'a Path,
    view: &'a dyn MetadataView,
}

impl Keys<'_> {
    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.file, key, reason)
    }

    fn size(&self, key: &str, max: u32) -> Result<usize> {
        match self.view.get_u32(key) {
            None => Err(self.error(key, "missing")),
            Some(n) if n == 0 || n > max => {
                Err(self.error(key, format!("is {n}; expected an integer from 1 to {max}")))
            }
            Some(n) => Ok(n as usize),
        }
    }

    fn check_architecture(&self) -> Result<()> {
        let key = "general.architecture";
        match self.view.get_str(key).unwrap_or("missing") {
            "gptneox" => Ok(()),
            other => {
                let found = shorten(&other.into());
                Err(self.error(key, format!("is {found}; expected \"gptneox\"")))
            }
        }
    }

    fn vocab_size(&self) -> Result<usize> {
        let tokens = "tokenizer.ggml.tokens";
        match self.view.get_u32("gptneox.vocab_size") {
            Some(rows) => Ok(rows as usize),
            None => self.view.array_len(tokens).ok_or_else(|| self.error(tokens, "missing")),
        }
    }

    fn activation(&self) -> Result<Activation> {
        let Some(name) = self.view.get_str(HIDDEN_ACT) else { return Ok(Activation::Gelu) };
        Activation::from_name(name).ok_or_else(|| {
            let (found, known) = (shorten(&name.into()), Activation::NAMES.join(", "));
            self.error(HIDDEN_ACT, format!("is {found}; known are {known}"))
        })
    }

    fn rotary_scale(&self) -> Result<f32> {
        let key = "gptneox.rope.scaling.type";
        match self.view.get_str(key) {
            None | Some("none") => Ok(1.0),
            Some("linear") => Ok(self.view.get_f32("gptneox.rope.scaling.factor").unwrap_or(1.0)),
            Some(other) => {
                let found = shorten(&other.into());
                Err(self.error(key, format!("is {found}; supported are \"none\" and \"linear\"")))
            }
        }
    }
}

impl Config {
    /// Reads and checks the metadata of a GGUF file of architecture `gptneox`.
    ///
    /// Keys are those of the GGUF specification (`gptneox.*`), and `gptneox.hidden_act`, by which
    /// this library's files name an activation other than `gelu`. Errors as
    /// [`from_json`](Self::from_json), naming the metadata key.
    pub fn from_gguf(file: &Path, view: &dyn MetadataView) -> Result<Self> {
        let keys = Keys { file, view };
        keys.check_architecture()?;
        let hidden_size = keys.size("gptneox.embedding_length", 65_536)?;
        let heads = keys.size("gptneox.attention.head_count", 65_536)?;
        let quarter = hidden_size.checked_div(heads).unwrap_or(0) / 4;
        let rotary_dims = view.get_u32("gptneox.rope.dimension_count");
        let config = Self {
            vocab_size: keys.vocab_size()?,
            hidden_size,
            num_hidden_layers: keys.size("gptneox.block_count", 512)?,
            num_attention_heads: heads,
            intermediate_size: keys.size("gptneox.feed_forward_length", 1 << 20)?,
            hidden_act: keys.activation()?,
            layer_norm_eps: view.get_f32("gptneox.attention.layer_norm_epsilon").unwrap_or(1e-5),
            rotary_dims: rotary_dims.map_or(quarter, |n| n as usize),
            rotary_base: view.get_f32("gptneox.rope.freq_base").unwrap_or(ROTARY_BASE as f32),
            rotary_scale: keys.rotary_scale()?,
            max_position_embeddings: keys.size("gptneox.context_length", 1 << 24)?,
            use_parallel_residual: view.get_bool("gptneox.use_parallel_residual").unwrap_or(true),
            attention_bias: view.has_tensor("blk.0.attn_qkv.bias"),
            tie_word_embeddings: !view.has_tensor("output.weight"),
            bos_token_id: view.get_u32("tokenizer.ggml.bos_token_id"),
            eos_token_ids: view.get_u32("tokenizer.ggml.eos_token_id").into_iter().collect(),
            stored_format: gguf_format(view.get_u32("general.file_type")),
        };
        config.check(file)?;
        Ok(config)
    }
}

/// `general.file_type` of the GGUF specification; formats without a twin in memory are held in the
/// next finer one.
fn gguf_format(file_type: Option<u32>) -> WeightFormat {
    match file_type {
        Some(0) => WeightFormat::F32,
        Some(1) | None => WeightFormat::F16,
        Some(2) => WeightFormat::Q4_0,
        Some(14 | 15) => WeightFormat::Q4K,
        Some(18) => WeightFormat::Q6K,
        Some(32) => WeightFormat::Bf16,
        Some(_) => WeightFormat::Q8_0,
    }
}
