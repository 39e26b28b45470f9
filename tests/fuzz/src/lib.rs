//! What fuzzers do with arbitrary bytes, a module a target. Each `run` takes any bytes, and panics only where shunt
//! breaks a promise.
//!
//! The same targets are property tests on stable (`tests/fuzz/tests/`), from random bytes and from the corpora.
//! `make fuzz` runs them for long under libFuzzer. The rings' memory lies between bytes that nothing may change.

pub mod frame;
pub mod input;
pub mod memory;
pub mod request;
pub mod ring;
pub mod session;
