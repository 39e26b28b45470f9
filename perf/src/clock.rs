//! Time-stamp counter and the processor that a thread runs on.

use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// The time-stamp counter, in cycles of constant rate; nanoseconds on machines that have none.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes one timespec of ours.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// Cycles of [`cycles`] in a second, measured over 50 ms.
pub fn cycles_per_second() -> f64 {
    let (start, first) = (Instant::now(), cycles());
    std::thread::sleep(Duration::from_millis(50));
    let (elapsed, last) = (start.elapsed(), cycles());
    (last - first) as f64 / elapsed.as_secs_f64()
}

/// Keeps the calling thread on one processor.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
