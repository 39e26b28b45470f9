//! Connections, as the control thread sees them, and the bounds that hold for them.
#![forbid(unsafe_code)]

use crate::config::document::{Conntrack, Key};
use crate::config::spec::{Invalid, LimitChange};
use crate::conntrack::record::Filter;
use crate::conntrack::timeouts::LONGEST;
use crate::conntrack::{Counters, Limits, Shared, Timeout, Timeouts};
use crate::control::api;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Connections that the table takes where nothing else is said: `nf_conntrack_max` of a machine of 16 GiB.
pub const CONNECTIONS_DEFAULT: u32 = 262_144;
/// Smallest table.
pub const CONNECTIONS_MIN: u32 = 1024;
/// Largest table.
pub const CONNECTIONS_MAX: u32 = 16_777_216;
/// Connections in a part of a listing: some 4 MiB, gathered in some milliseconds.
const PAGE: usize = 8192;

/// What is to hold for connections: kept here as long as there is no table, and told to it when it is made.
pub struct Tracking {
    /// What the table is made for.
    pub(crate) capacity: u32,
    limits: Limits,
    timeouts: Timeouts,
}

impl Tracking {
    /// Defaults for a table of this many connections.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, limits: Limits::of(capacity), timeouts: Timeouts::default() }
    }

    /// Has it hold for a table.
    pub(crate) fn apply(&self, shared: &Shared) {
        shared.set_limits(self.limits);
        for kind in Timeout::ALL {
            // What is kept here was checked.
            let _ = shared.timeouts.set(*kind, self.timeouts.get(*kind));
        }
    }

    /// How long connections are remembered.
    pub(crate) fn timeouts(&self) -> api::Timeouts {
        Timeout::ALL.iter().map(|kind| (kind.name().to_owned(), self.timeouts.get(*kind))).collect()
    }

    /// How many connections there may be.
    pub(crate) fn limits(&self) -> api::Limits {
        let Limits { entries, per_port, half_open } = self.limits;
        api::Limits {
            capacity: self.capacity.into(),
            limit: entries.into(),
            port_quota: per_port.into(),
            half_open: half_open.into(),
        }
    }

    /// The table that describes it; none where all is as usual.
    pub(crate) fn entry(&self) -> Option<Conntrack> {
        let Limits { entries, per_port, half_open } = self.limits;
        let usual = Limits::of(self.capacity);
        let unless = |value: u32, usual: u32| (value != usual).then_some(i64::from(value));
        let changed = |kind: &&Timeout| self.timeouts.get(**kind) != kind.default_seconds();
        let table = Conntrack {
            capacity: (entries != self.capacity).then_some(self.capacity.into()),
            limit: match entries == self.capacity {
                true => unless(entries, CONNECTIONS_DEFAULT),
                false => Some(entries.into()),
            },
            port_quota: unless(per_port, usual.per_port),
            half_open: unless(half_open, usual.half_open),
            timeouts: Timeout::ALL
                .iter()
                .filter(changed)
                .map(|kind| (kind.name().to_owned(), self.timeouts.get(*kind).into()))
                .collect(),
        };
        (table != Conntrack::default()).then_some(table)
    }

    pub(crate) fn set_timeout(&mut self, kind: Timeout, seconds: u32) -> Result<(), Refusal> {
        match self.timeouts.set(kind, seconds) {
            true => Ok(()),
            false => {
                Err(Refusal::new(format!("seconds {seconds} is out of range: it must be 1 to {LONGEST}")))
            }
        }
    }

    pub(crate) fn set_limits(&mut self, change: LimitChange) -> Result<(), Refusal> {
        let capacity = self.capacity;
        if let Some(limit) = change.limit.filter(|limit| *limit > capacity) {
            let rule = "the table was made so large at the start (limit in [conntrack])";
            return Err(Refusal::new(format!(
                "limit {limit} is out of range: it must be 1 to {capacity}, {rule}"
            )));
        }
        self.limits = Limits {
            entries: change.limit.unwrap_or(self.limits.entries),
            per_port: change.port_quota.unwrap_or(self.limits.per_port),
            half_open: change.half_open.unwrap_or(self.limits.half_open),
        };
        Ok(())
    }
}

impl Switch {
    pub(super) fn apply_tracking(&self) {
        if let Some(live) = &self.live {
            self.router.tracking.apply(&live.conntrack.shared);
        }
    }

    /// The number of a port, for filters of connections.
    pub fn port_number(&self, name: &str) -> Option<u16> {
        self.ports.get(name).map(|member| member.port.number())
    }

    /// How many connections there are and may be.
    pub fn conntrack_size(&self) -> api::ConntrackSize {
        let count = self.live.as_ref().map_or(0, |live| live.conntrack.shared.count());
        api::ConntrackSize { count: count.into(), limit: self.router.tracking.limits().limit }
    }

    /// Some thousands of connections, from where a listing stands: 0 at its start.
    pub fn connections(&self, which: &Filter, next: u64) -> api::ConntrackPage {
        let mut entries = Vec::new();
        let page = |entries: &mut Vec<_>| {
            self.live.as_ref()?.conntrack.page(which, self.now(), next, PAGE, |record| entries.push(record))
        };
        let next = page(&mut entries);
        api::ConntrackPage { entries, next }
    }

    /// Forgets connections; returns how many.
    pub fn flush_connections(&mut self, which: &Filter) -> u64 {
        let Some(live) = &self.live else { return 0 };
        live.conntrack.flush(which, self.now(), |worker| {
            if let Some(worker) = self.workers.get(worker) {
                worker.wake();
            }
        })
    }

    /// What happened to connections, by worker.
    pub fn conntrack_counters(&self) -> Vec<api::ConntrackCounters> {
        let none = Counters::default();
        let counters = |cpu| {
            let counters = self.live.as_ref().map_or(&none, |live| live.conntrack.shared.counters(cpu));
            let counters = counters.list().map(|(name, value)| (name.to_owned(), value)).collect();
            api::ConntrackCounters { cpu, counters }
        };
        (0..self.workers.len()).map(counters).collect()
    }

    /// How long connections are remembered.
    pub fn timeouts(&self) -> api::Timeouts {
        self.router.tracking.timeouts()
    }

    /// Changes how long connections in a state are remembered.
    ///
    /// # Errors
    /// Not 1 to [`LONGEST`] seconds.
    pub fn set_timeout(&mut self, kind: Timeout, seconds: u32) -> Result<(), Refusal> {
        self.touch(Key::Conntrack);
        self.router.tracking.set_timeout(kind, seconds)?;
        self.apply_tracking();
        Ok(())
    }

    /// How many connections there may be.
    pub fn limits(&self) -> api::Limits {
        self.router.tracking.limits()
    }

    /// Changes how many there may be.
    ///
    /// # Errors
    /// The table has not so much room.
    pub fn set_limits(&mut self, change: LimitChange) -> Result<(), Refusal> {
        self.touch(Key::Conntrack);
        self.router.tracking.set_limits(change)?;
        self.apply_tracking();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_before_there_is_a_table_holds_for_it() {
        let mut tracking = Tracking::new(1000);
        assert_eq!((tracking.limits().limit, tracking.limits().port_quota), (1000, 500));
        let change = LimitChange { limit: Some(900), port_quota: None, half_open: Some(7) };
        tracking.set_limits(change).unwrap();
        let refusal =
            tracking.set_limits(LimitChange { limit: Some(1001), ..change }).unwrap_err().to_string();
        assert!(refusal.starts_with("limit 1001 is out of range: it must be 1 to 1000"), "{refusal}");
        tracking.set_timeout(Timeout::Udp, 60).unwrap();
        assert!(tracking.set_timeout(Timeout::Udp, 0).is_err());
        assert_eq!(
            (tracking.timeouts()["udp_timeout"], tracking.timeouts()["tcp_timeout_established"]),
            (60, 432_000)
        );
        let Limits { entries, per_port, half_open } = tracking.limits;
        assert_eq!((entries, per_port, half_open), (900, 500, 7));
    }

    #[test]
    fn timeouts_are_known_by_several_names() {
        assert_eq!(timeout_kind("tcp_established"), Ok(Timeout::TcpEstablished));
        let invalid = timeout_kind("tcp").unwrap_err();
        assert!(invalid.field == "kind" && invalid.to_string().contains("udp_timeout_stream"), "{invalid}");
    }
}
