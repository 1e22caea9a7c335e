//! Low-rank adapters (Hu et al., 2021): their options, their files, merging.

use crate::error::{Error, Result};

/// Low-rank adapters beside frozen weights: `W x + alpha / rank * B (A x)`.
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
    pub fn matches(&self, module: &str) -> bool {
        self.targets.iter().any(|target| {
            module
                .strip_suffix(target.as_str())
                .is_some_and(|rest| !target.is_empty() && (rest.is_empty() || rest.ends_with('.')))
        })
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
        match self.targets.is_empty() {
            true => Err(Error::option("lora.targets", "nothing", "at least one layer name")),
            false => Ok(()),
        }
    }
}
