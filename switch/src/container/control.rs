//! What the switch does for containers: the part of each operation that is done between two requests, never waiting.
//!
//! An operation begins here (checks, port, reservation), goes on on a thread of its own ([`Work`]), and ends here. What
//! began and did not succeed is taken back here, too.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ipnet::{IpNet, Ipv4Net};

use super::agent::Agent;
use super::hotplug::{self, Backend, HOST_MTU_MIN, Plug};
use super::{Container, Nic};
use crate::config::spec::{
    AgentAddress, Attachment, ContainerId, ContainerRoute, ContainerRouteMatch, ContainerSpec, NicSpec, Role,
    TapOpen,
};
use crate::config::{Name, PortSpec};
use crate::control::api;
use crate::port::guest_tap::GuestTap;
use crate::port::link::mtu_of;
use crate::refusal::Refusal;
use crate::services::dhcp::{Reservation, Told};
use crate::switch::Switch;

/// Most routes of a container.
const ROUTES_MAX: usize = 1024;
/// How long a guest may take to let go of a NIC when its container is forgotten.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);

/// What is to be done for a NIC beside the control thread.
#[derive(Debug)]
pub(crate) enum Work {
    /// Plug it in, and have the agent set it up.
    Plug { plug: Plug, nic: NicSpec, agent: Option<AgentAddress> },
    /// Take it out.
    Unplug { qmp: PathBuf, name: String },
    /// Nothing: shunt never plugged it in.
    Nothing,
}

impl Work {
    /// Does it. Says where the NIC is plugged in.
    ///
    /// # Errors
    /// It is not done, or it is undone.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Option<String>, Refusal> {
        match self {
            Self::Nothing => Ok(None),
            Self::Unplug { qmp, name } => {
                hotplug::unplug(&qmp, &name, called_off, hotplug::RELEASE).map(|()| None)
            }
            Self::Plug { plug, mut nic, agent } => {
                let path = hotplug::plug(&plug, called_off)?;
                let Some(agent) = agent else { return Ok(Some(path)) };
                nic.pci = Some(path.clone());
                let told =
                    Agent::connect(&agent, called_off).and_then(|mut agent| agent.update_interface(&nic));
                let Err(refusal) = told else { return Ok(Some(path)) };
                // The guest did not get to know it: it is no use there.
                let fresh = Arc::default();
                match hotplug::unplug(&plug.qmp, &plug.name, &fresh, hotplug::RELEASE) {
                    Ok(()) => Err(refusal),
                    Err(left) => Err(Refusal::new(format!("{refusal}; not all could be undone: {left}"))),
                }
            }
        }
    }
}

/// NICs that are to be taken out when a container is forgotten.
pub(crate) struct Farewell {
    qmp: Option<PathBuf>,
    names: Vec<String>,
}

impl Farewell {
    /// Does it as far as it goes; says what did not.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Vec<String>, Refusal> {
        let mut notes = Vec::new();
        let Some(qmp) = self.qmp else { return Ok(notes) };
        for name in &self.names {
            if let Err(refusal) = hotplug::unplug(&qmp, name, called_off, FAREWELL) {
                notes.push(format!("NIC {name} was not unplugged: {refusal}"));
                // What one tells of a QEMU that is not there need not be told of the others.
                if std::os::unix::net::UnixStream::connect(&qmp).is_err() {
                    break;
                }
            }
        }
        Ok(notes)
    }
}

/// Routes that an agent is to be told of.
pub(crate) struct Rerouting {
    agent: Option<AgentAddress>,
    before: Vec<ContainerRoute>,
    after: Vec<ContainerRoute>,
    /// Those that are added or removed.
    pub(crate) changed: Vec<ContainerRoute>,
}

impl Rerouting {
    /// Tells the agent, if there is one.
    ///
    /// # Errors
    /// The agent does not do it.
    pub(crate) fn run(self, called_off: &Arc<AtomicBool>) -> Result<Self, Refusal> {
        if let Some(agent) = &self.agent {
            let mut agent = Agent::connect(agent, called_off)?;
            if let Err(refusal) = agent.set_routes(&self.before, &self.after) {
                // The guest's old routes went before the new ones were refused: those that were there come back.
                if let Err(again) = agent.set_routes(&self.after, &self.before) {
                    return Err(Refusal::new(format!("{refusal}; not all could be undone: {again}")));
                }
                return Err(refusal);
            }
        }
        Ok(self)
    }
}

impl Switch {
    // ---- containers ---------------------------------------------------------------------------------------------

    /// Registers a container, with ports for the NICs that it has.
    ///
    /// # Errors
    /// The ID is taken, there is no such bridge, or something of a NIC or a route is taken or does not fit. Nothing is
    /// left behind.
    pub fn add_container(&mut self, mut spec: ContainerSpec) -> Result<(), Refusal> {
        let id = spec.id.clone();
        if self.containers.by_id.contains_key(&id) {
            return Err(Refusal::new(format!("container {id} is registered already")));
        }
        self.find_bridge(&spec.bridge)?;
        let (nics, routes) = (std::mem::take(&mut spec.nics), std::mem::take(&mut spec.routes));
        self.router.ipvs.ensure_container(id.as_str());
        self.containers.by_id.insert(id.clone(), Container { spec, nics: Vec::new() });
        let made = nics.into_iter().try_for_each(|nic| self.adopt_nic(&id, nic));
        let made = made.and_then(|()| {
            let changes = self.begin_routes(id.as_str(), routes)?;
            self.end_routes(&id, &changes);
            Ok(())
        });
        if made.is_err() {
            self.forget_container(&id);
        }
        made
    }

    /// Makes the port of a NIC that QEMU has. One whose device is gone, for its QEMU is, is kept without a port.
    fn adopt_nic(&mut self, id: &ContainerId, nic: NicSpec) -> Result<(), Refusal> {
        let name = nic.name;
        self.check_nic(id, &nic)?;
        let absent = nic.socket.is_none() && matches!(mtu_of(&nic.device), Ok(None));
        self.note_nic(id, nic, false);
        let connected = match absent {
            true => {
                let device = self.containers.find(id.as_str())?.nic(&name).map(|nic| nic.spec.device);
                tracing::warn!("container {id}: NIC {name} has no device {device:?}: its QEMU is gone");
                Ok(())
            }
            false => self.connect_nic(id, name),
        };
        if connected.is_err() {
            self.drop_nic(id, name);
        }
        connected
    }

    /// What is to be unplugged before a container is forgotten.
    ///
    /// # Errors
    /// No such container.
    pub(crate) fn begin_farewell(&self, asked: &str) -> Result<(ContainerId, Farewell), Refusal> {
        let container = self.containers.find(asked)?;
        let names =
            container.present().filter(|nic| nic.pci.is_some()).map(|nic| nic.name.to_string()).collect();
        Ok((container.spec.id.clone(), Farewell { qmp: container.spec.qmp.clone(), names }))
    }

    /// Forgets a container with everything that belongs to it.
    pub(crate) fn forget_container(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.by_id.get(id) else { return };
        let names: Vec<Name> = container.nics.iter().map(|nic| nic.spec.name).collect();
        for name in names {
            self.drop_nic(id, name);
        }
        self.containers.by_id.remove(id);
        self.router.ipvs.remove_container(id.as_str());
    }

    /// One container.
    ///
    /// # Errors
    /// No such container.
    pub fn container(&self, asked: &str) -> Result<api::Container, Refusal> {
        self.containers.find(asked).map(|container| self.container_view(container))
    }

    /// All containers, by ID.
    pub fn all_containers(&self) -> Vec<api::Container> {
        self.containers.all().map(|container| self.container_view(container)).collect()
    }

    fn container_view(&self, container: &Container) -> api::Container {
        let spec = &container.spec;
        let rules = self.router.ipvs.container(spec.id.as_str()).map_or(0, |scope| scope.rules());
        api::Container {
            id: spec.id.to_string(),
            qmp: spec.qmp.as_ref().map(|path| path.display().to_string()),
            bridge: spec.bridge,
            role: spec.role.as_str().to_owned(),
            tap: spec.tap.as_str().to_owned(),
            agent: spec.agent.as_ref().map(ToString::to_string),
            nics: container.present().map(NicSpec::view).collect(),
            routes: spec.routes.iter().map(ContainerRoute::view).collect(),
            ipvs_rules: rules as u64,
        }
    }

    /// The ports of a container's NICs.
    ///
    /// # Errors
    /// No such container.
    pub(crate) fn container_ports(&self, asked: &str) -> Result<Vec<Name>, Refusal> {
        let container = self.containers.find(asked)?;
        let devices = container.nics.iter().map(|nic| nic.spec.device);
        Ok(devices.filter(|device| self.ports.contains_key(device)).collect())
    }

    /// The agent of a container, and its NICs.
    ///
    /// # Errors
    /// No such container.
    pub(crate) fn container_nics(
        &self,
        asked: &str,
    ) -> Result<(Option<AgentAddress>, Vec<NicSpec>), Refusal> {
        let container = self.containers.find(asked)?;
        Ok((container.spec.agent.clone(), container.present().cloned().collect()))
    }

    /// The routes inside a container, those that come with its addresses first.
    ///
    /// # Errors
    /// No such container.
    pub(crate) fn container_routes(&self, asked: &str) -> Result<Vec<api::KataRoute>, Refusal> {
        let container = self.containers.find(asked)?;
        let connected = container.present().flat_map(|nic| {
            nic.addresses.iter().map(|network| api::KataRoute {
                dest: Some(network.trunc().to_string()),
                gateway: None,
                device: Some(nic.name.to_string()),
                unknown: None,
            })
        });
        Ok(connected.chain(container.spec.routes.iter().map(ContainerRoute::view)).collect())
    }

    // ---- NICs ---------------------------------------------------------------------------------------------------

    fn check_nic(&self, id: &ContainerId, nic: &NicSpec) -> Result<(), Refusal> {
        let container = self.containers.find(id.as_str())?;
        if container.nic(&nic.name).is_some() {
            let rule = "it must be unique in the container";
            return Err(Refusal::new(format!("name {:?} is taken by another NIC: {rule}", nic.name)));
        }
        let rule = "it must be unique on the host";
        if self.ports.contains_key(&nic.device) {
            let device = nic.device;
            return Err(Refusal::new(format!("device {device:?} is taken by a port of the switch: {rule}")));
        }
        if nic.socket.is_some() && matches!(mtu_of(&nic.device), Ok(Some(_))) {
            return Err(Refusal::new(format!(
                "device {:?} is taken by a device of the host: {rule}",
                nic.device
            )));
        }
        if let Some(other) = container.nics.iter().find(|other| other.spec.mac == nic.mac) {
            let name = other.spec.name;
            return Err(Refusal::new(format!(
                "hwAddr {} is that of NIC {name:?} already: choose another",
                nic.mac
            )));
        }
        Ok(())
    }

    fn note_nic(&mut self, id: &ContainerId, spec: NicSpec, pending: bool) {
        if let Some(container) = self.containers.get_mut(id) {
            container.nics.push(Nic { spec, pending, reserved: None, kept: None });
        }
    }

    /// Makes the port of a NIC, ties it to the container's services, and reserves its address.
    fn connect_nic(&mut self, id: &ContainerId, name: Name) -> Result<(), Refusal> {
        let container = self.containers.find(id.as_str())?;
        let Some(nic) = container.nic(&name).map(|nic| nic.spec.clone()) else { return Ok(()) };
        let (bridge, role) = (container.spec.bridge, container.spec.role);
        let vhost = nic.socket.is_some();
        let attachment = match nic.socket.clone() {
            Some(path) => Attachment::VhostUser { path, role },
            None => Attachment::Netdev { netns: None, device: nic.device.to_string() },
        };
        let spec = PortSpec {
            name: nic.device,
            bridge,
            attachment,
            queues: nic.pairs(),
            mtu: Some(nic.mtu).filter(|_| vhost),
            mac: Some(nic.mac).filter(|_| vhost),
            pins: Vec::new(),
            guard: None,
            allow: nic.addresses.iter().map(|network| IpNet::from(network.addr())).collect(),
            limits: Default::default(),
        };
        self.add_port(spec)?;
        if let Some(number) = self.port_number(&nic.device) {
            let scope = self.router.ipvs.ensure_container(id.as_str());
            self.router.ipvs.attach(number, Some(&scope));
        }
        self.tell_nic(id, name)
    }

    /// Has DHCP give a NIC its address, its MTU and its routes, where an interface of the bridge can.
    fn tell_nic(&mut self, id: &ContainerId, name: Name) -> Result<(), Refusal> {
        let container = self.containers.find(id.as_str())?;
        let Some(nic) = container.nic(&name).filter(|_| container.spec.agent.is_none()) else {
            return Ok(());
        };
        let server = nic.spec.addresses.iter().find_map(|network| match network.addr() {
            IpAddr::V4(address) => Some((self.dhcp_for(&container.spec.bridge, address)?, address)),
            IpAddr::V6(_) => None,
        });
        let Some((interface, address)) = server else { return Ok(()) };
        let routes = container.spec.routes.iter().filter(|route| route.device == name);
        let routes = routes.filter_map(|route| {
            let gateway = match route.gateway {
                Some(IpAddr::V4(gateway)) => gateway,
                None => Ipv4Addr::UNSPECIFIED,
                Some(IpAddr::V6(_)) => return None,
            };
            match route.dest.network {
                Some(IpNet::V4(network)) => Some((network, gateway)),
                _ => None,
            }
        });
        let told = Told { mtu: Some(nic.spec.mtu), routes: routes.collect::<Vec<(Ipv4Net, Ipv4Addr)>>() };
        let reservation = Reservation { mac: nic.spec.mac, address, hostname: None, told: Some(told) };
        self.reserve(&interface, reservation)?;
        if let Some(nic) =
            self.containers.get_mut(id).and_then(|c| c.nics.iter_mut().find(|n| n.spec.name == name))
        {
            nic.reserved = Some(interface);
        }
        Ok(())
    }

    /// The interface of a bridge whose DHCP can give an address away.
    fn dhcp_for(&self, bridge: &str, address: Ipv4Addr) -> Option<Name> {
        self.interfaces_on(bridge).find_map(|interface| {
            let config = self.router.dhcp_config(interface)?;
            config.is_station(address).then_some(interface.name)
        })
    }

    /// What the owner of a NIC should know about it.
    fn nic_notes(&self, container: &Container, nic: &Nic) -> Vec<String> {
        let mut notes = Vec::new();
        if nic.spec.mtu < HOST_MTU_MIN {
            notes.push(format!(
                "mtu {} is below {HOST_MTU_MIN}, the least that TAP devices and virtio-net take: the guest's NIC has another",
                nic.spec.mtu
            ));
        }
        if container.spec.agent.is_none() && !nic.spec.addresses.is_empty() {
            let bridge = container.spec.bridge;
            match nic.reserved {
                None => notes.push(format!(
                    "the address is not told to the guest: bridge {bridge} has no interface with DHCP in that network, and the container no agent"
                )),
                Some(_) if nic.spec.addresses.len() > 1 => notes.push(
                    "only the first IPv4 address is told to the guest: the container has no agent".to_owned(),
                ),
                Some(_) => {}
            }
        }
        notes
    }

    /// Begins to add a NIC: everything on this side of QEMU.
    ///
    /// # Errors
    /// No such container, it has no monitor, or something is taken or does not fit. Nothing is left behind.
    pub(crate) fn begin_nic(&mut self, asked: &str, mut nic: NicSpec) -> Result<Work, Refusal> {
        let spec = &self.containers.find(asked)?.spec;
        let (id, agent, tap) = (spec.id.clone(), spec.agent.clone(), spec.tap);
        let listens = spec.role == Role::Client;
        let qmp = spec.qmp.clone().ok_or_else(|| {
            Refusal::new(format!("container {id} has no QMP socket: 'container add --qmp PATH' names it"))
        })?;
        self.check_nic(&id, &nic)?;
        nic.pci = None;
        let (name, pairs, mtu) = (nic.name, nic.pairs(), nic.mtu);
        let refuse = |e: crate::port::device::OpenError| Refusal::new(e.to_string());
        let (backend, kept) = match (&nic.socket, tap) {
            (Some(path), _) => (Backend::VhostUser { path: path.clone(), listens }, None),
            (None, how) => {
                let settable = Some(mtu).filter(|&mtu| mtu >= HOST_MTU_MIN);
                let keep = how == TapOpen::Name;
                let mut tap = GuestTap::open(&nic.device, pairs, settable, keep).map_err(refuse)?;
                match keep {
                    true => (Backend::Named(nic.device.to_string()), Some(tap)),
                    false => (Backend::Descriptors(tap.take_queues()), None),
                }
            }
        };
        let plug = Plug { qmp, name: name.to_string(), backend, mac: nic.mac.to_string(), pairs, mtu };
        self.note_nic(&id, nic.clone(), true);
        if let Some(noted) = self.containers.get_mut(&id).and_then(|container| container.nics.last_mut()) {
            noted.kept = kept;
        }
        if let Err(refusal) = self.connect_nic(&id, name) {
            drop(plug);
            self.drop_nic(&id, name);
            return Err(refusal);
        }
        Ok(Work::Plug { plug, nic, agent })
    }

    /// Ends to add a NIC.
    ///
    /// # Errors
    /// It did not succeed; nothing is left of it.
    pub(crate) fn end_nic(
        &mut self,
        id: &ContainerId,
        name: Name,
        plugged: Result<Option<String>, Refusal>,
    ) -> Result<api::KataPlugged, Refusal> {
        let path = match plugged {
            Ok(path) => path,
            Err(refusal) => {
                self.drop_nic(id, name);
                return Err(refusal);
            }
        };
        if let Some(nic) =
            self.containers.get_mut(id).and_then(|c| c.nics.iter_mut().find(|n| n.spec.name == name))
        {
            nic.pending = false;
            nic.spec.pci = path;
        }
        let container = self.containers.find(id.as_str())?;
        let nic = container.nic(&name).ok_or_else(|| Refusal::new(format!("NIC {name:?} is gone")))?;
        tracing::info!("container {id}: NIC {name} added, port {}", nic.spec.device);
        let interface = Some(nic.spec.view());
        Ok(api::KataPlugged { interface, notes: self.nic_notes(container, nic) })
    }

    /// Begins to remove a NIC.
    ///
    /// # Errors
    /// No such container or NIC.
    pub(crate) fn begin_unplug(&self, asked: &str, name: &str) -> Result<(Work, NicSpec), Refusal> {
        let container = self.containers.find(asked)?;
        let nic = container.present().find(|nic| nic.name == *name).ok_or_else(|| {
            Refusal::new(format!("container {} has no NIC of the name {name:?}", container.spec.id))
        })?;
        let work = match &container.spec.qmp {
            Some(qmp) => Work::Unplug { qmp: qmp.clone(), name: name.to_owned() },
            None => Work::Nothing,
        };
        Ok((work, nic.clone()))
    }

    /// Forgets a NIC, with its port, its routes and its reservation.
    pub(crate) fn drop_nic(&mut self, id: &ContainerId, name: Name) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(at) = container.nics.iter().position(|nic| nic.spec.name == name) else { return };
        let Nic { spec, reserved, kept, .. } = container.nics.remove(at);
        container.spec.routes.retain(|route| route.device != name);
        if let Some(interface) = reserved {
            // Whether somebody else has given it up already does not matter, here as below.
            let _ = self.unreserve(&interface, spec.mac);
            for network in &spec.addresses {
                if let IpAddr::V4(address) = network.addr() {
                    let _ = self.release(&interface, address);
                }
            }
        }
        let _ = self.remove_port(&spec.device);
        if let Some(device) = kept {
            device.forget();
        }
        tracing::info!("container {id}: NIC {name} removed");
    }

    // ---- routes -------------------------------------------------------------------------------------------------

    /// Checks routes that are to be added, all of them.
    ///
    /// # Errors
    /// No such container or NIC, a route that is there, or a gateway that cannot be reached.
    pub(crate) fn begin_routes(&self, asked: &str, new: Vec<ContainerRoute>) -> Result<Rerouting, Refusal> {
        let container = self.containers.find(asked)?;
        let before = container.spec.routes.clone();
        let mut after = before.clone();
        for route in &new {
            let same = |other: &&ContainerRoute| {
                (other.dest.network, other.gateway, other.device)
                    == (route.dest.network, route.gateway, route.device)
            };
            if after.iter().any(|other| same(&other)) {
                let (dest, device) = (&route.dest.text, route.device);
                return Err(Refusal::new(format!("dest {dest} through {device} is there already")));
            }
            reachable(container, route)?;
            after.push(route.clone());
        }
        if after.len() > ROUTES_MAX {
            return Err(Refusal::new(format!("a container has at most {ROUTES_MAX} routes")));
        }
        Ok(Rerouting { agent: container.spec.agent.clone(), before, after, changed: new })
    }

    /// Finds routes that are to be removed: of each pattern all that fit, and one at least.
    ///
    /// # Errors
    /// No such container, or a pattern that nothing fits.
    pub(crate) fn begin_unroute(
        &self,
        asked: &str,
        meant: &[ContainerRouteMatch],
    ) -> Result<Rerouting, Refusal> {
        let container = self.containers.find(asked)?;
        let before = container.spec.routes.clone();
        let (mut after, mut changed) = (before.clone(), Vec::new());
        for pattern in meant {
            let (gone, kept): (Vec<_>, Vec<_>) = after.into_iter().partition(|route| pattern.fits(route));
            if gone.is_empty() {
                let dest = &pattern.dest.text;
                return Err(Refusal::new(format!(
                    "container {} has no such route to {dest}",
                    container.spec.id
                )));
            }
            after = kept;
            changed.extend(gone);
        }
        Ok(Rerouting { agent: container.spec.agent.clone(), before, after, changed })
    }

    /// Notes the routes that are there now, and has DHCP tell of them.
    pub(crate) fn end_routes(&mut self, id: &ContainerId, done: &Rerouting) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(container) = self.containers.get_mut(id) else { return notes };
        container.spec.routes.clone_from(&done.after);
        let agent = container.spec.agent.is_some();
        let mut devices: Vec<Name> = done.changed.iter().map(|route| route.device).collect();
        devices.sort_unstable();
        devices.dedup();
        for device in devices {
            let told = match self.tell_nic(id, device) {
                Ok(()) => {
                    let container = self.containers.find(id.as_str());
                    container.is_ok_and(|c| c.nic(&device).is_some_and(|nic| nic.reserved.is_some()))
                }
                Err(refusal) => {
                    notes.push(format!(
                        "DHCP does not tell the guest of the routes through {device}: {refusal}"
                    ));
                    continue;
                }
            };
            if agent {
                continue;
            }
            notes.push(match told {
                true => format!("the guest hears of the routes through {device} when it renews its DHCP lease"),
                false => format!("the routes through {device} are not told to the guest: it has neither a DHCP reservation nor an agent"),
            });
        }
        notes
    }
}

/// Whether a route's NIC is there, and its gateway in a network of it.
fn reachable(container: &Container, route: &ContainerRoute) -> Result<(), Refusal> {
    if route.is_local() {
        return Ok(());
    }
    let device = route.device;
    let nic = container.present().find(|nic| nic.name == device).ok_or_else(|| {
        Refusal::new(format!("device {device:?} is no NIC of container {}", container.spec.id))
    })?;
    match route.gateway {
        // Without an address nobody knows whom it reaches.
        Some(gateway) if !nic.addresses.is_empty() => {
            if nic.addresses.iter().any(|network| network.contains(&gateway)) {
                return Ok(());
            }
            Err(Refusal::new(format!("gateway {gateway} is unreachable: it is in no network of {device}")))
        }
        _ => Ok(()),
    }
}
