//! The headers of an IP packet as routing and connection tracking need them, read once from a frame's snapshot.
//!
//! Offsets are from the frame's beginning. Nothing is believed: lengths are checked against the frame, and a packet
//! that contradicts itself is an error with the name of its drop reason (RFC 791, RFC 8200, RFC 1812 section 5.2.2).
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::ip::{ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, SCTP, TCP, UDP};
use super::tuple::Tuple;
use crate::drops::DropReason;

/// TCP's flags.
pub mod tcp_flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgement is valid.
    pub const ACK: u8 = 0x10;
}

/// Whether a packet is part of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    None,
    /// The first part: its transport header is there.
    First,
    /// A later part.
    Later,
}

/// What the headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// The protocol of the transport header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Flags of a TCP header; 0 for other protocols.
    pub tcp_flags: u8,
    /// Where the IP header begins.
    pub network: u16,
    /// Where the transport header begins.
    pub transport: u16,
    /// Bytes of the IP packet, headers included.
    pub len: u32,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// Ports as [`Tuple`] has them, or zeros.
    pub source_port: u16,
    /// See `source_port`.
    pub destination_port: u16,
    /// An ICMP message about another packet.
    pub icmp_error: bool,
}

impl Headers {
    /// Reads the headers of a frame of `frame_len` bytes, whose IP packet (version by `v6`) begins at `network`.
    ///
    /// # Errors
    /// The drop reason of a packet that must not be forwarded.
    #[inline]
    pub fn parse(head: &[u8], frame_len: usize, network: usize, v6: bool) -> Result<Self, DropReason> {
        if v6 { Self::parse_v6(head, frame_len, network) } else { Self::parse_v4(head, frame_len, network) }
    }

    #[inline]
    fn parse_v4(head: &[u8], frame_len: usize, network: usize) -> Result<Self, DropReason> {
        let ip =
            head.get(network..).and_then(|ip| ip.first_chunk::<IPV4_LEN>()).ok_or(DropReason::IpTruncated)?;
        let header_len = usize::from(ip[0] & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        if ip[0] >> 4 != 4 || header_len < IPV4_LEN || len < header_len {
            return Err(DropReason::IpHeader);
        }
        if len > frame_len - network {
            return Err(DropReason::IpTruncated);
        }
        let header = head.get(network..network + header_len).ok_or(DropReason::IpTruncated)?;
        if Sum::of(header).folded() != [0xff; 2] {
            return Err(DropReason::IpChecksum);
        }
        let fragment_word = u16::from_be_bytes([ip[6], ip[7]]);
        let fragment = match (fragment_word & 0x1fff, fragment_word & 0x2000) {
            (0, 0) => Fragment::None,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        let mut headers = Self {
            v6: false,
            protocol: ip[9],
            ttl: ip[8],
            tcp_flags: 0,
            network: network as u16,
            transport: (network + header_len) as u16,
            len: len as u32,
            fragment,
            source_port: 0,
            destination_port: 0,
            icmp_error: false,
        };
        headers.read_transport(head)?;
        Ok(headers)
    }

    #[inline]
    fn parse_v6(head: &[u8], frame_len: usize, network: usize) -> Result<Self, DropReason> {
        let ip =
            head.get(network..).and_then(|ip| ip.first_chunk::<IPV6_LEN>()).ok_or(DropReason::IpTruncated)?;
        let len = usize::from(u16::from_be_bytes([ip[4], ip[5]])) + IPV6_LEN;
        if ip[0] >> 4 != 6 {
            return Err(DropReason::IpHeader);
        }
        if len > frame_len - network {
            return Err(DropReason::IpTruncated);
        }
        let (mut protocol, mut at, mut fragment) = (ip[6], network + IPV6_LEN, Fragment::None);
        // Ends: every extension header takes us at least 8 bytes on.
        while matches!(protocol, 0 | 43 | 44 | 60) {
            let Some(&[next, words, high, low, ..]) = head.get(at..) else {
                return Err(DropReason::IpTruncated);
            };
            if protocol == 44 {
                let word = u16::from_be_bytes([high, low]);
                fragment = match (word & 0xfff8, word & 1) {
                    (0, 0) => Fragment::None, // an "atomic" fragment, RFC 6946
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                at += 8;
            } else {
                at += 8 * (usize::from(words) + 1);
            }
            protocol = next;
            if fragment == Fragment::Later {
                break;
            }
        }
        if at > network + len {
            return Err(DropReason::IpHeader);
        }
        let mut headers = Self {
            v6: true,
            protocol,
            ttl: ip[7],
            tcp_flags: 0,
            network: network as u16,
            transport: at as u16,
            len: len as u32,
            fragment,
            source_port: 0,
            destination_port: 0,
            icmp_error: false,
        };
        headers.read_transport(head)?;
        Ok(headers)
    }

    #[inline]
    fn read_transport(&mut self, head: &[u8]) -> Result<(), DropReason> {
        if self.fragment == Fragment::Later {
            return Ok(());
        }
        let needed = match self.protocol {
            TCP => 20,
            UDP | ICMP | ICMPV6 => 8,
            SCTP => 12,
            _ => return Ok(()),
        };
        let at = usize::from(self.transport);
        if at + needed > usize::from(self.network) + self.len as usize {
            return Err(DropReason::TransportTruncated);
        }
        let transport = head.get(at..at + needed).ok_or(DropReason::TransportTruncated)?;
        let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
        match self.protocol {
            TCP | UDP | SCTP => {
                (self.source_port, self.destination_port) = (word(0), word(2));
                if self.protocol == TCP {
                    self.tcp_flags = transport[13];
                    if transport[12] >> 4 < 5 {
                        return Err(DropReason::TransportTruncated);
                    }
                }
            }
            _ => match icmp_request(self.v6, transport[0]) {
                Some(request) => (self.source_port, self.destination_port) = (word(4), u16::from(request)),
                None => self.icmp_error = is_icmp_error(self.v6, transport[0]),
            },
        }
        Ok(())
    }

    /// Source and destination of an IPv4 packet, host order.
    #[inline]
    pub fn addresses_v4(&self, head: &[u8]) -> (u32, u32) {
        let at = usize::from(self.network) + 12;
        let word = |at: usize| {
            head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        (word(at), word(at + 4))
    }

    /// Source and destination of an IPv6 packet, host order.
    #[inline]
    pub fn addresses_v6(&self, head: &[u8]) -> (u128, u128) {
        let at = usize::from(self.network) + 8;
        let word = |at: usize| {
            head.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u128::from_be_bytes(*bytes))
        };
        (word(at), word(at + 16))
    }

    /// The tuple, for first packets.
    pub fn tuple(&self, head: &[u8]) -> Tuple {
        let (source, destination): (IpAddr, IpAddr) = if self.v6 {
            let (source, destination) = self.addresses_v6(head);
            (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into())
        } else {
            let (source, destination) = self.addresses_v4(head);
            (Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into())
        };
        Tuple {
            source,
            destination,
            protocol: self.protocol,
            source_port: self.source_port,
            destination_port: self.destination_port,
        }
    }
}

/// The type of the request, if an ICMP type is a query or its answer.
#[inline]
pub fn icmp_request(v6: bool, kind: u8) -> Option<u8> {
    match (v6, kind) {
        (false, 0 | 8) => Some(8),
        (false, 13 | 14) => Some(13),
        (false, 15 | 16) => Some(15),
        (false, 17 | 18) => Some(17),
        (true, 128 | 129) => Some(128),
        _ => None,
    }
}

/// Whether an ICMP type reports a problem with a packet that it quotes.
#[inline]
pub fn is_icmp_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 4 | 5 | 11 | 12) }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn v4(build: impl FnOnce(etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8>) -> Vec<u8> {
        build(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
    }

    fn udp(step: etherparse::PacketBuilderStep<etherparse::IpHeaders>) -> Vec<u8> {
        let mut bytes = Vec::new();
        step.udp(1000, 53).write(&mut bytes, b"data").expect("a packet");
        bytes
    }

    #[test]
    fn a_datagram_is_read() {
        let frame = v4(udp);
        let headers = Headers::parse(&frame, frame.len(), 14, false).expect("good");
        assert_eq!((headers.protocol, headers.ttl, headers.transport, headers.len), (17, 64, 34, 32));
        let tuple = headers.tuple(&frame);
        assert_eq!((tuple.source_port, tuple.destination_port), (1000, 53));
        assert_eq!(tuple.source, IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn contradictions_have_names() {
        let good = v4(udp);
        let parse = |frame: &[u8]| Headers::parse(frame, frame.len(), 14, false);
        let with = |at: usize, byte: u8| {
            let mut frame = good.clone();
            frame[at] = byte;
            let header = usize::from(frame[14] & 0xf) * 4;
            if header >= 20 {
                frame[24..26].fill(0);
                let sum = Sum::of(&frame[14..(14 + header).min(46)]).checksum();
                frame[24..26].copy_from_slice(&sum);
            }
            parse(&frame)
        };
        assert_eq!(with(14, 0x65), Err(DropReason::IpHeader), "version");
        assert_eq!(with(14, 0x44), Err(DropReason::IpHeader), "header of 16 bytes");
        assert_eq!(with(17, 19), Err(DropReason::IpHeader), "shorter than its header");
        assert_eq!(with(17, 33), Err(DropReason::IpTruncated), "longer than the frame");
        assert_eq!(with(17, 27), Err(DropReason::TransportTruncated), "no room for UDP");
        let mut frame = good.clone();
        frame[22] ^= 1;
        assert_eq!(parse(&frame), Err(DropReason::IpChecksum));
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut frame = v4(udp);
        frame[20..22].copy_from_slice(&[0x20, 0x01]);
        frame[24..26].fill(0);
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum);
        let headers = Headers::parse(&frame, frame.len(), 14, false).expect("good");
        assert_eq!((headers.fragment, headers.source_port), (Fragment::Later, 0));
    }

    proptest! {
        #[test]
        fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..128), v6: bool, network in 0_usize..40) {
            let network = network.min(bytes.len());
            if let Ok(headers) = Headers::parse(&bytes, bytes.len(), network, v6) {
                let _ = headers.tuple(&bytes);
            }
        }

        #[test]
        fn neither_do_bytes_that_almost_fit(
            rest in proptest::collection::vec(any::<u8>(), 60..114), protocol: u8, words in 5_u8..8, v6: bool
        ) {
            let mut frame = vec![0; 14];
            frame.extend(&rest);
            if v6 {
                frame[14] = 0x60;
                frame[18..20].copy_from_slice(&20_u16.to_be_bytes());
                frame[20] = protocol;
            } else {
                frame[14] = 0x40 | words;
                frame[16..18].copy_from_slice(&60_u16.to_be_bytes());
                frame[23] = protocol;
                frame[24..26].fill(0);
                let sum = Sum::of(&frame[14..14 + 4 * usize::from(words)]).checksum();
                frame[24..26].copy_from_slice(&sum);
            }
            if let Ok(headers) = Headers::parse(&frame, frame.len(), 14, v6) {
                prop_assert!(usize::from(headers.transport) <= 14 + headers.len as usize || headers.fragment == Fragment::Later);
            }
        }
    }
}
