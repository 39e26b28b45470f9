//! A worker that sleeps on the kick, and a guest that kicks only if asked to: every buffer is found.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vhost_backend::frame::Burst;
use vhost_backend::ring::RingCell;
use vhost_backend::ring::cell::Armed;

use crate::guest::{Random, Wires};

const PATIENCE: Duration = Duration::from_secs(20);
/// Most buffers that are added at once.
const MOST: u64 = 15;

/// `add` publishes so many buffers, and says whether the device wants to be kicked then, which it looks for behind a full
/// barrier; `back` says how many have been given back since it was asked.
pub(crate) fn no_kick_is_lost(
    cell: &RingCell,
    wires: &Wires,
    mut add: impl FnMut(u64) -> bool,
    mut back: impl FnMut() -> u64,
) {
    const ROUNDS: u64 = 100_000;
    let (done, seen, slept) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // On a busy machine fewer rounds must do.
    let enough = Instant::now() + PATIENCE / 4;

    let worker = || {
        let mut burst = Burst::new();
        while !done.load(Ordering::Acquire) {
            let frames = cell.serve(&mut burst, |_| ()).frames as u64;
            seen.fetch_add(frames, Ordering::Release);
            if frames > 0 {
                continue;
            }
            match cell.arm() {
                Armed::Work => {}
                Armed::Kick => {
                    slept.fetch_add(1, Ordering::Relaxed);
                    let mut fd =
                        libc::pollfd { fd: wires.kick.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                    // SAFETY: one pollfd of our own.
                    let ready = unsafe { libc::poll(&mut fd, 1, 2 * PATIENCE.as_millis() as i32) };
                    assert!(ready == 1 || done.load(Ordering::Acquire), "nobody kicked");
                    let _ = wires.kick.read();
                }
                other => panic!("{other:?}"),
            }
            cell.disarm();
        }
    };
    let mut driver = || {
        let mut random = Random::new(5);
        let mut added = 0;
        while added < ROUNDS && (Instant::now() < enough || added < ROUNDS / 100) {
            let deadline = Instant::now() + PATIENCE;
            // Usually one at a time, so that the worker is about to sleep when the next one comes.
            let count = if random.below(8) == 0 { 1 + random.below(MOST) } else { 1 };
            // At all moments of the worker's way to bed; a pause instruction would be too coarse.
            for i in 0..random.below(300) {
                std::hint::black_box(i);
            }
            added += count;
            let wanted = add(count);
            if wanted {
                wires.kick.write(1).expect("kick");
            }
            let mut given = 0;
            let mut spins = 0u32;
            while given < count {
                given += back();
                spins += 1;
                if spins.is_multiple_of(64) {
                    std::thread::yield_now();
                    assert!(Instant::now() < deadline, "buffer {added} is not used; kicked: {wanted}");
                }
                std::hint::spin_loop();
            }
        }
        added
    };
    // Also when the driver panics, so that the worker ends.
    struct Done<'a>(&'a AtomicBool, &'a Wires);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
            let _ = self.1.kick.write(1);
        }
    }
    let added = std::thread::scope(|scope| {
        let worker = scope.spawn(worker);
        let added = {
            let _done = Done(&done, wires);
            driver()
        };
        worker.join().expect("the worker found a kick missing");
        added
    });
    assert_eq!(seen.load(Ordering::Acquire), added);
    assert!(slept.load(Ordering::Relaxed) > 100, "the worker hardly slept: the race was not tried");
}
