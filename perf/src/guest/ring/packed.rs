#![allow(unsafe_code)]
//! The driver's side of a packed virtqueue (virtio 1.3, section 2.8).
//!
//! Every index is below the ring's size before use, so nothing that the device writes can lead outside the ring; what
//! it writes is reported as it stands and judged by the caller.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use vhost::VringConfigData;

use super::{Descriptor, NEXT};
use crate::guest::memory::Memory;

/// Descriptor flags: the driver's and the device's mark of the lap.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Event areas: notify always, never, at a position.
const ENABLE: u32 = 0;
const DISABLE: u32 = 1;
const AT: u32 = 2;

/// A place in the ring, and its lap.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    const START: Self = Self { index: 0, wrap: true };

    #[inline]
    fn advance(self, by: u16, size: u16) -> Self {
        let index = self.index + by;
        if index >= size { Self { index: index - size, wrap: !self.wrap } } else { Self { index, ..self } }
    }

    fn word(self) -> u32 {
        u32::from(self.index) | u32::from(self.wrap) << 15
    }
}

/// One packed ring.
pub(super) struct Ring {
    size: u16,
    /// Pairs of words: address, then length, number and flags.
    descriptors: NonNull<AtomicU64>,
    /// What we wish to be told, and behind it what the device does.
    events: NonNull<AtomicU32>,
    at: usize,
    event_idx: bool,
    in_order: bool,
    /// What is written into the ring when it is offered, by number.
    table: Vec<Descriptor>,
    /// Descriptors of the chain with this number, while the device has it.
    chain: Vec<u16>,
    /// Numbers in the order in which they were offered, by `offered`, masked.
    order: Vec<u16>,
    /// Chains offered; free-running.
    offered: u16,
    next_avail: Position,
    /// The first descriptor offered since the last publication: its place, and its second word.
    held: Option<(Position, u64)>,
    /// Chains found used, and of them those that were looked at; free-running.
    found: u16,
    looked: u16,
    /// Where the next used chain will appear.
    next_used: Position,
    /// Number and length of the chains found used, by `found`, masked.
    used: Vec<(u32, u32)>,
    /// Keeps the mapping under the pointers.
    memory: Arc<Memory>,
}

// SAFETY: the pointers lead into `memory`, which lives as long as the ring and may be used from any thread; the ring
// has one owner at a time.
unsafe impl Send for Ring {}

impl Ring {
    /// Bytes of a ring of `size` entries, and room so that what follows begins on a page of its own.
    pub(super) fn footprint(size: u16) -> usize {
        (Self::events_at(size) + 128).next_multiple_of(4096)
    }

    fn events_at(size: u16) -> usize {
        16 * usize::from(size)
    }

    /// The device's area begins a cache line of its own.
    const DEVICE_WORD: usize = 16;

    pub(super) fn new(memory: Arc<Memory>, at: usize, size: u16, event_idx: bool, in_order: bool) -> Self {
        assert!(
            size.is_power_of_two() && size <= 1 << 15 && at.is_multiple_of(4096),
            "ring of {size} at {at}"
        );
        let base = memory.pointer(at, Self::footprint(size));
        // SAFETY: inside the footprint, and aligned, `at` being page-aligned.
        let events = unsafe { base.add(Self::events_at(size)).cast() };
        let entries = usize::from(size);
        Self {
            size,
            descriptors: base.cast(),
            events,
            at,
            event_idx,
            in_order,
            table: vec![Descriptor::default(); entries],
            chain: vec![0; entries],
            order: vec![0; entries],
            offered: 0,
            next_avail: Position::START,
            held: None,
            found: 0,
            looked: 0,
            next_used: Position::START,
            used: vec![(0, 0); entries],
            memory,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn config(&self) -> VringConfigData {
        let user = self.memory.user_base() + self.at as u64;
        let events = user + Self::events_at(self.size) as u64;
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: user,
            avail_ring_addr: events,
            used_ring_addr: events + 4 * Self::DEVICE_WORD as u64,
            log_addr: None,
        }
    }

    #[inline]
    fn slot(&self, number: u16) -> usize {
        usize::from(number & (self.size - 1))
    }

    /// Word 0 (address) or 1 (the rest) of the descriptor at `index`.
    #[inline]
    fn word(&self, index: u16, word: usize) -> &AtomicU64 {
        debug_assert!(index < self.size && word < 2);
        // SAFETY: positions are below the size; shared atomics.
        unsafe { self.descriptors.add(2 * usize::from(index) + word).as_ref() }
    }

    /// Our event area (0) or the device's ([`Ring::DEVICE_WORD`]).
    #[inline]
    fn event(&self, word: usize) -> &AtomicU32 {
        debug_assert!(word == 0 || word == Self::DEVICE_WORD);
        // SAFETY: inside the footprint; shared atomics.
        unsafe { self.events.add(word).as_ref() }
    }

    #[inline]
    pub(super) fn set_descriptor(&mut self, id: u16, descriptor: Descriptor) {
        let slot = self.slot(id);
        self.table[slot] = descriptor;
    }

    #[inline]
    pub(super) fn set_address(&mut self, id: u16, address: u64) {
        let slot = self.slot(id);
        self.table[slot].address = address;
    }

    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        let head = self.slot(head);
        let mut descriptor = self.table[head];
        let mut count = 1;
        loop {
            let at = self.next_avail;
            let flags = descriptor.flags | if at.wrap { AVAIL } else { USED };
            let rest = u64::from(descriptor.len) | (head as u64) << 32 | u64::from(flags) << 48;
            self.word(at.index, 0).store(descriptor.address, Ordering::Relaxed);
            if self.held.is_none() {
                self.held = Some((at, rest));
            } else {
                self.word(at.index, 1).store(rest, Ordering::Relaxed);
            }
            self.next_avail = at.advance(1, self.size);
            if descriptor.flags & NEXT == 0 {
                break;
            }
            descriptor = self.table[self.slot(descriptor.next)];
            count += 1;
        }
        self.chain[head] = count;
        let slot = self.slot(self.offered);
        self.order[slot] = head as u16;
        self.offered = self.offered.wrapping_add(1);
    }

    #[inline]
    pub(super) fn offer_prefilled(&mut self, count: u16) {
        for _ in 0..count {
            self.offer(self.next_in_order());
        }
    }

    #[inline]
    pub(super) fn next_in_order(&self) -> u16 {
        self.slot(self.offered) as u16
    }

    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        self.offered.wrapping_sub(self.looked)
    }

    /// Shows the device all that was offered. Says whether it wants to be kicked.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((first, rest)) = self.held.take() else { return false };
        // The first one shows all of them (section 2.8.21.1).
        self.word(first.index, 1).store(rest, Ordering::Release);
        // The device writes its wish, then looks at the ring; we write into the ring, then look at its wish.
        fence(Ordering::SeqCst);
        let wish = self.event(Self::DEVICE_WORD).load(Ordering::Relaxed);
        match wish >> 16 & 3 {
            DISABLE => false,
            AT if self.event_idx => {
                let ahead = |word: u32| {
                    let lap = if (word >> 15 & 1 == 1) == first.wrap { 0 } else { u32::from(self.size) };
                    ((word & 0x7fff) + lap).wrapping_sub(u32::from(first.index))
                };
                ahead(wish & 0xffff) < ahead(self.next_avail.word())
            }
            _ => true,
        }
    }

    /// Chains that the device has used and we have not looked at. More than are in flight is a broken device.
    #[inline]
    pub(super) fn used_count(&mut self) -> u16 {
        while self.found != self.offered {
            let rest = self.word(self.next_used.index, 1).load(Ordering::Acquire);
            let marks = (rest >> 48) as u16 & (AVAIL | USED);
            if marks != if self.next_used.wrap { AVAIL | USED } else { 0 } {
                break;
            }
            let (id, len) = ((rest >> 32) as u16, rest as u32);
            if self.in_order {
                // One number stands for all that were offered before it and have not come back.
                while self.found.wrapping_add(1) != self.offered && self.order[self.slot(self.found)] != id {
                    self.take(self.order[self.slot(self.found)], 0);
                }
            }
            self.take(id, len);
        }
        self.found.wrapping_sub(self.looked)
    }

    #[inline]
    fn take(&mut self, id: u16, len: u32) {
        let (slot, at) = (self.slot(id), self.slot(self.found));
        self.used[at] = (u32::from(id), len);
        self.next_used = self.next_used.advance(self.chain[slot].max(1), self.size);
        self.found = self.found.wrapping_add(1);
    }

    #[inline]
    pub(super) fn used(&self, ahead: u16) -> (u32, u32) {
        self.used[self.slot(self.looked.wrapping_add(ahead))]
    }

    #[inline]
    pub(super) fn advance(&mut self, count: u16) {
        self.looked = self.looked.wrapping_add(count);
    }

    /// Asks for an interrupt with the next used entry. False if there is one already: look instead of waiting.
    pub(super) fn enable_interrupts(&mut self) -> bool {
        let wish = if self.event_idx { self.next_used.word() | AT << 16 } else { ENABLE << 16 };
        self.event(0).store(wish, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.used_count() == 0
    }

    pub(super) fn disable_interrupts(&mut self) {
        self.event(0).store(DISABLE << 16, Ordering::Relaxed);
    }
}
