//! What a packet meets, in order: the sentence that a newcomer reads first.
//!
//! A burst of frames that one port received becomes, for each port of the bridge, the set of frames that leave by it.
//! Everything is decided on the snapshots (private copies of the first bytes); nothing here does I/O.
#![forbid(unsafe_code)]

use vhost_backend::frame::{Burst, SNAPSHOT};

use crate::clock;
use crate::drops::DropReason;
use crate::l2::fdb::{Fdb, Key, Learned};
use crate::members::Verdict;
use crate::packet;
use crate::policy::guard::Guard;
use crate::port::bucket::Bucket;
use crate::stats::Direction;

/// Ethernet header: two addresses and the type.
pub const ETHERNET_HEADER: usize = 14;
/// Ethernet types of VLAN tags, as they stand in the frame.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Where frames come from: a port and what its bridge knows. An interface is a member of its bridge like a port, with a
/// static entry for its address: what is for the switch itself costs the rest nothing.
pub struct Ingress<'a> {
    /// The port's number.
    pub port: u16,
    /// The bridge's table.
    pub fdb: &'a Fdb,
    /// All members of the bridge, this port included.
    pub members: &'a [u16],
    /// Who the port may send as; anybody if `None`.
    pub guard: Option<&'a Guard>,
    /// How much it may send; anything if `None`.
    pub limit: Option<&'a Bucket>,
}

/// What is to be done with a frame.
#[derive(Clone, Copy)]
enum Way {
    Port(u16),
    Flood,
    Drop(DropReason),
}

/// Decides for every frame of the burst. `now` is the tables' clock; `counted` takes what came in and was dropped.
#[inline]
pub fn classify(burst: &mut Burst, from: &Ingress<'_>, now: u32, counted: &Direction, verdict: &mut Verdict) {
    counted.packets.add(burst.len() as u64);
    counted.bytes.add(burst.bytes());
    let mut refused = if burst.offloads() == 0 { 0 } else { check_offloads(burst, counted) };
    if let Some(guard) = from.guard.filter(|guard| guard.is_active()) {
        refused |= check_senders(burst, refused, guard, counted);
    }
    if let Some(limit) = from.limit {
        let above = !refused & burst.all() & !limit.admit(burst, burst.all() & !refused, clock::ticks());
        counted.drop(DropReason::RateLimit, u64::from(above.count_ones()));
        refused |= above;
    }

    // Frames of a burst mostly come from and go to the same station: what is the same in its first 16 bytes (addresses,
    // type and VLAN) goes the same way, a run at a time.
    let mut last = (0u64, 0u64);
    let mut way = None;
    let mut begin = 0;
    for i in 0..burst.len() {
        let (snapshot, len, _) = burst.start(i);
        let start = (word(snapshot, 0), word(snapshot, 8));
        if start == last && len >= 16 && way.is_some() {
            continue;
        }
        dispatch(run(begin, i) & !refused, way, from, counted, verdict);
        (last, begin) = (start, i);
        way = if refused >> i & 1 == 1 {
            // Nothing is learned of it either.
            None
        } else if len < ETHERNET_HEADER {
            Some(Way::Drop(DropReason::Runt))
        } else {
            let (destination, source) = addresses(snapshot, len);
            Some(look_up(destination, source, from, now))
        };
    }
    dispatch(run(begin, burst.len()) & !refused, way, from, counted, verdict);
}

/// The mask of the frames from `begin` to before `end`.
#[inline]
fn run(begin: usize, end: usize) -> u64 {
    let below = |end: usize| 1u64.checked_shl(end as u32).unwrap_or(0).wrapping_sub(1);
    below(end) & !below(begin)
}

/// Makes the offload metadata of the burst trustworthy; the mask of the frames where that is not possible.
#[cold]
fn check_offloads(burst: &mut Burst, counted: &Direction) -> u64 {
    let mut refused = 0u64;
    for i in 0..burst.len() {
        if burst.offloads() >> i & 1 == 1 {
            match packet::validate(burst.head(i), burst.frame_len(i), *burst.header(i)) {
                Ok(header) => burst.set_header(i, header),
                Err(_) => refused |= 1 << i,
            }
        }
    }
    counted.drop(DropReason::BadOffload, u64::from(refused.count_ones()));
    refused
}

/// The mask of the frames whose sender is not who the port is; those that are refused already, and runts, have their
/// reasons.
fn check_senders(burst: &Burst, refused: u64, guard: &Guard, counted: &Direction) -> u64 {
    let mut liars = 0;
    for i in 0..burst.len() {
        if refused >> i & 1 == 1 || burst.frame_len(i) < ETHERNET_HEADER {
            continue;
        }
        if let Err(reason) = guard.allows(burst.head(i)) {
            counted.drop(reason, 1);
            liars |= 1 << i;
        }
    }
    liars
}

/// Notes where frames that go the same way go.
#[inline]
fn dispatch(frames: u64, way: Option<Way>, from: &Ingress<'_>, counted: &Direction, verdict: &mut Verdict) {
    match way {
        None => {}
        _ if frames == 0 => {}
        Some(Way::Port(port)) => verdict.send(frames, port),
        Some(Way::Flood) => flood(frames, from, counted, verdict),
        Some(Way::Drop(reason)) => counted.drop(reason, u64::from(frames.count_ones())),
    }
}

#[inline]
fn word(snapshot: &[u8; SNAPSHOT], at: usize) -> u64 {
    u64::from_le_bytes(snapshot[at..at + 8].try_into().unwrap_or_default())
}

/// Destination and source with the VLAN of the outermost tag, as the table wants them.
#[inline]
fn addresses(snapshot: &[u8; SNAPSHOT], len: usize) -> (Key, Key) {
    let mut vlan = 0;
    if TAGS.contains(&[snapshot[12], snapshot[13]]) && len >= ETHERNET_HEADER + 4 {
        vlan = u16::from_be_bytes([snapshot[14], snapshot[15]]) & 0xfff;
    }
    (Key::from_word(word(snapshot, 0), vlan), Key::from_word(word(snapshot, 6), vlan))
}

/// Learns the source and finds the destination.
#[inline]
fn look_up(destination: Key, source: Key, from: &Ingress<'_>, now: u32) -> Way {
    if source.is_group() || source.is_zero() {
        return Way::Drop(DropReason::BadSource);
    }
    if destination.is_reserved() {
        return Way::Drop(DropReason::ReservedMulticast);
    }
    // Whether or not there was room, and even where the operator has fixed the address elsewhere, the frame goes on.
    let _: Learned = from.fdb.learn(source, from.port, now);
    if destination.is_group() {
        return Way::Flood;
    }
    match from.fdb.lookup(destination, now) {
        Some(port) if port == from.port => Way::Drop(DropReason::SamePort),
        Some(port) => Way::Port(port),
        None => Way::Flood,
    }
}

#[cold]
fn flood(frames: u64, from: &Ingress<'_>, counted: &Direction, verdict: &mut Verdict) {
    let mut anybody = false;
    for &port in from.members.iter().filter(|&&port| port != from.port) {
        verdict.send(frames, port);
        anybody = true;
    }
    if !anybody {
        counted.drop(DropReason::NoOtherPort, u64::from(frames.count_ones()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vhost_backend::net_header::NetHeader;

    use super::*;
    use crate::config::spec::Rate;
    use crate::packet::ethernet::Mac;
    use crate::policy::guard::Identity;
    use crate::stats::{PortCounters, total};

    const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to[..], &from, &[0x08, 0x00], &[0; 46]].concat()
    }

    /// Runs frames through port 1 of a bridge with the ports 1, 2 and 3; port by port, which frames leave.
    fn run(fdb: &Fdb, frames: &[Vec<u8>]) -> (BTreeMap<u16, u64>, BTreeMap<&'static str, u64>) {
        run_bound(fdb, frames, None, None)
    }

    fn run_bound(
        fdb: &Fdb,
        frames: &[Vec<u8>],
        guard: Option<&Guard>,
        limit: Option<&Bucket>,
    ) -> (BTreeMap<u16, u64>, BTreeMap<&'static str, u64>) {
        let counters = [crossbeam_utils::CachePadded::new(PortCounters::default())];
        let mut verdict = Verdict::default();
        let mut ways = BTreeMap::new();
        Burst::new().with_slices(
            |filler| {
                for frame in frames {
                    assert!(filler.push(NetHeader::default(), frame, &[]));
                }
            },
            |burst| {
                let from = Ingress { port: 1, fdb, members: &[1, 2, 3], guard, limit };
                classify(burst, &from, 5, &counters[0].rx, &mut verdict);
                while let Some((port, mask)) = verdict.take() {
                    ways.insert(port, mask);
                }
            },
        );
        let totals = total(&counters, |c| &c.rx);
        assert_eq!(totals.packets, frames.len() as u64);
        (ways, totals.drops)
    }

    #[test]
    fn unknown_and_group_destinations_go_to_all_other_ports() {
        let fdb = Fdb::new(10, 300, 8);
        let (ways, drops) = run(&fdb, &[frame(B, A), frame([0xff; 6], A), frame([1, 0, 0x5e, 0, 0, 1], A)]);
        assert_eq!((ways, drops), (BTreeMap::from([(2, 0b111), (3, 0b111)]), BTreeMap::new()));
        assert_eq!(fdb.lookup(Key::new(A, 0), 5), Some(1), "the source is learned");
    }

    #[test]
    fn known_destinations_go_to_their_port_alone_and_never_back() {
        let fdb = Fdb::new(10, 300, 8);
        fdb.learn(Key::new(B, 0), 3, 5);
        let (ways, drops) = run(&fdb, &[frame(B, A), frame(A, A), frame([0xff; 6], A), frame(B, A)]);
        assert_eq!(ways, BTreeMap::from([(2, 0b100), (3, 0b1101)]));
        assert_eq!(drops, BTreeMap::from([("same_port", 1)]));
    }

    #[test]
    fn what_must_not_be_forwarded_is_dropped_by_name() {
        let fdb = Fdb::new(10, 300, 8);
        let mut bad = frame(B, A);
        bad.truncate(13);
        let (ways, drops) = run(
            &fdb,
            &[bad, frame([1, 0x80, 0xc2, 0, 0, 0x0e], A), frame(B, [3, 0, 0, 0, 0, 1]), frame(B, [0; 6])],
        );
        assert!(ways.is_empty());
        assert_eq!(drops, BTreeMap::from([("runt", 1), ("reserved_multicast", 1), ("bad_source", 2)]));
        let (ways, _) = run(&fdb, &[frame([1, 0x80, 0xc2, 0, 0, 0x10], A)]);
        assert_eq!(ways.len(), 2, "the block of reserved addresses ends at 0F");
    }

    #[test]
    fn a_guarded_port_is_neither_heard_nor_learned_as_somebody_else() {
        let guard = Guard::new(&Identity { macs: vec![Mac(A)], ..Identity::default() }, true);
        let of = |source: [u8; 6], kind: [u8; 2]| [&[0xff; 6][..], &source, &kind, &[0; 46]].concat();
        let fdb = Fdb::new(10, 300, 8);
        let frames = [of(B, [0x88, 0xb5]), of(A, [0x88, 0xb5]), of(A, [8, 6]), vec![0xff; 13]];
        let (ways, drops) = run_bound(&fdb, &frames, Some(&guard), None);
        assert_eq!(ways, BTreeMap::from([(2, 0b010), (3, 0b010)]));
        assert_eq!(drops, BTreeMap::from([("guard_arp", 1), ("guard_mac", 1), ("runt", 1)]));
        assert_eq!((fdb.lookup(Key::new(A, 0), 5), fdb.lookup(Key::new(B, 0), 5)), (Some(1), None));
    }

    #[test]
    fn what_is_above_a_limit_is_neither_heard_nor_learned() {
        let limit = Bucket::default();
        limit.set(Some(Rate { bits: 8, burst: 8 * 100 }));
        let fdb = Fdb::new(10, 300, 8);
        let frames = [vec![0xff; 13], frame(B, A), frame([0xff; 6], A), frame(A, B)];
        let (ways, drops) = run_bound(&fdb, &frames, None, Some(&limit));
        assert_eq!(
            ways,
            BTreeMap::from([(2, 0b110), (3, 0b110)]),
            "73 bytes are less than the burst, 133 are not"
        );
        assert_eq!(drops, BTreeMap::from([("rate_limit", 1), ("runt", 1)]));
        assert_eq!((fdb.lookup(Key::new(A, 0), 5), fdb.lookup(Key::new(B, 0), 5)), (Some(1), None));
    }

    #[test]
    fn tagged_frames_are_learned_in_their_vlan() {
        let fdb = Fdb::new(10, 300, 8);
        fdb.learn(Key::new(B, 7), 3, 5);
        let tagged = |vlan: u8| [&B[..], &A, &[0x81, 0, 0x20, vlan, 8, 0], &[0; 46]].concat();
        let (ways, _) = run(&fdb, &[tagged(7), tagged(8)]);
        assert_eq!(ways, BTreeMap::from([(2, 0b10), (3, 0b11)]));
        assert_eq!(fdb.lookup(Key::new(A, 7), 5), Some(1));
        assert_eq!(fdb.lookup(Key::new(A, 0), 5), None);
    }
}
