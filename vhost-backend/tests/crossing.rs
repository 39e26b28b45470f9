//! Rings, indirect tables and buffers that begin in one memory region and end in the next.

#[path = "common/guest.rs"]
mod guest;

use std::sync::atomic::Ordering;

use guest::{F_INDIRECT, F_NEXT, F_WRITE, Guest, INDIRECT, MRG_RXBUF, Queue, VERSION_1, write_desc};
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

const HEADER: usize = 12;
const FEATURES: u64 = VERSION_1 | MRG_RXBUF | INDIRECT;
/// Three regions side by side; the last one is where buffers are that should not cross.
const LOW: (u64, u64) = (0x10_0000, 0x3000);
const HIGH: (u64, u64) = (0x10_3000, 0x3000);
const SEAM: u64 = HIGH.0;
const FAR: (u64, u64) = (0x80_0000, 0x20000);

fn guest() -> Guest {
    Guest::in_one_piece(&[FAR, HIGH, LOW])
}

/// Lets the ring's guest send and receive frames that lie in `FAR`, several times around the ring.
fn works(guest: &Guest, queue: &Queue) {
    queue.reset(guest, 0xfff0);
    let (cell, wires) = queue.start(guest, FEATURES, 0xfff0);
    let mut burst = Burst::new();
    let mut scratch = [0; 2048];
    for turn in 0..40u16 {
        let index = 0xfff0u16.wrapping_add(turn);
        let slot = index & (queue.size - 1);
        let frame: Vec<u8> = (0..200u16).map(|i| (i + turn) as u8).collect();
        let at = FAR.0 + 512 * u64::from(slot);
        guest.write(at, &[&[0; HEADER], frame.as_slice()].concat());
        queue.set_desc(guest, slot, at, (HEADER + frame.len()) as u32, 0, 0);
        queue.set_avail(guest, index, slot);
        queue.avail_idx(guest).store(index.wrapping_add(1), Ordering::Release);
        let mut seen = Vec::new();
        let served = cell.serve(&mut burst, |burst| {
            let len = burst.linearise(0, &mut scratch).expect("it fits");
            seen.extend_from_slice(&scratch[..len]);
        });
        assert_eq!((served.frames, seen), (1, frame), "{:?}", cell.fault());
        assert_eq!(queue.used_idx(guest).load(Ordering::Acquire), index.wrapping_add(1));
        assert_eq!(queue.used_elem(guest, index).0, u32::from(slot));
        assert!(wires.called());
    }
    cell.stop();

    queue.reset(guest, 0);
    let (cell, _wires) = queue.start(guest, FEATURES, 0);
    for turn in 0..40u16 {
        let slot = turn & (queue.size - 1);
        let at = FAR.0 + 512 * u64::from(slot);
        queue.set_desc(guest, slot, at, 512, F_WRITE, 0);
        queue.set_avail(guest, turn, slot);
        queue.avail_idx(guest).store(turn + 1, Ordering::Release);
        let bytes = [turn as u8; 100];
        let delivered = burst.with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &bytes, &[])),
            |burst| cell.deliver(burst, 1),
        );
        assert_eq!(delivered.sent, 1, "{:?}", cell.fault());
        assert_eq!(queue.used_elem(guest, turn), (u32::from(slot), (HEADER + bytes.len()) as u32));
        assert_eq!(guest.read(at + HEADER as u64, bytes.len()), bytes);
    }
    guest.check_canaries();
}

#[test]
fn rings_with_the_seam_anywhere_in_them() {
    let guest = guest();
    let whole = Queue::at(0, 16);
    for before in (0..=whole.end).step_by(16) {
        works(&guest, &Queue::at(SEAM - before, 16));
    }
    // More than one seam: pages of their own.
    let guest = Guest::in_one_piece(&[FAR, (0x10_1000, 0x1000), (0x10_2000, 0x1000), (0x10_3000, 0x1000)]);
    works(&guest, &Queue::at(0x10_2000 - 64, 256));
}

#[test]
fn a_running_ring_keeps_its_place_when_other_memory_comes_and_goes() {
    let guest = guest();
    let queue = Queue::at(SEAM - 64, 16);
    queue.reset(&guest, 0);
    let (cell, _wires) = queue.start(&guest, FEATURES, 0);
    let file = guest::memfd(0x1000);
    let more = guest.map.with_region(0x100_0000, 0x1000, 0x1000, 0, &file).expect("another region");
    let less = more.without_region(0x100_0000, 0x1000, 0x1000).expect("gone again");
    for map in [more, less] {
        let map = std::sync::Arc::new(map);
        assert_eq!(cell.control(|ring| ring.set_map(map)), Some(Ok(())));
    }
    // Without half of its own it cannot be.
    let user = guest.user(HIGH.0);
    let half = guest.map.without_region(HIGH.0, HIGH.1, user).expect("half of it is taken away");
    let half = std::sync::Arc::new(half);
    assert!(cell.control(|ring| ring.set_map(half)).is_some_and(|moved| moved.is_err()));
}

#[test]
fn indirect_tables_and_buffers_across_the_seam() {
    let guest = guest();
    let queue = Queue::at(FAR.0, 16);
    let mut burst = Burst::new();
    let mut scratch = [0; 2048];
    // The seam at each byte of a table of three descriptors, which lies at any address.
    for before in 1..48u64 {
        queue.reset(&guest, 0);
        let (cell, _wires) = queue.start(&guest, FEATURES, 0);
        let table = SEAM - before;
        let pieces: [(u64, u32); 3] = [(SEAM - 0x800, 12), (SEAM - 0x1000 - 7, 500), (SEAM - 0x400, 0x200)];
        for (i, &(addr, len)) in pieces.iter().enumerate() {
            let (flags, next) = if i < 2 { (F_NEXT, i as u16 + 1) } else { (0, 0) };
            write_desc(&guest, table + 16 * i as u64, addr, len, flags, next);
        }
        guest.write(pieces[0].0, &[0; HEADER]);
        let frame: Vec<u8> = (0..500u32 + 0x200).map(|i| (i * 7 + before as u32) as u8).collect();
        guest.write(pieces[1].0, &frame[..500]);
        guest.write(pieces[2].0, &frame[500..]);
        queue.set_desc(&guest, 0, table, 48, F_INDIRECT, 0);
        queue.set_avail(&guest, 0, 0);
        queue.avail_idx(&guest).store(1, Ordering::Release);
        let mut seen = Vec::new();
        cell.serve(&mut burst, |burst| {
            let len = burst.linearise(0, &mut scratch).expect("it fits");
            seen.extend_from_slice(&scratch[..len]);
        });
        assert_eq!(seen, frame, "{before} bytes of the table before the seam: {:?}", cell.fault());
    }
}
