//! One behaviour over three routes: the same cases answered from Rust, Python and C must give the
//! same bytes.
//!
//! Cases travel in a form every language reads in a few lines: per case a line
//! `instruction_bytes context_bytes seed`, the two texts, a newline. Answers: per case a line with
//! the number of bytes, the text, a newline.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::{Outcome, cargo, output, program};
use crate::python::Venv;

/// Answers every case of `tests/suite/cases.jsonl` over each route and compares.
pub fn run(root: &Path, venv: &Venv, c_route: &Path) -> Outcome {
    let cases = write_cases(root)?;
    let model = root.join("models/dolly-nano");
    let arguments = [cases.as_os_str(), model.as_os_str()];
    let rust = ["run", "--quiet", "--release", "--package", "dolly-core", "--example", "suite"];
    let rust = output(cargo(root, &rust).arg("--").args(arguments))?;
    let python = output(venv.command(&["tests/suite/route.py"]).args(arguments))?;
    let c = output(program(root, c_route, &[]).args(arguments))?;
    for (route, answers) in [("Python", python), ("C", c)] {
        if answers != rust {
            return Err(format!("the answers from {route} differ from those from Rust"));
        }
    }
    let count = std::fs::read_to_string(root.join(CASES)).map_err(text)?.lines().count();
    eprintln!("{count} instructions answered alike from Rust, Python and C");
    Ok(())
}

const CASES: &str = "tests/suite/cases.jsonl";

fn write_cases(root: &Path) -> Outcome<PathBuf> {
    let mut out = String::new();
    for line in std::fs::read_to_string(root.join(CASES)).map_err(text)?.lines() {
        let case: Value = serde_json::from_str(line).map_err(text)?;
        let field = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        let (instruction, context) = (field("instruction"), field("context"));
        let seed = case["seed"].as_u64().ok_or("a case without a seed")?;
        let _ = writeln!(out, "{} {} {seed}", instruction.len(), context.len());
        let _ = writeln!(out, "{instruction}{context}");
    }
    let file = root.join("target/suite-cases.txt");
    std::fs::write(&file, out).map_err(text)?;
    Ok(file)
}

fn text(error: impl std::fmt::Display) -> String {
    format!("{CASES}: {error}")
}
