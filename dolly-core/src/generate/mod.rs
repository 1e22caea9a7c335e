//! From logits to text: sampling, stopping, and the engine that shares steps between requests.
