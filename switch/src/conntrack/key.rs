//! What connections are found by: addresses, protocol and ports of a packet as one side sends it.
//!
//! The same code serves IPv4 and IPv6; [`Family`] holds what differs. Keys are hashed with secrets of the process, by
//! folded wide multiplications: a guest cannot aim at a bucket.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use vhost_backend::frame::SNAPSHOT;
use zerocopy::FromZeros;

use super::{Conntrack, Local};
use crate::conntrack::owner::Owner;
use crate::conntrack::table::Table;
use crate::packet::headers::Headers;
use crate::packet::ip::{ICMP, ICMPV6};
use crate::packet::ordinary;
use crate::packet::rewrite;
use crate::packet::tuple::Tuple;

/// Set in the destination port of an ICMP query's answer: the way back is not the way of a request that happens to
/// have the same identifier.
pub const ANSWER: u16 = 0x100;

/// IPv4 or IPv6.
pub trait Family: Copy + Debug + Default + Eq + Hash + Send + Sync + 'static {
    /// An address in host order.
    type Address: rewrite::Address + Default + Ord + Hash + Send + Sync + 'static;
    /// Source and destination, in atomics.
    type Pair: FromZeros + Send + Sync + 'static;
    /// Source and destination as one value.
    type Both: Copy + Debug + Default + Eq;
    /// Whether it is IPv6.
    const V6: bool;

    /// Two addresses as one value.
    fn both(source: Self::Address, destination: Self::Address) -> Self::Both;
    /// What [`Family::both`] was made of.
    fn apart(both: Self::Both) -> (Self::Address, Self::Address);
    /// Source and destination of an ordinary packet ([`ordinary`]).
    fn both_of(head: &[u8; SNAPSHOT]) -> Self::Both;
    /// Reads a pair.
    fn load(pair: &Self::Pair) -> Self::Both;
    /// Writes a pair. Readers must not look meanwhile.
    fn store(pair: &Self::Pair, source: Self::Address, destination: Self::Address);
    /// Mixes a pair with a secret.
    fn mix(both: Self::Both, secret: &Secret) -> u64;
    /// For people.
    fn to_ip(address: Self::Address) -> IpAddr;
    /// An address of this family, or none.
    fn from_ip(address: IpAddr) -> Option<Self::Address>;
    /// As sixteen bytes, most significant first; a short address in the last four.
    fn to_bytes(address: Self::Address) -> [u8; 16];
    /// What [`Family::to_bytes`] made.
    fn from_bytes(bytes: [u8; 16]) -> Self::Address;
    /// The addresses of a packet.
    fn addresses(headers: &Headers, head: &[u8]) -> (Self::Address, Self::Address);
    /// The family's table.
    fn table(conntrack: &Conntrack) -> &Table<Self>;
    /// The family's entries of a worker.
    fn owner(local: &mut Local) -> &mut Owner<Self>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V6;

/// What makes the hash of a process its own.
#[derive(Clone, Copy)]
pub struct Secret([u64; 5]);

impl Secret {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self(std::array::from_fn(|i| random.hash_one(i) | 1))
    }
}

/// Both halves of a product, combined: every bit of either factor reaches every bit below and above it.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    wide as u64 ^ (wide >> 64) as u64
}

impl Family for V4 {
    type Address = u32;
    type Pair = AtomicU64;
    type Both = u64;
    const V6: bool = false;

    #[inline(always)]
    fn both(source: u32, destination: u32) -> u64 {
        u64::from(source) << 32 | u64::from(destination)
    }

    #[inline(always)]
    fn apart(both: u64) -> (u32, u32) {
        ((both >> 32) as u32, both as u32)
    }

    #[inline(always)]
    fn both_of(head: &[u8; SNAPSHOT]) -> u64 {
        u64::from_be_bytes(ordinary::bytes(head, ordinary::NETWORK + 12))
    }

    #[inline(always)]
    fn load(pair: &AtomicU64) -> u64 {
        pair.load(Ordering::Relaxed)
    }

    #[inline]
    fn store(pair: &AtomicU64, source: u32, destination: u32) {
        pair.store(Self::both(source, destination), Ordering::Relaxed);
    }

    #[inline(always)]
    fn mix(both: u64, secret: &Secret) -> u64 {
        fold(both ^ secret.0[0], secret.0[1])
    }

    fn to_ip(address: u32) -> IpAddr {
        Ipv4Addr::from(address).into()
    }

    #[inline]
    fn from_ip(address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_bytes(address: u32) -> [u8; 16] {
        u128::from(address).to_be_bytes()
    }

    fn from_bytes(bytes: [u8; 16]) -> u32 {
        u128::from_be_bytes(bytes) as u32
    }

    #[inline(always)]
    fn addresses(headers: &Headers, head: &[u8]) -> (u32, u32) {
        headers.addresses_v4(head)
    }

    #[inline(always)]
    fn table(conntrack: &Conntrack) -> &Table<Self> {
        &conntrack.v4
    }

    #[inline(always)]
    fn owner(local: &mut Local) -> &mut Owner<Self> {
        &mut local.v4
    }
}

impl Family for V6 {
    type Address = u128;
    type Pair = [AtomicU64; 4];
    type Both = [u64; 4];
    const V6: bool = true;

    #[inline(always)]
    fn both(source: u128, destination: u128) -> [u64; 4] {
        [(source >> 64) as u64, source as u64, (destination >> 64) as u64, destination as u64]
    }

    #[inline(always)]
    fn apart([a, b, c, d]: [u64; 4]) -> (u128, u128) {
        let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        (wide(a, b), wide(c, d))
    }

    #[inline(always)]
    fn both_of(head: &[u8; SNAPSHOT]) -> [u64; 4] {
        [8, 16, 24, 32].map(|at| u64::from_be_bytes(ordinary::bytes(head, ordinary::NETWORK + at)))
    }

    #[inline(always)]
    fn load(pair: &[AtomicU64; 4]) -> [u64; 4] {
        [0, 1, 2, 3].map(|i| pair[i].load(Ordering::Relaxed))
    }

    #[inline]
    fn store(pair: &[AtomicU64; 4], source: u128, destination: u128) {
        for (cell, word) in pair.iter().zip(Self::both(source, destination)) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn mix([a, b, c, d]: [u64; 4], secret: &Secret) -> u64 {
        fold(a ^ secret.0[0], b ^ secret.0[1]).wrapping_add(fold(c ^ secret.0[2], d ^ secret.0[3]))
    }

    fn to_ip(address: u128) -> IpAddr {
        Ipv6Addr::from(address).into()
    }

    #[inline]
    fn from_ip(address: IpAddr) -> Option<u128> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    fn to_bytes(address: u128) -> [u8; 16] {
        address.to_be_bytes()
    }

    fn from_bytes(bytes: [u8; 16]) -> u128 {
        u128::from_be_bytes(bytes)
    }

    #[inline(always)]
    fn addresses(headers: &Headers, head: &[u8]) -> (u128, u128) {
        headers.addresses_v6(head)
    }

    #[inline(always)]
    fn table(conntrack: &Conntrack) -> &Table<Self> {
        &conntrack.v6
    }

    #[inline(always)]
    fn owner(local: &mut Local) -> &mut Owner<Self> {
        &mut local.v6
    }
}

/// Addresses, protocol and ports of a packet, in host order. The destination port of an ICMP query is the type of the
/// request, with [`ANSWER`] set on the way back; protocols without ports have zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key<F: Family> {
    /// Who sends.
    pub source: F::Address,
    /// To whom.
    pub destination: F::Address,
    /// Port that it comes from; identifier of an ICMP query.
    pub source_port: u16,
    /// Port that it goes to.
    pub destination_port: u16,
    /// Protocol number (IANA).
    pub protocol: u8,
}

/// A key in few words, to be compared and hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compact<F: Family> {
    pub(super) both: F::Both,
    pub(super) ports: u32,
    pub(super) protocol: u8,
}

impl<F: Family> Compact<F> {
    /// The key of an ordinary packet ([`ordinary`]).
    #[inline(always)]
    pub fn of_ordinary(head: &[u8; SNAPSHOT]) -> Self {
        Self {
            both: F::both_of(head),
            ports: ordinary::ports::<F::Address>(head),
            protocol: ordinary::protocol::<F::Address>(head),
        }
    }

    /// The hash under which the key is to be looked for.
    #[inline(always)]
    pub(super) fn hash(&self, secret: &Secret) -> u64 {
        let rest = u64::from(self.protocol) << 32 | u64::from(self.ports);
        fold(F::mix(self.both, secret) ^ rest, secret.0[4])
    }
}

/// A key of IPv4.
pub type Key4 = Key<V4>;
/// A key of IPv6.
pub type Key6 = Key<V6>;

impl<F: Family> Key<F> {
    /// The key of a packet whose headers were parsed from `head`.
    #[inline(always)]
    pub fn of(headers: &Headers, head: &[u8]) -> Self {
        let kind = || head.get(usize::from(headers.transport)).copied();
        Self::with_kind(headers, head, kind)
    }

    /// The key of a packet whose type of ICMP message, if it is one, is `kind`: for later fragments, which do not have
    /// it themselves.
    pub fn of_kind(headers: &Headers, head: &[u8], kind: Option<u8>) -> Self {
        Self::with_kind(headers, head, || kind)
    }

    #[inline(always)]
    fn with_kind(headers: &Headers, head: &[u8], kind: impl FnOnce() -> Option<u8>) -> Self {
        let (source, destination) = F::addresses(headers, head);
        let mut destination_port = headers.destination_port;
        if matches!(headers.protocol, ICMP | ICMPV6)
            && destination_port != 0
            && u16::from(kind().unwrap_or_default()) != destination_port
        {
            destination_port |= ANSWER;
        }
        Self {
            source,
            destination,
            source_port: headers.source_port,
            destination_port,
            protocol: headers.protocol,
        }
    }

    /// The key of what goes the way of a connection's first packet; none if the addresses are of the other family.
    #[inline]
    pub fn request(tuple: &Tuple) -> Option<Self> {
        Some(Self {
            source: F::from_ip(tuple.source)?,
            destination: F::from_ip(tuple.destination)?,
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
            protocol: tuple.protocol,
        })
    }

    /// The key of what goes the other way: `tuple` is the tuple of answers.
    #[inline]
    pub fn answer(tuple: &Tuple) -> Option<Self> {
        let mut key = Self::request(tuple)?;
        if matches!(key.protocol, ICMP | ICMPV6) && key.destination_port != 0 {
            key.destination_port |= ANSWER;
        }
        Some(key)
    }

    /// The key of what goes the other way.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        let (source_port, destination_port) = match self.protocol {
            ICMP | ICMPV6 if self.destination_port != 0 => (self.source_port, self.destination_port ^ ANSWER),
            _ => (self.destination_port, self.source_port),
        };
        Self { source: self.destination, destination: self.source, source_port, destination_port, ..*self }
    }

    /// The tuple.
    pub fn tuple(&self) -> Tuple {
        let icmp = matches!(self.protocol, ICMP | ICMPV6);
        Tuple {
            source: F::to_ip(self.source),
            destination: F::to_ip(self.destination),
            protocol: self.protocol,
            source_port: self.source_port,
            destination_port: if icmp { self.destination_port & !ANSWER } else { self.destination_port },
        }
    }

    /// Both ports in a word.
    #[inline(always)]
    pub(super) fn ports(&self) -> u32 {
        u32::from(self.source_port) << 16 | u32::from(self.destination_port)
    }

    /// The same in few words.
    #[inline(always)]
    pub fn compact(&self) -> Compact<F> {
        Compact { both: F::both(self.source, self.destination), ports: self.ports(), protocol: self.protocol }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(protocol: u8) -> Tuple {
        Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol,
            source_port: 7,
            destination_port: 8,
        }
    }

    #[test]
    fn the_way_back_of_a_query_is_no_request() {
        let ping = Key4::request(&tuple(ICMP)).expect("IPv4");
        let answer = ping.reversed();
        assert_eq!(Some(answer), Key4::answer(&tuple(ICMP).reversed()));
        assert_ne!(
            Some(answer),
            Key4::request(&tuple(ICMP).reversed()),
            "the other one pings with that identifier"
        );
        assert_eq!((answer.reversed(), answer.tuple()), (ping, tuple(ICMP).reversed()));
        let tcp = Key4::request(&tuple(6)).expect("IPv4");
        assert_eq!((tcp.reversed().source_port, tcp.reversed().reversed()), (8, tcp));
        assert_eq!(Key6::request(&tuple(6)), None);
    }

    #[test]
    fn answers_are_told_by_their_type() {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .icmpv4_echo_reply(7, 1)
            .write(&mut frame, &[])
            .expect("a packet");
        let headers = Headers::parse(&frame, frame.len(), 14, false).expect("good");
        assert_eq!(Key4::of(&headers, &frame), Key4::request(&tuple(ICMP)).expect("IPv4").reversed());
    }

    #[test]
    fn hashes_differ_between_keys_and_between_processes() {
        let (here, there) = (Secret::new(), Secret::new());
        let mut seen = std::collections::HashSet::new();
        for port in 0..=u16::MAX {
            let key = Key4 { source_port: port, ..Key4::request(&tuple(17)).expect("IPv4") };
            assert!(seen.insert(key.compact().hash(&here)), "port {port}");
            assert_ne!(key.compact().hash(&here), key.compact().hash(&there));
        }
        let wide = Key6 { source: 1 << 64, destination: 1, source_port: 0, destination_port: 0, protocol: 6 };
        assert_ne!(
            wide.compact().hash(&here),
            Key6 { source: 1, destination: 1 << 64, ..wide }.compact().hash(&here)
        );
    }
}
