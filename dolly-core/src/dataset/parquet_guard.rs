//! Sizes in a Parquet file, checked before the crate `parquet` acts on them.
//!
//! The crate builds the schema by recursion, allocates what a page's header says before it has
//! seen the page, and sets aside room for lengths in headers: a small file could end the process.
//! Here the same headers are read first (Thrift's compact protocol) and refused where a length
//! reaches beyond its bytes, a schema is too deep, or a page would grow too far.

/// Most metadata that is read; that of a file with a thousand columns and row groups is smaller.
const MAX_METADATA: usize = 64 << 20;
/// Deepest schema, and deepest nesting of values that are passed over.
const MAX_DEPTH: usize = 32;
/// Largest page once it is decompressed.
const MAX_PAGE: i64 = 256 << 20;
/// Deflate cannot grow more than 1032 times.
const MAX_GROWTH: i64 = 1100;

/// Types of the compact protocol.
const BINARY: u8 = 8;
const LIST: u8 = 9;
const I32: u8 = 5;
const STRUCT: u8 = 12;

/// A cursor that never leaves its bytes.
struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Checked<T> = Result<T, String>;

impl<'a> Compact<'a> {
    fn take(&mut self, count: usize) -> Checked<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            let (at, len) = (self.at, self.bytes.len());
            format!("{count} bytes at byte {at} of a header of {len} bytes")
        })?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Checked<u8> {
        self.take(1).map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    fn varint(&mut self) -> Checked<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("a number without end at byte {}", self.at))
    }

    fn signed(&mut self) -> Checked<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn length(&mut self) -> Checked<usize> {
        let length = self.varint()?;
        usize::try_from(length).map_err(|_| format!("a length of {length}"))
    }

    /// Number and type of the next field of a structure; `None` at its end.
    fn field(&mut self, last: &mut i64) -> Checked<Option<(i64, u8)>> {
        let header = self.byte()?;
        if header == 0 {
            return Ok(None);
        }
        *last = match header >> 4 {
            0 => self.signed()?,
            delta => last.saturating_add(i64::from(delta)),
        };
        Ok(Some((*last, header & 0x0f)))
    }

    /// Number and type of the elements of a list.
    fn list(&mut self) -> Checked<(usize, u8)> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.length()?,
            count => usize::from(count),
        };
        // Every element has at least one byte.
        match count > self.bytes.len() - self.at {
            true => Err(format!("a list of {count} elements in {} bytes", self.bytes.len())),
            false => Ok((count, header & 0x0f)),
        }
    }

    /// Passes over a value. The depth bounds the recursion.
    fn skip(&mut self, kind: u8, depth: usize) -> Checked<()> {
        if depth > MAX_DEPTH {
            return Err(format!("values nested deeper than {MAX_DEPTH}"));
        }
        match kind {
            1 | 2 => Ok(()),
            3 => self.take(1).map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.take(8).map(drop),
            BINARY => {
                let length = self.length()?;
                self.take(length).map(drop)
            }
            LIST | 10 => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.element(kind, depth))
            }
            11 => {
                let count = self.length()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.element(kinds >> 4, depth)?;
                    self.element(kinds & 0x0f, depth)
                })
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(format!("a value of type {kind} at byte {}", self.at)),
        }
    }

    /// An element of a list or map: unlike a field's, its truth value takes a byte.
    fn element(&mut self, kind: u8, depth: usize) -> Checked<()> {
        match kind {
            1 | 2 => self.take(1).map(drop),
            _ => self.skip(kind, depth + 1),
        }
    }

    /// Reads a schema in the order of its tree and refuses one that is too deep.
    fn schema(&mut self) -> Checked<()> {
        let (count, kind) = self.list()?;
        if kind != STRUCT {
            return Err("a schema that is no list of elements".to_owned());
        }
        // Children that are still to come, per level.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..count {
            let (mut last, mut children) = (0, 0);
            while let Some((number, kind)) = self.field(&mut last)? {
                match (number, kind) {
                    (5, I32) => children = self.signed()?,
                    _ => self.skip(kind, 1)?,
                }
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            if open.len() > MAX_DEPTH {
                return Err(format!("a schema deeper than {MAX_DEPTH}"));
            }
            while open.last().is_some_and(|left| *left <= 0) {
                open.pop();
            }
        }
        Ok(())
    }
}

/// Checks the metadata at the end of a file; the error says what is wrong, in words.
pub(super) fn check_metadata(file: &[u8]) -> Checked<()> {
    let (Some(head), Some((rest, tail))) = (file.first_chunk::<4>(), file.split_last_chunk::<8>())
    else {
        return Err(format!("has {} bytes; Parquet has at least 12", file.len()));
    };
    let [a, b, c, d, mark @ ..] = *tail;
    if &mark == b"PARE" {
        return Err("is encrypted Parquet".to_owned());
    }
    if head != b"PAR1" || &mark != b"PAR1" {
        return Err("does not start and end with the mark of Parquet, PAR1".to_owned());
    }
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_METADATA || length > rest.len().saturating_sub(4) {
        let (has, most) = (file.len(), MAX_METADATA);
        return Err(format!("claims {length} bytes of metadata; has {has} bytes, {most} are read"));
    }
    let metadata = rest.get(rest.len() - length..).unwrap_or_default();
    let mut cursor = Compact { bytes: metadata, at: 0 };
    let mut last = 0;
    while let Some((number, kind)) = cursor.field(&mut last)? {
        match (number, kind) {
            (2, LIST) => cursor.schema()?,
            _ => cursor.skip(kind, 1)?,
        }
    }
    Ok(())
}

/// Checks the headers of the pages in `chunk`, the bytes of one column's chunk.
pub(super) fn check_pages(chunk: &[u8]) -> Checked<()> {
    let mut at = 0;
    while at < chunk.len() {
        let mut cursor = Compact { bytes: chunk, at };
        let (mut last, mut sizes) = (0, [0i64; 2]);
        while let Some((number, kind)) = cursor.field(&mut last)? {
            match (number, kind, &mut sizes) {
                (2, I32, [plain, _]) => *plain = cursor.signed()?,
                (3, I32, [_, packed]) => *packed = cursor.signed()?,
                _ => cursor.skip(kind, 1)?,
            }
        }
        let [plain, packed] = sizes;
        let growth = packed.saturating_mul(MAX_GROWTH).saturating_add(1024);
        if plain < 0 || packed < 0 || plain > MAX_PAGE || plain > growth {
            return Err(format!("a page of {packed} bytes that claims {plain} decompressed"));
        }
        let packed = usize::try_from(packed).map_err(|_| format!("a page of {packed} bytes"))?;
        cursor.take(packed)?;
        at = cursor.at;
    }
    Ok(())
}
