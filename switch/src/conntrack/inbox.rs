//! What others tell the owner of an entry: "look at this one". Bounded, never waited for.
//!
//! Many threads post, one takes. A full box refuses: whoever posts knows what that means for the entry.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_utils::CachePadded;

const SIZE: u32 = 4096;

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
            if at.wrapping_sub(self.taken.load(Ordering::Acquire)) >= SIZE {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_posted_is_taken_once_and_a_full_box_says_so() {
        let inbox = Inbox::new();
        for round in 0..3 {
            for n in 0..SIZE {
                assert!(inbox.post(n + round));
            }
            assert!(!inbox.post(1));
            for n in 0..SIZE {
                assert_eq!(inbox.take(), Some(n + round));
            }
            assert_eq!(inbox.take(), None);
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let inbox = Inbox::new();
        let mut seen = vec![false; 200_000];
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let inbox = &inbox;
                scope.spawn(move || {
                    for n in 0..100_000 {
                        while !inbox.post(n * 2 + thread) {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for _ in 0..200_000 {
                let number = loop {
                    match inbox.take() {
                        Some(number) => break number as usize,
                        None => std::thread::yield_now(),
                    }
                };
                assert!(!std::mem::replace(&mut seen[number], true), "{number} came twice");
            }
        });
    }
}
