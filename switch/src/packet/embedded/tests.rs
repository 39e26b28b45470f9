use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};
use proptest::prelude::*;

use super::*;
use crate::packet::rewrite::tests::{Kind, any_ends, any_frame, ends, headers, without_zero_of_icmp};
use crate::packet::testing::{Tcp, recomputed};

/// An error that a router sends to the packet's sender about the IP packet `about`.
fn error(v6: bool, about: &[u8], router: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    if v6 {
        let kind = Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded);
        let to = about[8..24].try_into().expect("an address");
        ethernet.ipv6([router; 16], to, 64).icmpv6(kind).write(&mut frame, about).expect("a packet");
    } else {
        let kind = Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit);
        let to = about[12..16].try_into().expect("an address");
        ethernet.ipv4([router; 4], to, 64).icmpv4(kind).write(&mut frame, about).expect("a packet");
    }
    frame
}

/// A packet of a connection is translated, somebody reports an error about it, and the error is translated back: it
/// quotes the very packet that was sent.
fn the_sender_finds_its_packet<A: Address>(
    sent: &[u8],
    kind: Kind,
    to: Ends<A>,
    quoted: usize,
    partial: bool,
) -> Result<(), TestCaseError> {
    let read = headers(sent);
    let from = ends::<A>(sent);
    let to = match kind {
        Kind::Ping => Ends { destination_port: from.destination_port, ..to },
        _ => to,
    };
    let mut on_wire = sent.to_vec();
    Rewrite::new(read.protocol, &from, &to).translate(&mut on_wire, &read, false);
    let network = usize::from(read.network);
    let least = usize::from(read.transport) - network + 8;
    let mut quoted = quoted.max(least).min(sent.len() - network);
    if quoted == least - 8 + 17 {
        quoted -= 1; // half of TCP's checksum is not translated
    }
    let mut frame = error(A::V6, &on_wire[network..network + quoted], 7);

    let outer = headers(&frame);
    let embedded = Embedded::parse(&frame, &outer).expect("enough is quoted");
    prop_assert!(embedded.checksum_good);
    let ends_of = |tuple: &Tuple| Ends::<A>::of(tuple).expect("of this family");
    let back = embedded.reply_tuple(&frame);
    prop_assert_eq!(ends_of(&back.reversed()), to);
    let rewrite = Rewrite::new(read.protocol, &reversed(&to, kind), &reversed(&from, kind));
    if partial {
        // The field holds what the pseudo-header sums up to: nothing for ICMP.
        let at = usize::from(outer.transport) + 2;
        let pseudo = if A::V6 {
            let length = (frame.len() - 54) as u16;
            (Sum::of(&frame[22..54]) + Sum::of_word(length) + Sum::of_word(58)).folded()
        } else {
            [0, 0]
        };
        frame[at..at + 2].copy_from_slice(&pseudo);
    }
    let mut later = frame.clone();
    let (_, asked) = A::read(&frame, usize::from(embedded.headers.network));
    Embedded::translate_later(&mut later, &outer, asked, &rewrite);
    embedded.translate(&mut frame, &outer, partial, &rewrite);
    let header = ..usize::from(outer.transport);
    prop_assert_eq!(&later[header], &frame[header], "fragments of an error have the same ends");
    if partial {
        let checksum = Sum::of(&frame[usize::from(outer.transport)..]).checksum();
        let at = usize::from(outer.transport) + 2;
        frame[at..at + 2].copy_from_slice(&checksum);
    }

    let at = usize::from(outer.transport) + ERROR_LEN;
    let restored = [&sent[..network], &frame[at..]].concat();
    if quoted == sent.len() - network {
        prop_assert_eq!(without_zero_of_icmp(restored), without_zero_of_icmp(sent.to_vec()));
    } else if kind != Kind::Ping {
        prop_assert_eq!(&restored[..], &sent[..network + quoted]);
    }
    prop_assert_eq!(without_zero_of_icmp(recomputed(&frame)), without_zero_of_icmp(frame.clone()));
    let (source, destination) = A::read(&frame, 14);
    prop_assert_eq!(destination, from.source);
    let router = A::of(if A::V6 { [7_u8; 16].into() } else { [7_u8; 4].into() }).expect("of this family");
    prop_assert_eq!(source, if from.destination == to.destination { router } else { from.destination });
    Ok(())
}

fn reversed<A: Address>(ends: &Ends<A>, kind: Kind) -> Ends<A> {
    let ports = match kind {
        Kind::Ping => (ends.source_port, ends.destination_port),
        _ => (ends.destination_port, ends.source_port),
    };
    Ends {
        source: ends.destination,
        destination: ends.source,
        source_port: ports.0,
        destination_port: ports.1,
    }
}

proptest! {
    #[test]
    fn ipv4_senders_find_their_packets(
        (sent, _, kind) in any_frame(false), to in any_ends::<u32>(), dnat: bool, quoted in 0..150_usize, partial: bool
    ) {
        let from = ends::<u32>(&sent);
        let to = if dnat { to } else { Ends { destination: from.destination, ..to } };
        the_sender_finds_its_packet(&sent, kind, to, quoted, partial)?;
    }

    #[test]
    fn ipv6_senders_find_their_packets(
        (sent, _, kind) in any_frame(true), to in any_ends::<u128>(), dnat: bool, quoted in 0..150_usize, partial: bool
    ) {
        let from = ends::<u128>(&sent);
        let to = if dnat { to } else { Ends { destination: from.destination, ..to } };
        the_sender_finds_its_packet(&sent, kind, to, quoted, partial)?;
    }

    #[test]
    fn no_quoted_bytes_hurt(
        mut frame in proptest::collection::vec(any::<u8>(), 34..160), v6: bool, words in 4..9_u8, back: bool, cut: u8
    ) {
        let about = 14 + if v6 { 48 } else { 28 };
        frame.resize(frame.len().max(about + 48), 0);
        frame[about] = if v6 { 0x60 } else { 0x40 | words };
        let outer = Headers {
            v6, protocol: if v6 { ICMPV6 } else { ICMP }, ttl: 1, tcp_flags: 0, network: 14,
            transport: about as u16 - 8, len: frame.len() as u32 - 14 - u32::from(cut % 32), fragment: Fragment::None,
            source_port: 0, destination_port: 0, icmp_error: true,
        };
        if back {
            let (from, to, len) = if v6 { (about + 8, 14 + 24, 16) } else { (about + 12, 14 + 16, 4) };
            frame.copy_within(from..from + len, to);
        }
        if let Some(embedded) = Embedded::parse(&frame, &outer) {
            let tuple = embedded.reply_tuple(&frame);
            if let Some(ends) = Ends::<u32>::of(&tuple) {
                embedded.translate(&mut frame, &outer, false, &Rewrite::new(tuple.protocol, &ends, &ends));
            }
            if let Some(ends) = Ends::<u128>::of(&tuple) {
                embedded.translate(&mut frame, &outer, false, &Rewrite::new(tuple.protocol, &ends, &ends));
            }
        }
    }
}

#[test]
fn an_error_that_goes_to_somebody_else_or_quotes_too_little_belongs_to_nothing() {
    let sent = Tcp::new(false, 20).bytes(crate::packet::testing::Checksum::Whole);
    let good = error(false, &sent[14..14 + 28], 7);
    assert!(Embedded::parse(&good, &headers(&good)).is_some());
    let short = error(false, &sent[14..14 + 27], 7);
    assert_eq!(Embedded::parse(&short, &headers(&short)), None);
    let mut elsewhere = good.clone();
    elsewhere[33] ^= 1;
    let elsewhere = recomputed(&elsewhere);
    assert_eq!(Embedded::parse(&elsewhere, &headers(&elsewhere)), None);
    let mut spoiled = good.clone();
    spoiled[42 + 8] ^= 1;
    let embedded = Embedded::parse(&spoiled, &headers(&spoiled)).expect("a packet");
    assert!(!embedded.checksum_good);
}

#[test]
fn an_error_about_an_error_is_recognised() {
    let sent = Tcp::new(false, 20).bytes(crate::packet::testing::Checksum::Whole);
    let first = error(false, &sent[14..], 7);
    let second = error(false, &first[14..], 9);
    let embedded = Embedded::parse(&second, &headers(&second)).expect("a packet");
    assert!(embedded.headers.icmp_error);
}
