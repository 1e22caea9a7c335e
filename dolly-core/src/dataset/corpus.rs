//! Plain text for continued pre-training.

use std::path::Path;
use std::sync::Arc;

use super::intake::Cell;
use super::options::{DataFormat, ReadOptions, Wanted};
use super::order::{self, Purpose, SplitSize};
use super::read::{self, Input};
use super::{SetInfo, bytes, parallel};
use crate::error::{Error, Result, try_vec};
use crate::options::CancelToken;
use crate::tokenizer::Tokenizer;

/// The token that ends a text in the GPT-NeoX family.
const END_OF_TEXT: &str = "<|endoftext|>";

#[derive(Debug, Clone)]
struct Document {
    text: Arc<str>,
    /// Its set's place in the list of sources.
    set: usize,
}

/// Plain texts, with the sets they came from: one document per `.txt` file, or per row of a file
/// with a column of text.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("notes.jsonl");
/// # std::fs::write(&path, "{\"text\": \"Sheep graze.\"}\n{\"text\": \"Cows graze.\"}\n").unwrap();
/// use dolly_core::dataset::{ReadOptions, TextCorpus};
/// let corpus = TextCorpus::from_files([&path], "text", &ReadOptions::default())?;
/// assert_eq!((corpus.len(), corpus.sources()[0].rows), (2, 2));
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TextCorpus {
    documents: Vec<Document>,
    sources: Vec<SetInfo>,
}

/// Texts as blocks of ids of one length, each text followed by the end-of-text id.
///
/// Blocks do not stop where texts do: every block is full, and what is left over at the end is
/// dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    ids: Vec<u32>,
    length: usize,
    dropped: usize,
}

impl TextCorpus {
    /// Reads files as one set each: `.txt` whole, of the others the column `column`.
    ///
    /// `columns` of the options are not used. Errors as [`Dataset::from_file`].
    ///
    /// [`Dataset::from_file`]: super::Dataset::from_file
    pub fn from_files<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        column: &str,
        options: &ReadOptions,
    ) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            corpus.add_file(path.as_ref(), column, options)?;
        }
        Ok(corpus)
    }

    fn add_file(&mut self, path: &Path, column: &str, options: &ReadOptions) -> Result<()> {
        let format = match options.format {
            Some(format) => format,
            None => DataFormat::of(path)?,
        };
        let set = self.sources.len();
        let documents = &mut self.documents;
        let mut add = |text: String| documents.push(Document { text: text.into(), set });
        let info = if format == DataFormat::Text {
            let (text, info) = read_text(path, options)?;
            add(text);
            info
        } else {
            let wanted = [Wanted { name: Some(column.to_owned()), must_occur: true }];
            let mut accept = |_, cells: &mut [Cell]| {
                add(read::required(cells, 0)?);
                Ok(())
            };
            read::read(path, &Input::File, options, &wanted, &mut accept)?.0
        };
        self.sources.push(info);
        Ok(())
    }

    /// A corpus of texts made here; its hash is that of the texts, each followed by a NUL.
    pub fn from_texts(
        texts: impl IntoIterator<Item = String>,
        name: &str,
        options: &ReadOptions,
    ) -> Result<Self> {
        let documents: Vec<Document> =
            texts.into_iter().map(|text| Document { text: text.into(), set: 0 }).collect();
        let sha256 =
            bytes::sha256_of(documents.iter().flat_map(|one| [one.text.as_bytes(), b"\0"]));
        let rows = documents.len() as u64;
        let name = options.name.clone().unwrap_or_else(|| name.to_owned());
        let (source, licence) = (options.source.clone(), options.licence.clone());
        let info = SetInfo { name, source, licence, sha256, rows, steps: Vec::new() };
        Ok(Self { documents, sources: vec![info] })
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// The documents in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.documents.iter().map(|one| &*one.text)
    }

    /// The sets the documents came from; their rows are documents.
    pub fn sources(&self) -> &[SetInfo] {
        &self.sources
    }

    /// The documents of this corpus, then those of `other`.
    pub fn concat(&self, other: &Self) -> Self {
        let mut all = self.clone();
        let base = all.sources.len();
        let moved = |one: &Document| Document { set: base.saturating_add(one.set), ..one.clone() };
        all.documents.extend(other.documents.iter().map(moved));
        all.sources.extend(other.sources.iter().cloned());
        all
    }

    /// The documents in an order that `seed` decides; see [`Dataset::shuffle`].
    ///
    /// [`Dataset::shuffle`]: super::Dataset::shuffle
    pub fn shuffle(&self, seed: u64) -> Result<Self> {
        let order = order::permutation(self.len(), seed, Purpose::Shuffle)?;
        let document = |index: usize| self.documents.get(index).cloned();
        let documents = order.into_iter().filter_map(document).collect();
        Ok(self.with_documents(documents, &format!("shuffle: seed {seed}")))
    }

    /// Sets documents apart for testing: `(train, test)`; see [`Dataset::split`].
    ///
    /// [`Dataset::split`]: super::Dataset::split
    pub fn split(&self, test: impl Into<SplitSize>, seed: u64) -> Result<(Self, Self)> {
        let count = test.into().rows(self.len())?;
        let apart = order::set_apart(self.len(), count, seed)?;
        let part = |wanted: bool, name: &str| {
            let documents = self.documents.iter().zip(&apart);
            let documents = documents.filter(|(_, apart)| **apart == wanted);
            let step = format!(
                "split: {count} of {} documents set apart for testing, seed {seed}; {name} part",
                self.len()
            );
            self.with_documents(documents.map(|(one, _)| one.clone()).collect(), &step)
        };
        Ok((part(false, "training"), part(true, "testing")))
    }

    fn with_documents(&self, documents: Vec<Document>, step: &str) -> Self {
        let mut sources = self.sources.clone();
        for info in &mut sources {
            info.steps.push(step.to_owned());
            info.rows = 0;
        }
        for document in &documents {
            if let Some(info) = sources.get_mut(document.set) {
                info.rows += 1;
            }
        }
        Self { documents, sources }
    }

    /// Encodes the documents in their order and cuts them into blocks of `length` ids.
    ///
    /// Special tokens in the text stay text. `end_of_text` follows every document; unless it is
    /// given, it is the id of `<|endoftext|>`. Errors with [`Error::InvalidOption`] for a length of
    /// 0 and [`Error::InvalidInput`] where the tokenizer lacks that token.
    pub fn pack(
        &self,
        tokenizer: &Tokenizer,
        length: usize,
        end_of_text: Option<u32>,
    ) -> Result<Packed> {
        self.pack_until(tokenizer, length, end_of_text, None)
    }

    /// As [`pack`](Self::pack), until `cancel` says stop: it is heard between documents.
    pub(crate) fn pack_until(
        &self,
        tokenizer: &Tokenizer,
        length: usize,
        end_of_text: Option<u32>,
        cancel: Option<&CancelToken>,
    ) -> Result<Packed> {
        if length == 0 {
            return Err(Error::option("length", length, "1 or more"));
        }
        let end = end_of_text.or_else(|| tokenizer.id_of(END_OF_TEXT)).ok_or_else(|| {
            Error::InvalidInput(format!(
                "the tokenizer has no {END_OF_TEXT}; name the end-of-text id"
            ))
        })?;
        let encoded = parallel::map(&self.documents, |one| {
            cancel.map_or(Ok(()), CancelToken::check)?;
            tokenizer.encode(&one.text, false)
        })?;
        let total = encoded.iter().map(|ids| ids.len() + 1).sum();
        let mut ids = try_vec(total, "packed text")?;
        for document in encoded {
            ids.extend(document);
            ids.push(end);
        }
        let dropped = ids.len() % length;
        ids.truncate(ids.len() - dropped);
        Ok(Packed { ids, length, dropped })
    }
}

impl Packed {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Whether the texts were too short for one block.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Ids of a block; the same for all.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Ids at the end that did not fill a block and were dropped.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The ids of one block.
    pub fn block(&self, index: usize) -> Option<&[u32]> {
        let start = index.checked_mul(self.length)?;
        self.ids.get(start..start.checked_add(self.length)?)
    }

    /// The blocks in their order.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.ids.chunks_exact(self.length)
    }
}

/// A whole file as one text, without its byte order mark.
fn read_text(path: &Path, options: &ReadOptions) -> Result<(String, SetInfo)> {
    let bytes = crate::json::read_bounded(path, options.memory_limit)?;
    let sha256 = bytes::sha256_of([bytes.as_slice()]);
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes.as_slice() {
        return Err(Error::format(
            path,
            "starts with the byte order mark of UTF-16; UTF-8 is read",
        ));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..at).unwrap_or_default();
        let line = memchr::memchr_iter(b'\n', before).count() as u64 + 1;
        let reason = format!("is not UTF-8 from byte {} of the file on", at + 1);
        Error::Row { file: path.to_owned(), line, field: None, reason }
    })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    if text.is_empty() {
        return Err(Error::format(path, "is empty"));
    }
    Ok((text, read::describe(path, options, sha256, 1, 0)))
}
