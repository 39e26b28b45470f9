//! What a ring is whatever its layout: the guest's memory, what the driver accepted, and the descriptors by which both
//! sides wake each other.

use std::ptr;
use std::sync::Arc;

use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::copy::copy_upto_128;
use super::{More, RingFault, RingSetup};
use crate::dirty::Logging;
use crate::eventfd;
use crate::frame::{Burst, Frame, MAX_FRAME, SNAPSHOT, Segment};
use crate::memory::GuestMap;
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN, NetHeader};

/// `flags` of a descriptor: the chain goes on.
pub(super) const F_NEXT: u16 = 1;
/// `flags`: for the device to write; otherwise to read.
pub(super) const F_WRITE: u16 = 2;
/// `flags`: the buffer is a table of descriptors.
pub(super) const F_INDIRECT: u16 = 4;
/// Longest chain, and longest indirect table however short the queue is: QEMU's and Linux's own limit. It also bounds
/// what a guest with a long queue and tiny buffers can make a worker do.
pub(super) const LONGEST_CHAIN: u16 = 1024;
/// Bytes of a descriptor in every table.
pub(super) const DESCRIPTOR: u32 = 16;

/// A buffer of the guest's: where it lies here, and its bytes. Null where it takes more than that.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) at: *const u8,
    pub(super) len: u32,
}

impl Piece {
    pub(super) const NONE: Self = Self { at: ptr::null(), len: 0 };
}

/// Where an indirect table is.
#[derive(Clone, Copy)]
pub(super) enum Table {
    /// In one piece, at any address.
    Whole(*const u8),
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
    const NONE: Self = Self { gpa: 0, size: 0, host: ptr::null_mut() };

    /// Where `len` bytes at `addr` lie, if they lie within this region.
    #[inline(always)]
    pub(super) fn whole(&self, addr: u64, len: u32) -> Option<*mut u8> {
        let offset = addr.wrapping_sub(self.gpa);
        (offset < self.size && u64::from(len) <= self.size - offset)
            .then(|| self.host.wrapping_add(offset as usize))
    }
}

/// The part of a ring that does not depend on its layout.
pub(crate) struct Common {
    pub(super) header_len: u8,
    pub(super) mergeable: bool,
    pub(super) indirect: bool,
    pub(super) event_idx: bool,
    pub(super) in_order: bool,
    pub(super) notify_on_empty: bool,
    /// Whether the guest may ask for checksum or segmentation; otherwise its header is not even read.
    offloads: bool,
    hint: u32,
    /// The regions of `map` that were last used.
    regions: [Region; 2],
    pub(super) map: Arc<GuestMap>,
    pub(super) fault: Option<RingFault>,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Option<EventFd>,
    pub(super) err: Option<EventFd>,
    /// Only while a live migration is under way.
    pub(super) logging: Option<Box<Logging>>,
}

// SAFETY: the pointers lead into guest memory, which belongs to no thread; `map` keeps it mapped wherever the ring goes.
unsafe impl Send for Common {}

/// Whether a buffer of `len` bytes is longer than the header and not longer than any frame may be.
#[inline(always)]
pub(super) fn fits(len: u32, header_len: u8) -> bool {
    len.wrapping_sub(u32::from(header_len) + 1) < MAX_FRAME as u32
}

fn has(features: u64, bit: u32) -> bool {
    features >> bit & 1 == 1
}

impl Common {
    /// What the setup says, all but where the ring is.
    pub(super) fn new(setup: RingSetup) -> Self {
        let modern = has(setup.features, VIRTIO_F_VERSION_1);
        let mergeable = has(setup.features, VIRTIO_NET_F_MRG_RXBUF);
        Self {
            header_len: if modern || mergeable { NET_HEADER_LEN } else { LEGACY_NET_HEADER_LEN } as u8,
            mergeable,
            indirect: has(setup.features, VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(setup.features, VIRTIO_RING_F_EVENT_IDX),
            in_order: has(setup.features, VIRTIO_F_IN_ORDER),
            notify_on_empty: has(setup.features, VIRTIO_F_NOTIFY_ON_EMPTY),
            offloads: [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]
                .iter()
                .any(|&bit| has(setup.features, bit)),
            hint: 0,
            regions: [Region::NONE; 2],
            map: setup.map,
            fault: None,
            kick: setup.kick,
            call: setup.call,
            err: setup.err,
            logging: None,
        }
    }

    /// Goes over to another memory map.
    pub(super) fn use_map(&mut self, map: Arc<GuestMap>) {
        self.map = map;
        self.hint = 0;
        self.regions = [Region::NONE; 2];
    }

    /// The regions that were last used.
    #[inline(always)]
    pub(super) fn at_hand(&self) -> [Region; 2] {
        self.regions
    }

    /// Where `len` bytes at `addr` lie; null if they do not lie within one region.
    #[inline(always)]
    pub(super) fn whole(&mut self, addr: u64, len: u32) -> *mut u8 {
        match self.regions[0].whole(addr, len) {
            Some(at) => at,
            None => self.whole_elsewhere(addr, len),
        }
    }

    #[inline(never)]
    fn whole_elsewhere(&mut self, addr: u64, len: u32) -> *mut u8 {
        // A large guest has memory below and above 4 GiB, and its buffers lie in both.
        if let Some(at) = self.regions[1].whole(addr, len) {
            return at;
        }
        let Some((gpa, size, host)) = self.map.region_of(addr) else { return ptr::null_mut() };
        self.regions = [Region { gpa, size, host }, self.regions[0]];
        self.regions[0].whole(addr, len).unwrap_or(ptr::null_mut())
    }

    /// Gives the buffer at `addr` to `piece`, as where it is here, its guest address and its length; if it crosses regions,
    /// in several pieces.
    #[inline]
    pub(super) fn buffer(
        &mut self,
        addr: u64,
        len: u32,
        mut piece: impl FnMut(*mut u8, u64, u32) -> Result<More, RingFault>,
    ) -> Result<More, RingFault> {
        let at = self.whole(addr, len);
        if !at.is_null() && len > 0 { piece(at, addr, len) } else { self.pieces(addr, len, &mut piece) }
    }

    #[cold]
    fn pieces(
        &mut self,
        mut addr: u64,
        mut left: u32,
        piece: &mut dyn FnMut(*mut u8, u64, u32) -> Result<More, RingFault>,
    ) -> Result<More, RingFault> {
        while left > 0 {
            let (ptr, room) = self.map.translate(addr, &mut self.hint).ok_or(RingFault::BufferNotMapped)?;
            let len = u64::from(left).min(room) as u32;
            if len == 0 {
                return Err(RingFault::BufferNotMapped);
            }
            if piece(ptr, addr, len)? == More::No {
                return Ok(More::No);
            }
            addr = addr.wrapping_add(u64::from(len));
            left -= len;
        }
        Ok(More::Yes)
    }

    /// The indirect table of `len` bytes at `addr`, and how many descriptors it has. `flags` are those of the descriptor
    /// that names it.
    pub(super) fn table(&mut self, addr: u64, len: u32, flags: u16) -> Result<(Table, u16), RingFault> {
        // Sections 2.7.5.3.1 and 2.8.21: not together with NEXT. They also say that a table is at most as long as the
        // queue, but Linux fills longer ones when the queue is tiny, and other devices take them.
        let count = len / DESCRIPTOR;
        if !self.indirect
            || flags & F_NEXT != 0
            || !len.is_multiple_of(DESCRIPTOR)
            || count == 0
            || count > u32::from(LONGEST_CHAIN)
        {
            return Err(RingFault::BadIndirect);
        }
        let at = self.whole(addr, len);
        let table = if at.is_null() { Table::Scattered(addr) } else { Table::Whole(at) };
        Ok((table, count as u16))
    }

    /// Reads descriptor `index` of a table, once: its address, and the rest in one word.
    ///
    /// # Safety
    /// The table must hold more than `index` descriptors.
    #[inline]
    pub(super) unsafe fn read(&self, table: Table, index: u16) -> Result<(u64, u64), RingFault> {
        /// A word at any address.
        #[repr(C, packed)]
        struct Word(u64);
        let at = match table {
            Table::Whole(at) => at.wrapping_add(DESCRIPTOR as usize * usize::from(index)).cast::<Word>(),
            Table::Scattered(table) => return self.read_scattered(table, index),
        };
        // SAFETY: per contract; volatile since the guest may write meanwhile.
        Ok(unsafe { (at.read_volatile().0, at.add(1).read_volatile().0) })
    }

    #[cold]
    fn read_scattered(&self, table: u64, index: u16) -> Result<(u64, u64), RingFault> {
        let mut words = [[0; 8]; 2];
        let at = table.checked_add(u64::from(DESCRIPTOR) * u64::from(index));
        if !at.is_some_and(|at| self.map.copy_out(at, words.as_flattened_mut())) {
            return Err(RingFault::BufferNotMapped);
        }
        Ok((u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])))
    }

    #[cold]
    pub(super) fn broken<T: Default>(&mut self, fault: RingFault) -> T {
        // Memory that was taken away reads as zeroes, which may look like any other fault.
        self.fault = Some(if self.map.poisoned() { RingFault::MemoryGone } else { fault });
        T::default()
    }

    /// Breaks the ring if memory was taken away from under what has just been done.
    #[inline]
    pub(super) fn look_for_poison(&mut self) {
        if self.map.poisoned() {
            self.fault = Some(RingFault::MemoryGone);
        }
    }

    /// Logs a change of the part of the ring that the frontend has given an address for, made outside of a burst.
    pub(super) fn log_used(&mut self, offset: u64, len: u64) {
        if let Some(Err(fault)) = self.logging.as_ref().map(|logging| logging.used_ring(offset, len)) {
            self.fault = Some(fault);
        }
    }

    /// Breaks the ring if something could not be logged.
    #[inline(always)]
    pub(super) fn logged(&mut self, result: Result<(), RingFault>) {
        if let Err(fault) = result {
            self.fault = Some(fault);
        }
    }

    /// Appends the frames that lie, header first, in one piece each, up to the first that does not; how many.
    ///
    /// # Safety
    /// All bytes of a piece that is not null are mapped, and they are more than the header's.
    #[inline(always)]
    pub(super) unsafe fn push_whole(&self, burst: &mut Burst, pieces: &[Piece]) -> usize {
        // SAFETY: the same contract.
        unsafe {
            if self.offloads {
                self.push_pieces::<true>(burst, pieces)
            } else {
                self.push_pieces::<false>(burst, pieces)
            }
        }
    }

    /// # Safety
    /// As for [`Common::push_whole`].
    #[inline(always)]
    unsafe fn push_pieces<const OFFLOADS: bool>(&self, burst: &mut Burst, pieces: &[Piece]) -> usize {
        let header_len = usize::from(self.header_len);
        let first = burst.len;
        let slots = burst.snapshots[first..].iter_mut().zip(&mut burst.frames[first..]);
        let mut totals = burst.totals;
        let mut pushed = 0;
        for (&Piece { at, len }, (snapshot, frame)) in pieces.iter().zip(slots) {
            if at.is_null() {
                break;
            }
            let data = at.wrapping_add(header_len);
            let len = len - header_len as u32;
            let head_len = (len as usize).min(SNAPSHOT);
            // SAFETY: the snapshot holds 128 bytes; header and `len` bytes of data are mapped. The segment is the rest
            // of them, and the burst is cleared before the ring is let go (`RingCell::serve`).
            let tail = unsafe {
                copy_upto_128(data, snapshot.0.as_mut_ptr(), head_len);
                Segment::new(data.wrapping_add(head_len), len - head_len as u32)
            };
            let head_len = head_len as u16;
            *frame = Frame { len, head_len, more: 0, more_at: 0, header: NetHeader::default(), tail };
            totals.bytes += u64::from(len);
            totals.longest = totals.longest.max(len);
            if OFFLOADS {
                // SAFETY: at least the header's bytes are mapped.
                let (start, rest) = unsafe { read_header(at) };
                // With neither flags nor a GSO type the rest says nothing.
                if start as u16 != 0 {
                    let mut header = [0; NET_HEADER_LEN];
                    header[..8].copy_from_slice(&start.to_le_bytes());
                    header[8..LEGACY_NET_HEADER_LEN].copy_from_slice(&rest.to_le_bytes());
                    frame.header = NetHeader::from_bytes(&header);
                    totals.offloads |= 1 << (first + pushed);
                }
            }
            pushed += 1;
        }
        burst.totals = totals;
        burst.len = first + pushed;
        pushed
    }

    /// What the bytes of a header mean for this driver.
    pub(super) fn header(&self, mut bytes: [u8; NET_HEADER_LEN]) -> NetHeader {
        bytes[LEGACY_NET_HEADER_LEN..].fill(0);
        if self.offloads { NetHeader::from_bytes(&bytes).meaningful() } else { NetHeader::default() }
    }

    /// Puts frame `index` (below [`BURST`]) with its header into a buffer in one piece.
    ///
    /// # Safety
    /// Header and frame have room at `to`.
    #[inline(always)]
    pub(super) unsafe fn place(&self, burst: &Burst, index: usize, to: *mut u8) {
        let frame = &burst.frames[index];
        let data = to.wrapping_add(usize::from(self.header_len));
        let head_len = usize::from(frame.head_len);
        // SAFETY: per contract; the snapshot has `head_len` bytes; segments are readable while the burst holds them, and
        // together with the snapshot they are `len` bytes. They may overlap with `to` if a guest wants that; our snapshot
        // does not.
        unsafe {
            self.write_header(to, &frame.header);
            copy_upto_128(burst.snapshots[index].0.as_ptr(), data, head_len);
            let rest = data.wrapping_add(head_len);
            if frame.more > 0 {
                Self::place_segments(burst, index, rest);
            } else if !frame.tail.is_empty() {
                ptr::copy(frame.tail.ptr(), rest, frame.tail.len());
            }
        }
    }

    /// # Safety
    /// What follows the snapshot of frame `index` has room at `to`.
    #[inline(never)]
    unsafe fn place_segments(burst: &Burst, index: usize, mut to: *mut u8) {
        for segment in burst.tail(index) {
            // SAFETY: as in `place`.
            unsafe { ptr::copy(segment.ptr(), to, segment.len()) };
            to = to.wrapping_add(segment.len());
        }
    }

    /// Writes the header of a frame that takes one buffer.
    ///
    /// # Safety
    /// `header_len` bytes at `to` are mapped.
    #[inline(always)]
    unsafe fn write_header(&self, to: *mut u8, header: &NetHeader) {
        // SAFETY: per contract. The struct is the header as it lies in memory (`repr(C)`, little-endian): 8 bytes, two, and
        // two more for the number of buffers, which short headers lack.
        unsafe {
            let from = ptr::from_ref(header).cast::<u8>();
            let (start, rest) =
                (from.cast::<u64>().read_unaligned(), from.add(8).cast::<u16>().read_unaligned());
            to.cast::<u64>().write_unaligned(start);
            if usize::from(self.header_len) == NET_HEADER_LEN {
                to.add(8).cast::<u32>().write_unaligned(u32::from(rest) | 1 << 16);
            } else {
                to.add(8).cast::<u16>().write_unaligned(rest);
            }
        }
    }

    /// Interrupts the guest, if it can be.
    #[inline]
    pub(super) fn interrupt(&self) {
        if let Some(call) = &self.call {
            eventfd::signal(call);
        }
    }
}

/// The header at `at`, all but `num_buffers`, which means nothing on the way from a guest.
///
/// # Safety
/// At least 10 bytes at `at` are mapped.
#[inline(always)]
unsafe fn read_header(at: *const u8) -> (u64, u16) {
    #[repr(C, packed)]
    struct Words(u64, u16);
    // SAFETY: per contract; packed words have no alignment. Volatile: what is looked at is what is kept, whatever the
    // guest writes meanwhile.
    let Words(start, rest) = unsafe { at.cast::<Words>().read_volatile() };
    (start, rest)
}
