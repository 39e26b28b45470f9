//! Secure containers: which there are, their NICs, their routes, and how both get into running guests.
//!
//! [`control`] and [`routes`] are what the switch does for them: ports, reservations, tables of virtual services. What
//! waits for others ([`work`]) runs beside it, on a thread of its own for each operation ([`job`]): QEMU ([`hotplug`] over [`qmp`], into one
//! of its [`slots`]) and the agent inside a guest ([`agent`]). Packets meet none of this.

pub(crate) mod agent;
pub(crate) mod control;
#[cfg(test)]
pub(crate) mod fake_qmp;
mod hotplug;
pub(crate) mod job;
mod qmp;
mod routes;
mod slots;
#[cfg(test)]
mod tests;
pub(crate) mod work;

use std::collections::BTreeMap;

use crate::config::Name;
use crate::config::spec::{ContainerId, ContainerSpec, NicPort, NicSpec};
use crate::refusal::Refusal;

/// A NIC of a container.
#[derive(Debug)]
pub(crate) struct Nic {
    pub(crate) spec: NicSpec,
    /// It is on its way in: nobody is told of it yet.
    pending: bool,
    /// The interface that has its address reserved.
    reserved: Option<Name>,
    /// What commands have changed at its port.
    port: NicPort,
}

/// A container. The specification's own lists of NICs are not used: see [`Container::nics`].
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) spec: ContainerSpec,
    pub(crate) nics: Vec<Nic>,
}

impl Container {
    fn nic(&self, name: &str) -> Option<&Nic> {
        self.nics.iter().find(|nic| nic.spec.name == *name)
    }

    /// The NICs that are there.
    pub(crate) fn present(&self) -> impl Iterator<Item = &NicSpec> {
        self.nics.iter().filter(|nic| !nic.pending).map(|nic| &nic.spec)
    }
}

/// All containers.
#[derive(Debug, Default)]
pub struct Containers {
    by_id: BTreeMap<ContainerId, Container>,
}

impl Containers {
    /// The container that is meant by its ID or an unambiguous beginning of it.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub(crate) fn find(&self, asked: &str) -> Result<&Container, Refusal> {
        if let Some(container) = self.by_id.get(asked) {
            return Ok(container);
        }
        let mut fitting =
            self.by_id.iter().filter(|(id, _)| !asked.is_empty() && id.as_str().starts_with(asked));
        let shown: String = asked.chars().take(140).collect();
        match (fitting.next(), fitting.next()) {
            (Some((_, container)), None) => Ok(container),
            (Some((first, _)), Some((second, _))) => Err(Refusal::new(format!(
                "container {shown} is ambiguous: {first} and {second} begin so, write more of it"
            ))),
            (None, _) => Err(Refusal::new(format!(
                "container {shown} is not running: 'shuntctl container list' shows those that are registered"
            ))),
        }
    }

    /// The ID that is meant.
    ///
    /// # Errors
    /// See [`Self::find`].
    pub(crate) fn id(&self, asked: &str) -> Result<ContainerId, Refusal> {
        self.find(asked).map(|container| container.spec.id.clone())
    }

    fn get_mut(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.by_id.get_mut(id)
    }

    fn nic_mut(&mut self, id: &ContainerId, name: &str) -> Option<&mut Nic> {
        self.get_mut(id)?.nics.iter_mut().find(|nic| nic.spec.name == *name)
    }

    /// All of them, by ID.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Container> {
        self.by_id.values()
    }

    /// The devices of all NICs.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Name> {
        self.by_id.values().flat_map(|container| container.nics.iter().map(|nic| nic.spec.device))
    }

    fn by_device(&self, device: &str) -> Option<(&Container, &Nic)> {
        self.by_id.values().find_map(|container| {
            Some((container, container.nics.iter().find(|nic| nic.spec.device == *device)?))
        })
    }

    /// What commands have changed at the port of a NIC.
    pub(crate) fn nic_port(&self, device: &str) -> Option<&NicPort> {
        self.by_device(device).filter(|(_, nic)| !nic.pending).map(|(_, nic)| &nic.port)
    }

    /// The container whose NIC a port is.
    pub(crate) fn owner(&self, port: &str) -> Option<(&ContainerId, &NicSpec)> {
        self.by_device(port).map(|(container, nic)| (&container.spec.id, &nic.spec))
    }
}
