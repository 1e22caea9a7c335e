//! Puts the bundled model where the wheel's builder takes it from (`tool.maturin.include`).
//!
//! The model lives once, at the root of the repository; a symbolic link into the package would
//! not survive every checkout.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MODEL: &str = "dolly-nano";

fn main() -> io::Result<()> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(MODEL);
    println!("cargo::rerun-if-changed={}", from.display());
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let to = PathBuf::from(out).join(MODEL);
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    // Without the model the crate still builds; its tests then say what is missing.
    match from.exists() {
        true => copy_files(&from, &to),
        false => Ok(()),
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
