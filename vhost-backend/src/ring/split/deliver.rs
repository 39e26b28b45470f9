//! To the guest: frames of a burst are copied into its receive buffers.

use std::ptr;

use super::descriptor::{F_WRITE, More};
use super::{Ring, UsedElem};
use crate::frame::{BURST, Burst, Segment};
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN, NetHeader};
use crate::ring::copy::{copy_upto_128, prefetch_write};
use crate::ring::{Delivered, RingFault};

impl Ring {
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
        let fast = self.deliver_fast(burst, left, &mut room);
        delivered.sent |= fast;
        left &= !fast;
        // The lowest frame left needs more than one piece, or there is no buffer for it. Those that follow are mostly of
        // its kind, and looking ahead for each of them would cost more than it saves.
        while left != 0 && self.fault.is_none() {
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
