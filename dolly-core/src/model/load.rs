//! From a checkpoint to a network in memory: plan first, then read, convert and pack.

use crate::backend::{Backend, RotaryTable};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::model::neox::{Layer, NeoX};
use crate::options::CancelToken;
use crate::weights::{Checkpoint, StoredType, WeightFormat};

/// How far loading has come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Weights loaded so far.
    pub loaded: u64,
    /// All weights of the model.
    pub total: u64,
    /// The tensor loaded last.
    pub tensor: String,
}

/// What loading is to make of a checkpoint.
pub(crate) struct LoadPlan<'a> {
    pub format: WeightFormat,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Bytes the whole pipeline may take.
    pub memory_limit: Option<u64>,
    pub progress: &'a mut dyn FnMut(LoadProgress),
    /// Stops the load after the tensor it is at.
    pub cancel: CancelToken,
}

/// The memory format nearest to what a checkpoint stores, for [`WeightFormat::Auto`].
///
/// Formats of ggml that have no kernel of their own load as `Q8_0`, whose error is below theirs.
pub(crate) fn nearest_format(stored: StoredType) -> WeightFormat {
    match stored {
        StoredType::F64 | StoredType::F32 | StoredType::Other => WeightFormat::F32,
        StoredType::F16 => WeightFormat::F16,
        StoredType::Bf16 => WeightFormat::Bf16,
        StoredType::Q4_0 => WeightFormat::Q4_0,
        _ => WeightFormat::Q8_0,
    }
}

/// The format of the embedding and the output layer: 4 bits cost them more accuracy than any
/// other layer, at a small share of the bytes.
fn outer_format(format: WeightFormat) -> WeightFormat {
    match format {
        WeightFormat::Q4_0 => WeightFormat::Q8_0,
        other => other,
    }
}

/// Bytes of the weights, the rotary table and nothing else.
pub(crate) fn weight_bytes<B: Backend>(
    backend: &B,
    config: &Config,
    format: WeightFormat,
    context_length: usize,
) -> u64 {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let outer = outer_format(format);
    let vector = |len: usize| 4 * len as u64;
    let products = [(3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)];
    let layer: u64 = products.iter().map(|(o, i)| backend.linear_bytes(*o, *i, format)).sum();
    let layer = layer + vector(3 * hidden + hidden + inner + hidden) + vector(4 * hidden);
    let layers = layer.saturating_mul(config.num_hidden_layers as u64);
    let embedding = backend.embedding_bytes(config.vocab_size, hidden, outer);
    let head = backend.linear_bytes(config.vocab_size, hidden, outer);
    let rotary = vector(context_length.saturating_mul(config.rotary_dims));
    layers.saturating_add(embedding + head + vector(2 * hidden) + rotary)
}

/// Loads a network; [`Error::MemoryLimit`] when the plan exceeds the budget, before any weight is
/// read.
pub(crate) fn load<'a, B: Backend>(
    backend: B,
    checkpoint: &'a Checkpoint,
    config: Config,
    plan: LoadPlan<'a>,
) -> Result<NeoX<B>> {
    let format = plan.format;
    let bytes = weight_bytes(&backend, &config, format, plan.context_length);
    let needed = bytes.saturating_add(backend.cache_bytes(&config, 1));
    if let Some(limit) = plan.memory_limit.filter(|limit| needed > *limit) {
        let what = format!("the model in {format} with room for one token");
        return Err(Error::MemoryLimit { what, needed, limit });
    }
    let total = config.parameters();
    let loader = Loader { backend, checkpoint, config, format, loaded: 0, total, plan };
    loader.network(bytes)
}

struct Loader<'a, B: Backend> {
    backend: B,
    checkpoint: &'a Checkpoint,
    config: Config,
    format: WeightFormat,
    loaded: u64,
    total: u64,
    plan: LoadPlan<'a>,
}

impl<B: Backend> Loader<'_, B> {
    fn network(mut self, weight_bytes: u64) -> Result<NeoX<B>> {
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let embed_name = "gpt_neox.embed_in.weight";
        let outer = outer_format(self.format);
        self.check_shape(embed_name, (vocab, hidden))?;
        let reader = self.checkpoint.reader(embed_name)?;
        let embedding = self.backend.load_embedding(&reader, outer)?;
        self.report(embed_name, vocab * hidden)?;
        let mut layers = Vec::with_capacity(self.config.num_hidden_layers);
        for index in 0..self.config.num_hidden_layers {
            layers.push(self.layer(index)?);
        }
        let final_norm = self.norm("gpt_neox.final_layer_norm")?;
        let head_name = match self.config.tie_word_embeddings {
            true => embed_name,
            false => "embed_out.weight",
        };
        let head = self.linear(head_name, None, (vocab, hidden), outer)?;
        let rotary = RotaryTable::new(&self.config, self.plan.context_length)?;
        let Self { backend, config, .. } = self;
        Ok(NeoX { backend, config, embedding, layers, final_norm, head, rotary, weight_bytes })
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let name = |part: &str| format!("gpt_neox.layers.{index}.{part}");
        let attention_bias = self.config.attention_bias;
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm"))?,
            post_attention_norm: self.norm(&name("post_attention_layernorm"))?,
            query_key_value: self.layer_linear(
                &name("attention.query_key_value"),
                attention_bias,
                (3 * hidden, hidden),
            )?,
            dense: self.layer_linear(&name("attention.dense"), attention_bias, (hidden, hidden))?,
            dense_h_to_4h: self.layer_linear(&name("mlp.dense_h_to_4h"), true, (inner, hidden))?,
            dense_4h_to_h: self.layer_linear(&name("mlp.dense_4h_to_h"), true, (hidden, inner))?,
        })
    }

    fn layer_linear(&mut self, name: &str, bias: bool, shape: (usize, usize)) -> Result<B::Linear> {
        let bias = bias.then(|| format!("{name}.bias"));
        self.linear(&format!("{name}.weight"), bias.as_deref(), shape, self.format)
    }

    fn linear(
        &mut self,
        name: &str,
        bias: Option<&str>,
        shape: (usize, usize),
        format: WeightFormat,
    ) -> Result<B::Linear> {
        self.check_shape(name, shape)?;
        let bias = bias.map(|bias| self.checkpoint.read_vec(bias, shape.0)).transpose()?;
        let weights = shape.0 * shape.1 + bias.as_ref().map_or(0, Vec::len);
        let reader = self.checkpoint.reader(name)?;
        let linear = self.backend.load_linear(&reader, bias, format)?;
        self.report(name, weights)?;
        Ok(linear)
    }

    fn norm(&mut self, name: &str) -> Result<B::Norm> {
        let len = self.config.hidden_size;
        let weight = self.checkpoint.read_vec(&format!("{name}.weight"), len)?;
        let bias = self.checkpoint.read_vec(&format!("{name}.bias"), len)?;
        self.report(name, 2 * len)?;
        self.backend.load_norm(weight, bias, self.config.layer_norm_eps)
    }

    fn check_shape(&self, name: &str, (rows, cols): (usize, usize)) -> Result<()> {
        let info = self.checkpoint.tensor(name)?;
        if info.shape == [rows, cols] {
            return Ok(());
        }
        let reason = format!("shape {:?}; the configuration says [{rows}, {cols}]", info.shape);
        Err(Error::tensor(self.checkpoint.file_of(info), name, reason))
    }

    fn report(&mut self, tensor: &str, weights: usize) -> Result<()> {
        self.loaded += weights as u64;
        let (loaded, total) = (self.loaded.min(self.total), self.total);
        (self.plan.progress)(LoadProgress { loaded, total, tensor: tensor.to_owned() });
        match self.plan.cancel.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}
