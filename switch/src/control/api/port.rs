//! Ports, and what they counted.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{Mac, Name, Role};
use crate::stats::Totals;

/// A queue that is to be received by the worker on a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Receive queue of the port, counted from 0.
    pub queue: i64,
    /// Core of a worker.
    pub core: i64,
}

/// Makes a port, attached to exactly one of `vhost_user`, `tap` and `netdev`. Also a `[[port]]` table of the
/// configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortAdd {
    /// Its name.
    pub name: String,
    /// The bridge that it joins.
    pub bridge: String,
    /// Path of a vhost-user socket: absolute, at most 107 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<String>,
    /// With `vhost_user`: `server` (shunt listens; if not given) or `client`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// A TAP device to make or adopt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// With `tap` and `netdev`: the network namespace, a name or an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// With `tap`: the device stays when the port goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persist: bool,
    /// An existing network device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    /// Queues or queue pairs, 1 to 128 (vhost-user) or 256; 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<i64>,
    /// MTU in bytes, 46 to 9600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Unicast MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Queues to bind to the workers of certain cores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Whether the port may send only from its own addresses; if not given, it is so once shunt has assigned it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// IP addresses, or networks of them, that it may send from beside those that shunt assigns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_address: Vec<String>,
    /// Bits per second that may reach whoever is behind it, 8 to 1,000,000,000,000; 0: no limit, as if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause; a quarter of a second's, at least 524,288, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<i64>,
    /// Bits per second that may come from there, as `ingress_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<i64>,
}

/// Removes a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortDel {
    /// Its name.
    pub name: String,
}

/// All ports, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortList {}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortShow {
    /// Its name.
    pub name: String,
}

/// Changes a port; at least one of the fields beside the name must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    /// Its name.
    pub name: String,
    /// MTU in bytes, 46 to 9600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// Queues to bind to the workers of certain cores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Queues that the switch shall place again as it likes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unpin: Vec<i64>,
    /// Whether the port may send only from its own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// IP addresses, or networks of them, that it may send from from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_address: Vec<String>,
    /// Of those, the ones that it may send from no longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoke_address: Vec<String>,
    /// Bits per second that may reach whoever is behind it, 8 to 1,000,000,000,000; 0 lifts the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause; a quarter of a second's, at least 524,288, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<i64>,
    /// Bits per second that may come from there, as `ingress_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<i64>,
    /// Bits of them that may come at once after a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<i64>,
}

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A guest.
    #[serde(rename = "vhost-user")]
    VhostUser,
    /// A TAP device whose descriptor shunt holds.
    #[serde(rename = "tap")]
    Tap,
    /// An existing network device.
    #[serde(rename = "netdev")]
    Netdev,
}

impl Kind {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VhostUser => "vhost-user",
            Self::Tap => "tap",
            Self::Netdev => "netdev",
        }
    }
}

/// Whether a port can carry frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can.
    Up,
    /// The device is down or gone, or the guest has no ring running.
    Down,
    /// Nobody is at the other end of the vhost-user socket yet, or again.
    Connecting,
    /// The other side broke the rules; it recovers when the other side starts anew.
    Broken,
}

impl State {
    /// The word of JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Connecting => "connecting",
            Self::Broken => "broken",
        }
    }
}

/// One direction of a port, since the port was made. `rx` is what came into the switch by the port, `tx` what left
/// by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Frames; a GSO frame counts as one.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
    /// Of the drops, those that a fault caused and not a decision or lack of room.
    pub errors: u64,
    /// Frames dropped, by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
}

impl From<Totals> for Counters {
    fn from(totals: Totals) -> Self {
        Self {
            packets: totals.packets,
            bytes: totals.bytes,
            errors: totals.errors(),
            drops: totals.drops.into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect(),
        }
    }
}

/// A queue and the core whose worker it was bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Receive queue, counted from 0.
    pub queue: u16,
    /// Core.
    pub core: u32,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: Name,
    /// What is behind it.
    pub kind: Kind,
    /// The bridge that it belongs to.
    pub bridge: Name,
    /// Whether it can carry frames.
    pub state: State,
    /// Why it cannot; `null` while it can.
    pub reason: Option<String>,
    /// Address of the guest's or kernel's side where it is known, or else `null`.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Queues or queue pairs that it was made with.
    pub queues: u16,
    /// Names of the features in force, in the spelling of their specification (`VIRTIO_NET_F_MRG_RXBUF`).
    pub features: Vec<String>,
    /// Into the switch.
    pub rx: Counters,
    /// Out of the switch.
    pub tx: Counters,
    /// Queues bound to cores.
    pub pins: Vec<Pinned>,
    /// Path of the vhost-user socket; `null` for other kinds.
    pub vhost_user: Option<PathBuf>,
    /// Who listens at that socket; `null` for other kinds.
    pub role: Option<Role>,
    /// The TAP or network device; `null` for vhost-user.
    pub device: Option<String>,
    /// Network namespace of the device; `null` where it is the daemon's own, and for other kinds.
    pub netns: Option<String>,
    /// Whether the TAP stays when the port goes.
    pub persist: bool,
    /// Whether the port may send only from its own addresses: as it was asked, or `null` where nobody asked.
    pub guard: Option<bool>,
    /// Whether it is guarded now: because somebody asked, or because shunt assigned it an address.
    pub guarded: bool,
    /// Addresses that shunt has assigned behind it, as long as the guard lets them through.
    pub leased_address: Vec<Ipv4Addr>,
    /// IP addresses and networks that it was allowed to send from, beside those that shunt assigned.
    pub allow_address: Vec<IpNet>,
    /// Bits per second that may reach whoever is behind it; `null`: no limit.
    pub ingress_rate: Option<u64>,
    /// Bits of them that may come at once after a pause; `null` without a limit.
    pub ingress_burst: Option<u64>,
    /// Bits per second that may come from there; `null`: no limit.
    pub egress_rate: Option<u64>,
    /// Bits of them that may come at once after a pause; `null` without a limit.
    pub egress_burst: Option<u64>,
}
