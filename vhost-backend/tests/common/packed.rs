//! A packed ring laid out by hand in a test guest's memory, and a driver for it.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use vhost_backend::ring::{RingCell, RingFault, RingSetup};

use crate::guest::*;

/// VIRTIO_F_RING_PACKED.
pub(crate) const PACKED: u64 = 1 << 34;
pub(crate) const IN_ORDER: u64 = 1 << 35;
pub(crate) const F_AVAIL: u16 = 1 << 7;
pub(crate) const F_USED: u16 = 1 << 15;
/// Event areas: notify always, never, at a position.
pub(crate) const EVENT_ENABLE: u16 = 0;
pub(crate) const EVENT_DISABLE: u16 = 1;
pub(crate) const EVENT_DESC: u16 = 2;

/// A position in a ring and its lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl At {
    pub(crate) const START: Self = Self { index: 0, wrap: true };

    pub(crate) fn next(self, size: u16) -> Self {
        if self.index + 1 == size {
            Self { index: 0, wrap: !self.wrap }
        } else {
            Self { index: self.index + 1, ..self }
        }
    }

    pub(crate) fn after(self, count: u16, size: u16) -> Self {
        (0..count).fold(self, |at, _| at.next(size))
    }

    pub(crate) fn word(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// As SET_VRING_BASE has it when both sides stand here.
    pub(crate) fn base(self) -> u32 {
        u32::from(self.word()) << 16 | u32::from(self.word())
    }

    /// The marks of a descriptor that is offered here.
    pub(crate) fn offered(self) -> u16 {
        if self.wrap { F_AVAIL } else { F_USED }
    }

    /// The marks of a descriptor that came back here.
    pub(crate) fn used(self) -> u16 {
        if self.wrap { F_AVAIL | F_USED } else { 0 }
    }
}

/// Where a packed ring lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedQueue {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
    pub(crate) end: u64,
}

impl PackedQueue {
    /// A ring at `at` (16-aligned), all parts behind one another.
    pub(crate) fn at(at: u64, size: u16) -> Self {
        let driver = at + 16 * u64::from(size);
        Self { size, desc: at, driver, device: driver + 4, end: driver + 8 }
    }

    /// A ring as it is when both sides have come to `at`: nothing is offered.
    pub(crate) fn reset(&self, guest: &Guest, at: At) {
        guest.write(self.desc, &vec![0; (self.end - self.desc) as usize]);
        for index in 0..self.size {
            // What lies ahead in this lap was used in the one before; what lies behind, in this one.
            let lap = At { index, wrap: if index >= at.index { !at.wrap } else { at.wrap } };
            self.set_desc(guest, index, 0, 0, 0, lap.used());
        }
    }

    pub(crate) fn set_desc(&self, guest: &Guest, index: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let at = self.desc + 16 * u64::from(index);
        // In memory the number comes before the flags.
        write_desc(guest, at, addr, len, id, flags);
    }

    /// Only the flags, which give the descriptor to the other side.
    pub(crate) fn set_flags(&self, guest: &Guest, index: u16, flags: u16) {
        guest.word(self.desc + 16 * u64::from(index) + 14).store(flags, Ordering::Release);
    }

    pub(crate) fn flags(&self, guest: &Guest, index: u16) -> u16 {
        guest.word(self.desc + 16 * u64::from(index) + 14).load(Ordering::Acquire)
    }

    /// Number and length of the descriptor at `index`.
    pub(crate) fn elem(&self, guest: &Guest, index: u16) -> (u16, u32) {
        let bytes = guest.read(self.desc + 16 * u64::from(index) + 8, 6);
        (
            u16::from_le_bytes([bytes[4], bytes[5]]),
            u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")),
        )
    }

    /// What the driver wishes of the device.
    pub(crate) fn wish(&self, guest: &Guest, at: u16, flags: u16) {
        guest.word(self.driver).store(at, Ordering::Relaxed);
        guest.word(self.driver + 2).store(flags, Ordering::Release);
    }

    /// What the device wishes of the driver: position and flags.
    pub(crate) fn wished(&self, guest: &Guest) -> (u16, u16) {
        let flags = guest.word(self.device + 2).load(Ordering::Acquire);
        (guest.word(self.device).load(Ordering::Relaxed), flags)
    }

    pub(crate) fn setup(&self, guest: &Guest, features: u64, base: u32) -> (RingSetup, Wires) {
        // The wires of a split ring of one entry at the same place.
        let (setup, wires) = Queue::at(self.desc, 1).setup(guest, features | PACKED, 0);
        let setup = RingSetup {
            size: self.size,
            desc: guest.user(self.desc),
            avail: guest.user(self.driver),
            used: guest.user(self.device),
            base: Some(base),
            ..setup
        };
        (setup, wires)
    }

    /// A cell with this ring running in it.
    pub(crate) fn start(&self, guest: &Guest, features: u64, base: u32) -> (RingCell, Wires) {
        running(self.setup(guest, features, base))
    }

    pub(crate) fn restart(
        &self,
        guest: &Guest,
        features: u64,
        base: u32,
        cell: &RingCell,
    ) -> Result<Wires, RingFault> {
        run(self.setup(guest, features, base), cell)
    }
}

/// A buffer that the device has.
#[derive(Clone, Copy, Debug)]
struct Offered {
    id: u16,
    descriptors: u16,
}

/// A buffer that came back: its number, and the length that was written, unless it was skipped in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Back {
    pub(crate) id: u16,
    pub(crate) len: Option<u32>,
    /// Whether the device says that it wrote into it.
    pub(crate) written: bool,
}

/// The driver of a packed ring.
pub(crate) struct Driver {
    pub(crate) queue: PackedQueue,
    pub(crate) next: At,
    pub(crate) used: At,
    free: u16,
    next_id: u16,
    offered: VecDeque<Offered>,
    /// Flags of first descriptors, which are written when the buffers are shown.
    staged: Vec<(u16, u16)>,
    tables: std::ops::Range<u64>,
    table_at: u64,
}

impl Driver {
    /// A driver that stands at `at` with an empty ring; indirect tables come from guest addresses `tables`.
    pub(crate) fn new(queue: PackedQueue, at: At, tables: std::ops::Range<u64>) -> Self {
        let table_at = tables.start;
        Self {
            queue,
            next: at,
            used: at,
            free: queue.size,
            // Numbers are the driver's own: not below the ring's size, and not in order of their values.
            next_id: 0xfff0,
            offered: VecDeque::new(),
            staged: Vec::new(),
            tables,
            table_at,
        }
    }

    /// Writes a buffer's descriptors, direct or as an indirect table, without showing them. Its number.
    pub(crate) fn offer(
        &mut self,
        guest: &Guest,
        pieces: &[Piece],
        write: bool,
        indirect: bool,
    ) -> Option<u16> {
        let needed = if indirect { 1 } else { pieces.len() as u16 };
        if needed == 0 || needed > self.free {
            return None;
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let write = if write { F_WRITE } else { 0 };
        let first = self.next;
        let mut put = |addr, len, flags: u16| {
            let at = self.next;
            let flags = flags | at.offered();
            // The first one's flags are what shows the chain: until then they are as if it had just been used.
            let early = if at == first { At { wrap: !at.wrap, ..at }.used() } else { flags };
            self.queue.set_desc(guest, at.index, addr, len, id, early);
            if at == first {
                self.staged.push((at.index, flags));
            }
            self.next = at.next(self.queue.size);
        };
        if indirect {
            if self.table_at + 32 + 16 * pieces.len() as u64 > self.tables.end {
                self.table_at = self.tables.start;
            }
            // Tables need no alignment: every other one is odd.
            let table = self.table_at + (self.table_at >> 4 & 1);
            for (i, &(addr, len)) in (0u64..).zip(pieces) {
                // Numbers and other flags mean nothing in a table.
                write_desc(guest, table + 16 * i, addr, len, 0xdead, write | F_NEXT);
            }
            put(table, 16 * pieces.len() as u32, F_INDIRECT);
            self.table_at = (table + 16 * pieces.len() as u64).next_multiple_of(16);
        } else {
            for (i, &(addr, len)) in pieces.iter().enumerate() {
                put(addr, len, write | if i + 1 < pieces.len() { F_NEXT } else { 0 });
            }
        }
        self.free -= needed;
        self.offered.push_back(Offered { id, descriptors: needed });
        Some(id)
    }

    /// Shows the device the first `count` buffers that were offered and not yet shown. True if it wants to be kicked.
    pub(crate) fn show(&mut self, guest: &Guest, count: usize, event_idx: bool) -> bool {
        let count = count.min(self.staged.len());
        let first = self.staged.first().map(|&(index, _)| index);
        let end = self.staged.get(count).map_or(self.next.index, |&(index, _)| index);
        for (index, flags) in self.staged.drain(..count) {
            self.queue.set_flags(guest, index, flags);
        }
        fence(Ordering::SeqCst);
        let (at, flags) = self.queue.wished(guest);
        match (flags, first) {
            (_, None) | (EVENT_DISABLE, _) => false,
            (EVENT_DESC, Some(first)) if event_idx => {
                // Fewer than a lap are shown at once, so the index alone tells.
                let mut index = first;
                loop {
                    if index == at & 0x7fff {
                        return true;
                    }
                    index = (index + 1) % self.queue.size;
                    if index == end {
                        return false;
                    }
                }
            }
            _ => true,
        }
    }

    /// Takes back what the device has used; with `in_order` it may skip some.
    pub(crate) fn reap(&mut self, guest: &Guest, in_order: bool) -> Vec<Back> {
        let mut back = Vec::new();
        while !self.offered.is_empty() {
            let flags = self.queue.flags(guest, self.used.index);
            if flags & (F_AVAIL | F_USED) != self.used.used() {
                break;
            }
            let (id, len) = self.queue.elem(guest, self.used.index);
            let written = flags & F_WRITE != 0;
            loop {
                let offered = self.offered.pop_front().unwrap_or_else(|| panic!("{id} was never offered"));
                self.free += offered.descriptors;
                self.used = self.used.after(offered.descriptors, self.queue.size);
                let last = offered.id == id;
                back.push(Back { id: offered.id, len: last.then_some(len), written });
                if last {
                    break;
                }
                assert!(in_order, "buffer {id} came back before {}", offered.id);
            }
        }
        back
    }
}
