//! Where the servers of a service post that what a choice depends on has changed: connections, weight, overload.
//!
//! Workers post without waiting for anybody; whoever schedules next takes the notes down and looks at those servers
//! again. A service of few servers has no board: all of them are looked at each time.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Words of a board.
const WORDS: usize = 64;
/// Up to so many words, all of them are looked at; otherwise a summary says at which.
const LOOKED_AT: u32 = 16;

#[derive(Debug)]
struct Notes {
    /// Bit `w` is set if word `w` may be other than 0, where more than [`LOOKED_AT`] words are in use.
    summary: AtomicU64,
    words: [AtomicU64; WORDS],
    shape: Shape,
}

/// How places are given. A server's place, a bit, is its slot shifted right by `shift`: one place stands for several
/// servers where there are many.
#[derive(Debug, Default)]
struct Shape {
    shift: AtomicU32,
    /// Words in use.
    words: AtomicU32,
}

/// Notes of a service's servers.
#[derive(Debug, Default)]
pub(crate) struct Board(OnceLock<Box<Notes>>);

impl Board {
    /// Provides places for `slots` servers, before they are given these slots, and forgets all notes: the caller looks at
    /// all servers after that. Nobody takes notes down meanwhile.
    pub(crate) fn prepare(&self, slots: usize) {
        let notes = self.0.get_or_init(|| {
            Box::new(Notes {
                summary: AtomicU64::new(0),
                words: std::array::from_fn(|_| AtomicU64::new(0)),
                shape: Shape::default(),
            })
        });
        let shift = slots.div_ceil(64 * WORDS).next_power_of_two().trailing_zeros();
        let words = ((slots >> shift) / 64 + 1).min(WORDS) as u32;
        notes.shape.shift.store(shift, Ordering::SeqCst);
        notes.shape.words.store(words, Ordering::SeqCst);
        for word in std::iter::once(&notes.summary).chain(&notes.words) {
            word.store(0, Ordering::SeqCst);
        }
    }

    /// Posts a change of the server that has the slot `slot`, which may be given another meanwhile.
    #[inline]
    pub(crate) fn post(&self, slot: &AtomicU32) {
        let Some(notes) = self.0.get() else {
            return;
        };
        let place = || {
            let Shape { shift, words } = &notes.shape;
            let at = slot.load(Ordering::SeqCst) >> shift.load(Ordering::SeqCst);
            (at, words.load(Ordering::SeqCst) > LOOKED_AT)
        };
        let mut now = place();
        let mut again = false;
        loop {
            let (at, summarised) = now;
            let (word, bit) = (at as usize / 64 % WORDS, 1 << (at % 64));
            // A note that nobody has taken down yet says enough: whoever does so looks at the server after that.
            if again || notes.words[word].load(Ordering::SeqCst) & bit == 0 {
                notes.words[word].fetch_or(bit, Ordering::SeqCst);
                if summarised {
                    notes.summary.fetch_or(1 << word, Ordering::SeqCst);
                }
            }
            // A server that was moved meanwhile was noted at its old place: once more. Whoever moves servers looks at all
            // of them after that.
            let before = std::mem::replace(&mut now, place());
            if now == before {
                return;
            }
            again = true;
        }
    }

    /// Takes all notes down; `look` gets the slots of each as a range, which may reach beyond the last server.
    #[inline]
    pub(crate) fn take(&self, mut look: impl FnMut(Range<usize>)) {
        let Some(notes) = self.0.get() else {
            return;
        };
        let shift = notes.shape.shift.load(Ordering::SeqCst);
        let mut take = |at: usize, word: &AtomicU64| {
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let place = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                look(place << shift..(place + 1) << shift);
            }
        };
        let words = notes.shape.words.load(Ordering::SeqCst);
        if words <= LOOKED_AT {
            for (at, word) in notes.words[..words as usize].iter().enumerate() {
                if word.load(Ordering::SeqCst) != 0 {
                    take(at, word);
                }
            }
        } else if notes.summary.load(Ordering::SeqCst) != 0 {
            let mut noted = notes.summary.swap(0, Ordering::SeqCst);
            while noted != 0 {
                let at = noted.trailing_zeros() as usize;
                noted &= noted - 1;
                take(at, &notes.words[at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(board: &Board) -> Vec<Range<usize>> {
        let mut taken = Vec::new();
        board.take(|slots| taken.push(slots));
        taken
    }

    #[test]
    fn every_note_is_taken_down_once_at_every_size() {
        for slots in [9, 64, 65, 1000, 1024, 1025, 4096, 4097, 100_000] {
            let board = Board::default();
            board.post(&AtomicU32::new(3));
            assert!(taken(&board).is_empty());
            board.prepare(slots);
            let posted = [0, 1, slots / 2, slots - 1];
            for slot in posted {
                board.post(&AtomicU32::new(slot as u32));
                board.post(&AtomicU32::new(slot as u32));
            }
            let ranges = taken(&board);
            assert!(ranges.len() <= posted.len());
            for slot in posted {
                assert_eq!(
                    ranges.iter().filter(|range| range.contains(&slot)).count(),
                    1,
                    "{slot} of {slots}"
                );
            }
            assert!(taken(&board).is_empty());
        }
    }

    #[test]
    fn a_board_that_grows_and_shrinks_loses_no_note() {
        let board = Board::default();
        for slots in [1000, 3000, 20, 9000, 10] {
            board.post(&AtomicU32::new(5));
            board.prepare(slots);
            assert!(taken(&board).is_empty());
            board.post(&AtomicU32::new(slots as u32 - 1));
            assert_eq!(taken(&board).len(), 1);
        }
    }
}
