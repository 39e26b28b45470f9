//! What the switch does for containers: the part of each operation that is done between two requests, never waiting.
//!
//! An operation begins here (checks, port, reservation), goes on on a thread of its own ([`super::work`]), and ends here. What
//! began and did not succeed is taken back here, too.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::hotplug::{Backend, HOST_MTU_MIN, Plug};
use super::work::{Farewell, Work};
use super::{Container, Nic};
use crate::config::document::Key;
use crate::config::spec::{
    AgentAddress, Attachment, ContainerId, ContainerRoute, ContainerSpec, NicPort, NicSpec, Role, TapOpen,
};
use crate::config::{Name, PortSpec};
use crate::control::api;
use crate::ipvs::draft::Change;
use crate::port::guest_tap;
use crate::port::link::mtu_of;
use crate::refusal::Refusal;
use crate::services::dhcp::{Reservation, Told};
use crate::switch::Switch;

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
        if let Some(other) = self.containers.all().find(|c| spec.qmp.is_some() && c.spec.qmp == spec.qmp) {
            let path = spec.qmp.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            return Err(Refusal::new(format!(
                "QMP socket {path} is that of container {}: a QEMU has one",
                other.spec.id
            )));
        }
        self.find_bridge(&spec.bridge)?;
        let (nics, routes) = (std::mem::take(&mut spec.nics), std::mem::take(&mut spec.routes));
        self.touch(Key::Container(id.to_string()));
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
        let handed = self.handed.as_ref().is_some_and(|handed| handed.ports.contains_key(&nic.device));
        let absent = nic.socket.is_none() && !handed && matches!(mtu_of(&nic.device), Ok(None));
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
        self.touch(Key::Container(id.to_string()));
        if let Some(scope) = self.router.ipvs.container(id.as_str()) {
            self.touch_services(&scope, &[Change::Flush]);
            self.touch(Key::IpvsTimeouts(Some(id.to_string())));
            self.touch(Key::IpvsSettings(Some(id.to_string())));
        }
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
        let port = NicPort::of(spec.device);
        if let Some(container) = self.containers.get_mut(id) {
            container.nics.push(Nic { spec, pending, reserved: None, port });
        }
    }

    /// Makes the port of a NIC, ties it to the container's services, and reserves its address.
    fn connect_nic(&mut self, id: &ContainerId, name: Name) -> Result<(), Refusal> {
        let container = self.containers.find(id.as_str())?;
        let Some(nic) = container.nic(&name) else { return Ok(()) };
        let device = nic.spec.device;
        let spec = nic.port.over(own_port(&container.spec, &nic.spec));
        self.add_port(spec)?;
        if let Some(number) = self.port_number(&device) {
            let scope = self.router.ipvs.ensure_container(id.as_str());
            self.router.ipvs.attach(number, Some(&scope));
        }
        self.tell_nic(id, name)
    }

    /// Takes account of what has changed at the port of a NIC, if it is one.
    pub(crate) fn note_nic_port(&mut self, device: &Name) {
        let Some(member) = self.ports.get(device) else { return };
        let pins = member.pins.iter().map(|(queue, core)| (*queue, *core));
        let Some((container, nic)) = self.containers.by_device(device) else { return };
        let (id, name) = (container.spec.id.clone(), nic.spec.name);
        let port = NicPort::between(&own_port(&container.spec, &nic.spec), &member.spec, pins);
        if let Some(nic) = self.containers.nic_mut(&id, &name) {
            nic.port = port;
        }
    }

    /// Makes the port of a NIC what the NIC says and this on top.
    ///
    /// # Errors
    /// No container has such a NIC, it has no such queue, or no worker is on a processor.
    pub(crate) fn set_nic_port(&mut self, port: NicPort) -> Result<(), Refusal> {
        let device = port.device;
        let Some((container, nic)) = self.containers.by_device(&device) else {
            return Err(Refusal::new(format!("device {device:?} is no NIC of any container")));
        };
        port.check(&nic.spec)?;
        for &(_, core) in &port.pins {
            self.worker_on(core)?;
        }
        let (id, name) = (container.spec.id.clone(), nic.spec.name);
        let spec = port.over(own_port(&container.spec, &nic.spec));
        self.touch(Key::Nic(device));
        // One whose device is gone has none: it is kept for the next time.
        if self.ports.contains_key(&device) && !self.alter_port(&device, spec) {
            return Err(Refusal::new(format!("port {device:?} of container {id} does not take it")));
        }
        if let Some(nic) = self.containers.nic_mut(&id, &name) {
            nic.port = port;
        }
        self.publish();
        Ok(())
    }

    /// Has DHCP give a NIC its address, its MTU and its routes, where an interface of the bridge can.
    pub(super) fn tell_nic(&mut self, id: &ContainerId, name: Name) -> Result<(), Refusal> {
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
        if let Some(nic) = self.containers.nic_mut(id, &name) {
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
        let backend = match (&nic.socket, tap) {
            (Some(path), _) => Backend::VhostUser { path: path.clone(), listens },
            (None, how) => {
                let settable = Some(mtu).filter(|&mtu| mtu >= HOST_MTU_MIN);
                let keep = how == TapOpen::Name;
                let queues = guest_tap::open(&nic.device, pairs, settable, keep).map_err(refuse)?;
                match keep {
                    true => Backend::Named(nic.device.to_string()),
                    false => Backend::Descriptors(queues),
                }
            }
        };
        let plug = Plug { qmp, name: name.to_string(), backend, mac: nic.mac.to_string(), pairs, mtu };
        self.note_nic(&id, nic.clone(), true);
        if let Err(refusal) = self.connect_nic(&id, name) {
            drop(plug);
            self.drop_nic(&id, name);
            return Err(refusal);
        }
        Ok(Work::Plug { plug: Box::new(plug), nic, agent })
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
        self.touch(Key::Container(id.to_string()));
        let path = match plugged {
            Ok(path) => path,
            Err(refusal) => {
                self.drop_nic(id, name);
                return Err(refusal);
            }
        };
        // It may have been changed already.
        if let Some(device) = self.containers.nic_mut(id, &name).map(|nic| nic.spec.device) {
            self.touch(Key::Nic(device));
        }
        if let Some(nic) = self.containers.nic_mut(id, &name) {
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
        let work = match (&container.spec.qmp, &nic.pci) {
            (Some(qmp), Some(_)) => Work::Unplug { qmp: qmp.clone(), name: name.to_owned() },
            // What shunt did not plug in is not its to unplug.
            _ => Work::Nothing,
        };
        Ok((work, nic.clone()))
    }

    /// Forgets a NIC, with its port, its routes and its reservation.
    pub(crate) fn drop_nic(&mut self, id: &ContainerId, name: Name) {
        self.touch(Key::Container(id.to_string()));
        if let Some(device) = self.containers.nic_mut(id, &name).map(|nic| nic.spec.device) {
            self.touch(Key::Nic(device));
            self.forget_unmade(&Key::Nic(device));
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(at) = container.nics.iter().position(|nic| nic.spec.name == name) else { return };
        let Nic { spec, reserved, .. } = container.nics.remove(at);
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
        if spec.socket.is_none() {
            guest_tap::forget(&spec.device);
        }
        tracing::info!("container {id}: NIC {name} removed");
    }
}

/// The port of a NIC, as the NIC says.
fn own_port(container: &ContainerSpec, nic: &NicSpec) -> PortSpec {
    let vhost = nic.socket.is_some();
    let attachment = match nic.socket.clone() {
        Some(path) => Attachment::VhostUser { path, role: container.role },
        None => Attachment::Netdev { netns: None, device: nic.device.to_string() },
    };
    PortSpec {
        name: nic.device,
        bridge: container.bridge,
        attachment,
        queues: nic.pairs(),
        mtu: Some(nic.mtu).filter(|_| vhost),
        mac: Some(nic.mac).filter(|_| vhost),
        pins: Vec::new(),
        guard: None,
        allow: nic.addresses.iter().map(|network| IpNet::from(network.addr())).collect(),
        limits: Default::default(),
    }
}
