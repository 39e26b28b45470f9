//! Routes for people: what there is, what is used, and why.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rib::{Kind, Protocol, Rib, Route, Which, net_v4, net_v6, path_of, shown};
use super::table::Record;

/// Whether a route is used, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is used.
    Active,
    /// Another of the same prefix has a lower metric, or came with an address.
    Outranked,
    /// Its interface is down.
    InterfaceDown,
    /// Its gateway is on no network of its interface any more.
    GatewayUnreachable,
    /// A longer prefix holds the address; only in answers about one address.
    LessSpecific,
}

impl Standing {
    /// One word for scripts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Outranked => "outranked",
            Self::InterfaceDown => "interface-down",
            Self::GatewayUnreachable => "gateway-unreachable",
            Self::LessSpecific => "less-specific",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "used",
            Self::Outranked => "another route of this prefix has a lower metric",
            Self::InterfaceDown => "its interface is down",
            Self::GatewayUnreachable => "its gateway is on no network of its interface",
            Self::LessSpecific => "a longer prefix holds the address",
        })
    }
}

/// A route as listings show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The route.
    pub route: Route,
    /// Whether it is used.
    pub standing: Standing,
    /// The own address that packets of the switch itself carry on this way; `None` without an interface or an
    /// address of the family.
    pub source: Option<IpAddr>,
}

/// The answer to "which way does a packet to this address go, and why".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The address.
    pub address: IpAddr,
    /// Every route that is for the address, the longest prefix first. Those that are [`Standing::Active`] are used:
    /// none if the address is unreachable, several if flows are spread over them.
    pub routes: Vec<Listed>,
}

impl Explanation {
    /// The routes that are used.
    pub fn used(&self) -> impl Iterator<Item = &Listed> {
        self.routes.iter().filter(|listed| listed.standing == Standing::Active)
    }
}

impl Rib {
    /// The routes that match, in order of their prefixes, IPv4 first.
    pub fn list(&self, which: &Which) -> Vec<Listed> {
        let mut listed = Vec::new();
        self.each(which, |one| listed.push(one));
        listed
    }

    /// Has `f` see the routes that match, in order of their prefixes, IPv4 first.
    pub fn each(&self, which: &Which, mut f: impl FnMut(Listed)) {
        match which.prefix.map(|prefix| prefix.trunc()) {
            Some(prefix) => self.judge(prefix, self.records(prefix), which, false, &mut f),
            None => {
                self.v4.iter().for_each(|(key, records)| {
                    self.judge(net_v4(key), records, which, false, &mut f);
                });
                self.v6.iter().for_each(|(key, records)| {
                    self.judge(net_v6(key), records, which, false, &mut f);
                });
            }
        }
    }

    /// Which way a packet to `address` goes, and why no other.
    pub fn get(&self, address: IpAddr) -> Explanation {
        let mut routes = Vec::new();
        let mut found = false;
        let mut judge = |prefix: IpNet, records: &[Record]| {
            let start = routes.len();
            self.judge(prefix, records, &Which::default(), found, |listed| routes.push(listed));
            found |= routes[start..].iter().any(|listed| listed.standing == Standing::Active);
        };
        match address {
            IpAddr::V4(v4) => {
                self.v4.holding(v4.to_bits()).for_each(|(key, records)| judge(net_v4(key), records));
            }
            IpAddr::V6(v6) => {
                self.v6.holding(v6.to_bits()).for_each(|(key, records)| judge(net_v6(key), records));
            }
        }
        Explanation { address, routes }
    }

    /// Has `f` see the records of one prefix that match, each with its standing.
    fn judge(
        &self,
        prefix: IpNet,
        records: &[Record],
        which: &Which,
        shadowed: bool,
        mut f: impl FnMut(Listed),
    ) {
        let usable = |record: &&Record| path_of(&self.links, record).is_ok();
        let best = records.iter().filter(usable).map(Record::rank).min();
        for record in records.iter().filter(|record| which.names(record)) {
            let standing = match path_of(&self.links, record) {
                Err(why) => why,
                Ok(_) if best.is_some_and(|best| record.rank() > best) => Standing::Outranked,
                Ok(_) if shadowed => Standing::LessSpecific,
                Ok(_) => Standing::Active,
            };
            let route = Route::of(prefix, record);
            f(Listed { route, standing, source: self.source(&route) });
        }
    }

    /// The own address that goes with a route.
    fn source(&self, route: &Route) -> Option<IpAddr> {
        let link = self.links.get(&route.interface?)?;
        let near = route.gateway.unwrap_or(route.prefix.addr());
        let family = |own: &&IpNet| own.addr().is_ipv4() == near.is_ipv4();
        let exact = link.addresses.iter().find(|own| own.addr() == near);
        let network = || link.addresses.iter().filter(family).find(|own| own.contains(&near));
        let any = || link.addresses.iter().find(family);
        exact.or_else(network).or_else(any).map(IpNet::addr)
    }

    /// A route in the words of `ip route`: `10.1.0.0/16 via 10.0.3.2 dev lan0 proto static metric 10`.
    pub fn describe(&self, route: &Route) -> String {
        let mut text = String::new();
        if route.kind != Kind::Unicast {
            text += route.kind.as_str();
            text += " ";
        }
        text += &shown(route.prefix);
        if let Some(gateway) = route.gateway {
            text += &format!(" via {gateway}");
        }
        if let Some(index) = route.interface {
            match self.interface_name(index) {
                Some(name) => text += &format!(" dev {name}"),
                None => text += &format!(" dev #{index}"),
            }
        }
        text += &format!(" proto {}", route.protocol.as_str());
        if route.scope() != "global" {
            text += &format!(" scope {}", route.scope());
        }
        if route.protocol == Protocol::Kernel
            && let Some(source) = self.source(route)
        {
            text += &format!(" src {source}");
        }
        if route.metric != 0 {
            text += &format!(" metric {}", route.metric);
        }
        if route.onlink {
            text += " onlink";
        }
        text
    }
}
