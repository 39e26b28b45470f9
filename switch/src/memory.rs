//! Large tables: their memory, and hints about it to the processor and to the kernel.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::FromZeros;

/// Size of a huge page.
const HUGE: usize = 2 << 20;

/// Memory that is worth giving back, in bytes.
#[cfg(target_env = "gnu")]
const WORTH: i64 = 2 << 20;

/// Has all threads of the process share one part of the allocator. To be called before others are started: each has a
/// part of its own otherwise, or one with some others, and each part keeps what its worst moment took. No packet needs
/// the allocator, and those who do seldom meet.
pub fn share_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes and returns numbers; the allocator guards itself.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory back to the kernel that the allocator keeps: a request with 20,000 routes takes tens of MiB while it is
/// carried out, and something small that stays behind them keeps them all.
#[derive(Default)]
pub struct Trimmer {
    /// The least of [`spare`] since memory was given back last: what cannot be given back.
    #[cfg(target_env = "gnu")]
    floor: i64,
}

impl Trimmer {
    /// To be called every few seconds by the control thread: while it works, which takes some milliseconds, no other
    /// thread gets memory from the allocator.
    pub fn tick(&mut self) {
        #[cfg(target_env = "gnu")]
        if let Some(spare) = spare() {
            self.floor = self.floor.min(spare);
            if spare > self.floor + WORTH {
                // SAFETY: takes and returns no pointers; only pages within freed memory are given back.
                unsafe { libc::malloc_trim(0) };
                self.floor = self::spare().unwrap_or(spare);
            }
        }
    }
}

/// Bytes of the process's own resident memory that the allocator has not handed out. Tables of [`Pages`] count, and of
/// large pieces, which have mappings of their own and go back when they are freed, what has not been written yet counts
/// below zero: only changes mean something.
#[cfg(target_env = "gnu")]
fn spare() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map(|word| word.parse::<i64>().unwrap_or(0));
    let own = pages.next()? - pages.next()?;
    // SAFETY: neither takes nor returns pointers, and the allocator guards itself.
    let allocated = unsafe { libc::mallinfo2() };
    // SAFETY: no memory involved.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(own * page - (allocated.uordblks + allocated.hblkhd).cast_signed() as i64)
}

/// Asks for the cache line at which `value` begins, to be there soon.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally and cannot fault.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
            std::ptr::from_ref(value).cast(),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the kernel to back a part of a table by huge pages: a random access to ordinary pages costs a walk of the page
/// tables on top. A kernel that will not is no error. The first write to each then clears all of it, which takes tens
/// of microseconds.
pub fn prefer_huge_pages<T>(table: &[T]) {
    let start = table.as_ptr().addr().next_multiple_of(HUGE);
    let end = (table.as_ptr().addr() + size_of_val(table)) / HUGE * HUGE;
    if start < end {
        // SAFETY: the range lies within an allocation that is borrowed here; the advice changes neither contents nor
        // mapping, only the size of the pages behind it.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
        }
    }
}

/// A large table of zeros. Its pages are the kernel's until something is written to them, so what is never used costs
/// nothing; an allocator would write the zeros itself for types of a large alignment.
pub struct Pages<T: FromZeros> {
    start: NonNull<T>,
    len: usize,
    /// The mapping that it lies in.
    mapping: Option<(NonNull<libc::c_void>, usize)>,
}

// SAFETY: it owns what it points to, as a boxed slice does.
unsafe impl<T: FromZeros + Send> Send for Pages<T> {}
// SAFETY: a shared reference gives shared references to the elements and nothing else.
unsafe impl<T: FromZeros + Sync> Sync for Pages<T> {}

impl<T: FromZeros> Pages<T> {
    /// `len` zeroed elements.
    ///
    /// # Panics
    /// There is no memory.
    pub fn new(len: usize) -> Self {
        const { assert!(align_of::<T>() <= 4096 && !std::mem::needs_drop::<T>()) };
        let bytes = len.checked_mul(size_of::<T>()).expect("a size that fits the address space");
        // Room for a beginning at which huge pages may lie.
        let align = if bytes >= HUGE { HUGE } else { 1 };
        let Some(length) = NonZeroUsize::new(bytes).and_then(|bytes| bytes.checked_add(align - 1)) else {
            return Self { start: NonNull::dangling(), len, mapping: None };
        };
        let (protection, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let mapping = unsafe { mmap_anonymous(None, length, protection, flags) };
        let mapping = mapping.unwrap_or_else(|e| panic!("no {bytes} bytes of memory for a table: {e}"));
        let start = mapping.map_addr(|at| at.saturating_add(at.get().next_multiple_of(align) - at.get()));
        Self { start: start.cast(), len, mapping: Some((mapping, length.get())) }
    }
}

impl<T: FromZeros> Deref for Pages<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements from `start` on, lives as long as `self`, `start` is aligned to pages and so to `T`, and all
        // zeros are values of `T`; nobody writes to it but through shared references to `T`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: FromZeros> Drop for Pages<T> {
    fn drop(&mut self) {
        if let Some((mapping, length)) = self.mapping {
            // SAFETY: the mapping was made by `new`, and nobody can hold a reference into it.
            let unmapped = unsafe { munmap(mapping, length) };
            debug_assert_eq!(unmapped, Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(FromZeros)]
    #[repr(C, align(64))]
    struct Line([AtomicU64; 8]);

    #[test]
    fn a_table_is_zero_aligned_and_takes_what_is_written() {
        let table = Pages::<Line>::new(100_000);
        prefer_huge_pages(&table);
        assert_eq!((table.len(), table.as_ptr().addr() % 64), (100_000, 0));
        assert!(table.iter().flat_map(|line| &line.0).all(|word| word.load(Ordering::Relaxed) == 0));
        table[99_999].0[7].store(5, Ordering::Relaxed);
        prefetch(&table[99_999]);
        assert_eq!(table[99_999].0[7].load(Ordering::Relaxed), 5);
    }

    #[test]
    fn an_empty_table_is_one_too() {
        let table = Pages::<Line>::new(0);
        prefer_huge_pages(&table);
        assert!(table.is_empty());
    }
}
