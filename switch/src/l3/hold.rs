//! Packets that wait until it is known where their next hop is.
//!
//! Each worker keeps a few, as whole frames in memory of its own; so the first packet to a neighbour is not lost while
//! it is asked for its address (RFC 1122, section 2.3.2.2).
#![forbid(unsafe_code)]

use vhost_backend::frame::{Burst, SNAPSHOT};
use vhost_backend::net_header::NetHeader;

use crate::packet::headers::Headers;

/// Packets that one worker keeps.
const PACKETS: usize = 64;
/// Packets that may wait for one neighbour.
const PER_NEIGHBOUR: usize = 4;
/// Longest frame that is kept: a jumbo frame. Segmentation frames are longer, but no conversation begins with one.
const LONGEST: usize = 9728;
/// Seconds that a packet waits at most: as long as a neighbour is asked.
const PATIENCE: u32 = 3;

/// Who waits for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// The neighbour's slot.
    pub(super) adjacency: u32,
    /// That slot's version, so that another neighbour in it is not mistaken for this one.
    pub(super) version: u32,
    /// Its headers.
    pub(super) headers: Headers,
    /// Index of the interface that it came to.
    pub(super) interface: u16,
    /// Number of the port that it came from.
    pub(super) port: u16,
    /// Second since which it waits.
    pub(super) since: u32,
    /// It is as it came, and is to be looked at again.
    pub(super) again: bool,
}

/// A place in the hold.
#[derive(Clone, Copy)]
struct Place {
    waiting: Waiting,
    header: NetHeader,
    len: usize,
    /// The first bytes as they came, before the packet was changed for its way.
    original: [u8; SNAPSHOT],
}

/// A packet that comes out.
pub(super) struct Kept<'a> {
    /// Offload metadata.
    pub(super) header: NetHeader,
    /// The frame, ready but for its next link's addresses.
    pub(super) frame: &'a mut [u8],
    original: &'a [u8; SNAPSHOT],
}

impl<'a> Kept<'a> {
    /// The frame as it came in.
    pub(super) fn into_original(self) -> &'a [u8] {
        let len = self.frame.len().min(SNAPSHOT);
        self.frame[..len].copy_from_slice(&self.original[..len]);
        self.frame
    }
}

/// The packets of one worker.
pub(super) struct Hold {
    places: Box<[Option<Place>]>,
    count: usize,
    bytes: Box<[u8]>,
}

impl Default for Hold {
    fn default() -> Self {
        // Zeroed pages: memory is taken when packets wait.
        Self { places: vec![None; PACKETS].into(), count: 0, bytes: vec![0; PACKETS * LONGEST].into() }
    }
}

/// What is to become of a packet that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Wait on.
    Wait,
    /// Take it out: its next hop is known, or never will be.
    Take,
}

impl Hold {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps frame `i`, whose first bytes came as `original`. False if there is no room, for this neighbour or at all.
    pub(super) fn keep(
        &mut self,
        burst: &Burst,
        i: usize,
        original: &[u8; SNAPSHOT],
        waiting: Waiting,
    ) -> bool {
        self.keep_frame(*burst.header(i), original, waiting, |space| burst.linearise(i, space))
    }

    /// Keeps the frame that `fill` writes, as [`Hold::keep`] does.
    pub(super) fn keep_frame(
        &mut self,
        header: NetHeader,
        original: &[u8; SNAPSHOT],
        waiting: Waiting,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> bool {
        let same = |place: &&Place| {
            place.waiting.adjacency == waiting.adjacency && place.waiting.version == waiting.version
        };
        if self.places.iter().flatten().filter(same).count() >= PER_NEIGHBOUR {
            return false;
        }
        let Some(free) = self.places.iter().position(Option::is_none) else { return false };
        let Some(len) = fill(&mut self.bytes[free * LONGEST..(free + 1) * LONGEST]) else {
            return false;
        };
        self.places[free] = Some(Place { waiting, header, len, original: *original });
        self.count += 1;
        true
    }

    /// Takes out, in no particular order of neighbours but in order for each, what `judge` says is ready.
    pub(super) fn release(
        &mut self,
        now: u32,
        mut judge: impl FnMut(&Waiting, bool) -> Outcome,
        mut take: impl FnMut(&Waiting, Kept<'_>),
    ) {
        let mut order: [usize; PACKETS] = std::array::from_fn(|i| i);
        // Places are taken lowest first, so the order of arrival is that of `since`, then of places: near enough.
        order.sort_unstable_by_key(|&i| (self.places[i].as_ref().map_or(u32::MAX, |p| p.waiting.since), i));
        for at in order {
            let Some(place) = &self.places[at] else { continue };
            let overdue = now.saturating_sub(place.waiting.since) > PATIENCE;
            if judge(&place.waiting, overdue) == Outcome::Take {
                let frame = &mut self.bytes[at * LONGEST..at * LONGEST + place.len];
                take(&place.waiting, Kept { header: place.header, frame, original: &place.original });
                self.places[at] = None;
                self.count -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_frame(bytes: &[u8], consume: impl FnOnce(&Burst)) {
        Burst::new().with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &bytes[..64], &bytes[64..])),
            |burst| consume(burst),
        );
    }

    fn keep(hold: &mut Hold, burst: &Burst, adjacency: u32, since: u32) -> bool {
        let headers = Headers {
            v6: false,
            protocol: 17,
            ttl: 9,
            tcp_flags: 0,
            network: 14,
            transport: 34,
            len: 986,
            fragment: crate::packet::headers::Fragment::None,
            source_port: 0,
            destination_port: 0,
            icmp_error: false,
        };
        let waiting = Waiting { adjacency, version: 1, headers, interface: 0, port: 3, since, again: false };
        hold.keep(burst, 0, &[9; SNAPSHOT], waiting)
    }

    #[test]
    fn packets_wait_for_their_neighbour_and_not_for_ever() {
        let mut hold = Hold::default();
        with_frame(&[7; 1000], |burst| {
            for _ in 0..PER_NEIGHBOUR {
                assert!(keep(&mut hold, burst, 5, 10));
            }
            assert!(!keep(&mut hold, burst, 5, 10), "one neighbour's share");
            assert!(keep(&mut hold, burst, 6, 12));
        });
        let mut taken = Vec::new();
        let known = |known: u32| {
            move |w: &Waiting, overdue: bool| {
                if overdue || w.adjacency == known { Outcome::Take } else { Outcome::Wait }
            }
        };
        hold.release(12, known(6), |w, kept| taken.push((w.adjacency, kept.frame.to_vec())));
        assert_eq!(taken, [(6, vec![7; 1000])]);
        hold.release(13, known(6), |_, _| panic!("nobody is ready"));
        let mut overdue = 0;
        hold.release(14, known(6), |_, kept| {
            assert_eq!(kept.into_original(), [vec![9; SNAPSHOT], vec![7; 1000 - SNAPSHOT]].concat());
            overdue += 1;
        });
        assert_eq!(overdue, PER_NEIGHBOUR);
        assert!(hold.is_empty());
    }

    #[test]
    fn room_is_bounded() {
        let mut hold = Hold::default();
        with_frame(&[1; 64], |burst| {
            let kept = (0..1000).filter(|&n| keep(&mut hold, burst, n, 0)).count();
            assert_eq!(kept, PACKETS);
        });
        with_frame(&[1; LONGEST + 1], |burst| assert!(!keep(&mut Hold::default(), burst, 0, 0)));
    }
}
