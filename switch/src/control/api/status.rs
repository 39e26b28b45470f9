//! The daemon as a whole.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Poll;

/// What the daemon is and how it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusShow {}

/// Hand everything over to a new process, which goes on in the place of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonUpgrade {
    /// The program to start, by an absolute path; the daemon's own again if there is none. Only root and the daemon's
    /// own user may name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The new process.
    pub pid: u32,
    /// For how many microseconds no packet was carried.
    pub pause_microseconds: u64,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Number of workers.
    pub workers: usize,
    /// Number of ports.
    pub ports: usize,
    /// Number of bridges.
    pub bridges: usize,
    /// How workers poll.
    pub poll: Poll,
    /// Number of interfaces.
    pub interfaces: usize,
    /// Number of routes, connected ones among them.
    pub routes: usize,
    /// What the host still lacks to be the way out: commands for its shell, to be given by root. Empty when nothing is
    /// missing, and when no route leads to a TAP device of the host.
    pub host_commands: Vec<String>,
    /// What is not as it should be: things that could not be made at the start, a state file that was damaged, changes
    /// that cannot be saved; one line each.
    #[serde(default)]
    pub problems: Vec<String>,
}
