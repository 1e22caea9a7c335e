//! Runs as on a GPU, on candle's CPU device, against runs on the kernels.

use super::*;
use crate::pipeline::Device;
use crate::train::{Precision, Schedule};

/// What both kinds are tested with.
fn kinds() -> [TrainingOptions; 2] {
    let lora = LoraConfig { rank: 2, dropout: 0.1, ..LoraConfig::default() };
    [None, Some(lora)].map(|lora| TrainingOptions {
        lora,
        batch_size: 3,
        gradient_accumulation: 2,
        dropout: 0.1,
        weight_decay: 0.01,
        schedule: Schedule::Linear,
        warmup_steps: 2,
        eval_steps: 3,
        save_steps: 4,
        ..options(8)
    })
}

fn trainer(base: &tempfile::TempDir, options: &TrainingOptions, device: bool) -> Trainer<'static> {
    let trainer = Trainer::new(id(base), options.clone()).unwrap();
    if device { trainer.as_on_gpu() } else { trainer }
}

fn close(found: &TrainingRun, expected: &TrainingRun, budget: f64) {
    assert_eq!(found.history.len(), expected.history.len());
    for (a, b) in found.history.iter().zip(&expected.history) {
        assert_eq!((a.step, a.learning_rate), (b.step, b.learning_rate));
        assert!((a.loss - b.loss).abs() <= budget * b.loss, "{a:?} {b:?}");
        assert!((a.grad_norm - b.grad_norm).abs() <= 10.0 * budget * b.grad_norm, "{a:?} {b:?}");
        assert_eq!(a.eval_loss.is_some(), b.eval_loss.is_some());
        let (a, b) = (a.eval_loss.unwrap_or(1.0), b.eval_loss.unwrap_or(1.0));
        assert!((a - b).abs() <= budget * b, "{a} {b}");
    }
}

/// Every tensor of the results, off by a share of the largest element.
fn close_weights(found: &TrainingRun, expected: &TrainingRun, budget: f32) {
    let (found, expected) = (outcome(found).1, outcome(expected).1);
    let [found, expected] =
        [&found, &expected].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(found.names().len(), expected.names().len());
    for (name, expected) in expected.iter() {
        let floats = |data: &[u8]| -> Vec<f32> {
            data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let (a, b) = (floats(found.tensor(name).unwrap().data()), floats(expected.data()));
        let largest = b.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let off = a.iter().zip(&b).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= budget * largest, "{name}: {off} of {largest}");
    }
}

#[test]
fn a_run_on_a_device_equals_one_on_the_kernels() {
    let base = base();
    for options in kinds() {
        let (out, reference) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = trainer(&base, &options, true).train(&data(), out.path()).unwrap();
        let expected = trainer(&base, &options, false).train(&data(), reference.path()).unwrap();
        assert!(run.history.last().unwrap().loss < run.history[0].loss);
        close(&run, &expected, 1e-4);
        close_weights(&run, &expected, 2e-3);
    }
}

/// Checkpoints are of no device: either goes on where the other stopped.
#[test]
fn each_goes_on_from_the_others_checkpoints() {
    let base = base();
    for options in kinds() {
        let whole = tempfile::tempdir().unwrap();
        let expected = trainer(&base, &options, false).train(&data(), whole.path()).unwrap();
        for first in [true, false] {
            let out = tempfile::tempdir().unwrap();
            let brake = |report: &StepReport| match report.row.step {
                5 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            trainer(&base, &options, first).on_step(brake).train(&data(), out.path()).unwrap();
            let options = TrainingOptions { resume: true, ..options.clone() };
            let run = trainer(&base, &options, !first).train(&data(), out.path()).unwrap();
            assert_eq!(run.resumed_from, Some(5));
            close(&run, &expected, 1e-4);
            close_weights(&run, &expected, 2e-3);
        }
    }
}

#[test]
fn a_resumed_run_on_a_device_has_the_same_bits() {
    let base = base();
    for precision in [Precision::F32, Precision::Bf16] {
        for options in kinds() {
            let options = TrainingOptions { precision, ..options };
            let whole = tempfile::tempdir().unwrap();
            let run = trainer(&base, &options, true).train(&data(), whole.path()).unwrap();
            let reference = outcome(&run);
            let out = tempfile::tempdir().unwrap();
            let brake = |report: &StepReport| match report.row.step {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            trainer(&base, &options, true).on_step(brake).train(&data(), out.path()).unwrap();
            let options = TrainingOptions { resume: true, ..options };
            let run = trainer(&base, &options, true).train(&data(), out.path()).unwrap();
            assert_eq!(run.resumed_from, Some(3));
            assert!(outcome(&run) == reference, "{precision}");
        }
    }
}

/// The products' rounding moves losses by less than half a percent.
#[test]
fn bf16_learns_as_f32_does() {
    let base = base();
    for options in kinds() {
        let (out, reference) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let halves = TrainingOptions { precision: Precision::Bf16, ..options.clone() };
        let run = trainer(&base, &halves, true).train(&data(), out.path()).unwrap();
        let expected = trainer(&base, &options, true).train(&data(), reference.path()).unwrap();
        assert!(outcome(&run).0 != outcome(&expected).0, "nothing was rounded");
        close(&run, &expected, 5e-3);
    }
}

/// With patience the result is an earlier checkpoint, which the device no longer holds.
#[test]
fn early_stopping_gives_the_best_checkpoint() {
    let base = base();
    let options = TrainingOptions {
        learning_rate: 0.5,
        eval_steps: 1,
        early_stopping_patience: Some(2),
        ..options(8)
    };
    let out = tempfile::tempdir().unwrap();
    let run = trainer(&base, &options, true).train(&data(), out.path()).unwrap();
    assert_eq!(run.stopped, StopReason::EarlyStopping);
    assert!(run.best.unwrap().step < run.history.len() as u64);
    let (best, result) = (run.best_checkpoint.as_ref().unwrap(), outcome(&run).1);
    let best = std::fs::read(best.join("weights.safetensors")).unwrap();
    let [best, result] =
        [&best, &result].map(|bytes| safetensors::SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(best.names().len(), result.names().len());
    for (name, tensor) in best.iter() {
        assert_eq!(tensor.data(), result.tensor(name).unwrap().data(), "{name}");
    }
}

#[test]
fn what_a_device_cannot_do_is_refused_before_it_is_begun() {
    let (base, out) = (base(), tempfile::tempdir().unwrap());
    let halves = TrainingOptions { precision: Precision::Bf16, ..options(1) };
    let cpu = TrainingOptions { device: Device::Cpu, ..halves.clone() };
    let error = trainer(&base, &cpu, false).train(&data(), out.path()).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let error = evaluate(id(&base), &data(), &cpu).unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let missing = TrainingOptions { device: Device::Cuda(4711), ..options(1) };
    match Trainer::new(id(&base), missing).map(|_| ()) {
        Err(Error::Device { device, .. }) => assert_eq!(device, "cuda:4711"),
        other => panic!("{other:?}"),
    }
    let limit = TrainingOptions { memory_limit: Some(10_000), ..halves };
    let error = trainer(&base, &limit, true).train(&data(), out.path()).unwrap_err();
    assert!(matches!(error, Error::MemoryLimit { limit: 10_000, .. }), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}
