//! Frames for tests, put together by etherparse and by the definitions of the RFCs: nothing here shares code with
//! what it is to judge.

use etherparse::{
    IpNumber, Ipv4Header, Ipv6Header, NetHeaders, PacketHeaders, TcpHeader, TransportHeader, UdpHeader,
};
use vhost_backend::net_header::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

pub(crate) const SOURCE_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const V4: [[u8; 4]; 2] = [[10, 1, 2, 3], [10, 1, 2, 4]];
const V6: [[u8; 16]; 3] = [address(1), address(2), address(3)];

const fn address(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0xab, 0xcd, 0, 0, 0, 0, 0xff, 0xfe, 0, last]
}

/// How the checksum field of a frame is to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Whole,
    Partial,
}

/// A TCP frame.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) v6: bool,
    /// VLAN tags.
    pub(crate) tags: usize,
    /// IPv4: option bytes (a multiple of 4, up to 40). IPv6: bytes of hop-by-hop options (a multiple of 8).
    pub(crate) ip_options: usize,
    /// IPv6: a routing header whose last address is not yet the header's destination.
    pub(crate) routing: bool,
    /// Bytes of TCP options (a multiple of 4, up to 40).
    pub(crate) options: usize,
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) identification: u16,
    pub(crate) payload: Vec<u8>,
}

impl Tcp {
    pub(crate) fn new(v6: bool, payload: usize) -> Self {
        Self {
            v6,
            tags: 0,
            ip_options: 0,
            routing: false,
            options: 12,
            flags: ACK,
            sequence: 0x1234_5678,
            identification: 0x4321,
            payload: noise(payload),
        }
    }

    pub(crate) fn ip_at(&self) -> usize {
        14 + 4 * self.tags
    }

    pub(crate) fn tcp_at(&self) -> usize {
        let fixed = if self.v6 { 40 } else { 20 };
        self.ip_at() + fixed + self.ip_options + if self.v6 && self.routing { 24 } else { 0 }
    }

    pub(crate) fn headers(&self) -> usize {
        self.tcp_at() + 20 + self.options
    }

    /// What a guest asks for with this frame.
    pub(crate) fn request(&self, gso_size: u16) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: if self.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            hdr_len: self.headers() as u16,
            gso_size,
            csum_start: self.tcp_at() as u16,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    /// The segments that the frame stands for.
    pub(crate) fn segments(&self, size: usize) -> Vec<Self> {
        let count = self.payload.len().div_ceil(size);
        let segment = |(n, payload): (usize, &[u8])| {
            let mut flags = self.flags;
            if n > 0 {
                flags &= !CWR;
            }
            if n + 1 < count {
                flags &= !(FIN | PSH);
            }
            Self {
                flags,
                sequence: self.sequence.wrapping_add((n * size) as u32),
                identification: self.identification.wrapping_add(n as u16),
                payload: payload.to_vec(),
                ..self.clone()
            }
        };
        self.payload.chunks(size).enumerate().map(segment).collect()
    }

    pub(crate) fn bytes(&self, checksum: Checksum) -> Vec<u8> {
        let mut tcp = TcpHeader::new(40000, 443, self.sequence, 501);
        tcp.acknowledgment_number = 0xfeed_beef;
        tcp.set_options_raw(&vec![1; self.options]).unwrap();
        tcp.fin = self.flags & FIN != 0;
        tcp.psh = self.flags & PSH != 0;
        tcp.ack = self.flags & ACK != 0;
        tcp.cwr = self.flags & CWR != 0;
        let length = tcp.header_len() + self.payload.len();
        let (ip, pseudo) = if self.v6 {
            let (ip, to) = self.ipv6(6, length);
            let whole = tcp.calc_checksum_ipv6_raw(V6[0], to, &self.payload).unwrap();
            tcp.checksum = whole;
            (ip, pseudo(&V6[0], &to, 6, length))
        } else {
            tcp.checksum = tcp.calc_checksum_ipv4_raw(V4[0], V4[1], &self.payload).unwrap();
            (self.ipv4(6, length), pseudo(&V4[0], &V4[1], 6, length))
        };
        if checksum == Checksum::Partial {
            tcp.checksum = pseudo;
        }
        [self.ethernet(), ip, tcp.to_bytes().to_vec(), self.payload.clone()].concat()
    }

    /// The same payload as a UDP datagram behind the same headers.
    pub(crate) fn bytes_of_udp(&self, checksum: Checksum) -> Vec<u8> {
        let length = 8 + self.payload.len();
        let mut udp =
            UdpHeader { source_port: 53, destination_port: 40000, length: length as u16, checksum: 0 };
        let (ip, pseudo) = if self.v6 {
            let (ip, to) = self.ipv6(17, length);
            udp.checksum = udp.calc_checksum_ipv6_raw(V6[0], to, &self.payload).unwrap();
            (ip, pseudo(&V6[0], &to, 17, length))
        } else {
            udp.checksum = udp.calc_checksum_ipv4_raw(V4[0], V4[1], &self.payload).unwrap();
            (self.ipv4(17, length), pseudo(&V4[0], &V4[1], 17, length))
        };
        if checksum == Checksum::Partial {
            udp.checksum = pseudo;
        }
        [self.ethernet(), ip, udp.to_bytes().to_vec(), self.payload.clone()].concat()
    }

    /// What a guest asks for with [`Self::bytes_of_udp`].
    pub(crate) fn request_of_udp(&self) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            csum_start: self.tcp_at() as u16,
            csum_offset: 6,
            ..NetHeader::default()
        }
    }

    /// The same, to be cut into datagrams (USO) or fragments (UFO).
    pub(crate) fn request_of_datagrams(&self, gso_type: u8, gso_size: u16) -> NetHeader {
        let hdr_len = self.tcp_at() as u16 + 8;
        NetHeader { gso_type, gso_size, hdr_len, ..self.request_of_udp() }
    }

    /// What [`Self::bytes_of_udp`] stands for with such a request: whole datagrams with `checksum`, or fragments, in
    /// IPv6 with this number.
    pub(crate) fn datagrams(
        &self,
        gso_type: u8,
        size: usize,
        checksum: Checksum,
        number: u32,
    ) -> Vec<Vec<u8>> {
        if gso_type == GSO_UDP_L4 {
            return self.segments(size).iter().map(|datagram| datagram.bytes_of_udp(checksum)).collect();
        }
        let whole = self.bytes_of_udp(Checksum::Whole);
        let (headers, payload) = whole.split_at(self.tcp_at());
        let step = size / 8 * 8;
        let count = payload.len().div_ceil(step);
        let fragment = |(n, chunk): (usize, &[u8])| {
            let (at, more) = ((n * step) as u16, u16::from(n + 1 < count));
            let mut headers = headers.to_vec();
            let ip = self.ip_at();
            if self.v6 {
                // The header before names the fragment header, wherever it is.
                let last = if self.routing { headers.len() - 24 } else { ip + 40 };
                let named = match (self.routing, self.ip_options) {
                    (false, 0) => ip + 6,
                    _ => last,
                };
                headers[named] = 44;
                headers.extend([17, 0]);
                headers.extend((at | more).to_be_bytes());
                headers.extend(number.to_be_bytes());
                let length = (headers.len() - ip - 40 + chunk.len()) as u16;
                headers[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
            } else {
                let length = (headers.len() - ip + chunk.len()) as u16;
                headers[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
                headers[ip + 6..ip + 8].copy_from_slice(&((at / 8) | (more << 13)).to_be_bytes());
                let (header, _) = Ipv4Header::from_slice(&headers[ip..]).unwrap();
                headers[ip + 10..ip + 12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            }
            [&headers, chunk].concat()
        };
        payload.chunks(step).enumerate().map(fragment).collect()
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut bytes = [[0x52, 0x54, 0, 0, 0, 1], SOURCE_MAC].concat();
        for tag in 0..self.tags {
            let outer = tag + 1 < self.tags;
            bytes.extend(if outer { [0x88, 0xa8, 0, 7] } else { [0x81, 0x00, 0x60, 5] });
        }
        bytes.extend(if self.v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        bytes
    }

    fn ipv4(&self, protocol: u8, length: usize) -> Vec<u8> {
        let mut ip = Ipv4Header::new(0, 64, IpNumber(protocol), V4[0], V4[1]).unwrap();
        ip.options = vec![1; self.ip_options][..].try_into().unwrap();
        ip.total_len = (20 + self.ip_options + length) as u16;
        ip.identification = self.identification;
        ip.header_checksum = ip.calc_header_checksum();
        ip.to_bytes().to_vec()
    }

    /// The headers, and the address that counts for the checksum.
    fn ipv6(&self, protocol: u8, length: usize) -> (Vec<u8>, [u8; 16]) {
        let mut extensions = Vec::new();
        let mut first = protocol;
        if self.routing {
            extensions = [&[protocol, 2, 0, 1, 0, 0, 0, 0][..], &V6[2]].concat();
            first = 43;
        }
        if self.ip_options > 0 {
            let padding = self.ip_options - 4;
            let mut options = vec![first, (self.ip_options / 8 - 1) as u8, 1, padding as u8];
            options.resize(self.ip_options, 0);
            extensions = [options, extensions].concat();
            first = 0;
        }
        let ip = Ipv6Header {
            payload_length: (extensions.len() + length) as u16,
            next_header: IpNumber(first),
            hop_limit: 64,
            source: V6[0],
            destination: V6[1],
            ..Ipv6Header::default()
        };
        let to = if self.routing { V6[2] } else { V6[1] };
        ([ip.to_bytes().to_vec(), extensions].concat(), to)
    }
}

/// Bytes without a pattern that segments could share.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The pseudo-header's sum (RFC 9293, 3.1; RFC 8200, 8.1), not complemented.
fn pseudo(from: &[u8], to: &[u8], protocol: u8, length: usize) -> u16 {
    let words = [from, to, &[0, protocol], &(length as u32).to_be_bytes()].concat();
    words.chunks(2).fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([word[0], word[1]]));
        sum + u16::from(carry)
    })
}

/// The frame with its checksums as etherparse computes them. Nothing may follow the IP packet.
pub(crate) fn recomputed(frame: &[u8]) -> Vec<u8> {
    let parsed = PacketHeaders::from_ethernet_slice(frame).expect("a whole packet");
    let mut frame = frame.to_vec();
    let network = 14 + 4 * parsed.link_exts.len();
    let payload = parsed.payload.slice();
    let mut transport = parsed.transport.expect("a transport header");
    match parsed.net.expect("an IP packet") {
        NetHeaders::Ipv4(ip, _) => {
            frame[network + 10..network + 12].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
            transport.update_checksum_ipv4(&ip, payload).expect("a length that fits");
        }
        NetHeaders::Ipv6(ip, _) => transport.update_checksum_ipv6(&ip, payload).expect("a length that fits"),
        NetHeaders::Arp(_) => unreachable!("ARP has no transport header"),
    }
    let at = frame.len() - payload.len() - transport.header_len();
    let (offset, checksum) = match transport {
        TransportHeader::Tcp(tcp) => (16, tcp.checksum),
        TransportHeader::Udp(udp) => (6, udp.checksum),
        TransportHeader::Icmpv4(icmp) => (2, icmp.checksum),
        TransportHeader::Icmpv6(icmp) => (2, icmp.checksum),
        _ => unreachable!("no other protocol here"),
    };
    frame[at + offset..at + offset + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}
