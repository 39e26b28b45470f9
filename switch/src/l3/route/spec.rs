//! What a route is, and which ones are meant.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::table::Record;

/// What happens to packets that take a route; in order of preference where all else is equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// They are for the switch itself.
    Local,
    /// They are for everybody on a link.
    Broadcast,
    /// They go to a gateway, or to their destination on an interface's link.
    #[default]
    Unicast,
    /// They are dropped without a word.
    Blackhole,
    /// They are refused: host unreachable.
    Unreachable,
    /// They are refused: administratively prohibited.
    Prohibit,
}

impl Kind {
    /// The word of `ip route`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Broadcast => "broadcast",
            Self::Unicast => "unicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        }
    }
}

/// Who made a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// It came with an address.
    Kernel,
    /// The operator.
    #[default]
    Static,
}

impl Protocol {
    /// The word of `ip route`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Static => "static",
        }
    }
}

/// What a route must be like to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// Its gateway is somebody's neighbour, and no address has brought a route of its prefix and metric: for commands,
    /// whose mistakes are told at once.
    New,
    /// If it names its interface, too, it may wait for its gateway or stand behind an address's route, as routes do
    /// whose interface has got other addresses since: for what was saved, and for what files describe.
    Kept,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The addresses that it is for.
    pub prefix: IpNet,
    /// What happens to their packets.
    pub kind: Kind,
    /// The station that passes them on.
    pub gateway: Option<IpAddr>,
    /// Number of the interface that they leave by; if `None` when added, the one whose network the gateway is in.
    pub interface: Option<u16>,
    /// Of several routes of one prefix the lowest is used; equal ones together, flow by flow.
    pub metric: u32,
    /// Who made it.
    pub protocol: Protocol,
    /// The gateway is taken to be on the interface's link, whatever the addresses say.
    pub onlink: bool,
}

impl Route {
    /// A static route without gateway, interface and metric, to be completed.
    pub fn to(prefix: IpNet) -> Self {
        Self {
            prefix,
            kind: Kind::Unicast,
            gateway: None,
            interface: None,
            metric: 0,
            protocol: Protocol::Static,
            onlink: false,
        }
    }

    /// `link` without a gateway, `host` for own addresses, else `global`, as `ip route` says.
    pub fn scope(&self) -> &'static str {
        match (self.kind, self.gateway) {
            (Kind::Local, _) => "host",
            (Kind::Broadcast, _) | (Kind::Unicast, None) => "link",
            _ => "global",
        }
    }

    pub(super) fn of(prefix: IpNet, record: &Record) -> Self {
        Self {
            prefix,
            kind: record.kind,
            gateway: record.gateway,
            interface: record.interface,
            metric: record.metric,
            protocol: record.protocol,
            onlink: record.onlink,
        }
    }

    pub(super) fn record(&self) -> Record {
        Record {
            metric: self.metric,
            interface: self.interface,
            kind: self.kind,
            protocol: self.protocol,
            onlink: self.onlink,
            gateway: self.gateway,
        }
    }
}

/// Which routes are meant; what is not given matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// Exactly this prefix.
    pub prefix: Option<IpNet>,
    /// With this gateway.
    pub gateway: Option<IpAddr>,
    /// Through this interface.
    pub interface: Option<u16>,
    /// Of this metric.
    pub metric: Option<u32>,
    /// Of this kind.
    pub kind: Option<Kind>,
}

impl Which {
    pub(super) fn names(&self, record: &Record) -> bool {
        self.gateway.is_none_or(|gateway| record.gateway == Some(gateway))
            && self.interface.is_none_or(|interface| record.interface == Some(interface))
            && self.metric.is_none_or(|metric| record.metric == metric)
            && self.kind.is_none_or(|kind| record.kind == kind)
    }
}
