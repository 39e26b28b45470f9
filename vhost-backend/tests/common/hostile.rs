//! What lying guests have in common, whatever the layout of their rings: their memory, what garbage is made of, and what
//! holds for every burst that a ring delivers or lends.

use vhost_backend::frame::{Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, RingCell, Served};

use crate::guest::*;

pub(crate) const RINGS: (u64, u64) = (0, 0x4_0000);
pub(crate) const LOW: (u64, u64) = (0x1000_0000, 0x1_0000);
pub(crate) const HIGH: (u64, u64) = (0x1001_0000, 0x1_0a30);
/// Never named by a receive ring, so never to be written. The address is none that garbage hits by chance.
pub(crate) const READ_ONLY: (u64, u64) = (0x6f5a_1000_0000, 0x1_0000);
pub(crate) const REGIONS: [(u64, u64); 4] = [RINGS, LOW, HIGH, READ_ONLY];
pub(crate) const READ_ONLY_REGION: usize = 3;
/// Part of RINGS in which indirect tables are looked for.
pub(crate) const TABLES: u64 = 0x2_0000;

/// An address that a careless ring stumbles over; indirect tables of this ring are at `tables`.
pub(crate) fn address(random: &mut Random, tables: u64, readable: bool) -> u64 {
    match random.below(if readable { 11 } else { 10 }) {
        0 => random.next(),
        1 => u64::MAX - random.below(64),
        2 => LOW.0 - random.below(32),
        3 => HIGH.0 - random.below(32),
        4 => HIGH.0 + HIGH.1 - random.below(4096),
        5 | 6 => LOW.0 + random.below(LOW.1),
        7 => tables + random.below(0x1000),
        8 => tables + 16 * random.below(0x100),
        9 => HIGH.0 + random.below(HIGH.1),
        _ => READ_ONLY.0 + random.below(READ_ONLY.1),
    }
}

pub(crate) fn length(random: &mut Random) -> u32 {
    match random.below(12) {
        0 => random.next() as u32,
        1 => u32::MAX - random.below(32) as u32,
        2 => random.below(14) as u32,
        3 => 16 * random.below(70) as u32,
        4 => (MAX_FRAME as u64 - 20 + random.below(40)) as u32,
        5 => 0,
        _ => random.below(3000) as u32,
    }
}

/// Flags of a descriptor for a ring of this direction, mostly the right ones.
pub(crate) fn flags(random: &mut Random, write: bool) -> u16 {
    let right = if write { F_WRITE } else { 0 };
    match random.below(12) {
        0 => random.next() as u16,
        1 => random.below(8) as u16,
        2 | 3 => F_INDIRECT,
        4 | 5 => right | F_NEXT,
        _ => right,
    }
}

/// What the switch sends in these tests: as a descriptor it leads nowhere.
pub(crate) const FILLER: u8 = 0xee;

/// Delivers a burst with frames of all lengths.
pub(crate) fn deliver(cell: &RingCell, burst: &mut Burst, random: &mut Random, bytes: &[u8]) -> Delivered {
    let frames = 1 + random.below(64);
    let mask = random.next() | random.next();
    let delivered = burst.with_slices(
        |filler| {
            for _ in 0..frames {
                let len =
                    if random.below(8) == 0 { random.below(MAX_FRAME as u64) } else { random.below(1600) };
                let (head, rest) =
                    bytes[..len as usize + 1].split_at(random.below(len.min(128) + 1) as usize);
                assert!(filler.push(NetHeader::default(), head, rest));
            }
        },
        |burst| {
            let delivered = cell.deliver(burst, mask);
            let Delivered { sent, no_buffers, too_small, stopped, busy } = delivered;
            assert_eq!(busy, 0, "nobody else is at the ring");
            if stopped == 0 {
                assert_eq!(sent | no_buffers | too_small, mask & burst.all(), "every frame has one fate");
                assert_eq!(
                    (sent.count_ones() + no_buffers.count_ones() + too_small.count_ones()) as usize,
                    (mask & burst.all()).count_ones() as usize,
                    "no frame has two fates"
                );
            } else {
                assert_eq!(sent | no_buffers | too_small, 0);
            }
            delivered
        },
    );
    assert!(burst.is_empty());
    delivered
}

/// Reads all that the ring lends.
pub(crate) fn serve(cell: &RingCell, burst: &mut Burst, scratch: &mut [u8]) -> Served {
    let served = cell.serve(burst, |burst| {
        for i in 0..burst.len() {
            assert!(burst.frame_len(i) <= MAX_FRAME && burst.frame_len(i) > 0);
            assert_eq!(burst.linearise(i, scratch), Some(burst.frame_len(i)));
        }
    });
    assert!(burst.is_empty());
    served
}
