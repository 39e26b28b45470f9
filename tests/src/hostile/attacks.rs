//! The lies, in tables: what a guest writes into its rings, and what a VMM hands over.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::neighbour::mac;
use super::vm::{
    BUFFER, GPA, HEADER, MEMORY, RING, RX, SPARE, STEPS, TX, Vm, avail, buffer, desc, flag, memfd, used,
};
use super::wire::{message, request, words};

/// What becomes of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is broken, and the reason contains this.
    Broken(&'static str),
    /// It goes on: what was sent is dropped, or harms nobody.
    GoesOn,
    /// It drops a frame under this name, and goes on.
    Drops(&'static str),
    /// Broken or not, as chance will have it.
    Either,
}

use Outcome::{Broken, Drops, Either, GoesOn};

/// A name, what is done, and what comes of it.
pub type Attack = (&'static str, fn(&mut Vm), Outcome);

/// Sends one chain that begins with this descriptor.
fn chain(vm: &mut Vm, addr: u64, len: u32, flags: u16, next: u16) {
    vm.descriptor(desc(TX), 0, addr, len, flags, next);
    vm.offer(TX, 0);
}

/// Sends one indirect chain: a table at [`SPARE`] with this descriptor in it, said to have `len` bytes.
fn indirect(vm: &mut Vm, len: u32, entry: (u64, u32, u16, u16)) {
    vm.descriptor(SPARE, 0, entry.0, entry.1, entry.2, entry.3);
    chain(vm, GPA + SPARE, len, flag::INDIRECT, 0);
}

/// Makes every receive descriptor say this.
fn receive_into(vm: &mut Vm, addr: u64, len: u32, flags: u16) {
    for slot in 0..RING {
        vm.descriptor(desc(RX), slot, addr, len, flags, 0);
    }
    // Those that were used meanwhile.
    while vm.receive().is_some() {}
}

/// A frame's worth of sound memory.
pub(super) const SOUND: u64 = GPA + (2 << 20);

/// Lies of a guest's driver, after an honest start.
#[rustfmt::skip]
pub const RINGS: &[Attack] = &[
    ("an available index that jumps", |vm| vm.publish(TX, RING + 1), Broken("jumped further")),
    ("an available index that goes back", |vm| vm.publish(TX, u16::MAX), Broken("jumped further")),
    ("a receive index that jumps", |vm| vm.publish(RX, 0x8000), Broken("jumped further")),
    ("a head beyond the table", |vm| vm.offer(TX, RING), Broken("beyond the table")),
    ("a next beyond the table", |vm| chain(vm, SOUND, 64, flag::NEXT, 0xffff), Broken("beyond the table")),
    ("a descriptor that follows itself", |vm| chain(vm, SOUND, 1, flag::NEXT, 0), Broken("loops")),
    ("two descriptors that follow each other", |vm| {
        vm.descriptor(desc(TX), 1, SOUND, 1, flag::NEXT, 0);
        chain(vm, SOUND, 1, flag::NEXT, 1);
    }, Broken("loops")),
    ("a loop of empty descriptors", |vm| chain(vm, SOUND, 0, flag::NEXT, 0), Broken("loops")),
    ("an indirect table within one", |vm| indirect(vm, 16, (GPA + SPARE, 16, flag::INDIRECT, 0)), Broken("indirect")),
    ("an indirect table and a next", |vm| chain(vm, GPA + SPARE, 16, flag::INDIRECT | flag::NEXT, 1), Broken("indirect")),
    ("an indirect table of no bytes", |vm| indirect(vm, 0, (SOUND, 64, 0, 0)), Broken("indirect")),
    ("an indirect table of 17 bytes", |vm| indirect(vm, 17, (SOUND, 64, 0, 0)), Broken("indirect")),
    ("an indirect table of 1025 entries", |vm| indirect(vm, 1025 * 16, (SOUND, 64, 0, 0)), Broken("indirect")),
    ("an indirect table of 4 GiB", |vm| indirect(vm, 0xffff_fff0, (SOUND, 64, 0, 0)), Broken("indirect")),
    ("an indirect table outside of memory", |vm| chain(vm, GPA - 16, 16, flag::INDIRECT, 0), Broken("guest memory")),
    ("an indirect table over the end of memory", |vm| {
        vm.descriptor(MEMORY - 16, 0, SOUND, 64, flag::NEXT, 1);
        chain(vm, GPA + MEMORY - 16, 32, flag::INDIRECT, 0);
    }, Broken("guest memory")),
    ("an indirect loop", |vm| indirect(vm, 16, (SOUND, 1, flag::NEXT, 0)), Broken("loops")),
    ("a next beyond an indirect table", |vm| indirect(vm, 16, (SOUND, 1, flag::NEXT, 1)), Broken("beyond the table")),
    ("a buffer outside of memory", |vm| chain(vm, 0x1000, 64, 0, 0), Broken("guest memory")),
    ("a buffer over the end of memory", |vm| chain(vm, GPA + MEMORY - 32, 64, 0, 0), Broken("guest memory")),
    ("a buffer at the end of all addresses", |vm| chain(vm, u64::MAX - 8, 64, 0, 0), Broken("guest memory")),
    ("a buffer of 4 GiB", |vm| chain(vm, GPA, u32::MAX, 0, 0), Drops("oversized")),
    ("a buffer of no bytes", |vm| chain(vm, SOUND, 0, 0, 0), Broken("too short")),
    ("a buffer shorter than a header", |vm| chain(vm, SOUND, 11, 0, 0), Broken("too short")),
    ("a header and no frame", |vm| chain(vm, SOUND, 12, 0, 0), Drops("runt")),
    ("a frame shorter than its Ethernet header", |vm| chain(vm, SOUND, 12 + 13, 0, 0), Drops("runt")),
    ("a buffer to write on the transmit ring", |vm| chain(vm, SOUND, 64, flag::WRITE, 0), Broken("wrong direction")),
    ("undefined flags", |vm| chain(vm, SOUND, 64, 0xfff8, 0), Either),
    ("the descriptor table as a frame", |vm| chain(vm, GPA + desc(TX), 4096, 0, 0), Either),
    ("the available ring as a frame", |vm| chain(vm, GPA + avail(TX), 512, 0, 0), Either),
    ("the used ring as a frame", |vm| chain(vm, GPA + used(TX), 2048, 0, 0), Either),
    ("receive buffers that may only be read", |vm| receive_into(vm, SOUND, 2048, 0), Broken("wrong direction")),
    ("receive buffers of no bytes", |vm| receive_into(vm, SOUND, 0, flag::WRITE), Broken("too short")),
    ("receive buffers shorter than a header", |vm| receive_into(vm, SOUND, 11, flag::WRITE), Broken("too short")),
    ("receive buffers outside of memory", |vm| receive_into(vm, GPA + MEMORY, 2048, flag::WRITE), Broken("guest memory")),
    ("receive buffers over the end of memory", |vm| receive_into(vm, GPA + MEMORY - 20, 2048, flag::WRITE), Broken("guest memory")),
    ("receive buffers in the descriptor table", |vm| receive_into(vm, GPA + desc(RX), 4096, flag::WRITE), Either),
    ("receive buffers in the available ring", |vm| receive_into(vm, GPA + avail(RX), 512, flag::WRITE), Either),
    ("receive buffers in the used ring", |vm| receive_into(vm, GPA + used(RX), 2048, flag::WRITE), Either),
    ("receive buffers in the transmit rings", |vm| receive_into(vm, GPA + desc(TX), 4096, flag::WRITE), Either),
    ("one buffer for all", |vm| receive_into(vm, SOUND, 2048, flag::WRITE), Either),
    ("receive loops", |vm| {
        for slot in 0..RING {
            vm.descriptor(desc(RX), slot, SOUND, 0, flag::WRITE | flag::NEXT, slot);
        }
    }, Broken("loops")),
];

/// The station that takes none of its frames: who floods it harms nobody else.
pub const SINK: u8 = 4;
/// Its address, as commands take it.
pub const SINK_MAC: &str = "02:5e:00:00:00:04";

/// A TCP frame over IPv4 to the sink, with `payload` bytes.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = [&mac(SINK)[..], &mac(9), &[8, 0]].concat();
    let total = (40 + payload) as u16;
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum = frame[14..34].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    frame.extend([0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(54 + payload, 0x77);
    frame
}

/// Sends a TCP frame with these words of a virtio-net header: flags, kind, hdr_len, gso_size, csum_start, csum_offset.
fn claim(vm: &mut Vm, flags: u8, kind: u8, words: [u16; 4]) {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&[flags, kind]);
    for (to, word) in header[2..10].chunks_mut(2).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    vm.send_with(&header, &tcp(1000));
}

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV4.
const TCPV4: u8 = 1;

/// Header fields that lie.
#[rustfmt::skip]
pub const HEADERS: &[Attack] = &[
    ("a checksum that begins beyond the frame", |vm| claim(vm, CSUM, 0, [0, 0, 2000, 16]), Drops("bad_offload")),
    ("a checksum that lies beyond the frame", |vm| claim(vm, CSUM, 0, [0, 0, 34, 0xfff0]), Drops("bad_offload")),
    ("a checksum over the Ethernet header", |vm| claim(vm, CSUM, 0, [0, 0, 2, 4]), Drops("bad_offload")),
    ("a checksum over the IP header", |vm| claim(vm, CSUM, 0, [0, 0, 14, 16]), Drops("bad_offload")),
    ("sums of fields that overflow", |vm| claim(vm, CSUM, 0, [0, 0, 0xffff, 0xffff]), Drops("bad_offload")),
    ("segments of no bytes", |vm| claim(vm, CSUM, TCPV4, [54, 0, 34, 16]), Drops("bad_offload")),
    ("segments of one byte", |vm| claim(vm, CSUM, TCPV4, [54, 1, 34, 16]), Drops("bad_offload")),
    ("segments without a checksum", |vm| claim(vm, 0, TCPV4, [54, 500, 34, 16]), Drops("bad_offload")),
    ("IPv6 segments in an IPv4 packet", |vm| claim(vm, CSUM, 4, [74, 500, 54, 16]), Drops("bad_offload")),
    ("UDP fragments, which are not offered", |vm| claim(vm, CSUM, 3, [42, 500, 34, 6]), Drops("bad_offload")),
    ("a kind of segments that does not exist", |vm| claim(vm, CSUM, 0x7e, [54, 500, 34, 16]), Drops("bad_offload")),
    ("headers longer than the frame", |vm| claim(vm, CSUM, TCPV4, [0xffff, 500, 34, 16]), Either),
    ("headers of no bytes", |vm| claim(vm, CSUM, TCPV4, [0, 500, 34, 16]), Either),
    ("all bits set", |vm| claim(vm, 0xff, 0xff, [0xffff; 4]), Drops("bad_offload")),
];

/// Runs `work` again and again on a thread of its own.
pub(super) struct Busy {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    pub(super) fn new(mut work: impl FnMut(u64) + Send + 'static) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ending = end.clone();
        let thread = std::thread::spawn(move || {
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            while !ending.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                work(random);
            }
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long attacks go on that live by repetition.
pub(super) const WHILE: Duration = Duration::from_millis(500);

/// Sends frames for as long as it is worth it.
fn send_for_a_while(vm: &mut Vm) {
    let end = Instant::now() + WHILE;
    while Instant::now() < end {
        if !vm.send(&tcp(100)) {
            std::thread::yield_now();
        }
        while vm.receive().is_some() {}
    }
}

/// Another thread rewrites the bytes that the switch reads, wherever `place` puts a random number.
fn race(vm: &mut Vm, place: fn(u64) -> u64) {
    let memory = vm.memory.clone();
    let _busy = Busy::new(move |random| {
        use std::os::unix::fs::FileExt as _;
        let _ = memory.write_all_at(&random.to_le_bytes(), place(random >> 32));
    });
    send_for_a_while(vm);
}

/// Fills the counter of an event and lets it block whoever writes to it, as its other end can at any time.
fn make_blocking(event: &nix::sys::eventfd::EventFd) {
    let _ = event.write(u64::MAX - 1);
    let _ = fcntl(event.as_fd(), FcntlArg::F_SETFL(OFlag::empty()));
}

/// Attacks by what goes on beside the rings.
#[rustfmt::skip]
pub const CIRCUMSTANCES: &[Attack] = &[
    ("a storm of kicks", |vm| {
        let kicks: Vec<_> = vm.kicks.iter().filter_map(|kick| kick.as_fd().try_clone_to_owned().ok()).collect();
        let _busy = Busy::new(move |_| for kick in &kicks { let _ = nix::unistd::write(kick, &1u64.to_ne_bytes()); });
        send_for_a_while(vm);
    }, GoesOn),
    ("interrupts that block their writer", |vm| {
        vm.calls.iter().for_each(make_blocking);
        send_for_a_while(vm);
    }, GoesOn),
    ("an error descriptor that blocks its writer", |vm| {
        let event = memfd_free_event();
        make_blocking(&event);
        let _ = vm.set_event(request::SET_VRING_ERR, TX, event.as_fd().as_raw_fd());
        vm.offer(TX, 0xffff);
    }, Broken("beyond the table")),
    ("descriptors rewritten while they are read", |vm| race(vm, |n| desc(TX) + n % 4096 / 8 * 8), Either),
    ("headers rewritten while they are read", |vm| {
        race(vm, |n| buffer(TX, (n % u64::from(RING)) as u16) + n / 256 % 64);
    }, Either),
    ("available rings rewritten while they are read", |vm| race(vm, |n| avail(TX) + n % 512), Either),
    ("receive rings rewritten while they are read", |vm| race(vm, |n| n % 0x3000), Either),
    ("used rings rewritten while they are written", |vm| race(vm, |n| used((n % 2) as usize) + n / 2 % 2048), Either),
    ("memory taken away", |vm| {
        let _ = vm.memory.set_len(0);
        vm.kick(TX);
    }, Broken("taken away")),
    ("memory taken away under traffic", |vm| {
        // Its own writes make the file longer again: the rings are found gone, or full of zeroes.
        let memory = vm.memory.clone();
        let mut sent = 0u32;
        let end = Instant::now() + WHILE;
        while Instant::now() < end {
            vm.send(&tcp(100));
            sent += 1;
            if sent == 50 { let _ = memory.set_len(8192); }
            vm.kick(TX);
        }
    }, Broken("")),
    ("memory taken away and given back", |vm| {
        let event = memfd_free_event();
        let _ = vm.set_event(request::SET_VRING_ERR, TX, event.as_fd().as_raw_fd());
        let _ = vm.memory.set_len(0);
        vm.kick(TX);
        // Until the switch says that the ring is broken: it may look at it late.
        let _ = poll(&mut [PollFd::new(event.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_000u16));
        let _ = vm.memory.set_len(MEMORY);
        send_for_a_while(vm);
    }, Broken("taken away")),
    ("seals against shrinking and growing", |vm| {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        let _ = fcntl(&*vm.memory, FcntlArg::F_ADD_SEALS(seals));
        send_for_a_while(vm);
    }, GoesOn),
    ("receive buffers that never come back", |vm| {
        // A slow receiver: it takes nothing, and others go on.
        vm.publish(RX, RING);
        std::thread::sleep(WHILE);
    }, GoesOn),
];

fn memfd_free_event() -> nix::sys::eventfd::EventFd {
    nix::sys::eventfd::EventFd::new().unwrap_or_else(|e| panic!("eventfd: {e}"))
}

/// Does the first `count` of an honest frontend's steps.
pub fn steps(vm: &mut Vm, count: usize) {
    for step in &STEPS[..count] {
        if step(vm).is_err() {
            return;
        }
    }
}

/// Steps until memory is due, and until the first ring's events are.
const BEFORE_MEMORY: usize = 5;
const BEFORE_EVENTS: usize = 9;

fn memory_is(vm: &mut Vm, file: impl Into<OwnedFd>) {
    steps(vm, BEFORE_MEMORY);
    let _ = vm.set_memory(Vm::region(0, MEMORY), file.into().as_raw_fd());
}

fn event_is(vm: &mut Vm, request: u32, file: impl Into<OwnedFd>) {
    steps(vm, BEFORE_EVENTS);
    let _ = vm.set_event(request, RX, file.into().as_raw_fd());
}

#[track_caller]
fn open(path: &str) -> File {
    File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[track_caller]
fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap_or_else(|e| panic!("socketpair: {e}"))
}

#[track_caller]
fn pipe() -> OwnedFd {
    nix::unistd::pipe().unwrap_or_else(|e| panic!("pipe: {e}")).0
}

fn region(vm: &mut Vm, region: [u64; 4]) {
    steps(vm, BEFORE_MEMORY);
    let _ = vm.set_memory(region, vm.memory.as_raw_fd());
}

/// Lies of a VMM, from a fresh connection on.
#[rustfmt::skip]
pub const SESSIONS: &[Attack] = &[
    ("a pipe as memory", |vm| memory_is(vm, pipe()), Broken("not a regular file")),
    ("a directory as memory", |vm| memory_is(vm, open("/")), Broken("not a regular file")),
    ("a socket as memory", |vm| memory_is(vm, pair().0), Broken("not a regular file")),
    ("an eventfd as memory", |vm| memory_is(vm, memfd_free_event().as_fd().try_clone_to_owned().unwrap_or_else(|e| panic!("dup: {e}"))), Broken("not a regular file")),
    ("/dev/zero as memory", |vm| memory_is(vm, open("/dev/zero")), Broken("not a regular file")),
    ("a file of /proc as memory", |vm| memory_is(vm, open("/proc/self/maps")), Broken("has only")),
    ("memory that may only be read", |vm| {
        let path = format!("/proc/self/fd/{}", vm.memory.as_raw_fd());
        memory_is(vm, open(&path));
    }, Broken("mmap: Permission denied")),
    ("memory that is sealed against writing", |vm| {
        let _ = fcntl(&*vm.memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
        steps(vm, STEPS.len());
    }, Broken("mmap: Operation not permitted")),
    ("a region larger than its file", |vm| region(vm, Vm::region(0, MEMORY + 4096)), Broken("has only")),
    ("a region that begins beyond its file", |vm| region(vm, [GPA, 4096, 0x1000, 1 << 40]), Broken("has only")),
    ("a region of no bytes", |vm| region(vm, [GPA, 0, 0x1000, 0]), Broken("invalid message")),
    ("a region over the end of all addresses", |vm| region(vm, [u64::MAX - 4095, 8192, 0x1000, 0]), Broken("invalid message")),
    ("a region larger than any guest", |vm| region(vm, [0, 1 << 50, 0x1000, 0]), Broken("larger than")),
    ("a region at an odd address", |vm| region(vm, [GPA + 1, 4096, 0x1000, 0]), Broken("not a multiple of 4096")),
    ("regions that overlap", |vm| {
        steps(vm, BEFORE_MEMORY + 1);
        let _ = vm.add_region([GPA + MEMORY - 4096, 8192, 0x1000, 0], vm.memory.as_raw_fd());
    }, Broken("overlaps")),
    ("a region taken away that was never given", |vm| {
        steps(vm, BEFORE_MEMORY + 1);
        let _ = vm.remove_region([GPA + 4096, 4096, 0x1000, 0]);
    }, Broken("no memory region")),
    ("a table of regions without descriptors", |vm| {
        steps(vm, BEFORE_MEMORY);
        let body = [words(&[1]), words(&Vm::region(0, MEMORY))].concat();
        let _ = vm.wire.request(request::SET_MEM_TABLE, &body, &[]);
    }, Broken("")),
    ("descriptors with a message that has none", |vm| {
        let fd = vm.memory.as_raw_fd();
        let _ = vm.wire.request(request::SET_OWNER, &[], &[fd, fd, fd, fd]);
        steps(vm, STEPS.len());
    }, Broken("")),
    ("a socket as kick", |vm| event_is(vm, request::SET_VRING_KICK, pair().0), Broken("not an eventfd")),
    ("a pipe as call", |vm| event_is(vm, request::SET_VRING_CALL, pipe()), Broken("not an eventfd")),
    ("a memfd as call", |vm| event_is(vm, request::SET_VRING_CALL, memfd(4096)), Broken("not an eventfd")),
    ("a directory as error descriptor", |vm| event_is(vm, request::SET_VRING_ERR, open("/")), Broken("not an eventfd")),
    ("a ring of no entries", |vm| { steps(vm, 6); let _ = vm.ring(request::SET_VRING_NUM, RX, 0); }, Broken("")),
    ("a ring of 3 entries", |vm| { steps(vm, 6); let _ = vm.ring(request::SET_VRING_NUM, RX, 3); }, Broken("not a power of two")),
    ("a ring that does not exist", |vm| { steps(vm, 6); let _ = vm.ring(request::SET_VRING_NUM, 77, 256); }, Broken("no ring 77")),
    ("a ring outside of memory", |vm| { steps(vm, 8); let _ = vm.set_addresses(RX, MEMORY); }, Broken("not all in guest memory")),
    ("a ring over the end of memory", |vm| { steps(vm, 8); let _ = vm.set_addresses(RX, MEMORY - 0x2100); }, Broken("not all in guest memory")),
    ("a ring at an odd address", |vm| { steps(vm, 8); let _ = vm.set_addresses(RX, 1); }, Broken("")),
    ("features that were not offered", |vm| {
        steps(vm, 4);
        let _ = vm.wire.request(request::SET_FEATURES, &words(&[u64::MAX]), &[]);
    }, Broken("")),
    ("protocol features that were not offered", |vm| {
        steps(vm, 3);
        let _ = vm.wire.request(request::SET_PROTOCOL_FEATURES, &words(&[u64::MAX]), &[]);
        steps(vm, 1);
    }, Broken("")),
    ("half a header", |vm| { let _ = vm.wire.send(&[3, 0, 0, 0, 1], &[]); vm.wire.finish(); }, Broken("midst")),
    ("half a body", |vm| {
        let _ = vm.wire.send(&message(request::SET_VRING_NUM, 0, &[0; 8])[..16], &[]);
        vm.wire.finish();
    }, Broken("")),
    ("half a message with descriptors", |vm| {
        let fd = vm.memory.as_raw_fd();
        let _ = vm.wire.send(&message(request::SET_MEM_TABLE, 0, &[0; 40])[..20], &[fd; 8]);
        vm.wire.finish();
    }, Broken("")),
    ("a body of 4 GiB", |vm| { let _ = vm.wire.send(&[8, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &[]); }, Broken("invalid message")),
    ("the version of another protocol", |vm| { let _ = vm.wire.send(&[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], &[]); }, Broken("invalid message")),
    ("an answer instead of a request", |vm| { let _ = vm.wire.send(&message(request::SET_OWNER, 4, &[]), &[]); }, Broken("")),
    ("noise", |vm| { let _ = vm.wire.send(&[0xa5; 4096], &[]); }, Broken("invalid message")),
];

const _: () = assert!(BUFFER as usize > HEADER + 1054, "the frames of these tables fit a buffer");
