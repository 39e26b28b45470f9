//! Buffers that an earlier device took and did not give back, as the record of what is in flight names them.
//!
//! They are served from an available ring of our own, which is laid out like the guest's: the ring's usual ways notice
//! nothing. When all of them have gone back, the guest's available ring goes on behind them.

use std::sync::atomic::Ordering;

use super::Ring;
use crate::inflight::Region;
use crate::ring::RingFault;

/// The available ring of our own.
pub(super) struct Resumed {
    /// flags, idx, ring[size], used_event
    ring: Box<[u16]>,
    heads: Vec<u16>,
    /// The guest's.
    pub(super) guests: *const u16,
}

impl Ring {
    /// See [`crate::ring::Ring::keep_record`].
    pub(in crate::ring) fn keep_record(&mut self, record: Region, features: u64) -> Result<(), RingFault> {
        let heads = record.take_over(self.size, self.next_used, features)?;
        self.record = Some(record);
        if heads.is_empty() {
            return Ok(());
        }
        let mut ring = vec![0; usize::from(self.size) + 3].into_boxed_slice();
        let mut index = self.next_used;
        for &head in &heads {
            ring[2 + usize::from(index & self.mask())] = head;
            index = index.wrapping_add(1);
        }
        ring[1] = index;
        let guests = std::mem::replace(&mut self.avail, ring.as_ptr());
        self.resumed = Some(Box::new(Resumed { ring, heads, guests }));
        Ok(())
    }

    pub(in crate::ring) fn record(&self) -> Option<&Region> {
        self.record.as_ref()
    }

    /// Goes on with the guest's available ring if what was resumed has all been given back. True if it has just done so.
    #[cold]
    pub(super) fn go_on(&mut self) -> bool {
        let Some(resumed) = self.resumed.take_if(|resumed| resumed.ring[1] == self.next_used) else {
            return false;
        };
        self.avail = resumed.guests;
        if let Some(record) = &self.record {
            record.settle(&resumed.heads, self.next_used);
        }
        // While its own available ring was out of sight, so was its wish not to be interrupted, or to be.
        self.common.interrupt();
        std::sync::atomic::fence(Ordering::SeqCst);
        true
    }
}
