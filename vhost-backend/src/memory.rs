//! Guest memory: the regions that a frontend shares, mapped, and the translation of addresses into them.
//!
//! A [`GuestMap`] never changes. A session's control thread builds a new one from the old (mappings are shared, so a
//! new region does not touch the others), gives it to the rings, and drops the old one: workers only borrow, so the
//! unmapping never falls to them. Two kinds of addresses lead in: guest physical ones (descriptors) and the
//! frontend's virtual ones (ring addresses), see "Memory region description" of the vhost-user specification.
//!
//! The other side is not trusted: it may send any numbers, any file, and shrink the file later ([`crate::sigbus`]).
//! No Rust reference to guest memory ever exists but to atomics, only raw pointers.

use std::{
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use crate::{
    mapping::{self, MapError, Mapping},
    sigbus,
};
use joined::{Joined, Piece};

mod joined;

/// Most regions of one guest: what QEMU's vhost-user asks for, and what we announce (`GET_MAX_MEM_SLOTS`).
pub const MAX_SLOTS: usize = 509;
/// Most bytes that one guest may share; one frontend must not use up the address space of all.
pub const MAX_MEMORY: u64 = 8 << 40;
/// Most rings' parts of one map that cross regions: three of each of 256 rings, some asked for in two lengths.
const MAX_JOINED: usize = 2048;
/// What guest addresses, frontend addresses and file offsets of a region must be multiples of.
const REGION_ALIGN: u64 = 4096;

/// Why a region cannot be shared or taken back. Addresses are guest physical ones unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region of no bytes.
    #[error("memory region at {gpa:#x} is empty")]
    Empty {
        /// Guest physical address.
        gpa: u64,
    },
    /// One of the sums address + size or offset + size does not fit 64 bits.
    #[error("memory region at {gpa:#x} of {size:#x} bytes runs beyond the end of the address space")]
    Overflow {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// Guest address, frontend address or file offset is not a multiple of 4 KiB.
    #[error("memory region at {gpa:#x}: {what} {value:#x} is not a multiple of {REGION_ALIGN}")]
    Unaligned {
        /// Guest physical address.
        gpa: u64,
        /// Which of the values.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// Two regions claim the same guest addresses.
    #[error("memory region at {gpa:#x} of {size:#x} bytes overlaps the one at {other:#x}")]
    Overlap {
        /// Guest physical address of the new region.
        gpa: u64,
        /// Bytes of the new region.
        size: u64,
        /// Guest physical address of the one that is there.
        other: u64,
    },
    /// More than [`MAX_SLOTS`] regions.
    #[error("more than {MAX_SLOTS} memory regions")]
    TooMany,
    /// More than [`MAX_MEMORY`] bytes together.
    #[error(
        "memory region at {gpa:#x} of {size:#x} bytes makes the guest's memory larger than {MAX_MEMORY:#x} bytes"
    )]
    TooLarge {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The file ends before the region does.
    #[error("memory region at {gpa:#x} needs {needed:#x} bytes of a file that has only {size:#x}")]
    FileTooShort {
        /// Guest physical address.
        gpa: u64,
        /// Offset and size of the region together.
        needed: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// A file whose pages may block or cannot be guarded.
    #[error(
        "memory region at {gpa:#x} is backed by {what}; use a memfd, or a file on tmpfs, hugetlbfs or a local disk"
    )]
    UnsuitableFile {
        /// Guest physical address.
        gpa: u64,
        /// What it is instead.
        what: String,
    },
    /// The kernel refused.
    #[error("memory region at {gpa:#x}: {call}: {source}")]
    Kernel {
        /// Guest physical address.
        gpa: u64,
        /// Which call failed.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The region to take away is not there.
    #[error("no memory region at {gpa:#x} of {size:#x} bytes with frontend address {user_addr:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// Address in the frontend.
        user_addr: u64,
    },
}

/// What translation needs of a region: apart from the rest, so that it is dense.
#[derive(Clone, Copy)]
struct Range {
    gpa: u64,
    size: u64,
    host: *mut u8,
}

/// The rest: what identifies a region, and what keeps its memory mapped.
#[derive(Clone)]
struct Slot {
    user_addr: u64,
    /// Where the region begins in its file, and the file: for who goes on in our place.
    offset: u64,
    file: Arc<File>,
    mapping: Arc<Mapping>,
}

/// The memory of a guest, as it was at one moment. Regions are sorted by guest address and do not overlap.
pub struct GuestMap {
    ranges: Vec<Range>,
    slots: Vec<Slot>,
    /// Rings that cross regions, mapped once more in one piece.
    joined: Mutex<Vec<Joined>>,
    /// The value of `sigbus::faults` for which `poisoned` holds.
    faults_seen: AtomicU32,
    poisoned: AtomicBool,
}

// SAFETY: the raw pointers lead to mappings that `slots` keeps, which are good in any thread; the map does not read or
// write through them itself, and does not change.
unsafe impl Send for GuestMap {}
// SAFETY: as above.
unsafe impl Sync for GuestMap {}

impl GuestMap {
    /// A guest without memory.
    pub fn empty() -> Self {
        Self::from_parts(Vec::new(), Vec::new())
    }

    fn from_parts(ranges: Vec<Range>, slots: Vec<Slot>) -> Self {
        // Stale at once if a fault has ever been seen: the first question then looks at every mapping.
        Self {
            ranges,
            slots,
            joined: Mutex::default(),
            faults_seen: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    /// This memory and one region more: `size` bytes at guest address `gpa`, which the frontend sees at `user_addr`
    /// and which begin at byte `mmap_offset` of `file`, of which a descriptor is kept.
    ///
    /// # Errors
    /// Any [`MemoryError`]; nothing is mapped then.
    pub fn with_region(
        &self,
        gpa: u64,
        size: u64,
        user_addr: u64,
        mmap_offset: u64,
        file: &File,
    ) -> Result<Self, MemoryError> {
        if size == 0 {
            return Err(MemoryError::Empty { gpa });
        }
        let overflow = || MemoryError::Overflow { gpa, size };
        let end = gpa.checked_add(size).ok_or_else(overflow)?;
        user_addr.checked_add(size).ok_or_else(overflow)?;
        for (what, value) in
            [("guest address", gpa), ("frontend address", user_addr), ("offset in the file", mmap_offset)]
        {
            if !value.is_multiple_of(REGION_ALIGN) {
                return Err(MemoryError::Unaligned { gpa, what, value });
            }
        }
        if self.ranges.len() >= MAX_SLOTS {
            return Err(MemoryError::TooMany);
        }
        if size > MAX_MEMORY - self.size() {
            return Err(MemoryError::TooLarge { gpa, size });
        }
        let at = self.ranges.partition_point(|r| r.gpa < gpa);
        let before = at.checked_sub(1).map(|i| &self.ranges[i]).filter(|r| r.gpa + r.size > gpa);
        let after = self.ranges.get(at).filter(|r| r.gpa < end);
        if let Some(other) = before.or(after) {
            return Err(MemoryError::Overlap { gpa, size, other: other.gpa });
        }
        let (mapping, host) = Mapping::new(size, mmap_offset, file).map_err(|e| match e {
            MapError::Overflow => overflow(),
            MapError::FileTooShort { needed, size } => MemoryError::FileTooShort { gpa, needed, size },
            MapError::UnsuitableFile(what) => MemoryError::UnsuitableFile { gpa, what },
            MapError::Kernel { call, source } => MemoryError::Kernel { gpa, call, source },
        })?;
        let kept = file.try_clone().map_err(|source| MemoryError::Kernel { gpa, call: "dup", source })?;
        let (mut ranges, mut slots) = (self.ranges.clone(), self.slots.clone());
        ranges.insert(at, Range { gpa, size, host });
        slots.insert(
            at,
            Slot { user_addr, offset: mmap_offset, file: Arc::new(kept), mapping: Arc::new(mapping) },
        );
        Ok(Self::from_parts(ranges, slots))
    }

    /// This memory without the region that has exactly this guest address, size and frontend address.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchRegion`].
    pub fn without_region(&self, gpa: u64, size: u64, user_addr: u64) -> Result<Self, MemoryError> {
        let at = self
            .ranges
            .iter()
            .zip(&self.slots)
            .position(|(r, s)| (r.gpa, r.size, s.user_addr) == (gpa, size, user_addr))
            .ok_or(MemoryError::NoSuchRegion { gpa, size, user_addr })?;
        let (mut ranges, mut slots) = (self.ranges.clone(), self.slots.clone());
        ranges.remove(at);
        slots.remove(at);
        Ok(Self::from_parts(ranges, slots))
    }

    /// Where guest address `gpa` is in this process, and how many bytes of its region follow from there on (at least
    /// one). `hint` remembers the last region between calls and may hold anything.
    ///
    /// The pointer is good while the map lives. What it points to may change at any time.
    #[inline]
    pub fn translate(&self, gpa: u64, hint: &mut u32) -> Option<(*mut u8, u64)> {
        if let Some(range) = self.ranges.get(*hint as usize) {
            let offset = gpa.wrapping_sub(range.gpa);
            if offset < range.size {
                return Some((range.host.wrapping_add(offset as usize), range.size - offset));
            }
        }
        self.translate_elsewhere(gpa, hint)
    }

    #[cold]
    fn translate_elsewhere(&self, gpa: u64, hint: &mut u32) -> Option<(*mut u8, u64)> {
        let at = self.ranges.partition_point(|r| r.gpa <= gpa).checked_sub(1)?;
        let range = &self.ranges[at];
        let offset = gpa - range.gpa;
        if offset >= range.size {
            return None;
        }
        *hint = at as u32;
        Some((range.host.wrapping_add(offset as usize), range.size - offset))
    }

    /// The region that guest address `gpa` lies in, for a ring to keep at hand: its first guest address, its bytes, and
    /// where it is in this process.
    #[cold]
    pub(crate) fn region_of(&self, gpa: u64) -> Option<(u64, u64, *mut u8)> {
        let mut hint = 0;
        self.translate(gpa, &mut hint)?;
        self.ranges.get(hint as usize).map(|range| (range.gpa, range.size, range.host))
    }

    /// The guest address of what the frontend has at `user_addr`, and how many bytes of its region follow from there on.
    pub(crate) fn guest_address(&self, user_addr: u64) -> Option<(u64, u64)> {
        self.ranges.iter().zip(&self.slots).find_map(|(range, slot)| {
            let offset = user_addr.checked_sub(slot.user_addr).filter(|&offset| offset < range.size)?;
            Some((range.gpa + offset, range.size - offset))
        })
    }

    /// Copies guest memory from `gpa` on to `to`, from one region into the next where they are adjacent. False if part of
    /// it lies outside of guest memory.
    #[cold]
    pub(crate) fn copy_out(&self, mut gpa: u64, mut to: &mut [u8]) -> bool {
        let mut hint = 0;
        while !to.is_empty() {
            let Some((from, room)) = self.translate(gpa, &mut hint) else { return false };
            let len = to.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, rest) = to.split_at_mut(len);
            for (i, byte) in now.iter_mut().enumerate() {
                // SAFETY: `translate` found `room` bytes, and `len` are not more. Volatile: the guest may write meanwhile.
                *byte = unsafe { from.wrapping_add(i).read_volatile() };
            }
            to = rest;
            gpa = gpa.wrapping_add(len as u64);
        }
        true
    }

    /// Where `len` bytes at the frontend's own address `user_addr` are in this process, in one piece. Where they cross
    /// regions that are adjacent for the frontend, those pages are mapped once more, for as long as this map lives.
    pub fn user_range(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let within_one = self.ranges.iter().zip(&self.slots).find_map(|(range, slot)| {
            let offset = user_addr.checked_sub(slot.user_addr)?;
            let rest = range.size.checked_sub(offset)?;
            (len <= rest && rest > 0).then(|| range.host.wrapping_add(offset as usize))
        });
        within_one.or_else(|| self.joined_range(user_addr, len))
    }

    /// Has the kernel map these bytes before they are used, as far as they are there; for rings: all of a guest's memory
    /// would be far more than it uses.
    pub(crate) fn make_ready(&self, user_addr: u64, len: u64) {
        if let Some(at) = self.user_range(user_addr, len) {
            mapping::make_ready(at, len);
        }
    }

    #[cold]
    fn joined_range(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = joined.iter().find_map(|piece| piece.find(user_addr, len)) {
            return Some(at);
        }
        // A frontend that names ever new addresses must not fill our address space.
        if joined.len() >= MAX_JOINED {
            return None;
        }
        let mut pieces = Vec::new();
        let end = user_addr.checked_add(len)?;
        let mut at = user_addr;
        while at < end {
            let (range, slot) = self.ranges.iter().zip(&self.slots).find(|(range, slot)| {
                at.checked_sub(slot.user_addr).is_some_and(|offset| offset < range.size)
            })?;
            let offset = at - slot.user_addr;
            let len = (range.size - offset).min(end - at);
            pieces.push(Piece {
                host: range.host as usize + offset as usize,
                len: len as usize,
                page: slot.mapping.page(),
            });
            at += len;
        }
        let piece = Joined::new(user_addr, &pieces)?;
        let at = piece.find(user_addr, len);
        joined.push(piece);
        at
    }

    /// Whether the frontend took memory away that was then touched: part of a region is now private zero pages.
    #[inline]
    pub fn poisoned(&self) -> bool {
        let faults = sigbus::faults();
        if faults == self.faults_seen.load(Ordering::Acquire) {
            return self.poisoned.load(Ordering::Relaxed);
        }
        self.look_for_poison(faults)
    }

    #[cold]
    fn look_for_poison(&self, faults: u32) -> bool {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        let poisoned = self.slots.iter().any(|s| s.mapping.poisoned())
            || joined.iter().any(|piece| piece.guard.poisoned());
        if poisoned {
            // Never unset: a mapping stays poisoned as long as it lives.
            self.poisoned.store(true, Ordering::Relaxed);
        }
        self.faults_seen.store(faults, Ordering::Release);
        poisoned
    }

    /// The regions as [`GuestMap::with_region`] takes them: guest address, size, frontend address, offset, file.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (u64, u64, u64, u64, &File)> {
        let part = |(range, slot): (&Range, &Slot)| (range.gpa, range.size, slot.user_addr, slot.offset);
        let files = self.slots.iter().map(|slot| &*slot.file);
        self.ranges
            .iter()
            .zip(&self.slots)
            .map(part)
            .zip(files)
            .map(|((a, b, c, d), file)| (a, b, c, d, file))
    }

    /// Number of regions.
    pub fn regions(&self) -> usize {
        self.ranges.len()
    }

    /// Bytes of all regions.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(|r| r.size).sum()
    }
}

impl std::fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.ranges.iter().zip(&self.slots).map(|(r, s)| {
                format!("guest {:#x}+{:#x} frontend {:#x} here {:p}", r.gpa, r.size, s.user_addr, r.host)
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests;
