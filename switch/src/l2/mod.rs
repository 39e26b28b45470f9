//! Layer 2: which ports a frame leaves by.

pub mod ageing;
pub mod fdb;
