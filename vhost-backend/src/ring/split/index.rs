//! The indexes of a split ring, and who wakes whom (virtio 1.3, sections 2.7.6 to 2.7.10).

use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use super::{Ring, UsedElem};
use crate::dirty::Track;
use crate::frame::BURST;
use crate::ring::RingFault;
use crate::ring::copy::prefetch_read;

/// `used.flags`: do not kick.
const USED_F_NO_NOTIFY: u16 = 1;
/// `avail.flags`: do not interrupt.
const AVAIL_F_NO_INTERRUPT: u16 = 1;

impl Ring {
    #[inline]
    pub(super) fn mask(&self) -> u16 {
        self.size - 1
    }

    /// # Safety
    /// The used ring must be mapped (`set_map` succeeded).
    #[inline]
    pub(super) unsafe fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: mapped and aligned per `set_map`; an atomic may change under us.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }
    }

    #[inline]
    pub(super) fn avail_idx(&self) -> u16 {
        // SAFETY: mapped and aligned per `set_map`. Acquire: what the guest wrote before its index is visible.
        unsafe { AtomicU16::from_ptr(self.avail.add(1).cast_mut()).load(Ordering::Acquire) }
    }

    /// Chains that the guest has made available; breaks the ring if the index is impossible.
    #[inline]
    pub(super) fn pending(&mut self) -> usize {
        let mut pending = self.avail_idx().wrapping_sub(self.next_avail);
        if pending == 0 && self.resumed.is_some() && self.go_on() {
            pending = self.avail_idx().wrapping_sub(self.next_avail);
        }
        if pending > self.size {
            return self.common.broken(RingFault::AvailIndexJump);
        }
        usize::from(pending)
    }

    /// The head at available index `index`.
    #[inline]
    pub(super) fn head(&self, index: u16) -> u16 {
        // SAFETY: the index is masked; the ring is mapped and aligned. Relaxed reads of a racing guest are single loads.
        unsafe {
            AtomicU16::from_ptr(self.avail.add(2 + usize::from(index & self.mask())).cast_mut())
                .load(Ordering::Relaxed)
        }
    }

    /// The heads from available index `first` on, all checked and asked for; `None` if one lies beyond the table.
    #[inline(always)]
    pub(super) fn heads(&self, first: u16, count: usize) -> Option<[u16; BURST]> {
        let mut heads = [0; BURST];
        let at = usize::from(first & self.mask());
        // The ring ends somewhere; what is beyond goes on at its beginning.
        let run = count.min(usize::from(self.size) - at);
        // SAFETY: `run` entries from `at` and `count - run` from 0 lie in the ring, whose entries begin after two words
        // and are mapped (`set_map`). `count` is at most BURST and the ring's size.
        unsafe {
            let ring = self.avail.add(2);
            ptr::copy_nonoverlapping(ring.add(at), heads.as_mut_ptr(), run);
            ptr::copy_nonoverlapping(ring, heads.as_mut_ptr().add(run), count - run);
        }
        let mut highest = 0;
        for &head in &heads[..count] {
            highest = highest.max(head);
            prefetch_read(self.desc.wrapping_add(usize::from(head)));
        }
        (highest < self.size).then_some(heads)
    }

    #[inline]
    pub(super) fn write_used(&self, index: u16, head: u16, len: u32) {
        // SAFETY: the index is masked; the used ring's elements begin 4 bytes in and are 4-aligned.
        unsafe {
            self.used
                .add(2)
                .cast::<UsedElem>()
                .add(usize::from(index & self.mask()))
                .write(UsedElem { id: u32::from(head), len });
        }
    }

    /// Writes used elements from used index `first` on.
    #[inline(always)]
    pub(super) fn write_used_run(&self, first: u16, elements: &[UsedElem]) {
        let at = usize::from(first & self.mask());
        let run = elements.len().min(usize::from(self.size) - at);
        // SAFETY: there are never more elements than the ring has; they begin 4 bytes in and are 4-aligned.
        unsafe {
            let ring = self.used.add(2).cast::<UsedElem>();
            ptr::copy_nonoverlapping(elements.as_ptr(), ring.add(at), run);
            ptr::copy_nonoverlapping(elements.as_ptr().add(run), ring, elements.len() - run);
        }
    }

    /// Publishes the used ring up to `next_used` and interrupts the guest if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, count: u16) {
        let new = self.next_used.wrapping_add(count);
        let old = self.next_used;
        self.next_used = new;
        // SAFETY: mapped per `set_map`. Release: elements and buffers are visible before the index.
        unsafe { self.used_idx().store(new, Ordering::Release) };
        if self.common.call.is_none() {
            return;
        }
        // The guest writes its wish and then looks at our index; we do it the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.common.event_idx {
            let event = self.head_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            // SAFETY: `avail.flags`, mapped and aligned.
            let flags = unsafe { AtomicU16::from_ptr(self.avail.cast_mut()).load(Ordering::Relaxed) };
            flags & AVAIL_F_NO_INTERRUPT == 0
        };
        // A driver that asked to hear of it when the device has run out hears of it whatever else it said (section 6.3).
        if wanted || self.common.notify_on_empty && self.avail_idx() == self.next_avail {
            self.common.interrupt();
        }
    }

    /// Tells of `count` elements of the used ring from index `first` on, which were written, and of its index.
    #[inline(always)]
    pub(super) fn track_used(&mut self, first: u16, count: u16, track: &mut impl Track) {
        let at = first & self.mask();
        let run = count.min(self.size - at);
        let ranges = [(4 + 8 * u64::from(at), 8 * run), (4, 8 * (count - run)), (0, 4)];
        let tracked = ranges.iter().try_for_each(|&(offset, len)| track.used_ring(offset, len.into()));
        self.common.logged(tracked);
    }

    /// Logs all of the used ring.
    pub(crate) fn log_all(&mut self) {
        self.common.log_used(0, 6 + 8 * u64::from(self.size));
    }

    /// `used_event`, behind the available ring.
    #[inline]
    fn head_event(&self) -> u16 {
        // SAFETY: `set_map` checked 6 + 2 * size bytes of the available ring.
        unsafe {
            AtomicU16::from_ptr(self.avail.add(2 + usize::from(self.size)).cast_mut()).load(Ordering::Relaxed)
        }
    }

    fn store_used_flags(&mut self, flags: u16) {
        // SAFETY: `used.flags`, mapped and aligned.
        unsafe { AtomicU16::from_ptr(self.used).store(flags, Ordering::Relaxed) };
        self.common.log_used(0, 2);
    }

    fn store_avail_event(&mut self, index: u16) {
        // SAFETY: behind the used ring's elements; `set_map` checked 6 + 8 * size bytes.
        unsafe {
            AtomicU16::from_ptr(self.used.add(2 + 4 * usize::from(self.size))).store(index, Ordering::Relaxed)
        };
        self.common.log_used(4 + 8 * u64::from(self.size), 2);
    }

    /// Asks for a kick at the next buffer; true if there are buffers already.
    pub(crate) fn arm(&mut self) -> bool {
        if self.resumed.is_some() {
            self.go_on();
        }
        if self.common.event_idx {
            self.store_avail_event(self.next_avail);
        } else {
            self.store_used_flags(0);
        }
        // Our wish must be visible before we look; otherwise a buffer added meanwhile is neither seen nor kicked.
        fence(Ordering::SeqCst);
        self.avail_idx() != self.next_avail
    }

    /// Asks for no kicks. With EVENT_IDX the stale `avail_event` does that by itself.
    pub(crate) fn disarm(&mut self) {
        if !self.common.event_idx {
            self.store_used_flags(USED_F_NO_NOTIFY);
        }
    }
}
