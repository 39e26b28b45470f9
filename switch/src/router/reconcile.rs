//! Making things what entries say: for a start from what was saved, for `config apply`, and for taking back what could
//! not be made durable.
//!
//! Ports go first and come with everything else; at layer 3 nothing is published before all of it is as it is to be, so
//! that packets meet the one state or the other and a server that stays keeps its leases, a rule its connections.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Tracking;
use super::interface::own_mac;
use crate::config::document::{Document, Entry, Key, Nat, Service};
use crate::config::spec::{
    BridgeSpec, ContainerSpec, DhcpChange, FdbSpec, InterfaceChange, InterfaceSpec, NeighbourSpec, NicPort,
    Place, PolicyChange, PolicySpec, RouteMatch, RouteSpec, container_id, ipvs_setting, sync_role,
};
use crate::config::{Config, Name, PortSpec, RebalanceChange};
use crate::control::api;
use crate::ipvs::draft::Change;
use crate::ipvs::health::CheckSpec;
use crate::ipvs::scope::Scope;
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::spec::DestinationSpec;
use crate::ipvs::sync::DaemonSpec;
use crate::l2::fdb::{Fdb, Key as Address};
use crate::l3::route::rib::Terms;
use crate::members::MEMBERS;
use crate::nat::rule::Rule;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// What is to be under each key; `None`: nothing.
pub(crate) type Wanted = BTreeMap<Key, Option<Entry>>;
/// A thing that could not be made, and why.
pub(crate) type Failed = (Key, Refusal);

/// Passes after which what still differs cannot be had: a thing that goes takes others with it, which come back.
const PASSES: usize = 4;

fn named(key: &Key, refusal: impl std::fmt::Display) -> Failed {
    (key.clone(), Refusal::new(format!("{key}: {refusal}")))
}

impl Switch {
    /// Makes things what is wanted, as far as it goes; says what could not be. Whoever wants all or nothing has taken
    /// note of what there was before ([`Switch::touch`] does) and asks for that again. `strict`: nothing goes if one of
    /// the ports that are to come cannot be made.
    pub(crate) fn reconcile(&mut self, mut wanted: Wanted, strict: bool) -> Vec<Failed> {
        let mut failed = Vec::new();
        for _ in 0..PASSES {
            // What went with something else is wanted as it was.
            for (key, before) in self.keeper.touched() {
                wanted.entry(key.clone()).or_insert_with(|| before.clone());
            }
            let differs = |(key, entry): &(&Key, &Option<Entry>)| self.describe(key) != **entry;
            let differing: Vec<Key> = wanted.iter().filter(differs).map(|(key, _)| key.clone()).collect();
            if differing.is_empty() {
                return Vec::new();
            }
            failed = self.pass(&differing, &wanted, strict);
        }
        failed
    }

    fn pass(&mut self, differing: &[Key], wanted: &Wanted, strict: bool) -> Vec<Failed> {
        let mut failed = Vec::new();
        let entry = |key: &Key| wanted.get(key).and_then(Option::as_ref);
        // New ports first: what fails, fails before anything has gone.
        for key in differing {
            let (Key::Port(name), Some(Entry::Port(asked))) = (key, entry(key)) else { continue };
            let free = !self.ports.contains_key(name) && self.bridges.contains_key(asked.bridge.as_str());
            let Ok(spec) = PortSpec::try_from(asked) else { continue };
            if free && self.refuse_taken(&spec).is_ok() {
                self.hold(true);
                let made = self.add_port(spec);
                self.hold(false);
                if let Err(refusal) = made
                    && strict
                {
                    self.publish();
                    return vec![named(key, refusal)];
                }
            }
        }
        let mut gone: Vec<Name> = Vec::new();
        for key in differing {
            let Key::Port(name) = key else { continue };
            let spec = entry(key).and_then(|entry| match entry {
                Entry::Port(asked) => PortSpec::try_from(asked).ok(),
                _ => None,
            });
            if self.ports.contains_key(name) && !spec.is_some_and(|spec| self.alter_port(name, spec)) {
                gone.push(*name);
            }
        }
        self.remove_ports(&gone);
        self.hold(true);
        for key in differing.iter().rev() {
            if self.describe(key).is_some()
                && !self.is_altered_later(key, entry(key))
                && let Err(refusal) = self.unmake(key)
            {
                failed.push(named(key, refusal));
            }
        }
        self.narrow(differing, wanted);
        let things = differing.iter().filter_map(|key| Some((key, entry(key)?)));
        self.make_all(things, &mut failed);
        self.hold(false);
        self.publish_all();
        failed
    }

    /// Whether [`Self::make_all`] changes a thing in place that is there.
    fn is_altered_later(&self, key: &Key, wanted: Option<&Entry>) -> bool {
        match (key, wanted) {
            (_, None) => false,
            (Key::Interface(name), Some(Entry::Interface(to))) => {
                self.router.interfaces.get(name).is_some_and(|interface| {
                    interface.bridge.as_str() == to.bridge
                        && i64::from(interface.vlan) == to.vlan.unwrap_or_default()
                })
            }
            (
                Key::Rebalance
                | Key::Port(_)
                | Key::Nic(_)
                | Key::Bridge(_)
                | Key::Service(..)
                | Key::Conntrack
                | Key::Forward,
                _,
            )
            | (Key::IpvsTimeouts(_) | Key::IpvsSettings(_) | Key::Fdb(..) | Key::Neighbour(..), _) => true,
            _ => false,
        }
    }

    /// Takes from interfaces the addresses that they are not to have, so that others can get them.
    fn narrow(&mut self, differing: &[Key], wanted: &Wanted) {
        for key in differing {
            let (Key::Interface(name), Some(Some(Entry::Interface(to)))) = (key, wanted.get(key)) else {
                continue;
            };
            let Some(interface) = self.router.interfaces.get(name) else { continue };
            let going = interface.addresses.iter().filter(|own| !to.address.contains(&own.to_string()));
            let change = InterfaceChange { remove: going.copied().collect(), ..InterfaceChange::default() };
            if !change.remove.is_empty() {
                // Its DHCP comes back when it has its new addresses.
                self.touch(Key::Dhcp(*name));
                self.router.dhcp.remove(name);
                // What is refused now is refused again when the interface is made what it is to be.
                let _ = self.router.set_interface(name, &change);
            }
        }
    }

    /// Makes a port what is wanted without taking it off; false if that cannot be.
    pub(crate) fn alter_port(&mut self, name: &Name, spec: PortSpec) -> bool {
        let Some(member) = self.ports.get(name) else { return false };
        let old = &member.spec;
        let same = old.attachment == spec.attachment
            && (old.bridge, old.queues, old.mac) == (spec.bridge, spec.queues, spec.mac)
            && spec.pins.iter().all(|(_, core)| self.worker_on(*core).is_ok())
            && (old.mtu == spec.mtu || spec.mtu.is_some());
        if !same {
            return false;
        }
        self.touch(Key::Port(*name));
        let Some(member) = self.ports.get_mut(name) else { return false };
        if member.spec.mtu != spec.mtu && spec.mtu.is_some_and(|mtu| member.port.change_mtu(mtu).is_err()) {
            return false;
        }
        member.port.set_limits(&spec.limits);
        member.pins = spec.pins.iter().copied().collect();
        member.spec = spec;
        true
    }

    fn unmake(&mut self, key: &Key) -> Result<(), Refusal> {
        self.touch(key.clone());
        match key {
            Key::Rebalance => self.set_rebalancing(RebalanceChange::usual()),
            Key::Conntrack => self.set_tracking(None)?,
            Key::Bridge(name) => self.del_bridge(name)?,
            Key::Port(name) => self.remove_ports(&[*name]),
            Key::Fdb(bridge, vlan, mac) => self.fdb_del(bridge, *mac, *vlan)?,
            Key::Interface(name) => self.del_interface(name)?,
            Key::Neighbour(interface, address) => self.del_neighbour(interface, *address)?,
            Key::Route(prefix, metric) => {
                let meant =
                    RouteMatch { prefixes: vec![*prefix], via: None, dev: None, metric: Some(*metric) };
                self.router.del_routes(&meant)?;
            }
            Key::Nat(id) => self.router.del_nat(*id, None)?,
            Key::Policy(id) => self.router.del_policy(*id)?,
            Key::Forward => self.router.set_policy(PolicyChange::usual()),
            Key::Dhcp(name) => {
                // Those of containers' NICs come back with the rest of it, or are told again.
                self.router.dhcp.remove(name);
            }
            Key::Container(id) => self.forget_container(&container_id("id", id)?),
            Key::Nic(device) => self.set_nic_port(NicPort::of(*device))?,
            Key::IpvsTimeouts(of) => self.scope(of)?.settings().set_timeouts(Timeouts::default()),
            Key::IpvsSettings(of) => {
                let scope = self.scope(of)?;
                Setting::ALL.iter().for_each(|one| scope.settings().set(*one, one.default_value()));
            }
            Key::Service(of, service) => {
                let change = Change::DeleteService(*service);
                self.scope(of)?.apply([change]).map_err(|failed| Refusal::new(failed.to_string()))?;
            }
            Key::Check(service) => {
                self.del_check(service);
            }
            Key::Daemon(role) => {
                self.stop_daemon(sync_role(role)?).map_err(|error| Refusal::new(error.to_string()))?;
            }
        }
        Ok(())
    }

    fn scope(&self, of: &Option<String>) -> Result<Arc<Scope>, Refusal> {
        Ok(self.ensure_ipvs_scope(of.as_deref())?)
    }

    /// Makes things, in the order of their keys; what fails is noted, and the others are made.
    fn make_all<'a>(&mut self, things: impl Iterator<Item = (&'a Key, &'a Entry)>, failed: &mut Vec<Failed>) {
        let mut services: BTreeMap<&Option<String>, Vec<(&Key, &Service)>> = BTreeMap::new();
        let mut routes: Vec<(&Key, RouteSpec)> = Vec::new();
        let mut later: Vec<(&Key, &Entry)> = Vec::new();
        for (key, entry) in things {
            match (key, entry) {
                (Key::Service(of, _), Entry::Service(service)) => {
                    services.entry(of).or_default().push((key, service));
                }
                (Key::Route(..), Entry::Route(ways)) => {
                    self.touch(key.clone());
                    for way in ways {
                        match RouteSpec::try_from(way) {
                            Ok(route) => routes.push((key, route)),
                            Err(invalid) => failed.push(named(key, invalid)),
                        }
                    }
                }
                // Behind routes and services.
                _ if *key > Key::Nat(0) => later.push((key, entry)),
                _ => failed.extend(self.make(key, entry).err().map(|refusal| named(key, refusal))),
            }
        }
        self.make_routes(&routes, failed);
        let is_last = |key: &Key| matches!(key, Key::Check(_) | Key::Daemon(_));
        for (key, entry) in later.iter().filter(|(key, _)| !is_last(key)) {
            failed.extend(self.make(key, entry).err().map(|refusal| named(key, refusal)));
        }
        for (of, services) in services {
            self.make_services(of, &services, failed);
        }
        for (key, entry) in later.iter().filter(|(key, _)| is_last(key)) {
            failed.extend(self.make(key, entry).err().map(|refusal| named(key, refusal)));
        }
    }

    /// Many at once cost far less than one by one; where one is refused, they are tried one by one.
    fn make_routes(&mut self, routes: &[(&Key, RouteSpec)], failed: &mut Vec<Failed>) {
        let all = routes.iter().map(|(_, route)| *route);
        if routes.is_empty() || self.router.load_routes(all, Terms::Kept, false).is_ok() {
            return;
        }
        for (key, route) in routes {
            let made = self.router.add_kept_route(route);
            failed.extend(made.err().map(|refusal| named(key, refusal)));
        }
    }

    fn make_services(
        &mut self,
        of: &Option<String>,
        services: &[(&Key, &Service)],
        failed: &mut Vec<Failed>,
    ) {
        let Ok(scope) = self.scope(of) else { return };
        let mut all = Vec::new();
        let mut each = Vec::new();
        for (key, service) in services {
            self.touch((*key).clone());
            let now = match self.describe(key) {
                Some(Entry::Service(now)) => Some(now),
                _ => None,
            };
            let changes = service_changes(now.as_ref(), service);
            all.extend(changes.iter().cloned());
            each.push((*key, changes));
        }
        if scope.apply(all).is_ok() {
            return;
        }
        for (key, changes) in each {
            failed.extend(scope.apply(changes).err().map(|wrong| named(key, wrong)));
        }
    }

    fn make(&mut self, key: &Key, entry: &Entry) -> Result<(), Refusal> {
        self.touch(key.clone());
        match entry {
            Entry::Rebalance(asked) => {
                self.set_rebalancing(RebalanceChange::usual());
                self.set_rebalancing(RebalanceChange::try_from(asked)?);
            }
            Entry::Conntrack(_) => self.set_tracking(Some(entry))?,
            Entry::Bridge(asked) => {
                let spec = BridgeSpec::try_from(asked)?;
                if !self.bridges.contains_key(&spec.name) {
                    return self.add_bridge(spec);
                }
                self.alter_bridge(spec);
            }
            Entry::Port(asked) => {
                let spec = PortSpec::try_from(asked)?;
                if !self.ports.contains_key(&spec.name) {
                    return self.add_port(spec);
                }
            }
            Entry::Fdb(asked) => {
                let FdbSpec { bridge, mac, port, vlan } = FdbSpec::try_from(asked)?;
                self.fdb_add(&bridge, mac, &port, vlan)?;
            }
            Entry::Interface(asked) => {
                let spec = InterfaceSpec::try_from(asked)?;
                if !self.router.interfaces.contains_key(&spec.name) {
                    return self.add_interface(spec);
                }
                self.alter_interface(&spec)?;
            }
            Entry::Neighbour(asked) => self.add_neighbour(NeighbourSpec::try_from(asked)?)?,
            Entry::Nat(rule) => {
                let (id, rule) = match rule {
                    Nat::Masquerade(asked) => (asked.id, Rule::try_from(asked)?),
                    Nat::Snat(asked) => (asked.id, Rule::try_from(asked)?),
                    Nat::Publish(asked) => (asked.id, Rule::try_from(asked)?),
                    Nat::OneToOne(asked) => (asked.id, Rule::try_from(asked)?),
                };
                let id = crate::config::spec::nat_id(id)?.ok_or("it has no number")?;
                self.router.insert_nat(id, rule)?;
            }
            Entry::Policy(asked) => {
                // What it names need not be there: see the file's own rule.
                let known = |_: &str| vec![Place::Port, Place::Bridge, Place::Interface];
                self.router.add_policy(PolicySpec::new(asked, &known)?)?;
            }
            Entry::Forward(table) => {
                let usual = PolicyChange::usual();
                let asked = api::PolicySet {
                    forward: table.default.clone().or_else(|| Some("accept".to_owned())),
                    isolation: table.isolation.or(usual.isolation),
                };
                self.router.set_policy(PolicyChange::try_from(&asked)?);
            }
            Entry::Dhcp(asked) => self.router.set_dhcp(DhcpChange::try_from(asked)?)?,
            Entry::Container(asked) => self.add_container(ContainerSpec::try_from(asked)?)?,
            Entry::Nic(asked) => self.set_nic_port(NicPort::try_from(asked)?)?,
            Entry::IpvsTimeouts(asked) => {
                let (Key::IpvsTimeouts(of), timeouts) = (key, Timeouts::try_from(asked)?) else {
                    return Ok(());
                };
                let settings = self.scope(of)?.settings().clone();
                settings.set_timeouts(Timeouts::default());
                settings.set_timeouts(timeouts);
            }
            Entry::IpvsSettings(asked) => {
                let Key::IpvsSettings(of) = key else { return Ok(()) };
                let scope = self.scope(of)?;
                for setting in Setting::ALL {
                    let value = asked.get(setting.name()).copied();
                    let value = value.unwrap_or_else(|| setting.default_value());
                    let (setting, value) = ipvs_setting(setting.name(), value.into())?;
                    scope.settings().set(setting, value);
                }
            }
            Entry::Check(asked) => self.start_check(CheckSpec::try_from(asked)?)?,
            Entry::Daemon(asked) => {
                let spec = DaemonSpec::try_from(asked)?;
                self.start_daemon(&spec).map_err(|error| Refusal::new(error.to_string()))?;
            }
            // Made with others of their kind.
            Entry::Route(_) | Entry::Service(_) => {}
        }
        Ok(())
    }

    fn alter_bridge(&mut self, spec: BridgeSpec) {
        let now = self.now();
        let Some(bridge) = self.bridges.get_mut(&spec.name) else { return };
        if (bridge.spec.ageing, bridge.spec.fdb_limit) != (spec.ageing, spec.fdb_limit) {
            // What was learned is learned again; what was told stays.
            let fdb = Fdb::new(spec.fdb_limit, spec.ageing, MEMBERS);
            for entry in bridge.fdb.entries(now).iter().filter(|entry| entry.fixed) {
                fdb.fix(Address::new(entry.key.mac(), entry.key.vlan()), entry.port, now);
            }
            bridge.fdb = Arc::new(fdb);
        }
        bridge.spec = spec;
    }

    fn alter_interface(&mut self, spec: &InterfaceSpec) -> Result<(), Refusal> {
        let Some(interface) = self.router.interfaces.get(&spec.name) else { return Ok(()) };
        let ordered = interface.addresses != spec.addresses;
        let change = InterfaceChange {
            // All of them, so that they come in the order that is asked for.
            remove: if ordered { interface.addresses.clone() } else { Vec::new() },
            add: if ordered { spec.addresses.clone() } else { Vec::new() },
            mac: Some(spec.mac.unwrap_or_else(|| own_mac(&spec.name, &spec.bridge, spec.vlan))),
            mtu: Some(spec.mtu),
            up: Some(spec.up),
            clamp_mss: Some(spec.clamp_mss),
        };
        self.router.set_interface(&spec.name, &change)
    }

    fn set_tracking(&mut self, entry: Option<&Entry>) -> Result<(), Refusal> {
        let mut document = Document::default();
        document.set(Key::Conntrack, entry.cloned());
        let spec = Config::parse(&document.to_toml()?, None)?.layer3.conntrack;
        let before = self.router.tracking.capacity;
        let mut router = super::Router::new(1);
        spec.apply(&mut router)?;
        let tracking: Tracking = router.tracking;
        if self.live.is_some() && tracking.capacity != before {
            let wanted = tracking.capacity;
            return Err(Refusal::new(format!(
                "the table is made for {before} connections, and cannot become one for {wanted} while the daemon runs"
            )));
        }
        self.router.tracking = tracking;
        self.apply_tracking();
        Ok(())
    }
}

/// The changes that make a service what is wanted; its servers are in the order that is wanted then.
fn service_changes(now: Option<&Service>, wanted: &Service) -> Vec<Change> {
    let key = wanted.spec.key;
    let add = |server: &DestinationSpec| Change::AddDestination(key, server.clone());
    let Some(now) = now else {
        let servers = wanted.servers.iter().map(add);
        return std::iter::once(Change::AddService(wanted.spec.clone())).chain(servers).collect();
    };
    let mut changes = Vec::new();
    if now.spec != wanted.spec {
        changes.push(Change::EditService(wanted.spec.clone()));
    }
    let socket = |server: &DestinationSpec| (server.address, server.port);
    let wanted_by: HashMap<_, _> = wanted.servers.iter().map(|server| (socket(server), server)).collect();
    let kept: Vec<_> =
        now.servers.iter().map(socket).filter(|server| wanted_by.contains_key(server)).collect();
    // Those that stay must be the first ones that are wanted, in their order; otherwise all come anew, and find their
    // connections again.
    let ordered = kept.iter().zip(&wanted.servers).all(|(a, b)| *a == socket(b));
    let staying: HashSet<_> = if ordered { kept.into_iter().collect() } else { HashSet::new() };
    for old in &now.servers {
        if !staying.contains(&socket(old)) {
            changes.push(Change::DeleteDestination(key, old.address, old.port));
        } else if let Some(new) = wanted_by.get(&socket(old)).filter(|new| **new != old) {
            changes.push(Change::EditDestination(key, (*new).clone()));
        }
    }
    changes.extend(wanted.servers.iter().filter(|new| !staying.contains(&socket(new))).map(add));
    changes
}
