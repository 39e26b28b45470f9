//! The record of what is in flight, for devices of another kind that come after us: ours find the ring's place in the
//! ring itself (`find`).

use super::Ring;
use super::position::Position;
use crate::inflight::Region;
use crate::ring::RingFault;

impl Ring {
    /// See [`crate::ring::Ring::keep_record`].
    pub(in crate::ring) fn keep_record(&mut self, record: Region, features: u64) -> Result<(), RingFault> {
        if let (Some(at), false) = (record.position(self.size, features)?, self.found) {
            self.stand_at(Position::decode(at));
        }
        record.commit(self.next_used.encode());
        self.record = Some(record);
        Ok(())
    }

    pub(in crate::ring) fn record(&self) -> Option<&Region> {
        self.record.as_ref()
    }
}
