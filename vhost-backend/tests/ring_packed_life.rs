//! A packed ring's life beside a running guest: beginning where the frontend says, going round, and sleeping without
//! missing a kick.

#[path = "common/guest.rs"]
mod guest;
#[path = "common/packed.rs"]
mod packed;
#[path = "common/sleep.rs"]
mod sleep;

use std::cell::RefCell;

use guest::*;
use packed::*;
use vhost_backend::frame::{BURST, Burst};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::cell::Armed;
use vhost_backend::ring::{Delivered, Ring, RingCell, RingFault, Served};

const MEMORY: (u64, u64) = (0, 0x20_0000);
const TABLES: std::ops::Range<u64> = 0x9_0000..0xa_0000;
const BUFFERS: u64 = 0x10_0000;

/// A ring in which nothing is offered, and its driver.
fn empty(guest: &Guest, size: u16, at: At) -> Driver {
    let queue = PackedQueue::at(0x1000, size);
    queue.reset(guest, at);
    Driver::new(queue, at, TABLES)
}

/// Offers and shows `count` buffers of one piece.
fn offer(guest: &Guest, driver: &mut Driver, count: u16, write: bool) -> Vec<u16> {
    let ids = (0..u64::from(count))
        .map(|i| driver.offer(guest, &[(BUFFERS + i % 256 * 100, 100)], write, false).expect("room"))
        .collect();
    driver.show(guest, count.into(), true);
    ids
}

fn ids(back: &[Back]) -> Vec<u16> {
    back.iter().map(|back| back.id).collect()
}

fn serve(cell: &RingCell) -> usize {
    cell.serve(&mut Burst::new(), |_| ()).frames
}

// ---- starting ---------------------------------------------------------------------------------------------------

#[test]
fn a_ring_begins_at_its_base_and_says_where_it_stopped() {
    let guest = Guest::new(&[MEMORY]);
    for at in
        [At::START, At { index: 15, wrap: true }, At { index: 15, wrap: false }, At { index: 3, wrap: false }]
    {
        // QEMU says both positions; DPDK's driver, which always begins anew, only the lower half.
        for base in [at.base(), u32::from(at.word())] {
            let mut driver = empty(&guest, 16, at);
            let offered = offer(&guest, &mut driver, 10, false);
            let (cell, _wires) = driver.queue.start(&guest, VERSION_1, base);
            assert_eq!(serve(&cell), 10, "base {base:#x}");
            assert_eq!(ids(&driver.reap(&guest, false)), offered);
            let stopped = cell.stop().expect("a ring").base();
            assert_eq!(stopped, driver.next.base());
            let _wires = driver.queue.restart(&guest, VERSION_1, stopped, &cell).expect("again");
            offer(&guest, &mut driver, 9, false);
            assert_eq!((serve(&cell), driver.reap(&guest, false).len()), (9, 9));
        }
    }
    // A ring that was never given a base is a new one.
    let mut driver = empty(&guest, 16, At::START);
    let (mut setup, _wires) = driver.queue.setup(&guest, VERSION_1, 0);
    setup.base = None;
    let cell = RingCell::new();
    cell.set_enabled(true);
    cell.start(Ring::new(setup).expect("a ring"));
    offer(&guest, &mut driver, 3, false);
    assert_eq!(serve(&cell), 3);
}

/// A device before us stopped with buffers that it had taken and not given back.
#[test]
fn what_was_taken_and_not_given_back_is_taken_again() {
    let guest = Guest::new(&[MEMORY]);
    for (size, used) in
        [(16, At::START), (16, At { index: 12, wrap: true }), (7, At { index: 5, wrap: false })]
    {
        for taken in [1, 5, 7] {
            let mut driver = empty(&guest, size, used);
            let offered = offer(&guest, &mut driver, 7, false);
            let avail = used.after(taken, size);
            let base = u32::from(avail.word()) | u32::from(used.word()) << 16;
            let (cell, _wires) = driver.queue.start(&guest, VERSION_1, base);
            assert_eq!(serve(&cell), 7, "{taken} of 7 taken from {used:?}");
            assert_eq!(ids(&driver.reap(&guest, false)), offered);
        }
        // Positions between which there is nothing, or that are the wrong way round, are not believed.
        for wrong in [0, used.after(3, size).word(), 0x7fff, 0xffff] {
            let mut driver = empty(&guest, size, used);
            let base = u32::from(used.word()) | u32::from(wrong) << 16;
            let (cell, _wires) = driver.queue.start(&guest, VERSION_1, base);
            offer(&guest, &mut driver, 4, false);
            assert_eq!((serve(&cell), driver.reap(&guest, false).len()), (4, 4), "{used:?}, {wrong:#x}");
        }
    }
}

#[test]
fn sizes_bases_and_addresses_that_cannot_be_are_refused() {
    let guest = Guest::new(&[MEMORY, (0x1000_0000, 0x1800)]);
    let fault = |change: &dyn Fn(&mut vhost_backend::ring::RingSetup)| {
        let (mut setup, _wires) = PackedQueue::at(0x1000, 256).setup(&guest, VERSION_1, At::START.base());
        change(&mut setup);
        Ring::new(setup).err()
    };
    assert_eq!(fault(&|_| ()), None);
    for size in [1, 3, 255, 257, 32768] {
        assert_eq!(fault(&|setup| setup.size = size), None, "{size}");
    }
    for size in [0, 32769, 65535] {
        assert_eq!(fault(&|setup| setup.size = size), Some(RingFault::BadSize), "{size}");
    }
    for base in [256, 0x8100, 0x7fff, 0xffff] {
        assert_eq!(fault(&|setup| setup.base = Some(base)), Some(RingFault::BadBase), "{base:#x}");
    }
    assert_eq!(fault(&|setup| setup.desc += 8), Some(RingFault::RingMisaligned));
    assert_eq!(fault(&|setup| setup.avail += 2), Some(RingFault::RingMisaligned));
    assert_eq!(fault(&|setup| setup.used += 2), Some(RingFault::RingMisaligned));
    let end = guest.user(0x1000_0000) + 0x1800;
    assert_eq!(fault(&|setup| setup.desc = end - 4096), None);
    assert_eq!(fault(&|setup| setup.desc = end - 4080), Some(RingFault::RingNotMapped));
    assert_eq!(fault(&|setup| setup.avail = end - 4), None);
    assert_eq!(fault(&|setup| setup.avail = end), Some(RingFault::RingNotMapped));
    assert_eq!(fault(&|setup| setup.used = end - 4), None);
    assert_eq!(fault(&|setup| setup.used = end), Some(RingFault::RingNotMapped));
}

// ---- going round ------------------------------------------------------------------------------------------------

#[test]
fn rings_of_all_sizes_can_be_full_but_not_fuller() {
    let guest = Guest::new(&[MEMORY]);
    for size in [1, 2, 3, 63, 64, 65, 1000, 32768u16] {
        let at = At { index: size / 2, wrap: false };
        let mut driver = empty(&guest, size, at);
        let (cell, _wires) = driver.queue.start(&guest, VERSION_1, at.base());
        for lap in 0..3 {
            let offered = offer(&guest, &mut driver, size, false);
            let mut frames = 0;
            while let n @ 1.. = serve(&cell) {
                assert!(n == BURST || frames + n == usize::from(size), "{n} of {size}");
                frames += n;
            }
            assert_eq!((frames, cell.fault()), (usize::from(size), None), "lap {lap} of {size}");
            assert_eq!(ids(&driver.reap(&guest, false)), offered);
        }
        let offered = offer(&guest, &mut driver, size, true);
        let delivered = Burst::new().with_slices(
            |filler| while filler.push(NetHeader::default(), &[1; 60], &[]) {},
            |burst| cell.deliver(burst, burst.all()),
        );
        let fits = usize::from(size).min(BURST);
        assert_eq!(delivered.sent.count_ones() as usize, fits);
        assert_eq!(delivered.no_buffers, !delivered.sent);
        let back = driver.reap(&guest, false);
        assert_eq!(ids(&back), offered[..fits]);
        assert!(back.iter().all(|back| back.len == Some(72) && back.written));
    }
}

/// In order, one descriptor stands for a burst of sent frames; received ones each have a length.
#[test]
fn a_burst_comes_back_by_one_descriptor_when_in_order() {
    let guest = Guest::new(&[MEMORY]);
    let mut driver = empty(&guest, 256, At { index: 250, wrap: true });
    let (cell, wires) =
        driver.queue.start(&guest, VERSION_1 | IN_ORDER, At { index: 250, wrap: true }.base());
    let offered = offer(&guest, &mut driver, 20, false);
    assert_eq!(serve(&cell), 20);
    assert!(wires.called());
    let back = driver.reap(&guest, true);
    assert_eq!(ids(&back), offered);
    assert!(back[..19].iter().all(|back| back.len.is_none()) && back[19].len == Some(0));

    let offered = offer(&guest, &mut driver, 20, true);
    let delivered = Burst::new().with_slices(
        |filler| (0..20).for_each(|i| assert!(filler.push(NetHeader::default(), &vec![1; 20 + i], &[]))),
        |burst| cell.deliver(burst, burst.all()),
    );
    assert_eq!(delivered, Delivered { sent: (1 << 20) - 1, ..Delivered::default() });
    let back = driver.reap(&guest, true);
    assert_eq!(ids(&back), offered);
    for (i, back) in (0..).zip(&back) {
        assert_eq!(back.len, Some(32 + i));
    }
}

// ---- being told -------------------------------------------------------------------------------------------------

#[test]
fn kicks_are_asked_for_only_before_sleep() {
    let guest = Guest::new(&[MEMORY]);
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let at = At { index: 10, wrap: false };
        let mut driver = empty(&guest, 16, at);
        let queue = driver.queue;
        let (cell, _wires) = queue.start(&guest, features, at.base());
        let event =
            |at: At| if features & EVENT_IDX != 0 { (at.word(), EVENT_DESC) } else { (0, EVENT_ENABLE) };
        assert_eq!(queue.wished(&guest), (0, EVENT_DISABLE), "a running ring is polled");
        assert_eq!((cell.arm(), queue.wished(&guest)), (Armed::Kick, event(at)));
        offer(&guest, &mut driver, 8, false);
        assert_eq!((cell.arm(), queue.wished(&guest)), (Armed::Work, event(at)));
        cell.disarm();
        assert_eq!(queue.wished(&guest), (0, EVENT_DISABLE));
        assert_eq!(serve(&cell), 8);
        let at = At { index: 2, wrap: true };
        assert_eq!((cell.arm(), queue.wished(&guest)), (Armed::Kick, event(at)));

        let (mut setup, _wires) = queue.setup(&guest, features, at.base());
        setup.kick = None;
        cell.start(Ring::new(setup).expect("a ring"));
        assert_eq!(cell.arm(), Armed::MustPoll);
        cell.set_enabled(false);
        assert_eq!(cell.arm(), Armed::Idle);
    }
}

#[test]
fn a_guest_is_interrupted_as_it_wishes() {
    let guest = Guest::new(&[MEMORY]);
    let start = At { index: 14, wrap: true };
    let near = |index, wrap| At { index, wrap }.word();
    // Three buffers at 14, 15 and, in the next lap, 0.
    for (event_idx, at, flags, called) in [
        (false, 0, EVENT_ENABLE, true),
        (false, near(14, true), EVENT_DISABLE, false),
        // Without EVENT_IDX there are no positions, and three means nothing: better once too often.
        (false, near(3, true), EVENT_DESC, true),
        (true, 0, EVENT_ENABLE, true),
        (true, near(14, true), EVENT_DISABLE, false),
        (true, near(13, true), EVENT_DESC, false),
        (true, near(14, true), EVENT_DESC, true),
        (true, near(15, true), EVENT_DESC, true),
        (true, near(0, false), EVENT_DESC, true),
        (true, near(1, false), EVENT_DESC, false),
        (true, near(0, true), EVENT_DESC, false),
        (true, near(14, false), EVENT_DESC, false),
        (true, 0x7fff, EVENT_DESC, false),
        (true, 0, 3, true),
        // Reserved bits mean nothing.
        (true, 0, 0xfffc, true),
        (true, 0, 0xfffd, false),
    ] {
        let mut driver = empty(&guest, 16, start);
        let features = if event_idx { VERSION_1 | EVENT_IDX } else { VERSION_1 };
        let (cell, wires) = driver.queue.start(&guest, features, start.base());
        driver.queue.wish(&guest, at, flags);
        offer(&guest, &mut driver, 3, false);
        assert_eq!(serve(&cell), 3);
        assert_eq!(wires.called(), called, "event index {event_idx}, {at:#x}, {flags}");
        assert_eq!(cell.serve(&mut Burst::new(), |_| ()), Served::default());
        assert!(!wires.called());
    }
}

fn no_kick_is_lost(features: u64) {
    let guest = Guest::new(&[MEMORY]);
    let driver = empty(&guest, 16, At::START);
    let (cell, wires) = driver.queue.start(&guest, features, At::START.base());
    let driver = RefCell::new(driver);
    let add = |count: u64| {
        let mut driver = driver.borrow_mut();
        for i in 0..count {
            driver.offer(&guest, &[(BUFFERS + i * 100, 100)], false, false).expect("room");
        }
        driver.show(&guest, count as usize, features & EVENT_IDX != 0)
    };
    let back = || driver.borrow_mut().reap(&guest, features & IN_ORDER != 0).len() as u64;
    sleep::no_kick_is_lost(&cell, &wires, add, back);
}

#[test]
fn no_kick_is_lost_with_flags() {
    no_kick_is_lost(VERSION_1);
}

#[test]
fn no_kick_is_lost_with_event_positions() {
    no_kick_is_lost(VERSION_1 | EVENT_IDX | IN_ORDER);
}
