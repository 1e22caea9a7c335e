//! The GPT-NeoX network: its configuration, its one definition, and the cache of a sequence.

mod config;

pub use config::{Activation, Config, MetadataView, TensorSpec};
