//! Network address translation: masquerading, fixed source addresses, published ports.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::Name;

parameters! {
    /// Has what comes from a network leave under the address of the interface by which it leaves. Also a
    /// `[[nat.masquerade]]` table of the configuration file.
    pub struct MasqueradeAdd {
        /// The network, or a single address.
        pub source: String,
        /// Only what leaves by this interface.
        pub out: Option<String>,
        /// Only what leaves by another interface than this one (iptables: `! -o`).
        pub not_out: Option<String>,
        /// Only what does not go to this network (iptables: `! -d`).
        pub not_destination: Option<String>,
        /// Ports to choose from, such as `32768-60999`; without it the port is kept if it is free.
        pub to_ports: Option<String>,
        /// Whether a port of a guest has the same translation towards everybody, and everybody may answer to it.
        #[serde(default)]
        pub endpoint_independent: bool,
    }

    /// Has what comes from a network leave under given addresses. Also a `[[nat.snat]]` table of the configuration file.
    pub struct SnatAdd {
        /// The network, or a single address.
        pub source: String,
        /// Only what leaves by this interface.
        pub out: Option<String>,
        /// Only what leaves by another interface than this one.
        pub not_out: Option<String>,
        /// Only what does not go to this network.
        pub not_destination: Option<String>,
        /// `ADDRESS`, `FIRST-LAST`, either followed by `:PORT-PORT`; IPv6 in brackets where ports follow.
        pub to: String,
        /// Whether a port of a guest has the same translation towards everybody, and everybody may answer to it.
        #[serde(default)]
        pub endpoint_independent: bool,
    }

    /// Makes a guest's port reachable at an address of the switch, or the whole guest (without `proto` and ports). Also
    /// a `[[nat.publish]]` table of the configuration file.
    pub struct PublishAdd {
        /// `tcp` or `udp`; not given means all protocols and whole addresses, one to one.
        pub proto: Option<String>,
        /// `ADDRESS:PORT` or `ADDRESS:PORT-PORT`; `0.0.0.0`, `[::]` or `*` for any of the switch's own addresses.
        /// Without `proto` an address alone.
        pub listen: String,
        /// `ADDRESS:PORT`, or as many ports as are listened at. Without `proto` an address alone.
        pub to: String,
    }

    /// Leaves what goes from one network to another untranslated. Also a `[[nat.exempt]]` table of the configuration
    /// file.
    pub struct ExemptAdd {
        /// The network that it comes from, or a single address.
        pub source: String,
        /// The network that it goes to, or a single address.
        pub destination: String,
    }

    /// Removes a rule.
    pub struct NatDel {
        /// Its number.
        pub id: i64,
        /// What the rule must be if this is given, lest the wrong one goes: `masquerade`, `snat`, `publish` or `exempt`.
        pub kind: Option<String>,
    }

    /// All rules, by number.
    pub struct NatList {}
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NatKind {
    /// Source address of the way out.
    Masquerade,
    /// Given source addresses.
    Snat,
    /// Another destination.
    Publish,
    /// Nothing.
    Exempt,
}

impl NatKind {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Snat => "snat",
            Self::Publish => "publish",
            Self::Exempt => "exempt",
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
    /// The network that packets go to.
    pub destination: Option<IpNet>,
    /// The interface by which they leave.
    pub out: Option<Name>,
    /// The interface by which they do not leave.
    pub not_out: Option<Name>,
    /// The network that they do not go to.
    pub not_destination: Option<IpNet>,
    /// `tcp` or `udp`.
    pub proto: Option<String>,
    /// Where a published port is reached, in the words of the request.
    pub listen: Option<String>,
    /// What the address (and port) becomes, in the words of the request.
    pub to: Option<String>,
    /// Ports to choose from.
    pub to_ports: Option<String>,
    /// Whether a port has the same translation towards everybody.
    pub endpoint_independent: bool,
    /// Connections that it translated.
    pub connections: u64,
    /// Connections that were refused because no address and port was left.
    pub exhausted: u64,
}
