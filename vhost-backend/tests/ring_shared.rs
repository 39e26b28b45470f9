//! A receive ring that several workers send to.

#[path = "common/guest.rs"]
mod guest;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use guest::*;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, RingCell};

const SIZE: u16 = 256;
const BUFFERS: u64 = 0x2_0000;
const BUFFER: u32 = 2048;

/// A ring all of whose buffers are the device's.
fn receive_ring(guest: &Guest) -> (Queue, RingCell, Wires) {
    let queue = Queue::at(0x1000, SIZE);
    queue.reset(guest, 0);
    for i in 0..SIZE {
        queue.set_desc(guest, i, BUFFERS + u64::from(BUFFER) * u64::from(i), BUFFER, F_WRITE, 0);
        queue.set_avail(guest, i, i);
    }
    queue.avail_idx(guest).store(SIZE, Ordering::Release);
    let (cell, wires) = queue.start(guest, VERSION_1, 0);
    (queue, cell, wires)
}

fn deliver(cell: &RingCell, burst: &mut Burst, count: usize, frame: &[u8]) -> Delivered {
    let (head, rest) = frame.split_at(frame.len().min(128));
    burst.with_slices(
        |filler| (0..count).for_each(|_| assert!(filler.push(NetHeader::default(), head, rest))),
        |burst| cell.deliver(burst, burst.all()),
    )
}

#[test]
fn a_sender_does_not_wait_for_one_that_lost_its_processor() {
    let guest = Guest::new(&[(0, 0x20_0000)]);
    let (_queue, cell, _wires) = receive_ring(&guest);
    let mut burst = Burst::new();
    let (holds, held) = channel();
    let (lets_go, go) = channel::<()>();
    std::thread::scope(|scope| {
        let cell = &cell;
        scope.spawn(move || {
            cell.control(|_| {
                holds.send(()).unwrap();
                // Until the other has given up: without a bound this test would not end.
                go.recv().unwrap();
            })
        });
        held.recv().unwrap();
        for _ in 0..100 {
            let delivered = deliver(cell, &mut burst, 3, &[0; 60]);
            assert_eq!(delivered, Delivered { busy: 0b111, ..Delivered::default() });
        }
        lets_go.send(()).unwrap();
    });
    assert_eq!(deliver(&cell, &mut burst, 3, &[0; 60]).sent, 0b111);
}

/// Mpps that one or two threads deliver, to rings of their own or to the same one, and bursts that they gave up.
fn rate(threads: usize, shared: bool, len: usize) -> (f64, u64) {
    const BURST: usize = 32;
    let guests: Vec<_> = (0..threads).map(|_| Guest::new(&[(0, 0x20_0000)])).collect();
    // Side by side, as the cells of a port's rings are.
    let (rings, cells): (Vec<_>, Vec<_>) = guests
        .iter()
        .map(|guest| {
            let (queue, cell, wires) = receive_ring(guest);
            ((queue, wires), cell)
        })
        .unzip();
    let (barrier, stop) = (Barrier::new(threads + 1), AtomicBool::new(false));
    let frame = vec![0x55; len];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|n| {
                let n = if shared { 0 } else { n };
                let (guest, (queue, _), cell) = (&guests[n], &rings[n], &cells[n]);
                let (barrier, stop, frame) = (&barrier, &stop, &frame);
                scope.spawn(move || {
                    let mut burst = Burst::new();
                    let (mut frames, mut busy) = (0u64, 0u64);
                    barrier.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let delivered = deliver(cell, &mut burst, BURST, frame);
                        assert_eq!(delivered.stopped, 0);
                        busy += u64::from(delivered.busy != 0);
                        let sent = delivered.sent.count_ones();
                        frames += u64::from(sent);
                        queue.avail_idx(guest).fetch_add(sent as u16, Ordering::AcqRel);
                    }
                    (frames, busy)
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let time = start.elapsed().as_secs_f64();
        let (frames, busy) = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (frames as f64 / time / 1e6, busy)
    })
}

#[test]
#[ignore = "a measurement: `make costs`"]
fn cost_of_a_shared_ring() {
    println!("{:>6} {:>12} {:>12} {:>12}   Mpps, medians of 9", "bytes", "1 worker", "2, own", "2, shared");
    for len in [60, 1514] {
        let mut busy = 0;
        let [one, own, shared] = [(1, false), (2, false), (2, true)].map(|(threads, shared)| {
            let mut rates: Vec<f64> = (0..9)
                .map(|_| {
                    let (rate, gave_up) = rate(threads, shared, len);
                    busy += gave_up;
                    rate
                })
                .collect();
            rates.sort_by(f64::total_cmp);
            rates[4]
        });
        println!("{len:>6} {one:>12.1} {own:>12.1} {shared:>12.1}   bursts given up: {busy}");
    }
}
