//! `tokenizer.json`: a closed list of components, read without building what will be refused.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::parts::{Added, MAX_ADDED, MAX_IDS, MAX_TOKEN_BYTES, Parts, quote, split_merge};
use crate::json::Strict;

/// Values in all components but vocabulary, merges and added tokens; the family's have under 40.
const MAX_NODES: usize = 4096;

/// The file as read: components as trees, tables as tables.
#[derive(Default)]
struct File {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    added: Vec<AddedEntry>,
    model: Option<ModelEntry>,
}

#[derive(Default)]
struct ModelEntry {
    options: HashMap<String, Value>,
    vocab: Option<HashMap<String, u32>>,
    merges: Option<Vec<(String, String)>>,
}

#[derive(Deserialize)]
struct AddedEntry {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

/// The parts in a `tokenizer.json`, or the reason why it is refused.
pub(super) fn parse(bytes: &[u8]) -> Result<Parts, String> {
    let budget = Cell::new(MAX_NODES);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let file = FileSeed(&budget).deserialize(&mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    let nfc = match file.normalizer {
        Value::Null => false,
        ref value if kind(value) == Some("NFC") => true,
        ref value => return refuse("normalizer", value),
    };
    let prefix_space = pre_tokenizer(&file.pre_tokenizer)?;
    if kind(&file.decoder) != Some("ByteLevel") {
        return refuse("decoder", &file.decoder);
    }
    match &file.post_processor {
        Value::Null => {}
        value if kind(value) == Some("ByteLevel") => {}
        value if kind(value) == Some("TemplateProcessing") => check_template(value)?,
        value => return refuse("post_processor", value),
    }
    let model = file.model.ok_or("no \"model\"")?;
    check_options(&model.options)?;
    let vocab = model.vocab.ok_or("model: no \"vocab\"")?;
    let merges = model.merges.ok_or("model: no \"merges\"")?;
    let added = file.added.into_iter().map(added).collect::<Result<Vec<_>, _>>()?;
    let (tokens, base) = tokens(vocab, &added)?;
    Ok(Parts { tokens, base, merges, added, nfc, prefix_space })
}

fn kind(value: &Value) -> Option<&str> {
    value.get("type").and_then(Value::as_str)
}

fn refuse<T>(component: &str, value: &Value) -> Result<T, String> {
    let found = match kind(value) {
        Some(kind) => quote(kind),
        None if value.is_null() => "missing".into(),
        None => "without a type".into(),
    };
    Err(format!("{component} {found}: not one of the GPT-NeoX family"))
}

/// Whether a blank is put before the text.
fn pre_tokenizer(value: &Value) -> Result<bool, String> {
    if kind(value) != Some("ByteLevel") {
        return refuse("pre_tokenizer", value);
    }
    if !matches!(value.get("use_regex"), None | Some(Value::Bool(true))) {
        return Err("pre_tokenizer: use_regex must be true".into());
    }
    match value.get("add_prefix_space") {
        Some(Value::Bool(prefix)) => Ok(*prefix),
        None => Ok(true),
        Some(_) => Err("pre_tokenizer: add_prefix_space must be true or false".into()),
    }
}

/// A template that adds nothing is the sequence alone; any other would put ids into user text.
fn check_template(value: &Value) -> Result<(), String> {
    let Some(Value::Array(single)) = value.get("single") else {
        return Err("post_processor \"TemplateProcessing\": no \"single\"".into());
    };
    match single.as_slice() {
        [item] if item.get("Sequence").is_some() => Ok(()),
        _ => Err("post_processor \"TemplateProcessing\" adds tokens: not of this family".into()),
    }
}

/// Options of the BPE that change nothing here; the alphabet is complete, so `unk_token` and
/// `fuse_unk` never act.
fn check_options(options: &HashMap<String, Value>) -> Result<(), String> {
    for (key, value) in options {
        let harmless = match key.as_str() {
            "type" => value == "BPE",
            "dropout" => value.is_null() || value.as_f64() == Some(0.0),
            "unk_token" => value.is_null() || value.is_string(),
            "continuing_subword_prefix" | "end_of_word_suffix" => value.is_null() || value == "",
            "fuse_unk" => value.is_boolean() || value.is_null(),
            "byte_fallback" | "ignore_merges" => value.is_null() || value == &Value::Bool(false),
            _ => return Err(format!("model: unknown option {}", quote(key))),
        };
        if !harmless {
            let found = quote(&value.to_string());
            return Err(format!("model: {key} is {found}: not of the GPT-NeoX family"));
        }
    }
    Ok(())
}

fn added(entry: AddedEntry) -> Result<Added, String> {
    let AddedEntry { id, content, special, .. } = entry;
    for (name, set) in
        [("single_word", entry.single_word), ("lstrip", entry.lstrip), ("rstrip", entry.rstrip)]
    {
        if set {
            return Err(format!("added token {}: {name} is not supported", quote(&content)));
        }
    }
    Ok(Added { id, content, special, normalized: entry.normalized.unwrap_or(!special) })
}

/// All tokens by id; the ids of vocabulary and added tokens together leave no gap.
fn tokens(vocab: HashMap<String, u32>, added: &[Added]) -> Result<(Vec<String>, usize), String> {
    let base = vocab.len();
    let mut tokens: Vec<Option<String>> = vec![None; base];
    for (token, id) in vocab {
        match usize::try_from(id).ok().and_then(|id| tokens.get_mut(id)) {
            None => {
                let name = quote(&token);
                return Err(format!("token {name}: id {id} of a vocabulary of {base}"));
            }
            Some(Some(other)) => {
                return Err(format!("tokens {} and {}: both id {id}", quote(&token), quote(other)));
            }
            Some(slot) => *slot = Some(token),
        }
    }
    let mut tokens: Vec<String> = tokens.into_iter().flatten().collect();
    let mut beyond: Vec<&Added> = added.iter().filter(|added| added.id as usize >= base).collect();
    beyond.sort_by_key(|added| added.id);
    for added in beyond {
        if added.id as usize != tokens.len() {
            let (id, name) = (added.id, quote(&added.content));
            return Err(format!("added token {name}: id {id}; expected id {}", tokens.len()));
        }
        tokens.push(added.content.clone());
    }
    Ok((tokens, base))
}

struct FileSeed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for FileSeed<'_> {
    type Value = File;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<File, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FileSeed<'_> {
    type Value = File;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer as a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File, A::Error> {
        let mut file = File::default();
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("key {} occurs twice", quote(&key))));
            }
            let tree = || Strict { budget: self.0 };
            match key.as_str() {
                "normalizer" => file.normalizer = map.next_value_seed(tree())?,
                "pre_tokenizer" => file.pre_tokenizer = map.next_value_seed(tree())?,
                "post_processor" => file.post_processor = map.next_value_seed(tree())?,
                "decoder" => file.decoder = map.next_value_seed(tree())?,
                "added_tokens" => file.added = map.next_value_seed(List::new(MAX_ADDED))?,
                "model" => file.model = Some(map.next_value_seed(ModelSeed(self.0))?),
                // How a caller cuts and pads its batches, and the version: no part of encoding.
                "truncation" | "padding" | "version" => drop(map.next_value::<IgnoredAny>()?),
                _ => {
                    return Err(A::Error::custom(format!("unknown component {}", quote(&key))));
                }
            }
            seen.push(key);
        }
        Ok(file)
    }
}

struct ModelSeed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for ModelSeed<'_> {
    type Value = ModelEntry;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<ModelEntry, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed<'_> {
    type Value = ModelEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a BPE model as a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ModelEntry, A::Error> {
        let mut model = ModelEntry::default();
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "vocab" => model.vocab.replace(map.next_value_seed(VocabSeed)?).is_some(),
                "merges" => {
                    let merges = map.next_value_seed(List::<Merge>::new(MAX_IDS))?;
                    let merges = merges.into_iter().map(|merge| merge.0).collect();
                    model.merges.replace(merges).is_some()
                }
                _ => {
                    let value = map.next_value_seed(Strict { budget: self.0 })?;
                    model.options.insert(key.clone(), value).is_some()
                }
            };
            if twice {
                return Err(A::Error::custom(format!("model: {} occurs twice", quote(&key))));
            }
        }
        match model.options.contains_key("type") {
            // Early files of the family name no type.
            false if model.vocab.is_none() => Err(A::Error::custom("model: no \"type\"")),
            _ => Ok(model),
        }
    }
}

/// The vocabulary: token to id, no token twice.
struct VocabSeed;

impl<'de> DeserializeSeed<'de> for VocabSeed {
    type Value = HashMap<String, u32>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for VocabSeed {
    type Value = HashMap<String, u32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary as a JSON object of ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut vocab = HashMap::new();
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            if vocab.len() >= MAX_IDS || token.len() > MAX_TOKEN_BYTES {
                return Err(A::Error::custom(format!(
                    "vocabulary: over {MAX_IDS} tokens or a token over {MAX_TOKEN_BYTES} bytes"
                )));
            }
            match vocab.entry(token) {
                Entry::Vacant(slot) => slot.insert(id),
                Entry::Occupied(slot) => {
                    let token = quote(slot.key());
                    return Err(A::Error::custom(format!("token {token} occurs twice")));
                }
            };
        }
        Ok(vocab)
    }
}

/// A list of at most so many entries.
struct List<T> {
    limit: usize,
    entries: PhantomData<T>,
}

impl<T> List<T> {
    fn new(limit: usize) -> Self {
        Self { limit, entries: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for List<T> {
    type Value = Vec<T>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Vec<T>, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = seq.next_element()? {
            if entries.len() >= self.limit {
                return Err(A::Error::custom(format!("a list of over {} entries", self.limit)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

/// A merge in either spelling: `"a b"` or `["a", "b"]`.
struct Merge((String, String));

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: serde::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge: \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                split_merge(text).map(Merge).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let left = seq.next_element()?;
                let right = seq.next_element()?;
                let more = seq.next_element::<IgnoredAny>()?.is_some();
                match (left, right, more) {
                    (Some(left), Some(right), false) => Ok(Merge((left, right))),
                    _ => Err(A::Error::custom("a merge must have two tokens")),
                }
            }
        }
        reader.deserialize_any(Pair)
    }
}
