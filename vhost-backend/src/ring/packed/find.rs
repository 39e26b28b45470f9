//! Where a packed ring stands, found from its descriptors alone.
//!
//! A frontend that keeps no record of what is in flight (QEMU's, for network devices) does not know where we were when
//! we died, and lets the ring begin where it last knew it to be. All of our buffers go back in the order in which they
//! were offered, so that there is one place where what has been given back ends and what has not begins. The marks of the
//! laps show it, but for three cases, which are looked into below: rings that are full, chains (whose later descriptors
//! stay as the driver wrote them), and a death in the midst of giving back.

use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::{MARKS, Used};
use super::position::Position;
use crate::ring::common::{F_NEXT, LONGEST_CHAIN};

impl Ring {
    /// Where the ring stands: at `base`, if that is possible; otherwise where its descriptors say, or at `base` all the
    /// same if they say nothing certain. Ends a burst that somebody died over.
    pub(super) fn find(&self, base: Position) -> Position {
        if let Some(at) = self.full() {
            return at;
        }
        let mut places: Vec<Position> = [true, false]
            .into_iter()
            .flat_map(|wrap| (0..self.size).map(move |index| Position { index, wrap }))
            .filter(|&at| !self.is_used(at) && self.is_given_back(self.before(at)))
            .collect();
        if let Some(at) = self.torn(&places) {
            return at;
        }
        if places.contains(&base) {
            return base;
        }
        if places.len() > 1 {
            places.retain(|&at| !self.is_rest(at));
        }
        match places[..] {
            [at] => at,
            _ => self.torn(&places).unwrap_or(base),
        }
    }

    fn before(&self, at: Position) -> Position {
        match at.index.checked_sub(1) {
            Some(index) => Position { index, ..at },
            None => Position { index: self.size - 1, wrap: !at.wrap },
        }
    }

    /// Whether the device has written the descriptor at `at`.
    pub(super) fn is_used(&self, at: Position) -> bool {
        self.read(at).flags & MARKS == if at.wrap { MARKS } else { 0 }
    }

    /// Where a ring stands all of whose descriptors are offered: where the laps meet.
    fn full(&self) -> Option<Position> {
        let lap = |index| {
            let at = Position { index, wrap: true };
            match (self.is_available(at), self.is_available(Position { wrap: false, ..at })) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            }
        };
        let first = lap(0)?;
        let mut at = Position { index: 0, wrap: first };
        for index in 1..self.size {
            let here = lap(index)?;
            if here != at.wrap {
                if at.index != 0 {
                    return None;
                }
                at = Position { index, wrap: here };
            }
        }
        Some(at)
    }

    /// Whether the buffer that the descriptor at `at` is part of has been given back: it is the one that was written, or
    /// the last of those behind it.
    fn is_given_back(&self, at: Position) -> bool {
        if self.is_used(at) {
            return true;
        }
        let last = self.read(at);
        if last.flags & F_NEXT != 0 {
            return false;
        }
        let mut first = at;
        for _ in 1..self.size.min(LONGEST_CHAIN) {
            if !self.is_available(first) {
                return false;
            }
            first = self.before(first);
            if self.is_used(first) {
                return self.read(first).id == last.id;
            }
            if self.read(first).flags & F_NEXT == 0 && !self.common.in_order {
                return false;
            }
        }
        false
    }

    /// Whether the descriptor at `at` belongs to the buffer that was given back before it. A driver may have given a new
    /// buffer the same number, so this is asked only where it makes a difference.
    fn is_rest(&self, at: Position) -> bool {
        let before = self.before(at);
        self.is_used(before) && self.rest_of(before, self.read(before).id, self.size - 1) > 0
    }

    /// The end of a burst that somebody died over: its first buffer is offered, and those behind it have been given back.
    /// That one is given back now, as one into which nothing was written, since its neighbours cannot be served again.
    fn torn(&self, places: &[Position]) -> Option<Position> {
        let &[one, two] = places else { return None };
        [(one, two), (two, one)].into_iter().find_map(|(first, end)| {
            let mut next = first;
            let mut passed = 0;
            let id = loop {
                if !self.is_available(next) || passed == self.size {
                    return None;
                }
                let desc = self.read(next);
                next = next.advance(1, self.size);
                passed += 1;
                if desc.flags & F_NEXT == 0 {
                    break desc.id;
                }
            };
            (self.is_used(next) && self.behind_used(next) == end).then(|| {
                self.write_used(Used::new(first, id, 0), Ordering::Release);
                end
            })
        })
    }
}
