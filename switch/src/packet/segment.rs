//! Segmentation of TCP and UDP (USO), byte for byte as Linux does it in software (`tcp_gso_segment`,
//! `__udp_gso_segment` and the IP layers above them).
//!
//! Of each segment: lengths are its own; IPv4's identification counts up by one, and its header checksum follows;
//! TCP's sequence number advances; FIN and PSH stay with the last, CWR with the first. The checksum goes on from the
//! pseudo-header sum that the sender left in the transport header, corrected by the difference in length, so that it is
//! right behind a routing header, too.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::ethernet;
use super::ip::{IPV6_LEN, UDP_LEN};
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};

/// Bytes of a TCP header without options.
pub(super) const TCP_LEN: usize = 20;
/// Where the checksum lies in a TCP header.
pub(super) const TCP_CHECKSUM: u16 = 16;
/// Where the checksum lies in a UDP header.
pub(super) const UDP_CHECKSUM: u16 = 6;

/// Where the length lies in a UDP header.
const UDP_LENGTH: usize = 4;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Cuts one GSO frame.
pub(super) struct Segments<'a> {
    /// The frame's headers, in which the fields of the segment at hand are written over those of the last.
    headers: [u8; SNAPSHOT],
    /// Bytes of them.
    len: usize,
    /// Where IP begins.
    ip: usize,
    /// Where the transport header begins.
    transport: usize,
    v6: bool,
    identification: u16,
    kind: Kind,
    /// The sender's sum over the pseudo-header, without the length.
    pseudo: Sum,
    /// The whole frame's payload, and how much of it goes into a segment.
    payload: &'a [u8],
    size: usize,
}

/// What differs between the protocols.
#[derive(Clone, Copy)]
enum Kind {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

impl Kind {
    /// Where the checksum lies.
    fn checksum(self) -> u16 {
        match self {
            Self::Tcp { .. } => TCP_CHECKSUM,
            Self::Udp => UDP_CHECKSUM,
        }
    }
}

/// One segment.
pub(super) struct Piece<'s, 'a> {
    pub(super) header: NetHeader,
    pub(super) head: &'s [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Segments<'a> {
    /// `header` has passed [`super::validate`] for this frame; `None` if it has not.
    pub(super) fn new(frame: &'a [u8], header: &NetHeader) -> Option<Self> {
        let (ethertype, ip) = ethernet::payload(frame);
        let (v6, tcp) = match header.gso_kind() {
            GSO_TCPV4 => (false, true),
            GSO_TCPV6 => (true, true),
            GSO_UDP_L4 => (ethertype == ethernet::ETHERTYPE_IPV6, false),
            _ => return None,
        };
        let (len, transport) = (usize::from(header.hdr_len), usize::from(header.csum_start));
        let size = usize::from(header.gso_size);
        let (head, payload) = frame.split_at_checked(len)?;
        let ip_len = if v6 { IPV6_LEN } else { super::ip::IPV4_LEN };
        let least = if tcp { TCP_LEN } else { UDP_LEN };
        if len > SNAPSHOT
            || transport + least > len
            || ip + ip_len > transport
            || size == 0
            || payload.is_empty()
        {
            return None;
        }
        let kind = if tcp {
            let [a, b, c, d] = *head[transport + TCP_SEQUENCE..].first_chunk()?;
            Kind::Tcp { sequence: u32::from_be_bytes([a, b, c, d]), flags: head[transport + TCP_FLAGS] }
        } else {
            Kind::Udp
        };
        // Adding the complement takes the whole frame's length out of the sum.
        let length = u16::try_from(frame.len() - transport).ok()?;
        let checksum = transport + usize::from(kind.checksum());
        let pseudo = Sum::of(&head[checksum..checksum + 2]) + Sum::of_word(!length);
        let mut headers = [0; SNAPSHOT];
        headers[..len].copy_from_slice(head);
        Some(Self {
            len,
            ip,
            transport,
            v6,
            identification: ethernet::word_at(head, ip + 4),
            kind,
            pseudo,
            payload,
            size,
            headers,
        })
    }

    /// How many segments the frame makes; at least one.
    pub(super) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Segment `n` of [`Self::count`]: with the pseudo-header sum alone in its checksum field and NEEDS_CSUM set if
    /// `partial`, otherwise with the checksum.
    pub(super) fn get(&mut self, n: usize, partial: bool) -> Piece<'_, 'a> {
        let from = (n * self.size).min(self.payload.len());
        let to = (from + self.size).min(self.payload.len());
        let payload = &self.payload[from..to];
        let length = (self.len - self.transport + payload.len()) as u16;
        let ip_len = (self.transport - self.ip) as u16 + length;

        let ip = &mut self.headers[self.ip..self.transport];
        if self.v6 {
            ip[4..6].copy_from_slice(&(ip_len - IPV6_LEN as u16).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
            ip[4..6].copy_from_slice(&self.identification.wrapping_add(n as u16).to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::of(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        }

        let transport = &mut self.headers[self.transport..self.len];
        match self.kind {
            Kind::Tcp { sequence, mut flags } => {
                let sequence = sequence.wrapping_add(from as u32);
                transport[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
                if n != 0 {
                    flags &= !CWR;
                }
                if to != self.payload.len() {
                    flags &= !(FIN | PSH);
                }
                transport[TCP_FLAGS] = flags;
            }
            Kind::Udp => transport[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&length.to_be_bytes()),
        }
        let pseudo = self.pseudo + Sum::of_word(length);
        let place = self.kind.checksum();
        let field = usize::from(place)..usize::from(place) + 2;
        let mut header = NetHeader::default();
        if partial {
            transport[field].copy_from_slice(&pseudo.folded());
            header.flags = NEEDS_CSUM;
            header.csum_start = self.transport as u16;
            header.csum_offset = place;
        } else {
            transport[field.clone()].fill(0);
            // Both headers have an even length, so header and payload add up.
            let checksum = match (self.kind, (pseudo + Sum::of(transport) + Sum::of(payload)).checksum()) {
                // Zero would say that there is none.
                (Kind::Udp, [0, 0]) => [0xff, 0xff],
                (_, checksum) => checksum,
            };
            transport[field].copy_from_slice(&checksum);
        }
        Piece { header, head: &self.headers[..self.len], payload }
    }
}
