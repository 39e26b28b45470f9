//! What a driver of the oracles' programs has accepted.

use proptest::prelude::*;

use crate::guest::{CSUM, EVENT_IDX, INDIRECT, MRG_RXBUF, VERSION_1};

/// VIRTIO_F_IN_ORDER.
const IN_ORDER: u64 = 1 << 35;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    pub(crate) modern: bool,
    pub(crate) mergeable: bool,
    pub(crate) event_idx: bool,
    pub(crate) offloads: bool,
    pub(crate) in_order: bool,
}

impl Features {
    pub(crate) fn bits(self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        INDIRECT
            | bit(self.modern, VERSION_1)
            | bit(self.mergeable, MRG_RXBUF)
            | bit(self.event_idx, EVENT_IDX)
            | bit(self.offloads, CSUM)
            | bit(self.in_order, IN_ORDER)
    }

    pub(crate) fn header_len(self) -> usize {
        if self.modern || self.mergeable { 12 } else { 10 }
    }
}

/// Any of them; in order only if the reference can do that.
pub(crate) fn features(in_order: bool) -> impl Strategy<Value = Features> {
    any::<[bool; 5]>().prop_map(move |[modern, mergeable, event_idx, offloads, ordered]| Features {
        modern,
        mergeable,
        event_idx,
        offloads,
        in_order: in_order && ordered,
    })
}
