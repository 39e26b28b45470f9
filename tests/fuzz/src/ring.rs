//! Rings of either layout with any content, size and features, which change while bursts come and go.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::sync::Arc;

use vhost_backend::frame::{Burst, MAX_FRAME};
use vhost_backend::net_header::NetHeader;
use vhost_backend::ring::{Delivered, Ring, RingCell, RingSetup};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::input::Input;
use crate::memory::{GPA, Memory, REGION, USER};

struct Bench {
    memory: Memory,
    burst: Burst,
    scratch: Vec<u8>,
    events: [EventFd; 3],
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench {
        memory: Memory::new(),
        burst: Burst::new(),
        scratch: vec![0; MAX_FRAME],
        events: [(); 3].map(|()| EventFd::new(EFD_NONBLOCK).expect("eventfd")),
    });
}

/// An address that a descriptor may have: mostly within memory, often near an end of it.
fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() % 8 {
        0 => input.quad(),
        1 => GPA + 2 * REGION - u64::from(input.byte()),
        2 => GPA + REGION - u64::from(input.byte()),
        3 => GPA - u64::from(input.byte()),
        _ => GPA + u64::from(input.word()) % (2 * REGION),
    }
}

/// Writes a descriptor somewhere. `packed`: one that the driver of a packed ring has made available, with these flags.
fn descriptor(input: &mut Input<'_>, memory: &Memory, at: u64, packed: Option<u16>) {
    let addr = address(input);
    let len = match input.byte() % 4 {
        0 => input.long(),
        1 => u32::from(input.byte()),
        _ => u32::from(input.word()) % 2048,
    };
    let (flags, next) = (input.word() & 7, u16::from(input.byte()));
    // A split ring has flags and then the next one, a packed one an identifier and then flags.
    let (first, second) = packed.map_or((flags, next), |available| (next, flags | available));
    let tail = u64::from(len) | u64::from(first) << 32 | u64::from(second) << 48;
    memory.write(at, &[addr.to_le_bytes(), tail.to_le_bytes()].concat());
}

/// One life of a split ring.
pub fn run_split(data: &[u8]) {
    BENCH.with_borrow_mut(|bench| life(&mut Input::new(data), bench, false));
}

/// One life of a packed ring.
pub fn run_packed(data: &[u8]) {
    BENCH.with_borrow_mut(|bench| life(&mut Input::new(data), bench, true));
}

/// Flags of a packed ring's descriptor that is available in a lap with this wrap counter (virtio 1.3, section 2.8.1).
fn available(wrap: bool) -> u16 {
    if wrap { 1 << 7 } else { 1 << 15 }
}

fn life(input: &mut Input<'_>, bench: &mut Bench, packed: bool) {
    let Bench { memory, burst, scratch, events: [kick, call, err] } = bench;
    memory.clear();
    let size = match input.byte() % 16 {
        15 => input.word(),
        14 if packed => u16::from(input.byte()),
        order => 1 << (order % 9),
    };
    // Near the seam of the regions, so that any part may cross it.
    let shift = 16 * u64::from(input.byte());
    let desc = REGION - shift.min(REGION);
    let avail = desc + 16 * u64::from(size);
    let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
    let bits = u64::from(input.byte());
    let bit = |n: u64, to: u64| (bits >> n & 1) << to;
    // VERSION_1, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, CSUM, HOST_TSO4, and RING_PACKED.
    let features =
        u64::from(packed) << 34 | bit(0, 32) | bit(1, 15) | bit(2, 28) | bit(3, 29) | bit(4, 0) | bit(5, 11);
    let mut index = if packed { 0 } else { input.word() };
    let mut wrap = true;
    let base = if packed { 0x8000_8000 } else { u32::from(index) };
    if !packed {
        for at in [avail + 2, used + 2] {
            memory.write(at, &index.to_le_bytes());
        }
    }
    let odd = if bits >> 6 == 3 { u64::from(input.byte()) } else { 0 };
    let map = Arc::new(memory.map());
    let setup = RingSetup {
        size,
        desc: USER + desc + odd,
        avail: USER + avail,
        used: USER + used,
        base: (input.byte() < 250).then_some(base),
        features,
        map: map.clone(),
        kick: kick.try_clone().ok().map(Arc::new),
        call: call.try_clone().ok(),
        err: err.try_clone().ok(),
    };
    let Ok(ring) = Ring::new(setup) else { return };
    let cell = RingCell::new();
    cell.set_enabled(true);
    cell.start(ring);
    while !input.is_empty() {
        match input.byte() % 10 {
            0..=2 if packed => {
                descriptor(input, memory, desc + 16 * u64::from(index), Some(available(wrap)));
                index += 1;
                if index == size {
                    (index, wrap) = (0, !wrap);
                }
            }
            0..=2 => {
                // A descriptor, and mostly its head on offer.
                let slot = u16::from(input.byte()) % size;
                descriptor(input, memory, desc + 16 * u64::from(slot), None);
                let entry = avail + 4 + 2 * u64::from(index % size);
                memory.write(entry, &slot.to_le_bytes());
                index = index.wrapping_add(1);
                memory.write(avail + 2, &index.to_le_bytes());
            }
            3 => {
                let at = u64::from(input.word()) % (2 * REGION);
                let packed = packed.then(|| available(wrap));
                descriptor(input, memory, at, packed);
            }
            4 => {
                let at = u64::from(input.word());
                let bytes = input.byte() % 16;
                memory.write(at, input.bytes(bytes.into()));
            }
            5 if !packed => {
                index = index.wrapping_add(input.byte().into());
                memory.write(avail + 2, &index.to_le_bytes());
            }
            6 => {
                let served = cell.serve(burst, |burst| {
                    assert!(burst.len() <= 64);
                    for i in 0..burst.len() {
                        assert!((1..=MAX_FRAME).contains(&burst.frame_len(i)));
                        assert_eq!(burst.linearise(i, scratch), Some(burst.frame_len(i)));
                    }
                });
                assert!(burst.is_empty() && served.frames <= 64);
            }
            7 => {
                let (frames, len) = (input.byte() % 65, usize::from(input.word()) % 9000 + 1);
                let bytes = &scratch[..len];
                burst.with_slices(
                    |filler| {
                        for _ in 0..frames {
                            let (head, rest) = bytes.split_at(len.min(60));
                            assert!(filler.push(NetHeader::default(), head, rest));
                        }
                    },
                    |burst| {
                        let mask = burst.all();
                        let Delivered { sent, no_buffers, too_small, stopped, busy } =
                            cell.deliver(burst, mask);
                        assert_eq!(busy, 0);
                        assert_eq!(sent | no_buffers | too_small | stopped, mask, "every frame has a fate");
                        assert_eq!((sent ^ no_buffers ^ too_small ^ stopped), mask, "and only one");
                    },
                );
            }
            8 => {
                cell.arm();
                cell.disarm();
            }
            _ => {
                // Memory comes anew, as when a region is added: the ring stays where it is.
                let moved = cell.control(|ring| ring.set_map(Arc::new(memory.map())));
                assert!(moved.is_none_or(|moved| moved.is_ok()));
            }
        }
        assert_eq!(cell.fault().is_some(), !cell.is_active(), "a ring without a fault runs");
    }
    drop(cell.stop());
    memory.check();
    for event in [kick, call, err] {
        let _ = event.read();
    }
}
