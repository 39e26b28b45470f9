//! Waiting for a condition with a deadline: the only way in which these tests pass time.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Probes until `probe` gives a value, and returns it; `None` once `limit` has passed.
pub fn poll_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`poll_for`], but panics with `what` was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match poll_for(limit, probe) {
        Some(value) => value,
        None => panic!("waited {} s in vain: {what}", limit.as_secs_f64()),
    }
}
