//! Layer 3: what the switch does as a router and as a host of its own.
#![forbid(unsafe_code)]

pub mod arp;
pub mod checks;
pub mod compose;
pub mod fragment;
pub mod icmp;
pub mod interface;
pub mod limit;
pub mod nd;
pub mod reset;
pub mod route;
pub mod split;
