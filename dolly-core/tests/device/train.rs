//! Training as a GPU runs it, against the CPU's kernels.

use dolly_core::dataset::{Dataset, ReadOptions, Record, SplitSize};
use dolly_core::train::{
    HistoryRow, LoraConfig, Precision, Trainer, TrainingOptions, TrainingRun, evaluate,
};
use dolly_core::{Device, Error};

use super::{NANO, directory, gpu, path};

fn data() -> Dataset {
    let rows = (0..24).map(|n| {
        let row = Record::new(format!("What is {n} plus 1?"), format!("{n} plus 1 is {}.", n + 1));
        if n % 2 == 0 { row.with_context("Numbers, one after the other.") } else { row }
    });
    Dataset::from_records(rows, "sums", &ReadOptions::default()).unwrap()
}

fn options(lora: Option<LoraConfig>) -> TrainingOptions {
    TrainingOptions {
        lora,
        max_steps: Some(6),
        batch_size: 4,
        gradient_accumulation: 2,
        learning_rate: 1e-3,
        weight_decay: 0.01,
        dropout: 0.05,
        eval_size: SplitSize::Rows(8),
        eval_steps: 2,
        ..TrainingOptions::default()
    }
}

/// A run on the device under test.
fn on_device(base: &str, options: TrainingOptions, out: &str) -> TrainingRun {
    let trainer = match gpu() {
        Some(device) => Trainer::new(base, TrainingOptions { device, ..options }),
        None => Trainer::new(base, options).map(Trainer::as_on_gpu),
    };
    trainer.unwrap().train(&data(), out).unwrap()
}

fn on_cpu(base: &str, options: TrainingOptions, out: &str) -> TrainingRun {
    let options = TrainingOptions { device: Device::Cpu, ..options };
    Trainer::new(base, options).unwrap().train(&data(), out).unwrap()
}

/// The largest difference of a loss, as a share of it.
fn off(found: &[HistoryRow], expected: &[HistoryRow]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let rows = found.iter().zip(expected);
    let losses = rows.flat_map(|(a, b)| {
        assert_eq!(a.eval_loss.is_some(), b.eval_loss.is_some());
        [(a.loss, b.loss), (a.eval_loss.unwrap_or(1.0), b.eval_loss.unwrap_or(1.0))]
    });
    losses.map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max)
}

/// Full and with adapters, with dropout, clipping, decay and accumulation.
#[test]
fn the_bundled_model_learns_as_on_the_kernels() {
    let base = directory(&NANO);
    for lora in [None, Some(LoraConfig { dropout: 0.1, ..LoraConfig::default() })] {
        let run = |name: &str, options: TrainingOptions, device: bool| {
            let out = tempfile::tempdir().unwrap();
            let out = out.path().join(name);
            let out = out.to_str().unwrap();
            if device {
                on_device(path(&base), options, out)
            } else {
                on_cpu(path(&base), options, out)
            }
        };
        let expected = run("cpu", options(lora.clone()), false);
        let found = run("f32", options(lora.clone()), true);
        let share = off(&found.history, &expected.history);
        println!("f32: {share:.1e}");
        assert!(share <= 1e-3, "f32: {share}");
        assert!(found.history[5].loss < found.history[0].loss);
        if gpu() != Some(Device::Auto) {
            let options = TrainingOptions { precision: Precision::Bf16, ..options(lora) };
            let share = off(&run("bf16", options, true).history, &expected.history);
            println!("bf16: {share:.1e}");
            assert!(share <= 2e-2 && share > 0.0, "bf16: {share}");
        }
    }
}

/// A checkpoint of the CPU, continued on the device; the result is rated on both.
#[test]
fn a_run_is_resumed_on_another_device() {
    let (base, out) = (directory(&NANO), tempfile::tempdir().unwrap());
    let whole = on_cpu(path(&base), options(None), out.path().join("whole").to_str().unwrap());
    let parts = out.path().join("parts");
    let parts = parts.to_str().unwrap();
    on_cpu(path(&base), TrainingOptions { max_steps: Some(3), ..options(None) }, parts);
    let rest = on_device(path(&base), TrainingOptions { resume: true, ..options(None) }, parts);
    assert_eq!((rest.resumed_from, rest.history.len()), (Some(3), 6));
    let share = off(&rest.history[3..], &whole.history[3..]);
    assert!(share <= 1e-3, "{share}");
    let rate = |device| {
        let options = TrainingOptions { device, ..TrainingOptions::default() };
        evaluate(parts, &data(), &options).unwrap().all.loss
    };
    let (cpu, device) = (rate(Device::Cpu), rate(gpu().unwrap_or(Device::Cpu)));
    assert!((cpu - device).abs() <= 1e-3 * cpu, "{cpu} {device}");
}

#[test]
fn training_that_does_not_fit_is_refused() {
    let (base, out) = (directory(&NANO), tempfile::tempdir().unwrap());
    let options = TrainingOptions { memory_limit: Some(1 << 20), ..options(None) };
    let trainer = match gpu() {
        Some(device) => Trainer::new(path(&base), TrainingOptions { device, ..options }),
        None => Trainer::new(path(&base), options).map(Trainer::as_on_gpu),
    };
    let refused = trainer.unwrap().train(&data(), out.path());
    assert!(matches!(refused, Err(Error::MemoryLimit { .. })), "{refused:?}");
}
