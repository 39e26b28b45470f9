//! When memory that was taken out of a shared table may be used again (quiescent-state-based reclamation).
//!
//! Readers of lock-free tables hold no lock and write nothing per packet. Each has a seat; between two turns of its
//! loop, when it holds no reference into any table, it notes the epoch that it sees. Who takes something out of a
//! table advances the epoch *afterwards*; once every seat has noted that epoch or is away, nobody can hold what was
//! taken out: a seat that noted it has looked since, and found it gone (its acquiring load of the epoch comes after
//! the removal).
#![forbid(unsafe_code)]

use super::atomic::{AtomicU64, Ordering, fence};
use crossbeam_utils::CachePadded;

/// Epoch of a seat whose owner holds nothing and looks at nothing.
const AWAY: u64 = u64::MAX;

/// The epoch and the seats.
pub struct Epochs {
    current: CachePadded<AtomicU64>,
    seats: Box<[CachePadded<AtomicU64>]>,
}

impl Epochs {
    /// With seats numbered from 0, all away.
    pub fn new(seats: usize) -> Self {
        Self {
            current: CachePadded::new(AtomicU64::new(1)),
            seats: (0..seats).map(|_| CachePadded::new(AtomicU64::new(AWAY))).collect(),
        }
    }

    /// Number of seats.
    pub fn seats(&self) -> usize {
        self.seats.len()
    }

    /// The owner of `seat` is about to look at tables.
    #[cold]
    pub fn arrive(&self, seat: usize) {
        self.seats[seat].store(self.current.load(Ordering::Acquire), Ordering::Relaxed);
        // Either who reclaims sees the seat taken, or its owner's first look sees what was removed before.
        fence(Ordering::SeqCst);
    }

    /// The owner of `seat` holds no reference and will take none before it calls [`Epochs::arrive`].
    #[cold]
    pub fn leave(&self, seat: usize) {
        self.seats[seat].store(AWAY, Ordering::Release);
    }

    /// The owner of `seat` holds no reference at this moment. To be called once a turn.
    #[inline]
    pub fn quiesce(&self, seat: usize) {
        let current = self.current.load(Ordering::Acquire);
        let seat = &self.seats[seat];
        if seat.load(Ordering::Relaxed) != current {
            seat.store(current, Ordering::Release);
        }
    }

    /// Begins an epoch, to be called after something was removed; the epoch to ask [`Epochs::passed`] about.
    pub fn advance(&self) -> u64 {
        let epoch = self.current.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        epoch
    }

    /// Whether nobody can hold what was removed before `epoch` began.
    pub fn passed(&self, epoch: u64) -> bool {
        // An acquiring load of each: what its owner did before comes before what the caller does next.
        self.seats.iter().all(|seat| seat.load(Ordering::Acquire) >= epoch)
    }
}
