//! What the switch knows about the bytes of a frame: addresses, headers, checksums, segmentation, the MTU.
//!
//! Everything here works on private copies (a frame's snapshot, a worker's scratch buffer), does no I/O, and is
//! total: bytes come from guests, so malformed input is an error value, never a panic. [`validate`] runs at ingress
//! and makes the offload metadata of a frame trustworthy; [`offload`] does at egress what the receiver did not
//! negotiate; [`fits`] says what is too long for a port.
#![forbid(unsafe_code)]

pub mod checksum;
mod datagram;
pub mod embedded;
pub mod ethernet;
pub mod headers;
pub mod ip;
mod mtu;
pub mod offload;
pub mod ordinary;
pub mod rewrite;
pub mod sctp;
mod segment;
#[cfg(test)]
pub(crate) mod testing;
pub mod tunnel;
pub mod tuple;
mod validate;

pub use mtu::fits;
pub use validate::{BadOffload, MAX_DATAGRAMS, MAX_SEGMENTS, MIN_GSO_SIZE, validate};
