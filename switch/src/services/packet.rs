//! The frames that services read and write.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::dhcp::{CLIENT_PORT, SERVER_PORT};
use super::mailbox::Letter;
use crate::l3::arp::{Arp, ETHERTYPE_ARP, Operation};
use crate::l3::compose::{Compose, Ip, Link, pseudo};
use crate::l3::nd;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, HEADER_LEN, Mac, TAG_LEN, source, word_at,
};
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{ICMPV6, UDP, UDP_LEN};

const TTL: u8 = 64;

/// Ethertype behind at most one VLAN tag, and where its packet begins.
#[inline]
fn payload(head: &[u8]) -> (u16, usize) {
    match word_at(head, 12) {
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => (word_at(head, 12 + TAG_LEN), HEADER_LEN + TAG_LEN),
        kind => (kind, HEADER_LEN),
    }
}

/// Whether a service is interested in a frame to an interface's address, to all, or to a group, given its first bytes:
/// DHCP requests, router solicitations, answers to ARP probes. What else they are is checked later.
#[inline]
pub fn wants(head: &[u8]) -> bool {
    let (kind, at) = payload(head);
    let byte = |offset: usize| head.get(at + offset).copied().unwrap_or(0);
    match kind {
        ETHERTYPE_IPV4 => {
            let header = usize::from(byte(0) & 0xf) * 4;
            byte(9) == UDP
                && word_at(head, at + 6) & 0x3fff == 0
                && word_at(head, at + header + 2) == SERVER_PORT
        }
        ETHERTYPE_IPV6 => byte(6) == ICMPV6 && byte(40) == nd::kind::ROUTER_SOLICITATION,
        ETHERTYPE_ARP => byte(7) == 2 && head.get(at + 24..at + 28) == Some(&[0; 4]),
        _ => false,
    }
}

/// What a frame brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// A datagram to the DHCP server's port.
    Dhcp { mac: Mac, source: Ipv4Addr, message: &'a [u8] },
    /// A router solicitation; `source` may be unspecified.
    RouterSolicitation { mac: Mac, source: Ipv6Addr },
    /// The answer to a probe.
    InUse { mac: Mac, address: Ipv4Addr },
}

/// Reads a frame; `None` if it is malformed, or nothing that services are interested in.
pub(super) fn read(letter: &Letter) -> Option<Incoming<'_>> {
    let frame = letter.frame();
    let (kind, at) = payload(frame);
    match kind {
        ETHERTYPE_ARP => {
            let arp = Arp::parse(frame, at)?;
            let answer = arp.operation == Operation::Reply && arp.target == 0 && arp.sender != 0;
            answer.then_some(Incoming::InUse { mac: arp.sender_mac, address: arp.sender.into() })
        }
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {
            let headers = Headers::parse(frame, frame.len(), at, kind == ETHERTYPE_IPV6).ok()?;
            if nd::is_message(frame, &headers) {
                return match nd::parse(frame, &headers, letter.checksum_pending()).ok()? {
                    nd::Message::RouterSolicitation { source: from, mac } => {
                        Some(Incoming::RouterSolicitation {
                            mac: mac.unwrap_or(source(frame)),
                            source: from.into(),
                        })
                    }
                    _ => None,
                };
            }
            let to_server = headers.protocol == UDP && headers.destination_port == SERVER_PORT;
            if headers.v6 || headers.fragment != Fragment::None || !to_server {
                return None;
            }
            let message = datagram(frame, &headers, letter.checksum_pending())?;
            let from = headers.addresses_v4(frame).0;
            Some(Incoming::Dhcp { mac: source(frame), source: from.into(), message })
        }
        _ => None,
    }
}

/// The payload of a UDP datagram over IPv4, if its length and checksum are right.
fn datagram<'a>(frame: &'a [u8], headers: &Headers, checksum_pending: bool) -> Option<&'a [u8]> {
    let start = usize::from(headers.transport);
    let end = usize::from(headers.network) + headers.len as usize;
    let udp = frame.get(start..end)?;
    let udp = udp.get(..usize::from(word_at(udp, 4)))?;
    if word_at(udp, 6) != 0 && !checksum_pending {
        let (source, destination) = headers.addresses_v4(frame);
        let addresses = Sum::of(&source.to_be_bytes()) + Sum::of(&destination.to_be_bytes());
        if (pseudo(addresses, UDP, udp.len()) + Sum::of(udp)).folded() != [0xff; 2] {
            return None;
        }
    }
    udp.get(UDP_LEN..)
}

/// A datagram from the DHCP server to a client.
pub(super) fn to_client(
    link: Link,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    message: &[u8],
) -> Option<Vec<u8>> {
    let len = UDP_LEN + message.len();
    let mut frame = vec![0; u32::TRANSPORT + len];
    let (source, destination) = (source.to_bits(), destination.to_bits());
    // RFC 2131's clients may be booting: network control, as other servers mark it, gets through where it is full.
    let ip = Ip { source, destination, protocol: UDP, ttl: TTL, class: 0xc0 };
    Compose::headers(&mut frame, link, ip, len)?;
    let udp = &mut frame[u32::TRANSPORT..];
    udp[..2].copy_from_slice(&SERVER_PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
    udp[UDP_LEN..].copy_from_slice(message);
    let addresses = Sum::of(&source.to_be_bytes()) + Sum::of(&destination.to_be_bytes());
    let checksum = (pseudo(addresses, UDP, len) + Sum::of(udp)).checksum();
    // Zero would mean that there is none.
    udp[6..8].copy_from_slice(if checksum == [0; 2] { &[0xff; 2] } else { &checksum });
    Some(frame)
}

#[cfg(test)]
mod tests;
