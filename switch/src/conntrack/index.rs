//! Where a key's half is: a hash table of references, a cache line of eight a bucket, two buckets a key.
//!
//! Readers take no lock. A word holds 36 bits of the hash (never all zero) and the reference; the second bucket follows
//! from the first and these bits, so a resident of a full bucket can be moved to its other one without asking who it
//! is. Writers of one key, or of keys that share a stripe, exclude each other by a spin flag that is held for some dozen
//! instructions and waited for a bounded number of times. Sized once: nothing ever grows or is rehashed.
#![forbid(unsafe_code)]

use super::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use super::{Buckets, LOCK_TRIES, STRIPES, WAYS, new_buckets, prepare_buckets};

/// Bits of the reference in a word, which is kept plus 1.
const REFERENCE: u64 = (1 << 28) - 1;
/// The bit that makes every tag differ from that of an empty word.
const PRESENT: u64 = 1 << 63;
/// Share of the words that may be in use, in percent: beyond, bucket pairs without room get likely.
const LOAD: usize = 80;

/// The table of references.
pub(super) struct Index {
    buckets: Buckets,
    stripes: Box<[AtomicBool]>,
    /// Moves from bucket to bucket; a reader that found nothing while this changed looks again.
    moves: AtomicU64,
}

/// The right to change the words of up to two keys.
pub(super) struct Stripes<'a> {
    index: &'a Index,
    held: [usize; 2],
}

impl Drop for Stripes<'_> {
    fn drop(&mut self) {
        let [first, second] = self.held;
        self.index.stripes[first].store(false, Ordering::Release);
        if second != first {
            self.index.stripes[second].store(false, Ordering::Release);
        }
    }
}

impl Index {
    /// For `keys` keys.
    pub(super) fn new(keys: usize) -> Self {
        let buckets = (keys * 100 / LOAD).div_ceil(WAYS).max(2);
        Self {
            buckets: new_buckets(buckets),
            stripes: (0..STRIPES).map(|_| AtomicBool::new(false)).collect(),
            moves: AtomicU64::new(0),
        }
    }

    /// Has the kernel provide the memory now.
    pub(super) fn prepare(&self) {
        prepare_buckets(&self.buckets);
    }

    /// Bytes of the buckets.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    #[inline(always)]
    pub(super) fn tag(hash: u64) -> u64 {
        (hash | PRESENT) & !REFERENCE
    }

    #[inline(always)]
    pub(super) fn first(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.buckets.len() as u64) >> 32) as usize
    }

    /// The other bucket of a word with this tag in bucket `place`: the two add up to a number that the tag gives.
    #[inline(always)]
    pub(super) fn other(&self, place: usize, tag: u64) -> usize {
        let mixed = (tag >> 28).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let sum = ((mixed * self.buckets.len() as u64) >> 32) as usize;
        if sum >= place { sum - place } else { sum + self.buckets.len() - place }
    }

    #[inline(always)]
    fn stripe(tag: u64) -> usize {
        (tag >> 28) as usize % STRIPES
    }

    /// Asks for the bucket where the key of this hash most likely is.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        crate::memory::prefetch(&self.buckets[self.first(hash)]);
    }

    /// Asks for both buckets where a key of this hash may be: to be certain that it is in neither, say.
    #[inline]
    pub(super) fn prefetch_both(&self, hash: u64) {
        let first = self.first(hash);
        crate::memory::prefetch(&self.buckets[first]);
        crate::memory::prefetch(&self.buckets[self.other(first, Self::tag(hash))]);
    }

    /// A reference whose key probably has this hash: all but some 36 bits of it were compared.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        let tag = Self::tag(hash);
        let first = self.first(hash);
        for word in &self.buckets[first].0 {
            let word = word.load(Ordering::Acquire);
            if word & !REFERENCE == tag {
                return Some((word & REFERENCE) as u32 - 1);
            }
        }
        self.candidate_there(self.other(first, tag), tag)
    }

    #[inline(never)]
    fn candidate_there(&self, place: usize, tag: u64) -> Option<u32> {
        let words = self.buckets[place].0.iter().map(|word| word.load(Ordering::Acquire));
        words.into_iter().find(|word| word & !REFERENCE == tag).map(|word| (word & REFERENCE) as u32 - 1)
    }

    /// The reference of this hash that `is` says yes to. A miss is certain: it is none of a word on the move.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = Self::tag(hash);
        let first = self.first(hash);
        let places = [first, self.other(first, tag)];
        loop {
            let moves = self.moves.load(Ordering::Acquire);
            for place in places {
                for word in &self.buckets[place].0 {
                    let word = word.load(Ordering::Acquire);
                    if word & !REFERENCE == tag && is((word & REFERENCE) as u32 - 1) {
                        return Some((word & REFERENCE) as u32 - 1);
                    }
                }
            }
            fence(Ordering::Acquire);
            if self.moves.load(Ordering::Relaxed) == moves {
                return None;
            }
        }
    }

    fn take_stripe(&self, stripe: usize) -> bool {
        (0..LOCK_TRIES).any(|_| {
            let free = self.stripes[stripe]
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            if !free {
                std::hint::spin_loop();
            }
            free
        })
    }

    /// The right to change what these two hashes show; none if somebody holds it for long.
    pub(super) fn lock(&self, a: u64, b: u64) -> Option<Stripes<'_>> {
        let [a, b] = [a, b].map(|hash| Self::stripe(Self::tag(hash)));
        let held = [a.min(b), a.max(b)];
        if !self.take_stripe(held[0]) {
            return None;
        }
        if held[1] != held[0] && !self.take_stripe(held[1]) {
            self.stripes[held[0]].store(false, Ordering::Release);
            return None;
        }
        Some(Stripes { index: self, held })
    }

    /// Shows `reference` under `hash`, whose stripe is held and which does not show it yet; false if there is no room.
    pub(super) fn place(&self, stripes: &Stripes<'_>, hash: u64, reference: u32) -> bool {
        let tag = Self::tag(hash);
        debug_assert!(stripes.held.contains(&Self::stripe(tag)));
        let word = tag | (u64::from(reference) + 1);
        let first = self.first(hash);
        let second = self.other(first, tag);
        let used = |place: usize| {
            self.buckets[place].0.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count()
        };
        // The first bucket, where readers look first, unless it is nearly full and the other one is emptier: so hardly
        // any gets full before all are.
        let here = used(first);
        let order = if here + 1 < WAYS || here <= used(second) { [first, second] } else { [second, first] };
        order.into_iter().any(|place| self.put(place, word)) || self.make_way(stripes, order, word)
    }

    /// Puts a word into a free place of a bucket. Everything that it leads to was written before.
    fn put(&self, place: usize, word: u64) -> bool {
        self.buckets[place].0.iter().any(|slot| {
            slot.load(Ordering::Relaxed) == 0
                && slot.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed).is_ok()
        })
    }

    /// Puts a word into one of two full buckets after all, by moving a resident to its other bucket; in which, if need
    /// be, another one is moved first.
    #[cold]
    fn make_way(&self, stripes: &Stripes<'_>, places: [usize; 2], word: u64) -> bool {
        (0..=1).any(|depth| {
            // What was made free may be taken by somebody else.
            places.into_iter().any(|place| self.make_room(stripes, place, depth) && self.put(place, word))
        })
    }

    /// Moves a resident of a full bucket elsewhere.
    fn make_room(&self, stripes: &Stripes<'_>, place: usize, depth: u32) -> bool {
        self.buckets[place].0.iter().any(|slot| {
            let resident = slot.load(Ordering::Relaxed);
            let tag = resident & !REFERENCE;
            let other = self.other(place, tag);
            let full = || self.buckets[other].0.iter().all(|slot| slot.load(Ordering::Relaxed) != 0);
            if resident == 0 {
                return true;
            }
            if other == place || (full() && (depth == 0 || !self.make_room(stripes, other, depth - 1))) {
                return false;
            }
            // Who holds the resident's stripe alone may move or remove it.
            let stripe = Self::stripe(tag);
            let borrowed = stripes.held.contains(&stripe);
            if !borrowed && !self.take_stripe(stripe) {
                return false;
            }
            let moved = slot.load(Ordering::Acquire) == resident && self.put(other, resident);
            if moved {
                self.moves.fetch_add(1, Ordering::AcqRel);
                slot.store(0, Ordering::Release);
            }
            if !borrowed {
                self.stripes[stripe].store(false, Ordering::Release);
            }
            moved
        })
    }

    /// Shows `reference` under `hash`, whose stripe is held, no more; false if it did not.
    pub(super) fn remove(&self, stripes: &Stripes<'_>, hash: u64, reference: u32) -> bool {
        let tag = Self::tag(hash);
        debug_assert!(stripes.held.contains(&Self::stripe(tag)));
        let word = tag | (u64::from(reference) + 1);
        let first = self.first(hash);
        for place in [first, self.other(first, tag)] {
            for slot in &self.buckets[place].0 {
                if slot.load(Ordering::Relaxed) == word {
                    slot.store(0, Ordering::Release);
                    return true;
                }
            }
        }
        false
    }

    /// Some references, from bucket `at` (any number) on; how many buckets that was is for the caller to choose.
    pub(super) fn sample(&self, at: u64, buckets: usize) -> impl Iterator<Item = u32> {
        let start = (at % self.buckets.len() as u64) as usize;
        (0..buckets.min(self.buckets.len()))
            .flat_map(move |step| &self.buckets[(start + step) % self.buckets.len()].0)
            .map(|word| word.load(Ordering::Acquire))
            .filter(|&word| word != 0)
            .map(|word| (word & REFERENCE) as u32 - 1)
    }
}
