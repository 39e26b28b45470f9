//! Guests that lie: whatever lies in their memory, and whatever changes in it meanwhile, the ring stays within the
//! guest's memory, writes only what it was given to write, ends, and either goes on or is broken with a reason.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/hostile.rs"]
mod hostile;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest::*;
use hostile::*;
use proptest::prelude::*;
use vhost_backend::frame::{Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, Ring, RingCell, RingFault, Served};

fn index(random: &mut Random, size: u16) -> u16 {
    if random.below(40) == 0 { random.next() as u16 } else { random.below(u64::from(size)) as u16 }
}

fn garbage_desc(guest: &Guest, random: &mut Random, tables: u64, at: u64, size: u16, write: bool) {
    let (addr, len) = (address(random, tables, !write), length(random));
    let (flags, next) = (flags(random, write), index(random, size));
    write_desc(guest, at, addr, len, flags, next);
}

#[derive(Clone, Copy, Debug)]
struct Garbage {
    order: u32,
    write: bool,
    start: u16,
    ahead: u16,
    features: u64,
    seed: u64,
}

fn garbage() -> impl Strategy<Value = Garbage> {
    (0u32..=10, any::<bool>(), any::<u16>(), any::<u16>(), any::<[bool; 4]>(), any::<u64>()).prop_map(
        |(order, write, start, ahead, [modern, mergeable, event_idx, indirect], seed)| {
            let bit = |on: bool, bit: u64| if on { bit } else { 0 };
            let features = bit(modern, VERSION_1)
                | bit(mergeable, MRG_RXBUF)
                | bit(event_idx, EVENT_IDX)
                | bit(indirect, INDIRECT)
                | CSUM;
            // Mostly not more than the ring is long.
            let ahead = if seed.is_multiple_of(8) { ahead } else { ahead % ((1 << order) + 1) };
            Garbage { order, write, start, ahead, features, seed }
        },
    )
}

fn check_garbage(plan: &Garbage) -> Option<RingFault> {
    let mut random = Random::new(plan.seed);
    let guest = Guest::new(&REGIONS);
    for region in 1..REGIONS.len() {
        guest.randomise(region, &mut random);
    }
    let queue = Queue::at(0x1000, 1 << plan.order);
    queue.reset(&guest, plan.start);
    let mostly_one_piece = random.below(2) == 0;
    for i in 0..queue.size {
        if mostly_one_piece && random.below(16) != 0 {
            let addr = LOW.0 + random.below(LOW.1);
            queue.set_desc(&guest, i, addr, 1600, if plan.write { F_WRITE } else { 0 }, 0);
        } else {
            garbage_desc(&guest, &mut random, TABLES, queue.desc + 16 * u64::from(i), queue.size, plan.write);
        }
        let head = index(&mut random, queue.size);
        queue.set_avail(&guest, i, head);
    }
    for i in 0..0x100 {
        garbage_desc(&guest, &mut random, TABLES, TABLES + 16 * i, 0x100, plan.write);
    }
    queue.avail_idx(&guest).store(plan.start.wrapping_add(plan.ahead), Ordering::Release);
    let before: Vec<_> = (0..REGIONS.len()).map(|i| guest.image(i)).collect();

    let (cell, wires) = queue.start(&guest, plan.features, plan.start);
    let mut burst = Burst::new();
    let bytes = vec![FILLER; MAX_FRAME + 1];
    let mut scratch = vec![0; MAX_FRAME];
    // Each call uses up buffers or ends the ring, unless nothing fits.
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
    if plan.ahead > queue.size {
        assert_eq!(cell.fault(), Some(RingFault::AvailIndexJump));
    }
    let used = queue.used_idx(&guest).load(Ordering::Acquire).wrapping_sub(plan.start);
    assert!(used <= plan.ahead, "{used} buffers came back of {}", plan.ahead);
    if !plan.write && cell.fault().is_none() {
        assert_eq!(used, plan.ahead, "not all came back");
    }

    guest.check_canaries();
    assert!(guest.image(READ_ONLY_REGION) == before[READ_ONLY_REGION], "a readable buffer was written");
    if !plan.write {
        // Only the used ring may differ.
        for (i, before) in before.iter().enumerate() {
            let now = guest.image(i);
            let base = REGIONS[i].0;
            for at in 0..now.len() {
                let addr = base + at as u64;
                let in_used = addr >= queue.used && addr < queue.end;
                assert!(in_used || now[at] == before[at], "a transmit ring wrote at {addr:#x}");
            }
        }
    }
    cell.fault()
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
        let order = random.below(9) as u32;
        let ahead =
            if random.below(12) == 0 { random.next() as u16 } else { random.below((1 << order) + 1) as u16 };
        let features = CSUM | random.pick(&[0, INDIRECT]) | random.pick(&[0, VERSION_1 | MRG_RXBUF]);
        let plan = Garbage {
            order,
            write: random.below(2) == 0,
            start: random.next() as u16,
            ahead,
            features,
            seed: random.next(),
        };
        faults.push(check_garbage(&plan));
    }
    for expected in [
        None,
        Some(RingFault::AvailIndexJump),
        Some(RingFault::BadDescriptor),
        Some(RingFault::ChainTooLong),
        Some(RingFault::BufferNotMapped),
        Some(RingFault::WrongDirection),
        Some(RingFault::BadIndirect),
        Some(RingFault::HeaderTooShort),
    ] {
        assert!(faults.contains(&expected), "{expected:?} never happened: {faults:?}");
    }
}

// ---- one lie at a time ------------------------------------------------------------------------------------------

/// The fault of a transmit ring whose first chain was written by `make`.
fn fault_of(size: u16, features: u64, make: impl FnOnce(&Guest, &Queue)) -> Option<RingFault> {
    let guest = Guest::new(&REGIONS);
    let queue = Queue::at(0x1000, size);
    queue.reset(&guest, 0);
    make(&guest, &queue);
    queue.avail_idx(&guest).store(1, Ordering::Release);
    let (cell, _wires) = queue.start(&guest, features, 0);
    let mut burst = Burst::new();
    let mut scratch = vec![0; MAX_FRAME];
    let served = serve(&cell, &mut burst, &mut scratch);
    assert_eq!(served == Served::default(), cell.fault().is_some(), "{served:?}");
    guest.check_canaries();
    cell.fault()
}

#[test]
fn each_lie_has_its_fault() {
    let all = VERSION_1 | INDIRECT;
    let loops = |guest: &Guest, queue: &Queue| {
        queue.set_desc(guest, 0, LOW.0, 1, F_NEXT, 1);
        queue.set_desc(guest, 1, LOW.0, 1, F_NEXT, 0);
    };
    assert_eq!(fault_of(8, all, loops), Some(RingFault::ChainTooLong));
    let head = |guest: &Guest, queue: &Queue| queue.set_avail(guest, 0, 8);
    assert_eq!(fault_of(8, all, head), Some(RingFault::BadDescriptor));
    let next = |guest: &Guest, queue: &Queue| queue.set_desc(guest, 0, LOW.0, 20, F_NEXT, 8);
    assert_eq!(fault_of(8, all, next), Some(RingFault::BadDescriptor));
    let write = |guest: &Guest, queue: &Queue| queue.set_desc(guest, 0, LOW.0, 60, F_WRITE, 0);
    assert_eq!(fault_of(8, all, write), Some(RingFault::WrongDirection));
    let short = |guest: &Guest, queue: &Queue| queue.set_desc(guest, 0, LOW.0, 11, 0, 0);
    assert_eq!(fault_of(8, all, short), Some(RingFault::HeaderTooShort));
    for (addr, len) in [
        (LOW.0 - 1, 60),
        (HIGH.0 + HIGH.1 - 59, 60),
        (HIGH.0 + HIGH.1, 60),
        (u64::MAX - 10, 60),
        (u64::MAX, 1),
        (0x8000_0000, 60),
    ] {
        let at = |guest: &Guest, queue: &Queue| queue.set_desc(guest, 0, addr, len, 0, 0);
        assert_eq!(fault_of(8, all, at), Some(RingFault::BufferNotMapped), "{addr:#x}+{len:#x}");
    }

    let indirect = |len: u32, flags: u16, table: fn(&Guest)| {
        move |guest: &Guest, queue: &Queue| {
            queue.set_desc(guest, 0, TABLES, len, F_INDIRECT | flags, 1);
            table(guest);
        }
    };
    let good: fn(&Guest) = |guest| write_desc(guest, TABLES, LOW.0, 60, 0, 0);
    assert_eq!(fault_of(8, all, indirect(16, 0, good)), None);
    // Linux sets F_WRITE on no indirect descriptor, but a device must ignore it there.
    assert_eq!(fault_of(8, all, indirect(16, F_WRITE, good)), None);
    assert_eq!(fault_of(8, VERSION_1, indirect(16, 0, good)), Some(RingFault::BadIndirect), "not negotiated");
    assert_eq!(fault_of(8, all, indirect(16, F_NEXT, good)), Some(RingFault::BadIndirect), "goes on");
    assert_eq!(fault_of(8, all, indirect(0, 0, good)), Some(RingFault::BadIndirect), "empty");
    assert_eq!(fault_of(8, all, indirect(17, 0, good)), Some(RingFault::BadIndirect), "not whole");
    assert_eq!(fault_of(8, all, indirect(16 * 1025, 0, good)), Some(RingFault::BadIndirect), "long");
    assert_eq!(fault_of(8, all, indirect(!15, 0, good)), Some(RingFault::BadIndirect), "huge");
    let nested: fn(&Guest) = |guest| write_desc(guest, TABLES, TABLES, 16, F_INDIRECT, 0);
    assert_eq!(fault_of(8, all, indirect(16, 0, nested)), Some(RingFault::BadIndirect), "nested");
    let beyond: fn(&Guest) = |guest| write_desc(guest, TABLES, LOW.0, 60, F_NEXT, 1);
    assert_eq!(fault_of(8, all, indirect(16, 0, beyond)), Some(RingFault::BadDescriptor), "beyond the table");
    let itself: fn(&Guest) = |guest| write_desc(guest, TABLES, LOW.0, 60, F_NEXT, 0);
    assert_eq!(fault_of(8, all, indirect(16, 0, itself)), Some(RingFault::ChainTooLong), "loop in the table");
    // Linux makes tables longer than a tiny queue.
    let long: fn(&Guest) = |guest| {
        for i in 0..19 {
            let (flags, next) = if i < 18 { (F_NEXT, i as u16 + 1) } else { (0, 0) };
            write_desc(guest, TABLES + 16 * i, LOW.0, 60, flags, next);
        }
    };
    assert_eq!(fault_of(2, all, indirect(16 * 19, 0, long)), None);
}

/// A receive ring writes only where it may, whatever else its chains hold.
#[test]
fn what_a_guest_gives_to_read_is_not_written() {
    for pieces in [
        vec![(READ_ONLY.0, 2000, false)],
        vec![(READ_ONLY.0, 12, false), (LOW.0, 2000, true)],
        vec![(LOW.0, 12, true), (READ_ONLY.0, 2000, false)],
    ] {
        for table in [false, true] {
            let guest = Guest::new(&REGIONS);
            let queue = Queue::at(0x1000, 8);
            queue.reset(&guest, 0);
            let at = if table { TABLES } else { queue.desc };
            if table {
                queue.set_desc(&guest, 0, TABLES, 16 * pieces.len() as u32, F_INDIRECT | F_WRITE, 0);
            }
            for (i, &(addr, len, write)) in (0..).zip(&pieces) {
                let next = if usize::from(i) + 1 < pieces.len() { F_NEXT } else { 0 };
                let flags = next | if write { F_WRITE } else { 0 };
                write_desc(&guest, at + 16 * u64::from(i), addr, len, flags, i + 1);
            }
            queue.avail_idx(&guest).store(1, Ordering::Release);
            let (cell, _wires) = queue.start(&guest, VERSION_1 | INDIRECT, 0);
            let delivered = Burst::new().with_slices(
                |filler| assert!(filler.push(NetHeader::default(), &[FILLER; 60], &[])),
                |burst| cell.deliver(burst, 1),
            );
            assert_eq!(delivered, Delivered { stopped: 1, ..Delivered::default() });
            assert_eq!(cell.fault(), Some(RingFault::WrongDirection), "{pieces:x?}");
            assert!(guest.image(READ_ONLY_REGION).iter().all(|&byte| byte == 0));
            assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), 0);
        }
    }
}

/// The longest chain (1024 descriptors) is lent whole, also behind others; only longer ones break the ring.
#[test]
fn long_chains_wait_for_the_next_burst() {
    let guest = Guest::new(&[(0, 0x20_0000)]);
    let queue = Queue::at(0x1000, 4096);
    queue.reset(&guest, 65000);
    // 128 bytes of snapshot and header, then one segment a descriptor.
    let chain = |from: u16, segments: u16| {
        queue.set_desc(&guest, from, 0x10_0000, 140, F_NEXT, from + 1);
        for i in 1..=segments {
            let (flags, next) = if i < segments { (F_NEXT, from + i + 1) } else { (0, 0) };
            queue.set_desc(&guest, from + i, 0x10_0000, 1, flags, next);
        }
    };
    chain(0, 1000);
    chain(1001, 1023);
    chain(2025, 900);
    chain(2926, 1);
    for (i, head) in [0, 1001, 2025, 2926].into_iter().enumerate() {
        queue.set_avail(&guest, 65000u16.wrapping_add(i as u16), head);
    }
    queue.avail_idx(&guest).store(65004, Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 65000);
    let mut burst = Burst::new();
    let mut lens = Vec::new();
    let mut bursts = 0;
    while lens.len() < 4 {
        bursts += 1;
        let served = cell.serve(&mut burst, |burst| {
            for i in 0..burst.len() {
                lens.push(burst.frame_len(i));
                assert_eq!(burst.tail(i).count(), burst.frame_len(i) - 128);
            }
        });
        assert!(served.frames > 0, "{:?} after {lens:?}", cell.fault());
    }
    assert_eq!((lens, bursts), (vec![1128, 1151, 1028, 129], 2));
    assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), 65004);

    chain(0, 1024);
    queue.set_avail(&guest, 65004, 0);
    queue.avail_idx(&guest).store(65005, Ordering::Release);
    assert_eq!(cell.serve(&mut burst, |_| panic!("too long")), Served::default());
    assert_eq!(cell.fault(), Some(RingFault::ChainTooLong));
}

/// A chain that claims all of a guest's memory again and again costs no more than a frame does.
#[test]
fn oversized_chains_are_not_read_to_their_end() {
    let guest = Guest::new(&REGIONS);
    let queue = Queue::at(0x1000, 256);
    queue.reset(&guest, 0);
    // The direction is wrong at the end, which nobody gets to see.
    queue.set_desc(&guest, 0, LOW.0, (LOW.1 + HIGH.1) as u32, F_NEXT, 1);
    queue.set_desc(&guest, 1, LOW.0, 1, F_WRITE, 0);
    queue.avail_idx(&guest).store(1, Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let served = cell.serve(&mut Burst::new(), |_| panic!("no frame"));
    assert_eq!((served, cell.fault()), (Served { oversized: 1, ..Served::default() }, None));
    assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), 1);
}

/// Source and destination of a copy are the same guest's to choose: they may be the same bytes.
#[test]
fn a_guest_may_send_to_itself_in_place() {
    let guest = Guest::new(&REGIONS);
    let (transmit, receive) = (Queue::at(0x1000, 4), Queue::at(0x2000, 4));
    for (queue, addr, flags) in [(&transmit, LOW.0, 0), (&receive, LOW.0 + 100, F_WRITE)] {
        queue.reset(&guest, 0);
        queue.set_desc(&guest, 0, addr, 2000, flags, 0);
        queue.avail_idx(&guest).store(1, Ordering::Release);
    }
    let mut random = Random::new(7);
    guest.randomise(1, &mut random);
    let sent = guest.read(LOW.0 + 12, 1988);
    let (from, _wires) = transmit.start(&guest, VERSION_1, 0);
    let (to, _wires) = receive.start(&guest, VERSION_1, 0);
    let served = from.serve(&mut Burst::new(), |burst| {
        assert_eq!(to.deliver(burst, burst.all()).sent, 1);
    });
    assert_eq!(served.frames, 1);
    let got = guest.read(LOW.0 + 112, 1988);
    assert_eq!(got[..128], sent[..128], "the snapshot is what is sent");
    // The header and the snapshot were written over part of the rest before that was read.
    assert_eq!(got[228..], sent[228..]);
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
    // Two page-sized rings, tables behind them. Receive rings must not lead to READ_ONLY, so each has tables of its own.
    let (transmit, receive) = (Queue::at(0x1000, 32), Queue::at(0x2000, 64));
    let (transmit_tables, receive_tables) = (TABLES, TABLES + 0x1000);
    for queue in [transmit, receive] {
        queue.reset(&guest, 0);
    }
    let done = AtomicBool::new(false);
    let (turns, faults, frames, sent) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let tried_enough =
        |turns: u64| turns > 1000 && count(&faults) > 20 && count(&frames) > 200 && count(&sent) > 200;

    let scribble = |queue: Queue, tables: u64, write: bool, seed: u64| {
        let mut random = Random::new(seed);
        while !done.load(Ordering::Relaxed) {
            let right = if write { F_WRITE } else { 0 };
            let addr = LOW.0 + random.below(LOW.1);
            let len = 100 + random.below(2000) as u32;
            let entry = random.below(u64::from(queue.size)) as u16;
            // Mostly what a driver might say, so that the ring gets far before a lie meets it.
            match random.below(256) {
                0 => {
                    let at = tables + 16 * random.below(64);
                    garbage_desc(&guest, &mut random, tables, at, 64, write);
                }
                1 => {
                    let at = queue.desc + 16 * u64::from(entry);
                    garbage_desc(&guest, &mut random, tables, at, queue.size, write);
                }
                2 => {
                    let head = index(&mut random, queue.size);
                    queue.set_avail(&guest, entry, head);
                }
                // Now and then what belongs to the device, too.
                3 if random.below(16) == 0 => {
                    queue.used_idx(&guest).store(random.next() as u16, Ordering::Relaxed);
                    queue.avail_idx(&guest).store(random.next() as u16, Ordering::Relaxed);
                }
                4..100 => queue.set_desc(&guest, entry, addr, len, right, 0),
                100..120 => {
                    queue.set_desc(&guest, entry, addr, len, right | F_NEXT, queue.size - 1 - entry / 2)
                }
                120..130 => {
                    let table = tables + 16 * random.below(62);
                    queue.set_desc(&guest, entry, table, 16 * (1 + random.below(3) as u32), F_INDIRECT, 0);
                }
                130..170 => {
                    let next = if random.below(2) == 0 { F_NEXT } else { 0 };
                    write_desc(&guest, tables + 16 * random.below(64), addr, len, right | next, 1);
                }
                170..240 => queue.set_avail(&guest, entry, random.below(u64::from(queue.size)) as u16),
                _ => {
                    let used = queue.used_idx(&guest).load(Ordering::Relaxed);
                    let ahead = random.below(u64::from(queue.size) + 1) as u16;
                    queue.avail_idx(&guest).store(used.wrapping_add(ahead), Ordering::Relaxed);
                }
            }
        }
    };
    let work = || {
        let mut random = Random::new(99);
        let features = VERSION_1 | INDIRECT | EVENT_IDX | MRG_RXBUF | CSUM;
        let (from, mut from_wires) = transmit.start(&guest, features, 0);
        let (to, mut to_wires) = receive.start(&guest, features, 0);
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
                    *wires = queue.restart(&guest, features, 0, cell).expect("the addresses are good");
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
        scope.spawn(|| scribble(transmit, transmit_tables, false, 1));
        scope.spawn(|| scribble(receive, receive_tables, true, 2));
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
        let guest = Guest::new(&REGIONS);
        let bystander = Guest::new(&REGIONS);
        let queue = Queue::at(0x1000, 256);
        let flags = if write { F_WRITE } else { 0 };
        let cells: Vec<_> = [&guest, &bystander]
            .into_iter()
            .map(|guest| {
                queue.reset(guest, 0);
                for i in 0..queue.size {
                    queue.set_desc(guest, i, LOW.0 + u64::from(i), 2000, flags, 0);
                    queue.set_avail(guest, i, i);
                }
                queue.avail_idx(guest).store(queue.size, Ordering::Release);
                queue.start(guest, VERSION_1, 0)
            })
            .collect();
        let mut burst = Burst::new();
        let mut random = Random::new(3);
        let bytes = vec![FILLER; MAX_FRAME + 1];
        let mut scratch = vec![0; MAX_FRAME];
        // Before the cut all is well; after it, only the guest whose memory is gone notices.
        let serve_one = |cell: &RingCell, burst: &mut Burst, scratch: &mut [u8], random: &mut Random| {
            if write {
                burst.with_slices(
                    |filler| {
                        assert!(filler.push(
                            NetHeader::default(),
                            &[],
                            &bytes[..1 + random.below(1500) as usize]
                        ))
                    },
                    |burst| cell.deliver(burst, 1).sent.count_ones() as usize,
                )
            } else {
                serve(cell, burst, scratch).frames
            }
        };
        for (cell, _) in &cells {
            assert!(serve_one(cell, &mut burst, &mut scratch, &mut random) > 0);
        }
        guest.regions[cut].file.set_len(0).expect("truncate");
        assert_eq!(serve_one(&cells[0].0, &mut burst, &mut scratch, &mut random), 0);
        assert_eq!(cells[0].0.fault(), Some(RingFault::MemoryGone), "region {cut}, write {write}");
        assert!(cells[0].1.failed());
        assert!(serve_one(&cells[1].0, &mut burst, &mut scratch, &mut random) > 0);
        assert_eq!(cells[1].0.fault(), None);
        // A ring in such memory cannot be started to any effect, either.
        let (setup, _wires) = queue.setup(&guest, VERSION_1, 0);
        cells[0].0.start(Ring::new(setup).expect("mapped all the same"));
        assert_eq!(serve_one(&cells[0].0, &mut burst, &mut scratch, &mut random), 0);
        assert_eq!(cells[0].0.fault(), Some(RingFault::MemoryGone), "again, region {cut}, write {write}");
        bystander.check_canaries();
    }
}

/// The same while a burst is lent: the memory goes while the worker reads from it.
#[test]
fn memory_taken_away_while_a_burst_is_lent_reads_as_zeroes() {
    let guest = Guest::new(&REGIONS);
    let queue = Queue::at(0x1000, 8);
    queue.reset(&guest, 0);
    guest.write(LOW.0, &[0x55; 4096]);
    queue.set_desc(&guest, 0, LOW.0, 2012, 0, 0);
    queue.avail_idx(&guest).store(1, Ordering::Release);
    let (cell, wires) = queue.start(&guest, VERSION_1, 0);
    let mut burst = Burst::new();
    let mut frame = vec![0xff; 2000];
    let served = cell.serve(&mut burst, |burst| {
        guest.regions[1].file.set_len(0).expect("truncate");
        assert_eq!(burst.linearise(0, &mut frame), Some(2000));
    });
    assert_eq!(served.frames, 1);
    assert!(frame[..128].iter().all(|&b| b == 0x55), "the snapshot is ours");
    assert!(frame[128..].iter().all(|&b| b == 0), "the rest is gone");
    // Found at the next turn with work.
    queue.avail_idx(&guest).store(2, Ordering::Release);
    cell.serve(&mut burst, |_| panic!("nothing of a broken ring is forwarded"));
    assert_eq!(cell.fault(), Some(RingFault::MemoryGone));
    assert!(wires.failed());
}
