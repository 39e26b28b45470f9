//! Going on where another device of our kind died, as the record of what is in flight tells.
//!
//! A burst's buffers go back by writing over their descriptors, the first one last. Whoever dies in between has destroyed
//! descriptors that the driver does not see yet: they cannot be served again, so what was begun is ended.

use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::Used;
use super::position::Position;
use crate::inflight::{Region, Standing};
use crate::ring::RingFault;
use crate::ring::common::F_NEXT;

impl Ring {
    /// See [`crate::ring::Ring::keep_record`].
    pub(in crate::ring) fn keep_record(&mut self, record: Region, features: u64) -> Result<(), RingFault> {
        let at = match record.position(self.size, features)? {
            None => self.find(self.next_used),
            Some(Standing::At(at)) => Position::decode(at),
            Some(Standing::Writing { at, first }) => {
                let at = Position::decode(at);
                self.end(at, first);
                self.behind_used(at)
            }
            Some(Standing::Showing { at, next, first }) => {
                self.end(Position::decode(at), first);
                Position::decode(next)
            }
        };
        self.next_avail = at;
        self.next_used = at;
        record.commit(at.encode());
        self.record = Some(record);
        Ok(())
    }

    /// See [`crate::ring::Ring::resume`].
    pub(in crate::ring) fn resume(&mut self) {
        self.next_avail = self.find(self.next_avail);
        self.next_used = self.next_avail;
    }

    pub(in crate::ring) fn record(&self) -> Option<&Region> {
        self.record.as_ref()
    }

    /// Shows the driver the burst that begins at `at`, unless it has been shown.
    fn end(&mut self, at: Position, first: u64) {
        if self.is_available(at) {
            self.write_used(Used { at: at.index, word: first }, Ordering::Release);
        }
    }

    /// Where the buffers end that have been given back from `at` on. All of them were in flight at the same time, so that
    /// their numbers differ, and the driver has not used any of them again.
    pub(super) fn behind_used(&self, at: Position) -> Position {
        let mut next = at;
        // Descriptors that have been passed; a driver that lies might make them more than there are.
        let mut passed = 0;
        while passed < self.size && self.is_used(next) {
            let id = self.read(next).id;
            let step = 1 + self.rest_of(next, id, self.size - passed - 1);
            next = next.advance(step, self.size);
            passed += step;
        }
        next
    }

    /// How many descriptors follow the one at `at` that belong to the same buffer, or, where one stands for several
    /// buffers, to those. They end with the one that has the number `id`, of at most `room`.
    pub(super) fn rest_of(&self, at: Position, id: u16, room: u16) -> u16 {
        let mut next = at;
        for count in 1..=room {
            next = next.advance(1, self.size);
            if !self.is_available(next) {
                break;
            }
            let desc = self.read(next);
            let last = desc.flags & F_NEXT == 0;
            if last && desc.id == id {
                return count;
            }
            if last && !self.common.in_order {
                break;
            }
        }
        0
    }
}
