//! Time for workers: processor cycles, and the seconds of the tables.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Cycles of the processor's time stamp counter (nanoseconds where there is none). Only differences mean something.
#[inline(always)]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC is unprivileged on every system that Rust's x86_64 Linux target runs on, and touches no memory.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        start().elapsed().as_nanos() as u64
    }
}

fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Cycles per microsecond, measured once, in about 2 ms.
pub fn cycles_per_us() -> u64 {
    static RATE: OnceLock<u64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (t0, c0) = (Instant::now(), cycles());
        while t0.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let (elapsed, spent) = (t0.elapsed(), cycles().wrapping_sub(c0));
        (u128::from(spent) * 1000 / elapsed.as_nanos().max(1)).max(1) as u64
    })
}

/// Seconds since the process first asked: the clock of the tables' ages.
pub fn seconds() -> u32 {
    start().elapsed().as_secs() as u32
}
