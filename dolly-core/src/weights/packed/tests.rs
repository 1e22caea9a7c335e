use std::path::PathBuf;

use super::*;
use crate::backend::Backend;
use crate::backend::cpu::{Activations, CpuBackend, CpuOptions};
use crate::weights::{Checkpoint, ModelFiles, RowSource, TensorToWrite, Values, WeightFormat};

const NAME: &str = "gpt_neox.layers.0.attention.dense.weight";
const SHAPE: [usize; 2] = [70, 256];

/// A model's directory with one matrix, and another for what is packed.
struct Place {
    model: tempfile::TempDir,
    packed: tempfile::TempDir,
    backend: CpuBackend,
}

impl Place {
    fn new() -> Self {
        let options = CpuOptions { threads: Some(2), ..Default::default() };
        let backend = CpuBackend::with_isa(options, None).unwrap();
        let place = Self {
            model: tempfile::tempdir().unwrap(),
            packed: tempfile::tempdir().unwrap(),
            backend,
        };
        place.write_model(1.0);
        place
    }

    fn weights(&self) -> PathBuf {
        self.model.path().join("model.safetensors")
    }

    fn write_model(&self, factor: f32) {
        let count = SHAPE[0] * SHAPE[1];
        let data: Vec<f32> = (0..count).map(|i| factor * ((i * 37 % 101) as f32 - 50.0)).collect();
        let source = Values::new(NAME, SHAPE.into(), &data).unwrap();
        let tensors = [TensorToWrite { name: NAME, shape: &SHAPE, source: &source }];
        super::super::write_safetensors_from(&self.weights(), &tensors, WeightFormat::F32).unwrap();
    }

    fn open(&self, format: WeightFormat) -> Checkpoint {
        let files = ModelFiles::Directory {
            config: self.model.path().join("config.json"),
            tokenizer: None,
            weights: vec![self.weights()],
            index: None,
        };
        let mut checkpoint = Checkpoint::open(&files).unwrap();
        checkpoint.use_packed(self.packed.path(), format.name());
        checkpoint
    }

    /// A product with the matrix, and a row of it as a table.
    fn results(&self, checkpoint: &Checkpoint, format: WeightFormat) -> Result<Vec<u32>> {
        let backend = &self.backend;
        let reader = checkpoint.reader(NAME)?;
        let layer = backend.load_linear(&reader, None, format)?;
        let table = backend.load_embedding(&reader, format)?;
        let (mut x, mut y) = (Activations::default(), Activations::default());
        backend.embed(&table, &[3, 69], &mut x)?;
        backend.linear(&x, &layer, None, &mut y)?;
        let (mut rows, mut all) = (Vec::new(), Vec::new());
        for values in [&x, &y] {
            backend.read(values, &mut rows)?;
            all.extend(rows.iter().map(|x| x.to_bits()));
        }
        Ok(all)
    }

    fn load(&self, format: WeightFormat) -> Vec<u32> {
        let mut checkpoint = self.open(format);
        let results = self.results(&checkpoint, format).unwrap();
        checkpoint.finish_packed();
        results
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.packed.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn a_second_load_needs_the_source_no_more() {
    for format in &WeightFormat::ALL[1..] {
        let place = Place::new();
        let first = place.load(*format);
        assert_eq!(place.files().len(), 1);
        let checkpoint = place.open(*format);
        // The header was read; without its data the source can give no row.
        let file = std::fs::File::options().write(true).open(place.weights()).unwrap();
        file.set_len(200).unwrap();
        assert!(checkpoint.reader(NAME).unwrap().read_rows(69, &mut [0.0; 256]).is_err());
        assert_eq!(place.results(&checkpoint, *format).unwrap(), first, "{format}");
    }
}

#[test]
fn formats_have_files_of_their_own() {
    let place = Place::new();
    let all: Vec<_> = WeightFormat::ALL[1..].iter().map(|format| place.load(*format)).collect();
    assert_eq!(place.files().len(), all.len());
    let again: Vec<_> = WeightFormat::ALL[1..].iter().map(|format| place.load(*format)).collect();
    assert_eq!(again, all);
}

#[test]
fn a_changed_model_is_packed_anew() {
    let place = Place::new();
    let old = place.load(WeightFormat::Q8_0);
    place.write_model(-3.0);
    let new = place.load(WeightFormat::Q8_0);
    assert_ne!(new, old);
    assert_eq!(place.load(WeightFormat::Q8_0), new);
}

/// Any byte damaged, any length cut: never a wrong result, never an error.
#[test]
fn damage_costs_time_only() {
    let place = Place::new();
    let expected = place.load(WeightFormat::Q4_0);
    let file = place.files().remove(0);
    let whole = std::fs::read(&file).unwrap();
    let places = (0..whole.len()).step_by(whole.len() / 97).chain(whole.len() - 40..whole.len());
    for at in places {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x41;
        std::fs::write(&file, &damaged).unwrap();
        assert_eq!(place.load(WeightFormat::Q4_0), expected, "byte {at} of {}", whole.len());
        std::fs::write(&file, &whole[..at]).unwrap();
        assert_eq!(place.load(WeightFormat::Q4_0), expected, "{at} bytes of {}", whole.len());
        assert_eq!(std::fs::read(&file).unwrap(), whole, "made anew");
    }
}

/// An index that is right in form and lies: about places, sizes and numbers.
#[test]
fn lies_of_the_index_are_found() {
    let place = Place::new();
    let expected = place.load(WeightFormat::F16);
    let file = place.files().remove(0);
    let whole = std::fs::read(&file).unwrap();
    let start = whole.len() - FOOTER as usize;
    let offset = u64::from_le_bytes(whole[start..start + 8].try_into().unwrap()) as usize;
    let index = String::from_utf8(whole[offset..start].to_vec()).unwrap();
    let pieces = "\"pieces\":5";
    assert!(index.contains(pieces), "{index}");
    for (old, new) in [
        (pieces, "\"pieces\":18446744073709551615"),
        (pieces, "\"pieces\":4"),
        ("\"offset\":0", "\"offset\":18446744073709551615"),
        ("\"offset\":0", "\"offset\":64"),
        ("\"piece_bytes\":", "\"piece_bytes\":9"),
        ("\"entries\":[", "\"entries\":[{},"),
        ("\"source\":\"", "\"source\":\"0"),
    ] {
        let lying = index.replace(old, new);
        let mut bytes = whole[..offset].to_vec();
        bytes.extend(lying.as_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        bytes.extend((lying.len() as u64).to_le_bytes());
        bytes.extend(crc32fast::hash(lying.as_bytes()).to_le_bytes());
        bytes.extend(&whole[start + 20..]);
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(place.load(WeightFormat::F16), expected, "{new}");
    }
}

#[test]
fn a_load_that_ends_early_leaves_nothing() {
    let place = Place::new();
    let checkpoint = place.open(WeightFormat::F32);
    place.results(&checkpoint, WeightFormat::F32).unwrap();
    drop(checkpoint);
    assert!(place.files().is_empty());
}

#[test]
fn a_directory_that_cannot_be_made_is_no_error() {
    let place = Place::new();
    let expected = place.load(WeightFormat::F32);
    let mut checkpoint = place.open(WeightFormat::F32);
    checkpoint.finish_packed();
    checkpoint.use_packed(&place.weights().join("inside a file"), "f32");
    assert_eq!(place.results(&checkpoint, WeightFormat::F32).unwrap(), expected);
    checkpoint.finish_packed();
}
