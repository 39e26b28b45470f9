//! How the control thread knows which snapshot a worker uses.
//!
//! Snapshots are numbered. Who publishes stores one and then its number; a worker that sees the number sees the snapshot,
//! or a newer one. It notes the number when it uses nothing older any more; who reads that note sees all that the worker
//! did before. So a queue that one worker has let go of may be given to another: see `switch/publish.rs`.
#![forbid(unsafe_code)]

use super::atomic::{AtomicU64, Ordering};

/// The number of the newest snapshot.
#[derive(Default)]
pub struct Newest(AtomicU64);

impl Newest {
    /// Says that there is a new snapshot, after it was stored; its number.
    pub fn raise(&self) -> u64 {
        self.0.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The newest number.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The number of the snapshot that a worker uses.
#[derive(Default)]
pub struct Adopted(AtomicU64);

impl Adopted {
    /// Whether that is another one; for the worker itself.
    #[inline]
    pub fn differs(&self, newest: u64) -> bool {
        self.0.load(Ordering::Relaxed) != newest
    }

    /// The worker uses nothing older any more.
    pub fn note(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }

    /// Whether the worker uses this one or a newer one.
    pub fn has(&self, number: u64) -> bool {
        self.0.load(Ordering::Acquire) >= number
    }
}
