//! `cargo xtask test`: every test there is, the quick ones first.

use std::path::{Path, PathBuf};

use crate::command::{Outcome, cargo, run};
use crate::ctests::Mode;
use crate::python::Venv;
use crate::{cinstall, ctests, header, long, readme, suite};

/// Features whose code only tests reach.
const FEATURES: &str = "dolly-core/candle,dolly-core/hf-hub,dolly-core/parquet";

/// Runs everything; `in_full` also what needs sanitizers, valgrind or much time.
pub fn all(root: &Path, in_full: bool) -> Outcome {
    lints(root)?;
    rust(root)?;
    let libraries = c_library(root)?;
    let venv = Venv::create(root)?;
    c(root, &libraries, &venv, in_full)?;
    venv.test()?;
    let c_route = ctests::build_suite(root, &libraries)?;
    suite::run(root, &venv, &c_route)?;
    readme::check(root, &venv, &libraries)?;
    if in_full {
        long::crashes(root)?;
        long::fuzz(root)?;
        long::kernels(root)?;
    }
    Ok(())
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

fn c(root: &Path, libraries: &Path, venv: &Venv, in_full: bool) -> Outcome {
    let model = root.join("models/dolly-nano");
    ctests::run(root, libraries, &model, Mode::Plain)?;
    cinstall::check(root, libraries, venv.bin())?;
    if in_full {
        ctests::run(root, libraries, &model, Mode::Asan)?;
        ctests::run(root, libraries, &model, Mode::Valgrind)?;
    }
    Ok(())
}
