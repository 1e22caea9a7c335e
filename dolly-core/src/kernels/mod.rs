//! The unsafe room: vector kernels, chosen at run time, behind safe slice functions.
