//! The lies of a guest's driver with packed rings.

use std::time::{Duration, Instant};

use super::attacks::Outcome::{Broken, Drops, Either, GoesOn};
use super::attacks::{Attack, Busy, SOUND, WHILE};
use super::vm::{GPA, MEMORY, RING, RX, SPARE, TX, Vm, avail, desc, flag, used};

/// Offers descriptor 0 of a packed ring.
fn offer_packed(vm: &mut Vm, addr: u64, len: u32, flags: u16) {
    vm.packed(TX, 0, addr, len, flags | flag::AVAIL);
    vm.kick(TX);
}

/// Offers an indirect table at [`SPARE`] with this descriptor in it, said to have `len` bytes.
fn indirect_packed(vm: &mut Vm, len: u32, entry: (u64, u32, u16)) {
    vm.descriptor(SPARE, 0, entry.0, entry.1, 0, entry.2);
    offer_packed(vm, GPA + SPARE, len, flag::INDIRECT);
}

/// Makes every descriptor of a packed receive ring say this, and has the neighbours' frames put there.
fn receive_packed(vm: &mut Vm, addr: u64, len: u32, flags: u16) {
    for slot in 0..RING {
        vm.packed(RX, slot, addr, len, flags | flag::AVAIL);
    }
}

/// Lets the switch see what has been written for as long as it takes a worker to come round many times.
fn look(vm: &mut Vm) {
    for _ in 0..50 {
        vm.kick(TX);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lies of a guest's driver with packed rings, after an honest start.
#[rustfmt::skip]
pub const RINGS: &[Attack] = &[
    ("a chain around the ring", |vm| {
        for slot in (0..RING).rev() { vm.packed(TX, slot, SOUND, 1, flag::NEXT | flag::AVAIL); }
        vm.kick(TX);
    }, Broken("loops")),
    ("a chain of empty descriptors around the ring", |vm| {
        for slot in (0..RING).rev() { vm.packed(TX, slot, SOUND, 0, flag::NEXT | flag::AVAIL); }
        vm.kick(TX);
    }, Broken("loops")),
    ("a chain that goes on in what is not offered", |vm| { offer_packed(vm, SOUND, 64, flag::NEXT); look(vm); }, Either),
    ("a packed indirect table within one", |vm| indirect_packed(vm, 16, (GPA + SPARE, 16, flag::INDIRECT)), Broken("indirect")),
    ("a packed indirect table and a next", |vm| offer_packed(vm, GPA + SPARE, 16, flag::INDIRECT | flag::NEXT), Broken("indirect")),
    ("a packed indirect table of no bytes", |vm| indirect_packed(vm, 0, (SOUND, 64, 0)), Broken("indirect")),
    ("a packed indirect table of 17 bytes", |vm| indirect_packed(vm, 17, (SOUND, 64, 0)), Broken("indirect")),
    ("a packed indirect table of 1025 entries", |vm| indirect_packed(vm, 1025 * 16, (SOUND, 64, 0)), Broken("indirect")),
    ("a packed indirect table of 4 GiB", |vm| indirect_packed(vm, 0xffff_fff0, (SOUND, 64, 0)), Broken("indirect")),
    ("a packed indirect table outside of memory", |vm| offer_packed(vm, GPA - 16, 16, flag::INDIRECT), Broken("guest memory")),
    ("a packed indirect table over the end of memory", |vm| {
        vm.descriptor(MEMORY - 16, 0, SOUND, 64, 0, 0);
        offer_packed(vm, GPA + MEMORY - 16, 32, flag::INDIRECT);
    }, Broken("guest memory")),
    ("a packed indirect table of 1024 empty buffers", |vm| indirect_packed(vm, 1024 * 16, (SOUND, 0, 0)), Broken("")),
    ("a packed indirect table to write on the transmit ring", |vm| indirect_packed(vm, 16, (SOUND, 64, flag::WRITE)), Broken("wrong direction")),
    ("the ring as its own indirect table", |vm| offer_packed(vm, GPA + desc(TX), 4096, flag::INDIRECT), Broken("indirect")),
    ("a packed buffer outside of memory", |vm| offer_packed(vm, 0x1000, 64, 0), Broken("guest memory")),
    ("a packed buffer over the end of memory", |vm| offer_packed(vm, GPA + MEMORY - 32, 64, 0), Broken("guest memory")),
    ("a packed buffer at the end of all addresses", |vm| offer_packed(vm, u64::MAX - 8, 64, 0), Broken("guest memory")),
    ("a packed buffer of 4 GiB", |vm| offer_packed(vm, GPA, u32::MAX, 0), Drops("oversized")),
    ("a packed buffer of no bytes", |vm| offer_packed(vm, SOUND, 0, 0), Broken("too short")),
    ("a packed buffer shorter than a header", |vm| offer_packed(vm, SOUND, 11, 0), Broken("too short")),
    ("a packed header and no frame", |vm| offer_packed(vm, SOUND, 12, 0), Drops("runt")),
    ("a packed buffer to write on the transmit ring", |vm| offer_packed(vm, SOUND, 64, flag::WRITE), Broken("wrong direction")),
    ("undefined flags beside the marks", |vm| { offer_packed(vm, SOUND, 64, 0x7f78); look(vm); }, Either),
    ("the packed ring as a frame", |vm| { offer_packed(vm, GPA + desc(TX), 4096, 0); look(vm); }, Either),
    ("one number for all buffers", |vm| {
        for slot in (0..RING).rev() { vm.descriptor(desc(TX), slot, SOUND, 64, 7, flag::AVAIL); }
        look(vm);
    }, GoesOn),
    ("numbers beyond the ring", |vm| {
        for slot in (0..RING).rev() { vm.descriptor(desc(TX), slot, SOUND, 64, 0xffff - slot, flag::AVAIL); }
        look(vm);
    }, GoesOn),
    ("marks of the lap before", |vm| {
        for slot in 0..RING { vm.packed(TX, slot, SOUND, 64, flag::USED); }
        look(vm);
    }, GoesOn),
    ("marks of descriptors that were used", |vm| {
        for slot in 0..RING { vm.packed(TX, slot, SOUND, 64, flag::USED | flag::AVAIL); }
        look(vm);
    }, GoesOn),
    ("every mark at once, again and again", |vm| {
        for round in 0..200u16 {
            let mark = [flag::AVAIL, flag::USED][usize::from(round % 2)];
            for slot in 0..RING { vm.packed(TX, slot, SOUND, 64, mark); }
            vm.kick(TX);
        }
    }, GoesOn),
    ("wishes that mean nothing", |vm| {
        for wish in [[0xff; 4], [0xff, 0x7f, 2, 0], [0, 0, 3, 0], [1, 0, 2, 0x80]] {
            for ring in [RX, TX] { vm.write(avail(ring), &wish); }
            look(vm);
            offer_packed(vm, SOUND, 64, 0);
        }
    }, GoesOn),
    ("wishes rewritten while they are read", |vm| race_packed(vm, |n| avail((n % 2) as usize)), Either),
    ("the switch's own wishes rewritten", |vm| race_packed(vm, |n| used((n % 2) as usize)), Either),
    ("packed descriptors rewritten while they are read", |vm| race_packed(vm, |n| desc(TX) + n % 4096 / 8 * 8), Either),
    ("packed receive descriptors rewritten while they are read", |vm| race_packed(vm, |n| desc(RX) + n % 4096 / 8 * 8), Either),
    ("packed receive buffers that may only be read", |vm| receive_packed(vm, SOUND, 2048, 0), Broken("wrong direction")),
    ("packed receive buffers of no bytes", |vm| receive_packed(vm, SOUND, 0, flag::WRITE), Broken("too short")),
    ("packed receive buffers shorter than a header", |vm| receive_packed(vm, SOUND, 11, flag::WRITE), Broken("too short")),
    ("packed receive buffers outside of memory", |vm| receive_packed(vm, GPA + MEMORY, 2048, flag::WRITE), Broken("guest memory")),
    ("packed receive buffers over the end of memory", |vm| receive_packed(vm, GPA + MEMORY - 20, 2048, flag::WRITE), Broken("guest memory")),
    ("packed receive buffers in their ring", |vm| receive_packed(vm, GPA + desc(RX), 4096, flag::WRITE), Either),
    ("packed receive buffers in the transmit ring", |vm| receive_packed(vm, GPA + desc(TX), 4096, flag::WRITE), Either),
    ("packed receive loops", |vm| receive_packed(vm, SOUND, 0, flag::WRITE | flag::NEXT), Broken("loops")),
    ("packed memory taken away", |vm| { let _ = vm.memory.set_len(0); vm.kick(TX); }, Broken("taken away")),
];

/// Another thread rewrites words of packed rings while all of them are offered.
fn race_packed(vm: &mut Vm, place: fn(u64) -> u64) {
    let memory = vm.memory.clone();
    let _busy = Busy::new(move |random| {
        use std::os::unix::fs::FileExt as _;
        let _ = memory.write_all_at(&random.to_le_bytes(), place(random >> 32));
    });
    let end = Instant::now() + WHILE;
    let mut mark = flag::AVAIL;
    while Instant::now() < end {
        for slot in 0..RING {
            vm.packed(TX, slot, SOUND, 64, mark);
        }
        vm.kick(TX);
        mark ^= flag::AVAIL | flag::USED;
    }
}
