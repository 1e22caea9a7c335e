//! Fine-tuning: full or with low-rank adapters, exact and resumable.
//!
//! Order, masking and defaults are those of Dolly's `trainer.py` on transformers' `Trainer`. Every
//! number a step depends on is a function of the options, the data and the step: a run that is
//! killed anywhere and resumed ends with the same bits, on any number of threads.

mod checkpoint;
mod evaluate;
mod examples;
mod execution;
#[cfg(test)]
mod kill;
mod log;
mod lora;
mod model;
mod network;
mod optimizer;
mod options;
mod order;
pub mod result;
mod run;
mod schedule;
mod special;
mod state;
mod tensorboard;
#[cfg(test)]
mod tiny;
mod trainer;

pub use evaluate::{Evaluation, MeanLoss};
pub use lora::{Adapter, AdapterLayer, LoraConfig, write_adapter};
pub use options::{Precision, TrainingOptions};
pub use run::{StepReport, StopReason, TrainingRun};
pub use schedule::Schedule;
pub use state::{BestLoss, HistoryRow};
pub use trainer::{Trainer, evaluate, evaluate_with_source};
