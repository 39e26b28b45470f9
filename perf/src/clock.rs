//! Time-stamp counter and the processor that a thread runs on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
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

/// Seconds that the calling thread has been on a processor.
pub fn thread_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Cycles of [`cycles`] in a second, measured over 50 ms.
pub fn cycles_per_second() -> f64 {
    let (start, first) = (Instant::now(), cycles());
    std::thread::sleep(Duration::from_millis(50));
    let (elapsed, last) = (start.elapsed(), cycles());
    (last - first) as f64 / elapsed.as_secs_f64()
}

/// Cycles that a cache line takes from one core to the other: half a round trip, the median of many.
///
/// In a virtual machine this changes by the second, as the host moves virtual cores between siblings of one core,
/// neighbours and strangers; whatever passes frames between cores is fast or slow with it.
pub fn line_transfer(first: usize, second: usize) -> anyhow::Result<f64> {
    const ROUNDS: u64 = 400;
    const TRIPS: u64 = 16;
    let line = CachePadded::new(AtomicU64::new(0));
    let answer = || -> nix::Result<()> {
        pin(second)?;
        // Odd numbers are ours to answer with the next even one.
        let end = 2 * ROUNDS * TRIPS;
        let mut next = 1;
        while next < end {
            while line.load(Ordering::Acquire) < next {
                std::hint::spin_loop();
            }
            line.store(next + 1, Ordering::Release);
            next += 2;
        }
        Ok(())
    };
    let ask = || -> nix::Result<Vec<u64>> {
        pin(first)?;
        let mut times = Vec::with_capacity(ROUNDS as usize);
        let mut next = 1;
        for _ in 0..ROUNDS {
            let start = cycles();
            for _ in 0..TRIPS {
                line.store(next, Ordering::Release);
                while line.load(Ordering::Acquire) <= next {
                    std::hint::spin_loop();
                }
                next += 2;
            }
            times.push(cycles() - start);
        }
        Ok(times)
    };
    let mut times = std::thread::scope(|scope| {
        let other = scope.spawn(answer);
        let times = scope.spawn(ask).join();
        let _ = other.join();
        times
    })
    .map_err(|_| anyhow::anyhow!("a measuring thread panicked"))??;
    times.sort_unstable();
    Ok(times[times.len() / 2] as f64 / (2 * TRIPS) as f64)
}

/// Keeps the calling thread on one processor.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_some_cycles_from_core_to_core() {
        // Both threads on one core would take turns by the scheduler's tick: nothing to measure there.
        if std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2) {
            assert!(line_transfer(0, 1).expect("two cores") > 1.0);
        }
    }
}
