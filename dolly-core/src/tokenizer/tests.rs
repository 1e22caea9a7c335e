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

/// A small tokenizer of the family: 256 bytes, one merge, one special token.
fn tiny() -> Value {
    let mut vocab: serde_json::Map<String, Value> = serde_json::Map::new();
    for (id, c) in words::BYTE_CHARS.iter().enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    vocab.insert("ab".into(), 256.into());
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(257, "<|endoftext|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                  "vocab": vocab, "merges": ["a b"]},
    })
}

/// `tiny` with the value at `pointer` replaced.
fn with(pointer: &str, value: Value) -> Value {
    let mut file = tiny();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    file.pointer_mut(parent).unwrap()[key] = value;
    file
}

#[test]
fn accepts_every_spelling_of_the_family() {
    let bpe = |key: &str, value: Value| with(&format!("/model/{key}"), value);
    for file in [
        tiny(),
        with("/normalizer", Value::Null),
        with("/post_processor", json!({"type": "ByteLevel", "trim_offsets": false})),
        with(
            "/post_processor",
            json!({"type": "TemplateProcessing", "special_tokens": {},
                   "single": [{"Sequence": {"id": "A", "type_id": 0}}]}),
        ),
        with("/padding", json!({"strategy": {"Fixed": 99999999999u64}})),
        with("/truncation", json!({"max_length": 1, "stride": 8, "direction": "Left"})),
        with("/pre_tokenizer/use_regex", json!(true)),
        bpe("merges", json!([["a", "b"]])),
        bpe("unk_token", json!("<|endoftext|>")),
        bpe("continuing_subword_prefix", json!("")),
        bpe("byte_fallback", json!(false)),
    ] {
        let tokenizer = load(&file).unwrap();
        assert_eq!(tokenizer.encode("ab ba", false).unwrap(), [256, 32, 98, 97]);
        assert_eq!(tokenizer.vocab_size(), 258);
        assert!(tokenizer.is_special(257) && !tokenizer.is_special(256));
    }
}

/// Files that must be refused, and a word of the reason.
fn hostile() -> Vec<(&'static str, String)> {
    let file = |pointer: &str, value: Value| with(pointer, value).to_string();
    let added = |extra: Value| {
        let mut tokens = vec![special(257, "<|endoftext|>")];
        tokens.push(extra);
        with("/added_tokens", tokens.into()).to_string()
    };
    let set = |key: &str, value: Value| {
        let mut token = special(258, "<x>");
        token[key] = value;
        added(token)
    };
    let text = tiny().to_string();
    let without = |pointer: &str, key: &str| {
        let mut file = tiny();
        file.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
        file.to_string()
    };
    let replace = json!({"type": "Replace", "pattern": {"String": ""}, "content": "aaaa"});
    vec![
        ("normalizer \"Replace\"", file("/normalizer", replace.clone())),
        (
            "normalizer \"Sequence\"",
            file("/normalizer", json!({"type": "Sequence", "normalizers": vec![replace; 30]})),
        ),
        ("normalizer \"Lowercase\"", file("/normalizer", json!({"type": "Lowercase"}))),
        ("normalizer without a type", file("/normalizer", json!(["NFC"]))),
        ("pre_tokenizer \"Split\"", file("/pre_tokenizer", json!({"type": "Split"}))),
        ("pre_tokenizer missing", file("/pre_tokenizer", Value::Null)),
        ("use_regex", file("/pre_tokenizer/use_regex", json!(false))),
        ("add_prefix_space", file("/pre_tokenizer/add_prefix_space", json!("yes"))),
        ("decoder \"WordPiece\"", file("/decoder", json!({"type": "WordPiece"}))),
        ("decoder missing", without("", "decoder")),
        (
            "post_processor \"BertProcessing\"",
            file("/post_processor", json!({"type": "BertProcessing"})),
        ),
        (
            "adds tokens",
            file(
                "/post_processor",
                json!({"type": "TemplateProcessing", "single": [
                    {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}]}),
            ),
        ),
        ("unknown component", file("/chat_template", json!("x"))),
        ("type is", file("/model/type", json!("Unigram"))),
        ("dropout is", file("/model/dropout", json!(0.5))),
        ("byte_fallback is", file("/model/byte_fallback", json!(true))),
        ("ignore_merges is", file("/model/ignore_merges", json!(true))),
        ("end_of_word_suffix is", file("/model/end_of_word_suffix", json!("</w>"))),
        ("continuing_subword_prefix is", file("/model/continuing_subword_prefix", json!("##"))),
        ("unknown option", file("/model/shrink", json!(1))),
        ("no \"model\"", without("", "model")),
        ("no \"vocab\"", without("/model", "vocab")),
        ("no \"merges\"", without("/model", "merges")),
        ("both id 5", file("/model/vocab/ab", json!(5))),
        ("id 4294967295", file("/model/vocab/ab", json!(u32::MAX))),
        ("invalid", file("/model/vocab/ab", json!(-1))),
        ("invalid", file("/model/vocab/ab", json!(u64::MAX))),
        ("invalid", file("/model/vocab/ab", json!("7"))),
        (
            "token 257: is empty",
            file("/model/vocab/", json!(257)).replace(":257,\"lstrip", ":258,\"lstrip"),
        ),
        ("over 4096 bytes", text.replacen("\"ab\"", &format!("{:?}", "x".repeat(5000)), 1)),
        ("occurs twice", text.replacen("\"ab\":256", "\"ab\":256,\"ab\":256", 1)),
        (
            "occurs twice",
            text.replacen("\"version\"", "\"decoder\":null,\"decoder\":null,\"version\"", 1),
        ),
        ("occurs twice", text.replacen("\"merges\"", "\"merges\":[],\"merges\"", 1)),
        ("merge 0: \"ba\"", file("/model/merges", json!(["b a"]))),
        ("merge 0: \"zz\"", file("/model/merges", json!(["zz b"]))),
        ("merge \"ab\"", file("/model/merges", json!(["ab"]))),
        ("merge \"a b c\"", file("/model/merges", json!(["a b c"]))),
        ("two tokens", file("/model/merges", json!([["a", "b", "c"]]))),
        ("two tokens", file("/model/merges", json!([["a"]]))),
        ("a merge:", file("/model/merges", json!([7]))),
        ("a list", file("/model/merges", json!("a b"))),
        ("single_word", set("single_word", json!(true))),
        ("lstrip", set("lstrip", json!(true))),
        ("rstrip", set("rstrip", json!(true))),
        ("expected id 258", set("id", json!(300))),
        ("invalid value", set("id", json!(-3))),
        ("invalid type", set("content", json!(null))),
        ("is empty", set("content", json!(""))),
        ("at most 4096", set("content", json!("x".repeat(5000)))),
        ("is taken", added(special(97, "b"))),
        ("expected id 258", added(special(257, "<|endoftext|>"))),
        ("same token", added(special(258, "<|endoftext|>"))),
        ("byte 97 is special", added(special(97, "a"))),
        ("a list", file("/added_tokens", json!({}))),
        ("missing field", file("/added_tokens", json!([{"id": 1}]))),
        ("recursion limit", text.replacen("\"NFC\"", &"[".repeat(100_000), 1)),
        ("more values", file("/normalizer", json!({"type": "NFC", "x": vec![0; 5000]}))),
        ("trailing", format!("{text}x")),
        ("EOF", text[..100].to_owned()),
        ("EOF", String::new()),
        ("invalid type", "[]".into()),
    ]
}

#[test]
fn hostile_files_are_refused_by_name() {
    let table = hostile();
    assert!(table.len() >= 25);
    for (reason, file) in table {
        match Tokenizer::from_bytes(file.as_bytes(), "tokenizer.json".as_ref()) {
            Err(Error::Tokenizer { file, reason: found }) => {
                assert!(found.contains(reason), "expected {reason:?} in {found:?}");
                assert_eq!(file, Path::new("tokenizer.json"));
                assert!(found.len() < 300, "{found}");
            }
            other => panic!("{reason}: {other:?}"),
        }
    }
}

#[test]
fn every_truncation_of_a_file_is_refused() {
    let text = tiny().to_string();
    for len in 0..text.len() {
        let found = Tokenizer::from_bytes(&text.as_bytes()[..len], "t".as_ref());
        assert!(matches!(found, Err(Error::Tokenizer { .. })), "{len}");
    }
}

#[test]
fn merges_that_lead_to_a_special_token_stay_text() {
    let mut file = tiny();
    file["added_tokens"].as_array_mut().unwrap().push(special(256, "ab"));
    let tokenizer = load(&file).unwrap();
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [256]);
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [97, 98]);
}

#[test]
fn blank_before_the_text_where_the_file_asks_for_it() {
    let tokenizer = load(&with("/pre_tokenizer/add_prefix_space", json!(true))).unwrap();
    assert_eq!(tokenizer.encode("a", false).unwrap(), [32, 97]);
    assert_eq!(tokenizer.encode(" a", false).unwrap(), [32, 97]);
    assert!(tokenizer.encode("", false).unwrap().is_empty());
}

#[test]
fn decoding_knows_its_ids() {
    let tokenizer = load(&tiny()).unwrap();
    assert_eq!(tokenizer.decode(&[104, 105, 257], true).unwrap(), "hi");
    assert_eq!(tokenizer.decode(&[104, 105, 257], false).unwrap(), "hi<|endoftext|>");
    assert_eq!(tokenizer.token_bytes(0xFF), Some(&[0xFF][..]));
    assert_eq!(tokenizer.id_of("ab"), Some(256));
    assert_eq!(tokenizer.id_of("abc"), None);
    for id in [258, u32::MAX] {
        let error = tokenizer.decode(&[id], true).unwrap_err().to_string();
        assert!(error.contains(&id.to_string()) && error.contains("258"), "{error}");
        assert!(tokenizer.stream(true).push(id).is_err());
        assert_eq!(tokenizer.token_bytes(id), None);
        assert!(!tokenizer.is_special(id));
    }
}

#[test]
fn words_are_those_of_the_reference_pattern() {
    // GPT-2's pattern as published, by an engine with look-ahead.
    let reference = tokenizers::utils::SysRegex::new(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    )
    .unwrap();
    let pattern = words::pattern().unwrap();
    let alphabet: Vec<char> =
        "  \n\t\r\u{a0}\u{2003}\u{3000}'stredvmlab1९²é\u{301}💡#".chars().collect();
    let strategy = proptest::collection::vec(proptest::sample::select(alphabet), 0..40);
    proptest::proptest!(|(chars in strategy)| {
        let text: String = chars.into_iter().collect();
        let expected: Vec<&str> = reference.find_iter(&text).map(|(a, b)| &text[a..b]).collect();
        let found: Vec<&str> = words::split(&pattern, &text).collect();
        proptest::prop_assert_eq!(&found, &expected);
        proptest::prop_assert_eq!(found.concat(), text);
    });
}

#[test]
fn merges_are_those_of_the_crate() {
    let value = neox_json();
    let file = Parts { added: Vec::new(), ..read::parse(value.to_string().as_bytes()).unwrap() };
    let ids = |(id, token): (usize, &String)| (token.clone(), id as u32);
    let vocab: tokenizers::models::bpe::Vocab = file.tokens.iter().enumerate().map(ids).collect();
    let builder = BPE::builder().vocab_and_merges(vocab, file.merges.clone());
    let reference = builder.cache_capacity(0).build().unwrap();
    let checked = file.check().unwrap();
    let merges = Merges::new(file.tokens.len(), &checked.merges).unwrap();
    let scratch = std::cell::RefCell::new(Scratch::default());
    let words =
        proptest::prop_oneof!["[a-e ]{0,60}", "[ -~]{0,60}", "\\PC{0,20}", "(ab|aab|a){0,40}"];
    let config = proptest::test_runner::Config::with_cases(2000);
    proptest::proptest!(config, |(word in words)| {
        let spelled: String = word.bytes().map(|b| words::BYTE_CHARS[usize::from(b)]).collect();
        let expected = reference.tokenize(&spelled).unwrap();
        let expected: Vec<u32> = expected.iter().map(|token| token.id).collect();
        let mut scratch = scratch.borrow_mut();
        scratch.ids.clear();
        scratch.ids.extend(word.bytes().filter_map(|b| checked.byte_ids[usize::from(b)]));
        merges.apply(&mut scratch).unwrap();
        proptest::prop_assert_eq!(&scratch.ids, &expected);
    });
}

#[test]
fn streaming_equals_decoding_at_once() {
    let tokenizer = dolly(true);
    let size = tokenizer.vocab_size() as u32;
    let ids =
        proptest::collection::vec(proptest::prop_oneof![0..size, 90u32..260, 50254..size], 0..60);
    proptest::proptest!(|(ids in ids, skip: bool)| {
        let mut stream = tokenizer.stream(skip);
        let mut text = String::new();
        for id in &ids {
            let piece = stream.push(*id).unwrap();
            proptest::prop_assert!(piece.as_ref().is_none_or(|piece| !piece.is_empty()));
            text += &piece.unwrap_or_default();
        }
        text += &stream.finish().unwrap_or_default();
        let shown = ids.iter().filter(|id| !(skip && tokenizer.is_special(**id)));
        let bytes: Vec<u8> = shown.flat_map(|id| tokenizer.token_bytes(*id).unwrap()).copied().collect();
        proptest::prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        proptest::prop_assert_eq!(text, tokenizer.decode(&ids, skip).unwrap());
    });
}

#[test]
fn every_text_comes_back_normalised() {
    let tokenizer = load(&with("/normalizer", Value::Null)).unwrap();
    proptest::proptest!(|(text: String, special: bool)| {
        let ids = tokenizer.encode(&text, special).unwrap();
        proptest::prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    });
}

#[test]
fn a_gguf_file_holds_the_same_tokenizer() {
    let mut value = neox_json();
    let added = value["added_tokens"].as_array_mut().unwrap();
    added.push(special(50277, "### End"));
    let expected = load(&value).unwrap();
    let mut tokens = vec![String::new(); 50278];
    for (token, id) in value["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut types = vec![1; 50278];
    for token in value["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        tokens[id] = token["content"].as_str().unwrap().into();
        types[id] = if token["special"] == true { 3 } else { 4 };
    }
    let merges = value["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> = merges.map(|merge| merge.as_str().unwrap().into()).collect();
    let found =
        Tokenizer::from_gguf_parts(tokens.clone(), &types, &merges, "a.gguf".as_ref()).unwrap();
    for text in
        ["Hello ### End world", "def f(x):\n        return x  # é e\u{301} 🐑", "<|endoftext|>"]
    {
        for special in [false, true] {
            let ids = found.encode(text, special).unwrap();
            assert_eq!(ids, expected.encode(text, special).unwrap());
            assert_eq!(
                found.decode(&ids, special).unwrap(),
                expected.decode(&ids, special).unwrap()
            );
        }
    }
    let short = Tokenizer::from_gguf_parts(tokens.clone(), &types[1..], &merges, "a.gguf".as_ref());
    assert!(matches!(short, Err(Error::Tokenizer { .. })));
    let none = Tokenizer::from_gguf_parts(Vec::new(), &[], &[], "a.gguf".as_ref());
    assert!(matches!(none, Err(Error::Tokenizer { .. })));
    tokens[7] = tokens[8].clone();
    let twice = Tokenizer::from_gguf_parts(tokens, &types, &[], "a.gguf".as_ref());
    assert!(matches!(twice, Err(Error::Tokenizer { .. })));
}

#[test]
fn a_run_of_a_million_blanks_does_not_hide_the_words_after_it() {
    let tokenizer = dolly(true);
    let tail = "x the cat";
    for blank in ["\n", "\t", "\u{2003}"] {
        let text = blank.repeat(1_100_000) + tail;
        let ids = tokenizer.encode(&text, false).unwrap();
        let expected = tokenizer.encode(tail, false).unwrap();
        assert!(ids.ends_with(&expected));
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

/// Seconds this thread was on a CPU, so that other processes do not count.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9
}

/// Seconds for long texts of each hostile kind and twice their length; for the report, not a gate:
/// `cargo test --lib tokenizer -- --ignored --nocapture`.
#[test]
#[ignore = "prints timings"]
fn timings_of_long_texts() {
    let tokenizer = dolly(true);
    let mut state = 1u32;
    let mut random = move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from_u32((state >> 8) % 0x11_0000).unwrap_or('x')
    };
    let random: String = (0..600_000).map(&mut random).collect();
    let kinds: [(&str, &str); 14] = [
        ("a", "a"),
        ("space", " "),
        ("newline", "\n"),
        ("emoji", "🐑"),
        ("space a", " a"),
        ("space newline", " \n"),
        ("digits", "0123456789"),
        ("hash", "#"),
        ("key", "### End"),
        ("acute", "\u{301}"),
        ("a acute", "a\u{301}"),
        ("grave below", "\u{316}\u{301}"),
        ("hangul", "\u{1100}\u{1161}\u{11a8}"),
        ("random", &random),
    ];
    for (name, unit) in kinds {
        let seconds = [1usize << 20, 1 << 21].map(|len| {
            let mut text = unit.repeat(len / unit.len() + 1);
            while !text.is_char_boundary(text.len().min(len)) || text.len() > len {
                text.pop();
            }
            let start = cpu_seconds();
            let ids = tokenizer.encode(&text, false).unwrap();
            let seconds = cpu_seconds() - start;
            assert!(!ids.is_empty());
            seconds
        });
        println!(
            "{name:14} {:.3} s, {:.3} s, x {:.2}",
            seconds[0],
            seconds[1],
            seconds[1] / seconds[0]
        );
    }
}

#[test]
fn a_learned_vocabulary_is_the_reference_trainers() {
    let texts =
        ["the cat sat on the mat", "the other cat sat there", "a hat\nfor the cat's friend"];
    let json = super::train_tokenizer(texts.iter(), 275, 2).unwrap();
    assert!(json == super::train_tokenizer(texts.iter(), 275, 1).unwrap());
    let tokenizer = Tokenizer::from_bytes(&json, "new".as_ref()).unwrap();
    // BpeTrainer of tokenizers 0.23.3 with the same alphabet, special tokens and ByteLevel words.
    let merges = [
        "at", "he", "the", "cat", "Ġthe", "Ġcat", "sat", "Ġo", "Ġsat", "'s", "en", "fo", "fr",
        "hat",
    ];
    let first = 2 + 256;
    for (i, token) in merges.iter().enumerate() {
        assert_eq!(tokenizer.id_of(token), Some((first + i) as u32), "{token}");
    }
    assert_eq!(tokenizer.vocab_size(), 275);
    assert_eq!(tokenizer.id_of("<|endoftext|>"), Some(0));
    let dolly: Vec<_> =
        tokenizer.special_tokens().skip(2).map(|(id, t)| (id, t.to_owned())).collect();
    let expected = [(272, "### End"), (273, "### Instruction:"), (274, "### Response:\n")];
    assert_eq!(dolly, expected.map(|(id, t)| (id, t.to_owned())));
    let text = "thé cat's ### End \u{1f600}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false).unwrap(), text);
    for size in [260, 2_000_000] {
        assert!(super::train_tokenizer(texts.iter(), size, 1).is_err());
    }
    for threads in [0, 1025] {
        assert!(super::train_tokenizer(texts.iter(), 300, threads).is_err());
    }
}
