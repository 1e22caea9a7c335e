//! The unsafe room: vector kernels, chosen at run time, behind safe slice functions.
//!
//! Four layers, each knowing only the one below:
//!
//! 1. bodies written once over sixteen abstract lanes ([`vector`], [`tile`], [`rows`],
//!    [`math`]), and integer products per instruction set ([`quant`], [`k_quant`], `avx2_quant`,
//!    `avx2_k_quant`, `avx2_unpacked`, `avx512_quant`) and of bf16 (`avx512_bf16`);
//! 2. the lanes of an instruction set ([`portable`], `avx2`, `avx512`);
//! 3. a table of functions compiled with that set's features ([`table`]), handed out only where the
//!    CPU has them;
//! 4. safe functions over slices that check lengths in release builds, and the drivers that split
//!    work among threads ([`linear`], [`attention`], [`pool`]).
//!
//! One promise shapes all of it: an output element is computed by the same operations in the same
//! order whatever rows, threads, chunks or batch it is computed with, so results are bit-identical.
#![allow(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "constant bounds over several arrays at once: what the compiler unrolls into registers"
)]

pub(crate) mod arena;
pub(crate) mod attention;
pub(crate) mod attention_gradient;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_k_quant;
#[cfg(target_arch = "x86_64")]
mod avx2_quant;
#[cfg(target_arch = "x86_64")]
mod avx2_unpacked;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(all(miri, target_arch = "x86_64"))]
mod avx512_miri;
#[cfg(target_arch = "x86_64")]
mod avx512_quant;
pub(crate) mod buffer;
pub(crate) mod embedding;
pub(crate) mod gradient;
mod k_quant;
pub(crate) mod linear;
mod math;
pub(crate) mod matmul;
pub(crate) mod pack;
pub(crate) mod pool;
mod portable;
mod quant;
mod rows;
mod table;
mod tile;
mod vector;

#[cfg(test)]
mod tests;

pub(crate) use table::Kernels;
#[cfg(test)]
use vector::LANES;
