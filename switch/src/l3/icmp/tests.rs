use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4, icmpv6};
use proptest::prelude::*;

use super::*;
use crate::packet::embedded::Embedded;
use crate::packet::ethernet::Mac;
use crate::packet::testing::{Checksum, Tcp, recomputed};

const LINK: Link = Link { destination: Mac([4; 6]), source: Mac([2; 6]) };

fn headers(frame: &[u8]) -> Headers {
    let (ethertype, network) = ethernet::payload(frame);
    Headers::parse(frame, frame.len(), network, ethertype == 0x86dd).expect("a good frame")
}

fn ping(v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    if v6 {
        let ip = builder.ipv6([0xfd; 16], [0xfe; 16], 9);
        ip.icmpv6_echo_request(7, 9).write(&mut frame, payload).expect("a packet");
    } else {
        let ip = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9);
        ip.icmpv4_echo_request(7, 9).write(&mut frame, payload).expect("a packet");
    }
    frame
}

/// As the switch does it: on the first bytes, with the payload elsewhere.
fn answer(frame: &mut [u8], v6: bool, partial: bool, from: Option<u128>) {
    let read = headers(frame);
    assert!(is_echo_request(frame, &read));
    let head = frame.len().min(128);
    if v6 {
        let from = from.unwrap_or(read.addresses_v6(frame).1);
        echo_reply::<u128>(&mut frame[..head], &read, partial, from);
    } else {
        let from = from.map_or(read.addresses_v4(frame).1, |from| from as u32);
        echo_reply::<u32>(&mut frame[..head], &read, partial, from);
    }
}

proptest! {
    #[test]
    fn echoes_come_back_with_their_payload(
        v6: bool, payload in proptest::collection::vec(any::<u8>(), 1..3000), from in proptest::option::of(any::<u128>())
    ) {
        let mut frame = ping(v6, &payload);
        let asked = headers(&frame).tuple(&frame);
        answer(&mut frame, v6, false, from);
        let read = headers(&frame);
        prop_assert_eq!(read.ttl, 64);
        prop_assert!(checksum_is_right(&frame, &read));
        prop_assert_eq!(kind(&frame, &read), Some(if v6 { 129 } else { 0 }));
        prop_assert_eq!(&recomputed(&frame)[..36], &frame[..36]);
        prop_assert!(frame.ends_with(&payload));
        let told = read.tuple(&frame);
        if from.is_none() {
            prop_assert_eq!(told, asked.reversed());
        } else {
            prop_assert_eq!(told.destination, asked.source);
        }
        frame[usize::from(read.transport) + 5] ^= 1;
        prop_assert!(!checksum_is_right(&frame, &read));
    }

    #[test]
    fn echoes_whose_checksum_is_still_to_be_completed(v6: bool, payload in proptest::collection::vec(any::<u8>(), 1..300)) {
        let mut frame = ping(v6, &payload);
        let at = if v6 { 54 } else { 34 };
        let sum = if v6 {
            pseudo(Sum::of(&frame[22..54]), ICMPV6, frame.len() - 54).folded()
        } else {
            [0, 0]
        };
        frame[at + 2..at + 4].copy_from_slice(&sum);
        answer(&mut frame, v6, true, None);
        let sum = Sum::of(&frame[at..]).checksum();
        frame[at + 2..at + 4].copy_from_slice(&sum);
        prop_assert!(checksum_is_right(&frame, &headers(&frame)));
    }

    #[test]
    fn errors_quote_what_was_sent(
        v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..2000), at_hand in 62..2100_usize, mtu: u32
    ) {
        let sent = Tcp { payload, ..Tcp::new(v6, 0) }.bytes(Checksum::Whole);
        let about = &sent[14..sent.len().min(at_hand)];
        let mut out = [0xee; FRAME_LEN];
        let what = Error::TooBig { mtu };
        let len = if v6 {
            error::<u128>(&mut out, LINK, 5, about, what)
        } else {
            error::<u32>(&mut out, LINK, 5, about, what)
        };
        let frame = &out[..len.expect("room")];
        prop_assert_eq!(recomputed(frame), frame);
        let read = headers(frame);
        prop_assert!(checksum_is_right(frame, &read));
        let longest = if v6 { 1280 } else { 576 };
        prop_assert!(read.len <= longest);
        let quoted = &frame[usize::from(read.transport) + 8..];
        prop_assert_eq!(quoted, &about[..quoted.len()]);
        prop_assert!(quoted.len() == about.len() || read.len == longest);
        let embedded = Embedded::parse(frame, &read).expect("a quoted packet");
        prop_assert_eq!(embedded.reply_tuple(frame).reversed(), headers(&sent).tuple(&sent));
        let sliced = SlicedPacket::from_ethernet(frame).expect("a packet");
        match sliced.transport {
            Some(TransportSlice::Icmpv4(icmp)) => {
                let next_hop_mtu = mtu.min(65535) as u16;
                let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
                prop_assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(header));
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                prop_assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu });
            }
            other => prop_assert!(false, "{other:?}"),
        }
        prop_assert!(!may_report(frame, &read, Error::TimeExceeded), "no error about an error");
        prop_assert!(may_report(&sent, &headers(&sent), Error::TimeExceeded));
    }

    #[test]
    fn nothing_hurts(mut head in proptest::collection::vec(any::<u8>(), 0..128), v6: bool, protocol: u8, network: u8, transport: u8, len: u32) {
        let headers = Headers {
            v6, protocol, ttl: 3, tcp_flags: 0, network: u16::from(network), transport: u16::from(transport),
            len, fragment: Fragment::None, source_port: 0, destination_port: 8, icmp_error: false,
        };
        let mut out = [0; FRAME_LEN];
        let _ = (checksum_is_right(&head, &headers), may_report(&head, &headers, Error::TimeExceeded));
        let _ = error::<u32>(&mut out, LINK, 1, &head, Error::TimeExceeded);
        let _ = error::<u128>(&mut out[..usize::from(network)], LINK, 1, &head, Error::TimeExceeded);
        echo_reply::<u32>(&mut head, &headers, false, 1);
        echo_reply::<u128>(&mut head, &headers, false, 1);
    }
}

#[test]
fn fragments_of_an_echo_are_answered_one_by_one() {
    let whole = ping(false, &[0x5a; 1000]);
    let piece = |offset: usize, end: usize, more: bool| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34 + offset..34 + end]);
        let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
        frame[16..18].copy_from_slice(&((20 + end - offset) as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&word.to_be_bytes());
        frame[24..26].fill(0);
        let sum = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum);
        frame
    };
    let (mut first, mut second) = (piece(0, 504, true), piece(504, 1008, false));
    let read = headers(&first);
    assert!(is_echo_request(&first, &read));
    echo_reply::<u32>(&mut first, &read, false, 0x0a00_0002);
    let read = headers(&second);
    assert!(!is_echo_request(&second, &read), "a later fragment says nothing");
    echo_reply::<u32>(&mut second, &read, false, 0x0a00_0002);
    let message = [&first[34..], &second[34..]].concat();
    assert_eq!(Sum::of(&message).folded(), [0xff; 2]);
    assert_eq!((message[0], &message[8..]), (0, &whole[42..]));
    let addresses = |frame: &[u8]| headers(frame).addresses_v4(frame);
    assert_eq!(addresses(&first), (0x0a00_0002, 0x0a00_0001));
    assert_eq!(addresses(&second), addresses(&first));
}

#[test]
fn every_error_is_what_another_reader_reads() {
    use icmpv4::{DestUnreachableHeader as V4, ParameterProblemHeader as Problem4};
    use icmpv6::{DestUnreachableCode as V6, ParameterProblemCode};
    let problem =
        |code, pointer| Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader { code, pointer });
    let unreachable = Icmpv4Type::DestinationUnreachable;
    for (what, v4, v6) in [
        (Error::NetUnreachable, unreachable(V4::Network), Icmpv6Type::DestinationUnreachable(V6::NoRoute)),
        (Error::HostUnreachable, unreachable(V4::Host), Icmpv6Type::DestinationUnreachable(V6::Address)),
        (
            Error::ProtocolUnreachable,
            unreachable(V4::Protocol),
            problem(ParameterProblemCode::UnrecognizedNextHeader, 6),
        ),
        (Error::PortUnreachable, unreachable(V4::Port), Icmpv6Type::DestinationUnreachable(V6::Port)),
        (
            Error::Prohibited,
            unreachable(V4::FilterProhibited),
            Icmpv6Type::DestinationUnreachable(V6::Prohibited),
        ),
        (
            Error::TimeExceeded,
            Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
            Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        ),
        (
            Error::ParameterProblem { code: 0, pointer: 9 },
            Icmpv4Type::ParameterProblem(Problem4::PointerIndicatesError(9)),
            problem(ParameterProblemCode::ErroneousHeaderField, 9),
        ),
    ] {
        let mut out = [0; FRAME_LEN];
        let about = Tcp::new(false, 9).bytes(Checksum::Whole);
        let len = error::<u32>(&mut out, LINK, 5, &about[14..], what).expect("room");
        let sliced = SlicedPacket::from_ethernet(&out[..len]).expect("a packet");
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(icmp.icmp_type(), v4);
        let mut out = [0; FRAME_LEN];
        let about = Tcp::new(true, 9).bytes(Checksum::Whole);
        let len = error::<u128>(&mut out, LINK, 5, &about[14..], what).expect("room");
        let sliced = SlicedPacket::from_ethernet(&out[..len]).expect("a packet");
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(icmp.icmp_type(), v6);
        let mut out = [0; FRAME_LEN];
        assert_eq!(error::<u128>(&mut out[..len - 1], LINK, 5, &about[14..], what), None);
    }
}

#[test]
fn about_some_packets_nothing_is_said() {
    let v4 = Tcp::new(false, 9).bytes(Checksum::Whole);
    let v6 = Tcp::new(true, 9).bytes(Checksum::Whole);
    let with = |frame: &[u8], at: usize, bytes: &[u8], error: Error| {
        let mut frame = frame.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        if frame[14] >> 4 == 4 {
            frame[24..26].fill(0);
            let sum = Sum::of(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum);
        }
        may_report(&frame, &headers(&frame), error)
    };
    assert!(with(&v4, 26, &[10, 9, 9, 9], Error::TimeExceeded));
    for (at, bytes) in [
        (26, &[0; 4][..]),
        (26, &[127, 0, 0, 1]),
        (26, &[224, 0, 0, 1]),
        (26, &[255; 4]),
        (30, &[224, 0, 0, 1]),
        (30, &[255; 4]),
        (20, &[0, 9]),
        (0, &[1, 0, 0x5e, 0, 0, 1]),
    ] {
        assert!(!with(&v4, at, bytes, Error::TimeExceeded), "{bytes:?} at {at}");
    }
    for (at, bytes) in [(22, [0; 16]), (22, [0xff; 16]), (38, [0xff; 16])] {
        assert!(!with(&v6, at, &bytes, Error::TimeExceeded), "{bytes:?} at {at}");
    }
    assert!(with(&v6, 38, &[0xff; 16], Error::TooBig { mtu: 1280 }));
    for (v6, kind, may) in [
        (false, 8, true),
        (false, 0, true),
        (false, 3, false),
        (false, 5, false),
        (false, 11, false),
        (false, 12, false),
        (false, 40, false),
        (true, 128, true),
        (true, 1, false),
        (true, 2, false),
        (true, 100, false),
        (true, 137, false),
    ] {
        let mut frame = ping(v6, b"1");
        frame[if v6 { 54 } else { 34 }] = kind;
        assert_eq!(may_report(&frame, &headers(&frame), Error::TimeExceeded), may, "type {kind}");
    }
}
