//! Ports on their way from one process to the other.
#![forbid(unsafe_code)]

use std::io;

use serde::{Deserialize, Serialize};
use vhost_backend::device::Device;
use vhost_backend::handover::{Descriptors, DeviceState};

use crate::config::PortSpec;
use crate::config::spec::Attachment as Asked;
use crate::port::Attachment;
use crate::port::netdev::{Netdev, NetdevState};
use crate::port::tap::{Tap, TapState};
use crate::refusal::Refusal;
use crate::switch::attach::{Changed, USUAL_MTU, device_config, netdev_config, tap_config};

/// What a port is attached to, for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// A guest's vhost-user device.
    VhostUser(DeviceState),
    /// A TAP device.
    Tap(TapState),
    /// Somebody else's device.
    Netdev(NetdevState),
}

/// Where a port's rings stand; nothing for ports without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Of a vhost-user device, by ring.
    VhostUser(Vec<Option<u32>>),
    /// Of a device's packet sockets, by queue.
    Netdev(Vec<u32>),
    /// There are none.
    None,
}

/// Describes a port.
///
/// # Errors
/// No descriptors are to be had.
pub fn export(attachment: &Attachment, descriptors: &mut Descriptors) -> io::Result<PortState> {
    Ok(match attachment {
        Attachment::Vhost(device) => PortState::VhostUser(device.export(descriptors)?),
        Attachment::Tap(tap) => PortState::Tap(tap.export(descriptors)?),
        Attachment::Netdev(netdev) => PortState::Netdev(netdev.export(descriptors)?),
    })
}

/// A number that changes when a port has to be described again.
pub fn changes(attachment: &Attachment) -> u64 {
    match attachment {
        Attachment::Vhost(device) => device.changes(),
        Attachment::Tap(_) | Attachment::Netdev(_) => 0,
    }
}

/// Where the rings of a port stand, when nobody uses them.
pub fn positions(attachment: &Attachment) -> Positions {
    match attachment {
        Attachment::Vhost(device) => Positions::VhostUser(device.positions()),
        Attachment::Netdev(netdev) => Positions::Netdev(netdev.positions()),
        Attachment::Tap(_) => Positions::None,
    }
}

/// Has the rings of a port, which are not used yet, stand there.
///
/// # Errors
/// They cannot.
pub fn set_positions(attachment: &Attachment, positions: &Positions) -> Result<(), Refusal> {
    match (attachment, positions) {
        (Attachment::Vhost(device), Positions::VhostUser(positions)) => {
            device.set_positions(positions).map_err(|error| Refusal::new(error.to_string()))
        }
        (Attachment::Netdev(netdev), Positions::Netdev(positions)) if netdev.set_positions(positions) => {
            Ok(())
        }
        (Attachment::Tap(_), Positions::None) => Ok(()),
        _ => Err(Refusal::new("positions of its rings were handed over that it cannot have")),
    }
}

/// Goes on with a port that was described by another process, whose it is until [`own`].
///
/// # Errors
/// The description is not one of what the configuration asks for, or contradicts itself.
pub fn resume(
    spec: &PortSpec,
    state: &PortState,
    descriptors: &mut Descriptors,
    changed: Changed,
) -> Result<(Attachment, u16), Refusal> {
    match (&spec.attachment, state) {
        (Asked::VhostUser { path, role }, PortState::VhostUser(state)) => {
            let device = Device::resume(device_config(spec, path, *role), state, descriptors, changed);
            let device = device.map_err(|error| Refusal::new(error.to_string()))?;
            Ok((Attachment::Vhost(device), spec.mtu.unwrap_or(USUAL_MTU)))
        }
        (Asked::Tap { device, netns, persist }, PortState::Tap(state)) => {
            let config = tap_config(spec, device, netns.as_deref(), *persist);
            let tap =
                Tap::resume(&config, state, descriptors).map_err(|error| Refusal::new(error.to_string()))?;
            tap.on_change(changed);
            let mtu = tap.mtu().min(u32::from(u16::MAX)) as u16;
            Ok((Attachment::Tap(tap), mtu))
        }
        (Asked::Netdev { device, netns }, PortState::Netdev(state)) => {
            let config = netdev_config(spec, device, netns.as_deref());
            let netdev = Netdev::resume(&config, state, descriptors);
            let netdev = netdev.map_err(|error| Refusal::new(error.to_string()))?;
            netdev.on_change(changed);
            let mtu = netdev.mtu().min(u32::from(u16::MAX)) as u16;
            Ok((Attachment::Netdev(netdev), mtu))
        }
        _ => Err(Refusal::new("a port of another kind was handed over")),
    }
}

/// A port is this process' from now on: its rings run.
pub fn start(attachment: &Attachment) {
    if let Attachment::Vhost(device) = attachment {
        device.start_rings();
    }
}

/// What remains after [`start`], and wakes threads.
pub fn own(attachment: &Attachment) {
    match attachment {
        Attachment::Vhost(device) => device.go_on(),
        Attachment::Netdev(netdev) => netdev.own(),
        Attachment::Tap(_) => {}
    }
}
