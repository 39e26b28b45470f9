//! Ports: guests and devices.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::super::name::{is_device, is_netns};
use super::super::runtime::CORES_MAX;
use super::{
    DEVICE_QUEUES_MAX, Invalid, Limits, Mac, Name, RateChange, VHOST_PAIRS_MAX, mac, mtu, name, number,
    prefix, rate, socket_path, something,
};
use crate::control::api;

/// Which side of a vhost-user socket listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// shunt listens, the frontend (QEMU) connects.
    #[default]
    Server,
    /// The frontend listens (`server=on`), shunt connects, again and again.
    Client,
}

impl Role {
    /// The word of command line, configuration and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A guest, through a vhost-user socket.
    VhostUser {
        /// The socket: absolute, at most [`SOCKET_PATH_MAX`](super::SOCKET_PATH_MAX) bytes.
        path: PathBuf,
        /// Who listens.
        role: Role,
    },
    /// A TAP device whose descriptor shunt holds.
    Tap {
        /// The device, of the form of a [`Name`]; made if there is none.
        device: String,
        /// The network namespace of the device: a name in `/run/netns` or an absolute path; ours if `None`.
        netns: Option<String>,
        /// Whether the device stays when the port goes.
        persist: bool,
    },
    /// An existing device: a TAP that somebody else holds, a veth, a NIC.
    Netdev {
        /// The network namespace of the device, as with a TAP.
        netns: Option<String>,
        /// The device, of the kernel's form for device names.
        device: String,
    },
}

impl Attachment {
    /// The word for this kind of port in JSON.
    pub fn kind(&self) -> api::Kind {
        match self {
            Self::VhostUser { .. } => api::Kind::VhostUser,
            Self::Tap { .. } => api::Kind::Tap,
            Self::Netdev { .. } => api::Kind::Netdev,
        }
    }
}

/// A port to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name, unique among ports.
    pub name: Name,
    /// The bridge that it joins.
    pub bridge: Name,
    /// What is behind it.
    pub attachment: Attachment,
    /// Queues, or queue pairs: 1 to [`VHOST_PAIRS_MAX`] for vhost-user, 1 to [`DEVICE_QUEUES_MAX`] otherwise.
    pub queues: u16,
    /// MTU in bytes, [`MTU_MIN`](super::MTU_MIN) to [`MTU_MAX`](super::MTU_MAX); `None` leaves it to the device, and 1500 to a guest. Never given for
    /// a netdev port, whose device keeps its own.
    pub mtu: Option<u16>,
    /// Address that the guest or the device is to have, a unicast one; `None` leaves it to them. Never given for a
    /// netdev port.
    pub mac: Option<Mac>,
    /// Queues (counted from 0, below `queues`, none twice) that are to be received by the worker on a core.
    pub pins: Vec<(u16, u32)>,
    /// Whether it may send only from its own addresses; `None`: once shunt has assigned it one.
    pub guard: Option<bool>,
    /// Networks and addresses that it may send from beside those that shunt assigns; none twice.
    pub allow: Vec<IpNet>,
    /// How much may pass.
    pub limits: Limits,
}

/// What is to change at a port; what is `None` or empty stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortChange {
    /// MTU in bytes, [`MTU_MIN`](super::MTU_MIN) to [`MTU_MAX`](super::MTU_MAX).
    pub mtu: Option<u16>,
    /// Queues to be received by the worker on a core from now on. Whether the port has the queue is for the switch to
    /// find out; no queue stands here twice, or in `unpin`, too.
    pub pins: Vec<(u16, u32)>,
    /// Queues to be placed by the switch again.
    pub unpin: Vec<u16>,
    /// Whether it may send only from its own addresses.
    pub guard: Option<bool>,
    /// Networks and addresses that it may send from from now on.
    pub allow: Vec<IpNet>,
    /// Networks and addresses that it was allowed to send from and may no longer.
    pub revoke: Vec<IpNet>,
    /// The limit of what reaches whoever is behind it.
    pub ingress: RateChange,
    /// The limit of what comes from there.
    pub egress: RateChange,
}

pub(super) const INGRESS: (&str, &str) = ("ingress_rate", "ingress_burst");
pub(super) const EGRESS: (&str, &str) = ("egress_rate", "egress_burst");

pub(super) fn pins(pins: &[api::Pin], queues: Option<u16>) -> Result<Vec<(u16, u32)>, Invalid> {
    let mut checked: Vec<(u16, u32)> = Vec::new();
    for pin in pins {
        let last = queues.unwrap_or(DEVICE_QUEUES_MAX) - 1;
        if !(0..=i64::from(last)).contains(&pin.queue) {
            let queue = pin.queue;
            let rule =
                format!("pins: queue {queue} does not exist: queues are counted from 0, here to {last}");
            return Err(Invalid::new("pins", rule));
        }
        let core = pin.core;
        if !(0..CORES_MAX as i64).contains(&core) {
            let last = CORES_MAX - 1;
            return Err(Invalid::new(
                "pins",
                format!("pins: core {core} is out of range: it must be 0 to {last}"),
            ));
        }
        let queue = pin.queue as u16;
        if checked.iter().any(|&(q, _)| q == queue) {
            return Err(Invalid::new("pins", format!("pins: queue {queue} is pinned twice: once is enough")));
        }
        checked.push((queue, core as u32));
    }
    Ok(checked)
}

fn netns(asked: &api::PortAdd) -> Result<Option<String>, Invalid> {
    match asked.netns.as_deref().filter(|name| !is_netns(name)) {
        None => Ok(asked.netns.clone()),
        Some(name) => {
            let rule = "it must be a name as \"ip netns list\" shows it, or an absolute path";
            Err(Invalid::new("netns", format!("netns {name:?} is no network namespace: {rule}")))
        }
    }
}

fn attachment(asked: &api::PortAdd) -> Result<Attachment, Invalid> {
    let only_with = |field: &'static str, given: bool, kind: &str| match given {
        true => Err(Invalid::new(field, format!("{field} goes with {kind} only: leave it out"))),
        false => Ok(()),
    };
    let role = match asked.role.as_deref() {
        None | Some("server") => Role::Server,
        Some("client") => Role::Client,
        Some(other) => {
            let rule = "it must be \"server\" (shunt listens) or \"client\" (the frontend listens)";
            return Err(Invalid::new("role", format!("role {other:?} is unknown: {rule}")));
        }
    };
    match (&asked.vhost_user, &asked.tap, &asked.netdev) {
        (Some(path), None, None) => {
            only_with("netns", asked.netns.is_some(), "tap and netdev")?;
            only_with("persist", asked.persist, "tap")?;
            Ok(Attachment::VhostUser { path: socket_path("vhost_user", path)?, role })
        }
        (None, Some(device), None) => {
            only_with("role", asked.role.is_some(), "vhost_user")?;
            let device = name("tap", device)?.to_string();
            Ok(Attachment::Tap { device, netns: netns(asked)?, persist: asked.persist })
        }
        (None, None, Some(device)) => {
            only_with("role", asked.role.is_some(), "vhost_user")?;
            let netns = netns(asked)?;
            only_with("persist", asked.persist, "tap")?;
            only_with("mtu", asked.mtu.is_some(), "vhost_user and tap (a netdev keeps its own)")?;
            only_with("mac", asked.mac.is_some(), "vhost_user and tap (a netdev keeps its own)")?;
            if !is_device(device) {
                let rule = "it must be the name of a network device, 1 to 15 bytes without \"/\", \":\", \"%\" and blanks";
                return Err(Invalid::new("netdev", format!("netdev {device:?} is no device name: {rule}")));
            }
            Ok(Attachment::Netdev { device: device.clone(), netns })
        }
        (None, None, None) => Err(Invalid::new(
            "name",
            format!(
                "port {:?} is attached to nothing: one of vhost_user, tap and netdev must be given",
                asked.name
            ),
        )),
        _ => Err(Invalid::new(
            "name",
            format!(
                "port {:?} is attached twice: only one of vhost_user, tap and netdev may be given",
                asked.name
            ),
        )),
    }
}

impl TryFrom<&api::PortAdd> for PortSpec {
    type Error = Invalid;

    fn try_from(asked: &api::PortAdd) -> Result<Self, Invalid> {
        let port = name("name", &asked.name)?;
        let bridge = name("bridge", &asked.bridge)?;
        let attachment = attachment(asked)?;
        let most = match attachment {
            Attachment::VhostUser { .. } => VHOST_PAIRS_MAX,
            Attachment::Tap { .. } | Attachment::Netdev { .. } => DEVICE_QUEUES_MAX,
        };
        let queues = asked.queues.map_or(Ok(1), |v| number("queues", v, 1, most.into()))?;
        Ok(Self {
            name: port,
            bridge,
            attachment,
            queues,
            mtu: mtu(asked.mtu)?,
            mac: asked.mac.as_deref().map(|text| mac("mac", text)).transpose()?,
            pins: pins(&asked.pins, Some(queues))?,
            guard: asked.guard,
            allow: networks("allow_address", &asked.allow_address)?,
            limits: Limits {
                ingress: rate::rate(INGRESS, asked.ingress_rate, asked.ingress_burst)?.of(None),
                egress: rate::rate(EGRESS, asked.egress_rate, asked.egress_burst)?.of(None),
            },
        })
    }
}

impl TryFrom<&api::PortSet> for PortChange {
    type Error = Invalid;

    fn try_from(asked: &api::PortSet) -> Result<Self, Invalid> {
        let mut unpin: Vec<u16> = Vec::new();
        let pins = pins(&asked.pins, None)?;
        for &queue in &asked.unpin {
            let queue = number("unpin", queue, 0, u32::from(DEVICE_QUEUES_MAX) - 1)?;
            if pins.iter().any(|&(pinned, _)| pinned == queue) {
                return Err(Invalid::new(
                    "unpin",
                    format!("unpin: queue {queue} is to be pinned, too: choose one"),
                ));
            }
            if !unpin.contains(&queue) {
                unpin.push(queue);
            }
        }
        let change = Self {
            mtu: mtu(asked.mtu)?,
            pins,
            unpin,
            guard: asked.guard,
            allow: networks("allow_address", &asked.allow_address)?,
            revoke: networks("revoke_address", &asked.revoke_address)?,
            ingress: rate::rate(INGRESS, asked.ingress_rate, asked.ingress_burst)?,
            egress: rate::rate(EGRESS, asked.egress_rate, asked.egress_burst)?,
        };
        if let Some(both) = change.allow.iter().find(|network| change.revoke.contains(network)) {
            return Err(Invalid::new(
                "revoke_address",
                format!("revoke_address: {both} is to be allowed, too: choose one"),
            ));
        }
        let fields = "mtu, pins, unpin, guard, allow_address, revoke_address, ingress_rate and egress_rate";
        something(change != Self::default(), "port", &asked.name, fields)?;
        Ok(change)
    }
}

/// Networks and addresses, none twice.
pub(super) fn networks(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Invalid> {
    let mut networks = Vec::new();
    for text in texts {
        let network = prefix(field, text)?;
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vhost(path: &str) -> api::PortAdd {
        api::PortAdd {
            name: "p".into(),
            bridge: "b".into(),
            vhost_user: Some(path.into()),
            ..api::PortAdd::default()
        }
    }

    fn port(change: impl FnOnce(&mut api::PortAdd)) -> Result<PortSpec, Invalid> {
        let mut asked = vhost("/run/p.sock");
        change(&mut asked);
        PortSpec::try_from(&asked)
    }

    fn tap(change: impl FnOnce(&mut api::PortAdd)) -> Result<PortSpec, Invalid> {
        port(|p| {
            p.vhost_user = None;
            p.tap = Some("tap0".into());
            change(p);
        })
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let port = port(|_| ()).unwrap();
        let Attachment::VhostUser { path, role } = port.attachment else { panic!("{port:?}") };
        assert_eq!((path.to_str(), role), (Some("/run/p.sock"), Role::Server));
        assert_eq!((port.queues, port.mtu, port.mac), (1, None, None));
    }

    #[test]
    fn bounds_of_ports() {
        for good in [46, 9600] {
            assert_eq!(port(|p| p.mtu = Some(good)).unwrap().mtu, Some(good as u16));
        }
        for bad in [45, 9601, 0, -1, 65_536 + 1500] {
            let invalid = port(|p| p.mtu = Some(bad)).unwrap_err();
            assert_eq!(invalid.to_string(), format!("mtu {bad} is out of range: it must be 46 to 9600"));
            assert_eq!(invalid.field, "mtu");
        }
        assert!(port(|p| p.queues = Some(128)).is_ok() && tap(|p| p.queues = Some(256)).is_ok());
        for bad in [0, 129, -1, 65_537] {
            let message = format!("queues {bad} is out of range: it must be 1 to 128");
            assert_eq!(port(|p| p.queues = Some(bad)).unwrap_err().to_string(), message);
        }
        assert!(tap(|p| p.queues = Some(257)).is_err());
    }

    #[test]
    fn addresses_are_those_of_hosts() {
        assert!(port(|p| p.mac = Some("52:54:00:12:34:56".into())).is_ok());
        for (bad, why) in [
            ("52:54:00:12:34", "is no MAC address"),
            ("01:00:5e:00:00:01", "unicast"),
            ("ff:ff:ff:ff:ff:ff", "unicast"),
            ("00:00:00:00:00:00", "unicast address other than zero"),
        ] {
            let message = port(|p| p.mac = Some(bad.into())).unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains(why), "{message}");
        }
    }

    #[test]
    fn socket_paths_follow_the_kernel() {
        let path = |length: usize| format!("/{}", "a".repeat(length - 1));
        assert!(PortSpec::try_from(&vhost(&path(107))).is_ok());
        let message = PortSpec::try_from(&vhost(&path(108))).unwrap_err().to_string();
        assert!(
            message.ends_with("is 108 bytes long: the kernel allows a socket path 107 bytes"),
            "{message}"
        );
        for (bad, why) in [
            ("vm.sock", "is not absolute"),
            ("", "is not absolute"),
            ("./vm.sock", "is not absolute"),
            ("/run/", "names a directory"),
            ("/", "names a directory"),
            ("/run/..", "names a directory"),
            ("/run/a\0b", "holds a control character"),
        ] {
            let invalid = PortSpec::try_from(&vhost(bad)).unwrap_err();
            assert_eq!(invalid.field, "vhost_user");
            assert!(invalid.to_string().contains(why), "{invalid}");
        }
    }

    #[test]
    fn options_go_with_their_kind() {
        let refused = |result: Result<PortSpec, Invalid>| result.unwrap_err().to_string();
        assert_eq!(refused(port(|p| p.persist = true)), "persist goes with tap only: leave it out");
        assert_eq!(
            refused(port(|p| p.netns = Some("n".into()))),
            "netns goes with tap and netdev only: leave it out"
        );
        assert_eq!(
            refused(tap(|p| p.role = Some("client".into()))),
            "role goes with vhost_user only: leave it out"
        );
        assert!(refused(port(|p| p.role = Some("peer".into()))).starts_with("role \"peer\" is unknown"));
        assert!(refused(port(|p| p.tap = Some("t".into()))).contains("attached twice"));
        assert!(refused(port(|p| p.vhost_user = None)).contains("attached to nothing"));
        assert!(refused(tap(|p| p.tap = Some("tap%d".into()))).starts_with("tap \"tap%d\" is no valid name"));
        assert!(
            refused(tap(|p| p.netns = Some("a/b".into())))
                .starts_with("netns \"a/b\" is no network namespace")
        );
        let netdev = |device: &str, mtu| {
            tap(|p| {
                p.tap = None;
                p.netdev = Some(device.into());
                p.mtu = mtu;
            })
        };
        assert!(netdev("0eth", None).is_ok());
        assert!(refused(netdev("a b", None)).starts_with("netdev \"a b\" is no device name"));
        assert!(refused(netdev("eth0", Some(1500))).starts_with("mtu goes with vhost_user and tap"));
    }

    #[test]
    fn pins_name_queues_that_exist_once() {
        let pinned = |pins: &[(i64, i64)]| {
            tap(|p| {
                p.queues = Some(2);
                p.pins = pins.iter().map(|&(queue, core)| api::Pin { queue, core }).collect();
            })
        };
        assert_eq!(pinned(&[(0, 3), (1, 0)]).unwrap().pins, [(0, 3), (1, 0)]);
        for (bad, why) in [
            (&[(2, 0)][..], "queue 2 does not exist"),
            (&[(-1, 0)], "queue -1 does not exist"),
            (&[(0, 1024)], "core 1024 is out of range: it must be 0 to 1023"),
            (&[(0, -1)], "core -1"),
            (&[(0, 1), (0, 2)], "queue 0 is pinned twice"),
        ] {
            let message = pinned(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn a_change_must_change_something() {
        let change = |asked: api::PortSet| PortChange::try_from(&asked).map_err(|e| e.to_string());
        let asked = api::PortSet { name: "p".into(), ..api::PortSet::default() };
        assert!(change(asked.clone()).unwrap_err().contains("nothing is to change at port \"p\""));
        let both =
            api::PortSet { pins: vec![api::Pin { queue: 1, core: 1 }], unpin: vec![1], ..asked.clone() };
        assert!(change(both).unwrap_err().contains("queue 1"));
        let unpin = change(api::PortSet { unpin: vec![1, 1, 0], ..asked }).unwrap().unpin;
        assert_eq!(unpin, [1, 0]);
    }

    #[test]
    fn what_a_port_may_send_from() {
        let allowed = |list: &[&str]| {
            port(|p| p.allow_address = list.iter().map(|&text| text.to_owned()).collect()).map(|p| p.allow)
        };
        let networks: Vec<IpNet> = ["10.0.3.5/32", "fd00::/64"].map(|n| n.parse().unwrap()).to_vec();
        assert_eq!(allowed(&["10.0.3.5", "fd00::/64", "10.0.3.5/32"]).unwrap(), networks);
        let invalid = allowed(&["10.0.3.5/24"]).unwrap_err();
        assert_eq!(invalid.field, "allow_address");
        assert!(invalid.to_string().contains("10.0.3.0/24"), "{invalid}");
        let asked = api::PortSet {
            name: "p".into(),
            allow_address: vec!["10.0.0.1".into()],
            revoke_address: vec!["10.0.0.1/32".into()],
            ..api::PortSet::default()
        };
        assert!(PortChange::try_from(&asked).unwrap_err().to_string().contains("choose one"));
    }
}
