//! Descriptors and chains of a packed ring (virtio 1.3, sections 2.8.2 to 2.8.8): each is read once, each address checked.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Ring;
use super::position::Position;
use crate::ring::common::{F_INDIRECT, F_NEXT, F_WRITE, LONGEST_CHAIN};
use crate::ring::{More, RingFault};

/// `flags`: the driver's mark of its lap.
const F_AVAIL: u16 = 1 << 7;
/// `flags`: the device's mark of its lap.
const F_USED: u16 = 1 << 15;
/// Both.
pub(super) const MARKS: u16 = F_AVAIL | F_USED;

/// A descriptor as it lies in guest memory, little-endian: address, length, buffer number and flags.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Descriptor {
    pub(super) const NONE: Self = Self { addr: 0, len: 0, id: 0, flags: 0 };

    #[inline(always)]
    fn new(addr: u64, rest: u64) -> Self {
        Self { addr, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }
}

/// A buffer that goes back to the driver: where it began, and the descriptor's second half.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) at: u16,
    pub(super) word: u64,
}

impl Used {
    pub(super) const NONE: Self = Self { at: 0, word: 0 };

    /// Buffer `id` that began at `at` and in which `written` bytes were written.
    #[inline(always)]
    pub(super) fn new(at: Position, id: u16, written: u32) -> Self {
        // WRITE: the length means something.
        let write = if written > 0 { F_WRITE } else { 0 };
        let flags = if at.wrap { MARKS | write } else { write };
        Self { at: at.index, word: u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48 }
    }
}

/// The marks of a descriptor that the driver offers at `at`.
#[inline(always)]
fn offered(at: Position) -> u16 {
    if at.wrap { F_AVAIL } else { F_USED }
}

/// A chain that has been walked.
pub(super) struct Chain {
    /// The number that the driver knows it by: its last descriptor's.
    pub(super) id: u16,
    /// Its descriptors in the ring.
    pub(super) descriptors: u16,
}

impl Ring {
    /// The second half of the descriptor at `index`, length to flags, as one word.
    #[inline(always)]
    fn rest(&self, index: u16) -> &AtomicU64 {
        debug_assert!(index < self.size);
        // SAFETY: every caller's index is below the size, for which `set_map` has found memory and alignment; an atomic
        // may change under us.
        unsafe { AtomicU64::from_ptr(self.desc.add(usize::from(index)).cast::<u64>().add(1)) }
    }

    /// Reads the descriptor at `at`, whoever owns it. Flags come first, together with length and number in one read.
    #[inline(always)]
    pub(super) fn read(&self, at: Position) -> Descriptor {
        // Acquire: what the driver wrote before the flags is visible.
        let rest = self.rest(at.index).load(Ordering::Acquire);
        // SAFETY: as in `rest`; volatile since the guest may write meanwhile.
        let addr = unsafe { self.desc.add(usize::from(at.index)).cast::<u64>().read_volatile() };
        Descriptor::new(addr, rest)
    }

    /// The descriptor at `at`, if the driver has made it available.
    #[inline(always)]
    pub(super) fn available(&self, at: Position) -> Option<Descriptor> {
        let desc = self.read(at);
        (desc.flags & MARKS == offered(at)).then_some(desc)
    }

    /// Whether the driver has made the descriptor at `at` available.
    #[inline(always)]
    pub(super) fn is_available(&self, at: Position) -> bool {
        (self.rest(at.index).load(Ordering::Acquire) >> 48) as u16 & MARKS == offered(at)
    }

    /// Gives a buffer back. The driver sees it if it has seen those before it.
    #[inline(always)]
    pub(super) fn write_used(&self, used: Used, order: Ordering) {
        // Length, number and flags go in one word, so that no driver sees half of them.
        self.rest(used.at).store(used.word, order);
    }

    /// Walks the chain whose descriptor at `at` has been read and gives every piece to `piece` (a buffer that crosses
    /// regions comes in several), until it ends or `piece` answers that it needs no more of it. The chain has at most
    /// `room` descriptors.
    pub(super) fn walk(
        &mut self,
        first: Descriptor,
        at: Position,
        room: u16,
        write: bool,
        mut piece: impl FnMut(*mut u8, u64, u32) -> Result<More, RingFault>,
    ) -> Result<Chain, RingFault> {
        let (mut desc, mut at) = (first, at);
        let mut more = More::Yes;
        let mut descriptors = 1;
        loop {
            if more == More::No {
                // Only where the chain ends is still of interest.
            } else if desc.flags & F_INDIRECT != 0 {
                more = self.walk_table(desc, write, &mut piece)?;
            } else if (desc.flags & F_WRITE != 0) != write {
                return Err(RingFault::WrongDirection);
            } else {
                more = self.common.buffer(desc.addr, desc.len, &mut piece)?;
            }
            if desc.flags & F_NEXT == 0 {
                return Ok(Chain { id: desc.id, descriptors });
            }
            if descriptors >= room.min(LONGEST_CHAIN) {
                return Err(RingFault::ChainTooLong);
            }
            descriptors += 1;
            // The first one's flags, which the driver writes last, stand for all of them (section 2.8.6).
            at = at.advance(1, self.size);
            desc = self.read(at);
        }
    }

    /// Walks an indirect table. All of it is the buffer: its flags say nothing but who writes (section 2.8.7).
    fn walk_table(
        &mut self,
        desc: Descriptor,
        write: bool,
        piece: &mut impl FnMut(*mut u8, u64, u32) -> Result<More, RingFault>,
    ) -> Result<More, RingFault> {
        let (table, count) = self.common.table(desc.addr, desc.len, desc.flags)?;
        for i in 0..count {
            // SAFETY: there are `count` descriptors in the table.
            let (addr, rest) = unsafe { self.common.read(table, i)? };
            let desc = Descriptor::new(addr, rest);
            if desc.flags & F_INDIRECT != 0 {
                return Err(RingFault::BadIndirect);
            }
            if (desc.flags & F_WRITE != 0) != write {
                return Err(RingFault::WrongDirection);
            }
            if self.common.buffer(desc.addr, desc.len, &mut *piece)? == More::No {
                return Ok(More::No);
            }
        }
        Ok(More::Yes)
    }
}
