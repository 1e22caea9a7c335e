//! What takes too long for every change: hundreds of killed processes, minutes of fuzzing.

use std::path::Path;
use std::process::Stdio;

use crate::command::{Outcome, cargo, program, run};

/// Ignored tests that only take time; the others of that kind are run by other tests or by scripts.
const TESTS: [&str; 2] = ["killed_at", "resumed_at_any_step"];
/// Seconds for each fuzz target.
const FUZZ_SECONDS: u32 = 60;
/// Resident memory in MiB that a fuzz target may take.
const FUZZ_MEMORY: u32 = 2048;

/// The crash tests at full length.
pub fn crashes(root: &Path) -> Outcome {
    let test = ["test", "--release", "--package", "dolly-core", "--lib", "--", "--ignored"];
    run(cargo(root, &test).args(TESTS))
}

/// Every fuzz target for a while; skipped, saying so, without a nightly compiler and cargo-fuzz.
pub fn fuzz(root: &Path) -> Outcome {
    let found = program(root, "rustup", &["run", "nightly", "cargo", "fuzz", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        eprintln!("!!! SKIPPED, no nightly compiler with cargo-fuzz: tests/fuzz");
        return Ok(());
    }
    run(&mut program(root, "bash", &["tests/fuzz/seeds.sh"]))?;
    let targets = root.join("tests/fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&targets).map_err(|e| format!("{}: {e}", targets.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut names: Vec<_> =
        files.filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names.iter().try_for_each(|name| {
        let words = ["run", "nightly", "cargo", "fuzz", "run", "--fuzz-dir", "tests/fuzz", name];
        let (time, memory) =
            (format!("-max_total_time={FUZZ_SECONDS}"), format!("-rss_limit_mb={FUZZ_MEMORY}"));
        run(program(root, "rustup", &words).args(["--", &time, &memory]))
    })
}
