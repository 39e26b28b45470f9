//! A ring's life beside a running guest: starting where it was left, stopping at once, and sleeping without missing a
//! kick.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/sleep.rs"]
mod sleep;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use guest::*;
use vhost_backend::frame::{BURST, Burst};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::cell::Armed;
use vhost_backend::ring::{Delivered, Ring, RingFault, Served};

const PATIENCE: Duration = Duration::from_secs(20);
const MEMORY: (u64, u64) = (0, 0x20_0000);
const BUFFERS: u64 = 0x10_0000;

/// A ring all of whose entries are one-piece buffers of `len` bytes, entry i of the available ring being buffer i.
fn full_ring(guest: &Guest, at: u64, size: u16, index: u16, write: bool, len: u32) -> Queue {
    let queue = Queue::at(at, size);
    queue.reset(guest, index);
    for i in 0..size {
        let addr = BUFFERS + u64::from(i % 256) * u64::from(len);
        queue.set_desc(guest, i, addr, len, if write { F_WRITE } else { 0 }, 0);
        queue.set_avail(guest, i, i);
    }
    queue
}

// ---- starting ---------------------------------------------------------------------------------------------------

#[test]
fn a_ring_goes_on_at_its_used_index_whatever_the_frontend_says() {
    let guest = Guest::new(&[MEMORY]);
    for (used, base) in [(0, 0), (65530, 65530), (65530, 3), (17, 65535), (300, 0)] {
        let queue = full_ring(&guest, 0x1000, 16, used, false, 100);
        queue.avail_idx(&guest).store(used.wrapping_add(10), Ordering::Release);
        let (cell, _wires) = queue.start(&guest, VERSION_1, base);
        let served = cell.serve(&mut Burst::new(), |_| ());
        assert_eq!(served, Served { frames: 10, ..Served::default() }, "used {used}, base {base}");
        for i in 0..10 {
            let index = used.wrapping_add(i);
            assert_eq!(queue.used_elem(&guest, index), (u32::from(index & 15), 0));
        }
        assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), used.wrapping_add(10));
        let stopped = cell.stop().expect("a ring");
        assert_eq!(stopped.base(), u32::from(used.wrapping_add(10)));

        // And once more from there, as a switch does that was killed and started again.
        queue.avail_idx(&guest).store(used.wrapping_add(13), Ordering::Release);
        let _wires = queue.restart(&guest, VERSION_1, 0, &cell).expect("again");
        assert_eq!(cell.serve(&mut Burst::new(), |_| ()).frames, 3);
    }
}

#[test]
fn sizes_and_addresses_that_cannot_be_are_refused() {
    let guest = Guest::new(&[MEMORY, (0x1000_0000, 0x1800)]);
    let fault = |change: &dyn Fn(&mut vhost_backend::ring::RingSetup)| {
        let (mut setup, _wires) = Queue::at(0x1000, 256).setup(&guest, VERSION_1, 0);
        change(&mut setup);
        Ring::new(setup).err()
    };
    assert_eq!(fault(&|_| ()), None);
    for size in [0, 3, 255, 257, 32769, 65535] {
        assert_eq!(fault(&|setup| setup.size = size), Some(RingFault::BadSize), "{size}");
    }
    assert_eq!(fault(&|setup| setup.desc += 8), Some(RingFault::RingMisaligned));
    assert_eq!(fault(&|setup| setup.avail += 1), Some(RingFault::RingMisaligned));
    assert_eq!(fault(&|setup| setup.used += 2), Some(RingFault::RingMisaligned));
    let end = guest.user(0x1000_0000) + 0x1800;
    // The last descriptor, avail's used_event and used's avail_event must be in memory, too.
    assert_eq!(fault(&|setup| setup.desc = end - 4096), None);
    assert_eq!(fault(&|setup| setup.desc = end - 4080), Some(RingFault::RingNotMapped));
    assert_eq!(fault(&|setup| setup.avail = end - 518), None);
    assert_eq!(fault(&|setup| setup.avail = end - 516), Some(RingFault::RingNotMapped));
    assert_eq!(fault(&|setup| setup.used = end - 2056), None);
    assert_eq!(fault(&|setup| setup.used = end - 2052), Some(RingFault::RingNotMapped));
    for far in [0, u64::MAX - 15, u64::MAX - 4095] {
        assert_eq!(fault(&|setup| setup.desc = far), Some(RingFault::RingNotMapped), "{far:#x}");
    }
}

#[test]
fn the_largest_ring_can_be_full_but_not_fuller() {
    let guest = Guest::new(&[MEMORY]);
    let start = 40_000u16;
    let queue = full_ring(&guest, 0x1000, 32768, start, false, 100);
    queue.avail_idx(&guest).store(start.wrapping_add(32768), Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let mut burst = Burst::new();
    let mut frames = 0;
    while let served = cell.serve(&mut burst, |_| ())
        && served != Served::default()
    {
        assert_eq!(served.frames, BURST);
        frames += served.frames;
    }
    assert_eq!((frames, cell.fault()), (32768, None));
    let at = queue.used_idx(&guest).load(Ordering::Acquire);
    queue.avail_idx(&guest).store(at.wrapping_add(32769), Ordering::Release);
    assert_eq!(cell.serve(&mut burst, |_| ()), Served::default());
    assert_eq!(cell.fault(), Some(RingFault::AvailIndexJump));

    // Also in the other direction.
    let queue = full_ring(&guest, 0x1000, 32768, start, true, 100);
    queue.avail_idx(&guest).store(start.wrapping_add(32768), Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let delivered = burst.with_slices(
        |filler| while filler.push(NetHeader::default(), &[1; 60], &[]) {},
        |burst| cell.deliver(burst, burst.all()),
    );
    assert_eq!(delivered, Delivered { sent: u64::MAX, ..Delivered::default() });
}

// ---- being told -------------------------------------------------------------------------------------------------

#[test]
fn a_guest_that_polls_is_not_interrupted() {
    let guest = Guest::new(&[MEMORY]);
    let queue = full_ring(&guest, 0x1000, 16, 0, false, 100);
    let (cell, wires) = queue.start(&guest, VERSION_1, 0);
    let mut burst = Burst::new();
    for (i, flags, called) in [(1, 1, false), (2, 0, true), (3, 0xfffe, true), (4, 0xffff, false)] {
        queue.avail_flags(&guest).store(flags, Ordering::Relaxed);
        queue.avail_idx(&guest).store(i, Ordering::Release);
        assert_eq!(cell.serve(&mut burst, |_| ()).frames, 1);
        assert_eq!(wires.called(), called, "flags {flags:#x}");
    }
    // With EVENT_IDX the flags mean nothing.
    let queue = full_ring(&guest, 0x1000, 16, 0, false, 100);
    let (cell, wires) = queue.start(&guest, VERSION_1 | EVENT_IDX, 0);
    for (i, event, called) in [(1, 0, true), (2, 0, false), (3, 3, false), (6, 3, true), (7, 6, true)] {
        queue.avail_flags(&guest).store(1, Ordering::Relaxed);
        queue.used_event(&guest).store(event, Ordering::Relaxed);
        queue.avail_idx(&guest).store(i, Ordering::Release);
        assert!(cell.serve(&mut burst, |_| ()).frames > 0);
        assert_eq!(wires.called(), called, "up to {i}, event {event}");
    }
}

#[test]
fn a_guest_that_polls_hears_of_an_empty_ring_if_it_asked_to() {
    const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    let guest = Guest::new(&[MEMORY]);
    let mut burst = Burst::new();
    for event_idx in [0, EVENT_IDX] {
        for asked in [0, NOTIFY_ON_EMPTY] {
            let queue = full_ring(&guest, 0x1000, 128, 0, false, 100);
            queue.avail_flags(&guest).store(1, Ordering::Relaxed);
            queue.used_event(&guest).store(1000, Ordering::Relaxed);
            queue.avail_idx(&guest).store(70, Ordering::Release);
            let (cell, wires) = queue.start(&guest, event_idx | asked, 0);
            assert_eq!((cell.serve(&mut burst, |_| ()).frames, wires.called()), (64, false));
            assert_eq!((cell.serve(&mut burst, |_| ()).frames, wires.called()), (6, asked != 0));
            assert_eq!((cell.serve(&mut burst, |_| ()).frames, wires.called()), (0, false));

            let queue = full_ring(&guest, 0x1000, 128, 0, true, 100);
            queue.avail_flags(&guest).store(1, Ordering::Relaxed);
            queue.used_event(&guest).store(1000, Ordering::Relaxed);
            queue.avail_idx(&guest).store(3, Ordering::Release);
            let (cell, wires) = queue.start(&guest, event_idx | asked, 0);
            for (frames, called) in [(2, false), (1, asked != 0)] {
                let delivered = burst.with_slices(
                    |filler| {
                        (0..frames).for_each(|_| assert!(filler.push(NetHeader::default(), &[1; 60], &[])))
                    },
                    |burst| cell.deliver(burst, burst.all()),
                );
                assert_eq!((delivered.sent.count_ones(), wires.called()), (frames, called));
            }
        }
    }
}

#[test]
fn kicks_are_asked_for_only_before_sleep() {
    let guest = Guest::new(&[MEMORY]);
    let queue = full_ring(&guest, 0x1000, 16, 0, false, 100);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let flags = || queue.used_flags(&guest).load(Ordering::Acquire);
    assert_eq!(flags(), 1, "a running ring is polled");
    assert_eq!((cell.arm(), flags()), (Armed::Kick, 0));
    queue.avail_idx(&guest).store(1, Ordering::Release);
    assert_eq!(cell.arm(), Armed::Work);
    cell.disarm();
    assert_eq!(flags(), 1);

    let queue = full_ring(&guest, 0x1000, 16, 70, false, 100);
    let (cell, _wires) = queue.start(&guest, VERSION_1 | EVENT_IDX, 0);
    let event = || queue.avail_event(&guest).load(Ordering::Acquire);
    assert_eq!((cell.arm(), event(), flags()), (Armed::Kick, 70, 0));
    queue.avail_idx(&guest).store(75, Ordering::Release);
    assert_eq!((cell.arm(), event()), (Armed::Work, 70));
    assert_eq!(cell.serve(&mut Burst::new(), |_| ()).frames, 5);
    assert_eq!((cell.arm(), event()), (Armed::Kick, 75));

    let (mut setup, _wires) = queue.setup(&guest, VERSION_1, 0);
    setup.kick = None;
    cell.start(Ring::new(setup).expect("a ring"));
    assert_eq!(cell.arm(), Armed::MustPoll);
    cell.set_enabled(false);
    assert_eq!(cell.arm(), Armed::Idle);
    cell.set_enabled(true);
    cell.stop();
    assert_eq!(cell.arm(), Armed::Idle);
}

fn no_kick_is_lost(features: u64) {
    let guest = Guest::new(&[MEMORY]);
    let start = 65000u16;
    let queue = full_ring(&guest, 0x1000, 16, start, false, 100);
    let (cell, wires) = queue.start(&guest, features, 0);
    let (mut index, mut seen) = (start, start);
    let add = |count: u64| {
        let old = index;
        index = index.wrapping_add(count as u16);
        queue.avail_idx(&guest).store(index, Ordering::Release);
        fence(Ordering::SeqCst);
        if features & EVENT_IDX != 0 {
            let event = queue.avail_event(&guest).load(Ordering::Relaxed);
            index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(old)
        } else {
            queue.used_flags(&guest).load(Ordering::Relaxed) & 1 == 0
        }
    };
    let back = || -> u64 {
        let before = std::mem::replace(&mut seen, queue.used_idx(&guest).load(Ordering::Acquire));
        seen.wrapping_sub(before).into()
    };
    sleep::no_kick_is_lost(&cell, &wires, add, back);
}

#[test]
fn no_kick_is_lost_with_flags() {
    no_kick_is_lost(VERSION_1);
}

#[test]
fn no_kick_is_lost_with_event_indexes() {
    no_kick_is_lost(VERSION_1 | EVENT_IDX);
}

// ---- stopping ---------------------------------------------------------------------------------------------------

/// After `stop` has returned, nothing is written, whatever the workers are doing.
#[test]
fn nothing_is_touched_after_a_stop() {
    const ROUNDS: usize = 600;
    const WORKERS: usize = 2;
    let guest = Guest::new(&[MEMORY]);
    let transmit = full_ring(&guest, 0x1000, 64, 65500, false, 1000);
    let receive = full_ring(&guest, 0x4000, 128, 65500, true, 1000);
    let features = VERSION_1 | MRG_RXBUF;
    let (from, _from_wires) = transmit.start(&guest, features, 0);
    let (to, _to_wires) = receive.start(&guest, features, 0);
    let done = AtomicBool::new(false);
    let turns: [AtomicU64; WORKERS] = Default::default();
    let sent = AtomicU64::new(0);
    let driver = Mutex::new(());

    // Each worker forwards from the one ring to the other and recycles the buffers as their driver.
    let worker = |turn: &AtomicU64| {
        let mut burst = Burst::new();
        let mut number = 0u64;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            from.serve(&mut burst, |burst| {
                // What is delivered is never the same twice.
                for i in 0..burst.len() {
                    burst.head_mut(i)[..8].copy_from_slice(&number.to_le_bytes());
                }
                let delivered = to.deliver(burst, burst.all());
                sent.fetch_add(u64::from(delivered.sent.count_ones()), Ordering::Relaxed);
            });
            from.arm();
            from.disarm();
            // One driver at a time: its index never goes back.
            let _driver = driver.lock().expect("no panic in there");
            for queue in [&transmit, &receive] {
                let used = queue.used_idx(&guest).load(Ordering::Acquire);
                queue.avail_idx(&guest).store(used.wrapping_add(queue.size / 2), Ordering::Release);
            }
            turn.fetch_add(1, Ordering::Relaxed);
        }
    };
    let watched = || {
        let mut bytes = guest.read(transmit.used, (transmit.end - transmit.used) as usize);
        bytes.extend(guest.read(receive.used, (receive.end - receive.used) as usize));
        bytes.extend(guest.read(BUFFERS, 256 * 1000));
        bytes
    };
    // Until every worker has begun and ended a turn.
    let wait_for_turns = || {
        let deadline = Instant::now() + PATIENCE;
        let before: Vec<_> = turns.iter().map(|turn| turn.load(Ordering::Relaxed)).collect();
        while turns.iter().zip(&before).any(|(turn, before)| turn.load(Ordering::Relaxed) < before + 2) {
            assert!(Instant::now() < deadline, "the workers hang");
            std::thread::yield_now();
        }
    };
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (mut rounds, mut changed) = (0, 0);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for turn in &turns {
            scope.spawn(|| worker(turn));
        }
        let mut last = watched();
        let mut random = Random::new(11);
        // On a busy machine fewer rounds must do.
        let enough = Instant::now() + PATIENCE / 5;
        while rounds < ROUNDS && (Instant::now() < enough || rounds < ROUNDS / 30) {
            let round = rounds;
            rounds += 1;
            for _ in 0..random.below(20_000) {
                std::hint::spin_loop();
            }
            // All the ways to stop a ring, in either order.
            let cells = if round % 2 == 0 { [&from, &to] } else { [&to, &from] };
            for cell in cells {
                if round % 3 == 0 {
                    cell.set_enabled(false);
                } else {
                    assert_eq!(cell.stop().expect("a ring").fault(), None);
                }
            }
            let at_stop = watched();
            assert!(!from.is_active() && !to.is_active());
            wait_for_turns();
            assert!(watched() == at_stop, "guest memory changed after the stop of round {round}");
            changed += usize::from(at_stop != last);
            last = at_stop;
            // Chains taken and not given back would be missing here.
            for (cell, queue) in [(&from, transmit), (&to, receive)] {
                if round % 3 == 0 {
                    assert_eq!(cell.fault(), None);
                    cell.set_enabled(true);
                } else {
                    queue.restart(&guest, features, 0, cell).expect("again");
                }
            }
            if round % 8 == 0 {
                wait_for_turns();
            }
        }
    });
    assert!(changed > rounds / 10, "the rings worked between only {changed} of {rounds} stops");
    assert!(sent.load(Ordering::Relaxed) > 0 && from.fault().is_none() && to.fault().is_none());
    guest.check_canaries();
}

/// A second worker finds a ring in use empty, and does not disturb the first.
#[test]
fn a_ring_in_use_counts_as_empty() {
    let guest = Guest::new(&[MEMORY]);
    let queue = full_ring(&guest, 0x1000, 16, 0, false, 100);
    queue.avail_idx(&guest).store(8, Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let served = cell.serve(&mut Burst::new(), |outer| {
        assert_eq!(outer.len(), 8);
        for _ in 0..3 {
            assert_eq!(cell.serve(&mut Burst::new(), |_| panic!("twice")), Served::default());
        }
        assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), 0, "given back while lent");
    });
    assert_eq!(served.frames, 8);
    assert_eq!(queue.used_idx(&guest).load(Ordering::Acquire), 8);
}

/// A worker's panic does not leave frames behind that point to memory that may go.
#[test]
fn a_panic_leaves_no_frame_and_no_lock_behind() {
    let guest = Guest::new(&[MEMORY]);
    let queue = full_ring(&guest, 0x1000, 16, 0, false, 1000);
    queue.avail_idx(&guest).store(8, Ordering::Release);
    let (cell, _wires) = queue.start(&guest, VERSION_1, 0);
    let mut burst = Burst::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        cell.serve(&mut burst, |burst| {
            assert_eq!(burst.len(), 8);
            std::panic::resume_unwind(Box::new(()));
        })
    }));
    assert!(panicked.is_err() && burst.is_empty());
    assert!(cell.stop().is_some());

    let bytes = vec![1; 1000];
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        burst.with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &[], &bytes)),
            |_| std::panic::resume_unwind(Box::new(())),
        )
    }));
    assert!(panicked.is_err() && burst.is_empty());
}

/// Safe code that carries a lent burst away would read memory that is gone: the process ends instead.
#[test]
fn a_lent_burst_cannot_be_carried_away() {
    const CHILD: &str = "SHUNT_TEST_CARRY_AWAY";
    if std::env::var_os(CHILD).is_some() {
        let bytes = vec![1; 1000];
        let mut burst = Burst::new();
        let stolen = burst
            .with_slices(|filler| assert!(filler.push(NetHeader::default(), &[], &bytes)), std::mem::take);
        drop(bytes);
        println!("{}", stolen.len());
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "a_lent_burst_cannot_be_carried_away", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("a child");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
}
