//! Comma-separated values as in RFC 4180, with a header.
//!
//! An own reader, because three things must be known that the usual ones pass over in silence: a
//! quote that is never closed, text after a closing quote, and the line each row starts at; and
//! because no row may grow past its limit. Quotes within a field that does not start with one are
//! text, as everywhere.

use std::io::BufRead;

use super::intake::{Cell, Fault, Intake, shown};
use crate::error::{Error, Result};

/// Most columns of a file.
const MAX_COLUMNS: usize = 10_000;

/// Where in a row the reader stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the start of a field.
    Field,
    /// In a field without quotes.
    Plain,
    /// In a field with quotes.
    Quoted,
    /// After a quote within such a field: its end, or the first of two.
    Quote,
}

/// The fields of one row, one after the other.
#[derive(Default)]
struct Fields {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Bytes of the row as it stands in the file.
    len: u64,
    /// Whether a quote occurred where it has a meaning.
    quoted: bool,
    fault: Option<Fault>,
}

struct Table<'a, 'b> {
    intake: &'a mut Intake<'b>,
    separator: u8,
    place: Place,
    fields: Fields,
    line: u64,
    start: u64,
    /// Whether the last byte was a carriage return that ended a row.
    after_return: bool,
    header: Option<Header>,
    cells: Vec<Cell>,
}

/// What the first row says.
struct Header {
    /// Per column: the cell it fills.
    cells: Vec<Option<usize>>,
    /// Names of the columns that fill none.
    extra: Vec<String>,
}

/// Reads rows of fields that `separator` parts.
pub(super) fn read(mut reader: impl BufRead, separator: u8, intake: &mut Intake<'_>) -> Result<()> {
    let cells = intake.cells();
    let mut table = Table {
        intake,
        separator,
        place: Place::Field,
        fields: Fields::default(),
        line: 1,
        start: 1,
        after_return: false,
        header: None,
        cells,
    };
    loop {
        let file = table.intake.file();
        let chunk = reader.fill_buf().map_err(|e| Error::io(file, e))?;
        if chunk.is_empty() {
            return table.end();
        }
        let mut rest = chunk;
        while let Some((byte, after)) = rest.split_first() {
            match table.take_text(rest) {
                0 => {
                    table.take(*byte)?;
                    rest = after;
                }
                taken => rest = rest.get(taken..).unwrap_or_default(),
            }
        }
        let taken = chunk.len();
        reader.consume(taken);
    }
}

impl Table<'_, '_> {
    /// Takes bytes of a field at once, up to one that means something; gives how many.
    fn take_text(&mut self, bytes: &[u8]) -> usize {
        let end = match self.place {
            Place::Quoted => memchr::memchr2(b'"', b'\n', bytes),
            Place::Plain => memchr::memchr3(self.separator, b'\n', b'\r', bytes),
            Place::Field | Place::Quote => Some(0),
        };
        let end = end.unwrap_or(bytes.len());
        self.fields.len = self.fields.len.saturating_add(end as u64);
        if self.fields.len <= self.intake.max_row_bytes() as u64 {
            self.fields.bytes.extend_from_slice(bytes.get(..end).unwrap_or_default());
        }
        end
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        let after_return = std::mem::take(&mut self.after_return);
        if after_return && byte == b'\n' {
            return Ok(());
        }
        if byte == b'\n' && self.place == Place::Quoted {
            self.line += 1;
        }
        self.fields.len = self.fields.len.saturating_add(1);
        match (self.place, byte) {
            (Place::Quoted, b'"') => self.place = Place::Quote,
            (Place::Quoted, _) => self.push(byte),
            (Place::Field, b'"') => {
                self.fields.quoted = true;
                self.place = Place::Quoted;
            }
            (Place::Quote, b'"') => {
                self.push(byte);
                self.place = Place::Quoted;
            }
            (_, b'\n' | b'\r') => {
                self.after_return = byte == b'\r';
                self.fields.len -= 1;
                return self.end_row();
            }
            (_, byte) if byte == self.separator => self.end_field(),
            (Place::Quote, _) => {
                let fault = Fault::new(format!(
                    "text follows the closing quote of field {}; a quote within one is written \"\"",
                    self.fields.ends.len() + 1
                ));
                self.fields.fault.get_or_insert(fault);
                self.place = Place::Plain;
            }
            (_, byte) => {
                self.push(byte);
                self.place = Place::Plain;
            }
        }
        Ok(())
    }

    fn push(&mut self, byte: u8) {
        if self.fields.len <= self.intake.max_row_bytes() as u64 {
            self.fields.bytes.push(byte);
        }
    }

    fn end_field(&mut self) {
        if self.fields.ends.len() < MAX_COLUMNS {
            self.fields.ends.push(self.fields.bytes.len());
        } else {
            let fault = Fault::new(format!("has more than {MAX_COLUMNS} fields"));
            self.fields.fault.get_or_insert(fault);
        }
        self.place = Place::Field;
    }

    fn end_row(&mut self) -> Result<()> {
        self.end_field();
        let mut fields = std::mem::take(&mut self.fields);
        let start = self.start;
        self.line += 1;
        self.start = self.line;
        let limit = self.intake.max_row_bytes();
        if fields.len > limit as u64 {
            let len = fields.len;
            let words = format!("has {len} bytes; at most {limit} are allowed (`max_line_bytes`)");
            fields.fault = Some(Fault::new(words));
        }
        if fields.len == 0 || (!fields.quoted && fields.is_blank()) {
            self.intake.blank_line();
        } else if self.header.is_none() {
            self.header = Some(self.read_header(&mut fields, start)?);
        } else {
            self.row(&mut fields, start)?;
        }
        // The room is used again.
        fields.bytes.clear();
        fields.ends.clear();
        self.fields = Fields { bytes: fields.bytes, ends: fields.ends, ..Fields::default() };
        Ok(())
    }

    fn read_header(&self, fields: &mut Fields, line: u64) -> Result<Header> {
        let refuse = |fault: Fault| {
            let Fault { field, reason } = fault;
            Error::Row { file: self.intake.file().to_owned(), line, field, reason }
        };
        if let Some(fault) = fields.fault.take() {
            return Err(refuse(fault));
        }
        let names: Result<Vec<String>, Fault> =
            fields.texts().map(|text| text.map(|text| text.trim().to_owned())).collect();
        let names = names.map_err(refuse)?;
        self.intake.check_header(&names)?;
        let cell = |name: &String| {
            self.intake.wanted.iter().position(|one| one.name.as_ref() == Some(name))
        };
        let cells: Vec<Option<usize>> = names.iter().map(cell).collect();
        let extra = names.iter().zip(&cells).filter(|(_, cell)| cell.is_none());
        let extra = extra.map(|(name, _)| shown(name)).collect();
        Ok(Header { cells, extra })
    }

    fn row(&mut self, fields: &mut Fields, line: u64) -> Result<()> {
        let Some(header) = &self.header else { return Ok(()) };
        let (found, expected) = (fields.ends.len(), header.cells.len());
        if let Some(fault) = fields.fault.take() {
            return self.intake.fault(line, fault);
        }
        if found != expected {
            let reason = format!(
                "has {found} fields; the header has {expected} (a line break within a field needs \
                 quotes around it)"
            );
            return self.intake.fault(line, Fault::new(reason));
        }
        self.cells.fill(Cell::Missing);
        for (text, cell) in fields.texts().zip(&header.cells) {
            let cell = cell.and_then(|cell| self.cells.get_mut(cell));
            match (text, cell) {
                (Ok(text), Some(cell)) => *cell = Cell::Text(text.to_owned()),
                (Ok(_), None) => {}
                (Err(fault), _) => return self.intake.fault(line, fault),
            }
        }
        self.intake.row(line, &mut self.cells, &header.extra)
    }

    fn end(mut self) -> Result<()> {
        if self.place == Place::Quoted {
            let number = self.fields.ends.len() + 1;
            let reason = format!("the quote that opens field {number} is never closed");
            // An open quote swallows all that follows: there is no row to go on with.
            if self.header.is_none() {
                let file = self.intake.file().to_owned();
                return Err(Error::Row { file, line: self.start, field: None, reason });
            }
            return self.intake.fault(self.start, Fault::new(reason));
        }
        let empty = self.place == Place::Field && self.fields.ends.is_empty();
        if empty { Ok(()) } else { self.end_row() }
    }
}

impl Fields {
    /// Whether nothing but blanks is there.
    fn is_blank(&self) -> bool {
        self.ends.len() <= 1 && self.bytes.iter().all(u8::is_ascii_whitespace)
    }

    fn texts(&self) -> impl Iterator<Item = Result<&str, Fault>> {
        let mut start = 0;
        self.ends.iter().enumerate().map(move |(index, end)| {
            let bytes = self.bytes.get(start..*end).unwrap_or_default();
            start = *end;
            std::str::from_utf8(bytes).map_err(|error| {
                let (field, byte) = (index + 1, error.valid_up_to() + 1);
                Fault::new(format!("field {field} is not UTF-8 from its byte {byte} on"))
            })
        })
    }
}
