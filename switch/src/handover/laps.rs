//! Where the time of a standstill goes, for the log.
#![forbid(unsafe_code)]

use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

use crate::clock;

/// Names of what was done, and how long each took.
#[derive(Debug)]
pub(super) struct Laps {
    last: Duration,
    laps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self { last: clock::monotonic(), laps: Vec::with_capacity(16) }
    }

    /// This was done since the last time.
    pub(super) fn lap(&mut self, what: &'static str) {
        let now = clock::monotonic();
        self.laps.push((what, now.saturating_sub(self.last)));
        self.last = now;
    }
}

impl Display for Laps {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for (n, (what, took)) in self.laps.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{what} {} us", took.as_micros())?;
        }
        Ok(())
    }
}
