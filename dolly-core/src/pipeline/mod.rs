//! The front door: everything a caller does with a model goes through a [`Pipeline`].

mod builder;
mod convert;
mod device;
mod merge;
mod opened;
mod score;
mod stream;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::generate::Generation;
use crate::generate::answer::{Answer, AnswerPlan};
use crate::generate::engine::{Engine, Ticket};
use crate::generate::request::{Control, Work};
use crate::generate::sampler::{derive_seed, fresh_seed};
use crate::model::Config;
use crate::options::{CancelToken, GenerateOptions, PromptMode, PromptOverflow};
use crate::prompt::{DollyPrompt, Instruction};
use crate::tokenizer::Tokenizer;
use crate::weights::WeightFormat;

pub use builder::PipelineBuilder;
pub use convert::{ConvertOptions, FileFormat, convert, convert_with};
pub use device::Device;
pub(crate) use device::Gpu;
pub use merge::merge_adapter;
pub(crate) use merge::tokenizer_json;
pub(crate) use opened::Opened;
pub use score::RequestOptions;
pub use stream::{Stream, StreamEvent};

/// A loaded model that answers instructions; a cheap handle to share and clone.
///
/// Every call takes `&self` and may run on any thread; calls made at the same time share the
/// engine's steps and give the same results as alone.
///
/// ```no_run
/// use dolly_core::{GenerateOptions, Pipeline};
/// let pipe = Pipeline::from_pretrained("databricks/dolly-v2-3b")?;
/// let answer = pipe.generate("Explain fission and fusion.", &GenerateOptions::default())?;
/// assert!(answer.usage.completion_tokens <= 256);
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Pipeline {
    inner: Arc<Inner>,
}

struct Inner {
    parts: PipelineParts,
    engine: Engine,
}

/// All of a pipeline but its engine.
pub(crate) struct PipelineParts {
    pub id: String,
    pub tokenizer: Tokenizer,
    pub prompt: DollyPrompt,
    pub config: Config,
    pub format: WeightFormat,
    pub context_length: usize,
    pub weight_bytes: u64,
    pub cache_bytes_per_token: u64,
}

/// A text or ids to continue as they are, without Dolly's prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// Text; special tokens in it are plain text.
    Text(&'a str),
    /// Ids of the model's vocabulary.
    Ids(&'a [u32]),
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Self::Ids(ids)
    }
}

/// Bytes a pipeline holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUse {
    /// Weights and tables, as long as the pipeline lives.
    pub weights: u64,
    /// Caches of the sequences being worked on, after the last step.
    pub cache: u64,
    /// Rows of earlier prompts, kept for requests that begin alike
    /// ([`PipelineBuilder::prefix_cache`]).
    pub prefix_cache: u64,
    /// Buffers between the operations of a step; they keep the size of the largest step so far.
    pub workspace: u64,
    /// What one more token of one sequence adds to the cache.
    pub cache_per_token: u64,
}

impl Pipeline {
    pub(crate) fn new(parts: PipelineParts, engine: Engine) -> Self {
        Self { inner: Arc::new(Inner { parts, engine }) }
    }

    /// Loads a model by hub id, directory, `.gguf` file, or `"dolly-nano"` (bundled), with the
    /// default settings; see [`PipelineBuilder`] for others.
    pub fn from_pretrained(id: impl Into<String>) -> Result<Self> {
        Self::builder(id).build()
    }

    /// Settings for loading a model.
    pub fn builder(id: impl Into<String>) -> PipelineBuilder {
        PipelineBuilder::new(id.into())
    }

    /// Answers an instruction.
    ///
    /// Blocks until the answer ends; cancellation and deadline give the text so far.
    /// [`Error::InvalidOption`] names an option outside its range, [`Error::ContextOverflow`] both
    /// lengths of a prompt that does not fit.
    pub fn generate(
        &self,
        instruction: impl Into<Instruction>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.stream(instruction, options)?.finish()
    }

    /// Answers an instruction with its context; the same as [`generate`](Self::generate).
    pub fn generate_with(
        &self,
        instruction: Instruction,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.generate(instruction, options)
    }

    /// Answers an instruction piece by piece through a callback on the calling thread.
    ///
    /// [`ControlFlow::Break`] stops the engine; the result is then the text so far, cancelled.
    pub fn generate_to(
        &self,
        instruction: impl Into<Instruction>,
        options: &GenerateOptions,
        mut sink: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut stream = self.stream(instruction, options)?;
        while let Some(piece) = stream.next() {
            if sink(&piece?).is_break() {
                stream.cancel();
                break;
            }
        }
        stream.finish()
    }

    /// Answers many instructions at once, sharing every pass over the weights.
    ///
    /// One result per answer: `num_return_sequences` results for the first instruction, then those
    /// of the next. An error in one row leaves the others untouched.
    pub fn generate_batch<T>(
        &self,
        instructions: &[T],
        options: &GenerateOptions,
    ) -> Vec<Result<Generation>>
    where
        T: Clone + Into<Instruction>,
    {
        let n = options.num_return_sequences.max(1);
        let one = |instruction: &T, index: usize| {
            let options = self.nth_options(options, index)?;
            self.stream(instruction.clone(), &options)
        };
        let rows = instructions.iter().flat_map(|row| (0..n).map(move |index| (row, index)));
        let streams: Vec<_> = rows.map(|(row, index)| one(row, index)).collect();
        streams.into_iter().map(|stream| stream?.finish()).collect()
    }

    /// Writes `num_return_sequences` answers to one instruction; answer `i` is drawn with a seed
    /// derived from the options' seed and `i`, answer 0 with the seed itself.
    pub fn generate_many(
        &self,
        instruction: impl Into<Instruction>,
        options: &GenerateOptions,
    ) -> Result<Vec<Generation>> {
        let mut options = options.clone();
        options.seed.get_or_insert_with(fresh_seed);
        self.generate_batch(&[instruction.into()], &options).into_iter().collect()
    }

    /// Answers an instruction as an iterator of text pieces; dropping it cancels.
    pub fn stream(
        &self,
        instruction: impl Into<Instruction>,
        options: &GenerateOptions,
    ) -> Result<Stream> {
        let submitted = Instant::now();
        self.check_single(options)?;
        let instruction = instruction.into();
        let ids = self.prompt_ids(&instruction, options)?;
        let prompt = &self.inner.parts.prompt;
        let prefix = match options.prompt_mode {
            PromptMode::Hf => prompt.answer_in_ids(&ids).map(|answer| ids[answer.start..].to_vec()),
            PromptMode::Safe => None,
        };
        let lead = match options.return_full_text {
            true => format!("{}\n", instruction.text()),
            false => String::new(),
        };
        let plan = AnswerPlan {
            end_ids: self.end_ids(),
            end_texts: prompt.stop_texts().iter().map(|text| (*text).to_owned()).collect(),
            prefix: prefix.unwrap_or_default(),
            lead,
            trim: true,
            max_new_tokens: self.new_tokens(options, ids.len()),
            seed: options.seed.unwrap_or_else(fresh_seed),
        };
        Ok(Stream::new(self.submit_answer(ids, plan, options, submitted)?))
    }

    /// Continues a text or ids as they are, without Dolly's prompt: for base models.
    ///
    /// The text of the result is the continuation alone, untrimmed (after the prompt's own text
    /// with `return_full_text`). It ends at the checkpoint's end-of-text token.
    pub fn complete<'a>(
        &self,
        prompt: impl Into<Prompt<'a>>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        self.complete_stream(prompt, options)?.finish()
    }

    /// [`complete`](Self::complete) as an iterator of text pieces; dropping it cancels.
    pub fn complete_stream<'a>(
        &self,
        prompt: impl Into<Prompt<'a>>,
        options: &GenerateOptions,
    ) -> Result<Stream> {
        let submitted = Instant::now();
        self.check_single(options)?;
        let parts = &self.inner.parts;
        let prompt = prompt.into();
        let ids = match prompt {
            Prompt::Text(text) => parts.tokenizer.encode(text, false)?,
            Prompt::Ids(ids) => ids.to_vec(),
        };
        self.check_ids(&ids, parts.context_length - 1)?;
        let lead = match (options.return_full_text, prompt) {
            (false, _) => String::new(),
            (true, Prompt::Text(text)) => text.to_owned(),
            (true, Prompt::Ids(ids)) => parts.tokenizer.decode(ids, true)?,
        };
        let plan = AnswerPlan {
            end_ids: self.end_ids(),
            end_texts: Vec::new(),
            prefix: Vec::new(),
            lead,
            trim: false,
            max_new_tokens: self.new_tokens(options, ids.len()),
            seed: options.seed.unwrap_or_else(fresh_seed),
        };
        Ok(Stream::new(self.submit_answer(ids, plan, options, submitted)?))
    }

    /// The tokenizer of the checkpoint.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.parts.tokenizer
    }

    /// The hyper-parameters of the checkpoint.
    pub fn config(&self) -> &Config {
        &self.inner.parts.config
    }

    /// The format the weights of the layers are held in, never [`WeightFormat::Auto`]; that of most
    /// where a file that mixes types is held as stored.
    pub fn weight_format(&self) -> WeightFormat {
        self.inner.parts.format
    }

    /// Longest sequence in tokens, prompt and answer together.
    pub fn context_length(&self) -> usize {
        self.inner.parts.context_length
    }

    /// What the caller named when loading.
    pub fn id(&self) -> &str {
        &self.inner.parts.id
    }

    /// What is loaded, in bytes.
    pub fn memory(&self) -> MemoryUse {
        let parts = &self.inner.parts;
        let held = self.inner.engine.memory();
        MemoryUse {
            weights: if self.is_closed() { 0 } else { parts.weight_bytes },
            cache: held.cache,
            prefix_cache: held.prefixes,
            workspace: held.workspace,
            cache_per_token: parts.cache_bytes_per_token,
        }
    }

    /// Ends every running request with [`Error::Closed`] and frees the weights, whoever else holds
    /// a clone; later calls give [`Error::Closed`].
    pub fn close(&self) {
        self.inner.engine.close();
    }

    /// Whether [`close`](Self::close) was called on this pipeline or a clone.
    pub fn is_closed(&self) -> bool {
        self.inner.engine.is_closed()
    }

    /// The prompt of an instruction, with room for the answer.
    fn prompt_ids(&self, instruction: &Instruction, options: &GenerateOptions) -> Result<Vec<u32>> {
        let parts = &self.inner.parts;
        let context = parts.context_length;
        let (mode, overflow) = (options.prompt_mode, options.prompt_overflow);
        let room = match overflow {
            PromptOverflow::Error => context - 1,
            PromptOverflow::TruncateContext => {
                context - options.max_new_tokens.min(context / 2).max(1)
            }
        };
        parts.prompt.encode_to_fit(&parts.tokenizer, instruction, mode, overflow, room)
    }

    fn submit_answer(
        &self,
        ids: Vec<u32>,
        plan: AnswerPlan,
        options: &GenerateOptions,
        submitted: Instant,
    ) -> Result<Ticket> {
        let parts = &self.inner.parts;
        let (tokenizer, vocab_size) = (&parts.tokenizer, parts.config.vocab_size);
        let answer = Answer::new(options, plan, ids.len(), tokenizer, vocab_size)?;
        let control = Control {
            cancel: options.cancel.clone(),
            dropped: CancelToken::new(),
            deadline: options.deadline.and_then(|time| submitted.checked_add(time)),
            submitted,
        };
        self.inner.engine.submit(ids, Work::Answer(Box::new(answer)), control)
    }

    fn check_single(&self, options: &GenerateOptions) -> Result<()> {
        options.validate()?;
        match options.num_return_sequences {
            1 => Ok(()),
            n => Err(Error::option("num_return_sequences", n, "1 here; the batch calls take more")),
        }
    }

    fn check_ids(&self, ids: &[u32], room: usize) -> Result<()> {
        let vocab = self.inner.parts.config.vocab_size;
        if ids.is_empty() {
            return Err(Error::InvalidInput("a prompt of no tokens".to_owned()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::InvalidInput(format!("id {id}; the vocabulary has {vocab} ids")));
        }
        match ids.len() > room {
            true => Err(Error::ContextOverflow {
                prompt_tokens: ids.len(),
                context_length: self.inner.parts.context_length,
            }),
            false => Ok(()),
        }
    }

    fn end_ids(&self) -> Vec<u32> {
        let parts = &self.inner.parts;
        parts.config.eos_token_ids.iter().copied().chain(parts.prompt.end_id()).collect()
    }

    fn new_tokens(&self, options: &GenerateOptions, prompt: usize) -> usize {
        options.max_new_tokens.min(self.inner.parts.context_length - prompt)
    }

    /// The options of answer `index` among several to one instruction.
    fn nth_options(&self, options: &GenerateOptions, index: usize) -> Result<GenerateOptions> {
        options.validate()?;
        let seed = options.seed.map(|seed| derive_seed(seed, index));
        Ok(GenerateOptions { num_return_sequences: 1, seed, ..options.clone() })
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline")
            .field("id", &self.inner.parts.id)
            .field("format", &self.inner.parts.format)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
