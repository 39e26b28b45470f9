//! Policy: who may open connections to whom.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

parameters! {
    /// Makes a rule. Rules are looked at in the order of their numbers; the first that fits and does not only log
    /// decides. Also a `[[policy]]` table of the configuration file.
    pub struct PolicyAdd {
        /// Its number, 1 to 1,000,000; if not given, the next multiple of 10 after the last rule.
        pub id: Option<i64>,
        /// Where it comes from: a port, bridge or interface (`port:web`, `bridge:br0`, `interface:gw`, or the name
        /// alone where it is the only one), `switch` for the switch itself, or networks and addresses separated by
        /// commas; `!` before one of them means all others.
        pub from: Option<String>,
        /// Where it goes, in the same way.
        pub to: Option<String>,
        /// The networks and addresses that it comes from, beside the place.
        pub source: Option<String>,
        /// The networks and addresses that it goes to, beside the place.
        pub destination: Option<String>,
        /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or a number of 0 to 255.
        pub proto: Option<String>,
        /// Source ports: `80`, `8000-8100`, or a list of those separated by commas; with `tcp` and
        /// `udp`.
        pub sport: Option<String>,
        /// Destination ports, in the same way.
        pub dport: Option<String>,
        /// Type of a request of ICMP (8, 13, 15, 17) or ICMPv6 (128).
        pub icmp_type: Option<i64>,
        /// States of the connection: `new`, `established`, `related`, `invalid`, or a list of those separated by commas.
        pub state: Option<String>,
        /// `accept`, `drop`, `reject`; `log`, which logs, or `mark`, which marks, and has the next rule decide.
        pub action: String,
        /// The mark that packets get, 1 to 4,294,967,295: with `mark`. Services that are known by marks find them by it.
        pub mark: Option<i64>,
        /// Whether what it decides is logged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub log: bool,
    }

    /// Removes a rule.
    pub struct PolicyDel {
        /// Its number.
        pub id: i64,
    }

    /// The rules, in their order, and what holds where none fits.
    pub struct PolicyList {}

    /// Removes all rules.
    pub struct PolicyFlush {}

    /// Changes what holds where no rule fits; at least one field must be given.
    pub struct PolicySet {
        /// What becomes of connections through the switch: `accept`, `drop` or `reject`.
        pub forward: Option<String>,
        /// Whether bridges are closed to each other (Docker's isolation).
        pub isolation: Option<bool>,
    }
}

/// A rule. What it does not look at is `null`; the others are in the words of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Its number.
    pub id: u32,
    /// The port, bridge or interface that it comes from.
    pub from: Option<String>,
    /// The port, bridge or interface that it goes to.
    pub to: Option<String>,
    /// The networks that it comes from.
    pub source: Option<String>,
    /// The networks that it goes to.
    pub destination: Option<String>,
    /// The protocol, by name where it has one.
    pub proto: Option<String>,
    /// Source ports.
    pub sport: Option<String>,
    /// Destination ports.
    pub dport: Option<String>,
    /// Type of an ICMP message.
    pub icmp_type: Option<u8>,
    /// States of the connection.
    pub state: Option<String>,
    /// What becomes of it.
    pub action: String,
    /// The mark that packets get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// Whether that is logged.
    pub log: bool,
    /// Packets that it decided; of connections that it accepted only the first is decided.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// All of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What becomes of connections through the switch where no rule fits: `accept`, `drop` or
    /// `reject`.
    pub forward: String,
    /// Connections that this decided.
    pub forward_packets: u64,
    /// Whether bridges are closed to each other.
    pub isolation: bool,
    /// Connections that this refused.
    pub isolation_packets: u64,
    /// The rules, in their order.
    pub rules: Vec<PolicyRule>,
}
