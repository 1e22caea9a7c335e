//! Checkpoints: a run's whole state in a directory, exact to the bit.
//!
//! `checkpoint-N/` holds the state after N steps:
//!
//! | file | holds |
//! |---|---|
//! | `weights.safetensors` | the trained parameters, f32 |
//! | `optimizer.safetensors` | `exp_avg.NAME` and `exp_avg_sq.NAME` of each, f32 |
//! | `state.json` | step, data position, seed, options, digests of base and data, best losses |
//! | `history.bin` | one row per step |
//! | `manifest.json` | names, lengths and SHA-256 of the others; written last |
//!
//! The directory is built under a hidden name, every file synced, then renamed and the parent
//! synced: a killed process or a full disk leaves the ones before it whole.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::model::Parameter;
use super::optimizer::{AdamW, Moments};
use super::options::check_fingerprint;
use super::order::Plan;
use super::state::{
    FORMAT, Identity, State, StateFile, best_from_text, best_to_text, decode_history,
    encode_history,
};
use crate::error::{Error, Result};
use crate::json::read_bounded;
use disk::{Building, FileEntry};

pub(crate) mod disk;
mod tensors;
#[cfg(test)]
mod tests;

const PREFIX: &str = "checkpoint-";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const HISTORY: &str = "history.bin";
const MANIFEST: &str = "manifest.json";
/// Longest `manifest.json` and `state.json` read.
const MAX_JSON: u64 = 1 << 20;
/// Longest `history.bin` read: 18 million steps.
const MAX_HISTORY: u64 = 1 << 30;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    step: u64,
    files: Vec<FileEntry>,
}

/// The directory of the checkpoint after `step` steps.
pub(crate) fn path(directory: &Path, step: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{step}"))
}

/// Steps of the checkpoints in `directory`, sound or not, newest first.
pub(crate) fn list(directory: &Path) -> Result<Vec<u64>> {
    let io = |error| Error::io(directory, error);
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        // Only the spelling that `path` gives: `checkpoint-007` is someone else's.
        let step = number.and_then(|n| n.parse().ok().filter(|s: &u64| s.to_string() == n));
        steps.extend(step);
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Removes what a killed run left behind.
pub(crate) fn clean(directory: &Path) -> Result<()> {
    disk::clean(directory, PREFIX)
}

/// Writes the checkpoint of `state.step`; when it returns, the checkpoint survives a loss of power.
///
/// # Errors
/// [`Error::Io`]; every checkpoint there was before is intact then.
pub(crate) fn save(
    directory: &Path,
    parameters: &[Parameter],
    optimizer: &AdamW,
    state: &State,
    identity: &Identity,
    plan: &Plan,
) -> Result<PathBuf> {
    let destination = path(directory, state.step);
    let mut building = Building::create(&destination)?;
    let trained = || parameters.iter().zip(&optimizer.moments).filter(|(p, _)| p.trainable);
    let weights: Vec<_> = trained().map(|(p, _)| (p.name.clone(), &*p.shape, &*p.values)).collect();
    building.file(WEIGHTS, |file| tensors::write(file, &weights))?;
    let moments: Vec<_> = trained()
        .flat_map(|(p, Moments { first, second })| {
            let first = (format!("exp_avg.{}", p.name), &*p.shape, &**first);
            [first, (format!("exp_avg_sq.{}", p.name), &*p.shape, &**second)]
        })
        .collect();
    building.file(OPTIMIZER, |file| tensors::write(file, &moments))?;
    let document = json(&state_file(state, identity, plan))?;
    building.file(STATE, |file| file.write(&document))?;
    let history = encode_history(&state.history)?;
    building.file(HISTORY, |file| file.write(&history))?;
    let files = building.files().to_vec();
    let manifest = json(&Manifest { format: FORMAT, step: state.step, files })?;
    building.file(MANIFEST, |file| file.write(&manifest))?;
    building.commit()?;
    Ok(destination)
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|error| Error::Internal(error.to_string()))
}

fn state_file(state: &State, identity: &Identity, plan: &Plan) -> StateFile {
    let (epoch, rows) = plan.locate(state.step);
    StateFile {
        format: FORMAT,
        step: state.step,
        epoch,
        row: rows.start as u64,
        seed: identity.seed,
        options: identity.options.clone(),
        base: identity.base.clone(),
        data: identity.data.clone(),
        best: best_to_text(state.best),
        best_saved: best_to_text(state.best_saved),
        evaluations_since_best: state.evaluations_since_best,
    }
}

/// Whether every byte of a checkpoint is as it was written.
///
/// # Errors
/// [`Error::Format`] or [`Error::Io`] naming the file that is not.
pub(crate) fn verify(directory: &Path) -> Result<()> {
    let file = directory.join(MANIFEST);
    let refuse = |reason: String| Err(Error::format(&file, reason));
    let manifest: Manifest = match serde_json::from_slice(&read_bounded(&file, MAX_JSON)?) {
        Ok(manifest) => manifest,
        Err(error) => return refuse(error.to_string()),
    };
    if manifest.format != FORMAT {
        return refuse(format!("format {}; this version reads {FORMAT}", manifest.format));
    }
    let named = |entry: &FileEntry, name: &str| entry.name == name;
    let names = [WEIGHTS, OPTIMIZER, STATE, HISTORY];
    if manifest.files.len() != names.len()
        || !names.iter().all(|name| manifest.files.iter().any(|entry| named(entry, name)))
        || !directory.ends_with(format!("{PREFIX}{}", manifest.step))
    {
        return refuse(format!("does not list {names:?} of this directory's step"));
    }
    for entry in &manifest.files {
        let path = directory.join(&entry.name);
        let found = disk::hash_file(&path, entry.bytes)?;
        if found != entry.sha256 {
            let reason = format!("SHA-256 {found}; its manifest says {}", entry.sha256);
            return Err(Error::format(path, reason));
        }
    }
    Ok(())
}

/// Reads a verified checkpoint into `parameters` and `optimizer`.
///
/// # Errors
/// [`Error::InvalidOption`] naming an option that differs from the checkpoint's,
/// [`Error::InvalidInput`] where base weights or data do, [`Error::Tensor`] where shapes do.
pub(crate) fn restore(
    directory: &Path,
    parameters: &mut [Parameter],
    optimizer: &mut AdamW,
    identity: &Identity,
    plan: &Plan,
) -> Result<State> {
    let state = read_state(directory, identity, plan)?;
    restore_weights(directory, parameters)?;
    let mut targets: Vec<(String, &[usize], &mut [f32])> = Vec::new();
    for (parameter, moments) in parameters.iter().zip(&mut optimizer.moments) {
        if parameter.trainable {
            let (name, shape) = (&parameter.name, &*parameter.shape);
            targets.push((format!("exp_avg.{name}"), shape, &mut moments.first));
            targets.push((format!("exp_avg_sq.{name}"), shape, &mut moments.second));
        }
    }
    tensors::read(&directory.join(OPTIMIZER), &mut targets)?;
    optimizer.updates = state.step;
    Ok(state)
}

/// Reads the weights of a checkpoint alone.
pub(crate) fn restore_weights(directory: &Path, parameters: &mut [Parameter]) -> Result<()> {
    let trained = parameters.iter_mut().filter(|parameter| parameter.trainable);
    let mut targets: Vec<_> =
        trained.map(|p| (p.name.clone(), &*p.shape, &mut *p.values)).collect();
    tensors::read(&directory.join(WEIGHTS), &mut targets)
}

fn read_state(directory: &Path, identity: &Identity, plan: &Plan) -> Result<State> {
    let path = directory.join(STATE);
    let refuse = |reason: String| Error::format(&path, reason);
    let bytes = read_bounded(&path, MAX_JSON)?;
    let file: StateFile =
        serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
    if file.format != FORMAT {
        return Err(refuse(format!("format {}; this version reads {FORMAT}", file.format)));
    }
    check_fingerprint(&identity.options, &file.options)?;
    for (what, now, then) in
        [("base weights", &identity.base, &file.base), ("data", &identity.data, &file.data)]
    {
        if now != then {
            return Err(Error::InvalidInput(format!(
                "{} was made with other {what} (digest {then}; now {now}): resume with the same, \
                 or train into another directory",
                directory.display()
            )));
        }
    }
    let (epoch, rows) = plan.locate(file.step);
    if (epoch, rows.start as u64) != (file.epoch, file.row) {
        return Err(refuse(format!("epoch {}, row {}: not of this plan", file.epoch, file.row)));
    }
    let history = directory.join(HISTORY);
    let rows = decode_history(&read_bounded(&history, MAX_HISTORY)?, file.step);
    Ok(State {
        step: file.step,
        history: rows.map_err(|reason| Error::format(&history, reason))?,
        best: best_from_text(file.best).map_err(refuse)?,
        best_saved: best_from_text(file.best_saved).map_err(refuse)?,
        evaluations_since_best: file.evaluations_since_best,
    })
}

/// Removes the oldest checkpoints beyond `limit`; `newest` and `best` always stay, and so do later
/// ones, which are not of this run's past.
pub(crate) fn prune(directory: &Path, newest: u64, best: Option<u64>, limit: usize) -> Result<()> {
    let past: Vec<u64> = list(directory)?.into_iter().filter(|step| *step <= newest).collect();
    let mut kept = past.len();
    for step in past.into_iter().rev() {
        if kept <= limit.max(1) {
            break;
        }
        if step != newest && Some(step) != best {
            disk::remove(&path(directory, step))?;
            kept -= 1;
        }
    }
    Ok(())
}
