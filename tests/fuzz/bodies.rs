//! What the fuzz targets do with bytes: every answer but a crash is right. Each function tells
//! whether the bytes were taken for what they claim to be.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dolly_core::prompt::DollyPrompt;
use dolly_core::source::{SourceOptions, resolve};
use dolly_core::weights::{Checkpoint, ModelFiles, RowSource};
use dolly_core::{Config, Instruction, Pipeline, PromptMode, Tokenizer};

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
