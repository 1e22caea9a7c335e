//! What the fuzz targets do with bytes: every answer but a crash is right. Each function tells
//! whether the bytes were taken for what they claim to be.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dolly_core::dataset::{Dataset, OnBadRow, ReadOptions, Record, SplitSize};
use dolly_core::prompt::DollyPrompt;
use dolly_core::provenance::FileHash;
use dolly_core::source::{SourceOptions, resolve};
use dolly_core::tokenizer::train_tokenizer;
use dolly_core::train::{Adapter, Trainer, TrainingOptions};
use dolly_core::weights::{Checkpoint, ModelFiles, RowSource, StoredType};
use dolly_core::{Config, Instruction, Pipeline, PromptMode, Tokenizer};
use serde_json::json;

/// Most bytes a model of these tests may take.
const MEMORY: u64 = 64 << 20;

/// A weight file in safetensors; once as it is, once as the header of a file.
pub fn safetensors(data: &[u8]) -> bool {
    let whole = checkpoint("model.safetensors", data);
    let mut file = (data.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(data);
    file.resize(file.len() + 256, 0);
    checkpoint("model.safetensors", &file) || whole
}

/// A weight file of PyTorch; once as it is, once as the pickle within a file.
pub fn pickle(data: &[u8]) -> bool {
    let whole = checkpoint("pytorch_model.bin", data);
    checkpoint("pytorch_model.bin", &archive(data)) || whole
}

/// A GGUF file: its header, its tensors, and the whole model in it.
pub fn gguf(data: &[u8]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let file = put(directory.path(), "model.gguf", data);
    let files = ModelFiles::Gguf { file: file.clone(), tokenizer: None };
    let opened = Checkpoint::open(&files);
    opened.iter().for_each(read_all);
    run(&file) || opened.is_ok()
}

/// The index of a sharded model, beside one shard.
pub fn index(data: &[u8]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "config.json", b"{}");
    put(directory.path(), "model.safetensors.index.json", data);
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut shard = (header.len() as u64).to_le_bytes().to_vec();
    shard.extend_from_slice(header);
    shard.extend_from_slice(&[0; 4]);
    put(directory.path(), "model-00001-of-00001.safetensors", &shard);
    let name = directory.path().to_string_lossy();
    let files = resolve(&name, &SourceOptions::default());
    files.and_then(|files| Checkpoint::open(&files)).is_ok()
}

/// A directory of which one file, named by the first byte, is replaced by the rest.
pub fn load(data: &[u8]) -> bool {
    let Some((kind, data)) = data.split_first() else { return false };
    let directory = tempfile::tempdir().unwrap();
    let standard = root().join("tests/golden/parity/standard");
    let mut names = [("config.json", None), ("model.safetensors", None), ("tokenizer.json", None)];
    let chosen = usize::from(*kind) % names.len();
    names[chosen].1 = Some(data);
    for (name, replaced) in names {
        match (replaced, name) {
            (Some(data), _) => put(directory.path(), name, data),
            (None, "tokenizer.json") => put(directory.path(), name, TOKENIZER.as_bytes()),
            (None, _) => put(directory.path(), name, &std::fs::read(standard.join(name)).unwrap()),
        };
    }
    run(directory.path())
}

/// A `config.json`.
pub fn config(data: &[u8]) -> bool {
    let config = Config::from_json_bytes(data, Path::new("config.json"));
    config.and_then(|config| config.tensors()).is_ok()
}

/// A `tokenizer.json`.
pub fn tokenizer(data: &[u8]) -> bool {
    let Ok(tokenizer) = Tokenizer::from_bytes(data, Path::new("tokenizer.json")) else {
        return false;
    };
    for special in [false, true] {
        if let Ok(ids) = tokenizer.encode("Hello,  wörld 🐑\n### End 123", special) {
            drop(tokenizer.decode(&ids, special));
        }
    }
    true
}

/// An instruction and, behind the first NUL, a context: user text never becomes a framing token.
pub fn prompt(data: &[u8]) -> bool {
    static NANO: OnceLock<(Tokenizer, DollyPrompt)> = OnceLock::new();
    let (tokenizer, prompt) = NANO.get_or_init(|| {
        let file = root().join("models/dolly-nano/tokenizer.json");
        let tokenizer = Tokenizer::from_file(&file).unwrap();
        let prompt = DollyPrompt::new(&tokenizer);
        (tokenizer, prompt)
    });
    let text = String::from_utf8_lossy(data);
    let mut instruction = Instruction::new(text.split('\0').next().unwrap_or_default());
    if let Some((_, context)) = text.split_once('\0') {
        instruction = instruction.context(context);
    }
    let ids = prompt.encode(tokenizer, &instruction, PromptMode::Safe).unwrap();
    for framing in [prompt.instruction_id(), prompt.response_id(), prompt.end_id()] {
        let expected = usize::from(framing != prompt.end_id());
        let found = ids.iter().filter(|id| Some(**id) == framing).count();
        assert_eq!(found, expected, "framing id {framing:?}");
    }
    assert_eq!(ids.last().copied(), prompt.response_id());
    prompt.encode(tokenizer, &instruction, PromptMode::Hf).is_ok()
}

/// Rows of data, one JSON object a line.
pub fn jsonl(data: &[u8]) -> bool {
    rows("rows.jsonl", data)
}

/// Rows of data as comma-separated values.
pub fn csv(data: &[u8]) -> bool {
    rows("rows.csv", data)
}

/// Rows of data in a Parquet file; without the feature, an error.
pub fn parquet(data: &[u8]) -> bool {
    rows("rows.parquet", data)
}

/// An adapter's directory of which one file, named by the first byte, is replaced by the rest; what
/// can be read is put beside a model.
pub fn adapter(data: &[u8]) -> bool {
    let Some((kind, data)) = data.split_first() else { return false };
    let directory = tempfile::tempdir().unwrap();
    let ours = root().join("tests/golden/adapters/ours");
    let names = ["adapter_config.json", "adapter_model.safetensors"];
    for (index, name) in names.into_iter().enumerate() {
        match index == usize::from(*kind) % names.len() {
            true => put(directory.path(), name, data),
            false => put(directory.path(), name, &std::fs::read(ours.join(name)).unwrap()),
        };
    }
    let Ok(adapter) = Adapter::read(directory.path()) else { return false };
    for layer in adapter.layers() {
        assert_eq!(layer.a.len() % layer.rank, 0, "{}", layer.module);
        assert_eq!(layer.b.len() % layer.rank, 0, "{}", layer.module);
    }
    let base = standard_model();
    let builder = Pipeline::builder(base.path().to_string_lossy()).memory_limit(MEMORY).threads(1);
    builder.adapter(directory.path()).build().and_then(|pipe| pipe.logits(&[0, 1])).is_ok()
}

/// A run's checkpoint of which one file, named by the first byte, is replaced by the rest, and gone
/// on from. Unless the file is the manifest, its hash is made to fit: readers must not trust it.
pub fn resume(data: &[u8]) -> bool {
    let Some((kind, data)) = data.split_first() else { return false };
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("checkpoint-1");
    std::fs::create_dir(&place).unwrap();
    let chosen = usize::from(*kind) % RUN_FILES.len();
    for (index, (name, bytes)) in RUN_FILES.into_iter().zip(run_files()).enumerate() {
        put(&place, name, if index == chosen { data } else { bytes.as_slice() });
    }
    if RUN_FILES[chosen] != MANIFEST {
        let files = RUN_FILES.into_iter().filter(|name| *name != MANIFEST).map(|name| {
            let hash = FileHash::of_file(name, &place.join(name)).unwrap();
            json!({"name": name, "bytes": hash.bytes, "sha256": hash.sha256})
        });
        let files: Vec<_> = files.collect();
        let manifest = json!({"format": 1, "step": 1, "files": files});
        put(&place, MANIFEST, manifest.to_string().as_bytes());
    }
    train(directory.path()).is_ok()
}

/// The index of a file of packed weights, otherwise right: the model is the same whatever it says.
pub fn packed(data: &[u8]) -> bool {
    let model = packed_model();
    let index = String::from_utf8_lossy(data).replace(SOURCE, &model.source).into_bytes();
    let directory = tempfile::tempdir().unwrap();
    let mut file = model.data.clone();
    file.extend(&index);
    file.extend((model.data.len() as u64).to_le_bytes());
    file.extend((index.len() as u64).to_le_bytes());
    file.extend(crc32fast::hash(&index).to_le_bytes());
    file.extend(&model.end);
    let path = put(directory.path(), &model.name, &file);
    assert_eq!(model.logits(directory.path()), model.expected);
    // One that was not taken has been made anew.
    std::fs::read(path).unwrap() == file
}

/// Stands for the identity of the model's files in an index to be tried.
const SOURCE: &str = "SOURCE";

/// A genuine index, with [`SOURCE`].
pub fn packed_index() -> Vec<u8> {
    packed_model().index.clone().into_bytes()
}

struct PackedModel {
    base: tempfile::TempDir,
    name: String,
    data: Vec<u8>,
    index: String,
    source: String,
    /// Version and magic.
    end: Vec<u8>,
    expected: Vec<u32>,
}

impl PackedModel {
    fn logits(&self, packed: &Path) -> Vec<u32> {
        let builder = Pipeline::builder(self.base.path().to_string_lossy()).memory_limit(MEMORY);
        let pipe = builder.threads(1).packed_weights(packed).build().unwrap();
        pipe.logits(&[0, 1]).unwrap().iter().map(|x| x.to_bits()).collect()
    }
}

fn packed_model() -> &'static PackedModel {
    static MODEL: OnceLock<PackedModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let packed = tempfile::tempdir().unwrap();
        let mut model = PackedModel {
            base: standard_model(),
            name: String::new(),
            data: Vec::new(),
            index: String::new(),
            source: String::new(),
            end: Vec::new(),
            expected: Vec::new(),
        };
        model.expected = model.logits(packed.path());
        let path = std::fs::read_dir(packed.path()).unwrap().next().unwrap().unwrap().path();
        let mut file = std::fs::read(&path).unwrap();
        model.name = path.file_name().unwrap().to_string_lossy().into_owned();
        let footer = file.split_off(file.len() - 32);
        model.end = footer[20..].to_vec();
        let place = u64::from_le_bytes(footer[..8].try_into().unwrap());
        let index = String::from_utf8(file.split_off(place as usize)).unwrap();
        model.source = index.split('"').nth(3).unwrap().to_owned();
        model.index = index.replace(&model.source, SOURCE);
        model.data = file;
        model
    })
}

/// A model of the golden files, with a tokenizer.
fn standard_model() -> tempfile::TempDir {
    let (base, standard) =
        (tempfile::tempdir().unwrap(), root().join("tests/golden/parity/standard"));
    for name in ["config.json", "model.safetensors"] {
        put(base.path(), name, &std::fs::read(standard.join(name)).unwrap());
    }
    put(base.path(), "tokenizer.json", TOKENIZER.as_bytes());
    base
}

const MANIFEST: &str = "manifest.json";

/// The files of a checkpoint, in the order of the numbers that name them.
pub const RUN_FILES: [&str; 5] =
    [MANIFEST, "state.json", "history.bin", "weights.safetensors", "optimizer.safetensors"];

/// The content of [`RUN_FILES`] after a run of one step.
pub fn run_files() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        train(directory.path()).unwrap();
        let place = directory.path().join("checkpoint-1");
        RUN_FILES.map(|name| std::fs::read(place.join(name)).unwrap()).to_vec()
    })
}

/// Trains a small model from nothing for one step, or goes on from where `directory` stands.
fn train(directory: &Path) -> dolly_core::Result<()> {
    static VOCABULARY: OnceLock<Vec<u8>> = OnceLock::new();
    let tokenizer = VOCABULARY.get_or_init(|| train_tokenizer([""].iter(), 261, 1).unwrap());
    let shape = json!({
        "model_type": "gpt_neox", "vocab_size": 261, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 256,
    });
    let config = Config::from_json_bytes(shape.to_string().as_bytes(), Path::new("config.json"))?;
    let options = TrainingOptions {
        max_steps: Some(1),
        batch_size: 1,
        eval_size: SplitSize::Rows(0),
        threads: Some(1),
        resume: true,
        memory_limit: Some(MEMORY),
        ..TrainingOptions::default()
    };
    let rows = [Record::new("Name a colour.", "Blue.")];
    let data = Dataset::from_records(rows, "rows", &ReadOptions::default())?;
    Trainer::from_config(config, tokenizer.clone(), options)?.train(&data, directory).map(drop)
}

/// Rows of a file of this name, read strictly and with bad ones skipped: both find the same rows,
/// each is kept or counted, and what is kept can be written and read back.
fn rows(name: &str, data: &[u8]) -> bool {
    let read = |on_bad_row| {
        let options = ReadOptions {
            on_bad_row,
            max_line_bytes: 1 << 16,
            memory_limit: MEMORY,
            ..ReadOptions::default()
        };
        Dataset::from_bytes(data, name, &options)
    };
    let strict = read(OnBadRow::Error);
    let Ok(found) = read(OnBadRow::Skip) else {
        assert!(strict.is_err());
        return false;
    };
    let summary = &found.summaries()[0];
    assert_eq!(summary.rows, found.len() as u64);
    assert_eq!(summary.first_skipped.len() as u64, summary.skipped.min(100));
    match strict {
        Ok(strict) => assert!(summary.skipped == 0 && strict.iter().eq(found.iter())),
        Err(error) => assert!(summary.skipped > 0, "{error}"),
    }
    let mut written = Vec::new();
    for record in found.iter() {
        assert!(!record.instruction.is_empty() && !record.response.is_empty());
        serde_json::to_writer(&mut written, record).unwrap();
        written.push(b'\n');
    }
    let again = Dataset::from_bytes(&written, "again.jsonl", &ReadOptions::default()).unwrap();
    assert!(again.iter().eq(found.iter()));
    true
}

/// The repository.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.ancestors().find(|dir| dir.join("models/dolly-nano").is_dir());
    root.unwrap().to_owned()
}

fn put(directory: &Path, name: &str, data: &[u8]) -> PathBuf {
    let file = directory.join(name);
    std::fs::write(&file, data).unwrap();
    file
}

fn checkpoint(name: &str, data: &[u8]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let weights = vec![put(directory.path(), name, data)];
    let config = directory.path().join("config.json");
    let files = ModelFiles::Directory { config, tokenizer: None, weights, index: None };
    let opened = Checkpoint::open(&files);
    opened.iter().for_each(read_all);
    opened.is_ok()
}

/// Reads the first and the last row of every tensor.
fn read_all(checkpoint: &Checkpoint) {
    for tensor in checkpoint.tensors() {
        let Ok(reader) = checkpoint.reader(&tensor.name) else { continue };
        let (rows, cols) = reader.shape();
        assert!(rows as u64 * cols as u64 <= tensor.bytes.saturating_mul(2), "{tensor:?}");
        let mut row = vec![0.0; cols];
        drop(reader.read_rows(0, &mut row));
        drop(reader.read_rows(rows - 1, &mut row));
        if let Some((weights, bytes)) = reader.blocks().map(StoredType::block) {
            let mut row = vec![0; cols / weights * bytes];
            drop(reader.read_blocks(0, &mut row));
            drop(reader.read_blocks(rows - 1, &mut row));
        }
    }
}

/// Loads a model and runs it once.
fn run(model: &Path) -> bool {
    let builder = Pipeline::builder(model.to_string_lossy()).memory_limit(MEMORY).threads(1);
    builder.build().and_then(|pipe| pipe.logits(&[0, 1])).is_ok()
}

/// A zip archive as `torch.save` writes it: this pickle and one storage of 256 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let entries: [(&str, &[u8]); 2] = [("m/data.pkl", pickle), ("m/data/0", &[0; 256])];
    for (name, data) in entries {
        let (at, len) = (file.len() as u32, data.len() as u32);
        let mut common = [0; 26];
        common[14..18].copy_from_slice(&len.to_le_bytes());
        common[18..22].copy_from_slice(&len.to_le_bytes());
        common[22..24].copy_from_slice(&(name.len() as u16).to_le_bytes());
        file.extend_from_slice(b"PK\x03\x04");
        file.extend_from_slice(&common);
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(data);
        directory.extend_from_slice(b"PK\x01\x02\0\0");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, size) = (file.len() as u32, directory.len() as u32);
    file.extend_from_slice(&directory);
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    file.extend_from_slice(&size.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}

/// A byte-level BPE of a few characters, enough for the golden model's vocabulary.
const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [{"id": 0, "content": "<|endoftext|>",
    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
    "trim_offsets": true, "use_regex": true}, "post_processor": null, "decoder": {"type":
    "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2}, "merges": []}}"#;
