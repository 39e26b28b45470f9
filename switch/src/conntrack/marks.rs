//! Which connections may have changed since somebody last looked: a byte for every four places.
//!
//! Who enters or removes a connection, or changes what another process is told of it ([`super::handover::Kept`]), marks
//! its place afterwards; packets of settled connections do not. A store without a look before it: that would be
//! cheaper for other workers' caches, and could miss that the mark is just being taken. The marks of a chunk are a
//! cache line, so workers that share no connections share no marks.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use super::table::{CHUNK, make_ready};
use crate::memory::Pages;

/// Places that share a mark.
pub(super) const GROUP: u32 = 4;
const _: () = assert!(CHUNK / GROUP == 64);

/// The marks of a table.
pub(super) struct Marks(Pages<AtomicU8>);

impl Marks {
    pub(super) fn new(chunks: u32) -> Self {
        Self(Pages::new((chunks * CHUNK / GROUP) as usize))
    }

    /// The connection in this place has changed.
    #[inline(always)]
    pub(super) fn set(&self, place: u32) {
        // Who takes the mark sees the change.
        self.0[(place / GROUP) as usize].store(1, Ordering::Release);
    }

    /// Whether any of a group has changed since this was last asked. What changes from now on marks it again.
    pub(super) fn take(&self, group: u32) -> bool {
        let mark = &self.0[group as usize];
        mark.load(Ordering::Relaxed) != 0 && mark.swap(0, Ordering::AcqRel) != 0
    }

    /// Has the kernel provide the pages of some chunks' marks.
    pub(super) fn prepare(&self, chunks: Range<u32>) {
        let at = |chunk: u32| (chunk * CHUNK / GROUP) as usize;
        make_ready(&self.0[at(chunks.start)..at(chunks.end)], |mark| {
            mark.fetch_or(0, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_taken_once_and_shared_by_four_places() {
        let marks = Marks::new(2);
        assert!((0..2 * CHUNK / GROUP).all(|group| !marks.take(group)));
        for place in [0, 3, 4, CHUNK - 1, CHUNK, 2 * CHUNK - 1] {
            marks.set(place);
            marks.set(place);
            let taken: Vec<u32> = (0..2 * CHUNK / GROUP).filter(|&group| marks.take(group)).collect();
            assert_eq!(taken, [place / GROUP], "place {place}");
        }
        marks.prepare(0..2);
        assert!(
            (0..2 * CHUNK / GROUP).all(|group| !marks.take(group)),
            "nothing is marked by being made ready"
        );
    }
}
