//! Ordinary packets: untagged, whole, TCP in mid-conversation or UDP, no options, with hops left. Nearly all packets are,
//! so a router does well to tell them by a few comparisons on the snapshot, with every position known beforehand.
//!
//! What is not ordinary is not wrong: [`super::headers`] has the last word on it, and the name of what is wrong.
#![forbid(unsafe_code)]

use vhost_backend::frame::SNAPSHOT;

use super::ethernet::HEADER_LEN;
use super::headers::tcp_flags::{ACK, FIN, RST, SYN};
use super::ip::{IPV4_LEN, IPV6_LEN, TCP, UDP};
use super::rewrite::Address;

/// Where the packet begins.
pub const NETWORK: usize = HEADER_LEN;

/// Where the transport header begins.
pub const fn transport<A: Address>() -> usize {
    NETWORK + if A::V6 { IPV6_LEN } else { IPV4_LEN }
}

/// The bytes at a place known beforehand: one load.
#[inline(always)]
pub fn bytes<const N: usize>(head: &[u8; SNAPSHOT], at: usize) -> [u8; N] {
    head[at..].first_chunk().copied().unwrap_or([0; N])
}

#[inline(always)]
fn word(head: &[u8; SNAPSHOT], at: usize) -> u16 {
    u16::from_be_bytes(bytes(head, at))
}

/// The protocol of an ordinary packet: TCP or UDP.
#[inline(always)]
pub fn protocol<A: Address>(head: &[u8; SNAPSHOT]) -> u8 {
    head[NETWORK + if A::V6 { 6 } else { 9 }]
}

/// Source (high) and destination port of an ordinary packet.
#[inline(always)]
pub fn ports<A: Address>(head: &[u8; SNAPSHOT]) -> u32 {
    u32::from_be_bytes(bytes(head, transport::<A>()))
}

/// Bytes of an ordinary packet.
#[inline(always)]
pub fn len<A: Address>(head: &[u8; SNAPSHOT]) -> usize {
    if A::V6 { usize::from(word(head, NETWORK + 4)) + IPV6_LEN } else { usize::from(word(head, NETWORK + 2)) }
}

/// The number that an ordinary packet acknowledges, if it is a segment that does.
#[inline(always)]
pub fn acknowledged<A: Address>(head: &[u8; SNAPSHOT]) -> Option<u32> {
    let at = transport::<A>();
    let acknowledges = protocol::<A>(head) == TCP && head[at + 13] & ACK != 0;
    acknowledges.then(|| u32::from_be_bytes(bytes(head, at + 8)))
}

/// Whether a frame of `frame_len` bytes, of which the first `head_len` are in `head`, holds an ordinary packet of the
/// family.
#[inline(always)]
pub fn is_ordinary<A: Address>(head: &[u8; SNAPSHOT], head_len: usize, frame_len: usize) -> bool {
    let start = u32::from_be_bytes(bytes(head, 12));
    let plain = if A::V6 {
        start >> 12 == 0x8_6dd6 && head[NETWORK + 7] > 1
    } else {
        // Type, version and length; fragment flag and offset.
        let other = (start ^ 0x0800_4500) >> 8 | u32::from(word(head, NETWORK + 6) & 0x3fff);
        other == 0 && head[NETWORK + 8] > 1 && is_sound(head)
    };
    let at = transport::<A>();
    let needed = match protocol::<A>(head) {
        UDP => 8,
        TCP if head[at + 12] >> 4 >= 5 && head[at + 13] & (SYN | FIN | RST) == 0 => 20,
        _ => return false,
    };
    let len = NETWORK + len::<A>(head);
    debug_assert!(head_len >= frame_len.min(SNAPSHOT - 4), "what a snapshot holds, but for a tag");
    plain && len >= at + needed && len <= frame_len
}

/// Whether the checksum of an IPv4 header without options is right: the one's complement sum of its words is minus zero,
/// that is, a multiple of 0xffff (RFC 1071). Of which words and in which byte order does not matter.
#[inline(always)]
fn is_sound(head: &[u8; SNAPSHOT]) -> bool {
    let long = |at| u64::from_ne_bytes(bytes(head, NETWORK + at));
    let add = |a: u64, b: u64| {
        let (sum, carry) = a.overflowing_add(b);
        sum + u64::from(carry)
    };
    let last = u32::from_ne_bytes(bytes(head, NETWORK + 16));
    add(add(long(0), long(8)), u64::from(last)).is_multiple_of(0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::checksum::Sum;
    use crate::packet::headers::{Fragment, Headers};
    use crate::packet::testing::{Checksum, Tcp};

    /// What [`Headers`] says of an untagged frame, if it is ordinary by its word.
    fn judged(head: &[u8; SNAPSHOT], head_len: usize, frame_len: usize, v6: bool) -> Option<Headers> {
        let ethertype = if v6 { 0x86dd } else { 0x0800 };
        let headers = Headers::parse(&head[..head_len], frame_len, NETWORK, v6).ok()?;
        let fixed = if v6 { IPV6_LEN } else { IPV4_LEN };
        let ordinary = word(head, 12) == ethertype
            && matches!(headers.protocol, TCP | UDP)
            && headers.fragment == Fragment::None
            && usize::from(headers.transport) == NETWORK + fixed
            && headers.ttl > 1
            && headers.tcp_flags & (SYN | FIN | RST) == 0;
        ordinary.then_some(headers)
    }

    fn agree<A: Address>(
        head: &[u8; SNAPSHOT],
        head_len: usize,
        frame_len: usize,
    ) -> Result<(), TestCaseError> {
        let judged = judged(head, head_len, frame_len, A::V6);
        prop_assert_eq!(is_ordinary::<A>(head, head_len, frame_len), judged.is_some());
        if let Some(headers) = judged {
            prop_assert_eq!(protocol::<A>(head), headers.protocol);
            prop_assert_eq!(
                ports::<A>(head),
                u32::from(headers.source_port) << 16 | u32::from(headers.destination_port)
            );
            prop_assert_eq!(len::<A>(head), headers.len as usize);
        }
        Ok(())
    }

    proptest! {
        /// It sees what the careful parser sees, whatever is wrong with a packet.
        #[test]
        fn it_agrees_with_the_parser(
            v6: bool, payload in 0..200_usize, udp: bool,
            damage in proptest::collection::vec((0..62_usize, any::<u8>()), 0..3), mend: bool, cut in 0..80_usize,
        ) {
            let frame = Tcp::new(v6, payload).bytes(Checksum::Whole);
            let mut head = [0; SNAPSHOT];
            let head_len = frame.len().min(SNAPSHOT);
            head[..head_len].copy_from_slice(&frame[..head_len]);
            if udp {
                head[NETWORK + if v6 { 6 } else { 9 }] = UDP;
            }
            for (at, byte) in damage {
                head[at] = byte;
            }
            if mend && !v6 {
                head[NETWORK + 10..NETWORK + 12].fill(0);
                let checksum = Sum::of(&head[NETWORK..NETWORK + 20]).checksum();
                head[NETWORK + 10..NETWORK + 12].copy_from_slice(&checksum);
            }
            let frame_len = frame.len().saturating_sub(cut).max(NETWORK + 1);
            let head_len = head_len.min(frame_len);
            if v6 { agree::<u128>(&head, head_len, frame_len)? } else { agree::<u32>(&head, head_len, frame_len)? }
        }
    }

    #[test]
    fn acknowledgements_are_read_of_segments_alone() {
        let frame = Tcp::new(false, 0).bytes(Checksum::Whole);
        let mut head = [0; SNAPSHOT];
        head[..frame.len()].copy_from_slice(&frame);
        head[47] = ACK;
        head[42..46].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(acknowledged::<u32>(&head), Some(0x0102_0304));
        head[47] = 0;
        assert_eq!(acknowledged::<u32>(&head), None);
        (head[47], head[23]) = (ACK, UDP);
        assert_eq!(acknowledged::<u32>(&head), None);
    }
}
