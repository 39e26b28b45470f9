//! How often a rule decided.
#![forbid(unsafe_code)]

use crossbeam_utils::CachePadded;

use crate::stats::Counter;

/// One worker's counters of one rule.
#[derive(Debug, Default)]
struct Set {
    packets: Counter,
    bytes: Counter,
    failed: Counter,
}

/// The counters of one rule, one set for each worker. They outlive the snapshots that count with them.
///
/// A rule is asked about the first packet of a connection, and about every packet of one that it refused.
#[derive(Debug)]
pub struct Hits(Box<[CachePadded<Set>]>);

/// The sums over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HitsTotal {
    /// Packets that the rule decided.
    pub packets: u64,
    /// Their bytes, as the caller measures them.
    pub bytes: u64,
    /// Packets that it should have translated and could not: all ports taken, no address.
    pub failed: u64,
}

impl Hits {
    /// Counters for `workers` workers, numbered from 0.
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| CachePadded::default()).collect())
    }

    fn set(&self, worker: usize) -> Option<&Set> {
        self.0.get(worker).map(|set| &**set)
    }

    /// Counts a decision; only the thread of this worker may. A number that is no worker's counts nothing.
    #[inline]
    pub(crate) fn hit(&self, worker: usize, bytes: u64) {
        if let Some(set) = self.set(worker) {
            set.packets.add(1);
            set.bytes.add(bytes);
        }
    }

    /// Counts a failure; only the thread of this worker may.
    #[cold]
    pub(crate) fn failure(&self, worker: usize) {
        if let Some(set) = self.set(worker) {
            set.failed.add(1);
        }
    }

    /// The sums.
    pub fn total(&self) -> HitsTotal {
        let sum = |pick: fn(&Set) -> &Counter| self.0.iter().map(|set| pick(set).get()).sum();
        HitsTotal {
            packets: sum(|set| &set.packets),
            bytes: sum(|set| &set.bytes),
            failed: sum(|set| &set.failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_strangers_ignored() {
        let hits = Hits::new(2);
        hits.hit(0, 60);
        hits.hit(1, 40);
        hits.hit(2, 1);
        hits.failure(1);
        assert_eq!(hits.total(), HitsTotal { packets: 2, bytes: 100, failed: 1 });
    }
}
