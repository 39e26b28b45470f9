//! When queues are spread anew over workers without being asked.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::{Invalid, number};
use crate::control::api;
use crate::spread::Plan;

/// Shortest and longest time between two looks, in seconds. Loads are measured over 5 to 10 s.
const INTERVAL: (u32, u32) = (5, 86_400);

/// When queues are spread anew by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalancing {
    /// Whether at all.
    pub auto: bool,
    /// Seconds from one look to the next.
    pub interval: u32,
    /// Percent of its time that the busiest worker must be busy at least.
    pub load_threshold: u32,
    /// Percent by which the variance of the workers' loads must become less at least.
    pub improvement_threshold: u32,
}

impl Default for Rebalancing {
    /// As Open vSwitch's `pmd-auto-lb` has it: off; each minute, at 95%, for 25%.
    fn default() -> Self {
        Self { auto: false, interval: 60, load_threshold: 95, improvement_threshold: 25 }
    }
}

impl Rebalancing {
    /// Takes over what is to change.
    pub fn change(&mut self, change: RebalanceChange) {
        self.auto = change.auto.unwrap_or(self.auto);
        self.interval = change.interval.unwrap_or(self.interval);
        self.load_threshold = change.load_threshold.unwrap_or(self.load_threshold);
        self.improvement_threshold = change.improvement_threshold.unwrap_or(self.improvement_threshold);
    }

    /// Whether a plan is worth its moves, and a worker busy enough for any.
    pub fn asks_for(&self, plan: &Plan) -> bool {
        let busiest = plan.before.iter().copied().fold(0.0, f64::max);
        !plan.moves.is_empty()
            && busiest * 100.0 >= f64::from(self.load_threshold)
            && plan.improvement() >= f64::from(self.improvement_threshold)
    }
}

/// What is to change at [`Rebalancing`]; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebalanceChange {
    /// Whether at all.
    pub auto: Option<bool>,
    /// Seconds, 5 to 86,400.
    pub interval: Option<u32>,
    /// Percent, 0 to 100.
    pub load_threshold: Option<u32>,
    /// Percent, 0 to 100.
    pub improvement_threshold: Option<u32>,
}

impl RebalanceChange {
    /// Has everything be as it is where nobody says anything.
    pub fn usual() -> Self {
        let Rebalancing { auto, interval, load_threshold, improvement_threshold } = Rebalancing::default();
        Self {
            auto: Some(auto),
            interval: Some(interval),
            load_threshold: Some(load_threshold),
            improvement_threshold: Some(improvement_threshold),
        }
    }
}

impl TryFrom<&api::WorkerSet> for RebalanceChange {
    type Error = Invalid;

    fn try_from(asked: &api::WorkerSet) -> Result<Self, Invalid> {
        let bound = |field, value: Option<i64>, min, max| {
            value.map(|value| number(field, value, min, max)).transpose()
        };
        let change = Self {
            auto: asked.auto,
            interval: bound("interval", asked.interval, INTERVAL.0, INTERVAL.1)?,
            load_threshold: bound("load_threshold", asked.load_threshold, 0, 100)?,
            improvement_threshold: bound("improvement_threshold", asked.improvement_threshold, 0, 100)?,
        };
        if change == Self::default() {
            let message = "nothing is to change: give at least one of auto, interval, load_threshold and improvement_threshold";
            return Err(Invalid::new("auto", message));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::{Placed, plan};
    use crate::tables::QueueId;

    fn change(asked: &api::WorkerSet) -> Result<RebalanceChange, String> {
        RebalanceChange::try_from(asked).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn changes_are_checked() {
        let asked = api::WorkerSet { auto: Some(true), interval: Some(10), ..api::WorkerSet::default() };
        let mut settings = Rebalancing::default();
        settings.change(change(&asked).unwrap());
        assert_eq!((settings.auto, settings.interval, settings.load_threshold), (true, 10, 95));
        assert!(change(&api::WorkerSet::default()).unwrap_err().contains("give at least one"));
        for (field, asked) in [
            ("interval 4", api::WorkerSet { interval: Some(4), ..Default::default() }),
            ("load_threshold 101", api::WorkerSet { load_threshold: Some(101), ..Default::default() }),
            (
                "improvement_threshold -1",
                api::WorkerSet { improvement_threshold: Some(-1), ..Default::default() },
            ),
        ] {
            assert!(change(&asked).unwrap_err().starts_with(&format!("{field} is out of range")));
        }
    }

    #[test]
    fn a_plan_must_be_worth_it() {
        let queue =
            |queue, worker, load| Placed { queue: QueueId { port: 0, queue }, worker, pinned: false, load };
        let busy = plan(&[queue(0, 0, 0.5), queue(1, 0, 0.46), queue(2, 1, 0.1)], 2);
        let idle = plan(&[queue(0, 0, 0.3), queue(1, 0, 0.3)], 2);
        let settings = Rebalancing::default();
        assert!(
            settings.asks_for(&busy) && !settings.asks_for(&idle) && !settings.asks_for(&Plan::default())
        );
        assert!(Rebalancing { load_threshold: 60, ..settings }.asks_for(&idle));
        let mut queues = [queue(0, 0, 0.93), queue(1, 0, 0.03), queue(2, 1, 0.02)];
        queues[0].pinned = true;
        let little = plan(&queues, 2);
        assert!(!little.moves.is_empty() && little.improvement() < 25.0);
        assert!(!settings.asks_for(&little), "{}", little.improvement());
        assert!(Rebalancing { improvement_threshold: 0, ..settings }.asks_for(&little));
    }
}
