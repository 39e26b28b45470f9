//! The packed ring beside the split one, which the reference device has tried: the same programs of driver actions go
//! through both, and what is fetched, delivered, given back and told must be the same.

#[path = "common/features.rs"]
mod features;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/packed.rs"]
mod packed;

use features::{Features, features};
use guest::*;
use packed::*;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use vhost_backend::frame::{BURST, Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{RingCell, Served};

const RINGS: (u64, u64) = (0, 0x10_0000);
const SPLIT_TABLES: std::ops::Range<u64> = 0x4_0000..0x8_0000;
const PACKED_TABLES: std::ops::Range<u64> = 0x8_0000..0xc_0000;
/// Two regions without a gap in guest addresses, then a gap, then one whose end is not at a page boundary.
const LOW: (u64, u64) = (0x1000_0000, 0x4_0000);
const HIGH: (u64, u64) = (0x1004_0000, 0x4_0000);
const FAR: (u64, u64) = (0x1_0000_0000, 0x2_0a30);
/// The packed ring's receive buffers lie in the same places of three further regions.
const BESIDE: u64 = 0x20_0000_0000;
const REGIONS: [(u64, u64); 7] =
    [RINGS, LOW, HIGH, FAR, (LOW.0 + BESIDE, LOW.1), (HIGH.0 + BESIDE, HIGH.1), (FAR.0 + BESIDE, FAR.1)];

/// What the driver wishes to be told.
#[derive(Clone, Copy, Debug)]
enum Wish {
    All,
    Nothing,
    /// When this many further descriptors were used.
    At(u16),
}

impl Wish {
    fn store(self, guest: &Guest, queue: &PackedQueue, from: At) {
        match self {
            Self::All => queue.wish(guest, 0x1234, EVENT_ENABLE),
            Self::Nothing => queue.wish(guest, 0, EVENT_DISABLE),
            Self::At(ahead) => {
                queue.wish(guest, from.after(ahead % queue.size, queue.size).word(), EVENT_DESC)
            }
        }
    }

    /// Whether it asks for an interrupt when the descriptors from `old` up to `new` were used.
    fn met(self, guest: &Guest, queue: &PackedQueue, old: At, new: At, event_idx: bool) -> bool {
        let event = guest.word(queue.driver).load(Ordering::Relaxed);
        match self {
            _ if old == new => false,
            Self::Nothing => false,
            Self::At(_) if event_idx => {
                let mut at = old;
                while at != new {
                    if at.word() == event {
                        return true;
                    }
                    at = at.next(queue.size);
                }
                false
            }
            _ => true,
        }
    }
}

/// A buffer: the lengths of its pieces, and whether they are in an indirect table.
type Chain = (Vec<u32>, bool);

#[derive(Clone, Debug)]
struct Plan {
    order: u32,
    /// A packed ring may be shorter than the split one beside it.
    shorter: u16,
    start: u16,
    wrap: bool,
    features: Features,
    rounds: Vec<(Vec<Chain>, Wish)>,
    steps: Vec<u16>,
    /// Frames to deliver: length, bytes of the head, seed of the header.
    bursts: Vec<Vec<(usize, usize, u64)>>,
    before_seam: u64,
    seed: u64,
}

impl Plan {
    fn size(&self) -> u16 {
        let split = 1 << self.order;
        split - self.shorter.min(split - 1)
    }

    fn start(&self) -> At {
        At { index: self.start % self.size(), wrap: self.wrap }
    }
}

fn plan(write: bool) -> impl Strategy<Value = Plan> {
    let piece = || prop_oneof![4 => 0u32..40, 4 => 40u32..200, 3 => 200u32..3000, 1 => 3000u32..20_000];
    let pieces = if write {
        prop_oneof![
            3 => prop::collection::vec(1526u32..2100, 1),
            2 => prop::collection::vec(12u32..300, 1),
            1 => (1520u32..2100).prop_map(|len| vec![12, len]),
            2 => prop::collection::vec(piece(), 1..12),
            1 => Just(vec![4096; 17]),
        ]
        .boxed()
    } else {
        prop_oneof![
            4 => prop::collection::vec(60u32..1600, 1),
            1 => (40u32..1600).prop_map(|len| vec![12, len]),
            3 => prop::collection::vec(piece(), 1..12),
            1 => prop::collection::vec(0u32..8, 20..200),
        ]
        .boxed()
    };
    let chain = (pieces, prop::bool::weighted(0.3));
    let wish = prop_oneof![Just(Wish::All), Just(Wish::Nothing), (0u16..200).prop_map(Wish::At)];
    let frame_len = prop_oneof![6 => 1usize..1600, 2 => 1600usize..9000, 1 => 9000usize..=MAX_FRAME];
    let frame = (frame_len, 0usize..=128, any::<u64>());
    (
        (1u32..=9, 0u16..4, any::<u16>(), any::<bool>(), features(true)),
        prop::collection::vec((prop::collection::vec(chain, 1..150), wish), 1..4),
        prop::collection::vec(1u16..150, 1..8),
        prop::collection::vec(prop::collection::vec(frame, 1..=BURST), 1..5),
        (0u64..LOW.1, any::<u64>()),
    )
        .prop_map(
            |((order, shorter, start, wrap, features), rounds, steps, bursts, (before_seam, seed))| Plan {
                order,
                shorter,
                start,
                wrap,
                features,
                rounds,
                steps,
                bursts,
                before_seam,
                seed,
            },
        )
}

/// Takes space for buffers from LOW up, across the seam with HIGH, and from FAR.
struct Space {
    near: u64,
    far: u64,
}

impl Space {
    fn new(before_seam: u64) -> Self {
        Self { near: HIGH.0 - before_seam, far: FAR.0 }
    }

    /// `len` bytes that nobody else gets; `None` when there is no space left.
    fn take(&mut self, len: u32, far: bool) -> Option<u64> {
        let (at, end) = if far { (&mut self.far, FAR.0 + FAR.1) } else { (&mut self.near, HIGH.0 + HIGH.1) };
        let (start, next) = (*at, *at + u64::from(len));
        (next <= end).then(|| *at = next).map(|()| start)
    }
}

/// Both rings in one guest.
struct Both {
    guest: Guest,
    split: Queue,
    split_cell: RingCell,
    /// Next available index of the split ring.
    split_at: u16,
    driver: Driver,
    packed_cell: RingCell,
    packed_wires: Wires,
    random: Random,
}

impl Both {
    fn new(plan: &Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let guest = Guest::new(&REGIONS);
        for region in 1..4 {
            guest.randomise(region, &mut random);
        }
        let split = Queue::at(0x1000, 1 << plan.order);
        split.reset(&guest, plan.start);
        let queue = PackedQueue::at(0x2_0000, plan.size());
        let at = plan.start();
        queue.reset(&guest, at);
        let (split_cell, _) = split.start(&guest, plan.features.bits(), plan.start);
        let (packed_cell, packed_wires) = queue.start(&guest, plan.features.bits(), at.base());
        let driver = Driver::new(queue, at, PACKED_TABLES);
        Self { guest, split, split_cell, split_at: plan.start, driver, packed_cell, packed_wires, random }
    }

    /// Offers a round's buffers to both rings without showing them: their pieces for the split ring, and the packed
    /// ring's numbers for them.
    fn offer(&mut self, plan: &Plan, chains: &[Chain], write: bool) -> Vec<(u16, Vec<Piece>, u16)> {
        let mut laid = Chains::new(self.split, SPLIT_TABLES, &mut self.random);
        let mut space = Space::new(plan.before_seam);
        let mut left = usize::from(plan.size());
        let mut table_bytes = (SPLIT_TABLES.end - SPLIT_TABLES.start) as usize;
        let mut made = Vec::new();
        let header_len = plan.features.header_len() as u32;
        for (lens, indirect) in chains {
            let mut lens = lens.clone();
            if lens.iter().sum::<u32>() < header_len {
                lens.push(header_len);
            }
            let needed = if *indirect { 1 } else { lens.len() };
            let table = if *indirect { 16 * lens.len() + 64 } else { 0 };
            let far = self.random.below(4) == 0;
            let pieces: Option<Vec<Piece>> =
                lens.iter().map(|&len| Some((space.take(len, far)?, len))).collect();
            let Some(pieces) = pieces else {
                // What is only read may be used twice.
                space = if write { space } else { Space::new(plan.before_seam) };
                continue;
            };
            if needed > left || table > table_bytes {
                continue;
            }
            (left, table_bytes) = (left - needed, table_bytes - table);
            let head = laid.add(&self.guest, &pieces, write, indirect.then_some(0)).expect("counted");
            self.split.set_avail(&self.guest, self.split_at.wrapping_add(made.len() as u16), head);
            let beside: Vec<Piece> =
                pieces.iter().map(|&(at, len)| (if write { at + BESIDE } else { at }, len)).collect();
            let id = self.driver.offer(&self.guest, &beside, write, *indirect).expect("counted");
            made.push((head, pieces, id));
        }
        made
    }

    /// Shows `count` more buffers to both devices.
    fn show(&mut self, count: u16) {
        self.split_at = self.split_at.wrapping_add(count);
        self.split.avail_idx(&self.guest).store(self.split_at, Ordering::Release);
        self.driver.show(&self.guest, usize::from(count), false);
    }

    /// Takes back what both have used, and compares: the number of buffers.
    fn reap(&mut self, plan: &Plan, seen: &mut u16, made: &[(u16, Vec<Piece>, u16)]) -> usize {
        let old = self.driver.used;
        let back = self.driver.reap(&self.guest, plan.features.in_order);
        let used = self.split.used_idx(&self.guest).load(Ordering::Acquire).wrapping_sub(*seen);
        assert_eq!(back.len(), usize::from(used), "both give back the same buffers");
        for (i, (back, made)) in back.iter().zip(made).enumerate() {
            let (head, len) = self.split.used_elem(&self.guest, seen.wrapping_add(i as u16));
            assert_eq!((head, back.id), (u32::from(made.0), made.2));
            match back.len {
                Some(ours) => assert_eq!((ours, back.written), (len, len > 0), "length of buffer {i}"),
                None => assert!(plan.features.in_order && len == 0, "a received buffer was skipped"),
            }
        }
        *seen = seen.wrapping_add(used);
        let new = self.driver.used;
        assert_eq!(old == new, used == 0);
        used.into()
    }
}

/// What a burst holds: headers and bytes.
fn frames(burst: &Burst) -> Vec<(NetHeader, Vec<u8>)> {
    (0..burst.len())
        .map(|i| {
            let mut bytes = vec![0; burst.frame_len(i)];
            assert_eq!(burst.linearise(i, &mut bytes), Some(bytes.len()));
            assert_eq!(burst.head(i), &bytes[..burst.head(i).len()]);
            (*burst.header(i), bytes)
        })
        .collect()
}

fn check_transmit(plan: &Plan) {
    let mut both = Both::new(plan);
    let mut burst = Burst::new();
    let mut steps = plan.steps.iter().cycle();
    let mut seen = plan.start;
    for (chains, wish) in &plan.rounds {
        let made = both.offer(plan, chains, false);
        let (mut given, mut reaped) = (0, 0);
        wish.store(&both.guest, &both.driver.queue, both.driver.used);
        while given < made.len() {
            let step = (*steps.next().expect("cycle")).min((made.len() - given) as u16);
            both.show(step);
            given += usize::from(step);
            while reaped < given {
                let (mut split, mut packed) = (Vec::new(), Vec::new());
                let expected = both.split_cell.serve(&mut burst, |burst| split = frames(burst));
                let served = both.packed_cell.serve(&mut burst, |burst| packed = frames(burst));
                assert_eq!((both.split_cell.fault(), both.packed_cell.fault()), (None, None));
                assert_eq!(served, expected);
                assert!(packed == split, "frames differ");
                let old = both.driver.used;
                let back = both.reap(plan, &mut seen, &made[reaped..]);
                assert!(back > 0);
                reaped += back;
                let wanted =
                    wish.met(&both.guest, &both.driver.queue, old, both.driver.used, plan.features.event_idx);
                assert_eq!(both.packed_wires.called(), wanted, "interrupt after {back} buffers");
            }
            assert_eq!(both.packed_cell.serve(&mut burst, |_| panic!("nothing is left")), Served::default());
            assert!(!both.packed_wires.called(), "an interrupt for nothing");
        }
    }
    both.guest.check_canaries();
    let ring = both.packed_cell.stop().expect("still there");
    assert_eq!(ring.base(), both.driver.next.base());
}

fn check_receive(plan: &Plan) {
    let mut both = Both::new(plan);
    let mut bytes = vec![0; MAX_FRAME + BURST];
    both.random.fill(&mut bytes);
    let mut burst = Burst::new();
    let mut seen = plan.start;
    // Buffers that are still there from the rounds before would need a driver that knows the free ones.
    let (chains, wish) = &plan.rounds[0];
    let made = both.offer(plan, chains, true);
    both.show(made.len() as u16);
    let mut reaped = 0;
    for frames in &plan.bursts {
        let mask = both.random.next() | both.random.next();
        let header = |seed: u64| {
            let mut header = [0; 12];
            header[..8].copy_from_slice(&seed.to_le_bytes());
            NetHeader::from_bytes(&header)
        };
        wish.store(&both.guest, &both.driver.queue, both.driver.used);
        let mut deliver = |cell: &RingCell| {
            burst.with_slices(
                |filler| {
                    for (i, &(len, head, seed)) in frames.iter().enumerate() {
                        let (head, rest) = bytes[i..i + len].split_at(head.min(len));
                        assert!(filler.push(header(seed), head, rest));
                    }
                },
                |burst| cell.deliver(burst, mask),
            )
        };
        let (expected, delivered) = (deliver(&both.split_cell), deliver(&both.packed_cell));
        assert_eq!((both.split_cell.fault(), both.packed_cell.fault()), (None, None));
        assert_eq!(delivered, expected);
        let old = both.driver.used;
        let first = seen;
        let back = both.reap(plan, &mut seen, &made[reaped..]);
        let wanted =
            wish.met(&both.guest, &both.driver.queue, old, both.driver.used, plan.features.event_idx);
        assert_eq!(both.packed_wires.called(), wanted, "interrupt after {back} buffers");
        for (i, (_, pieces, _)) in made[reaped..reaped + back].iter().enumerate() {
            let (_, mut left) = both.split.used_elem(&both.guest, first.wrapping_add(i as u16));
            for &(at, len) in pieces {
                let len = len.min(left);
                left -= len;
                let [theirs, ours] = [at, at + BESIDE].map(|at| both.guest.read(at, len as usize));
                assert!(ours == theirs, "what was written into buffer {i} differs");
            }
        }
        reaped += back;
    }
    both.guest.check_canaries();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 96 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_from_the_guest_are_those_of_a_split_ring(plan in plan(false)) {
        check_transmit(&plan);
    }

    #[test]
    fn frames_to_the_guest_are_those_of_a_split_ring(plan in plan(true)) {
        check_receive(&plan);
    }
}
