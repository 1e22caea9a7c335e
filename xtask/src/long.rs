//! What takes too long for every change: hundreds of killed processes, minutes of fuzzing.

use std::path::Path;
use std::process::Stdio;

use crate::command::{Outcome, cargo, program, run};

/// Ignored tests that only take time; the others of that kind are run by other tests or by scripts.
const TESTS: [&str; 2] = ["killed_at", "resumed_at_any_step"];
/// Seconds for each fuzz target.
const FUZZ_SECONDS: u32 = 30;
/// Resident memory in MiB that a fuzz target may take.
const FUZZ_MEMORY: u32 = 2048;

/// What an x86-64 CPU would have to have for all instruction sets of the kernels.
const FEATURES: &str = "+avx2,+fma,+f16c,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni";

/// Tests of every operation on lanes; those of whole products take Miri hours.
const MIRI_TESTS: [&str; 3] =
    ["kernels::tests::math", "kernels::tests::rows", "kernels::tests::gradient"];

/// What rayon's queues need of Miri: its older model of borrows rejects them.
const MIRI_FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-tree-borrows \
                          -Zmiri-permissive-provenance -Zmiri-ignore-leaks";

/// The crash tests at full length.
pub fn crashes(root: &Path) -> Outcome {
    let test = ["test", "--release", "--package", "dolly-core", "--lib", "--", "--ignored"];
    run(cargo(root, &test).args(TESTS))
}

/// Whether there is a nightly compiler with a command of cargo.
fn has_nightly(root: &Path, command: &str) -> bool {
    let found = program(root, "rustup", &["run", "nightly", "cargo", command, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

/// The lanes of every instruction set of x86-64, interpreted: no CPU has to have them. Skipped,
/// saying so, without a nightly compiler and Miri.
pub fn kernels(root: &Path) -> Outcome {
    if !cfg!(target_arch = "x86_64") || !has_nightly(root, "miri") {
        eprintln!("!!! SKIPPED, no nightly compiler for x86-64 with Miri: kernels interpreted");
        return Ok(());
    }
    let words = ["run", "nightly", "cargo", "miri", "test", "--package", "dolly-core", "--lib"];
    run(program(root, "rustup", &words)
        .arg("--")
        .args(MIRI_TESTS)
        .env("RUSTFLAGS", format!("-C target-feature={FEATURES}"))
        .env("MIRIFLAGS", MIRI_FLAGS))
}

/// Every fuzz target for a while; skipped, saying so, without a nightly compiler and cargo-fuzz.
pub fn fuzz(root: &Path) -> Outcome {
    if !has_nightly(root, "fuzz") {
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
