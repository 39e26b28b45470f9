//! Hints to the processor and to the kernel about large tables. Neither changes what a program means.

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

/// Asks the kernel to back a large table by huge pages: a random access to ordinary pages costs a walk of the page
/// tables on top. A kernel that will not is no error.
pub fn prefer_huge_pages<T>(table: &[T]) {
    const HUGE: usize = 2 << 20;
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
