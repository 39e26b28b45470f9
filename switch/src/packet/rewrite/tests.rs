use etherparse::{IpNumber, Ipv6Header, PacketBuilder, TcpHeaderSlice, TcpOptionElement};
use proptest::prelude::*;

use super::*;
use crate::packet::testing::{Checksum, Tcp, recomputed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::packet) enum Kind {
    Tcp,
    Udp,
    Ping,
}

/// A frame of every kind that is translated, with right checksums.
fn frame(tcp: &Tcp, kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Tcp => tcp.bytes(Checksum::Whole),
        Kind::Udp => tcp.bytes_of_udp(Checksum::Whole),
        Kind::Ping => {
            let mut bytes = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
            if tcp.v6 {
                let ip = builder.ipv6([0xfd; 16], [0xfe; 16], 9);
                ip.icmpv6_echo_request(7, 9).write(&mut bytes, &tcp.payload).expect("a packet");
            } else {
                let ip = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9);
                ip.icmpv4_echo_request(7, 9).write(&mut bytes, &tcp.payload).expect("a packet");
            }
            bytes
        }
    }
}

pub(in crate::packet) fn headers(frame: &[u8]) -> Headers {
    let (ethertype, network) = crate::packet::ethernet::payload(frame);
    Headers::parse(frame, frame.len(), network, ethertype == 0x86dd).expect("a good frame")
}

pub(in crate::packet) fn ends<A: Address>(frame: &[u8]) -> Ends<A> {
    Ends::of(&headers(frame).tuple(frame)).expect("of this family")
}

/// In one's complement, ICMP's checksums 0 and 0xffff are the same number.
pub(in crate::packet) fn without_zero_of_icmp(mut frame: Vec<u8>) -> Vec<u8> {
    let headers = headers(&frame);
    if matches!(headers.protocol, ICMP | ICMPV6) {
        let field = &mut frame[usize::from(headers.transport) + 2..][..2];
        if field == [0xff; 2] {
            field.fill(0);
        }
    }
    frame
}

pub(in crate::packet) fn any_frame(v6: bool) -> impl Strategy<Value = (Vec<u8>, Tcp, Kind)> {
    let kind = prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Ping)];
    let shape = (0..3_usize, 0..3_usize, 0..4_usize, proptest::collection::vec(any::<u8>(), 0..90), kind);
    shape.prop_map(move |(tags, ip_options, options, payload, kind)| {
        let new = Tcp::new(v6, 0);
        let tcp = Tcp { tags, ip_options: 8 * ip_options, options: 4 * options, payload, ..new };
        (frame(&tcp, kind), tcp, kind)
    })
}

pub(in crate::packet) fn any_ends<A: Address + Arbitrary>() -> impl Strategy<Value = Ends<A>> {
    any::<(A, A, u16, u16)>().prop_map(|(source, destination, source_port, destination_port)| Ends {
        source,
        destination,
        source_port,
        destination_port,
    })
}

fn translation_holds<A: Address>(
    before: &[u8],
    tcp: &Tcp,
    kind: Kind,
    to: Ends<A>,
) -> Result<(), TestCaseError> {
    let from = ends::<A>(before);
    let read = headers(before);
    let to = match kind {
        Kind::Ping => Ends { destination_port: from.destination_port, ..to },
        _ => to,
    };
    let there = Rewrite::new(read.protocol, &from, &to);
    let back = Rewrite::new(read.protocol, &to, &from);

    let mut after = before.to_vec();
    there.translate(&mut after, &read, false);
    prop_assert_eq!(ends::<A>(&after), to);
    prop_assert_eq!(without_zero_of_icmp(after.clone()), without_zero_of_icmp(recomputed(&after)));
    back.translate(&mut after, &headers(before), false);
    prop_assert_eq!(without_zero_of_icmp(after), without_zero_of_icmp(before.to_vec()), "there and back");

    // One hop further.
    let mut after = before.to_vec();
    there.forward(&mut after, &read, false);
    prop_assert_eq!(headers(&after).ttl, read.ttl - 1);
    prop_assert_eq!(without_zero_of_icmp(after.clone()), without_zero_of_icmp(recomputed(&after)));

    // The same where the sender left the checksum to others.
    let (mut after, request) = match kind {
        Kind::Tcp => (tcp.bytes(Checksum::Partial), tcp.request(1000)),
        Kind::Udp => (tcp.bytes_of_udp(Checksum::Partial), tcp.request_of_udp()),
        Kind::Ping => return Ok(()),
    };
    prop_assert!(is_partial(&request, &read));
    let untouched = after.clone();
    there.translate(&mut after, &read, true);
    let mut completed = after.clone();
    let at = usize::from(read.transport);
    let checksum = Sum::of(&completed[at..]).checksum();
    let field = at + usize::from(request.csum_offset);
    completed[field..field + 2].copy_from_slice(&checksum);
    if kind == Kind::Udp && checksum == [0, 0] {
        completed[field..field + 2].fill(0xff);
    }
    prop_assert_eq!(recomputed(&completed), completed);
    back.translate(&mut after, &read, true);
    prop_assert_eq!(after, untouched, "there and back, partial");
    Ok(())
}

proptest! {
    #[test]
    fn ipv4_is_translated_as_if_made_anew((before, tcp, kind) in any_frame(false), to in any_ends::<u32>()) {
        translation_holds(&before, &tcp, kind, to)?;
    }

    #[test]
    fn ipv6_is_translated_as_if_made_anew((before, tcp, kind) in any_frame(true), to in any_ends::<u128>()) {
        translation_holds(&before, &tcp, kind, to)?;
    }

    #[test]
    fn a_hop_less((before, ..) in any::<bool>().prop_flat_map(any_frame)) {
        let mut after = before.clone();
        decrement_ttl(&mut after, &headers(&before));
        prop_assert_eq!(headers(&after).ttl, headers(&before).ttl - 1);
        prop_assert_eq!(recomputed(&after), after);
    }

    #[test]
    fn no_bytes_and_no_offsets_hurt(
        mut head in proptest::collection::vec(any::<u8>(), 0..128),
        v6: bool, protocol: u8, network: u16, transport: u16, len: u32, partial: bool, syn: bool,
        from in any_ends::<u128>(), to in any_ends::<u128>(),
    ) {
        let headers = Headers {
            v6, protocol, ttl: 3, tcp_flags: if syn { 2 } else { 0 }, network: network % 140, transport: transport % 140,
            len, fragment: Fragment::None, source_port: 0, destination_port: 8, icmp_error: false,
        };
        Rewrite::new(protocol, &from, &to).forward(&mut head, &headers, partial);
        let narrow = |ends: &Ends<u128>| Ends {
            source: ends.source as u32, destination: 7, source_port: 1, destination_port: 2,
        };
        Rewrite::new(protocol, &narrow(&from), &narrow(&to)).forward(&mut head, &headers, partial);
        decrement_ttl(&mut head, &headers);
        clamp_mss(&mut head, &Headers { protocol: TCP, ..headers }, partial, 100);
        set_macs(&mut head, Mac::BROADCAST, Mac::ZERO);
    }

    #[test]
    fn a_smaller_mss(
        mss in 1..=u16::MAX, limit in 500..2000_u16, lead in 0..4_usize, partial: bool, cut in prop_oneof![Just(1000), 54..62_usize]
    ) {
        // The option behind 0 to 3 bytes of others: at even and odd offsets.
        let mut options = vec![1; lead];
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        options.extend([1; 4]);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).tcp(1, 2, 3, 4).syn()
            .options_raw(&options).expect("short enough").write(&mut frame, b"").expect("a packet");
        let read = headers(&frame);
        let before = frame.clone();
        let head = frame.len().min(cut);
        let lowered = clamp_mss(&mut frame[..head], &read, partial, limit);
        prop_assert_eq!(lowered, mss > limit && head >= 34 + 20 + lead + 4);
        let option = TcpHeaderSlice::from_slice(&frame[34..]).expect("TCP").options_iterator()
            .find_map(|option| match option { Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss), _ => None });
        prop_assert_eq!(option, Some(if lowered { limit } else { mss }));
        if partial {
            prop_assert_eq!(&frame[50..52], &before[50..52]);
        } else {
            prop_assert_eq!(recomputed(&frame), frame);
        }
    }
}

#[test]
fn no_checksum_stays_none_and_zero_is_sent_as_ones() {
    for v6 in [false, true] {
        let tcp = Tcp::new(v6, 20);
        let mut frame = tcp.bytes_of_udp(Checksum::Whole);
        let at = usize::from(headers(&frame).transport) + 6;
        frame[at..at + 2].fill(0);
        let read = headers(&frame);
        let to = |port| Ends { source: 0, destination: 0, source_port: port, destination_port: 0 };
        let wide = |port| Ends { source: 0, destination: 0, source_port: port, destination_port: 0 };
        if v6 {
            Rewrite::<u128>::new(UDP, &ends(&frame), &wide(1)).translate(&mut frame, &read, false);
        } else {
            Rewrite::<u32>::new(UDP, &ends(&frame), &to(1)).translate(&mut frame, &read, false);
        }
        assert_eq!(frame[at..at + 2], [0, 0], "v6: {v6}");
    }
    // Every port once: one of them makes the checksum come to zero.
    let frame = Tcp::new(false, 20).bytes_of_udp(Checksum::Whole);
    let read = headers(&frame);
    let mut ones = 0;
    for port in 0..=u16::MAX {
        let mut after = frame.clone();
        let to = Ends { source: 1, destination: 2, source_port: port, destination_port: 3 };
        Rewrite::<u32>::new(UDP, &ends(&frame), &to).translate(&mut after, &read, false);
        assert_ne!(after[40..42], [0, 0]);
        if after[40..42] == [0xff; 2] {
            assert_eq!(recomputed(&after), after);
            ones += 1;
        }
    }
    // Ports 0 and 0xffff are the same number to the sum.
    assert!((1..=2).contains(&ones), "{ones}");
}

#[test]
fn an_echo_reply_of_zeros_keeps_a_valid_checksum() {
    let mut frame = Vec::new();
    let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9);
    ip.icmpv4_echo_reply(5, 0).write(&mut frame, &[0; 8]).expect("a packet");
    let read = headers(&frame);
    let from = ends::<u32>(&frame);
    let to = Ends { source_port: 0, ..from };
    Rewrite::new(ICMP, &from, &to).translate(&mut frame, &read, false);
    assert_eq!(frame[36..40], [0xff, 0xff, 0, 0]);
    assert_eq!(Sum::of(&frame[34..]).folded(), [0xff; 2]);
}

#[test]
fn later_fragments_keep_their_payload() {
    let mut frame = Tcp::new(false, 100).bytes(Checksum::Whole);
    frame[21] = 9;
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum);
    let read = headers(&frame);
    let before = frame.clone();
    let from = Ends { source_port: 40000, destination_port: 443, ..ends::<u32>(&frame) };
    let to = Ends { source: 5, destination: 6, source_port: 7, destination_port: 8 };
    Rewrite::new(TCP, &from, &to).translate(&mut frame, &read, false);
    assert_eq!(frame[34..], before[34..]);
    assert_eq!(headers(&frame).addresses_v4(&frame), (5, 6));
}

#[test]
fn protocols_without_ports_have_their_addresses_translated() {
    // SCTP's CRC covers no addresses; UDP-Lite's and DCCP's checksum does.
    for (protocol, follows) in [(132, false), (47, false), (136, true), (33, true)] {
        let payload = [0x55; 16];
        let ip = Ipv6Header {
            payload_length: 16,
            next_header: IpNumber(protocol),
            hop_limit: 3,
            source: [0xfd; 16],
            destination: [0xfe; 16],
            ..Ipv6Header::default()
        };
        let mut frame = [&[2; 12][..], &[0x86, 0xdd], &ip.to_bytes(), &payload].concat();
        let read = headers(&frame);
        let from = ends::<u128>(&frame);
        let pseudo = |frame: &[u8]| (Sum::of(&frame[22..54]) + Sum::of(&frame[54..])).folded();
        let before = (frame.clone(), pseudo(&frame));
        let to = Ends { source: 1, destination: 2, ..from };
        Rewrite::new(protocol, &from, &to).translate(&mut frame, &read, false);
        assert_eq!(ends::<u128>(&frame), to);
        assert_eq!(pseudo(&frame) == before.1, follows, "protocol {protocol}");
        assert_eq!(frame[54..] == before.0[54..], !follows);
    }
}
