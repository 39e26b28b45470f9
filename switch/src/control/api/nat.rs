//! Network address translation: masquerading, fixed source addresses, published ports.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Name;

parameters! {
    /// Has what comes from a network leave under the address of the interface by which it leaves. Also a
    /// `[[nat.masquerade]]` table of the configuration file.
    pub struct MasqueradeAdd {
        /// Its number; one that was never given if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<i64>,
        /// The network, or a single address.
        pub source: String,
        /// Only what leaves by this interface.
        pub out: Option<String>,
        /// Only what leaves by another interface than this one (iptables: `! -o`).
        pub not_out: Option<String>,
        /// Only what does not go to these networks (iptables: `! -d`).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub not_destination: Vec<String>,
        /// Ports to choose from, such as `32768-60999`; without it the port is kept if it is free.
        pub to_ports: Option<String>,
        /// Whether a port of a guest has the same translation towards everybody, and everybody may answer to it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub endpoint_independent: bool,
    }

    /// Has what comes from a network leave under given addresses. Also a `[[nat.snat]]` table of the configuration file.
    pub struct SnatAdd {
        /// Its number; one that was never given if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<i64>,
        /// The network, or a single address.
        pub source: String,
        /// Only what leaves by this interface.
        pub out: Option<String>,
        /// Only what leaves by another interface than this one.
        pub not_out: Option<String>,
        /// Only what does not go to these networks.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub not_destination: Vec<String>,
        /// `ADDRESS`, `FIRST-LAST`, either followed by `:PORT-PORT`; IPv6 in brackets where ports follow.
        pub to: String,
        /// Whether a port of a guest has the same translation towards everybody, and everybody may answer to it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub endpoint_independent: bool,
    }

    /// Makes a guest's ports reachable at an address of the switch. Also a `[[nat.publish]]` table of the configuration
    /// file.
    pub struct PublishAdd {
        /// Its number; one that was never given if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<i64>,
        /// `tcp`, `udp` or `sctp`.
        pub proto: String,
        /// `ADDRESS:PORT` or `ADDRESS:PORT-PORT`; `0.0.0.0`, `[::]` or `*` for any of the switch's own addresses.
        pub listen: String,
        /// `ADDRESS:PORT`, or as many ports as are listened at.
        pub to: String,
        /// Only what comes in by this interface.
        #[serde(rename = "in")]
        pub ingress: Option<String>,
    }

    /// Has addresses outside stand for addresses inside, one for one and in both directions. Also a
    /// `[[nat.one-to-one]]` table of the configuration file.
    pub struct OneToOneAdd {
        /// Its number; one that was never given if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<i64>,
        /// The address or network outside.
        pub outside: String,
        /// The address or network inside, as large.
        pub inside: String,
        /// The interface behind which outside is; any if not given.
        pub out: Option<String>,
    }

    /// Removes a rule.
    pub struct NatDel {
        /// Its number.
        pub id: i64,
        /// What the rule must be if this is given, lest the wrong one goes: `masquerade`, `snat`, `publish` or
        /// `one-to-one`.
        pub kind: Option<String>,
    }

    /// All rules, by number.
    pub struct NatList {}
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatKind {
    /// Source address of the way out.
    Masquerade,
    /// Given source addresses.
    Snat,
    /// Another destination.
    Publish,
    /// Another destination one way, another source the other way.
    OneToOne,
}

impl NatKind {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Snat => "snat",
            Self::Publish => "publish",
            Self::OneToOne => "one-to-one",
        }
    }
}

/// A rule. Fields that its kind does not have are `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRule {
    /// Its number, unique among all rules of translation.
    pub id: u32,
    /// What it does.
    pub kind: NatKind,
    /// The network that packets come from.
    pub source: Option<IpNet>,
    /// The interface by which they leave.
    pub out: Option<Name>,
    /// The interface by which they do not leave.
    pub not_out: Option<Name>,
    /// The networks that they do not go to.
    pub not_destination: Vec<IpNet>,
    /// `tcp`, `udp` or `sctp`.
    pub proto: Option<String>,
    /// Where a published port is reached.
    pub listen: Option<String>,
    /// The interface by which packets come in.
    #[serde(rename = "in")]
    pub ingress: Option<Name>,
    /// What the address and the ports become.
    pub to: Option<String>,
    /// Ports to choose from.
    pub to_ports: Option<String>,
    /// Whether a port has the same translation towards everybody.
    pub endpoint_independent: bool,
    /// Addresses outside.
    pub outside: Option<IpNet>,
    /// Addresses inside.
    pub inside: Option<IpNet>,
    /// Connections that it translated.
    pub connections: u64,
    /// Connections that were refused because no address or port was left.
    pub exhausted: u64,
}
