//! What is too long for a port.
//!
//! The MTU counts the bytes behind the Ethernet header; one VLAN tag may come on top, as in Linux. A frame that is
//! still to be segmented is judged by its segments, whoever cuts them.
#![forbid(unsafe_code)]

use super::datagram;
use super::ethernet::{self, HEADER_LEN, TAG_LEN};
use vhost_backend::net_header::{GSO_UDP, NetHeader};

/// Whether a frame of `frame_len` bytes that begins with `head` may leave by a port of this `mtu`. `header` has
/// passed [`super::validate`], so that its `hdr_len` is what each segment begins with.
#[inline]
pub fn fits(head: &[u8], frame_len: usize, header: &NetHeader, mtu: u16) -> bool {
    frame_len <= usize::from(mtu) + HEADER_LEN || longer_fits(head, frame_len, header, mtu)
}

fn longer_fits(head: &[u8], frame_len: usize, header: &NetHeader, mtu: u16) -> bool {
    let on_wire = match header.is_gso() {
        true if header.gso_kind() == GSO_UDP => datagram::longest(head, header),
        true => usize::from(header.hdr_len) + usize::from(header.gso_size),
        false => frame_len,
    };
    on_wire <= usize::from(mtu) + HEADER_LEN + if ethernet::is_tagged(head) { TAG_LEN } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vhost_backend::net_header::{GSO_TCPV4, NEEDS_CSUM};

    const PLAIN: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    const TAGGED: [u8; 18] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0x00, 0, 5, 0x08, 0x00];

    #[test]
    fn ordinary_frames() {
        let header = NetHeader::default();
        assert!(fits(&PLAIN, 1514, &header, 1500));
        assert!(!fits(&PLAIN, 1515, &header, 1500));
        assert!(fits(&TAGGED, 1518, &header, 1500));
        assert!(!fits(&TAGGED, 1519, &header, 1500));
        assert!(fits(&PLAIN, 60, &header, 46));
        assert!(!fits(&PLAIN, 61, &header, 46));
        assert!(fits(&PLAIN, 9614, &header, 9600));
    }

    #[test]
    fn segmentation_covers_a_long_frame_if_its_segments_fit() {
        let gso = |hdr_len, gso_size| NetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len,
            gso_size,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        assert!(fits(&PLAIN, 65549, &gso(66, 1448), 1500));
        assert!(!fits(&PLAIN, 65549, &gso(66, 1449), 1500));
        assert!(fits(&TAGGED, 65549, &gso(70, 1448), 1500));
        assert!(!fits(&TAGGED, 65549, &gso(70, 1449), 1500));
        assert!(!fits(&PLAIN, 65549, &gso(66, u16::MAX), 9600));
    }
}
