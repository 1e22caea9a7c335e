//! The one error type of the library: what failed, where, and the numbers.

use std::path::{Path, PathBuf};

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each variant with what a reader needs to act on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model id or path that leads to no model.
    #[error("model {id:?} not found: {reason}")]
    ModelNotFound {
        /// What the caller asked for.
        id: String,
        /// Where was looked, and what would help.
        reason: String,
    },
    /// A file that is not what its name or header says: truncated, lying or hostile.
    #[error("{}: {reason}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong, with offsets and sizes.
        reason: String,
    },
    /// A row of a data set that cannot be used.
    #[error("{}:{line}: {}{reason}", file.display(), row_field(field.as_deref()))]
    Row {
        /// The file, or the name of a set that came from none.
        file: PathBuf,
        /// The line the row starts at, counted from 1; in a Parquet file the row itself.
        line: u64,
        /// The column or key, where the fault lies in one.
        field: Option<String>,
        /// What is wrong.
        reason: String,
    },
    /// A value in `config.json` (or GGUF metadata) that is missing, out of range or not supported.
    #[error("{}: field {field:?}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key as it stands in the file.
        field: String,
        /// What was found and what is allowed.
        reason: String,
    },
    /// A tensor that is missing, or whose shape or type does not fit the configuration.
    #[error("{}: tensor {tensor:?}: {reason}", file.display())]
    Tensor {
        /// The file that holds (or should hold) it.
        file: PathBuf,
        /// Its name in the checkpoint.
        tensor: String,
        /// Expected and found shape or type.
        reason: String,
    },
    /// A tokenizer file that is malformed or uses a component this model family does not have.
    #[error("{}: tokenizer: {reason}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// The component or entry, and why it was refused.
        reason: String,
    },
    /// An option outside its range.
    #[error("option {name}: {value} is not allowed; expected {allowed}")]
    InvalidOption {
        /// Name of the option as in [`GenerateOptions`](crate::GenerateOptions) or the builder.
        name: &'static str,
        /// The value given.
        value: String,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// An input (ids, text, answers) that no option could make valid.
    #[error("invalid input: {0}")]
    InvalidInput(String),
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {prompt_tokens} tokens; the context holds {context_length}, of which at \
         least one must be left for the answer"
    )]
    ContextOverflow {
        /// Tokens of the rendered prompt.
        prompt_tokens: usize,
        /// Tokens the context holds.
        context_length: usize,
    },
    /// The plan needs more memory than the budget allows; nothing was allocated.
    #[error("{what} needs {needed} bytes; the memory limit is {limit} bytes")]
    MemoryLimit {
        /// What was planned.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The allocator refused a request.
    #[error("out of memory: {what}{}", of_bytes(*bytes))]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size in bytes; 0 where a device does not say.
        bytes: u64,
    },
    /// The device is not there, or this build cannot use it.
    #[error("device {device}: {reason}")]
    Device {
        /// The device asked for.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Something the format allows and this library does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A download that failed, with what is left to try.
    #[error("download of {url}: {reason}")]
    Download {
        /// The address.
        url: String,
        /// The status or the transport's words.
        reason: String,
    },
    /// Training met a number that is not finite; the last checkpoint before it is kept.
    #[error("training diverged at step {step}: {what}; a lower learning rate may help")]
    Diverged {
        /// The step, from 1, whose numbers failed; nothing of it was applied.
        step: u64,
        /// Which number, and what it was.
        what: String,
    },
    /// The call was cancelled before it could give a result.
    #[error("cancelled")]
    Cancelled,
    /// The deadline passed before the call could give a result.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The pipeline was closed.
    #[error("the pipeline is closed")]
    Closed,
    /// A defect of this library, reported instead of a crash.
    #[error("internal error (please report it): {0}")]
    Internal(String),
}

/// The coarse kind of an [`Error`], for bindings that map it to codes or exception classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Reading or writing failed.
    Io,
    /// The model was not found.
    NotFound,
    /// A file is malformed.
    Format,
    /// A value, option or input is out of range.
    InvalidArgument,
    /// The prompt is longer than the context.
    ContextOverflow,
    /// The memory limit or the allocator said no.
    Memory,
    /// The device cannot be used.
    Device,
    /// A feature this library does not have.
    Unsupported,
    /// A download failed.
    Network,
    /// Training met a number that is not finite.
    Diverged,
    /// Cancelled by the caller.
    Cancelled,
    /// The deadline passed.
    Deadline,
    /// Used after close.
    Closed,
    /// A defect of the library.
    Internal,
}

impl Error {
    /// The coarse kind of this error.
    ///
    /// ```
    /// use dolly_core::{Error, ErrorKind};
    /// let error = Error::ContextOverflow { prompt_tokens: 4096, context_length: 2048 };
    /// assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::ModelNotFound { .. } => ErrorKind::NotFound,
            Self::Format { .. } | Self::Config { .. } | Self::Row { .. } => ErrorKind::Format,
            Self::Tensor { .. } | Self::Tokenizer { .. } => ErrorKind::Format,
            Self::InvalidOption { .. } | Self::InvalidInput(_) => ErrorKind::InvalidArgument,
            Self::ContextOverflow { .. } => ErrorKind::ContextOverflow,
            Self::MemoryLimit { .. } | Self::OutOfMemory { .. } => ErrorKind::Memory,
            Self::Device { .. } => ErrorKind::Device,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Download { .. } => ErrorKind::Network,
            Self::Diverged { .. } => ErrorKind::Diverged,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::DeadlineExceeded => ErrorKind::Deadline,
            Self::Closed => ErrorKind::Closed,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn format(file: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Format { file: file.as_ref().to_owned(), reason: reason.into() }
    }

    pub(crate) fn config(
        file: impl AsRef<Path>,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        let (field, reason) = (field.into(), reason.into());
        Self::Config { file: file.as_ref().to_owned(), field, reason }
    }

    pub(crate) fn tensor(
        file: impl AsRef<Path>,
        tensor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        let (tensor, reason) = (tensor.into(), reason.into());
        Self::Tensor { file: file.as_ref().to_owned(), tensor, reason }
    }

    pub(crate) fn tokenizer(file: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Tokenizer { file: file.as_ref().to_owned(), reason: reason.into() }
    }

    pub(crate) fn option(
        name: &'static str,
        value: impl std::fmt::Display,
        allowed: &'static str,
    ) -> Self {
        Self::InvalidOption { name, value: value.to_string(), allowed }
    }
}

/// How the bytes that could not be had stand in their message.
fn of_bytes(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" needs {bytes} bytes"),
    }
}

/// How a row's field stands in its message.
fn row_field(field: Option<&str>) -> String {
    field.map_or_else(String::new, |name| format!("field {name:?}: "))
}

/// Reserves room for exactly `len` elements, or says how many bytes could not be had.
///
/// Used wherever a file or a request can influence the size: a failed `Vec::with_capacity` aborts
/// the process, this returns [`Error::OutOfMemory`].
pub(crate) fn try_vec<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        what: what.to_owned(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    Ok(vec)
}

/// A zeroed buffer of `len` elements, or [`Error::OutOfMemory`].
pub(crate) fn try_zeroed<T: Copy + Default>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut vec = try_vec(len, what)?;
    vec.resize(len, T::default());
    Ok(vec)
}
