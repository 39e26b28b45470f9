//! What a bridge and a port are asked to be: plain descriptions whose every value was checked.
//!
//! A description is made from a request ([`crate::control::api::BridgeAdd`], [`crate::control::api::PortAdd`]), which
//! is also what a `[[bridge]]` or `[[port]]` table of the configuration file holds. Whoever has a description need not
//! look again; what depends on the state of the switch or of the machine (is there such a bridge, such a device, may
//! we) is for [`crate::switch`] to find out.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::name::{NAME_RULE, Name, is_device, is_netns};
use crate::control::api;
use crate::packet::ethernet::Mac;
use crate::refusal::Refusal;

/// Seconds after which a learned address is forgotten unless it is seen again, where nothing else is said
/// (IEEE 802.1Q, table 8-6).
pub const AGEING_DEFAULT: u32 = 300;
/// Longest ageing, in seconds (IEEE 802.1Q, table 8-6).
pub const AGEING_MAX: u32 = 1_000_000;
/// Addresses that a bridge learns, where nothing else is said.
pub const FDB_LIMIT_DEFAULT: u32 = 65_536;
/// Most addresses that a bridge can be told to learn.
pub const FDB_LIMIT_MAX: u32 = 1_048_576;
/// Smallest MTU of a port.
pub const MTU_MIN: u16 = 46;
/// Largest MTU of a port.
pub const MTU_MAX: u16 = 9600;
/// Most queue pairs of a vhost-user port (256 rings).
pub const VHOST_PAIRS_MAX: u16 = 128;
/// Most queues of a TAP (the kernel's MAX_TAP_QUEUES) or netdev port.
pub const DEVICE_QUEUES_MAX: u16 = 256;
/// Longest path of a Unix socket, in bytes (`sun_path` less the closing zero).
pub const SOCKET_PATH_MAX: usize = 107;

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field as requests and configuration files spell it.
    pub field: &'static str,
    /// Field, value and rule in one line.
    pub message: Refusal,
}

impl Invalid {
    fn new(field: &'static str, message: String) -> Self {
        Self { field, message: Refusal::new(message) }
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        invalid.message
    }
}

/// A bridge to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name, unique among bridges.
    pub name: Name,
    /// Seconds after which a learned address that was not seen again is forgotten: 1 to [`AGEING_MAX`], or 0 for
    /// never.
    pub ageing: u32,
    /// Most entries of its forwarding database, 1 to [`FDB_LIMIT_MAX`].
    pub fdb_limit: u32,
}

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
        /// The socket: absolute, at most [`SOCKET_PATH_MAX`] bytes.
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
    /// MTU in bytes, [`MTU_MIN`] to [`MTU_MAX`]; `None` leaves it to the device, and 1500 to a guest. Never given for
    /// a netdev port, whose device keeps its own.
    pub mtu: Option<u16>,
    /// Address that the guest or the device is to have, a unicast one; `None` leaves it to them. Never given for a
    /// netdev port.
    pub mac: Option<Mac>,
    /// Queues (counted from 0, below `queues`, none twice) that are to be received by the worker on a core.
    pub pins: Vec<(u16, u32)>,
}

/// What is to change at a port; what is `None` or empty stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortChange {
    /// MTU in bytes, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: Option<u16>,
    /// Queues to be received by the worker on a core from now on. Whether the port has the queue is for the switch to
    /// find out; no queue stands here twice, or in `unpin`, too.
    pub pins: Vec<(u16, u32)>,
    /// Queues to be placed by the switch again.
    pub unpin: Vec<u16>,
}

/// Checks a name in `field`.
pub fn name(field: &'static str, text: &str) -> Result<Name, Invalid> {
    text.parse().map_err(|_| Invalid::new(field, format!("{field} {text:?} is no valid name: {NAME_RULE}")))
}

/// Checks that `value` in `field` lies in `min` to `max`.
fn number<T: TryFrom<i64>>(field: &'static str, value: i64, min: u32, max: u32) -> Result<T, Invalid> {
    let refusal =
        || Invalid::new(field, format!("{field} {value} is out of range: it must be {min} to {max}"));
    if !(i64::from(min)..=i64::from(max)).contains(&value) {
        return Err(refusal());
    }
    T::try_from(value).map_err(|_| refusal())
}

/// Checks an MTU.
fn mtu(value: Option<i64>) -> Result<Option<u16>, Invalid> {
    value.map(|v| number("mtu", v, MTU_MIN.into(), MTU_MAX.into())).transpose()
}

/// Checks the address of a host: unicast and not zero.
pub fn mac(field: &'static str, text: &str) -> Result<Mac, Invalid> {
    let mac: Mac = text.parse().map_err(|_| {
        Invalid::new(
            field,
            format!("{field} {text:?} is no MAC address: it must be six bytes in hexadecimal such as 52:54:00:12:34:56"),
        )
    })?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(Invalid::new(
            field,
            format!(
                "{field} {text} is not the address of a host: it must be a unicast address other than zero"
            ),
        ));
    }
    Ok(mac)
}

/// Checks a VLAN identifier; none is 0, which stands for untagged.
pub fn vlan(value: Option<i64>) -> Result<u16, Invalid> {
    value.map_or(Ok(0), |v| number("vlan", v, 0, 4094))
}

/// Checks the path of a Unix socket in `field`.
pub fn socket_path(field: &'static str, text: &str) -> Result<PathBuf, Invalid> {
    let refuse = |rule: &str| Err(Invalid::new(field, format!("{field} {text:?} {rule}")));
    if !text.starts_with('/') {
        return refuse("is not absolute: a socket path must begin with \"/\"");
    }
    if text.len() > SOCKET_PATH_MAX {
        let n = text.len();
        return refuse(&format!(
            "is {n} bytes long: the kernel allows a socket path {SOCKET_PATH_MAX} bytes"
        ));
    }
    if text.contains(char::is_control) {
        return refuse("holds a control character: a socket path must not");
    }
    let last = text.rsplit('/').next().unwrap_or_default();
    if matches!(last, "" | "." | "..") {
        return refuse("names a directory: it must end with the socket's own name");
    }
    Ok(PathBuf::from(text))
}

fn pins(pins: &[api::Pin], queues: Option<u16>) -> Result<Vec<(u16, u32)>, Invalid> {
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
        if !(0..super::runtime::CORES_MAX as i64).contains(&core) {
            let last = super::runtime::CORES_MAX - 1;
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

impl TryFrom<&api::BridgeAdd> for BridgeSpec {
    type Error = Invalid;

    fn try_from(asked: &api::BridgeAdd) -> Result<Self, Invalid> {
        Ok(Self {
            name: name("name", &asked.name)?,
            ageing: asked.ageing.map_or(Ok(AGEING_DEFAULT), |v| number("ageing", v, 0, AGEING_MAX))?,
            fdb_limit: asked
                .fdb_limit
                .map_or(Ok(FDB_LIMIT_DEFAULT), |v| number("fdb_limit", v, 1, FDB_LIMIT_MAX))?,
        })
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
            only_with("netns", asked.netns.is_some(), "tap")?;
            only_with("persist", asked.persist, "tap")?;
            Ok(Attachment::VhostUser { path: socket_path("vhost_user", path)?, role })
        }
        (None, Some(device), None) => {
            only_with("role", asked.role.is_some(), "vhost_user")?;
            let device = name("tap", device)?.to_string();
            if let Some(netns) = asked.netns.as_deref().filter(|n| !is_netns(n)) {
                let rule = "it must be a name as \"ip netns list\" shows it, or an absolute path";
                return Err(Invalid::new(
                    "netns",
                    format!("netns {netns:?} is no network namespace: {rule}"),
                ));
            }
            Ok(Attachment::Tap { device, netns: asked.netns.clone(), persist: asked.persist })
        }
        (None, None, Some(device)) => {
            only_with("role", asked.role.is_some(), "vhost_user")?;
            only_with("netns", asked.netns.is_some(), "tap")?;
            only_with("persist", asked.persist, "tap")?;
            only_with("mtu", asked.mtu.is_some(), "vhost_user and tap (a netdev keeps its own)")?;
            only_with("mac", asked.mac.is_some(), "vhost_user and tap (a netdev keeps its own)")?;
            if !is_device(device) {
                let rule = "it must be the name of a network device, 1 to 15 bytes without \"/\", \":\", \"%\" and blanks";
                return Err(Invalid::new("netdev", format!("netdev {device:?} is no device name: {rule}")));
            }
            Ok(Attachment::Netdev { device: device.clone() })
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
        let change = Self { mtu: mtu(asked.mtu)?, pins, unpin };
        if change == Self::default() {
            let rule = "give at least one of mtu, pins and unpin";
            return Err(Invalid::new(
                "name",
                format!("nothing is to change at port {:?}: {rule}", asked.name),
            ));
        }
        Ok(change)
    }
}
