//! What tests share that kill a process which trains: starting it, and ending it at random points.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::generate::sampler::derive_seed;

/// Tells a test that it is the process to be killed, and where it trains into.
const DIRECTORY: &str = "DOLLY_TEST_TRAIN_INTO";

/// Where this process trains into, if it was started by [`command`].
pub(crate) fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// This test program, running the test `name` alone, by way of `prefix` if there is one.
pub(crate) fn command(name: &str, directory: &Path, prefix: &[&str]) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = match prefix {
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
        [] => Command::new(program),
    };
    command.args([name, "--exact", "--test-threads=1"]).env(DIRECTORY, directory);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// When to kill: once the log has `lines` lines and `spins` more looks at it were made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub lines: u64,
    pub spins: u64,
}

impl Point {
    /// A random one in each of `count` equal parts of a run of `steps` steps, in their order.
    pub fn spread(seed: u64, count: u64, steps: u64) -> impl Iterator<Item = Self> {
        (0..count).map(move |part| {
            let draw = derive_seed(seed, part as usize + 1);
            let (first, end) = (part * steps / count, (part + 1) * steps / count);
            Self { lines: first + draw % (end - first).max(1), spins: (draw >> 32) % 40 }
        })
    }
}

/// Kills the process at `point` of the run whose log is `log`; false where it ended before.
///
/// # Panics
/// When the process failed by itself.
pub(crate) fn kill_at(child: &mut Child, log: &Path, point: Point) -> bool {
    let mut left = point.spins;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read(log).unwrap_or_default();
        if text.iter().filter(|byte| **byte == b'\n').count() as u64 >= point.lines {
            if left == 0 {
                child.kill().unwrap();
                break;
            }
            left -= 1;
        }
        std::thread::yield_now();
    }
    let status = child.wait().unwrap();
    // What the test harness exits with where a test fails.
    assert_ne!(status.code(), Some(101), "the process failed by itself at {point:?}");
    !status.success()
}
