//! ARP for IPv4 over Ethernet (RFC 826, RFC 5227): what a packet says, what is to be done about it, and our own.
#![forbid(unsafe_code)]

use super::compose::{self, Link};
use crate::packet::ethernet::{HEADER_LEN, Mac};

/// Ethertype of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Bytes of a packet.
const LEN: usize = 28;
/// Bytes of a frame of our own, untagged and not padded.
pub const FRAME_LEN: usize = HEADER_LEN + LEN;
/// Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What is asked or said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has its address.
    Reply,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// What it is.
    pub operation: Operation,
    /// The sender's MAC.
    pub sender_mac: Mac,
    /// The sender's IPv4 address; 0 in a probe.
    pub sender: u32,
    /// The target's MAC; of no meaning in a request.
    pub target_mac: Mac,
    /// The target's IPv4 address.
    pub target: u32,
}

/// What may be kept of a packet's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learn {
    /// Nothing.
    Nothing,
    /// The MAC of a neighbour that is known already.
    Update {
        /// Whether it is an answer to us, so that the neighbour is reachable.
        confirmed: bool,
        /// Whether another MAC takes the place of the known one; if not, the known one is only doubted.
        replaces: bool,
    },
    /// As above, and a neighbour that is not known yet may be added: it is about to talk to us.
    Create,
}

/// What an interface does about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Send [`Arp::reply`] back.
    pub reply: bool,
    /// Somebody else uses an address of ours (RFC 5227, section 2.4).
    pub conflict: bool,
    /// What to keep of the sender.
    pub learn: Learn,
}

impl Arp {
    /// Reads the packet at `at` of a frame. `None` for other kinds of ARP, and for senders that nobody can be: a
    /// group or no MAC, an address that is not one host's.
    pub fn parse(head: &[u8], at: usize) -> Option<Self> {
        let packet: &[u8; LEN] = head.get(at..)?.first_chunk()?;
        let mac = |at: usize| Mac([0, 1, 2, 3, 4, 5].map(|i| packet[at + i]));
        let address = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| packet[at + i]));
        let operation = match packet[6..8] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        let arp = Self {
            operation,
            sender_mac: mac(8),
            sender: address(14),
            target_mac: mac(18),
            target: address(24),
        };
        let nobody = arp.sender_mac.is_multicast()
            || arp.sender_mac.is_zero()
            || matches!(arp.sender >> 24, 127 | 224..)
            || (arp.sender != 0 && arp.sender >> 24 == 0);
        (packet[..6] == KIND && !nobody).then_some(arp)
    }

    /// "Who has `target`? Tell `sender`."
    pub fn request(mac: Mac, sender: u32, target: u32) -> Self {
        Self { operation: Operation::Request, sender_mac: mac, sender, target_mac: Mac::ZERO, target }
    }

    /// "Has anybody got `address`?", before it is used (RFC 5227, section 2.1.1).
    pub fn probe(mac: Mac, address: u32) -> Self {
        Self::request(mac, 0, address)
    }

    /// "`address` is at `mac`", unasked (gratuitous ARP; RFC 5227, section 3).
    pub fn announcement(mac: Mac, address: u32) -> Self {
        Self::request(mac, address, address)
    }

    /// The answer: the target address is at `mac`.
    #[must_use]
    pub fn reply(&self, mac: Mac) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Whether somebody looks before taking an address.
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender == 0
    }

    /// Whether the sender says what nobody asked.
    pub fn is_announcement(&self) -> bool {
        self.sender != 0 && self.sender == self.target
    }

    /// What the interface with this `mac` does, which has the addresses of which `owns` is true.
    ///
    /// Only who asks for us may become a new neighbour, so that nobody fills the table by announcing; what is known
    /// follows whatever its neighbour says (RFC 826).
    pub fn verdict(&self, mac: Mac, owns: impl Fn(u32) -> bool) -> Verdict {
        let ignored = Verdict { reply: false, conflict: false, learn: Learn::Nothing };
        if self.sender_mac == mac {
            return ignored;
        }
        let for_us = owns(self.target);
        let is_request = self.operation == Operation::Request;
        if self.sender != 0 && owns(self.sender) {
            return Verdict { reply: is_request && for_us, conflict: true, ..ignored };
        }
        let learn = match self.sender {
            0 => Learn::Nothing,
            _ if is_request && for_us => Learn::Create,
            _ => Learn::Update { confirmed: !is_request && self.target_mac == mac, replaces: true },
        };
        Verdict { reply: is_request && for_us, conflict: false, learn }
    }

    /// The frame that carries the packet: to everybody if it asks or announces, to the target if it answers or
    /// `to` names somebody.
    pub fn frame(&self, to: Option<Mac>) -> [u8; FRAME_LEN] {
        let destination = to.unwrap_or(match self.operation {
            Operation::Request => Mac::BROADCAST,
            Operation::Reply => self.target_mac,
        });
        let mut out = [0; FRAME_LEN];
        let link = Link { destination, source: self.sender_mac };
        // It fits: the array is as long as both headers.
        let _ = compose::ethernet(&mut out, link, ETHERTYPE_ARP);
        let packet = &mut out[HEADER_LEN..];
        packet[..6].copy_from_slice(&KIND);
        packet[7] = if self.operation == Operation::Request { 1 } else { 2 };
        packet[8..14].copy_from_slice(&self.sender_mac.0);
        packet[14..18].copy_from_slice(&self.sender.to_be_bytes());
        packet[18..24].copy_from_slice(&self.target_mac.0);
        packet[24..].copy_from_slice(&self.target.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpOperation, NetSlice, SlicedPacket};
    use proptest::prelude::*;

    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ADDRESS: u32 = 0x0a00_0001;
    const PEER: u32 = 0x0a00_0002;

    fn owns(address: u32) -> bool {
        address == ADDRESS
    }

    #[test]
    fn frames_are_what_another_reader_expects() {
        let request = Arp::request(OURS, ADDRESS, PEER);
        let frame = request.frame(None);
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("no ARP: {sliced:?}") };
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&OURS.0[..], &[10, 0, 0, 1][..]));
        assert_eq!((arp.target_hw_addr(), arp.target_protocol_addr()), (&[0; 6][..], &[10, 0, 0, 2][..]));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(Arp::parse(&frame, 14), Some(request));

        let reply = request.reply(THEIRS);
        let frame = reply.frame(None);
        assert_eq!(frame[..12], [OURS.0, THEIRS.0].concat());
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a frame");
        let Some(NetSlice::Arp(arp)) = sliced.net else { panic!("no ARP: {sliced:?}") };
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&THEIRS.0[..], &[10, 0, 0, 2][..]));
        assert_eq!(request.frame(Some(THEIRS))[..6], THEIRS.0, "a unicast probe");
    }

    #[test]
    fn who_asks_for_us_is_answered_and_may_be_kept() {
        let asked = Arp::request(THEIRS, PEER, ADDRESS);
        assert_eq!(asked.verdict(OURS, owns), Verdict { reply: true, conflict: false, learn: Learn::Create });
        let probe = Arp::probe(THEIRS, ADDRESS);
        assert!(probe.is_probe());
        assert_eq!(
            probe.verdict(OURS, owns),
            Verdict { reply: true, conflict: false, learn: Learn::Nothing }
        );
        let other = Arp::request(THEIRS, PEER, 0x0a00_0003).verdict(OURS, owns);
        assert_eq!(
            other,
            Verdict {
                reply: false,
                conflict: false,
                learn: Learn::Update { confirmed: false, replaces: true }
            }
        );
    }

    #[test]
    fn answers_and_announcements_only_update() {
        let answer = Arp::request(OURS, ADDRESS, PEER).reply(THEIRS);
        let update = |confirmed| Verdict {
            reply: false,
            conflict: false,
            learn: Learn::Update { confirmed, replaces: true },
        };
        assert_eq!(answer.verdict(OURS, owns), update(true));
        let announced = Arp::announcement(THEIRS, PEER);
        assert!(announced.is_announcement());
        assert_eq!(announced.verdict(OURS, owns), update(false));
    }

    #[test]
    fn our_address_with_another_mac_is_a_conflict_and_our_own_frame_is_not() {
        let taken = Arp::announcement(THEIRS, ADDRESS).verdict(OURS, owns);
        assert_eq!(taken, Verdict { reply: true, conflict: true, learn: Learn::Nothing });
        let own = Arp::announcement(OURS, ADDRESS).verdict(OURS, owns);
        assert_eq!(own, Verdict { reply: false, conflict: false, learn: Learn::Nothing });
    }

    #[test]
    fn senders_that_nobody_can_be_and_other_kinds_are_ignored() {
        let good = Arp::request(THEIRS, PEER, ADDRESS).frame(None);
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = good;
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            Arp::parse(&frame, 14)
        };
        assert!(with(28, &[10, 0, 0, 9]).is_some());
        for (at, bytes) in [
            (15, &[6][..]),
            (18, &[8]),
            (20, &[0, 3]),
            (22, &[1]),
            (22, &[0; 6]),
            (28, &[224, 0, 0, 1]),
            (28, &[255; 4]),
            (28, &[127, 0, 0, 1]),
            (28, &[0, 0, 0, 1]),
        ] {
            assert_eq!(with(at, bytes), None, "{bytes:?} at {at}");
        }
        assert_eq!(Arp::parse(&good[..41], 14), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(mut packet: [u8; 28], request: bool, at in 0..60_usize) {
            packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }]);
            let frame = [&[0; 14][..], &packet].concat();
            if let Some(arp) = Arp::parse(&frame, 14) {
                prop_assert_eq!(&arp.frame(None)[14..], packet);
            }
            let _ = Arp::parse(&frame, at);
        }
    }
}
