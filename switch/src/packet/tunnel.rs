//! Packets within packets, as IPVS' director sends them to real servers: IP in IP (RFC 2003, RFC 2473, RFC 4213), GRE
//! (RFC 2784) and generic UDP encapsulation (draft-ietf-intarea-gue), over IPv4 and over IPv6.
//!
//! The outer header takes over what Linux takes over: hop count and class of the inner one, its congestion marks as
//! RFC 6040 wants, and of IPv4 whether it may be fragmented. The inner packet is whole: its checksums are complete.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::ethernet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, HEADER_LEN};
use super::ip::{IPV4_LEN, IPV6_LEN, UDP};
use crate::ipvs::spec::{Tunnel, TunnelChecksum};

/// IPv4 within IP.
const IPIP: u8 = 4;
/// IPv6 within IP.
const IPV6: u8 = 41;
/// GRE.
const GRE: u8 = 47;

const UDP_LEN: usize = 8;
const GUE_LEN: usize = 4;
const GRE_LEN: usize = 4;
/// Checksum, and two bytes that are 0.
const GRE_SUM_LEN: usize = 4;
/// The bit of GRE's flags that says that there is one.
const GRE_SUM: u8 = 0x80;
/// The longest of what comes in front of a packet.
pub const LONGEST: usize = IPV6_LEN + UDP_LEN + GUE_LEN;

/// From whom to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Over IPv4.
    V4(u32, u32),
    /// Over IPv6.
    V6(u128, u128),
}

impl Ends {
    fn ip_len(&self) -> usize {
        match self {
            Self::V4(..) => IPV4_LEN,
            Self::V6(..) => IPV6_LEN,
        }
    }
}

/// What comes in front of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The kind of tunnel.
    pub tunnel: Tunnel,
    /// Its ends.
    pub ends: Ends,
    /// Identification of the outer packet (IPv4).
    pub id: u16,
    /// A number that differs between flows: GUE's source port, so that they spread over paths.
    pub flow: u16,
}

impl Outer {
    /// Bytes in front of the inner packet, from the outer IP header on.
    pub fn len(&self) -> usize {
        self.ends.ip_len()
            + match self.tunnel {
                Tunnel::Ipip => 0,
                Tunnel::Gue { .. } => UDP_LEN + GUE_LEN,
                Tunnel::Gre { checksum: TunnelChecksum::None } => GRE_LEN,
                Tunnel::Gre { .. } => GRE_LEN + GRE_SUM_LEN,
            }
    }

    /// Whether there is nothing, which is never so.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Has `write` write a frame, whose length it says, and wraps the packet in it; the length of all.
    pub fn write(&self, space: &mut [u8], write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<usize> {
        let before = self.len();
        // Its Ethernet header lies where the end of the outer headers will be.
        let len = before + write(space.get_mut(before..)?)?;
        self.wrap(space.get_mut(..len)?)?;
        Some(len)
    }

    /// Writes it into a frame in whose first bytes there is room for an Ethernet header and [`Outer::len`] bytes, and
    /// whose rest is the inner packet. The ethertype is written, addresses are not. `None` if the frame is too short,
    /// the inner packet is none, or the outer one would be too long.
    pub fn wrap(&self, frame: &mut [u8]) -> Option<()> {
        let (head, inner) = frame.split_at_mut_checked(HEADER_LEN + self.len())?;
        let (v6, class, ttl, dont_fragment) = match inner.first()? >> 4 {
            4 => (false, *inner.get(1)?, *inner.get(8)?, inner.get(6)? & 0x40 != 0),
            6 => (true, inner[0] << 4 | inner.get(1)? >> 4, *inner.get(7)?, true),
            _ => return None,
        };
        let class = class_of(class);
        let ip_len = self.ends.ip_len();
        let payload = self.len() - ip_len + inner.len();
        let next = if v6 { IPV6 } else { IPIP };
        let protocol = match self.tunnel {
            Tunnel::Ipip => next,
            Tunnel::Gue { .. } => UDP,
            Tunnel::Gre { .. } => GRE,
        };
        let (ethernet, rest) = head.split_at_mut(HEADER_LEN);
        let (ip, shim) = rest.split_at_mut(ip_len);
        let ethertype = match self.ends {
            Ends::V4(source, destination) => {
                let ip = ip.first_chunk_mut::<IPV4_LEN>()?;
                let len = u16::try_from(IPV4_LEN + payload).ok()?.to_be_bytes();
                let id = self.id.to_be_bytes();
                let flags = if dont_fragment { 0x40 } else { 0 };
                *ip = [0; IPV4_LEN];
                ip[..10]
                    .copy_from_slice(&[0x45, class, len[0], len[1], id[0], id[1], flags, 0, ttl, protocol]);
                ip[12..16].copy_from_slice(&source.to_be_bytes());
                ip[16..].copy_from_slice(&destination.to_be_bytes());
                let checksum = Sum::of(ip).checksum();
                ip[10..12].copy_from_slice(&checksum);
                ETHERTYPE_IPV4
            }
            Ends::V6(source, destination) => {
                let ip = ip.first_chunk_mut::<IPV6_LEN>()?;
                let len = u16::try_from(payload).ok()?.to_be_bytes();
                ip[..4].copy_from_slice(&(6 << 28 | u32::from(class) << 20).to_be_bytes());
                ip[4..8].copy_from_slice(&[len[0], len[1], protocol, ttl]);
                ip[8..24].copy_from_slice(&source.to_be_bytes());
                ip[24..].copy_from_slice(&destination.to_be_bytes());
                ETHERTYPE_IPV6
            }
        };
        ethernet[12..].copy_from_slice(&ethertype.to_be_bytes());
        match self.tunnel {
            Tunnel::Ipip => {}
            Tunnel::Gre { checksum } => {
                let inner_type = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
                shim.fill(0);
                shim[2..4].copy_from_slice(&inner_type.to_be_bytes());
                if checksum != TunnelChecksum::None {
                    shim[0] = GRE_SUM;
                    // The header's length is even, so that both parts add up.
                    let checksum = (Sum::of(shim) + Sum::of(inner)).checksum();
                    shim[4..6].copy_from_slice(&checksum);
                }
            }
            Tunnel::Gue { port, checksum } => {
                let len = u16::try_from(payload).ok()?;
                // As udp_flow_src_port of Linux: of the ephemeral ones.
                let source = 0xc000 | self.flow;
                shim[..2].copy_from_slice(&source.to_be_bytes());
                shim[2..4].copy_from_slice(&port.to_be_bytes());
                shim[4..6].copy_from_slice(&len.to_be_bytes());
                shim[6..8].fill(0);
                shim[8..12].copy_from_slice(&[0, next, 0, 0]);
                // There is nothing to leave to the receiver: the inner checksum is complete.
                if checksum == TunnelChecksum::Full {
                    let addresses = match self.ends {
                        Ends::V4(..) => Sum::of(&ip[12..]),
                        Ends::V6(..) => Sum::of(&ip[8..]),
                    };
                    let pseudo = addresses + Sum::of_word(UDP.into()) + Sum::of_word(len);
                    let checksum = match (pseudo + Sum::of(shim) + Sum::of(inner)).checksum() {
                        [0, 0] => [0xff, 0xff],
                        checksum => checksum,
                    };
                    shim[6..8].copy_from_slice(&checksum);
                }
            }
        }
        Some(())
    }
}

/// The outer class of an inner one: "congestion experienced" stays inside (RFC 6040, section 4.1, "compatibility mode"
/// of RFC 3168, as Linux has it).
fn class_of(inner: u8) -> u8 {
    if inner & 3 == 3 { inner & !1 } else { inner }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;
    use crate::packet::headers::Headers;

    fn inner(v6: bool) -> Vec<u8> {
        let step = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let step =
            if v6 { step.ipv6([1; 16], [2; 16], 33) } else { step.ipv4([10, 0, 0, 1], [10, 9, 9, 9], 33) };
        let mut frame = Vec::new();
        step.udp(1000, 53).write(&mut frame, b"an odd payload.").expect("a packet");
        frame.split_off(14)
    }

    fn wrapped(tunnel: Tunnel, over_v6: bool, inner: &[u8]) -> Vec<u8> {
        let ends = if over_v6 { Ends::V6(1 << 100, 2 << 100) } else { Ends::V4(0x0a00_0001, 0x0a00_0002) };
        let outer = Outer { tunnel, ends, id: 77, flow: 5 };
        let mut frame = [&vec![0xee; 14 + outer.len()][..], inner].concat();
        outer.wrap(&mut frame).expect("room");
        frame
    }

    const ALL: [Tunnel; 6] = [
        Tunnel::Ipip,
        Tunnel::Gre { checksum: TunnelChecksum::None },
        Tunnel::Gre { checksum: TunnelChecksum::Full },
        Tunnel::Gue { port: 5555, checksum: TunnelChecksum::None },
        Tunnel::Gue { port: 5555, checksum: TunnelChecksum::Full },
        Tunnel::Gue { port: 5555, checksum: TunnelChecksum::Remote },
    ];

    #[test]
    fn outer_headers_are_sound_and_the_inner_packet_is_untouched() {
        for (over_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
            let packet = inner(inner_v6);
            for tunnel in ALL {
                let frame = wrapped(tunnel, over_v6, &packet);
                assert!(frame.ends_with(&packet), "{tunnel:?}");
                let headers = Headers::parse(&frame, frame.len(), 14, over_v6).expect("a sound header");
                assert_eq!((headers.ttl, headers.len as usize), (33, frame.len() - 14));
                let next = if inner_v6 { 41 } else { 4 };
                let at = usize::from(headers.transport);
                match tunnel {
                    Tunnel::Ipip => assert_eq!((headers.protocol, at), (next, frame.len() - packet.len())),
                    Tunnel::Gre { checksum } => {
                        assert_eq!(headers.protocol, 47);
                        let kind = if inner_v6 { [0x86, 0xdd] } else { [8, 0] };
                        assert_eq!(frame[at + 2..at + 4], kind);
                        let summed = checksum == TunnelChecksum::Full;
                        assert_eq!(frame[at] == 0x80, summed);
                        assert!(!summed || Sum::of(&frame[at..]).checksum() == [0, 0]);
                    }
                    Tunnel::Gue { checksum, .. } => {
                        assert_eq!((headers.protocol, headers.destination_port), (17, 5555));
                        assert_eq!(frame[at + 8..at + 12], [0, next, 0, 0]);
                        let sliced = SlicedPacket::from_ethernet(&frame).expect("a packet");
                        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
                        if checksum == TunnelChecksum::Full {
                            let header = udp.to_header();
                            let right = match sliced.net.expect("IP") {
                                NetSlice::Ipv4(ip) => {
                                    header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
                                }
                                NetSlice::Ipv6(ip) => {
                                    header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
                                }
                                NetSlice::Arp(_) => panic!("ARP"),
                            };
                            assert_eq!(udp.checksum(), right.expect("a checksum"));
                        } else {
                            assert_eq!(udp.checksum(), 0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn class_and_fragmentation_are_taken_over() {
        let mut packet = inner(false);
        (packet[1], packet[6]) = (0xb9, 0x40);
        let frame = wrapped(Tunnel::Ipip, false, &packet);
        assert_eq!((frame[15], frame[20] & 0x40), (0xb9, 0x40));
        (packet[1], packet[6]) = (0xbb, 0);
        let frame = wrapped(Tunnel::Ipip, false, &packet);
        assert_eq!((frame[15], frame[20] & 0x40), (0xba, 0), "congestion stays inside");
        assert_eq!(wrapped(Tunnel::Ipip, true, &packet)[14..16], [0x6b, 0xa0]);
    }

    #[test]
    fn what_is_no_packet_or_too_long_is_refused() {
        let outer = |tunnel| Outer { tunnel, ends: Ends::V4(1, 2), id: 0, flow: 0 };
        for tunnel in ALL {
            let outer = outer(tunnel);
            assert!(outer.len() <= LONGEST);
            for len in 0..=14 + outer.len() {
                assert_eq!(outer.wrap(&mut vec![0x45; len]), None, "{len}");
            }
            let mut short = vec![0; 14 + outer.len() + 1];
            assert_eq!(outer.wrap(&mut short), None, "no version");
            let mut long = vec![0x45; 14 + 65_536];
            assert_eq!(outer.wrap(&mut long), None);
        }
    }
}
