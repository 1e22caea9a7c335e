//! Results as plain tuples, in the order in which the Python half's classes take them.

use std::time::Duration;

use dolly_core::model::Activation;
use dolly_core::{Config, Generation, TokenLogprob, Usage};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{Failure, Outcome};

/// `(queue, prefill, decode, total, tokens)`, seconds.
type Timings = (f64, f64, f64, f64, Vec<f64>);
/// `(id, logprob, [(id, logprob), ...])`.
type Logprob = (u32, f32, Vec<(u32, f32)>);
/// Tokens: `(prompt, completion, cached, drafted, accepted)`.
type Counts = (usize, usize, usize, usize, usize);
/// `(text, token_ids, finish_reason, usage, timings, logprobs, seed)`.
pub(crate) type GenerationParts =
    (String, Vec<u32>, &'static str, Counts, Timings, Option<Vec<Logprob>>, u64);

pub(crate) fn generation(from: Generation) -> GenerationParts {
    let seconds = |time: &Duration| time.as_secs_f64();
    let t = &from.timings;
    let tokens = t.tokens.iter().map(seconds).collect();
    let timings =
        (seconds(&t.queue), seconds(&t.prefill), seconds(&t.decode), seconds(&t.total), tokens);
    let Usage { prompt_tokens, completion_tokens, cached_tokens, .. } = from.usage;
    let drafts = (from.usage.drafted_tokens, from.usage.accepted_tokens);
    let usage = (prompt_tokens, completion_tokens, cached_tokens, drafts.0, drafts.1);
    let one = |TokenLogprob { id, logprob, top, .. }| (id, logprob, top);
    let logprobs = from.logprobs.map(|all| all.into_iter().map(one).collect());
    let reason = from.finish_reason.name();
    (from.text, from.token_ids, reason, usage, timings, logprobs, from.seed)
}

/// Rows of a batch: parts where a row succeeded, the exception object where it did not.
pub(crate) fn rows(
    py: Python<'_>,
    results: Vec<dolly_core::Result<Generation>>,
) -> Outcome<Vec<Py<PyAny>>> {
    let row = |result: dolly_core::Result<Generation>| match result {
        Ok(done) => Ok(generation(done).into_pyobject(py)?.into_any().unbind()),
        Err(error) => Ok(PyErr::from(Failure::Core(error)).into_value(py).into_any()),
    };
    results.into_iter().map(row).collect()
}

/// The hyper-parameters by the core's names.
pub(crate) fn config<'py>(py: Python<'py>, from: &Config) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("vocab_size", from.vocab_size)?;
    dict.set_item("hidden_size", from.hidden_size)?;
    dict.set_item("num_hidden_layers", from.num_hidden_layers)?;
    dict.set_item("num_attention_heads", from.num_attention_heads)?;
    dict.set_item("intermediate_size", from.intermediate_size)?;
    dict.set_item("hidden_act", activation(from.hidden_act))?;
    dict.set_item("layer_norm_eps", shortest(from.layer_norm_eps))?;
    dict.set_item("rotary_dims", from.rotary_dims)?;
    dict.set_item("rotary_base", shortest(from.rotary_base))?;
    dict.set_item("rotary_scale", shortest(from.rotary_scale))?;
    dict.set_item("max_position_embeddings", from.max_position_embeddings)?;
    dict.set_item("use_parallel_residual", from.use_parallel_residual)?;
    dict.set_item("attention_bias", from.attention_bias)?;
    dict.set_item("tie_word_embeddings", from.tie_word_embeddings)?;
    dict.set_item("bos_token_id", from.bos_token_id)?;
    dict.set_item("eos_token_ids", from.eos_token_ids.clone())?;
    dict.set_item("stored_format", from.stored_format.name())?;
    Ok(dict)
}

/// The name of an activation in `config.json`.
fn activation(from: Activation) -> &'static str {
    match from {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
        _ => "unknown",
    }
}

/// `value` through its shortest decimal, so that 0.92 stays 0.92 in Python's doubles.
pub(crate) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
