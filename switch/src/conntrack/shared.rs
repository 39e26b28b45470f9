//! What the tables of both families share: limits, how much of them is used, timeouts and counters.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_utils::CachePadded;

use super::balance::Balancer;
use super::keeper::Keeper;
use super::timeouts::Timeouts;
use crate::stats::Counter;
use crate::worker::epoch::Epochs;

/// Most connections, of all ports, of one port, and half-open ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in all; at most what the tables were made for.
    pub entries: u32,
    /// Entries that came in by one port.
    pub per_port: u32,
    /// TCP connections that are not established yet.
    pub half_open: u32,
}

impl Limits {
    /// The limits for a table of `entries`: half of it for one port, a quarter for what is half-open.
    pub fn of(entries: u32) -> Self {
        Self { entries, per_port: (entries / 2).max(1), half_open: (entries / 4).max(1) }
    }
}

/// Why a connection was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// One of its keys is in use: another connection has this tuple, or somebody else has just entered this one.
    Exists,
    /// Somebody else holds a lock; the next packet will do.
    Busy,
    /// The table is full, and nothing in reach could be dropped.
    Full,
    /// The port has as many connections as it may have.
    PortQuota,
    /// There are as many half-open connections as there may be.
    HalfOpen,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// What a worker counted. Names as `conntrack -S` has them, where it has the thing.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $field: Counter,)*
        }

        impl Counters {
            /// Names and values.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field.get()),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Connections entered.
    insert,
    /// Connections not entered since one of their keys was in use.
    insert_failed,
    /// Connections not entered for lack of room.
    drop,
    /// Unassured connections that were dropped to make room.
    early_drop,
    /// Packets that fit no connection and cannot begin one, or do not fit theirs.
    invalid,
    /// Packets of new connections not handled since a lock was held for long.
    busy,
    /// Connections refused since their port had too many.
    port_quota,
    /// Connections refused since too many were half-open.
    half_open_limit,
    /// Connections that ended by their timeout.
    expired,
    /// Connections removed by command.
    delete,
    /// Connections that belong to another one.
    related,
}

/// Limits, usage, timeouts, counters.
pub struct Shared {
    /// The timeouts in force.
    pub timeouts: Timeouts,
    /// Whether a connection may be entered in its midst, as after a restart (`nf_conntrack_tcp_loose`).
    pub loose: AtomicBool,
    pub(super) epochs: Arc<Epochs>,
    pub(super) balancer: OnceLock<Arc<dyn Balancer>>,
    pub(super) keeper: Keeper,
    pub(super) capacity: u32,
    entries: AtomicU32,
    per_port: AtomicU32,
    half_open: AtomicU32,
    count: CachePadded<AtomicU32>,
    half_open_count: CachePadded<AtomicU32>,
    ports: Box<[AtomicU32]>,
    /// One set per worker, and the control thread's.
    counters: Box<[CachePadded<Counters>]>,
}

impl Shared {
    pub(super) fn new(capacity: u32, ports: usize, epochs: Arc<Epochs>) -> Self {
        let limits = Limits::of(capacity);
        Self {
            timeouts: Timeouts::default(),
            loose: AtomicBool::new(true),
            balancer: OnceLock::new(),
            keeper: Keeper::default(),
            capacity,
            entries: AtomicU32::new(limits.entries),
            per_port: AtomicU32::new(limits.per_port),
            half_open: AtomicU32::new(limits.half_open),
            count: CachePadded::default(),
            half_open_count: CachePadded::default(),
            ports: (0..ports).map(|_| AtomicU32::new(0)).collect(),
            counters: (0..epochs.seats()).map(|_| CachePadded::default()).collect(),
            epochs,
        }
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        let [entries, per_port, half_open] =
            [&self.entries, &self.per_port, &self.half_open].map(|limit| limit.load(Ordering::Relaxed));
        Limits { entries, per_port, half_open }
    }

    /// Changes the limits; no connection ends for it. `entries` beyond the capacity is cut.
    pub fn set_limits(&self, limits: Limits) {
        self.entries.store(limits.entries.min(self.capacity), Ordering::Relaxed);
        self.per_port.store(limits.per_port, Ordering::Relaxed);
        self.half_open.store(limits.half_open, Ordering::Relaxed);
    }

    /// The most entries that the limit may be set to.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Entries of both families.
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Half-open connections.
    pub fn half_open(&self) -> u32 {
        self.half_open_count.load(Ordering::Relaxed)
    }

    /// Entries that came in by a port.
    pub fn port_count(&self, port: u16) -> u32 {
        self.ports.get(usize::from(port)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The counters of a worker, or of the control thread, which has the last seat.
    #[inline]
    pub fn counters(&self, seat: usize) -> &Counters {
        &self.counters[seat]
    }

    /// Sums over all seats, by name.
    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        let mut totals: Vec<(&'static str, u64)> = Vec::new();
        for set in &self.counters {
            for (at, (name, value)) in set.list().enumerate() {
                match totals.get_mut(at) {
                    Some((_, total)) => *total += value,
                    None => totals.push((name, value)),
                }
            }
        }
        totals
    }

    /// Takes a place for an entry of `port`, or says which limit forbids it. Half-open ones are counted apart.
    pub(super) fn reserve(&self, port: u16) -> Result<(), Refused> {
        if let Some(count) = self.ports.get(usize::from(port))
            && count.fetch_add(1, Ordering::Relaxed) >= self.per_port.load(Ordering::Relaxed)
        {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Refused::PortQuota);
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.entries.load(Ordering::Relaxed) {
            self.release(port);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Gives back a place.
    pub(super) fn release(&self, port: u16) {
        if let Some(count) = self.ports.get(usize::from(port)) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn reserve_half_open(&self) -> Result<(), Refused> {
        if self.half_open_count.fetch_add(1, Ordering::Relaxed) >= self.half_open.load(Ordering::Relaxed) {
            self.release_half_open();
            return Err(Refused::HalfOpen);
        }
        Ok(())
    }

    /// A connection became half-open again; no limit applies.
    pub(super) fn count_half_open(&self) {
        self.half_open_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn release_half_open(&self) {
        self.half_open_count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_exact() {
        let shared = Shared::new(10, 4, Arc::new(Epochs::new(2)));
        assert_eq!(shared.limits(), Limits { entries: 10, per_port: 5, half_open: 2 });
        for _ in 0..5 {
            assert_eq!(shared.reserve(1), Ok(()));
        }
        assert_eq!(shared.reserve(1), Err(Refused::PortQuota));
        assert_eq!((shared.count(), shared.port_count(1)), (5, 5));
        shared.set_limits(Limits { entries: 100, per_port: 100, half_open: 1 });
        assert_eq!(shared.limits().entries, 10, "the table was made for so many");
        for _ in 0..5 {
            assert_eq!(shared.reserve(2), Ok(()));
        }
        assert_eq!(shared.reserve(2), Err(Refused::Full));
        assert_eq!((shared.count(), shared.port_count(2)), (10, 5));
        shared.release(1);
        assert_eq!(shared.reserve(2), Ok(()));
        assert_eq!(shared.reserve_half_open(), Ok(()));
        assert_eq!((shared.reserve_half_open(), shared.half_open()), (Err(Refused::HalfOpen), 1));
    }

    #[test]
    fn totals_add_up() {
        let shared = Shared::new(10, 4, Arc::new(Epochs::new(2)));
        shared.counters(0).early_drop.add(2);
        shared.counters(1).early_drop.add(3);
        assert!(shared.totals().contains(&("early_drop", 5)));
    }
}
