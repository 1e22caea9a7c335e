//! The network's training in a process that is killed, resumed, and compared with one that was not.

use super::*;
use crate::train::kill::{self, Point};

const CHILD: &str = "train::trainer::tests::crash::child";
/// The model that the process to be killed starts from.
const BASE: &str = "DOLLY_TEST_TRAIN_BASE";
/// Its [`Case`], as numbers.
const CASE: &str = "DOLLY_TEST_TRAIN_CASE";
const STEPS: u64 = 6;
/// Status of a [`child`] that met a full disk.
const DISK_FULL: i32 = 28;
/// Runs a program on a small file system of its own, mounted at `$1`, and leaves its files in `$2`.
const SMALL_DISK: &str = r#"disk=$1 kept=$2 size=$3; shift 3
mount -t tmpfs -o size="$size" dolly "$disk" || exit 77
"$@"; status=$?
cp -a "$disk/." "$kept"; exit $status"#;

/// What decides the numbers of a run.
#[derive(Debug, Clone, Copy)]
struct Case {
    lora: bool,
    accumulation: usize,
}

const CASES: [Case; 4] = [
    Case { lora: false, accumulation: 1 },
    Case { lora: true, accumulation: 1 },
    Case { lora: false, accumulation: 4 },
    Case { lora: true, accumulation: 4 },
];

impl Case {
    /// For the environment of a process, with its number of threads.
    fn numbers(self, threads: usize) -> String {
        format!("{} {} {threads}", u8::from(self.lora), self.accumulation)
    }
}

fn train(base: &str, case: Case, threads: usize, resume: bool, out: &Path) -> TrainingRun {
    try_train(base, case, threads, resume, out).unwrap()
}

fn try_train(
    base: &str,
    case: Case,
    threads: usize,
    resume: bool,
    out: &Path,
) -> Result<TrainingRun> {
    let lora = LoraConfig { rank: 2, dropout: 0.1, ..LoraConfig::default() };
    let options = TrainingOptions {
        lora: case.lora.then_some(lora),
        gradient_accumulation: case.accumulation,
        dropout: 0.1,
        save_steps: 1,
        save_total_limit: 2,
        logging_steps: 1,
        resume,
        threads: Some(threads),
        ..options(STEPS)
    };
    Trainer::new(base, options)?.train(&data(), out)
}

/// Not a test of its own: what is run in another process, to be killed or to run out of disk.
#[test]
#[allow(clippy::exit, reason = "a status that is not that of a failed test")]
fn child() {
    let Some(directory) = kill::directory() else { return };
    let (base, case) = (std::env::var(BASE).unwrap(), std::env::var(CASE).unwrap());
    let numbers: Vec<usize> = case.split(' ').map(|number| number.parse().unwrap()).collect();
    let case = Case { lora: numbers[0] == 1, accumulation: numbers[1] };
    if let Err(error) = try_train(&base, case, numbers[2], true, &directory) {
        assert!(error.to_string().contains("os error 28"), "{error}");
        std::process::exit(DISK_FULL);
    }
}

/// Losses, the result's weights, and every byte of the last checkpoint but the speeds.
fn everything(run: &TrainingRun) -> (Vec<u64>, Vec<u8>, Vec<Vec<u8>>) {
    let (losses, weights) = outcome(run);
    let last = run.output_dir.join(format!("checkpoint-{STEPS}"));
    let names = ["weights.safetensors", "optimizer.safetensors", "state.json"];
    let files = names.iter().map(|name| std::fs::read(last.join(name)).unwrap());
    (losses, weights, files.collect())
}

/// Kills a run of each case `points` times, one after the other, with one thread and two in turn,
/// and lets it go on to its end here; that `rounds` times.
fn kill_at_random_points(rounds: u64, points: u64) {
    let (base, mut killed) = (base(), 0);
    for (index, case) in CASES.into_iter().enumerate() {
        let whole = tempfile::tempdir().unwrap();
        let reference = everything(&train(id(&base), case, 1, false, whole.path()));
        for round in 0..rounds {
            let out = tempfile::tempdir().unwrap();
            let (log, mut made) = (out.path().join("log.jsonl"), 0);
            // Also after the last step, while its checkpoint and the result are written.
            let points = Point::spread(4 * round + index as u64, points, STEPS + 1);
            for (point, threads) in points.zip([2, 1].into_iter().cycle()) {
                let mut process = kill::command(CHILD, out.path(), &[]);
                process.env(BASE, base.path()).env(CASE, case.numbers(threads));
                if kill::kill_at(&mut process.spawn().unwrap(), &log, point) {
                    killed += 1;
                    // A step is logged before its checkpoint is written.
                    made = made.max(point.lines.saturating_sub(1));
                }
            }
            let run = train(id(&base), case, 2, true, out.path());
            assert!(run.resumed_from.unwrap_or(0) >= made, "{:?} of {made}", run.resumed_from);
            assert!(everything(&run) == reference, "{case:?}, round {round}");
            assert_eq!(run.warnings, [""; 0], "{case:?}, round {round}");
            let log = std::fs::read_to_string(log).unwrap();
            assert_eq!(log.lines().count() as u64, STEPS, "{case:?}, round {round}");
            let names = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name());
            let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
            assert!(!names.iter().any(|name| name.ends_with(".partial")), "{names:?}");
        }
    }
    assert!(killed > 0);
}

#[test]
fn killed_at_random_points() {
    kill_at_random_points(1, 3);
}

#[test]
#[ignore = "long: 200 processes"]
fn killed_at_two_hundred_random_points() {
    kill_at_random_points(10, 5);
}

/// Disks too small for what a run writes, from one that holds little more than a checkpoint to one
/// that nearly holds all: the run ends with the system's error, and what was kept goes on.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_keeps_the_last_checkpoint() {
    let (base, case) = (base(), CASES[0]);
    let whole = tempfile::tempdir().unwrap();
    let reference = everything(&train(id(&base), case, 1, false, whole.path()));
    let checkpoint = bytes_of(&whole.path().join(format!("checkpoint-{STEPS}")));
    let (mut full, mut resumed) = (0, 0);
    for quarters in [3, 5, 7, 9, 10, 11, 12, 14] {
        let (disk, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (at, to) = (disk.path().to_str().unwrap(), kept.path().to_str().unwrap());
        let size = (checkpoint * quarters / 4).to_string();
        let namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK];
        let prefix = [namespace.as_slice(), &["sh", at, to, &size]].concat();
        let mut process = kill::command(CHILD, disk.path(), &prefix);
        process.env(BASE, base.path()).env(CASE, case.numbers(1));
        match process.status().ok().and_then(|status| status.code()) {
            Some(0) => {}
            Some(DISK_FULL) => full += 1,
            status => {
                eprintln!("SKIPPED: no file system of its own may be mounted here ({status:?})");
                assert_eq!(full, 0);
                return;
            }
        }
        let run = train(id(&base), case, 2, true, kept.path());
        resumed += u32::from(run.resumed_from.is_some());
        assert!(everything(&run) == reference, "{quarters} quarters of a checkpoint");
    }
    assert!(full >= 4 && resumed >= 4, "{full} full disks, {resumed} runs went on");
}

/// Bytes that the files below a directory take of a disk in pages of 4 KiB.
#[cfg(target_os = "linux")]
fn bytes_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| entry.metadata().unwrap().len().next_multiple_of(4096)).sum()
}
