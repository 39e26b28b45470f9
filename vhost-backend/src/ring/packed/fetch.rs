//! From the guest: what it transmitted becomes a burst, and its buffers go back to it.

use std::ptr;
use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::{Descriptor, MARKS, Used};
use super::position::Position;
use crate::dirty::Track;
use crate::frame::{BURST, Burst, MAX_FRAME};
use crate::ring::common::{F_INDIRECT, F_NEXT};
use crate::ring::copy::prefetch_read;
use crate::ring::gather::Gather;
use crate::ring::{RingFault, Served};

/// Pieces in one run of descriptors; a null pointer where there is more to a buffer.
type Pieces = [(*const u8, u32); BURST];

impl Ring {
    /// Fills the (empty) burst with what the guest sent. Every buffer taken must be given back by [`Ring::complete`]
    /// once the burst is cleared.
    pub(crate) fn fetch(&mut self, burst: &mut Burst) -> Served {
        burst.clear();
        let mut served = Served::default();
        if !self.is_available(self.next_avail) {
            self.common.look_for_poison();
            return served;
        }
        let mut pieces: Pieces = [(ptr::null(), 0); BURST];
        let mut at = self.next_avail;
        // Descriptors that are still ahead of our own: no driver has more, but one that lies might seem to.
        let mut room = self.size;
        let mut taken = 0;
        loop {
            let (count, chain) = self.look(at, room, &mut pieces[taken..]);
            match self.push_run(burst, at, &pieces[taken..taken + count], taken, &mut served) {
                Ok(pushed) => {
                    at = at.advance(pushed as u16, self.size);
                    room -= pushed as u16;
                    taken += pushed;
                    if pushed < count {
                        break;
                    }
                }
                Err(fault) => {
                    self.common.fault = Some(fault);
                    break;
                }
            }
            let Some(first) = chain else { break };
            if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                // Room for a whole chain may be short: the rest of the ring makes the next burst.
                break;
            }
            match self.push_chain(burst, first, at, room, &mut served) {
                Ok((id, descriptors)) => {
                    self.lent[taken] = (at, id);
                    at = at.advance(descriptors, self.size);
                    room -= descriptors;
                    taken += 1;
                }
                Err(fault) => {
                    if !matches!(fault, RingFault::ChainTooLong) || burst.segments_used == 0 {
                        self.common.fault = Some(fault);
                    }
                    break;
                }
            }
            if taken == BURST {
                break;
            }
        }
        self.common.look_for_poison();
        if self.common.fault.is_some() {
            // Nothing of a broken ring is forwarded, and nothing is given back.
            burst.clear();
            return Served::default();
        }
        self.taken = taken;
        self.next_avail = at;
        served.frames = burst.len();
        served
    }

    /// Reads the buffers of one descriptor each from `at` on, and asks for what is in them: how many there are, and the
    /// first descriptor of a chain if one follows.
    #[inline(always)]
    fn look(
        &mut self,
        at: Position,
        room: u16,
        pieces: &mut [(*const u8, u32)],
    ) -> (usize, Option<Descriptor>) {
        let header_len = u32::from(self.common.header_len);
        let taken = BURST - pieces.len();
        let most = pieces.len().min(usize::from(room));
        let mut next = at;
        for (i, piece) in pieces[..most].iter_mut().enumerate() {
            let Some(desc) = self.available(next) else { return (i, None) };
            if desc.flags & F_NEXT != 0 {
                return (i, Some(desc));
            }
            self.lent[taken + i] = (next, desc.id);
            next = next.advance(1, self.size);
            // Longer than the header, and not longer than any frame may be.
            let usual = desc.flags & !MARKS == 0 && desc.len.wrapping_sub(header_len + 1) < MAX_FRAME as u32;
            if let Some(data) = usual.then(|| self.common.whole(desc.addr, desc.len)).flatten() {
                *piece = (data, desc.len);
                prefetch_read(data);
                prefetch_read(data.wrapping_add(64));
                prefetch_read(data.wrapping_add(128));
                continue;
            }
            *piece = (ptr::null(), 0);
            self.odd[taken + i] = desc;
            if desc.flags & F_INDIRECT != 0
                && let Some(table) = self.common.whole(desc.addr, desc.len)
            {
                prefetch_read(table);
            }
        }
        (most, None)
    }

    /// Appends the frames of the buffers that [`Ring::look`] found from `at` on, the first of them number `taken` of this
    /// burst; how many there was room for.
    #[inline(always)]
    fn push_run(
        &mut self,
        burst: &mut Burst,
        at: Position,
        pieces: &[(*const u8, u32)],
        taken: usize,
        served: &mut Served,
    ) -> Result<usize, RingFault> {
        let mut pushed = 0;
        while pushed < pieces.len() {
            if !pieces[pushed].0.is_null() {
                // SAFETY: `whole` has found these bytes, and they are more than the header.
                pushed += unsafe { self.common.push_whole(burst, &pieces[pushed..]) };
                continue;
            }
            if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                break;
            }
            let at = at.advance(pushed as u16, self.size);
            match self.push_chain(burst, self.odd[taken + pushed], at, 1, served) {
                Ok(_) => pushed += 1,
                Err(RingFault::ChainTooLong) if burst.segments_used > 0 => break,
                Err(fault) => return Err(fault),
            }
        }
        Ok(pushed)
    }

    /// Appends the frame of a buffer of several pieces; its number, and its descriptors in the ring.
    fn push_chain(
        &mut self,
        burst: &mut Burst,
        first: Descriptor,
        at: Position,
        room: u16,
        served: &mut Served,
    ) -> Result<(u16, u16), RingFault> {
        let mut gather = Gather::new(burst, self.common.header_len)?;
        // SAFETY: `walk` gives mapped bytes; the burst is cleared before the ring is let go (`RingCell::serve`).
        let chain = self.walk(first, at, room, false, |ptr, _, len| unsafe { gather.piece(ptr, len) })?;
        gather.finish(&self.common, served)?;
        Ok((chain.id, chain.descriptors))
    }

    /// Gives back what `fetch` took.
    #[inline]
    pub(crate) fn complete(&mut self, track: &mut impl Track) {
        let taken = std::mem::take(&mut self.taken);
        if taken == 0 || self.common.fault.is_some() {
            return;
        }
        let lent = &self.lent[..taken];
        let mut first = Used::new(lent[0].0, lent[0].1, 0);
        if self.common.in_order {
            // One descriptor, with the last buffer's number, stands for all of them (section 2.8.12).
            first = Used::new(lent[0].0, lent[taken - 1].1, 0);
        }
        if let Some(record) = &self.record {
            record.begin(self.next_used.encode(), first.word);
        }
        if !self.common.in_order {
            for &(at, id) in &lent[1..] {
                self.write_used(Used::new(at, id, 0), Ordering::Relaxed);
            }
        }
        let (old, count) = (self.next_used, self.next_used.distance(self.next_avail, self.size));
        self.publish(first, count);
        self.track_used(old, count, track);
    }
}
