//! Interfaces: the switch's own presence on a bridge.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::State;
use crate::config::{Mac, Name};

parameters! {
    /// Makes an interface. Also an `[[interface]]` table of the configuration file.
    pub struct InterfaceAdd {
        /// Its name.
        pub name: String,
        /// The bridge on which it is.
        pub bridge: String,
        /// Its addresses, each with the length of its network's prefix: `10.0.3.1/24`, `fd00::1/64`.
        #[serde(default)]
        pub address: Vec<String>,
        /// VLAN identifier, 1 to 4094; 0 or not given means untagged.
        pub vlan: Option<i64>,
        /// Unicast MAC address; one of its own is made if not given.
        pub mac: Option<String>,
        /// MTU in bytes, 68 to 9600; 1500 if not given.
        pub mtu: Option<i64>,
        /// Whether TCP connections that leave by it are told of no larger segments than its MTU carries.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub clamp_mss: bool,
        /// Whether it is up from the start; it is if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub up: Option<bool>,
    }

    /// Removes an interface, and the routes that lead through it.
    pub struct InterfaceDel {
        /// Its name.
        pub name: String,
    }

    /// All interfaces, by name.
    pub struct InterfaceList {}

    /// One interface.
    pub struct InterfaceShow {
        /// Its name.
        pub name: String,
    }

    /// Changes an interface; at least one of the fields beside the name must be given.
    pub struct InterfaceSet {
        /// Its name.
        pub name: String,
        /// Addresses to add.
        #[serde(default)]
        pub add_address: Vec<String>,
        /// Addresses to remove.
        #[serde(default)]
        pub del_address: Vec<String>,
        /// Unicast MAC address.
        pub mac: Option<String>,
        /// MTU in bytes.
        pub mtu: Option<i64>,
        /// Whether it is to be up; the routes of one that is down give way.
        pub up: Option<bool>,
        /// Whether TCP connections that leave by it are told of no larger segments than its MTU carries.
        pub clamp_mss: Option<bool>,
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: Name,
    /// The bridge on which it is.
    pub bridge: Name,
    /// VLAN identifier; 0 for untagged.
    pub vlan: u16,
    /// Its MAC address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u16,
    /// Its addresses, in the order in which they came; the first of a family speaks for the switch.
    pub address: Vec<IpNet>,
    /// Whether it is up: it was not set down, and its bridge has a port that is up.
    pub state: State,
    /// Why it is down; `null` while it is up.
    pub reason: Option<String>,
    /// Whether TCP connections that leave by it are told of no larger segments than its MTU carries.
    pub clamp_mss: bool,
}
