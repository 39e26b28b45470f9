//! A transaction on the services of a scope: changes are tried on a draft one after another, and only if all of them
//! are possible is the draft put into force.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use super::error::Error;
use super::list::List;
use super::service::Service;
use super::settings::Timeouts;
use super::spec::{DestinationSpec, Forward, Scheduler, ServiceKey, ServiceSpec, Tunnel};
use super::table::ServiceTable;
use crate::rules::hash::Map;

/// One change, as one command of `ipvsadm` asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `-A`.
    AddService(ServiceSpec),
    /// `-E`.
    EditService(ServiceSpec),
    /// `-D`.
    DeleteService(ServiceKey),
    /// `-C`.
    Flush,
    /// `-a`.
    AddDestination(ServiceKey, DestinationSpec),
    /// `-e`.
    EditDestination(ServiceKey, DestinationSpec),
    /// `-d`.
    DeleteDestination(ServiceKey, IpAddr, u16),
    /// `--set`.
    SetTimeouts(Timeouts),
}

/// What becomes of a service.
#[derive(Debug)]
pub(super) struct Drafted {
    /// The service as it is; `None`: it is new.
    pub(super) base: Option<Arc<Service>>,
    pub(super) spec: ServiceSpec,
    /// Its servers, where they change.
    pub(super) list: Option<List>,
    /// The spec changes.
    pub(super) edited: bool,
    /// Its scheduler begins anew.
    pub(super) restarted: bool,
}

/// The services that change.
pub(super) struct Draft<'a> {
    table: &'a ServiceTable,
    limit: usize,
    /// Rules after the changes.
    pub(super) rules: usize,
    /// By key; `None`: deleted.
    pub(super) services: Map<ServiceKey, Option<Drafted>>,
    /// Services that go, including those whose key another one gets.
    pub(super) removed: Vec<Arc<Service>>,
    flushed: bool,
    pub(super) timeouts: Option<Timeouts>,
    /// Servers to be made.
    pub(super) new_servers: usize,
}

impl<'a> Draft<'a> {
    pub(super) fn new(table: &'a ServiceTable, rules: usize, limit: usize) -> Self {
        Self {
            table,
            limit,
            rules,
            services: Map::default(),
            removed: Vec::new(),
            flushed: false,
            timeouts: None,
            new_servers: 0,
        }
    }

    /// Tries a change.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), Error> {
        match change {
            Change::AddService(spec) => self.add_service(spec),
            Change::EditService(spec) => self.edit_service(spec),
            Change::DeleteService(key) => self.delete_service(key),
            Change::Flush => {
                self.services.clear();
                self.removed = self.table.all();
                (self.flushed, self.rules, self.new_servers) = (true, 0, 0);
                Ok(())
            }
            Change::AddDestination(key, spec) => self.add_destination(key, spec),
            Change::EditDestination(key, spec) => {
                let drafted = self.drafted(key)?;
                check_numbers(spec)?;
                check_tunnel(key, spec)?;
                if !drafted.list().edit(spec) {
                    return Err(Error::NoSuchDestination(*key, spec.address, spec.port));
                }
                Ok(())
            }
            Change::DeleteDestination(key, address, port) => {
                if !self.drafted(key)?.list().delete((*address, *port)) {
                    return Err(Error::NoSuchDestination(*key, *address, *port));
                }
                self.rules -= 1;
                Ok(())
            }
            Change::SetTimeouts(new) => {
                let old = self.timeouts.unwrap_or(Timeouts { tcp: 0, tcp_fin: 0, udp: 0 });
                let pick = |old, new| if new == 0 { old } else { new };
                self.timeouts = Some(Timeouts {
                    tcp: pick(old.tcp, new.tcp),
                    tcp_fin: pick(old.tcp_fin, new.tcp_fin),
                    udp: pick(old.udp, new.udp),
                });
                Ok(())
            }
        }
    }

    fn base(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        if self.flushed { None } else { self.table.get(key) }
    }

    /// The draft of a service that is there.
    fn drafted(&mut self, key: &ServiceKey) -> Result<&mut Drafted, Error> {
        if !self.services.contains_key(key) {
            let base = self.base(key).ok_or(Error::NoSuchService(*key))?;
            let spec = base.view().spec.clone();
            let drafted = Drafted { base: Some(base), spec, list: None, edited: false, restarted: false };
            self.services.insert(*key, Some(drafted));
        }
        self.services.get_mut(key).and_then(Option::as_mut).ok_or(Error::NoSuchService(*key))
    }

    fn add_service(&mut self, spec: &ServiceSpec) -> Result<(), Error> {
        check_service(spec)?;
        let there = match self.services.get(&spec.key) {
            Some(drafted) => drafted.is_some(),
            None => self.base(&spec.key).is_some(),
        };
        if there {
            return Err(Error::ServiceExists(spec.key));
        }
        self.room(spec.key, None)?;
        let mut drafted =
            Drafted { base: None, spec: spec.clone(), list: None, edited: true, restarted: true };
        if spec.scheduler == Some(Scheduler::Wrr) {
            drafted.list().restart();
        }
        self.services.insert(spec.key, Some(drafted));
        self.rules += 1;
        Ok(())
    }

    fn edit_service(&mut self, spec: &ServiceSpec) -> Result<(), Error> {
        check_service(spec)?;
        let drafted = self.drafted(&spec.key)?;
        drafted.edited = true;
        let before = std::mem::replace(&mut drafted.spec, spec.clone()).scheduler;
        if before != spec.scheduler {
            drafted.restarted = true;
            if spec.scheduler == Some(Scheduler::Wrr) {
                drafted.list().restart();
            }
        }
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), Error> {
        let drafted = self.drafted(key)?;
        let servers = match (&drafted.list, &drafted.base) {
            (Some(list), _) => list.len(),
            (None, Some(base)) => base.view().destinations.len(),
            (None, None) => 0,
        };
        let base = drafted.base.take();
        self.removed.extend(base);
        self.rules -= 1 + servers;
        self.services.insert(*key, None);
        Ok(())
    }

    fn add_destination(&mut self, key: &ServiceKey, spec: &DestinationSpec) -> Result<(), Error> {
        let drafted = self.drafted(key)?;
        check_numbers(spec)?;
        check_tunnel(key, spec)?;
        if spec.address.is_ipv6() != is_v6(key) && !matches!(spec.forward, Forward::Tunnel(_)) {
            return Err(Error::Invalid {
                key: *key,
                why: "only a tunnel leads to a server of the other address family",
            });
        }
        check_address(key, spec.address)?;
        if !drafted.list().add(spec) {
            return Err(Error::DestinationExists(*key, spec.address, spec.port));
        }
        self.room(*key, Some((spec.address, spec.port)))?;
        self.rules += 1;
        self.new_servers += 1;
        Ok(())
    }

    fn room(&self, key: ServiceKey, server: Option<(IpAddr, u16)>) -> Result<(), Error> {
        if self.rules < self.limit { Ok(()) } else { Err(Error::Full { key, server, limit: self.limit }) }
    }
}

impl Drafted {
    fn list(&mut self) -> &mut List {
        let base = &self.base;
        let list = self.list.get_or_insert_with(|| match base {
            Some(base) => List::of(&base.view()),
            None => List::default(),
        });
        if self.spec.scheduler == Some(Scheduler::Wrr) && !list.notes_weights() {
            list.note_weights();
        }
        list
    }
}

fn is_v6(key: &ServiceKey) -> bool {
    match key {
        ServiceKey::Address { address, .. } => address.is_ipv6(),
        ServiceKey::Mark { v6, .. } => *v6,
    }
}

fn check_service(spec: &ServiceSpec) -> Result<(), Error> {
    if matches!(spec.key, ServiceKey::Mark { mark: 0, .. }) {
        return Err(Error::Invalid { key: spec.key, why: "packets without a mark have the mark 0" });
    }
    if let Some(persistence) = spec.persistence {
        let fits = match persistence.mask {
            IpAddr::V4(_) => !is_v6(&spec.key),
            IpAddr::V6(mask) => {
                let bits = mask.to_bits();
                is_v6(&spec.key) && bits != 0 && bits.leading_ones() == bits.count_ones()
            }
        };
        if !fits {
            return Err(Error::Invalid { key: spec.key, why: "the netmask does not fit the address family" });
        }
    }
    Ok(())
}

fn check_numbers(spec: &DestinationSpec) -> Result<(), Error> {
    let range = |why| Err(Error::Range { address: spec.address, port: spec.port, why });
    if spec.weight < 0 {
        return range("a weight is not below 0");
    }
    if spec.lower > spec.upper {
        return range("the lower threshold is above the upper one");
    }
    Ok(())
}

fn check_tunnel(key: &ServiceKey, spec: &DestinationSpec) -> Result<(), Error> {
    match spec.forward {
        Forward::Tunnel(Tunnel::Gue { port: 0, .. }) => {
            Err(Error::Invalid { key: *key, why: "a gue tunnel needs a port" })
        }
        Forward::FullNat { first, last }
            if first.is_ipv6() != last.is_ipv6()
                || first.is_ipv6() != spec.address.is_ipv6()
                || first > last =>
        {
            Err(Error::Invalid { key: *key, why: "the pool is not a range of the server's address family" })
        }
        _ => Ok(()),
    }
}

fn check_address(key: &ServiceKey, address: IpAddr) -> Result<(), Error> {
    let unusable = match address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if unusable {
        Err(Error::Invalid { key: *key, why: "a server's address is one that a host can have" })
    } else {
        Ok(())
    }
}
