//! What is configured, as the requests that would make it: of a router, of a switch, of a configuration file.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::Router;
use super::interface::own_mac;
use crate::config::document::{Document, Entry, Forward, Key, Service, describe};
use crate::config::{Config, Mac, Name, Rebalancing};
use crate::control::api;
use crate::ipvs::health::{Health, ServerHealth};
use crate::ipvs::scope::Scope;
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::spec::{DestinationSpec, ServiceKey, ServiceSpec};
use crate::l2::fdb::Key as Address;
use crate::l3::route::rib::{Protocol, Which};
use crate::policy::Verdict;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Weights that failed servers get back, by service.
type Taken = HashMap<ServiceKey, Weights>;
type Weights = HashMap<(IpAddr, u16), i32>;

impl Router {
    fn interface_entry(&self, name: &str) -> Option<Entry> {
        let interface = self.interfaces.get(name)?;
        let own = own_mac(&interface.name, &interface.bridge, interface.vlan);
        Some(Entry::Interface(describe::interface(interface, own)))
    }

    fn neighbour_entry(&self, interface: Name, address: IpAddr) -> Option<Entry> {
        let mac = self.neighbours.get(&(interface, address))?;
        Some(Entry::Neighbour(api::NeighbourAdd {
            interface: interface.to_string(),
            address: address.to_string(),
            mac: mac.to_string(),
        }))
    }

    /// All static routes that are meant, by destination and metric.
    fn route_entries(&self, which: &Which) -> BTreeMap<Key, Entry> {
        let mut ways: BTreeMap<Key, Vec<api::RouteAdd>> = BTreeMap::new();
        self.rib.each(which, |listed| {
            if listed.route.protocol == Protocol::Static {
                let route = self.shown_route(&listed);
                let key = Key::Route(route.prefix, route.metric);
                ways.entry(key).or_default().push(describe::route(&route));
            }
        });
        let sorted = |(key, mut ways): (Key, Vec<api::RouteAdd>)| {
            ways.sort_by(|a, b| (&a.via, &a.dev).cmp(&(&b.via, &b.dev)));
            (key, Entry::Route(ways))
        };
        ways.into_iter().map(sorted).collect()
    }

    /// The keys of static routes that are meant.
    pub(crate) fn route_keys(&self, which: &Which) -> Vec<Key> {
        self.route_entries(which).into_keys().collect()
    }

    fn forward_entry(&self) -> Option<Entry> {
        let forward = self.policy.default_forward();
        let forward = Forward {
            default: (forward != Verdict::Accept).then(|| forward.as_str().to_owned()),
            isolation: self.isolation.then_some(true),
        };
        (forward != Forward::default()).then_some(Entry::Forward(forward))
    }

    fn scope_of(&self, container: Option<&str>) -> Option<std::sync::Arc<Scope>> {
        match container {
            None => Some(self.ipvs.global().clone()),
            Some(name) => self.ipvs.container(name),
        }
    }

    /// A thing of layer 3, if it is there. Bridges, ports, checks and daemons are the switch's.
    pub(crate) fn describe(&self, key: &Key, taken: Option<&Weights>) -> Option<Entry> {
        match key {
            Key::Conntrack => self.tracking.entry().map(Entry::Conntrack),
            Key::Interface(name) => self.interface_entry(name),
            Key::Neighbour(interface, address) => self.neighbour_entry(*interface, *address),
            Key::Route(prefix, metric) => {
                let which = Which { prefix: Some(*prefix), metric: Some(*metric), ..Which::default() };
                self.route_entries(&which).remove(key)
            }
            Key::Nat(id) => self.nat.get(*id).map(|(rule, _)| Entry::Nat(describe::nat(*id, rule))),
            Key::Policy(id) => {
                self.policy.get(*id).map(|(rule, _)| Entry::Policy(describe::policy(*id, rule)))
            }
            Key::Forward => self.forward_entry(),
            Key::Dhcp(name) => self.dhcp.get(name).map(|server| Entry::Dhcp(describe::dhcp(server))),
            Key::IpvsTimeouts(of) => timeouts(&*self.scope_of(of.as_deref())?),
            Key::IpvsSettings(of) => settings(&*self.scope_of(of.as_deref())?),
            Key::Service(of, key) => {
                let (spec, servers) = self.scope_of(of.as_deref())?.asked(key)?;
                Some(service(spec, servers, taken))
            }
            Key::Rebalance
            | Key::Bridge(_)
            | Key::Port(_)
            | Key::Fdb(..)
            | Key::Container(_)
            | Key::Nic(_)
            | Key::Check(_)
            | Key::Daemon(_) => None,
        }
    }

    /// All things of layer 3.
    pub(crate) fn entries(&self, taken: &Taken, document: &mut Document) {
        let keys = [Key::Conntrack, Key::Forward].into_iter();
        let keys = keys.chain(self.interfaces.keys().copied().map(Key::Interface));
        let keys = keys
            .chain(self.neighbours.keys().map(|(interface, address)| Key::Neighbour(*interface, *address)));
        let keys = keys.chain(self.nat.iter().map(|(id, ..)| Key::Nat(id)));
        let keys = keys.chain(self.policy.iter().map(|(id, ..)| Key::Policy(id)));
        let keys = keys.chain(self.dhcp.keys().copied().map(Key::Dhcp));
        for key in keys {
            let entry = self.describe(&key, None);
            document.set(key, entry);
        }
        document.entries.append(&mut self.route_entries(&Which::default()));
        self.scope_entries(None, self.ipvs.global(), taken, document);
        for name in self.ipvs.container_names() {
            if let Some(scope) = self.ipvs.container(&name) {
                self.scope_entries(Some(name), &scope, &Taken::new(), document);
            }
        }
    }

    fn scope_entries(&self, of: Option<String>, scope: &Scope, taken: &Taken, document: &mut Document) {
        document.set(Key::IpvsTimeouts(of.clone()), timeouts(scope));
        document.set(Key::IpvsSettings(of.clone()), settings(scope));
        for (spec, servers) in scope.all_asked() {
            let key = spec.key;
            document.set(Key::Service(of.clone(), key), Some(service(spec, servers, taken.get(&key))));
        }
    }
}

/// A service; `taken`: the weights that failed servers get back.
fn service(spec: ServiceSpec, mut servers: Vec<DestinationSpec>, taken: Option<&Weights>) -> Entry {
    for server in servers.iter_mut().filter(|server| server.weight == 0) {
        let weight = taken.and_then(|taken| taken.get(&(server.address, server.port)));
        server.weight = weight.copied().unwrap_or(0);
    }
    Entry::Service(Service { spec, servers })
}

fn timeouts(scope: &Scope) -> Option<Entry> {
    let timeouts = scope.settings().timeouts();
    (timeouts != Timeouts::default()).then(|| Entry::IpvsTimeouts(Switch::ipvs_timeouts(scope)))
}

fn settings(scope: &Scope) -> Option<Entry> {
    let changed = |setting: &&Setting| scope.settings().get(**setting) != setting.default_value();
    let settings: api::IpvsSettingsList = Setting::ALL
        .iter()
        .filter(changed)
        .map(|setting| (setting.name().to_owned(), scope.settings().get(*setting)))
        .collect();
    (!settings.is_empty()).then_some(Entry::IpvsSettings(settings))
}

fn weights(servers: &[ServerHealth]) -> Weights {
    servers.iter().filter_map(|server| Some(((server.address, server.port), server.taken?))).collect()
}

fn taken(health: &Health) -> Taken {
    health.list().map(|(check, servers)| (check.service, weights(&servers))).collect()
}

impl Switch {
    /// A thing, if it is there.
    pub(crate) fn describe(&self, key: &Key) -> Option<Entry> {
        match key {
            Key::Rebalance => describe::rebalance(&self.rebalancer.settings).map(Entry::Rebalance),
            Key::Bridge(name) => {
                self.bridges.get(name).map(|bridge| Entry::Bridge(describe::bridge(&bridge.spec)))
            }
            Key::Port(name) => {
                let member = self.ports.get(name)?;
                if self.containers.owner(name).is_some() {
                    return None;
                }
                let pins = member.pins.iter().map(|(queue, core)| (*queue, *core));
                Some(Entry::Port(describe::port(&member.spec, pins)))
            }
            Key::Fdb(bridge, vlan, mac) => {
                let number = self.bridges.get(bridge)?.fdb.fixed(Address::new(mac.0, *vlan))?;
                let member = self.ports.values().find(|member| member.port.number() == number)?;
                let port = &member.spec;
                let own = port.mac == Some(*mac) && *vlan == 0;
                (!own).then(|| Entry::Fdb(describe::fdb(bridge, *vlan, *mac, &port.name)))
            }
            Key::Check(key) => {
                let (spec, _) = self.directors.checks().find(|(spec, _)| spec.service == *key)?;
                Some(Entry::Check(describe::check(spec)))
            }
            Key::Daemon(role) => {
                let spec = self.directors.asked().find(|spec| spec.role.to_string() == *role)?;
                Some(Entry::Daemon(describe::daemon(spec)))
            }
            Key::Container(id) => {
                let container = self.containers.all().find(|container| container.spec.id.as_str() == id)?;
                let nics = container.present();
                Some(Entry::Container(describe::container(&container.spec, nics)))
            }
            Key::Nic(device) => self.containers.nic_port(device).and_then(describe::nic).map(Entry::Nic),
            Key::Service(None, service) => {
                let check = self.directors.checks().find(|(check, _)| check.service == *service);
                self.router.describe(key, check.map(|(_, servers)| weights(&servers)).as_ref())
            }
            _ => self.router.describe(key, None),
        }
    }

    /// All that is configured.
    pub fn document(&self) -> Document {
        let mut document = Document::default();
        let keys = std::iter::once(Key::Rebalance);
        let keys = keys.chain(self.bridges.keys().copied().map(Key::Bridge));
        let keys = keys.chain(self.ports.keys().copied().map(Key::Port));
        let checks = self.directors.checks().map(|(spec, _)| Key::Check(spec.service));
        let keys = keys.chain(checks);
        let keys = keys.chain(self.directors.asked().map(|spec| Key::Daemon(spec.role.to_string())));
        let keys = keys.chain(self.fixed_addresses(|_| true));
        let containers = self.containers.all().map(|container| container.spec.id.to_string());
        let keys = keys.chain(containers.map(Key::Container));
        let keys = keys.chain(self.containers.devices().map(Key::Nic));
        for key in keys {
            let entry = self.describe(&key);
            document.set(key, entry);
        }
        self.router.entries(&taken(self.directors.health()), &mut document);
        document
    }

    /// The static entries of forwarding databases that somebody asked for, at ports of these numbers.
    pub(crate) fn fixed_addresses(&self, of: impl Fn(u16) -> bool) -> impl Iterator<Item = Key> {
        let entries = self.bridges.iter().flat_map(|(name, bridge)| {
            bridge.fdb.entries(self.now()).into_iter().map(|entry| (*name, entry))
        });
        let is_port = |number: u16| crate::members::interface_index(number).is_none();
        entries
            .filter(move |(_, entry)| entry.fixed && is_port(entry.port) && of(entry.port))
            .map(|(bridge, entry)| Key::Fdb(bridge, entry.key.vlan(), Mac(entry.key.mac())))
    }
}

impl Config {
    /// All that the file describes, as a switch would describe it that was made so.
    ///
    /// # Errors
    /// Never, since the file was tried before; what is refused is told nevertheless.
    pub fn document(&self) -> Result<Document, Refusal> {
        let mut document = Document::default();
        let mut rebalancing = Rebalancing::default();
        rebalancing.change(self.rebalance);
        document.set(Key::Rebalance, describe::rebalance(&rebalancing).map(Entry::Rebalance));
        for (_, bridge) in &self.bridges {
            document.set(Key::Bridge(bridge.name), Some(Entry::Bridge(describe::bridge(bridge))));
        }
        for (_, port) in &self.ports {
            let entry = describe::port(port, port.pins.iter().copied());
            document.set(Key::Port(port.name), Some(Entry::Port(entry)));
        }
        let of_ports = self.ports.iter().filter_map(|(_, port)| Some((port.name, port.mac?)));
        let nics = self.containers.iter().flat_map(|(_, container)| &container.nics);
        let of_nics = nics.filter(|nic| nic.socket.is_some()).map(|nic| (nic.device, nic.mac));
        let macs: HashMap<Name, Mac> = of_ports.chain(of_nics).collect();
        for (_, fdb) in &self.fdb {
            let own = macs.get(&fdb.port) == Some(&fdb.mac) && fdb.vlan == 0;
            if !own {
                let entry = describe::fdb(&fdb.bridge, fdb.vlan, fdb.mac, &fdb.port);
                document.set(Key::Fdb(fdb.bridge, fdb.vlan, fdb.mac), Some(Entry::Fdb(entry)));
            }
        }
        for (_, container) in &self.containers {
            let entry = Entry::Container(describe::container(container, container.nics.iter()));
            document.set(Key::Container(container.id.to_string()), Some(entry));
        }
        for (_, nic) in &self.nics {
            document.set(Key::Nic(nic.device), describe::nic(nic).map(Entry::Nic));
        }
        for (_, check) in &self.layer3.checks {
            let key = Key::Check(check.service);
            document.set(key, Some(Entry::Check(describe::check(check))));
        }
        for (_, daemon) in self.layer3.ipvs.daemons() {
            let key = Key::Daemon(daemon.role.to_string());
            document.set(key, Some(Entry::Daemon(describe::daemon(daemon))));
        }
        self.layer3.rehearse()?.entries(&Taken::new(), &mut document);
        Ok(document)
    }
}
