//! vhost-user sessions, guest memory and virtio rings for a userspace switch.
//!
//! Nothing in this crate knows what an IP address is. From the bottom up:
//! [`net_header`] and [`frame`] say what a frame is; [`memory`] maps what a guest shares, guarded by [`sigbus`].

pub mod frame;
pub mod memory;
pub mod net_header;
pub mod sigbus;
