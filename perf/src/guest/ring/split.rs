#![allow(unsafe_code)]
//! The driver's side of a split virtqueue (virtio 1.3, section 2.7).
//!
//! Every index is masked by the ring's size before use, so nothing that the device writes can lead outside the
//! ring; what it writes is reported as it stands and judged by the caller.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use super::Descriptor;
use crate::guest::memory::Memory;
use vhost::VringConfigData;

/// `avail.flags`: no interrupts. `used.flags`: no kicks.
const SUPPRESS: u16 = 1;

/// One split ring.
pub(super) struct Ring {
    size: u16,
    descriptors: NonNull<Descriptor>,
    avail: NonNull<AtomicU16>,
    used: NonNull<AtomicU16>,
    at: usize,
    event_idx: bool,
    /// Next position of the available ring that we fill; free-running.
    next_avail: u16,
    /// What the device has been told of `next_avail`.
    published: u16,
    /// Next position of the used ring that we read; free-running.
    next_used: u16,
    /// Keeps the mapping under the pointers.
    memory: Arc<Memory>,
}

// SAFETY: the pointers lead into `memory`, which lives as long as the ring and may be used from any thread; the ring
// has one owner at a time.
unsafe impl Send for Ring {}

impl Ring {
    /// Bytes of a ring of `size` entries, and room so that what follows begins on a page of its own.
    pub(super) fn footprint(size: u16) -> usize {
        (Self::used_at(size) + 6 + 8 * usize::from(size)).next_multiple_of(4096)
    }

    fn avail_at(size: u16) -> usize {
        16 * usize::from(size)
    }

    fn used_at(size: u16) -> usize {
        (Self::avail_at(size) + 6 + 2 * usize::from(size)).next_multiple_of(4096)
    }

    /// A ring of zeroed memory at the page-aligned offset `at`. `size` is a power of two up to 32,768.
    pub(super) fn new(memory: Arc<Memory>, at: usize, size: u16, event_idx: bool) -> Self {
        assert!(
            size.is_power_of_two() && size <= 1 << 15 && at.is_multiple_of(4096),
            "ring of {size} at {at}"
        );
        let base = memory.pointer(at, Self::footprint(size));
        // SAFETY: all three parts are inside the footprint, and aligned, `at` being page-aligned.
        let (avail, used) =
            unsafe { (base.add(Self::avail_at(size)).cast(), base.add(Self::used_at(size)).cast()) };
        Self {
            size,
            descriptors: base.cast(),
            avail,
            used,
            at,
            event_idx,
            next_avail: 0,
            published: 0,
            next_used: 0,
            memory,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// What SET_VRING_ADDR wants to know.
    pub(super) fn config(&self) -> VringConfigData {
        let user = self.memory.user_base() + self.at as u64;
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: user,
            avail_ring_addr: user + Self::avail_at(self.size) as u64,
            used_ring_addr: user + Self::used_at(self.size) as u64,
            log_addr: None,
        }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// The 16-bit word `i` of the available ring: flags, idx, entries, used_event.
    #[inline]
    fn avail_word(&self, i: usize) -> &AtomicU16 {
        debug_assert!(i < 3 + usize::from(self.size));
        // SAFETY: inside the ring (callers pass 0, 1, or 2 and a masked index, or 2 + size); shared atomics.
        unsafe { self.avail.add(i).as_ref() }
    }

    /// The 16-bit word `i` of the used ring: flags, idx, then four words an entry, avail_event.
    #[inline]
    fn used_word(&self, i: usize) -> &AtomicU16 {
        debug_assert!(i < 3 + 4 * usize::from(self.size));
        // SAFETY: as in `avail_word`.
        unsafe { self.used.add(i).as_ref() }
    }

    /// Fills descriptor `id` (masked).
    #[inline]
    pub(super) fn set_descriptor(&mut self, id: u16, descriptor: Descriptor) {
        // SAFETY: a masked index is inside the table, which is 16-byte aligned.
        unsafe { self.descriptors.add(self.slot(id)).write_volatile(descriptor) };
    }

    /// Only the address of descriptor `id` (masked); the rest stays as it was.
    #[inline]
    pub(super) fn set_address(&mut self, id: u16, address: u64) {
        // SAFETY: as in `set_descriptor`; the address is the descriptor's first field.
        unsafe { self.descriptors.add(self.slot(id)).cast::<u64>().write_volatile(address) };
    }

    /// Offers the chain that begins with descriptor `head`; seen by the device after [`Ring::publish`].
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        self.avail_word(2 + self.slot(self.next_avail)).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Offers `count` chains whose heads already stand in the available ring (see [`Ring::offer_in_order`]).
    #[inline]
    pub(super) fn offer_prefilled(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_add(count);
    }

    /// Writes the available ring once and for all: position i offers descriptor i.
    pub(super) fn offer_in_order(&mut self) {
        for i in 0..self.size {
            self.avail_word(2 + usize::from(i)).store(i, Ordering::Relaxed);
        }
    }

    /// The descriptor that the next position offers when heads are in order.
    #[inline]
    pub(super) fn next_in_order(&self) -> u16 {
        self.slot(self.next_avail) as u16
    }

    /// Chains offered and not yet seen as used.
    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Shows the device all that was offered. Says whether it wants to be kicked.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.avail_word(1).store(new, Ordering::Release);
        self.published = new;
        // The device writes its wish, then looks at idx; we write idx, then look at its wish (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used_word(2 + 4 * usize::from(self.size)).load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_word(0).load(Ordering::Relaxed) & SUPPRESS == 0
        }
    }

    /// Chains that the device has used and we have not looked at. More than the ring's size is a broken device.
    #[inline]
    pub(super) fn used_count(&self) -> u16 {
        self.used_word(1).load(Ordering::Acquire).wrapping_sub(self.next_used)
    }

    /// The used entry `ahead` positions from here: head descriptor and bytes written. Good up to `used_count`.
    #[inline]
    pub(super) fn used(&self, ahead: u16) -> (u32, u32) {
        let slot = self.slot(self.next_used.wrapping_add(ahead));
        // SAFETY: a masked entry is inside the used ring; entries begin 4 bytes after its aligned start.
        let entry = unsafe { self.used.add(2 + 4 * slot).cast::<AtomicU32>() };
        // SAFETY: both words of that entry; shared atomics.
        unsafe { (entry.as_ref().load(Ordering::Relaxed), entry.add(1).as_ref().load(Ordering::Relaxed)) }
    }

    /// Done with `count` used entries.
    #[inline]
    pub(super) fn advance(&mut self, count: u16) {
        self.next_used = self.next_used.wrapping_add(count);
    }

    /// Asks for an interrupt with the next used entry. False if there is one already: look instead of waiting.
    pub(super) fn enable_interrupts(&mut self) -> bool {
        if self.event_idx {
            self.avail_word(2 + usize::from(self.size)).store(self.next_used, Ordering::Relaxed);
        }
        self.avail_word(0).store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.used_count() == 0
    }

    /// Polling from now on. With event indexes the device may still interrupt once in 65,536 entries.
    pub(super) fn disable_interrupts(&mut self) {
        if self.event_idx {
            self.avail_word(2 + usize::from(self.size))
                .store(self.next_used.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.avail_word(0).store(SUPPRESS, Ordering::Relaxed);
        }
    }
}
