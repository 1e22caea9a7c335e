//! Project tasks: `cargo xtask test` sets up all it needs and runs every test there is.
//!
//! Needs Rust, Python 3.10 or newer with venv, a C compiler, and the package registries.

mod cinstall;
mod command;
mod ctests;
mod cuda;
mod header;
mod long;
mod python;
mod readme;
mod suite;
mod test;
mod torture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  test           every test: Rust, docs, Python, C, header drift, README
  test --long    also sanitizers, valgrind, hundreds of crashes, and Miri and fuzzing where installed
  header         write include/dolly.h anew
  wheel          build the Python wheel for this system into target/wheels
  wheel --old    the same for every Linux with glibc 2.28 or newer
  wheel --cuda   the same for NVIDIA GPUs, as dolly-rs-cuda, into target/cuda/wheels
  cuda lint      lint what only builds with the feature cuda compile
  cuda [CAP]     build the GPU's tests and bench into target/cuda, for a compute capability (90)
  install DIR    install the C library, header and model under DIR";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = root();
    let outcome = match words.as_slice() {
        ["test"] => test::all(&root, false),
        ["test", "--long"] => test::all(&root, true),
        ["header"] => test::write_header(&root),
        ["wheel"] => wheel(&root, python::Reach::ThisSystem),
        ["wheel", "--old"] => wheel(&root, python::Reach::OlderSystems),
        ["wheel", "--cuda"] => cuda::wheel(&root),
        ["cuda", "lint"] => cuda::lint(&root),
        ["cuda"] => cuda::build(&root, None),
        ["cuda", capability] => cuda::build(&root, Some(capability)),
        ["install", directory] => test::install(&root, Path::new(directory)).map(drop),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn wheel(root: &Path, reach: python::Reach) -> command::Outcome {
    python::Venv::create(root)?.wheel(reach).map(drop)
}

/// The workspace this program was built from.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}
