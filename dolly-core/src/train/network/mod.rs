//! The network's forward and backward pass over f32 buffers.
