//! Running other programs, with their name in every error.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a task gives: nothing, or what went wrong.
pub type Outcome<T = ()> = Result<T, String>;

/// A program to be run in `directory`.
pub fn program(directory: &Path, name: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.current_dir(directory).args(arguments);
    command
}

/// `cargo` of the toolchain that runs this program.
pub fn cargo(root: &Path, arguments: &[&str]) -> Command {
    program(root, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Runs to the end; anything but success is an error.
pub fn run(command: &mut Command) -> Outcome {
    eprintln!("\n> {}", shown(command));
    let status = command.status().map_err(|error| format!("{}: {error}", shown(command)))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{}: {status}", shown(command))),
    }
}

/// Runs to the end and gives what was written to stdout.
pub fn output(command: &mut Command) -> Outcome<Vec<u8>> {
    eprintln!("\n> {}", shown(command));
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{}: {error}", shown(command)))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{}: {}", shown(command), output.status)),
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
