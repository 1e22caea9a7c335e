//! The hyper-parameters of a GPT-NeoX network, read from a checkpoint and checked.

use crate::error::{Result, try_vec};
use crate::weights::WeightFormat;

mod gguf;
mod parse;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use gguf::HIDDEN_ACT as GGUF_HIDDEN_ACT;
pub use gguf::MetadataView;
pub(crate) use write::dtype_name;

/// Activation of the feed-forward layer, by the names `config.json` uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `gelu`: x/2 (1 + erf(x/√2)).
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the tanh approximation.
    GeluTanh,
    /// `quick_gelu`: x σ(1.702 x).
    QuickGelu,
    /// `relu`: max(x, 0).
    Relu,
    /// `silu`, `swish`: x σ(x).
    Silu,
}

impl Activation {
    /// Every name that [`from_name`](Self::from_name) knows.
    pub const NAMES: [&'static str; 9] = [
        "gelu",
        "gelu_python",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "quick_gelu",
        "relu",
        "silu",
        "swish",
    ];

    /// The activation transformers gives this name (`ACT2FN`), where this library computes it.
    ///
    /// `gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are one formula in three roundings.
    ///
    /// ```
    /// use dolly_core::model::Activation;
    /// assert_eq!(Activation::from_name("gelu_fast"), Some(Activation::GeluTanh));
    /// assert_eq!(Activation::from_name("mish"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "quick_gelu" => Some(Self::QuickGelu),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }

    /// A name of this activation, one that transformers knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::QuickGelu => "quick_gelu",
            Self::Relu => "relu",
            Self::Silu => "silu",
        }
    }
}

/// A tensor that a checkpoint of a [`Config`] must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the Hugging Face layout.
    pub name: String,
    /// `(rows, cols)` of a matrix (`cols` fastest), one number of a vector.
    pub shape: Vec<usize>,
}

/// The hyper-parameters of one GPT-NeoX network; every value comes from the checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Rows of the embedding: the number of ids the network knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Activation of the feed-forward layer.
    pub hidden_act: Activation,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f32,
    /// Dimensions of each head that are rotated; even, at most the head's width.
    pub rotary_dims: usize,
    /// Base of the rotary frequencies.
    pub rotary_base: f32,
    /// Positions are divided by this before rotation (`rope_scaling` of type `linear`); 1 is none.
    pub rotary_scale: f32,
    /// Longest sequence the network was made for.
    pub max_position_embeddings: usize,
    /// Attention and feed-forward read the same input (`true`) or follow each other.
    pub use_parallel_residual: bool,
    /// Whether the attention's two products have a bias.
    pub attention_bias: bool,
    /// The output layer shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// First token of a text, where the checkpoint names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The format the weights are stored in, as near as memory formats come.
    pub stored_format: WeightFormat,
}

impl Config {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Every tensor of the network by its Hugging Face name, in the order of computation.
    ///
    /// Names as `GPTNeoXForCausalLM` saves them. With tied embeddings there is no
    /// `embed_out.weight`; without attention bias the attention's two products have no `.bias`.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        let count = self.num_hidden_layers.saturating_mul(12).saturating_add(4);
        let mut specs = try_vec(count, "the list of tensors")?;
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let mut push = |name: String, shape: &[usize]| {
            specs.push(TensorSpec { name, shape: shape.to_vec() });
        };
        push("gpt_neox.embed_in.weight".into(), &[self.vocab_size, hidden]);
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                push(name(&format!("{norm}.weight")), &[hidden]);
                push(name(&format!("{norm}.bias")), &[hidden]);
            }
            let linears = [
                ("attention.query_key_value", 3 * hidden, hidden, self.attention_bias),
                ("attention.dense", hidden, hidden, self.attention_bias),
                ("mlp.dense_h_to_4h", inner, hidden, true),
                ("mlp.dense_4h_to_h", hidden, inner, true),
            ];
            for (part, rows, cols, bias) in linears {
                push(name(&format!("{part}.weight")), &[rows, cols]);
                if bias {
                    push(name(&format!("{part}.bias")), &[rows]);
                }
            }
        }
        push("gpt_neox.final_layer_norm.weight".into(), &[hidden]);
        push("gpt_neox.final_layer_norm.bias".into(), &[hidden]);
        if !self.tie_word_embeddings {
            push("embed_out.weight".into(), &[self.vocab_size, hidden]);
        }
        Ok(specs)
    }

    /// Number of weights, shared ones counted once.
    pub fn parameters(&self) -> u64 {
        let (hidden, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let attention_bias = if self.attention_bias { 4 * hidden } else { 0 };
        let attention = 4 * hidden * hidden + attention_bias;
        let feed_forward = 2 * hidden * inner + inner + hidden;
        let layer = 4 * hidden + attention + feed_forward;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let embeddings = tables * self.vocab_size as u64 * hidden;
        embeddings + self.num_hidden_layers as u64 * layer + 2 * hidden
    }
}
