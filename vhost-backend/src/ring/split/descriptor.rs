//! Descriptors, chains and indirect tables (virtio 1.3, section 2.7.5): each is read once, each address checked.

use super::{Descriptor, Ring};
use crate::ring::RingFault;

/// `flags`: the chain goes on at `next`.
const F_NEXT: u16 = 1;
/// `flags`: for the device to write; otherwise to read.
pub(super) const F_WRITE: u16 = 2;
/// `flags`: the buffer is a table of descriptors.
const F_INDIRECT: u16 = 4;
/// Longest chain, and longest indirect table however short the queue is: QEMU's and Linux's own limit. It also bounds
/// what a guest with a long queue and tiny buffers can make a worker do.
const LONGEST_CHAIN: u16 = 1024;

/// What who looks at a chain says after each piece.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Yes,
    No,
}

/// Where a table of descriptors is.
#[derive(Clone, Copy)]
enum Table {
    /// In one piece, aligned for a descriptor.
    Aligned(*const Descriptor),
    /// In one piece, at any address.
    Odd(*const Descriptor),
    /// At this guest address, from one region into the next, if it is mapped at all.
    Scattered(u64),
}

/// A region of guest memory at hand: its first guest address, its bytes, and where it is here.
#[derive(Clone, Copy)]
pub(super) struct Region {
    gpa: u64,
    size: u64,
    host: *mut u8,
}

impl Region {
    /// A region of no bytes.
    pub(super) const NONE: Self = Self { gpa: 0, size: 0, host: std::ptr::null_mut() };

    #[inline(always)]
    fn whole(&self, addr: u64, len: u32) -> Option<*mut u8> {
        let offset = addr.wrapping_sub(self.gpa);
        (offset < self.size && u64::from(len) <= self.size - offset)
            .then(|| self.host.wrapping_add(offset as usize))
    }
}

impl Ring {
    /// Reads descriptor `index` of the table at `table`, once.
    ///
    /// # Safety
    /// The table must hold more than `index` descriptors.
    #[inline(always)]
    pub(super) unsafe fn read(table: *const Descriptor, index: u16) -> Descriptor {
        let at = table.wrapping_add(usize::from(index)).cast::<u64>();
        // SAFETY: per contract; volatile since the guest may write meanwhile. Two words of 8 bytes are a descriptor.
        let (addr, rest) = unsafe { (at.read_volatile(), at.add(1).read_volatile()) };
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// [`Ring::read`] for a table that is not aligned.
    ///
    /// # Safety
    /// As for [`Ring::read`].
    #[cold]
    unsafe fn read_odd(table: *const Descriptor, index: u16) -> Descriptor {
        let at = table.wrapping_add(usize::from(index)).cast::<[u8; 16]>();
        // SAFETY: per contract; bytes have no alignment, and any bytes are a descriptor.
        unsafe { std::mem::transmute::<[u8; 16], Descriptor>(at.read_volatile()) }
    }

    /// Reads descriptor `index` of the table at guest address `table`, once, wherever its bytes lie.
    #[cold]
    fn read_scattered(&self, table: u64, index: u16) -> Result<Descriptor, RingFault> {
        let mut bytes = [0; 16];
        let at = table.checked_add(16 * u64::from(index));
        if !at.is_some_and(|at| self.map.copy_out(at, &mut bytes)) {
            return Err(RingFault::BufferNotMapped);
        }
        let [a, b, c, d, e, f, g, h, len @ .., i, j, k, l] = bytes;
        Ok(Descriptor {
            addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes(len),
            flags: u16::from_le_bytes([i, j]),
            next: u16::from_le_bytes([k, l]),
        })
    }

    /// Where `len` bytes at `addr` lie, if they lie within one region.
    #[inline(always)]
    pub(super) fn whole(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        match self.regions[0].whole(addr, len) {
            Some(at) => Some(at),
            None => self.whole_elsewhere(addr, len),
        }
    }

    #[inline(never)]
    fn whole_elsewhere(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        // A large guest has memory below and above 4 GiB, and its buffers lie in both.
        if let Some(at) = self.regions[1].whole(addr, len) {
            return Some(at);
        }
        let (gpa, size, host) = self.map.region_of(addr)?;
        self.regions = [Region { gpa, size, host }, self.regions[0]];
        self.regions[0].whole(addr, len)
    }

    /// Walks the chain at `head` and gives every piece to `piece` (a buffer that crosses regions comes in several),
    /// until the chain ends or `piece` answers that it needs no more of it.
    pub(super) fn walk(
        &mut self,
        head: u16,
        write: bool,
        mut piece: impl FnMut(*mut u8, u32) -> Result<More, RingFault>,
    ) -> Result<(), RingFault> {
        let mut table = Table::Aligned(self.desc);
        let mut table_len = self.size;
        let mut index = head;
        let mut budget = u32::from(self.size.min(LONGEST_CHAIN));
        let mut in_indirect = false;
        loop {
            if index >= table_len {
                return Err(RingFault::BadDescriptor);
            }
            if budget == 0 {
                return Err(RingFault::ChainTooLong);
            }
            budget -= 1;
            let desc = match table {
                // SAFETY: `index` is below the table's length; the table is mapped (checked by `set_map` or below).
                Table::Aligned(table) => unsafe { Self::read(table, index) },
                // SAFETY: as above.
                Table::Odd(table) => unsafe { Self::read_odd(table, index) },
                Table::Scattered(at) => self.read_scattered(at, index)?,
            };
            if desc.flags & F_INDIRECT != 0 {
                // Section 2.7.5.3.1: no nesting, not together with NEXT. It also says that a table is at most as long as
                // the queue, but Linux fills longer ones when the queue is tiny, and other devices take them.
                let count = desc.len / 16;
                if !self.indirect
                    || in_indirect
                    || desc.flags & F_NEXT != 0
                    || desc.len % 16 != 0
                    || count == 0
                    || count > u32::from(LONGEST_CHAIN)
                {
                    return Err(RingFault::BadIndirect);
                }
                // Unlike the queue's own, these tables may lie anywhere.
                table = match self.whole(desc.addr, desc.len) {
                    Some(at) if at.align_offset(align_of::<Descriptor>()) == 0 => Table::Aligned(at.cast()),
                    Some(at) => Table::Odd(at.cast()),
                    None => Table::Scattered(desc.addr),
                };
                (table_len, index, in_indirect) = (count as u16, 0, true);
                budget = count;
                continue;
            }
            if (desc.flags & F_WRITE != 0) != write {
                return Err(RingFault::WrongDirection);
            }
            let (mut addr, mut left) = (desc.addr, desc.len);
            while left > 0 {
                let (ptr, room) =
                    self.map.translate(addr, &mut self.hint).ok_or(RingFault::BufferNotMapped)?;
                let len = u64::from(left).min(room) as u32;
                if len == 0 {
                    return Err(RingFault::BufferNotMapped);
                }
                if piece(ptr, len)? == More::No {
                    return Ok(());
                }
                addr = addr.wrapping_add(u64::from(len));
                left -= len;
            }
            if desc.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
    }

    #[cold]
    pub(super) fn broken<T: Default>(&mut self, fault: RingFault) -> T {
        // Memory that was taken away reads as zeroes, which may look like any other fault.
        self.fault = Some(if self.map.poisoned() { RingFault::MemoryGone } else { fault });
        T::default()
    }
}
