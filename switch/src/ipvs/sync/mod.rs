//! Connections of a director are told to another one, so that it can go on with them: the sync daemon of Linux IPVS,
//! master and backup, with its messages of version 1.
//!
//! The bytes are [`message`]'s. A master's thread (`sender`) walks over all connections some times a second, and
//! [`timing`] says which to tell of; a backup's thread (`receiver`) hands on what it hears. Packets have no part in it.
//! Only connections of the global scope are told of. Whoever can send to a backup's port can make it believe anything
//! about connections: messages are neither signed nor encrypted, as in Linux, and belong on a network of their own.
#![forbid(unsafe_code)]

pub mod announced;
pub mod daemons;
pub mod live;
pub mod message;
mod receiver;
mod sender;
mod socket;
pub mod spec;
#[cfg(test)]
mod tests;
pub mod timing;

pub use announced::Announcements;
pub use daemons::{Adopted, Connections, Daemons};
pub use live::LiveConnections;
pub use spec::{DaemonConfig, DaemonError, DaemonSpec, Role, SyncSettings};
