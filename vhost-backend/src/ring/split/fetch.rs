//! From the guest: what it transmitted becomes a burst, and its buffers go back to it.

use std::ptr;

use super::descriptor::More;
use super::{Ring, UsedElem};
use crate::frame::{BURST, Burst, Frame, MAX_FRAME, SNAPSHOT, Segment};
use crate::net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN, NetHeader};
use crate::ring::copy::{copy_upto_128, prefetch_read};
use crate::ring::{RingFault, Served};

impl Ring {
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
        #[repr(C, packed)]
        struct Words(u64, u16);
        // SAFETY: per contract; packed words have no alignment. Volatile: what is looked at is what is kept, whatever the
        // guest writes meanwhile. The last two bytes (`num_buffers`) mean nothing on this way.
        let Words(first, last) = unsafe { at.cast::<Words>().read_volatile() };
        // Neither flags nor a GSO type.
        if first as u16 == 0 {
            return NetHeader::default();
        }
        let mut full = [0; NET_HEADER_LEN];
        full[..8].copy_from_slice(&first.to_le_bytes());
        full[8..LEGACY_NET_HEADER_LEN].copy_from_slice(&last.to_le_bytes());
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
}
