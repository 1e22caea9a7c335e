//! The loop of a run: step, evaluate, log, save, stop.

use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::checkpoint;
use super::evaluate::{Evaluation, evaluate_examples};
use super::examples::{Example, Examples};
use super::log::Log;
use super::model::{LossSum, Model};
use super::optimizer::{AdamSettings, AdamW, clip_scale};
use super::options::TrainingOptions;
use super::order::{Plan, epoch_order, noise};
use super::state::{BestLoss, HistoryRow, Identity, State};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::kernels::pool::Pool;
use crate::options::CancelToken;

#[cfg(test)]
mod tests;

/// What a callback is told after every step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The step's numbers.
    pub row: HistoryRow,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// What was evaluated after the step, where something was.
    pub evaluation: Option<Evaluation>,
    /// Time the remaining steps will take at the speed so far.
    pub remaining: Duration,
}

/// Called after every step; [`ControlFlow::Break`] ends the run there, with a checkpoint.
pub(crate) type OnStep<'a> = dyn FnMut(&StepReport) -> ControlFlow<()> + 'a;

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// All steps are made.
    Finished,
    /// Evaluation did not improve for long enough; the result is the best checkpoint.
    EarlyStopping,
    /// A callback said so.
    Callback,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainingRun {
    /// The directory with the result, the checkpoints and the logs.
    pub output_dir: PathBuf,
    /// Every step, those before a resume included.
    pub history: Vec<HistoryRow>,
    /// Steps that all epochs would have.
    pub total_steps: u64,
    /// Why the run ended.
    pub stopped: StopReason,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
    /// The lowest evaluation loss.
    pub best: Option<BestLoss>,
    /// The checkpoint with the lowest evaluation loss.
    pub best_checkpoint: Option<PathBuf>,
    /// Rows that were trained on.
    pub train_rows: usize,
    /// Rows that were evaluated on.
    pub eval_rows: usize,
    /// Rows left out of both because they were too long.
    pub dropped_rows: usize,
    /// The step of the checkpoint that the run went on from.
    pub resumed_from: Option<u64>,
    /// What a user should know: damaged checkpoints that were passed over.
    pub warnings: Vec<String>,
}

/// What a run works on.
pub(crate) struct Job<'a, M: ?Sized> {
    pub model: &'a mut M,
    pub options: &'a TrainingOptions,
    pub train: &'a Examples,
    /// May be empty.
    pub eval: &'a Examples,
    pub output_dir: &'a Path,
    /// Digest of the weights the model began with.
    pub base: String,
    pub on_step: &'a mut OnStep<'a>,
}

/// Trains; the model's parameters then hold the result's weights, as they were last saved.
///
/// # Errors
/// [`Error::Diverged`] at a loss or norm that is not finite and [`Error::Cancelled`], both with
/// all checkpoints kept; [`Error::InvalidInput`] without rows, or where the directory holds
/// another run; [`Error::Io`].
pub(crate) fn run<M: Model + ?Sized>(job: Job<'_, M>) -> Result<TrainingRun> {
    job.options.validate()?;
    let _held = Held::new(job.output_dir)?;
    checkpoint::clean(job.output_dir)?;
    let mut runner = Runner::new(job)?;
    runner.resume()?;
    let stopped = runner.steps()?;
    runner.finish(stopped)
}

/// A directory held against other runs until this is dropped.
struct Held(File);

impl Held {
    /// Makes the directory and holds it.
    fn new(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|error| Error::io(directory, error))?;
        let path = directory.join(".training.lock");
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|error| Error::io(&path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(std::fs::TryLockError::WouldBlock) => {
                let reason = format!("another run is training into {}", directory.display());
                Err(Error::InvalidInput(reason))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(Error::io(path, error)),
        }
    }
}

impl Drop for Held {
    /// Closing the file is not enough: a process that is being started holds a copy of it until it
    /// runs its program.
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked by the close that follows.
        drop(self.0.unlock());
    }
}

struct Runner<'a, M: ?Sized> {
    job: Job<'a, M>,
    pool: Pool,
    plan: Plan,
    total: u64,
    optimizer: AdamW,
    identity: Identity,
    state: State,
    log: Option<Log>,
    /// The order of the epoch of this number.
    order: Option<(u64, Vec<usize>)>,
    evaluation: Option<Evaluation>,
    resumed_from: Option<u64>,
    warnings: Vec<String>,
    /// Time and number of this process's steps, for the estimate.
    spent: (Duration, u32),
}

impl<'a, M: Model + ?Sized> Runner<'a, M> {
    fn new(job: Job<'a, M>) -> Result<Self> {
        let options = job.options;
        let rows = job.train.list.len();
        if rows == 0 {
            let dropped = job.train.dropped;
            let reason = format!("there is no row to train on ({dropped} were too long)");
            return Err(Error::InvalidInput(reason));
        }
        let (batch_size, accumulation) = (options.batch_size, options.gradient_accumulation);
        let plan = Plan { rows, batch_size, accumulation };
        let settings = AdamSettings {
            beta1: options.adam_beta1,
            beta2: options.adam_beta2,
            epsilon: options.adam_epsilon,
            weight_decay: options.weight_decay,
        };
        let mut hash = Sha256::new();
        job.train.digest(&mut hash);
        let identity = Identity {
            options: options.fingerprint(),
            seed: options.seed,
            base: job.base.clone(),
            data: hex(&hash.finalize()),
        };
        Ok(Self {
            pool: Pool::new(threads(options))?,
            plan,
            total: plan.total_steps(options.epochs, options.max_steps),
            optimizer: AdamW::new(settings, job.model.parameters())?,
            identity,
            job,
            state: State::default(),
            log: None,
            order: None,
            evaluation: None,
            resumed_from: None,
            warnings: Vec::new(),
            spent: (Duration::ZERO, 0),
        })
    }

    /// Goes back to the newest sound checkpoint, where that is asked for; opens the logs.
    fn resume(&mut self) -> Result<()> {
        let directory = self.job.output_dir;
        let checkpoints = checkpoint::list(directory)?;
        if let (false, Some(newest)) = (self.job.options.resume, checkpoints.first()) {
            return Err(Error::InvalidInput(format!(
                "{} holds checkpoint-{newest} of an earlier run: resume it, or train into another \
                 directory",
                directory.display()
            )));
        }
        let mut damage = None;
        for step in checkpoints {
            let path = checkpoint::path(directory, step);
            if let Err(error) = checkpoint::verify(&path) {
                tracing::warn!(%error, "checkpoint {step} is damaged and passed over");
                self.warnings.push(format!("checkpoint-{step} is damaged: {error}"));
                damage.get_or_insert(error);
                continue;
            }
            let parameters = self.job.model.parameters_mut();
            let optimizer = &mut self.optimizer;
            let (identity, plan) = (&self.identity, &self.plan);
            self.state = checkpoint::restore(&path, parameters, optimizer, identity, plan)?;
            self.job.model.store(&self.optimizer)?;
            self.resumed_from = Some(step);
            break;
        }
        // To begin anew beside damaged checkpoints would give up what may be repaired.
        if let (None, Some(error)) = (self.resumed_from, damage) {
            return Err(error);
        }
        self.log = Some(Log::open(directory, self.state.step)?);
        Ok(())
    }

    fn steps(&mut self) -> Result<StopReason> {
        while self.state.step < self.total {
            // After a resume too: the run that was resumed may have stopped at its checkpoint.
            if self.out_of_patience() {
                return Ok(StopReason::EarlyStopping);
            }
            let start = Instant::now();
            let (mut row, tokens) = self.step()?;
            let time = start.elapsed();
            row.tokens_per_second = tokens as f64 / time.as_secs_f64().max(1e-9);
            self.spent = (self.spent.0 + time, self.spent.1.saturating_add(1));
            let last = self.state.step + 1 == self.total;
            let evaluation = self.evaluate(row.step, last)?;
            row.eval_loss = evaluation.as_ref().map(|evaluation| evaluation.all.loss);
            self.state.step = row.step;
            self.state.history.push(row);
            let improved = self.track(&row);
            let options = self.job.options;
            if last || evaluation.is_some() || row.step.is_multiple_of(options.logging_steps) {
                self.log.as_mut().map_or(Ok(()), |log| log.row(&row, evaluation.as_ref()))?;
            }
            let stop = self.stop(row, evaluation);
            let due = options.save_steps > 0 && row.step.is_multiple_of(options.save_steps);
            let best = improved && options.early_stopping_patience.is_some();
            if due || best || last || stop.is_some() {
                self.save(&row)?;
            }
            if let Some(reason) = stop {
                return Ok(reason);
            }
        }
        Ok(StopReason::Finished)
    }

    /// One update; gives its numbers and the tokens of its sequences.
    fn step(&mut self) -> Result<(HistoryRow, usize)> {
        let number = self.state.step + 1;
        let batches = self.batches()?;
        let labels: usize = batches.iter().flatten().map(|example| example.labels()).sum();
        let tokens = batches.iter().flatten().map(|example| example.ids.len()).sum();
        let options = self.job.options;
        self.job.model.zero_gradients();
        let mut loss = LossSum::default();
        for (index, batch) in batches.iter().enumerate() {
            if options.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
                return Err(Error::Cancelled);
            }
            let sequences: Vec<_> = batch.iter().map(|example| example.sequence()).collect();
            let seed = noise(options.seed, self.state.step, index);
            let scale = (1.0 / labels.max(1) as f64) as f32;
            let sum = self.job.model.accumulate(&sequences, scale, seed)?;
            loss.nats += sum.nats;
            loss.tokens += sum.tokens;
        }
        let mean = finite(loss.nats / loss.tokens.max(1) as f64, number, "the loss")?;
        let norm = self.job.model.gradient_norm(&self.pool)?;
        let norm = finite(norm, number, "the norm of the gradients")?;
        let factor = options.schedule.factor(self.state.step, options.warmup_steps, self.total);
        let rate = options.learning_rate * factor;
        let clip = clip_scale(norm, options.max_grad_norm);
        self.job.model.update(&mut self.optimizer, &self.pool, rate, clip)?;
        let row = HistoryRow {
            step: number,
            epoch: self.plan.epochs_after(number),
            loss: mean,
            learning_rate: rate,
            grad_norm: norm,
            ..HistoryRow::default()
        };
        Ok((row, tokens))
    }

    /// The batches of the next step.
    fn batches(&mut self) -> Result<Vec<Vec<&'a Example>>> {
        let (epoch, range) = self.plan.locate(self.state.step);
        if self.order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let order = epoch_order(self.plan.rows, self.job.options.seed, epoch)?;
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().and_then(|(_, order)| order.get(range)).unwrap_or_default();
        let list = &self.job.train.list;
        let batch = |rows: &[usize]| rows.iter().filter_map(|row| list.get(*row)).collect();
        Ok(order.chunks(self.plan.batch_size).map(batch).collect())
    }

    /// Evaluates after step `number`, where that is due.
    fn evaluate(&mut self, number: u64, last: bool) -> Result<Option<Evaluation>> {
        let Job { options, eval, .. } = self.job;
        let due = options.eval_steps > 0 && number.is_multiple_of(options.eval_steps);
        if eval.list.is_empty() || !(due || last) {
            return Ok(None);
        }
        let (size, cancel) = (options.batch_size, options.cancel.as_ref());
        let evaluation = evaluate_examples(self.job.model, eval, size, cancel)?;
        finite(evaluation.all.loss, number, "the evaluation loss")?;
        self.evaluation = Some(evaluation.clone());
        Ok(Some(evaluation))
    }

    /// Notes the evaluation of a step; whether it is the best so far.
    fn track(&mut self, row: &HistoryRow) -> bool {
        let Some(eval_loss) = row.eval_loss else { return false };
        let improved = self.state.best.is_none_or(|best| eval_loss < best.eval_loss);
        match improved {
            true => self.state.best = Some(BestLoss { step: row.step, eval_loss }),
            false => self.state.evaluations_since_best += 1,
        }
        if improved {
            self.state.evaluations_since_best = 0;
        }
        improved
    }

    /// Tells the callback; the reason to stop here, if there is one.
    fn stop(&mut self, row: HistoryRow, evaluation: Option<Evaluation>) -> Option<StopReason> {
        let (spent, steps) = self.spent;
        let left = self.total.saturating_sub(row.step);
        let seconds = spent.as_secs_f64() / f64::from(steps.max(1)) * left as f64;
        let evaluated = evaluation.is_some();
        let report = StepReport {
            row,
            total_steps: self.total,
            evaluation,
            remaining: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX),
        };
        if (self.job.on_step)(&report).is_break() {
            return Some(StopReason::Callback);
        }
        (evaluated && self.out_of_patience()).then_some(StopReason::EarlyStopping)
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.job.options.early_stopping_patience;
        patience.is_some_and(|most| self.state.evaluations_since_best >= most as u64)
    }

    fn save(&mut self, row: &HistoryRow) -> Result<()> {
        if let Some(eval_loss) = row.eval_loss
            && self.state.best_saved.is_none_or(|best| eval_loss < best.eval_loss)
        {
            self.state.best_saved = Some(BestLoss { step: row.step, eval_loss });
        }
        self.job.model.fetch(&mut self.optimizer)?;
        let (directory, parameters) = (self.job.output_dir, self.job.model.parameters());
        let (optimizer, identity) = (&self.optimizer, &self.identity);
        checkpoint::save(directory, parameters, optimizer, &self.state, identity, &self.plan)?;
        let best = self.state.best_saved.map(|best| best.step);
        checkpoint::prune(directory, row.step, best, self.job.options.save_total_limit)
    }

    fn finish(self, stopped: StopReason) -> Result<TrainingRun> {
        let Self { job, state, .. } = self;
        let best = state.best_saved.map(|best| checkpoint::path(job.output_dir, best.step));
        // Also where the run that stopped early was an earlier process, or all steps were made.
        if let (Some(best), Some(_)) = (&best, job.options.early_stopping_patience) {
            checkpoint::verify(best)?;
            checkpoint::restore_weights(best, job.model.parameters_mut())?;
        }
        Ok(TrainingRun {
            output_dir: job.output_dir.to_owned(),
            history: state.history,
            total_steps: self.total,
            stopped,
            evaluation: self.evaluation,
            best: state.best,
            best_checkpoint: best,
            train_rows: job.train.list.len(),
            eval_rows: job.eval.list.len(),
            dropped_rows: job.train.dropped.saturating_add(job.eval.dropped),
            resumed_from: self.resumed_from,
            warnings: self.warnings,
        })
    }
}

/// The threads of a run: one per core unless the options say.
pub(crate) fn threads(options: &TrainingOptions) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(1024);
    options.threads.unwrap_or_else(cores)
}

fn finite(value: f64, step: u64, what: &str) -> Result<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(Error::Diverged { step, what: format!("{what} is {value}") }),
    }
}
