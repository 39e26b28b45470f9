//! Who wakes whom (virtio 1.3, section 2.8.10): two event areas, each written by one side.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::Ring;
use super::descriptor::Used;
use super::position::Position;
use crate::dirty::Track;
use crate::ring::RingFault;
use crate::ring::common::DESCRIPTOR;

/// Notify always.
const ENABLE: u16 = 0;
/// Do not notify.
const DISABLE: u16 = 1;
/// Notify when the position is reached (with EVENT_IDX).
const DESC: u16 = 2;

impl Ring {
    /// Writes the first of the buffers that go back, which shows the driver all of them, `count` descriptors together,
    /// and interrupts it if it wants that.
    #[inline]
    pub(super) fn publish(&mut self, first: Used, count: u16) {
        let old = self.next_used;
        self.next_used = old.advance(count, self.size);
        self.note_end(first, old, count);
        // Release: buffers and the descriptors behind this one are visible before it.
        self.write_used(first, Ordering::Release);
        if let Some(record) = &self.record {
            record.commit(self.next_used.encode());
            if record.gone() {
                self.common.fault = Some(RingFault::InflightGone);
            }
        }
        if self.common.call.is_none() {
            return;
        }
        // The guest writes its wish and then looks at the ring; we do it the other way round.
        fence(Ordering::SeqCst);
        // SAFETY: mapped and aligned per `set_map`; one read gives position and flags that belong together.
        let wish = unsafe { AtomicU32::from_ptr(self.driver.cast_mut()) }.load(Ordering::Relaxed);
        let wanted = match (wish >> 16) as u16 & 3 {
            DISABLE => false,
            DESC if self.common.event_idx => old.distance(Position::decode(wish as u16), self.size) < count,
            // What has no meaning is taken as the wish that does no harm.
            _ => true,
        };
        if wanted {
            self.common.interrupt();
        }
    }

    /// Tells of `count` descriptors from `first` on, of which some or all were written.
    #[inline(always)]
    pub(super) fn track_used(&mut self, first: Position, count: u16, track: &mut impl Track) {
        let run = count.min(self.size - first.index);
        let at = |index: u16| self.setup_addresses.desc + u64::from(DESCRIPTOR) * u64::from(index);
        let bytes = |count: u16| u64::from(DESCRIPTOR) * u64::from(count);
        let tracked = track
            .ring(&self.common.map, at(first.index), bytes(run))
            .and_then(|()| track.ring(&self.common.map, at(0), bytes(count - run)));
        self.common.logged(tracked);
    }

    /// Logs all of the ring and our event area.
    pub(crate) fn log_all(&mut self) {
        let bytes = u64::from(DESCRIPTOR) * u64::from(self.size);
        let common = &mut self.common;
        let logged = common
            .logging
            .as_ref()
            .map(|logging| logging.ring(&common.map, self.setup_addresses.desc, bytes));
        common.logged(logged.unwrap_or(Ok(())));
        common.log_used(0, 4);
    }

    fn wish(&mut self, at: u16, flags: u16) {
        // SAFETY: mapped and aligned per `set_map`; both halves are ours alone to write.
        unsafe { AtomicU32::from_ptr(self.device) }
            .store(u32::from(at) | u32::from(flags) << 16, Ordering::Relaxed);
        self.common.log_used(0, 4);
    }

    /// Asks for a kick at the next buffer; true if there is one already.
    pub(crate) fn arm(&mut self) -> bool {
        if self.common.event_idx {
            self.wish(self.next_avail.encode(), DESC);
        } else {
            self.wish(0, ENABLE);
        }
        // Our wish must be visible before we look; otherwise a buffer added meanwhile is neither seen nor kicked.
        fence(Ordering::SeqCst);
        self.is_available(self.next_avail)
    }

    /// Asks for no kicks.
    pub(crate) fn disarm(&mut self) {
        self.wish(0, DISABLE);
    }
}
