//! From the guest: what it transmitted becomes a burst, and its buffers go back to it.

use std::ptr;
use std::sync::atomic::Ordering;

use super::Ring;
use super::descriptor::{Chain, Descriptor, Lent, MARKS, Used, offered, slots, used};
use super::position::Position;
use crate::dirty::Track;
use crate::frame::{BURST, Burst};
use crate::ring::common::{F_INDIRECT, F_NEXT, Piece, fits};
use crate::ring::copy::{prefetch_frame, prefetch_read};
use crate::ring::gather::Gather;
use crate::ring::{RingFault, Served};

/// What follows a run of descriptors that are a buffer each.
enum Then {
    /// The ring's end, or the burst is full.
    End,
    /// Nothing that is offered.
    Nothing,
    /// A chain, with this descriptor.
    Chain(Descriptor),
}

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
        let mut at = self.next_avail;
        // Descriptors that are still ahead of our own: no driver has more, but one that lies might seem to.
        let mut room = self.size;
        let mut taken = 0;
        while taken < BURST && room > 0 {
            let (count, then) = self.look(at, room, taken);
            match self.push_run(burst, at, taken, count, &mut served) {
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
            let first = match then {
                Then::End => continue,
                Then::Nothing => break,
                Then::Chain(first) => first,
            };
            if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                // Room for a whole chain may be short: the rest of the ring makes the next burst.
                break;
            }
            match self.push_chain(burst, first, at, room, &mut served) {
                Ok(chain) => {
                    self.lent[taken] = Lent::chain(at, &chain);
                    at = at.advance(chain.descriptors, self.size);
                    room -= chain.descriptors;
                    taken += 1;
                }
                Err(fault) => {
                    if !matches!(fault, RingFault::ChainTooLong) || burst.segments_used == 0 {
                        self.common.fault = Some(fault);
                    }
                    break;
                }
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

    /// Reads the buffers of one descriptor each from `at` on, up to the ring's end, as number `taken` and following of
    /// this burst, and asks for what is in them: how many there are, and what follows.
    #[inline(always)]
    fn look(&mut self, at: Position, room: u16, taken: usize) -> (usize, Then) {
        let most = (BURST - taken).min(usize::from(room.min(self.size - at.index)));
        let mut seen = 0;
        while seen < most {
            let (plain, other) = self.look_plain(at, taken, seen, most);
            seen += plain;
            let Some((addr, rest)) = other else { break };
            let desc = Descriptor::new(addr, rest);
            if desc.flags & MARKS != offered(at) {
                return (seen, Then::Nothing);
            }
            if desc.flags & F_NEXT != 0 {
                return (seen, Then::Chain(desc));
            }
            self.look_again(taken + seen, at, addr, rest);
            seen += 1;
        }
        (most, Then::End)
    }

    /// Of the descriptors that [`Ring::look`] is to read, those from number `seen` on up to the first that is not the
    /// usual kind: offered, one buffer to read, in one of the regions that were last used. How many, and that first one,
    /// which has been read.
    #[inline(always)]
    fn look_plain(
        &mut self,
        at: Position,
        taken: usize,
        seen: usize,
        most: usize,
    ) -> (usize, Option<(u64, u64)>) {
        let header_len = self.common.header_len;
        // The marks are the same up to the ring's end.
        let (usual, back) = (offered(at), used(at));
        // A large guest has memory below and above 4 GiB, and its buffers lie in both.
        let [latest, before] = self.common.at_hand();
        // SAFETY: `set_map` has found memory and alignment for so many.
        let slots = unsafe { slots(self.desc, self.size) };
        let slots = &slots[usize::from(at.index) + seen..][..most - seen];
        let range = taken + seen..taken + most;
        let room = self.lent[range.clone()].iter_mut().zip(&mut self.pieces[range]);
        for (i, (slot, (lent, piece))) in slots.iter().zip(room).enumerate() {
            let (addr, rest) = slot.read();
            let desc = Descriptor::new(addr, rest);
            if desc.flags != usual || !fits(desc.len, header_len) {
                return (i, Some((addr, rest)));
            }
            let data = latest.whole(addr, desc.len).or_else(|| before.whole(addr, desc.len));
            let Some(data) = data else { return (i, Some((addr, rest))) };
            *lent = Lent::single(rest, back);
            *piece = Piece { at: data, len: desc.len };
            prefetch_frame(data);
        }
        (most - seen, None)
    }

    /// Looks once more at a buffer of one descriptor, number `number` of the burst, which lies in the ring in the lap of
    /// `at`: in another region, or one that is to be walked; then asks for its table if it names one.
    #[inline(never)]
    fn look_again(&mut self, number: usize, at: Position, addr: u64, rest: u64) {
        let desc = Descriptor::new(addr, rest);
        let usual = desc.flags == offered(at) && fits(desc.len, self.common.header_len);
        let data = if usual { self.common.whole(addr, desc.len) } else { ptr::null_mut() };
        self.lent[number] = Lent::single(rest, used(at));
        self.pieces[number] = Piece { at: data, len: desc.len };
        if !data.is_null() {
            prefetch_frame(data);
            return;
        }
        self.odd[number] = desc;
        if desc.flags & F_INDIRECT != 0 {
            prefetch_read(self.common.whole(desc.addr, desc.len));
        }
    }

    /// Appends the frames of the `count` buffers that [`Ring::look`] found from `at` on, the first of them number `taken`
    /// of this burst; how many there was room for.
    #[inline(always)]
    fn push_run(
        &mut self,
        burst: &mut Burst,
        at: Position,
        taken: usize,
        count: usize,
        served: &mut Served,
    ) -> Result<usize, RingFault> {
        let end = taken + count;
        let mut next = taken;
        while next < end {
            if !self.pieces[next].at.is_null() {
                // SAFETY: `whole` has found these bytes, and they are more than the header.
                next += unsafe { self.common.push_whole(burst, &self.pieces[next..end]) };
                continue;
            }
            if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                break;
            }
            let at = at.advance((next - taken) as u16, self.size);
            match self.push_chain(burst, self.odd[next], at, 1, served) {
                Ok(_) => next += 1,
                Err(RingFault::ChainTooLong) if burst.segments_used > 0 => break,
                Err(fault) => return Err(fault),
            }
        }
        Ok(next - taken)
    }

    /// Appends the frame of a buffer of several pieces.
    fn push_chain(
        &mut self,
        burst: &mut Burst,
        first: Descriptor,
        at: Position,
        room: u16,
        served: &mut Served,
    ) -> Result<Chain, RingFault> {
        let mut gather = Gather::new(burst, self.common.header_len)?;
        // SAFETY: `walk` gives mapped bytes; the burst is cleared before the ring is let go (`RingCell::serve`).
        let chain = self.walk(first, at, room, false, |ptr, _, len| unsafe { gather.piece(ptr, len) })?;
        gather.finish(&self.common, served)?;
        Ok(chain)
    }

    /// Gives back what `fetch` took.
    #[inline]
    pub(crate) fn complete(&mut self, track: &mut impl Track) {
        let taken = std::mem::take(&mut self.taken);
        if taken == 0 || self.common.fault.is_some() {
            return;
        }
        let old = self.next_used;
        let count = old.distance(self.next_avail, self.size);
        let lent = &self.lent[..taken];
        let mut first = Used { at: old.index, word: lent[0].word() };
        if self.common.in_order {
            // One descriptor, with the last buffer's number, stands for all of them (section 2.8.12).
            first.word = lent[0].with_id_of(lent[taken - 1]).word();
        }
        self.note_begin(first);
        if self.common.in_order {
            // Nothing else is written.
        } else if usize::from(count) == taken {
            let (run, rest) = lent.split_at(taken.min(usize::from(self.size - old.index)));
            self.write_run(old.index + 1, run[1..].iter().map(|lent| lent.single_word()));
            self.write_run(0, rest.iter().map(|lent| lent.single_word()));
        } else {
            let mut at = old;
            for pair in lent.windows(2) {
                at = at.advance(pair[0].descriptors(), self.size);
                self.write_used(Used { at: at.index, word: pair[1].word() }, Ordering::Relaxed);
            }
        }
        self.publish(first, count);
        self.track_used(old, count, track);
    }
}
