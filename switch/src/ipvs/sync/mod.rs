//! Connections of a director are told to another one, so that it can go on with them: the sync daemon of Linux IPVS,
//! master and backup, with its messages of version 1.
#![forbid(unsafe_code)]

pub mod message;
pub mod spec;

pub use spec::{DaemonConfig, DaemonError, DaemonSpec, Role, SyncSettings};
