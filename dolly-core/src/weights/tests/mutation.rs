//! Damage to valid files: every truncation is an error, and no mutation panics or reads beyond.

use proptest::prelude::*;

use super::*;

const FILES: [&str; 5] =
    ["model.safetensors", "pytorch_model.bin", "parameters.bin", "model.gguf", "quants.gguf"];

/// Reads every tensor that can be read.
fn exercise(path: &Path) -> Result<()> {
    let checkpoint = open(path)?;
    for tensor in checkpoint.tensors() {
        let _ = checkpoint.read_vec(&tensor.name, tensor.elements() as usize);
        let Ok(reader) = checkpoint.reader(&tensor.name) else { continue };
        let (rows, cols) = reader.shape();
        if let Some((weights, bytes)) = reader.blocks().map(StoredType::block) {
            let _ = reader.read_blocks(0, &mut vec![0; rows * (cols / weights * bytes)]);
        }
    }
    Ok(())
}

/// Lengths to cut a file to: all of a small file's, else all that touch headers and directories.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).filter(move |&at| len < 4000 || at < 2600 || at + 1600 > len || at % 97 == 0)
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in FILES {
        let path = folder.path().join(name);
        let bytes = std::fs::read(golden(name)).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        // Writers of GGUF pad the end; the padding is no part of any tensor.
        let checkpoint = open(&path).unwrap();
        let needed = match checkpoint.gguf() {
            Some(_) => checkpoint.tensors().map(|t| t.offset + t.bytes).max().unwrap() as usize,
            None => bytes.len(),
        };
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for len in cuts(needed).collect::<Vec<_>>().into_iter().rev() {
            file.set_len(len as u64).unwrap();
            let error = open(&path).map(|_| ()).expect_err("cut file");
            assert_eq!(error.kind(), ErrorKind::Format, "{name} cut to {len}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..Default::default() })]

    #[test]
    fn mutated_files_never_panic(
        file in 0..FILES.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..8),
    ) {
        let name = FILES[file];
        let mut bytes = std::fs::read(golden(name)).unwrap();
        for (at, value, place) in edits {
            // Headers and directories are where a byte matters most.
            let len = bytes.len();
            let at = match place {
                0 => at.index(len),
                1 => at.index(len.min(64)),
                2 => at.index(len.min(2600)),
                _ => len - 1 - at.index(len.min(1600)),
            };
            bytes[at] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = exercise(&path) {
            prop_assert!(
                matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported),
                "{error}"
            );
        }
    }

    #[test]
    fn random_pickles_never_panic(
        ops in proptest::collection::vec(
            prop::sample::select(b".(N\x88KMJ\x8aGX\x8c)t\x85\x86\x87]ae}suqr\x94hjc\x93R\x81bQ\0\x01\x02".to_vec()),
            0..200,
        )
    ) {
        let _ = super::super::pickle::run(&ops);
    }
}
