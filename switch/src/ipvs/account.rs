//! What a service shares with its servers, also with those that were deleted while they had connections: who it is,
//! the settings of its scope, counters, and the board on which servers post that their numbers changed.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::schedulers::board::Board;
use super::settings::Settings;
use super::spec::ServiceKey;

/// The counters of a service or server, as `--stats` prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients, of layer 3.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
}

impl Totals {
    fn fields(self) -> [u64; 5] {
        [self.connections, self.in_packets, self.out_packets, self.in_bytes, self.out_bytes]
    }

    fn of([connections, in_packets, out_packets, in_bytes, out_bytes]: [u64; 5]) -> Self {
        Self { connections, in_packets, out_packets, in_bytes, out_bytes }
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let (a, b) = (self.fields(), other.fields());
        Self::of(std::array::from_fn(|at| a[at].wrapping_add(b[at])))
    }

    /// What is above `other`.
    #[must_use]
    pub fn above(self, other: Self) -> Self {
        let (a, b) = (self.fields(), other.fields());
        Self::of(std::array::from_fn(|at| a[at].saturating_sub(b[at])))
    }
}

/// Counters that all workers add to, now and then: the packets of a connection are counted with the connection and
/// added here when it ends.
#[derive(Debug, Default)]
pub struct Stats {
    sums: [AtomicU64; 5],
    /// What the sums were when they were last zeroed (`-Z`).
    zeroed: [AtomicU64; 5],
}

impl Stats {
    /// Counts a connection.
    #[inline]
    pub fn connection(&self) {
        self.sums[0].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds to all counters.
    pub fn add(&self, more: Totals) {
        for (sum, more) in self.sums.iter().zip(more.fields()) {
            if more != 0 {
                sum.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// The counters since they were last zeroed; `live` is what connections have counted that was not added yet.
    pub fn totals(&self, live: Totals) -> Totals {
        self.sums().plus(live).above(Totals::of(load(&self.zeroed)))
    }

    /// The counters since ever, as far as they were added.
    pub fn sums(&self) -> Totals {
        Totals::of(load(&self.sums))
    }

    /// The sums since ever, and what they were when they were last zeroed: for another process.
    pub fn export(&self) -> [[u64; 5]; 2] {
        [load(&self.sums), load(&self.zeroed)]
    }

    /// Adds what [`Stats::export`] told.
    pub fn restore(&self, kept: [[u64; 5]; 2]) {
        for (cells, words) in [&self.sums, &self.zeroed].into_iter().zip(kept) {
            for (cell, word) in cells.iter().zip(words) {
                cell.fetch_add(word, Ordering::Relaxed);
            }
        }
    }

    /// Counts from here on; `live` as in [`Self::totals`].
    pub fn zero(&self, live: Totals) {
        for (zeroed, sum) in self.zeroed.iter().zip(self.sums().plus(live).fields()) {
            zeroed.store(sum, Ordering::Relaxed);
        }
    }
}

fn load(words: &[AtomicU64; 5]) -> [u64; 5] {
    std::array::from_fn(|at| words[at].load(Ordering::Relaxed))
}

/// What a service and its servers share.
#[derive(Debug)]
pub struct Account {
    key: ServiceKey,
    settings: Arc<Settings>,
    /// The service's counters.
    pub stats: Stats,
    pub(super) board: Board,
}

impl Account {
    pub(super) fn new(key: ServiceKey, settings: Arc<Settings>) -> Self {
        Self { key, settings, stats: Stats::default(), board: Board::default() }
    }

    /// What the service is known by.
    pub fn key(&self) -> ServiceKey {
        self.key
    }

    /// The settings of its scope.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
