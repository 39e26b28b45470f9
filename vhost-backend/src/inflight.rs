//! The record of what is in flight: memory that outlives us in the frontend's hands, so that after a crash the next of us
//! loses no buffer and gives none back twice.
//!
//! vhost-user specification, section "Inflight I/O tracking". Our rings give buffers back in the order in which they took
//! them, a burst at a time, by one store. So a split ring's used index tells everything, and nothing is written here while
//! it runs. A packed ring tells where it stands by notes of ours (`ring/packed/find.rs`), which another kind of device does
//! not know: for it one word is written here for each burst. What is found here may come from such a device, with buffers
//! in any order: those of a split ring are served before all others, in the order of their counters.
//!
//! The frontend may have written anything here; all that can go wrong is its own ring.

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
};

use crate::{
    mapping::{self, Mapping},
    ring::RingFault,
};

/// The layout that the specification describes.
const VERSION: u16 = 1;
/// Regions of queues begin at multiples of this, as other devices have it.
const ALIGN: u64 = 64;
/// Most queues and entries of a queue.
const MAX_QUEUES: u16 = 256;
const MAX_SIZE: u16 = 32768;

/// Offsets in the head of a region, in both layouts.
const FEATURES: usize = 0;
const VERSION_AT: usize = 8;
const DESC_NUM: usize = 10;

/// `QueueRegionSplit` and `DescStateSplit`.
mod split {
    pub(super) const LAST_BATCH_HEAD: usize = 12;
    pub(super) const USED_IDX: usize = 14;
    pub(super) const HEAD: usize = 16;
    pub(super) const ENTRY: usize = 16;
    pub(super) const NEXT: usize = 6;
    pub(super) const COUNTER: usize = 8;
}

/// `QueueRegionPacked` and `DescStatePacked`.
mod packed {
    /// used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter: one word.
    pub(super) const POSITIONS: usize = 16;
    pub(super) const HEAD: usize = 32;
    pub(super) const ENTRY: usize = 32;
    pub(super) const NEXT: usize = 2;
}

/// What SET_INFLIGHT_FD says and GET_INFLIGHT_FD answers, but for the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) queues: u16,
    /// Entries of the longest of them.
    pub(crate) size: u16,
    /// Whether rings are packed.
    pub(crate) packed: bool,
}

impl Shape {
    /// Bytes of a queue's region.
    fn region(self) -> u64 {
        let (head, entry) =
            if self.packed { (packed::HEAD, packed::ENTRY) } else { (split::HEAD, split::ENTRY) };
        (head as u64 + entry as u64 * u64::from(self.size)).next_multiple_of(ALIGN)
    }

    /// Bytes of all regions.
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.queues) * self.region()
    }

    fn check(self) -> Result<(), String> {
        if self.queues == 0 || self.queues > MAX_QUEUES || self.size == 0 || self.size > MAX_SIZE {
            let Self { queues, size, .. } = self;
            return Err(format!(
                "record of what is in flight: {queues} queues of {size} entries; 1 to {MAX_QUEUES} of up to \
                 {MAX_SIZE} are possible"
            ));
        }
        Ok(())
    }
}

/// All queues' regions, mapped.
pub(crate) struct Inflight {
    at: *mut u8,
    shape: Shape,
    mapping: Mapping,
    /// Where it is, for who goes on in our place.
    file: File,
    offset: u64,
}

// SAFETY: `at` leads into `mapping`, which belongs to no thread, and is used for atomics only.
unsafe impl Send for Inflight {}
// SAFETY: as above.
unsafe impl Sync for Inflight {}

impl Inflight {
    /// A file for a record that no ring has begun, for the frontend to keep (GET_INFLIGHT_FD).
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn create(shape: Shape) -> Result<File, String> {
        shape.check()?;
        let file = mapping::memory_file(c"shunt-inflight").map_err(|e| format!("memfd_create: {e}"))?;
        file.set_len(shape.bytes()).map_err(|e| format!("record of what is in flight: {e}"))?;
        Ok(file)
    }

    /// Maps what a frontend has kept (SET_INFLIGHT_FD): `bytes` from `offset` on. A descriptor of the file is kept.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(crate) fn map(shape: Shape, bytes: u64, offset: u64, file: &File) -> Result<Self, String> {
        shape.check()?;
        if bytes < shape.bytes() {
            return Err(format!(
                "record of what is in flight: {} queues of {} entries need {} bytes, not {bytes}",
                shape.queues,
                shape.size,
                shape.bytes()
            ));
        }
        if !offset.is_multiple_of(8) {
            return Err(format!("record of what is in flight: offset {offset} is not a multiple of 8"));
        }
        let (mapping, at) = Mapping::new(shape.bytes(), offset, file)
            .map_err(|e| format!("record of what is in flight: {e}"))?;
        let file = file.try_clone().map_err(|e| format!("record of what is in flight: {e}"))?;
        Ok(Self { at, shape, mapping, file, offset })
    }

    /// What [`Inflight::map`] was told.
    pub(crate) fn parts(&self) -> (Shape, u64, &File) {
        (self.shape, self.offset, &self.file)
    }

    /// The region of a queue, if it has one of this layout with room for `size` entries.
    pub(crate) fn region(self: &Arc<Self>, queue: usize, size: u16, packed: bool) -> Option<Region> {
        let queue = u16::try_from(queue).ok()?;
        let fits = queue < self.shape.queues && size <= self.shape.size && packed == self.shape.packed;
        fits.then(|| Region { inflight: self.clone(), queue })
    }
}

/// The region of one queue.
pub(crate) struct Region {
    inflight: Arc<Inflight>,
    queue: u16,
}

impl Region {
    fn at(&self, offset: usize) -> *mut u8 {
        let shape = self.inflight.shape;
        debug_assert!(offset < shape.region() as usize);
        self.inflight.at.wrapping_add(usize::from(self.queue) * shape.region() as usize + offset)
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: callers' offsets lie in the region, which is mapped.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }
    }

    fn half(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as above; regions begin at multiples of 8, and these offsets are even.
        unsafe { AtomicU16::from_ptr(self.at(offset).cast()) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above; these offsets are multiples of 8.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    /// Bytes of a queue's entry `i`.
    fn entry(&self, i: u16) -> usize {
        let (head, entry) = if self.inflight.shape.packed {
            (packed::HEAD, packed::ENTRY)
        } else {
            (split::HEAD, split::ENTRY)
        };
        head + entry * usize::from(i)
    }

    /// Whether the frontend has truncated the file.
    #[inline]
    pub(crate) fn gone(&self) -> bool {
        self.inflight.mapping.poisoned()
    }

    /// The ring has stopped in order: its base says all, and the next one begins a record of its own.
    pub(crate) fn end(&self) {
        self.half(VERSION_AT).store(0, Ordering::Release);
    }

    /// Says that nothing is in flight.
    fn clear(&self, features: u64) {
        let shape = self.inflight.shape;
        for i in 0..shape.size {
            self.byte(self.entry(i)).store(0, Ordering::Relaxed);
            if shape.packed {
                self.half(self.entry(i) + packed::NEXT).store(i + 1, Ordering::Relaxed);
            }
        }
        self.word(FEATURES).store(features, Ordering::Relaxed);
        self.half(DESC_NUM).store(shape.size, Ordering::Relaxed);
        if shape.packed {
            // Both at the first descriptor, in the first lap.
            self.commit(0x8000);
        }
        self.half(VERSION_AT).store(VERSION, Ordering::Release);
    }

    /// Whether there is a record at all; one that no device has begun is all zeroes, and is begun here.
    fn begun(&self, features: u64) -> Result<bool, RingFault> {
        let shape = self.inflight.shape;
        match self.half(VERSION_AT).load(Ordering::Acquire) {
            0 => {
                self.clear(features);
                Ok(false)
            }
            // Some devices give the number of entries that the ring has, others that of the region.
            VERSION if self.half(DESC_NUM).load(Ordering::Relaxed) <= shape.size => Ok(true),
            _ => Err(RingFault::BadInflight),
        }
    }

    /// Takes over a split ring of `size` entries whose used index is `used`: the heads that were taken and not given
    /// back, to be served now in this order. From here on they count as given back one by one as the used index moves,
    /// without anything being written here.
    ///
    /// # Errors
    /// The record is not one of this ring.
    pub(crate) fn take_over(&self, size: u16, used: u16, features: u64) -> Result<Vec<u16>, RingFault> {
        if !self.begun(features)? {
            self.half(split::USED_IDX).store(used, Ordering::Relaxed);
        }
        // The last batch may have been shown to the driver and not yet noted here.
        let behind = used.wrapping_sub(self.half(split::USED_IDX).load(Ordering::Relaxed));
        let mut head = self.half(split::LAST_BATCH_HEAD).load(Ordering::Relaxed);
        for _ in 0..behind.min(size) {
            if head >= size {
                break;
            }
            self.byte(self.entry(head)).store(0, Ordering::Relaxed);
            head = self.half(self.entry(head) + split::NEXT).load(Ordering::Relaxed);
        }
        self.half(split::USED_IDX).store(used, Ordering::Release);
        let mut waiting: Vec<(u64, u16)> = (0..size)
            .filter(|&i| self.byte(self.entry(i)).load(Ordering::Relaxed) == 1)
            .map(|i| (self.word(self.entry(i) + split::COUNTER).load(Ordering::Relaxed), i))
            .collect();
        waiting.sort_unstable();
        let heads: Vec<u16> = waiting.into_iter().map(|(_, head)| head).collect();
        // One batch of all of them, in the order in which they will be given back: whoever comes after us takes as many
        // off its front as the used index has moved.
        for pair in heads.windows(2) {
            self.half(self.entry(pair[0]) + split::NEXT).store(pair[1], Ordering::Relaxed);
        }
        if let (Some(&first), Some(&last)) = (heads.first(), heads.last()) {
            self.half(self.entry(last) + split::NEXT).store(last, Ordering::Relaxed);
            self.half(split::LAST_BATCH_HEAD).store(first, Ordering::Release);
        }
        if self.gone() { Err(RingFault::InflightGone) } else { Ok(heads) }
    }

    /// Everything that [`Region::take_over`] gave has been given back; the used index is `used`.
    pub(crate) fn settle(&self, heads: &[u16], used: u16) {
        for &head in heads {
            self.byte(self.entry(head)).store(0, Ordering::Relaxed);
        }
        self.half(split::USED_IDX).store(used, Ordering::Release);
    }

    /// Where a packed ring stands, its wrap counter in the highest bit; `None` for a record that is only begun here.
    ///
    /// # Errors
    /// The record is not one of this ring, or there are buffers in flight, which our rings never leave: they are another
    /// device's, with a past that is not ours to guess.
    pub(crate) fn position(&self, size: u16, features: u64) -> Result<Option<u16>, RingFault> {
        if !self.begun(features)? {
            return Ok(None);
        }
        if (0..size).any(|i| self.byte(self.entry(i)).load(Ordering::Relaxed) != 0) {
            return Err(RingFault::BadInflight);
        }
        let word = self.word(packed::POSITIONS).load(Ordering::Acquire);
        // What the old position says has been shown to the driver; what the new one says may not have been.
        let (old, wrap) = ((word >> 16) as u16 & 0x7fff, (word >> 40) as u8 != 0);
        if old >= size {
            return Err(RingFault::BadInflight);
        }
        if self.gone() {
            return Err(RingFault::InflightGone);
        }
        Ok(Some(old | u16::from(wrap) << 15))
    }

    /// The packed ring stands at `at`.
    #[inline]
    pub(crate) fn commit(&self, at: u16) {
        let (index, wrap) = (u64::from(at & 0x7fff), u64::from(at >> 15));
        let word = index | index << 16 | wrap << 32 | wrap << 40;
        self.word(packed::POSITIONS).store(word, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
