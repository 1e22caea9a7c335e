//! Run and own Dolly 2.0 and every other GPT-NeoX model, in your process.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
pub mod generate;
pub mod kernels;
pub mod model;
mod pipeline;
pub mod prompt;
pub mod source;
pub mod tokenizer;
pub mod weights;

mod error;
mod json;
mod options;

pub use error::{Error, ErrorKind, Result};
pub use generate::{
    ClassProbability, FinishReason, Generation, Score, Timings, TokenLogprob, Usage,
};
pub use model::{Config, LoadProgress};
pub use options::{CancelToken, GenerateOptions, PromptMode, PromptOverflow};
pub use pipeline::{
    Device, FileFormat, MemoryUse, Pipeline, PipelineBuilder, Prompt, RequestOptions, Stream,
    StreamEvent, convert,
};
pub use prompt::Instruction;
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::WeightFormat;
