//! virtio-driver as the guest: a driver that was not written with this device in mind sends frames and gets them back,
//! both sides asleep whenever there is nothing to do.

#[path = "common/guest.rs"]
mod guest;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guest::{EVENT_IDX, Random, VERSION_1, memfd};
use vhost_backend::frame::Burst;
use vhost_backend::memory::GuestMap;
use vhost_backend::ring::cell::Armed;
use vhost_backend::ring::{Ring, RingCell, RingSetup};
use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{IovaTranslator, VhostUser, VirtioFeatureFlags, VirtioTransport, iovec};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const PATIENCE: Duration = Duration::from_secs(20);
const FRAMES: u32 = 20_000;
const SIZE: u16 = 64;
const BUFFER: usize = 2048;
const PAGE: usize = 4096;
const RING_PACKED: u64 = 1 << 34;

/// The per-request data that the driver keeps beside its ring: here the virtio-net header.
type Header = [u8; 12];

/// virtio-driver makes translators only in transports, whose vhost-user one insists on the CONFIG message (which a
/// network device without a configuration space of its own does not offer). Somebody to shake hands with is enough:
/// with it guest addresses are the driver's own.
fn translator() -> Box<dyn IovaTranslator> {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("handshake");
    let listener = UnixListener::bind(&path).expect("bind");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut header = [0; 12];
        while stream.read_exact(&mut header).is_ok() {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
            let mut body = vec![0; word(8) as usize];
            stream.read_exact(&mut body).expect("body");
            // GET_FEATURES, GET_PROTOCOL_FEATURES (REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS), GET_MAX_MEM_SLOTS
            let answer = match word(0) {
                1 => VERSION_1 | 1 << 30,
                15 => 1 << 3 | 1 << 9 | 1 << 15,
                36 => 8,
                _ => continue,
            };
            let mut reply = Vec::new();
            for word in [word(0), 1 | 1 << 2, 8] {
                reply.extend(word.to_ne_bytes());
            }
            reply.extend(u64::to_ne_bytes(answer));
            stream.write_all(&reply).expect("reply");
        }
    });
    let transport = VhostUser::<virtio_driver::Le64, Header>::new(path.to_str().expect("UTF-8"), VERSION_1)
        .expect("handshake");
    let translator = transport.iova_translator();
    drop(transport);
    thread.join().expect("handshake");
    translator
}

/// Waits for an eventfd and takes what is in it; false after `PATIENCE`.
fn wait(event: &EventFd) -> bool {
    let mut fd = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of our own.
    let ready = unsafe { libc::poll(&mut fd, 1, PATIENCE.as_millis() as i32) };
    let _ = event.read();
    ready == 1
}

/// A queue of the driver's in `memory`, and our ring on it.
fn queue<'a>(
    memory: &'a mut [u8],
    features: u64,
    map: &Arc<GuestMap>,
) -> (Virtqueue<'a, Header>, RingCell, Arc<EventFd>, EventFd) {
    let flags = VirtioFeatureFlags::from_bits_truncate(features);
    let queue = Virtqueue::<Header>::new(translator(), memory, SIZE, flags).expect("virtqueue");
    let (kick, call) =
        (Arc::new(EventFd::new(EFD_NONBLOCK).expect("kick")), EventFd::new(EFD_NONBLOCK).expect("call"));
    let ring = Ring::new(RingSetup {
        size: SIZE,
        desc: queue.desc_table_ptr() as u64,
        avail: queue.driver_area_ptr() as u64,
        used: queue.device_area_ptr() as u64,
        base: None,
        features,
        map: map.clone(),
        kick: Some(kick.clone()),
        call: Some(call.try_clone().expect("dup")),
        err: None,
    })
    .expect("a legal ring");
    let cell = RingCell::new();
    cell.set_enabled(true);
    cell.start(ring);
    (queue, cell, kick, call)
}

/// Frame number `number`: its number, its length, and bytes that depend on both.
fn frame(number: u32) -> Vec<u8> {
    let len = 6 + Random::new(u64::from(number) << 8 | 1).below(1500) as usize;
    let mut bytes = vec![0; len];
    Random::new(u64::from(number) << 20 | len as u64).fill(&mut bytes);
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..6].copy_from_slice(&(len as u16).to_le_bytes());
    bytes
}

fn echo(features: u64) {
    let layout =
        VirtqueueLayout::new::<Header>(1, SIZE.into(), VirtioFeatureFlags::from_bits_truncate(features))
            .expect("layout");
    let ring_len = layout.end_offset.next_multiple_of(PAGE);
    let buffers = usize::from(SIZE) * BUFFER;
    let len = 2 * ring_len + 2 * buffers;
    let file = memfd(len as u64);
    // SAFETY: a new shared mapping, the driver's own; the device has another. It lives to the end of this function.
    let memory = unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(at.cast::<u8>(), len)
    };
    let base = memory.as_mut_ptr();
    let map = GuestMap::empty().with_region(base as u64, len as u64, base as u64, 0, &file).expect("region");
    let map = Arc::new(map);
    let (rings, data) = memory.split_at_mut(2 * ring_len);
    let (transmit_ring, receive_ring) = rings.split_at_mut(ring_len);
    let (transmit_data, receive_data) = data.split_at_mut(buffers);
    let (transmit_data, receive_data) = (transmit_data.as_mut_ptr(), receive_data.as_mut_ptr());

    let (mut transmit, from, kick, _) = queue(transmit_ring, features, &map);
    let (mut receive, to, _, call) = queue(receive_ring, features, &map);
    let done = AtomicBool::new(false);
    let worker = || {
        let mut burst = Burst::new();
        while !done.load(Ordering::Acquire) {
            let served = from.serve(&mut burst, |burst| {
                // The driver keeps enough buffers there for all that is under way.
                assert_eq!(to.deliver(burst, burst.all()).sent, burst.all());
            });
            if served.frames == 0 && from.arm() == Armed::Kick {
                assert!(wait(&kick), "the driver never kicked");
                from.disarm();
            }
        }
    };
    let part = |base: *mut u8, from: usize, len: usize| iovec {
        iov_base: base.wrapping_add(from).cast(),
        iov_len: len,
    };
    let mut driver = || {
        let deadline = Instant::now() + 3 * PATIENCE;
        let mut random = Random::new(1);
        let mut number = 0;
        let mut supply = |queue: &mut Virtqueue<Header>, slot: usize, at: &mut HashMap<u16, usize>| {
            // The driver of packed rings insists that its buffers are filled, as a disk does it: it gets the very length
            // of the frame that will come.
            let len = if features & RING_PACKED != 0 { frame(number).len() } else { BUFFER };
            number += 1;
            let id = queue
                .add_request(|header, add| {
                    *header = [0xff; 12];
                    add(iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }, true)?;
                    add(part(receive_data, slot * BUFFER, len), true)
                })
                .expect("a free descriptor");
            at.insert(id, slot);
        };
        let mut supplied = HashMap::new();
        // Two descriptors each.
        for slot in 0..usize::from(SIZE) / 2 {
            supply(&mut receive, slot, &mut supplied);
        }
        receive.set_used_notif_enabled(true);
        transmit.set_used_notif_enabled(false);
        let (mut sent, mut got) = (0u32, 0u32);
        let mut free: Vec<usize> = (0..usize::from(SIZE) / 4).collect();
        let mut in_flight = HashMap::new();
        while got < FRAMES {
            assert!(Instant::now() < deadline, "{sent} sent, {got} back");
            for completion in transmit.completions() {
                free.push(in_flight.remove(&completion.id).expect("a buffer that was sent"));
            }
            let under_way = (sent - got) as usize;
            let room = (usize::from(SIZE) / 4).saturating_sub(under_way).min(free.len());
            let count = (1 + random.below(8) as usize).min(room).min((FRAMES - sent) as usize);
            for _ in 0..count {
                let slot = free.pop().expect("counted");
                let bytes = frame(sent);
                let at = slot * BUFFER;
                // SAFETY: the slot is free, so the device does not read it, and it holds BUFFER bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), transmit_data.add(at), bytes.len()) };
                let cut = random.below(bytes.len() as u64) as usize;
                let id = transmit
                    .add_request(|header, add| {
                        *header = [0; 12];
                        add(iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }, false)?;
                        if cut > 0 {
                            add(part(transmit_data, at, cut), false)?;
                        }
                        add(part(transmit_data, at + cut, bytes.len() - cut), false)
                    })
                    .expect("a free descriptor");
                in_flight.insert(id, slot);
                sent += 1;
            }
            if count > 0 && transmit.avail_notif_needed() {
                kick.write(1).expect("kick");
            }
            // A request's number is free, and used again, as soon as it completes.
            let completions: Vec<_> = receive
                .completions()
                .map(|done| (supplied.remove(&done.id).expect("a buffer that was supplied"), done.req))
                .collect();
            if completions.is_empty() && sent > got && (count == 0 || random.below(2) == 0) {
                assert!(wait(&call), "{sent} sent, {got} back, and no interrupt");
            }
            for (slot, header) in completions {
                let expected = frame(got);
                assert_eq!(header[..10], [0; 10], "header of frame {got}");
                assert_eq!(header[10..], [1, 0], "num_buffers of frame {got}");
                // SAFETY: the device gave the slot back.
                let bytes =
                    unsafe { std::slice::from_raw_parts(receive_data.add(slot * BUFFER), expected.len()) };
                assert!(bytes == expected, "frame {got} came back otherwise");
                got += 1;
                supply(&mut receive, slot, &mut supplied);
            }
        }
    };
    struct Done<'a>(&'a AtomicBool, &'a EventFd);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
            let _ = self.1.write(1);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(worker);
        let _done = Done(&done, &kick);
        driver();
    });
    assert_eq!((from.fault(), to.fault()), (None, None));
    drop((transmit, receive));
    // SAFETY: the mapping made above; the queues in it are gone.
    unsafe { libc::munmap(base.cast(), len) };
}

#[test]
fn frames_come_back_with_flags() {
    echo(VERSION_1);
}

#[test]
fn frames_come_back_with_event_indexes() {
    echo(VERSION_1 | EVENT_IDX);
}

#[test]
fn frames_come_back_in_packed_rings_with_flags() {
    echo(VERSION_1 | RING_PACKED);
}

#[test]
fn frames_come_back_in_packed_rings_with_event_positions() {
    echo(VERSION_1 | RING_PACKED | EVENT_IDX);
}
