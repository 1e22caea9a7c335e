//! The CPU backend: own kernels over plain buffers.
