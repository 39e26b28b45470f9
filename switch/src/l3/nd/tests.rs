use etherparse::{IcmpEchoHeader, Icmpv6Type, PacketBuilder};
use proptest::prelude::*;

use super::*;
use crate::packet::testing::recomputed;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
const ADDRESS: u128 = 0xfd00_0000_0000_0000_0000_0000_1234_5678;
const PEER: u128 = 0xfd00_0000_0000_0000_0000_0000_0000_0002;
const LINK_LOCAL: u128 = 0xfe80_0000_0000_0000_0000_0000_0000_0001;

fn read(frame: &[u8]) -> Result<Message, DropReason> {
    let headers = Headers::parse(frame, frame.len(), 14, true).expect("a good packet");
    assert!(is_message(frame, &headers));
    parse(frame, &headers, false)
}

fn owns(address: u128) -> bool {
    address == ADDRESS
}

/// The frame with bytes changed and the checksum put right.
fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    recomputed(&frame)
}

#[test]
fn a_question_and_its_answer() {
    let (frame, len) = solicitation(THEIRS, PEER, ADDRESS, None);
    let frame = &frame[..len];
    assert_eq!(recomputed(frame), frame);
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x34, 0x56, 0x78]);
    assert_eq!(frame[38..54], solicited_node(ADDRESS).to_be_bytes());
    let question = read(frame).expect("valid");
    assert_eq!(question, Message::Solicitation { target: ADDRESS, source: PEER, mac: Some(THEIRS) });
    let verdict = question.verdict(false, owns);
    assert_eq!(verdict, Verdict { reply: true, conflict: false, learn: Learn::Create });
    assert_eq!(question.sender(), (PEER, Some(THEIRS)));

    let (answer, len) = advertisement(OURS, ADDRESS, Some((PEER, THEIRS)));
    assert_eq!(recomputed(&answer[..len]), answer[..len]);
    assert_eq!(answer[..12], [THEIRS.0, OURS.0].concat());
    let answer = read(&answer[..len]).expect("valid");
    let said = Message::Advertisement {
        target: ADDRESS,
        mac: Some(OURS),
        router: true,
        solicited: true,
        replaces: true,
    };
    assert_eq!(answer, said);
    let at_theirs = answer.verdict(false, |address| address == PEER);
    assert_eq!(at_theirs.learn, Learn::Update { confirmed: true, replaces: true });
    assert_eq!(solicitation(OURS, ADDRESS, PEER, Some(THEIRS)).0[..6], THEIRS.0, "a unicast probe");
}

#[test]
fn duplicate_addresses_are_detected() {
    let (frame, len) = solicitation(THEIRS, 0, ADDRESS, None);
    assert_eq!(len, FRAME_LEN - 8, "no option without an address");
    let question = read(&frame[..len]).expect("valid");
    assert_eq!(question.verdict(false, owns), Verdict { reply: true, conflict: true, learn: Learn::Nothing });
    let (answer, len) = advertisement(OURS, ADDRESS, Some((0, THEIRS)));
    assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 1]);
    let Ok(Message::Advertisement { solicited, .. }) = read(&answer[..len]) else { panic!("not valid") };
    assert!(!solicited);
    let theirs = read(&advertisement(THEIRS, ADDRESS, None).0).expect("valid");
    assert!(theirs.verdict(false, owns).conflict);
    assert!(!theirs.verdict(true, owns).conflict, "our own frame came back");
}

#[test]
fn what_section_7_1_forbids_is_refused() {
    let (solicited, _) = solicitation(THEIRS, PEER, ADDRESS, None);
    let (probe, probe_len) = solicitation(THEIRS, 0, ADDRESS, None);
    let (advertised, _) = advertisement(THEIRS, PEER, None);
    const INVALID: Result<Message, DropReason> = Err(DropReason::NdInvalid);
    assert_eq!(read(&with(&solicited, 21, &[254])), INVALID, "hop limit");
    assert_eq!(read(&with(&solicited, 55, &[1])), INVALID, "code");
    assert_eq!(read(&with(&solicited, 62, &[0xff])), INVALID, "multicast target");
    assert_eq!(read(&with(&solicited, 79, &[0])), INVALID, "option of no length");
    assert_eq!(read(&with(&solicited, 79, &[2])), INVALID, "option beyond the end");
    assert_eq!(read(&with(&solicited, 22, &[0; 16])), INVALID, "source option without a source");
    assert_eq!(read(&with(&probe[..probe_len], 38, &PEER.to_be_bytes())), INVALID, "DAD to one station");
    assert_eq!(read(&with(&advertised, 58, &[0x60])), INVALID, "solicited and to all");
    let mut spoiled = solicited;
    spoiled[70] ^= 1;
    assert_eq!(read(&spoiled), Err(DropReason::IcmpChecksum));
    let headers = Headers::parse(&spoiled, spoiled.len(), 14, true).expect("a good packet");
    assert!(parse(&spoiled, &headers, true).is_ok(), "not completed yet");
    assert_eq!(parse(&spoiled[..80], &headers, true), INVALID, "not all at hand");
    let Ok(Message::Solicitation { mac, .. }) = read(&with(&solicited, 80, &[0x33])) else {
        panic!("not valid")
    };
    assert_eq!(mac, None, "a group is no station");
}

#[test]
fn a_routers_advertisement_is_whole() {
    let prefix = Prefix {
        network: ADDRESS,
        length: 64,
        on_link: true,
        autonomous: true,
        valid: 86400,
        preferred: 14400,
    };
    let servers = [ADDRESS, PEER];
    let advertisement = RouterAdvertisement {
        mac: OURS,
        source: LINK_LOCAL,
        hop_limit: 64,
        managed: false,
        other: true,
        lifetime: 1800,
        mtu: Some(1400),
        prefixes: &[prefix],
        dns: (&servers, 1200),
    };
    let mut out = [0xee; 300];
    let len = advertisement.frame(&mut out, None).expect("room");
    assert_eq!(len, 54 + 16 + 8 + 8 + 32 + 40);
    assert_eq!(recomputed(&out[..len]), out[..len]);
    assert_eq!(read(&out[..len]), Ok(Message::RouterAdvertisement { source: LINK_LOCAL, lifetime: 1800 }));
    let message = &out[54..len];
    assert_eq!(message[4..8], [64, 0x40, 7, 8]);
    assert_eq!(message[16..24], [1, 1, 2, 0, 0, 0, 0, 1]);
    assert_eq!(message[24..32], [5, 1, 0, 0, 0, 0, 5, 0x78]);
    assert_eq!(message[32..36], [3, 4, 64, 0xc0]);
    assert_eq!(message[36..48], [0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0]);
    assert_eq!(message[48..64], (ADDRESS >> 64 << 64).to_be_bytes());
    assert_eq!(message[64..72], [25, 5, 0, 0, 0, 0, 4, 0xb0]);
    assert_eq!(message[72..], [ADDRESS.to_be_bytes(), PEER.to_be_bytes()].concat());
    assert_eq!(advertisement.frame(&mut out[..len - 1], None), None, "too short");
    let len = advertisement.frame(&mut out, Some((PEER, THEIRS))).expect("room");
    assert_eq!(out[..6], THEIRS.0);
    let routed = with(&out[..len], 22, &[0xfd]);
    assert_eq!(read(&routed), Err(DropReason::NdInvalid), "not from the link");
}

#[test]
fn routers_are_solicited_and_other_messages_are_not_ours() {
    let mut frame = Vec::new();
    let raw = Icmpv6Type::Unknown { type_u8: 133, code_u8: 0, bytes5to8: [0; 4] };
    let ip =
        PacketBuilder::ethernet2([4; 6], [0x33; 6]).ipv6(PEER.to_be_bytes(), ALL_ROUTERS.to_be_bytes(), 255);
    ip.icmpv6(raw).write(&mut frame, &[1, 1, 2, 0, 0, 0, 0, 2]).expect("a packet");
    let question = read(&frame).expect("valid");
    assert_eq!(question, Message::RouterSolicitation { source: PEER, mac: Some(THEIRS) });
    assert_eq!(question.verdict(false, owns).learn, Learn::Update { confirmed: false, replaces: true });
    assert_eq!(read(&with(&frame, 22, &[0; 16])), Err(DropReason::NdInvalid));

    let mut echo = Vec::new();
    let ip = PacketBuilder::ethernet2([4; 6], [2; 6]).ipv6([1; 16], [2; 16], 255);
    let ping = Icmpv6Type::EchoRequest(IcmpEchoHeader { id: 1, seq: 2 });
    ip.icmpv6(ping).write(&mut echo, &[]).expect("a packet");
    let headers = Headers::parse(&echo, echo.len(), 14, true).expect("a good packet");
    assert!(!is_message(&echo, &headers));
}

proptest! {
    #[test]
    fn no_messages_hurt(rest in proptest::collection::vec(any::<u8>(), 0..120), kind in 133..138_u8, hops in prop_oneof![Just(255_u8), any::<u8>()]) {
        let mut frame = [&[0; 54][..], &[kind, 0, 0, 0, 0, 0, 0, 0], &rest].concat();
        frame[14] = 0x60;
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame[20..22].copy_from_slice(&[58, hops]);
        let headers = Headers::parse(&frame, frame.len(), 14, true).expect("a good packet");
        prop_assert!(is_message(&frame, &headers));
        if let Ok(message) = parse(&frame, &headers, true) {
            let _ = (message.verdict(false, owns), message.sender());
        }
    }
}
