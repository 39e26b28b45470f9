//! Descriptors and chains of a packed ring (virtio 1.3, sections 2.8.2 to 2.8.8): each is read once, each address checked.

use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Ring;
use super::position::Position;
use crate::ring::common::{F_INDIRECT, F_NEXT, F_WRITE, LONGEST_CHAIN};
use crate::ring::{More, RingFault};

/// `flags`: the driver's mark of its lap.
pub(super) const F_AVAIL: u16 = 1 << 7;
/// `flags`: the device's mark of its lap.
const F_USED: u16 = 1 << 15;
/// Both.
pub(super) const MARKS: u16 = F_AVAIL | F_USED;

/// In the second half of a descriptor: the buffer's number and the flags.
const ID_SHIFT: u32 = 32;
const FLAGS_SHIFT: u32 = 48;
pub(super) const ID: u64 = 0xffff << ID_SHIFT;
/// Bytes were written: the length means something.
pub(super) const WRITTEN: u64 = (F_WRITE as u64) << FLAGS_SHIFT;

/// A descriptor as it was read: address, length, buffer number and flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Descriptor {
    pub(super) const NONE: Self = Self { addr: 0, len: 0, id: 0, flags: 0 };

    #[inline(always)]
    pub(super) fn new(addr: u64, rest: u64) -> Self {
        Self { addr, len: rest as u32, id: (rest >> ID_SHIFT) as u16, flags: (rest >> FLAGS_SHIFT) as u16 }
    }
}

/// A descriptor in the ring, which the driver may change under us: its address, and length to flags as one word.
#[repr(C, align(16))]
pub(super) struct Slot {
    addr: AtomicU64,
    rest: AtomicU64,
}

impl Slot {
    /// Reads both halves, whoever owns the descriptor. Flags come first, together with length and number in one read.
    #[inline(always)]
    pub(super) fn read(&self) -> (u64, u64) {
        // Acquire: what the driver wrote before the flags is visible.
        let rest = self.rest.load(Ordering::Acquire);
        (self.addr.load(Ordering::Relaxed), rest)
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

    /// Buffer `id` that began at `at` and was only read.
    #[inline(always)]
    pub(super) fn read(at: Position, id: u16) -> Self {
        Self { at: at.index, word: u64::from(id) << ID_SHIFT | used(at) }
    }

    /// Buffer `id` that began at `at` and in which `written` bytes were written.
    #[inline(always)]
    pub(super) fn written(at: Position, id: u16, written: u32) -> Self {
        let Self { at, word } = Self::read(at, id);
        Self { at, word: word | WRITTEN | u64::from(written) }
    }

    /// Bytes written.
    #[inline(always)]
    pub(super) fn length(self) -> u32 {
        self.word as u32
    }
}

/// A buffer that `fetch` took: the second half of its descriptor as it goes back. Nothing is written into such a buffer, so
/// that where the length would be there is how many descriptors follow the first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent(u64);

impl Lent {
    pub(super) const NONE: Self = Self(0);

    /// The buffer of the one descriptor whose second half is `rest`, with the marks of those that go back, [`used`].
    #[inline(always)]
    pub(super) fn single(rest: u64, used: u64) -> Self {
        Self(rest & ID | used)
    }

    /// A chain that begins at `at`.
    pub(super) fn chain(at: Position, chain: &Chain) -> Self {
        Self(Used::read(at, chain.id).word | u64::from(chain.descriptors - 1))
    }

    /// Its descriptors.
    pub(super) fn descriptors(self) -> u16 {
        self.0 as u16 + 1
    }

    /// What goes back. Right for a single descriptor without more ado.
    #[inline(always)]
    pub(super) fn word(self) -> u64 {
        self.0 & !u64::from(u16::MAX)
    }

    #[inline(always)]
    pub(super) fn single_word(self) -> u64 {
        self.0
    }

    /// The same with the number of `last`, for which it stands, too.
    pub(super) fn with_id_of(self, last: Self) -> Self {
        Self(self.0 & !ID | last.0 & ID)
    }
}

/// The marks of descriptors that go back from `at` on, as they are in the second half.
#[inline(always)]
pub(super) fn used(at: Position) -> u64 {
    if at.wrap { u64::from(MARKS) << FLAGS_SHIFT } else { 0 }
}

/// The marks of a descriptor that the driver offers at `at`.
#[inline(always)]
pub(super) fn offered(at: Position) -> u16 {
    if at.wrap { F_AVAIL } else { F_USED }
}

/// A chain that has been walked.
pub(super) struct Chain {
    /// The number that the driver knows it by: its last descriptor's.
    pub(super) id: u16,
    /// Its descriptors in the ring.
    pub(super) descriptors: u16,
}

/// All descriptors of a ring.
///
/// # Safety
/// The ring has `size` of them at `desc`, mapped and aligned, for as long as they are looked at.
#[inline(always)]
pub(super) unsafe fn slots<'a>(desc: *const Slot, size: u16) -> &'a [Slot] {
    // SAFETY: per contract; atomics may change under us.
    unsafe { slice::from_raw_parts(desc, usize::from(size)) }
}

impl Ring {
    /// The descriptor at `index`.
    #[inline(always)]
    fn slot(&self, index: u16) -> &Slot {
        debug_assert!(index < self.size);
        // SAFETY: every caller's index is below the size, for which `set_map` has found memory and alignment; atomics may
        // change under us.
        unsafe { &*self.desc.add(usize::from(index)) }
    }

    /// The address of the descriptor at `index`.
    #[inline(always)]
    pub(super) fn address(&self, index: u16) -> &AtomicU64 {
        &self.slot(index).addr
    }

    /// Reads the descriptor at `at`, whoever owns it.
    #[inline(always)]
    pub(super) fn read(&self, at: Position) -> Descriptor {
        let (addr, rest) = self.slot(at.index).read();
        Descriptor::new(addr, rest)
    }

    /// The flags of the descriptor at `index`.
    #[inline(always)]
    pub(super) fn flags(&self, index: u16) -> u16 {
        (self.slot(index).rest.load(Ordering::Acquire) >> FLAGS_SHIFT) as u16
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
        self.flags(at.index) & MARKS == offered(at)
    }

    /// Whether a device has given back the descriptor at `at`.
    pub(super) fn is_used(&self, at: Position) -> bool {
        self.flags(at.index) & MARKS == if at.wrap { MARKS } else { 0 }
    }

    /// Gives a buffer back. The driver sees it if it has seen those before it.
    #[inline(always)]
    pub(super) fn write_used(&self, used: Used, order: Ordering) {
        // Length, number and flags go in one word, so that no driver sees half of them.
        self.slot(used.at).rest.store(used.word, order);
    }

    /// Gives back buffers of one descriptor each, from `index` on, which do not go beyond the ring's end.
    #[inline(always)]
    pub(super) fn write_run(&self, index: u16, words: impl Iterator<Item = u64>) {
        // SAFETY: `set_map` has found memory and alignment for so many.
        let slots = unsafe { slots(self.desc, self.size) };
        for (slot, word) in slots[usize::from(index)..].iter().zip(words) {
            slot.rest.store(word, Ordering::Relaxed);
        }
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
