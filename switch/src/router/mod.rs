//! Layer 3 as the control thread owns it: interfaces, routes, neighbours, translation, policy, services.
//!
//! A method checks first and then changes: one that refuses has changed nothing. What depends on ports and bridges is
//! checked by [`crate::switch::Switch`], whose methods in [`control`] are the ones that the control socket and the
//! configuration file call; they publish what has changed to the workers.
#![forbid(unsafe_code)]

pub(crate) mod alarms;
mod configured;
mod conntrack;
mod control;
mod describe;
mod dhcp;
pub mod directors;
pub(crate) mod guards;
mod interface;
pub mod ipvs;
pub(crate) mod keep;
pub(crate) mod live;
mod nat;
mod neighbour;
mod policy;
mod reconcile;
mod route;
mod uplink;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::spec::NeighbourSpec;
use crate::config::{Mac, Name};
use crate::control::api;
use crate::ipvs::Ipvs;
use crate::l3::route::rib::Rib;
use crate::nat::RuleSet;
use crate::policy::PolicySet;
use crate::refusal::Refusal;

pub use conntrack::{CONNECTIONS_DEFAULT, CONNECTIONS_MAX, CONNECTIONS_MIN, Tracking, timeout_kind};
pub use dhcp::DhcpServer;
pub use interface::Interface;

/// Everything of layer 3 that is configured.
pub struct Router {
    /// Interfaces by name.
    pub(crate) interfaces: BTreeMap<Name, Interface>,
    /// Routes, those of addresses and static ones, and what workers ask of them.
    pub(crate) rib: Rib,
    /// Permanent neighbours.
    pub(crate) neighbours: BTreeMap<(Name, IpAddr), Mac>,
    /// Rules of translation.
    pub(crate) nat: RuleSet,
    /// Rules of policy.
    pub(crate) policy: PolicySet,
    /// Whether bridges are closed to each other.
    pub(crate) isolation: bool,
    /// How interfaces serve guests.
    pub(crate) dhcp: BTreeMap<Name, DhcpServer>,
    /// What holds for connections.
    pub(crate) tracking: Tracking,
    /// Virtual services, of all scopes.
    pub(crate) ipvs: Arc<Ipvs>,
    /// Numbers that interfaces had in another process, in whose place this one is to go on.
    pub(crate) handed: BTreeMap<Name, u16>,
}

impl Router {
    /// Without interfaces and rules, for a switch of so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            interfaces: BTreeMap::new(),
            rib: Rib::new(),
            neighbours: BTreeMap::new(),
            nat: RuleSet::new(workers),
            policy: PolicySet::new(workers),
            isolation: false,
            dhcp: BTreeMap::new(),
            tracking: Tracking::new(CONNECTIONS_DEFAULT),
            ipvs: Arc::default(),
            handed: BTreeMap::new(),
        }
    }

    // ---- neighbours ---------------------------------------------------------------------------------------------

    /// Makes an entry, or a learned one permanent.
    ///
    /// # Errors
    /// No such interface, or an address of its own.
    pub fn add_neighbour(&mut self, spec: NeighbourSpec) -> Result<(), Refusal> {
        let interface = self.find_interface(&spec.interface)?;
        if interface.owns(spec.address) {
            let (address, name) = (spec.address, interface.name);
            return Err(Refusal::new(format!(
                "address {address} is interface {name:?}'s own: it has no neighbour there"
            )));
        }
        self.neighbours.insert((spec.interface, spec.address), spec.mac);
        Ok(())
    }

    /// Removes an entry.
    ///
    /// # Errors
    /// No such interface or entry.
    pub fn del_neighbour(&mut self, interface: &str, address: IpAddr) -> Result<(), Refusal> {
        let name = self.find_interface(interface)?.name;
        match self.neighbours.remove(&(name, address)) {
            Some(_) => Ok(()),
            None => Err(Refusal::new(format!("interface {interface:?} has no neighbour {address}"))),
        }
    }

    /// Forgets what was learned, on one interface or all. Returns how many entries went.
    ///
    /// # Errors
    /// No such interface.
    pub fn flush_neighbours(&mut self, interface: Option<&str>) -> Result<u64, Refusal> {
        if let Some(name) = interface {
            self.find_interface(name)?;
        }
        Ok(0)
    }

    /// The neighbours on one interface or all, by interface and address.
    ///
    /// # Errors
    /// No such interface.
    pub fn neighbours(&self, interface: Option<&str>) -> Result<Vec<api::Neighbour>, Refusal> {
        if let Some(name) = interface {
            self.find_interface(name)?;
        }
        let here =
            self.neighbours.iter().filter(|((on, _), _)| interface.is_none_or(|name| on.as_str() == name));
        let permanent = here.map(|(&(interface, address), &mac)| api::Neighbour {
            interface,
            address,
            mac: Some(mac),
            state: api::NeighbourState::Permanent,
            age_seconds: 0,
        });
        Ok(permanent.collect())
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::config::spec::InterfaceSpec;

    /// An interface with these addresses on a bridge of its own name.
    pub(crate) fn interface(name: &str, addresses: &[&str]) -> InterfaceSpec {
        let asked = api::InterfaceAdd {
            name: name.into(),
            bridge: name.into(),
            address: addresses.iter().map(|&text| text.to_owned()).collect(),
            ..api::InterfaceAdd::default()
        };
        InterfaceSpec::try_from(&asked).unwrap()
    }

    /// A router with these interfaces.
    pub(crate) fn router(interfaces: &[(&str, &[&str])]) -> Router {
        let mut router = Router::new(1);
        for (name, addresses) in interfaces {
            router.add_interface(interface(name, addresses)).unwrap();
        }
        router
    }
}
