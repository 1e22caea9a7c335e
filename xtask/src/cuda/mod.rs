//! `cargo xtask cuda`: a program for a machine with a GPU, built on one that has neither GPU nor
//! toolkit; and the wheel, `cargo xtask wheel --cuda`.
//!
//! The compiler comes from the Python package index into an environment under `target/`. CUDA's
//! runtime is linked statically; the driver and the other libraries are loaded when first called
//! (`lazy.rs`), so that the program starts without them too.

mod lazy;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{Outcome, cargo, output, program, run};
use crate::python::Venv;

/// The compiler and the headers it reads, of one release of CUDA.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
];
/// That release, as cudarc wants it.
const RELEASE: &str = "13000";
/// Compute capability built for unless another is asked for: Hopper's.
const CAPABILITY: &str = "90";
/// The program: tests and bench in one, since candle's kernels alone are most of it.
const PROGRAM: &str = "dolly-cuda-tests";
/// Calls the bench in it, with the bench's own arguments.
const BENCH: (&str, &str) = (
    "dolly-cuda-bench",
    "#!/bin/sh\nDOLLY_BENCH=\"$*\" exec \"$(dirname \"$0\")/dolly-cuda-tests\" --ignored --exact measure --nocapture\n",
);
/// What is selected of the workspace in every build, whatever is built of it: features of what the
/// kernels' own build needs are the same then, and nvcc runs once for all.
const SELECTION: [&str; 6] = [
    "--package",
    "dolly-core",
    "--package",
    "dolly-py",
    "--features",
    "dolly-core/cuda,dolly-py/cuda",
];
/// The wheel's distribution name; it is imported as the other one is.
const WHEEL: &str = "dolly-rs-cuda";
/// Renames a wheel.
const RENAME: &str = "xtask/src/cuda/rename.py";
/// Bytes of a program that is easily carried.
const MOST_BYTES: u64 = 60 << 20;

/// Where the compiler and what is linked are.
struct Toolkit {
    /// nvcc, its parts and the headers.
    home: PathBuf,
    /// `lib/` of it has what is linked.
    linked: PathBuf,
    capability: String,
}

/// Builds the program of tests and bench for a compute capability (90 unless given).
pub fn build(root: &Path, capability: Option<&str>) -> Outcome {
    let toolkit = Toolkit::create(root, capability.unwrap_or(CAPABILITY))?;
    let built = toolkit.compile(root, &["--test", "device"])?;
    let directory = root.join("target/cuda");
    let (program, bench) = (directory.join(PROGRAM), directory.join(BENCH.0));
    std::fs::copy(&built, &program).map_err(|e| format!("{}: {e}", built.display()))?;
    run(Command::new("strip").arg(&program))?;
    std::fs::write(&bench, BENCH.1).map_err(|e| format!("{}: {e}", bench.display()))?;
    run(Command::new("chmod").arg("+x").arg(&bench))?;
    let total = std::fs::metadata(&program).map_err(|e| e.to_string())?.len();
    if total > MOST_BYTES {
        return Err(format!("the program has {total} bytes; {MOST_BYTES} are allowed"));
    }
    eprintln!("\nAnother build with the feature `cuda` needs:");
    for (name, value) in toolkit.environment()?.iter().filter(|(name, _)| *name != "PATH") {
        eprintln!("export {name}={}", value.display());
    }
    eprintln!("\n{total} bytes, for compute capability {}:", toolkit.capability);
    println!("{}\n{}", program.display(), bench.display());
    Ok(())
}

/// Builds the wheel with the feature `cuda`, under a name of its own.
pub fn wheel(root: &Path) -> Outcome {
    let toolkit = Toolkit::create(root, CAPABILITY)?;
    let venv = Venv::create(root)?;
    let directory = root.join("target/cuda/wheels");
    // Only one wheel may be there afterwards: the one just built.
    let _ = std::fs::remove_dir_all(&directory);
    let built = directory.join("as-built");
    let mut build = venv.command(&["-m", "maturin", "build", "--release", "--features", "cuda"]);
    toolkit.prepare(root, &mut build)?;
    run(build.arg("--out").arg(&built))?;
    let entries = std::fs::read_dir(&built).map_err(|e| format!("{}: {e}", built.display()))?;
    let wheel = entries.flatten().map(|entry| entry.path()).next();
    let wheel = wheel.ok_or_else(|| format!("no wheel in {}", built.display()))?;
    run(venv.command(&[RENAME]).arg(wheel).arg(WHEEL).arg(&directory))?;
    std::fs::remove_dir_all(&built).map_err(|e| format!("{}: {e}", built.display()))
}

/// Lints what the feature `cuda` compiles: warnings are errors.
pub fn lint(root: &Path) -> Outcome {
    let toolkit = Toolkit::create(root, CAPABILITY)?;
    let mut clippy = cargo(root, &["clippy", "--release", "--tests"]);
    clippy.args(SELECTION);
    toolkit.prepare(root, &mut clippy)?;
    run(clippy.args(["--", "-D", "warnings"]))
}

impl Toolkit {
    /// Brings the compiler and makes the stand-ins.
    fn create(root: &Path, capability: &str) -> Outcome<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("the CUDA programs are built on x86-64 Linux only".to_owned());
        }
        let directory = root.join("target/cuda/toolkit");
        let venv = directory.join("venv");
        let python = venv.join("bin/python");
        if !python.exists() {
            let system = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
            run(program(root, system, &["-m", "venv"]).arg(&venv))?;
        }
        run(program(root, &python, &["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        let ask = "import sysconfig; print(sysconfig.get_path('platlib'))";
        let packages = output(&mut program(root, &python, &["-c", ask]))?;
        let home = Path::new(String::from_utf8_lossy(&packages).trim()).join("nvidia/cu13");
        let linked = directory.join("linked");
        let libraries = linked.join("lib");
        std::fs::create_dir_all(&libraries).map_err(|e| e.to_string())?;
        // Under the name that `-lcudart` looks for.
        let runtime = home.join("lib/libcudart_static.a");
        std::fs::copy(&runtime, libraries.join("libcudart.a"))
            .map_err(|e| format!("{}: {e}", runtime.display()))?;
        lazy::make(root, &libraries)?;
        Ok(Self { home, linked, capability: capability.to_owned() })
    }

    /// What builds with the feature `cuda` must find in their environment.
    fn environment(&self) -> Outcome<Vec<(&'static str, OsString)>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = std::iter::once(self.home.join("bin"));
        let path = std::env::join_paths(first.chain(std::env::split_paths(&path)));
        Ok(vec![
            ("PATH", path.map_err(|error| error.to_string())?),
            ("NVCC", self.home.join("bin/nvcc").into()),
            ("CUDA_HOME", self.home.clone().into()),
            ("CUDA_ROOT", self.linked.clone().into()),
            ("CUDARC_CUDA_VERSION", RELEASE.into()),
            ("CUDA_COMPUTE_CAP", self.capability.clone().into()),
            // Machine code of the kernels that are linked takes a third of the room then.
            ("NVCC_APPEND_FLAGS", "--compress-mode=size".into()),
        ])
    }

    /// Compiles one target of dolly-core in the release profile; gives the program's path.
    fn compile(&self, root: &Path, target: &[&str; 2]) -> Outcome<PathBuf> {
        let mut build = cargo(root, &["build", "--release"]);
        build.args(SELECTION).args(target);
        build.args(["--message-format", "json-render-diagnostics"]);
        self.prepare(root, &mut build)?;
        let messages = output(&mut build)?;
        executable(&String::from_utf8_lossy(&messages), target[1])
    }

    /// Gives a build the environment and the directory that all of them share.
    fn prepare(&self, root: &Path, build: &mut Command) -> Outcome {
        build.arg("--target-dir").arg(root.join("target/cuda/build")).envs(self.environment()?);
        // Optimising across crates takes minutes and gains nothing here: the time is the GPU's.
        build.env("CARGO_PROFILE_RELEASE_LTO", "off");
        Ok(())
    }
}

/// The program of target `name` among cargo's messages, one JSON object a line.
fn executable(messages: &str, name: &str) -> Outcome<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let mut programs = messages.filter_map(|message: serde_json::Value| {
        let ours = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
    });
    programs.next_back().ok_or_else(|| format!("cargo named no program of {name}"))
}
