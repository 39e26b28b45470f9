//! What ports are attached to: opened here, or handed over by another process.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhost_backend::device::{Device, DeviceConfig};

use super::Switch;
use crate::config::spec::Attachment as Asked;
use crate::config::{PortSpec, Role};
use crate::port::Attachment;
use crate::port::netdev::{Netdev, NetdevConfig};
use crate::port::tap::{Tap, TapConfig};
use crate::refusal::Refusal;

/// MTU of a guest's port when none is asked for.
pub(crate) const USUAL_MTU: u16 = 1500;

/// What is called after a port has changed.
pub(crate) type Changed = Arc<dyn Fn() + Send + Sync>;

impl Switch {
    /// What a port is attached to, and its MTU: opened, or gone on with where another process has it.
    pub(super) fn attach(&mut self, spec: &PortSpec) -> Result<(Attachment, u16), Refusal> {
        let changed = self.changed();
        if let Some(handed) = &mut self.handed {
            return handed.attach(spec, changed);
        }
        self.open(spec, changed)
    }

    /// What is to be called when a port has changed.
    pub(crate) fn changed(&self) -> Changed {
        let workers = self.workers.clone();
        let changes = self.changes.clone();
        Arc::new(move || {
            workers.iter().for_each(|worker| worker.wake());
            changes.notify_one();
        })
    }

    fn open(&self, spec: &PortSpec, changed: Changed) -> Result<(Attachment, u16), Refusal> {
        match &spec.attachment {
            Asked::VhostUser { path, role } => {
                let config = device_config(spec, path, *role);
                let device =
                    Device::start(config, changed).map_err(|error| Refusal::new(error.to_string()))?;
                Ok((Attachment::Vhost(device), spec.mtu.unwrap_or(USUAL_MTU)))
            }
            Asked::Tap { device, netns, persist } => {
                let config = tap_config(spec, device, netns.as_deref(), *persist);
                let tap = Tap::open(&config).map_err(|error| Refusal::new(error.to_string()))?;
                tap.on_change(changed);
                let mtu = tap.mtu().min(u32::from(u16::MAX)) as u16;
                Ok((Attachment::Tap(tap), mtu))
            }
            Asked::Netdev { device, netns } => {
                let config = netdev_config(spec, device, netns.as_deref());
                let netdev = Netdev::open(&config).map_err(|error| Refusal::new(error.to_string()))?;
                netdev.on_change(changed);
                let mtu = netdev.mtu().min(u32::from(u16::MAX)) as u16;
                Ok((Attachment::Netdev(netdev), mtu))
            }
        }
    }
}

pub(crate) fn device_config(spec: &PortSpec, path: &Path, role: Role) -> DeviceConfig {
    DeviceConfig {
        name: spec.name.to_string(),
        path: path.to_path_buf(),
        role: match role {
            Role::Server => vhost_backend::device::Role::Server,
            Role::Client => vhost_backend::device::Role::Client,
        },
        queue_pairs: spec.queues,
    }
}

pub(crate) fn tap_config(spec: &PortSpec, device: &str, netns: Option<&str>, persist: bool) -> TapConfig {
    TapConfig {
        device: device.to_owned(),
        queues: spec.queues,
        mtu: spec.mtu,
        mac: spec.mac.map(|mac| mac.0),
        netns: netns.map(PathBuf::from),
        persist,
    }
}

pub(crate) fn netdev_config(spec: &PortSpec, device: &str, netns: Option<&str>) -> NetdevConfig {
    NetdevConfig { device: device.to_owned(), queues: spec.queues, netns: netns.map(PathBuf::from) }
}
