//! Fine-tuning: full or with low-rank adapters, exact and resumable.

mod lora;
mod model;
mod network;
mod optimizer;
mod options;
mod order;
mod schedule;

pub use lora::LoraConfig;
pub use options::{EvalSize, TrainingOptions};
pub use schedule::Schedule;
