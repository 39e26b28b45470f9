//! A guest made by hand: memory in memfds that it maps for itself, and split rings laid out in it.
//!
//! The code under test gets the same memfds through [`GuestMap`], so it has mappings of its own, as with a real
//! frontend. Each region lies between canary bytes in its file, and PROT_NONE pages lie around the mapping under test
//! wherever the address space is free: a write outside of a region is noticed or dies.
#![allow(dead_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vhost_backend::memory::GuestMap;
use vhost_backend::ring::{Ring, RingCell, RingFault, RingSetup};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_CSUM: the guest may ask for checksums, so its headers count.
pub(crate) const CSUM: u64 = 1;

const PAGE: usize = 4096;
const CANARY: u8 = 0xC7;
const GUARD: usize = 16 * PAGE;

/// xorshift64*: bulk bytes and shuffles from one seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub(crate) fn shuffle<T>(&mut self, of: &mut [T]) {
        for i in (1..of.len()).rev() {
            of.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// A memfd that goes away with the file.
pub(crate) fn memfd(len: u64) -> File {
    if cfg!(miri) {
        // Only its length matters there: see `Mapped::of`.
        let file = tempfile::tempfile().expect("tempfile");
        file.set_len(len).expect("set_len");
        return file;
    }
    // SAFETY: a name that lives for the call; the descriptor is new and ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"shunt-test-guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    file.set_len(len).expect("set_len");
    file
}

pub(crate) struct Mapped {
    pub(crate) at: *mut u8,
    len: usize,
}

// SAFETY: plain memory; what is in it is only touched through raw pointers.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// The guest's own mapping of its file. Under miri there are no shared mappings: it looks into the one under test,
    /// which lies one page into the file; what is around it is watched by miri.
    fn of(file: &File, len: usize, under_test: *mut u8) -> Self {
        if cfg!(miri) {
            return Self { at: under_test.wrapping_sub(PAGE), len };
        }
        Self::shared(file, len)
    }

    /// A file's first bytes, shared with whoever else maps it.
    pub(crate) fn shared(file: &File, len: usize) -> Self {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { at: at.cast(), len }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if cfg!(miri) {
            return;
        }
        // SAFETY: a mapping of ours, unmapped once.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// One region of a guest's memory.
pub(crate) struct Region {
    pub(crate) gpa: u64,
    pub(crate) size: u64,
    /// The address that the frontend would have it at.
    pub(crate) user: u64,
    pub(crate) file: File,
    own: Mapped,
}

impl Region {
    fn bytes(&self) -> *mut u8 {
        self.own.at.wrapping_add(PAGE)
    }
}

/// A guest with its memory.
pub(crate) struct Guest {
    pub(crate) regions: Vec<Region>,
    pub(crate) map: Arc<GuestMap>,
    guards: Vec<Mapped>,
}

/// Difference between a guest address and the frontend's, plus the region's number times 4 GiB.
const USER: u64 = 0x7e00_0000_0000;

impl Guest {
    /// A guest with regions of these guest addresses and sizes.
    pub(crate) fn new(regions: &[(u64, u64)]) -> Self {
        Self::placed(regions, |i, gpa| gpa + USER + (i << 32))
    }

    /// The same, whose frontend has everything in one piece: what is adjacent for the guest is adjacent for it, too.
    pub(crate) fn in_one_piece(regions: &[(u64, u64)]) -> Self {
        Self::placed(regions, |_, gpa| gpa + USER)
    }

    fn placed(regions: &[(u64, u64)], user: impl Fn(u64, u64) -> u64) -> Self {
        let mut map = GuestMap::empty();
        let (mut made, mut guards) = (Vec::new(), Vec::new());
        for (i, &(gpa, size)) in regions.iter().enumerate() {
            let len = PAGE + (size as usize).next_multiple_of(PAGE) + PAGE;
            let file = memfd(len as u64);
            let user = user(i as u64, gpa);
            map = map.with_region(gpa, size, user, PAGE as u64, &file).expect("with_region");
            let theirs = map.user_range(user, size).expect("user_range");
            let own = Mapped::of(&file, len, theirs);
            if !cfg!(miri) {
                // SAFETY: all within the mapping just made.
                unsafe {
                    own.at.write_bytes(CANARY, PAGE);
                    own.at.add(PAGE + size as usize).write_bytes(CANARY, len - PAGE - size as usize);
                }
                guards.extend(guard(theirs as usize - GUARD));
                guards.extend(guard(theirs as usize + (size as usize).next_multiple_of(PAGE)));
            }
            made.push(Region { gpa, size, user, file, own });
        }
        Self { regions: made, map: Arc::new(map), guards }
    }

    fn region(&self, gpa: u64) -> &Region {
        self.regions
            .iter()
            .find(|r| gpa >= r.gpa && gpa - r.gpa < r.size)
            .unwrap_or_else(|| panic!("the test uses guest address {gpa:#x}, which is nowhere"))
    }

    /// The frontend's address of a guest address.
    pub(crate) fn user(&self, gpa: u64) -> u64 {
        let region = self.region(gpa);
        region.user + (gpa - region.gpa)
    }

    /// Calls `piece` with the pieces of guest memory at `gpa`, which may cross adjacent regions.
    fn pieces(&self, mut gpa: u64, mut len: usize, mut piece: impl FnMut(*mut u8, usize)) {
        while len > 0 {
            let region = self.region(gpa);
            let offset = gpa - region.gpa;
            let n = len.min((region.size - offset) as usize);
            piece(region.bytes().wrapping_add(offset as usize), n);
            gpa += n as u64;
            len -= n;
        }
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        let mut from = bytes;
        self.pieces(gpa, bytes.len(), |at, n| {
            // SAFETY: `pieces` gives mapped memory of our own.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), at, n) };
            from = &from[n..];
        });
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        self.pieces(gpa, len, |at, n| {
            let old = bytes.len();
            bytes.resize(old + n, 0);
            // SAFETY: `pieces` gives mapped memory of our own.
            unsafe { std::ptr::copy_nonoverlapping(at, bytes[old..].as_mut_ptr(), n) };
        });
        bytes
    }

    /// The 16-bit word at `gpa`, as an index or flag that both sides use.
    pub(crate) fn word(&self, gpa: u64) -> &AtomicU16 {
        let region = self.region(gpa);
        assert!(gpa.is_multiple_of(2) && gpa - region.gpa + 2 <= region.size);
        // SAFETY: mapped, aligned, and shared only through atomics by this side.
        unsafe { AtomicU16::from_ptr(region.bytes().wrapping_add((gpa - region.gpa) as usize).cast()) }
    }

    /// Random bytes in all of a region.
    pub(crate) fn randomise(&self, region: usize, random: &mut Random) {
        let region = &self.regions[region];
        // SAFETY: a mapping of our own, and nobody else is at work yet.
        random.fill(unsafe { std::slice::from_raw_parts_mut(region.bytes(), region.size as usize) });
    }

    /// What is in a region now.
    pub(crate) fn image(&self, region: usize) -> Vec<u8> {
        let region = &self.regions[region];
        self.read(region.gpa, region.size as usize)
    }

    /// A copy of this guest's memory for the reference implementation.
    pub(crate) fn reference(&self) -> GuestMemoryMmap {
        let ranges: Vec<_> = self.regions.iter().map(|r| (GuestAddress(r.gpa), r.size as usize)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("reference memory");
        for (i, region) in self.regions.iter().enumerate() {
            memory.write_slice(&self.image(i), GuestAddress(region.gpa)).expect("copy");
        }
        memory
    }

    /// Panics if anything outside of the regions was written.
    pub(crate) fn check_canaries(&self) {
        if cfg!(miri) {
            return;
        }
        for region in &self.regions {
            let end = PAGE + region.size as usize;
            for i in (0..PAGE).chain(end..region.own.len) {
                // SAFETY: within our own mapping.
                let byte = unsafe { region.own.at.add(i).read_volatile() };
                assert_eq!(byte, CANARY, "byte {i} of the file of region {:#x} was overwritten", region.gpa);
            }
        }
    }
}

/// A PROT_NONE guard at `at`, if nothing else is there.
fn guard(at: usize) -> Option<Mapped> {
    // SAFETY: MAP_FIXED_NOREPLACE takes only addresses that are free.
    let got = unsafe {
        libc::mmap(
            at as *mut libc::c_void,
            GUARD,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    (got != libc::MAP_FAILED).then_some(Mapped { at: got.cast(), len: GUARD })
}

/// A buffer of a chain: guest address and length.
pub(crate) type Piece = (u64, u32);

/// A split ring in a guest's memory, seen by its driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) end: u64,
}

impl Queue {
    /// A ring at `at` (16-aligned), all three parts behind one another.
    pub(crate) fn at(at: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let desc = at;
        let avail = desc + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        Self { size, desc, avail, used, end: (used + 6 + 8 * entries).next_multiple_of(16) }
    }

    /// Empties the ring and lets both indexes stand at `index`.
    pub(crate) fn reset(&self, guest: &Guest, index: u16) {
        guest.write(self.desc, &vec![0; (self.end - self.desc) as usize]);
        guest.word(self.avail + 2).store(index, Ordering::Relaxed);
        guest.word(self.used + 2).store(index, Ordering::Relaxed);
    }

    pub(crate) fn set_desc(&self, guest: &Guest, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        write_desc(guest, self.desc + 16 * u64::from(index), addr, len, flags, next);
    }

    /// Puts `head` into the available ring at `index`, without publishing it.
    pub(crate) fn set_avail(&self, guest: &Guest, index: u16, head: u16) {
        guest.word(self.avail_entry(index)).store(head, Ordering::Relaxed);
    }

    pub(crate) fn avail_entry(&self, index: u16) -> u64 {
        self.avail + 4 + 2 * u64::from(index & (self.size - 1))
    }

    pub(crate) fn avail_idx<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.avail + 2)
    }

    pub(crate) fn used_idx<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.used + 2)
    }

    pub(crate) fn avail_flags<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.avail)
    }

    pub(crate) fn used_flags<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.used)
    }

    pub(crate) fn used_event<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.avail + 4 + 2 * u64::from(self.size))
    }

    pub(crate) fn avail_event<'a>(&self, guest: &'a Guest) -> &'a AtomicU16 {
        guest.word(self.used + 4 + 8 * u64::from(self.size))
    }

    /// The used element at `index`: head and length.
    pub(crate) fn used_elem(&self, guest: &Guest, index: u16) -> (u32, u32) {
        let bytes = guest.read(self.used + 4 + 8 * u64::from(index & (self.size - 1)), 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        (word(0), word(4))
    }

    /// What the backend gets to know of this ring, with descriptors to watch it by.
    pub(crate) fn setup(&self, guest: &Guest, features: u64, base: u16) -> (RingSetup, Wires) {
        let wires = Wires::new();
        let setup = RingSetup {
            size: self.size,
            desc: guest.user(self.desc),
            avail: guest.user(self.avail),
            used: guest.user(self.used),
            base: Some(base.into()),
            features,
            map: guest.map.clone(),
            kick: Some(wires.kick.clone()),
            call: Some(wires.call.try_clone().expect("dup")),
            err: Some(wires.err.try_clone().expect("dup")),
        };
        (setup, wires)
    }

    /// A cell with this ring running in it.
    pub(crate) fn start(&self, guest: &Guest, features: u64, base: u16) -> (RingCell, Wires) {
        running(self.setup(guest, features, base))
    }

    pub(crate) fn restart(
        &self,
        guest: &Guest,
        features: u64,
        base: u16,
        cell: &RingCell,
    ) -> Result<Wires, RingFault> {
        run(self.setup(guest, features, base), cell)
    }
}

/// A cell with a ring running in it.
pub(crate) fn running(setup: (RingSetup, Wires)) -> (RingCell, Wires) {
    let cell = RingCell::new();
    cell.set_enabled(true);
    let wires = run(setup, &cell).expect("a legal ring");
    (cell, wires)
}

/// Starts a ring in a cell.
pub(crate) fn run((setup, wires): (RingSetup, Wires), cell: &RingCell) -> Result<Wires, RingFault> {
    cell.start(Ring::new(setup)?);
    Ok(wires)
}

pub(crate) fn write_desc(guest: &Guest, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    guest.write(at, &bytes);
}

/// The eventfds of a ring.
pub(crate) struct Wires {
    pub(crate) kick: Arc<EventFd>,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
}

impl Wires {
    fn new() -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
        Self { kick: Arc::new(eventfd()), call: eventfd(), err: eventfd() }
    }

    /// Whether the guest was interrupted since the last question.
    pub(crate) fn called(&self) -> bool {
        self.call.read().is_ok()
    }

    /// Whether the frontend was told of a fault since the last question.
    pub(crate) fn failed(&self) -> bool {
        self.err.read().is_ok()
    }
}

/// Lays descriptor chains into a ring: free descriptors in shuffled order, indirect tables from a space of their own.
pub(crate) struct Chains {
    pub(crate) queue: Queue,
    free: Vec<u16>,
    tables: u64,
    tables_end: u64,
}

impl Chains {
    /// Indirect tables come from guest addresses `tables`.
    pub(crate) fn new(queue: Queue, tables: std::ops::Range<u64>, random: &mut Random) -> Self {
        let mut free: Vec<u16> = (0..queue.size).collect();
        random.shuffle(&mut free);
        Self { queue, free, tables: tables.start, tables_end: tables.end }
    }

    /// Builds a chain and returns its head; the pieces from number `indirect_from` on go into an indirect table.
    /// `None` if descriptors or table space are short.
    pub(crate) fn add(
        &mut self,
        guest: &Guest,
        pieces: &[Piece],
        write: bool,
        indirect_from: Option<usize>,
    ) -> Option<u16> {
        let direct = indirect_from.unwrap_or(pieces.len()).min(pieces.len());
        let indirect = &pieces[direct..];
        let needed = direct + usize::from(!indirect.is_empty());
        // Tables need no alignment: every other one is odd.
        let table = self.tables + 16 + (self.tables >> 4 & 1);
        let table_end = table + 16 * indirect.len() as u64;
        if needed == 0 || needed > self.free.len() || table_end > self.tables_end {
            return None;
        }
        let flag = if write { F_WRITE } else { 0 };
        let taken = self.free.split_off(self.free.len() - needed);
        for (i, &index) in taken.iter().enumerate() {
            let next = taken.get(i + 1);
            let next_flag = if next.is_some() { F_NEXT } else { 0 };
            let next = next.copied().unwrap_or(0xdead);
            match pieces[..direct].get(i) {
                Some(&(addr, len)) => self.queue.set_desc(guest, index, addr, len, flag | next_flag, next),
                None => {
                    self.queue.set_desc(guest, index, table, 16 * indirect.len() as u32, F_INDIRECT, next)
                }
            }
        }
        for (i, &(addr, len)) in indirect.iter().enumerate() {
            let last = i + 1 == indirect.len();
            let at = table + 16 * i as u64;
            let (next_flag, next) = if last { (0, 0xbeef) } else { (F_NEXT, i as u16 + 1) };
            write_desc(guest, at, addr, len, flag | next_flag, next);
        }
        if !indirect.is_empty() {
            self.tables = table_end.next_multiple_of(16);
        }
        Some(taken[0])
    }
}
