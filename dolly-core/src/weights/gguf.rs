//! GGUF files, versions 2 and 3, of architecture `gptneox`.
//!
//! Layout (ggml's `docs/gguf.md`): magic, version, counts; metadata; tensor descriptions; padding;
//! data. Everything is little-endian, and dimensions stand fastest first.

use std::collections::HashSet;
use std::path::Path;

use super::checkpoint::RawTensor;
use super::file::{DataFile, block_bytes, check_overlap, elements};
use super::gguf_metadata::GgufMetadata;
use super::{MAX_TENSORS, StoredType};
use crate::error::{Error, Result, try_vec, try_zeroed};

/// The name of this family in `general.architecture`.
pub(crate) const ARCHITECTURE: &str = "gptneox";
/// Longest name of a tensor (`GGML_MAX_NAME` in ggml).
const MAX_TENSOR_NAME: u64 = 64;
/// Most dimensions of a tensor in ggml.
const MAX_DIMS: u32 = 4;
/// Alignment of the data where the metadata names none.
const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest alignment accepted; files use 32, some 4096.
const MAX_ALIGNMENT: u32 = 1 << 20;

/// What a GGUF file's header says.
pub(crate) struct Parsed {
    pub(crate) metadata: GgufMetadata,
    /// Under the names of the file.
    pub(crate) tensors: Vec<RawTensor>,
}

/// Reads the whole header, checks it against the file, and refuses other architectures.
pub(crate) fn read(file: &DataFile) -> Result<Parsed> {
    let mut header = Header::new(file);
    let (tensors, metadata) = read_metadata(&mut header)?;
    let architecture = metadata.get_str("general.architecture")?.unwrap_or_default();
    if architecture != ARCHITECTURE {
        return Err(Error::Unsupported(format!(
            "{}: a model of architecture {architecture:?}; {ARCHITECTURE:?} is needed",
            file.path().display()
        )));
    }
    let alignment = metadata.get_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=MAX_ALIGNMENT).contains(&alignment) {
        let reason = format!("{alignment}; a power of two from 8 to {MAX_ALIGNMENT} is needed");
        return Err(Error::config(file.path(), "general.alignment", reason));
    }
    let mut infos = try_vec(tensors, "GGUF tensors")?;
    let mut names = HashSet::new();
    for _ in 0..tensors {
        let info = Described::read(&mut header)?;
        if !names.insert(info.name.clone()) {
            return Err(Error::tensor(file.path(), info.name, "stands twice"));
        }
        infos.push(info);
    }
    let tensors = place(file, header.at, u64::from(alignment), infos)?;
    Ok(Parsed { metadata, tensors })
}

/// The counts and the metadata; the header is left at the first tensor description.
fn read_metadata(header: &mut Header<'_>) -> Result<(usize, GgufMetadata)> {
    if &header.take::<4>()? != b"GGUF" {
        return Err(header.fail("does not start with \"GGUF\""));
    }
    let version = header.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err(header.fail("GGUF version 1 is not supported; convert the model again")),
        _ if (1..=3).contains(&version.swap_bytes()) => {
            return Err(header.fail("a big-endian GGUF file is not supported"));
        }
        _ => return Err(header.fail(&format!("GGUF version {version}; 2 and 3 are supported"))),
    }
    let (tensors, pairs) = (header.u64()?, header.u64()?);
    // A description takes at least 24 bytes: name length, dimensions, type and offset.
    if tensors > MAX_TENSORS as u64 || tensors * 24 > header.left() {
        return Err(header.fail(&format!(
            "claims {tensors} tensors (at most {MAX_TENSORS}) in a file of {} bytes",
            header.file.len()
        )));
    }
    let metadata = GgufMetadata::parse(header, pairs)?;
    Ok((tensors as usize, metadata))
}

impl GgufMetadata {
    /// Reads the metadata of a GGUF file of any architecture.
    ///
    /// Errors: [`Error::Io`], or [`Error::Format`] when the file is not what it claims.
    pub fn open(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let (_, metadata) = read_metadata(&mut Header::new(&file))?;
        Ok(metadata)
    }

    /// Heads and width of the attention, checked to fit each other.
    pub(crate) fn attention_shape(&self) -> Result<(usize, usize)> {
        let (heads_key, hidden_key) = ("gptneox.attention.head_count", "gptneox.embedding_length");
        let (heads, hidden) = (self.require_u32(heads_key)?, self.require_u32(hidden_key)?);
        if heads == 0 || hidden == 0 || hidden % heads != 0 {
            let reason = format!("{heads} heads do not divide {hidden_key} {hidden}");
            return Err(Error::config(self.path(), heads_key, reason));
        }
        Ok((heads as usize, hidden as usize))
    }
}

/// A tensor description before its data is placed in the file.
struct Described {
    name: String,
    shape: Vec<usize>,
    ggml_type: u32,
    offset: u64,
}

impl Described {
    fn read(header: &mut Header<'_>) -> Result<Self> {
        let name = header.string(MAX_TENSOR_NAME, "a tensor name")?;
        let dims = header.u32()?;
        if dims > MAX_DIMS {
            let reason = format!("{dims} dimensions; at most {MAX_DIMS}");
            return Err(Error::tensor(header.file.path(), name, reason));
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            let dim = header.u64()?;
            let Ok(dim) = usize::try_from(dim) else {
                let reason = format!("dimension {dim} is too large");
                return Err(Error::tensor(header.file.path(), name, reason));
            };
            shape.push(dim);
        }
        shape.reverse();
        let (ggml_type, offset) = (header.u32()?, header.u64()?);
        Ok(Self { name, shape, ggml_type, offset })
    }

    /// Checks type, shape and offset, relative to the data's start, against the data's length.
    fn check(self, file: &DataFile, start: u64, alignment: u64) -> Result<RawTensor> {
        let Self { name, shape, ggml_type, offset } = self;
        let fail = |reason: String| Err(Error::tensor(file.path(), name.as_str(), reason));
        let (stored, block) = match stored_type(ggml_type) {
            Ok(known) => known,
            Err(unknown) => {
                return fail(format!(
                    "type {unknown} is not supported; F64, F32, F16, BF16, Q4_0, Q4_1, Q5_0, \
                     Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are"
                ));
            }
        };
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block.0) {
            return fail(format!("rows of {row} weights in blocks of {}", block.0));
        }
        let Some(bytes) = elements(&shape).and_then(|count| block_bytes(count, block)) else {
            return fail(format!("the size of shape {shape:?} overflows"));
        };
        if !offset.is_multiple_of(alignment) {
            return fail(format!("offset {offset} is no multiple of the alignment {alignment}"));
        }
        let room = file.len().saturating_sub(start);
        if offset.checked_add(bytes).is_none_or(|end| end > room) {
            return fail(format!("{bytes} bytes at offset {offset} of {room} bytes of data"));
        }
        Ok(RawTensor { name, stored, shape, offset: start + offset, bytes })
    }
}

fn place(
    file: &DataFile,
    header_end: u64,
    alignment: u64,
    infos: Vec<Described>,
) -> Result<Vec<RawTensor>> {
    let start = header_end.next_multiple_of(alignment);
    let mut tensors = try_vec(infos.len(), "GGUF tensors")?;
    for info in infos {
        tensors.push(info.check(file, start, alignment)?);
    }
    let mut ranges: Vec<(u64, u64, &str)> =
        tensors.iter().map(|t| (t.offset, t.offset + t.bytes, t.name.as_str())).collect();
    check_overlap(file.path(), &mut ranges)?;
    Ok(tensors)
}

/// A ggml type by its number, or the name of one that is not read.
fn stored_type(number: u32) -> Result<(StoredType, (usize, usize)), String> {
    let known = match number {
        0 => StoredType::F32,
        1 => StoredType::F16,
        2 => StoredType::Q4_0,
        3 => StoredType::Q4_1,
        6 => StoredType::Q5_0,
        7 => StoredType::Q5_1,
        8 => StoredType::Q8_0,
        12 => StoredType::Q4K,
        13 => StoredType::Q5K,
        14 => StoredType::Q6K,
        28 => StoredType::F64,
        30 => StoredType::Bf16,
        24..=27 => return Ok((StoredType::Other, (1, 1 << (number - 24)))),
        _ => return Err(type_name(number)),
    };
    Ok((known, known.block()))
}

fn type_name(number: u32) -> String {
    let name = match number {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.to_owned()
}

/// A cursor over the header, reading the file a window at a time.
pub(crate) struct Header<'a> {
    pub(crate) file: &'a DataFile,
    /// Position of the next byte.
    at: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Header<'a> {
    const WINDOW: u64 = 64 << 10;

    fn new(file: &'a DataFile) -> Self {
        Self { file, at: 0, window: Vec::new(), window_start: 0 }
    }

    /// Bytes of the file not yet read.
    pub(crate) fn left(&self) -> u64 {
        self.file.len().saturating_sub(self.at)
    }

    pub(crate) fn fail(&self, reason: &str) -> Error {
        Error::format(self.file.path(), format!("{reason} (at byte {})", self.at))
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A length-prefixed UTF-8 string.
    pub(crate) fn string(&mut self, limit: u64, what: &str) -> Result<String> {
        let len = self.u64()?;
        if len > limit.min(self.left()) {
            let left = self.left();
            return Err(self.fail(&format!(
                "{what} claims {len} bytes (at most {limit}); the file has {left} left"
            )));
        }
        let mut bytes = try_zeroed(len as usize, what)?;
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.fail(&format!("{what} is not UTF-8")))
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() as u64 > self.left() {
            return Err(self.fail(&format!(
                "the header needs {} more bytes; the file has {}",
                out.len(),
                self.left()
            )));
        }
        let within = (self.at - self.window_start) as usize;
        if let Some(bytes) = self.window.get(within..).and_then(|rest| rest.get(..out.len())) {
            out.copy_from_slice(bytes);
        } else if out.len() as u64 >= Self::WINDOW {
            self.file.read_at(self.at, out)?;
        } else {
            let len = Self::WINDOW.min(self.left());
            self.window = self.file.read_vec(self.at, len, len, "the header")?;
            self.window_start = self.at;
            if let Some(bytes) = self.window.get(..out.len()) {
                out.copy_from_slice(bytes);
            }
        }
        self.at += out.len() as u64;
        Ok(())
    }
}
