//! From the core's errors to Python's exceptions: the only place where they meet.

use dolly_core::{Error, ErrorKind};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Why a call failed: in the core, or on the way from or to Python.
pub(crate) enum Failure {
    Core(Error),
    Python(PyErr),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Core(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Python(error) => error,
            Failure::Core(error) => {
                Python::attach(|py| exception(py, &error).unwrap_or_else(|e| e))
            }
        }
    }
}

/// The exception for `error`, of the class in `dolly_rs.errors` that its kind names.
fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let class = py.import("dolly_rs.errors")?.getattr(class_name(error.kind()))?;
    let message = error.to_string();
    let value = match error {
        Error::ContextOverflow { prompt_tokens, context_length, .. } => {
            let numbers = PyDict::new(py);
            numbers.set_item("prompt_tokens", prompt_tokens)?;
            numbers.set_item("context_length", context_length)?;
            class.call((message,), Some(&numbers))?
        }
        Error::Diverged { step, .. } => {
            let number = PyDict::new(py);
            number.set_item("step", step)?;
            class.call((message,), Some(&number))?
        }
        Error::Row { file, line, field, reason, .. } => {
            let place = PyDict::new(py);
            place.set_item("file", file.to_string_lossy())?;
            place.set_item("line", line)?;
            place.set_item("field", field)?;
            place.set_item("reason", reason)?;
            let class = py.import("dolly_rs.errors")?.getattr("DataFormatError")?;
            class.call((message,), Some(&place))?
        }
        Error::Io { path, source, .. } => match source.raw_os_error() {
            // OSError of (errno, strerror, filename) fills its attributes of these names.
            Some(number) => {
                let text = py.import("os")?.call_method1("strerror", (number,))?;
                class.call1((number, text, path.as_os_str()))?
            }
            None => class.call1((message,))?,
        },
        _ => class.call1((message,))?,
    };
    Ok(PyErr::from_value(value))
}

fn class_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Io => "DollyIOError",
        ErrorKind::NotFound => "ModelNotFoundError",
        ErrorKind::Format => "ModelFormatError",
        ErrorKind::InvalidArgument => "InvalidArgumentError",
        ErrorKind::ContextOverflow => "ContextOverflowError",
        ErrorKind::Memory => "DollyMemoryError",
        ErrorKind::Device => "DeviceError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Network => "NetworkError",
        ErrorKind::Diverged => "DivergedError",
        ErrorKind::Cancelled => "CancelledError",
        ErrorKind::Deadline => "DeadlineError",
        ErrorKind::Closed => "ClosedError",
        ErrorKind::Internal => "InternalError",
        _ => "DollyError",
    }
}
