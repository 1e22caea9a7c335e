//! Fine-tuning: full or with low-rank adapters, exact and resumable.

mod lora;
mod network;
pub mod result;

pub use lora::{Adapter, AdapterLayer, LoraConfig, write_adapter};
