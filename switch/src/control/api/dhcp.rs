//! Addresses for guests: DHCP, and router advertisements.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::config::{ClasslessRoute, Mac, Name};
use crate::services::dhcp::Counters;

parameters! {
    /// Serves DHCP or router advertisements on an interface, or changes how; what is not given stays, or has its default
    /// if it is new. Also a `[[dhcp]]` table of the configuration file.
    pub struct DhcpSet {
        /// The interface.
        pub interface: String,
        /// IPv4 addresses to give away: `FIRST-LAST`, in a network of the interface. Needed for DHCP.
        pub range: Option<String>,
        /// Seconds for which an address is given, 60 to 4,294,967,294; 3600 if not given.
        pub lease: Option<i64>,
        /// The gateway that guests are told; the interface's own address if not given, `none` for none.
        pub router: Option<String>,
        /// Name servers that guests are told, IPv4 (DHCP) and IPv6 (router advertisements); an empty list for none.
        pub dns: Option<Vec<String>>,
        /// Name servers that guests are told from now on, too, beside those of before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub add_dns: Vec<String>,
        /// Name servers that guests are told no longer.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub del_dns: Vec<String>,
        /// The domain that guests are told; an empty text for none.
        pub domain: Option<String>,
        /// The MTU that guests are told, 68 to 9600; the interface's own if not given.
        pub mtu: Option<i64>,
        /// Routes that guests are told (option 121), each as `PREFIX=GATEWAY`; an empty list for none.
        pub route: Option<Vec<String>>,
        /// Whether routers are advertised for the interface's IPv6 networks (SLAAC).
        pub ra: Option<bool>,
        /// Most addresses that guests behind one port may have, 1 to 65,536; 32 if not given.
        pub per_port: Option<i64>,
        /// Addresses that belong to certain guests, beside those that were reserved before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub reserve: Vec<ReserveAdd>,
    }

    /// An address that belongs to a guest.
    pub struct ReserveAdd {
        /// The guest's MAC address.
        pub mac: String,
        /// The IPv4 address, in a network of the interface, in the range or not.
        pub address: String,
        /// The name that the guest is told.
        pub hostname: Option<String>,
    }

    /// Ends DHCP and router advertisements on an interface, and forgets its reservations and leases.
    pub struct DhcpDel {
        /// The interface.
        pub interface: String,
    }

    /// How an interface serves guests.
    pub struct DhcpShow {
        /// The interface.
        pub interface: String,
    }

    /// Reserves an address for a guest.
    pub struct DhcpReserve {
        /// The interface.
        pub interface: String,
        /// The guest's MAC address.
        pub mac: String,
        /// The IPv4 address.
        pub address: String,
        /// The name that the guest is told.
        pub hostname: Option<String>,
    }

    /// Gives a reservation up.
    pub struct DhcpUnreserve {
        /// The interface.
        pub interface: String,
        /// The guest's MAC address.
        pub mac: String,
    }

    /// Who has which address.
    pub struct DhcpLeases {
        /// On this interface only.
        pub interface: Option<String>,
    }

    /// Takes a lease away; the guest is not told.
    pub struct DhcpRelease {
        /// The interface.
        pub interface: String,
        /// The address.
        pub address: String,
    }
}

/// How an interface serves guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dhcp {
    /// The interface.
    pub interface: Name,
    /// Addresses to give away; `null` where there are only router advertisements.
    pub range: Option<String>,
    /// Seconds for which an address is given.
    pub lease: u32,
    /// The gateway that guests are told; `null` for none.
    pub router: Option<Ipv4Addr>,
    /// Name servers that guests are told.
    pub dns: Vec<IpAddr>,
    /// The domain that guests are told.
    pub domain: Option<String>,
    /// The MTU that guests are told.
    pub mtu: u16,
    /// Routes that guests are told.
    pub route: Vec<ClasslessRoute>,
    /// Whether routers are advertised.
    pub ra: bool,
    /// Reserved addresses, by address.
    pub reservations: Vec<Reservation>,
    /// Addresses that can be given away.
    pub capacity: u64,
    /// Addresses that are given away now.
    pub leases: u64,
    /// Most addresses that guests behind one port may have.
    pub per_port: u32,
    /// How often what happened since the server was started.
    pub counters: DhcpCounters,
}

/// How often what happened at a DHCP server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpCounters {
    /// Requests read, of any kind.
    pub requests: u64,
    /// Addresses offered.
    pub offers: u64,
    /// Requests granted.
    pub acks: u64,
    /// Requests refused.
    pub naks: u64,
    /// Addresses that turned out to be in use, found out here or by the guest.
    pub conflicts: u64,
    /// Messages that are none.
    pub malformed: u64,
    /// Messages through a relay, or in another station's name.
    pub refused: u64,
    /// Requests unanswered because no address was left.
    pub exhausted: u64,
    /// Requests unanswered because the port has its share.
    pub port_limit: u64,
}

impl From<Counters> for DhcpCounters {
    fn from(counters: Counters) -> Self {
        let Counters { requests, offers, acks, naks, conflicts, malformed, refused, exhausted, port_limit } =
            counters;
        Self { requests, offers, acks, naks, conflicts, malformed, refused, exhausted, port_limit }
    }
}

/// A reserved address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The guest's MAC address.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// The name that the guest is told.
    pub hostname: Option<String>,
}

/// An address that a guest has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The interface.
    pub interface: Name,
    /// The address.
    pub address: Ipv4Addr,
    /// The guest's MAC address; `null` for an address that somebody else was found to use.
    pub mac: Option<Mac>,
    /// The name that the guest gave, or was given.
    pub hostname: Option<String>,
    /// What it is: `offered`, `bound`, `expired` or `declined`.
    pub state: String,
    /// Seconds until it expires.
    pub expires_seconds: u64,
}
