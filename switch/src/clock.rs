//! Time for workers: processor cycles, and the seconds of the tables.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

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

/// [`ticks`] in a second.
pub const TICKS_PER_SECOND: u64 = 64_000_000_000;

/// Time in units of 1/64 ns since somebody first asked: fine enough for a byte at 1 Tbit/s, and for nine years.
#[inline]
pub fn ticks() -> u64 {
    /// Cycles at the beginning, and ticks a cycle with 32 binary digits behind the point.
    static SCALE: OnceLock<(u64, u64)> = OnceLock::new();
    let &(start, scale) =
        SCALE.get_or_init(|| (cycles(), (((TICKS_PER_SECOND / 1_000_000) << 32) / cycles_per_us()).max(1)));
    // Processors' counters may differ by some cycles at the very beginning.
    ((u128::from(cycles().saturating_sub(start)) * u128::from(scale)) >> 32) as u64
}

static START: OnceLock<Instant> = OnceLock::new();

fn start() -> Instant {
    *START.get_or_init(Instant::now)
}

/// The system's monotonic clock, which all processes share.
pub(crate) fn monotonic() -> Duration {
    // Only an unknown clock is refused.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// When [`seconds`] began to count, by the system's monotonic clock: for [`go_on_from`] in another process.
pub fn began() -> Duration {
    let elapsed = start().elapsed();
    monotonic().saturating_sub(elapsed)
}

/// Has [`seconds`] count as in another process, which told when it [`began`]. False if somebody has asked here already.
pub fn go_on_from(began: Duration) -> bool {
    let elapsed = monotonic().saturating_sub(began);
    Instant::now().checked_sub(elapsed).is_some_and(|then| START.set(then).is_ok())
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
