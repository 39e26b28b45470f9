//! An interface: the switch's own presence on a bridge, as the packet path sees it.
//!
//! Immutable: a change makes a new one and publishes it with the tables. Addresses are in host byte order.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::Name;
use crate::packet::ethernet::Mac;
use crate::tables::BridgeTable;

pub use crate::members::MAX_INTERFACES;

/// An own address, and its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Own<A> {
    /// The address.
    pub address: A,
    /// Length of its network's prefix.
    pub prefix: u8,
}

impl Own<u32> {
    /// Whether `other` is in the address's network.
    #[inline]
    pub fn covers(self, other: u32) -> bool {
        self.prefix == 0 || (self.address ^ other) >> (32 - u32::from(self.prefix.min(32))) == 0
    }

    /// The address that means everybody in the network; networks of one or two addresses have none (RFC 3021).
    #[inline]
    pub fn broadcast(self) -> Option<u32> {
        (self.prefix <= 30).then(|| self.address | u32::MAX >> self.prefix)
    }
}

impl Own<u128> {
    /// Whether `other` is in the address's network.
    #[inline]
    pub fn covers(self, other: u128) -> bool {
        self.prefix == 0 || (self.address ^ other) >> (128 - u32::from(self.prefix.min(128))) == 0
    }
}

/// What an interface is made of.
#[derive(Clone)]
pub struct Parts {
    /// Its number, below [`MAX_INTERFACES`].
    pub index: u16,
    /// Its name.
    pub name: Name,
    /// The name of its bridge.
    pub bridge: Name,
    /// The bridge: who is where, and its ports.
    pub table: Arc<BridgeTable>,
    /// The VLAN that it is in; 0: untagged.
    pub vlan: u16,
    /// Its MAC address.
    pub mac: Mac,
    /// Most bytes of an IP packet that leaves by it.
    pub mtu: u16,
    /// Whether connections through it are told of no longer TCP segments than fit its MTU.
    pub clamp_mss: bool,
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: Vec<IpNet>,
    /// Whether packets may come and go.
    pub up: bool,
}

/// The interface.
pub struct Interface {
    /// Its number: a place in the tables, given again when the interface is gone.
    pub index: u16,
    /// Its name.
    pub name: Name,
    /// The name of its bridge.
    pub bridge: Name,
    /// The bridge: who is where, and its ports.
    pub table: Arc<BridgeTable>,
    /// The VLAN that it is in; 0: untagged.
    pub vlan: u16,
    /// Its MAC address.
    pub mac: Mac,
    /// Most bytes of an IP packet that leaves by it.
    pub mtu: u16,
    /// Whether connections through it are told of no longer TCP segments than fit its MTU.
    pub clamp_mss: bool,
    /// Whether packets may come and go.
    pub up: bool,
    /// `fe80::` and the interface identifier that Linux makes of the MAC address.
    pub link_local: u128,
    v4: Box<[Own<u32>]>,
    v6: Box<[Own<u128>]>,
    /// As given: the first of a family is the usual source.
    first_v4: Option<u32>,
    first_v6: Option<u128>,
}

impl Interface {
    /// An interface of these parts.
    pub fn new(parts: Parts) -> Self {
        let mut v4: Vec<_> = parts.addresses.iter().filter_map(own_v4).collect();
        let mut v6: Vec<_> = parts.addresses.iter().filter_map(own_v6).collect();
        let first_v4 = v4.first().map(|own| own.address);
        let first_v6 = v6.iter().map(|own| own.address).find(|address| !is_link_local_v6(*address));
        v4.sort_unstable();
        v6.sort_unstable();
        Self {
            index: parts.index,
            name: parts.name,
            bridge: parts.bridge,
            table: parts.table,
            vlan: parts.vlan,
            mac: parts.mac,
            mtu: parts.mtu,
            clamp_mss: parts.clamp_mss,
            up: parts.up,
            link_local: link_local(parts.mac),
            v4: v4.into_boxed_slice(),
            v6: v6.into_boxed_slice(),
            first_v4,
            first_v6,
        }
    }

    /// Its IPv4 addresses, sorted.
    #[inline]
    pub fn v4(&self) -> &[Own<u32>] {
        &self.v4
    }

    /// Its IPv6 addresses, sorted, without the link-local one.
    #[inline]
    pub fn v6(&self) -> &[Own<u128>] {
        &self.v6
    }

    /// Whether `address` is one of its own.
    #[inline]
    pub fn owns_v4(&self, address: u32) -> bool {
        self.v4.binary_search_by_key(&address, |own| own.address).is_ok()
    }

    /// Whether `address` is one of its own, the link-local one included.
    #[inline]
    pub fn owns_v6(&self, address: u128) -> bool {
        address == self.link_local || self.v6.binary_search_by_key(&address, |own| own.address).is_ok()
    }

    /// Whether `address` is one of its own.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.owns_v4(address.to_bits()),
            IpAddr::V6(address) => self.owns_v6(address.to_bits()),
        }
    }

    /// Whether `address` means everybody on its link: 255.255.255.255 or the broadcast address of one of its networks.
    #[inline]
    pub fn is_broadcast(&self, address: u32) -> bool {
        address == u32::MAX || self.v4.iter().any(|own| own.broadcast() == Some(address))
    }

    /// Whether `address` is in one of its networks.
    #[inline]
    pub fn on_link_v4(&self, address: u32) -> bool {
        self.v4.iter().any(|own| own.covers(address))
    }

    /// Whether `address` is link-local or in one of its networks.
    #[inline]
    pub fn on_link_v6(&self, address: u128) -> bool {
        is_link_local_v6(address) || self.v6.iter().any(|own| own.covers(address))
    }

    /// Whether `address` is that of a station in one of its networks, for which it may answer ARP.
    pub fn may_stand_for_v4(&self, address: u32) -> bool {
        let edge = |own: &&Own<u32>| {
            own.prefix <= 30
                && (own.broadcast() == Some(address) || own.address & !(u32::MAX >> own.prefix) == address)
        };
        let mut around = self.v4.iter().filter(|own| own.covers(address)).peekable();
        around.peek().is_some() && !around.any(|own| edge(&own))
    }

    /// Whether `address` is in one of its networks, and not link-local, so that it may answer neighbour discovery for it.
    pub fn may_stand_for_v6(&self, address: u128) -> bool {
        !is_link_local_v6(address) && self.v6.iter().any(|own| own.covers(address))
    }

    /// Whether `group` is the solicited-node multicast address of one of its addresses (RFC 4291, 2.7.1).
    #[inline]
    pub fn solicited(&self, group: u128) -> bool {
        let own = |address: u128| solicited_node(address) == group;
        own(self.link_local) || self.v6.iter().any(|address| own(address.address))
    }

    /// The own address to send from to `destination`: of its network, else the first; `None` without any.
    #[inline]
    pub fn source_v4(&self, destination: u32) -> Option<u32> {
        self.v4.iter().find(|own| own.covers(destination)).map(|own| own.address).or(self.first_v4)
    }

    /// The own address to send from to `destination`: the link-local one to such and where there is no other, else
    /// one of the same network, else the first.
    #[inline]
    pub fn source_v6(&self, destination: u128) -> u128 {
        if is_link_local_v6(destination) || destination >> 112 == 0xff02 {
            return self.link_local;
        }
        let near = self.v6.iter().find(|own| own.covers(destination)).map(|own| own.address);
        near.or(self.first_v6).unwrap_or(self.link_local)
    }
}

fn own_v4(net: &IpNet) -> Option<Own<u32>> {
    match net {
        IpNet::V4(net) => Some(Own { address: net.addr().to_bits(), prefix: net.prefix_len() }),
        IpNet::V6(_) => None,
    }
}

fn own_v6(net: &IpNet) -> Option<Own<u128>> {
    match net {
        IpNet::V6(net) => Some(Own { address: net.addr().to_bits(), prefix: net.prefix_len() }),
        IpNet::V4(_) => None,
    }
}

/// `fe80::/64` and the modified EUI-64 identifier of a MAC address (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> u128 {
    let m = mac.0;
    let id = u64::from_be_bytes([m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
    0xfe80 << 112 | u128::from(id)
}

/// The solicited-node multicast address of an address: `ff02::1:ff` and its last 24 bits (RFC 4291, 2.7.1).
#[inline]
pub fn solicited_node(address: u128) -> u128 {
    0xff02_0000_0000_0000_0000_0001_ff00_0000 | address & 0xff_ffff
}

/// Whether an address is in `fe80::/10`.
#[inline]
pub fn is_link_local_v6(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

/// Why an address cannot be an interface's own, if it cannot: ends the sentence "address A ...".
pub fn unfit(net: &IpNet) -> Option<&'static str> {
    match net {
        IpNet::V4(net) => unfit_v4(net),
        IpNet::V6(net) => unfit_v6(net),
    }
}

fn unfit_v4(net: &Ipv4Net) -> Option<&'static str> {
    let address = net.addr();
    let wide = net.prefix_len() <= 30;
    match address {
        _ if net.prefix_len() == 0 => Some("needs the length of its network's prefix, 1 to 32"),
        _ if address.octets()[0] == 0 => Some("is in 0.0.0.0/8, which names no station"),
        _ if address.is_loopback() => Some("is a loopback address"),
        _ if address.is_multicast() => Some("is a multicast address"),
        _ if address.octets()[0] >= 240 => Some("is in 240.0.0.0/4, which is reserved"),
        _ if wide && address == net.network() => {
            Some("is the network itself: an interface needs an address in it")
        }
        _ if wide && address == net.broadcast() => Some("is the broadcast address of its network"),
        _ => None,
    }
}

fn unfit_v6(net: &Ipv6Net) -> Option<&'static str> {
    let address = net.addr();
    match address {
        _ if net.prefix_len() == 0 => Some("needs the length of its network's prefix, 1 to 128"),
        _ if address.is_unspecified() => Some("names no station"),
        _ if address.is_loopback() => Some("is the loopback address"),
        _ if address.is_multicast() => Some("is a multicast address"),
        _ if address.to_ipv4_mapped().is_some() => Some("is an IPv4-mapped address"),
        _ => None,
    }
}

/// An address of either family as 128 bits, IPv4 as `::ffff:a.b.c.d`: what tables for both families compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address(pub u128);

impl Address {
    const MAPPED: u128 = 0xffff << 32;

    /// Of an IPv4 address in host byte order.
    #[inline(always)]
    pub fn v4(address: u32) -> Self {
        Self(Self::MAPPED | address as u128)
    }

    /// Of an IPv6 address in host byte order, which is not IPv4-mapped: such never appear on a link.
    #[inline(always)]
    pub fn v6(address: u128) -> Self {
        Self(address)
    }

    /// Whether it is of IPv4.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }

    /// As people know it.
    pub fn ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from_bits(self.0 as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(self.0))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(address.to_bits()),
            IpAddr::V6(address) => Self::v6(address.to_bits()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.ip(), f)
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.ip(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::fdb::Fdb;

    fn interface(addresses: &[&str]) -> Interface {
        let fdb = Arc::new(Fdb::new(16, 300, 4));
        Interface::new(Parts {
            index: 3,
            name: "lan".parse().unwrap(),
            bridge: "br".parse().unwrap(),
            table: Arc::new(BridgeTable { number: 0, filter: false, fdb, members: Box::new([]) }),
            vlan: 0,
            mac: Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            mtu: 1500,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            clamp_mss: false,
            up: true,
        })
    }

    fn v4(text: &str) -> u32 {
        text.parse::<Ipv4Addr>().unwrap().to_bits()
    }

    fn v6(text: &str) -> u128 {
        text.parse::<Ipv6Addr>().unwrap().to_bits()
    }

    #[test]
    fn it_stands_for_stations_only() {
        let lan = interface(&["10.0.3.1/24", "10.0.2.1/31", "10.0.3.129/25", "fd00::1/64"]);
        for (address, may) in [
            ("10.0.3.77", true),
            ("10.0.3.0", false),
            ("10.0.3.255", false),
            ("10.0.3.128", false),
            ("10.0.2.0", true),
            ("10.0.4.1", false),
            ("255.255.255.255", false),
        ] {
            assert_eq!(lan.may_stand_for_v4(v4(address)), may, "{address}");
        }
        for (address, may) in [("fd00::9", true), ("fd01::9", false), ("fe80::9", false)] {
            assert_eq!(lan.may_stand_for_v6(v6(address)), may, "{address}");
        }
    }

    #[test]
    fn it_knows_its_own_addresses_and_networks() {
        let lan = interface(&["10.0.3.1/24", "10.0.2.1/31", "fd00::1/64", "fe80::1/64"]);
        assert!(lan.owns_v4(v4("10.0.3.1")) && lan.owns_v4(v4("10.0.2.1")) && !lan.owns_v4(v4("10.0.3.2")));
        assert!(lan.owns_v6(v6("fd00::1")) && lan.owns_v6(v6("fe80::1")) && !lan.owns_v6(v6("fd00::2")));
        // As `ip address` shows it for that MAC address.
        assert_eq!(lan.link_local, v6("fe80::5054:ff:fe12:3456"));
        assert!(lan.owns("fe80::5054:ff:fe12:3456".parse().unwrap()));
        assert!(lan.is_broadcast(v4("10.0.3.255")) && lan.is_broadcast(u32::MAX));
        assert!(!lan.is_broadcast(v4("10.0.2.1")), "a network of two has none");
        assert!(lan.on_link_v4(v4("10.0.2.0")) && !lan.on_link_v4(v4("10.0.4.1")));
        assert!(
            lan.on_link_v6(v6("fd00::99")) && lan.on_link_v6(v6("fe80::99")) && !lan.on_link_v6(v6("fd01::"))
        );
        assert!(lan.solicited(v6("ff02::1:ff00:1")) && lan.solicited(v6("ff02::1:ff12:3456")));
        assert!(!lan.solicited(v6("ff02::1:ff00:2")));
    }

    #[test]
    fn it_sends_from_the_address_nearest_to_the_destination() {
        let lan = interface(&["10.0.3.1/24", "10.0.2.1/24", "fe80::1/64", "fd00::1/64", "fc00::1/64"]);
        assert_eq!(lan.source_v4(v4("10.0.2.7")), Some(v4("10.0.2.1")));
        assert_eq!(lan.source_v4(v4("8.8.8.8")), Some(v4("10.0.3.1")), "the first that was given");
        assert_eq!(lan.source_v6(v6("fc00::7")), v6("fc00::1"));
        assert_eq!(lan.source_v6(v6("2001:db8::7")), v6("fd00::1"));
        assert_eq!(lan.source_v6(v6("fe80::7")), lan.link_local);
        assert_eq!(lan.source_v6(v6("ff02::1")), lan.link_local);
        let bare = interface(&[]);
        assert_eq!((bare.source_v4(v4("8.8.8.8")), bare.source_v6(v6("fd00::7"))), (None, bare.link_local));
    }

    #[test]
    fn addresses_of_both_families_fit_one_word() {
        for text in ["10.0.3.1", "255.255.255.255", "fd00::1", "::1", "fe80::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(address).ip(), address);
            assert_eq!(Address::from(address).is_v4(), address.is_ipv4());
            assert_eq!(Address::from(address).to_string(), text);
        }
    }
}
