//! The search for a port that no connection uses towards the same destination.
//!
//! As Linux does it (nf_nat_core): the port stays if it is free; else ports of the same class are tried from a random
//! one on, 128, then 64, 32 and 16 of them. What is free is asked for the whole reply tuple, so one address
//! carries 64,000 connections to every destination.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rule::PortRange;
use crate::packet::ip::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::packet::tuple::Tuple;
use crate::rules::hash;

/// Ports that are tried from one random beginning.
const ATTEMPTS: u32 = 128;
/// The last and shortest round.
const ATTEMPTS_MIN: u32 = 16;

/// The tuple of answers to `tuple`, were it sent from this address and port.
pub(super) fn reply(tuple: &Tuple, address: IpAddr, port: u16) -> Tuple {
    Tuple { source: address, source_port: port, ..*tuple }.reversed()
}

/// The ports that may stand for one: of its class, as a server may trust low ports (rlogin, NFS).
fn class(tuple: &Tuple) -> (u16, u16) {
    match (tuple.protocol, tuple.source_port) {
        (ICMP | ICMPV6, _) => (0, u16::MAX),
        (_, 0..512) => (1, 511),
        (_, 512..1024) => (600, 1023),
        _ => (1024, u16::MAX),
    }
}

/// Finds a source port at `address` whose reply tuple is free.
///
/// `thorough` off: a short search, for when a long one has just failed.
pub(super) fn find(
    tuple: &Tuple,
    address: IpAddr,
    ports: Option<PortRange>,
    thorough: bool,
    random: u64,
    mut is_free: impl FnMut(&Tuple) -> bool,
) -> Option<u16> {
    let mut free = |port: u16| is_free(&reply(tuple, address, port)).then_some(port);
    if !matches!(tuple.protocol, TCP | UDP | SCTP | ICMP | ICMPV6) {
        return free(tuple.source_port);
    }
    if ports.is_none_or(|ports| ports.contains(tuple.source_port))
        && let Some(port) = free(tuple.source_port)
    {
        return Some(port);
    }
    let (first, last) = ports.map_or_else(|| class(tuple), |ports| (ports.first, ports.last));
    let size = u32::from(last - first) + 1;
    let mut attempts = if thorough { ATTEMPTS } else { ATTEMPTS_MIN };
    let mut random = random;
    loop {
        // The high half of a product spreads better than the remainder of what may be a poor generator's low bits.
        let start = ((u64::from(size) * (random >> 32)) >> 32) as u32;
        for step in 0..attempts.min(size) {
            let port = first + ((start + step) % size) as u16;
            if let Some(port) = free(port) {
                return Some(port);
            }
        }
        if attempts >= size || attempts <= ATTEMPTS_MIN {
            return None;
        }
        attempts /= 2;
        random = hash::mix(random, u64::from(attempts));
    }
}

/// Destinations for which a search has failed in this second: the next ones are short, so that a guest that has used
/// up all ports towards a server cannot make the worker search for every packet.
#[derive(Debug)]
pub(super) struct Scarce(Box<[AtomicU64; 256]>);

impl Scarce {
    pub(super) fn new() -> Self {
        Self(Box::new([const { AtomicU64::new(0) }; 256]))
    }

    fn cell(&self, tuple: &Tuple, address: IpAddr, now: u32) -> (&AtomicU64, u64) {
        let ports = u64::from(tuple.destination_port) | u64::from(tuple.protocol) << 16;
        let hash = hash::mix(hash::mix(hash::stable(tuple.destination), hash::stable(address)), ports);
        (&self.0[hash as usize % self.0.len()], hash << 32 | u64::from(now))
    }

    /// Whether a search has failed within this second.
    pub(super) fn is_scarce(&self, tuple: &Tuple, address: IpAddr, now: u32) -> bool {
        let (cell, mark) = self.cell(tuple, address, now);
        cell.load(Ordering::Relaxed) == mark
    }

    /// Notes that a search has failed.
    pub(super) fn failed(&self, tuple: &Tuple, address: IpAddr, now: u32) {
        let (cell, mark) = self.cell(tuple, address, now);
        cell.store(mark, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tuple(protocol: u8, source_port: u16) -> Tuple {
        Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [192, 0, 2, 1].into(),
            protocol,
            source_port,
            destination_port: 80,
        }
    }

    fn outside() -> IpAddr {
        [198, 51, 100, 1].into()
    }

    #[test]
    fn a_free_port_stays() {
        for port in [0, 1, 600, 40_000] {
            assert_eq!(find(&tuple(TCP, port), outside(), None, true, 7, |_| true), Some(port));
        }
        let ports = Some(PortRange { first: 5000, last: 5999 });
        assert_eq!(find(&tuple(UDP, 5500), outside(), ports, true, 7, |_| true), Some(5500));
    }

    #[test]
    fn a_taken_port_gives_way_to_one_of_its_class() {
        for (port, class) in [(22, 1..=511), (700, 600..=1023), (40_000, 1024..=65_535)] {
            for random in 0..200_u64 {
                let random = hash::mix(random, 1);
                let found =
                    find(&tuple(TCP, port), outside(), None, true, random, |t| t.destination_port != port);
                let found = found.expect("there are free ones");
                assert!(class.contains(&found) && found != port, "{port} became {found}");
            }
        }
    }

    #[test]
    fn a_small_range_is_used_up_to_its_last_port() {
        let ports = PortRange { first: 2000, last: 2099 };
        let mut used = HashSet::new();
        for n in 0..100 {
            let found = find(&tuple(TCP, 40_000), outside(), Some(ports), true, hash::mix(n, 2), |t| {
                !used.contains(t)
            });
            let found = found.expect("not yet all used");
            assert!(ports.contains(found) && used.insert(reply(&tuple(TCP, 40_000), outside(), found)));
        }
        assert_eq!(find(&tuple(TCP, 40_000), outside(), Some(ports), true, 3, |t| !used.contains(t)), None);
        // Another destination is another matter.
        let other = Tuple { destination_port: 443, ..tuple(TCP, 40_000) };
        assert!(find(&other, outside(), Some(ports), true, 3, |t| !used.contains(t)).is_some());
    }

    #[test]
    fn a_search_is_bounded() {
        for (thorough, most) in [(true, 241), (false, 17)] {
            let mut asked = 0;
            let found = find(&tuple(TCP, 40_000), outside(), None, thorough, 11, |_| {
                asked += 1;
                false
            });
            assert_eq!((found, asked), (None, most));
        }
    }

    #[test]
    fn what_has_no_ports_is_taken_as_it_is_or_not_at_all() {
        let mut asked = 0;
        let gre = Tuple { destination_port: 0, ..tuple(47, 0) };
        assert_eq!(find(&gre, outside(), None, true, 1, |_| true), Some(0));
        let none = find(&gre, outside(), None, true, 1, |_| {
            asked += 1;
            false
        });
        assert_eq!((none, asked), (None, 1));
    }

    #[test]
    fn an_identifier_of_icmp_is_a_port_of_both_directions() {
        let ping = Tuple { destination_port: 8, ..tuple(ICMP, 77) };
        let found = find(&ping, outside(), None, true, 5, |t| {
            assert_eq!(t.destination_port, 8, "the type stays");
            t.source_port != 77
        });
        assert_ne!(found.expect("an identifier"), 77);
    }

    #[test]
    fn scarcity_lasts_a_second() {
        let scarce = Scarce::new();
        assert!(!scarce.is_scarce(&tuple(TCP, 1), outside(), 5));
        scarce.failed(&tuple(TCP, 1), outside(), 5);
        assert!(scarce.is_scarce(&tuple(TCP, 2), outside(), 5), "whatever the port");
        assert!(!scarce.is_scarce(&tuple(UDP, 1), outside(), 5));
        assert!(!scarce.is_scarce(&tuple(TCP, 1), outside(), 6));
    }
}
