//! Pieces of files that a frontend shares, in our address space and guarded: guest memory, the dirty log, the record of
//! what is in flight.

use std::{fs::File, io, mem::ManuallyDrop};

use kernel::{Guarded, map, page_size, unmap};
pub(crate) use kernel::{make_ready, memory_file};

// Under the interpreter miri another module stands for the kernel.
#[cfg_attr(miri, path = "mapping/heap.rs")]
mod kernel;

/// Pages are at least this long.
const PAGE: u64 = 4096;

/// Why a piece of a file cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// Offset and size together, rounded up to pages, do not fit.
    #[error("its offset and size run beyond the end of the address space")]
    Overflow,
    /// The file ends before the piece does.
    #[error("it needs {needed:#x} bytes of a file that has only {size:#x}")]
    FileTooShort { needed: u64, size: u64 },
    /// A file whose pages may block or cannot be guarded; what it is.
    #[error("it is backed by {0}; use a memfd, or a file on tmpfs, hugetlbfs or a local disk")]
    UnsuitableFile(String),
    /// The kernel refused.
    #[error("{call}: {source}")]
    Kernel { call: &'static str, source: io::Error },
}

/// A piece of a file in our address space: whole pages, so often more than what was asked for.
pub(crate) struct Mapping {
    base: *mut libc::c_void,
    len: usize,
    /// Bytes of the pages that it consists of.
    page: usize,
    guard: ManuallyDrop<Guarded>,
}

// SAFETY: a mapping may be used and unmapped from any thread; this type does not touch what is in it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the pages that hold `size` bytes from byte `offset` of the file on; returns also where byte `offset` is.
    /// The file may be closed afterwards.
    ///
    /// # Errors
    /// Any [`MapError`]; nothing is mapped then.
    pub(crate) fn new(size: u64, offset: u64, file: &File) -> Result<(Self, *mut u8), MapError> {
        let kernel = |call, source| MapError::Kernel { call, source };
        let needed = offset.checked_add(size).ok_or(MapError::Overflow)?;
        let metadata = file.metadata().map_err(|e| kernel("fstat", e))?;
        if !metadata.is_file() {
            return Err(MapError::UnsuitableFile("something that is not a regular file".into()));
        }
        if metadata.len() < needed {
            return Err(MapError::FileTooShort { needed, size: metadata.len() });
        }
        let page = page_size(file)?;
        // hugetlbfs takes only offsets and lengths in its own pages.
        let start = offset / page * page;
        let len = (needed - start)
            .checked_next_multiple_of(page)
            .and_then(|len| usize::try_from(len).ok())
            .ok_or(MapError::Overflow)?;
        let base = map(file, start, len).map_err(|e| kernel("mmap", e))?;
        // SAFETY: the mapping is ours, all its users have raw pointers, and `drop` takes the guard away first.
        let guard = match unsafe { Guarded::new(base as usize, len, page as usize) } {
            Ok(guard) => guard,
            Err(e) => {
                // SAFETY: nobody has seen the mapping yet.
                unsafe { unmap(base, len) };
                return Err(kernel("sigaction", e));
            }
        };
        let at = base.cast::<u8>().wrapping_add((offset - start) as usize);
        Ok((Self { base, len, page: page as usize, guard: ManuallyDrop::new(guard) }, at))
    }

    /// Bytes of the pages that it consists of.
    pub(crate) fn page(&self) -> usize {
        self.page
    }

    /// Whether the frontend took part of the file away and it was touched since: that part is private zero pages now.
    pub(crate) fn poisoned(&self) -> bool {
        self.guard.poisoned()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: taken once, here; from now on no fault in the range is answered, and none can happen.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        // SAFETY: our mapping, and the last that referred to it is gone.
        unsafe { unmap(self.base, self.len) };
    }
}
