//! JSON from untrusted files: bounded in size, no key twice.
//!
//! `serde_json` keeps the last of two equal keys and lets a small file grow into a large tree; two
//! readers of one file could then see different values. Here a repeated key is an error and the
//! number of nodes is counted while they are built. Nesting is bounded by `serde_json` (128).

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result, try_vec};
use crate::weights::AtomicFile;

/// Reads a regular file of at most `limit` bytes whole.
///
/// Errors when it is longer, no regular file (a pipe would block), or cannot be read.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |error| Error::io(path, error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(Error::format(path, "not a regular file"));
    }
    let too_long =
        |len: u64| Error::format(path, format!("has {len} bytes; at most {limit} are allowed"));
    if metadata.len() > limit {
        return Err(too_long(metadata.len()));
    }
    let room = usize::try_from(metadata.len()).unwrap_or(usize::MAX).saturating_add(1);
    let mut bytes = try_vec(room, "a file")?;
    let file = File::open(path).map_err(io)?;
    // The file may grow between the two calls: what is read is bounded as well.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 > limit {
        true => Err(too_long(bytes.len() as u64)),
        false => Ok(bytes),
    }
}

/// Through the shortest decimal, so that 1e-5 in f32 is written as 1e-5.
pub(crate) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Writes a file of this value, indented, whole or not at all.
pub(crate) fn write_pretty(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value);
    let mut text = text.map_err(|error| Error::Internal(error.to_string()))?;
    text.push(b'\n');
    AtomicFile::write_whole(path, &text)
}

/// Builds a [`Value`], refusing repeated keys and more nodes than `budget` holds.
pub(crate) struct Strict<'a> {
    /// Nodes that may still be built.
    pub budget: &'a Cell<usize>,
}

impl Strict<'_> {
    fn spend<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.budget.get().checked_sub(1);
        self.budget.set(left.ok_or_else(|| E::custom("more values than a file of this kind has"))?);
        Ok(())
    }

    fn inner(&self) -> Strict<'_> {
        Strict { budget: self.budget }
    }
}

/// The tree in `bytes`, at most `nodes` values large; the reason in words when it is refused.
pub(crate) fn parse_strict(bytes: &[u8], nodes: usize) -> Result<Value, String> {
    let budget = Cell::new(nodes);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { budget: &budget }.deserialize(&mut reader).map_err(|e| e.to_string())?;
    reader.end().map_err(|e| e.to_string())?;
    Ok(value)
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.spend().map(|()| Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.spend().map(|()| value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.spend().map(|()| value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.spend().map(|()| value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.spend().map(|()| value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.spend().map(|()| value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.inner())? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if values.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} occurs twice")));
            }
            let value = map.next_value_seed(self.inner())?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_serde_json_lets_through() {
        for (text, reason) in [
            (r#"{"a":1,"a":2}"#, "occurs twice"),
            (r#"{"a":{"b":1,"b":1}}"#, "occurs twice"),
            ("[1,2,3,4,5,6,7,8,9]", "more values"),
            ("{} {}", "trailing"),
            ("{", "EOF"),
        ] {
            let error = parse_strict(text.as_bytes(), 9).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let error = parse_strict("[".repeat(100_000).as_bytes(), 200_000).unwrap_err();
        assert!(error.contains("recursion limit"), "{error}");
        assert_eq!(parse_strict(br#"{"a":[1,-2,0.5,null,true,"x"]}"#, 9).unwrap()["a"][2], 0.5);
    }

    #[test]
    fn files_are_bounded_and_regular() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.json");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read_bounded(&file, 5).unwrap(), b"12345");
        assert!(matches!(read_bounded(&file, 4), Err(Error::Format { .. })));
        assert!(matches!(read_bounded(dir.path(), 4), Err(Error::Format { .. })));
        assert!(matches!(read_bounded(&dir.path().join("b"), 4), Err(Error::Io { .. })));
    }
}
