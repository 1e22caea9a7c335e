//! A training process that is killed, resumed, and compared with one that was not.

use std::process::{Command, Stdio};

use super::*;
use crate::train::kill::{self, Point};

const CHILD: &str = "train::run::tests::crash::child";
const STEPS: u64 = 60;

fn options() -> TrainingOptions {
    TrainingOptions {
        save_steps: 1,
        gradient_accumulation: 2,
        resume: true,
        ..super::options(STEPS)
    }
}

/// Not a test of its own: what is run in another process, to be killed.
#[test]
fn child() {
    let Some(directory) = kill::directory() else { return };
    train(&mut Tiny::new(), &options(), &directory, &mut go_on).unwrap();
}

/// Kills a run at `points` random points, one after the other, resuming it each time.
fn kill_at_random_points(points: u64) {
    let reference = whole(&TrainingOptions { resume: false, ..options() });
    let mut killed = 0;
    for round in 0..points.div_ceil(5) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.jsonl");
        for point in Point::spread(round, 5, STEPS) {
            let mut process = kill::command(CHILD, dir.path(), &[]).spawn().unwrap();
            killed += u64::from(kill::kill_at(&mut process, &log, point));
        }
        let (found, run) = resumed(&options(), dir.path());
        assert_eq!(found, reference, "round {round}");
        assert_eq!(run.warnings, [""; 0], "round {round}");
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(log.lines().count() as u64, STEPS, "round {round}");
    }
    assert!(killed > 0);
}

#[test]
fn killed_at_ten_random_points() {
    kill_at_random_points(10);
}

#[test]
#[ignore = "long: 50 processes"]
fn killed_at_fifty_random_points() {
    kill_at_random_points(50);
}

/// SIGKILL before every call of a kind that a save makes, by `strace`'s injection: the same run,
/// then resumed.
#[test]
#[ignore = "long: hundreds of processes; needs strace"]
fn killed_at_every_system_call_of_a_save() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        #[allow(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: strace is not installed");
        }
        return;
    }
    let reference = whole(&TrainingOptions { resume: false, ..options() });
    let mut killed = 0;
    for calls in
        ["mkdir,mkdirat", "openat", "write", "fsync", "rename,renameat,renameat2", "unlinkat"]
    {
        for number in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let inject = format!("inject={calls}:signal=KILL:when={number}");
            let prefix = ["strace", "-f", "-o", "/dev/null", "-e", &inject];
            let status = kill::command(CHILD, dir.path(), &prefix).status().unwrap();
            if status.success() || checkpoint::list(dir.path()).is_ok_and(|c| c.first() > Some(&4))
            {
                break;
            }
            let (found, run) = resumed(&options(), dir.path());
            assert_eq!((found, run.warnings), (reference_of(&reference), Vec::new()), "{inject}");
            killed += 1;
        }
    }
    assert!(killed > 60, "{killed} kills");
}
