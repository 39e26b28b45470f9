//! Workers, and the counters of ports.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Counters;
use crate::config::{Name, Poll};

/// The workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerList {
    /// Whether their counters start again at zero after this answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
}

/// What ports counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsShow {
    /// Of this port only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
}

/// A queue of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRef {
    /// The port.
    pub port: Name,
    /// Receive queue, counted from 0.
    pub queue: u16,
}

/// A worker. Its counters run since the start or the last reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Number, counted from 0.
    pub id: usize,
    /// The core that it is bound to; `null` when it is bound to none.
    pub core: Option<usize>,
    /// How it polls.
    pub poll: Poll,
    /// The queues that it receives from.
    pub queues: Vec<QueueRef>,
    /// Frames received.
    pub packets: u64,
    /// Polls that brought at least one frame.
    pub batches: u64,
    /// Processor cycles in such polls, divided by the frames; 0 before the first frame.
    pub busy_cycles_per_packet: f64,
    /// Share of its time without work, polling in vain or asleep: 0 to 1.
    pub idle_share: f64,
}

/// What a port counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStats {
    /// The port.
    pub port: Name,
    /// Into the switch.
    pub rx: Counters,
    /// Out of the switch.
    pub tx: Counters,
}
