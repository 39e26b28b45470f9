//! What the control socket and the configuration file have done: checks against bridges and ports, then the
//! [`Router`](super::Router), then the workers.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use super::Interface;
use crate::config::document::Key;
use crate::config::spec::{
    BridgeChange, DhcpChange, InterfaceChange, InterfaceSpec, NeighbourSpec, Place, PolicyChange, PolicySpec,
    RouteMatch, RouteSpec,
};
use crate::config::{Mac, Name};
use crate::control::api::{self, NatKind};
use crate::l3::route::rib::{Terms, Which};
use crate::nat::rule::Rule;
use crate::policy::rule::Zone;
use crate::refusal::Refusal;
use crate::services::dhcp::Reservation;
use crate::switch::Switch;
use crate::view;

impl Switch {
    /// Has the workers take over what has changed at layer 3.
    fn publish_router(&mut self) {
        self.router.isolate();
        self.publish();
    }

    /// As [`Self::publish_router`], once a change is whole.
    pub(crate) fn publish_all(&mut self) {
        self.publish_router();
    }

    /// What layer 3 needs once a second: interfaces follow their ports, neighbours age.
    pub(crate) fn tick_router(&mut self) {
        let Some(live) = &self.live else { return };
        live.write_log();
        let asked = match &self.assignment().router {
            Some(table) => live.age_neighbours(table, self.now()),
            None => false,
        };
        if asked && let Some(worker) = self.workers.first() {
            worker.wake();
        }
        let (now, workers) = (self.now(), self.workers.len());
        if let Some(live) = &mut self.live {
            live.sound_alarms(&self.router, workers, now);
        }
        if self.router.policy.rest() {
            self.publish_router();
        }
        self.follow_ports();
    }

    /// Has interfaces follow their ports, and routes their interfaces.
    pub fn follow_ports(&mut self) {
        self.tick_directors();
        let Some(live) = &self.live else { return };
        let changed = self.router.interfaces.keys().any(|name| live.is_up(name) != Some(self.is_up(*name)));
        if changed {
            self.publish_router();
        }
    }

    /// What bears a name, for the places of policy rules.
    pub fn places(&self, name: &str) -> Vec<Place> {
        let mut kinds = Vec::new();
        if self.ports.contains_key(name) {
            kinds.push(Place::Port);
        }
        if self.bridges.contains_key(name) {
            kinds.push(Place::Bridge);
        }
        if self.router.interfaces.contains_key(name) {
            kinds.push(Place::Interface);
        }
        kinds
    }

    // ---- bridges ------------------------------------------------------------------------------------------------

    /// Changes a bridge.
    ///
    /// # Errors
    /// No such bridge.
    pub fn set_bridge(&mut self, name: &str, change: &BridgeChange) -> Result<(), Refusal> {
        let key = self.find_bridge(name)?.spec.name;
        self.touch(Key::Bridge(key));
        if let Some(bridge) = self.bridges.get_mut(&key) {
            bridge.spec.filter = change.filter.unwrap_or(bridge.spec.filter);
        }
        self.publish();
        Ok(())
    }

    /// The interfaces on a bridge, by name.
    pub(crate) fn interfaces_on(&self, bridge: &str) -> impl Iterator<Item = &Interface> + Clone {
        self.router.interfaces.values().filter(move |interface| interface.bridge.as_str() == bridge)
    }

    /// Refuses that a bridge goes on which something of layer 3 stands.
    pub(crate) fn refuse_routed(&self, bridge: &str) -> Result<(), Refusal> {
        let names: Vec<_> = self.interfaces_on(bridge).map(|interface| interface.name.as_str()).collect();
        if !names.is_empty() {
            let list = names.join(", ");
            return Err(Refusal::new(format!(
                "bridge {bridge:?} still has interfaces: delete them first ({list})"
            )));
        }
        let name = self.find_bridge(bridge)?.spec.name;
        match self.router.policy.naming(Zone::Bridge(name)) {
            Some((id, _)) => Err(Refusal::new(format!(
                "bridge {bridge:?} is named by policy rule {id}: delete that first"
            ))),
            None => Ok(()),
        }
    }

    // ---- interfaces ---------------------------------------------------------------------------------------------

    /// Adds an interface to a bridge.
    ///
    /// # Errors
    /// No such bridge; the name, an address or its network is taken.
    pub fn add_interface(&mut self, spec: InterfaceSpec) -> Result<(), Refusal> {
        self.find_bridge(&spec.bridge)?;
        self.touch(Key::Interface(spec.name));
        self.router.add_interface(spec)?;
        self.publish_router();
        Ok(())
    }

    /// Removes an interface with all that goes through it.
    ///
    /// # Errors
    /// No such interface, or a rule names it.
    pub fn del_interface(&mut self, name: &str) -> Result<(), Refusal> {
        self.touch_interface(name);
        self.router.del_interface(name)?;
        self.publish_router();
        Ok(())
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// No such interface, or something does not fit.
    pub fn set_interface(&mut self, name: &str, change: &InterfaceChange) -> Result<(), Refusal> {
        self.touch(Key::Interface(self.router.find_interface(name)?.name));
        self.router.set_interface(name, change)?;
        self.publish_router();
        Ok(())
    }

    /// One interface.
    ///
    /// # Errors
    /// No such interface.
    pub fn interface(&self, name: &str) -> Result<api::Interface, Refusal> {
        Ok(self.interface_view(self.router.find_interface(name)?))
    }

    /// All interfaces, by name.
    pub fn interfaces(&self) -> Vec<api::Interface> {
        self.router.interfaces.values().map(|interface| self.interface_view(interface)).collect()
    }

    fn interface_view(&self, interface: &Interface) -> api::Interface {
        let down = self.interface_down(interface);
        api::Interface {
            name: interface.name,
            bridge: interface.bridge,
            vlan: interface.vlan,
            mac: interface.mac,
            mtu: interface.mtu,
            address: interface.addresses.clone(),
            state: if down.is_none() { api::State::Up } else { api::State::Down },
            reason: down,
            clamp_mss: interface.clamp_mss,
        }
    }

    /// Why an interface is down; `None` if it is up.
    fn interface_down(&self, interface: &Interface) -> Option<String> {
        if !interface.enabled {
            return Some("is administratively down".into());
        }
        let ports = self.ports_of(&interface.bridge);
        match ports.iter().any(|member| view::state(member.port.attachment()).0 == api::State::Up) {
            true => None,
            false => Some(format!("bridge {} has no port that is up", interface.bridge)),
        }
    }

    pub(crate) fn is_up(&self, name: Name) -> bool {
        self.router.interfaces.get(&name).is_some_and(|interface| self.interface_down(interface).is_none())
    }

    // ---- routes -------------------------------------------------------------------------------------------------

    /// Adds a static route, or a way to one.
    ///
    /// # Errors
    /// It is there, or its gateway cannot be reached.
    pub fn add_route(&mut self, spec: RouteSpec) -> Result<(), Refusal> {
        self.touch(Key::Route(spec.prefix, spec.metric));
        self.router.add_route(&spec)?;
        self.publish_router();
        Ok(())
    }

    /// Adds many routes, all or none; with `replace` in the place of the static ones that are there. Returns how many
    /// went.
    ///
    /// # Errors
    /// The place in the list of the one that is refused, and why.
    pub fn load_routes(
        &mut self,
        specs: Vec<RouteSpec>,
        terms: Terms,
        replace: bool,
    ) -> Result<u64, (usize, Refusal)> {
        if replace {
            self.touch_routes(&Which::default());
        }
        specs.iter().for_each(|spec| self.touch(Key::Route(spec.prefix, spec.metric)));
        let loaded = self.router.load_routes(specs, terms, replace)?;
        self.publish_router();
        Ok(loaded.removed as u64)
    }

    /// Removes static routes; returns how many.
    ///
    /// # Errors
    /// There is none that is meant.
    pub fn del_routes(&mut self, meant: &RouteMatch) -> Result<u64, Refusal> {
        for prefix in &meant.prefixes {
            self.touch_routes(&Which { prefix: Some(*prefix), ..Which::default() });
        }
        let removed = self.router.del_routes(meant)?;
        self.publish_router();
        Ok(removed as u64)
    }

    /// Removes all static routes, or those through an interface; returns how many.
    ///
    /// # Errors
    /// No such interface.
    pub fn flush_routes(&mut self, dev: Option<&str>) -> Result<u64, Refusal> {
        let interface = dev.map(|dev| self.router.find_interface(dev)).transpose()?.map(|found| found.index);
        self.touch_routes(&Which { interface, ..Which::default() });
        let removed = self.router.flush_routes(dev)?;
        self.publish_router();
        Ok(removed as u64)
    }

    /// All routes, by prefix and metric.
    pub fn routes(&self) -> Vec<api::Route> {
        self.router.routes()
    }

    /// Which way a packet to an address goes, and why.
    pub fn route_to(&self, address: IpAddr) -> api::RouteChoice {
        self.router.route_to(address)
    }

    // ---- neighbours ---------------------------------------------------------------------------------------------

    /// Makes a permanent neighbour.
    ///
    /// # Errors
    /// No such interface, or an address of its own.
    pub fn add_neighbour(&mut self, spec: NeighbourSpec) -> Result<(), Refusal> {
        self.touch(Key::Neighbour(spec.interface, spec.address));
        self.router.add_neighbour(spec)?;
        self.publish_router();
        Ok(())
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// No such interface or neighbour.
    pub fn del_neighbour(&mut self, interface: &str, address: IpAddr) -> Result<(), Refusal> {
        let name = self.router.find_interface(interface)?.name;
        self.touch(Key::Neighbour(name, address));
        let forgotten = self.live.as_ref().is_some_and(|live| live.forget_neighbour(interface, address));
        match self.router.del_neighbour(interface, address) {
            Err(_) if forgotten => {}
            result => result?,
        }
        self.publish_router();
        Ok(())
    }

    /// Forgets what was learned; returns how many entries went.
    ///
    /// # Errors
    /// No such interface.
    pub fn flush_neighbours(&mut self, interface: Option<&str>) -> Result<u64, Refusal> {
        let configured = self.router.flush_neighbours(interface)?;
        Ok(configured + self.live.as_ref().map_or(0, |live| live.flush_neighbours(interface)))
    }

    /// The neighbours, by interface and address.
    ///
    /// # Errors
    /// No such interface.
    pub fn neighbours(&self, interface: Option<&str>) -> Result<Vec<api::Neighbour>, Refusal> {
        let configured = self.router.neighbours(interface)?;
        Ok(self.live.as_ref().map_or(configured, |live| live.list_neighbours(interface)))
    }

    // ---- translation --------------------------------------------------------------------------------------------

    /// Adds a rule of translation, under a number if one is asked for.
    ///
    /// # Errors
    /// No such interface, or a published port or the number is taken.
    pub fn add_nat(&mut self, id: Option<u32>, rule: Rule) -> Result<api::NatRule, Refusal> {
        let id = match id {
            Some(id) => self.router.insert_nat(id, rule).map(|()| id)?,
            None => self.router.add_nat(rule)?,
        };
        self.touch_new(Key::Nat(id));
        self.publish_router();
        self.router.nat_rule(id)
    }

    /// Removes a rule of translation, if it is of the given kind.
    ///
    /// # Errors
    /// No such rule.
    pub fn del_nat(&mut self, id: u32, kind: Option<NatKind>) -> Result<(), Refusal> {
        self.touch(Key::Nat(id));
        self.router.del_nat(id, kind)?;
        self.publish_router();
        Ok(())
    }

    /// All rules of translation, by number.
    pub fn nat_rules(&self) -> Vec<api::NatRule> {
        self.router.nat_rules()
    }

    // ---- policy -------------------------------------------------------------------------------------------------

    /// Adds a rule of policy.
    ///
    /// # Errors
    /// Its number is taken.
    pub fn add_policy(&mut self, spec: PolicySpec) -> Result<api::PolicyRule, Refusal> {
        let id = self.router.add_policy(spec)?;
        self.touch_new(Key::Policy(id));
        self.publish_router();
        self.router.policy_rule(id)
    }

    /// Removes a rule of policy.
    ///
    /// # Errors
    /// No such rule.
    pub fn del_policy(&mut self, id: u32) -> Result<(), Refusal> {
        self.touch(Key::Policy(id));
        self.router.del_policy(id)?;
        self.publish_router();
        Ok(())
    }

    /// Removes all rules of policy; returns how many.
    pub fn flush_policy(&mut self) -> u64 {
        let ids: Vec<u32> = self.router.policy.iter().map(|(id, ..)| id).collect();
        ids.into_iter().for_each(|id| self.touch(Key::Policy(id)));
        let removed = self.router.flush_policy();
        self.publish_router();
        removed
    }

    /// Changes what holds where no rule fits.
    pub fn set_policy(&mut self, change: PolicyChange) {
        self.touch(Key::Forward);
        self.router.set_policy(change);
        self.publish_router();
    }

    /// All of the policy.
    pub fn policy(&self) -> api::Policy {
        self.router.policy()
    }

    // ---- services -----------------------------------------------------------------------------------------------

    /// Starts or changes DHCP and router advertisements on an interface.
    ///
    /// # Errors
    /// No such interface, or something does not fit its networks.
    pub fn set_dhcp(&mut self, change: DhcpChange) -> Result<(), Refusal> {
        self.touch(Key::Dhcp(change.interface));
        self.router.set_dhcp(change)?;
        self.publish_router();
        Ok(())
    }

    /// Ends DHCP and router advertisements on an interface.
    ///
    /// # Errors
    /// There are none.
    pub fn del_dhcp(&mut self, interface: &str) -> Result<(), Refusal> {
        self.touch_dhcp(interface);
        self.router.del_dhcp(interface)?;
        self.publish_router();
        Ok(())
    }

    /// How an interface serves guests.
    ///
    /// # Errors
    /// It does not.
    pub fn dhcp(&self, interface: &str) -> Result<api::Dhcp, Refusal> {
        let mut dhcp = self.router.dhcp(interface)?;
        dhcp.leases =
            self.leases(Some(interface))?.iter().filter(|lease| lease.state == "bound").count() as u64;
        if let Some(live) = &self.live {
            dhcp.counters = live.dhcp_counters(interface).into();
        }
        Ok(dhcp)
    }

    /// Reserves an address for a guest.
    ///
    /// # Errors
    /// The address or the guest has a reservation, or it does not fit the interface.
    pub fn reserve(&mut self, interface: &str, spec: Reservation) -> Result<(), Refusal> {
        self.touch_dhcp(interface);
        self.router.reserve(interface, spec)?;
        self.publish_router();
        Ok(())
    }

    /// Gives a reservation up.
    ///
    /// # Errors
    /// There is none for that guest.
    pub fn unreserve(&mut self, interface: &str, mac: Mac) -> Result<(), Refusal> {
        self.touch_dhcp(interface);
        self.router.unreserve(interface, mac)?;
        self.publish_router();
        Ok(())
    }

    /// Who has which address, on one interface or all.
    ///
    /// # Errors
    /// No DHCP there.
    pub fn leases(&self, interface: Option<&str>) -> Result<Vec<api::Lease>, Refusal> {
        let mut leases = Vec::new();
        for server in self.router.dhcp_servers(interface)? {
            let listed = self.live.iter().flat_map(|live| live.leases(&server));
            leases.extend(listed.map(|lease| api::Lease {
                interface: server,
                address: lease.address,
                mac: lease.mac,
                hostname: lease.hostname,
                state: lease.state.as_str().to_owned(),
                expires_seconds: lease.expires,
            }));
        }
        Ok(leases)
    }

    /// Takes a lease away; false if nobody has the address.
    ///
    /// # Errors
    /// No DHCP there.
    pub fn release(&mut self, interface: &str, address: Ipv4Addr) -> Result<bool, Refusal> {
        self.router.dhcp_servers(Some(interface))?;
        Ok(self.live.as_ref().is_some_and(|live| live.release(interface, address)))
    }
}
