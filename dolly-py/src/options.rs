//! Options of a request, read from the attributes of `dolly_rs.GenerateOptions`.

use std::collections::BTreeMap;
use std::time::Duration;

use dolly_core::{Error, GenerateOptions, PromptMode, PromptOverflow};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{Failure, Outcome};
use crate::results::shortest;

/// Reads attributes of a Python object; a value that does not fit is named with its attribute.
pub(crate) struct Fields<'a, 'py>(pub &'a Bound<'py, PyAny>);

impl<'py> Fields<'_, 'py> {
    pub fn get<T: FromPyObjectOwned<'py>>(&self, name: &'static str) -> Outcome<T> {
        let value = self.0.getattr(name)?;
        convert(name, &value)
    }
}

/// `value` as a `T`, or an error which names it: out of range is an invalid argument.
pub(crate) fn convert<'py, T: FromPyObjectOwned<'py>>(
    name: &'static str,
    value: &Bound<'py, PyAny>,
) -> Outcome<T> {
    let py = value.py();
    value.extract::<T>().map_err(|error| {
        let error: PyErr = error.into();
        if error.is_instance_of::<PyOverflowError>(py) {
            let value = value.repr().map_or_else(|_| "a number".to_owned(), |r| r.to_string());
            let allowed = "a number that is not negative and not too large";
            return Failure::Core(Error::InvalidOption { name, value, allowed });
        }
        if error.is_instance_of::<PyTypeError>(py) {
            return PyTypeError::new_err(format!("option {name}: {}", error.value(py))).into();
        }
        error.into()
    })
}

/// A time in seconds from now, which is neither negative nor NaN.
pub(crate) fn deadline(seconds: Option<f64>) -> Outcome<Option<Duration>> {
    let checked = seconds.map(|seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| Error::InvalidOption {
            name: "deadline",
            value: seconds.to_string(),
            allowed: "seconds, 0 or more",
        })
    });
    Ok(checked.transpose()?)
}

/// The options as the core knows them; the core checks their ranges.
pub(crate) fn read(options: &Bound<'_, PyAny>) -> Outcome<GenerateOptions> {
    let fields = Fields(options);
    let bias: BTreeMap<u32, f32> = fields.get("logit_bias")?;
    Ok(GenerateOptions {
        max_new_tokens: fields.get("max_new_tokens")?,
        do_sample: fields.get("do_sample")?,
        temperature: fields.get("temperature")?,
        top_p: fields.get("top_p")?,
        top_k: fields.get("top_k")?,
        min_p: fields.get("min_p")?,
        typical_p: fields.get("typical_p")?,
        repetition_penalty: fields.get("repetition_penalty")?,
        presence_penalty: fields.get("presence_penalty")?,
        frequency_penalty: fields.get("frequency_penalty")?,
        no_repeat_ngram: fields.get("no_repeat_ngram_size")?,
        logit_bias: bias.into_iter().collect(),
        seed: fields.get("seed")?,
        stop: fields.get("stop")?,
        ignore_end: fields.get("ignore_end")?,
        num_return_sequences: fields.get("num_return_sequences")?,
        logprobs: fields.get("logprobs")?,
        prompt_lookup: fields.get("prompt_lookup")?,
        deadline: deadline(fields.get("deadline")?)?,
        return_full_text: fields.get("return_full_text")?,
        prompt_overflow: overflow(&fields.get::<String>("prompt_overflow")?)?,
        prompt_mode: mode(&fields.get::<String>("prompt_mode")?)?,
        ..GenerateOptions::default()
    })
}

fn overflow(name: &str) -> Outcome<PromptOverflow> {
    match name {
        "error" => Ok(PromptOverflow::Error),
        "truncate_context" => Ok(PromptOverflow::TruncateContext),
        _ => Err(unknown("prompt_overflow", name, "\"error\" or \"truncate_context\"")),
    }
}

fn mode(name: &str) -> Outcome<PromptMode> {
    match name {
        "safe" => Ok(PromptMode::Safe),
        "hf" => Ok(PromptMode::Hf),
        _ => Err(unknown("prompt_mode", name, "\"safe\" or \"hf\"")),
    }
}

fn unknown(name: &'static str, value: &str, allowed: &'static str) -> Failure {
    Error::InvalidOption { name, value: format!("{value:?}"), allowed }.into()
}

/// The core's defaults by Python's names: what the Python half's own defaults are tested against.
#[pyfunction]
pub(crate) fn default_options(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let options = GenerateOptions::default();
    let dict = PyDict::new(py);
    dict.set_item("max_new_tokens", options.max_new_tokens)?;
    dict.set_item("do_sample", options.do_sample)?;
    dict.set_item("temperature", options.temperature)?;
    dict.set_item("top_p", shortest(options.top_p))?;
    dict.set_item("top_k", options.top_k)?;
    dict.set_item("min_p", options.min_p)?;
    dict.set_item("typical_p", options.typical_p)?;
    dict.set_item("repetition_penalty", options.repetition_penalty)?;
    dict.set_item("presence_penalty", options.presence_penalty)?;
    dict.set_item("frequency_penalty", options.frequency_penalty)?;
    dict.set_item("no_repeat_ngram_size", options.no_repeat_ngram)?;
    dict.set_item("logit_bias", PyDict::new(py))?;
    dict.set_item("seed", options.seed)?;
    dict.set_item("stop", options.stop)?;
    dict.set_item("ignore_end", options.ignore_end)?;
    dict.set_item("num_return_sequences", options.num_return_sequences)?;
    dict.set_item("logprobs", options.logprobs)?;
    dict.set_item("prompt_lookup", options.prompt_lookup)?;
    dict.set_item("deadline", options.deadline.map(|time| time.as_secs_f64()))?;
    dict.set_item("return_full_text", options.return_full_text)?;
    dict.set_item("prompt_overflow", "error")?;
    dict.set_item("prompt_mode", "safe")?;
    Ok(dict)
}
