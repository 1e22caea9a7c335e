//! The index of a checkpoint in several files: which shard holds which tensor.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::file::DataFile;
use super::safetensors::{MAX_HEADER, UniqueStrings};
use crate::error::{Error, Result};

/// Shard of every tensor, by the names in the files.
pub(crate) struct ShardIndex {
    pub(crate) weight_map: HashMap<String, String>,
}

impl ShardIndex {
    /// Reads `*.index.json`; every shard name in it is a plain file name.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let bytes = file.read_vec(0, file.len(), MAX_HEADER, "the index")?;
        let Parsed(weight_map) =
            serde_json::from_slice(&bytes).map_err(|e| Error::format(path, e.to_string()))?;
        for (tensor, shard) in &weight_map {
            if !safe_file_name(shard) {
                let reason = format!("shard name {shard:?} is not a plain file name");
                return Err(Error::tensor(path, tensor.as_str(), reason));
            }
        }
        Ok(Self { weight_map })
    }
}

/// Whether `name` is a plain file name: no separator, drive, parent or control character, so that
/// joining it to a directory cannot lead out of the directory.
pub(crate) fn safe_file_name(name: &str) -> bool {
    let forbidden = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(forbidden)
}

struct Parsed(HashMap<String, String>);

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Index;
        impl<'de> Visitor<'de> for Index {
            type Value = Parsed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an index with a \"weight_map\"")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
                let mut weight_map = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "weight_map" {
                        map.next_value::<IgnoredAny>()?;
                    } else if weight_map.replace(map.next_value::<UniqueStrings>()?).is_some() {
                        return Err(A::Error::custom("two entries \"weight_map\""));
                    }
                }
                let Some(UniqueStrings(weight_map)) = weight_map else {
                    return Err(A::Error::missing_field("weight_map"));
                };
                Ok(Parsed(weight_map))
            }
        }
        deserializer.deserialize_map(Index)
    }
}
