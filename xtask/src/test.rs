//! `cargo xtask test`: every test there is, the quick ones first.

use std::path::{Path, PathBuf};

use crate::command::{Outcome, cargo, run};
use crate::python::Venv;
use crate::{readme, suite};

/// Runs everything; with `long` also what needs sanitizers, valgrind or much time.
pub fn all(root: &Path, long: bool) -> Outcome {
    lints(root)?;
    rust(root)?;
    let _ = long;
    let venv = Venv::create(root)?;
    venv.test()?;
    suite::run(root, &venv, &root.join("target/suite-c"))?;
    readme::check(root, &venv)
}

/// Formatting and lints: warnings are errors.
fn lints(root: &Path) -> Outcome {
    run(&mut cargo(root, &["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--features", FEATURES];
    run(cargo(root, &clippy).args(["--", "-D", "warnings"]))
}

/// Rust tests and documentation tests. The Python module is tested from Python: linked as a test
/// program it would lack the interpreter.
fn rust(root: &Path) -> Outcome {
    let test = ["test", "--workspace", "--exclude", "dolly-py", "--features", FEATURES];
    run(&mut cargo(root, &test))
}

const FEATURES: &str = "dolly-core/candle,dolly-core/hf-hub";

/// Writes `include/dolly.h` anew.
pub fn write_header(_root: &Path) -> Outcome {
    Err("not joined yet".to_owned())
}

/// Installs the C library under `prefix`; gives the directory of the libraries.
pub fn install(_root: &Path, _prefix: &Path) -> Outcome<PathBuf> {
    Err("not joined yet".to_owned())
}
