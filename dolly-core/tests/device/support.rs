//! What the suites share with those that run on the kernels; here on candle's CPU tensors unless
//! `DOLLY_TEST_DEVICE` says otherwise, and from the program's own files where there are no others.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod shared;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use shared::*;

use crate::{KQUANTS, MODELS, NANO, REFUSED};

pub const DEFAULT_DEVICE: &str = "candle";

/// Where the program's own files are, laid out as in the repository: in the directory that
/// `DOLLY_TEST_FILES` names, or where there is no repository in one beside the program.
pub fn unpacked() -> Option<PathBuf> {
    static UNPACKED: OnceLock<Option<PathBuf>> = OnceLock::new();
    UNPACKED
        .get_or_init(|| {
            let directory = match std::env::var_os("DOLLY_TEST_FILES") {
                Some(directory) => directory.into(),
                None if Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").exists() => {
                    return None;
                }
                None => std::env::current_exe().unwrap().with_extension("files"),
            };
            unpack(&directory);
            Some(directory)
        })
        .clone()
}

fn unpack(directory: &Path) {
    let write = |place: &str, name: &str, bytes: &[u8]| {
        let place = directory.join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(name), bytes).unwrap();
    };
    NANO.iter().for_each(|(name, bytes)| write("models/dolly-nano", name, bytes));
    KQUANTS.iter().for_each(|(name, bytes)| write("tests/golden/kquants", name, bytes));
    for model in MODELS.iter().chain(&REFUSED) {
        let place = format!("tests/golden/parity/{}", model.name);
        write(&place, "config.json", model.config);
        write(&place, "model.safetensors", model.weights);
        write(&place, "golden.safetensors", model.golden);
    }
}
