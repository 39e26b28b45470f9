//! What is asked of the switch: plain descriptions whose every value was checked, a file per noun.
//!
//! A description is made from a request ([`crate::control::api`]), which is also what a table of the configuration file
//! holds. Whoever has a description need not look again; what depends on the state of the switch or of the machine (is
//! there such a bridge, such a device, may we) is for [`crate::switch`] to find out.
#![forbid(unsafe_code)]

mod address;
mod bridge;
mod check;
mod conntrack;
mod container;
mod dhcp;
mod fdb;
mod interface;
mod ipvs;
mod nat;
mod neighbour;
mod nic;
mod policy;
mod port;
mod protocol;
mod rate;
mod route;
mod worker;

use std::path::PathBuf;

use super::name::{NAME_RULE, Name};
use crate::packet::ethernet::Mac;
use crate::refusal::Refusal;

pub use address::{
    address_range, host, interface_address, is_host, port_list, port_range, prefix, range_len,
};
pub use bridge::{BridgeChange, BridgeSpec};
pub use check::check_view;
pub use conntrack::LimitChange;
pub use container::{
    AGENT_PORT, AgentAddress, CONTAINER_BRIDGE, CONTAINER_ID_MAX, ContainerId, ContainerRoute,
    ContainerRouteMatch, ContainerSpec, Destination, NIC_ADDRESSES_MAX, NicSpec, TapOpen, container_id,
};
pub use dhcp::{ClasslessRoute, DNS_MAX, DhcpChange, RANGE_MAX, reservation, v4};
pub use fdb::FdbSpec;
pub use interface::{ADDRESSES_MAX, InterfaceChange, InterfaceSpec, check_mtu};
pub use ipvs::{
    ENGINE, SCHEDULER, daemon_view, ipvs_setting, server_view, service_key, service_name, service_view,
    sync_role,
};
pub(crate) use ipvs::{SCHEDULERS, server_entry, service_entry};
pub use nat::{nat_id, nat_kind, nat_view};
pub use neighbour::NeighbourSpec;
pub use nic::NicPort;
pub use policy::{POLICY_ID_MAX, Place, PolicyChange, PolicySpec, policy_id, policy_view};
pub use port::{Attachment, PortChange, PortSpec, Role};
pub use protocol::{protocol, protocol_name};
pub use rate::{Limits, RATE_BURST_MAX, RATE_MAX, RATE_MIN, Rate, RateChange};
pub use route::{RouteKind, RouteMatch, RouteSpec};
pub use worker::{RebalanceChange, Rebalancing};

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
/// Smallest MTU of a link that carries IPv4 (RFC 791).
pub const MTU_MIN_IPV4: u16 = 68;
/// Smallest MTU of a link that carries IPv6 (RFC 8200, section 5).
pub const MTU_MIN_IPV6: u16 = 1280;
/// MTU of a guest's port and of an interface, where nothing else is said.
pub const MTU_DEFAULT: u16 = 1500;
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
    /// Says that `field` breaks a rule, in a message that names it.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: Refusal::new(message) }
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        invalid.message
    }
}

/// Checks a name in `field`.
pub fn name(field: &'static str, text: &str) -> Result<Name, Invalid> {
    text.parse().map_err(|_| Invalid::new(field, format!("{field} {text:?} is no valid name: {NAME_RULE}")))
}

/// Checks that `value` in `field` lies in `min` to `max`.
pub fn number<T: TryFrom<i64>>(field: &'static str, value: i64, min: u32, max: u32) -> Result<T, Invalid> {
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

/// Refuses a change that changes nothing.
fn something(changes: bool, what: &str, name: &str, fields: &str) -> Result<(), Invalid> {
    if changes {
        return Ok(());
    }
    Err(Invalid::new(
        "name",
        format!("nothing is to change at {what} {name:?}: give at least one of {fields}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlans_are_identifiers() {
        assert_eq!((vlan(None), vlan(Some(0)), vlan(Some(4094))), (Ok(0), Ok(0), Ok(4094)));
        assert!(vlan(Some(4095)).is_err() && vlan(Some(-1)).is_err());
    }
}
