//! Routes inside containers: which there are, and what is checked before the guest is told.
#![forbid(unsafe_code)]

use super::Container;
use super::work::Rerouting;
use crate::config::Name;
use crate::config::document::Key;
use crate::config::spec::{ContainerId, ContainerRoute, ContainerRouteMatch};
use crate::control::api;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// Most routes of a container.
const ROUTES_MAX: usize = 1024;

impl Switch {
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
        self.touch(Key::Container(id.to_string()));
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
