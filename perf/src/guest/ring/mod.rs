#![allow(unsafe_code)]
//! The driver's side of a virtqueue of either layout, with the two event descriptors of a vhost-user ring.
//!
//! Chains are known by their first descriptor's number in a table of the driver's: in a split ring that table is the
//! ring's own, in a packed ring it is private and written into the ring as chains are offered.

mod packed;
mod split;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vhost::VringConfigData;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::features;
use super::memory::Memory;

/// The chain goes on.
pub(super) const NEXT: u16 = 1;
/// The device writes this buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// A descriptor as a split ring has it (little-endian machines only, like the rest of this module).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// One ring and its two event descriptors.
pub(super) struct Ring {
    layout: Layout,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
}

enum Layout {
    Split(split::Ring),
    Packed(packed::Ring),
}

/// The same for both layouts.
macro_rules! either {
    ($self:expr, $ring:ident => $what:expr) => {
        match $self {
            Layout::Split($ring) => $what,
            Layout::Packed($ring) => $what,
        }
    };
}

impl Ring {
    /// Bytes of a ring of `size` entries, and room so that what follows begins on a page of its own.
    pub(super) fn footprint(size: u16) -> usize {
        split::Ring::footprint(size).max(packed::Ring::footprint(size))
    }

    /// A ring of zeroed memory at the page-aligned offset `at`. `size` is a power of two up to 32,768.
    pub(super) fn new(memory: Arc<Memory>, at: usize, size: u16, negotiated: u64) -> io::Result<Self> {
        let event_idx = negotiated & features::EVENT_IDX != 0;
        let in_order = negotiated & features::IN_ORDER != 0;
        Ok(Self {
            layout: if negotiated & features::RING_PACKED != 0 {
                Layout::Packed(packed::Ring::new(memory, at, size, event_idx, in_order))
            } else {
                Layout::Split(split::Ring::new(memory, at, size, event_idx))
            },
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            call: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn size(&self) -> u16 {
        either!(&self.layout, ring => ring.size())
    }

    /// Where a device begins with this ring when it is new (SET_VRING_BASE).
    pub(super) fn first_base(&self) -> u16 {
        match self.layout {
            Layout::Split(_) => 0,
            // The wrap counter.
            Layout::Packed(_) => 1 << 15,
        }
    }

    /// What SET_VRING_ADDR wants to know.
    pub(super) fn config(&self) -> VringConfigData {
        either!(&self.layout, ring => ring.config())
    }

    /// The descriptor on which the device's interrupts arrive.
    pub(super) fn call_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event descriptor stays open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) }
    }

    /// A descriptor of an indirect table as it lies in memory.
    pub(super) fn table_entry(&self, descriptor: Descriptor) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.len.to_le_bytes());
        match self.layout {
            Layout::Split(_) => {
                bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
                bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
            }
            // Its entries follow one another; only who writes is said of them.
            Layout::Packed(_) => bytes[14..].copy_from_slice(&(descriptor.flags & WRITE).to_le_bytes()),
        }
        bytes
    }

    /// Fills descriptor `id` (masked).
    #[inline]
    pub(super) fn set_descriptor(&mut self, id: u16, descriptor: Descriptor) {
        either!(&mut self.layout, ring => ring.set_descriptor(id, descriptor));
    }

    /// Only the address of descriptor `id` (masked); the rest stays as it was.
    #[inline]
    pub(super) fn set_address(&mut self, id: u16, address: u64) {
        either!(&mut self.layout, ring => ring.set_address(id, address));
    }

    /// Offers the chain that begins with descriptor `head`; seen by the device after [`Ring::publish`].
    #[inline]
    pub(super) fn offer(&mut self, head: u16) {
        either!(&mut self.layout, ring => ring.offer(head));
    }

    /// Offers `count` chains of one descriptor whose heads follow one another (see [`Ring::offer_in_order`]).
    #[inline]
    pub(super) fn offer_prefilled(&mut self, count: u16) {
        either!(&mut self.layout, ring => ring.offer_prefilled(count));
    }

    /// From now on the `n`th offer is of descriptor `n` (masked).
    pub(super) fn offer_in_order(&mut self) {
        match &mut self.layout {
            Layout::Split(ring) => ring.offer_in_order(),
            Layout::Packed(_) => {}
        }
    }

    /// The descriptor that the next position offers when heads are in order.
    #[inline]
    pub(super) fn next_in_order(&self) -> u16 {
        either!(&self.layout, ring => ring.next_in_order())
    }

    /// Chains offered and not yet seen as used.
    #[inline]
    pub(super) fn in_flight(&self) -> u16 {
        either!(&self.layout, ring => ring.in_flight())
    }

    /// Shows the device all that was offered, and kicks it if it wants that. Says whether it was kicked.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let wanted = either!(&mut self.layout, ring => ring.publish());
        if wanted {
            // Only a counter at its very end refuses, and then the device has a kick waiting.
            let _ = self.kick.write(1);
        }
        wanted
    }

    /// Chains that the device has used and we have not looked at. More than the ring's size is a broken device.
    #[inline]
    pub(super) fn used_count(&mut self) -> u16 {
        either!(&mut self.layout, ring => ring.used_count())
    }

    /// The used entry `ahead` positions from here: head descriptor and bytes written. Good up to `used_count`.
    #[inline]
    pub(super) fn used(&self, ahead: u16) -> (u32, u32) {
        either!(&self.layout, ring => ring.used(ahead))
    }

    /// Done with `count` used entries.
    #[inline]
    pub(super) fn advance(&mut self, count: u16) {
        either!(&mut self.layout, ring => ring.advance(count));
    }

    /// Asks for an interrupt with the next used entry. False if there is one already: look instead of waiting.
    pub(super) fn enable_interrupts(&mut self) -> bool {
        either!(&mut self.layout, ring => ring.enable_interrupts())
    }

    /// Polling from now on. With event indexes the device of a split ring may still interrupt once in 65,536 entries.
    pub(super) fn disable_interrupts(&mut self) {
        either!(&mut self.layout, ring => ring.disable_interrupts());
        while self.call.read().is_ok() {}
    }
}
