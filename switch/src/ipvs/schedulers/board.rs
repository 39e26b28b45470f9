//! Where the servers of a service post that what a choice depends on has changed: connections, weight, overload.
//!
//! Workers post without waiting for anybody; whoever schedules next takes the notes down and looks at those servers
//! again. A service of few servers has no board: all of them are looked at each time.
#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bits of a board.
pub(crate) const PLACES: usize = 64 * 64;

#[derive(Debug)]
struct Notes {
    /// Bit `w` is set if word `w` may be other than 0.
    summary: AtomicU64,
    words: [AtomicU64; 64],
    /// A server's place is its slot shifted right by this: one place stands for several servers where there are many.
    shift: AtomicU32,
}

/// Notes of a service's servers.
#[derive(Debug, Default)]
pub(crate) struct Board(OnceLock<Box<Notes>>);

impl Board {
    /// Provides places for `slots` servers. Notes that were posted before may be about others: the caller looks at all.
    pub(crate) fn prepare(&self, slots: usize) {
        let notes = self.0.get_or_init(|| {
            Box::new(Notes {
                summary: AtomicU64::new(0),
                words: std::array::from_fn(|_| AtomicU64::new(0)),
                shift: AtomicU32::new(0),
            })
        });
        let shift = slots.div_ceil(PLACES).next_power_of_two().trailing_zeros();
        notes.shift.store(shift, Ordering::SeqCst);
    }

    /// Posts a change of the server that has the slot `slot`, which may be given another meanwhile.
    #[inline]
    pub(crate) fn post(&self, slot: &AtomicU32) {
        let Some(notes) = self.0.get() else {
            return;
        };
        // A server that moves while the note is written would be noted at its old place: look again afterwards. Whoever
        // moves servers looks at all of them after that.
        let place = || slot.load(Ordering::SeqCst) >> notes.shift.load(Ordering::SeqCst);
        let mut at = place();
        loop {
            let (word, bit) = (at as usize / 64 % 64, 1 << (at % 64));
            // A note that nobody has taken down yet says enough: whoever does so looks at the server after that.
            if notes.words[word].load(Ordering::SeqCst) & bit == 0 {
                notes.words[word].fetch_or(bit, Ordering::SeqCst);
                notes.summary.fetch_or(1 << word, Ordering::SeqCst);
            }
            let now = place();
            if now == at {
                return;
            }
            at = now;
        }
    }

    /// Takes all notes down; `look` gets the slots of each as a range, which may reach beyond the last server.
    #[inline]
    pub(crate) fn take(&self, mut look: impl FnMut(std::ops::Range<usize>)) {
        let Some(notes) = self.0.get() else {
            return;
        };
        if notes.summary.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut words = notes.summary.swap(0, Ordering::SeqCst);
        let shift = notes.shift.load(Ordering::SeqCst);
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let mut bits = notes.words[word].swap(0, Ordering::SeqCst);
            while bits != 0 {
                let place = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                look(place << shift..(place + 1) << shift);
            }
        }
    }
}
