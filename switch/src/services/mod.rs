//! What the switch serves its guests beside their packets: addresses (DHCPv4, router advertisements) and the
//! announcement of its own.
//!
//! Workers hand over the few frames that [`wants`] picks, through a bounded [`mailbox`]; one thread ([`Services`])
//! answers them and keeps the timers. Protocols are pure state machines ([`dhcp::Server`], [`ra::Advertiser`]) that
//! know neither threads nor clocks.
#![forbid(unsafe_code)]

pub mod dhcp;
pub mod mailbox;
mod packet;
pub mod ra;
mod thread;

pub use packet::wants;
pub use thread::{KeptLease, Notice, Served, Services};
