//! To the guest: frames of a burst are copied into its receive buffers.

use std::ptr;

use super::{Ring, UsedElem};
use crate::dirty::Track;
use crate::frame::{BURST, Burst};
use crate::ring::common::F_WRITE;
use crate::ring::copy::prefetch_write;
use crate::ring::scatter::Scatter;
use crate::ring::{Delivered, Placed, RingFault};

impl Ring {
    /// Copies the frames of `mask` into the guest's buffers and publishes them, all at once.
    #[inline(never)]
    pub(crate) fn deliver(&mut self, burst: &Burst, mask: u64, track: &mut impl Track) -> Delivered {
        let mut delivered = Delivered::default();
        let pending = self.pending();
        if self.common.fault.is_some() {
            delivered.stopped = mask;
            return delivered;
        }
        let mut room = Room { used: 0, touched: 0, pending: pending as u16 };
        let mut left = mask & burst.all();
        let fast = self.deliver_fast(burst, left, &mut room, track);
        delivered.sent |= fast;
        left &= !fast;
        // The lowest frame left needs more than one piece, or there is no buffer for it. Those that follow are mostly of
        // its kind, and looking ahead for each of them would cost more than it saves.
        while left != 0 && self.common.fault.is_none() {
            let i = left.trailing_zeros() as usize;
            let bit = 1u64 << i;
            match self.deliver_pieces(burst, i, &mut room, track) {
                Ok(Placed::Whole) => delivered.sent |= bit,
                Ok(Placed::NoBuffers) => delivered.no_buffers |= bit,
                Ok(Placed::TooSmall) => delivered.too_small |= bit,
                Err(fault) => {
                    self.common.fault = Some(fault);
                    break;
                }
            }
            left &= !bit;
            if room.used == room.pending && delivered.no_buffers & bit != 0 {
                delivered.no_buffers |= left;
                break;
            }
        }
        self.common.logged(track.flush());
        self.common.look_for_poison();
        let first = self.next_used;
        if room.used > 0 && self.common.fault.is_none() {
            self.next_avail = self.next_avail.wrapping_add(room.used);
            self.publish(room.used);
        }
        self.track_used(first, room.used.max(room.touched), track);
        if self.common.fault.is_some() {
            return Delivered { stopped: mask, ..Delivered::default() };
        }
        delivered
    }

    /// Delivers frames in order for as long as each fits into one buffer in one piece; the mask of those delivered.
    #[inline]
    fn deliver_fast(&mut self, burst: &Burst, mask: u64, room: &mut Room, track: &mut impl Track) -> u64 {
        let header_len = u32::from(self.common.header_len);
        let count = mask.count_ones().min(u32::from(room.pending - room.used)) as usize;
        let first = self.next_avail.wrapping_add(room.used);
        let desc = self.desc;
        let Some(heads) = self.heads(first, count) else {
            return self.common.broken(RingFault::BadDescriptor);
        };

        let mut targets = [ptr::null_mut::<u8>(); BURST];
        let mut elements = [UsedElem { id: 0, len: 0 }; BURST];
        let mut ready = 0;
        let mut left = mask;
        for ((target, &head), element) in targets[..count].iter_mut().zip(&heads).zip(&mut elements) {
            let len = header_len + burst.frames[left.trailing_zeros() as usize % BURST].len;
            // SAFETY: heads are below the size.
            let desc = unsafe { Self::read(desc, head) };
            if desc.flags != F_WRITE || desc.len < len {
                break;
            }
            let to = self.common.whole(desc.addr, desc.len);
            if to.is_null() {
                break;
            }
            prefetch_write(to);
            prefetch_write(to.wrapping_add(64));
            *target = to;
            *element = UsedElem { id: u32::from(head), len };
            // The copies follow at once, and nothing is logged before they are made.
            track.wrote(desc.addr, len);
            left &= left - 1;
            ready += 1;
        }

        let mut left = mask;
        for &to in &targets[..ready] {
            let index = left.trailing_zeros() as usize % BURST;
            left &= left - 1;
            // SAFETY: `whole` found room for header and frame at `to`.
            unsafe { self.common.place(burst, index, to) };
        }
        self.write_used_run(self.next_used.wrapping_add(room.used), &elements[..ready]);
        room.used += ready as u16;
        mask & !left
    }

    /// Delivers one frame into a chain of several pieces, or into several buffers if they are mergeable.
    #[inline(never)]
    fn deliver_pieces(
        &mut self,
        burst: &Burst,
        i: usize,
        room: &mut Room,
        track: &mut impl Track,
    ) -> Result<Placed, RingFault> {
        let mut scatter = Scatter::new(burst, i, self.common.header_len);
        let mut buffers = 0u16;
        let start = room.used;
        while !scatter.is_whole() || buffers == 0 {
            if room.used == room.pending {
                room.used = start;
                return Ok(Placed::NoBuffers);
            }
            let head = self.head(self.next_avail.wrapping_add(room.used));
            if head >= self.size {
                return Err(RingFault::BadDescriptor);
            }
            // SAFETY: heads are below the size.
            let desc = unsafe { Self::read(self.desc, head) };
            let to =
                if desc.flags == F_WRITE { self.common.whole(desc.addr, desc.len) } else { ptr::null_mut() };
            if to.is_null() {
                // SAFETY: `walk` gives mapped bytes.
                self.walk(head, true, |ptr, gpa, len| Ok(unsafe { scatter.piece(ptr, gpa, len, track) }))?;
            } else {
                // SAFETY: `whole` has found these bytes.
                unsafe { scatter.piece(to, desc.addr, desc.len, track) };
            }
            let written = scatter.take_written();
            if !scatter.has_header() || written == 0 {
                return Err(RingFault::HeaderTooShort);
            }
            self.write_used(self.next_used.wrapping_add(room.used), head, written);
            room.used += 1;
            room.touched = room.touched.max(room.used);
            buffers += 1;
            if !scatter.is_whole() && !self.common.mergeable {
                room.used = start;
                return Ok(Placed::TooSmall);
            }
        }
        if buffers > 1 {
            // SAFETY: only mergeable buffers come in numbers, and `map` keeps them mapped.
            unsafe { scatter.set_buffers(buffers, track) };
        }
        Ok(Placed::Whole)
    }
}

/// How far a delivery has got in the available ring.
struct Room {
    /// Chains filled and not yet published.
    used: u16,
    /// Elements of the used ring that were written, also for a frame that did not fit in the end.
    touched: u16,
    /// Chains that the guest has made available.
    pending: u16,
}
