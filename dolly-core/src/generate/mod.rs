//! From logits to text: sampling, stopping, and the engine that shares steps between requests.

mod processors;
pub mod sampler;
mod select;
pub mod stop;
