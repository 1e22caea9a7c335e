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
    /// The format of the matrices; [`WeightFormat::Auto`]: of each the nearest to what is stored.
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
fn nearest_format(stored: StoredType) -> WeightFormat {
    match stored {
        StoredType::F64 | StoredType::F32 | StoredType::Other => WeightFormat::F32,
        StoredType::F16 => WeightFormat::F16,
        StoredType::Bf16 => WeightFormat::Bf16,
        StoredType::Q4_0 => WeightFormat::Q4_0,
        StoredType::Q4K => WeightFormat::Q4K,
        StoredType::Q6K => WeightFormat::Q6K,
        _ => WeightFormat::Q8_0,
    }
}

/// The format that most weights of the layers are held in, when `format` is asked for.
pub(crate) fn main_format(
    checkpoint: &Checkpoint,
    config: &Config,
    format: WeightFormat,
) -> Result<WeightFormat> {
    let mut totals = WeightFormat::ALL.map(|format| (format, 0u64));
    for index in 0..config.num_hidden_layers {
        for (part, (outputs, inputs)) in matrices(config) {
            let format = matrix_format(checkpoint, format, &weight(index, part))?.fitting(inputs);
            for total in totals.iter_mut().filter(|total| total.0 == format) {
                total.1 = total.1.saturating_add((outputs as u64).saturating_mul(inputs as u64));
            }
        }
    }
    // Of equals the first.
    let main = totals.iter().skip(1).rev().max_by_key(|total| total.1);
    Ok(main.map_or(WeightFormat::F32, |main| main.0))
}

/// The format of one matrix. What an adapter was added to is no longer what is stored: rounding the
/// sum to the few bits of a K-quant again would lose what the adapter learned.
pub(crate) fn matrix_format(
    checkpoint: &Checkpoint,
    format: WeightFormat,
    name: &str,
) -> Result<WeightFormat> {
    let stored = checkpoint.tensor(name)?.stored;
    if format != WeightFormat::Auto {
        return Ok(format);
    }
    Ok(match nearest_format(stored) {
        WeightFormat::Q4K | WeightFormat::Q6K if checkpoint.is_added(name) => WeightFormat::Q8_0,
        nearest => nearest,
    })
}

/// The format of the embedding and the output layer: 4 bits cost them more accuracy than any
/// other layer, at a small share of the bytes. Where they are stored as Q4_K that is lost already.
pub(crate) fn outer_format(
    checkpoint: &Checkpoint,
    format: WeightFormat,
    name: &str,
) -> Result<WeightFormat> {
    let stored = checkpoint.tensor(name)?.stored;
    Ok(match matrix_format(checkpoint, format, name)? {
        WeightFormat::Q4_0 => WeightFormat::Q8_0,
        WeightFormat::Q4K if stored != StoredType::Q4K => WeightFormat::Q6K,
        other => other,
    })
}

/// The matrices of a layer, `(outputs, inputs)`.
fn matrices(config: &Config) -> [(&'static str, (usize, usize)); 4] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    [
        ("attention.query_key_value", (hidden.saturating_mul(3), hidden)),
        ("attention.dense", (hidden, hidden)),
        ("mlp.dense_h_to_4h", (inner, hidden)),
        ("mlp.dense_4h_to_h", (hidden, inner)),
    ]
}

const EMBEDDING: &str = "gpt_neox.embed_in.weight";

fn weight(layer: usize, part: &str) -> String {
    format!("gpt_neox.layers.{layer}.{part}.weight")
}

fn head_name(config: &Config) -> &'static str {
    match config.tie_word_embeddings {
        true => EMBEDDING,
        false => "embed_out.weight",
    }
}

/// Bytes of the weights, the rotary table and nothing else.
pub(crate) fn weight_bytes<B: Backend>(
    backend: &B,
    checkpoint: &Checkpoint,
    config: &Config,
    format: WeightFormat,
    context_length: usize,
) -> Result<u64> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let vector = |len: usize| 4 * len as u64;
    let mut layers = (vector(3 * hidden + hidden + inner + hidden) + vector(4 * hidden))
        .saturating_mul(config.num_hidden_layers as u64);
    for index in 0..config.num_hidden_layers {
        for (part, (outputs, inputs)) in matrices(config) {
            let format = matrix_format(checkpoint, format, &weight(index, part))?;
            layers = layers.saturating_add(backend.linear_bytes(outputs, inputs, format));
        }
    }
    let outer = |name| outer_format(checkpoint, format, name);
    let embedding = backend.embedding_bytes(config.vocab_size, hidden, outer(EMBEDDING)?);
    let head = backend.linear_bytes(config.vocab_size, hidden, outer(head_name(config))?);
    let rotary = vector(context_length.saturating_mul(config.rotary_dims));
    let rest = embedding.saturating_add(head).saturating_add(vector(2 * hidden) + rotary);
    Ok(layers.saturating_add(rest))
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
    let bytes = weight_bytes(&backend, checkpoint, &config, format, plan.context_length)?;
    let needed = bytes.saturating_add(backend.cache_bytes(&config, 1));
    if let Some(limit) = plan.memory_limit.filter(|limit| needed > *limit) {
        let what = match format {
            WeightFormat::Auto => "the model as stored with room for one token".to_owned(),
            format => format!("the model in {format} with room for one token"),
        };
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
        let outer = outer_format(self.checkpoint, self.format, EMBEDDING)?;
        self.check_shape(EMBEDDING, (vocab, hidden))?;
        let reader = self.checkpoint.reader(EMBEDDING)?;
        let embedding = self.backend.load_embedding(&reader, outer)?;
        self.report(EMBEDDING, vocab * hidden)?;
        let mut layers = Vec::with_capacity(self.config.num_hidden_layers);
        for index in 0..self.config.num_hidden_layers {
            layers.push(self.layer(index)?);
        }
        let final_norm = self.norm("gpt_neox.final_layer_norm")?;
        let head_name = head_name(&self.config);
        let outer = outer_format(self.checkpoint, self.format, head_name)?;
        let head = self.linear(head_name, None, (vocab, hidden), outer)?;
        let rotary = RotaryTable::new(&self.config, self.plan.context_length)?;
        let Self { backend, config, .. } = self;
        Ok(NeoX { backend, config, embedding, layers, final_norm, head, rotary, weight_bytes })
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>> {
        let name = |part: &str| format!("gpt_neox.layers.{index}.{part}");
        let [query_key_value, dense, h_to_4h, to_h] = matrices(&self.config);
        let attention_bias = self.config.attention_bias;
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm"))?,
            post_attention_norm: self.norm(&name("post_attention_layernorm"))?,
            query_key_value: self.layer_linear(index, attention_bias, query_key_value)?,
            dense: self.layer_linear(index, attention_bias, dense)?,
            dense_h_to_4h: self.layer_linear(index, true, h_to_4h)?,
            dense_4h_to_h: self.layer_linear(index, true, to_h)?,
        })
    }

    fn layer_linear(
        &mut self,
        index: usize,
        bias: bool,
        (part, shape): (&str, (usize, usize)),
    ) -> Result<B::Linear> {
        let name = weight(index, part);
        let bias = bias.then(|| format!("gpt_neox.layers.{index}.{part}.bias"));
        let format = matrix_format(self.checkpoint, self.format, &name)?;
        self.linear(&name, bias.as_deref(), shape, format)
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
