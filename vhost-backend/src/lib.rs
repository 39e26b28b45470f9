//! vhost-user sessions, guest memory and virtio rings for a userspace switch.
//!
//! Nothing in this crate knows what an IP address is. From the bottom up:
//! [`net_header`] and [`frame`] say what a frame is; [`memory`] maps what a guest shares, guarded by [`sigbus`];
//! [`ring`] moves frames between it and the switch, telling [`dirty`] what it writes; [`device`] is a port's vhost-user side as a whole, with the
//! control thread that listens or connects and speaks the protocol.

// Virtio is little-endian, and the rings read guest memory in place.
#[cfg(target_endian = "big")]
compile_error!("vhost-backend supports little-endian machines only");

mod ahead;
pub mod device;
pub mod dirty;
mod eventfd;
pub mod features;
pub mod frame;
pub mod handover;
mod inflight;
mod mapping;
pub mod memory;
pub mod net_header;
pub mod ring;
mod session;
mod shared;
pub mod sigbus;
mod socket;
