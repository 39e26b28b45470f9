//! A document as the text of a configuration file.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Conntrack, Document, Entry, Forward, Key, Nat, describe};
use crate::control::api;
use crate::refusal::Refusal;

/// The tables of a file, in the order in which people read them.
#[derive(Default, Serialize)]
struct File<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    rebalance: Option<&'a api::WorkerSet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bridge: Vec<&'a api::BridgeAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    port: Vec<&'a api::PortAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fdb: Vec<&'a api::FdbAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interface: Vec<&'a api::InterfaceAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    neighbour: Vec<&'a api::NeighbourAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    route: Vec<&'a api::RouteAdd>,
    #[serde(skip_serializing_if = "NatTables::is_empty")]
    nat: NatTables<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forward: Option<&'a Forward>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policy: Vec<&'a api::PolicyAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dhcp: Vec<&'a api::DhcpSet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conntrack: Option<&'a Conntrack>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    container: Vec<&'a api::ContainerAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nic: Vec<&'a api::NicPort>,
    #[serde(skip_serializing_if = "IpvsTables::is_empty")]
    ipvs: IpvsTables<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    check: Vec<&'a api::CheckSet>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct NatTables<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    masquerade: Vec<&'a api::MasqueradeAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snat: Vec<&'a api::SnatAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    publish: Vec<&'a api::PublishAdd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    one_to_one: Vec<&'a api::OneToOneAdd>,
}

impl NatTables<'_> {
    fn is_empty(&self) -> bool {
        self.masquerade.is_empty()
            && self.snat.is_empty()
            && self.publish.is_empty()
            && self.one_to_one.is_empty()
    }
}

#[derive(Default, Serialize)]
struct IpvsTables<'a> {
    #[serde(flatten)]
    global: Table<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    daemon: Vec<&'a api::IpvsDaemonStart>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    container: BTreeMap<&'a str, Table<'a>>,
}

impl IpvsTables<'_> {
    fn is_empty(&self) -> bool {
        self.global.is_empty() && self.daemon.is_empty() && self.container.is_empty()
    }
}

/// The services of one table.
#[derive(Default, Serialize)]
struct Table<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    timeouts: Option<&'a api::IpvsTimeouts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<&'a api::IpvsSettingsList>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service: Vec<api::IpvsService>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    server: Vec<api::IpvsServer>,
}

impl Table<'_> {
    fn is_empty(&self) -> bool {
        self.timeouts.is_none()
            && self.settings.is_none()
            && self.service.is_empty()
            && self.server.is_empty()
    }
}

impl<'a> IpvsTables<'a> {
    fn of(&mut self, container: &'a Option<String>) -> &mut Table<'a> {
        match container {
            Some(name) => self.container.entry(name).or_default(),
            None => &mut self.global,
        }
    }
}

impl Document {
    /// The text of a configuration file that describes this.
    ///
    /// # Errors
    /// Never, as tests show; but what a library says is listened to.
    pub fn to_toml(&self) -> Result<String, Refusal> {
        let mut file = File::default();
        for (key, entry) in &self.entries {
            match entry {
                Entry::Rebalance(table) => file.rebalance = Some(table),
                Entry::Conntrack(table) => file.conntrack = Some(table),
                Entry::Bridge(bridge) => file.bridge.push(bridge),
                Entry::Port(port) => file.port.push(port),
                Entry::Fdb(fixed) => file.fdb.push(fixed),
                Entry::Interface(interface) => file.interface.push(interface),
                Entry::Neighbour(neighbour) => file.neighbour.push(neighbour),
                Entry::Route(ways) => file.route.extend(ways),
                Entry::Nat(Nat::Masquerade(rule)) => file.nat.masquerade.push(rule),
                Entry::Nat(Nat::Snat(rule)) => file.nat.snat.push(rule),
                Entry::Nat(Nat::Publish(rule)) => file.nat.publish.push(rule),
                Entry::Nat(Nat::OneToOne(rule)) => file.nat.one_to_one.push(rule),
                Entry::Policy(rule) => file.policy.push(rule),
                Entry::Forward(forward) => file.forward = Some(forward),
                Entry::Dhcp(dhcp) => file.dhcp.push(dhcp),
                Entry::Container(container) => file.container.push(container),
                Entry::Nic(nic) => file.nic.push(nic),
                Entry::Check(check) => file.check.push(check),
                Entry::Daemon(daemon) => file.ipvs.daemon.push(daemon),
                Entry::IpvsTimeouts(_) | Entry::IpvsSettings(_) | Entry::Service(_) => {
                    let container = match key {
                        Key::IpvsTimeouts(of) | Key::IpvsSettings(of) | Key::Service(of, _) => of,
                        _ => &None,
                    };
                    let table = file.ipvs.of(container);
                    match entry {
                        Entry::IpvsTimeouts(timeouts) => table.timeouts = Some(timeouts),
                        Entry::IpvsSettings(settings) => table.settings = Some(settings),
                        Entry::Service(service) => {
                            table.service.push(describe::service(&service.spec));
                            let server = |server| describe::server(&service.spec.key, server);
                            table.server.extend(service.servers.iter().map(server));
                        }
                        _ => {}
                    }
                }
            }
        }
        toml::to_string(&file)
            .map_err(|error| Refusal::new(format!("the configuration cannot be written as TOML: {error}")))
    }
}
