//! Published ports and one-to-one addresses, as calls from outside meet them.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::Translation;
use super::own::Own;
use super::rule::{OneToOne, PortRange, Publish};
use crate::packet::ip::{SCTP, TCP, UDP};
use crate::packet::tuple::Tuple;
use crate::rules::NONE;
use crate::rules::hash::{Map, Set};
use crate::rules::prefixes::Prefixes;

/// Whom listeners are for. The unspecified address: every own address of the family. [`NONE`]: every interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    address: IpAddr,
    /// Protocol, and from bit 16 on the interface.
    rest: u32,
}

impl Key {
    fn new(protocol: u8, address: IpAddr, ingress: u16) -> Self {
        Self { address, rest: u32::from(protocol) | u32::from(ingress) << 16 }
    }
}

struct Listener {
    ports: PortRange,
    to: IpAddr,
    /// The port that the first of `ports` becomes.
    to_first: u16,
    slot: u32,
}

#[derive(Default)]
pub(super) struct Destinations {
    /// Each sorted by ports; no two share one, which [`super::RuleSet::add`] sees to.
    listeners: Map<Key, Vec<Listener>>,
    /// Whether there are listeners on one address for every interface, on one address for one, on every address for
    /// every interface, on every address for one: no lookup for what nobody has.
    kinds: [bool; 4],
    /// Published addresses.
    published: Set<IpAddr>,
    outside: Option<Outside>,
}

/// One-to-one rules by their outside prefixes.
struct Outside {
    prefixes: Prefixes,
    /// By the numbers of the prefixes.
    inside: Vec<(OneToOneNets, u32)>,
}

/// The two prefixes of a one-to-one rule, of equal length.
#[derive(Clone, Copy)]
pub(super) struct OneToOneNets {
    pub(super) from: IpNet,
    pub(super) to: IpNet,
}

impl OneToOneNets {
    /// The address that stands for one of `from`.
    pub(super) fn translate(&self, address: IpAddr) -> IpAddr {
        match (address, self.from, self.to) {
            (IpAddr::V4(v4), IpNet::V4(from), IpNet::V4(to)) => {
                let hosts = from.hostmask().to_bits();
                Ipv4Addr::from_bits(to.network().to_bits() | v4.to_bits() & hosts).into()
            }
            (IpAddr::V6(v6), IpNet::V6(from), IpNet::V6(to)) => {
                let hosts = from.hostmask().to_bits();
                Ipv6Addr::from_bits(to.network().to_bits() | v6.to_bits() & hosts).into()
            }
            _ => address,
        }
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

impl Destinations {
    /// `publish`: rules, the number of the interface that they name ([`NONE`]: they name none), their slots.
    pub(super) fn new(publish: &[(&Publish, u16, u32)], one_to_one: &[(&OneToOne, u32)]) -> Self {
        let mut new = Self::default();
        for &(rule, ingress, slot) in publish {
            let address = rule.listen.unwrap_or_else(|| unspecified(rule.to));
            let kind = usize::from(rule.listen.is_none()) * 2 + usize::from(ingress != NONE);
            new.kinds[kind] = true;
            new.published.extend(rule.listen);
            new.listeners.entry(Key::new(rule.protocol, address, ingress)).or_default().push(Listener {
                ports: rule.ports,
                to: rule.to,
                to_first: rule.to_ports.first,
                slot,
            });
        }
        for listeners in new.listeners.values_mut() {
            listeners.sort_unstable_by_key(|listener| listener.ports.first);
            listeners.shrink_to_fit();
        }
        if !one_to_one.is_empty() {
            let prefixes = Prefixes::new(one_to_one.iter().map(|(rule, _)| rule.outside));
            let mut inside: Vec<_> = one_to_one
                .iter()
                .map(|&(rule, slot)| {
                    let nets = OneToOneNets { from: rule.outside, to: rule.inside };
                    (prefixes.number(rule.outside), (nets, slot))
                })
                .collect();
            inside.sort_unstable_by_key(|&(number, _)| number);
            let inside = inside.into_iter().map(|(_, inside)| inside).collect();
            new.outside = Some(Outside { prefixes, inside });
        }
        new
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.outside.is_none()
    }

    pub(super) fn speaks_for(&self, address: IpAddr) -> bool {
        self.published.contains(&address)
            || self.outside.as_ref().is_some_and(|outside| outside.prefixes.contains(address))
    }

    pub(super) fn find(&self, tuple: &Tuple, ingress: u16, own: &Own) -> Option<Translation> {
        let called = tuple.destination;
        if matches!(tuple.protocol, TCP | UDP | SCTP)
            && !self.listeners.is_empty()
            && !called.is_unspecified()
        {
            let every = unspecified(called);
            let places = [(called, NONE), (called, ingress), (every, NONE), (every, ingress)];
            let any_own = (self.kinds[2] || self.kinds[3]) && own.has(called);
            for (kind, (address, ingress)) in places.into_iter().enumerate() {
                if self.kinds[kind]
                    && (kind < 2 || any_own)
                    && let Some(found) = self.listener(Key::new(tuple.protocol, address, ingress), tuple)
                {
                    return Some(found);
                }
            }
        }
        let outside = self.outside.as_ref()?;
        let &(nets, slot) = outside.inside.get(outside.prefixes.longest(called)? as usize)?;
        Some(Translation { address: nets.translate(called), port: tuple.destination_port, slot })
    }

    fn listener(&self, key: Key, tuple: &Tuple) -> Option<Translation> {
        let listeners = self.listeners.get(&key)?;
        let port = tuple.destination_port;
        let after = listeners.partition_point(|listener| listener.ports.first <= port);
        let listener = listeners[..after].last().filter(|listener| listener.ports.contains(port))?;
        Some(Translation {
            address: listener.to,
            port: listener.to_first.saturating_add(port - listener.ports.first),
            slot: listener.slot,
        })
    }
}
