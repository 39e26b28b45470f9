//! TCP segmentation, byte for byte as Linux does it in software (`tcp_gso_segment` and the IP layers above it).
//!
//! Of each segment: lengths are its own; IPv4's identification counts up by one, and its header checksum follows;
//! the sequence number advances; FIN and PSH stay with the last, CWR with the first. The checksum goes on from the
//! pseudo-header sum that the sender left in the TCP header, corrected by the difference in length, so that it is
//! right behind a routing header, too.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::ethernet;
use super::ip::IPV6_LEN;
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader};

/// Bytes of a TCP header without options.
pub(super) const TCP_LEN: usize = 20;
/// Where the checksum lies in a TCP header.
pub(super) const TCP_CHECKSUM: u16 = 16;
/// Where the checksum lies in a UDP header.
pub(super) const UDP_CHECKSUM: u16 = 6;

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
    /// Where TCP begins.
    tcp: usize,
    v6: bool,
    identification: u16,
    sequence: u32,
    flags: u8,
    /// The sender's sum over the pseudo-header, without the length.
    pseudo: Sum,
    /// The whole frame's payload, and how much of it goes into a segment.
    payload: &'a [u8],
    size: usize,
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
        let (_, ip) = ethernet::payload(frame);
        let v6 = match header.gso_kind() {
            GSO_TCPV4 => false,
            GSO_TCPV6 => true,
            _ => return None,
        };
        let (len, tcp) = (usize::from(header.hdr_len), usize::from(header.csum_start));
        let size = usize::from(header.gso_size);
        let (head, payload) = frame.split_at_checked(len)?;
        let ip_len = if v6 { IPV6_LEN } else { super::ip::IPV4_LEN };
        if len > SNAPSHOT || tcp + TCP_LEN > len || ip + ip_len > tcp || size == 0 || payload.is_empty() {
            return None;
        }
        // Adding the complement takes the whole frame's length out of the sum.
        let length = u16::try_from(frame.len() - tcp).ok()?;
        let checksum = tcp + usize::from(TCP_CHECKSUM);
        let pseudo = Sum::of(&head[checksum..checksum + 2]) + Sum::of_word(!length);
        let [a, b, c, d] = *head[tcp + TCP_SEQUENCE..].first_chunk()?;
        let mut headers = [0; SNAPSHOT];
        headers[..len].copy_from_slice(head);
        Some(Self {
            len,
            ip,
            tcp,
            v6,
            identification: ethernet::word_at(head, ip + 4),
            sequence: u32::from_be_bytes([a, b, c, d]),
            flags: head[tcp + TCP_FLAGS],
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
        let tcp_len = (self.len - self.tcp + payload.len()) as u16;
        let ip_len = (self.tcp - self.ip) as u16 + tcp_len;

        let ip = &mut self.headers[self.ip..self.tcp];
        if self.v6 {
            ip[4..6].copy_from_slice(&(ip_len - IPV6_LEN as u16).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
            ip[4..6].copy_from_slice(&self.identification.wrapping_add(n as u16).to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::of(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        }

        let tcp = &mut self.headers[self.tcp..self.len];
        let sequence = self.sequence.wrapping_add(from as u32);
        tcp[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        let mut flags = self.flags;
        if n != 0 {
            flags &= !CWR;
        }
        if to != self.payload.len() {
            flags &= !(FIN | PSH);
        }
        tcp[TCP_FLAGS] = flags;
        let pseudo = self.pseudo + Sum::of_word(tcp_len);
        let field = usize::from(TCP_CHECKSUM)..usize::from(TCP_CHECKSUM) + 2;
        let mut header = NetHeader::default();
        if partial {
            tcp[field].copy_from_slice(&pseudo.folded());
            header.flags = NEEDS_CSUM;
            header.csum_start = self.tcp as u16;
            header.csum_offset = TCP_CHECKSUM;
        } else {
            tcp[field.clone()].fill(0);
            // A TCP header has an even length, so header and payload add up.
            let checksum = (pseudo + Sum::of(tcp) + Sum::of(payload)).checksum();
            tcp[field].copy_from_slice(&checksum);
        }
        Piece { header, head: &self.headers[..self.len], payload }
    }
}
