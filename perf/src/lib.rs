//! Traffic generator, benchmark beside the peers, and instruction-count gates of shunt.
//!
//! [`guest`] is a vhost-user frontend with a virtio-net driver, for the generator and for functional tests alike.
//! [`generate`] makes traffic with it, [`flows`] many flows, [`peers`] are the switches that are compared, [`bench`] compares them.
//! [`bridge`] and [`gates`] serve the instruction-count gates.

pub mod bench;
pub mod bridge;
pub mod clock;
pub mod flows;
pub mod frames;
pub mod gates;
pub mod generate;
pub mod guest;
pub mod peers;
pub mod router;
pub mod tracker;
