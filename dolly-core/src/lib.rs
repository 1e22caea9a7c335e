//! Run and own Dolly 2.0, Pythia and every other GPT-NeoX model, in your process.
//!
//! A [`Pipeline`] is a loaded model; every call takes `&self` and may come from any thread.
//!
//! | to | call | gives |
//! |---|---|---|
//! | load a model | [`Pipeline::from_pretrained`], [`Pipeline::builder`] | [`Pipeline`] |
//! | answer an instruction | [`Pipeline::generate`] | [`Generation`] |
//! | ... piece by piece | [`Pipeline::stream`] | [`Stream`], an iterator |
//! | ... many at once | [`Pipeline::generate_batch`] | one result per row |
//! | continue a text or ids | [`Pipeline::complete`] | [`Generation`] |
//! | rate a response | [`Pipeline::score`] | [`Score`] |
//! | choose among answers | [`Pipeline::classify`] | [`ClassProbability`] per answer |
//! | see the logits | [`Pipeline::logits`] | `(tokens, vocab)` f32 |
//! | stop a call | [`CancelToken`], `deadline`, dropping a [`Stream`] | the text so far |
//! | read instruction data | [`Dataset`], [`dataset`] | rows, a report, a split |
//! | convert a model's files | [`convert()`] | GGUF or safetensors |
//! | use an adapter | [`PipelineBuilder::adapter`], [`merge_adapter`] | [`Pipeline`], files |
//! | see where a model came from | [`provenance::lineage`] | [`provenance::Lineage`] |
//!
//! ```
//! use dolly_core::{GenerateOptions, Instruction, Pipeline};
//!
//! let pipe = Pipeline::from_pretrained("dolly-nano")?; // a hub id, a directory, a .gguf file
//! let question = Instruction::new("When was Dolly born?").context("Dolly was born in 1996.");
//! let options = GenerateOptions { max_new_tokens: 16, seed: Some(1), ..Default::default() };
//! let answer = pipe.generate(question, &options)?;
//! assert!(answer.usage.completion_tokens <= 16);
//! # Ok::<(), dolly_core::Error>(())
//! ```
//!
//! # Features
//!
//! None is on by default: the crate then runs on the CPU and never asks the network.
//!
//! - `hf-hub`: download models from a hub that speaks the Hugging Face protocol.
//! - `parquet`: read instruction data from Parquet files.
//! - `candle`: the reference backend on candle tensors ([`PipelineBuilder::reference`]).
//! - `cuda`: NVIDIA GPUs through candle ([`Device::Cuda`]); needs nvcc to build.
//!
//! # Promises
//!
//! - No input crashes the process: files, prompts and options give a typed [`Error`].
//! - User text is data: it never becomes a framing token of the prompt ([`PromptMode::Safe`]).
//! - A request gives the same tokens alone, in a batch, streamed, and on any number of threads.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
pub mod dataset;
pub mod generate;
pub mod kernels;
pub mod model;
mod pipeline;
pub mod prompt;
pub mod provenance;
pub mod source;
pub mod tokenizer;
pub mod train;
pub mod weights;

mod error;
mod hex;
mod json;
mod options;

pub use backend::CacheFormat;
pub use dataset::Dataset;
pub use error::{Error, ErrorKind, Result};
pub use generate::{
    ClassProbability, FinishReason, Generation, Score, Timings, TokenLogprob, Usage,
};
pub use model::{Config, LoadProgress};
pub use options::{CancelToken, GenerateOptions, PromptMode, PromptOverflow};
pub use pipeline::{
    ConvertOptions, Device, FileFormat, MemoryUse, Pipeline, PipelineBuilder, Prompt,
    RequestOptions, Stream, StreamEvent, convert, convert_with, merge_adapter,
};
pub use prompt::Instruction;
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::{WeightFormat, WriteProgress};

/// The README's Rust blocks, run as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
