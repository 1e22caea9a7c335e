//! What a run writes as it goes: `log.jsonl`, and event files for TensorBoard in `runs/`.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::evaluate::Evaluation;
use super::state::HistoryRow;
use super::tensorboard::EventWriter;
use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// Longest line of a log that is read back.
const MAX_LINE: u64 = 1 << 20;

/// The logs of one run.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    path: PathBuf,
    board: EventWriter,
}

impl Log {
    /// Opens the logs in `directory`; rows after step `resumed` are cut off, for they come again.
    pub fn open(directory: &Path, resumed: u64) -> Result<Self> {
        let path = directory.join("log.jsonl");
        let io = |error| Error::io(&path, error);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let keep = kept_bytes(&mut file, resumed).map_err(io)?;
        file.set_len(keep).map_err(io)?;
        file.seek(SeekFrom::Start(keep)).map_err(io)?;
        let resumed = Some(resumed).filter(|step| *step > 0);
        let board = EventWriter::create(&directory.join("runs"), now(), resumed)?;
        Ok(Self { file, path, board })
    }

    /// Appends a step, and what was evaluated after it, to both.
    pub fn row(&mut self, row: &HistoryRow, evaluation: Option<&Evaluation>) -> Result<()> {
        let wall_time = now();
        let mut line = serde_json::to_vec(&json_row(row, evaluation, wall_time))
            .map_err(|error| Error::Internal(error.to_string()))?;
        line.push(b'\n');
        // One write, so that a killed process leaves a whole line or a torn last one.
        self.file.write_all(&line).map_err(|error| Error::io(&self.path, error))?;
        self.board.scalars(wall_time, row.step, &scalars(row, evaluation))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Length of the whole lines up to step `resumed`.
fn kept_bytes(file: &mut File, resumed: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut keep, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        let step = line.ends_with(b"\n").then(|| serde_json::from_slice::<Value>(&line).ok());
        match step.flatten().and_then(|row| row.get("step")?.as_u64()) {
            Some(step) if step <= resumed => keep += read as u64,
            _ => return Ok(keep),
        }
    }
}

fn json_row(row: &HistoryRow, evaluation: Option<&Evaluation>, wall_time: f64) -> Value {
    let mut line = json!({
        "step": row.step, "epoch": row.epoch, "loss": row.loss,
        "learning_rate": row.learning_rate, "grad_norm": row.grad_norm,
        "tokens_per_second": row.tokens_per_second, "wall_time": wall_time,
    });
    if let (Some(evaluation), Value::Object(line)) = (evaluation, &mut line) {
        let categories = evaluation.by_category.iter();
        let categories: Map<String, Value> =
            categories.map(|(name, mean)| (name.clone(), mean.loss.into())).collect();
        line.insert("eval_loss".to_owned(), evaluation.all.loss.into());
        line.insert("eval_perplexity".to_owned(), evaluation.all.perplexity.into());
        line.insert("eval_loss_by_category".to_owned(), categories.into());
    }
    line
}

fn scalars(row: &HistoryRow, evaluation: Option<&Evaluation>) -> Vec<(String, f32)> {
    let mut scalars = vec![
        ("train/loss".to_owned(), row.loss as f32),
        ("train/learning_rate".to_owned(), row.learning_rate as f32),
        ("train/grad_norm".to_owned(), row.grad_norm as f32),
        ("train/tokens_per_second".to_owned(), row.tokens_per_second as f32),
    ];
    if let Some(evaluation) = evaluation {
        scalars.push(("eval/loss".to_owned(), evaluation.all.loss as f32));
        scalars.push(("eval/perplexity".to_owned(), evaluation.all.perplexity as f32));
        let categories = evaluation.by_category.iter();
        scalars.extend(categories.map(|(n, mean)| (format!("eval/loss/{n}"), mean.loss as f32)));
    }
    scalars
}
