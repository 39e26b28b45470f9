//! The table of connections, as the control thread sees it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Router;
use crate::config::spec::{Invalid, LimitChange};
use crate::conntrack::record::Filter;
use crate::conntrack::timeouts::LONGEST;
use crate::conntrack::{Conntrack, Limits, Timeout};
use crate::control::api;
use crate::refusal::Refusal;

/// Connections in a part of a listing: some 4 MiB, gathered in some milliseconds.
const PAGE: usize = 8192;

impl Router {
    fn table(&self) -> Result<&Arc<Conntrack>, Refusal> {
        self.conntrack.as_ref().ok_or_else(|| Refusal::new("connections are not tracked"))
    }

    /// How many connections there are and may be.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn conntrack_size(&self) -> Result<api::ConntrackSize, Refusal> {
        let shared = &self.table()?.shared;
        Ok(api::ConntrackSize { count: shared.count().into(), limit: shared.limits().entries.into() })
    }

    /// Some thousands of connections, from where a listing stands: 0 at its start. `now` is the tables' clock.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn connections(&self, which: &Filter, now: u32, next: u64) -> Result<api::ConntrackPage, Refusal> {
        let mut entries = Vec::new();
        let next = self.table()?.page(which, now, next, PAGE, |record| entries.push(record));
        Ok(api::ConntrackPage { entries, next })
    }

    /// Forgets connections; returns how many. `wake` wakes the worker of a number.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn flush_connections(
        &self,
        which: &Filter,
        now: u32,
        wake: impl FnMut(usize),
    ) -> Result<u64, Refusal> {
        Ok(self.table()?.flush(which, now, wake))
    }

    /// What the first `workers` seats counted.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn conntrack_counters(&self, workers: usize) -> Result<Vec<api::ConntrackCounters>, Refusal> {
        let shared = &self.table()?.shared;
        let counters = |cpu| {
            let counters =
                shared.counters(cpu).list().map(|(name, value)| (name.to_owned(), value)).collect();
            api::ConntrackCounters { cpu, counters }
        };
        Ok((0..workers).map(counters).collect())
    }

    /// How long connections are remembered.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn timeouts(&self) -> Result<api::Timeouts, Refusal> {
        let timeouts = &self.table()?.shared.timeouts;
        Ok(Timeout::ALL.iter().map(|kind| (kind.name().to_owned(), timeouts.get(*kind))).collect())
    }

    /// Changes how long connections in a state are remembered.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn set_timeout(&mut self, kind: Timeout, seconds: u32) -> Result<(), Refusal> {
        match self.table()?.shared.timeouts.set(kind, seconds) {
            true => Ok(()),
            false => {
                Err(Refusal::new(format!("seconds {seconds} is out of range: it must be 1 to {LONGEST}")))
            }
        }
    }

    /// How many connections there may be.
    ///
    /// # Errors
    /// Connections are not tracked.
    pub fn limits(&self) -> Result<api::Limits, Refusal> {
        let shared = &self.table()?.shared;
        let limits = shared.limits();
        Ok(api::Limits {
            capacity: shared.capacity().into(),
            limit: limits.entries.into(),
            port_quota: limits.per_port.into(),
            half_open: limits.half_open.into(),
        })
    }

    /// Changes how many there may be.
    ///
    /// # Errors
    /// Connections are not tracked, or there is no room for so many.
    pub fn set_limits(&mut self, change: LimitChange) -> Result<(), Refusal> {
        let shared = &self.table()?.shared;
        let (now, capacity) = (shared.limits(), shared.capacity());
        if let Some(limit) = change.limit.filter(|limit| *limit > capacity) {
            let rule = "the table was made so large at the start ([conntrack] limit)";
            return Err(Refusal::new(format!(
                "limit {limit} is out of range: it must be 1 to {capacity}, {rule}"
            )));
        }
        shared.set_limits(Limits {
            entries: change.limit.unwrap_or(now.entries),
            per_port: change.port_quota.unwrap_or(now.per_port),
            half_open: change.half_open.unwrap_or(now.half_open),
        });
        Ok(())
    }
}

/// Checks the name of a timeout.
///
/// # Errors
/// There is none of that name.
pub fn timeout_kind(name: &str) -> Result<Timeout, Invalid> {
    Timeout::from_name(name).ok_or_else(|| {
        let names = Timeout::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        Invalid::new("kind", format!("kind {name:?} is unknown: it must be one of {names}"))
    })
}
