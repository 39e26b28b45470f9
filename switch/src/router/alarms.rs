//! Warnings in the log when something has run out: ports of a translation, room for connections.
//!
//! Packets count, and are dropped under a name of their own; here the counters are looked at now and then. One line for
//! each cause, at most once a minute, with what has happened since the last one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::Router;
use crate::conntrack::Conntrack;
use crate::rules::RuleId;

/// Seconds between two looks.
const LOOK: u32 = 10;
/// Seconds between two warnings of one cause.
const PATIENCE: u32 = 60;

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// Ports of a rule's addresses.
    Nat(RuleId),
    /// The table of connections.
    Table,
    /// Ports' shares of it.
    Quota,
    /// Room for half-open connections.
    HalfOpen,
}

/// A cause that was told of.
#[derive(Clone, Copy, Debug)]
struct Told {
    /// Its counter then.
    count: u64,
    /// The second of it; `None` before the first time.
    at: Option<u32>,
}

/// What was told already.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    told: BTreeMap<Cause, Told>,
    looked: Option<u32>,
}

impl Alarms {
    /// Looks at the counters, if that was not done lately, and hands lines for the log to `warn`.
    pub(crate) fn look(
        &mut self,
        router: &Router,
        conntrack: &Conntrack,
        workers: usize,
        now: u32,
        mut warn: impl FnMut(String),
    ) {
        if self.looked.is_some_and(|looked| now.wrapping_sub(looked) < LOOK) {
            return;
        }
        self.looked = Some(now);
        self.told.retain(|cause, _| !matches!(cause, Cause::Nat(id) if router.nat.get(*id).is_none()));
        for (id, rule, hits) in router.nat.iter().filter(|(.., hits)| hits.failed > 0) {
            if let Some(more) = self.news(Cause::Nat(id), hits.failed, now) {
                let kind = rule.kind();
                warn(format!(
                    "nat {kind} rule {id} had no port left for {more} connections: it needs more addresses (nat snat --to FIRST-LAST), or shorter timeouts"
                ));
            }
        }
        let (mut full, mut quota, mut half_open) = (0, 0, 0);
        for worker in 0..workers {
            for (name, count) in conntrack.shared.counters(worker).list() {
                match name {
                    "drop" => full += count,
                    "port_quota" => quota += count,
                    "half_open_limit" => half_open += count,
                    _ => {}
                }
            }
        }
        let limits = router.tracking.limits();
        for (cause, count, what, limit, option) in [
            (Cause::Table, full, "the table of connections is full", limits.limit, "--limit"),
            (Cause::Quota, quota, "a port has its share of connections", limits.port_quota, "--port-quota"),
            (
                Cause::HalfOpen,
                half_open,
                "too many connections are half open",
                limits.half_open,
                "--half-open",
            ),
        ] {
            if let Some(more) = self.news(cause, count, now) {
                warn(format!(
                    "{what} ({limit}): {more} were refused; 'shuntctl stats --drops' names the ports, 'shuntctl conntrack set-limit {option}' changes the limit"
                ));
            }
        }
    }

    /// How much a counter has grown since it was told of; `None` if nothing is to be told now.
    fn news(&mut self, cause: Cause, count: u64, now: u32) -> Option<u64> {
        let told = self.told.entry(cause).or_insert(Told { count: 0, at: None });
        let more = count.saturating_sub(told.count);
        if more == 0 || told.at.is_some_and(|at| now.wrapping_sub(at) < PATIENCE) {
            return None;
        }
        *told = Told { count, at: Some(now) };
        Some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_out_is_told_once_a_minute_with_what_has_happened_since() {
        let mut alarms = Alarms::default();
        let cause = Cause::Nat(3);
        assert_eq!(alarms.news(cause, 0, 100), None);
        assert_eq!(alarms.news(cause, 5, 110), Some(5));
        assert_eq!(alarms.news(cause, 9, 120), None, "not so soon");
        assert_eq!(alarms.news(Cause::Table, 1, 120), Some(1), "another cause");
        assert_eq!(alarms.news(cause, 9, 170), Some(4));
        assert_eq!(alarms.news(cause, 9, 300), None, "nothing more");
        assert_eq!(alarms.news(cause, 10, u32::MAX), Some(1));
        assert_eq!(alarms.news(cause, 11, 58), None, "the clock came round");
        assert_eq!(alarms.news(cause, 11, 59), Some(1));
    }
}
