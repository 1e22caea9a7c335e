//! One JSON object as a row: the wanted keys as cells, the others by name only.
//!
//! Keys that are not wanted are skipped without building their values, in constant depth; a key
//! that occurs twice is an error, because two readers of one row could see different values.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use super::intake::{Cell, Fault, shown};
use super::options::Wanted;

/// Most keys of one row.
const MAX_KEYS: usize = 10_000;

/// Fills `cells` from the object in `text` and gives the names of its other keys.
///
/// The error holds the line within `text`, counted from 0.
pub(super) fn parse(
    text: &[u8],
    wanted: &[Wanted],
    cells: &mut [Cell],
) -> Result<Vec<String>, (u64, Fault)> {
    cells.fill(Cell::Missing);
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = text.get(..error.valid_up_to()).unwrap_or_default();
            let line = memchr::memchr_iter(b'\n', valid).count() as u64;
            let start = memchr::memrchr(b'\n', valid).map_or(0, |newline| newline + 1);
            let column = valid.len() - start + 1;
            return Err((line, Fault::new(format!("is not UTF-8 from byte {column} on"))));
        }
    };
    let mut row = Row { wanted, cells, extra: HashSet::new(), names: Vec::new(), fault: None };
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = reader.deserialize_any(&mut row).and_then(|()| reader.end());
    match (read, row.fault) {
        (_, Some(fault)) => Err((0, fault)),
        (Ok(()), None) => Ok(row.names),
        (Err(error), None) => Err(in_words(&error)),
    }
}

/// The error without the crate's own place at its end, which counts from the row's first line.
fn in_words(error: &serde_json::Error) -> (u64, Fault) {
    let text = error.to_string();
    let (line, column) = (error.line(), error.column());
    let words = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    let reason = format!("is not valid JSON at column {column}: {words}");
    ((line as u64).saturating_sub(1), Fault::new(reason))
}

struct Row<'a> {
    wanted: &'a [Wanted],
    cells: &'a mut [Cell],
    extra: HashSet<String>,
    /// The same in the order of the row.
    names: Vec<String>,
    fault: Option<Fault>,
}

impl Row<'_> {
    fn refuse<E: serde::de::Error>(&mut self, fault: Fault) -> E {
        let error = E::custom(&fault.reason);
        self.fault = Some(fault);
        error
    }

    fn is_no_object<E: serde::de::Error>(&mut self, kind: &str) -> Result<(), E> {
        Err(self.refuse(Fault::new(format!("is {kind}; expected an object of keys and values"))))
    }
}

impl<'de> Visitor<'de> for &mut Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let mut wanted = self.wanted.iter();
            let cell = wanted.position(|one| one.name.as_ref() == Some(&key));
            match cell.and_then(|cell| self.cells.get_mut(cell)) {
                Some(cell) if *cell == Cell::Missing => *cell = map.next_value()?,
                Some(_) => return Err(self.refuse(Fault::of_field(&key, "occurs twice"))),
                None => {
                    if self.extra.contains(&key) {
                        return Err(self.refuse(Fault::of_field(&key, "occurs twice")));
                    }
                    if self.names.len() >= MAX_KEYS {
                        let reason = format!("has more than {MAX_KEYS} keys");
                        return Err(self.refuse(Fault::new(reason)));
                    }
                    self.names.push(shown(&key));
                    self.extra.insert(key);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        self.is_no_object("a list")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.is_no_object("a text")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.is_no_object("null")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.is_no_object("true or false")
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.is_no_object("a number")
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.is_no_object("a number")
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.is_no_object("a number")
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cell, E> {
        Ok(Cell::Text(text.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Cell, E> {
        Ok(Cell::Text(text))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Cell, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Cell, E> {
        Ok(Cell::Other("true or false"))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Cell, E> {
        Ok(Cell::Other("a number"))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Cell, E> {
        Ok(Cell::Other("a number"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Cell, E> {
        Ok(Cell::Other("a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Cell, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Cell::Other("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Cell::Other("an object"))
    }
}
