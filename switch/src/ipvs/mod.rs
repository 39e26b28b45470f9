//! Layer 4 balancing with the semantics of Linux IPVS.
#![forbid(unsafe_code)]

pub mod spec;
pub mod sync;
