//! `adapter_config.json`: what is honoured, what has no effect here, and what is refused by name.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{parse_strict, read_bounded};

/// Longest file that is read; PEFT writes about 1 KiB.
const MAX_BYTES: u64 = 1 << 20;
/// Highest rank; PEFT's users stay below 1024.
const MAX_RANK: u64 = 1 << 16;
/// Most targets; PEFT spells `all-linear` out, a name for each layer.
const MAX_NAMES: usize = 8192;
/// Most patterns of ranks, and of alphas.
const MAX_PATTERNS: usize = 512;
/// Bytes that a compiled pattern may take; with [`MAX_PATTERNS`] it bounds what a file can cost.
const PATTERN_BYTES: usize = 1 << 16;

/// Fields that say nothing about the weights, or are read elsewhere in this file.
const NO_EFFECT: [&str; 21] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];
/// Initialisations that leave the base's weights as they are; others (PiSSA, OLoRA, LoftQ, CorDA)
/// change them, and their adapters fit only the changed base.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What an adapter's configuration asks for.
#[derive(Debug)]
pub(super) struct PeftConfig {
    pub base: Option<String>,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub targets: Targets,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    root_scale: bool,
}

/// The layers that an adapter says it is for.
#[derive(Debug)]
pub(super) enum Targets {
    Names(Vec<String>),
    Pattern(Regex),
    /// Every linear layer but the output layer.
    AllLinear,
}

impl Targets {
    pub fn covers(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| super::covers(name, module)),
            Self::Pattern(pattern) => pattern.is_match(module),
            Self::AllLinear => module != "embed_out",
        }
    }
}

impl PeftConfig {
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = read_bounded(file, MAX_BYTES)?;
        let value = parse_strict(&bytes, 100_000).map_err(|reason| Error::format(file, reason))?;
        let Value::Object(map) = value else {
            return Err(Error::format(file, "expected a JSON object"));
        };
        Fields { file, map: &map }.config()
    }

    /// The rank of one module's adapter and the scale of its product.
    pub fn rank_and_scale(&self, file: &Path, module: &str) -> Result<(usize, f32)> {
        let rank = one_of(file, "rank_pattern", &self.rank_pattern, module)?;
        let alpha = one_of(file, "alpha_pattern", &self.alpha_pattern, module)?;
        let (rank, alpha) = (rank.unwrap_or(self.rank as f64), alpha.unwrap_or(self.alpha));
        let scale = alpha / if self.root_scale { rank.sqrt() } else { rank };
        Ok((rank as usize, scale as f32))
    }
}

/// The value of the pattern that matches, where PEFT takes the first of several.
///
/// The order of keys is lost in JSON objects: patterns that disagree are refused.
fn one_of(
    file: &Path,
    field: &str,
    patterns: &[(Regex, f64)],
    module: &str,
) -> Result<Option<f64>> {
    let mut values = patterns.iter().filter(|(p, _)| p.is_match(module)).map(|(_, value)| *value);
    let first = values.next();
    match values.find(|value| Some(*value) != first) {
        None => Ok(first),
        Some(other) => {
            let first = first.unwrap_or_default();
            let reason = format!("patterns with {first} and {other} both match {module:?}");
            Err(Error::config(file, field, reason))
        }
    }
}

struct Fields<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn config(&self) -> Result<PeftConfig> {
        match self.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(self.refuse("peft_type", format!("{other:?} is not LORA"))),
            None => return Err(self.error("peft_type", "missing; expected \"LORA\"")),
        }
        self.refuse_others()?;
        let dropout = self.number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(self.error("lora_dropout", format!("is {dropout}; expected 0 to below 1")));
        }
        Ok(PeftConfig {
            base: self.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            rank: self.rank("r", self.get("r").unwrap_or(&Value::from(8)))? as usize,
            alpha: self.number("lora_alpha", 8.0)?,
            dropout: dropout as f32,
            targets: self.targets()?,
            rank_pattern: self.patterns("rank_pattern", |v| self.rank("rank_pattern", v))?,
            alpha_pattern: self.patterns("alpha_pattern", |v| self.finite("alpha_pattern", v))?,
            root_scale: self.truth("use_rslora")?,
        })
    }

    /// Everything that could change the weights and is not computed here.
    fn refuse_others(&self) -> Result<()> {
        match self.get("bias") {
            None => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(other) => return Err(self.refuse("bias", format!("{other}; only \"none\" is"))),
        }
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => {}
            Some(Value::String(start)) if PLAIN_STARTS.contains(&start.as_str()) => {}
            Some(other) => {
                let reason = format!("{other}: it changes the base's weights");
                return Err(self.refuse("init_lora_weights", reason));
            }
        }
        for (field, value) in self.map {
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::String(text) => text.is_empty(),
                Value::Array(values) => values.is_empty(),
                Value::Object(values) => values.is_empty(),
                _ => false,
            };
            if !off && !NO_EFFECT.contains(&field.as_str()) {
                let shown: String = value.to_string().chars().take(60).collect();
                return Err(self.refuse(field, shown));
            }
        }
        Ok(())
    }

    fn targets(&self) -> Result<Targets> {
        let field = "target_modules";
        match self.get(field) {
            Some(Value::String(name)) if name == "all-linear" => Ok(Targets::AllLinear),
            Some(Value::String(pattern)) => {
                Ok(Targets::Pattern(self.compile(field, &format!("^(?:{pattern})$"))?))
            }
            Some(Value::Array(names)) if !names.is_empty() && names.len() <= MAX_NAMES => {
                let name = |value: &Value| match value.as_str() {
                    Some(name) if !name.is_empty() => Ok(name.to_owned()),
                    _ => Err(self.error(field, format!("{value} is no name of a layer"))),
                };
                Ok(Targets::Names(names.iter().map(name).collect::<Result<_>>()?))
            }
            _ => {
                let reason = format!("expected a pattern or 1 to {MAX_NAMES} names of layers");
                Err(self.error(field, reason))
            }
        }
    }

    /// Patterns over module names, compiled as PEFT's `get_pattern_key` reads them.
    fn patterns(
        &self,
        field: &str,
        value: impl Fn(&Value) -> Result<f64>,
    ) -> Result<Vec<(Regex, f64)>> {
        let map = match self.get(field) {
            None => return Ok(Vec::new()),
            Some(Value::Object(map)) if map.len() <= MAX_PATTERNS => map,
            Some(_) => {
                let reason = format!("expected an object of at most {MAX_PATTERNS} patterns");
                return Err(self.error(field, reason));
            }
        };
        let one = |(key, number): (&String, &Value)| {
            Ok((self.compile(field, &format!(r"^(?:.*\.)?(?:{key})$"))?, value(number)?))
        };
        map.iter().map(one).collect()
    }

    fn compile(&self, field: &str, pattern: &str) -> Result<Regex> {
        let mut builder = RegexBuilder::new(pattern);
        let compiled = builder.size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).build();
        compiled.map_err(|error| {
            let shown: String = pattern.chars().take(200).collect();
            self.error(field, format!("pattern {shown:?}: {error}"))
        })
    }

    fn rank(&self, field: &str, value: &Value) -> Result<f64> {
        match value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank)) {
            Some(rank) => Ok(rank as f64),
            None => Err(self.error(field, format!("is {value}; expected 1 to {MAX_RANK}"))),
        }
    }

    fn finite(&self, field: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|number| (*number as f32).is_finite());
        number.ok_or_else(|| self.error(field, format!("is {value}; expected a number")))
    }

    fn number(&self, field: &str, default: f64) -> Result<f64> {
        self.get(field).map_or(Ok(default), |value| self.finite(field, value))
    }

    fn truth(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.error(field, format!("is {other}; expected true or false"))),
        }
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn error(&self, field: &str, reason: impl Into<String>) -> Error {
        Error::config(self.file, field, reason)
    }

    fn refuse(&self, field: &str, reason: impl std::fmt::Display) -> Error {
        Error::Unsupported(format!("{}: {field}: {reason}", self.file.display()))
    }
}
