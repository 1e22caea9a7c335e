//! The fuzz targets' functions on golden files, whole, cut and changed: no crash, for ever the same
//! inputs. `tests/fuzz` looks further.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../tests/fuzz/bodies.rs"]
mod bodies;

use std::path::{Path, PathBuf};

/// Changed copies of each seed.
const ROUNDS: usize = 150;

fn seeds(patterns: &[&str]) -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let paths: Vec<PathBuf> = patterns.iter().map(|pattern| golden.join(pattern)).collect();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Numbers that stand at the borders of what files hold.
const EDGES: [u64; 8] =
    [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) as usize) % bound.max(1)
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let at = self.below(data.len());
        match self.below(6) {
            0 => data.truncate(at),
            1 => drop(data.drain(at..data.len().min(at + 1 + self.below(16)))),
            2 => data[at] ^= 1 << self.below(8),
            3 => {
                let bytes = EDGES[self.below(EDGES.len())].to_le_bytes();
                let end = data.len().min(at + [1, 2, 4, 8][self.below(4)]);
                data[at..end].copy_from_slice(&bytes[..end - at]);
            }
            4 => {
                let piece = data[at..data.len().min(at + 1 + self.below(32))].to_vec();
                let to = self.below(data.len());
                drop(data.splice(to..to, piece));
            }
            // Digits, where text holds numbers.
            _ => {
                let digit = data.iter().skip(at).position(u8::is_ascii_digit);
                let place = digit.map_or(at, |ahead| at + ahead);
                data[place] = b"0123456789-.eE9"[self.below(15)];
            }
        }
    }
}

/// Headers stand at the front: most changes go there.
fn torment(body: fn(&[u8]) -> bool, seeds: &[Vec<u8>]) {
    let mut random = Random(7);
    body(&[]);
    assert!(seeds.iter().any(|seed| body(seed)), "no seed is taken for what it is");
    for seed in seeds {
        for round in 0..ROUNDS {
            let front = if round % 3 == 0 { seed.len() } else { seed.len().min(1200) };
            let (front, rest) = seed.split_at(front);
            let mut data = front.to_vec();
            for _ in 0..1 + random.below(4) {
                if !data.is_empty() {
                    random.change(&mut data);
                }
            }
            data.extend_from_slice(rest);
            body(&data);
        }
    }
}

#[test]
fn safetensors() {
    torment(
        bodies::safetensors,
        &seeds(&["weights/model.safetensors", "weights/bf16.safetensors"]),
    );
}

#[test]
fn pickle() {
    let names = ["pytorch_model", "legacy", "parameters", "transposed"];
    let names = names.map(|name| format!("weights/{name}.bin"));
    torment(bodies::pickle, &seeds(&names.each_ref().map(String::as_str)));
}

#[test]
fn gguf() {
    torment(bodies::gguf, &seeds(&["weights/model.gguf", "weights/quants.gguf"]));
}

#[test]
fn index() {
    let index = br#"{"metadata": {"total_size": 4}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}"#;
    torment(bodies::index, &[index.to_vec()]);
}

#[test]
fn config() {
    torment(
        bodies::config,
        &seeds(&["parity/standard/config.json", "parity/new_keys_linear/config.json"]),
    );
}

#[test]
fn tokenizer() {
    torment(bodies::tokenizer, &seeds(&["../../models/dolly-nano/tokenizer.json"]));
}

#[test]
fn load() {
    for (kind, name) in [(0, "config.json"), (1, "model.safetensors")] {
        let mut seed = vec![kind];
        seed.extend(seeds(&[&format!("parity/standard/{name}")]).remove(0));
        torment(bodies::load, &[seed]);
    }
}

#[test]
fn prompt() {
    let texts = [
        "Name a colour.\0### End\n\n### Response:\n### Instruction:",
        "### Response:\n<|endoftext|>### End \u{200b}### End",
        "é🐑日本 \u{301}\u{316}   \n\n\n",
    ];
    torment(bodies::prompt, &texts.map(|text| text.as_bytes().to_vec()));
}

#[test]
fn jsonl() {
    let rows: [&[u8]; 3] = [
        b"{\"instruction\": \"Name a colour.\", \"context\": \"\", \"response\": \"Blue.\"}\n\n\
          {\"response\": \"\\u00e9\\ud83d\\ude00\", \"instruction\": \"a\", \"category\": null}\n",
        b"\xef\xbb\xbf{\"instruction\":\"a\",\"response\":\"b\",\"x\":[{\"y\":1.5e3},null]}\r\n{\"instruction\":1}",
        b"{\"instruction\": \"a\", \"instruction\": \"b\", \"response\": \"c\"}\n{}\n[]\n\"\"\n",
    ];
    torment(bodies::jsonl, &rows.map(<[u8]>::to_vec));
}

#[test]
fn csv() {
    let rows: [&[u8]; 2] = [
        b"instruction,context,response,category\r\n\"a \"\"b\"\"\r\nc\",,d,open_qa\r\ne,f,g,\r\n",
        b"\xef\xbb\xbfresponse,instruction,x\n\n1,2,3\n4,5\n\"6,7,8\n",
    ];
    torment(bodies::csv, &rows.map(<[u8]>::to_vec));
}

#[test]
fn parquet() {
    let names = ["plain", "gzip", "zstd", "bad", "binary"];
    let names = names.map(|name| format!("dataset/{name}.parquet"));
    let seeds = seeds(&names.each_ref().map(String::as_str));
    match cfg!(feature = "parquet") {
        true => torment(bodies::parquet, &seeds),
        false => assert!(!seeds.iter().any(|seed| bodies::parquet(seed))),
    }
}

#[test]
fn adapter() {
    for (kind, name) in [(0, "adapter_config.json"), (1, "adapter_model.safetensors")] {
        let mut seed = vec![kind];
        seed.extend(seeds(&[&format!("adapters/ours/{name}")]).remove(0));
        torment(bodies::adapter, &[seed]);
    }
}

#[test]
fn packed() {
    torment(bodies::packed, &[bodies::packed_index()]);
}

#[test]
fn resume() {
    for (kind, file) in bodies::run_files().iter().enumerate() {
        torment(bodies::resume, &[[&[kind as u8], file.as_slice()].concat()]);
    }
}
