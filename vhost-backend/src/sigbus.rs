//! Keeps a frontend that truncates its memory file from killing the process.
//!
//! Touching a page beyond a file's end raises SIGBUS (mmap(2)), and no check beforehand can rule that out: the file
//! stays in the frontend's hands. Guest memory is therefore registered here while it is mapped. On a fault inside a
//! registered range the handler lays private zero pages over the rest of that range and marks it; the access then
//! goes on, and the port is found broken by whoever asks next. Any other SIGBUS goes where it would have gone.
//!
//! The handler uses only atomics and `mmap`, which on Linux is a bare system call. The list that it walks only grows;
//! its cells are reused and never freed.

use std::{
    io, ptr,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence},
    },
};

/// Cells in one block of the list.
const BLOCK: usize = 128;

/// One registered range. `version` is odd while the cell is being rewritten.
struct Cell {
    version: AtomicU32,
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicBool,
}

impl Cell {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(1),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Only under the lock of [`FREE`], so there is one writer.
    fn write(&self, start: usize, len: usize, page: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Start, length and page size, unless the cell is being rewritten: then it is not the one that somebody is
    /// faulting in, for that one stays as it is until nobody uses its memory any more.
    fn read(&self) -> Option<(usize, usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let found = (
            self.start.load(Ordering::Relaxed),
            self.len.load(Ordering::Relaxed),
            self.page.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        (version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version).then_some(found)
    }
}

struct Block {
    cells: [Cell; BLOCK],
    next: *const Block,
}

/// The newest block. Blocks are leaked, so every pointer found here stays good.
static BLOCKS: AtomicPtr<Block> = AtomicPtr::new(ptr::null_mut());
/// Cells that no range uses; its lock also orders the writers of cells and of [`BLOCKS`].
static FREE: Mutex<Vec<&'static Cell>> = Mutex::new(Vec::new());
/// Counts the faults that were answered with zero pages; see [`faults`].
static FAULTS: AtomicU32 = AtomicU32::new(0);
/// Who was responsible for SIGBUS before; set before the handler is, never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

fn free_cells() -> MutexGuard<'static, Vec<&'static Cell>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the handler for the whole process; further calls do nothing.
///
/// # Errors
/// What sigaction(2) says, the same each time.
pub fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| install_once().map_err(|e| e.raw_os_error().unwrap_or(0)))
        .map_err(io::Error::from_raw_os_error)
}

fn install_once() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid value (SIG_DFL, no flags, empty mask).
    let (mut previous, mut ours) =
        unsafe { (std::mem::zeroed::<libc::sigaction>(), std::mem::zeroed::<libc::sigaction>()) };
    // SAFETY: asks for the present action only; `previous` is ours to write.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::Release);
    ours.sa_sigaction =
        on_sigbus as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe (see the module's head) and has the signature that SA_SIGINFO asks for.
    if unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO; `si_addr` is plain data whatever the code.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Codes above zero come from the kernel; others were sent by a process and carry no address.
    if code > 0 && replace(address) {
        return;
    }
    // Hand back to whoever was there before: a fault happens again on return and finds them.
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: set before this handler was installed, never freed, never changed.
    unsafe { libc::sigaction(libc::SIGBUS, previous, ptr::null_mut()) };
    if code <= 0 {
        // SAFETY: raise is async-signal-safe; the signal is blocked now and arrives when this handler returns.
        unsafe { libc::raise(libc::SIGBUS) };
    }
}

/// Lays zero pages over the rest of the registered range that holds `address`. False if there is none.
fn replace(address: usize) -> bool {
    let mut block = BLOCKS.load(Ordering::Acquire).cast_const();
    while !block.is_null() {
        // SAFETY: blocks are leaked and not changed after they were published, but for their atomics.
        let Block { cells, next } = unsafe { &*block };
        for cell in cells {
            let Some((start, len, page)) = cell.read() else { continue };
            if address.wrapping_sub(start) >= len {
                continue;
            }
            // A piece of a hugetlb mapping can only be replaced in whole huge pages.
            let from = start + (address - start) / page * page;
            // SAFETY: errno is the thread's own; the interrupted code must not see it change.
            let errno = unsafe { *libc::__errno_location() };
            // SAFETY: the range belongs to a mapping registered with this module, whose users (raw pointers only)
            // expect its bytes to change at any time; it stays registered while anybody can fault in it.
            let zeroes = unsafe {
                libc::mmap(
                    from as *mut libc::c_void,
                    start + len - from,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            if zeroes == libc::MAP_FAILED {
                return false;
            }
            cell.poisoned.store(true, Ordering::Relaxed);
            FAULTS.fetch_add(1, Ordering::Release);
            return true;
        }
        block = *next;
    }
    false
}

/// How many faults have been answered so far. While it does not change, no range has become poisoned.
#[inline]
pub(crate) fn faults() -> u32 {
    FAULTS.load(Ordering::Acquire)
}

/// A range that is protected until this is dropped; drop it before the range is unmapped, after its last use.
pub(crate) struct Guarded(&'static Cell);

impl Guarded {
    /// Protects `len` bytes (a multiple of `page`) that are mapped at `start` in pages of `page` bytes.
    ///
    /// # Safety
    /// The range must be a mapping of the caller's that only raw pointers refer to, and must not be unmapped before
    /// this value is dropped: a fault in it replaces its pages.
    pub(crate) unsafe fn new(start: usize, len: usize, page: usize) -> io::Result<Self> {
        install()?;
        let mut free = free_cells();
        if free.is_empty() {
            let next = BLOCKS.load(Ordering::Relaxed);
            let block = Box::leak(Box::new(Block { cells: [const { Cell::new() }; BLOCK], next }));
            BLOCKS.store(block, Ordering::Release);
            free.extend(block.cells.iter());
        }
        let cell = free.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        cell.write(start, len, page);
        Ok(Self(cell))
    }

    /// Whether a fault has happened in the range, so that part of it is no longer the frontend's memory.
    pub(crate) fn poisoned(&self) -> bool {
        self.0.poisoned.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut free = free_cells();
        self.0.write(0, 0, 1);
        free.push(self.0);
    }
}

#[cfg(test)]
mod tests;
