//! Connection tracking: every conversation that passes has an entry that decides for all of its packets.
//!
//! The order of reading: a packet's [`key`] is hashed, the [`index`] tells where its half of the connection is, an
//! [`entry`]'s half says what becomes of the packet; a [`table`] is these together. What only some packets need:
//! [`track`] follows the states ([`state`], [`tcp`], [`timeouts`]), an [`owner`] enters and ends connections
//! ([`wheel`], [`inbox`]) within the limits that both families [`shared`].
//!
//! Workers share the tables. Nothing here blocks, allocates or calls the system per packet or per connection.
#![forbid(unsafe_code)]

pub mod adopt;
pub mod balance;
pub mod entry;
pub mod expect;
pub mod format;
pub mod ftp;
pub mod handover;
mod inbox;
mod index;
mod keeper;
pub mod key;
mod listing;
mod marks;
pub mod owner;
pub mod record;
pub mod sequence;
pub mod shared;
pub mod state;
pub mod table;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod timeouts;
pub mod track;
mod wheel;

use std::sync::{Arc, Mutex};
// The index and the inbox take their atomics from here, so that their test can put others in their place.
use std::sync::atomic;
use std::sync::atomic::AtomicU64;

use zerocopy::FromZeros;

pub use entry::{Flags, Half, NextHop};
pub use key::{Compact, Family, Key, Key4, Key6, V4, V6};
pub use owner::{NewConnection, Owner};
pub use record::{Filter, Protocol, Record};
pub use shared::{Counters, Limits, Refused, Shared};
pub use state::{Phase, State};
pub use table::{Ref, Table};
pub use timeouts::{Timeout, Timeouts};
pub use track::{Begun, Fate, Packet};

use crate::worker::epoch::Epochs;

/// Words of a bucket of the index: a cache line.
const WAYS: usize = 8;
/// Spin flags that writers of the index exclude each other by.
const STRIPES: usize = 4096;
/// How often one is tried.
const LOCK_TRIES: usize = 200;
/// Messages that an inbox has room for.
const MESSAGES: u32 = 4096;

/// A bucket of the index.
#[derive(FromZeros)]
#[repr(C, align(64))]
struct Bucket([AtomicU64; WAYS]);

type Buckets = crate::memory::Pages<Bucket>;

fn new_buckets(count: usize) -> Buckets {
    Buckets::new(count)
}

fn prepare_buckets(buckets: &[Bucket]) {
    table::make_ready(buckets, |bucket| {
        bucket.0[0].fetch_or(0, atomic::Ordering::Relaxed);
    });
}

/// The tables of both families.
pub struct Conntrack {
    /// Connections of IPv4.
    pub v4: Table<V4>,
    /// Connections of IPv6.
    pub v6: Table<V6>,
    /// Limits, timeouts and counters.
    pub shared: Arc<Shared>,
    /// Connections that others announced.
    pub expectations: expect::Expectations,
    /// Held while the control thread has its seat.
    control: Mutex<()>,
}

impl Conntrack {
    /// Tables for `capacity` connections in all, entered by the workers 0 to `workers` - 1 from ports below `ports`.
    /// In `epochs` each worker has the seat of its number, and the control thread the one behind them.
    pub fn new(capacity: u32, workers: usize, ports: usize, epochs: Arc<Epochs>) -> Self {
        let shared = Arc::new(Shared::new(capacity, ports, epochs));
        Self {
            v4: Table::new(workers, shared.clone()),
            v6: Table::new(workers, shared.clone()),
            shared,
            expectations: expect::Expectations::default(),
            control: Mutex::new(()),
        }
    }

    /// The table of a family.
    #[inline(always)]
    pub fn table<F: Family>(&self) -> &Table<F> {
        F::table(self)
    }

    /// Makes memory ready that will be needed soon; see [`keeper`].
    pub fn prepare(&self) {
        self.v4.prepare();
        self.v6.prepare();
    }
}

/// A worker's own part: the connections that it entered.
pub struct Local {
    v4: Owner<V4>,
    v6: Owner<V6>,
}

impl Local {
    /// For the worker of this number, below 255, once.
    pub fn new(worker: usize) -> Self {
        let worker = worker as u8;
        Self { v4: Owner::new(worker), v6: Owner::new(worker) }
    }

    /// The part of a family.
    #[inline(always)]
    pub fn owner<F: Family>(&mut self) -> &mut Owner<F> {
        F::owner(self)
    }

    /// What is to be done once a turn, after [`Epochs::quiesce`], when the worker holds no [`Ref`]; and once a second
    /// by a worker that sleeps, unless [`Local::is_idle`]. Bounded: at worst some ten microseconds; true if that was not
    /// enough, so that the next turn had better come soon.
    #[inline]
    pub fn turn(&mut self, conntrack: &Conntrack, now: u32) -> bool {
        self.v4.turn(&conntrack.v4, now) | self.v6.turn(&conntrack.v6, now)
    }

    /// Whether a sleeping worker need not be woken for its connections.
    pub fn is_idle(&self) -> bool {
        self.v4.is_idle() && self.v6.is_idle()
    }
}
