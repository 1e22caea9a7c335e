//! GGUF files that llama.cpp loads, written tensor after tensor.
//!
//! Keys and tensors are those of `GPTNeoXModel` in llama.cpp's `convert_hf_to_gguf.py` and of
//! `llama_model_gptneox::load_arch_tensors`, which demands every bias and an output matrix.

use std::path::Path;

use super::atomic::AtomicFile;
use super::checkpoint::{Checkpoint, TensorReader};
use super::names::{self, RowOrder};
use super::write::{Progress, TensorToWrite, Watch, stored_type};
use super::{RowSource, StoredType, WeightFormat};
use crate::error::{Error, Result};
use crate::model::{Activation, Config, GGUF_HIDDEN_ACT, main_format, matrix_format, outer_format};

/// Where tensor data starts and every tensor is aligned, the format's default.
const ALIGNMENT: u64 = 32;

/// What a token is, by llama.cpp's numbers (`llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GgufTokenType {
    /// Part of text.
    Normal = 1,
    /// A special token, never text.
    Control = 3,
    /// An added token that is text, such as a run of spaces.
    UserDefined = 4,
    /// A row of the embedding without a token.
    Unused = 5,
}

/// The tokenizer as GGUF stores it: a byte-level BPE vocabulary.
#[derive(Debug, Clone, Default)]
pub struct GgufTokenizer {
    /// Text of every id from 0, in the byte-level alphabet of GPT-2; at most `vocab_size`.
    pub tokens: Vec<String>,
    /// Type of every token.
    pub token_types: Vec<GgufTokenType>,
    /// Merges in order of rank, the two parts separated by a space.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.pre`; `None` writes `olmo`, llama.cpp's name for the GPT-NeoX tokenizer
    /// (the split pattern of GPT-2).
    pub pre: Option<String>,
    /// Token of unknown text.
    pub unknown: Option<u32>,
    /// Token of padding.
    pub padding: Option<u32>,
}

/// Writes a checkpoint as a GGUF file of architecture `gptneox`.
///
/// Matrices are stored as `format` ([`WeightFormat::Auto`]: each as it is or the nearest of these
/// formats); with `q4_0` the two embeddings are `q8_0`, with `q4_k` they are `q6_k`. Rows that
/// super-blocks of 256 do not divide are `q8_0`, those that blocks of 32 do not divide `f16`. What
/// is stored in the blocks asked for is copied. Norms and biases are `f32`. Biases the checkpoint
/// lacks are zeros; a tied output is a copy.
///
/// The file appears whole or not at all; one piece of one tensor is in memory at a time. Errors:
/// [`Error::Unsupported`] for an activation that architecture does not have,
/// [`Error::InvalidInput`] for a tokenizer or a weight that does not fit, [`Error::Tensor`] for a
/// missing tensor or one of another shape, and those of reading and writing.
pub fn write_gguf(
    path: &Path,
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &GgufTokenizer,
    format: WeightFormat,
) -> Result<()> {
    Watch::unwatched(|watch| write_watched(path, checkpoint, config, tokenizer, format, watch))
}

/// As [`write_gguf`], telling `watch` of each tensor.
pub(crate) fn write_watched(
    path: &Path,
    checkpoint: &Checkpoint,
    config: &Config,
    tokenizer: &GgufTokenizer,
    format: WeightFormat,
    watch: &mut Watch<'_>,
) -> Result<()> {
    if !matches!(config.hidden_act, Activation::Gelu | Activation::GeluTanh) {
        let activation = config.hidden_act;
        return Err(Error::Unsupported(format!("GGUF of a model with activation {activation:?}")));
    }
    let tensors = plan(checkpoint, config, format)?;
    let mut pairs = Header::default();
    describe_model(&mut pairs, config, main_format(checkpoint, config, format)?)?;
    describe_tokenizer(&mut pairs, config, tokenizer)?;
    let header = header(&pairs, &tensors)?;
    let mut file = AtomicFile::create(path)?;
    file.write(&header)?;
    let mut progress = Progress::new(watch, tensors.iter().map(|tensor| &*tensor.shape));
    for tensor in &tensors {
        tensor.to_write().write(&mut file, tensor.stored, tensor.order, &mut progress)?;
        let bytes = tensor.to_write().bytes(tensor.stored)?;
        let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
        file.write([0; ALIGNMENT as usize].get(..padding as usize).unwrap_or_default())?;
    }
    file.commit()
}

/// Everything before the data: counts, metadata, descriptions, padding.
fn header(pairs: &Header, tensors: &[Planned<'_>]) -> Result<Vec<u8>> {
    let mut header = Header::default();
    header.raw(b"GGUF").raw(&3u32.to_le_bytes()).raw(&(tensors.len() as u64).to_le_bytes());
    header.raw(&pairs.pairs.to_le_bytes()).raw(&pairs.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        header.string(&tensor.name).raw(&(tensor.shape.len() as u32).to_le_bytes());
        for &dim in tensor.shape.iter().rev() {
            header.raw(&(dim as u64).to_le_bytes());
        }
        header.raw(&ggml_type(tensor.stored).to_le_bytes()).raw(&offset.to_le_bytes());
        let bytes = tensor.to_write().bytes(tensor.stored)?;
        let end = offset.checked_add(bytes).and_then(|e| e.checked_next_multiple_of(ALIGNMENT));
        offset = end.ok_or_else(|| Error::InvalidInput("the file's size overflows".to_owned()))?;
    }
    header.pad();
    Ok(header.bytes)
}

/// A tensor of the file.
struct Planned<'a> {
    name: String,
    shape: Vec<usize>,
    stored: StoredType,
    order: RowOrder,
    source: Source<'a>,
}

enum Source<'a> {
    Reader(TensorReader<'a>),
    Zeros(Zeros),
}

/// A vector of zeros: a bias the checkpoint lacks.
struct Zeros(usize);

impl RowSource for Zeros {
    fn name(&self) -> &str {
        "zeros"
    }
    fn shape(&self) -> (usize, usize) {
        (1, self.0)
    }
    fn read_rows(&self, _first: usize, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        Ok(())
    }
}

impl Planned<'_> {
    fn to_write(&self) -> TensorToWrite<'_> {
        let source: &dyn RowSource = match &self.source {
            Source::Reader(reader) => reader,
            Source::Zeros(zeros) => zeros,
        };
        TensorToWrite { name: &self.name, shape: &self.shape, source }
    }
}

/// Every tensor llama.cpp loads for this configuration, with its source in the checkpoint.
fn plan<'a>(
    checkpoint: &'a Checkpoint,
    config: &Config,
    format: WeightFormat,
) -> Result<Vec<Planned<'a>>> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let heads = config.num_attention_heads;
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::InvalidInput(format!("{heads} heads for hidden_size {hidden}")));
    }
    let three = hidden
        .checked_mul(3)
        .ok_or_else(|| Error::InvalidInput(format!("hidden_size {hidden} overflows")))?;
    let vocab = vec![config.vocab_size, hidden];
    let mut plan = Plan { checkpoint, config, format, tensors: Vec::new() };
    let embedding = "gpt_neox.embed_in.weight";
    plan.add("token_embd.weight", embedding, vocab.clone(), outer_format, false)?;
    for layer in 0..config.num_hidden_layers {
        for (part, shape, optional) in [
            ("input_layernorm", vec![hidden], false),
            ("attention.query_key_value", vec![three, hidden], true),
            ("attention.dense", vec![hidden, hidden], true),
            ("post_attention_layernorm", vec![hidden], false),
            ("mlp.dense_h_to_4h", vec![wide, hidden], false),
            ("mlp.dense_4h_to_h", vec![hidden, wide], false),
        ] {
            let bias = vec![shape.first().copied().unwrap_or_default()];
            plan.part(&format!("gpt_neox.layers.{layer}.{part}.weight"), shape, false)?;
            plan.part(&format!("gpt_neox.layers.{layer}.{part}.bias"), bias, optional)?;
        }
    }
    plan.part("gpt_neox.final_layer_norm.weight", vec![hidden], false)?;
    plan.part("gpt_neox.final_layer_norm.bias", vec![hidden], false)?;
    let tied = config.tie_word_embeddings && !checkpoint.contains("embed_out.weight");
    let output = if tied { embedding } else { "embed_out.weight" };
    plan.add("output.weight", output, vocab, outer_format, false)?;
    Ok(plan.tensors)
}

struct Plan<'a, 'c> {
    checkpoint: &'a Checkpoint,
    config: &'c Config,
    format: WeightFormat,
    tensors: Vec<Planned<'a>>,
}

impl Plan<'_, '_> {
    /// A tensor under its canonical name.
    fn part(&mut self, name: &str, shape: Vec<usize>, optional: bool) -> Result<()> {
        let gguf = names::to_gguf(name)
            .ok_or_else(|| Error::Internal(format!("{name} has no name in GGUF")))?;
        self.add(&gguf, name, shape, matrix_format, optional)
    }

    fn add(
        &mut self,
        gguf: &str,
        name: &str,
        shape: Vec<usize>,
        format_of: fn(&Checkpoint, WeightFormat, &str) -> Result<WeightFormat>,
        optional: bool,
    ) -> Result<()> {
        let stored = match shape[..] {
            [_, cols] => {
                let format = format_of(self.checkpoint, self.format, name)?.fitting(cols);
                let whole = |stored: &StoredType| cols.is_multiple_of(stored.block().0);
                stored_type(format).filter(whole).unwrap_or(StoredType::F16)
            }
            _ => StoredType::F32,
        };
        let source = match (optional && !self.checkpoint.contains(name), &shape[..]) {
            (true, &[len]) => Source::Zeros(Zeros(len)),
            _ => Source::Reader(self.checkpoint.reader(name)?),
        };
        if let Source::Reader(reader) = &source
            && reader.info().shape != shape
        {
            let reason = format!("shape {:?}; {shape:?} is needed", reader.info().shape);
            let file = self.checkpoint.file_of(reader.info());
            return Err(Error::tensor(file, name, reason));
        }
        let order = match names::is_qkv(name) {
            true => RowOrder::SplitQkv {
                heads: self.config.num_attention_heads,
                head_dim: self.config.head_dim(),
            },
            false => RowOrder::Stored,
        };
        self.tensors.push(Planned { name: gguf.to_owned(), shape, stored, order, source });
        Ok(())
    }
}

fn describe_model(pairs: &mut Header, config: &Config, format: WeightFormat) -> Result<()> {
    let number = |field: &str, value: usize| {
        u32::try_from(value)
            .map_err(|_| Error::InvalidInput(format!("{field} {value} is too large")))
    };
    let (file_type, quantized) = match format {
        WeightFormat::F32 => (0, false),
        WeightFormat::F16 => (1, false),
        WeightFormat::Bf16 => (32, false),
        WeightFormat::Q4_0 => (2, true),
        WeightFormat::Q4K => (15, true),
        WeightFormat::Q6K => (18, true),
        _ => (7, true),
    };
    pairs.text("general.architecture", super::gguf::ARCHITECTURE);
    pairs.u32("general.file_type", file_type);
    if quantized {
        pairs.u32("general.quantization_version", 2);
    }
    for (key, value) in [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("rope.dimension_count", config.rotary_dims),
        ("attention.head_count", config.num_attention_heads),
        ("vocab_size", config.vocab_size),
    ] {
        pairs.u32(&format!("gptneox.{key}"), number(key, value)?);
    }
    pairs.f32("gptneox.rope.freq_base", config.rotary_base);
    if config.rotary_scale != 1.0 {
        pairs.text("gptneox.rope.scaling.type", "linear");
        pairs.f32("gptneox.rope.scaling.factor", config.rotary_scale);
    }
    pairs.f32("gptneox.attention.layer_norm_epsilon", config.layer_norm_eps);
    pairs.key("gptneox.use_parallel_residual", 7).raw(&[config.use_parallel_residual.into()]);
    if config.hidden_act != Activation::Gelu {
        pairs.text(GGUF_HIDDEN_ACT, config.hidden_act.name());
    }
    Ok(())
}

fn describe_tokenizer(
    pairs: &mut Header,
    config: &Config,
    tokenizer: &GgufTokenizer,
) -> Result<()> {
    let (tokens, types) = (&tokenizer.tokens, &tokenizer.token_types);
    if tokens.len() != types.len() || tokens.len() > config.vocab_size {
        return Err(Error::InvalidInput(format!(
            "{} tokens with {} types for a vocabulary of {}",
            tokens.len(),
            types.len(),
            config.vocab_size
        )));
    }
    pairs.text("tokenizer.ggml.model", "gpt2");
    pairs.text("tokenizer.ggml.pre", tokenizer.pre.as_deref().unwrap_or("olmo"));
    pairs.array("tokenizer.ggml.tokens", 8, config.vocab_size);
    tokens.iter().for_each(|token| _ = pairs.string(token));
    // llama.cpp takes the vocabulary's size from this list: rows without a token need a name.
    for id in tokens.len()..config.vocab_size {
        pairs.string(&format!("[PAD{id}]"));
    }
    pairs.array("tokenizer.ggml.token_type", 5, config.vocab_size);
    let unused = std::iter::repeat_n(&GgufTokenType::Unused, config.vocab_size - tokens.len());
    types.iter().chain(unused).for_each(|kind| _ = pairs.raw(&(*kind as i32).to_le_bytes()));
    pairs.array("tokenizer.ggml.merges", 8, tokenizer.merges.len());
    tokenizer.merges.iter().for_each(|merge| _ = pairs.string(merge));
    for (name, id) in [
        ("bos", config.bos_token_id),
        ("eos", config.eos_token_ids.first().copied()),
        ("unknown", tokenizer.unknown),
        ("padding", tokenizer.padding),
    ] {
        let Some(id) = id else { continue };
        if id as usize >= config.vocab_size {
            let reason = format!("{name} token {id} of a vocabulary of {}", config.vocab_size);
            return Err(Error::InvalidInput(reason));
        }
        pairs.u32(&format!("tokenizer.ggml.{name}_token_id"), id);
    }
    Ok(())
}

fn ggml_type(stored: StoredType) -> u32 {
    match stored {
        StoredType::F16 => 1,
        StoredType::Q4_0 => 2,
        StoredType::Q8_0 => 8,
        StoredType::Q4K => 12,
        StoredType::Q6K => 14,
        StoredType::Bf16 => 30,
        _ => 0,
    }
}

/// Bytes of a header, and how many pairs they hold.
#[derive(Default)]
struct Header {
    bytes: Vec<u8>,
    pairs: u64,
}

impl Header {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.raw(&(text.len() as u64).to_le_bytes()).raw(text.as_bytes())
    }

    /// A key and the number of its value's type.
    fn key(&mut self, key: &str, kind: u32) -> &mut Self {
        self.pairs += 1;
        self.string(key).raw(&kind.to_le_bytes())
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).raw(&value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).raw(&value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8).string(value);
    }

    /// An array's key, element type and length; the elements follow.
    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9).raw(&kind.to_le_bytes()).raw(&(len as u64).to_le_bytes());
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT as usize);
        self.bytes.resize(padded, 0);
    }
}
