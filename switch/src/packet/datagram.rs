//! UDP fragmentation offload (UFO): a datagram longer than a packet, cut into IP fragments, byte for byte as Linux does it
//! in software (`udp4_ufo_fragment`, `udp6_ufo_fragment` and the IP layers above them).
//!
//! The sender's `gso_size` counts the bytes behind the IP headers. The checksum covers the whole datagram and is completed
//! before it is cut. IPv6's fragments get a header more, with a number that is ours to choose.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::ethernet;
use super::ip::{IPV4_LEN, IPV6_LEN, UDP, fragmentable};
use super::segment::Piece;
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{GSO_UDP, NetHeader};

/// Bytes of IPv6's fragment header (RFC 8200, section 4.5).
pub(super) const FRAGMENT_LEN: usize = 8;
/// Next header: a fragment header.
const FRAGMENT: u8 = 44;
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 1;

/// Cuts one UFO frame whose checksum has been completed.
pub(super) struct Fragments<'a> {
    /// Ethernet and IP headers, with room for a fragment header.
    head: [u8; SNAPSHOT],
    len: usize,
    ip: usize,
    v6: bool,
    payload: &'a [u8],
    size: usize,
}

/// Payload bytes of each fragment for a `gso_size`: offsets count in units of 8.
pub(super) fn step(gso_size: u16) -> usize {
    usize::from(gso_size & !7)
}

/// Bytes of the longest fragment of a UFO frame.
pub(super) fn longest(head: &[u8], header: &NetHeader) -> usize {
    let v6 = ethernet::payload(head).0 == ethernet::ETHERTYPE_IPV6;
    usize::from(header.csum_start) + if v6 { FRAGMENT_LEN } else { 0 } + step(header.gso_size)
}

impl<'a> Fragments<'a> {
    /// `header` has passed [`super::validate`] for this frame; `None` if it has not. `number` goes into IPv6's fragment
    /// headers.
    pub(super) fn new(frame: &'a [u8], header: &NetHeader, number: u32) -> Option<Self> {
        let (ethertype, ip) = ethernet::payload(frame);
        let v6 = ethertype == ethernet::ETHERTYPE_IPV6;
        let transport = usize::from(header.csum_start);
        let size = step(header.gso_size);
        let (headers, payload) = frame.split_at_checked(transport)?;
        let least = if v6 { IPV6_LEN } else { IPV4_LEN };
        let len = transport + if v6 { FRAGMENT_LEN } else { 0 };
        if header.gso_kind() != GSO_UDP
            || size == 0
            || payload.is_empty()
            || len > SNAPSHOT
            || ip + least > transport
        {
            return None;
        }
        let mut head = [0; SNAPSHOT];
        head[..transport].copy_from_slice(headers);
        if v6 {
            let (at, next) = fragmentable(headers, ip).filter(|&(at, _)| at == transport)?;
            debug_assert_eq!(at + FRAGMENT_LEN, len);
            head[next] = FRAGMENT;
            head[at] = UDP;
            head[at + 4..at + 8].copy_from_slice(&number.to_be_bytes());
        }
        Some(Self { head, len, ip, v6, payload, size })
    }

    /// How many fragments the frame makes; at least one.
    pub(super) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// Fragment `n` of [`Self::count`].
    pub(super) fn get(&mut self, n: usize) -> Piece<'_, 'a> {
        let from = (n * self.size).min(self.payload.len());
        let to = (from + self.size).min(self.payload.len());
        let payload = &self.payload[from..to];
        let more = to < self.payload.len();
        let length = (self.len - self.ip + payload.len()) as u16;
        let head = &mut self.head[..self.len];
        if self.v6 {
            head[self.ip + 4..self.ip + 6].copy_from_slice(&(length - IPV6_LEN as u16).to_be_bytes());
            let place = from as u16 | if more { MORE_V6 } else { 0 };
            let at = self.len - FRAGMENT_LEN;
            head[at + 2..at + 4].copy_from_slice(&place.to_be_bytes());
        } else {
            let ip = &mut head[self.ip..];
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            let place = (from / 8) as u16 | if more { MORE_V4 } else { 0 };
            ip[6..8].copy_from_slice(&place.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = Sum::of(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        }
        Piece { header: NetHeader::default(), head: &self.head[..self.len], payload }
    }
}
