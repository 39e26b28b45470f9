//! Offload requests of senders, checked once at ingress so that nobody behind has to.
//!
//! The rules are those of virtio 1.3, 5.1.6.2, read as strictly as Linux's `virtio_net_hdr_to_skb` reads them and a
//! little more so: everything that passes can be finished in software, is accepted by a Linux guest or TAP, and a
//! checksum that we fill in later cannot overwrite a header that the switch has already decided on.
#![forbid(unsafe_code)]

use super::datagram;
use super::ethernet::{self, HEADER_LEN};
use super::ip::{self, IPV4_LEN, IPV6_LEN, Ip, NoIp, TCP, UDP, UDP_LEN};
use super::segment::{TCP_CHECKSUM, TCP_LEN, UDP_CHECKSUM};
use vhost_backend::frame::SNAPSHOT;
use vhost_backend::net_header::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, NEEDS_CSUM, NetHeader,
};

/// Least `gso_size`: Linux never sends less (`TCP_MIN_GSO_SIZE`, the least MSS of 48 without 40 bytes of options).
pub const MIN_GSO_SIZE: u16 = 8;
/// Most segments of one frame. A full frame of 64 KiB passes down to a `gso_size` of 32; a Linux guest whose peer
/// offered the least MSS of 48 sends 36 with timestamps. Without a bound one frame could cost 8192 others.
pub const MAX_SEGMENTS: usize = 2048;
/// Most datagrams of one USO frame: Linux sends no more and refuses more (`UDP_MAX_SEGMENTS`).
pub const MAX_DATAGRAMS: usize = 128;

/// Why a sender's offload request is refused, and its frame dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// A `gso_type` that was never negotiated.
    #[error("GSO type {0:#04x} was not negotiated")]
    UnknownGso(u8),
    /// Segments cannot be made of a frame whose checksum is not ours to fill in.
    #[error("GSO without NEEDS_CSUM")]
    GsoWithoutChecksum,
    /// `gso_type` says one protocol and the frame another.
    #[error("the frame is not of its GSO type")]
    GsoMismatch,
    /// GSO of an IP fragment.
    #[error("GSO of an IP fragment")]
    GsoFragment,
    /// `gso_size` below [`MIN_GSO_SIZE`].
    #[error("GSO size {0} is too small")]
    GsoSize(u16),
    /// More than [`MAX_SEGMENTS`], or [`MAX_DATAGRAMS`].
    #[error("GSO frame of {0} segments")]
    TooManySegments(usize),
    /// The headers of a GSO frame do not end within the snapshot, so that they could be checked.
    #[error("headers of a GSO frame end beyond {SNAPSHOT} bytes")]
    HeadersTooLong,
    /// Header lengths that contradict each other or the frame's.
    #[error("malformed IP or transport header")]
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
        GSO_UDP | GSO_UDP_L4 if header.gso_type & GSO_ECN != 0 => {
            Err(BadOffload::UnknownGso(header.gso_type))
        }
        GSO_TCPV4 | GSO_TCPV6 | GSO_UDP | GSO_UDP_L4 if needs_checksum => {
            validate_gso(head, frame_len, header)
        }
        GSO_TCPV4 | GSO_TCPV6 | GSO_UDP | GSO_UDP_L4 => Err(BadOffload::GsoWithoutChecksum),
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
            (from, offset) == (transport, UDP_CHECKSUM) || from >= transport + UDP_LEN
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
    let (protocol, checksum) = match header.gso_kind() {
        GSO_UDP | GSO_UDP_L4 => (UDP, UDP_CHECKSUM),
        kind if packet.v6 != (kind == GSO_TCPV6) => return Err(BadOffload::GsoMismatch),
        _ => (TCP, TCP_CHECKSUM),
    };
    if packet.protocol != protocol {
        return Err(BadOffload::GsoMismatch);
    }
    if usize::from(start) != packet.transport || offset != checksum {
        return Err(BadOffload::ChecksumPlace { start, offset });
    }
    let headers = if protocol == TCP {
        let data_offset = *head.get(packet.transport + 12).ok_or(cut_off)?;
        let tcp_len = usize::from(data_offset >> 4) * 4;
        if tcp_len < TCP_LEN {
            return Err(BadOffload::Malformed);
        }
        packet.transport + tcp_len
    } else {
        packet.transport + UDP_LEN
    };
    if headers > frame_len {
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
    let (segments, most) = match header.gso_kind() {
        GSO_UDP => {
            // A fragment header goes before UDP, and nowhere else.
            let before = if packet.v6 {
                ip::fragmentable(head, l3).map(|(at, _)| at)
            } else {
                Some(headers - UDP_LEN)
            };
            if before != Some(packet.transport) {
                return Err(BadOffload::Malformed);
            }
            ((frame_len - packet.transport).div_ceil(datagram::step(header.gso_size)), MAX_SEGMENTS)
        }
        kind => {
            let most = if kind == GSO_UDP_L4 { MAX_DATAGRAMS } else { MAX_SEGMENTS };
            ((frame_len - headers).div_ceil(usize::from(header.gso_size)), most)
        }
    };
    if segments <= 1 {
        return Ok(checksum_only(header));
    }
    if segments > most {
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

#[cfg(test)]
mod tests {
    use super::super::testing::{Checksum, Tcp, noise};
    use super::*;
    use vhost_backend::net_header::DATA_VALID;

    fn check(frame: &[u8], header: NetHeader) -> Result<NetHeader, BadOffload> {
        validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), header)
    }

    fn tcp(v6: bool) -> (Tcp, Vec<u8>, NetHeader) {
        let tcp = Tcp::new(v6, 5000);
        let frame = tcp.bytes(Checksum::Partial);
        let header = tcp.request(1448);
        (tcp, frame, header)
    }

    fn only_checksum(start: u16, offset: u16) -> NetHeader {
        NetHeader { flags: NEEDS_CSUM, csum_start: start, csum_offset: offset, ..NetHeader::default() }
    }

    #[test]
    fn a_good_request_passes_with_our_own_header_length() {
        for v6 in [false, true] {
            for tags in 0..3 {
                let (mut tcp, ..) = tcp(v6);
                tcp.tags = tags;
                let header = tcp.request(1448);
                for hdr_len in [0, 14, header.hdr_len, u16::MAX] {
                    let asked = NetHeader { hdr_len, num_buffers: 9, ..header };
                    assert_eq!(check(&tcp.bytes(Checksum::Partial), asked), Ok(header));
                }
            }
        }
        let (_, frame, header) = tcp(false);
        let ecn = NetHeader { gso_type: GSO_TCPV4 | GSO_ECN, ..header };
        assert_eq!(check(&frame, ecn), Ok(ecn));
    }

    #[test]
    fn what_fits_in_one_segment_is_an_ordinary_frame() {
        let tcp = Tcp::new(false, 1448);
        let frame = tcp.bytes(Checksum::Partial);
        assert_eq!(check(&frame, tcp.request(1448)), Ok(only_checksum(34, 16)));
        assert_eq!(check(&frame, tcp.request(u16::MAX)), Ok(only_checksum(34, 16)));
        assert_eq!(check(&frame, tcp.request(1447)), Ok(tcp.request(1447)));
        let empty = Tcp::new(true, 0);
        assert_eq!(check(&empty.bytes(Checksum::Partial), empty.request(1000)), Ok(only_checksum(54, 16)));
    }

    #[test]
    fn a_guests_word_and_unknown_flags_are_dropped() {
        let (_, frame, header) = tcp(false);
        let vouched = NetHeader { flags: DATA_VALID, csum_start: 9, ..NetHeader::default() };
        assert_eq!(check(&frame, vouched), Ok(NetHeader::default()));
        assert_eq!(check(&frame, NetHeader { flags: 0xfe, ..vouched }), Ok(NetHeader::default()));
        assert_eq!(check(&frame, NetHeader { flags: 0xff, ..header }), Ok(header));
    }

    #[test]
    fn gso_that_was_not_negotiated_or_contradicts_the_frame() {
        let (_, frame, header) = tcp(false);
        for gso_type in [2, 6, GSO_UDP | GSO_ECN, GSO_UDP_L4 | GSO_ECN, GSO_ECN, 0x40 | GSO_TCPV4, 0xff] {
            let asked = NetHeader { gso_type, ..header };
            assert_eq!(check(&frame, asked), Err(BadOffload::UnknownGso(gso_type)));
        }
        let asked = NetHeader { flags: DATA_VALID, ..header };
        assert_eq!(check(&frame, asked), Err(BadOffload::GsoWithoutChecksum));
        let asked = NetHeader { gso_type: GSO_TCPV6, ..header };
        assert_eq!(check(&frame, asked), Err(BadOffload::GsoMismatch));
        let udp = Tcp::new(false, 5000).bytes_of_udp(Checksum::Partial);
        assert_eq!(check(&udp, header), Err(BadOffload::GsoMismatch));
        let mut arp = frame.clone();
        arp[13] = 6;
        assert_eq!(check(&arp, header), Err(BadOffload::GsoMismatch));
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(check(&fragment, header), Err(BadOffload::GsoFragment));
        let mut fragment = tcp(true).1;
        fragment[20] = 44;
        assert_eq!(check(&fragment, tcp(true).2), Err(BadOffload::GsoFragment));
    }

    #[test]
    fn datagrams_to_be_cut_are_checked_like_segments() {
        for v6 in [false, true] {
            for gso_type in [GSO_UDP, GSO_UDP_L4] {
                let udp = Tcp::new(v6, 5000);
                let frame = udp.bytes_of_udp(Checksum::Partial);
                let good = udp.request_of_datagrams(gso_type, 1400);
                assert_eq!(check(&frame, NetHeader { hdr_len: 3, num_buffers: 7, ..good }), Ok(good));
                assert_eq!(
                    check(&frame, NetHeader { flags: 0, ..good }),
                    Err(BadOffload::GsoWithoutChecksum)
                );
                let (start, offset) = (good.csum_start, 16);
                let place = Err(BadOffload::ChecksumPlace { start, offset });
                assert_eq!(check(&frame, NetHeader { csum_offset: 16, ..good }), place);
                assert_eq!(check(&frame, NetHeader { gso_size: 7, ..good }), Err(BadOffload::GsoSize(7)));
                let tcp = udp.bytes(Checksum::Partial);
                assert_eq!(check(&tcp, good), Err(BadOffload::GsoMismatch));
                // What needs no cutting is an ordinary frame: fragments hold the UDP header, too.
                let whole = 5000 + if gso_type == GSO_UDP { 8 } else { 0 };
                let fits = udp.request_of_datagrams(gso_type, whole);
                assert_eq!(check(&frame, fits), Ok(only_checksum(good.csum_start, 6)));
                assert!(check(&frame, NetHeader { gso_size: whole - 1, ..fits }).unwrap().is_gso());
                let small = NetHeader { gso_size: 39, ..good };
                let many =
                    if gso_type == GSO_UDP_L4 { Err(BadOffload::TooManySegments(129)) } else { Ok(small) };
                assert_eq!(check(&frame, small), many);
                assert!(check(&frame, NetHeader { gso_size: 40, ..good }).is_ok());
            }
        }
        // Options for the destination, which belong behind a fragment header.
        let mut udp = Tcp::new(true, 5000);
        (udp.routing, udp.ip_options) = (true, 8);
        let mut frame = udp.bytes_of_udp(Checksum::Partial);
        let good = udp.request_of_datagrams(GSO_UDP, 1000);
        assert_eq!(check(&frame, good), Ok(good));
        // Routing header and options trade places.
        let extensions = [&frame[62..86], &frame[54..62]].concat();
        frame[54..86].copy_from_slice(&extensions);
        (frame[20], frame[54], frame[78]) = (43, 60, 17);
        assert_eq!(check(&frame, good), Err(BadOffload::Malformed));
        assert!(check(&frame, udp.request_of_datagrams(GSO_UDP_L4, 1000)).is_ok());
    }

    #[test]
    fn segment_sizes_are_bounded() {
        let (_, frame, header) = tcp(false);
        for gso_size in 0..MIN_GSO_SIZE {
            let asked = NetHeader { gso_size, ..header };
            assert_eq!(check(&frame, asked), Err(BadOffload::GsoSize(gso_size)));
        }
        assert!(check(&frame, NetHeader { gso_size: MIN_GSO_SIZE, ..header }).is_ok());
        let long = Tcp::new(false, 65000);
        let frame = long.bytes(Checksum::Partial);
        assert!(check(&frame, long.request(32)).is_ok());
        assert_eq!(check(&frame, long.request(31)), Err(BadOffload::TooManySegments(2097)));
    }

    #[test]
    fn headers_that_do_not_end_where_they_can_be_checked() {
        let (_, frame, header) = tcp(false);
        for data_offset in [0x00, 0x40] {
            let mut frame = frame.clone();
            frame[34 + 12] = data_offset;
            assert_eq!(check(&frame, header), Err(BadOffload::Malformed));
        }
        let mut bad = frame.clone();
        bad[14] = 0x44;
        assert_eq!(check(&bad, header), Err(BadOffload::Malformed));
        // Cut within the TCP header, and within its options.
        assert_eq!(check(&frame[..40], header), Err(BadOffload::Malformed));
        assert_eq!(check(&frame[..60], header), Err(BadOffload::Malformed));

        let mut tcp = Tcp::new(false, 5000);
        (tcp.ip_options, tcp.options) = (40, 40);
        assert_eq!(tcp.headers(), 134);
        assert_eq!(check(&tcp.bytes(Checksum::Partial), tcp.request(1000)), Err(BadOffload::HeadersTooLong));
        tcp.options = 32;
        assert_eq!(check(&tcp.bytes(Checksum::Partial), tcp.request(1000)), Ok(tcp.request(1000)));

        let mut tcp = Tcp::new(true, 5000);
        tcp.ip_options = 80;
        assert_eq!(check(&tcp.bytes(Checksum::Partial), tcp.request(1000)), Err(BadOffload::HeadersTooLong));

        let mut long = Tcp::new(false, 65535 - 52).bytes(Checksum::Partial);
        assert_eq!(check(&long, header), Ok(header));
        long.push(0);
        assert_eq!(check(&long, header), Err(BadOffload::Malformed), "longer than IPv4 can say");
    }

    #[test]
    fn a_checksum_has_to_lie_where_the_packet_has_one() {
        let beyond = |start, offset| Err(BadOffload::ChecksumBeyond { start, offset });
        let place = |start, offset| Err(BadOffload::ChecksumPlace { start, offset });
        let (tcp, frame, header) = tcp(false);
        for (start, offset) in [(33, 16), (34, 6), (0, 50), (14, 36)] {
            let asked = NetHeader { csum_start: start, csum_offset: offset, ..header };
            assert_eq!(check(&frame, asked), place(start, offset), "GSO");
            assert_eq!(check(&frame, only_checksum(start, offset)), place(start, offset));
        }
        let good = |start, offset| Ok(only_checksum(start, offset));
        assert_eq!(check(&frame, only_checksum(34, 16)), good(34, 16));
        // Addresses and ports stay what they are; a packet within the packet may have its own.
        for (start, offset, inner) in
            [(26, 0, false), (34, 0, false), (34, 20, false), (53, 0, false), (54, 0, true)]
        {
            let want = if inner { good(start, offset) } else { place(start, offset) };
            assert_eq!(check(&frame, only_checksum(start, offset)), want);
        }
        let udp = tcp.bytes_of_udp(Checksum::Partial);
        assert_eq!(check(&udp, only_checksum(34, 6)), good(34, 6));
        assert_eq!(check(&udp, only_checksum(34, 16)), place(34, 16));
        assert_eq!(check(&udp, only_checksum(42, 16)), good(42, 16));

        let last = frame.len() as u16 - 2;
        assert_eq!(check(&frame, only_checksum(last, 0)), good(last, 0));
        assert_eq!(check(&frame, only_checksum(last, 1)), beyond(last, 1));
        assert_eq!(check(&frame, only_checksum(u16::MAX, u16::MAX)), beyond(u16::MAX, u16::MAX));
        assert_eq!(check(&frame[..14], only_checksum(14, 0)), beyond(14, 0));

        // Not IP.
        let other = [&frame[..12], &[0x88, 0xb5], &noise(100)[..]].concat();
        assert_eq!(check(&other, only_checksum(33, 4)), place(33, 4));
        assert_eq!(check(&other, only_checksum(34, 4)), good(34, 4));
        // Extension headers that end beyond the snapshot.
        let mut far = Tcp::new(true, 1000);
        far.ip_options = 96;
        let frame = far.bytes(Checksum::Partial);
        assert_eq!(check(&frame, only_checksum(150, 16)), good(150, 16));
        assert_eq!(check(&frame, only_checksum(53, 16)), place(53, 16));
        // A later fragment: what follows is no header.
        let mut fragment = Tcp::new(false, 1000).bytes(Checksum::Partial);
        fragment[21] = 9;
        assert_eq!(check(&fragment, only_checksum(34, 0)), good(34, 0));
    }
}
