//! What queues cost of late, and when they are to be spread anew without being asked.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::tables::QueueId;

/// A sample is taken so often, in seconds; loads are those of the last one to two of these spans.
const SPAN: f64 = 5.0;

/// Cycles that queues had cost at some moment.
#[derive(Default)]
struct Sample {
    /// When, in cycles.
    at: u64,
    busy: HashMap<QueueId, u64>,
}

/// What queues cost within a window of some seconds.
#[derive(Default)]
pub struct Loads {
    older: Sample,
    newer: Sample,
}

impl Loads {
    /// Begins at this moment, in cycles.
    pub fn new(now: u64) -> Self {
        let sample = || Sample { at: now, busy: HashMap::new() };
        Self { older: sample(), newer: sample() }
    }

    /// To be called about once a second: takes a sample if it is time to. `queues` are all queues with the cycles that
    /// they have cost since they exist.
    pub fn sample<I: Iterator<Item = (QueueId, u64)>>(
        &mut self,
        now: u64,
        cycles_per_second: u64,
        queues: impl FnOnce() -> I,
    ) {
        let since = now.saturating_sub(self.newer.at) as f64;
        if since >= SPAN * cycles_per_second as f64 {
            self.older = std::mem::replace(&mut self.newer, Sample { at: now, busy: queues().collect() });
        }
    }

    /// Cycles of the window that ends now.
    pub fn window(&self, now: u64) -> u64 {
        now.saturating_sub(self.older.at).max(1)
    }

    /// The part of a worker's time that a queue took within the window, 0 to 1; `busy` is what it has cost by now.
    pub fn of(&self, queue: QueueId, busy: u64, now: u64) -> f64 {
        // A queue that is not in the sample is younger than that. One that has cost less than it had is another one, of a
        // port that got a number that was free.
        let before = self.older.busy.get(&queue).copied().filter(|&before| before <= busy).unwrap_or(0);
        ((busy - before) as f64 / self.window(now) as f64).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_those_of_the_last_seconds() {
        let queue = QueueId { port: 1, queue: 2 };
        let other = QueueId { port: 2, queue: 0 };
        let mut loads = Loads::new(1000);
        assert_eq!(loads.of(queue, 50, 1100), 0.5, "since the beginning");
        // A second is ten cycles here: spans are fifty.
        loads.sample(1049, 10, || -> std::iter::Empty<_> { panic!("too early") });
        loads.sample(1050, 10, || [(queue, 50)].into_iter());
        assert_eq!((loads.window(1100), loads.of(queue, 50, 1100)), (100, 0.5));
        loads.sample(1100, 10, || [(queue, 50), (other, 10)].into_iter());
        assert_eq!((loads.window(1125), loads.of(queue, 50, 1125)), (75, 0.0), "it was busy before");
        assert_eq!(loads.of(other, 40, 1150), 0.4, "it came within the window");
        loads.sample(1150, 10, || [(queue, 50), (other, 40)].into_iter());
        assert_eq!(loads.of(other, 5, 1200), 0.05, "the number is another port's");
        assert_eq!(loads.of(other, 500, 1200), 1.0);
    }
}
