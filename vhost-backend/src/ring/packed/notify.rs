//! Who wakes whom (virtio 1.3, section 2.8.10): two event areas, each written by one side.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::Ring;
use super::descriptor::Used;
use super::position::Position;

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
        // Release: buffers and the descriptors behind this one are visible before it.
        self.write_used(first, Ordering::Release);
        let old = self.next_used;
        self.next_used = old.advance(count, self.size);
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

    fn wish(&self, at: u16, flags: u16) {
        // SAFETY: mapped and aligned per `set_map`; both halves are ours alone to write.
        unsafe { AtomicU32::from_ptr(self.device) }
            .store(u32::from(at) | u32::from(flags) << 16, Ordering::Relaxed);
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
