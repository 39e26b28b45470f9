//! The packed virtqueue, device side (virtio 1.3, section 2.8).
//!
//! One ring of descriptors serves both sides: the driver offers a descriptor by its flags, the device gives it back by
//! writing over it, and a counter that flips at the end of the ring tells the laps apart. Bursts are handled in passes
//! as in the split ring: descriptors are read one after another, their buffers asked for, then headers and bytes copied.
//!
//! Buffers are given back in the order in which they were taken, all of a burst's at once: the first of them is written
//! last, and the driver does not look beyond it.

mod deliver;
mod descriptor;
mod fetch;
mod find;
mod notify;
mod position;
mod resume;

use std::ptr;
use std::sync::Arc;

use super::common::{Common, DESCRIPTOR, Piece};
use super::{RingFault, RingSetup};
use crate::frame::BURST;
use crate::inflight::Region;
use crate::memory::GuestMap;
use descriptor::{Descriptor, Lent, Slot, Used};
use position::Position;

/// Largest packed ring of the specification. Unlike a split ring's, its size is any number up to there.
const MAX_SIZE: u16 = 32768;

/// A running packed ring. Pointers go into guest memory, which the common part's map keeps mapped.
pub(crate) struct Ring {
    desc: *const Slot,
    /// The driver's area: which used descriptors it wants to be interrupted for.
    driver: *const u32,
    /// The device's area: which descriptors we want to be kicked for.
    device: *mut u32,
    size: u16,
    /// Next descriptor to take.
    next_avail: Position,
    /// Where the next buffer is given back; the same as `next_avail` when no burst is at work.
    next_used: Position,
    /// Buffers taken by `fetch` and not yet given back by `complete`.
    taken: usize,
    /// What will be written over the first descriptor of each.
    lent: Box<[Lent; BURST]>,
    /// Where `fetch` found them.
    pieces: Box<[Piece; BURST]>,
    /// Descriptors of `fetch` that are more than one piece of memory.
    odd: Box<[Descriptor; BURST]>,
    /// What will be given back for a frame of several buffers; as long as the ring, so more never happens.
    pending: Box<[Used]>,
    pub(super) common: Common,
    setup_addresses: Addresses,
    record: Option<Region>,
    /// Whether the ring itself said where it stands.
    found: bool,
}

/// Where the frontend says the ring is.
#[derive(Clone, Copy)]
struct Addresses {
    desc: u64,
    driver: u64,
    device: u64,
}

// SAFETY: the pointers lead into guest memory, which belongs to no thread; the common part's map keeps it mapped
// wherever the ring goes.
unsafe impl Send for Ring {}

impl Ring {
    /// Where a ring begins that nobody has used yet, as SET_VRING_BASE says it.
    pub(super) const FRESH: u32 = 0x8000_8000;

    /// Checks the setup and takes the ring over where it says itself that it stands, or else where the base does.
    ///
    /// # Errors
    /// Bad size, a base beyond the ring, or addresses that are misaligned or not wholly within one region of guest
    /// memory.
    pub(super) fn new(setup: RingSetup) -> Result<Self, RingFault> {
        if setup.size == 0 || setup.size > MAX_SIZE {
            return Err(RingFault::BadSize);
        }
        let base = setup.base.unwrap_or(Self::FRESH);
        let (avail, used) = (Position::decode(base as u16), Position::decode((base >> 16) as u16));
        if avail.index >= setup.size {
            return Err(RingFault::BadBase);
        }
        let map = setup.map.clone();
        let mut ring = Self {
            desc: ptr::null(),
            driver: ptr::null(),
            device: ptr::null_mut(),
            size: setup.size,
            next_avail: avail,
            next_used: avail,
            taken: 0,
            lent: Box::new([Lent::NONE; BURST]),
            pieces: Box::new([Piece::NONE; BURST]),
            odd: Box::new([Descriptor::NONE; BURST]),
            pending: vec![Used::NONE; usize::from(setup.size)].into_boxed_slice(),
            setup_addresses: Addresses { desc: setup.desc, driver: setup.avail, device: setup.used },
            common: Common::new(setup),
            record: None,
            found: false,
        };
        ring.set_map(map)?;
        // A device that was there before us may have stopped with buffers that it had taken and not given back: they are
        // between the two positions, and still the driver's to get back. Those that know nothing of the second position
        // (DPDK, on both sides) leave it zero, which then says nothing.
        let behind = used.distance(avail, ring.size);
        let believable = base >> 16 != 0 && used.index < ring.size && (1..=ring.size).contains(&behind);
        if let Some(at) = ring.find() {
            ring.found = true;
            ring.stand_at(at);
        } else if believable && ring.is_available(used) {
            ring.stand_at(used);
        }
        ring.disarm();
        Ok(ring)
    }

    fn stand_at(&mut self, at: Position) {
        self.next_avail = at;
        self.next_used = at;
    }

    /// Where the ring stands (vhost-user: the answer to GET_VRING_BASE): the next descriptor to take in the lower half,
    /// the next to give back in the upper, each with its lap in the highest bit. Between bursts they are the same.
    pub(super) fn base(&self) -> u32 {
        u32::from(self.next_avail.encode()) | u32::from(self.next_used.encode()) << 16
    }

    /// Moves the ring to another memory map, in which its addresses must be valid again.
    ///
    /// # Errors
    /// The addresses are not in the new map; the ring then keeps the old one and is broken.
    pub(super) fn set_map(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        let at = self.setup_addresses;
        let found = (
            map.user_range(at.desc, u64::from(DESCRIPTOR) * u64::from(self.size)),
            map.user_range(at.driver, 4),
            map.user_range(at.device, 4),
        );
        let aligned =
            at.desc.is_multiple_of(16) && at.driver.is_multiple_of(4) && at.device.is_multiple_of(4);
        let fault = match found {
            _ if !aligned => RingFault::RingMisaligned,
            (Some(desc), Some(driver), Some(device)) => {
                // A frontend may place a region at an odd offset: what counts is where it is mapped here.
                if desc.align_offset(16) == 0 && driver.align_offset(4) == 0 && device.align_offset(4) == 0 {
                    self.desc = desc.cast::<Slot>().cast_const();
                    self.driver = driver.cast::<u32>().cast_const();
                    self.device = device.cast();
                    self.common.use_map(map);
                    return Ok(());
                }
                RingFault::RingMisaligned
            }
            _ => RingFault::RingNotMapped,
        };
        self.common.fault = Some(fault);
        Err(fault)
    }
}
