//! `config.json` to a checked [`Config`].

use std::path::Path;

use serde_json::{Map, Value};

use super::{Activation, Config};
use crate::error::{Error, Result};
use crate::json::{parse_strict, read_bounded};
use crate::weights::WeightFormat;

/// Longest `config.json` that is read; those of the family have under 2 KiB.
const MAX_BYTES: u64 = 1 << 20;
/// Default base of the rotary frequencies (`rotary_emb_base` in transformers).
pub(super) const ROTARY_BASE: f64 = 10_000.0;
/// Default rotated part of each head (`rotary_pct` in transformers).
const ROTARY_PCT: f64 = 0.25;

/// The keys of one JSON object, with errors that name file and key.
struct Fields<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
    prefix: &'a str,
}

impl Fields<'_> {
    fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.file, format!("{}{key}", self.prefix), reason)
    }

    /// The first of `keys` that is there and not null.
    fn get(&self, keys: &[&'static str]) -> Option<(&'static str, &Value)> {
        keys.iter().find_map(|key| {
            self.map.get(*key).filter(|value| !value.is_null()).map(|value| (*key, value))
        })
    }

    fn integer(&self, keys: &[&'static str], max: usize) -> Result<usize> {
        let Some((key, value)) = self.get(keys) else {
            return Err(self.error(keys.join(" | ").as_str(), "missing"));
        };
        let allowed = || {
            self.error(key, format!("is {}; expected an integer from 1 to {max}", shorten(value)))
        };
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(allowed)?;
        if number == 0 || number > max { Err(allowed()) } else { Ok(number) }
    }

    fn number(&self, keys: &[&'static str]) -> Result<Option<(&'static str, f64)>> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some((key, number))),
            None => Err(self.error(key, format!("is {}; expected a number", shorten(value)))),
        }
    }

    fn boolean(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(&[key]) {
            None => Ok(default),
            Some((_, Value::Bool(value))) => Ok(*value),
            Some((_, value)) => {
                Err(self.error(key, format!("is {}; expected true or false", shorten(value))))
            }
        }
    }

    fn text(&self, keys: &[&'static str]) -> Result<Option<(&'static str, &str)>> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        match value {
            Value::String(text) => Ok(Some((key, text))),
            _ => Err(self.error(key, format!("is {}; expected a text", shorten(value)))),
        }
    }

    fn object(&self, key: &'static str) -> Result<Option<&Map<String, Value>>> {
        match self.get(&[key]) {
            None => Ok(None),
            Some((_, Value::Object(map))) => Ok(Some(map)),
            Some((_, value)) => {
                Err(self.error(key, format!("is {}; expected an object", shorten(value))))
            }
        }
    }
}

/// A value as it stands in the file, cut to a length fit for a message.
pub(super) fn shorten(value: &Value) -> String {
    let text = match value {
        Value::Array(values) => return format!("an array of {}", values.len()),
        Value::Object(values) => return format!("an object of {} keys", values.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Rotary embedding: base, scale and rotated part of each head.
struct Rotary {
    base: f64,
    scale: f64,
    pct: (&'static str, f64),
}

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// Keys, defaults and their precedence are those of `GPTNeoXConfig` in transformers (5.x, and
    /// the spellings of 4.x); sizes have no default and must be there. Errors with
    /// [`Error::Config`] naming the field when a value is missing, out of range, or asks for
    /// something this library does not compute (another `model_type`, `rope_type` or activation);
    /// with [`Error::Format`] when the file is not JSON, is over 1 MiB or has a key twice.
    pub fn from_json(file: &Path) -> Result<Self> {
        Self::from_json_bytes(&read_bounded(file, MAX_BYTES)?, file)
    }

    /// As [`from_json`](Self::from_json), from bytes already read; `file` is named in errors.
    pub fn from_json_bytes(bytes: &[u8], file: &Path) -> Result<Self> {
        let value =
            parse_strict(bytes, bytes.len()).map_err(|reason| Error::format(file, reason))?;
        let Value::Object(map) = &value else {
            return Err(Error::format(file, "expected a JSON object"));
        };
        let fields = Fields { file, map, prefix: "" };
        check_model_type(&fields)?;
        let hidden_size = fields.integer(&["hidden_size"], 65_536)?;
        let num_attention_heads = fields.integer(&["num_attention_heads"], 65_536)?;
        let rotary = rotary(&fields)?;
        let config = Self {
            vocab_size: fields.integer(&["vocab_size"], 1 << 22)?,
            hidden_size,
            num_hidden_layers: fields.integer(&["num_hidden_layers"], 512)?,
            num_attention_heads,
            intermediate_size: fields.integer(&["intermediate_size"], 1 << 20)?,
            hidden_act: activation(&fields)?,
            layer_norm_eps: fields.number(&["layer_norm_eps"])?.map_or(1e-5, |(_, eps)| eps as f32),
            rotary_dims: rotary_dims(&fields, hidden_size, num_attention_heads, &rotary)?,
            rotary_base: rotary.base as f32,
            rotary_scale: rotary.scale as f32,
            max_position_embeddings: fields
                .integer(&["max_position_embeddings", "n_positions", "seq_length"], 1 << 24)?,
            use_parallel_residual: fields.boolean("use_parallel_residual", true)?,
            attention_bias: fields.boolean("attention_bias", true)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
            bos_token_id: ids(&fields, "bos_token_id")?.first().copied(),
            eos_token_ids: ids(&fields, "eos_token_id")?,
            stored_format: stored_format(&fields)?,
        };
        config.check(file)?;
        Ok(config)
    }

    /// Checks the ranges and relations that hold for every source.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        let error = |field: &str, reason: String| Err(Error::config(file, field, reason));
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if self.vocab_size == 0 || self.vocab_size > 1 << 22 {
            return error("vocab_size", format!("is {}; expected 1 to 4194304", self.vocab_size));
        }
        if heads == 0 || hidden % heads != 0 {
            return error("num_attention_heads", format!("{heads} do not divide {hidden}"));
        }
        if !self.rotary_dims.is_multiple_of(2) || self.rotary_dims > self.head_dim() {
            let (dims, width) = (self.rotary_dims, self.head_dim());
            let reason =
                format!("{dims} rotated dimensions; expected an even number up to {width}");
            return error("rotary dimensions", reason);
        }
        let positive = [
            ("layer_norm_eps", self.layer_norm_eps, 1.0),
            ("rotary_emb_base | rope_theta", self.rotary_base, 1e12),
            ("rope factor", self.rotary_scale, 1e6),
        ];
        for (field, value, max) in positive {
            if !(value.is_normal() && value > 0.0 && value <= max) {
                let reason = format!("is {value}; expected a number above 0, at most {max}");
                return error(field, reason);
            }
        }
        Ok(())
    }
}

fn check_model_type(fields: &Fields<'_>) -> Result<()> {
    match fields.text(&["model_type"])? {
        Some((_, "gpt_neox")) => Ok(()),
        Some((key, other)) => {
            let found = shorten(&other.into());
            Err(fields.error(key, format!("is {found}; this library runs \"gpt_neox\" only")))
        }
        None => Err(fields.error("model_type", "missing; expected \"gpt_neox\"")),
    }
}

fn activation(fields: &Fields<'_>) -> Result<Activation> {
    let Some((key, name)) = fields.text(&["hidden_act"])? else { return Ok(Activation::Gelu) };
    Activation::from_name(name).ok_or_else(|| {
        let found = shorten(&name.into());
        fields.error(key, format!("is {found}; known are {}", Activation::NAMES.join(", ")))
    })
}

/// The rotary settings in the order in which `GPTNeoXConfig` resolves them: `rope_scaling` over
/// `rope_parameters`, their entries over the top-level keys, Pythia's names over the newer ones.
fn rotary(fields: &Fields<'_>) -> Result<Rotary> {
    let filled = |map: Option<&'_ Map<String, Value>>| map.is_some_and(|map| !map.is_empty());
    let (prefix, map) = match fields.object("rope_scaling")? {
        Some(map) if filled(Some(map)) => ("rope_scaling.", Some(map)),
        _ => ("rope_parameters.", fields.object("rope_parameters")?),
    };
    let empty = Map::new();
    let inner = Fields { file: fields.file, map: map.unwrap_or(&empty), prefix };
    let scale = match inner.text(&["rope_type", "type"])? {
        None | Some((_, "default" | "none")) => 1.0,
        Some((_, "linear")) => match inner.number(&["factor"])? {
            Some((_, factor)) => factor,
            None => return Err(inner.error("factor", "missing; rope_type \"linear\" needs it")),
        },
        Some((key, other)) => {
            let found = shorten(&other.into());
            let reason = format!("is {found}; supported are \"default\" and \"linear\"");
            return Err(inner.error(key, reason));
        }
    };
    let base = match inner.number(&["rope_theta"])? {
        Some((_, base)) => base,
        None => fields.number(&["rotary_emb_base", "rope_theta"])?.map_or(ROTARY_BASE, |b| b.1),
    };
    let pct = match inner.number(&["partial_rotary_factor"])? {
        Some(pct) => pct,
        None => fields
            .number(&["rotary_pct", "partial_rotary_factor"])?
            .unwrap_or(("rotary_pct", ROTARY_PCT)),
    };
    Ok(Rotary { base, scale, pct })
}

/// `int(head_dim * pct)`, as transformers forms it (in f64, cut towards zero).
fn rotary_dims(fields: &Fields<'_>, hidden: usize, heads: usize, rotary: &Rotary) -> Result<usize> {
    let (key, pct) = rotary.pct;
    if !(0.0..=1.0).contains(&pct) {
        return Err(fields.error(key, format!("is {pct}; expected a number from 0 to 1")));
    }
    let head_dim = hidden / heads;
    let dims = (head_dim as f64 * pct) as usize;
    match dims % 2 {
        0 => Ok(dims),
        _ => Err(fields.error(
            key,
            format!("is {pct}: {dims} of {head_dim} dimensions rotated; expected an even number"),
        )),
    }
}

/// Token ids given as null, one integer, or a list of at most 64.
fn ids(fields: &Fields<'_>, key: &'static str) -> Result<Vec<u32>> {
    let Some((_, value)) = fields.get(&[key]) else { return Ok(Vec::new()) };
    let one = std::slice::from_ref(value);
    let values = value.as_array().map_or(one, Vec::as_slice);
    let error = |value: &Value| {
        let found = shorten(value);
        fields.error(key, format!("is {found}; expected a token id or a list of at most 64"))
    };
    if values.len() > 64 {
        return Err(error(value));
    }
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| error(value))
    };
    values.iter().map(id).collect()
}

fn stored_format(fields: &Fields<'_>) -> Result<WeightFormat> {
    let Some((key, name)) = fields.text(&["dtype", "torch_dtype"])? else {
        return Ok(WeightFormat::F32);
    };
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float16" | "half" => Ok(WeightFormat::F16),
        "bfloat16" => Ok(WeightFormat::Bf16),
        "float32" | "float" | "float64" | "double" => Ok(WeightFormat::F32),
        other => {
            let found = shorten(&other.into());
            let reason = format!("is {found}; known are float32, float16, bfloat16, float64");
            Err(fields.error(key, reason))
        }
    }
}
