//! One view of a model's tensors, whichever format holds them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::dequantize::dequantize;
use super::file::{DataFile, block_bytes, elements};
use super::gguf;
use super::gguf_metadata::GgufMetadata;
use super::index::ShardIndex;
use super::low_rank::LowRank;
use super::names::{self, RowOrder};
use super::{MAX_TENSORS, ModelFiles, PackedWeights, RowSource, StoredType, safetensors, torch};
use crate::error::{Error, Result, try_vec, try_zeroed};

/// Most bytes a read holds besides its output.
const SCRATCH: usize = 64 << 10;

/// A tensor as its file describes it: checked against the file, under the file's own name.
#[derive(Debug)]
pub(crate) struct RawTensor {
    pub(crate) name: String,
    pub(crate) stored: StoredType,
    pub(crate) shape: Vec<usize>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// One tensor of a [`Checkpoint`]: where it lies and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name in the Hugging Face layout, such as `gpt_neox.layers.0.mlp.dense_h_to_4h.weight`.
    pub name: String,
    /// Element type in the file.
    pub stored: StoredType,
    /// Dimensions, the slowest first, as PyTorch orders them.
    pub shape: Vec<usize>,
    /// Position of the first byte in its file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    file: usize,
    order: RowOrder,
}

/// The tensors of one model, open for reading from any number of threads.
///
/// Opening reads headers only, and checks everything they claim against the files. The weights
/// are read in small pieces when asked for; files are not mapped. Values are passed on as they
/// are, NaN and infinities included.
///
/// ```no_run
/// use dolly_core::weights::{Checkpoint, ModelFiles, RowSource};
///
/// let files = ModelFiles::Gguf { file: "model.gguf".into(), tokenizer: None };
/// let checkpoint = Checkpoint::open(&files)?;
/// let embedding = checkpoint.reader("gpt_neox.embed_in.weight")?;
/// let (rows, width) = embedding.shape();
/// let mut row = vec![0.0; width];
/// embedding.read_rows(rows - 1, &mut row)?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    place: PathBuf,
    files: Vec<DataFile>,
    tensors: Vec<TensorInfo>,
    gguf: Option<GgufMetadata>,
    /// Additions to matrices, by their names.
    added: HashMap<String, LowRank>,
    packed: Option<PackedWeights>,
}

impl Checkpoint {
    /// Opens every weight file and checks its header.
    ///
    /// Errors: [`Error::Io`] when a file cannot be opened, [`Error::Format`] or [`Error::Tensor`]
    /// when one is not what it claims, [`Error::Unsupported`] for a GGUF of another architecture.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        match files {
            ModelFiles::Directory { config, weights, index, .. } => {
                let place = match config.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                };
                Self::open_directory(place, weights, index.as_deref())
            }
            ModelFiles::Gguf { file, .. } => Self::open_gguf(file),
        }
    }

    fn open_directory(place: &Path, weights: &[PathBuf], index: Option<&Path>) -> Result<Self> {
        if weights.is_empty() {
            return Err(Error::format(place, "holds no weight file"));
        }
        let mut files = try_vec(weights.len(), "open weight files")?;
        let mut tensors = Vec::new();
        let mut owner: HashMap<String, usize> = HashMap::new();
        for (number, path) in weights.iter().enumerate() {
            let file = DataFile::open(path)?;
            for raw in read_header(&file)? {
                if let Some(&first) = owner.get(&raw.name) {
                    let reason =
                        format!("is also in {}", display(weights.get(first).unwrap_or(path)));
                    return Err(Error::tensor(path, raw.name, reason));
                }
                if owner.len() == MAX_TENSORS {
                    return Err(Error::format(place, format!("more than {MAX_TENSORS} tensors")));
                }
                owner.insert(raw.name.clone(), number);
                if let Some(name) = names::canonical(&raw.name) {
                    tensors.push(TensorInfo::new(name, raw, number, RowOrder::Stored));
                }
            }
            files.push(file);
        }
        if let Some(index) = index {
            check_index(index, weights, &owner)?;
        }
        Self::finish(place.to_owned(), files, tensors, None)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let gguf::Parsed { metadata, tensors: raw } = gguf::read(&file)?;
        let (heads, hidden) = metadata.attention_shape()?;
        let mut tensors = try_vec(raw.len(), "tensors")?;
        for raw in raw {
            let name = names::from_gguf(&raw.name);
            let mut order = RowOrder::Stored;
            if names::is_qkv(&name) {
                if hidden.checked_mul(3) != raw.shape.first().copied() {
                    let reason = format!(
                        "shape {:?}; 3 x gptneox.embedding_length {hidden} rows are needed",
                        raw.shape
                    );
                    return Err(Error::tensor(path, raw.name, reason));
                }
                if raw.shape.len() == 1 && raw.stored.block().0 != 1 {
                    return Err(Error::tensor(path, raw.name, "a quantized bias is not supported"));
                }
                order = RowOrder::SplitQkv { heads, head_dim: hidden / heads };
            }
            tensors.push(TensorInfo::new(name, raw, 0, order));
        }
        Self::finish(path.to_owned(), vec![file], tensors, Some(metadata))
    }

    fn finish(
        place: PathBuf,
        files: Vec<DataFile>,
        mut tensors: Vec<TensorInfo>,
        gguf: Option<GgufMetadata>,
    ) -> Result<Self> {
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for pair in tensors.windows(2) {
            if let [first, second] = pair
                && first.name == second.name
            {
                let reason = "stands twice, with and without the prefix of its family";
                let place = files.get(second.file).map_or(&*place, DataFile::path);
                return Err(Error::tensor(place, first.name.as_str(), reason));
            }
        }
        Ok(Self { place, files, tensors, gguf, added: HashMap::new(), packed: None })
    }

    /// The directory or file the model came from, for errors.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// The metadata of a GGUF file, `None` for the other formats.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.gguf.as_ref()
    }

    /// Every tensor, sorted by name; the buffers of old checkpoints (causal masks, rotary
    /// frequencies) are left out.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor of this name; [`Error::Tensor`] with the nearest names where there is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).ok_or_else(|| {
            let near = names::near(name, self.tensors.iter().map(|t| t.name.as_str()));
            let reason = match near.is_empty() {
                true => "is missing; there are no tensors at all".to_owned(),
                false => format!("is missing; the nearest names are {}", near.join(", ")),
            };
            Error::tensor(&self.place, name, reason)
        })
    }

    /// The file that holds a tensor of this checkpoint.
    pub fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.files.get(tensor.file).map_or(&self.place, DataFile::path)
    }

    /// The rows of a matrix, or of a vector as a matrix of one row.
    ///
    /// Errors with [`Error::Tensor`] for a missing tensor, one of another rank, one without
    /// elements, and one of integers.
    pub fn reader(&self, name: &str) -> Result<TensorReader<'_>> {
        let info = self.tensor(name)?;
        let fail = |reason: String| Error::tensor(self.file_of(info), name, reason);
        let file = self.files.get(info.file).ok_or_else(|| fail("has no file".to_owned()))?;
        let (rows, cols) = match info.shape[..] {
            [cols] => (1, cols),
            [rows, cols] => (rows, cols),
            _ => return Err(fail(format!("shape {:?}; 1 or 2 dimensions needed", info.shape))),
        };
        if rows == 0 || cols == 0 || rows.checked_mul(cols).is_none() {
            return Err(fail(format!("shape {:?} holds no weight", info.shape)));
        }
        if info.stored == StoredType::Other {
            return Err(fail("holds no floating-point numbers".to_owned()));
        }
        let (added, packed) = (self.added.get(name), self.packed.as_ref());
        Ok(TensorReader { info, file, rows, cols, added, packed })
    }

    /// Makes later readers offer the packed weights of `directory` for this format, or keep them
    /// there until [`finish_packed`](Self::finish_packed). Weights are loaded without where that
    /// is not possible.
    pub(crate) fn use_packed(&mut self, directory: &Path, format: &str) {
        match PackedWeights::open(directory, &self.files, format) {
            Ok(packed) => self.packed = Some(packed),
            Err(error) => tracing::warn!(%error, "loads without packed weights"),
        }
    }

    /// All weights have been loaded: what was kept of them is put in its place.
    pub(crate) fn finish_packed(&mut self) {
        if let Some(packed) = self.packed.take() {
            packed.finish();
        }
    }

    /// Makes every later reader of matrix `name` add `low_rank` to the rows it reads.
    ///
    /// Errors with [`Error::Tensor`] where there is no such matrix or its shape is another; the
    /// name may have one addition.
    pub(crate) fn add(&mut self, name: &str, low_rank: LowRank) -> Result<()> {
        let reader = self.reader(name)?;
        let (rows, cols) = low_rank.shape();
        if reader.info.shape != [rows, cols] {
            let reason =
                format!("shape {:?}; the addition has [{rows}, {cols}]", reader.info.shape);
            return Err(Error::tensor(reader.file.path(), name, reason));
        }
        match self.added.insert(name.to_owned(), low_rank) {
            None => Ok(()),
            Some(_) => Err(Error::tensor(&self.place, name, "has an addition already")),
        }
    }

    /// Whether [`add`](Self::add) was called for matrix `name`.
    pub(crate) fn is_added(&self, name: &str) -> bool {
        self.added.contains_key(name)
    }

    /// A whole vector (or matrix, row-major) of exactly `expected_len` weights.
    pub fn read_vec(&self, name: &str, expected_len: usize) -> Result<Vec<f32>> {
        let reader = self.reader(name)?;
        if elements(&reader.info.shape) != Some(expected_len as u64) {
            let reason = format!("shape {:?}; {expected_len} weights needed", reader.info.shape);
            return Err(Error::tensor(reader.file.path(), name, reason));
        }
        let mut values = try_zeroed(expected_len, name)?;
        reader.read_rows(0, &mut values)?;
        Ok(values)
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }
}

impl TensorInfo {
    fn new(name: String, raw: RawTensor, file: usize, order: RowOrder) -> Self {
        let RawTensor { stored, shape, offset, bytes, .. } = raw;
        Self { name, stored, shape, offset, bytes, file, order }
    }

    /// Number of weights, saturating for the empty shapes that overflow elsewhere.
    pub fn elements(&self) -> u64 {
        elements(&self.shape).unwrap_or(u64::MAX)
    }
}

/// What the first bytes of a file say it is.
fn read_header(file: &DataFile) -> Result<Vec<RawTensor>> {
    if file.len() < 8 {
        let reason = format!("{} bytes are too few for a weight file", file.len());
        return Err(Error::format(file.path(), reason));
    }
    let mut start = [0; 8];
    file.read_at(0, &mut start)?;
    match start {
        [b'P', b'K', 3, 4, ..] => torch::read(file),
        [b'G', b'G', b'U', b'F', ..] => {
            Err(Error::format(file.path(), "is a GGUF file; give its path as the model"))
        }
        [0x80, 2..=5, ..] => Err(Error::format(
            file.path(),
            "is a pickle of PyTorch before 1.6, which is not supported; load and save it again \
             with a newer PyTorch, or convert it to safetensors",
        )),
        _ => safetensors::read(file),
    }
}

/// Holds the index against the shards: each tensor it promises is in the shard it names.
fn check_index(index: &Path, weights: &[PathBuf], owner: &HashMap<String, usize>) -> Result<()> {
    let ShardIndex { weight_map } = ShardIndex::read(index)?;
    let shards: HashMap<&str, usize> = weights
        .iter()
        .enumerate()
        .filter_map(|(number, path)| Some((path.file_name()?.to_str()?, number)))
        .collect();
    for (tensor, shard) in &weight_map {
        let Some(number) = shards.get(shard.as_str()) else {
            let reason = format!("its shard {shard:?} is not among the weight files");
            return Err(Error::tensor(index, tensor.as_str(), reason));
        };
        if owner.get(tensor) != Some(number) {
            let reason = format!("the index promises it in {shard:?}, which does not hold it");
            return Err(Error::tensor(index, tensor.as_str(), reason));
        }
    }
    Ok(())
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

/// The rows of one tensor, read on demand; made by [`Checkpoint::reader`].
#[derive(Debug, Clone, Copy)]
pub struct TensorReader<'a> {
    info: &'a TensorInfo,
    file: &'a DataFile,
    rows: usize,
    cols: usize,
    added: Option<&'a LowRank>,
    packed: Option<&'a PackedWeights>,
}

impl<'a> TensorReader<'a> {
    /// The tensor that is read.
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// Packed weights of the tensor as stored: with an addition it is another.
    fn packed(&self) -> Option<&'a PackedWeights> {
        self.packed.filter(|_| self.added.is_none())
    }

    /// Weights that move together when rows are stored in another order.
    fn unit(&self) -> usize {
        match (self.info.order, self.info.shape.len()) {
            (RowOrder::SplitQkv { .. }, 1) => 1,
            _ => self.cols,
        }
    }

    /// Reads weights that lie one after the other in the file, from weight `first` of it.
    fn read_stored(&self, first: usize, scratch: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        let block = self.info.stored.block();
        let overflow = || Error::Internal(format!("{}: offset overflow", self.info.name));
        let mut at = block_bytes(first as u64, block)
            .and_then(|bytes| self.info.offset.checked_add(bytes))
            .ok_or_else(overflow)?;
        for out in out.chunks_mut(SCRATCH / block.1 * block.0) {
            let bytes = block_bytes(out.len() as u64, block).ok_or_else(overflow)? as usize;
            if scratch.len() < bytes {
                *scratch = try_zeroed(bytes, "scratch of a tensor read")?;
            }
            let scratch = scratch.get_mut(..bytes).ok_or_else(overflow)?;
            self.file.read_at(at, scratch)?;
            dequantize(self.info.stored, scratch, out);
            at += bytes as u64;
        }
        Ok(())
    }
}

impl RowSource for TensorReader<'_> {
    fn name(&self) -> &str {
        &self.info.name
    }

    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let (rows, cols) = (self.rows, self.cols);
        let count = out.len() / cols;
        if !out.len().is_multiple_of(cols) || first.checked_add(count).is_none_or(|e| e > rows) {
            let reason = format!("{} weights from row {first} of ({rows}, {cols})", out.len());
            return Err(Error::tensor(self.file.path(), self.info.name.as_str(), reason));
        }
        let unit = self.unit();
        let mut scratch = Vec::new();
        let (mut at, mut rest) = (first * cols / unit, &mut *out);
        while !rest.is_empty() {
            let (stored, run) = self.info.order.locate(at);
            let run = run.min(rest.len() / unit);
            let (piece, later) = rest.split_at_mut(run * unit);
            self.read_stored(stored * unit, &mut scratch, piece)?;
            (at, rest) = (at + run, later);
        }
        if let Some(added) = self.added {
            added.add_rows(first, out);
        }
        Ok(())
    }

    fn blocks(&self) -> Option<StoredType> {
        let (weights, bytes) = self.info.stored.block();
        let whole = bytes > 0 && self.cols.is_multiple_of(weights) && self.unit() == self.cols;
        (whole && self.added.is_none()).then_some(self.info.stored)
    }

    fn read_blocks(&self, first: usize, out: &mut [u8]) -> Result<()> {
        let fail = |reason| Error::tensor(self.file.path(), self.info.name.as_str(), reason);
        let row = self.blocks().and_then(|stored| block_bytes(self.cols as u64, stored.block()));
        let row = row.ok_or_else(|| fail("has no rows of blocks".to_owned()))?;
        let whole = (out.len() as u64).is_multiple_of(row);
        let end = (first as u64).checked_add(out.len() as u64 / row);
        if !whole || end.is_none_or(|end| end > self.rows as u64) {
            let of = (self.rows, self.cols);
            return Err(fail(format!("{} bytes from row {first} of {of:?}", out.len())));
        }
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let (stored, run) = self.info.order.locate(at);
            let run = run.min((rest.len() as u64 / row) as usize);
            let (piece, later) = rest.split_at_mut((run as u64 * row) as usize);
            // Within the tensor, whose end was checked against the file's.
            self.file.read_at(self.info.offset + stored as u64 * row, piece)?;
            (at, rest) = (at + run, later);
        }
        Ok(())
    }

    fn read_packed(&self, layout: &str, piece: usize, first: usize, out: &mut [u8]) -> bool {
        self.packed().is_some_and(|packed| packed.read(&self.info.name, layout, piece, first, out))
    }

    fn keep_packed(&self, layout: &str, piece: usize, bytes: &[u8]) {
        if let Some(packed) = self.packed() {
            packed.keep(&self.info.name, layout, piece, bytes);
        }
    }
}
