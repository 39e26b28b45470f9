//! Where a packed ring stands, found in the ring alone: frontends that outlive us know only where they started it.
//!
//! Drivers do not look at the address of a descriptor that has been given back (virtio 1.3, section 2.8.5), so that is
//! where each burst leaves two notes: one in its first descriptor, before any other is written over, and one in its last,
//! before the first is shown to the driver. With the marks that drivers write, which tell where they will go on, these
//! say at any moment where the next of us has to go on, and whether a burst was begun that has to be ended: its
//! descriptors are written over, so they cannot be served again.
//!
//! A ring without notes has not been used yet, or by another kind of device, or is full of buffers that wait: then it
//! stands where the driver will go on, one lap before.

use std::sync::atomic::{Ordering, fence};

use super::Ring;
use super::descriptor::{F_AVAIL, Used};
use super::position::Position;
use crate::ring::common::F_NEXT;

/// The upper bits of a note, which no address has: those are of 52 bits at most.
const NOTE: u64 = 0xd15c << 48;
/// All of them.
const NOTES: u64 = 0xffff << 48;
/// A burst begins here. The lower half is the length with which the first buffer goes back.
const BEGIN: u64 = 1 << 32;
/// A burst ends here.
const END: u64 = 1 << 33;

impl Ring {
    /// Notes, before anything else of a burst is written, that `first` is its first buffer.
    #[inline(always)]
    pub(super) fn note_begin(&self, first: Used) {
        self.address(first.at).store(NOTE | BEGIN | u64::from(first.length()), Ordering::Relaxed);
        // The dead write nothing more, so it is enough that what is written later is seen later.
        fence(Ordering::Release);
    }

    /// Notes, when all buffers of a burst but `first` have been written, that it ends behind the `count` descriptors from
    /// `at` on.
    #[inline(always)]
    pub(super) fn note_end(&self, first: Used, at: Position, count: u16) {
        let last = at.advance(count - 1, self.size).index;
        let begin = if last == first.at { BEGIN | u64::from(first.length()) } else { 0 };
        self.address(last).store(NOTE | END | begin, Ordering::Release);
    }

    /// Where the ring stands; ends a burst that somebody died over. `None` if nothing tells.
    pub(super) fn find(&self) -> Option<Position> {
        let driver = self.drivers();
        let mut end = None;
        let mut given = None;
        let mut at = driver;
        for _ in 0..self.size {
            // Of all that lies here, what the driver wrote last comes first.
            at = self.before(at);
            let note = self.address(at.index).load(Ordering::Acquire);
            let note = if note & NOTES == NOTE { note } else { 0 };
            if self.is_used(at) {
                given = given.or(Some(at));
            } else if note & BEGIN != 0 {
                return Some(self.end_burst(at, end, note as u32));
            }
            if note & END != 0 && end.is_none() {
                if given.is_some_and(|given| given != at) {
                    // Another kind of device has given back what lies behind the note.
                    return None;
                }
                end = Some(at);
            }
        }
        match (end, given) {
            (Some(end), _) => Some(end.next(self.size)),
            (None, Some(_)) => None,
            (None, None) => Some(Position { wrap: !driver.wrap, ..driver }),
        }
    }

    fn before(&self, at: Position) -> Position {
        match at.index.checked_sub(1) {
            Some(index) => Position { index, ..at },
            None => Position { index: self.size - 1, wrap: !at.wrap },
        }
    }

    /// Where the driver will write next: up to there its mark of the lap is another than behind.
    fn drivers(&self) -> Position {
        let mark = |index: u16| self.flags(index) & F_AVAIL != 0;
        let next = |index: u16| if index + 1 == self.size { 0 } else { index + 1 };
        let before = |index: u16| index.checked_sub(1).unwrap_or(self.size - 1);
        // At the ring's end the mark changes by itself.
        let is_edge = |index: u16| (mark(index) != mark(before(index))) == (index > 0);
        let mut edges = (0..self.size).filter(|&index| is_edge(index));
        // There is one such place, or three while a driver writes a chain: it writes the first descriptor last.
        let chain = edges.clone().find(|&index| is_edge(next(index)) && !is_edge(before(index)));
        let index = chain.or_else(|| edges.next()).unwrap_or(0);
        Position { index, wrap: !mark(index) }
    }

    /// Ends the burst that was begun at `first` and not shown to the driver, which ends at `end` if a note says so. The
    /// first buffer goes back with this length. Where the ring stands then.
    fn end_burst(&self, first: Position, end: Option<Position>, length: u32) -> Position {
        let (last, mut id) = self.chain_end(first);
        let behind = last.next(self.size);
        let next = match end {
            Some(end) => {
                if self.common.in_order && !self.is_used(behind) {
                    // The first stands for all of them.
                    id = self.read(end).id;
                }
                end.next(self.size)
            }
            None => self.behind_used(behind, self.size - first.distance(last, self.size) - 1),
        };
        let used = if length == 0 { Used::read(first, id) } else { Used::written(first, id, length) };
        self.note_end(used, first, first.distance(next, self.size));
        self.write_used(used, Ordering::Release);
        next
    }

    /// The last descriptor of the chain that is offered at `at`, and its number.
    fn chain_end(&self, mut at: Position) -> (Position, u16) {
        for _ in 1..self.size {
            if self.read(at).flags & F_NEXT == 0 {
                break;
            }
            at = at.next(self.size);
        }
        (at, self.read(at).id)
    }

    /// Where the buffers end that have been given back from `at` on, which are at most `room` descriptors. All of them
    /// were in flight at the same time, so that their numbers differ, and the driver has not used any of them again.
    fn behind_used(&self, at: Position, mut room: u16) -> Position {
        let mut next = at;
        while room > 0 && self.is_used(next) {
            let step = 1 + self.rest_of(next, self.read(next).id, room - 1);
            next = next.advance(step, self.size);
            room -= step;
        }
        next
    }

    /// How many descriptors follow the one at `at` that belong to the same buffer: they are as the driver wrote them, and
    /// end with one that has the number `id`. At most `room`.
    fn rest_of(&self, at: Position, id: u16, room: u16) -> u16 {
        let mut next = at;
        for count in 1..=room {
            next = next.next(self.size);
            if !self.is_available(next) {
                break;
            }
            let desc = self.read(next);
            if desc.flags & F_NEXT == 0 {
                return if desc.id == id { count } else { 0 };
            }
        }
        0
    }
}
