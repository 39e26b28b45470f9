use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::{NEEDS_CSUM, NetHeader};

use super::*;
use crate::services::mailbox::Mailbox;

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];
const FROM: Mac = Mac(CLIENT);

fn dhcp(payload: &[u8], port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(CLIENT, [0xff; 6]).ipv4([0, 0, 0, 0], [255; 4], 64).udp(68, port);
    builder.write(&mut frame, payload).expect("a packet");
    frame
}

fn solicitation(source: [u8; 16], options: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(CLIENT, [0x33, 0x33, 0, 0, 0, 2])
        .ipv6(source, nd::ALL_ROUTERS.to_be_bytes(), 255)
        .icmpv6_raw(133, 0, [0; 4]);
    builder.write(&mut frame, options).expect("a packet");
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

/// A letter with a frame in it, by way of the mailbox.
fn with_letter<R>(frame: &[u8], pending: bool, check: impl FnOnce(Option<Incoming<'_>>) -> R) -> R {
    let mailbox = Mailbox::default();
    let header = NetHeader { flags: if pending { NEEDS_CSUM } else { 0 }, ..NetHeader::default() };
    let (head, rest) = frame.split_at(frame.len().min(64));
    Burst::new().with_slices(
        |filler| assert!(filler.push(header, head, rest)),
        |burst| assert!(mailbox.punt(0, 0, burst, 0)),
    );
    let mut result = None;
    assert!(mailbox.take(|letter| result = Some(check(read(letter)))));
    result.expect("it was called")
}

#[test]
fn requests_are_recognised_and_read() {
    let frame = dhcp(b"payload", 67);
    let expected = Incoming::Dhcp { mac: FROM, source: Ipv4Addr::UNSPECIFIED, message: b"payload" };
    for frame in [frame.clone(), tagged(&frame)] {
        assert!(wants(&frame));
        with_letter(&frame, false, |read| assert_eq!(read, Some(expected.clone())));
    }
    let mut wrong = frame.clone();
    wrong[45] ^= 1;
    with_letter(&wrong, false, |read| assert_eq!(read, None, "checksum"));
    with_letter(&wrong, true, |read| assert!(read.is_some(), "it is still to be filled in"));
    wrong[40..42].fill(0);
    with_letter(&wrong, false, |read| assert!(read.is_some(), "there is none"));
    let mut long = frame.clone();
    long[39] += 1;
    with_letter(&long, true, |read| assert_eq!(read, None, "longer than its packet"));
    assert!(!wants(&dhcp(b"", 68)) && !wants(&frame[..30]));
    with_letter(&dhcp(b"", 68), false, |read| assert_eq!(read, None));
}

#[test]
fn solicitations_are_recognised_and_read() {
    let source: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let option = [1, 1, 2, 0, 0, 0, 0, 7];
    for (frame, mac, from) in [
        (solicitation(source, &[]), FROM, source),
        (solicitation(source, &option), Mac([2, 0, 0, 0, 0, 7]), source),
        (tagged(&solicitation([0; 16], &[])), FROM, [0; 16]),
    ] {
        assert!(wants(&frame));
        let expected = Incoming::RouterSolicitation { mac, source: from.into() };
        with_letter(&frame, false, |read| assert_eq!(read, Some(expected)));
    }
    let mut forwarded = solicitation(source, &[]);
    forwarded[21] = 254;
    with_letter(&forwarded, false, |read| assert_eq!(read, None, "hop limit"));
    with_letter(&solicitation([0; 16], &option), false, |read| assert_eq!(read, None, "RFC 4861, 6.1.1"));
}

#[test]
fn answers_to_probes_are_recognised_and_read() {
    let probe = Arp::probe(Mac([2, 0, 0, 0, 0, 1]), 0x0a00_0307);
    assert!(!wants(&probe.frame(None)));
    let answer = probe.reply(FROM).frame(None);
    assert!(wants(&answer) && wants(&tagged(&answer)));
    with_letter(&answer, false, |read| {
        assert_eq!(read, Some(Incoming::InUse { mac: FROM, address: [10, 0, 3, 7].into() }));
    });
    let other = Arp::request(Mac([2, 0, 0, 0, 0, 1]), 0x0a00_0301, 0x0a00_0307).reply(FROM).frame(None);
    assert!(!wants(&other));
    with_letter(&other, false, |read| assert_eq!(read, None));
}

#[test]
fn answers_are_datagrams_as_others_read_them() {
    for len in [0, 1, 300, 1472] {
        let message: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let link = Link { destination: FROM, source: Mac([2, 0, 0, 0, 0, 1]) };
        let frame = to_client(link, [10, 0, 3, 1].into(), [10, 0, 3, 7].into(), &message).expect("it fits");
        let packet = SlicedPacket::from_ethernet(&frame).expect("well formed");
        let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP") };
        assert_eq!((udp.source_port(), udp.destination_port(), udp.payload()), (67, 68, &message[..]));
        let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("no IPv4") };
        let header = ip.header().to_header();
        assert_eq!((header.source, header.destination), ([10, 0, 3, 1], [10, 0, 3, 7]));
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let mut sum = udp.to_header();
        sum.checksum = 0;
        assert_eq!(udp.checksum(), sum.calc_checksum_ipv4(&header, &message).expect("short"));
    }
    let link = Link { destination: FROM, source: FROM };
    assert!(to_client(link, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, &[0; 65508]).is_none());
}

proptest! {
    #[test]
    fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 1..200), kind in 0_usize..4, tag: bool) {
        let mut frame = bytes;
        let kinds: [[u8; 2]; 4] = [[8, 0], [0x86, 0xdd], [8, 6], [0, 0]];
        if frame.len() > 60 {
            frame[12..14].copy_from_slice(&kinds[kind]);
            frame[14] = if kind == 1 { 0x60 } else { 0x45 };
            if tag {
                frame = tagged(&frame);
            }
        }
        let wanted = wants(&frame);
        let read = with_letter(&frame, true, |read| read.is_some());
        prop_assert!(!read || wanted, "what is read was wanted");
    }

    #[test]
    fn neither_do_frames_cut_short(cut in 1_usize..120, kind in 0_u8..3) {
        let frame = match kind {
            0 => dhcp(&[7; 300], 67),
            1 => solicitation([0; 16], &[]),
            _ => Arp::probe(FROM, 1 << 27).reply(FROM).frame(None).to_vec(),
        };
        let cut = cut.min(frame.len());
        wants(&frame[..cut]);
        let read = with_letter(&frame[..cut], true, |read| read.is_some());
        prop_assert_eq!(read, cut == frame.len());
    }
}
