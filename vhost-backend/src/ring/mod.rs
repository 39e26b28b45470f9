//! Virtio rings, device side: what a worker fetches from a guest and delivers to it.
//!
//! [`cell::RingCell`] is where a ring lives: the control thread puts it in and takes it out, workers use it for a
//! burst at a time under its lock. [`split::Ring`] is the split virtqueue (virtio 1.3, section 2.7).
//!
//! Whatever lies in guest memory may be a lie and may change at any time. Every descriptor is read once into locals,
//! every address is checked against the [`GuestMap`](crate::memory::GuestMap) before use, and a ring that breaks the
//! specification's rules is taken out of service with a [`RingFault`]; nobody else notices.

pub mod cell;
mod copy;
pub mod split;

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMap;

pub use cell::RingCell;
pub use split::Ring;

/// What the control thread knows about a ring when it starts it (vhost-user: SET_VRING_NUM, _ADDR, _BASE, _KICK, _CALL).
pub struct RingSetup {
    /// Entries, a power of two up to 32768.
    pub size: u16,
    /// Descriptor table, as an address of the frontend.
    pub desc: u64,
    /// Available ring, likewise.
    pub avail: u64,
    /// Used ring, likewise.
    pub used: u64,
    /// Next available index, where the ring was stopped.
    pub base: u16,
    /// Virtio features that the driver accepted.
    pub features: u64,
    /// The guest's memory.
    pub map: Arc<GuestMap>,
    /// Written by the guest when it adds buffers; without one the ring is polled for ever.
    pub kick: Option<Arc<EventFd>>,
    /// Written by us when we return buffers.
    pub call: Option<EventFd>,
    /// Written by us when the ring breaks.
    pub err: Option<EventFd>,
}

/// Why a ring was taken out of service. The guest or its frontend is at fault, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum RingFault {
    /// The size is no power of two, or is out of range.
    #[error("the ring's size is not a power of two of at most 32768")]
    BadSize = 1,
    /// The descriptor table or a ring does not lie wholly in guest memory.
    #[error("the ring's address does not lie in guest memory")]
    RingNotMapped,
    /// The descriptor table or a ring is not aligned as the specification demands.
    #[error("the ring's address is not aligned")]
    RingMisaligned,
    /// The available index is further ahead than the ring is long.
    #[error("the available index jumped further than the ring is long")]
    AvailIndexJump,
    /// A head or a `next` names a descriptor beyond the table.
    #[error("a descriptor index lies beyond the table")]
    BadDescriptor,
    /// A chain does not end within the length of its table.
    #[error("a descriptor chain loops or is too long")]
    ChainTooLong,
    /// A buffer lies outside of guest memory.
    #[error("a buffer does not lie in guest memory")]
    BufferNotMapped,
    /// A buffer's direction is wrong for this ring.
    #[error("a buffer has the wrong direction")]
    WrongDirection,
    /// An indirect descriptor without the feature, within an indirect table, or with a bad length.
    #[error("an indirect descriptor is not allowed here or has a bad length")]
    BadIndirect,
    /// A receive buffer or a transmitted chain is too short for the virtio-net header.
    #[error("a buffer is too short for the virtio-net header")]
    HeaderTooShort,
    /// The frontend truncated the file behind the guest's memory.
    #[error("the guest's memory was taken away by its frontend")]
    MemoryGone,
}

impl RingFault {
    /// The fault of a number that [`RingFault::code`] gave; `None` for 0.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        use RingFault::*;
        [
            BadSize,
            RingNotMapped,
            RingMisaligned,
            AvailIndexJump,
            BadDescriptor,
            ChainTooLong,
            BufferNotMapped,
            WrongDirection,
            BadIndirect,
            HeaderTooShort,
            MemoryGone,
        ]
        .into_iter()
        .find(|fault| fault.code() == code)
    }

    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

/// What a worker got from a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Frames that were lent.
    pub frames: usize,
    /// Chains given back because they held no frame (nothing behind the header).
    pub empty: usize,
    /// Chains given back because their frame was longer than [`MAX_FRAME`](crate::frame::MAX_FRAME).
    pub oversized: usize,
}

/// What became of the frames that a worker gave to a ring; masks of the burst's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Now the guest's.
    pub sent: u64,
    /// The guest had no buffers left.
    pub no_buffers: u64,
    /// Longer than the guest's buffer (without mergeable buffers).
    pub too_small: u64,
    /// The ring is not running (or broke at this burst).
    pub stopped: u64,
}
