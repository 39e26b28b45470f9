//! When to look at an entry again: a timer wheel of one worker, linked through the entries themselves.
//!
//! A list for each of 512 seconds. A packet never moves its entry: when an appointment comes, the owner looks when the
//! entry was last seen and makes a new one. The lists are doubly linked, so an entry whose state shortened its life, or
//! that was removed, leaves its list at once.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::key::Family;
use super::table::{Slot, Table};

/// Seconds that the wheel covers.
pub(super) const SPAN: u32 = 512;
/// The end of a list.
pub(super) const END: u32 = u32::MAX;
/// In a `previous` link: the entry is the first of the list of this second.
const FIRST: u32 = 1 << 31;

/// The wheel.
pub(super) struct Wheel {
    heads: Box<[u32; SPAN as usize]>,
    /// The second up to which everything due was handed out.
    done: u32,
    started: bool,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { heads: Box::new([END; SPAN as usize]), done: 0, started: false }
    }

    /// Makes an appointment for an entry that has none, `ahead` seconds from `now`, or earlier: at most a round ahead.
    pub(super) fn schedule<F: Family>(&mut self, table: &Table<F>, slot: Slot, ahead: u32, now: u32) {
        if !self.started {
            (self.started, self.done) = (true, now);
        }
        let at = now.wrapping_add(ahead.min(SPAN));
        let from_done = (at.wrapping_sub(self.done) as i32).clamp(1, SPAN as i32 - 1) as u32;
        let second = self.done.wrapping_add(from_done) % SPAN;
        let head = &mut self.heads[second as usize];
        table.first(slot).link.store(*head, Ordering::Relaxed);
        table.second(slot).link.store(FIRST | second, Ordering::Relaxed);
        if *head != END {
            table.second(Slot(*head)).link.store(slot.0, Ordering::Relaxed);
        }
        *head = slot.0;
    }

    /// Forgets the appointment of an entry that has one.
    pub(super) fn cancel<F: Family>(&mut self, table: &Table<F>, slot: Slot) {
        let next = table.first(slot).link.load(Ordering::Relaxed);
        let previous = table.second(slot).link.load(Ordering::Relaxed);
        if previous & FIRST != 0 {
            self.heads[(previous % SPAN) as usize] = next;
        } else {
            table.first(Slot(previous)).link.store(next, Ordering::Relaxed);
        }
        if next != END {
            table.second(Slot(next)).link.store(previous, Ordering::Relaxed);
        }
    }

    /// Takes out an entry whose appointment has come by second `now`. To be called until `None`.
    #[inline]
    pub(super) fn due<F: Family>(&mut self, table: &Table<F>, now: u32) -> Option<Slot> {
        if !self.started || now.wrapping_sub(self.done) as i32 <= 0 {
            return None;
        }
        if now.wrapping_sub(self.done) > SPAN {
            // All lists are due, and going round once visits them all.
            self.done = now.wrapping_sub(SPAN);
        }
        while self.done != now {
            let second = self.done.wrapping_add(1);
            let head = self.heads[(second % SPAN) as usize];
            if head != END {
                self.cancel(table, Slot(head));
                let next = self.heads[(second % SPAN) as usize];
                if next != END {
                    // It is looked at next; both halves tell when it was seen.
                    crate::memory::prefetch(table.first(Slot(next)));
                    crate::memory::prefetch(table.second(Slot(next)));
                }
                return Some(Slot(head));
            }
            self.done = second;
        }
        None
    }

    /// Some entries, beginning with those whose appointments come first.
    pub(super) fn soonest<F: Family>(&self, table: &Table<F>) -> impl Iterator<Item = Slot> {
        (1..SPAN).flat_map(move |ahead| {
            let head = self.heads[(self.done.wrapping_add(ahead) % SPAN) as usize];
            std::iter::successors((head != END).then_some(Slot(head)), |&slot| {
                let next = table.first(slot).link.load(Ordering::Relaxed);
                (next != END).then_some(Slot(next))
            })
        })
    }
}
