//! Guests that lie in packed rings: whatever lies in their memory, and whatever changes in it meanwhile, the ring stays
//! within the guest's memory, writes only what it was given to write, ends, and either goes on or is broken with a reason.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/packed.rs"]
mod packed;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest::*;
use hostile::*;
use packed::*;
use proptest::prelude::*;
use vhost_backend::frame::{Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, Ring, RingCell, RingFault, Served};

/// A descriptor that a careless ring stumbles over: address, length, flags without marks.
fn garbage_desc(random: &mut Random, write: bool) -> (u64, u32, u16) {
    (address(random, TABLES, !write), length(random), flags(random, write) & !(F_AVAIL | F_USED))
}

#[derive(Clone, Copy, Debug)]
struct Garbage {
    size: u16,
    write: bool,
    start: u16,
    wrap: bool,
    /// Descriptors that look offered.
    ahead: u16,
    features: u64,
    seed: u64,
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let features = any::<[bool; 5]>().prop_map(|on| {
        let bits = [VERSION_1, MRG_RXBUF, EVENT_IDX, INDIRECT, IN_ORDER];
        on.into_iter().zip(bits).filter(|(on, _)| *on).fold(CSUM, |word, (_, bit)| word | bit)
    });
    (1u16..300, any::<bool>(), any::<u16>(), any::<bool>(), any::<u16>(), features, any::<u64>()).prop_map(
        |(size, write, start, wrap, ahead, features, seed)| Garbage {
            size,
            write,
            start: start % size,
            wrap,
            ahead: ahead % (size + 1),
            features,
            seed,
        },
    )
}

fn check_garbage(plan: &Garbage) -> Option<RingFault> {
    let mut random = Random::new(plan.seed);
    let guest = Guest::new(&REGIONS);
    for region in 1..REGIONS.len() {
        guest.randomise(region, &mut random);
    }
    let queue = PackedQueue::at(0x1000, plan.size);
    let start = At { index: plan.start, wrap: plan.wrap };
    queue.reset(&guest, start);
    let mostly_one_piece = random.below(2) == 0;
    let mut at = start;
    for i in 0..plan.size {
        let (addr, len, flags) = if mostly_one_piece && random.below(16) != 0 {
            (LOW.0 + random.below(LOW.1), 1600, if plan.write { F_WRITE } else { 0 })
        } else {
            garbage_desc(&mut random, plan.write)
        };
        let marks = if i < plan.ahead { at.offered() } else { At { wrap: !at.wrap, ..at }.used() };
        queue.set_desc(&guest, at.index, addr, len, random.next() as u16, flags | marks);
        at = at.next(plan.size);
    }
    for i in 0..0x100 {
        let (addr, len, flags) = garbage_desc(&mut random, plan.write);
        write_desc(&guest, TABLES + 16 * i, addr, len, random.next() as u16, flags);
    }
    queue.wish(&guest, random.next() as u16, random.next() as u16);
    let before: Vec<_> = (0..REGIONS.len()).map(|i| guest.image(i)).collect();

    let (cell, wires) = queue.start(&guest, plan.features, start.base());
    let mut burst = Burst::new();
    let bytes = vec![FILLER; MAX_FRAME + 1];
    let mut scratch = vec![0; MAX_FRAME];
    for _ in 0..40 {
        if plan.write {
            deliver(&cell, &mut burst, &mut random, &bytes);
        } else {
            serve(&cell, &mut burst, &mut scratch);
        }
    }
    assert_eq!(cell.fault().is_some(), !cell.is_active());
    assert_eq!(wires.failed(), cell.fault().is_some(), "the frontend hears of a fault, once");
    assert!(!wires.failed());
    let fault = cell.fault();
    guest.check_canaries();
    assert!(guest.image(READ_ONLY_REGION) == before[READ_ONLY_REGION], "a readable buffer was written");
    if !plan.write {
        // Only descriptors, and the device's area, may differ.
        for (i, before) in before.iter().enumerate() {
            let now = guest.image(i);
            for at in 0..now.len() {
                let addr = REGIONS[i].0 + at as u64;
                let own =
                    (queue.desc..queue.driver).contains(&addr) || (queue.device..queue.end).contains(&addr);
                assert!(own || now[at] == before[at], "a transmit ring wrote at {addr:#x}");
            }
        }
        if let (None, Some(ring)) = (fault, cell.stop()) {
            // A chain may pretend to go on behind what was offered, but not around the ring.
            let ends: Vec<u32> =
                (plan.ahead..=plan.size).map(|taken| start.after(taken, plan.size).base()).collect();
            assert!(ends.contains(&ring.base()), "{:#x} after {} offered", ring.base(), plan.ahead);
        }
    }
    fault
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 300 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_breaks_at_most_the_ring(plan in garbage()) {
        check_garbage(&plan);
    }
}

/// That the generator above reaches all the ways in which a guest's memory can be wrong, from fixed seeds.
#[test]
fn garbage_finds_every_fault() {
    let mut faults = Vec::new();
    let mut random = Random::new(42);
    for _ in 0..250 {
        let size = 1 + random.below(256) as u16;
        let plan = Garbage {
            size,
            write: random.below(2) == 0,
            start: random.below(size.into()) as u16,
            wrap: random.below(2) == 0,
            ahead: random.below(u64::from(size) + 1) as u16,
            features: CSUM | random.pick(&[0, INDIRECT]) | random.pick(&[0, VERSION_1 | MRG_RXBUF]),
            seed: random.next(),
        };
        faults.push(check_garbage(&plan));
    }
    for expected in [
        None,
        Some(RingFault::BufferNotMapped),
        Some(RingFault::WrongDirection),
        Some(RingFault::BadIndirect),
        Some(RingFault::HeaderTooShort),
    ] {
        assert!(faults.contains(&expected), "{expected:?} never happened: {faults:?}");
    }
}

// ---- one lie at a time ------------------------------------------------------------------------------------------

/// The fault of a transmit ring in which `make` has offered something at the start.
fn fault_of(size: u16, features: u64, make: impl FnOnce(&Guest, &PackedQueue)) -> Option<RingFault> {
    let guest = Guest::new(&REGIONS);
    let queue = PackedQueue::at(0x1000, size);
    queue.reset(&guest, At::START);
    make(&guest, &queue);
    let (cell, _wires) = queue.start(&guest, features, At::START.base());
    let mut scratch = vec![0; MAX_FRAME];
    let served = serve(&cell, &mut Burst::new(), &mut scratch);
    assert_eq!(served == Served::default(), cell.fault().is_some(), "{served:?}");
    guest.check_canaries();
    cell.fault()
}

#[test]
fn each_lie_has_its_fault() {
    let all = VERSION_1 | INDIRECT;
    // All descriptors look like one chain, for ever.
    let endless = |guest: &Guest, queue: &PackedQueue| {
        for i in 0..queue.size {
            queue.set_desc(guest, i, LOW.0, 1, i, F_NEXT | F_AVAIL);
        }
    };
    for size in [1, 2, 8, 300, 2048] {
        assert_eq!(fault_of(size, all, endless), Some(RingFault::ChainTooLong), "{size}");
    }
    let one = |addr, len, flags| {
        move |guest: &Guest, queue: &PackedQueue| queue.set_desc(guest, 0, addr, len, 0xabcd, flags | F_AVAIL)
    };
    assert_eq!(fault_of(8, all, one(LOW.0, 60, 0)), None);
    assert_eq!(fault_of(8, all, one(LOW.0, 60, F_WRITE)), Some(RingFault::WrongDirection));
    assert_eq!(fault_of(8, all, one(LOW.0, 11, 0)), Some(RingFault::HeaderTooShort));
    for (addr, len) in [
        (LOW.0 - 1, 60),
        (HIGH.0 + HIGH.1 - 59, 60),
        (HIGH.0 + HIGH.1, 60),
        (u64::MAX - 10, 60),
        (u64::MAX, 1),
        (0x8000_0000, 60),
    ] {
        assert_eq!(fault_of(8, all, one(addr, len, 0)), Some(RingFault::BufferNotMapped), "{addr:#x}");
    }

    let indirect = |len: u32, flags: u16, table: fn(&Guest)| {
        move |guest: &Guest, queue: &PackedQueue| {
            queue.set_desc(guest, 0, TABLES, len, 7, F_INDIRECT | F_AVAIL | flags);
            table(guest);
        }
    };
    let good: fn(&Guest) = |guest| write_desc(guest, TABLES, LOW.0, 60, 0, 0);
    assert_eq!(fault_of(8, all, indirect(16, 0, good)), None);
    assert_eq!(fault_of(8, all, indirect(16, F_WRITE, good)), None);
    assert_eq!(fault_of(8, VERSION_1, indirect(16, 0, good)), Some(RingFault::BadIndirect), "not negotiated");
    assert_eq!(fault_of(8, all, indirect(16, F_NEXT, good)), Some(RingFault::BadIndirect), "goes on");
    assert_eq!(fault_of(8, all, indirect(0, 0, good)), Some(RingFault::BadIndirect), "empty");
    assert_eq!(fault_of(8, all, indirect(17, 0, good)), Some(RingFault::BadIndirect), "not whole");
    assert_eq!(fault_of(8, all, indirect(16 * 1025, 0, good)), Some(RingFault::BadIndirect), "long");
    assert_eq!(fault_of(8, all, indirect(!15, 0, good)), Some(RingFault::BadIndirect), "huge");
    let nested: fn(&Guest) = |guest| write_desc(guest, TABLES, TABLES, 16, 0, F_INDIRECT);
    assert_eq!(fault_of(8, all, indirect(16, 0, nested)), Some(RingFault::BadIndirect), "nested");
    // Other flags mean nothing in a table, and neither do numbers.
    let flags: fn(&Guest) = |guest| {
        write_desc(guest, TABLES, LOW.0, 60, 0xffff, F_NEXT | F_AVAIL);
        write_desc(guest, TABLES + 16, LOW.0, 60, 1, F_USED);
    };
    assert_eq!(fault_of(8, all, indirect(32, 0, flags)), None);
    // A chain that would go on over the one before it.
    let over = |guest: &Guest, queue: &PackedQueue| {
        for (i, next) in [(0, F_NEXT), (1, 0), (2, F_NEXT)] {
            queue.set_desc(guest, i, LOW.0, 30, i, F_AVAIL | next);
        }
    };
    assert_eq!(fault_of(3, all, over), Some(RingFault::ChainTooLong));
    // A chain may end in a table, and does not go on behind one.
    let last = |guest: &Guest, queue: &PackedQueue| {
        queue.set_desc(guest, 1, TABLES, 16, 7, F_INDIRECT | F_AVAIL);
        write_desc(guest, TABLES, LOW.0, 60, 0, 0);
        queue.set_desc(guest, 0, LOW.0, 12, 7, F_NEXT | F_AVAIL);
    };
    assert_eq!(fault_of(8, all, last), None);
}

/// A receive ring writes only where it may, whatever else its chains hold, and shows nothing of what went wrong.
#[test]
fn what_a_guest_gives_to_read_is_not_written() {
    for pieces in [
        vec![(READ_ONLY.0, 2000, false)],
        vec![(READ_ONLY.0, 12, false), (LOW.0, 2000, true)],
        vec![(LOW.0, 12, true), (READ_ONLY.0, 2000, false)],
    ] {
        for table in [false, true] {
            let guest = Guest::new(&REGIONS);
            let queue = PackedQueue::at(0x1000, 8);
            queue.reset(&guest, At::START);
            if table {
                queue.set_desc(
                    &guest,
                    0,
                    TABLES,
                    16 * pieces.len() as u32,
                    0,
                    F_INDIRECT | F_WRITE | F_AVAIL,
                );
            }
            for (i, &(addr, len, write)) in (0u16..).zip(&pieces) {
                let next = if usize::from(i) + 1 < pieces.len() { F_NEXT } else { 0 };
                let flags = next | if write { F_WRITE } else { 0 };
                if table {
                    write_desc(&guest, TABLES + 16 * u64::from(i), addr, len, 0, flags);
                } else {
                    queue.set_desc(&guest, i, addr, len, 0, flags | F_AVAIL);
                }
            }
            let (cell, _wires) = queue.start(&guest, VERSION_1 | INDIRECT, At::START.base());
            let delivered = Burst::new().with_slices(
                |filler| assert!(filler.push(NetHeader::default(), &[FILLER; 60], &[])),
                |burst| cell.deliver(burst, 1),
            );
            assert_eq!(delivered, Delivered { stopped: 1, ..Delivered::default() });
            assert_eq!(cell.fault(), Some(RingFault::WrongDirection), "{pieces:x?}");
            assert!(guest.image(READ_ONLY_REGION).iter().all(|&byte| byte == 0));
            assert_eq!(queue.flags(&guest, 0) & F_USED, 0, "given back");
        }
    }
}

/// A guest that makes the same descriptors look offered again and again gets no more of a worker than a ring's length.
#[test]
fn a_burst_never_goes_round_more_than_once() {
    let guest = Guest::new(&REGIONS);
    let queue = PackedQueue::at(0x1000, 3);
    queue.reset(&guest, At::START);
    for i in 0..3 {
        queue.set_desc(&guest, i, LOW.0, 64, i, F_AVAIL);
    }
    let (cell, _wires) = queue.start(&guest, VERSION_1, At::START.base());
    let mut burst = Burst::new();
    let served = cell.serve(&mut burst, |_| {
        // While they are lent, as if they had come back and were offered in the next lap.
        for i in 0..3 {
            queue.set_flags(&guest, i, F_USED);
        }
    });
    assert_eq!(served.frames, 3);
    assert_eq!(cell.serve(&mut burst, |_| ()).frames, 0, "they were given back over what the guest wrote");

    // Frames that need more buffers than the ring can hold.
    for i in 0..3 {
        queue.set_desc(&guest, i, LOW.0, 64, i, F_USED | F_WRITE);
    }
    let (cell, _wires) = queue.start(&guest, VERSION_1 | MRG_RXBUF, At { index: 0, wrap: false }.base());
    let delivered = burst.with_slices(
        |filler| assert!(filler.push(NetHeader::default(), &[FILLER; 100], &[FILLER; 1000])),
        |burst| cell.deliver(burst, 1),
    );
    assert_eq!(delivered, Delivered { no_buffers: 1, ..Delivered::default() });
}

// ---- memory that changes meanwhile ------------------------------------------------------------------------------

/// A thread rewrites all that the rings are made of while they are in use.
#[test]
fn a_guest_that_rewrites_its_rings_meanwhile_harms_only_itself() {
    const ITERATIONS: u64 = 200_000;
    let (enough, deadline) =
        (Instant::now() + Duration::from_secs(4), Instant::now() + Duration::from_secs(60));
    let guest = Guest::new(&REGIONS);
    let mut random = Random::new(0x5eed);
    guest.randomise(READ_ONLY_REGION, &mut random);
    let untouched = guest.image(READ_ONLY_REGION);
    // Receive rings must not lead to READ_ONLY, so the tables lead nowhere near it.
    let (transmit, receive) = (PackedQueue::at(0x1000, 30), PackedQueue::at(0x2000, 64));
    for queue in [transmit, receive] {
        queue.reset(&guest, At::START);
    }
    let done = AtomicBool::new(false);
    let (turns, faults, frames, sent) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let tried_enough =
        |turns: u64| turns > 1000 && count(&faults) > 20 && count(&frames) > 200 && count(&sent) > 200;

    let scribble = |queue: PackedQueue, write: bool, seed: u64| {
        let mut random = Random::new(seed);
        while !done.load(Ordering::Relaxed) {
            let right = if write { F_WRITE } else { 0 };
            let addr = LOW.0 + random.below(LOW.1);
            let len = 100 + random.below(2000) as u32;
            let entry = random.below(u64::from(queue.size)) as u16;
            let marks = random.pick(&[F_AVAIL, F_USED, F_AVAIL, F_USED, 0, F_AVAIL | F_USED]);
            // Mostly what a driver might say, so that the ring gets far before a lie meets it.
            match random.below(256) {
                0 => {
                    let (addr, len, flags) = garbage_desc(&mut random, true);
                    write_desc(&guest, TABLES + 16 * random.below(64), addr, len, 0, flags);
                }
                1 => {
                    let (addr, len, flags) = garbage_desc(&mut random, true);
                    queue.set_desc(&guest, entry, addr, len, 0, flags | marks);
                }
                2 => queue.wish(&guest, random.next() as u16, random.next() as u16),
                3..100 => queue.set_desc(&guest, entry, addr, len, entry, right | marks),
                100..120 => queue.set_desc(&guest, entry, addr, len, entry, right | F_NEXT | marks),
                120..130 => {
                    let table = TABLES + 16 * random.below(62);
                    let bytes = 16 * (1 + random.below(3) as u32);
                    queue.set_desc(&guest, entry, table, bytes, entry, F_INDIRECT | marks);
                }
                130..170 => write_desc(&guest, TABLES + 16 * random.below(64), addr, len, 1, right),
                _ => queue.set_flags(&guest, entry, right | marks),
            }
        }
    };
    let work = || {
        let mut random = Random::new(99);
        let features = VERSION_1 | INDIRECT | EVENT_IDX | MRG_RXBUF | CSUM;
        let (from, mut from_wires) = transmit.start(&guest, features, At::START.base());
        let (to, mut to_wires) = receive.start(&guest, features, At::START.base());
        let mut burst = Burst::new();
        let bytes = vec![FILLER; MAX_FRAME + 1];
        let mut scratch = vec![0; MAX_FRAME];
        let mut turn = 0;
        loop {
            let now = Instant::now();
            if now > deadline || tried_enough(turn) && (now > enough || turn >= ITERATIONS) {
                break;
            }
            turn += 1;
            frames.fetch_add(serve(&from, &mut burst, &mut scratch).frames as u64, Ordering::Relaxed);
            let delivered = deliver(&to, &mut burst, &mut random, &bytes);
            sent.fetch_add(u64::from(delivered.sent.count_ones()), Ordering::Relaxed);
            from.arm();
            for (cell, queue, wires) in [(&from, transmit, &mut from_wires), (&to, receive, &mut to_wires)] {
                if cell.fault().is_some() {
                    faults.fetch_add(1, Ordering::Relaxed);
                    assert!(wires.failed());
                    let base = At { index: random.below(queue.size.into()) as u16, wrap: turn % 2 == 0 };
                    *wires =
                        queue.restart(&guest, features, base.base(), cell).expect("the addresses are good");
                }
            }
        }
        turns.store(turn, Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
    };
    // Runs also when `work` panics, so that the others end.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| scribble(transmit, false, 1));
        scope.spawn(|| scribble(receive, true, 2));
        let _done = Done(&done);
        work();
    });
    guest.check_canaries();
    assert!(guest.image(READ_ONLY_REGION) == untouched, "a readable buffer was written");
    let counted = (count(&turns), count(&faults), count(&frames), count(&sent));
    assert!(tried_enough(counted.0), "{counted:?}");
}

/// The frontend takes the memory behind buffers and rings away in the middle of it all.
#[test]
fn memory_taken_away_breaks_the_ring_and_nothing_else() {
    for (cut, write) in [(0usize, false), (1, false), (0, true), (1, true)] {
        let (guest, bystander) = (Guest::new(&REGIONS), Guest::new(&REGIONS));
        let queue = PackedQueue::at(0x1000, 256);
        let flags = if write { F_WRITE } else { 0 };
        let cells = [&guest, &bystander].map(|guest| {
            queue.reset(guest, At::START);
            for i in 0..queue.size {
                queue.set_desc(guest, i, LOW.0 + u64::from(i), 2000, i, flags | F_AVAIL);
            }
            queue.start(guest, VERSION_1, At::START.base())
        });
        let mut burst = Burst::new();
        let mut scratch = vec![0; MAX_FRAME];
        let mut serve_one = |cell: &RingCell| {
            if write {
                burst.with_slices(
                    |filler| assert!(filler.push(NetHeader::default(), &[FILLER; 60], &[FILLER; 600])),
                    |burst| cell.deliver(burst, 1).sent.count_ones() as usize,
                )
            } else {
                serve(cell, &mut burst, &mut scratch).frames
            }
        };
        for (cell, _) in &cells {
            assert!(serve_one(cell) > 0);
        }
        guest.regions[cut].file.set_len(0).expect("truncate");
        assert_eq!(serve_one(&cells[0].0), 0);
        assert_eq!(cells[0].0.fault(), Some(RingFault::MemoryGone), "region {cut}, write {write}");
        assert!(cells[0].1.failed());
        assert!(serve_one(&cells[1].0) > 0);
        assert_eq!(cells[1].0.fault(), None);
        // A ring in such memory cannot be started to any effect, either.
        let (setup, _wires) = queue.setup(&guest, VERSION_1, At::START.base());
        cells[0].0.start(Ring::new(setup).expect("mapped all the same"));
        assert_eq!(serve_one(&cells[0].0), 0);
        assert_eq!(cells[0].0.fault(), Some(RingFault::MemoryGone), "again, region {cut}, write {write}");
        bystander.check_canaries();
    }
}
