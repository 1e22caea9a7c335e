//! Training and evaluation: options in, the numbers of a run out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dolly_core::dataset::{ReadOptions, TextCorpus};
use dolly_core::source::{self, DownloadProgress, SourceOptions};
use dolly_core::tokenizer;
use dolly_core::train::{
    Evaluation, HistoryRow, MeanLoss, StepReport, StopReason, Trainer, TrainingOptions,
    TrainingRun, evaluate_with_source,
};
use dolly_core::{CancelToken, Config, Error, Result, Tokenizer};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::PyBytes;

use crate::dataset::{NativeDataset, split_size};
use crate::errors::Outcome;
use crate::files::source_options;
use crate::load::{Raised, Reporter, report_download, take};
use crate::lora;
use crate::options::{Fields, convert};
use crate::wait::interruptible;

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(train, module)?)?;
    module.add_function(wrap_pyfunction!(train_text, module)?)?;
    module.add_function(wrap_pyfunction!(train_tokenizer, module)?)?;
    module.add_function(wrap_pyfunction!(evaluate, module)?)
}

/// A file, or its bytes.
#[derive(FromPyObject)]
enum Part {
    Bytes(PyBackedBytes),
    File(PathBuf),
}

/// What a run starts from: a model's name, or `(config, tokenizer)` of a model from nothing.
#[derive(FromPyObject)]
enum Start {
    Model(String),
    Nothing(Part, Part),
}

/// The configuration of a model from nothing.
fn read_config(part: &Part) -> Result<Config> {
    match part {
        Part::Bytes(bytes) => Config::from_json_bytes(bytes, Path::new("config")),
        Part::File(path) => Config::from_json(path),
    }
}

/// The bytes of a `tokenizer.json`.
fn read_tokenizer(part: &Part) -> Result<Vec<u8>> {
    match part {
        Part::Bytes(bytes) => Ok(bytes.to_vec()),
        Part::File(path) => {
            // Checks size and content, and names the file.
            Tokenizer::from_file(path)?;
            std::fs::read(path).map_err(|source| Error::Io { path: path.clone(), source })
        }
    }
}

#[derive(IntoPyObject)]
struct RowDict {
    step: u64,
    epoch: f64,
    loss: f64,
    eval_loss: Option<f64>,
    learning_rate: f64,
    grad_norm: f64,
    tokens_per_second: f64,
}

impl From<&HistoryRow> for RowDict {
    fn from(row: &HistoryRow) -> Self {
        Self {
            step: row.step,
            epoch: row.epoch,
            loss: row.loss,
            eval_loss: row.eval_loss,
            learning_rate: row.learning_rate,
            grad_norm: row.grad_norm,
            tokens_per_second: row.tokens_per_second,
        }
    }
}

#[derive(IntoPyObject)]
struct LossDict {
    loss: f64,
    perplexity: f64,
    tokens: u64,
    rows: u64,
}

impl From<&MeanLoss> for LossDict {
    fn from(mean: &MeanLoss) -> Self {
        let MeanLoss { loss, perplexity, tokens, rows, .. } = *mean;
        Self { loss, perplexity, tokens, rows }
    }
}

#[derive(IntoPyObject)]
struct EvaluationDict {
    loss: f64,
    perplexity: f64,
    tokens: u64,
    rows: u64,
    by_category: BTreeMap<String, LossDict>,
    dropped_rows: u64,
}

impl From<&Evaluation> for EvaluationDict {
    fn from(evaluation: &Evaluation) -> Self {
        let LossDict { loss, perplexity, tokens, rows } = (&evaluation.all).into();
        let categories = evaluation.by_category.iter();
        let by_category = categories.map(|(name, mean)| (name.clone(), mean.into())).collect();
        let dropped_rows = evaluation.dropped_rows;
        Self { loss, perplexity, tokens, rows, by_category, dropped_rows }
    }
}

#[derive(IntoPyObject)]
struct BestDict {
    step: u64,
    eval_loss: f64,
}

/// The fields of `dolly_rs.TrainingRun`.
#[derive(IntoPyObject)]
struct RunDict {
    output_dir: PathBuf,
    history: Vec<RowDict>,
    total_steps: u64,
    stopped: &'static str,
    evaluation: Option<EvaluationDict>,
    best: Option<BestDict>,
    best_checkpoint: Option<PathBuf>,
    train_rows: usize,
    eval_rows: usize,
    dropped_rows: usize,
    resumed_from: Option<u64>,
    warnings: Vec<String>,
}

impl From<TrainingRun> for RunDict {
    fn from(run: TrainingRun) -> Self {
        Self {
            output_dir: run.output_dir,
            history: run.history.iter().map(RowDict::from).collect(),
            total_steps: run.total_steps,
            stopped: match run.stopped {
                StopReason::Finished => "finished",
                StopReason::EarlyStopping => "early_stopping",
                StopReason::Callback => "callback",
                _ => "other",
            },
            evaluation: run.evaluation.as_ref().map(EvaluationDict::from),
            best: run.best.map(|best| BestDict { step: best.step, eval_loss: best.eval_loss }),
            best_checkpoint: run.best_checkpoint,
            train_rows: run.train_rows,
            eval_rows: run.eval_rows,
            dropped_rows: run.dropped_rows,
            resumed_from: run.resumed_from,
            warnings: run.warnings,
        }
    }
}

/// The options from the attributes of `dolly_rs.training._Options`, checked.
fn read(options: &Bound<'_, PyAny>, cancel: &CancelToken) -> Outcome<TrainingOptions> {
    let fields = Fields(options);
    let lora: Option<Bound<'_, PyAny>> = fields.get("lora")?;
    let eval_size: Bound<'_, PyAny> = fields.get("eval_size")?;
    let options = TrainingOptions {
        lora: lora.map(|lora| lora::read(&lora)).transpose()?,
        epochs: fields.get("epochs")?,
        max_steps: fields.get("max_steps")?,
        batch_size: fields.get("batch_size")?,
        gradient_accumulation: fields.get("gradient_accumulation")?,
        learning_rate: fields.get("learning_rate")?,
        warmup_steps: fields.get("warmup_steps")?,
        schedule: fields.get::<String>("schedule")?.parse()?,
        max_length: fields.get("max_length")?,
        eval_size: split_size("eval_size", &eval_size)?,
        eval_steps: fields.get("eval_steps")?,
        save_steps: fields.get("save_steps")?,
        save_total_limit: fields.get("save_total_limit")?,
        logging_steps: fields.get("logging_steps")?,
        gradient_checkpointing: fields.get("gradient_checkpointing")?,
        seed: fields.get("seed")?,
        resume: fields.get("resume")?,
        device: fields.get::<String>("device")?.parse()?,
        precision: fields.get::<String>("precision")?.parse()?,
        threads: fields.get("threads")?,
        weight_decay: fields.get("weight_decay")?,
        adam_beta1: fields.get("adam_beta1")?,
        adam_beta2: fields.get("adam_beta2")?,
        adam_epsilon: fields.get("adam_epsilon")?,
        max_grad_norm: fields.get("max_grad_norm")?,
        dropout: fields.get("dropout")?,
        early_stopping_patience: fields.get("early_stopping_patience")?,
        memory_limit: fields.get("memory_limit")?,
        cancel: Some(cancel.clone()),
    };
    options.validate()?;
    Ok(options)
}

/// What every run has: where it starts, its options and who hears of it.
struct Call {
    start: Start,
    options: TrainingOptions,
    source: SourceOptions,
    token: CancelToken,
    raised: Raised,
    on_step: Option<Reporter>,
    download: Option<Reporter>,
}

/// `(on_step, download)`.
type Callables = (Option<Py<PyAny>>, Option<Py<PyAny>>);

impl Call {
    fn new(
        start: Start,
        options: &Bound<'_, PyAny>,
        bundled_dir: PathBuf,
        (on_step, download): Callables,
    ) -> Outcome<Self> {
        let (token, raised) = (CancelToken::new(), Raised::default());
        let reporter = |call: Py<PyAny>| Reporter::new(call, &token, &raised);
        Ok(Self {
            start,
            options: read(options, &token)?,
            source: source_options(bundled_dir),
            on_step: on_step.map(reporter),
            download: download.map(reporter),
            token,
            raised,
        })
    }

    /// Runs `work` with a trainer, detached.
    fn run(
        self,
        py: Python<'_>,
        work: impl FnOnce(Trainer<'_>) -> Result<TrainingRun> + Send,
    ) -> Outcome<RunDict> {
        let Self { start, options, source, token, raised, on_step, download } = self;
        let train = || {
            let mut trainer = match start {
                Start::Model(model) => {
                    let source = fetch(&model, source, &token, download)?;
                    Trainer::with_source(&model, options, &source)?
                }
                Start::Nothing(config, tokenizer) => {
                    let tokenizer = read_tokenizer(&tokenizer)?;
                    Trainer::from_config(read_config(&config)?, tokenizer, options)?
                }
            };
            if let Some(on_step) = on_step {
                trainer = trainer.on_step(move |report| tell(&on_step, report));
            }
            work(trainer)
        };
        let result = interruptible(py, &token, train)?;
        take(&raised)?;
        Ok(result?.into())
    }
}

/// Has the model's files downloaded; gives the options that find them without the network.
fn fetch(
    model: &str,
    options: SourceOptions,
    token: &CancelToken,
    download: Option<Reporter>,
) -> Result<SourceOptions> {
    let mut report = download.map(report_download);
    source::resolve_with(model, &options, &mut |progress: DownloadProgress<'_>| {
        if let Some(report) = &mut report {
            report(progress);
        }
        match token.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(SourceOptions { offline: true, ..options })
}

/// Calls `on_step(row, total_steps, remaining seconds, evaluation)`; False ends the run.
fn tell(on_step: &Reporter, report: &StepReport) -> ControlFlow<()> {
    let row = RowDict::from(&report.row);
    let evaluation = report.evaluation.as_ref().map(EvaluationDict::from);
    on_step.ask((row, report.total_steps, report.remaining.as_secs_f64(), evaluation))
}

/// Trains on instructions.
#[pyfunction]
#[pyo3(signature = (start, data, output_dir, options, bundled_dir, callables))]
fn train(
    py: Python<'_>,
    start: Start,
    data: &NativeDataset,
    output_dir: PathBuf,
    options: &Bound<'_, PyAny>,
    bundled_dir: PathBuf,
    callables: Callables,
) -> Outcome<RunDict> {
    let call = Call::new(start, options, bundled_dir, callables)?;
    call.run(py, |trainer| trainer.train(&data.0, &output_dir))
}

/// Trains on plain text: `text` has the attributes of `dolly_rs.training._Text`.
#[pyfunction]
#[pyo3(signature = (start, text, output_dir, options, bundled_dir, callables))]
fn train_text(
    py: Python<'_>,
    start: Start,
    text: &Bound<'_, PyAny>,
    output_dir: PathBuf,
    options: &Bound<'_, PyAny>,
    bundled_dir: PathBuf,
    callables: Callables,
) -> Outcome<RunDict> {
    let call = Call::new(start, options, bundled_dir, callables)?;
    let fields = Fields(text);
    let (files, column): (Option<Vec<PathBuf>>, String) =
        (fields.get("files")?, fields.get("column")?);
    let texts: Vec<String> = fields.get("texts")?;
    let reading = ReadOptions {
        name: fields.get("name")?,
        source: fields.get("source")?,
        licence: fields.get("licence")?,
        cancel: Some(call.token.clone()),
        ..ReadOptions::default()
    };
    call.run(py, |trainer| {
        let corpus = match files {
            Some(files) => TextCorpus::from_files(files, &column, &reading)?,
            None => TextCorpus::from_texts(texts, "texts", &reading)?,
        };
        trainer.train_text(&corpus, &output_dir)
    })
}

/// Learns a vocabulary; gives the bytes of a `tokenizer.json`.
///
/// Ctrl-C ends the reading of the texts; merges, once they are being learned, are learned to the
/// end.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, threads))]
fn train_tokenizer<'py>(
    py: Python<'py>,
    texts: Vec<PyBackedStr>,
    vocab_size: &Bound<'py, PyAny>,
    threads: &Bound<'py, PyAny>,
) -> Outcome<Bound<'py, PyBytes>> {
    let vocab_size = convert("vocab_size", vocab_size)?;
    let threads: Option<usize> = convert("threads", threads)?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let (threads, token) = (threads.unwrap_or_else(cores), CancelToken::new());
    let texts = texts.iter().take_while(|_| !token.is_cancelled());
    let learn = || tokenizer::train_tokenizer(texts, vocab_size, threads);
    Ok(PyBytes::new(py, &interruptible(py, &token, learn)??))
}

/// Loss and perplexity on instructions; of the options, those of `train::evaluate` are read.
#[pyfunction]
#[pyo3(signature = (model, data, options, bundled_dir))]
fn evaluate(
    py: Python<'_>,
    model: String,
    data: &NativeDataset,
    options: &Bound<'_, PyAny>,
    bundled_dir: PathBuf,
) -> Outcome<EvaluationDict> {
    let token = CancelToken::new();
    let options = read(options, &token)?;
    let source = source_options(bundled_dir);
    let work = || evaluate_with_source(&model, &data.0, &options, &source);
    Ok((&interruptible(py, &token, work)??).into())
}
