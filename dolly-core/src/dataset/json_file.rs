//! Files of JSON rows: one object a line, or one list of objects.

use std::io::{self, BufRead, Read as _};

use super::bytes::{Line, Lines};
use super::intake::{Cell, Fault, Intake};
use super::json_row;
use crate::error::{Error, Result};

/// Reads one object a line. Lines end at a newline, with or without a carriage return before it,
/// and nowhere else: U+2028 and its like stand inside texts.
pub(super) fn read_lines(reader: impl BufRead, intake: &mut Intake<'_>) -> Result<()> {
    let mut lines = Lines::new(reader, intake.max_row_bytes());
    let mut cells = intake.cells();
    loop {
        let line = lines.next().map_err(|e| Error::io(intake.file(), e))?;
        match line {
            Line::End => return Ok(()),
            Line::TooLong(bytes) => intake.fault(lines.number(), too_long(bytes, intake))?,
            Line::Whole if lines.bytes().iter().all(u8::is_ascii_whitespace) => {
                intake.blank_line();
            }
            Line::Whole => take_row(lines.bytes(), lines.number(), &mut cells, intake)?,
        }
    }
}

fn too_long(bytes: u64, intake: &Intake<'_>) -> Fault {
    let limit = intake.max_row_bytes();
    Fault::new(format!("has {bytes} bytes; at most {limit} are allowed (`max_line_bytes`)"))
}

fn take_row(text: &[u8], line: u64, cells: &mut [Cell], intake: &mut Intake<'_>) -> Result<()> {
    match json_row::parse(text, intake.wanted, cells) {
        Ok(extra) => intake.row(line, cells, &extra),
        Err((offset, fault)) => intake.fault(line.saturating_add(offset), fault),
    }
}

/// Reads a file that may be either: a list where its first character that is no blank is `[`.
pub(super) fn read_either(mut reader: impl BufRead, intake: &mut Intake<'_>) -> Result<()> {
    let io = |error| Error::io(intake.file(), error);
    let mut blanks = Vec::new();
    loop {
        let chunk = reader.fill_buf().map_err(io)?;
        let Some(first) = chunk.first().copied() else { break };
        if !first.is_ascii_whitespace() || blanks.len() >= intake.max_row_bytes() {
            break;
        }
        blanks.push(first);
        reader.consume(1);
    }
    let is_list = reader.fill_buf().map_err(io)?.first() == Some(&b'[');
    let whole = io::Cursor::new(blanks).chain(reader);
    if is_list { read_list(whole, intake) } else { read_lines(whole, intake) }
}

/// Where in a list the reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before its `[`.
    Before,
    /// Before an element, the first one or one that follows a comma.
    Element { first: bool },
    /// In an element, this many brackets deep, within a text or not.
    Inside { depth: u64, text: bool, escaped: bool },
    /// After its `]`.
    After,
}

/// Cuts a list into its elements without building it: brackets are counted, texts are passed over.
struct List<'a, 'b> {
    intake: &'a mut Intake<'b>,
    place: Place,
    line: u64,
    element: Vec<u8>,
    /// Bytes of the element, also those not kept.
    len: u64,
    start: u64,
    cells: Vec<Cell>,
}

/// Reads one list of objects.
fn read_list(mut reader: impl BufRead, intake: &mut Intake<'_>) -> Result<()> {
    let cells = intake.cells();
    let place = Place::Before;
    let mut list = List { intake, place, line: 1, element: Vec::new(), len: 0, start: 1, cells };
    loop {
        let file = list.intake.file();
        let chunk = reader.fill_buf().map_err(|e| Error::io(file, e))?;
        if chunk.is_empty() {
            return list.end();
        }
        let mut rest = chunk;
        while let Some((byte, after)) = rest.split_first() {
            match list.take_text(rest) {
                0 => {
                    list.take(*byte)?;
                    rest = after;
                }
                taken => rest = rest.get(taken..).unwrap_or_default(),
            }
        }
        let taken = chunk.len();
        reader.consume(taken);
    }
}

impl List<'_, '_> {
    /// Takes bytes of a text at once, up to one that means something; gives how many.
    fn take_text(&mut self, bytes: &[u8]) -> usize {
        let Place::Inside { text: true, escaped: false, .. } = self.place else { return 0 };
        let end = memchr::memchr3(b'"', b'\\', b'\n', bytes).unwrap_or(bytes.len());
        self.keep(bytes.get(..end).unwrap_or_default());
        end
    }

    /// Counts bytes of the element, and keeps them while it is not too long.
    fn keep(&mut self, bytes: &[u8]) {
        self.len = self.len.saturating_add(bytes.len() as u64);
        if self.len <= self.intake.max_row_bytes() as u64 {
            self.element.extend_from_slice(bytes);
        }
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        let line = self.line;
        self.line += u64::from(byte == b'\n');
        match self.place {
            Place::Inside { depth, text, escaped } => self.inside(byte, depth, text, escaped),
            _ if byte.is_ascii_whitespace() => Ok(()),
            Place::Before => {
                self.place = Place::Element { first: true };
                Ok(())
            }
            Place::Element { first } => self.before_element(byte, first, line),
            Place::After => {
                let file = self.intake.file().to_owned();
                let reason = "text follows the end of the list".to_owned();
                Err(Error::Row { file, line, field: None, reason })
            }
        }
    }

    fn before_element(&mut self, byte: u8, first: bool, line: u64) -> Result<()> {
        match byte {
            b']' | b',' => {
                let closes = byte == b']';
                self.place = if closes { Place::After } else { Place::Element { first: false } };
                match first && closes {
                    true => Ok(()),
                    false => self.intake.fault(line, Fault::new("an element is missing")),
                }
            }
            _ => {
                (self.start, self.len) = (line, 0);
                self.element.clear();
                self.inside(byte, 0, false, false)
            }
        }
    }

    fn inside(&mut self, byte: u8, depth: u64, text: bool, escaped: bool) -> Result<()> {
        let ends = depth == 0 && !text && matches!(byte, b',' | b']');
        if ends {
            let closes = byte == b']';
            self.place = if closes { Place::After } else { Place::Element { first: false } };
            return self.element();
        }
        self.keep(&[byte]);
        let inside = |depth, text, escaped| Place::Inside { depth, text, escaped };
        self.place = match (text, escaped, byte) {
            (true, true, _) => inside(depth, true, false),
            (true, false, b'\\') => inside(depth, true, true),
            (_, _, b'"') => inside(depth, !text, false),
            (false, _, b'{' | b'[') => inside(depth.saturating_add(1), false, false),
            (false, _, b'}' | b']') => inside(depth.saturating_sub(1), false, false),
            _ => inside(depth, text, false),
        };
        Ok(())
    }

    /// An element is complete.
    fn element(&mut self) -> Result<()> {
        if self.len > self.intake.max_row_bytes() as u64 {
            self.element = Vec::new();
            return self.intake.fault(self.start, too_long(self.len, self.intake));
        }
        take_row(&self.element, self.start, &mut self.cells, self.intake)
    }

    fn end(self) -> Result<()> {
        let fault = match self.place {
            Place::After => return Ok(()),
            Place::Inside { .. } => Fault::new("the file ends within this element"),
            _ => Fault::new("the file ends before the list does"),
        };
        let line = if matches!(self.place, Place::Inside { .. }) { self.start } else { self.line };
        self.intake.fault(line, fault)
    }
}
