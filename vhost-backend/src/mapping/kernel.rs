//! What the kernel does of a mapping.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use super::{MapError, PAGE};
pub(super) use crate::sigbus::Guarded;

/// Maps `len` bytes of a file from byte `start` on, both whole pages of it, at an address of the kernel's choice.
pub(super) fn map(file: &File, start: u64, len: usize) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            start as libc::off_t,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: advice on the mapping just made. A failure costs only larger core files.
    unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
    Ok(base)
}

/// Takes a mapping back.
///
/// # Safety
/// It is one of [`map`], with its whole length, and nobody uses it any more.
pub(super) unsafe fn unmap(base: *mut libc::c_void, len: usize) {
    // SAFETY: as the caller says.
    unsafe { libc::munmap(base, len) };
}

/// Has the kernel make the pages of `len` bytes at `at`, which lie in a mapping, ready for writing, so that nobody waits
/// who touches them first. What it cannot make ready is no error: it is so for whoever touches it.
pub(crate) fn make_ready(at: *mut u8, len: u64) {
    let start = at as u64 / PAGE * PAGE;
    let end = (at as u64).saturating_add(len).next_multiple_of(PAGE);
    // SAFETY: whatever lies there, no byte of it changes, and pages that are gone are reported and not signalled.
    unsafe { libc::madvise(start as *mut libc::c_void, (end - start) as usize, libc::MADV_POPULATE_WRITE) };
}

/// An empty file in memory.
pub(crate) fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: a name that lives for the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The size of the pages that `file` is mapped in.
///
/// File systems that ask another process or machine for a page (FUSE, NFS) are refused: whoever is behind it could
/// stop a worker for good by not answering. The list is of what cannot.
pub(super) fn page_size(file: &File) -> Result<u64, MapError> {
    const HUGETLBFS: i64 = 0x958458f6;
    const LOCAL: [(i64, &str); 6] = [
        (0x01021994, "tmpfs, memfd"),
        (0x858458f6, "ramfs"),
        (0xef53, "ext4"),
        (0x58465342, "xfs"),
        (0x9123683e, "btrfs"),
        (0xf2f52010, "f2fs"),
    ];
    // SAFETY: an all-zero statfs is a valid value.
    let mut stat = unsafe { std::mem::zeroed::<libc::statfs>() };
    // SAFETY: an open descriptor and a buffer of ours.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) } != 0 {
        return Err(MapError::Kernel { call: "fstatfs", source: io::Error::last_os_error() });
    }
    // The width of these fields differs between C libraries.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let (kind, block) = (stat.f_type as i64 & 0xffff_ffff, stat.f_bsize as u64);
    if kind == HUGETLBFS {
        return Ok(block.max(PAGE));
    }
    if LOCAL.iter().any(|(local, _)| *local == kind) {
        // SAFETY: no memory involved.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        return Ok(u64::try_from(page).unwrap_or(PAGE).max(PAGE));
    }
    Err(MapError::UnsuitableFile(format!("a file system of type {kind:#x}")))
}
