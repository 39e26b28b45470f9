//! What others tell the owner of an entry: "look at this one". Bounded, never waited for.
//!
//! Many threads post, one takes. A full box refuses: whoever posts knows what that means for the entry.
#![forbid(unsafe_code)]

use crossbeam_utils::CachePadded;

use super::MESSAGES as SIZE;
use super::atomic::{AtomicU32, Ordering};

/// The box of one worker.
pub(super) struct Inbox {
    /// Numbers plus 1; 0 is empty.
    messages: Box<[AtomicU32]>,
    posted: CachePadded<AtomicU32>,
    taken: CachePadded<AtomicU32>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            messages: (0..SIZE).map(|_| AtomicU32::new(0)).collect(),
            posted: CachePadded::new(AtomicU32::new(0)),
            taken: CachePadded::new(AtomicU32::new(0)),
        }
    }

    /// Posts a number below `u32::MAX`; false if the box is full.
    pub(super) fn post(&self, number: u32) -> bool {
        let mut at = self.posted.load(Ordering::Relaxed);
        loop {
            // Acquire: a place that was taken is empty for certain.
            let waiting = at.wrapping_sub(self.taken.load(Ordering::Acquire));
            if waiting.cast_signed() < 0 {
                // Others have posted since we looked, and the owner has taken it already: this is not a full box.
                at = self.posted.load(Ordering::Relaxed);
                continue;
            }
            if waiting >= SIZE {
                return false;
            }
            match self.posted.compare_exchange_weak(
                at,
                at.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(other) => at = other,
            }
        }
        self.messages[(at % SIZE) as usize].store(number + 1, Ordering::Release);
        true
    }

    /// Takes the oldest number. For the owner alone.
    #[inline]
    pub(super) fn take(&self) -> Option<u32> {
        let at = self.taken.load(Ordering::Relaxed);
        let cell = &self.messages[(at % SIZE) as usize];
        let number = cell.load(Ordering::Acquire).checked_sub(1)?;
        cell.store(0, Ordering::Relaxed);
        self.taken.store(at.wrapping_add(1), Ordering::Release);
        Some(number)
    }
}
