#![forbid(unsafe_code)]
//! The frames that the generator sends: UDP and TCP over IPv4 with valid checksums, made once before the traffic.

use vhost_backend::net_header::{GSO_TCPV4, NEEDS_CSUM, NetHeader};

/// Ethernet, IPv4 and TCP headers without options.
const TCP_HEADERS: usize = 14 + 20 + 20;

/// The Ethernet address of guest `n`: locally administered, unicast.
pub fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0x00, 0xbe, 0x00, n]
}

/// The Internet checksum (RFC 1071) of `bytes` continued from `sum`, not yet complemented.
pub(crate) fn sum(bytes: &[u8], sum: u32) -> u32 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(sum, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Ethernet and IPv4 headers of a frame of `len` bytes from guest `from` to guest `to`, payload zeroed.
fn ip(from: u8, to: u8, len: usize, protocol: u8) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&mac(to));
    frame[6..12].copy_from_slice(&mac(from));
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    // A TSO frame's own length field may be too small for it: the kernel writes the true one up to 65535.
    ip[2..4].copy_from_slice(&(u16::try_from(len - 14).unwrap_or(u16::MAX)).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&[10, 77, 0, from]);
    ip[16..20].copy_from_slice(&[10, 77, 0, to]);
    let checksum = !sum(ip, 0) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A UDP frame of `len` bytes (60 at least, without FCS) from guest `from` to guest `to`. `flow` chooses the source
/// port, so that the flows of several queues differ.
pub fn udp(from: u8, to: u8, len: usize, flow: u16) -> Vec<u8> {
    let mut frame = ip(from, to, len.max(60), 17);
    let udp_len = (frame.len() - 34) as u16;
    frame[34..36].copy_from_slice(&(10_000 + flow).to_be_bytes());
    frame[36..38].copy_from_slice(&20_000u16.to_be_bytes());
    frame[38..40].copy_from_slice(&udp_len.to_be_bytes());
    let payload: Vec<u8> = (0..frame.len() - 42).map(|i| i as u8).collect();
    frame[42..].copy_from_slice(&payload);
    let pseudo = sum(&frame[26..34], 17 + u32::from(udp_len));
    let checksum = !sum(&frame[34..], pseudo) as u16;
    frame[40..42].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// As [`udp`], between these MAC and IPv4 addresses; destination port 20,000.
pub fn routed(
    to: [u8; 6],
    from: [u8; 6],
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    len: usize,
) -> Vec<u8> {
    let mut frame = udp(0, 0, len, 0);
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[24..26].fill(0);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    let checksum = !sum(&frame[14..34], 0) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&source_port.to_be_bytes());
    frame[40..42].fill(0);
    let pseudo = sum(&frame[26..34], 17 + (frame.len() - 34) as u32);
    let checksum = !sum(&frame[34..], pseudo) as u16;
    frame[40..42].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A TCP segmentation frame of `len` bytes in all and what its sender says of it: segments of `mss` bytes, checksum
/// of the pseudo-header only (what `NEEDS_CSUM` means).
pub fn tcp_gso(from: u8, to: u8, len: usize, mss: u16, flow: u16) -> (NetHeader, Vec<u8>) {
    let mut frame = ip(from, to, len.max(TCP_HEADERS + 1), 6);
    frame[34..36].copy_from_slice(&(10_000 + flow).to_be_bytes());
    frame[36..38].copy_from_slice(&20_000u16.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = 0x10;
    frame[48..50].copy_from_slice(&0xffffu16.to_be_bytes());
    let payload: Vec<u8> = (0..frame.len() - TCP_HEADERS).map(|i| i as u8).collect();
    frame[TCP_HEADERS..].copy_from_slice(&payload);
    let tcp_len = (frame.len() - 34) as u32;
    let pseudo = sum(&frame[26..34], sum(&[], 6 + tcp_len)) as u16;
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let header = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: TCP_HEADERS as u16,
        gso_size: mss,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_cover_what_they_should() {
        for len in [60, 64, 65, 1518] {
            let frame = udp(1, 2, len, 3);
            assert_eq!(frame.len(), len);
            assert_eq!(sum(&frame[14..34], 0), 0xffff, "IPv4 header");
            let udp_len = (len - 34) as u32;
            assert_eq!(sum(&frame[34..], sum(&frame[26..34], 17 + udp_len)), 0xffff, "UDP");
        }
    }

    #[test]
    fn routed_frames_have_good_checksums() {
        let frame = routed(mac(1), mac(2), [10, 254, 0, 1], [10, 253, 0, 1], 4321, 64);
        assert_eq!(sum(&frame[14..34], 0), 0xffff, "IPv4 header");
        assert_eq!(sum(&frame[34..], sum(&frame[26..34], 17 + 30)), 0xffff, "UDP");
    }

    #[test]
    fn a_segmentation_frame_says_where_its_checksum_goes() {
        let (header, mut frame) = tcp_gso(1, 2, 65_226, 1448, 0);
        assert_eq!((frame.len(), header.gso_size), (65_226, 1448));
        let at = usize::from(header.csum_start);
        let done = !sum(&frame[at..], 0) as u16;
        frame[at + 16..at + 18].copy_from_slice(&done.to_be_bytes());
        let tcp_len = (frame.len() - 34) as u32;
        assert_eq!(sum(&frame[at..], sum(&frame[26..34], 6 + tcp_len)), 0xffff);
    }
}
