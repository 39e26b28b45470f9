//! Sequence numbers of a TCP connection in whose data text was replaced by text of another length.
//!
//! Behind the last replacement everything is shifted by the sum of the differences; before it, as it was then.
//! What one side sends is shifted forth, what the other side acknowledges of it is shifted back.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::packet::checksum::Sum;
use crate::packet::headers::Headers;
use crate::packet::rewrite::{delta, fold};

/// The shifts of what one side sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shift {
    /// Where the text of the last replacement begins, in the sender's numbers.
    at: u32,
    before: i32,
    after: i32,
}

impl Shift {
    /// Notes that text which begins at `seq`, in the sender's numbers, got longer by `difference`. A retransmission
    /// changes nothing.
    pub fn change(&mut self, seq: u32, difference: i32) {
        let first = self.before == 0 && self.after == 0;
        if first || seq.wrapping_sub(self.at) as i32 > 0 {
            self.at = seq;
            self.before = self.after;
            self.after = self.after.wrapping_add(difference);
        }
    }

    /// Whether nothing was ever shifted.
    pub fn is_none(&self) -> bool {
        self.before == 0 && self.after == 0
    }

    /// The receiver's number for the sender's `seq`.
    pub fn forth(&self, seq: u32) -> u32 {
        let shift = if seq.wrapping_sub(self.at) as i32 > 0 { self.after } else { self.before };
        seq.wrapping_add_signed(shift)
    }

    /// The sender's number for the receiver's `ack`.
    pub fn back(&self, ack: u32) -> u32 {
        let before = ack.wrapping_add_signed(self.before.wrapping_neg());
        if before.wrapping_sub(self.at) as i32 > 0 {
            // Never back before the text itself: what was acknowledged of it was acknowledged.
            let after = ack.wrapping_add_signed(self.after.wrapping_neg());
            if after.wrapping_sub(self.at) as i32 > 0 { after } else { self.at }
        } else {
            before
        }
    }
}

/// Shifts the numbers in a segment's header: `mine` is for its sender's data, `others` for what it acknowledges. With
/// `partial` the checksum is the sum of the pseudo-header alone and stays.
pub fn adjust(head: &mut [u8], headers: &Headers, partial: bool, mine: &Shift, others: &Shift) {
    let at = usize::from(headers.transport);
    let Some(tcp) = head.get_mut(at..) else { return };
    let Some(header_len) = tcp.get(12).map(|byte| usize::from(byte >> 4) * 4) else { return };
    let len = header_len.min(tcp.len());
    let tcp = &mut tcp[..len];
    if len < 20 {
        return;
    }
    let old = Sum::of(&tcp[4..12]) + Sum::of(&tcp[20..]);
    replace(tcp, 4, |seq| mine.forth(seq));
    if tcp[13] & 0x10 != 0 {
        replace(tcp, 8, |ack| others.back(ack));
    }
    shift_sack(tcp, others);
    if !partial {
        let change = delta(old, Sum::of(&tcp[4..12]) + Sum::of(&tcp[20..]));
        let checksum = u16::from_ne_bytes([tcp[16], tcp[17]]);
        let checksum = !fold(u32::from(!checksum) + u32::from(change));
        tcp[16..18].copy_from_slice(&checksum.to_ne_bytes());
    }
}

fn replace(bytes: &mut [u8], at: usize, change: impl Fn(u32) -> u32) {
    if let Some(word) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *word = change(u32::from_be_bytes(*word)).to_be_bytes();
    }
}

/// Shifts the blocks of a SACK option (RFC 2018) back.
fn shift_sack(tcp: &mut [u8], others: &Shift) {
    let mut at = 20;
    while let Some(&kind) = tcp.get(at) {
        let len = match (kind, tcp.get(at + 1)) {
            (0, _) => return,
            (1, _) => 1,
            (_, Some(&len)) if len >= 2 => usize::from(len),
            _ => return,
        };
        if kind == 5 && at + len <= tcp.len() {
            for edge in (at + 2..at + len).step_by(4).filter(|edge| edge + 4 <= at + len) {
                replace(tcp, edge, |edge| others.back(edge));
            }
        }
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn behind_a_replacement_all_is_shifted_and_before_it_nothing() {
        let mut shift = Shift::default();
        assert!(shift.is_none());
        shift.change(100, 5);
        shift.change(100, 5);
        assert_eq!((shift.forth(100), shift.forth(101), shift.forth(130)), (100, 106, 135));
        assert_eq!((shift.back(100), shift.back(135), shift.back(120)), (100, 130, 115));
        // Another one, of text that got shorter.
        shift.change(200, -8);
        assert_eq!((shift.forth(200), shift.forth(230)), (205, 227));
        assert_eq!((shift.back(205), shift.back(227)), (200, 230));
        shift.change(150, 77);
        assert_eq!(shift.forth(230), 227, "a retransmission of older data");
    }

    proptest! {
        #[test]
        fn acknowledging_what_was_sent_gives_the_senders_number(
            start: u32, changes in proptest::collection::vec((20_u32..60, -12_i32..12), 1..5), beyond in 1_u32..5000
        ) {
            let (mut shift, mut at) = (Shift::default(), start);
            for (gap, difference) in changes {
                at = at.wrapping_add(gap);
                shift.change(at, difference);
            }
            // The replaced text itself is some 20 bytes long.
            let seq = at.wrapping_add(20 + beyond);
            prop_assert_eq!(shift.back(shift.forth(seq)), seq);
            prop_assert_eq!(shift.back(shift.forth(at)), at);
        }

        #[test]
        fn a_segments_checksum_stays_right(seq: u32, ack: u32, at: u32, difference in -20_i32..20, edges: (u32, u32)) {
            let mut frame = Vec::new();
            let mut options = vec![1, 1, 5, 10];
            options.extend(edges.0.to_be_bytes());
            options.extend(edges.1.to_be_bytes());
            etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .tcp(1000, 21, seq, 1000)
                .ack(ack)
                .options_raw(&options)
                .expect("options")
                .write(&mut frame, b"NOOP\r\n")
                .expect("a packet");
            let headers = Headers::parse(&frame, frame.len(), 14, false).expect("good");
            let mut shift = Shift::default();
            shift.change(at, difference);
            adjust(&mut frame, &headers, false, &shift, &shift);
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
            prop_assert_eq!((word(38), word(42)), (shift.forth(seq), shift.back(ack)));
            prop_assert_eq!((word(58), word(62)), (shift.back(edges.0), shift.back(edges.1)));
            let packet = etherparse::PacketHeaders::from_ethernet_slice(&frame).expect("a packet");
            let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(etherparse::TransportHeader::Tcp(tcp))) =
                (packet.net, packet.transport) else { panic!("not TCP") };
            prop_assert_eq!(tcp.calc_checksum_ipv4(&ip, b"NOOP\r\n").expect("short"), tcp.checksum);
        }
    }
}
