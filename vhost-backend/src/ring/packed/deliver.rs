//! To the guest: frames of a burst are copied into its receive buffers.

use std::ptr;
use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::{MARKS, Used};
use super::position::Position;
use crate::dirty::Track;
use crate::frame::{BURST, Burst};
use crate::ring::common::F_WRITE;
use crate::ring::copy::prefetch_write;
use crate::ring::scatter::Scatter;
use crate::ring::{Delivered, Placed, RingFault};

impl Ring {
    /// Copies the frames of `mask` into the guest's buffers and publishes them, all at once.
    pub(crate) fn deliver(&mut self, burst: &Burst, mask: u64, track: &mut impl Track) -> Delivered {
        let mut delivered = Delivered::default();
        let mut filled = Filled { at: self.next_avail, descriptors: 0, first: None };
        let mut left = mask & burst.all();
        let fast = self.deliver_fast(burst, left, &mut filled, track);
        delivered.sent |= fast;
        left &= !fast;
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

    /// Delivers frames in order for as long as each fits into one buffer in one piece; the mask of those delivered.
    #[inline]
    fn deliver_fast(&mut self, burst: &Burst, mask: u64, filled: &mut Filled, track: &mut impl Track) -> u64 {
        let header_len = u32::from(self.common.header_len);
        let count = mask.count_ones().min(u32::from(self.size)) as usize;
        let start = filled.at;

        let mut targets = [(ptr::null_mut::<u8>(), 0u16); BURST];
        let mut ready = 0;
        let mut left = mask;
        let mut at = start;
        for target in &mut targets[..count] {
            let len = burst.frames[left.trailing_zeros() as usize % BURST].len;
            let Some(desc) = self.available(at) else { break };
            if desc.flags & !MARKS != F_WRITE || desc.len < header_len + len {
                break;
            }
            let Some(to) = self.common.whole(desc.addr, desc.len) else { break };
            prefetch_write(to);
            prefetch_write(to.wrapping_add(64));
            *target = (to, desc.id);
            // The copies follow at once, and nothing is logged before they are made.
            track.wrote(desc.addr, header_len + len);
            left &= left - 1;
            at = at.advance(1, self.size);
            ready += 1;
        }
        filled.at = at;
        filled.descriptors = ready as u16;

        let mut left = mask;
        let mut at = start;
        for &(to, id) in &targets[..ready] {
            let index = left.trailing_zeros() as usize % BURST;
            left &= left - 1;
            // SAFETY: `whole` found room for header and frame at `to`.
            unsafe { self.common.place(burst, index, to) };
            self.give_back(filled, Used::new(at, id, burst.frames[index].len + header_len));
            at = at.advance(1, self.size);
        }
        mask & !left
    }

    /// Delivers one frame into a chain of several pieces, or into several buffers if they are mergeable.
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
            let chain = self.walk(first, at, room, true, |ptr, gpa, len| {
                // SAFETY: `walk` gives mapped bytes.
                Ok(unsafe { scatter.piece(ptr, gpa, len, track) })
            })?;
            let written = scatter.take_written();
            if !scatter.has_header() || written == 0 {
                return Err(RingFault::HeaderTooShort);
            }
            self.pending[buffers] = Used::new(at, chain.id, written);
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
            if let Some(record) = &self.record {
                record.begin(self.next_used.encode(), used.word);
            }
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
