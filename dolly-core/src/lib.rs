//! Run and own Dolly 2.0 and every other GPT-NeoX model, in your process.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
pub mod generate;
pub mod kernels;
pub mod model;
pub mod prompt;
pub mod source;
pub mod tokenizer;
pub mod weights;

mod error;
mod json;
mod options;

pub use error::{Error, ErrorKind, Result};
pub use options::{CancelToken, GenerateOptions, PromptMode, PromptOverflow};
pub use weights::WeightFormat;
