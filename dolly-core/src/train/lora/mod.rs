//! Low-rank adapters (Hu et al., 2021): their options, their files, merging.
//!
//! Files are laid out as PEFT lays them out; what is read there stands beside a base model's
//! [`Checkpoint`](crate::weights::Checkpoint) and is added to its rows as they are read, so that
//! every way of loading and writing a model takes an adapter without holding a second copy.

use crate::error::{Error, Result};

mod adapter;
mod config;
mod write;

pub use adapter::{Adapter, AdapterLayer};
pub use write::write_adapter;

/// What PEFT puts before the names of a model's modules.
const PREFIX: &str = "base_model.model.";

/// Low-rank adapters beside frozen weights: `W x + alpha / rank * B (A x)`.
///
/// ```
/// use dolly_core::train::LoraConfig;
/// let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
/// assert_eq!(lora.scale(), 4.0);
/// assert!(lora.matches("gpt_neox.layers.0.attention.dense"));
/// assert!(!lora.matches("gpt_neox.layers.0.mlp.dense_h_to_4h"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank of A and B, 1 or more.
    pub rank: usize,
    /// The product B A is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Share of A's inputs that is dropped while training, in [0, 1).
    pub dropout: f32,
    /// Linear layers that get adapters: a name, or the end of one after a dot.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = ["query_key_value", "dense"].map(str::to_owned).to_vec();
        Self { rank: 8, alpha: 16.0, dropout: 0.0, targets }
    }
}

impl LoraConfig {
    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Whether the linear layer `module` (its checkpoint name without `.weight`) gets an adapter.
    ///
    /// As in PEFT: a target is the whole name, or its end after a dot. The output layer
    /// `embed_out` answers to `lm_head` as well, its name in newer versions of transformers.
    pub fn matches(&self, module: &str) -> bool {
        self.targets.iter().any(|target| covers(target, module))
    }

    /// The layers among `modules` that get adapters, in their order.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a target that matches none of them, naming it and the layers
    /// there are.
    pub fn select<'m>(&self, modules: &[&'m str]) -> Result<Vec<&'m str>> {
        if let Some(target) = unmatched(&self.targets, modules) {
            let value = format!("{target:?} (layers are {})", kinds(modules));
            return Err(Error::option("lora.targets", value, "the names of linear layers"));
        }
        Ok(modules.iter().copied().filter(|module| self.matches(module)).collect())
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::option("lora.rank", self.rank, "1 or more"));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(Error::option("lora.alpha", self.alpha, "a finite number above 0"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::option("lora.dropout", self.dropout, "0 or more and below 1"));
        }
        let empty = self.targets.is_empty() || self.targets.iter().any(String::is_empty);
        match empty {
            true => Err(Error::option("lora.targets", "nothing", "at least one layer name")),
            false => Ok(()),
        }
    }
}

/// Whether `target` is `module` or its end after a dot.
fn covers(target: &str, module: &str) -> bool {
    let ends = |module: &str| {
        module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !target.is_empty() && (ends(module) || (module == "embed_out" && ends("lm_head")))
}

/// The first target that covers no module.
fn unmatched<'t>(targets: &'t [String], modules: &[&str]) -> Option<&'t String> {
    targets.iter().find(|target| !modules.iter().any(|module| covers(target, module)))
}

/// The names of the layers without their numbers, each once, for messages.
fn kinds(modules: &[&str]) -> String {
    let kind = |module: &str| {
        let numbered =
            module.strip_prefix("gpt_neox.layers.").and_then(|rest| rest.split_once('.'));
        numbered.map_or(module, |(_, kind)| kind).to_owned()
    };
    let mut kinds: Vec<String> = modules.iter().map(|module| kind(module)).collect();
    kinds.sort();
    kinds.dedup();
    kinds.truncate(16);
    kinds.join(", ")
}
