//! Connections that pass the switch.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::conntrack::record::Record;

parameters! {
    /// Which connections are meant; what is not given fits all.
    pub struct ConntrackFilter {
        /// Protocol: `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or its number.
        pub proto: Option<String>,
        /// `ipv4` or `ipv6`.
        pub family: Option<String>,
        /// Source of the first packet: an address or a network.
        pub source: Option<String>,
        /// Destination of the first packet.
        pub dest: Option<String>,
        /// Source of the answers.
        pub reply_source: Option<String>,
        /// Destination of the answers.
        pub reply_dest: Option<String>,
        /// Source port of the first packet.
        pub sport: Option<i64>,
        /// Destination port of the first packet.
        pub dport: Option<i64>,
        /// Source port of the answers.
        pub reply_sport: Option<i64>,
        /// Destination port of the answers.
        pub reply_dport: Option<i64>,
        /// State of TCP, such as `ESTABLISHED`.
        pub state: Option<String>,
        /// The port by which the first packet came in.
        pub port: Option<String>,
        /// Only those whose source is translated.
        #[serde(default)]
        pub src_nat: bool,
        /// Only those whose destination is translated.
        #[serde(default)]
        pub dst_nat: bool,
    }

    /// Connections, some thousands at a time.
    pub struct ConntrackList {
        /// Which.
        #[serde(default)]
        pub filter: ConntrackFilter,
        /// What the answer before gave as `next`; without it the listing starts. Connections come and go meanwhile.
        pub next: Option<u64>,
    }

    /// How many there are.
    pub struct ConntrackCount {}

    /// Forgets connections.
    pub struct ConntrackFlush {
        /// Which.
        #[serde(default)]
        pub filter: ConntrackFilter,
    }

    /// What happened to connections, by worker.
    pub struct ConntrackStats {}

    /// How long connections are remembered.
    pub struct ConntrackTimeouts {}

    /// Changes how long connections in a state are remembered; those that exist follow with their next packet.
    pub struct ConntrackSetTimeout {
        /// The state, such as `tcp_established`.
        pub kind: String,
        /// Seconds, 1 to 8,000,000.
        pub seconds: i64,
    }

    /// How many connections there may be.
    pub struct ConntrackLimits {}

    /// Changes how many there may be.
    pub struct ConntrackSetLimit {
        /// Of connections altogether; not more than the table was made for at the start.
        pub limit: Option<i64>,
        /// Of connections that one port may have begun.
        pub port_quota: Option<i64>,
        /// Of TCP connections whose handshake is not complete, altogether.
        pub half_open: Option<i64>,
    }
}

/// Part of a [`ConntrackList`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackPage {
    /// Connections, in no order. Their fields are those of [`Record`].
    pub entries: Vec<Record>,
    /// What to ask for the following ones with; `null` after the last.
    pub next: Option<u64>,
}

/// The number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackSize {
    /// There are so many.
    pub count: u64,
    /// There may be so many.
    pub limit: u64,
}

/// What happened to connections at one worker, in the words of `conntrack -S`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCounters {
    /// The worker.
    pub cpu: usize,
    /// How often, by name.
    #[serde(flatten)]
    pub counters: BTreeMap<String, u64>,
}

/// Seconds by state.
pub type Timeouts = BTreeMap<String, u32>;

/// Bounds of the table of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What the table was made for at the start (`[conntrack] limit`).
    pub capacity: u64,
    /// Of connections altogether.
    pub limit: u64,
    /// Of connections that one port may have begun.
    pub port_quota: u64,
    /// Of TCP connections whose handshake is not complete.
    pub half_open: u64,
}
