//! Neighbours.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::{Invalid, Mac, Name, host, mac, name};
use crate::control::api;

/// A permanent entry to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourSpec {
    /// The interface.
    pub interface: Name,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
}

impl TryFrom<&api::NeighbourAdd> for NeighbourSpec {
    type Error = Invalid;

    fn try_from(asked: &api::NeighbourAdd) -> Result<Self, Invalid> {
        Ok(Self {
            interface: name("interface", &asked.interface)?,
            address: host("address", &asked.address)?,
            mac: mac("mac", &asked.mac)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_checked() {
        let made = |interface: &str, address: &str, mac: &str| {
            let asked =
                api::NeighbourAdd { interface: interface.into(), address: address.into(), mac: mac.into() };
            NeighbourSpec::try_from(&asked).map_err(|invalid| invalid.field)
        };
        assert!(made("gw", "10.0.3.5", "52:54:00:00:00:01").is_ok());
        assert_eq!(made("", "10.0.3.5", "52:54:00:00:00:01"), Err("interface"));
        assert_eq!(made("gw", "224.0.0.5", "52:54:00:00:00:01"), Err("address"));
        assert_eq!(made("gw", "10.0.3.5", "01:00:5e:00:00:05"), Err("mac"));
    }
}
