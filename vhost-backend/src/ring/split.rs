//! The split virtqueue, device side (virtio 1.3, section 2.7).
//!
//! A burst is handled in several passes (ring heads, descriptors, headers, copies), each of which asks for the cache
//! lines of the next: a pass of its own per packet would wait for memory three times a packet. Buffers are always
//! returned in the order in which they were taken, so a ring can be taken over from its used index alone.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::copy::{copy_upto_128, prefetch_read, prefetch_write};
use super::{Delivered, RingFault, RingSetup, Served};
use crate::frame::{BURST, Burst, Frame, MAX_FRAME, SNAPSHOT, Segment};
use crate::memory::GuestMap;
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN, NetHeader};

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
/// `used.flags`: do not kick.
const USED_F_NO_NOTIFY: u16 = 1;
/// `avail.flags`: do not interrupt.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Largest split ring of the specification.
const MAX_SIZE: u16 = 32768;
/// Entries that an indirect table may have however short the queue is; QEMU's and Linux's own limit.
const MIN_INDIRECT_LIMIT: u16 = 1024;

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
    /// The region of `map` that was last used: its first guest address, its bytes, and where it is here.
    region: (u64, u64, *mut u8),
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
            region: (0, 0, ptr::null_mut()),
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
        self.region = (0, 0, ptr::null_mut());
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
            let _ = err.write(1);
        }
    }

    // ---- indexes and notifications ------------------------------------------------------------------------------

    #[inline]
    fn mask(&self) -> u16 {
        self.size - 1
    }

    /// # Safety
    /// The used ring must be mapped (`set_map` succeeded).
    #[inline]
    unsafe fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: mapped and aligned per `set_map`; an atomic may change under us.
        unsafe { AtomicU16::from_ptr(self.used.add(1)) }
    }

    #[inline]
    fn avail_idx(&self) -> u16 {
        // SAFETY: mapped and aligned per `set_map`. Acquire: what the guest wrote before its index is visible.
        unsafe { AtomicU16::from_ptr(self.avail.add(1).cast_mut()).load(Ordering::Acquire) }
    }

    /// Chains that the guest has made available; breaks the ring if the index is impossible.
    #[inline]
    fn pending(&mut self) -> usize {
        let pending = self.avail_idx().wrapping_sub(self.next_avail);
        if pending > self.size {
            return self.broken(RingFault::AvailIndexJump);
        }
        usize::from(pending)
    }

    /// The head at available index `index`.
    #[inline]
    fn head(&self, index: u16) -> u16 {
        // SAFETY: the index is masked; the ring is mapped and aligned. Relaxed reads of a racing guest are single loads.
        unsafe {
            AtomicU16::from_ptr(self.avail.add(2 + usize::from(index & self.mask())).cast_mut())
                .load(Ordering::Relaxed)
        }
    }

    /// The heads from available index `first` on, all checked and asked for; `None` if one lies beyond the table.
    #[inline(always)]
    fn heads(&self, first: u16, count: usize) -> Option<[u16; BURST]> {
        let mut heads = [0; BURST];
        let at = usize::from(first & self.mask());
        // The ring ends somewhere; what is beyond goes on at its beginning.
        let run = count.min(usize::from(self.size) - at);
        // SAFETY: `run` entries from `at` and `count - run` from 0 lie in the ring, whose entries begin after two words
        // and are mapped (`set_map`). `count` is at most BURST and the ring's size.
        unsafe {
            let ring = self.avail.add(2);
            ptr::copy_nonoverlapping(ring.add(at), heads.as_mut_ptr(), run);
            ptr::copy_nonoverlapping(ring, heads.as_mut_ptr().add(run), count - run);
        }
        let mut highest = 0;
        for &head in &heads[..count] {
            highest = highest.max(head);
            prefetch_read(self.desc.wrapping_add(usize::from(head)));
        }
        (highest < self.size).then_some(heads)
    }

    #[inline]
    fn write_used(&self, index: u16, head: u16, len: u32) {
        // SAFETY: the index is masked; the used ring's elements begin 4 bytes in and are 4-aligned.
        unsafe {
            self.used
                .add(2)
                .cast::<UsedElem>()
                .add(usize::from(index & self.mask()))
                .write(UsedElem { id: u32::from(head), len });
        }
    }

    /// Writes used elements from used index `first` on.
    #[inline(always)]
    fn write_used_run(&self, first: u16, elements: &[UsedElem]) {
        let at = usize::from(first & self.mask());
        let run = elements.len().min(usize::from(self.size) - at);
        // SAFETY: there are never more elements than the ring has; they begin 4 bytes in and are 4-aligned.
        unsafe {
            let ring = self.used.add(2).cast::<UsedElem>();
            ptr::copy_nonoverlapping(elements.as_ptr(), ring.add(at), run);
            ptr::copy_nonoverlapping(elements.as_ptr().add(run), ring, elements.len() - run);
        }
    }

    /// Publishes the used ring up to `next_used` and interrupts the guest if it wants that.
    #[inline]
    fn publish(&mut self, count: u16) {
        let new = self.next_used.wrapping_add(count);
        let old = self.next_used;
        self.next_used = new;
        // SAFETY: mapped per `set_map`. Release: elements and buffers are visible before the index.
        unsafe { self.used_idx().store(new, Ordering::Release) };
        let Some(call) = &self.call else { return };
        // The guest writes its wish and then looks at our index; we do it the other way round.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.head_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            // SAFETY: `avail.flags`, mapped and aligned.
            let flags = unsafe { AtomicU16::from_ptr(self.avail.cast_mut()).load(Ordering::Relaxed) };
            flags & AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            let _ = call.write(1);
        }
    }

    /// `used_event`, behind the available ring.
    #[inline]
    fn head_event(&self) -> u16 {
        // SAFETY: `set_map` checked 6 + 2 * size bytes of the available ring.
        unsafe {
            AtomicU16::from_ptr(self.avail.add(2 + usize::from(self.size)).cast_mut()).load(Ordering::Relaxed)
        }
    }

    fn store_used_flags(&self, flags: u16) {
        // SAFETY: `used.flags`, mapped and aligned.
        unsafe { AtomicU16::from_ptr(self.used).store(flags, Ordering::Relaxed) };
    }

    fn store_avail_event(&self, index: u16) {
        // SAFETY: behind the used ring's elements; `set_map` checked 6 + 8 * size bytes.
        unsafe {
            AtomicU16::from_ptr(self.used.add(2 + 4 * usize::from(self.size))).store(index, Ordering::Relaxed)
        };
    }

    /// Asks for a kick at the next buffer; true if there are buffers already.
    pub(crate) fn arm(&mut self) -> bool {
        if self.event_idx {
            self.store_avail_event(self.next_avail);
        } else {
            self.store_used_flags(0);
        }
        // Our wish must be visible before we look; otherwise a buffer added meanwhile is neither seen nor kicked.
        fence(Ordering::SeqCst);
        self.avail_idx() != self.next_avail
    }

    /// Asks for no kicks. With EVENT_IDX the stale `avail_event` does that by itself.
    pub(crate) fn disarm(&mut self) {
        if !self.event_idx {
            self.store_used_flags(USED_F_NO_NOTIFY);
        }
    }

    // ---- descriptors --------------------------------------------------------------------------------------------

    /// Reads descriptor `index` of the table at `table`, once.
    ///
    /// # Safety
    /// The table must hold more than `index` descriptors.
    #[inline(always)]
    unsafe fn read(table: *const Descriptor, index: u16) -> Descriptor {
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

    /// Where `len` bytes at `addr` lie, if they lie within one region.
    #[inline(always)]
    fn whole(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        let (gpa, size, host) = self.region;
        let offset = addr.wrapping_sub(gpa);
        if offset < size && u64::from(len) <= size - offset {
            return Some(host.wrapping_add(offset as usize));
        }
        self.whole_elsewhere(addr, len)
    }

    #[cold]
    fn whole_elsewhere(&mut self, addr: u64, len: u32) -> Option<*mut u8> {
        let (gpa, size, host) = self.map.region_of(addr)?;
        let offset = addr - gpa;
        if u64::from(len) > size - offset {
            return None;
        }
        self.region = (gpa, size, host);
        Some(host.wrapping_add(offset as usize))
    }

    /// Walks the chain at `head` and gives every piece to `piece` (a buffer that crosses regions comes in several),
    /// until the chain ends or `piece` answers that it needs no more of it.
    fn walk(
        &mut self,
        head: u16,
        write: bool,
        mut piece: impl FnMut(*mut u8, u32) -> Result<More, RingFault>,
    ) -> Result<(), RingFault> {
        let mut table = self.desc;
        let mut table_len = self.size;
        let mut index = head;
        let mut budget = u32::from(self.size);
        let (mut in_indirect, mut aligned) = (false, true);
        loop {
            if index >= table_len {
                return Err(RingFault::BadDescriptor);
            }
            if budget == 0 {
                return Err(RingFault::ChainTooLong);
            }
            budget -= 1;
            // SAFETY: `index` is below the table's length; the table is mapped (checked below or by `set_map`).
            let desc =
                unsafe { if aligned { Self::read(table, index) } else { Self::read_odd(table, index) } };
            if desc.flags & F_INDIRECT != 0 {
                // Section 2.7.5.3.1: no nesting, not together with NEXT. It also says that a table is at most as long as
                // the queue, but Linux fills longer ones when the queue is tiny, and other devices take them.
                let count = desc.len / 16;
                if !self.indirect
                    || in_indirect
                    || desc.flags & F_NEXT != 0
                    || desc.len % 16 != 0
                    || count == 0
                    || count > u32::from(self.size.max(MIN_INDIRECT_LIMIT))
                {
                    return Err(RingFault::BadIndirect);
                }
                let at = self.whole(desc.addr, desc.len).ok_or(RingFault::BufferNotMapped)?;
                // Unlike the queue's own, these tables may lie anywhere.
                aligned = at.align_offset(align_of::<Descriptor>()) == 0;
                (table, table_len, index, in_indirect) = (at.cast(), count as u16, 0, true);
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
    fn broken<T: Default>(&mut self, fault: RingFault) -> T {
        // Memory that was taken away reads as zeroes, which may look like any other fault.
        self.fault = Some(if self.map.poisoned() { RingFault::MemoryGone } else { fault });
        T::default()
    }

    // ---- from the guest -----------------------------------------------------------------------------------------

    /// Fills the (empty) burst with what the guest sent. Every chain taken must be given back by [`Ring::complete`]
    /// once the burst is cleared.
    pub(crate) fn fetch(&mut self, burst: &mut Burst) -> Served {
        burst.clear();
        let count = self.pending().min(BURST);
        if count == 0 {
            if self.map.poisoned() {
                self.fault = Some(RingFault::MemoryGone);
            }
            return Served::default();
        }
        let (desc, first) = (self.desc, self.next_avail);
        let Some(heads) = self.heads(first, count) else { return self.broken(RingFault::BadDescriptor) };

        // A buffer in one piece, as nearly all small frames are; a null pointer where a chain has to be walked.
        let mut pieces = [(ptr::null::<u8>(), 0u32); BURST];
        let header_len = u32::from(self.header_len);
        let longest = MAX_FRAME as u32;
        for (piece, &head) in pieces[..count].iter_mut().zip(&heads) {
            // SAFETY: heads are below the size.
            let desc = unsafe { Self::read(desc, head) };
            // Longer than the header, and not longer than any frame may be.
            if desc.flags == 0 && desc.len.wrapping_sub(header_len + 1) < longest {
                let Some(at) = self.whole(desc.addr, desc.len) else { continue };
                *piece = (at, desc.len);
                prefetch_read(at);
                prefetch_read(at.wrapping_add(64));
                prefetch_read(at.wrapping_add(128));
            }
        }

        let mut served = Served::default();
        let mut taken = 0;
        while taken < count {
            if pieces[taken].0.is_null() {
                if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                    // Room for a whole chain may be short: the rest of the ring makes the next burst.
                    break;
                }
                if let Err(fault) = self.push_chain(burst, heads[taken], &mut served) {
                    if !matches!(fault, RingFault::ChainTooLong) || burst.segments_used == 0 {
                        self.fault = Some(fault);
                    }
                    break;
                }
                taken += 1;
            } else {
                // SAFETY: `whole` has found these bytes, and they are more than the header.
                taken += unsafe { self.push_whole(burst, &pieces[taken..count]) };
            }
        }
        if self.map.poisoned() {
            self.fault = Some(RingFault::MemoryGone);
        }
        if self.fault.is_some() {
            // Nothing of a broken ring is forwarded, and nothing is given back.
            burst.clear();
            return Served::default();
        }
        self.heads = heads;
        self.taken = taken as u16;
        self.next_avail = first.wrapping_add(taken as u16);
        served.frames = burst.len();
        served
    }

    /// Appends the frames that lie, header first, in one piece each, up to the first that does not; how many.
    ///
    /// # Safety
    /// All bytes of a piece that is not null are mapped, and they are more than the header's.
    #[inline(always)]
    unsafe fn push_whole(&self, burst: &mut Burst, pieces: &[(*const u8, u32)]) -> usize {
        let header_len = usize::from(self.header_len);
        let first = burst.len;
        let mut totals = burst.totals;
        let mut pushed = 0;
        for &(at, len) in pieces {
            let slot = (first + pushed) % BURST;
            if at.is_null() {
                break;
            }
            let data = at.wrapping_add(header_len);
            let len = len - header_len as u32;
            let head_len = (len as usize).min(SNAPSHOT);
            // SAFETY: the snapshot holds 128 bytes; header and `len` bytes of data are mapped. The segment is the rest
            // of them, and the burst is cleared before the ring is let go (`RingCell::serve`).
            let (header, tail) = unsafe {
                copy_upto_128(data, burst.snapshots[slot].0.as_mut_ptr(), head_len);
                (self.read_header(at), Segment::new(data.wrapping_add(head_len), len - head_len as u32))
            };
            totals.add(slot, len, &header);
            burst.frames[slot] = Frame { len, head_len: head_len as u16, more: 0, more_at: 0, header, tail };
            pushed += 1;
        }
        burst.totals = totals;
        burst.len = first + pushed;
        pushed
    }

    /// # Safety
    /// At least 10 bytes at `at` are mapped.
    #[inline(always)]
    unsafe fn read_header(&self, at: *const u8) -> NetHeader {
        if !self.offloads {
            return NetHeader::default();
        }
        // SAFETY: per contract. The last two bytes (`num_buffers`) mean nothing on this way.
        let bytes = unsafe { at.cast::<[u8; LEGACY_NET_HEADER_LEN]>().read_unaligned() };
        if bytes[0] == 0 && bytes[1] == 0 {
            return NetHeader::default();
        }
        let mut full = [0; NET_HEADER_LEN];
        full[..LEGACY_NET_HEADER_LEN].copy_from_slice(&bytes);
        NetHeader::from_bytes(&full)
    }

    /// Appends the frame of a chain of several pieces.
    fn push_chain(&mut self, burst: &mut Burst, head: u16, served: &mut Served) -> Result<(), RingFault> {
        let header_len = usize::from(self.header_len);
        let mut header = [0u8; NET_HEADER_LEN];
        let mut header_have = 0;
        let mut head_have = 0;
        let mut len = 0usize;
        let mut tail = Segment::EMPTY;
        let more_at = burst.segments_used;
        let mut more = 0usize;
        let slot = burst.len;
        if slot == BURST {
            return Err(RingFault::ChainTooLong);
        }
        let snapshot = burst.snapshots[slot].0.as_mut_ptr();
        let segments = &mut burst.segments;
        self.walk(head, false, |ptr, piece_len| {
            let (mut ptr, mut left) = (ptr.cast_const(), piece_len as usize);
            if header_have < header_len {
                let n = left.min(header_len - header_have);
                // SAFETY: `walk` gives mapped bytes; `header` has room for `header_len`.
                unsafe { copy_upto_128(ptr, header.as_mut_ptr().add(header_have), n) };
                header_have += n;
                ptr = ptr.wrapping_add(n);
                left -= n;
            }
            len = len.saturating_add(left);
            if len > MAX_FRAME {
                return Ok(More::No);
            }
            if head_have < SNAPSHOT && left > 0 {
                let n = left.min(SNAPSHOT - head_have);
                // SAFETY: mapped bytes; the snapshot has room for what is missing.
                unsafe { copy_upto_128(ptr, snapshot.add(head_have), n) };
                head_have += n;
                ptr = ptr.wrapping_add(n);
                left -= n;
            }
            if left > 0 {
                // SAFETY: mapped bytes; the burst is cleared before the ring is let go (`RingCell::serve`).
                let segment = unsafe { Segment::new(ptr, left as u32) };
                if tail.is_empty() {
                    tail = segment;
                } else {
                    *segments.get_mut(more_at + more).ok_or(RingFault::ChainTooLong)? = segment;
                    more += 1;
                }
            }
            Ok(More::Yes)
        })?;
        if header_have < header_len {
            return Err(RingFault::HeaderTooShort);
        }
        if len == 0 {
            served.empty += 1;
            return Ok(());
        }
        if len > MAX_FRAME {
            served.oversized += 1;
            return Ok(());
        }
        header[LEGACY_NET_HEADER_LEN..].fill(0);
        let header = if self.offloads { NetHeader::from_bytes(&header) } else { NetHeader::default() };
        burst.totals.add(slot, len as u32, &header);
        burst.frames[slot] = Frame {
            len: len as u32,
            head_len: head_have as u16,
            more: more as u16,
            more_at: more_at as u16,
            header,
            tail,
        };
        burst.segments_used = more_at + more;
        burst.len = slot + 1;
        Ok(())
    }

    /// Gives back what `fetch` took.
    #[inline]
    pub(crate) fn complete(&mut self) {
        let count = std::mem::take(&mut self.taken);
        if count == 0 || self.fault.is_some() {
            return;
        }
        // The driver looks at the identifiers alone: nothing was written to its buffers.
        let elements = self.heads.map(|head| UsedElem { id: u32::from(head), len: 0 });
        self.write_used_run(self.next_used, &elements[..usize::from(count)]);
        self.publish(count);
    }

    // ---- to the guest -------------------------------------------------------------------------------------------

    /// Copies the frames of `mask` into the guest's buffers and publishes them, all at once.
    pub(crate) fn deliver(&mut self, burst: &Burst, mask: u64) -> Delivered {
        let mut delivered = Delivered::default();
        let pending = self.pending();
        if self.fault.is_some() {
            delivered.stopped = mask;
            return delivered;
        }
        let mut room = Room { used: 0, pending: pending as u16 };
        let mut left = mask & burst.all();
        while left != 0 {
            let fast = self.deliver_fast(burst, left, &mut room);
            delivered.sent |= fast;
            left &= !fast;
            if left == 0 {
                break;
            }
            // The lowest frame left needs more than one piece, or there is no buffer for it.
            let i = left.trailing_zeros() as usize;
            let bit = 1u64 << i;
            match self.deliver_pieces(burst, i, &mut room) {
                Ok(Placed::Whole) => delivered.sent |= bit,
                Ok(Placed::NoBuffers) => delivered.no_buffers |= bit,
                Ok(Placed::TooSmall) => delivered.too_small |= bit,
                Err(fault) => {
                    self.fault = Some(fault);
                    break;
                }
            }
            left &= !bit;
            if room.used == room.pending && delivered.no_buffers & bit != 0 {
                delivered.no_buffers |= left;
                break;
            }
        }
        if self.map.poisoned() {
            self.fault = Some(RingFault::MemoryGone);
        }
        if self.fault.is_some() {
            return Delivered { stopped: mask, ..Delivered::default() };
        }
        if room.used > 0 {
            self.next_avail = self.next_avail.wrapping_add(room.used);
            self.publish(room.used);
        }
        delivered
    }

    /// Delivers frames in order for as long as each fits into one buffer in one piece; the mask of those delivered.
    #[inline]
    fn deliver_fast(&mut self, burst: &Burst, mask: u64, room: &mut Room) -> u64 {
        let header_len = usize::from(self.header_len);
        let count = mask.count_ones().min(u32::from(room.pending - room.used)) as usize;
        let first = self.next_avail.wrapping_add(room.used);
        let desc = self.desc;
        let Some(heads) = self.heads(first, count) else { return self.broken(RingFault::BadDescriptor) };

        let mut targets = [ptr::null_mut::<u8>(); BURST];
        let mut ready = 0;
        let mut left = mask;
        for (target, &head) in targets[..count].iter_mut().zip(&heads) {
            let len = burst.frames[left.trailing_zeros() as usize % BURST].len;
            // SAFETY: heads are below the size.
            let desc = unsafe { Self::read(desc, head) };
            if desc.flags != F_WRITE || desc.len < header_len as u32 + len {
                break;
            }
            let Some(to) = self.whole(desc.addr, desc.len) else { break };
            prefetch_write(to);
            prefetch_write(to.wrapping_add(64));
            *target = to;
            left &= left - 1;
            ready += 1;
        }

        let mut elements = [UsedElem { id: 0, len: 0 }; BURST];
        let mut left = mask;
        for ((&to, &head), element) in targets[..ready].iter().zip(&heads).zip(&mut elements) {
            let index = left.trailing_zeros() as usize % BURST;
            left &= left - 1;
            let frame = &burst.frames[index];
            let data = to.wrapping_add(header_len);
            let head_len = usize::from(frame.head_len);
            // SAFETY: `whole` found header and frame's room at `to`; the snapshot has `head_len` bytes; segments are
            // readable while the burst holds them, and together with the snapshot they are `len` bytes. They may overlap
            // with `to` if a guest wants that; our snapshot does not.
            unsafe {
                self.write_header(to, &frame.header);
                copy_upto_128(burst.snapshots[index].0.as_ptr(), data, head_len);
                let mut at = data.wrapping_add(head_len);
                if frame.more > 0 {
                    for segment in burst.tail(index) {
                        ptr::copy(segment.ptr(), at, segment.len());
                        at = at.wrapping_add(segment.len());
                    }
                } else if !frame.tail.is_empty() {
                    ptr::copy(frame.tail.ptr(), at, frame.tail.len());
                }
            }
            *element = UsedElem { id: u32::from(head), len: frame.len + header_len as u32 };
        }
        self.write_used_run(self.next_used.wrapping_add(room.used), &elements[..ready]);
        room.used += ready as u16;
        mask & !left
    }

    /// Writes the header of a frame that takes one buffer.
    ///
    /// # Safety
    /// `header_len` bytes at `to` are mapped.
    #[inline(always)]
    unsafe fn write_header(&self, to: *mut u8, header: &NetHeader) {
        let header = NetHeader { num_buffers: 1, ..*header };
        // SAFETY: per contract. The struct is the header as it lies in memory (`repr(C)`, little-endian).
        unsafe {
            if usize::from(self.header_len) == NET_HEADER_LEN {
                to.cast::<NetHeader>().write_unaligned(header);
            } else {
                copy_upto_128(ptr::from_ref(&header).cast(), to, LEGACY_NET_HEADER_LEN);
            }
        }
    }

    /// Delivers one frame into a chain of several pieces, or into several buffers if they are mergeable.
    fn deliver_pieces(&mut self, burst: &Burst, i: usize, room: &mut Room) -> Result<Placed, RingFault> {
        let header_len = usize::from(self.header_len);
        let frame = &burst.frames[i];
        let mut source = Source::new(burst, i);
        let mut left = frame.len as usize;
        let mut header = frame.header;
        header.num_buffers = 1;
        let bytes = header.to_bytes();
        // The driver may cut its buffers anywhere, also within the header.
        let mut header_have = 0usize;
        let mut count_at = [ptr::null_mut::<u8>(); 2];
        let mut buffers = 0u16;
        let start = room.used;
        while left > 0 || buffers == 0 {
            if room.used == room.pending {
                room.used = start;
                return Ok(Placed::NoBuffers);
            }
            let head = self.head(self.next_avail.wrapping_add(room.used));
            if head >= self.size {
                return Err(RingFault::BadDescriptor);
            }
            let mut written = 0usize;
            self.walk(head, true, |ptr, len| {
                let (mut to, mut room) = (ptr, len as usize);
                if header_have < header_len {
                    let n = room.min(header_len - header_have);
                    // SAFETY: `walk` gives `room` mapped bytes at `to`; `n` bytes of the header are left.
                    unsafe { copy_upto_128(bytes.as_ptr().add(header_have), to, n) };
                    for (at, byte) in count_at.iter_mut().zip(LEGACY_NET_HEADER_LEN..NET_HEADER_LEN) {
                        if (header_have..header_have + n).contains(&byte) {
                            *at = to.wrapping_add(byte - header_have);
                        }
                    }
                    header_have += n;
                    written += n;
                    (to, room) = (to.wrapping_add(n), room - n);
                }
                let n = room.min(left);
                // SAFETY: `walk` gives `room` mapped bytes at `to`; the source has `left` bytes left.
                unsafe { source.copy_to(to, n) };
                left -= n;
                written += n;
                Ok(if left > 0 || header_have < header_len { More::Yes } else { More::No })
            })?;
            if header_have < header_len || written == 0 {
                return Err(RingFault::HeaderTooShort);
            }
            self.write_used(self.next_used.wrapping_add(room.used), head, written as u32);
            room.used += 1;
            buffers += 1;
            if left > 0 && !self.mergeable {
                room.used = start;
                return Ok(Placed::TooSmall);
            }
        }
        if buffers > 1 {
            for (at, byte) in count_at.into_iter().zip(buffers.to_le_bytes()) {
                // SAFETY: mergeable buffers have the long header, all of which was placed in the first of them.
                unsafe { at.write_volatile(byte) };
            }
        }
        Ok(Placed::Whole)
    }
}

/// What who looks at a chain says after each piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// How far a delivery has got in the available ring.
struct Room {
    /// Chains filled and not yet published.
    used: u16,
    /// Chains that the guest has made available.
    pending: u16,
}

/// What became of one frame.
enum Placed {
    Whole,
    NoBuffers,
    TooSmall,
}

/// The bytes of a frame, read in order.
struct Source<'a> {
    burst: &'a Burst,
    ptr: *const u8,
    room: usize,
    more_at: usize,
    more: usize,
    tail: Segment,
}

impl<'a> Source<'a> {
    fn new(burst: &'a Burst, i: usize) -> Self {
        let frame = &burst.frames[i];
        Self {
            burst,
            ptr: burst.snapshots[i].0.as_ptr(),
            room: usize::from(frame.head_len),
            more_at: usize::from(frame.more_at),
            more: usize::from(frame.more),
            tail: frame.tail,
        }
    }

    /// Copies the next `len` bytes to `to`.
    ///
    /// # Safety
    /// `len` bytes at `to` are writable; a frame that runs out of bytes copies fewer.
    unsafe fn copy_to(&mut self, mut to: *mut u8, mut len: usize) {
        while len > 0 {
            if self.room == 0 {
                let next = if !self.tail.is_empty() {
                    std::mem::replace(&mut self.tail, Segment::EMPTY)
                } else if self.more > 0 {
                    let next = self.burst.segments[self.more_at];
                    self.more_at += 1;
                    self.more -= 1;
                    next
                } else {
                    return;
                };
                self.ptr = next.ptr();
                self.room = next.len();
                continue;
            }
            let n = len.min(self.room);
            // SAFETY: `n` bytes are left at `ptr` (snapshot or a segment of the burst) and writable at `to`. A guest may
            // make its buffers overlap, so this is not `copy_nonoverlapping`.
            unsafe { ptr::copy(self.ptr, to, n) };
            self.ptr = self.ptr.wrapping_add(n);
            self.room -= n;
            to = to.wrapping_add(n);
            len -= n;
        }
    }
}
