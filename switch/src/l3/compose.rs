//! Headers of the frames that the switch itself sends, untagged.
//!
//! Lengths come from our own code; a buffer that is too short leaves nothing behind but `None`.
#![forbid(unsafe_code)]

use crate::packet::checksum::Sum;
use crate::packet::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, HEADER_LEN, Mac};
use crate::packet::ip::{ICMPV6, IPV4_LEN, IPV6_LEN};

/// Hops that a packet of the switch's own may go: what Linux gives its own.
pub const TTL: u8 = 64;

/// The addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
}

impl Link {
    /// Of an answer to the frame that begins with `head`, from the station that it was sent to.
    pub fn answer(head: &[u8]) -> Self {
        use crate::packet::ethernet::{destination, source};
        Self { destination: source(head), source: destination(head) }
    }
}

/// What the IP header of a frame of our own says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// From.
    pub source: A,
    /// To.
    pub destination: A,
    /// What it carries.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's type of service, IPv6's traffic class.
    pub class: u8,
}

/// Writes the Ethernet header.
pub(crate) fn ethernet(out: &mut [u8], link: Link, ethertype: u16) -> Option<()> {
    let header = out.first_chunk_mut::<HEADER_LEN>()?;
    header[..6].copy_from_slice(&link.destination.0);
    header[6..12].copy_from_slice(&link.source.0);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    Some(())
}

/// Addresses (`u32`, `u128`) that a header can be made of.
pub trait Compose: Sized {
    /// Where the transport header begins in a frame.
    const TRANSPORT: usize;

    /// Writes the headers of a frame whose IP packet carries `payload` bytes; `None` if `out` is too short or the
    /// packet too long.
    fn headers(out: &mut [u8], link: Link, ip: Ip<Self>, payload: usize) -> Option<()>;
}

impl Compose for u32 {
    const TRANSPORT: usize = HEADER_LEN + IPV4_LEN;

    /// Whole packets that must not be fragmented, so that the identification means nothing (RFC 6864).
    fn headers(out: &mut [u8], link: Link, ip: Ip<Self>, payload: usize) -> Option<()> {
        ethernet(out, link, ETHERTYPE_IPV4)?;
        let header = out.get_mut(HEADER_LEN..)?.first_chunk_mut::<IPV4_LEN>()?;
        let len = u16::try_from(IPV4_LEN + payload).ok()?.to_be_bytes();
        *header = [0; IPV4_LEN];
        header[..10].copy_from_slice(&[0x45, ip.class, len[0], len[1], 0, 0, 0x40, 0, ip.ttl, ip.protocol]);
        header[12..16].copy_from_slice(&ip.source.to_be_bytes());
        header[16..].copy_from_slice(&ip.destination.to_be_bytes());
        let checksum = Sum::of(header).checksum();
        header[10..12].copy_from_slice(&checksum);
        Some(())
    }
}

impl Compose for u128 {
    const TRANSPORT: usize = HEADER_LEN + IPV6_LEN;

    fn headers(out: &mut [u8], link: Link, ip: Ip<Self>, payload: usize) -> Option<()> {
        ethernet(out, link, ETHERTYPE_IPV6)?;
        let header = out.get_mut(HEADER_LEN..)?.first_chunk_mut::<IPV6_LEN>()?;
        let len = u16::try_from(payload).ok()?.to_be_bytes();
        let class = (0x6000_0000 | u32::from(ip.class) << 20).to_be_bytes();
        header[..4].copy_from_slice(&class);
        header[4..8].copy_from_slice(&[len[0], len[1], ip.protocol, ip.ttl]);
        header[8..24].copy_from_slice(&ip.source.to_be_bytes());
        header[24..].copy_from_slice(&ip.destination.to_be_bytes());
        Some(())
    }
}

/// The sum of a pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) with the addresses' sum given.
pub(crate) fn pseudo(addresses: Sum, protocol: u8, len: usize) -> Sum {
    addresses + Sum::of_word(u16::from(protocol)) + Sum::of(&(len as u32).to_be_bytes())
}

/// Fills in the checksum of the ICMPv6 message that is the rest of the frame in `out`.
pub(crate) fn finish_icmpv6(out: &mut [u8]) -> Option<()> {
    let addresses = Sum::of(out.get(HEADER_LEN + 8..HEADER_LEN + IPV6_LEN)?);
    let message = out.get_mut(u128::TRANSPORT..)?;
    message.get_mut(2..4)?.fill(0);
    let sum = pseudo(addresses, ICMPV6, message.len()) + Sum::of(message);
    message[2..4].copy_from_slice(&sum.checksum());
    Some(())
}
