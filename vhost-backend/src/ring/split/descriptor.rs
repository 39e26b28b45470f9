//! Descriptors, chains and indirect tables (virtio 1.3, section 2.7.5): each is read once, each address checked.

use super::{Descriptor, Ring};
use crate::ring::common::{F_INDIRECT, F_NEXT, F_WRITE, LONGEST_CHAIN};
use crate::ring::{More, RingFault};

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
        Descriptor::new(addr, rest)
    }

    /// Walks the chain at `head` and gives every piece to `piece` (a buffer that crosses regions comes in several),
    /// until the chain ends or `piece` answers that it needs no more of it.
    pub(super) fn walk(
        &mut self,
        head: u16,
        write: bool,
        mut piece: impl FnMut(*mut u8, u64, u32) -> Result<More, RingFault>,
    ) -> Result<(), RingFault> {
        let mut table = None;
        let mut table_len = self.size;
        let mut index = head;
        let mut budget = self.size.min(LONGEST_CHAIN);
        loop {
            if index >= table_len {
                return Err(RingFault::BadDescriptor);
            }
            if budget == 0 {
                return Err(RingFault::ChainTooLong);
            }
            budget -= 1;
            let desc = match table {
                // SAFETY: `index` is below the size of the ring's own table, which `set_map` has found.
                None => unsafe { Self::read(self.desc, index) },
                Some(table) => {
                    // SAFETY: `index` is below the indirect table's length.
                    let (addr, rest) = unsafe { self.common.read(table, index)? };
                    Descriptor::new(addr, rest)
                }
            };
            if desc.flags & F_INDIRECT != 0 {
                if table.is_some() {
                    return Err(RingFault::BadIndirect);
                }
                let (at, count) = self.common.table(desc.addr, desc.len, desc.flags)?;
                (table, table_len, index, budget) = (Some(at), count, 0, count);
                continue;
            }
            if (desc.flags & F_WRITE != 0) != write {
                return Err(RingFault::WrongDirection);
            }
            if self.common.buffer(desc.addr, desc.len, &mut piece)? == More::No {
                return Ok(());
            }
            if desc.flags & F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
    }
}
