//! To the guest: frames of a burst are copied into its receive buffers.

use std::ptr;
use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::{Chain, Descriptor, ID, Used, WRITTEN, offered, slots, used};
use super::position::Position;
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
        let mut filled = Filled { at: self.next_avail, descriptors: 0, first: None };
        let mut left = mask & burst.all();
        loop {
            let fast = self.deliver_fast(burst, left, &mut filled, track);
            delivered.sent |= fast;
            left &= !fast;
            // Only at the ring's end it stops for no reason.
            if left == 0 || fast == 0 || filled.at.index != 0 {
                break;
            }
        }
        // The lowest frame left needs more than one piece, or there is no buffer for it. Those that follow are mostly of
        // its kind, and looking ahead for each of them would cost more than it saves.
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            let bit = 1u64 << i;
            match self.deliver_pieces(burst, i, &mut filled, track) {
                Ok(Placed::Whole) => delivered.sent |= bit,
                Ok(Placed::TooSmall) => delivered.too_small |= bit,
                Ok(Placed::NoBuffers) => {
                    delivered.no_buffers |= bit;
                    if filled.descriptors == self.size || !self.is_available(filled.at) {
                        delivered.no_buffers |= left;
                        break;
                    }
                }
                Err(fault) => {
                    self.common.fault = Some(fault);
                    break;
                }
            }
            left &= !bit;
        }
        self.common.logged(track.flush());
        self.common.look_for_poison();
        let old = self.next_used;
        if let (Some(first), None) = (filled.first, self.common.fault) {
            self.next_avail = filled.at;
            self.publish(first, filled.descriptors);
        }
        self.track_used(old, filled.descriptors, track);
        if self.common.fault.is_some() {
            return Delivered { stopped: mask, ..Delivered::default() };
        }
        delivered
    }

    /// Delivers frames in order up to the ring's end, for as long as each fits into one buffer in one piece; the mask of
    /// those delivered.
    #[inline(always)]
    fn deliver_fast(&mut self, burst: &Burst, mask: u64, filled: &mut Filled, track: &mut impl Track) -> u64 {
        let header_len = u32::from(self.common.header_len);
        let start = filled.at;
        let room = (self.size - filled.descriptors).min(self.size - start.index);
        let count = mask.count_ones().min(u32::from(room)) as usize;
        // Offered, and one buffer to write.
        let (usual, back) = (offered(start) | F_WRITE, used(start) | WRITTEN);

        let mut targets = [ptr::null_mut::<u8>(); BURST];
        let mut words = [0u64; BURST];
        let mut ready = 0;
        let mut left = mask;
        // SAFETY: `set_map` has found memory and alignment for so many.
        let slots = unsafe { slots(self.desc, self.size) };
        let slots = &slots[usize::from(start.index)..][..count];
        for ((target, slot), word) in targets.iter_mut().zip(slots).zip(&mut words) {
            let len = header_len + burst.frames[left.trailing_zeros() as usize % BURST].len;
            let (addr, rest) = slot.read();
            let desc = Descriptor::new(addr, rest);
            if desc.flags != usual || desc.len < len {
                break;
            }
            let to = self.common.whole(addr, desc.len);
            if to.is_null() {
                break;
            }
            prefetch_write(to);
            prefetch_write(to.wrapping_add(64));
            *target = to;
            *word = rest & ID | back | u64::from(len);
            // The copies follow at once, and nothing is logged before they are made.
            track.wrote(addr, len);
            left &= left - 1;
            ready += 1;
        }

        let mut left = mask;
        for &to in &targets[..usize::from(ready)] {
            let index = left.trailing_zeros() as usize % BURST;
            left &= left - 1;
            // SAFETY: `whole` found room for header and frame at `to`.
            unsafe { self.common.place(burst, index, to) };
        }
        if ready > 0 {
            self.give_back(filled, Used { at: start.index, word: words[0] });
            self.write_run(start.index + 1, words[1..usize::from(ready)].iter().copied());
            filled.at = start.advance(ready, self.size);
            filled.descriptors += ready;
        }
        mask & !left
    }

    /// Delivers one frame into a chain of several pieces, or into several buffers if they are mergeable.
    #[inline(never)]
    fn deliver_pieces(
        &mut self,
        burst: &Burst,
        i: usize,
        filled: &mut Filled,
        track: &mut impl Track,
    ) -> Result<Placed, RingFault> {
        let mut scatter = Scatter::new(burst, i, self.common.header_len);
        let mut buffers = 0;
        let (mut at, mut descriptors) = (filled.at, filled.descriptors);
        while !scatter.is_whole() || buffers == 0 {
            let room = self.size - descriptors;
            let first = if room > 0 { self.available(at) } else { None };
            let Some(first) = first else { return Ok(Placed::NoBuffers) };
            let usual = first.flags == offered(at) | F_WRITE;
            let to = if usual { self.common.whole(first.addr, first.len) } else { ptr::null_mut() };
            let chain = if to.is_null() {
                self.walk(first, at, room, true, |ptr, gpa, len| {
                    // SAFETY: `walk` gives mapped bytes.
                    Ok(unsafe { scatter.piece(ptr, gpa, len, track) })
                })?
            } else {
                // SAFETY: `whole` has found these bytes.
                unsafe { scatter.piece(to, first.addr, first.len, track) };
                Chain { id: first.id, descriptors: 1 }
            };
            let written = scatter.take_written();
            if !scatter.has_header() || written == 0 {
                return Err(RingFault::HeaderTooShort);
            }
            self.pending[buffers] = Used::written(at, chain.id, written);
            buffers += 1;
            at = at.advance(chain.descriptors, self.size);
            descriptors += chain.descriptors;
            if !scatter.is_whole() && !self.common.mergeable {
                return Ok(Placed::TooSmall);
            }
        }
        if buffers > 1 {
            // SAFETY: only mergeable buffers come in numbers, and the map keeps them mapped.
            unsafe { scatter.set_buffers(buffers as u16, track) };
        }
        for i in 0..buffers {
            self.give_back(filled, self.pending[i]);
        }
        (filled.at, filled.descriptors) = (at, descriptors);
        Ok(Placed::Whole)
    }

    /// Writes a buffer that goes back into the ring, unless it is the first of this burst: that one shows all of them.
    #[inline(always)]
    fn give_back(&self, filled: &mut Filled, used: Used) {
        if filled.first.is_none() {
            filled.first = Some(used);
            self.note_begin(used);
        } else {
            self.write_used(used, Ordering::Relaxed);
        }
    }
}

/// How far a delivery has got.
struct Filled {
    /// The next descriptor to fill.
    at: Position,
    /// Descriptors filled and not yet shown to the driver.
    descriptors: u16,
    /// The first of them.
    first: Option<Used>,
}
