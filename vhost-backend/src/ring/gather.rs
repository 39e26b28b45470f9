//! From the guest: one frame out of the pieces of a chain.

use super::common::Common;
use super::copy::copy_upto_128;
use super::{More, RingFault, Served};
use crate::frame::{BURST, Burst, Frame, MAX_FRAME, SNAPSHOT, Segment};
use crate::net_header::NET_HEADER_LEN;

/// A frame on its way into a burst. Nothing of it counts before [`Gather::finish`].
pub(super) struct Gather<'a> {
    burst: &'a mut Burst,
    header_len: usize,
    header: [u8; NET_HEADER_LEN],
    header_have: usize,
    head_have: usize,
    len: usize,
    tail: Segment,
    more: usize,
}

impl<'a> Gather<'a> {
    /// A frame behind a header of `header_len` bytes.
    ///
    /// # Errors
    /// The burst has no room.
    pub(super) fn new(burst: &'a mut Burst, header_len: u8) -> Result<Self, RingFault> {
        if burst.len == BURST {
            return Err(RingFault::ChainTooLong);
        }
        Ok(Self {
            burst,
            header_len: usize::from(header_len),
            header: [0; NET_HEADER_LEN],
            header_have: 0,
            head_have: 0,
            len: 0,
            tail: Segment::EMPTY,
            more: 0,
        })
    }

    /// Takes the next piece.
    ///
    /// # Safety
    /// `piece_len` bytes at `ptr` are mapped until the burst is cleared.
    #[inline(always)]
    pub(super) unsafe fn piece(&mut self, ptr: *const u8, piece_len: u32) -> Result<More, RingFault> {
        let (mut ptr, mut left) = (ptr, piece_len as usize);
        if self.header_have < self.header_len {
            let n = left.min(self.header_len - self.header_have);
            // SAFETY: mapped bytes per contract; `header` has room for `header_len`.
            unsafe { copy_upto_128(ptr, self.header.as_mut_ptr().add(self.header_have), n) };
            self.header_have += n;
            ptr = ptr.wrapping_add(n);
            left -= n;
        }
        self.len = self.len.saturating_add(left);
        if self.len > MAX_FRAME {
            return Ok(More::No);
        }
        if self.head_have < SNAPSHOT && left > 0 {
            let n = left.min(SNAPSHOT - self.head_have);
            let snapshot = self.burst.snapshots[self.burst.len].0.as_mut_ptr();
            // SAFETY: mapped bytes; the snapshot has room for what is missing.
            unsafe { copy_upto_128(ptr, snapshot.add(self.head_have), n) };
            self.head_have += n;
            ptr = ptr.wrapping_add(n);
            left -= n;
        }
        if left > 0 {
            // SAFETY: mapped bytes until the burst is cleared, per contract.
            let segment = unsafe { Segment::new(ptr, left as u32) };
            if self.tail.is_empty() {
                self.tail = segment;
            } else {
                let at = self.burst.segments_used + self.more;
                *self.burst.segments.get_mut(at).ok_or(RingFault::ChainTooLong)? = segment;
                self.more += 1;
            }
        }
        Ok(More::Yes)
    }

    /// Appends the frame to the burst, or counts why it is none.
    pub(super) fn finish(self, common: &Common, served: &mut Served) -> Result<(), RingFault> {
        if self.header_have < self.header_len {
            return Err(RingFault::HeaderTooShort);
        }
        if self.len == 0 {
            served.empty += 1;
            return Ok(());
        }
        if self.len > MAX_FRAME {
            served.oversized += 1;
            return Ok(());
        }
        let header = common.header(self.header);
        let burst = self.burst;
        let (slot, more_at) = (burst.len, burst.segments_used);
        burst.totals.add(slot, self.len as u32, &header);
        burst.frames[slot] = Frame {
            len: self.len as u32,
            head_len: self.head_have as u16,
            more: self.more as u16,
            more_at: more_at as u16,
            header,
            tail: self.tail,
        };
        burst.segments_used = more_at + self.more;
        burst.len = slot + 1;
        Ok(())
    }
}
