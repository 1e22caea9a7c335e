//! Fine-tuning: full or with low-rank adapters, exact and resumable.

mod lora;
mod network;

pub use lora::LoraConfig;
