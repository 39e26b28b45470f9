//! Connections that pass the switch.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

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
        /// State of TCP, such as `ESTABLISHED`.
        pub state: Option<String>,
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

/// A connection. Ports and ICMP fields that its protocol does not have are `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Name of the protocol, `unknown` where it has none.
    pub proto: String,
    /// Its number.
    pub protonum: u8,
    /// Seconds until it is forgotten unless another packet comes.
    pub timeout: u32,
    /// State of TCP and SCTP; `null` for others.
    pub state: Option<String>,
    /// Source of the first packet.
    pub source: IpAddr,
    /// Destination of the first packet.
    pub dest: IpAddr,
    /// Its source port.
    pub sport: Option<u16>,
    /// Its destination port.
    pub dport: Option<u16>,
    /// Type of an ICMP query.
    pub icmp_type: Option<u8>,
    /// Code of an ICMP query.
    pub icmp_code: Option<u8>,
    /// Identifier of an ICMP query.
    pub icmp_id: Option<u16>,
    /// Source of the answers.
    pub reply_source: IpAddr,
    /// Destination of the answers.
    pub reply_dest: IpAddr,
    /// Source port of the answers.
    pub reply_sport: Option<u16>,
    /// Destination port of the answers.
    pub reply_dport: Option<u16>,
    /// Identifier of the answers to an ICMP query.
    pub reply_icmp_id: Option<u16>,
    /// Whether an answer was seen.
    pub replied: bool,
    /// Whether it is established for certain, so that it is not the first to go when the table is full.
    pub assured: bool,
    /// Packets of the side that began.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets of the other side.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// Part of a [`ConntrackList`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackPage {
    /// Connections, in no order.
    pub entries: Vec<Connection>,
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
