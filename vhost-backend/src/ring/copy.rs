//! Copies of the lengths that packets have, and prefetches.

/// Copies `len` bytes, at most 128, as at most two overlapping copies of a fixed size: no call, no loop.
///
/// # Safety
/// As for [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
pub(crate) unsafe fn copy_upto_128(from: *const u8, to: *mut u8, len: usize) {
    debug_assert!(len <= 128);
    // SAFETY: the caller vouches for `len` bytes at both ends; each arm copies only within them.
    unsafe {
        if len >= 64 {
            pair::<64>(from, to, len);
        } else if len >= 32 {
            pair::<32>(from, to, len);
        } else if len >= 16 {
            pair::<16>(from, to, len);
        } else if len >= 8 {
            pair::<8>(from, to, len);
        } else {
            for i in 0..len {
                to.add(i).write(from.add(i).read());
            }
        }
    }
}

/// Copies `len` bytes, `N <= len <= 2 * N`.
///
/// # Safety
/// `len` bytes can be read at `from` and written at `to`, and the two do not overlap.
#[inline(always)]
unsafe fn pair<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    let last = len - N;
    // The usual lengths are powers of two, which one copy does.
    // SAFETY: `last + N == len` and `N <= len`: both pieces lie within what the caller vouches for. Copies of a constant
    // length are a few moves.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, N);
        if last > 0 {
            std::ptr::copy_nonoverlapping(from.wrapping_add(last), to.wrapping_add(last), N);
        }
    }
}

/// Asks for the cache line of `ptr`, to read. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_read<T>(ptr: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing architecturally and cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks for the first bytes of a frame with its header: as much of it as is copied and looked at.
#[inline(always)]
pub(crate) fn prefetch_frame(at: *const u8) {
    prefetch_read(at);
    prefetch_read(at.wrapping_add(64));
    prefetch_read(at.wrapping_add(128));
}

/// Asks for the cache line of `ptr`, to write. Any address is allowed.
#[inline(always)]
pub(crate) fn prefetch_write<T>(ptr: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above. PREFETCHW is in every x86-64 of the last decade and a no-op elsewhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(ptr.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_and_nothing_beyond() {
        let from: Vec<u8> = (0..=127).map(|b| b + 1).collect();
        for len in 0..=128 {
            let mut to = vec![0u8; 130];
            // SAFETY: 128 bytes at `from`, 130 at `to`.
            unsafe { copy_upto_128(from.as_ptr(), to.as_mut_ptr().add(1), len) };
            assert_eq!(&to[1..1 + len], &from[..len]);
            assert!(to[0] == 0 && to[1 + len..].iter().all(|&b| b == 0), "length {len} wrote beyond");
        }
    }
}
