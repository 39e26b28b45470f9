//! Counters: one writer each, summed by whoever reads.
//!
//! Every port has a set per worker, on cache lines of its own; a worker adds with a plain load and store, which is
//! sound because nobody else writes that set, and atomic because the control thread reads meanwhile.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::drops::{DropReason, REASONS};

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The present value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The most that a number has been. One thread raises it; who sets it back may miss what is raised at that moment.
#[derive(Debug, Default)]
pub struct Maximum(AtomicU64);

impl Maximum {
    /// Raises it to `n`; only the owning thread may.
    #[inline]
    pub fn raise(&self, n: u64) {
        if n > self.0.load(Ordering::Relaxed) {
            self.0.store(n, Ordering::Relaxed);
        }
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// What a receive queue of a port cost, whichever worker had it. Written by the worker that has it at the moment: the
/// next one begins after it has let go.
#[derive(Debug)]
pub struct QueueCounters {
    /// Frames received.
    pub packets: Counter,
    /// Cycles of polls that found frames, from fetching to giving back.
    pub busy_cycles: Counter,
    /// The lane in which its frames leave, [`NO_LANE`] before its first worker chose one: see `worker/poll.rs`.
    pub lane: AtomicU16,
}

/// No lane has been chosen.
pub const NO_LANE: u16 = u16::MAX;

impl Default for QueueCounters {
    fn default() -> Self {
        let (packets, busy_cycles) = (Counter::default(), Counter::default());
        Self { packets, busy_cycles, lane: AtomicU16::new(NO_LANE) }
    }
}

/// One direction of a port.
#[derive(Debug)]
pub struct Direction {
    /// Frames; a GSO frame counts as one.
    pub packets: Counter,
    /// Bytes from the Ethernet header on.
    pub bytes: Counter,
    drops: [Counter; REASONS],
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            packets: Counter::default(),
            bytes: Counter::default(),
            drops: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Direction {
    /// Counts `n` frames dropped for `reason`.
    #[inline]
    pub fn drop(&self, reason: DropReason, n: u64) {
        if n > 0 {
            self.drops[reason as usize].add(n);
        }
    }
}

impl Direction {
    /// Adds what was counted elsewhere; drops for reasons that are unknown here are left out. For who alone counts here.
    pub fn restore(&self, packets: u64, bytes: u64, drops: &BTreeMap<String, u64>) {
        self.packets.add(packets);
        self.bytes.add(bytes);
        for &reason in DropReason::ALL {
            self.drop(reason, drops.get(reason.name()).copied().unwrap_or(0));
        }
    }
}

/// What one worker counted for one port. `rx` is what came in by the port, `tx` what left by it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Into the switch.
    pub rx: Direction,
    /// Out of the switch.
    pub tx: Direction,
}

/// A direction's sums over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Drops by reason; reasons that never happened are left out.
    pub drops: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Drops whose reason is a fault.
    pub fn errors(&self) -> u64 {
        let faults = DropReason::ALL.iter().filter(|reason| reason.is_fault());
        faults.filter_map(|reason| self.drops.get(reason.name())).sum()
    }

    /// Adds `n` frames dropped for `reason`.
    pub fn dropped(&mut self, reason: DropReason, n: u64) {
        if n > 0 {
            *self.drops.entry(reason.name()).or_default() += n;
        }
    }
}

/// Sums one direction over the workers' sets.
pub fn total(sets: &[CachePadded<PortCounters>], side: impl Fn(&PortCounters) -> &Direction) -> Totals {
    let mut totals = Totals::default();
    for set in sets {
        let direction = side(set);
        totals.packets += direction.packets.get();
        totals.bytes += direction.bytes.get();
        for &reason in DropReason::ALL {
            totals.dropped(reason, direction.drops[reason as usize].get());
        }
    }
    totals
}
