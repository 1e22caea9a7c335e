//! `cargo xtask test`: every test there is, the quick ones first.

use std::path::{Path, PathBuf};

use crate::command::{Outcome, cargo, run};
use crate::ctests::Mode;
use crate::python::Venv;
use crate::{cinstall, ctests, header, readme, suite};

/// Features whose code only tests reach.
const FEATURES: &str = "dolly-core/candle,dolly-core/hf-hub,dolly-core/parquet";

/// Runs everything; with `long` also what needs sanitizers, valgrind or much time.
pub fn all(root: &Path, long: bool) -> Outcome {
    lints(root)?;
    rust(root)?;
    let libraries = c_library(root)?;
    c(root, &libraries, long)?;
    let venv = Venv::create(root)?;
    venv.test()?;
    let c_route = ctests::build_suite(root, &libraries)?;
    suite::run(root, &venv, &c_route)?;
    readme::check(root, &venv, &libraries)
}

/// Writes `include/dolly.h` anew.
pub fn write_header(root: &Path) -> Outcome {
    let file = root.join("include/dolly.h");
    std::fs::write(&file, header::generate(root)?).map_err(|e| format!("{}: {e}", file.display()))
}

/// Installs the C library under `prefix`; gives the directory of the libraries.
pub fn install(root: &Path, prefix: &Path) -> Outcome<PathBuf> {
    cinstall::install(root, prefix, &c_library(root)?)
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
    run(&mut cargo(root, &test))?;
    let doc = ["doc", "--no-deps", "--package", "dolly-core", "--features", FEATURES];
    // Module headers guide readers of the source to private modules too.
    let flags = "-D warnings -A rustdoc::private-intra-doc-links";
    run(cargo(root, &doc).env("RUSTDOCFLAGS", flags))
}

/// Builds libdolly; gives the directory it is in.
fn c_library(root: &Path) -> Outcome<PathBuf> {
    run(&mut cargo(root, &["build", "--release", "--package", "dolly-ffi"]))?;
    Ok(root.join("target/release"))
}

fn c(root: &Path, libraries: &Path, long: bool) -> Outcome {
    let model = root.join("models/dolly-nano");
    ctests::run(root, libraries, &model, Mode::Plain)?;
    cinstall::check(root, libraries)?;
    if long {
        ctests::run(root, libraries, &model, Mode::Asan)?;
        ctests::run(root, libraries, &model, Mode::Valgrind)?;
    }
    Ok(())
}
