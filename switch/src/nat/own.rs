//! The switch's own addresses: which are they, and which of an interface's does a packet leave with.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::Interface;
use crate::rules::hash::Set;

pub(super) struct Own {
    all: Set<IpAddr>,
    /// By interface numbers.
    interfaces: Box<[Box<[IpNet]>]>,
}

impl Own {
    pub(super) fn new(interfaces: &[Interface]) -> Self {
        let len = interfaces.iter().map(|interface| usize::from(interface.index) + 1).max().unwrap_or(0);
        let mut by_index = vec![Box::default(); len];
        for interface in interfaces {
            by_index[usize::from(interface.index)] = interface.addresses.clone().into_boxed_slice();
        }
        let all = interfaces.iter().flat_map(|interface| &interface.addresses).map(IpNet::addr).collect();
        Self { all, interfaces: by_index.into() }
    }

    #[inline]
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.all.contains(&address)
    }

    /// The address of interface `egress` for packets to `destination` by way of `next_hop`: the first on the next
    /// hop's network; else the first (as Linux' inet_select_addr), of IPv6 the one that has most leading bits in
    /// common with the destination (RFC 6724, rule 8). Link-local addresses go to link-local destinations only.
    pub(super) fn address(&self, egress: u16, next_hop: IpAddr, destination: IpAddr) -> Option<IpAddr> {
        let addresses = self.interfaces.get(usize::from(egress))?;
        let local = is_link_local(destination);
        let fit = || {
            addresses
                .iter()
                .filter(move |net| net.addr().is_ipv4() == destination.is_ipv4())
                .filter(move |net| net.addr().is_ipv4() || is_link_local(net.addr()) == local)
        };
        if let Some(near) = fit().find(|net| net.contains(&next_hop)) {
            return Some(near.addr());
        }
        // Of equals the first.
        fit().rev().max_by_key(|net| common_bits(net.addr(), destination)).map(IpNet::addr)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Leading bits that IPv6 addresses have in common; IPv4 addresses are all alike.
fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(addresses: &[&str]) -> Own {
        Own::new(&[Interface {
            index: 3,
            name: "out".parse().expect("a name"),
            addresses: addresses.iter().map(|net| net.parse().expect("an address")).collect(),
        }])
    }

    fn pick(own: &Own, next_hop: &str, destination: &str) -> Option<String> {
        let address = |text: &str| text.parse().expect("an address");
        own.address(3, address(next_hop), address(destination)).map(|address| address.to_string())
    }

    #[test]
    fn the_address_on_the_next_hops_network_is_taken_or_else_the_first() {
        let own = own(&["198.51.100.2/24", "192.0.2.2/24", "192.0.2.3/24", "fd00::2/64"]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(pick(&own, "192.0.2.1", "8.8.8.8"), some("192.0.2.2"));
        assert_eq!(pick(&own, "203.0.113.1", "8.8.8.8"), some("198.51.100.2"));
        assert!(own.has("192.0.2.3".parse().expect("an address")));
        assert_eq!(own.address(2, [1, 1, 1, 1].into(), [1, 1, 1, 1].into()), None);
        assert_eq!(own.address(9, [1, 1, 1, 1].into(), [1, 1, 1, 1].into()), None);
    }

    #[test]
    fn of_ipv6_the_most_alike_and_never_a_link_local_one_to_far_away() {
        let own = own(&["fe80::1/64", "fd00::2/64", "2001:db8:1::2/64", "2001:db8:2::2/64"]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(pick(&own, "fe80::99", "2001:db8:2:7::1"), some("2001:db8:2::2"));
        assert_eq!(pick(&own, "fd00::9", "fd00::9"), some("fd00::2"));
        assert_eq!(pick(&own, "fe80::99", "fe80::99"), some("fe80::1"));
        assert_eq!(pick(&own, "fe80::99", "2600::1"), some("2001:db8:1::2"));
    }
}
