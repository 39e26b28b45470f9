//! The TCP reset that answers a segment to which no connection belongs (RFC 9293, section 3.10.7.1).
#![forbid(unsafe_code)]

use super::compose::{Compose, Ip, Link, TTL, pseudo};
use crate::packet::checksum::Sum;
use crate::packet::headers::{Fragment, Headers, tcp_flags};
use crate::packet::ip::TCP;
use crate::packet::rewrite::Address;

const TCP_LEN: usize = 20;
/// Room that a reset's frame fits in, untagged.
pub const FRAME_LEN: usize = 14 + 40 + TCP_LEN;

/// Writes the frame of the answer to the segment that `head` begins with, from the address that it went to. Its
/// length; `None` if nothing may answer it: it is a reset itself, no TCP or a later fragment.
pub fn reset<A: Address + Compose>(
    out: &mut [u8],
    link: Link,
    head: &[u8],
    headers: &Headers,
) -> Option<usize> {
    let flags = headers.tcp_flags;
    if headers.protocol != TCP
        || headers.v6 != A::V6
        || headers.fragment == Fragment::Later
        || flags & tcp_flags::RST != 0
    {
        return None;
    }
    let (source, destination) = A::read(head, usize::from(headers.network));
    let segment: &[u8; TCP_LEN] = head.get(usize::from(headers.transport)..)?.first_chunk()?;
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| segment[at + i]));
    let header_len = usize::from(segment[12] >> 4) * 4;
    let whole = usize::from(headers.network) + headers.len as usize;
    let data = whole.checked_sub(usize::from(headers.transport) + header_len)? as u32;
    let (sequence, acknowledgement, answer) = if flags & tcp_flags::ACK != 0 {
        (word(8), 0, tcp_flags::RST)
    } else {
        let phantom = u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
        (0, word(4).wrapping_add(data).wrapping_add(phantom), tcp_flags::RST | tcp_flags::ACK)
    };
    let ip = Ip { source: destination, destination: source, protocol: TCP, ttl: TTL, class: 0 };
    A::headers(out, link, ip, TCP_LEN)?;
    let tcp = out.get_mut(A::TRANSPORT..)?.first_chunk_mut::<TCP_LEN>()?;
    *tcp = [0; TCP_LEN];
    tcp[..2].copy_from_slice(&headers.destination_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&headers.source_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, answer);
    let sum = pseudo(source.sum() + destination.sum(), TCP, TCP_LEN) + Sum::of(tcp);
    tcp[16..18].copy_from_slice(&sum.checksum());
    Some(A::TRANSPORT + TCP_LEN)
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

    use super::*;
    use crate::packet::testing::recomputed;

    /// The answer to a segment of 3 bytes: sequence, acknowledgement, whether ACK is set.
    fn answer(v6: bool, flags: &str) -> Option<(u32, u32, bool)> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut tcp = if v6 {
            builder.ipv6([0xfd; 16], [0xfe; 16], 9).tcp(1000, 80, u32::MAX, 5)
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).tcp(1000, 80, u32::MAX, 5)
        };
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                _ => tcp.ack(77),
            };
        }
        tcp.write(&mut frame, b"odd").expect("a packet");
        let headers = Headers::parse(&frame, frame.len(), 14, v6).expect("a good packet");
        let mut out = [0xee; FRAME_LEN];
        let link = Link::answer(&frame);
        let len = if v6 {
            reset::<u128>(&mut out, link, &frame, &headers)?
        } else {
            reset::<u32>(&mut out, link, &frame, &headers)?
        };
        let out = &out[..len];
        assert_eq!(recomputed(out), out);
        assert_eq!(out[..12], [[2_u8; 6], [4; 6]].concat());
        let sliced = SlicedPacket::from_ethernet(out).expect("a packet");
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP: {sliced:?}") };
        assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.rst()), (80, 1000, true));
        let reply = Headers::parse(out, len, 14, v6).expect("a good packet").tuple(out);
        assert_eq!(reply, headers.tuple(&frame).reversed());
        Some((tcp.sequence_number(), tcp.acknowledgment_number(), tcp.ack()))
    }

    #[test]
    fn resets_are_what_their_receiver_accepts() {
        for v6 in [false, true] {
            assert_eq!(answer(v6, "A"), Some((77, 0, false)));
            assert_eq!(answer(v6, "FA"), Some((77, 0, false)));
            assert_eq!(answer(v6, "S"), Some((0, 3, true)), "3 bytes and the SYN, around zero");
            assert_eq!(answer(v6, ""), Some((0, 2, true)));
            assert_eq!(answer(v6, "SF"), Some((0, 4, true)));
            assert_eq!(answer(v6, "R"), None);
        }
    }
}
