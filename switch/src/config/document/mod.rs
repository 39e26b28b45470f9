//! Everything that commands can make, as data: each thing under its [`Key`], as the request that would make it.
//!
//! A document is made of a running switch or of a configuration file, by the same functions, so that equal things are
//! equal entries: what differs between two documents is what differs between two switches. [`write`](mod@write) makes
//! the text of a configuration file of it, [`difference`] the list of what differs.
#![forbid(unsafe_code)]

pub mod describe;
pub mod difference;
mod read;
mod service;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Mac, Name, spec::service_name};
use crate::control::api;
use crate::ipvs::spec::ServiceKey;

pub use difference::{Difference, Mark};
pub use service::{NoService, Service};

#[cfg(test)]
pub(crate) mod tests;

/// What a thing is known by. Things sort in the order in which they can be made: what another one needs comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// When queues are spread anew over workers by themselves.
    Rebalance,
    /// What holds for connections.
    Conntrack,
    /// A bridge.
    Bridge(Name),
    /// A port.
    Port(Name),
    /// A static entry of a forwarding database: bridge, VLAN, address.
    Fdb(Name, u16, Mac),
    /// An interface.
    Interface(Name),
    /// A permanent neighbour.
    Neighbour(Name, IpAddr),
    /// All ways to a destination that share a metric.
    Route(IpNet, u32),
    /// A rule of translation.
    Nat(u32),
    /// A rule of policy.
    Policy(u32),
    /// What holds where no rule fits.
    Forward,
    /// DHCP and router advertisements of an interface.
    Dhcp(Name),
    /// A container with its NICs and routes, by its ID.
    Container(String),
    /// What differs at the port of a container's NIC from what the NIC says, by its device.
    Nic(Name),
    /// Timeouts of balanced connections, of a container's table or the global one.
    IpvsTimeouts(Option<String>),
    /// Settings of a table of services.
    IpvsSettings(Option<String>),
    /// A virtual service with its servers: the table, and what it is known by.
    Service(Option<String>, #[serde(with = "service::key")] ServiceKey),
    /// The health check of a service.
    Check(#[serde(with = "service::key")] ServiceKey),
    /// A sync daemon: `master` or `backup`.
    Daemon(String),
}

impl Key {
    /// The word for this kind of thing.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rebalance => "rebalance",
            Self::Conntrack => "conntrack",
            Self::Bridge(_) => "bridge",
            Self::Port(_) => "port",
            Self::Fdb(..) => "fdb",
            Self::Interface(_) => "interface",
            Self::Neighbour(..) => "neighbour",
            Self::Route(..) => "route",
            Self::Nat(_) => "nat",
            Self::Policy(_) => "policy",
            Self::Forward => "forward",
            Self::Dhcp(_) => "dhcp",
            Self::Container(_) => "container",
            Self::Nic(_) => "nic",
            Self::IpvsTimeouts(_) => "ipvs timeouts",
            Self::IpvsSettings(_) => "ipvs settings",
            Self::Service(..) => "ipvs service",
            Self::Check(_) => "check",
            Self::Daemon(_) => "sync daemon",
        }
    }

    /// What it is called among those of its kind; empty where there is one only.
    pub fn name(&self) -> String {
        let of = |container: &Option<String>| match container {
            Some(name) => format!(" of container {name}"),
            None => String::new(),
        };
        match self {
            Self::Rebalance | Self::Conntrack | Self::Forward => String::new(),
            Self::Bridge(name)
            | Self::Port(name)
            | Self::Interface(name)
            | Self::Dhcp(name)
            | Self::Nic(name) => name.to_string(),
            Self::Fdb(bridge, 0, mac) => format!("{mac} on {bridge}"),
            Self::Fdb(bridge, vlan, mac) => format!("{mac} on {bridge} vlan {vlan}"),
            Self::Neighbour(interface, address) => format!("{address} on {interface}"),
            Self::Route(prefix, 0) => prefix.to_string(),
            Self::Route(prefix, metric) => format!("{prefix} metric {metric}"),
            Self::Nat(id) | Self::Policy(id) => id.to_string(),
            Self::IpvsTimeouts(container) | Self::IpvsSettings(container) => of(container).trim().to_owned(),
            Self::Service(container, key) => format!("{}{}", service_name(key), of(container)),
            Self::Check(key) => service_name(key),
            Self::Container(name) | Self::Daemon(name) => name.clone(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        let space = if name.is_empty() { "" } else { " " };
        write!(f, "{}{space}{name}", self.kind())
    }
}

/// A thing: the request that would make it, with nothing in it that has its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// When queues are spread anew over workers by themselves.
    Rebalance(api::WorkerSet),
    /// Bounds and timeouts of connections.
    Conntrack(Conntrack),
    /// A bridge.
    Bridge(api::BridgeAdd),
    /// A port.
    Port(api::PortAdd),
    /// A static entry.
    Fdb(api::FdbAdd),
    /// An interface.
    Interface(api::InterfaceAdd),
    /// A permanent neighbour.
    Neighbour(api::NeighbourAdd),
    /// Ways to a destination.
    Route(Vec<api::RouteAdd>),
    /// A rule of translation.
    Nat(Nat),
    /// A rule of policy.
    Policy(api::PolicyAdd),
    /// What holds where no rule fits.
    Forward(Forward),
    /// DHCP and router advertisements.
    Dhcp(api::DhcpSet),
    /// A container.
    Container(api::ContainerAdd),
    /// What differs at the port of a container's NIC.
    Nic(api::NicPort),
    /// Timeouts of balanced connections.
    IpvsTimeouts(api::IpvsTimeouts),
    /// Settings of a table of services.
    IpvsSettings(api::IpvsSettingsList),
    /// A virtual service.
    Service(Service),
    /// A health check.
    Check(api::CheckSet),
    /// A sync daemon.
    Daemon(api::IpvsDaemonStart),
}

/// A rule of translation of any kind; its number is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// `[[nat.masquerade]]`.
    Masquerade(api::MasqueradeAdd),
    /// `[[nat.snat]]`.
    Snat(api::SnatAdd),
    /// `[[nat.publish]]`.
    Publish(api::PublishAdd),
    /// `[[nat.one-to-one]]`.
    OneToOne(api::OneToOneAdd),
}

impl Nat {
    /// Gives it another number.
    fn set_number(&mut self, number: u32) {
        let id = match self {
            Self::Masquerade(rule) => &mut rule.id,
            Self::Snat(rule) => &mut rule.id,
            Self::Publish(rule) => &mut rule.id,
            Self::OneToOne(rule) => &mut rule.id,
        };
        *id = Some(number.into());
    }
}

/// The table `[forward]`: what holds where no rule of policy fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// What becomes of connections through the switch: `accept`, `drop` or `reject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Whether bridges are closed to each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<bool>,
}

/// The table `[conntrack]`: bounds and timeouts of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conntrack {
    /// Connections that the table is made for at the start, where that is not `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Most connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Most connections that one port may have begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_quota: Option<i64>,
    /// Most TCP connections whose handshake is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_open: Option<i64>,
    /// Seconds for which connections are remembered, by state.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub timeouts: BTreeMap<String, i64>,
}

/// What is configured, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The things.
    pub entries: BTreeMap<Key, Entry>,
}

impl Document {
    /// Takes a change in: another thing in the place of what is there under its key, or nothing.
    pub fn set(&mut self, key: Key, entry: Option<Entry>) {
        match entry {
            Some(entry) => self.entries.insert(key, entry),
            None => self.entries.remove(&key),
        };
    }

    /// Another document whose rules of translation bear the numbers that equal ones bear here, where its file gives
    /// them none of their own; the others get numbers that nobody has.
    pub fn numbered(&self, mut wanted: Self, given: &BTreeSet<u32>) -> Self {
        let rules = |document: &Self| -> Vec<(u32, Nat)> {
            let nat = |(key, entry): (&Key, &Entry)| match (key, entry) {
                (Key::Nat(id), Entry::Nat(rule)) => Some((*id, rule.clone())),
                _ => None,
            };
            document.entries.iter().filter_map(nat).collect()
        };
        let mut present: Vec<(u32, Nat)> = rules(self);
        let free: Vec<(u32, Nat)> =
            rules(&wanted).into_iter().filter(|(id, _)| !given.contains(id)).collect();
        for (id, _) in &free {
            wanted.entries.remove(&Key::Nat(*id));
        }
        let last = present.iter().map(|(id, _)| *id).chain(given.iter().copied()).max().unwrap_or(0);
        let mut next = last.saturating_add(1);
        for (_, mut rule) in free {
            let equal = present.iter().position(|(id, own)| {
                let mut same = rule.clone();
                same.set_number(*id);
                same == *own && !wanted.entries.contains_key(&Key::Nat(*id))
            });
            let id = match equal {
                Some(at) => present.swap_remove(at).0,
                None => {
                    next += 1;
                    next - 1
                }
            };
            rule.set_number(id);
            wanted.entries.insert(Key::Nat(id), Entry::Nat(rule));
        }
        wanted
    }

    /// The names of containers that have a table of services.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self
            .entries
            .keys()
            .filter_map(|key| match key {
                Key::IpvsTimeouts(Some(name))
                | Key::IpvsSettings(Some(name))
                | Key::Service(Some(name), _) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter()
    }
}

impl FromIterator<(Key, Entry)> for Document {
    fn from_iter<I: IntoIterator<Item = (Key, Entry)>>(entries: I) -> Self {
        Self { entries: entries.into_iter().collect() }
    }
}
