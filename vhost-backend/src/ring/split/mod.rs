//! The split virtqueue, device side (virtio 1.3, section 2.7).
//!
//! A burst is handled in several passes (ring heads, descriptors, headers, copies), each of which asks for the cache
//! lines of the next: a pass of its own per packet would wait for memory three times a packet. Buffers are always
//! returned in the order in which they were taken, so a ring can be taken over from its used index alone.

mod deliver;
mod descriptor;
mod fetch;
mod index;

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::{RingFault, RingSetup};
use crate::eventfd;
use crate::frame::BURST;
use crate::memory::GuestMap;
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN};
use descriptor::Region;

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

/// An element of the used ring.
#[derive(Clone, Copy)]
#[repr(C)]
struct UsedElem {
    id: u32,
    len: u32,
}

/// A running split ring. Pointers go into guest memory, which `map` keeps mapped.
pub struct Ring {
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
    header_len: u8,
    mergeable: bool,
    indirect: bool,
    event_idx: bool,
    /// Whether the guest may ask for checksum or segmentation; otherwise its header is not even read.
    offloads: bool,
    hint: u32,
    /// The regions of `map` that were last used.
    regions: [Region; 2],
    map: Arc<GuestMap>,
    fault: Option<RingFault>,
    kick: Option<Arc<EventFd>>,
    call: Option<EventFd>,
    err: Option<EventFd>,
    setup_addresses: Addresses,
}

/// Where the frontend says the ring is.
#[derive(Clone, Copy)]
struct Addresses {
    desc: u64,
    avail: u64,
    used: u64,
}

// SAFETY: the pointers lead into guest memory, which belongs to no thread; `map` keeps it mapped wherever the ring goes.
unsafe impl Send for Ring {}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

impl Ring {
    /// Checks the setup and takes the ring over at its used index.
    ///
    /// # Errors
    /// Bad size, or addresses that are misaligned or not wholly within one region of guest memory.
    pub fn new(setup: RingSetup) -> Result<Self, RingFault> {
        if !setup.size.is_power_of_two() || setup.size > MAX_SIZE {
            return Err(RingFault::BadSize);
        }
        let modern = has(setup.features, VIRTIO_F_VERSION_1);
        let mergeable = has(setup.features, VIRTIO_NET_F_MRG_RXBUF);
        let mut ring = Self {
            desc: ptr::null(),
            avail: ptr::null(),
            used: ptr::null_mut(),
            size: setup.size,
            next_avail: setup.base,
            next_used: setup.base,
            taken: 0,
            heads: [0; BURST],
            header_len: if modern || mergeable { NET_HEADER_LEN } else { LEGACY_NET_HEADER_LEN } as u8,
            mergeable,
            indirect: has(setup.features, VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(setup.features, VIRTIO_RING_F_EVENT_IDX),
            offloads: [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]
                .iter()
                .any(|&bit| has(setup.features, bit)),
            hint: 0,
            regions: [Region::NONE; 2],
            map: setup.map.clone(),
            fault: None,
            kick: setup.kick,
            call: setup.call,
            err: setup.err,
            setup_addresses: Addresses { desc: setup.desc, avail: setup.avail, used: setup.used },
        };
        ring.set_map(setup.map)?;
        // All that was taken was given back in order, so the used index says where the ring stands, also after a
        // crash of ours when the frontend's base is only a guess.
        // SAFETY: `set_map` has checked that the used ring is mapped and aligned.
        ring.next_used = unsafe { ring.used_idx().load(Ordering::Acquire) };
        ring.next_avail = ring.next_used;
        ring.disarm();
        Ok(ring)
    }

    /// Where the ring stands (vhost-user: the answer to GET_VRING_BASE).
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Moves the ring to another memory map, in which its addresses must be valid again.
    ///
    /// # Errors
    /// The addresses are not in the new map; the ring then keeps the old one and is broken.
    pub fn set_map(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        let size = u64::from(self.size);
        let at = self.setup_addresses;
        if !at.desc.is_multiple_of(16) || !at.avail.is_multiple_of(2) || !at.used.is_multiple_of(4) {
            self.fault = Some(RingFault::RingMisaligned);
            return Err(RingFault::RingMisaligned);
        }
        let found = (
            map.user_range(at.desc, 16 * size),
            map.user_range(at.avail, 6 + 2 * size),
            map.user_range(at.used, 6 + 8 * size),
        );
        let (Some(desc), Some(avail), Some(used)) = found else {
            self.fault = Some(RingFault::RingNotMapped);
            return Err(RingFault::RingNotMapped);
        };
        // A frontend may place a region at an odd offset: what counts is where it is mapped here.
        if desc.align_offset(8) != 0 || avail.align_offset(2) != 0 || used.align_offset(4) != 0 {
            self.fault = Some(RingFault::RingMisaligned);
            return Err(RingFault::RingMisaligned);
        }
        self.desc = desc.cast();
        self.avail = avail.cast();
        self.used = used.cast();
        self.map = map;
        self.hint = 0;
        self.regions = [Region::NONE; 2];
        Ok(())
    }

    /// Replaces the descriptor by which the guest is interrupted.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
    }

    /// Replaces the descriptor by which the guest kicks.
    pub fn set_kick(&mut self, kick: Option<Arc<EventFd>>) {
        self.kick = kick;
    }

    /// Replaces the descriptor by which a fault is told.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.err = err;
    }

    /// The descriptor by which the guest kicks.
    pub fn kick(&self) -> Option<&Arc<EventFd>> {
        self.kick.as_ref()
    }

    /// Why the ring is out of service, if it is.
    pub fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    /// Tells the frontend that the ring broke.
    pub(crate) fn report_fault(&self) {
        if let Some(err) = &self.err {
            eventfd::signal(err);
        }
    }
}
