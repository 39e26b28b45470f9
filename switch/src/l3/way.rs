//! What is the same for all packets of a burst that go to one neighbour, looked up once.
//!
//! Packets of a burst mostly go few ways: to the gateway, to the guests behind a port. Ways are good for the burst at
//! hand only.
#![forbid(unsafe_code)]

use super::deliver::flood;
use super::next_hop::Hop;
use super::{Arrival, Stage};
use crate::l2::fdb::Key;
use crate::members::Verdict;
use crate::packet::ethernet::HEADER_LEN;

/// No neighbour's number.
const NOWHERE: u32 = u32::MAX;
/// Ways that are kept at once; a neighbour's number says which of them may be its.
const WAYS: usize = 16;

/// A way, and the frames that have taken it.
#[derive(Clone, Copy)]
pub(super) struct Way {
    adjacency: u32,
    stamp: u32,
    /// Destination and source of the next link.
    macs: [u8; 12],
    /// Bytes of the longest frame that fits; 0 if none may go the short way: to neighbours whose MAC address is not
    /// known, and by interfaces that tag.
    longest: usize,
    /// Index of the interface.
    interface: u16,
    /// The port; all of the bridge if `None`.
    port: Option<u16>,
    /// SYNs need a look of their own.
    clamps: bool,
    frames: u64,
}

/// The ways of a burst.
pub(super) struct Ways {
    ways: [Way; WAYS],
    /// Which of them lead anywhere.
    used: u16,
}

impl Default for Ways {
    fn default() -> Self {
        Self { ways: [Way::NONE; WAYS], used: 0 }
    }
}

impl Ways {
    /// The way at a place.
    #[inline(always)]
    pub(super) fn at(&mut self, place: usize) -> &mut Way {
        &mut self.ways[place % WAYS]
    }
}

impl Way {
    /// A way that nothing can take.
    pub(super) const NONE: Self = Self {
        adjacency: NOWHERE,
        stamp: 0,
        macs: [0; 12],
        longest: 0,
        interface: 0,
        port: None,
        clamps: false,
        frames: 0,
    };

    /// Whether a frame of this length can take it.
    #[inline(always)]
    pub(super) fn fits(&self, len: usize) -> bool {
        len <= self.longest
    }

    /// As [`Way::fits`] for a frame that may carry a SYN.
    #[inline(always)]
    pub(super) fn takes(&self, len: usize, syn: bool) -> bool {
        self.fits(len) && !(syn && self.clamps)
    }

    /// Sends a frame along: its bit, and its head.
    #[inline(always)]
    pub(super) fn take(&mut self, frame: u64, head: &mut [u8]) {
        if let Some(macs) = head.first_chunk_mut() {
            *macs = self.macs;
        }
        self.frames |= frame;
    }

    fn leave(&mut self, at: &Arrival<'_>, verdict: &mut Verdict) {
        let way = std::mem::replace(self, Self::NONE);
        match way.port {
            _ if way.frames == 0 => {}
            Some(port) => verdict.send(way.frames, port),
            None => {
                if let Some(interface) = at.router.interface(way.interface) {
                    flood(interface, way.frames, verdict);
                }
            }
        }
    }

    /// The way to a neighbour.
    fn find(adjacency: u32, at: &Arrival<'_>) -> Self {
        let none = Self { adjacency, ..Self::NONE };
        let Some(slot) = at.router.neighbours.slot(adjacency) else { return none };
        let none = Self { stamp: at.router.stamp(slot.version()), ..none };
        let Some(interface) = at.router.interface(slot.interface()).filter(|interface| interface.vlan == 0)
        else {
            return none;
        };
        let Some(mac) = slot.usable_mac(at.now) else { return none };
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&mac.0);
        macs[6..].copy_from_slice(&interface.mac.0);
        Self {
            macs,
            longest: usize::from(interface.mtu) + HEADER_LEN,
            interface: interface.index,
            port: interface.table.fdb.lookup(Key::new(mac.0, 0), at.now),
            clamps: interface.clamp_mss || at.interface.clamp_mss,
            ..none
        }
    }
}

impl Stage {
    /// The way to a next hop.
    #[inline(always)]
    pub(super) fn way_to(&mut self, hop: Hop, at: &Arrival<'_>) -> &mut Way {
        let place = self.place_of_way(hop, at);
        self.ways.at(place)
    }

    /// Where the way to a next hop is, until the next one is asked for.
    #[inline(always)]
    pub(super) fn place_of_way(&mut self, hop: Hop, at: &Arrival<'_>) -> usize {
        let place = hop.adjacency as usize % WAYS;
        if self.ways.ways[place].adjacency != hop.adjacency {
            self.turn_to(place, hop, at);
        }
        place
    }

    /// The way to a half's kept next hop, if it is still the right one.
    #[inline(always)]
    pub(super) fn way_kept(&mut self, adjacency: u32, stamp: u32, at: &Arrival<'_>) -> Option<&mut Way> {
        let way = self.way_to(Hop { adjacency }, at);
        (way.stamp == stamp).then_some(way)
    }

    #[cold]
    fn turn_to(&mut self, place: usize, hop: Hop, at: &Arrival<'_>) {
        let way = &mut self.ways.ways[place];
        way.leave(at, &mut self.verdict);
        *way = Way::find(hop.adjacency, at);
        self.ways.used |= 1 << place;
    }

    /// Sends what took ways, and forgets them. To be called when a burst is done with.
    #[inline]
    pub(super) fn end_ways(&mut self, at: &Arrival<'_>) {
        let mut used = std::mem::take(&mut self.ways.used);
        while used != 0 {
            let place = used.trailing_zeros() as usize % WAYS;
            used &= used - 1;
            self.ways.ways[place].leave(at, &mut self.verdict);
        }
    }
}
