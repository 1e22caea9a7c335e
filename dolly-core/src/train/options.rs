//! Options of a training run; their defaults are those of the original where it has the option.

use std::collections::BTreeMap;

use super::{LoraConfig, Schedule};
use crate::dataset::SplitSize;
use crate::error::{Error, Result};
use crate::options::CancelToken;
use crate::pipeline::Device;

#[cfg(test)]
mod tests;

/// The type that a network in training forms its products in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, on a GPU alone: weights, gradients, sums and moments stay f32.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::option("precision", name, "f32 or bf16")),
        }
    }
}

/// Options of a run; `..Default::default()` gives the rest.
///
/// ```
/// use dolly_core::train::{LoraConfig, TrainingOptions};
/// let options = TrainingOptions {
///     lora: Some(LoraConfig::default()),
///     epochs: 3,
///     learning_rate: 2e-4,
///     ..Default::default()
/// };
/// options.validate()?;
/// # Ok::<(), dolly_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TrainingOptions {
    /// Train low-rank adapters beside frozen weights; `None` trains every weight.
    pub lora: Option<LoraConfig>,
    /// Times every row is seen, 1 or more.
    pub epochs: usize,
    /// Ends the run after so many steps, whatever [`epochs`](Self::epochs) says: more epochs are
    /// begun where needed.
    pub max_steps: Option<u64>,
    /// Sequences of a batch, 1 or more.
    pub batch_size: usize,
    /// Batches whose gradients one step adds up, 1 or more. The loss is the mean over all
    /// predicted tokens of the step.
    pub gradient_accumulation: usize,
    /// Peak learning rate, 0 or more.
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: u64,
    /// The rate's course after the warm-up.
    pub schedule: Schedule,
    /// Longest sequence in tokens; rows of this length or more are dropped, because their end
    /// would be cut. `None` is the checkpoint's `max_position_embeddings`.
    pub max_length: Option<usize>,
    /// Rows kept from training for evaluation; with none, nothing is evaluated.
    pub eval_size: SplitSize,
    /// Steps from one evaluation to the next; 0 evaluates at the end only.
    pub eval_steps: u64,
    /// Steps from one checkpoint to the next; 0 writes one at the end only.
    pub save_steps: u64,
    /// Most checkpoints kept, 1 or more; the newest and the best always stay.
    pub save_total_limit: usize,
    /// Steps from one row of the logs to the next, 1 or more.
    pub logging_steps: u64,
    /// Computes each layer's activations again in the backward pass instead of keeping them.
    pub gradient_checkpointing: bool,
    /// Decides order, initial values and dropout.
    pub seed: u64,
    /// Goes on from the newest sound checkpoint in the output directory, if there is one.
    pub resume: bool,
    /// Where the network is trained. On a GPU the results equal the CPU's within rounding only; a
    /// run can be resumed on another device.
    pub device: Device,
    /// The type that products are formed in.
    pub precision: Precision,
    /// Threads, 1 to 1024; one per core unless set. The results do not depend on it.
    pub threads: Option<usize>,
    /// Decoupled decay of matrices (not of biases and norms), 0 or more.
    pub weight_decay: f64,
    /// Decay of Adam's first moment, in [0, 1).
    pub adam_beta1: f64,
    /// Decay of Adam's second moment, in [0, 1).
    pub adam_beta2: f64,
    /// Added to Adam's denominator, above 0.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this global norm; 0 is off.
    pub max_grad_norm: f64,
    /// Share of activations dropped while training, in [0, 1).
    pub dropout: f32,
    /// Stops after so many evaluations in a row without a new best; the result is then the best
    /// checkpoint, and every new best is saved. `None` is off.
    pub early_stopping_patience: Option<usize>,
    /// Bytes the run may take: weights, gradients, moments, and an upper bound (on a GPU an estimate)
    /// of the activations that the longest sequences would need in one batch. Checked before any of
    /// them is allocated; on a GPU it is the GPU's memory, and the host keeps copies of weights and
    /// moments besides. The encoded data and what the process holds otherwise are not counted.
    pub memory_limit: Option<u64>,
    /// Stops the run with [`Error::Cancelled`] at the next batch, or at the next row while they are
    /// encoded; checkpoints stay.
    pub cancel: Option<CancelToken>,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            lora: None,
            epochs: 2,
            max_steps: None,
            batch_size: 8,
            gradient_accumulation: 1,
            learning_rate: 1e-5,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            max_length: None,
            eval_size: SplitSize::Fraction(0.02),
            eval_steps: 50,
            save_steps: 200,
            save_total_limit: 10,
            logging_steps: 10,
            gradient_checkpointing: true,
            seed: 42,
            resume: false,
            device: Device::Auto,
            precision: Precision::F32,
            threads: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            dropout: 0.0,
            early_stopping_patience: None,
            memory_limit: None,
            cancel: None,
        }
    }
}

impl TrainingOptions {
    /// Checks every field against its range; [`Error::InvalidOption`] names the first that fails.
    pub fn validate(&self) -> Result<()> {
        self.validate_counts()?;
        let number = |name, value: f64, ok: bool, allowed| match value.is_finite() && ok {
            true => Ok(()),
            false => Err(Error::option(name, value, allowed)),
        };
        let share = "a number in [0, 1)";
        let rate = self.learning_rate;
        number("learning_rate", rate, (0.0..=1e3).contains(&rate), "a number in [0, 1000]")?;
        let decay = self.weight_decay;
        number("weight_decay", decay, (0.0..=1e3).contains(&decay), "a number in [0, 1000]")?;
        for (name, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            number(name, beta, (0.0..1.0).contains(&beta), share)?;
        }
        // Below the smallest positive f32 it would be 0 where it is added.
        let epsilon = self.adam_epsilon;
        number("adam_epsilon", epsilon, (1e-37..=1.0).contains(&epsilon), "1e-37 to 1")?;
        let norm = self.max_grad_norm;
        number("max_grad_norm", norm, (0.0..=1e30).contains(&norm), "a number in [0, 1e30]")?;
        let dropout = self.dropout;
        number("dropout", f64::from(dropout), (0.0..1.0).contains(&dropout), share)?;
        if let SplitSize::Fraction(part) = self.eval_size {
            number("eval_size", part, (0.0..1.0).contains(&part), "rows, or a share in [0, 1)")?;
        }
        self.lora.as_ref().map_or(Ok(()), LoraConfig::validate)
    }

    fn validate_counts(&self) -> Result<()> {
        let most = 1usize << 20;
        let counts = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("gradient_accumulation", self.gradient_accumulation),
            ("save_total_limit", self.save_total_limit),
        ];
        for (name, value) in counts {
            if !(1..=most).contains(&value) {
                return Err(Error::option(name, value, "1 to 1048576"));
            }
        }
        if let Some(steps) = self.max_steps.filter(|steps| !(1..=1 << 40).contains(steps)) {
            return Err(Error::option("max_steps", steps, "1 to 2^40"));
        }
        if self.logging_steps == 0 {
            return Err(Error::option("logging_steps", 0, "1 or more"));
        }
        if let Some(length) = self.max_length.filter(|length| *length < 2) {
            return Err(Error::option("max_length", length, "2 or more"));
        }
        if let Some(threads) = self.threads.filter(|n| !(1..=1024).contains(n)) {
            return Err(Error::option("threads", threads, "1 to 1024"));
        }
        match self.early_stopping_patience {
            Some(0) => Err(Error::option("early_stopping_patience", 0, "1 or more")),
            _ => Ok(()),
        }
    }

    /// The options that decide the weights, by name: a resumed run must have the same.
    ///
    /// Threads, gradient checkpointing, logs and limits change no weight and are left out; so is the
    /// device, which changes no more than rounding. With a
    /// constant rate the length of the run is free: a run can be prolonged.
    pub(crate) fn fingerprint(&self) -> BTreeMap<String, String> {
        let lora = self.lora.as_ref().map(|lora| {
            format!("{} {} {} {}", lora.rank, lora.alpha, lora.dropout, lora.targets.join(","))
        });
        let mut options = vec![
            ("lora", lora.unwrap_or_else(|| "none".to_owned())),
            ("batch_size", self.batch_size.to_string()),
            ("gradient_accumulation", self.gradient_accumulation.to_string()),
            ("learning_rate", self.learning_rate.to_string()),
            ("warmup_steps", self.warmup_steps.to_string()),
            ("schedule", self.schedule.to_string()),
            ("seed", self.seed.to_string()),
            ("weight_decay", self.weight_decay.to_string()),
            ("adam_beta1", self.adam_beta1.to_string()),
            ("adam_beta2", self.adam_beta2.to_string()),
            ("adam_epsilon", self.adam_epsilon.to_string()),
            ("max_grad_norm", self.max_grad_norm.to_string()),
            ("dropout", self.dropout.to_string()),
            ("precision", self.precision.to_string()),
        ];
        if self.schedule != Schedule::Constant {
            options.push(("epochs", self.epochs.to_string()));
            options.push(("max_steps", format!("{:?}", self.max_steps)));
        }
        options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Names of the options in a fingerprint, as errors need them.
const NAMES: [&str; 16] = [
    "lora",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "warmup_steps",
    "schedule",
    "seed",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "dropout",
    "precision",
    "epochs",
    "max_steps",
];

/// Whether a run with the options `now` may go on from a checkpoint made with `then`.
///
/// # Errors
/// [`Error::InvalidOption`] naming the first option that differs, with both values.
pub(crate) fn check_fingerprint(
    now: &BTreeMap<String, String>,
    then: &BTreeMap<String, String>,
) -> Result<()> {
    // A checkpoint that does not name it was made in f32.
    let only = Precision::F32.to_string();
    for name in NAMES {
        let known = |options: &'_ BTreeMap<String, String>| -> Option<String> {
            let unnamed = (name == "precision").then_some(&only);
            options.get(name).or(unnamed).cloned()
        };
        let (now, then) = (known(now), known(then));
        if now != then {
            let shown = |value: Option<String>| value.unwrap_or_else(|| "any".to_owned());
            let value = format!("{} (the checkpoint has {})", shown(now), shown(then));
            let allowed = "the value the checkpoint was made with, or resume off";
            return Err(Error::option(name, value, allowed));
        }
    }
    Ok(())
}
