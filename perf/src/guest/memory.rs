#![allow(unsafe_code)]
//! The guest's memory: one memfd, mapped here and by the switch.
//!
//! The other side changes these bytes whenever it likes, so nobody gets a reference to them: everything goes in and
//! out by checked copies. Offsets count from the start of the file; the switch knows them as guest-physical
//! addresses, which deliberately differ from offsets and from our own addresses.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Guest-physical address of offset 0.
const GUEST_BASE: u64 = 0x1_4000_0000;
const HUGE: usize = 2 << 20;

/// A shared mapping of a memfd.
pub(super) struct Memory {
    file: File,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are shared with another process anyway; here they are only ever touched through raw pointers,
// by copies and atomics, and the mapping lives until the last owner drops it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` zeroed bytes (rounded up to 2 MiB), from hugepages if asked.
    pub(super) fn new(len: usize, huge: bool) -> io::Result<Self> {
        let len = len.next_multiple_of(HUGE);
        let mut flags = MFdFlags::MFD_CLOEXEC;
        if huge {
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
        }
        let file = File::from(memfd_create("shunt-perf-guest", flags)?);
        file.set_len(len as u64)?;
        // SAFETY: a fresh shared mapping at an address that the kernel picks replaces nothing.
        let base = unsafe {
            mmap(
                None,
                len.try_into().expect("at least 2 MiB"),
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )?
        };
        Ok(Self { file, base: base.cast(), len })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Our own address of offset 0; what vhost-user calls the user address.
    pub(super) fn user_base(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    pub(super) fn guest_base(&self) -> u64 {
        GUEST_BASE
    }

    /// Guest-physical address of an offset.
    #[inline]
    pub(super) fn guest_address(&self, at: usize) -> u64 {
        GUEST_BASE + at as u64
    }

    /// A pointer to `len` bytes at `at`, which stays good as long as this mapping.
    ///
    /// # Panics
    /// This and the following, if the range is not all inside.
    #[inline]
    pub(super) fn pointer(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(
            at <= self.len && len <= self.len - at,
            "{len} bytes at {at} of {} of guest memory",
            self.len
        );
        // SAFETY: inside the mapping, as checked.
        unsafe { self.base.add(at) }
    }

    #[inline]
    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.pointer(at, bytes.len());
        // SAFETY: `pointer` checked the range; `bytes` cannot overlap, for nobody has a reference into the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    #[inline]
    pub(super) fn read(&self, at: usize, to: &mut [u8]) {
        let from = self.pointer(at, to.len());
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Asks for the cache line at `at`, to be written soon.
    #[inline]
    pub(super) fn prefetch(&self, at: usize) {
        let line = self.base.as_ptr().wrapping_add(at);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of any address at all does nothing worse than nothing.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and the last owner is going.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}
