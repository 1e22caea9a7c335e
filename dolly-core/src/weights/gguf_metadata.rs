//! The key-value pairs of a GGUF file, with their types checked on access.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use super::gguf::Header;
use crate::error::{Error, Result, try_vec};

/// Most pairs; files have some thirty.
const MAX_PAIRS: u64 = 65_536;
/// Longest key (`docs/gguf.md`).
const MAX_KEY: u64 = 65_535;
/// Longest string; chat templates and licences are the longest ones.
const MAX_STRING: u64 = 16 << 20;
/// Most elements of all arrays of a file together; three arrays of a vocabulary are usual.
const MAX_ELEMENTS: u64 = 1_000_000;
/// Arrays may hold arrays this deep.
const MAX_DEPTH: u32 = 4;

/// A value of GGUF metadata; integers and floats of all widths are widened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// `uint8` to `uint64`.
    Unsigned(u64),
    /// `int8` to `int64`.
    Signed(i64),
    /// `float32` and `float64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// `string`, UTF-8.
    Str(String),
    /// `array`; all elements are of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned integer",
            Self::Signed(_) => "a signed integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a bool",
            Self::Str(_) => "a string",
            Self::Array(_) => "an array",
        }
    }
}

/// The text of a string.
fn string(value: &GgufValue) -> Option<&str> {
    match value {
        GgufValue::Str(text) => Some(text),
        _ => None,
    }
}

/// The metadata of a GGUF file.
///
/// Every `get_*` returns `None` for a missing key and [`Error::Config`], naming file and key, for
/// a value of another type or out of range.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    path: PathBuf,
    pairs: HashMap<String, GgufValue>,
}

impl GgufMetadata {
    /// The file the metadata came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.pairs.get(key)
    }

    /// Every key, in no order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// An integer of any width that fits 32 bits.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 4294967295", |value| match *value {
            GgufValue::Unsigned(number) => u32::try_from(number).ok(),
            GgufValue::Signed(number) => u32::try_from(number).ok(),
            _ => None,
        })
    }

    /// As [`get_u32`](Self::get_u32), and [`Error::Config`] where the key is missing.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.get_u32(key)?.ok_or_else(|| Error::config(&self.path, key, "is missing"))
    }

    /// A float, rounded to 32 bits; not checked to be finite.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", |value| match *value {
            GgufValue::Float(number) => Some(number as f32),
            _ => None,
        })
    }

    /// A bool.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| match *value {
            GgufValue::Bool(truth) => Some(truth),
            _ => None,
        })
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", string)
    }

    /// An array whose elements are all strings.
    pub fn get_array_of_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "an array of strings", |value| {
            let GgufValue::Array(elements) = value else { return None };
            elements.iter().map(string).collect()
        })
    }

    /// An array whose elements are all integers.
    pub fn get_array_of_integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers", |value| {
            let GgufValue::Array(elements) = value else { return None };
            let number = |element: &GgufValue| match *element {
                GgufValue::Unsigned(number) => i64::try_from(number).ok(),
                GgufValue::Signed(number) => Some(number),
                _ => None,
            };
            elements.iter().map(number).collect()
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.pairs.get(key) else { return Ok(None) };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => {
                let found = match value {
                    GgufValue::Unsigned(number) => number.to_string(),
                    GgufValue::Signed(number) => number.to_string(),
                    other => other.kind().to_owned(),
                };
                Err(Error::config(&self.path, key, format!("{found}; {wanted} is needed")))
            }
        }
    }

    /// Reads `pairs` pairs.
    pub(crate) fn parse(header: &mut Header<'_>, pairs: u64) -> Result<Self> {
        // A pair takes at least 13 bytes: key length, type, and one byte of value.
        if pairs > MAX_PAIRS || pairs * 13 > header.left() {
            let left = header.left();
            return Err(header.fail(&format!(
                "claims {pairs} metadata pairs (at most {MAX_PAIRS}); the file has {left} bytes left"
            )));
        }
        let mut map = HashMap::new();
        let mut budget = MAX_ELEMENTS;
        for _ in 0..pairs {
            let key = header.string(MAX_KEY, "a metadata key")?;
            let kind = header.u32()?;
            let value = parse_value(header, kind, MAX_DEPTH, &mut budget)?;
            match map.entry(key) {
                Entry::Occupied(entry) => {
                    let reason = format!("two values of metadata key {:?}", entry.key());
                    return Err(header.fail(&reason));
                }
                Entry::Vacant(entry) => entry.insert(value),
            };
        }
        Ok(Self { path: header.file.path().to_owned(), pairs: map })
    }
}

/// One value of the type with number `kind`; arrays nest at most `depth` deep.
fn parse_value(
    header: &mut Header<'_>,
    kind: u32,
    depth: u32,
    budget: &mut u64,
) -> Result<GgufValue> {
    Ok(match kind {
        0 => GgufValue::Unsigned(u8::from_le_bytes(header.take()?).into()),
        1 => GgufValue::Signed(i8::from_le_bytes(header.take()?).into()),
        2 => GgufValue::Unsigned(u16::from_le_bytes(header.take()?).into()),
        3 => GgufValue::Signed(i16::from_le_bytes(header.take()?).into()),
        4 => GgufValue::Unsigned(header.u32()?.into()),
        5 => GgufValue::Signed(i32::from_le_bytes(header.take()?).into()),
        6 => GgufValue::Float(f32::from_le_bytes(header.take()?).into()),
        7 => match header.take::<1>()? {
            [0] => GgufValue::Bool(false),
            [1] => GgufValue::Bool(true),
            [other] => return Err(header.fail(&format!("a bool of value {other}"))),
        },
        8 => GgufValue::Str(header.string(MAX_STRING, "a string")?),
        9 => parse_array(header, depth, budget)?,
        10 => GgufValue::Unsigned(header.u64()?),
        11 => GgufValue::Signed(i64::from_le_bytes(header.take()?)),
        12 => GgufValue::Float(f64::from_le_bytes(header.take()?)),
        other => return Err(header.fail(&format!("metadata type {other} is unknown"))),
    })
}

fn parse_array(header: &mut Header<'_>, depth: u32, budget: &mut u64) -> Result<GgufValue> {
    let kind = header.u32()?;
    let len = header.u64()?;
    if depth == 0 {
        return Err(header.fail(&format!("arrays nested more than {MAX_DEPTH} deep")));
    }
    // Every element takes at least one byte, a string eight, an array twelve.
    let least = match kind {
        8 => 8,
        9 => 12,
        _ => 1,
    };
    if len > *budget || len * least > header.left() {
        let left = header.left();
        return Err(header.fail(&format!(
            "an array claims {len} elements (all arrays together hold at most {MAX_ELEMENTS}); \
             the file has {left} bytes left"
        )));
    }
    *budget -= len;
    let mut elements = try_vec(len as usize, "a metadata array")?;
    for _ in 0..len {
        elements.push(parse_value(header, kind, depth - 1, budget)?);
    }
    Ok(GgufValue::Array(elements))
}
