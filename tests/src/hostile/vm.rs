//! A guest and its VMM in a few hundred bytes of state: memory in a memfd, written through the file, and split rings.
//!
//! Honest as long as its methods are used in their order; every field that a test may want to lie about can be written.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::wire::{Wire, request, words};

/// Entries of each ring.
pub const RING: u16 = 256;
/// Bytes of memory.
pub const MEMORY: u64 = 4 << 20;
/// Guest address of the first byte.
pub const GPA: u64 = 0x1_0000_0000;
/// The frontend's address of the first byte.
pub const USER: u64 = 0x7f00_0000_0000;
/// Bytes of a buffer.
pub const BUFFER: u64 = 2048;
/// Bytes of the virtio-net header.
pub const HEADER: usize = 12;
/// Where there is memory that neither rings nor buffers use.
pub const SPARE: u64 = 3 << 20;

/// Flags of descriptors.
#[allow(missing_docs)]
pub mod flag {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
    /// Of packed rings: the driver's mark of its lap, and the device's.
    pub const AVAIL: u16 = 1 << 7;
    pub const USED: u16 = 1 << 15;
}

/// VERSION_1, INDIRECT_DESC, MRG_RXBUF, CSUM, HOST_TSO4, GUEST_CSUM, and vhost-user's protocol features.
pub const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 15 | 1 << 11 | 1 | 1 << 1 | 1 << 30;
/// RING_PACKED.
pub const PACKED: u64 = 1 << 34;
/// MQ, REPLY_ACK, CONFIGURE_MEM_SLOTS.
pub const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 15;

/// The receive ring of the first pair.
pub const RX: usize = 0;
/// The transmit ring of the first pair.
pub const TX: usize = 1;

/// A memfd of `len` bytes that can be sealed.
#[track_caller]
pub fn memfd(len: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("shunt-test-vm", flags).unwrap_or_else(|e| panic!("memfd_create: {e}"));
    let file = File::from(file);
    file.set_len(len).unwrap_or_else(|e| panic!("cannot size a memfd: {e}"));
    file
}

#[track_caller]
fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .unwrap_or_else(|e| panic!("eventfd: {e}"))
}

/// Where a part of ring `ring` begins in memory.
pub fn desc(ring: usize) -> u64 {
    ring as u64 * 0x4000
}

/// See [`desc`].
pub fn avail(ring: usize) -> u64 {
    desc(ring) + 0x1000
}

/// See [`desc`].
pub fn used(ring: usize) -> u64 {
    desc(ring) + 0x2000
}

/// Where buffer `slot` of ring `ring` begins in memory.
pub fn buffer(ring: usize, slot: u16) -> u64 {
    (1 << 20) + ring as u64 % 2 * (1 << 20) + u64::from(slot) * BUFFER
}

/// What a ring's driver remembers.
#[derive(Clone, Copy, Default)]
struct Driver {
    avail: u16,
    used: u16,
}

/// A guest with its VMM.
pub struct Vm {
    /// The connection.
    pub wire: Wire,
    /// The guest's memory; shared, so that others can write to it meanwhile.
    pub memory: Arc<File>,
    /// One for each ring.
    pub kicks: Vec<EventFd>,
    /// One for each ring.
    pub calls: Vec<EventFd>,
    drivers: Vec<Driver>,
}

impl Vm {
    /// Connects, and says nothing yet.
    pub fn connect(path: &Path) -> Result<Self, String> {
        Ok(Self {
            wire: Wire::connect(path)?,
            memory: Arc::new(memfd(MEMORY)),
            kicks: (0..2).map(|_| event()).collect(),
            calls: (0..2).map(|_| event()).collect(),
            drivers: vec![Driver::default(); 2],
        })
    }

    /// Connects and does all that makes the port come up.
    pub fn boot(path: &Path) -> Result<Self, String> {
        let mut vm = Self::connect(path)?;
        for step in STEPS {
            step(&mut vm)?;
        }
        Ok(vm)
    }

    /// The same with packed rings: their parts lie where those of split ones would, and nothing is offered to send.
    pub fn boot_packed(path: &Path) -> Result<Self, String> {
        let mut vm = Self::connect(path)?;
        for (n, step) in STEPS.iter().enumerate() {
            match n {
                FEATURES_STEP => vm.wire.request(request::SET_FEATURES, &words(&[FEATURES | PACKED]), &[])?,
                FILL_STEP => {
                    for slot in 0..RING {
                        let at = GPA + buffer(RX, slot);
                        vm.packed(RX, slot, at, BUFFER as u32, flag::WRITE | flag::AVAIL);
                    }
                    vm.ring(request::SET_VRING_NUM, RX, RING.into())?;
                }
                BASE_STEP => vm.ring(request::SET_VRING_BASE, RX, 0x8000_8000)?,
                _ => step(&mut vm)?,
            }
        }
        Ok(vm)
    }

    /// The words of a region: guest address, size, frontend's address, offset in the file.
    pub fn region(offset: u64, len: u64) -> [u64; 4] {
        [GPA + offset, len, USER + offset, offset]
    }

    /// SET_MEM_TABLE with one region of `file`.
    pub fn set_memory(&self, region: [u64; 4], file: RawFd) -> Result<(), String> {
        let body = [words(&[1]), words(&region)].concat();
        self.wire.request(request::SET_MEM_TABLE, &body, &[file])
    }

    /// ADD_MEM_REG.
    pub fn add_region(&self, region: [u64; 4], file: RawFd) -> Result<(), String> {
        self.wire.request(request::ADD_MEM_REG, &[words(&[0]), words(&region)].concat(), &[file])
    }

    /// REM_MEM_REG.
    pub fn remove_region(&self, region: [u64; 4]) -> Result<(), String> {
        self.wire.request(request::REM_MEM_REG, &[words(&[0]), words(&region)].concat(), &[])
    }

    /// A request about a ring: its number and a value.
    pub fn ring(&self, request: u32, ring: usize, value: u32) -> Result<(), String> {
        self.wire.request(request, &words(&[ring as u64 | u64::from(value) << 32]), &[])
    }

    /// SET_VRING_ADDR; `shift` moves all three parts.
    pub fn set_addresses(&self, ring: usize, shift: u64) -> Result<(), String> {
        let at = |part: u64| USER.wrapping_add(part).wrapping_add(shift);
        let body = words(&[ring as u64, at(desc(ring)), at(used(ring)), at(avail(ring)), 0]);
        self.wire.request(request::SET_VRING_ADDR, &body, &[])
    }

    /// SET_VRING_KICK, _CALL or _ERR with any descriptor.
    pub fn set_event(&self, request: u32, ring: usize, fd: RawFd) -> Result<(), String> {
        self.wire.request(request, &words(&[ring as u64]), &[fd])
    }

    // ---- memory ---------------------------------------------------------------------------------------------------

    /// Writes to memory. Nothing if it has been taken away.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write_all_at(bytes, at);
    }

    fn read_word(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        let _ = self.memory.read_exact_at(&mut bytes, at);
        u16::from_le_bytes(bytes)
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let tail = [flags.to_le_bytes(), next.to_le_bytes()].concat();
        let bytes = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &tail].concat();
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// Writes descriptor `slot` of a packed ring, the first half first; its number is the slot's.
    pub fn packed(&self, ring: usize, slot: u16, addr: u64, len: u32, flags: u16) {
        self.descriptor(desc(ring), slot, addr, len, slot, flags);
    }

    // ---- rings ----------------------------------------------------------------------------------------------------

    /// Puts `head` into the available ring, publishes and kicks.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let driver = &mut self.drivers[ring];
        let at = avail(ring) + 4 + 2 * u64::from(driver.avail % RING);
        driver.avail = driver.avail.wrapping_add(1);
        let index = driver.avail;
        self.write(at, &head.to_le_bytes());
        self.publish(ring, index);
    }

    /// Writes the available index and kicks.
    pub fn publish(&self, ring: usize, index: u16) {
        self.write(avail(ring) + 2, &index.to_le_bytes());
        self.kick(ring);
    }

    /// Kicks.
    pub fn kick(&self, ring: usize) {
        let _ = self.kicks[ring].write(1);
    }

    /// Offers all receive buffers.
    pub fn fill(&mut self) {
        let table: Vec<u8> = (0..RING)
            .flat_map(|slot| {
                let rest = u64::from(BUFFER as u32) | u64::from(flag::WRITE) << 32;
                words(&[GPA + buffer(RX, slot), rest])
            })
            .collect();
        self.write(desc(RX), &table);
        let heads: Vec<u8> = (0..RING).flat_map(u16::to_le_bytes).collect();
        self.write(avail(RX) + 4, &heads);
        self.drivers[RX].avail = RING;
        self.publish(RX, RING);
    }

    /// Chains of a ring that came back and were not asked about.
    pub fn returned(&self, ring: usize) -> u16 {
        self.read_word(used(ring) + 2).wrapping_sub(self.drivers[ring].used)
    }

    /// The slot and buffer that the next frame takes; `None` if the ring is full.
    fn room(&mut self) -> Option<u16> {
        let back = self.returned(TX);
        self.drivers[TX].used = self.drivers[TX].used.wrapping_add(back);
        let Driver { avail, used } = self.drivers[TX];
        (avail.wrapping_sub(used) < RING).then_some(avail % RING)
    }

    /// Sends the `len` bytes, header and frame, that lie at guest address `gpa`. False if the ring is full.
    pub fn send_from(&mut self, gpa: u64, len: usize) -> bool {
        let Some(slot) = self.room() else { return false };
        self.descriptor(desc(TX), slot, gpa, len as u32, 0, 0);
        self.offer(TX, slot);
        true
    }

    /// Sends a frame behind `header`. False if the ring is full.
    pub fn send_with(&mut self, header: &[u8; HEADER], frame: &[u8]) -> bool {
        let Some(slot) = self.room() else { return false };
        let at = buffer(TX, slot);
        self.write(at, &[&header[..], frame].concat());
        self.send_from(GPA + at, HEADER + frame.len())
    }

    /// Sends a frame without offloads.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_with(&[0; HEADER], frame)
    }

    /// Sends one frame again and again, as fast as the switch takes it, until `end`; says how often it was taken.
    /// Nothing else may be under way.
    pub fn flood(&mut self, frame: &[u8], end: Instant) -> u64 {
        let at = buffer(TX, 0);
        self.write(at, &[&[0; HEADER], frame].concat());
        for slot in 0..RING {
            self.descriptor(desc(TX), slot, GPA + at, (HEADER + frame.len()) as u32, 0, 0);
        }
        let heads: Vec<u8> = (0..RING).flat_map(u16::to_le_bytes).collect();
        self.write(avail(TX) + 4, &heads);
        let mut taken = 0;
        while Instant::now() < end {
            let back = self.returned(TX);
            taken += u64::from(back);
            self.drivers[TX].used = self.drivers[TX].used.wrapping_add(back);
            let offered = self.drivers[TX].used.wrapping_add(RING);
            if self.drivers[TX].avail != offered {
                self.drivers[TX].avail = offered;
                self.publish(TX, offered);
            }
        }
        taken
    }

    /// The next frame received, if there is one; its buffer is offered again.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        if self.returned(RX) == 0 {
            return None;
        }
        let at = used(RX) + 4 + 8 * u64::from(self.drivers[RX].used % RING);
        self.drivers[RX].used = self.drivers[RX].used.wrapping_add(1);
        let mut element = [0; 8];
        self.memory.read_exact_at(&mut element, at).ok()?;
        let [head, len] =
            [0, 4].map(|i| u32::from_le_bytes([element[i], element[i + 1], element[i + 2], element[i + 3]]));
        let mut frame = vec![0; (len as usize).saturating_sub(HEADER).min(BUFFER as usize)];
        self.memory.read_exact_at(&mut frame, buffer(RX, head as u16) + HEADER as u64).ok()?;
        self.offer(RX, head as u16);
        Some(frame)
    }

    /// Waits for a frame that `wanted` is true for; others are thrown away.
    pub fn receive_until(&mut self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + limit;
        loop {
            while let Some(frame) = self.receive() {
                if wanted(&frame) {
                    return Some(frame);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            // An interrupt that came before the look at the ring is still counted: nothing is slept over.
            let timeout =
                PollTimeout::try_from(left.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.calls[RX].as_fd(), PollFlags::POLLIN)], timeout);
            let _ = self.calls[RX].read();
        }
    }
}

/// One message of a frontend, or several that belong together.
pub type Step = fn(&mut Vm) -> Result<(), String>;

/// Those of [`STEPS`] that are others with packed rings.
const FEATURES_STEP: usize = 4;
const FILL_STEP: usize = 6;
const BASE_STEP: usize = 7;

/// What makes a port come up, message by message, as QEMU says it.
pub const STEPS: [Step; 16] = [
    |vm| vm.wire.request(request::SET_OWNER, &[], &[]),
    |vm| vm.wire.ask(request::GET_FEATURES, &[]).map(drop),
    |vm| vm.wire.ask(request::GET_PROTOCOL_FEATURES, &[]).map(drop),
    |vm| {
        vm.wire.request(request::SET_PROTOCOL_FEATURES, &words(&[PROTOCOL]), &[])?;
        vm.wire.acks = true;
        Ok(())
    },
    |vm| vm.wire.request(request::SET_FEATURES, &words(&[FEATURES]), &[]),
    |vm| vm.set_memory(Vm::region(0, MEMORY), vm.memory.as_raw_fd()),
    |vm| {
        vm.fill();
        vm.ring(request::SET_VRING_NUM, RX, RING.into())
    },
    |vm| vm.ring(request::SET_VRING_BASE, RX, 0),
    |vm| vm.set_addresses(RX, 0),
    |vm| vm.set_event(request::SET_VRING_CALL, RX, vm.calls[RX].as_fd().as_raw_fd()),
    |vm| vm.set_event(request::SET_VRING_KICK, RX, vm.kicks[RX].as_fd().as_raw_fd()),
    |vm| vm.ring(request::SET_VRING_NUM, TX, RING.into()),
    |vm| vm.set_addresses(TX, 0),
    |vm| vm.set_event(request::SET_VRING_CALL, TX, vm.calls[TX].as_fd().as_raw_fd()),
    |vm| vm.set_event(request::SET_VRING_KICK, TX, vm.kicks[TX].as_fd().as_raw_fd()),
    |vm| {
        vm.ring(request::SET_VRING_ENABLE, RX, 1)?;
        vm.ring(request::SET_VRING_ENABLE, TX, 1)
    },
];
