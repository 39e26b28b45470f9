//! Reserving hugepages for a test, on machines that have room for them.

use std::fs::{self, File};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use crate::progress;

/// KiB of the hugepages that most have.
const COMMON: u64 = 2048;

/// Hugepages that are free for the test; those that were added for it go when it is dropped.
pub struct Hugepages {
    kib: u64,
    added: u64,
}

impl Hugepages {
    /// Makes sure that `pages` of 2 MiB are free. `None`, and said so, where they cannot be had.
    pub fn reserve(pages: u64) -> Option<Self> {
        Self::of(COMMON, pages)
    }

    /// The same of pages of `kib` KiB each.
    pub fn of(kib: u64, pages: u64) -> Option<Self> {
        let reserved = Self::try_of(kib, pages);
        if reserved.is_none() {
            progress!("SKIPPED: {pages} hugepages of {} MiB are not to be had", kib >> 10);
        }
        reserved
    }

    fn try_of(kib: u64, pages: u64) -> Option<Self> {
        let free = read(kib, "free_hugepages")?;
        let before = read(kib, "nr_hugepages")?;
        let missing = pages.saturating_sub(free);
        if missing > 0 {
            // Refused to an ordinary user; where memory is scattered the kernel gives fewer than asked for.
            let _ = fs::write(path(kib, "nr_hugepages"), (before + missing).to_string());
        }
        let reserved = Self { kib, added: read(kib, "nr_hugepages")?.saturating_sub(before) };
        (read(kib, "free_hugepages")? >= pages).then_some(reserved)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if self.added > 0
            && let Some(now) = read(self.kib, "nr_hugepages")
        {
            let _ = fs::write(path(self.kib, "nr_hugepages"), now.saturating_sub(self.added).to_string());
        }
    }
}

fn path(kib: u64, what: &str) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{what}")
}

fn read(kib: u64, what: &str) -> Option<u64> {
    fs::read_to_string(path(kib, what)).ok()?.trim().parse().ok()
}

/// A memfd in hugepages, mapped, for such a file cannot be written to otherwise.
pub struct HugeMemory {
    file: File,
    region: MmapRegion,
}

impl HugeMemory {
    /// Of `pages` pages of `kib` KiB (2048 or 1,048,576), all of which must be free.
    #[track_caller]
    pub fn new(kib: u64, pages: u64) -> Self {
        let size = if kib == COMMON { MFdFlags::MFD_HUGE_2MB } else { MFdFlags::MFD_HUGE_1GB };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | size;
        let file = memfd_create("shunt-test-huge", flags).unwrap_or_else(|e| panic!("memfd_create: {e}"));
        let file = File::from(file);
        let len = (pages * kib) << 10;
        file.set_len(len).unwrap_or_else(|e| panic!("cannot size a memfd: {e}"));
        let clone = file.try_clone().unwrap_or_else(|e| panic!("dup: {e}"));
        let region = MmapRegion::from_file(FileOffset::new(clone, 0), len as usize);
        Self { file, region: region.unwrap_or_else(|e| panic!("cannot map hugepages: {e}")) }
    }

    /// To be shared.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes at an offset of the file.
    #[track_caller]
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let written = self.region.as_volatile_slice().write_slice(bytes, at as usize);
        written.unwrap_or_else(|e| panic!("cannot write at {at:#x}: {e}"));
    }
}
