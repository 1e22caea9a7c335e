//! Headers of safetensors files, under a stricter policy than the format's own crate.
//!
//! The format: eight bytes of header length, a JSON object of tensor entries, the tensors' bytes.
//! The crate keeps the last of two equal names, accepts any rank and spends twelve times the
//! header's size; here every such file is refused, before memory is taken.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::checkpoint::RawTensor;
use super::file::{DataFile, elements};
use super::{MAX_NAME, MAX_RANK, MAX_TENSORS, StoredType};
use crate::error::{Error, Result};

/// Longest header read: 100,000 tensors need about 14 MiB.
pub(crate) const MAX_HEADER: u64 = 16 << 20;

/// Reads the header of an open file.
pub(crate) fn read(file: &DataFile) -> Result<Vec<RawTensor>> {
    let length = file.read_vec(0, 8, 8, "the header length")?;
    let length = length.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let header = file.read_vec(8, length, MAX_HEADER, "the header")?;
    if header.first() != Some(&b'{') {
        return Err(Error::format(file.path(), "the header does not start with '{'"));
    }
    let header: Header = serde_json::from_slice(&header)
        .map_err(|e| Error::format(file.path(), format!("header: {e}")))?;
    let data_start = 8 + length;
    let mut tensors = crate::error::try_vec(header.0.len(), "safetensors entries")?;
    for (name, entry) in header.0 {
        tensors.push(check_entry(file, name, &entry, data_start)?);
    }
    check_coverage(file, data_start, &tensors)?;
    Ok(tensors)
}

fn check_entry(
    file: &DataFile,
    name: String,
    entry: &TensorEntry,
    start: u64,
) -> Result<RawTensor> {
    let fail = |reason: String| Err(Error::tensor(file.path(), name.as_str(), reason));
    let Some((stored, bits)) = stored_type(&entry.dtype) else {
        return fail(format!("unknown dtype {:?}", entry.dtype));
    };
    let mut shape = Vec::with_capacity(entry.shape.0.len());
    for &dim in &entry.shape.0 {
        let Ok(dim) = usize::try_from(dim) else {
            return fail(format!("dimension {dim} is too large"));
        };
        shape.push(dim);
    }
    let Some(bits) = elements(&shape).and_then(|count| count.checked_mul(bits)) else {
        return fail(format!("the size of shape {shape:?} overflows"));
    };
    let [first, end] = entry.data_offsets;
    let room = file.len() - start;
    if first > end || end > room {
        return fail(format!("data_offsets {first}..{end} lie outside the {room} bytes of data"));
    }
    if !bits.is_multiple_of(8) || end - first != bits / 8 {
        let dtype = &entry.dtype;
        return fail(format!(
            "{dtype} of shape {shape:?} needs {} bytes; data_offsets hold {}",
            bits.div_ceil(8),
            end - first
        ));
    }
    Ok(RawTensor { name, stored, shape, offset: start + first, bytes: end - first })
}

/// The data must be covered without gaps or overlaps, as the format demands.
fn check_coverage(file: &DataFile, start: u64, tensors: &[RawTensor]) -> Result<()> {
    let mut order: Vec<(u64, u64, &str)> =
        tensors.iter().map(|t| (t.offset, t.bytes, t.name.as_str())).collect();
    order.sort_unstable();
    let mut at = start;
    for (offset, bytes, name) in order {
        if offset != at {
            let reason = format!(
                "data starts at byte {}; the tensor before it ends at byte {}",
                offset - start,
                at - start
            );
            return Err(Error::tensor(file.path(), name, reason));
        }
        at = offset + bytes;
    }
    if at != file.len() {
        let reason =
            format!("{} bytes of data; the header accounts for {}", file.len() - start, at - start);
        return Err(Error::format(file.path(), reason));
    }
    Ok(())
}

/// The type behind a dtype name and its bits, `None` for a name the format does not have.
fn stored_type(dtype: &str) -> Option<(StoredType, u64)> {
    Some(match dtype {
        "F64" => (StoredType::F64, 64),
        "F32" => (StoredType::F32, 32),
        "F16" => (StoredType::F16, 16),
        "BF16" => (StoredType::Bf16, 16),
        "F4" => (StoredType::Other, 4),
        "F6_E2M3" | "F6_E3M2" => (StoredType::Other, 6),
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => (StoredType::Other, 8),
        "I16" | "U16" => (StoredType::Other, 16),
        "I32" | "U32" => (StoredType::Other, 32),
        "I64" | "U64" | "C64" => (StoredType::Other, 64),
        _ => return None,
    })
}

/// The JSON header: entries by name, none of them twice.
struct Header(HashMap<String, TensorEntry>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorEntry {
    dtype: String,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// Dimensions; reading stops at the first one too many.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor entries")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut metadata) = (HashMap::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut metadata, true) {
                            return Err(A::Error::custom("two entries \"__metadata__\""));
                        }
                        map.next_value::<UniqueStrings>()?;
                        continue;
                    }
                    insert(&mut entries, name, map.next_value()?)?;
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object of strings in which no key stands twice.
#[derive(Default)]
pub(crate) struct UniqueStrings(pub(crate) HashMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = UniqueStrings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut strings = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    insert(&mut strings, key, value)?;
                }
                Ok(UniqueStrings(strings))
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// Inserts under the caps that hold for every object of names.
fn insert<T, E: serde::de::Error>(
    map: &mut HashMap<String, T>,
    key: String,
    value: T,
) -> Result<(), E> {
    if key.len() > MAX_NAME {
        return Err(E::custom(format!("a name of {} bytes; at most {MAX_NAME}", key.len())));
    }
    if map.len() >= MAX_TENSORS {
        return Err(E::custom(format!("more than {MAX_TENSORS} entries")));
    }
    match map.entry(key) {
        Entry::Occupied(entry) => Err(E::custom(format!("two entries {:?}", entry.key()))),
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
    }
}
