//! Packed rings whose device dies at any moment, between two writes of its own too, and whose frontend knows nothing of
//! where they stand: the next device finds it, and all that was offered comes back once and in order.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/packed.rs"]
mod packed;

use guest::*;
use packed::*;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::RingCell;

const BUFFERS: u64 = 0x2_0000;
/// Bytes of a piece of a buffer, and of a frame: one that fits into a piece.
const PIECE: u32 = 128;
const FRAME: usize = 60;
const HEADER: u32 = 12;

/// A ring's life.
struct Life {
    size: u16,
    features: u64,
    /// Whether the ring receives.
    write: bool,
    start: At,
    /// Buffers of so many pieces, perhaps indirect.
    kinds: &'static [(u64, bool)],
    seed: u64,
}

impl Life {
    fn in_order(&self) -> bool {
        self.features & IN_ORDER != 0
    }

    /// One burst of the device's.
    fn serve(&self, cell: &RingCell, burst: &mut Burst, random: &mut Random) {
        if !self.write {
            cell.serve(burst, |_| ());
            return;
        }
        let frame = [0x55; FRAME];
        let count = random.below(65);
        burst.with_slices(
            |filler| (0..count).for_each(|_| assert!(filler.push(NetHeader::default(), &frame, &[]))),
            |burst| {
                cell.deliver(burst, burst.all());
            },
        );
    }

    /// What the device has written into the ring between two images of it, in its order: offsets and words. A burst's
    /// first descriptor is shown last; its address goes first, and that of the last descriptor last but one.
    fn writes(&self, old: At, before: &[u8], after: &[u8]) -> Vec<(usize, [u8; 8])> {
        let order: Vec<usize> =
            (0..self.size).map(|n| 16 * usize::from(old.after(n, self.size).index)).collect();
        let changed = |at: &usize| before[*at..at + 8] != after[*at..at + 8];
        let word = |at: usize| -> (usize, [u8; 8]) { (at, after[at..at + 8].try_into().unwrap()) };
        let heads: Vec<usize> = order.iter().map(|at| at + 8).filter(changed).collect();
        let notes: Vec<usize> = order.iter().copied().filter(changed).collect();
        let (Some(&first), Some(&last)) = (heads.first(), notes.last()) else {
            assert!(heads.is_empty() && notes.is_empty());
            return Vec::new();
        };
        assert_eq!(notes[0], first - 8);
        assert!(notes.len() <= 2);
        let mut begin = word(notes[0]);
        // The note of an end that is a beginning, too, comes later.
        begin.1[4] &= !2;
        let mut writes = vec![begin];
        writes.extend(heads[1..].iter().map(|&at| word(at)));
        writes.extend([word(last), word(first)]);
        writes
    }

    fn live(&self) {
        let Self { size, features, .. } = *self;
        let guest = Guest::new(&[(0, 0x10_0000)]);
        let queue = PackedQueue::at(0x1000, size);
        queue.reset(&guest, self.start);
        let mut driver = Driver::new(queue, self.start, 0xa_0000..0xf_0000);
        let mut random = Random::new(self.seed);
        let mut burst = Burst::new();
        let (mut offered, mut back) = (0, Vec::new());
        let mut base = self.start.base();
        for _ in 0..40 {
            let (cell, wires) = queue.start(&guest, features, base);
            for _ in 0..random.below(6) {
                for _ in 0..random.below(90) {
                    let (pieces, indirect) = random.pick(self.kinds);
                    let pieces: Vec<_> =
                        (0..pieces).map(|i| (BUFFERS + u64::from(PIECE) * i, PIECE)).collect();
                    offered += usize::from(driver.offer(&guest, &pieces, self.write, indirect).is_some());
                }
                driver.show(&guest, usize::MAX, false);
                if random.below(4) > 0 {
                    self.serve(&cell, &mut burst, &mut random);
                }
                if random.below(3) > 0 {
                    back.extend(driver.reap(&guest, self.in_order()));
                }
            }
            assert_eq!(cell.fault(), None);
            assert!(!wires.failed());
            // Death, sometimes in the midst of one more burst.
            let ring = |guest: &Guest| guest.read(queue.desc, 16 * usize::from(size));
            let before = ring(&guest);
            let stood = cell.control(|ring| ring.base()).unwrap() as u16;
            let stood = At { index: stood & 0x7fff, wrap: stood >> 15 == 1 };
            self.serve(&cell, &mut burst, &mut random);
            drop(cell);
            let writes = self.writes(stood, &before, &ring(&guest));
            let mut torn = before;
            let done = random.below(writes.len() as u64 + 1) as usize;
            for &(at, word) in &writes[..done] {
                torn[at..at + 8].copy_from_slice(&word);
            }
            if stood != self.start || done > 0 {
                // What the frontend says is no longer true: it knows only where the ring began.
                base = At::START.base();
            }
            guest.write(queue.desc, &torn);
        }
        let (cell, _wires) = queue.start(&guest, features, base);
        for _ in 0..100 {
            self.serve(&cell, &mut burst, &mut random);
        }
        assert_eq!(cell.fault(), None);
        back.extend(driver.reap(&guest, self.in_order()));
        assert_eq!(back.len(), offered, "all that was offered is to come back");
        for back in back.iter().filter(|_| self.write) {
            assert_eq!((back.len, back.written), (Some(HEADER + FRAME as u32), true));
        }
        guest.check_canaries();
    }
}

fn live(write: bool) {
    const SIMPLE: &[(u64, bool)] = &[(1, false), (3, true)];
    const CHAINS: &[(u64, bool)] = &[(1, false), (2, false), (3, false), (2, true)];
    let mut seed = 0;
    for size in [1, 2, 3, 8, 64, 127, 256] {
        for round in 0..30 {
            for kinds in [SIMPLE, CHAINS] {
                seed += 1;
                let order = if round % 3 == 0 { IN_ORDER } else { 0 };
                let features = VERSION_1 | INDIRECT | order;
                let start = At { index: round % size, wrap: round % 2 == 0 };
                Life { size, features, write, start, kinds, seed }.live();
            }
        }
    }
}

#[test]
fn transmit_rings_are_found_at_every_moment() {
    live(false);
}

#[test]
fn receive_rings_are_found_at_every_moment() {
    live(true);
}

/// What others have left in a ring says nothing.
#[test]
fn a_ring_of_another_device_stands_where_its_frontend_says() {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let queue = PackedQueue::at(0x1000, 8);
    let start = At { index: 3, wrap: false };
    queue.reset(&guest, At::START);
    let mut driver = Driver::new(queue, At::START, 0xa_0000..0xf_0000);
    let (cell, _wires) = queue.start(&guest, VERSION_1, At::START.base());
    let mut burst = Burst::new();
    // One lap of ours, and of the next three by somebody who leaves no notes.
    for n in 0..11 {
        driver.offer(&guest, &[(BUFFERS, PIECE)], false, false).unwrap();
        driver.show(&guest, 1, false);
        if n < 8 {
            cell.serve(&mut burst, |_| ());
        } else {
            let at = At::START.after(8, 8).after(n - 8, 8);
            queue.set_flags(&guest, at.index, at.used());
        }
        assert_eq!(driver.reap(&guest, false).len(), 1);
    }
    drop(cell);
    for base in [start, At { index: 5, wrap: true }] {
        let (cell, _wires) = queue.start(&guest, VERSION_1, base.base());
        assert_eq!(cell.stop().unwrap().base(), base.base());
    }
}

/// Notes that lie: at most the ring itself is lost.
#[test]
fn forged_notes_break_at_most_the_ring() {
    let mut random = Random::new(7);
    let mut burst = Burst::new();
    for round in 0..3000u64 {
        let guest = Guest::new(&[(0, 0x10_0000)]);
        let size = 1 + random.below(40) as u16;
        let queue = PackedQueue::at(0x1000, size);
        for index in 0..size {
            let note = 0xd15c << 48 | random.below(4) << 32 | u64::from(random.next() as u32);
            let anywhere = random.next();
            let addr = random.pick(&[note, note, BUFFERS, anywhere]);
            let marks = random.pick(&[0, F_AVAIL, F_USED, F_AVAIL | F_USED]);
            let flags = marks | random.pick(&[0, 0, F_NEXT, F_WRITE, F_INDIRECT]);
            queue.set_desc(&guest, index, addr, random.below(300) as u32, random.next() as u16, flags);
        }
        let features = VERSION_1 | INDIRECT | if round % 2 == 0 { IN_ORDER } else { 0 };
        let (cell, _wires) = queue.start(&guest, features, At::START.base());
        cell.serve(&mut burst, |_| ());
        burst.with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &[1; FRAME], &[])),
            |burst| {
                cell.deliver(burst, 1);
            },
        );
        guest.check_canaries();
        if let (None, Some(ring)) = (cell.fault(), cell.stop()) {
            assert!((ring.base() as u16 & 0x7fff) < size);
        }
    }
}
