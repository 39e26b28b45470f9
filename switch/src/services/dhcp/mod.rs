//! A DHCPv4 server for the networks behind the switch's interfaces (RFC 2131, 2132, 3396, 3442, 6842).
//!
//! [`message`] knows the bytes, [`leases`] who has which address, [`Server`] the protocol, [`store`] keeps leases over a
//! restart. The server is authoritative for its network, as lxc-net's dnsmasq is: whoever asks for an address that it
//! cannot have is told so. It serves stations that are on the interface's own network; relayed requests are refused.
//!
//! What one port may take is bounded, since a guest can make up as many clients as it likes: [`PER_PORT`] addresses
//! of a network where nothing else is configured, so that it takes eight hostile guests, not one, to empty lxc-net's
//! range.
#![forbid(unsafe_code)]

pub mod leases;
pub mod message;
mod outcome;
mod server;
pub mod store;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::packet::ethernet::Mac;
use crate::refusal::Refusal;

pub use outcome::{Answer, Change, Counters, Effects, Event, Listing, Origin, Outcome, Silence};
pub use server::Server;

/// Seconds for which an address is given where nothing else is configured; dnsmasq's default.
pub const LEASE_DEFAULT: u32 = 3600;
/// Shortest lease, in seconds; a client that asks for less gets this.
pub const LEASE_MIN: u32 = 60;
/// Addresses that stations behind one port may have or be offered, where nothing else is configured.
pub const PER_PORT: u32 = 32;
/// Most addresses that a server keeps account of, whatever its range.
pub const LEASES_MAX: usize = 65_536;
/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

/// What a server gives on one interface. [`Config::check`] tells people what contradicts itself in it; whatever it
/// says, no address is given twice and none that is no station's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interface's address, by which clients know the server, with the network that addresses are given in.
    pub server: Ipv4Net,
    /// First and last address to give away. `None` serves reservations only.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Seconds for which an address is given, [`LEASE_MIN`] at least.
    pub lease: u32,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 26, in bytes.
    pub mtu: Option<u16>,
    /// Option 121, without the default route, which is added where there is a router: RFC 3442 has clients ignore
    /// option 3 beside option 121.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// Addresses that belong to certain stations, in the range or not.
    pub reservations: Vec<Reservation>,
    /// Further addresses of the network that must not be given away: the interface's other addresses.
    pub own: Vec<Ipv4Addr>,
    /// Addresses that stations behind one port may have or be offered.
    pub per_port: u32,
}

/// An address that belongs to a station.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The station, by the address of its Ethernet device.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Option 12: the name that it is told.
    pub hostname: Option<String>,
    /// What it alone is told in the place of the network's settings; set for NICs of containers.
    pub told: Option<Told>,
}

/// What a station is told in the place of its network's MTU, gateway and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Option 26; `None`: the network's.
    pub mtu: Option<u16>,
    /// Option 121; a gateway of 0.0.0.0 is for what is on the link (RFC 3442). The default route's is option 3, too.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

impl Config {
    /// A server with usual settings: an hour's lease, itself as the router, no name server.
    pub fn new(server: Ipv4Net, range: Option<(Ipv4Addr, Ipv4Addr)>) -> Self {
        Self {
            server,
            range,
            lease: LEASE_DEFAULT,
            router: Some(server.addr()),
            dns: Vec::new(),
            domain: None,
            mtu: None,
            routes: Vec::new(),
            reservations: Vec::new(),
            own: Vec::new(),
            per_port: PER_PORT,
        }
    }

    /// Refuses what contradicts itself. `interface` is the name for the message.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, interface: &str) -> Result<(), Refusal> {
        let network = self.server.trunc();
        if let Some((first, last)) = self.range {
            if last < first {
                return Err(Refusal::new(format!(
                    "range {first}-{last} ends before it begins: write the lower first"
                )));
            }
            if let Some(end) = [first, last].into_iter().find(|&end| !self.is_station(end)) {
                return Err(Refusal::new(format!(
                    "range {first}-{last}: {end} is no station's address in network {network} of interface {interface}"
                )));
            }
            let inside = |address: &&Ipv4Addr| (first..=last).contains(*address);
            if let Some(own) = std::iter::once(&self.server.addr()).chain(&self.own).find(inside) {
                return Err(Refusal::new(format!(
                    "range {first}-{last} includes {own}, which is interface {interface}'s own: leave it out"
                )));
            }
        }
        if self.lease < LEASE_MIN {
            return Err(Refusal::new(format!(
                "lease {} is too short: it must be {LEASE_MIN} seconds or more",
                self.lease
            )));
        }
        let (mut by_mac, mut by_address) = (HashMap::new(), HashMap::new());
        for Reservation { mac, address, .. } in &self.reservations {
            if !self.is_station(*address) {
                return Err(Refusal::new(format!(
                    "{address}, reserved for {mac}, is no station's address in network {network} of interface {interface}"
                )));
            }
            if *address == self.server.addr() || self.own.contains(address) {
                return Err(Refusal::new(format!(
                    "{address}, reserved for {mac}, is interface {interface}'s own: choose another"
                )));
            }
            if let Some(other) = by_mac.insert(*mac, *address) {
                return Err(Refusal::new(format!(
                    "{mac} has {other} of interface {interface} reserved already: unreserve it first"
                )));
            }
            if let Some(other) = by_address.insert(*address, *mac) {
                return Err(Refusal::new(format!(
                    "{address} of interface {interface} is reserved for {other} already: choose another"
                )));
            }
        }
        let room = usize::from(u8::MAX);
        if self.dns.len() * 4 > room {
            return Err(Refusal::new(format!(
                "dns: {} servers do not fit an option: at most 63",
                self.dns.len()
            )));
        }
        if self.domain.as_ref().is_some_and(|domain| domain.len() > room) {
            return Err(Refusal::new(format!("domain of interface {interface} is longer than {room} bytes")));
        }
        let routes = self.classless_routes().len();
        if routes > room {
            return Err(Refusal::new(format!(
                "route: the {} routes of interface {interface} take {routes} bytes, but an option holds {room}",
                self.routes.len()
            )));
        }
        for Reservation { mac, told, .. } in &self.reservations {
            let Some(Told { routes, .. }) = told else { continue };
            let bytes = classless(routes.iter().copied()).len();
            if bytes > room {
                let count = routes.len();
                return Err(Refusal::new(format!(
                    "the {count} routes of {mac} take {bytes} bytes, but an option of DHCP holds {room}"
                )));
            }
        }
        Ok(())
    }

    /// Whether a station of the network can have this address.
    pub fn is_station(&self, address: Ipv4Addr) -> bool {
        let net = &self.server;
        let edge = net.prefix_len() < 31 && (address == net.network() || address == net.broadcast());
        net.contains(&address) && !edge
    }

    /// Addresses of the range; 0 without one.
    pub fn capacity(&self) -> u64 {
        self.range.map_or(0, |(first, last)| u64::from(u32::from(last).saturating_sub(u32::from(first))) + 1)
    }

    /// Whether an address may be given to somebody for whom it is not reserved; `reserved` are those that are.
    fn is_dynamic(&self, address: Ipv4Addr, reserved: &HashMap<Ipv4Addr, Mac>) -> bool {
        self.range.is_some_and(|(first, last)| (first..=last).contains(&address))
            && self.is_station(address)
            && address != self.server.addr()
            && Some(address) != self.router
            && !self.own.contains(&address)
            && !reserved.contains_key(&address)
    }

    /// Option 121's bytes (RFC 3442): for each route prefix length, as many bytes of the prefix as count, gateway.
    fn classless_routes(&self) -> Vec<u8> {
        if self.routes.is_empty() {
            return Vec::new();
        }
        let given = self.routes.iter().any(|(prefix, _)| prefix.prefix_len() == 0);
        let default = self.router.filter(|_| !given).map(|router| (Ipv4Net::default(), router));
        classless(self.routes.iter().copied().chain(default))
    }
}

fn classless(routes: impl Iterator<Item = (Ipv4Net, Ipv4Addr)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (prefix, gateway) in routes {
        bytes.push(prefix.prefix_len());
        bytes.extend(&prefix.network().octets()[..usize::from(prefix.prefix_len()).div_ceil(8)]);
        bytes.extend(gateway.octets());
    }
    bytes
}

impl Told {
    /// Option 3's gateway.
    fn router(&self) -> Option<Ipv4Addr> {
        self.routes.iter().find(|(prefix, _)| prefix.prefix_len() == 0).map(|(_, gateway)| *gateway)
    }

    /// Option 121's bytes.
    fn routes(&self) -> Vec<u8> {
        classless(self.routes.iter().copied())
    }
}
