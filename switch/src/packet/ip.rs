//! Where the transport header of an IP packet lies (RFC 791, RFC 8200).
//!
//! Only the frame's snapshot is looked at. Of IPv6's extension headers those are walked that may stand before a
//! whole transport header in the clear: hop-by-hop options, routing, destination options.
#![forbid(unsafe_code)]

use super::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, word_at};

/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// SCTP's protocol number.
pub const SCTP: u8 = 132;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What an IP packet's headers say about its transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Whether it is IPv6, not IPv4.
    pub v6: bool,
    /// Number of the protocol behind the headers.
    pub protocol: u8,
    /// Offset of the transport header from the frame's beginning. It may lie at or beyond the end of the head.
    pub transport: usize,
    /// Whether the packet is a fragment: what is at `transport` may then be no header at all.
    pub fragment: bool,
}

/// Why there is no [`Ip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIp {
    /// The frame carries something else.
    OtherProtocol,
    /// Version or header length contradict the rule.
    Malformed,
    /// The headers go on beyond the bytes at hand.
    Beyond,
}

/// Reads the IP headers at `offset` of a frame whose payload is of type `ethertype`.
pub fn parse(head: &[u8], ethertype: u16, offset: usize) -> Result<Ip, NoIp> {
    let packet = head.get(offset..).ok_or(NoIp::Beyond)?;
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4(packet, offset),
        ETHERTYPE_IPV6 => parse_v6(packet, offset),
        _ => Err(NoIp::OtherProtocol),
    }
}

fn parse_v4(packet: &[u8], offset: usize) -> Result<Ip, NoIp> {
    let header: &[u8; IPV4_LEN] = packet.first_chunk().ok_or(NoIp::Beyond)?;
    let len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || len < IPV4_LEN {
        return Err(NoIp::Malformed);
    }
    // More Fragments, or a fragment offset.
    let fragment = word_at(header, 6) & 0x3fff != 0;
    Ok(Ip { v6: false, protocol: header[9], transport: offset + len, fragment })
}

fn parse_v6(packet: &[u8], offset: usize) -> Result<Ip, NoIp> {
    let header: &[u8; IPV6_LEN] = packet.first_chunk().ok_or(NoIp::Beyond)?;
    if header[0] >> 4 != 6 {
        return Err(NoIp::Malformed);
    }
    let mut protocol = header[6];
    let mut at = IPV6_LEN;
    // Ends: every extension header takes us at least 8 bytes on.
    while matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        let (next, len) = match packet.get(at..) {
            Some([next, len, ..]) => (*next, 8 * (usize::from(*len) + 1)),
            _ => return Err(NoIp::Beyond),
        };
        protocol = next;
        at += len;
    }
    Ok(Ip { v6: true, protocol, transport: offset + at, fragment: protocol == FRAGMENT })
}

/// Where a fragment header goes in the IPv6 packet at `offset` (RFC 8200, section 4.5, as Linux reads it), and where the
/// byte is that names what follows there. `None` if that is beyond the bytes at hand.
pub(super) fn fragmentable(head: &[u8], offset: usize) -> Option<(usize, usize)> {
    let (mut named, mut at) = (offset + 6, offset + IPV6_LEN);
    let mut routing = false;
    loop {
        match *head.get(named)? {
            HOP_BY_HOP => {}
            ROUTING => routing = true,
            // Before a routing header they are for every router, behind it for the destination.
            DESTINATION_OPTIONS if !routing => {}
            _ => return Some((at, named)),
        }
        named = at;
        at += 8 * (usize::from(*head.get(at + 1)?) + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_with_options_and_fragments() {
        let mut packet = vec![0; 2 + 60];
        packet[2..12].copy_from_slice(&[0x46, 0, 0, 60, 0, 1, 0x40, 0, 64, TCP]);
        let whole = Ip { v6: false, protocol: TCP, transport: 26, fragment: false };
        assert_eq!(parse(&packet, 0x0800, 2), Ok(whole));
        packet[8] = 0x20;
        assert_eq!(parse(&packet, 0x0800, 2), Ok(Ip { fragment: true, ..whole }), "more fragments");
        packet[8..10].copy_from_slice(&[0, 1]);
        assert_eq!(parse(&packet, 0x0800, 2), Ok(Ip { fragment: true, ..whole }), "a later fragment");
        packet[2] = 0x44;
        assert_eq!(parse(&packet, 0x0800, 2), Err(NoIp::Malformed));
        packet[2] = 0x65;
        assert_eq!(parse(&packet, 0x0800, 2), Err(NoIp::Malformed));
        assert_eq!(parse(&packet[..21], 0x0800, 2), Err(NoIp::Beyond));
        assert_eq!(parse(&packet, 0x0806, 2), Err(NoIp::OtherProtocol));
        assert_eq!(parse(&packet, 0x0800, 100), Err(NoIp::Beyond));
    }

    #[test]
    fn ipv6_with_extension_headers() {
        let mut packet = vec![0; 40 + 8 + 16];
        packet[0] = 0x60;
        packet[6] = UDP;
        let direct = Ip { v6: true, protocol: UDP, transport: 40, fragment: false };
        assert_eq!(parse(&packet, 0x86dd, 0), Ok(direct));
        packet[6] = HOP_BY_HOP;
        packet[40..42].copy_from_slice(&[DESTINATION_OPTIONS, 0]);
        packet[48..50].copy_from_slice(&[TCP, 1]);
        assert_eq!(parse(&packet, 0x86dd, 0), Ok(Ip { protocol: TCP, transport: 64, ..direct }));
        assert_eq!(parse(&packet[..49], 0x86dd, 0), Err(NoIp::Beyond));
        packet[48] = FRAGMENT;
        let fragment = Ip { v6: true, protocol: FRAGMENT, transport: 64, fragment: true };
        assert_eq!(parse(&packet, 0x86dd, 0), Ok(fragment));
        packet[48..50].copy_from_slice(&[ROUTING, 255]);
        assert_eq!(parse(&packet, 0x86dd, 0), Err(NoIp::Beyond));
        packet[0] = 0x45;
        assert_eq!(parse(&packet, 0x86dd, 0), Err(NoIp::Malformed));
    }

    #[test]
    fn fragments_begin_behind_what_every_router_reads() {
        let mut packet = vec![0; 2 + 40 + 8 + 16 + 8];
        packet[2 + 6] = UDP;
        assert_eq!(fragmentable(&packet, 2), Some((42, 8)));
        packet[2 + 6] = HOP_BY_HOP;
        packet[42..44].copy_from_slice(&[DESTINATION_OPTIONS, 0]);
        packet[50..52].copy_from_slice(&[UDP, 1]);
        assert_eq!(fragmentable(&packet, 2), Some((66, 50)));
        packet[42] = ROUTING;
        packet[50] = DESTINATION_OPTIONS;
        assert_eq!(fragmentable(&packet, 2), Some((66, 50)), "for the destination only");
        assert_eq!(fragmentable(&packet[..51], 2), None);
    }
}
