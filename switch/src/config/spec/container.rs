//! Secure containers and their NICs: the field rules of openEuler's `kata-network`.
//!
//! Where its documentation contradicts itself: a `vhostUserSocket` is an absolute path, as in its example, although its
//! rule allows no `/`; and of the 128 bytes that it allows the kernel takes 107 (unix(7)).
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::super::name::Name;
use super::{
    DEVICE_QUEUES_MAX, Invalid, MTU_MAX, MTU_MIN, Mac, Role, VHOST_PAIRS_MAX, host, interface_address, mac,
    name, number, socket_path,
};
use crate::control::api;

/// Most characters of the name of a container.
pub const CONTAINER_ID_MAX: usize = 128;
/// Most addresses of a NIC.
pub const NIC_ADDRESSES_MAX: usize = 16;
/// The bridge of a container for which none is named.
pub const CONTAINER_BRIDGE: &str = "shunt0";
/// The port on which Kata's agent listens inside the guest.
pub const AGENT_PORT: u32 = 1024;

/// The name of a container: 1 to [`CONTAINER_ID_MAX`] letters, digits, `_`, `-`, `.`, beginning with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Checks the name of a container, or its beginning, in `field`.
///
/// # Errors
/// It breaks the rule.
pub fn container_id(field: &'static str, text: &str) -> Result<ContainerId, Invalid> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let begins = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if begins && text.len() <= CONTAINER_ID_MAX && text.bytes().all(allowed) {
        return Ok(ContainerId(text.to_owned()));
    }
    let shown: String = text.chars().take(CONTAINER_ID_MAX).collect();
    let rule = format!(
        "it must be 1 to {CONTAINER_ID_MAX} characters of letters, digits, \"_\", \"-\" and \".\", beginning with a letter or a digit"
    );
    Err(Invalid::new(field, format!("{field} {shown:?} is no container's ID: {rule}")))
}

/// Where an agent that speaks Kata's protocol is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAddress {
    /// A Unix socket of its own: `PATH`, or `unix:PATH`.
    Unix(PathBuf),
    /// A Unix socket behind which a machine monitor passes connections on to a port of the guest: `hvsock:PATH[:PORT]`.
    Hybrid(PathBuf, u32),
    /// A port of a guest: `vsock:CID[:PORT]`.
    Vsock(u32, u32),
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Hybrid(path, port) => write!(f, "hvsock:{}:{port}", path.display()),
            Self::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl FromStr for AgentAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = || {
            let rule = "it must be PATH, unix:PATH, hvsock:PATH[:PORT] or vsock:CID[:PORT]";
            Invalid::new("agent", format!("agent {text:?} is no address of an agent: {rule}"))
        };
        let port = |text: &str| text.parse::<u32>().map_err(|_| refuse());
        let (kind, rest) = match text.split_once(':') {
            _ if text.starts_with('/') => return Ok(Self::Unix(socket_path("agent", text)?)),
            Some((kind, rest)) => (kind, rest.strip_prefix("//").unwrap_or(rest)),
            None => return Err(refuse()),
        };
        match kind {
            "unix" => Ok(Self::Unix(socket_path("agent", rest)?)),
            "hvsock" => match rest.rsplit_once(':') {
                Some((path, digits)) => Ok(Self::Hybrid(socket_path("agent", path)?, port(digits)?)),
                None => Ok(Self::Hybrid(socket_path("agent", rest)?, AGENT_PORT)),
            },
            "vsock" => match rest.split_once(':') {
                Some((cid, digits)) => Ok(Self::Vsock(port(cid)?, port(digits)?)),
                None => Ok(Self::Vsock(port(rest)?, AGENT_PORT)),
            },
            _ => Err(refuse()),
        }
    }
}

/// How QEMU gets at a TAP device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TapOpen {
    /// shunt opens it and passes the descriptors on: QEMU needs no privilege and may live in another namespace.
    #[default]
    Descriptor,
    /// QEMU opens it by its name.
    Name,
}

impl TapOpen {
    /// The word of command line, configuration and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::Name => "name",
        }
    }
}

/// A secure container: a QEMU, and the bridge that its NICs join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub id: ContainerId,
    /// The socket of its QEMU's monitor (QMP).
    pub qmp: Option<PathBuf>,
    /// The bridge of its NICs.
    pub bridge: Name,
    /// Which side of vhost-user sockets shunt is.
    pub role: Role,
    /// How its QEMU gets at TAP devices.
    pub tap: TapOpen,
    /// The agent inside the guest.
    pub agent: Option<AgentAddress>,
    /// The NICs that it has from the start: their ports are made, but nothing is plugged.
    pub nics: Vec<NicSpec>,
    /// Its routes.
    pub routes: Vec<ContainerRoute>,
}

/// A NIC of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// Its name on the host, unique there: that of the TAP device, and of shunt's port.
    pub device: Name,
    /// Its name in the container, unique there.
    pub name: Name,
    /// Its addresses with their networks; the first is the one that Kata speaks of.
    pub addresses: Vec<IpNet>,
    /// Its address on the wire.
    pub mac: Mac,
    /// Its MTU, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u16,
    /// The vhost-user socket; `None`: a TAP device.
    pub socket: Option<PathBuf>,
    /// Queue pairs as asked for, 0 for one pair without multiqueue.
    pub queues: u16,
    /// Where it is plugged in, as Kata writes it (`BRIDGE-SLOT.FUNCTION/SLOT`), if shunt knows.
    pub pci: Option<String>,
}

impl NicSpec {
    /// Queue pairs that it has.
    pub fn pairs(&self) -> u16 {
        self.queues.max(1)
    }

    /// The NIC as Kata prints it.
    pub fn view(&self) -> api::KataInterface {
        api::KataInterface {
            device: Some(self.device.to_string()),
            name: Some(self.name.to_string()),
            addresses: self.addresses.iter().map(address_view).collect(),
            mtu: Some(self.mtu.into()),
            mac: Some(self.mac.to_string()),
            pci: self.pci.clone(),
            link_type: None,
            socket: self.socket.as_ref().map(|path| path.display().to_string()),
            queues: Some(i64::from(self.queues)).filter(|&queues| queues > 0),
            unknown: None,
        }
    }
}

fn address_view(network: &IpNet) -> api::KataAddress {
    // AF_INET and AF_INET6 of Linux.
    let family = if network.addr().is_ipv4() { 2 } else { 10 };
    api::KataAddress {
        family,
        address: network.addr().to_string(),
        mask: network.prefix_len().to_string(),
        unknown: None,
    }
}

/// Where a route of a container leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// As it was written.
    pub text: String,
    /// The network; `None` for `default` without a gateway that would say of which family.
    pub network: Option<IpNet>,
}

/// A route inside a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRoute {
    /// Where it leads to.
    pub dest: Destination,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The container's NIC, or `lo`.
    pub device: Name,
}

impl ContainerRoute {
    /// The route as Kata prints it.
    pub fn view(&self) -> api::KataRoute {
        api::KataRoute {
            dest: Some(self.dest.text.clone()),
            gateway: self.gateway.map(|gateway| gateway.to_string()),
            device: Some(self.device.to_string()),
            unknown: None,
        }
    }

    /// Whether it stays inside the container.
    pub fn is_local(&self) -> bool {
        self.device == "lo"
    }
}

/// Which routes are meant: what is not given matches anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRouteMatch {
    /// Where they lead to.
    pub dest: Destination,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The NIC.
    pub device: Option<Name>,
}

impl ContainerRouteMatch {
    /// Whether a route is meant.
    pub fn fits(&self, route: &ContainerRoute) -> bool {
        let dest = match (&self.dest.network, &route.dest.network) {
            (Some(asked), Some(network)) => asked == network,
            // `default` of either family.
            (None, Some(network)) => network.prefix_len() == 0,
            (_, None) => false,
        };
        dest && self.gateway.is_none_or(|gateway| route.gateway == Some(gateway))
            && self.device.is_none_or(|device| route.device == device)
    }
}

/// Refuses a key that nobody knows.
fn known(what: &'static str, unknown: Option<&String>, keys: &str) -> Result<(), Invalid> {
    match unknown {
        None => Ok(()),
        Some(key) => {
            let shown: String = key.chars().take(40).collect();
            Err(Invalid::new(what, format!("field {shown:?} of the {what} is unknown: there are {keys}")))
        }
    }
}

fn needed<'a>(field: &'static str, value: Option<&'a String>, what: &str) -> Result<&'a str, Invalid> {
    match value.map(String::as_str) {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(Invalid::new(field, format!("{field} is missing: {what}"))),
    }
}

/// Checks an address of a NIC.
fn nic_address(asked: &api::KataAddress) -> Result<IpNet, Invalid> {
    const FIELD: &str = "IPAddresses";
    known("address", asked.unknown.as_ref(), "address, mask and Family")
        .map_err(|wrong| Invalid { field: FIELD, ..wrong })?;
    let address: IpAddr = asked.address.parse().map_err(|_| {
        Invalid::new(
            FIELD,
            format!("address {:?} is no IP address: it must be one such as 172.16.0.3", asked.address),
        )
    })?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let digits =
        !asked.mask.is_empty() && asked.mask.len() <= 3 && asked.mask.bytes().all(|b| b.is_ascii_digit());
    let mask = asked.mask.parse::<u8>().ok().filter(|mask| digits && (1..=most).contains(mask)).ok_or_else(
        || {
            let rule = format!("it must be the length of a prefix, 1 to {most}, such as \"16\"");
            Invalid::new(FIELD, format!("mask {:?} of address {address} is no mask: {rule}", asked.mask))
        },
    )?;
    let family = if address.is_ipv4() { 2 } else { 10 };
    if asked.family != 0 && asked.family != family {
        let given = asked.family;
        let rule = format!("it must be {family} (or 0, or left out)");
        return Err(Invalid::new(FIELD, format!("Family {given} is not that of address {address}: {rule}")));
    }
    interface_address("address", &format!("{address}/{mask}"))
        .map_err(|wrong| Invalid { field: FIELD, ..wrong })
}

/// Checks the path of a vhost-user socket.
fn vhost_socket(text: &str) -> Result<PathBuf, Invalid> {
    const FIELD: &str = "vhostUserSocket";
    let path = socket_path(FIELD, text)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let fine = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(allowed);
    if !text[1..].split('/').all(fine) {
        let rule = "each part of the path must be of letters, digits, \"_\", \"-\" and \".\"";
        return Err(Invalid::new(FIELD, format!("{FIELD} {text:?} is no path for a socket: {rule}")));
    }
    Ok(path)
}

impl TryFrom<&api::KataInterface> for NicSpec {
    type Error = Invalid;

    fn try_from(asked: &api::KataInterface) -> Result<Self, Invalid> {
        let keys = "device, name, IPAddresses, hwAddr, mtu, vhostUserSocket and queues";
        known("NIC", asked.unknown.as_ref(), keys)?;
        let device = name("device", needed("device", asked.device.as_ref(), "name the host's NIC")?)?;
        let inside = name("name", needed("name", asked.name.as_ref(), "name the NIC in the container")?)?;
        if inside == "lo" {
            return Err(Invalid::new("name", "name \"lo\" is that of the loopback device: choose another"));
        }
        let address = needed("hwAddr", asked.mac.as_ref(), "give the NIC's MAC address")?;
        let mac = mac("hwAddr", address)?;
        let mtu = asked.mtu.ok_or_else(|| {
            Invalid::new("mtu", format!("mtu is missing: give one of {MTU_MIN} to {MTU_MAX}"))
        })?;
        let mtu = number("mtu", mtu, MTU_MIN.into(), MTU_MAX.into())?;
        if asked.addresses.len() > NIC_ADDRESSES_MAX {
            let count = asked.addresses.len();
            let rule = format!("at most {NIC_ADDRESSES_MAX} are taken");
            return Err(Invalid::new("IPAddresses", format!("IPAddresses: {count} are too many: {rule}")));
        }
        let mut addresses: Vec<IpNet> = Vec::new();
        for one in &asked.addresses {
            let one = nic_address(one)?;
            if addresses.iter().any(|other| other.addr() == one.addr()) {
                let message = format!("IPAddresses: {} is there twice: once is enough", one.addr());
                return Err(Invalid::new("IPAddresses", message));
            }
            addresses.push(one);
        }
        let socket = asked.socket.as_deref().filter(|path| !path.is_empty()).map(vhost_socket).transpose()?;
        let most = if socket.is_some() { VHOST_PAIRS_MAX } else { DEVICE_QUEUES_MAX };
        let queues = asked.queues.map_or(Ok(0), |value| number("queues", value, 0, most.into()))?;
        let pci = asked.pci.as_deref().filter(|pci| !pci.is_empty()).map(pci_address).transpose()?;
        Ok(Self { device, name: inside, addresses, mac, mtu, socket, queues, pci })
    }
}

/// Checks where a NIC is plugged in.
fn pci_address(text: &str) -> Result<String, Invalid> {
    let allowed = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b'/');
    if text.len() <= 64 && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(64).collect();
    let rule = "it must be slots such as 01.0/00";
    Err(Invalid::new("pciAddr", format!("pciAddr {shown:?} is no place of a PCI device: {rule}")))
}

/// Reads where a route leads to; a gateway says of which family `default` is.
fn destination(text: &str, gateway: Option<IpAddr>) -> Result<Destination, Invalid> {
    let kept = |network| Ok(Destination { text: text.to_owned(), network });
    if text == "default" {
        let all = |gateway: IpAddr| if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        return kept(gateway.and_then(|gateway| all(gateway).parse().ok()));
    }
    let network = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().ok().map(|network| network.trunc()),
    };
    match network {
        Some(network) => kept(Some(network)),
        None => {
            let shown: String = text.chars().take(64).collect();
            let rule = "it must be IP/MASK such as 172.16.0.0/16, IP, or \"default\"";
            Err(Invalid::new("dest", format!("dest {shown:?} leads nowhere: {rule}")))
        }
    }
}

fn gateway(asked: &api::KataRoute) -> Result<Option<IpAddr>, Invalid> {
    asked.gateway.as_deref().filter(|text| !text.is_empty()).map(|text| host("gateway", text)).transpose()
}

const ROUTE_KEYS: &str = "dest, gateway and device";

impl TryFrom<&api::KataRoute> for ContainerRoute {
    type Error = Invalid;

    fn try_from(asked: &api::KataRoute) -> Result<Self, Invalid> {
        known("route", asked.unknown.as_ref(), ROUTE_KEYS)?;
        let dest = needed("dest", asked.dest.as_ref(), "give IP/MASK, IP or \"default\"")?;
        let gateway = gateway(asked)?;
        let dest = destination(dest, gateway)?;
        let Some(network) = dest.network else {
            return Err(Invalid::new("gateway", "gateway is missing: \"default\" needs one"));
        };
        if let Some(gateway) = gateway
            && gateway.is_ipv4() != network.addr().is_ipv4()
        {
            let message = format!("gateway {gateway} is of another family than dest {}", dest.text);
            return Err(Invalid::new("gateway", message));
        }
        if network.prefix_len() == 0 && gateway.is_none() {
            let message = format!("gateway is missing: dest {} needs one as \"default\" does", dest.text);
            return Err(Invalid::new("gateway", message));
        }
        let device = name("device", needed("device", asked.device.as_ref(), "name a NIC of the container")?)?;
        if device == "lo" && gateway.is_some() {
            return Err(Invalid::new("gateway", "gateway cannot be reached through lo: leave it out"));
        }
        Ok(Self { dest, gateway, device })
    }
}

impl TryFrom<&api::KataRoute> for ContainerRouteMatch {
    type Error = Invalid;

    fn try_from(asked: &api::KataRoute) -> Result<Self, Invalid> {
        known("route", asked.unknown.as_ref(), ROUTE_KEYS)?;
        let dest = needed("dest", asked.dest.as_ref(), "give IP/MASK, IP or \"default\"")?;
        let gateway = gateway(asked)?;
        let device = asked.device.as_deref().filter(|device| !device.is_empty());
        let device = device.map(|text| name("device", text)).transpose()?;
        Ok(Self { dest: destination(dest, gateway)?, gateway, device })
    }
}

impl TryFrom<&api::ContainerAdd> for ContainerSpec {
    type Error = Invalid;

    fn try_from(asked: &api::ContainerAdd) -> Result<Self, Invalid> {
        let role = match asked.role.as_deref() {
            None | Some("server") => Role::Server,
            Some("client") => Role::Client,
            Some(other) => {
                let rule = "it must be \"server\" (shunt listens) or \"client\" (QEMU listens)";
                return Err(Invalid::new("role", format!("role {other:?} is unknown: {rule}")));
            }
        };
        let tap = match asked.tap.as_deref() {
            None | Some("descriptor") => TapOpen::Descriptor,
            Some("name") => TapOpen::Name,
            Some(other) => {
                let rule = "it must be \"descriptor\" (shunt opens the device) or \"name\" (QEMU does)";
                return Err(Invalid::new("tap", format!("tap {other:?} is unknown: {rule}")));
            }
        };
        let mut nics: Vec<NicSpec> = Vec::new();
        for nic in &asked.nic {
            let nic = NicSpec::try_from(nic)?;
            if nics.iter().any(|other| other.name == nic.name || other.device == nic.device) {
                let message = format!("nic {:?} (device {:?}) is there twice", nic.name, nic.device);
                return Err(Invalid::new("nic", message));
            }
            nics.push(nic);
        }
        Ok(Self {
            id: container_id("id", &asked.id)?,
            qmp: asked.qmp.as_deref().map(|path| socket_path("qmp", path)).transpose()?,
            bridge: name("bridge", asked.bridge.as_deref().unwrap_or(CONTAINER_BRIDGE))?,
            role,
            tap,
            agent: asked.agent.as_deref().map(str::parse).transpose()?,
            nics,
            routes: asked.route.iter().map(ContainerRoute::try_from).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
