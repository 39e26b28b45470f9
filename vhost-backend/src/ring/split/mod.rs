//! The split virtqueue, device side (virtio 1.3, section 2.7).
//!
//! A burst is handled in several passes (ring heads, descriptors, headers, copies), each of which asks for the cache
//! lines of the next: a pass of its own per packet would wait for memory three times a packet. Buffers are always
//! returned in the order in which they were taken, so a ring can be taken over from its used index alone.

mod deliver;
mod descriptor;
mod fetch;
mod index;
mod resume;

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::common::{Common, Piece};
use super::{RingFault, RingSetup};
use crate::frame::BURST;
use crate::inflight::Region;
use crate::memory::GuestMap;
use resume::Resumed;

/// Largest split ring of the specification.
const MAX_SIZE: u16 = 32768;

/// A descriptor as it lies in guest memory, little-endian (we run on little-endian machines only; see `lib.rs`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn new(addr: u64, rest: u64) -> Self {
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// An element of the used ring.
#[derive(Clone, Copy)]
#[repr(C)]
struct UsedElem {
    id: u32,
    len: u32,
}

/// A running split ring. Pointers go into guest memory, which the common part's map keeps mapped.
pub(crate) struct Ring {
    desc: *const Descriptor,
    /// flags, idx, ring[size], used_event
    avail: *const u16,
    /// flags, idx, ring[size] of `UsedElem`, avail_event
    used: *mut u16,
    size: u16,
    /// Next entry of the available ring to take.
    next_avail: u16,
    /// Next entry of the used ring to fill; published up to here when no burst is at work.
    next_used: u16,
    /// Chains taken by `fetch` and not yet given back by `complete`.
    taken: u16,
    heads: [u16; BURST],
    /// Where `fetch` found their buffers.
    pieces: Box<[Piece; BURST]>,
    pub(super) common: Common,
    setup_addresses: Addresses,
    record: Option<Region>,
    /// What an earlier device left in flight, until all of it is given back.
    resumed: Option<Box<Resumed>>,
}

/// Where the frontend says the ring is.
#[derive(Clone, Copy)]
struct Addresses {
    desc: u64,
    avail: u64,
    used: u64,
}

// SAFETY: the pointers lead into guest memory, which belongs to no thread; the common part's
// map keeps it mapped wherever the ring goes.
unsafe impl Send for Ring {}

impl Ring {
    /// Checks the setup and takes the ring over at its used index.
    ///
    /// # Errors
    /// Bad size, or addresses that are misaligned or not wholly within one region of guest memory.
    pub(super) fn new(setup: RingSetup) -> Result<Self, RingFault> {
        if !setup.size.is_power_of_two() || setup.size > MAX_SIZE {
            return Err(RingFault::BadSize);
        }
        let map = setup.map.clone();
        let mut ring = Self {
            desc: ptr::null(),
            avail: ptr::null(),
            used: ptr::null_mut(),
            size: setup.size,
            next_avail: 0,
            next_used: 0,
            taken: 0,
            heads: [0; BURST],
            pieces: Box::new([Piece::NONE; BURST]),
            setup_addresses: Addresses { desc: setup.desc, avail: setup.avail, used: setup.used },
            common: Common::new(setup),
            record: None,
            resumed: None,
        };
        ring.set_map(map)?;
        // All that was taken was given back in order, so the used index says where the ring stands, also after a
        // crash of ours when the frontend's base is only a guess.
        // SAFETY: `set_map` has checked that the used ring is mapped and aligned.
        ring.next_used = unsafe { ring.used_idx().load(Ordering::Acquire) };
        ring.next_avail = ring.next_used;
        ring.disarm();
        Ok(ring)
    }

    /// Where the ring stands (vhost-user: the answer to GET_VRING_BASE).
    pub(super) fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    /// Moves the ring to another memory map, in which its addresses must be valid again.
    ///
    /// # Errors
    /// The addresses are not in the new map; the ring then keeps the old one and is broken.
    pub(super) fn set_map(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        let size = u64::from(self.size);
        let at = self.setup_addresses;
        if !at.desc.is_multiple_of(16) || !at.avail.is_multiple_of(2) || !at.used.is_multiple_of(4) {
            self.common.fault = Some(RingFault::RingMisaligned);
            return Err(RingFault::RingMisaligned);
        }
        let found = (
            map.user_range(at.desc, 16 * size),
            map.user_range(at.avail, 6 + 2 * size),
            map.user_range(at.used, 6 + 8 * size),
        );
        let (Some(desc), Some(avail), Some(used)) = found else {
            self.common.fault = Some(RingFault::RingNotMapped);
            return Err(RingFault::RingNotMapped);
        };
        // A frontend may place a region at an odd offset: what counts is where it is mapped here.
        if desc.align_offset(8) != 0 || avail.align_offset(2) != 0 || used.align_offset(4) != 0 {
            self.common.fault = Some(RingFault::RingMisaligned);
            return Err(RingFault::RingMisaligned);
        }
        self.desc = desc.cast();
        match &mut self.resumed {
            None => self.avail = avail.cast(),
            Some(resumed) => resumed.guests = avail.cast(),
        }
        self.used = used.cast();
        self.common.use_map(map);
        Ok(())
    }
}
