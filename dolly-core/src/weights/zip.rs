//! The directory of a zip archive as PyTorch writes it: stored entries, zip64, one disk.
//!
//! Only positions are taken from the archive; nothing is ever decompressed, so there is no bomb to
//! defuse. Own code because the policy is stricter than a general reader's: names that stand twice
//! (where readers differ on which one wins) are refused, and what the central directory and an
//! entry's own header say must agree. Format: PKWARE APPNOTE 6.3, sections 4.3 to 4.5.

use std::collections::HashMap;

use super::file::DataFile;
use super::{MAX_NAME, MAX_TENSORS};
use crate::error::{Error, Result, try_vec};

/// Most entries of an archive: a storage for every tensor, and the few files PyTorch adds.
const MAX_ENTRIES: u64 = MAX_TENSORS as u64 + 1000;
/// Longest central directory read.
const MAX_DIRECTORY: u64 = 32 << 20;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;

/// One entry of the central directory.
#[derive(Debug)]
pub(crate) struct ZipEntry {
    pub(crate) name: String,
    /// Bytes of data, the same packed and unpacked.
    pub(crate) size: u64,
    header: u64,
    method: u16,
    flags: u16,
    packed: u64,
}

/// The central directory of an archive.
#[derive(Debug)]
pub(crate) struct Zip<'a> {
    file: &'a DataFile,
    directory_start: u64,
    entries: Vec<ZipEntry>,
    by_name: HashMap<String, usize>,
}

/// Reads little-endian numbers from a slice; `None` past its end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.first_chunk().map(|b| u16::from_le_bytes(*b))
    }
    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.first_chunk().map(|b| u32::from_le_bytes(*b))
    }
    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.first_chunk().map(|b| u64::from_le_bytes(*b))
    }
}

/// Where the central directory lies.
struct Directory {
    entries: u64,
    size: u64,
    offset: u64,
    /// First byte after it that belongs to an end record.
    end: u64,
}

impl<'a> Zip<'a> {
    /// Reads the central directory.
    pub(crate) fn read(file: &'a DataFile) -> Result<Self> {
        let fail = |reason: String| Error::format(file.path(), format!("zip: {reason}"));
        let place = find_directory(file)?;
        let Directory { entries: count, size, offset, end } = place;
        if offset.checked_add(size).is_none_or(|at| at > end) {
            return Err(fail(format!(
                "the directory of {size} bytes at {offset} runs into its end record at {end}"
            )));
        }
        if count > MAX_ENTRIES || count.checked_mul(46).is_none_or(|least| least > size) {
            return Err(fail(format!("{count} entries in a directory of {size} bytes")));
        }
        let bytes = file.read_vec(offset, size, MAX_DIRECTORY, "zip: the central directory")?;
        let mut fields = Fields(&bytes);
        let mut entries: Vec<ZipEntry> = try_vec(count as usize, "zip entries")?;
        let mut by_name = HashMap::new();
        for number in 0..count {
            let entry = central_entry(&mut fields)
                .map_err(|reason| fail(format!("entry {number} of the directory {reason}")))?;
            if by_name.insert(entry.name.clone(), entries.len()).is_some() {
                return Err(fail(format!("two entries {:?}", entry.name)));
            }
            entries.push(entry);
        }
        if !fields.0.is_empty() {
            return Err(fail(format!("{} bytes follow the last entry", fields.0.len())));
        }
        Ok(Self { file, directory_start: offset, entries, by_name })
    }

    /// Every entry, in the order of the directory.
    pub(crate) fn entries(&self) -> &[ZipEntry] {
        &self.entries
    }

    /// The entry of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&ZipEntry> {
        self.entries.get(*self.by_name.get(name)?)
    }

    /// Position of an entry's data, all of which lies before the central directory.
    pub(crate) fn data_offset(&self, entry: &ZipEntry) -> Result<u64> {
        let fail = |reason: &str| {
            Error::format(self.file.path(), format!("zip entry {:?}: {reason}", entry.name))
        };
        if entry.method != 0 || entry.packed != entry.size {
            return Err(fail("is compressed; PyTorch stores entries uncompressed"));
        }
        if entry.flags & 0x2041 != 0 {
            return Err(fail("is encrypted"));
        }
        let header = self.file.read_vec(entry.header, 30, 30, "zip: the header of an entry")?;
        let mut fields = Fields(&header);
        let signature = fields.u32();
        let lengths = (|| {
            fields.bytes(22)?;
            Some((u64::from(fields.u16()?), u64::from(fields.u16()?)))
        })();
        let (Some(LOCAL), Some((name, extra))) = (signature, lengths) else {
            return Err(fail("the directory does not point to an entry"));
        };
        let limit = MAX_NAME as u64;
        let name_at = entry.header + 30;
        let name = self.file.read_vec(name_at, name, limit, "zip: the name of an entry")?;
        if name != entry.name.as_bytes() {
            return Err(fail("has another name in its own header"));
        }
        let offset = name_at + name.len() as u64 + extra;
        if offset.checked_add(entry.size).is_none_or(|end| end > self.directory_start) {
            return Err(fail(&format!(
                "{} bytes at {offset} run into the directory at {}",
                entry.size, self.directory_start
            )));
        }
        Ok(offset)
    }
}

/// The end record stands last; a zip64 locator before it points to the wide one.
fn find_directory(file: &DataFile) -> Result<Directory> {
    let fail = |reason: &str| Error::format(file.path(), format!("zip: {reason}"));
    let tail_len = file.len().min(22 + 0xffff);
    let tail_start = file.len() - tail_len;
    let tail = file.read_vec(tail_start, tail_len, tail_len, "zip: the end record")?;
    let (at, end) = (0..tail.len().saturating_sub(21))
        .rev()
        .find_map(|at| Some((at, end_record(tail.get(at..)?)?)))
        .ok_or_else(|| fail("no end record: not a zip archive, or cut short"))?;
    let at = tail_start + at as u64;
    let wide = match at.checked_sub(20) {
        Some(locator_at) => {
            let locator = file.read_vec(locator_at, 20, 20, "zip: the locator")?;
            zip64_offset(&locator)
        }
        None => None,
    };
    let Some(wide_at) = wide else {
        if end.entries == 0xffff || end.size == 0xffff_ffff || end.offset == 0xffff_ffff {
            return Err(fail("the zip64 end record is missing"));
        }
        return Ok(Directory { end: at, ..end });
    };
    let record = file.read_vec(wide_at, 56, 56, "zip: the zip64 end record")?;
    let wide = end_record64(&record, wide_at).ok_or_else(|| fail("bad zip64 end record"))?;
    let agree = |narrow: u64, wide: u64, none: u64| narrow == none || narrow == wide;
    if !agree(end.entries, wide.entries, 0xffff)
        || !agree(end.size, wide.size, 0xffff_ffff)
        || !agree(end.offset, wide.offset, 0xffff_ffff)
    {
        return Err(fail("the two end records disagree"));
    }
    Ok(wide)
}

/// The end record at the start of `tail`, if its comment ends exactly where the file does.
fn end_record(tail: &[u8]) -> Option<Directory> {
    let mut fields = Fields(tail);
    let signature = fields.u32()?;
    let (disk, directory_disk) = (fields.u16()?, fields.u16()?);
    let (here, entries) = (fields.u16()?, fields.u16()?);
    let (size, offset, comment) = (fields.u32()?, fields.u32()?, fields.u16()?);
    let one_disk = (disk == 0 || disk == 0xffff) && (directory_disk == disk) && here == entries;
    let whole = usize::from(comment) == fields.0.len();
    (signature == END && one_disk && whole).then_some(Directory {
        entries: entries.into(),
        size: size.into(),
        offset: offset.into(),
        end: 0,
    })
}

fn zip64_offset(locator: &[u8]) -> Option<u64> {
    let mut fields = Fields(locator);
    let (signature, _disk, offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
    (signature == LOCATOR64).then_some(offset)
}

fn end_record64(record: &[u8], end: u64) -> Option<Directory> {
    let mut fields = Fields(record);
    let (signature, _length) = (fields.u32()?, fields.u64()?);
    fields.bytes(4)?;
    let (disk, directory_disk) = (fields.u32()?, fields.u32()?);
    let (here, entries) = (fields.u64()?, fields.u64()?);
    let (size, offset) = (fields.u64()?, fields.u64()?);
    let good = signature == END64 && disk == 0 && directory_disk == 0 && here == entries;
    good.then_some(Directory { entries, size, offset, end })
}

/// One header of the central directory, or what is wrong with it.
fn central_entry(fields: &mut Fields<'_>) -> Result<ZipEntry, String> {
    central_fields(fields).ok_or_else(|| "is cut short or has bad sizes".to_owned()).and_then(
        |(signature, entry, name)| {
            if signature != CENTRAL {
                return Err(format!("has signature {signature:#010x}"));
            }
            if name.len() > MAX_NAME {
                return Err(format!("has a name of {} bytes; at most {MAX_NAME}", name.len()));
            }
            let name = std::str::from_utf8(name).map_err(|_| "has a name that is not UTF-8")?;
            Ok(ZipEntry { name: name.to_owned(), ..entry })
        },
    )
}

fn central_fields<'a>(fields: &mut Fields<'a>) -> Option<(u32, ZipEntry, &'a [u8])> {
    let signature = fields.u32()?;
    fields.bytes(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.bytes(8)?;
    let (mut packed, mut size) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
    let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
    fields.bytes(8)?;
    let mut header = u64::from(fields.u32()?);
    let name = fields.bytes(name.into())?;
    let mut extra = Fields(fields.bytes(extra.into())?);
    fields.bytes(comment.into())?;
    while let (Some(id), Some(length)) = (extra.u16(), extra.u16()) {
        let mut field = Fields(extra.bytes(length.into())?);
        if id != 1 {
            continue;
        }
        // The wide numbers stand in this order, each only where the narrow one is saturated.
        for number in [&mut size, &mut packed, &mut header] {
            if *number == 0xffff_ffff {
                *number = field.u64()?;
            }
        }
    }
    let entry = ZipEntry { name: String::new(), size, header, method, flags, packed };
    Some((signature, entry, name))
}
