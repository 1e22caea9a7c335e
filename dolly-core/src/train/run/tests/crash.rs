//! A training process that is killed, resumed, and compared with one that was not.

use std::process::{Child, Command, Stdio};

use super::*;

const DIRECTORY: &str = "DOLLY_TEST_TRAIN_INTO";
const STEPS: u64 = 60;

fn options() -> TrainingOptions {
    TrainingOptions {
        save_steps: 1,
        gradient_accumulation: 2,
        resume: true,
        ..super::options(STEPS)
    }
}

/// Not a test of its own: what [`spawn`] runs in another process.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    train(&mut Tiny::new(), &options(), directory.as_ref(), &mut go_on).unwrap();
}

/// This test program, running [`child`], by way of `prefix` if there is one.
fn command(directory: &Path, prefix: &[&str]) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match prefix {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        [] => Command::new(program),
    };
    let name = "train::run::tests::crash::child";
    command.args([name, "--exact", "--test-threads=1"]).env(DIRECTORY, directory);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills the process once the log has `lines` lines and `spins` more looks at it were made.
fn kill_at(child: &mut Child, log: &Path, lines: usize, spins: u64) {
    let mut left = spins;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read(log).unwrap_or_default();
        if text.iter().filter(|byte| **byte == b'\n').count() >= lines {
            if left == 0 {
                child.kill().unwrap();
                break;
            }
            left -= 1;
        }
        std::thread::yield_now();
    }
    child.wait().unwrap();
}

/// Kills a run at `points` random points, one after the other, resuming it each time.
fn kill_at_random_points(points: usize) {
    let reference = whole(&TrainingOptions { resume: false, ..options() });
    let mut killed = 0;
    for round in 0..points.div_ceil(5) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.jsonl");
        for kill in 0..5 {
            let draw = crate::generate::sampler::derive_seed(round as u64, kill + 1);
            let mut process = command(dir.path(), &[]).spawn().unwrap();
            let lines = (kill as u64 * STEPS / 5 + draw % (STEPS / 5)) as usize;
            kill_at(&mut process, &log, lines, (draw >> 32) % 40);
            killed += 1;
        }
        let (found, run) = resumed(&options(), dir.path());
        assert_eq!(found, reference, "round {round}");
        assert_eq!(run.warnings, [""; 0], "round {round}");
        let log = std::fs::read_to_string(log).unwrap();
        assert_eq!(log.lines().count() as u64, STEPS, "round {round}");
    }
    assert!(killed >= points);
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
            let status = command(dir.path(), &prefix).status().unwrap();
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
