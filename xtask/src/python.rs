//! The Python side: an environment of its own, the wheel, its tests.

use std::path::{Path, PathBuf};

use crate::command::{Outcome, program, run};

/// Where a wheel is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// With this system's C library and newer ones.
    ThisSystem,
    /// With glibc 2.28 and newer ones: linked by zig, which has the symbols of old versions.
    OlderSystems,
}

/// The linker of [`Reach::OlderSystems`], from the package index.
const ZIG: &str = "ziglang==0.15.2";

/// A virtual environment under `target/`, with the tools the tests need.
pub struct Venv {
    root: PathBuf,
    bin: PathBuf,
}

impl Venv {
    /// Makes the environment, or brings an existing one up to date.
    pub fn create(root: &Path) -> Outcome<Self> {
        let home = root.join("target/venv");
        let bin = home.join(if cfg!(windows) { "Scripts" } else { "bin" });
        if !bin.join("python").exists() && !bin.join("python.exe").exists() {
            let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
            run(program(root, python, &["-m", "venv"]).arg(&home))?;
        }
        let venv = Self { root: root.to_owned(), bin };
        let requirements = "tests/python/requirements.txt";
        venv.python(&["-m", "pip", "install", "--quiet", "-r", requirements])?;
        Ok(venv)
    }

    /// Where its programs are.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Runs the environment's interpreter.
    pub fn python(&self, arguments: &[&str]) -> Outcome {
        run(&mut self.command(arguments))
    }

    /// The environment's interpreter, not yet run.
    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        program(&self.root, self.bin.join("python"), arguments)
    }

    /// Builds the wheel; gives its path.
    pub fn wheel(&self, reach: Reach) -> Outcome<PathBuf> {
        let directory = self.root.join("target/wheels");
        // Only one wheel may be there afterwards: the one just built.
        let _ = std::fs::remove_dir_all(&directory);
        let mut build = self.command(&["-m", "maturin", "build", "--release", "--out"]);
        build.arg(&directory);
        if reach == Reach::OlderSystems {
            self.python(&["-m", "pip", "install", "--quiet", ZIG])?;
            build.args(["--zig", "--compatibility", "manylinux_2_28"]);
            // maturin asks the first `python3` of the path for its zig.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let first = std::iter::once(self.bin.clone());
            let path = std::env::join_paths(first.chain(std::env::split_paths(&path)));
            build.env("PATH", path.map_err(|error| error.to_string())?);
        }
        run(&mut build)?;
        let entries = std::fs::read_dir(&directory).map_err(|error| error.to_string())?;
        let wheels = entries.flatten().map(|entry| entry.path());
        let mut wheels = wheels.filter(|path| path.extension().is_some_and(|e| e == "whl"));
        wheels.next().ok_or_else(|| format!("no wheel in {}", directory.display()))
    }

    /// Builds and installs the wheel, then runs everything that tests it.
    pub fn test(&self) -> Outcome {
        let wheel = self.wheel(Reach::ThisSystem)?;
        let wheel = wheel.to_string_lossy();
        self.python(&[
            "-m",
            "pip",
            "install",
            "--quiet",
            "--force-reinstall",
            "--no-deps",
            &wheel,
        ])?;
        self.python(&["-m", "ruff", "check", "dolly-py/python", "tests/python"])?;
        self.python(&["-m", "mypy", "--strict", "dolly-py/python/dolly_rs"])?;
        self.python(&["-m", "mypy.stubtest", "dolly_rs._native"])?;
        self.python(&["-m", "pytest", "tests/python"])
    }
}
