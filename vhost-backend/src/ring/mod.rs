//! Virtio rings, device side: what a worker fetches from a guest and delivers to it.
//!
//! [`cell::RingCell`] is where a ring lives: the control thread puts it in and takes it out, workers use it for a
//! burst at a time under its lock. [`Ring`] is a virtqueue of either layout: split (virtio 1.3, section 2.7) or packed
//! (section 2.8), as the driver has chosen; which one is asked once for each burst and not for each packet.
//!
//! Whatever lies in guest memory may be a lie and may change at any time. Every descriptor is read once into locals,
//! every address is checked against the [`GuestMap`](crate::memory::GuestMap) before use, and a ring that breaks the
//! specification's rules is taken out of service with a [`RingFault`]; nobody else notices.

pub mod cell;
mod common;
mod copy;
mod gather;
mod packed;
mod scatter;
mod split;

use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vmm_sys_util::eventfd::EventFd;

use crate::dirty::{Dirty, Logging, Untracked};
use crate::eventfd;
use crate::frame::Burst;
use crate::inflight::Region;
use crate::memory::GuestMap;

pub use cell::RingCell;
use common::Common;

/// What the control thread knows about a ring when it starts it (vhost-user: SET_VRING_NUM, _ADDR, _BASE, _KICK, _CALL).
pub struct RingSetup {
    /// Entries, up to 32768; of a split ring a power of two.
    pub size: u16,
    /// Descriptor table, as an address of the frontend.
    pub desc: u64,
    /// Available ring, or the driver's event area of a packed ring, likewise.
    pub avail: u64,
    /// Used ring, or the device's event area of a packed ring, likewise.
    pub used: u64,
    /// Where the ring was stopped, as [`Ring::base`] says it; `None` for a ring that nobody has used yet.
    pub base: Option<u32>,
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
    #[error("the ring's size is not possible: 1 to 32768 entries, a power of two if the ring is split")]
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
    /// The frontend lets a packed ring begin behind its end.
    #[error("the ring's base lies beyond its end")]
    BadBase,
    /// The record of what is in flight is not one of this ring.
    #[error("the record of what is in flight does not fit the ring")]
    BadInflight,
    /// The frontend truncated the file behind that record.
    #[error("the record of what is in flight was taken away by its frontend")]
    InflightGone,
    /// A page was written for which the dirty log (live migration) has no bit.
    #[error("the dirty log is too small for the guest's memory")]
    LogTooSmall,
    /// The frontend truncated the file behind the dirty log.
    #[error("the dirty log was taken away by its frontend")]
    LogGone,
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
            BadBase,
            BadInflight,
            InflightGone,
            LogTooSmall,
            LogGone,
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
    /// Others held the ring for longer than a sender waits.
    pub busy: u64,
}

/// What who looks at a chain says after each piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// What became of one frame.
enum Placed {
    Whole,
    NoBuffers,
    TooSmall,
}

/// A running virtqueue. On cache lines of its own, as its [`RingCell`] is.
#[repr(align(128))]
pub struct Ring(Layout);

/// The layout, and whether what is written is logged: a burst asks for both at once, so that a log costs nothing where
/// there is none.
enum Layout {
    Split(split::Ring),
    Packed(packed::Ring),
    SplitLogged(split::Ring),
    PackedLogged(packed::Ring),
}

/// The same for both layouts.
macro_rules! either {
    ($self:expr, $ring:ident => $what:expr) => {
        match $self {
            Layout::Split($ring) | Layout::SplitLogged($ring) => $what,
            Layout::Packed($ring) | Layout::PackedLogged($ring) => $what,
        }
    };
}

impl Ring {
    /// Whether rings are packed with these features.
    pub(crate) fn is_packed(features: u64) -> bool {
        features >> VIRTIO_F_RING_PACKED & 1 == 1
    }

    /// Bytes of the three parts of a ring of `size` entries, in the order of [`RingSetup`].
    pub(crate) fn parts(features: u64, size: u16) -> [u64; 3] {
        let size = u64::from(size);
        if Self::is_packed(features) { [16 * size, 4, 4] } else { [16 * size, 4 + 2 * size, 4 + 8 * size] }
    }

    /// Checks the setup and takes the ring over: a split one at its used index, a packed one at its base.
    ///
    /// # Errors
    /// Bad size or base, or addresses that are misaligned or not wholly within one region of guest memory.
    pub fn new(setup: RingSetup) -> Result<Self, RingFault> {
        Ok(Self(if Self::is_packed(setup.features) {
            Layout::Packed(packed::Ring::new(setup)?)
        } else {
            Layout::Split(split::Ring::new(setup)?)
        }))
    }

    /// Where the ring stands (vhost-user: the answer to GET_VRING_BASE): the next available index of a split ring; of a
    /// packed one the next descriptor to take in 15 bits and its wrap counter, and in the upper half the same of the
    /// next one to give back.
    pub fn base(&self) -> u32 {
        either!(&self.0, ring => ring.base())
    }

    /// Moves the ring to another memory map, in which its addresses must be valid again.
    ///
    /// # Errors
    /// The addresses are not in the new map; the ring then keeps the old one and is broken.
    pub fn set_map(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        either!(&mut self.0, ring => ring.set_map(map))
    }

    fn common(&self) -> &Common {
        either!(&self.0, ring => &ring.common)
    }

    fn common_mut(&mut self) -> &mut Common {
        either!(&mut self.0, ring => &mut ring.common)
    }

    /// Takes the ring over from a device that was there before, as the record of what is in flight says, and keeps the
    /// record from now on. To be called before the first burst.
    ///
    /// # Errors
    /// The record is not one of this ring.
    pub(crate) fn keep_record(&mut self, record: Region, features: u64) -> Result<(), RingFault> {
        either!(&mut self.0, ring => ring.keep_record(record, features))
    }

    /// Ends the record: whoever starts the ring again does so from its base.
    pub(crate) fn end_record(&self) {
        if let Some(record) = either!(&self.0, ring => ring.record()) {
            record.end();
        }
    }

    /// The same ring, which logs what is written in another way from now on, or no more. All that the device may write of
    /// the ring itself counts as written just now: what was missed while there was no log is not missed for good.
    pub fn with_logging(mut self, logging: Option<Logging>) -> Self {
        let logs = logging.is_some();
        self.common_mut().logging = logging.map(Box::new);
        either!(&mut self.0, ring => ring.log_all());
        Self(match (self.0, logs) {
            (Layout::Split(ring) | Layout::SplitLogged(ring), false) => Layout::Split(ring),
            (Layout::Split(ring) | Layout::SplitLogged(ring), true) => Layout::SplitLogged(ring),
            (Layout::Packed(ring) | Layout::PackedLogged(ring), false) => Layout::Packed(ring),
            (Layout::Packed(ring) | Layout::PackedLogged(ring), true) => Layout::PackedLogged(ring),
        })
    }

    /// Has `write` write, and logs what it tells.
    #[cold]
    #[inline(never)]
    fn log<R: Default>(&mut self, write: impl FnOnce(&mut Self, &mut Dirty<'_>) -> R) -> R {
        let Some(logging) = self.common_mut().logging.take() else { return R::default() };
        let result = write(self, &mut Dirty::new(&logging));
        self.common_mut().logged(logging.end());
        self.common_mut().logging = Some(logging);
        result
    }

    /// Replaces the descriptor by which the guest is interrupted.
    pub fn set_call(&mut self, call: Option<EventFd>) {
        self.common_mut().call = call;
    }

    /// Replaces the descriptor by which the guest kicks.
    pub fn set_kick(&mut self, kick: Option<Arc<EventFd>>) {
        self.common_mut().kick = kick;
    }

    /// Replaces the descriptor by which a fault is told.
    pub fn set_err(&mut self, err: Option<EventFd>) {
        self.common_mut().err = err;
    }

    /// The descriptor by which the guest kicks.
    pub fn kick(&self) -> Option<&Arc<EventFd>> {
        self.common().kick.as_ref()
    }

    /// Why the ring is out of service, if it is.
    #[inline]
    pub fn fault(&self) -> Option<RingFault> {
        self.common().fault
    }

    /// It was out of service elsewhere, and stays so.
    pub(crate) fn set_fault(&mut self, fault: RingFault) {
        self.common_mut().fault = Some(fault);
    }

    /// Tells the frontend that the ring broke.
    pub(crate) fn report_fault(&self) {
        if let Some(err) = &self.common().err {
            eventfd::signal(err);
        }
    }

    /// Fills the (empty) burst with what the guest sent. Every chain taken must be given back by [`Ring::complete`]
    /// once the burst is cleared.
    #[inline]
    pub(crate) fn fetch(&mut self, burst: &mut Burst) -> Served {
        either!(&mut self.0, ring => ring.fetch(burst))
    }

    /// Gives back what `fetch` took.
    #[inline]
    pub(crate) fn complete(&mut self) {
        match &mut self.0 {
            Layout::Split(ring) => ring.complete(&mut Untracked),
            Layout::Packed(ring) => ring.complete(&mut Untracked),
            _ => self.log(|ring, dirty| either!(&mut ring.0, ring => ring.complete(dirty))),
        }
    }

    /// Copies the frames of `mask` into the guest's buffers and publishes them, all at once.
    #[inline]
    pub(crate) fn deliver(&mut self, burst: &Burst, mask: u64) -> Delivered {
        match &mut self.0 {
            Layout::Split(ring) => ring.deliver(burst, mask, &mut Untracked),
            Layout::Packed(ring) => ring.deliver(burst, mask, &mut Untracked),
            _ => self.log(|ring, dirty| either!(&mut ring.0, ring => ring.deliver(burst, mask, dirty))),
        }
    }

    /// Asks for a kick at the next buffer; true if there are buffers already.
    pub(crate) fn arm(&mut self) -> bool {
        either!(&mut self.0, ring => ring.arm())
    }

    /// Asks for no kicks.
    pub(crate) fn disarm(&mut self) {
        either!(&mut self.0, ring => ring.disarm());
    }
}
