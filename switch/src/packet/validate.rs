//! Offload requests of senders, checked once at ingress so that nobody behind has to.
//!
//! The rules are those of virtio 1.3, 5.1.6.2, read as strictly as Linux's `virtio_net_hdr_to_skb` reads them and a
//! little more so: everything that passes can be finished in software, is accepted by a Linux guest or TAP, and a
//! checksum that we fill in later cannot overwrite a header that the switch has already decided on.
#![forbid(unsafe_code)]

use super::ethernet::{self, HEADER_LEN};
use super::ip::{self, IPV4_LEN, IPV6_LEN, Ip, NoIp, TCP, UDP};
use super::segment::{TCP_CHECKSUM, TCP_LEN, UDP_CHECKSUM};
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader};

/// Least `gso_size`: Linux never sends less (`TCP_MIN_GSO_SIZE`, the least MSS of 48 without 40 bytes of options).
pub const MIN_GSO_SIZE: u16 = 8;
/// Most segments of one frame. A full frame of 64 KiB passes down to a `gso_size` of 32; a Linux guest whose peer
/// offered the least MSS of 48 sends 36 with timestamps. Without a bound one frame could cost 8192 others.
pub const MAX_SEGMENTS: usize = 2048;

/// Why a sender's offload request is refused, and its frame dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// A `gso_type` that was never negotiated, UDP's among them.
    #[error("GSO type {0:#04x} was not negotiated")]
    UnknownGso(u8),
    /// Segments cannot be made of a frame whose checksum is not ours to fill in.
    #[error("GSO without NEEDS_CSUM")]
    GsoWithoutChecksum,
    /// `gso_type` says TCP over one version of IP and the frame says something else.
    #[error("the frame is not of its GSO type")]
    GsoMismatch,
    /// GSO of an IP fragment.
    #[error("GSO of an IP fragment")]
    GsoFragment,
    /// `gso_size` below [`MIN_GSO_SIZE`].
    #[error("GSO size {0} is too small")]
    GsoSize(u16),
    /// More than [`MAX_SEGMENTS`].
    #[error("GSO frame of {0} segments")]
    TooManySegments(usize),
    /// The headers of a GSO frame do not end within the snapshot, so that they could be checked.
    #[error("headers of a GSO frame end beyond {SNAPSHOT} bytes")]
    HeadersTooLong,
    /// Header lengths that contradict each other or the frame's.
    #[error("malformed IP or TCP header")]
    Malformed,
    /// The checksum does not lie where it must for this packet.
    #[error("checksum at {start}+{offset} is not where this packet has one")]
    ChecksumPlace {
        /// `csum_start` of the request.
        start: u16,
        /// `csum_offset` of the request.
        offset: u16,
    },
    /// The checksum lies beyond the end of the frame.
    #[error("checksum at {start}+{offset} lies beyond the frame's end")]
    ChecksumBeyond {
        /// `csum_start` of the request.
        start: u16,
        /// `csum_offset` of the request.
        offset: u16,
    },
}

/// Makes a sender's offload request trustworthy or refuses it. `head` is the frame's snapshot (at least its
/// Ethernet header), `frame_len` the length of the whole frame. To be called when `header` is not plain.
///
/// What comes back holds what was checked and nothing else:
/// - `hdr_len` is our own count of a GSO frame's headers and 0 otherwise; `num_buffers` is 0.
/// - A GSO frame whose payload fits in one segment becomes an ordinary frame, as in Linux.
/// - DATA_VALID is gone. A driver must not set it (virtio 1.3, 5.1.6.2.1), Linux ignores it from guests, and one
///   guest's word about a checksum is worth nothing to another.
/// - So are flags that we do not know: a device has to ignore them (5.1.6.2.2).
/// - The pseudo-header sum that the sender left in the checksum field is taken as it is: a wrong one spoils the
///   sender's own packets and nothing else.
pub fn validate(head: &[u8], frame_len: usize, header: NetHeader) -> Result<NetHeader, BadOffload> {
    let needs_checksum = header.flags & NEEDS_CSUM != 0;
    match header.gso_type & !GSO_ECN {
        _ if header.gso_type == GSO_NONE => {
            if needs_checksum {
                validate_checksum(head, frame_len, header)
            } else {
                Ok(NetHeader::default())
            }
        }
        GSO_TCPV4 | GSO_TCPV6 if needs_checksum => validate_gso(head, frame_len, header),
        GSO_TCPV4 | GSO_TCPV6 => Err(BadOffload::GsoWithoutChecksum),
        _ => Err(BadOffload::UnknownGso(header.gso_type)),
    }
}

fn checksum_only(header: NetHeader) -> NetHeader {
    NetHeader {
        flags: NEEDS_CSUM,
        csum_start: header.csum_start,
        csum_offset: header.csum_offset,
        ..NetHeader::default()
    }
}

fn validate_checksum(head: &[u8], frame_len: usize, header: NetHeader) -> Result<NetHeader, BadOffload> {
    let NetHeader { csum_start: start, csum_offset: offset, .. } = header;
    let (from, field) = (usize::from(start), usize::from(start) + usize::from(offset));
    if field + 2 > frame_len {
        return Err(BadOffload::ChecksumBeyond { start, offset });
    }
    let (ethertype, l3) = ethernet::payload(head);
    let in_place = match ip::parse(head, ethertype, l3) {
        // The transport's own checksum, or one of a packet within the packet.
        Ok(Ip { protocol: TCP, transport, fragment: false, .. }) => {
            (from, offset) == (transport, TCP_CHECKSUM) || from >= transport + TCP_LEN
        }
        Ok(Ip { protocol: UDP, transport, fragment: false, .. }) => {
            (from, offset) == (transport, UDP_CHECKSUM) || from >= transport + ip::UDP_LEN
        }
        Ok(Ip { transport, .. }) => from >= transport,
        // Not IP, or extension headers that we cannot see the end of: at least the addresses stay what they are.
        Err(NoIp::Beyond) if ethertype == ethernet::ETHERTYPE_IPV6 => from >= l3 + IPV6_LEN,
        Err(NoIp::OtherProtocol) => from >= HEADER_LEN + IPV4_LEN,
        Err(NoIp::Beyond | NoIp::Malformed) => return Err(BadOffload::Malformed),
    };
    if in_place { Ok(checksum_only(header)) } else { Err(BadOffload::ChecksumPlace { start, offset }) }
}

fn validate_gso(head: &[u8], frame_len: usize, header: NetHeader) -> Result<NetHeader, BadOffload> {
    let NetHeader { csum_start: start, csum_offset: offset, .. } = header;
    let (ethertype, l3) = ethernet::payload(head);
    let cut_off = if frame_len > head.len() { BadOffload::HeadersTooLong } else { BadOffload::Malformed };
    let packet = ip::parse(head, ethertype, l3).map_err(|error| match error {
        NoIp::OtherProtocol => BadOffload::GsoMismatch,
        NoIp::Malformed => BadOffload::Malformed,
        NoIp::Beyond => cut_off,
    })?;
    if packet.fragment {
        return Err(BadOffload::GsoFragment);
    }
    if packet.protocol != TCP || packet.v6 != (header.gso_kind() == GSO_TCPV6) {
        return Err(BadOffload::GsoMismatch);
    }
    if usize::from(start) != packet.transport || offset != TCP_CHECKSUM {
        return Err(BadOffload::ChecksumPlace { start, offset });
    }
    let data_offset = *head.get(packet.transport + 12).ok_or(cut_off)?;
    let tcp_len = usize::from(data_offset >> 4) * 4;
    let headers = packet.transport + tcp_len;
    if tcp_len < TCP_LEN || headers > frame_len {
        return Err(BadOffload::Malformed);
    }
    if headers > head.len() {
        return Err(BadOffload::HeadersTooLong);
    }
    // The length fields of both versions have 16 bits; IPv6's does not count the header itself.
    if frame_len - l3 - if packet.v6 { IPV6_LEN } else { 0 } > usize::from(u16::MAX) {
        return Err(BadOffload::Malformed);
    }
    if header.gso_size < MIN_GSO_SIZE {
        return Err(BadOffload::GsoSize(header.gso_size));
    }
    let payload = frame_len - headers;
    let segments = payload.div_ceil(usize::from(header.gso_size));
    if segments <= 1 {
        return Ok(checksum_only(header));
    }
    if segments > MAX_SEGMENTS {
        return Err(BadOffload::TooManySegments(segments));
    }
    Ok(NetHeader {
        flags: NEEDS_CSUM,
        gso_type: header.gso_type,
        hdr_len: headers as u16,
        gso_size: header.gso_size,
        csum_start: start,
        csum_offset: offset,
        num_buffers: 0,
    })
}
