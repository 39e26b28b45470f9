use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::packet::checksum::Sum;
use crate::packet::headers::Fragment;
use crate::packet::testing::{Checksum, Tcp};

const PLAIN: NetHeader = NetHeader {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};

/// Bytes `from` to `to` of a UDP datagram with this identification, as a fragment.
fn fragment(v6: bool, id: u16, from: usize, to: usize, more: bool) -> Vec<u8> {
    let whole = Tcp { payload: vec![0x5a; 2000], ..Tcp::new(v6, 0) }.bytes_of_udp(Checksum::Whole);
    let at = if v6 { 54 } else { 34 };
    let mut frame = whole[..at].to_vec();
    let word =
        if v6 { from as u16 | u16::from(more) } else { (from / 8) as u16 | if more { 0x2000 } else { 0 } };
    if v6 {
        frame[20] = 44;
        frame.extend([17, 0]);
        frame.extend(word.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(id.to_be_bytes());
        frame[18..20].copy_from_slice(&((8 + to - from) as u16).to_be_bytes());
    } else {
        frame[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum);
    }
    frame.extend(whole[at..].iter().cycle().skip(from).take(to - from));
    frame
}

/// What becomes of fragments in a table: as a switch does it.
struct Way {
    table: Reassembly,
    now: u32,
    /// Offsets of the fragments that went on, in order.
    passed: Vec<usize>,
    drops: BTreeMap<&'static str, u64>,
}

impl Way {
    fn new() -> Self {
        Self { table: Reassembly::new(), now: 100, passed: Vec::new(), drops: BTreeMap::new() }
    }

    fn send(&mut self, frame: &[u8], port: u16) {
        let headers = Headers::parse(frame, frame.len(), 14, frame[12] == 0x86).expect("a good frame");
        assert_ne!(headers.fragment, Fragment::None);
        let lost = RefCell::new(Vec::new());
        let note = |_: u16, reason: DropReason, n: u64| lost.borrow_mut().push((reason, n));
        let mut released = Vec::new();
        let outcome = Piece::read(frame, &headers, port).and_then(|piece| {
            let fate = match headers.fragment {
                Fragment::Later => self.table.later(
                    &piece,
                    self.now,
                    PLAIN,
                    |to| {
                        to.get_mut(..frame.len())?.copy_from_slice(frame);
                        Some(frame.len())
                    },
                    note,
                )?,
                _ => {
                    let first = First::of(frame, &headers);
                    let each = |bytes: &[u8], _| released.push(bytes.to_vec());
                    self.table.first(&piece, first, self.now, each, note)?;
                    Fate::Pass(first)
                }
            };
            Ok((fate, piece.from))
        });
        match outcome {
            Ok((Fate::Pass(first), from)) => {
                let headers = first.complete(&headers);
                assert_eq!((headers.source_port, headers.destination_port), (53, 40000));
                assert_eq!(headers.protocol, 17);
                self.passed.push(from);
            }
            Ok((Fate::Held, _)) => {}
            Err(reason) => *self.drops.entry(reason.name()).or_default() += 1,
        }
        for (reason, n) in lost.into_inner() {
            *self.drops.entry(reason.name()).or_default() += n;
        }
        for frame in released {
            self.send(&frame, port);
        }
    }

    fn drops(&self) -> Vec<(&'static str, u64)> {
        self.drops.iter().map(|(&name, &n)| (name, n)).collect()
    }

    /// Ten pieces of a packet, 80 bytes each.
    fn piece(v6: bool, id: u16, n: usize) -> Vec<u8> {
        fragment(v6, id, n * 80, n * 80 + 80, n < 9)
    }

    fn held(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().expect("not poisoned").counts().1).sum()
    }

    fn packets(&self) -> usize {
        self.table.shards.iter().map(|shard| shard.lock().expect("not poisoned").counts().0).sum()
    }
}

proptest! {
    #[test]
    fn in_any_order_every_piece_passes_once_behind_the_first(
        v6: bool, order in Just((0..10).collect::<Vec<_>>()).prop_shuffle(), copies in proptest::collection::vec(0..10_usize, 0..4)
    ) {
        let mut way = Way::new();
        for &n in &order {
            way.send(&Way::piece(v6, 7, n), 3);
            // A copy of what still waits, or one that comes when all have passed, cannot be told from another packet's.
            if copies.contains(&n) && way.passed.contains(&(n * 80)) && way.passed.len() < 10 {
                way.send(&Way::piece(v6, 7, n), 3);
            }
        }
        prop_assert_eq!(way.passed[0], 0, "the first leads");
        let mut passed = way.passed.clone();
        passed.sort_unstable();
        prop_assert_eq!(passed, (0..10).map(|n| n * 80).collect::<Vec<_>>());
        prop_assert!(way.drops().iter().all(|(name, _)| *name == "fragment_overlap"), "copies only");
        prop_assert_eq!((way.held(), way.packets()), (0, 0));
    }

    #[test]
    fn what_has_passed_never_overlaps(
        v6: bool, pieces in proptest::collection::vec((0..60_usize, 1..40_usize, any::<bool>()), 1..40)
    ) {
        let mut way = Way::new();
        let mut seen = [false; 200];
        for (from, len, more) in pieces {
            if from == 0 && !more {
                continue; // whole
            }
            // A first piece with its transport header.
            let len = if from == 0 { len.max(1) } else { len };
            way.passed.clear();
            way.send(&fragment(v6, 7, from * 8, (from + len) * 8, more), 3);
            if way.passed == [from * 8] {
                for unit in &mut seen[from..from + len] {
                    prop_assert!(!*unit, "bytes passed twice");
                    *unit = true;
                }
            }
            if way.packets() == 0 {
                seen = [false; 200]; // whole, and forgotten
            } else if !way.passed.is_empty() && way.passed != [from * 8] {
                return Ok(()); // waiting ones followed: the shuffled test is for them
            }
        }
    }

    #[test]
    fn no_bytes_hurt(rest in proptest::collection::vec(any::<u8>(), 40..110), v6: bool, first in prop_oneof![Just(44_u8), Just(0), Just(60)]) {
        let mut frame = [&[0; 14][..], &rest].concat();
        if v6 {
            frame[14] = 0x60;
            let len = (frame.len() - 54) as u16;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
            frame[20] = first;
        } else {
            frame[14] = 0x45;
            let len = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[24..26].fill(0);
            let sum = Sum::of(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum);
        }
        if let Ok(headers) = Headers::parse(&frame, frame.len(), 14, v6)
            && headers.fragment != Fragment::None
        {
            let _ = Piece::read(&frame, &headers, 1);
            let _ = Piece::read(&frame[..40], &headers, 1);
        }
    }
}

#[test]
fn overlapping_pieces_spoil_their_packet() {
    for v6 in [false, true] {
        let mut way = Way::new();
        way.send(&Way::piece(v6, 7, 0), 3);
        way.send(&fragment(v6, 7, 72, 160, true), 3);
        assert_eq!(way.drops(), [("fragment_overlap", 1)]);
        way.send(&Way::piece(v6, 7, 1), 3);
        assert_eq!(way.passed, [0], "nothing more of it");
        // A piece over the transport header, which came before it.
        let mut way = Way::new();
        way.send(&fragment(v6, 8, 8, 88, true), 3);
        way.send(&Way::piece(v6, 8, 0), 3);
        assert_eq!((way.passed.clone(), way.drops()), (vec![0], vec![("fragment_overlap", 1)]));
    }
}

#[test]
fn a_copy_is_dropped_and_its_packet_goes_on() {
    let mut way = Way::new();
    for n in [0, 1, 1, 0, 2] {
        way.send(&Way::piece(false, 7, n), 3);
    }
    assert_eq!((way.passed.clone(), way.drops()), (vec![0, 80, 160], vec![("fragment_overlap", 2)]));
}

#[test]
fn pieces_that_no_packet_has_are_refused() {
    let mut way = Way::new();
    way.send(&fragment(false, 7, 65528, 65528 + 8, false), 3);
    way.send(&fragment(false, 8, 80, 163, true), 3);
    assert_eq!(way.drops(), [("fragment_invalid", 1), ("fragment_too_long", 1)]);
    let mut way = Way::new();
    way.send(&Way::piece(false, 7, 0), 3);
    way.send(&Way::piece(false, 7, 9), 3);
    way.send(&fragment(false, 7, 800, 880, true), 3);
    way.send(&fragment(false, 7, 240, 320, false), 3);
    assert_eq!((way.passed.clone(), way.drops()), (vec![0, 720], vec![("fragment_invalid", 2)]));
}

#[test]
fn other_ports_addresses_and_identifications_are_other_packets() {
    let mut way = Way::new();
    way.send(&Way::piece(false, 7, 0), 3);
    way.send(&Way::piece(false, 7, 1), 4);
    way.send(&Way::piece(false, 8, 1), 3);
    way.send(&Way::piece(true, 7, 1), 3);
    assert_eq!((way.passed.clone(), way.held(), way.packets()), (vec![0], 3, 4));
}

#[test]
fn what_waits_for_too_long_is_counted_and_gone() {
    let mut way = Way::new();
    way.send(&Way::piece(false, 7, 1), 3);
    way.send(&Way::piece(true, 7, 1), 3);
    let expire = |way: &mut Way, now| {
        let mut lost = 0;
        way.table.expire_all(now, |port, reason, n| {
            assert_eq!((port, reason), (3, DropReason::FragmentTimeout));
            lost += n;
        });
        lost
    };
    assert_eq!(expire(&mut way, 129), 0);
    assert_eq!(expire(&mut way, 130), 1);
    assert_eq!(expire(&mut way, 160), 1);
    assert_eq!((way.held(), way.packets()), (0, 0));
    way.send(&Way::piece(false, 9, 1), 3);
    way.now = 200;
    way.send(&Way::piece(false, 9, 0), 3);
    assert_eq!((way.passed.clone(), way.drops()), (vec![0], vec![("fragment_timeout", 1)]), "also unswept");
}

#[test]
fn an_identification_is_used_again() {
    let mut way = Way::new();
    way.send(&Way::piece(false, 7, 0), 3);
    way.now += 1;
    way.send(&Way::piece(false, 7, 0), 3);
    assert_eq!(way.passed, [0], "a copy");
    way.now += 1;
    way.send(&Way::piece(false, 7, 0), 3);
    way.send(&Way::piece(false, 7, 1), 3);
    assert_eq!(way.passed, [0, 0, 80]);
}

#[test]
fn a_flood_fills_its_ports_share_alone() {
    let mut way = Way::new();
    for id in 0..5000 {
        way.send(&Way::piece(false, id, 1), 3);
    }
    assert!(way.packets() <= 512 && way.held() <= 768, "{} {}", way.packets(), way.held());
    assert_eq!(way.drops.values().sum::<u64>() + way.held() as u64, 5000, "each is counted or waits");
    // Others still get through, in the worst order.
    for id in 0..20 {
        for n in (0..10).rev() {
            way.send(&Way::piece(false, id, n), 4);
        }
    }
    assert_eq!(way.passed.len(), 200);
}
