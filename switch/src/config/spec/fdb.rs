//! Static entries of forwarding databases.
#![forbid(unsafe_code)]

use super::{Invalid, Mac, Name, mac, name, vlan};
use crate::control::api;

/// A static entry to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdbSpec {
    /// The bridge.
    pub bridge: Name,
    /// The address, a unicast one.
    pub mac: Mac,
    /// The port behind which it is.
    pub port: Name,
    /// VLAN identifier, 1 to 4094, or 0 for untagged.
    pub vlan: u16,
}

impl TryFrom<&api::FdbAdd> for FdbSpec {
    type Error = Invalid;

    fn try_from(asked: &api::FdbAdd) -> Result<Self, Invalid> {
        Ok(Self {
            bridge: name("bridge", &asked.bridge)?,
            mac: mac("mac", &asked.mac)?,
            port: name("port", &asked.port)?,
            vlan: vlan(asked.vlan)?,
        })
    }
}
