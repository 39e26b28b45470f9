//! Changes to a packet's headers in place: MAC addresses, TTL, translated addresses and ports, a smaller MSS.
//!
//! Checksums follow by the difference (RFC 1624, equation 3), which is worked out once for a connection and kept
//! beside its new addresses ([`Rewrite`]), so that an established packet costs a few additions. Where the sender left
//! the checksum to be completed, the field holds the sum of the pseudo-header alone and follows the addresses only.
//! A wrong checksum stays wrong: whoever receives the packet still finds out.
//!
//! Everything works on a frame's first bytes with the [`Headers`] read from them, and does nothing to bytes that are
//! not there. Words and sums are in the order in which they lie in memory ([`super::checksum`]).
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::checksum::Sum;
use super::ethernet::Mac;
use super::headers::{Fragment, Headers, tcp_flags};
use super::ip::{ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, SCTP, TCP, UDP};
use super::ordinary;
use super::sctp;
use super::tuple::Tuple;
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{NEEDS_CSUM, NetHeader};

/// Protocols whose checksum covers the addresses as well and lies in the fourth word: DCCP and UDP-Lite.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// What one word less in the TTL's byte adds to a sum: the complement of 0x0100.
const HOP: u16 = u16::from_ne_bytes([0xfe, 0xff]);

/// An address of one family, as the packet path holds it: `u32` or `u128`, in host order.
pub trait Address: Copy + Eq + std::fmt::Debug + sealed::Sealed {
    /// Whether it is IPv6's.
    const V6: bool;

    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;

    /// Its words' sum.
    fn sum(self) -> Sum;

    /// Source and destination of the packet whose IP header is at `network`; zeros if they are not there.
    fn read(head: &[u8], network: usize) -> (Self, Self);

    /// Puts source and destination into the IP header at `network`. `delta` is what they add to sums; with
    /// `TO_NEXT_HOP` the TTL goes down by one, too.
    fn write<const TO_NEXT_HOP: bool>(
        head: &mut [u8],
        network: usize,
        source: Self,
        destination: Self,
        delta: u16,
    );
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u128 {}
}

/// The header of `LEN` bytes at `at`.
#[inline(always)]
pub(crate) fn chunk<const LEN: usize>(head: &mut [u8], at: usize) -> Option<&mut [u8; LEN]> {
    head.get_mut(at..)?.first_chunk_mut()
}

/// The 16-bit word at `at`, as it lies in memory.
#[inline(always)]
pub(crate) fn load(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
pub(crate) fn store(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
}

/// Adds up to three words in one's complement.
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// A checksum after its text has changed by `delta`.
#[inline(always)]
pub(crate) fn follow(checksum: u16, delta: u16) -> u16 {
    !fold(u32::from(!checksum) + u32::from(delta))
}

/// As [`follow`], never 0: in UDP that means "none", and to an ICMP message of zeros alone only 0xffff is right.
#[inline(always)]
pub(crate) fn follow_nonzero(checksum: u16, delta: u16) -> u16 {
    match follow(checksum, delta) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// What replacing text of the sum `old` by text of the sum `new` adds to sums.
#[inline]
pub(crate) fn delta(old: Sum, new: Sum) -> u16 {
    let gone = Sum::of_word(u16::from_be_bytes(old.checksum()));
    u16::from_ne_bytes((new + gone).folded())
}

impl Address for u32 {
    const V6: bool = false;

    #[inline]
    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V4(address) = address { Some(address.into()) } else { None }
    }

    #[inline]
    fn sum(self) -> Sum {
        Sum::of(&self.to_be_bytes())
    }

    #[inline]
    fn read(head: &[u8], network: usize) -> (Self, Self) {
        let Some(ip) = head.get(network..).and_then(|ip| ip.first_chunk::<IPV4_LEN>()) else { return (0, 0) };
        let word = |at: usize| Self::from_be_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        (word(12), word(16))
    }

    #[inline(always)]
    fn write<const TO_NEXT_HOP: bool>(
        head: &mut [u8],
        network: usize,
        source: Self,
        destination: Self,
        delta: u16,
    ) {
        let Some(ip) = chunk::<IPV4_LEN>(head, network) else { return };
        let mut sum = u32::from(!load(ip, 10)) + u32::from(delta);
        if TO_NEXT_HOP {
            ip[8] = ip[8].wrapping_sub(1);
            sum += u32::from(HOP);
        }
        store(ip, 10, !fold(sum));
        ip[12..16].copy_from_slice(&source.to_be_bytes());
        ip[16..20].copy_from_slice(&destination.to_be_bytes());
    }
}

impl Address for u128 {
    const V6: bool = true;

    #[inline]
    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V6(address) = address { Some(address.into()) } else { None }
    }

    #[inline]
    fn sum(self) -> Sum {
        Sum::of(&self.to_be_bytes())
    }

    #[inline]
    fn read(head: &[u8], network: usize) -> (Self, Self) {
        let word = |at: usize| {
            let bytes = head.get(network + at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| Self::from_be_bytes(*bytes))
        };
        (word(8), word(24))
    }

    #[inline(always)]
    fn write<const TO_NEXT_HOP: bool>(
        head: &mut [u8],
        network: usize,
        source: Self,
        destination: Self,
        _: u16,
    ) {
        let Some(ip) = chunk::<IPV6_LEN>(head, network) else { return };
        if TO_NEXT_HOP {
            ip[7] = ip[7].wrapping_sub(1);
        }
        ip[8..24].copy_from_slice(&source.to_be_bytes());
        ip[24..40].copy_from_slice(&destination.to_be_bytes());
    }
}

/// Addresses and ports of a packet, with the conventions of [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// Who sends.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// Port, or identifier of an ICMP query.
    pub source_port: u16,
    /// Port, or type of an ICMP request.
    pub destination_port: u16,
}

impl<A: Address> Ends<A> {
    /// Those of a tuple, if it is of this family.
    pub fn of(tuple: &Tuple) -> Option<Self> {
        Some(Self {
            source: A::of(tuple.source)?,
            destination: A::of(tuple.destination)?,
            source_port: tuple.source_port,
            destination_port: tuple.destination_port,
        })
    }
}

/// What the packets of one direction of a connection are changed to, and what that adds to their checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// The new source.
    pub source: A,
    /// The new destination.
    pub destination: A,
    /// The new source port, or identifier of an ICMP query.
    pub source_port: u16,
    /// The new destination port; of no meaning for ICMP.
    pub destination_port: u16,
    /// What the addresses add to a sum (in memory order): to IPv4's header checksum, to a pseudo-header's sum.
    pub ip_delta: u16,
    /// What the transport's checksum has to take in (in memory order): ports, and addresses if it covers them.
    pub l4_delta: u16,
}

impl<A: Address> Rewrite<A> {
    /// The change of packets of `protocol` from `from` to `to`.
    pub fn new(protocol: u8, from: &Ends<A>, to: &Ends<A>) -> Self {
        let addresses = |ends: &Ends<A>| ends.source.sum() + ends.destination.sum();
        let ports = |ends: &Ends<A>| match protocol {
            TCP | UDP => Sum::of_word(ends.source_port) + Sum::of_word(ends.destination_port),
            ICMP | ICMPV6 => Sum::of_word(ends.source_port),
            _ => Sum::default(),
        };
        let covers_addresses = match protocol {
            TCP | UDP | DCCP | UDP_LITE => true,
            ICMPV6 => A::V6,
            _ => false,
        };
        let l4 = |ends: &Ends<A>| if covers_addresses { addresses(ends) + ports(ends) } else { ports(ends) };
        Self {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            ip_delta: delta(addresses(from), addresses(to)),
            l4_delta: delta(l4(from), l4(to)),
        }
    }

    /// Translates a packet on its way to the next hop: addresses, ports, checksums, and one hop less.
    ///
    /// `partial` as [`is_partial`] says. Later fragments have their addresses translated; the checksum in the first
    /// one covers all of them.
    #[inline(always)]
    pub fn forward(&self, head: &mut [u8], headers: &Headers, partial: bool) {
        self.apply::<true>(head, headers, partial);
    }

    /// As [`Rewrite::forward`] with the hop count as it is.
    #[inline(always)]
    pub fn translate(&self, head: &mut [u8], headers: &Headers, partial: bool) {
        self.apply::<false>(head, headers, partial);
    }

    #[inline(always)]
    fn apply<const TO_NEXT_HOP: bool>(&self, head: &mut [u8], headers: &Headers, partial: bool) {
        A::write::<TO_NEXT_HOP>(
            head,
            usize::from(headers.network),
            self.source,
            self.destination,
            self.ip_delta,
        );
        if headers.fragment == Fragment::Later {
            return;
        }
        let at = usize::from(headers.transport);
        // A sum of the pseudo-header is no complement, and takes in the addresses alone.
        let (mask, delta) = if partial { (0, self.ip_delta) } else { (0xffff, self.l4_delta) };
        match headers.protocol {
            TCP => {
                let Some(tcp) = chunk::<20>(head, at) else { return };
                self.write_ports(tcp);
                store_tcp(tcp, mask, u32::from(delta));
            }
            UDP => {
                let Some(udp) = chunk::<8>(head, at) else { return };
                self.write_ports(udp);
                store_udp(udp, mask, u32::from(delta));
            }
            ICMP | ICMPV6 => self.apply_icmp(head, headers, partial),
            SCTP => sctp::set_ports(head, headers, self.source_port, self.destination_port),
            DCCP | UDP_LITE => {
                let Some(field) = chunk::<2>(head, at + 6) else { return };
                let sum = u32::from(load(field, 0) ^ mask) + u32::from(delta);
                store(field, 0, fold(sum) ^ mask);
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn write_ports(&self, transport: &mut [u8]) {
        let ports = u32::from(self.source_port) << 16 | u32::from(self.destination_port);
        transport[..4].copy_from_slice(&ports.to_be_bytes());
    }

    fn apply_icmp(&self, head: &mut [u8], headers: &Headers, partial: bool) {
        let Some(icmp) = chunk::<8>(head, usize::from(headers.transport)) else { return };
        let field = load(icmp, 2);
        // The conventions of `Tuple`: a query has its request's type there.
        let is_query = headers.destination_port != 0;
        if is_query {
            icmp[4..6].copy_from_slice(&self.source_port.to_be_bytes());
        }
        let of_addresses = if headers.protocol == ICMPV6 && A::V6 { self.ip_delta } else { 0 };
        let field = if partial {
            fold(u32::from(field) + u32::from(of_addresses))
        } else {
            follow_nonzero(field, if is_query { self.l4_delta } else { of_addresses })
        };
        store(icmp, 2, field);
    }
}

/// Lets the checksum of a segment follow; a mask of all ones if it is complete.
#[inline(always)]
fn store_tcp(tcp: &mut [u8], mask: u16, delta: u32) {
    let sum = u32::from(load(tcp, 16) ^ mask) + delta;
    store(tcp, 16, fold(sum) ^ mask);
}

/// The same of a datagram, which may have none.
#[inline(always)]
fn store_udp(udp: &mut [u8], mask: u16, delta: u32) {
    let old = load(udp, 6);
    if old != 0 {
        let new = fold(u32::from(old ^ mask) + delta) ^ mask;
        store(udp, 6, if new == 0 { 0xffff } else { new });
    }
}

/// Translates an ordinary packet ([`super::ordinary`]) on its way to the next hop. `ports`: source (high) and
/// destination; `delta`: what the addresses add to sums ([`Rewrite::ip_delta`]).
#[inline(always)]
pub fn forward_ordinary<A: Address>(
    head: &mut [u8; SNAPSHOT],
    source: A,
    destination: A,
    ports: u32,
    delta: u16,
    partial: bool,
) {
    A::write::<true>(head, ordinary::NETWORK, source, destination, delta);
    let protocol = ordinary::protocol::<A>(head);
    let Some(transport) = chunk::<20>(head, ordinary::transport::<A>()) else { return };
    let Some(place) = transport.first_chunk_mut::<4>() else { return };
    let old = u32::from_ne_bytes(*place);
    let new = ports.to_be();
    *place = new.to_ne_bytes();
    let words = |ports: u32| (ports >> 16) + (ports & 0xffff);
    let (mask, delta) = match partial {
        true => (0, u32::from(delta)),
        false => (0xffff, u32::from(delta) + words(!old) + words(new)),
    };
    if protocol == TCP { store_tcp(transport, mask, delta) } else { store_udp(transport, mask, delta) }
}

/// Whether the transport's checksum is still to be completed by the receiver, given metadata that has passed
/// [`super::validate`]. Metadata about a packet within the packet does not touch the outer checksum.
#[inline]
pub fn is_partial(header: &NetHeader, headers: &Headers) -> bool {
    header.flags & NEEDS_CSUM != 0 && header.csum_start == headers.transport
}

/// Puts the addresses of the next link in.
#[inline(always)]
pub fn set_macs(head: &mut [u8], destination: Mac, source: Mac) {
    if let Some(macs) = head.first_chunk_mut::<12>() {
        macs[..6].copy_from_slice(&destination.0);
        macs[6..].copy_from_slice(&source.0);
    }
}

/// One hop less. The caller has seen that more than one is left.
#[inline(always)]
pub fn decrement_ttl(head: &mut [u8], headers: &Headers) {
    one_hop_less(head, usize::from(headers.network), headers.v6);
}

/// As [`decrement_ttl`] for an ordinary packet ([`super::ordinary`]).
#[inline(always)]
pub fn decrement_ttl_ordinary<A: Address>(head: &mut [u8; SNAPSHOT]) {
    one_hop_less(head, ordinary::NETWORK, A::V6);
}

#[inline(always)]
fn one_hop_less(head: &mut [u8], network: usize, v6: bool) {
    if v6 {
        if let Some(ip) = chunk::<IPV6_LEN>(head, network) {
            ip[7] = ip[7].wrapping_sub(1);
        }
    } else if let Some(ip) = chunk::<IPV4_LEN>(head, network) {
        ip[8] = ip[8].wrapping_sub(1);
        // The complement of [`HOP`] added, with the carry brought round; never minus zero.
        let checksum = u32::from(u16::from_be(load(ip, 10))) + 0x100;
        store(ip, 10, ((checksum + u32::from(checksum >= 0xffff)) as u16).to_be());
    }
}

/// Gives the packet as many hops as if it were the switch's own.
pub fn set_ttl(head: &mut [u8], headers: &Headers, ttl: u8) {
    let network = usize::from(headers.network);
    if headers.v6 {
        if let Some(ip) = chunk::<IPV6_LEN>(head, network) {
            ip[7] = ttl;
        }
    } else if let Some(ip) = chunk::<IPV4_LEN>(head, network) {
        let before = Sum::of(&ip[8..10]);
        ip[8] = ttl;
        let checksum = follow(load(ip, 10), delta(before, Sum::of(&ip[8..10])));
        store(ip, 10, checksum);
    }
}

/// Lowers the maximum segment size that a SYN announces to at most `mss` bytes; true if it had to. What announces
/// none is left alone: its receiver presumes 536 bytes (1,220 over IPv6), which pass everywhere.
pub fn clamp_mss(head: &mut [u8], headers: &Headers, partial: bool, mss: u16) -> bool {
    let at = usize::from(headers.transport);
    if headers.protocol != TCP
        || headers.tcp_flags & tcp_flags::SYN == 0
        || headers.fragment == Fragment::Later
    {
        return false;
    }
    let end = (usize::from(headers.network) + headers.len as usize).min(head.len());
    let Some(tcp) = head.get_mut(at..end) else { return false };
    if tcp.len() < 20 {
        return false;
    }
    let header_len = (usize::from(tcp[12] >> 4) * 4).min(tcp.len());
    let (fixed, options) = tcp.split_at_mut(20);
    let Some(options) = options.get_mut(..header_len.saturating_sub(20)) else { return false };
    let before = Sum::of(options);
    if !lower_mss(options, mss) {
        return false;
    }
    if !partial {
        store(fixed, 16, follow(load(fixed, 16), delta(before, Sum::of(options))));
    }
    true
}

/// Walks a TCP header's options (RFC 9293, 3.1).
fn lower_mss(options: &mut [u8], mss: u16) -> bool {
    let mut at = 0;
    let mut lowered = false;
    while let Some(&kind) = options.get(at) {
        let len = match (kind, options.get(at + 1)) {
            (0, _) => break,
            (1, _) => 1,
            (_, Some(&len)) if len >= 2 => usize::from(len),
            _ => break,
        };
        if (kind, len) == (2, 4)
            && let Some(value) = options.get_mut(at + 2..at + 4)
            && u16::from_be_bytes([value[0], value[1]]) > mss
        {
            value.copy_from_slice(&mss.to_be_bytes());
            lowered = true;
        }
        at += len;
    }
    lowered
}

#[cfg(test)]
pub(super) mod tests;
