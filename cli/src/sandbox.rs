//! The commands of DAN files: how Kata's runtime-rs learns of ports.

use std::path::Path;

use shunt_client::dan::{self, Device, Nic};
use shunt_switch::config::Role;
use shunt_switch::control::api;

use crate::Asker;
use crate::arguments::{Dan, DanPut};
use crate::client::Failure;

/// `RT_SCOPE_LINK`: a route without next hop.
const SCOPE_LINK: u32 = 253;

fn refuse<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(why.into(), None))
}

/// A sandbox's id as the name of a file.
fn check(sandbox: &str) -> Result<(), Failure> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    match sandbox.bytes().all(fits) && sandbox.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => refuse(format!(
            "{sandbox:?} is no sandbox's id: it must be letters, digits, \"_\", \".\" and \"-\", beginning with a letter or digit"
        )),
    }
}

/// What needs no daemon; `None` if the command does.
pub(crate) fn answer(command: &Dan) -> Option<Result<String, Failure>> {
    match command {
        Dan::Put(_) => None,
        Dan::Show { sandbox, directory } => Some(check(sandbox).and_then(|()| show(sandbox, directory))),
        Dan::Del { sandbox, name, directory } => Some(check(sandbox).and_then(|()| {
            let file = dan::path(directory, sandbox);
            match dan::remove(&file, name) {
                Ok(true) => Ok(String::new()),
                Ok(false) => refuse(format!("{} has no NIC {name:?}", file.display())),
                Err(why) => refuse(why),
            }
        })),
    }
}

fn show(sandbox: &str, directory: &Path) -> Result<String, Failure> {
    let file = dan::path(directory, sandbox);
    match dan::read(&file) {
        Err(why) => refuse(why),
        Ok(None) => refuse(format!("{} does not exist", file.display())),
        Ok(Some(dan)) => match serde_json::to_string_pretty(&dan) {
            Ok(text) => Ok(text + "\n"),
            Err(why) => refuse(why.to_string()),
        },
    }
}

impl Asker {
    /// `dan put`: what the port is, the daemon says.
    pub(crate) fn dan(&mut self, command: &Dan) -> Result<String, Failure> {
        let Dan::Put(asked) = command else { return Ok(String::new()) };
        check(&asked.sandbox)?;
        if asked.name.parse::<shunt_switch::config::Name>().is_err() {
            return refuse(format!("name {:?}: {}", asked.name, shunt_switch::config::name::BadName));
        }
        let port = self.client.ask(&api::PortShow { name: asked.port.clone() })?;
        let nic = nic(asked, &port)?;
        dan::put(&dan::path(&asked.directory, &asked.sandbox), nic).map(|()| String::new()).or_else(refuse)
    }
}

fn nic(asked: &DanPut, port: &api::Port) -> Result<Nic, Failure> {
    let queue_num = usize::from(port.queues);
    let queue_size = dan::QUEUE_SIZE;
    let (device, known) = match (port.kind, &port.vhost_user, &port.device) {
        (api::Kind::VhostUser, Some(path), _) => {
            if port.role != Some(Role::Client) {
                let name = &port.name;
                return refuse(format!(
                    "port {name} listens at its socket, which Kata's hypervisor wants to do: make it with --role client"
                ));
            }
            let path = path.display().to_string();
            (Device::VhostUser { path, queue_num, queue_size }, port.mac)
        }
        (api::Kind::Netdev, _, Some(device)) if port.netns.is_none() => {
            (Device::HostTap { tap_name: device.clone(), queue_num, queue_size }, None)
        }
        _ => {
            let name = &port.name;
            return refuse(format!(
                "port {name} is nothing that a hypervisor can open: it must be a vhost-user port, or a netdev port on a TAP of the host"
            ));
        }
    };
    let Some(guest_mac) = asked.mac.or(known) else {
        return refuse(format!("the guest's MAC address of port {} is not known: say --mac", port.name));
    };
    let any = |v4: bool| if v4 { "0.0.0.0/0" } else { "::/0" }.to_owned();
    let defaults = asked.gateway.iter().map(|gateway| dan::Route {
        dest: any(gateway.is_ipv4()),
        gateway: gateway.to_string(),
        ..dan::Route::default()
    });
    let routes = asked.route.iter().map(|(to, via)| dan::Route {
        dest: to.to_string(),
        gateway: via.map(|via| via.to_string()).unwrap_or_default(),
        scope: if via.is_some() { 0 } else { SCOPE_LINK },
        ..dan::Route::default()
    });
    Ok(Nic {
        name: asked.name.clone(),
        guest_mac,
        device,
        network_info: dan::NetworkInfo {
            interface: dan::Interface {
                ip_addresses: asked.address.clone(),
                mtu: port.mtu.into(),
                ..dan::Interface::default()
            },
            // The agent makes routes without gateway first, whatever their place.
            routes: routes.chain(defaults).collect(),
            neighbors: Vec::new(),
        },
    })
}
