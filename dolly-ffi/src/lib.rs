//! The C ABI of dolly: `include/dolly.h` is generated from this crate, one file a topic.
//!
//! The conventions every function follows stand at the top of the header (`cbindgen.toml`).
//! Functions here convert and forward; what a call does is decided in `dolly-core`.
//!
//! How a call runs: `guard` catches panics and turns a failure into a status and, where the caller
//! asked for one, an error object; `pointers` checks every pointer and length before reading;
//! `handle` looks handles up in a table, so no handle of a caller is ever dereferenced.
#![allow(unsafe_code, reason = "a C ABI reads the caller's pointers")]
#![allow(non_camel_case_types, reason = "types carry the names they have in C")]
#![allow(
    clippy::missing_safety_doc,
    reason = "one contract for all functions, at the top of the header: pointers are valid for \
              their lengths or NULL where the header allows it"
)]
#![allow(
    clippy::too_many_arguments,
    reason = "each text is two parameters in C: pointer and length"
)]

#[cfg(panic = "abort")]
compile_error!(
    "dolly-ffi needs panic = \"unwind\": panics are caught at the C boundary and become \
     DOLLY_STATUS_PANIC"
);
#[cfg(not(target_pointer_width = "64"))]
compile_error!("dolly-ffi needs 64-bit pointers: a handle holds a type, a generation and an index");

pub mod batch;
pub mod buffer;
pub mod cancel;
pub mod error;
pub mod generate;
pub mod loader;
pub mod options;
pub mod pipeline;
pub mod result;
pub mod score;
pub mod status;
pub mod stream;
pub mod tokenizer;
pub mod version;

mod bundled;
mod guard;
mod handle;
mod pointers;
mod text;
