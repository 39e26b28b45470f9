//! The dirty log against the truth: guest memory is compared before and after each burst, and every page that changed
//! must have its bit, and no other page may.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/packed.rs"]
mod packed;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest::*;
use packed::{At, Driver, IN_ORDER, PackedQueue};
use proptest::prelude::*;
use vhost_backend::dirty::{DirtyLog, Logging};
use vhost_backend::frame::{BURST, Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{RingCell, RingFault};

const PAGE: u64 = 4096;
const RINGS: (u64, u64) = (0, 0x6_0000);
const TABLES: std::ops::Range<u64> = 0x3_0000..0x6_0000;
/// Two regions that adjoin, then one above 4 GiB.
const LOW: (u64, u64) = (0x1000_0000, 0x4_0000);
const HIGH: (u64, u64) = (0x1004_0000, 0x4_0000);
const FAR: (u64, u64) = (0x1_0000_0000, 0x2_0000);
const REGIONS: [(u64, u64); 4] = [RINGS, LOW, HIGH, FAR];
/// What no frame and no header holds, so that every byte that is written changes.
const FILL: u8 = 0xA5;

/// The log as its frontend has it: a file whose log begins somewhere inside.
struct Log {
    file: std::fs::File,
    bytes: u64,
    log: Arc<DirtyLog>,
}

const OFFSET: u64 = 72;

impl Log {
    fn new(bytes: u64) -> Self {
        let file = memfd(OFFSET + bytes + 8);
        let log = Arc::new(DirtyLog::new(bytes, OFFSET, &file).expect("a log"));
        Self { file, bytes, log }
    }

    /// Takes all bits away and returns the pages that had them.
    fn take(&self) -> Vec<u64> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; (OFFSET + self.bytes + 8) as usize];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        let (before, rest) = bytes.split_at(OFFSET as usize);
        let (bits, after) = rest.split_at(self.bytes as usize);
        assert!(before.iter().chain(after).all(|&byte| byte == 0), "written outside of the log");
        self.file.write_all_at(&vec![0; bits.len()], OFFSET).expect("write");
        let mut pages = Vec::new();
        for (first, &byte) in (0..).step_by(8).zip(bits).filter(|(_, byte)| **byte != 0) {
            pages.extend((0..8).filter(|bit| byte >> bit & 1 == 1).map(|bit| first + bit));
        }
        pages
    }

    /// Has a ring log into this; its used ring, or the event area of a packed one, is at `used`.
    fn use_for(&self, cell: &RingCell, used: u64) {
        let logging = Logging { log: self.log.clone(), data: true, used: Some(used), call: None };
        cell.set_logging(Some(logging));
    }
}

/// All of a guest's memory at one moment.
struct Image(Vec<(u64, Vec<u8>)>);

impl Image {
    fn of(guest: &Guest) -> Self {
        Self(guest.regions.iter().enumerate().map(|(i, r)| (r.gpa, guest.image(i))).collect())
    }

    /// Whether a page of a buffer has ever been written.
    fn written(&self, page: u64) -> bool {
        self.0.iter().any(|(gpa, bytes)| {
            let at = (page * PAGE).checked_sub(*gpa).map(|at| at as usize);
            let held = at.and_then(|at| bytes.get(at..(at + PAGE as usize).min(bytes.len())));
            held.is_some_and(|held| held.iter().any(|&byte| byte != FILL))
        })
    }

    /// Pages that differ from `before`.
    fn changed(&self, before: &Self) -> Vec<u64> {
        let mut pages = Vec::new();
        for ((gpa, now), (_, then)) in self.0.iter().zip(&before.0) {
            let chunks = now.chunks(PAGE as usize).zip(then.chunks(PAGE as usize));
            pages.extend(
                (gpa / PAGE..).zip(chunks).filter(|(_, (now, then))| now != then).map(|(page, _)| page),
            );
        }
        pages.sort_unstable();
        pages
    }
}

/// Compares what has changed since `before` with the log, and looks again from now on.
///
/// Pages of `ring` may be logged in whole. A page may have been written with what was there already.
fn check(guest: &Guest, ring: &RangeInclusive<u64>, log: &Log, before: &mut Image, what: &str) {
    let now = Image::of(guest);
    let changed = now.changed(before);
    let logged = log.take();
    if let Some(page) = changed.iter().find(|page| logged.binary_search(page).is_err()) {
        panic!("{what}: page {page:#x} was written and not logged");
    }
    for page in logged.iter().filter(|page| !ring.contains(page) && changed.binary_search(page).is_err()) {
        assert!(now.written(*page), "{what}: page {page:#x} was logged and not written");
    }
    *before = now;
}

/// One thing that happens to a ring.
#[derive(Clone, Debug)]
enum Step {
    /// Frames of these lengths are delivered (receive rings).
    Deliver(Vec<usize>),
    /// The guest makes so many of its chains available; a worker takes a burst (transmit rings) or none.
    Offer(u16),
    Sleep,
    Wake,
    /// Logging goes off and on again; nothing is written meanwhile.
    Toggle,
}

#[derive(Clone, Debug)]
struct Plan {
    order: u32,
    start: u16,
    features: u64,
    chains: Vec<(Vec<u32>, Option<usize>)>,
    steps: Vec<Step>,
    at: u64,
    before_seam: u64,
    seed: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    let frame = prop_oneof![6 => 1usize..1600, 2 => 1600usize..9000, 1 => 9000usize..=MAX_FRAME];
    let step = prop_oneof![
        6 => prop::collection::vec(frame, 1..=BURST).prop_map(Step::Deliver),
        3 => (1u16..100).prop_map(Step::Offer),
        1 => Just(Step::Sleep),
        1 => Just(Step::Wake),
        1 => Just(Step::Toggle),
    ];
    let chain = prop_oneof![
        3 => prop::collection::vec(1526u32..2100, 1),
        2 => prop::collection::vec(12u32..300, 1),
        1 => (1520u32..2100).prop_map(|len| vec![12, len]),
        2 => prop::collection::vec(0u32..3000, 1..12),
        1 => Just(vec![4096; 17]),
    ];
    let chain = (chain, prop::option::of(0usize..4));
    let features = any::<[bool; 3]>().prop_map(|[modern, mergeable, event_idx]| {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        INDIRECT | bit(modern, VERSION_1) | bit(mergeable, MRG_RXBUF) | bit(event_idx, EVENT_IDX)
    });
    let start = prop_oneof![any::<u16>(), 65500u16..=65535, Just(0)];
    let ring = (1u32..=11, start, features, 0x1000u64..0x2000, 0u64..LOW.1, any::<u64>());
    (ring, prop::collection::vec(chain, 1..200), prop::collection::vec(step, 1..12)).prop_map(
        |((order, start, features, at, before_seam, seed), chains, steps)| Plan {
            order,
            start,
            features,
            chains,
            steps,
            at: at / 16 * 16,
            before_seam,
            seed,
        },
    )
}

/// A guest with buffers filled with [`FILL`].
fn guest() -> Guest {
    let guest = Guest::new(&REGIONS);
    for &(gpa, size) in &REGIONS[1..] {
        guest.write(gpa, &vec![FILL; size as usize]);
    }
    guest
}

/// The pieces of the plan's chains, each at a place of its own, and which of them are indirect.
fn pieces(plan: &Plan, random: &mut Random) -> Vec<(Vec<Piece>, Option<usize>)> {
    let (mut near, mut far) = (HIGH.0 - plan.before_seam, FAR.0);
    let mut chains = Vec::new();
    for (lens, indirect_from) in &plan.chains {
        let mut lens = lens.clone();
        if lens.iter().sum::<u32>() < 13 {
            lens.push(13);
        }
        let (at, end) =
            if random.below(4) == 0 { (&mut far, FAR.0 + FAR.1) } else { (&mut near, HIGH.0 + HIGH.1) };
        let total: u64 = lens.iter().map(|&len| u64::from(len)).sum();
        if *at + total > end {
            continue;
        }
        let mut place = |len| {
            *at += u64::from(len);
            (*at - u64::from(len), len)
        };
        chains.push((lens.into_iter().map(&mut place).collect(), *indirect_from));
    }
    chains
}

/// Carries the steps of a plan out on a ring that the device writes to (`write`) or reads from, and checks the log after
/// each. `offer` makes chains available.
fn run(
    plan: &Plan,
    write: bool,
    guest: &Guest,
    cell: &RingCell,
    used: u64,
    ring: &RangeInclusive<u64>,
    mut offer: impl FnMut(u16),
) {
    let log = Log::new(FAR.0 / PAGE / 8 + FAR.1 / PAGE / 8 + 1);
    let mut before = Image::of(guest);
    log.use_for(cell, used);
    // Each frame consists of one byte, another one than those before it.
    let contents: Vec<Vec<u8>> = (1..FILL).map(|byte| vec![byte; MAX_FRAME]).collect();
    let mut contents = contents.iter().cycle();
    let mut burst = Burst::new();
    for step in &plan.steps {
        match step {
            Step::Deliver(lens) if write => {
                burst.with_slices(
                    |filler| {
                        for &len in lens {
                            let bytes = &contents.next().expect("a cycle")[..len];
                            let (head, rest) = bytes.split_at(len.min(100));
                            assert!(filler.push(NetHeader::from_bytes(&[bytes[0]; 12]), head, rest));
                        }
                    },
                    |burst| cell.deliver(burst, burst.all()),
                );
            }
            Step::Deliver(_) => {
                cell.serve(&mut burst, |_| ());
            }
            Step::Offer(more) => {
                offer(*more);
                before = Image::of(guest);
            }
            Step::Sleep => drop(cell.arm()),
            Step::Wake => cell.disarm(),
            Step::Toggle => {
                cell.set_logging(None);
                log.use_for(cell, used);
            }
        }
        assert_eq!(cell.fault(), None, "{step:?}");
        check(guest, ring, &log, &mut before, &format!("{step:?}"));
    }
    guest.check_canaries();
}

fn run_split(plan: &Plan, write: bool) {
    let mut random = Random::new(plan.seed);
    let guest = guest();
    let queue = Queue::at(plan.at, 1 << plan.order);
    queue.reset(&guest, plan.start);
    // No element of the used ring is ever equal to this.
    guest.write(queue.used + 4, &vec![0xff; 8 * usize::from(queue.size)]);
    let mut chains = Chains::new(queue, TABLES, &mut random);
    let mut made = 0u16;
    for (pieces, indirect_from) in pieces(plan, &mut random) {
        if let Some(head) = chains.add(&guest, &pieces, write, indirect_from) {
            queue.set_avail(&guest, plan.start.wrapping_add(made), head);
            made += 1;
        }
    }
    let (cell, _wires) = queue.start(&guest, plan.features, plan.start);
    let pages = queue.used / PAGE..=(queue.used + 6 + 8 * u64::from(queue.size) - 1) / PAGE;
    let mut offered = 0u16;
    run(plan, write, &guest, &cell, queue.used, &pages, |more| {
        offered = offered.saturating_add(more).min(made);
        queue.avail_idx(&guest).store(plan.start.wrapping_add(offered), Ordering::Release);
    });
}

fn run_packed(plan: &Plan, write: bool) {
    let mut random = Random::new(plan.seed);
    let guest = guest();
    // Any size is possible, and so is any place in it.
    let size = (1 << plan.order) - plan.start % (1 << (plan.order - 1));
    let queue = PackedQueue::at(plan.at, size);
    let at = At { index: plan.start % size, wrap: plan.start.is_multiple_of(2) };
    queue.reset(&guest, at);
    let mut driver = Driver::new(queue, at, TABLES);
    let in_order = plan.seed.is_multiple_of(2);
    let (cell, _wires) = queue.start(&guest, plan.features | if in_order { IN_ORDER } else { 0 }, at.base());
    let pages = queue.desc / PAGE..=(queue.end - 1) / PAGE;
    let mut chains = pieces(plan, &mut random).into_iter();
    run(plan, write, &guest, &cell, queue.device, &pages, |more| {
        driver.reap(&guest, in_order);
        for (pieces, indirect_from) in chains.by_ref().take(more.into()) {
            driver.offer(&guest, &pieces, write, indirect_from.is_some());
        }
        driver.show(&guest, more.into(), false);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_page_that_a_delivery_writes_is_logged_and_no_other(plan in plan()) {
        run_split(&plan, true);
    }

    #[test]
    fn what_a_guest_sends_dirties_its_used_ring_alone(plan in plan()) {
        run_split(&plan, false);
    }

    #[test]
    fn packed_rings_log_what_a_delivery_writes(plan in plan()) {
        run_packed(&plan, true);
    }

    #[test]
    fn packed_rings_log_what_they_give_back(plan in plan()) {
        run_packed(&plan, false);
    }
}

/// A receive ring of one-piece buffers, all available, at guest addresses from `LOW` on.
fn receive_ring(guest: &Guest) -> (Queue, RingCell, Wires) {
    let queue = Queue::at(0x1000, 256);
    queue.reset(guest, 0);
    for i in 0..64 {
        queue.set_desc(guest, i, LOW.0 + 2048 * u64::from(i), 2048, F_WRITE, 0);
        queue.set_avail(guest, i, i);
    }
    queue.avail_idx(guest).store(64, Ordering::Release);
    let (cell, wires) = queue.start(guest, VERSION_1, 0);
    (queue, cell, wires)
}

fn deliver(cell: &RingCell, frames: usize) -> vhost_backend::ring::Delivered {
    Burst::new().with_slices(
        |filler| (0..frames).for_each(|_| assert!(filler.push(NetHeader::default(), &[7; 60], &[]))),
        |burst| cell.deliver(burst, burst.all()),
    )
}

#[test]
fn a_log_that_is_too_small_breaks_the_ring_and_nothing_is_written_outside() {
    let guest = Guest::new(&REGIONS);
    // Enough for the used ring, which lies low; and one byte short of the first buffer.
    for (bytes, data, fault) in [
        (1, false, None),
        (LOW.0 / PAGE / 8 + 1, true, None),
        (LOW.0 / PAGE / 8, true, Some(RingFault::LogTooSmall)),
    ] {
        let (queue, cell, wires) = receive_ring(&guest);
        let log = Log::new(bytes);
        let logging = Logging { log: log.log.clone(), data, used: Some(queue.used), call: None };
        cell.set_logging(Some(logging));
        let delivered = deliver(&cell, 4);
        assert_eq!((cell.fault(), wires.failed()), (fault, fault.is_some()), "{bytes} bytes");
        assert_eq!(delivered.sent, if fault.is_none() { 15 } else { 0 });
        assert_eq!(cell.is_active(), fault.is_none());
        log.take();
    }
    // The used ring's address may be a lie.
    for used in [u64::MAX, u64::MAX - 100, 1 << 40] {
        let (_, cell, _wires) = receive_ring(&guest);
        let logging = Logging { log: Log::new(64).log, data: false, used: Some(used), call: None };
        cell.set_logging(Some(logging));
        assert_eq!(cell.fault(), Some(RingFault::LogTooSmall), "{used:#x}");
        assert_eq!(deliver(&cell, 1).stopped, 1);
    }
}

#[test]
fn a_log_that_is_truncated_breaks_the_ring_and_not_the_process() {
    let guest = Guest::new(&REGIONS);
    let (queue, cell, wires) = receive_ring(&guest);
    let log = Log::new(FAR.0 / PAGE / 8);
    log.use_for(&cell, queue.used);
    assert_eq!(deliver(&cell, 2).sent, 3);
    log.file.set_len(0).expect("truncate");
    deliver(&cell, 2);
    assert_eq!((cell.fault(), wires.failed()), (Some(RingFault::LogGone), true));
    assert_eq!(deliver(&cell, 1).stopped, 1);
}

#[test]
fn logs_that_cannot_be_are_refused() {
    let file = memfd(4096);
    let refused =
        |bytes, offset, file: &std::fs::File| DirtyLog::new(bytes, offset, file).err().expect("refused");
    assert!(refused(0, 0, &file).contains("not from 1"));
    assert!(refused(1 << 41, 0, &file).contains("not from 1"));
    assert_eq!(refused(4096, 8, &file), "dirty log: it needs 0x1008 bytes of a file that has only 0x1000");
    assert!(refused(64, u64::MAX, &file).contains("beyond the end"));
    let null = std::fs::File::open("/dev/null").expect("null");
    assert!(refused(64, 0, &null).contains("not a regular file"));
}

#[test]
fn whoever_wants_to_be_told_of_changes_is() {
    let guest = Guest::new(&REGIONS);
    let (_, cell, wires) = receive_ring(&guest);
    let log = Log::new(FAR.0 / PAGE / 8);
    let call = Arc::new(wires.err.try_clone().expect("dup"));
    let logging = Logging { log: log.log.clone(), data: true, used: None, call: Some(call) };
    cell.set_logging(Some(logging));
    assert!(!wires.failed());
    assert_eq!(deliver(&cell, 1).sent, 1);
    assert!(wires.failed(), "the log's eventfd was not written");
    assert_eq!(log.take(), [LOW.0 / PAGE], "the used ring was not to be logged");
}

/// The frontend takes bits and copies pages while the ring writes: its copy must be the page's last state in the end. A
/// bit that is seen before what it stands for would lose a write.
#[test]
fn nothing_is_lost_to_a_frontend_that_takes_bits_meanwhile() {
    use std::sync::atomic::{AtomicBool, AtomicU8};
    let guest = Guest::new(&REGIONS);
    let (queue, cell, _wires) = receive_ring(&guest);
    let bytes = LOW.0 / PAGE / 8 + 8;
    let log = Log::new(bytes);
    log.use_for(&cell, queue.used);
    let shared = Mapped::shared(&log.file, (OFFSET + bytes) as usize);
    let page = LOW.0 / PAGE;
    // SAFETY: within the mapping just made, which outlives it; touched only through atomics by this side.
    let bits = unsafe { AtomicU8::from_ptr(shared.at.add((OFFSET + page / 8) as usize)) };
    let done = AtomicBool::new(false);
    let rounds: u16 = 20_000;
    // Frame's bytes 0 to 1 of the one buffer that is used again and again.
    let word = || guest.word(LOW.0 + 12);
    let mut copy = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut burst = Burst::new();
            for n in 1..=rounds {
                // The guest gives the same buffer again.
                queue.set_avail(&guest, n - 1, 0);
                queue.avail_idx(&guest).store(n, Ordering::Release);
                let delivered = burst.with_slices(
                    |filler| assert!(filler.push(NetHeader::default(), &n.to_le_bytes(), &[])),
                    |burst| cell.deliver(burst, 1),
                );
                assert_eq!(delivered.sent, 1);
            }
            done.store(true, Ordering::Release);
        });
        loop {
            let last = done.load(Ordering::Acquire);
            if bits.swap(0, Ordering::SeqCst) & 1 << (page % 8) != 0 {
                copy = word().load(Ordering::Relaxed);
            }
            if last {
                break;
            }
        }
    });
    assert_eq!(copy, rounds, "the last write was not copied");
}

// ---- a measurement ----------------------------------------------------------------------------------------------

/// What logging costs a port: nanoseconds a frame from one guest's split ring to another's, with and without it. The log
/// is either left alone, so that its bits are mostly set, or all bits are taken before each burst.
#[test]
#[ignore = "a measurement: `make costs`"]
fn cost_of_logging() {
    const ENTRIES: u16 = 256;
    const BUFFER: u64 = 2048;
    let at = 0x1_0000_u64;
    println!("{:>8} {:>9} {:>9} {:>9}   ns a frame", "bytes", "not", "logged", "taken");
    for (len, frames) in [(64u32, 64u16), (1514, 64), (65_000, 4)] {
        let (from, to) = (Guest::new(&[(0, 1 << 21)]), Guest::new(&[(0, 1 << 21)]));
        let (sends, receives) = (Queue::at(0x1000, ENTRIES), Queue::at(0x1000, ENTRIES));
        // Frames of more than a page are chains of pages.
        let pieces = (len + 12).div_ceil(4096) as u16;
        let chains = ENTRIES / pieces;
        for (guest, queue) in [(&from, &sends), (&to, &receives)] {
            queue.reset(guest, 0);
        }
        for i in 0..ENTRIES {
            receives.set_desc(&to, i, at + BUFFER * u64::from(i), BUFFER as u32, F_WRITE, 0);
            receives.set_avail(&to, i, i);
            let (chain, piece) = (i / pieces, i % pieces);
            let last = piece + 1 == pieces;
            let bytes = if last { len + 12 - 4096 * u32::from(piece) } else { 4096 };
            let addr = at + 4096 * u64::from(i);
            if chain < chains {
                sends.set_desc(&from, i, addr, bytes, if last { 0 } else { F_NEXT }, i + 1);
            }
            sends.set_avail(&from, i, i % chains * pieces);
        }
        let (source, _source_wires) = sends.start(&from, VERSION_1, 0);
        let (sink, _sink_wires) = receives.start(&to, VERSION_1 | MRG_RXBUF, 0);
        let log = Log::new(1 << 12);
        let mut burst = Burst::new();
        let mut measure = |taken: bool| {
            let mut time = std::time::Duration::ZERO;
            let mut moved = 0;
            while moved < 40 * u64::from(frames) {
                let used = receives.used_idx(&to).load(Ordering::Acquire);
                receives.avail_idx(&to).store(used.wrapping_add(ENTRIES), Ordering::Release);
                let used = sends.used_idx(&from).load(Ordering::Acquire);
                sends.avail_idx(&from).store(used.wrapping_add(frames), Ordering::Release);
                if taken {
                    log.take();
                }
                let start = std::time::Instant::now();
                let served = source.serve(&mut burst, |burst| {
                    assert_eq!(sink.deliver(burst, burst.all()).sent, burst.all());
                });
                time += start.elapsed();
                moved += served.frames as u64;
            }
            time.as_secs_f64() * 1e9 / moved as f64
        };
        let mut samples = [const { Vec::new() }; 3];
        for _ in 0..201 {
            for (kind, samples) in samples.iter_mut().enumerate() {
                for (cell, queue) in [(&source, &sends), (&sink, &receives)] {
                    if kind > 0 {
                        log.use_for(cell, queue.used);
                    } else {
                        cell.set_logging(None);
                    }
                }
                samples.push(measure(kind == 2));
            }
        }
        let [not, logged, taken] = samples.map(|mut samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2]
        });
        println!("{len:>8} {not:>9.1} {logged:>9.1} {taken:>9.1}");
    }
}
