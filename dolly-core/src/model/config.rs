//! The hyper-parameters of a GPT-NeoX network, read from a checkpoint and checked.

use crate::weights::WeightFormat;

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
}
