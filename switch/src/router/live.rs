//! What is configured, as it is in force: the tables that workers ask, kept equal to the [`Router`]'s.
//!
//! Interfaces, addresses and rules are compared with what was there before, which costs little. Routes, of which there
//! may be a million, are in force where the router keeps them, in its [`Rib`](crate::l3::route::rib::Rib).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use super::alarms::Alarms;
use super::neighbour::Fixed;
use super::{DhcpServer, Interface, Router};
use crate::config::{Mac, Name};
use crate::conntrack::Conntrack;
use crate::l2::fdb::Key;
use crate::l3::fragment::Reassembly;
use crate::l3::interface::{self as place, Parts};
use crate::l3::neighbour::Neighbours;
use crate::l3::own::Own;
use crate::l3::route::rib::Rib;
use crate::l3::table::RouterTable;
use crate::members::{MAX_PORTS, interface_number};
use crate::nat;
use crate::policy;
use crate::policy::log::Log;
use crate::refusal::Refusal;
use crate::services::dhcp;
use crate::services::{Notice, Served, Services, ra};
use crate::tables::BridgeTable;
use crate::worker::epoch::Epochs;

/// An interface in force.
struct Placed {
    index: u16,
    bridge: Name,
    mac: Mac,
    vlan: u16,
    addresses: Vec<IpNet>,
    up: bool,
    /// What was told to the services last.
    served: Option<(Mac, Option<dhcp::Config>, Option<ra::Config>)>,
}

/// What the tables are made of, beside the [`Router`].
pub(crate) struct Around<'a> {
    /// Bridges as workers see them, by name.
    pub(crate) bridges: &'a BTreeMap<Name, Arc<BridgeTable>>,
    /// Numbers of ports by name.
    pub(crate) ports: HashMap<Name, u16>,
    /// The tables' clock.
    pub(crate) now: u32,
}

/// The tables.
pub(crate) struct Live {
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) conntrack: Arc<Conntrack>,
    pub(crate) services: Services,
    log: Arc<Log>,
    reassembly: Arc<Reassembly>,
    placed: BTreeMap<Name, Placed>,
    pub(super) fixed: Fixed,
    pub(super) alarms: Alarms,
}

impl Live {
    /// For so many workers, with a table for `capacity` connections. Leases are kept in the directory `state`. `wake` wakes the worker that sends what services
    /// say, `notify` hears of addresses that clients get and lose.
    ///
    /// # Errors
    /// No thread is to be had.
    pub(crate) fn new(
        workers: usize,
        capacity: u32,
        epochs: &Arc<Epochs>,
        state: Option<&Path>,
        wake: Box<dyn Fn() + Send + Sync>,
        notify: Box<dyn Fn(Notice) + Send + Sync>,
    ) -> Result<Self, Refusal> {
        let conntrack = Arc::new(Conntrack::new(capacity, workers, MAX_PORTS, epochs.clone()));
        conntrack.keep().map_err(|e| Refusal::new(format!("no thread for the table of connections: {e}")))?;
        Ok(Self {
            neighbours: Arc::new(Neighbours::new(epochs.clone())),
            conntrack,
            services: Services::start(state, wake, notify)?,
            log: Arc::default(),
            reassembly: Arc::default(),
            placed: BTreeMap::new(),
            fixed: Fixed::new(),
            alarms: Alarms::default(),
        })
    }

    /// The index of an interface in force.
    pub(crate) fn index(&self, name: &str) -> Option<u16> {
        self.placed.get(name).map(|placed| placed.index)
    }

    /// Whether an interface was up when it was looked at last.
    pub(crate) fn is_up(&self, name: &str) -> Option<bool> {
        self.placed.get(name).map(|placed| placed.up)
    }

    /// The name of an interface in force.
    pub(crate) fn name(&self, index: u16) -> Option<Name> {
        self.placed.iter().find(|(_, placed)| placed.index == index).map(|(name, _)| *name)
    }

    /// The members that interfaces are of a bridge.
    pub(crate) fn members(&self, bridge: &str) -> impl Iterator<Item = u16> {
        let here = self.placed.values().filter(move |placed| placed.bridge.as_str() == bridge);
        here.map(|placed| interface_number(placed.index))
    }

    /// Makes interfaces, addresses and rules what the router says, but for the workers' snapshot; to be called before
    /// bridges' tables are made, which list their interfaces.
    ///
    /// # Errors
    /// What cannot be in force, which the router should have refused.
    pub(crate) fn follow(
        &mut self,
        router: &mut Router,
        is_up: &dyn Fn(&Interface) -> bool,
    ) -> Result<(), Refusal> {
        let kept = |name: &Name, placed: &Placed| {
            router.interfaces.get(name).is_some_and(|interface| interface.index == placed.index)
        };
        let gone: Vec<Name> =
            self.placed.iter().filter(|(name, placed)| !kept(name, placed)).map(|(name, _)| *name).collect();
        for name in gone {
            if let Some(placed) = self.placed.remove(&name) {
                self.services.remove(placed.index);
                self.neighbours.flush(Some(placed.index), true);
            }
        }
        for interface in router.interfaces.values() {
            self.follow_interface(interface, is_up(interface), &mut router.rib)?;
            self.follow_services(interface, router.dhcp.get(&interface.name))?;
        }
        self.follow_neighbours(router);
        router.rib.fib().bump();
        Ok(())
    }

    fn follow_interface(&mut self, interface: &Interface, up: bool, rib: &mut Rib) -> Result<(), Refusal> {
        let new = || Placed {
            index: interface.index,
            bridge: interface.bridge,
            mac: interface.mac,
            vlan: interface.vlan,
            addresses: Vec::new(),
            up: false,
            served: None,
        };
        let placed = self.placed.entry(interface.name).or_insert_with(new);
        (placed.mac, placed.vlan) = (interface.mac, interface.vlan);
        if placed.up != up {
            rib.interface_state(placed.index, up)?;
            placed.up = up;
            if !up {
                // Who was there need not be when it comes back.
                self.neighbours.flush(Some(placed.index), false);
            }
        }
        let new = interface.addresses.iter().filter(|address| !placed.addresses.contains(address));
        let new: Vec<_> = new.map(IpNet::addr).collect();
        placed.addresses.clone_from(&interface.addresses);
        if !new.is_empty() {
            self.services.announce(placed.index, interface.mac, new);
        }
        Ok(())
    }

    fn follow_services(&mut self, interface: &Interface, server: Option<&DhcpServer>) -> Result<(), Refusal> {
        let Some(placed) = self.placed.get_mut(&interface.name) else { return Ok(()) };
        let dhcp = server.map(|server| server.config(interface)).transpose()?.flatten();
        let ra = server.filter(|server| server.ra).map(|server| ra::Config {
            mac: interface.mac,
            source: Ipv6Addr::from_bits(place::link_local(interface.mac)),
            mtu: Some(server.mtu.unwrap_or(interface.mtu)),
            prefixes: interface.addresses.iter().filter_map(v6).collect(),
            dns: server
                .dns
                .iter()
                .filter_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
                .collect(),
        });
        let served = (interface.mac, dhcp, ra);
        if placed.served.as_ref() != Some(&served) {
            let gave = placed.served.as_ref().is_some_and(|(_, dhcp, _)| dhcp.is_some());
            if gave && served.1.is_none() {
                self.services.forget(placed.index);
            }
            let (mac, dhcp, ra) = served.clone();
            self.services.set(Served { index: placed.index, name: interface.name, mac, dhcp, ra });
            placed.served = Some(served);
        }
        Ok(())
    }

    /// The snapshot for workers; `None` without interfaces.
    pub(crate) fn table(&self, router: &Router, around: &Around<'_>) -> Option<Arc<RouterTable>> {
        if router.interfaces.is_empty() && !around.bridges.values().any(|bridge| bridge.filter) {
            return None;
        }
        let mut interfaces = Vec::new();
        for interface in router.interfaces.values() {
            let (Some(placed), Some(table)) =
                (self.placed.get(&interface.name), around.bridges.get(&interface.bridge))
            else {
                continue;
            };
            // What is to the interface's address is for the interface, whoever claims it.
            table.fdb.fix(Key::new(placed.mac.0, placed.vlan), interface_number(placed.index), around.now);
            let parts = Parts {
                index: placed.index,
                name: interface.name,
                bridge: interface.bridge,
                table: table.clone(),
                vlan: interface.vlan,
                mac: interface.mac,
                mtu: interface.mtu,
                clamp_mss: interface.clamp_mss,
                addresses: interface.addresses.clone(),
                up: placed.up,
            };
            let at = usize::from(placed.index);
            if interfaces.len() <= at {
                interfaces.resize_with(at + 1, || None);
            }
            interfaces[at] = Some(Arc::new(place::Interface::new(parts)));
        }
        let named: Vec<nat::Interface> = router
            .interfaces
            .values()
            .filter_map(|interface| {
                let index = self.index(&interface.name)?;
                Some(nat::Interface { index, name: interface.name, addresses: interface.addresses.clone() })
            })
            .collect();
        let numbers = policy::Numbers {
            ports: around.ports.clone(),
            bridges: around.bridges.iter().map(|(name, table)| (*name, table.number)).collect(),
            interfaces: self.placed.iter().map(|(name, placed)| (*name, placed.index)).collect(),
        };
        self.conntrack.set_balancer(router.ipvs.clone());
        let fib = router.rib.fib();
        router.ipvs.on_withdrawal(Box::new(move || fib.bump()));
        let conntrack = self.conntrack.clone();
        router.ipvs.on_timeouts(Box::new(move || conntrack.retime()));
        let (nat, policy) = (router.nat.snapshot(named), router.policy.snapshot(&numbers));
        Some(Arc::new(RouterTable {
            own: Own::new(&interfaces),
            interfaces,
            fib: router.rib.fib(),
            neighbours: self.neighbours.clone(),
            conntrack: self.conntrack.clone(),
            ipvs: router.ipvs.clone(),
            reassembly: self.reassembly.clone(),
            tracked: !nat.is_empty() || !policy.is_empty(),
            nat,
            policy,
            log: self.log.clone(),
            mailbox: self.services.mailbox(),
            inject: self.services.inject(),
        }))
    }

    /// Writes to the log what rules wanted to be written.
    pub(crate) fn write_log(&self) {
        let name = |index| {
            let placed = self.placed.iter().find(|(_, placed)| placed.index == index);
            placed.map(|(name, _)| name.as_str().to_owned())
        };
        for logged in self.log.drain() {
            tracing::info!("{}", logged.line(name));
        }
    }

    /// Writes to the log what has run out.
    pub(crate) fn sound_alarms(&mut self, router: &Router, workers: usize, now: u32) {
        self.alarms.look(router, &self.conntrack, workers, now, |line| tracing::warn!("{line}"));
    }

    // ---- services -----------------------------------------------------------------------------------------------

    /// Who has which address of an interface.
    pub(crate) fn leases(&self, interface: &str) -> Vec<dhcp::Listing> {
        self.index(interface).map(|index| self.services.leases(index)).unwrap_or_default()
    }

    /// What the DHCP server of an interface has counted.
    pub(crate) fn dhcp_counters(&self, interface: &str) -> dhcp::Counters {
        self.index(interface).map(|index| self.services.counters(index)).unwrap_or_default()
    }

    /// Takes an address back; false if nobody has it.
    pub(crate) fn release(&self, interface: &str, address: Ipv4Addr) -> bool {
        self.index(interface).is_some_and(|index| self.services.release(index, address))
    }
}

fn v6(net: &IpNet) -> Option<Ipv6Net> {
    match net {
        IpNet::V6(net) => Some(*net),
        IpNet::V4(_) => None,
    }
}
