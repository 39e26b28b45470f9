//! A frontend for tests: the `vhost` crate's, with memory of its own and rings at fixed places in it.

#![allow(dead_code)]

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileExt,
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserProtocolFeatures},
    },
};
use vhost_backend::device::{Device, DeviceConfig, DeviceError, Role, State};
use vhost_backend::handover::Descriptors;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Frontend address of guest address 0.
pub(crate) const USER: u64 = 0x7f12_3400_0000;
pub(crate) const MEMORY: u64 = 1 << 20;
pub(crate) const RING: u16 = 256;
/// VIRTIO_F_RING_PACKED, which this guest does not choose.
pub(crate) const PACKED: u64 = 1 << 34;

/// Counts the calls of a device's `changed`, and lets tests wait for what follows from one.
#[derive(Default)]
pub(crate) struct Changes {
    count: Mutex<u64>,
    more: Condvar,
}

impl Changes {
    pub(crate) fn callback(self: &Arc<Self>) -> Arc<dyn Fn() + Send + Sync> {
        let changes = self.clone();
        Arc::new(move || {
            *changes.count.lock().unwrap() += 1;
            changes.more.notify_all();
        })
    }

    pub(crate) fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }

    /// Waits until `reached` holds, looking after every change.
    pub(crate) fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut count = self.count.lock().unwrap();
        while !reached() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "gave up waiting until {what}");
            count = self.more.wait_timeout(count, left).unwrap().0;
        }
    }
}

/// A device with its socket's directory.
pub(crate) struct Port {
    pub(crate) device: Arc<Device>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) path: PathBuf,
    pub(crate) dir: TempDir,
}

pub(crate) fn config(path: &Path, role: Role, queue_pairs: u16) -> DeviceConfig {
    DeviceConfig { name: "port".into(), path: path.into(), role, queue_pairs }
}

pub(crate) fn start(path: &Path, role: Role) -> Result<Arc<Device>, DeviceError> {
    Device::start(config(path, role, 1), Arc::new(|| ()))
}

impl Port {
    pub(crate) fn server(queue_pairs: u16) -> Self {
        Self::new(Role::Server, queue_pairs)
    }

    pub(crate) fn new(role: Role, queue_pairs: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let changes = Arc::new(Changes::default());
        let device = Device::start(config(&path, role, queue_pairs), changes.callback()).unwrap();
        Self { device, changes, path, dir }
    }

    /// The port as another process goes on with it; what this one had of it is given back by nobody.
    pub(crate) fn handed_over(self, role: Role) -> Self {
        let Self { device, path, dir, .. } = self;
        assert!(device.halt(Instant::now() + PATIENCE), "the control thread has nothing to do");
        let mut descriptors = Descriptors::default();
        let state = device.export(&mut descriptors).unwrap();
        let changes = Arc::new(Changes::default());
        let mut descriptors = Descriptors::new(descriptors.into_vec());
        let config = config(&path, role, device.queue_pairs() as u16);
        let next = Device::resume(config, &state, &mut descriptors, changes.callback()).unwrap();
        std::mem::forget(device);
        next.go_on();
        Self { device: next, changes, path, dir }
    }

    pub(crate) fn state(&self) -> State {
        self.device.state().0
    }

    pub(crate) fn wait_for(&self, state: State) -> String {
        self.changes.wait(&format!("the port is {state:?}"), || self.state() == state);
        self.device.state().1
    }

    /// Waits until a connection has ended for a reason that contains `text`.
    pub(crate) fn wait_for_end(&self, text: &str) {
        self.changes.wait(&format!("a connection ends with '{text}'"), || {
            let (state, reason) = self.device.state();
            matches!(state, State::Connecting | State::Broken) && reason.contains(text)
        });
    }

    /// Connects and negotiates; with `acks` every message is answered.
    pub(crate) fn vmm(&self) -> Vmm {
        Vmm::new(UnixStream::connect(&self.path).unwrap(), 2 * self.device.queue_pairs() as u64)
    }
}

/// A virtual machine monitor with a guest that does nothing.
pub(crate) struct Vmm {
    pub(crate) frontend: Frontend,
    pub(crate) memory: File,
    pub(crate) kicks: Vec<EventFd>,
    pub(crate) calls: Vec<EventFd>,
}

pub(crate) fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

impl Vmm {
    /// The owner, not yet anything negotiated. `rings` may be more than there are.
    pub(crate) fn bare(stream: UnixStream, rings: u64) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let frontend = Frontend::from_stream(stream, rings);
        frontend.set_owner().unwrap();
        let events = || (0..rings).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        Self { frontend, memory: memfd(MEMORY), kicks: events(), calls: events() }
    }

    pub(crate) fn new(stream: UnixStream, rings: u64) -> Self {
        let mut vmm = Self::bare(stream, rings);
        let offered = vmm.frontend.get_features().unwrap();
        let protocol = vmm.frontend.get_protocol_features().unwrap();
        vmm.frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        vmm.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        vmm.frontend.set_features(offered & !PACKED).unwrap();
        vmm
    }

    pub(crate) fn region(&self, gpa: u64, size: u64, mmap_offset: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: USER + gpa,
            mmap_offset,
            mmap_handle: self.memory.as_raw_fd(),
        }
    }

    pub(crate) fn all_memory(&self) -> VhostUserMemoryRegionInfo {
        self.region(0, MEMORY, 0)
    }

    pub(crate) fn addresses(ring: usize) -> VringConfigData {
        let base = USER + 0x4000 * ring as u64;
        VringConfigData {
            queue_max_size: RING,
            queue_size: RING,
            flags: 0,
            desc_table_addr: base,
            avail_ring_addr: base + 0x1000,
            used_ring_addr: base + 0x2000,
            log_addr: None,
        }
    }

    /// All that a ring needs but to be enabled.
    pub(crate) fn set_up_ring(&self, ring: usize, base: u16) -> vhost::Result<()> {
        // The device side takes its place from the used ring; an honest base says the same.
        self.memory.write_all_at(&base.to_le_bytes(), 0x4000 * ring as u64 + 0x2002).unwrap();
        self.memory.write_all_at(&base.to_le_bytes(), 0x4000 * ring as u64 + 0x1002).unwrap();
        self.frontend.set_vring_num(ring, RING)?;
        self.frontend.set_vring_base(ring, base)?;
        self.frontend.set_vring_addr(ring, &Self::addresses(ring))?;
        self.frontend.set_vring_call(ring, &self.calls[ring])?;
        self.frontend.set_vring_kick(ring, &self.kicks[ring])
    }

    /// Memory and the first pair of rings, enabled.
    pub(crate) fn boot(&mut self) {
        self.frontend.set_mem_table(&[self.all_memory()]).unwrap();
        for ring in 0..2 {
            self.set_up_ring(ring, 0).unwrap();
            self.frontend.set_vring_enable(ring, true).unwrap();
        }
    }
}

/// Sends a message of two words on a frontend's socket and returns the answer's status.
pub(crate) fn raw(frontend: &Frontend, request: u32, body: [u32; 2]) -> u32 {
    let stream = raw_stream(frontend);
    let message = [request, 1 | 8, 8, body[0], body[1]].map(u32::to_ne_bytes).concat();
    (&stream).write_all(&message).unwrap();
    let mut answer = [0; 20];
    (&stream).read_exact(&mut answer).unwrap();
    let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().unwrap());
    assert_eq!([word(0), word(4), word(8), word(16)], [request, 1 | 4, 8, 0]);
    word(12)
}

/// SET_VRING_ENABLE.
pub(crate) fn raw_enable(frontend: &Frontend, ring: u32, enable: u32) -> u32 {
    raw(frontend, 18, [ring, enable])
}

/// SET_VRING_KICK with the flag that says that there is no descriptor.
pub(crate) fn raw_kick_without_descriptor(frontend: &Frontend, ring: u32) -> u32 {
    raw(frontend, 12, [ring | 0x100, 0])
}

/// A second descriptor of a frontend's connection.
pub(crate) fn raw_stream(frontend: &Frontend) -> UnixStream {
    // SAFETY: the frontend lives, and with it its descriptor.
    let fd = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    fd.try_clone_to_owned().unwrap().into()
}
