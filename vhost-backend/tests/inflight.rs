//! The record of what is in flight, as frontends keep it: taken over from another kind of device, and across deaths by
//! SIGKILL of the process that serves the rings.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/packed.rs"]
mod packed;

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use common::{Port, Vmm, config};
use guest::{F_WRITE, Guest, Queue, VERSION_1};
use packed::{At, Driver, PACKED, PackedQueue};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserInflight, VhostUserVirtioFeatures},
    },
};
use vhost_backend::{
    device::{Device, Role, State},
    features,
    frame::Burst,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Of both layouts, in a region of 256 entries.
const SPLIT_REGION: u64 = 16 * 256 + 64;

#[test]
fn what_another_device_left_is_served_first_in_the_order_of_its_counters() {
    served_in_order(false);
}

#[test]
fn another_process_serves_in_order_what_another_device_left() {
    served_in_order(true);
}

fn served_in_order(handed: bool) {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.frontend.set_features(features::offered() & !(PACKED | 1 << 26)).unwrap();
    let wanted = VhostUserInflight { num_queues: 2, queue_size: 256, ..VhostUserInflight::default() };
    let (inflight, file) = vmm.frontend.get_inflight_fd(&wanted).unwrap();
    assert_eq!((inflight.mmap_size, inflight.mmap_offset), (2 * SPLIT_REGION, 0));
    let at = 0x4000;
    for head in 0..16u64 {
        // A header, and one byte: the head.
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&(0x8_0000 + 64 * head).to_le_bytes());
        desc[8] = 13;
        vmm.memory.write_all_at(&desc, at + 16 * head).unwrap();
        vmm.memory.write_all_at(&[head as u8], 0x8_0000 + 64 * head + 12).unwrap();
    }
    // Of ring 1, five buffers came back, three more were taken in some order, four have never been seen.
    vmm.memory.write_all_at(&5u16.to_le_bytes(), at + 0x2002).unwrap();
    vmm.memory.write_all_at(&12u16.to_le_bytes(), at + 0x1002).unwrap();
    for (index, head) in (8u64..12).zip([1u16, 14, 0, 3]) {
        vmm.memory.write_all_at(&head.to_le_bytes(), at + 0x1004 + 2 * index).unwrap();
    }
    let record = |at: u64, bytes: &[u8]| file.write_all_at(bytes, SPLIT_REGION + at).unwrap();
    record(8, &[1, 0, 0, 1]);
    record(14, &5u16.to_le_bytes());
    for (head, counter) in [(9u64, 3u64), (4, 1), (7, 2)] {
        record(16 + 16 * head, &[1]);
        record(16 + 16 * head + 8, &counter.to_le_bytes());
    }
    vmm.frontend.set_inflight_fd(&inflight, file.as_raw_fd()).unwrap();
    vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
    vmm.set_up_ring(0, 0).unwrap();
    vmm.frontend.set_vring_num(1, 256).unwrap();
    vmm.frontend.set_vring_base(1, 8).unwrap();
    vmm.frontend.set_vring_addr(1, &Vmm::addresses(1)).unwrap();
    vmm.frontend.set_vring_call(1, &vmm.calls[1]).unwrap();
    vmm.frontend.set_vring_kick(1, &vmm.kicks[1]).unwrap();
    for ring in 0..2 {
        vmm.frontend.set_vring_enable(ring, true).unwrap();
    }
    assert_eq!(port.state(), State::Up);

    let mut seen = Vec::new();
    let mut burst = Burst::new();
    let mut serve = |port: &Port| {
        port.device.from_guest(0).serve(&mut burst, |burst| {
            seen.extend((0..burst.len()).map(|i| burst.head(i)[0]));
        });
    };
    // Whether the same process goes on with what it found or another one.
    let port = if handed { port.handed_over(Role::Server) } else { port };
    serve(&port);
    let port = if handed { port.handed_over(Role::Server) } else { port };
    serve(&port);
    assert_eq!(seen, [4, 7, 9, 1, 14, 0, 3]);
    let mut elements = [0; 7 * 8];
    vmm.memory.read_exact_at(&mut elements, at + 0x2004 + 8 * 5).unwrap();
    assert!(elements.chunks(8).zip(&seen).all(|(element, head)| element[0] == *head), "{elements:?}");
    let mut index = [0; 2];
    vmm.memory.read_exact_at(&mut index, at + 0x2002).unwrap();
    assert_eq!(u16::from_le_bytes(index), 12);
    assert!(vmm.calls[1].read().is_ok());
    let mut left = [0; 1];
    for head in [4u64, 7, 9] {
        file.read_exact_at(&mut left, SPLIT_REGION + 16 + 16 * head).unwrap();
        assert_eq!(left, [0], "{head} is not in flight any more");
    }
}

#[test]
fn records_that_do_not_fit_are_refused_with_the_reason() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    let inflight = VhostUserInflight { mmap_size: 64, mmap_offset: 0, num_queues: 2, queue_size: 256 };
    assert!(vmm.frontend.set_inflight_fd(&inflight, common::memfd(1 << 20).as_raw_fd()).is_err());
    port.wait_for_end("record of what is in flight: 2 queues of 256 entries need");
}

// ---- death ------------------------------------------------------------------------------------------------------

/// Tells a process of this test that it is the switch, and where its sockets are.
const SWITCH: &str = "SHUNT_TEST_INFLIGHT_SWITCH";

/// Not a test: the process that is killed. It forwards from port `a` to port `b` until then.
#[test]
#[ignore = "the process that the tests of deaths start and kill: cargo test -p vhost-backend --test inflight"]
fn switch() {
    let Some(dir) = std::env::var_os(SWITCH) else { return };
    // SAFETY: whoever started this process is gone when the test is.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let device = |name: &str| {
        let path = Path::new(&dir).join(name);
        let _ = std::fs::remove_file(&path);
        Device::start(config(&path, Role::Server, 1), std::sync::Arc::new(|| ())).unwrap()
    };
    let (a, b) = (device("a"), device("b"));
    let mut burst = Burst::new();
    loop {
        let served = a.from_guest(0).serve(&mut burst, |burst| {
            b.to_guest(0).deliver(burst, burst.all());
        });
        if served.frames == 0 {
            std::thread::yield_now();
        }
    }
}

struct Killed(Child);

impl Killed {
    fn start(dir: &Path) -> Self {
        for name in ["a", "b"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--ignored", "--exact", "switch", "--nocapture"])
            .env(SWITCH, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// One guest's side: memory with one ring, and what its frontend keeps.
struct Side {
    guest: Guest,
    /// Size and addresses of the ring that is used, number 1 (transmit) or 0 (receive).
    ring: usize,
    parts: [u64; 3],
    size: u16,
    packed: bool,
    /// Whether the frontend keeps a record, as QEMU does not for network devices.
    records: bool,
    record: Option<(VhostUserInflight, File)>,
    events: [EventFd; 2],
    frontend: Option<Frontend>,
}

impl Side {
    fn new(guest: Guest, ring: usize, parts: [u64; 3], size: u16, packed: bool, records: bool) -> Self {
        let events = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        Self { guest, ring, parts, size, packed, records, record: None, events, frontend: None }
    }

    /// Connects to a new switch and starts the rings as a frontend does that does not know where they stand.
    fn connect(&mut self, path: &Path) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < deadline, "{}: {e}", path.display()),
            }
            std::thread::yield_now();
        };
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let packed = if self.packed { PACKED } else { 0 };
        frontend
            .set_features(VERSION_1 | packed | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
            .unwrap();
        if self.records {
            let (inflight, file) = self.record.get_or_insert_with(|| {
                let wanted = VhostUserInflight {
                    num_queues: 2,
                    queue_size: self.size,
                    ..VhostUserInflight::default()
                };
                frontend.get_inflight_fd(&wanted).unwrap()
            });
            frontend.set_inflight_fd(inflight, file.as_raw_fd()).unwrap();
        }
        let regions: Vec<_> = self
            .guest
            .regions
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.gpa,
                memory_size: region.size,
                userspace_addr: region.user,
                mmap_offset: 4096,
                mmap_handle: region.file.as_raw_fd(),
            })
            .collect();
        frontend.set_mem_table(&regions).unwrap();
        // The other ring of the pair is never used; a pair runs only as a whole.
        for (ring, parts) in [(self.ring, self.parts), (1 - self.ring, self.parts.map(|at| at + 0x10_0000))] {
            let [desc, avail, used] = parts.map(|at| self.guest.user(at));
            frontend.set_vring_num(ring, self.size).unwrap();
            frontend.set_vring_base(ring, if self.packed { 0x8000 } else { 0 }).unwrap();
            let addresses = VringConfigData {
                queue_max_size: self.size,
                queue_size: self.size,
                flags: 0,
                desc_table_addr: desc,
                avail_ring_addr: avail,
                used_ring_addr: used,
                log_addr: None,
            };
            frontend.set_vring_addr(ring, &addresses).unwrap();
            frontend.set_vring_call(ring, &self.events[0]).unwrap();
            frontend.set_vring_kick(ring, &self.events[1]).unwrap();
            frontend.set_vring_enable(ring, true).unwrap();
        }
        self.frontend = Some(frontend);
    }
}

/// What a driver does with its ring.
trait Drive {
    /// Takes back what was used, and checks that it is what was offered, each once and in order; offers all of it anew.
    /// How many there were.
    fn turn(&mut self, guest: &Guest) -> u64;
}

const MEMORY: (u64, u64) = (0, 0x40_0000);
const BUFFERS: u64 = 0x20_0000;
const BUFFER: u32 = 256;
const SIZE: u16 = 128;

struct Split {
    queue: Queue,
    seen: u16,
}

impl Split {
    fn new(guest: &Guest, write: bool) -> Self {
        let queue = Queue::at(0x1000, SIZE);
        queue.reset(guest, 0);
        Queue::at(0x10_1000, SIZE).reset(guest, 0);
        for i in 0..SIZE {
            let flags = if write { F_WRITE } else { 0 };
            queue.set_desc(guest, i, BUFFERS + u64::from(BUFFER) * u64::from(i), BUFFER, flags, 0);
            queue.set_avail(guest, i, i);
        }
        queue.avail_idx(guest).store(SIZE, Ordering::Release);
        Self { queue, seen: 0 }
    }
}

impl Drive for Split {
    fn turn(&mut self, guest: &Guest) -> u64 {
        let used = self.queue.used_idx(guest).load(Ordering::Acquire);
        let count = used.wrapping_sub(self.seen);
        assert!(count <= SIZE, "{count} came back of {SIZE}");
        for i in 0..count {
            let index = self.seen.wrapping_add(i);
            let (id, _) = self.queue.used_elem(guest, index);
            assert_eq!(id, u32::from(index % SIZE), "at {index}");
        }
        self.seen = used;
        // The available ring names the same heads in every lap.
        self.queue.avail_idx(guest).store(used.wrapping_add(SIZE), Ordering::Release);
        count.into()
    }
}

struct Packed {
    driver: Driver,
    write: bool,
    next: u64,
}

impl Packed {
    fn new(guest: &Guest, write: bool) -> Self {
        let queue = PackedQueue::at(0x1000, SIZE);
        queue.reset(guest, At::START);
        PackedQueue::at(0x10_1000, SIZE).reset(guest, At::START);
        let mut packed = Self { driver: Driver::new(queue, At::START, 0x8_0000..0x9_0000), write, next: 0 };
        packed.offer(guest, SIZE.into());
        packed
    }

    fn offer(&mut self, guest: &Guest, count: u64) {
        for _ in 0..count {
            let at = BUFFERS + u64::from(BUFFER) * (self.next % u64::from(SIZE));
            self.driver.offer(guest, &[(at, BUFFER)], self.write, false).expect("a free descriptor");
            self.next += 1;
        }
        self.driver.show(guest, count as usize, false);
    }
}

impl Drive for Packed {
    fn turn(&mut self, guest: &Guest) -> u64 {
        // The driver itself makes sure that they come back in order.
        let count = self.driver.reap(guest, false).len() as u64;
        self.offer(guest, count);
        count
    }
}

/// A guest that sends and one that receives, each with its driver.
fn sender_and_receiver(
    packed: bool,
    records: bool,
    drive: impl Fn(&Guest, bool) -> Box<dyn Drive>,
) -> [(Side, Box<dyn Drive>); 2] {
    let parts = if packed {
        let queue = PackedQueue::at(0x1000, SIZE);
        [queue.desc, queue.driver, queue.device]
    } else {
        let queue = Queue::at(0x1000, SIZE);
        [queue.desc, queue.avail, queue.used]
    };
    [(1, false), (0, true)].map(|(ring, write)| {
        let guest = Guest::new(&[MEMORY]);
        let drive = drive(&guest, write);
        (Side::new(guest, ring, parts, SIZE, packed, records), drive)
    })
}

/// Two guests, the first sending to the second all the time, and a switch that is killed again and again.
fn survives(packed: bool, records: bool, drive: impl Fn(&Guest, bool) -> Box<dyn Drive>) {
    let dir = tempfile::tempdir().unwrap();
    let [(mut a, mut sends), (mut b, mut receives)] = sender_and_receiver(packed, records, drive);
    let (mut sent, mut received) = (0, 0);
    for round in 0..25u64 {
        let switch = Killed::start(dir.path());
        b.connect(&dir.path().join("b"));
        a.connect(&dir.path().join("a"));
        // As long as it takes to move some frames, and a little more, which differs each time.
        let (sent_before, received_before) = (sent, received);
        let deadline = Instant::now() + Duration::from_secs(20);
        while sent - sent_before < 1000 + 137 * round || received - received_before < 500 {
            sent += sends.turn(&a.guest);
            received += receives.turn(&b.guest);
            assert!(
                Instant::now() < deadline,
                "round {round}: {sent} sent, {received} received: the rings stand"
            );
        }
        drop(switch);
        sent += sends.turn(&a.guest);
        received += receives.turn(&b.guest);
    }
    a.guest.check_canaries();
    b.guest.check_canaries();
}

#[test]
fn no_descriptor_of_split_rings_is_lost_or_given_back_twice() {
    survives(false, true, |guest, write| Box::new(Split::new(guest, write)));
}

#[test]
fn no_descriptor_of_packed_rings_is_lost_or_given_back_twice() {
    survives(true, true, |guest, write| Box::new(Packed::new(guest, write)));
}

#[test]
fn split_rings_go_on_at_their_used_index_without_a_record() {
    survives(false, false, |guest, write| Box::new(Split::new(guest, write)));
}

#[test]
fn packed_rings_are_found_where_they_stand_without_a_record() {
    survives(true, false, |guest, write| Box::new(Packed::new(guest, write)));
}

// ---- planned restarts ---------------------------------------------------------------------------------------------

/// The same two guests, and ports that another process goes on with again and again.
fn goes_on(packed: bool, drive: impl Fn(&Guest, bool) -> Box<dyn Drive>) {
    let [(mut a, mut sends), (mut b, mut receives)] = sender_and_receiver(packed, true, drive);
    let (mut sender, mut receiver) = (Port::server(1), Port::server(1));
    a.connect(&sender.path);
    b.connect(&receiver.path);
    let mut burst = Burst::new();
    for round in 0..25u64 {
        let (mut sent, mut received) = (0, 0);
        // Not always whole laps of the ring, and a burst may be on its way back.
        for _ in 0..40 + round {
            sender.device.from_guest(0).serve(&mut burst, |burst| {
                receiver.device.to_guest(0).deliver(burst, burst.all());
            });
            sent += sends.turn(&a.guest);
            received += receives.turn(&b.guest);
        }
        assert!(sent >= 500 && received >= 500, "round {round}: {sent} sent, {received} received");
        sender = sender.handed_over(Role::Server);
        receiver = receiver.handed_over(Role::Server);
    }
    a.guest.check_canaries();
    b.guest.check_canaries();
}

#[test]
fn another_process_goes_on_with_the_record_of_split_rings() {
    goes_on(false, |guest, write| Box::new(Split::new(guest, write)));
}

#[test]
fn another_process_goes_on_with_the_record_of_packed_rings() {
    goes_on(true, |guest, write| Box::new(Packed::new(guest, write)));
}
