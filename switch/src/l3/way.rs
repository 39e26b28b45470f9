//! What is the same for all packets of a burst that go to one neighbour, looked up once.
//!
//! Packets that follow each other mostly go the same way: to the gateway, to the one guest behind a port. A way is good
//! for the burst at hand only.
#![forbid(unsafe_code)]

use super::deliver::flood;
use super::next_hop::Hop;
use super::{Arrival, Stage};
use crate::l2::fdb::Key;
use crate::members::Verdict;
use crate::packet::ethernet::HEADER_LEN;

/// No neighbour's number.
const NOWHERE: u32 = u32::MAX;

/// A way, and the frames that have taken it.
pub(super) struct Way {
    adjacency: u32,
    stamp: u32,
    /// Destination and source of the next link.
    macs: [u8; 12],
    /// Bytes of the longest frame that fits.
    longest: usize,
    /// Index of the interface.
    interface: u16,
    /// The port; all of the bridge if `None`.
    port: Option<u16>,
    /// SYNs need a look of their own.
    clamps: bool,
    frames: u64,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            adjacency: NOWHERE,
            stamp: 0,
            macs: [0; 12],
            longest: 0,
            interface: 0,
            port: None,
            clamps: false,
            frames: 0,
        }
    }
}

impl Way {
    /// Whether it leads to this next hop, a half's kept one with this stamp.
    #[inline(always)]
    pub(super) fn is_kept(&self, adjacency: u32, stamp: u32) -> bool {
        self.adjacency == adjacency && self.stamp == stamp
    }

    /// Whether a frame of this length can take it to this next hop. `syn`: it carries a SYN.
    #[inline(always)]
    pub(super) fn takes(&self, hop: Hop, len: usize, syn: bool) -> bool {
        self.adjacency == hop.adjacency && len <= self.longest && !(syn && self.clamps)
    }

    /// Sends frame `i`, with `head`, along.
    #[inline(always)]
    pub(super) fn take(&mut self, i: usize, head: &mut [u8]) {
        if let Some(macs) = head.first_chunk_mut() {
            *macs = self.macs;
        }
        self.frames |= 1 << i;
    }

    fn leave(&mut self, at: &Arrival<'_>, verdict: &mut Verdict) {
        let frames = std::mem::take(&mut self.frames);
        match self.port {
            _ if frames == 0 => {}
            Some(port) => verdict.send(frames, port),
            None => {
                if let Some(interface) = at.router.interface(self.interface) {
                    flood(interface, frames, verdict);
                }
            }
        }
    }
}

impl Stage {
    /// Looks for the way to another next hop. Afterwards [`Way::takes`] tells whether there is a short one: not to
    /// neighbours whose MAC address is not known, nor by interfaces that tag.
    pub(super) fn turn_to(&mut self, hop: Hop, at: &Arrival<'_>) {
        if hop.adjacency == self.way.adjacency {
            return;
        }
        self.end_way(at);
        let Some(slot) = at.router.neighbours.slot(hop.adjacency) else { return };
        let version = slot.version();
        let Some(interface) = at.router.interface(slot.interface()).filter(|interface| interface.vlan == 0)
        else {
            return;
        };
        let Some(mac) = slot.usable_mac(at.now) else { return };
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&mac.0);
        macs[6..].copy_from_slice(&interface.mac.0);
        self.way = Way {
            adjacency: hop.adjacency,
            stamp: at.router.stamp(version),
            macs,
            longest: usize::from(interface.mtu) + HEADER_LEN,
            interface: interface.index,
            port: interface.table.fdb.lookup(Key::new(mac.0, 0), at.now),
            clamps: interface.clamp_mss || at.interface.clamp_mss,
            frames: 0,
        };
    }

    /// Sends what took the way. To be called when a burst is done with.
    #[inline]
    pub(super) fn end_way(&mut self, at: &Arrival<'_>) {
        self.way.leave(at, &mut self.verdict);
        self.way.adjacency = NOWHERE;
    }
}
