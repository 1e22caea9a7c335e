//! The front of training: a model's name and data in, a directory with a trained model out.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::evaluate::evaluate_examples;
use super::examples::{Examples, Row};
use super::execution::Execution;
use super::model::{Model, Parameter};
use super::network::{BatchSize, NetworkOptions, Start, Trained};
use super::result::{AdapterToWrite, ModelToWrite, SHARD_BYTES, write_adapter_result, write_model};
use super::run::{Job, threads};
use super::special::TokenizerFile;
use super::{Adapter, Evaluation, StepReport, TrainingOptions, TrainingRun};
use crate::dataset::{Dataset, Record, SetInfo, SplitSize, TextCorpus};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::model::Config;
use crate::pipeline::{Opened, tokenizer_json};
use crate::provenance::{Kind, Manifest, timestamp};
use crate::source::{self, SourceOptions};
use crate::weights::{Checkpoint, ModelFiles, TensorToWrite, Values, WeightFormat};

#[cfg(test)]
mod tests;

/// A model to start from.
struct Base {
    name: String,
    files: ModelFiles,
    checkpoint: Checkpoint,
}

/// What the caller hears of each step.
type OnStep<'a> = dyn FnMut(&StepReport) -> ControlFlow<()> + 'a;

/// Trains a model on data and writes the result.
///
/// A full fine-tune adds Dolly's special tokens to a tokenizer that lacks them and gives the
/// embeddings one row per id, as the original does. An adapter leaves its base as it is: where the
/// base lacks the tokens, the prompt's keys are plain text.
///
/// ```
/// use dolly_core::dataset::{Dataset, ReadOptions, Record, SplitSize};
/// use dolly_core::train::{Trainer, TrainingOptions};
///
/// let rows = (1..9).map(|n| Record::new(format!("Count to {n}."), "One, two, and so on."));
/// let data = Dataset::from_records(rows, "counting", &ReadOptions::default())?;
/// let options = TrainingOptions {
///     max_steps: Some(2),
///     batch_size: 2,
///     eval_size: SplitSize::Rows(2),
///     ..Default::default()
/// };
/// let out = std::env::temp_dir().join(format!("dolly-train-example-{}", std::process::id()));
/// let run = Trainer::new("dolly-nano", options)?.train(&data, &out)?;
/// assert_eq!(run.history.len(), 2);
/// let answer = dolly_core::Pipeline::from_pretrained(out.to_str().unwrap())?
///     .generate("Count to 3.", &dolly_core::GenerateOptions::greedy())?;
/// # std::fs::remove_dir_all(out).unwrap();
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[must_use]
pub struct Trainer<'a> {
    /// `None` for a model from nothing.
    base: Option<Base>,
    config: Config,
    tokenizer: TokenizerFile,
    options: TrainingOptions,
    execution: Execution,
    on_step: Box<OnStep<'a>>,
}

impl<'a> Trainer<'a> {
    /// Opens the model to start from: a hub id, a directory, a `.gguf` file, or `dolly-nano`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], [`Error::Device`], [`Error::ModelNotFound`], and those of the
    /// model's files.
    pub fn new(id_or_path: &str, options: TrainingOptions) -> Result<Self> {
        Self::with_source(id_or_path, options, &SourceOptions::from_env())
    }

    /// As [`new`](Self::new), looking for the model where `source` says.
    pub fn with_source(
        id_or_path: &str,
        options: TrainingOptions,
        source: &SourceOptions,
    ) -> Result<Self> {
        options.validate()?;
        let execution = Execution::new(&options)?;
        let files = source::resolve(id_or_path, source)?;
        let checkpoint = Checkpoint::open(&files)?;
        let config = Opened::new(&files, &checkpoint)?.config;
        let origin = Path::new("tokenizer.json");
        let mut tokenizer = TokenizerFile::new(tokenizer_json(&files, &checkpoint)?, origin)?;
        if options.lora.is_none() {
            tokenizer = tokenizer.with_dolly_tokens(origin)?;
        }
        let base = Some(Base { name: id_or_path.to_owned(), files, checkpoint });
        let on_step = Box::new(|_: &StepReport| ControlFlow::Continue(()));
        Ok(Self { base, config, tokenizer, options, execution, on_step })
    }

    /// A model from nothing: random weights of the shape `config` gives, and the bytes of a
    /// `tokenizer.json`, to which Dolly's special tokens are added.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] also for adapters, which need a base; [`Error::Device`];
    /// [`Error::Tokenizer`].
    pub fn from_config(
        config: Config,
        tokenizer_json: Vec<u8>,
        options: TrainingOptions,
    ) -> Result<Self> {
        options.validate()?;
        if options.lora.is_some() {
            return Err(Error::option("lora", "adapters", "none for a model from nothing"));
        }
        let execution = Execution::new(&options)?;
        let origin = Path::new("tokenizer.json");
        let tokenizer = TokenizerFile::new(tokenizer_json, origin)?.with_dolly_tokens(origin)?;
        let on_step = Box::new(|_: &StepReport| ControlFlow::Continue(()));
        Ok(Self { base: None, config, tokenizer, options, execution, on_step })
    }

    /// As on a GPU, on the CPU: for tests.
    #[cfg(feature = "candle")]
    #[doc(hidden)]
    pub fn as_on_gpu(mut self) -> Self {
        self.execution.stand_in();
        self
    }

    /// Called after every step; [`ControlFlow::Break`] ends the run there, with a checkpoint and a
    /// result.
    pub fn on_step(mut self, call: impl FnMut(&StepReport) -> ControlFlow<()> + 'a) -> Self {
        self.on_step = Box::new(call);
        self
    }

    /// Trains on instructions and writes the result to `output_dir`.
    ///
    /// The directory then holds a model in the Hugging Face layout (or an adapter in PEFT's), its
    /// card and manifest, `log.jsonl`, TensorBoard's `runs/`, and the checkpoints.
    ///
    /// # Errors
    /// [`Error::Diverged`] and [`Error::Cancelled`] with all checkpoints kept;
    /// [`Error::InvalidInput`] for data that cannot be trained on, and for a directory with
    /// checkpoints unless [`resume`](TrainingOptions::resume) is set; [`Error::MemoryLimit`];
    /// [`Error::Io`].
    pub fn train(self, data: &Dataset, output_dir: impl AsRef<Path>) -> Result<TrainingRun> {
        let (train, eval) = match has_eval(self.options.eval_size) {
            true => {
                let (train, eval) = data.split(self.options.eval_size, self.options.seed)?;
                (train, Some(eval))
            }
            false => (data.clone(), None),
        };
        let (length, cancel) = (self.max_length(), self.options.cancel.as_ref());
        let encode = |data: &Dataset| {
            Examples::from_rows(data.iter().map(row), &self.tokenizer.tokenizer, length, cancel)
        };
        let eval = eval.as_ref().map(encode).transpose()?.unwrap_or_default();
        let examples = encode(&train)?;
        self.run(&examples, &eval, train.sources(), output_dir.as_ref())
    }

    /// Trains on plain text, packed into blocks of [`max_length`](TrainingOptions::max_length): all
    /// tokens are predicted. Results and errors as [`train`](Self::train).
    pub fn train_text(
        self,
        corpus: &TextCorpus,
        output_dir: impl AsRef<Path>,
    ) -> Result<TrainingRun> {
        let (train, eval) = match has_eval(self.options.eval_size) {
            true => {
                let (train, eval) = corpus.split(self.options.eval_size, self.options.seed)?;
                (train, Some(eval))
            }
            false => (corpus.clone(), None),
        };
        let (length, cancel) = (self.max_length(), self.options.cancel.as_ref());
        let end = self.config.eos_token_ids.first().copied();
        let pack = |corpus: &TextCorpus| {
            let packed = corpus.pack_until(&self.tokenizer.tokenizer, length, end, cancel)?;
            Examples::from_blocks(packed.blocks().map(<[u32]>::to_vec), cancel)
        };
        let eval = eval.as_ref().map(pack).transpose()?.unwrap_or_default();
        let examples = pack(&train)?;
        self.run(&examples, &eval, train.sources(), output_dir.as_ref())
    }

    fn max_length(&self) -> usize {
        let longest = self.config.max_position_embeddings;
        // Rows of this length or more are dropped: one beyond the context would never be run.
        self.options.max_length.unwrap_or(longest).min(longest)
    }

    fn run(
        mut self,
        train: &Examples,
        eval: &Examples,
        sources: &[SetInfo],
        output_dir: &Path,
    ) -> Result<TrainingRun> {
        self.execution.check()?;
        let mut manifest = self.manifest(sources, output_dir)?;
        let base = self.base_digest(&manifest);
        let size = self.options.batch_size;
        let (one, other) = (train.largest_batch(size)?, eval.largest_batch(size)?);
        let batch = BatchSize {
            tokens: one.tokens.max(other.tokens),
            longest: one.longest.max(other.longest),
        };
        let mut network = self.network(batch)?;
        let run = super::run::run(Job {
            model: &mut *network,
            options: &self.options,
            train,
            eval,
            output_dir,
            base,
            on_step: &mut *self.on_step,
        })?;
        tracing::debug!(bytes = network.memory_bytes(), "memory the network took");
        metrics(&mut manifest, &run);
        self.write(network.parameters(), &manifest, output_dir)?;
        Ok(run)
    }

    /// The hyper-parameters of what is trained.
    fn shape(&self) -> Config {
        let vocab_size = match self.options.lora {
            // One row per id, as the original's resize.
            None => self.tokenizer.tokenizer.vocab_size(),
            Some(_) => self.config.vocab_size,
        };
        Config { vocab_size, ..self.config.clone() }
    }

    /// The network with its first weights, for batches up to `batch`, within the memory limit.
    fn network(&self, batch: BatchSize) -> Result<Box<dyn Model>> {
        let config = self.shape();
        let trained = self.options.lora.clone().map_or(Trained::All, Trained::Adapters);
        let options = network_options(&self.options, trained);
        self.execution.check_memory(&config, &options, batch, self.options.memory_limit)?;
        let (rows, seed) = (config.vocab_size, self.options.seed);
        let start = match &self.base {
            Some(base) => Start::load(&base.checkpoint, config, rows, &options.trained, seed)?,
            None => Start::initialised(config, &options.trained, seed)?,
        };
        self.execution.network(start, &options)
    }

    fn manifest(&self, sources: &[SetInfo], output_dir: &Path) -> Result<Manifest> {
        let name = output_dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let kind = if self.options.lora.is_some() { Kind::Adapter } else { Kind::Model };
        let mut manifest = Manifest::new(name.unwrap_or_else(|| "model".to_owned()), kind);
        if let Some(Base { name, files, .. }) = &self.base {
            manifest.add_base(name, files)?;
        }
        manifest.set_tokenizer("tokenizer", &self.tokenizer.json);
        manifest.record.created = Some(timestamp(SystemTime::now()));
        manifest.record.data = sources.to_vec();
        let mut options = json!(self.options.fingerprint());
        if let Some(map) = options.as_object_mut() {
            map.insert("epochs".to_owned(), json!(self.options.epochs));
            map.insert("max_steps".to_owned(), json!(self.options.max_steps));
            map.insert("max_length".to_owned(), json!(self.max_length()));
        }
        manifest.record.options = options;
        Ok(manifest)
    }

    /// The base's identity for a resume: the hashes of its files, or its shape.
    fn base_digest(&self, manifest: &Manifest) -> String {
        let mut hash = Sha256::new();
        match &self.base {
            Some(_) => {
                let files = manifest.record.parents.iter().flat_map(|parent| &parent.part.files);
                files.for_each(|file| hash.update(&file.sha256));
            }
            None => hash.update(json!(self.config.to_json()).to_string()),
        }
        hash.update(Sha256::digest(&self.tokenizer.json));
        hex(&hash.finalize())
    }

    fn write(&self, parameters: &[Parameter], manifest: &Manifest, directory: &Path) -> Result<()> {
        let kept = |p: &&Parameter| p.trainable || self.options.lora.is_none();
        let sources: Vec<(&Parameter, Values<'_>)> = parameters
            .iter()
            .filter(kept)
            .map(|p| Ok((p, Values::of_tensor(&p.name, &p.shape, &p.values)?)))
            .collect::<Result<_>>()?;
        let tensors: Vec<TensorToWrite<'_>> = sources
            .iter()
            .map(|(p, source)| TensorToWrite { name: &p.name, shape: &p.shape, source })
            .collect();
        match (&self.options.lora, &self.base) {
            (Some(lora), Some(Base { name, .. })) => {
                let tokenizer = Some(&*self.tokenizer.json);
                let (config, tensors) = (lora, &*tensors);
                let adapter = AdapterToWrite { config, base: name, tensors, tokenizer, manifest };
                write_adapter_result(directory, &adapter)
            }
            _ => {
                let model = ModelToWrite {
                    config: &self.shape(),
                    tensors: &tensors,
                    format: WeightFormat::F32,
                    tokenizer: &self.tokenizer.json,
                    manifest,
                    shard_bytes: SHARD_BYTES,
                };
                write_model(directory, &model)
            }
        }
    }
}

/// Loss and perplexity of a model, or of an adapter's directory, on instructions; by category too.
///
/// Of `options`, batch size, `max_length`, device, precision, threads and `cancel` are read. The
/// result does not depend on batch size and threads.
///
/// ```
/// use dolly_core::dataset::{Dataset, ReadOptions, Record};
/// use dolly_core::train::{TrainingOptions, evaluate};
/// let rows = [Record::new("Name a colour.", "Red.").with_category("brainstorming")];
/// let data = Dataset::from_records(rows, "mine", &ReadOptions::default())?;
/// let found = evaluate("dolly-nano", &data, &TrainingOptions::default())?;
/// assert_eq!(found.all, found.by_category["brainstorming"]);
/// # Ok::<(), dolly_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidInput`] where no row is left to evaluate, and those of [`Trainer::new`].
pub fn evaluate(id_or_path: &str, data: &Dataset, options: &TrainingOptions) -> Result<Evaluation> {
    evaluate_with_source(id_or_path, data, options, &SourceOptions::from_env())
}

/// As [`evaluate`], looking for the model, or an adapter's base, where `source` says.
pub fn evaluate_with_source(
    id_or_path: &str,
    data: &Dataset,
    options: &TrainingOptions,
    source: &SourceOptions,
) -> Result<Evaluation> {
    options.validate()?;
    let execution = Execution::new(options)?;
    execution.check()?;
    let directory = Path::new(id_or_path);
    let is_adapter =
        directory.join("adapter_config.json").is_file() && !directory.join("config.json").is_file();
    let adapter = is_adapter.then(|| Adapter::read(directory)).transpose()?;
    let base = match &adapter {
        None => id_or_path,
        Some(adapter) => adapter.base().ok_or_else(|| {
            Error::InvalidInput(format!("the adapter in {id_or_path} names no base model"))
        })?,
    };
    let files = source::resolve(base, source)?;
    let mut checkpoint = Checkpoint::open(&files)?;
    let Opened { config, tokenizer } = Opened::new(&files, &checkpoint)?;
    if let Some(adapter) = adapter {
        adapter.attach(&mut checkpoint, &config)?;
    }
    let longest = config.max_position_embeddings;
    let length = options.max_length.unwrap_or(longest).min(longest);
    let cancel = options.cancel.as_ref();
    let examples = Examples::from_rows(data.iter().map(row), &tokenizer, length, cancel)?;
    let rows = config.vocab_size;
    let network = network_options(options, Trained::Nothing);
    let start = Start::load(&checkpoint, config, rows, &network.trained, 0)?;
    let mut network = execution.network(start, &network)?;
    evaluate_examples(&mut *network, &examples, options.batch_size, cancel)
}

fn network_options(options: &TrainingOptions, trained: Trained) -> NetworkOptions {
    NetworkOptions {
        threads: threads(options),
        gradient_checkpointing: options.gradient_checkpointing,
        dropout: options.dropout,
        trained,
    }
}

fn has_eval(size: SplitSize) -> bool {
    match size {
        SplitSize::Rows(rows) => rows > 0,
        SplitSize::Fraction(share) => share > 0.0,
    }
}

fn row(record: &Record) -> Row<'_> {
    Row {
        instruction: &record.instruction,
        context: &record.context,
        response: &record.response,
        category: record.category.as_deref(),
    }
}

fn metrics(manifest: &mut Manifest, run: &TrainingRun) {
    let metrics = &mut manifest.record.metrics;
    metrics.insert("steps".to_owned(), run.history.len() as f64);
    if let Some(row) = run.history.last() {
        metrics.insert("train_loss".to_owned(), row.loss);
    }
    if let Some(evaluation) = &run.evaluation {
        metrics.insert("eval_loss".to_owned(), evaluation.all.loss);
        metrics.insert("eval_perplexity".to_owned(), evaluation.all.perplexity);
    }
}
