use super::*;
use crate::train::checkpoint::disk::faults::{self, Fault};
use crate::train::tiny::{Tiny, examples};

mod crash;

/// What two equal runs must agree in: weights, losses, and every byte of the last checkpoint but
/// the speeds.
#[derive(Debug, PartialEq)]
struct Outcome {
    weights: Vec<Vec<u32>>,
    losses: Vec<(u64, u64, Option<u64>, u64)>,
    files: Vec<Vec<u8>>,
}

fn options(steps: u64) -> TrainingOptions {
    TrainingOptions {
        max_steps: Some(steps),
        batch_size: 2,
        learning_rate: 0.05,
        warmup_steps: 3,
        weight_decay: 0.01,
        eval_steps: 3,
        save_steps: 4,
        save_total_limit: 2,
        logging_steps: 1,
        threads: Some(1),
        ..TrainingOptions::default()
    }
}

fn train(
    model: &mut Tiny,
    options: &TrainingOptions,
    directory: &Path,
    on_step: &mut OnStep<'_>,
) -> Result<TrainingRun> {
    let (train, eval) = (examples(13, 1), examples(5, 2));
    run(Job {
        model,
        options,
        train: &train,
        eval: &eval,
        output_dir: directory,
        base: "tiny".to_owned(),
        on_step,
    })
}

fn go_on(_: &StepReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn outcome(model: &Tiny, run: &TrainingRun) -> Outcome {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
    let row = |row: &HistoryRow| {
        (row.step, row.loss.to_bits(), row.eval_loss.map(f64::to_bits), row.grad_norm.to_bits())
    };
    let last = checkpoint::path(&run.output_dir, run.history.last().unwrap().step);
    let names = ["weights.safetensors", "optimizer.safetensors", "state.json"];
    Outcome {
        weights: model.parameters().iter().map(|p| bits(&p.values)).collect(),
        losses: run.history.iter().map(row).collect(),
        files: names.iter().map(|name| std::fs::read(last.join(name)).unwrap()).collect(),
    }
}

/// A whole run in a fresh directory.
fn whole(options: &TrainingOptions) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Tiny::new();
    let run = train(&mut model, options, dir.path(), &mut go_on).unwrap();
    outcome(&model, &run)
}

fn resumed(options: &TrainingOptions, directory: &Path) -> (Outcome, TrainingRun) {
    let options = TrainingOptions { resume: true, ..options.clone() };
    let mut model = Tiny::new();
    let run = train(&mut model, &options, directory, &mut go_on).unwrap();
    (outcome(&model, &run), run)
}

#[test]
fn a_run_learns_and_tells_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let mut reports = Vec::new();
    let mut keep = |report: &StepReport| {
        reports.push(report.clone());
        ControlFlow::Continue(())
    };
    let options = TrainingOptions { epochs: 5, max_steps: None, ..options(1) };
    let run = train(&mut Tiny::new(), &options, dir.path(), &mut keep).unwrap();
    // 13 rows in batches of 2: 7 steps an epoch.
    assert_eq!((run.total_steps, run.history.len(), reports.len()), (35, 35, 35));
    assert_eq!((run.train_rows, run.eval_rows, run.stopped), (13, 5, StopReason::Finished));
    assert_eq!(run.history[6].epoch, 1.0);
    assert_eq!(run.history[0].learning_rate, 0.0);
    assert!((run.history[1].learning_rate - 0.05 / 3.0).abs() < 1e-12);
    let first = run.history[..7].iter().map(|row| row.loss).sum::<f64>();
    let last = run.history[28..].iter().map(|row| row.loss).sum::<f64>();
    assert!(last < 0.6 * first, "{first} to {last}");
    let evaluation = run.evaluation.unwrap();
    assert_eq!(evaluation.by_category.len(), 2);
    assert!((evaluation.all.perplexity.ln() - evaluation.all.loss).abs() < 1e-12);
    assert_eq!(run.history[34].eval_loss, Some(evaluation.all.loss));
    let log = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 35);
    assert_eq!(reports[2].evaluation.as_ref().map(|e| e.all.loss), run.history[2].eval_loss);
}

/// The loss is the mean over all tokens of the step, accumulation included.
#[test]
fn accumulation_is_one_large_batch() {
    let one = whole(&TrainingOptions { batch_size: 4, ..options(8) });
    let four = TrainingOptions { batch_size: 1, gradient_accumulation: 4, ..options(8) };
    let four = whole(&four);
    for (one, four) in one.losses.iter().zip(&four.losses) {
        let (one, four) = (f64::from_bits(one.1), f64::from_bits(four.1));
        assert!((one - four).abs() <= 1e-5 * one, "{one} and {four}");
    }
}

/// Stopped after any step and resumed, a run ends with the same bits as one that was not stopped;
/// so does one with another number of threads.
#[test]
fn resuming_at_every_step_changes_no_bit() {
    for accumulation in [1, 4] {
        let options = TrainingOptions { gradient_accumulation: accumulation, ..options(20) };
        let reference = whole(&options);
        for threads in [1, 2] {
            let options = TrainingOptions { threads: Some(threads), ..options.clone() };
            for stop in 1..20 {
                let dir = tempfile::tempdir().unwrap();
                let mut brake = |report: &StepReport| match report.row.step == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                };
                let run = train(&mut Tiny::new(), &options, dir.path(), &mut brake).unwrap();
                assert_eq!(run.stopped, StopReason::Callback);
                let (found, run) = resumed(&options, dir.path());
                assert_eq!(run.resumed_from, Some(stop));
                assert_eq!(found, reference, "{accumulation} batches, stopped at {stop}");
            }
        }
    }
}

#[test]
fn resuming_where_nothing_is_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (found, run) = resumed(&options(5), dir.path());
    assert_eq!((found, run.resumed_from), (whole(&options(5)), None));
    // All steps are made: nothing is left to do, and the result is the same.
    let (again, run) = resumed(&options(5), dir.path());
    assert_eq!((again, run.resumed_from), (whole(&options(5)), Some(5)));
}

/// Runs with a failure at every operation of every save.
fn at_every_operation(fault: Fault, check: impl Fn(&Path, Result<TrainingRun>, u64)) {
    let options = options(9);
    let count = {
        let dir = tempfile::tempdir().unwrap();
        faults::plan(None);
        train(&mut Tiny::new(), &options, dir.path(), &mut go_on).unwrap();
        faults::count()
    };
    // Three saves of at least twenty operations, and a removal.
    assert!(count > 60, "{count}");
    for at in 0..count {
        let dir = tempfile::tempdir().unwrap();
        faults::plan(Some((at, fault)));
        let result = train(&mut Tiny::new(), &options, dir.path(), &mut go_on);
        faults::plan(None);
        check(dir.path(), result, at);
    }
}

#[test]
fn death_at_every_operation_of_a_save() {
    let reference = whole(&options(9));
    at_every_operation(Fault::Death, |directory, result, at| {
        assert!(matches!(result, Err(Error::Io { .. })), "operation {at}: {result:?}");
        let (found, run) = resumed(&options(9), directory);
        assert_eq!(found, reference, "operation {at}");
        // A checkpoint is there or not: none is ever half there.
        assert_eq!(run.warnings, [""; 0], "operation {at}");
        let hidden = std::fs::read_dir(directory).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".partial")
        });
        assert_eq!(hidden.count(), 0, "operation {at}");
    });
}

/// ENOSPC (28) and EIO (5), the write half done.
#[test]
fn errors_at_every_operation_of_a_save() {
    let reference = whole(&options(9));
    for number in [28, 5] {
        at_every_operation(Fault::Errno(number), |directory, result, at| {
            match result {
                Err(Error::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(number)),
                other => panic!("operation {at}: {other:?}"),
            }
            for step in checkpoint::list(directory).unwrap() {
                checkpoint::verify(&checkpoint::path(directory, step)).unwrap();
            }
            assert_eq!(resumed(&options(9), directory).0, reference, "operation {at}");
        });
    }
}

/// Any damage to the newest checkpoint: the one before is used, and that is told.
#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let reference = whole(&options(9));
    let names = ["weights.safetensors", "optimizer.safetensors", "state.json", "history.bin"];
    for name in names.into_iter().chain(["manifest.json"]) {
        for damage in ["flip", "cut", "empty", "missing", "directory"] {
            let dir = tempfile::tempdir().unwrap();
            train(&mut Tiny::new(), &options(8), dir.path(), &mut go_on).unwrap();
            let file = dir.path().join("checkpoint-8").join(name);
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                "flip" => bytes[middle] ^= 0x10,
                "cut" => bytes.truncate(middle),
                "empty" => bytes.clear(),
                _ => std::fs::remove_file(&file).unwrap(),
            }
            match damage {
                "directory" => std::fs::create_dir(&file).unwrap(),
                "missing" => {}
                _ => std::fs::write(&file, bytes).unwrap(),
            }
            let (found, run) = resumed(&options(9), dir.path());
            assert_eq!((found, run.resumed_from), (reference_of(&reference), Some(4)));
            assert!(run.warnings[0].contains("checkpoint-8"), "{:?}", run.warnings);
            // Made again on the way, or out of the limit.
            for step in checkpoint::list(dir.path()).unwrap() {
                checkpoint::verify(&checkpoint::path(dir.path(), step)).unwrap();
            }
        }
    }
}

fn reference_of(outcome: &Outcome) -> Outcome {
    let Outcome { weights, losses, files } = outcome;
    Outcome { weights: weights.clone(), losses: losses.clone(), files: files.clone() }
}

#[test]
fn damage_to_all_checkpoints_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Tiny::new(), &options(4), dir.path(), &mut go_on).unwrap();
    std::fs::write(dir.path().join("checkpoint-4/weights.safetensors"), b"").unwrap();
    let options = TrainingOptions { resume: true, ..options(4) };
    let error = train(&mut Tiny::new(), &options, dir.path(), &mut go_on).unwrap_err();
    assert!(matches!(&error, Error::Format { file, .. } if file.ends_with("weights.safetensors")));
}

#[test]
fn resuming_asks_for_the_same_options_and_data() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Tiny::new(), &options(4), dir.path(), &mut go_on).unwrap();
    let changed = TrainingOptions { resume: true, batch_size: 3, ..options(8) };
    let error = train(&mut Tiny::new(), &changed, dir.path(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "batch_size", .. }), "{error}");
    let options = TrainingOptions { resume: true, ..options(8) };
    for (data, base, what) in [(9, "tiny", "data"), (1, "other", "base weights")] {
        let (train, eval) = (examples(13, data), examples(5, 2));
        let error = run(Job {
            model: &mut Tiny::new(),
            options: &options,
            train: &train,
            eval: &eval,
            output_dir: dir.path(),
            base: base.to_owned(),
            on_step: &mut go_on,
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_directory_holds_one_run() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Tiny::new(), &options(4), dir.path(), &mut go_on).unwrap();
    let error = train(&mut Tiny::new(), &options(4), dir.path(), &mut go_on).unwrap_err();
    assert!(error.to_string().contains("checkpoint-4"), "{error}");
    let other = tempfile::tempdir().unwrap();
    let mut nested = |_: &StepReport| {
        let error = train(&mut Tiny::new(), &options(1), other.path(), &mut go_on).unwrap_err();
        assert!(error.to_string().contains("another run"), "{error}");
        ControlFlow::Break(())
    };
    train(&mut Tiny::new(), &options(1), other.path(), &mut nested).unwrap();
}

#[test]
fn numbers_that_are_not_finite_stop_with_the_checkpoint_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Tiny::new();
    model.poison = Some(6);
    let error = train(&mut model, &options(20), dir.path(), &mut go_on).unwrap_err();
    assert!(matches!(&error, Error::Diverged { step: 7, .. }), "{error}");
    assert_eq!(checkpoint::list(dir.path()).unwrap(), [4]);
    assert_eq!(resumed(&options(20), dir.path()).0, whole(&options(20)));
    let mut model = Tiny::new();
    model.parameters_mut()[0].values[0] = f32::INFINITY;
    let dir = tempfile::tempdir().unwrap();
    let error = train(&mut model, &options(20), dir.path(), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
}

#[test]
fn cancelling_keeps_the_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let token = CancelToken::new();
    let options = TrainingOptions { cancel: Some(token.clone()), ..options(20) };
    let mut cancel = |report: &StepReport| {
        if report.row.step == 6 {
            token.cancel();
        }
        ControlFlow::Continue(())
    };
    let error = train(&mut Tiny::new(), &options, dir.path(), &mut cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(checkpoint::list(dir.path()).unwrap(), [4]);
}

/// With a rate that first helps and then harms, the run stops and the best weights are its result.
#[test]
fn early_stopping_gives_the_best_checkpoint() {
    let options = TrainingOptions {
        early_stopping_patience: Some(3),
        eval_steps: 1,
        save_steps: 5,
        learning_rate: 2.0,
        warmup_steps: 40,
        save_total_limit: 1,
        ..options(200)
    };
    let dir = tempfile::tempdir().unwrap();
    let mut model = Tiny::new();
    let run = train(&mut model, &options, dir.path(), &mut go_on).unwrap();
    assert_eq!(run.stopped, StopReason::EarlyStopping);
    let lowest = run.history.iter().filter_map(|row| row.eval_loss).fold(f64::MAX, f64::min);
    let best = run.best.unwrap();
    let last = run.history.last().unwrap().step;
    assert_eq!((best.eval_loss, best.step + 3), (lowest, last));
    let found = evaluate_examples(&mut model, &examples(5, 2), 2, None).unwrap();
    assert_eq!(found.all.loss, lowest);
    // A limit of 1 keeps the newest and the best.
    assert_eq!(checkpoint::list(dir.path()).unwrap(), [last, best.step]);
    let (again, rerun) = resumed(&options, dir.path());
    assert_eq!((again.weights, rerun.stopped), (outcome(&model, &run).weights, run.stopped));
}

#[test]
fn the_best_is_the_lowest_evaluation_and_has_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let options = TrainingOptions { eval_steps: 1, save_steps: 1, ..options(9) };
    let run = train(&mut Tiny::new(), &options, dir.path(), &mut go_on).unwrap();
    let losses = run.history.iter().map(|row| (row.eval_loss.unwrap(), row.step));
    let (eval_loss, step) = losses.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert_eq!(run.best, Some(BestLoss { step, eval_loss }));
    assert_eq!(run.best_checkpoint, Some(checkpoint::path(dir.path(), step)));
    assert!(checkpoint::list(dir.path()).unwrap().contains(&step));
}

#[test]
fn data_that_cannot_be_trained_on_is_refused() {
    let empty = Examples { dropped: 3, ..Examples::default() };
    let dir = tempfile::tempdir().unwrap();
    let error = run(Job {
        model: &mut Tiny::new(),
        options: &options(1),
        train: &empty,
        eval: &empty,
        output_dir: dir.path(),
        base: String::new(),
        on_step: &mut go_on,
    });
    assert!(error.unwrap_err().to_string().contains("3 were too long"));
}
