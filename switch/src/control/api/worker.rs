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

parameters! {
    /// Queues spread anew over the workers, by what they cost of late. Pinned ones stay.
    pub struct WorkerRebalance {
        /// Only say what would be moved.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub dry_run: bool,
    }

    /// When that is done without being asked.
    pub struct WorkerSettings {}

    /// Changes that; what is left out stays.
    pub struct WorkerSet {
        /// Whether at all.
        pub auto: Option<bool>,
        /// Seconds from one look to the next.
        pub interval: Option<i64>,
        /// Percent of its time that the busiest worker must be busy at least.
        pub load_threshold: Option<i64>,
        /// Percent by which the variance of the workers' loads must become less at least.
        pub improvement_threshold: Option<i64>,
    }
}

/// When queues are spread anew without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSettingsList {
    /// Whether at all.
    pub auto: bool,
    /// Seconds from one look to the next.
    pub interval: u32,
    /// Percent of its time that the busiest worker must be busy at least.
    pub load_threshold: u32,
    /// Percent by which the variance of the workers' loads must become less at least.
    pub improvement_threshold: u32,
    /// How often that was done since the start.
    pub rebalanced: u64,
}

/// A queue that goes from one worker to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueMove {
    /// The port.
    pub port: Name,
    /// Receive queue, counted from 0.
    pub queue: u16,
    /// Number of the worker that had it.
    pub from: usize,
    /// Number of the worker that gets it.
    pub to: usize,
    /// The share of a worker's time that it took: 0 to 1.
    pub load: f64,
}

/// What was moved, or would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebalance {
    /// Whether it was done.
    pub done: bool,
    /// Seconds over which the loads were measured.
    pub window: f64,
    /// The queues, the costliest first.
    pub moves: Vec<QueueMove>,
    /// The share of its time that each worker spent on its queues: 0 to 1.
    pub before: Vec<f64>,
    /// What that will be if queues cost the same.
    pub after: Vec<f64>,
    /// Percent by which the variance of these shares becomes less.
    pub improvement: f64,
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRef {
    /// The port.
    pub port: Name,
    /// Receive queue, counted from 0.
    pub queue: u16,
    /// The share of the worker's time that it took of late: 0 to 1.
    pub load: f64,
    /// Whether it is tied to its worker.
    pub pinned: bool,
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
    /// Microseconds of its longest turn: for so long a frame may have waited for other queues, for a new configuration to
    /// be taken over, or for the processor.
    pub longest_turn_us: f64,
    /// Microseconds that it took at most to take a new configuration over.
    pub longest_update_us: f64,
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
