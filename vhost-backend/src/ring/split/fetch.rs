//! From the guest: what it transmitted becomes a burst, and its buffers go back to it.

use super::{Ring, UsedElem};
use crate::dirty::Track;
use crate::frame::{BURST, Burst};
use crate::ring::common::{Piece, fits};
use crate::ring::copy::prefetch_frame;
use crate::ring::gather::Gather;
use crate::ring::{RingFault, Served};

impl Ring {
    /// Fills the (empty) burst with what the guest sent. Every chain taken must be given back by [`Ring::complete`]
    /// once the burst is cleared.
    pub(crate) fn fetch(&mut self, burst: &mut Burst) -> Served {
        burst.clear();
        let count = self.pending().min(BURST);
        if count == 0 {
            self.common.look_for_poison();
            return Served::default();
        }
        let (desc, first) = (self.desc, self.next_avail);
        let Some(heads) = self.heads(first, count) else {
            return self.common.broken(RingFault::BadDescriptor);
        };

        // A buffer in one piece, as nearly all small frames are; none where a chain has to be walked.
        let header_len = self.common.header_len;
        for (piece, &head) in self.pieces[..count].iter_mut().zip(&heads) {
            // SAFETY: heads are below the size.
            let desc = unsafe { Self::read(desc, head) };
            if desc.flags == 0 && fits(desc.len, header_len) {
                let at = self.common.whole(desc.addr, desc.len);
                *piece = Piece { at, len: desc.len };
                prefetch_frame(at);
            } else {
                *piece = Piece::NONE;
            }
        }

        let mut served = Served::default();
        let mut taken = 0;
        while taken < count {
            if self.pieces[taken].at.is_null() {
                if burst.segments_used + 64 > burst.segments.len() && !burst.is_empty() {
                    // Room for a whole chain may be short: the rest of the ring makes the next burst.
                    break;
                }
                if let Err(fault) = self.push_chain(burst, heads[taken], &mut served) {
                    if !matches!(fault, RingFault::ChainTooLong) || burst.segments_used == 0 {
                        self.common.fault = Some(fault);
                    }
                    break;
                }
                taken += 1;
            } else {
                // SAFETY: `whole` has found these bytes, and they are more than the header.
                taken += unsafe { self.common.push_whole(burst, &self.pieces[taken..count]) };
            }
        }
        self.common.look_for_poison();
        if self.common.fault.is_some() {
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

    /// Appends the frame of a chain of several pieces.
    fn push_chain(&mut self, burst: &mut Burst, head: u16, served: &mut Served) -> Result<(), RingFault> {
        let mut gather = Gather::new(burst, self.common.header_len)?;
        // SAFETY: `walk` gives mapped bytes; the burst is cleared before the ring is let go (`RingCell::serve`).
        self.walk(head, false, |ptr, _, len| unsafe { gather.piece(ptr, len) })?;
        gather.finish(&self.common, served)
    }

    /// Gives back what `fetch` took.
    #[inline]
    pub(crate) fn complete(&mut self, track: &mut impl Track) {
        let count = std::mem::take(&mut self.taken);
        if count == 0 || self.common.fault.is_some() {
            return;
        }
        // The driver looks at the identifiers alone: nothing was written to its buffers.
        let elements = self.heads.map(|head| UsedElem { id: u32::from(head), len: 0 });
        self.write_used_run(self.next_used, &elements[..usize::from(count)]);
        let first = self.next_used;
        self.publish(count);
        self.track_used(first, count, track);
    }
}
