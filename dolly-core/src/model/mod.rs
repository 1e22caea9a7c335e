//! The GPT-NeoX network: its configuration, its one definition, and how it is loaded.

mod config;
mod load;
mod neox;
#[cfg(any(test, feature = "candle"))]
mod random;

pub(crate) use config::GGUF_HIDDEN_ACT;
pub(crate) use config::dtype_name;
pub use config::{Activation, Config, MetadataView, TensorSpec};
pub use load::LoadProgress;
pub(crate) use load::{LoadPlan, load, main_format, matrix_format, outer_format};
pub use neox::{LogitReader, Logits, NeoX, Workspace};
