//! Pieces of several mappings, mapped once more side by side.
//!
//! A ring that crosses from one memory region into the next lies in one piece for the guest, but each region is mapped
//! here wherever the kernel found room. Its few pages get a second mapping: mremap(2) with an old size of zero
//! duplicates part of a shared mapping, without its file, which is long closed. Mappings of huge pages cannot be
//! duplicated so.

use std::{io, mem::ManuallyDrop, ptr};

use crate::sigbus::Guarded;

/// Bytes of a mapping that lives at least as long as the [`Joined`] that is made of it.
pub(super) struct Piece {
    pub(super) host: usize,
    pub(super) len: usize,
    /// Bytes of the mapping's pages.
    pub(super) page: usize,
}

/// A second mapping of pieces, side by side.
pub(super) struct Joined {
    user_addr: u64,
    len: usize,
    base: usize,
    mapped: usize,
    /// Where the first piece begins.
    host: usize,
    pub(super) guard: ManuallyDrop<Guarded>,
}

/// Address space that nobody can use yet.
struct Reserved {
    base: usize,
    len: usize,
}

impl Reserved {
    fn new(len: usize) -> Option<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        (base != libc::MAP_FAILED).then_some(Self { base: base as usize, len })
    }

    /// Maps the pages of `from`, `len` bytes, at `offset`.
    fn put(&self, offset: usize, from: usize, len: usize) -> io::Result<()> {
        debug_assert!(offset + len <= self.len);
        // SAFETY: replaces reserved pages of ours that nobody has seen. The old mapping stays as it is: its size is given
        // as zero, and only whole pages of it are asked for.
        let at = unsafe {
            libc::mremap(
                from as *mut libc::c_void,
                0,
                len,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                (self.base + offset) as *mut libc::c_void,
            )
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: our range, whatever is mapped there by now, and nobody refers to it.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len) };
    }
}

impl Joined {
    /// The pieces one behind the other; the first byte stands for the frontend's address `user_addr`. `None` if they do
    /// not meet at the ends of pages, or the kernel refuses.
    pub(super) fn new(user_addr: u64, pieces: &[Piece]) -> Option<Self> {
        let page = pieces.first()?.page;
        let ahead = pieces.first()?.host % page;
        let len = pieces.iter().try_fold(0usize, |sum, piece| sum.checked_add(piece.len))?;
        let mapped = ahead.checked_add(len)?.checked_next_multiple_of(page)?;
        let reserved = Reserved::new(mapped)?;
        let mut at = 0;
        for (i, piece) in pieces.iter().enumerate() {
            let start = if i == 0 { piece.host - ahead } else { piece.host };
            let mut end = piece.host + piece.len;
            if i + 1 == pieces.len() {
                end = end.next_multiple_of(page);
            }
            if piece.page != page || start % page != 0 || end % page != 0 {
                return None;
            }
            reserved.put(at, start, end - start).ok()?;
            at += end - start;
        }
        // SAFETY: advice on the mapping just made. A failure costs only larger core files.
        unsafe { libc::madvise(reserved.base as *mut libc::c_void, mapped, libc::MADV_DONTDUMP) };
        // SAFETY: ours, only raw pointers lead in, and `drop` takes the guard away before it is unmapped.
        let guard = unsafe { Guarded::new(reserved.base, mapped, page) }.ok()?;
        let base = ManuallyDrop::new(reserved).base;
        Some(Self { user_addr, len, base, mapped, host: base + ahead, guard: ManuallyDrop::new(guard) })
    }

    /// Where `len` bytes at the frontend's address `user_addr` are, if they are all in this piece.
    pub(super) fn find(&self, user_addr: u64, len: u64) -> Option<*mut u8> {
        let offset = usize::try_from(user_addr.checked_sub(self.user_addr)?).ok()?;
        let rest = self.len.checked_sub(offset)?;
        (rest > 0 && usize::try_from(len).is_ok_and(|len| len <= rest))
            .then_some((self.host + offset) as *mut u8)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // SAFETY: taken once, here; from now on no fault in the range is answered, and none can happen.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        drop(Reserved { base: self.base, len: self.mapped });
    }
}
