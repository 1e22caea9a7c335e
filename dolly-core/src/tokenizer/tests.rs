use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tokenizer").join(name)
}

/// The bytes of a gzipped golden file.
pub(crate) fn gunzip(name: &str) -> Vec<u8> {
    let file = std::fs::File::open(golden(name)).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// EleutherAI's GPT-NeoX tokenizer as a tree.
pub(crate) fn neox_json() -> Value {
    serde_json::from_slice(&gunzip("gpt-neox-20b-tokenizer.json.gz")).unwrap()
}

fn load(value: &Value) -> Result<Tokenizer> {
    Tokenizer::from_bytes(value.to_string().as_bytes(), "tokenizer.json".as_ref())
}

pub(crate) fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "normalized": false,
           "single_word": false, "lstrip": false, "rstrip": false})
}

/// Dolly's tokenizer: GPT-NeoX's and three special tokens.
pub(crate) fn dolly(newline_in_key: bool) -> Tokenizer {
    let mut value = neox_json();
    let response = if newline_in_key { "### Response:\n" } else { "### Response:" };
    let added = value["added_tokens"].as_array_mut().unwrap();
    added.push(special(50277, "### End"));
    added.push(special(50278, "### Instruction:"));
    added.push(special(50279, response));
    load(&value).unwrap()
}

#[test]
fn hundred_vectors_of_the_published_tokenizer() {
    let tokenizer = load(&neox_json()).unwrap();
    let text = std::fs::read_to_string(golden("dolly-v2-tokenizer-vectors.txt")).unwrap();
    let mut count = 0;
    for line in text.lines() {
        let (text, ids) = line.rsplit_once(" => ").unwrap();
        let ids: Vec<u32> = ids.split(',').map(|id| id.trim().parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        count += 1;
    }
    assert_eq!(count, 100);
}
