//! The guard against frames that a guest may make up.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const IP: [u8; 4] = [10, 0, 3, 5];

fn identity() -> Identity {
    Identity {
        macs: vec![Mac(MAC)],
        addresses: Some(vec![
            "10.0.3.5/32".parse().expect("an address"),
            "fd00::/64".parse().expect("a prefix"),
        ]),
        reserved: vec!["fd00::1".parse().expect("an address")],
        server: false,
    }
}

fn guard() -> Guard {
    Guard::new(&identity(), true)
}

fn server() -> Guard {
    Guard::new(&Identity { server: true, ..identity() }, true)
}

fn ethernet(source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn arp(operation: u8, sender: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
    payload.extend(sender);
    payload.extend(address);
    payload.extend([0; 6]);
    payload.extend([10, 0, 3, 1]);
    ethernet(MAC, ETHERTYPE_ARP, &payload)
}

fn udp_v4(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, [0xff; 6])
        .ipv4(source, destination, 64)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("a packet");
    frame
}

fn address(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().expect("an address").octets()
}

fn v6(source: &str, destination: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 255]);
    packet.extend(address(source));
    packet.extend(address(destination));
    packet.extend(payload);
    ethernet(MAC, ETHERTYPE_IPV6, &packet)
}

/// A message of neighbour discovery with a target (or nothing) and an option.
fn nd(kind: u8, target: Option<&str>, option: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.map(address).iter().flatten());
    message.extend(option);
    message
}

fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    let mut option = vec![kind, 1];
    option.extend(mac);
    option
}

fn dhcp(hardware: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&hardware);
    message
}

/// As a worker has it: the first 128 bytes.
fn judge(guard: &Guard, frame: &[u8]) -> Checked {
    guard.allows(&frame[..frame.len().min(128)])
}

#[test]
fn the_ethernet_source_must_be_the_ports() {
    let frame = |mac| ethernet(mac, 0x88b5, &[0; 50]);
    assert_eq!(judge(&guard(), &frame(MAC)), Ok(()));
    assert_eq!(judge(&guard(), &frame(OTHER)), Err(DropReason::GuardMac));
    let two = Guard::new(&Identity { macs: vec![Mac(OTHER), Mac(MAC)], ..identity() }, true);
    assert_eq!(judge(&two, &frame(OTHER)), Ok(()));
    // Where it is not known, the first is the port's.
    let unknown = Guard::new(&Identity { macs: Vec::new(), ..identity() }, true);
    assert_eq!(judge(&unknown, &frame(OTHER)), Ok(()));
    assert_eq!(judge(&unknown, &frame(MAC)), Err(DropReason::GuardMac));
    assert_eq!(judge(&unknown, &frame(OTHER)), Ok(()));
}

#[test]
fn arp_speaks_for_the_sender_alone() {
    let table = [
        (arp(1, MAC, IP), Ok(())),
        (arp(2, MAC, IP), Ok(())),
        (arp(1, MAC, [0; 4]), Ok(())),
        (arp(2, MAC, [0; 4]), Err(DropReason::GuardArp)),
        (arp(1, MAC, [10, 0, 3, 1]), Err(DropReason::GuardArp)),
        (arp(2, MAC, [10, 0, 3, 1]), Err(DropReason::GuardArp)),
        (arp(1, OTHER, IP), Err(DropReason::GuardArp)),
        (ethernet(MAC, ETHERTYPE_ARP, &[0, 1, 8, 0, 6, 4, 0, 1]), Err(DropReason::GuardArp)),
        (ethernet(MAC, ETHERTYPE_ARP, &[0; 60]), Err(DropReason::GuardArp)),
    ];
    for (frame, expected) in table {
        assert_eq!(judge(&guard(), &frame), expected, "{frame:02x?}");
    }
    // As QEMU announces a guest after its migration.
    let mut rarp = arp(3, MAC, [0; 4]);
    rarp[12..14].copy_from_slice(&ETHERTYPE_RARP.to_be_bytes());
    assert_eq!(judge(&guard(), &rarp), Ok(()));
}

#[test]
fn ipv4_is_from_an_address_of_the_port() {
    let to = [8, 8, 8, 8];
    assert_eq!(judge(&guard(), &udp_v4(IP, to, (1, 2), &[])), Ok(()));
    assert_eq!(judge(&guard(), &udp_v4([10, 0, 3, 6], to, (1, 2), &[])), Err(DropReason::GuardAddress));
    assert_eq!(judge(&guard(), &udp_v4([0; 4], to, (1, 2), &[])), Err(DropReason::GuardAddress));
    let any = Guard::new(&Identity { addresses: None, ..identity() }, true);
    assert_eq!(judge(&any, &udp_v4([10, 0, 3, 6], to, (1, 2), &[])), Ok(()));
    let short = &udp_v4(IP, to, (1, 2), &[])[..30];
    assert_eq!(judge(&guard(), short), Err(DropReason::GuardAddress));
}

#[test]
fn a_client_may_ask_for_an_address_before_it_has_one() {
    let discover = |hardware, destination| udp_v4([0; 4], destination, (68, 67), &dhcp(hardware));
    assert_eq!(judge(&guard(), &discover(MAC, [255; 4])), Ok(()));
    assert_eq!(judge(&guard(), &discover(MAC, [10, 0, 3, 1])), Err(DropReason::GuardAddress));
    assert_eq!(judge(&guard(), &discover(OTHER, [255; 4])), Err(DropReason::GuardMac));
    assert_eq!(judge(&guard(), &udp_v4(IP, [10, 0, 3, 1], (68, 67), &dhcp(MAC))), Ok(()), "renewal");
    let offer = udp_v4(IP, [255; 4], (67, 68), &dhcp(OTHER));
    assert_eq!(judge(&guard(), &offer), Err(DropReason::GuardServer));
    assert_eq!(judge(&server(), &offer), Ok(()));
}

#[test]
fn a_lease_allows_an_address_and_a_station_at_once() {
    let leased = Ipv4Addr::new(10, 0, 3, 77);
    let frame = udp_v4(leased.octets(), [8; 4], (1, 2), &[]);
    let before = guard();
    assert!(judge(&before, &frame).is_err());
    assert!(before.lease(Mac(OTHER), leased) && before.lease(Mac(OTHER), leased));
    assert_eq!(judge(&before, &frame), Ok(()));
    assert_eq!(judge(&before, &arp(1, MAC, leased.octets())), Ok(()));
    // The station that has the lease may send, too.
    assert_eq!(judge(&before, &ethernet(OTHER, 0x88b5, &[0; 50])), Ok(()));
    before.release(leased);
    assert!(judge(&before, &frame).is_err());
    assert_eq!(judge(&before, &ethernet(OTHER, 0x88b5, &[0; 50])), Err(DropReason::GuardMac));
    for n in 1..=LEASES_MAX {
        assert!(before.lease(Mac(MAC), Ipv4Addr::from_bits(n as u32)));
    }
    assert!(!before.lease(Mac(MAC), leased), "no room");
    assert!(judge(&before, &udp_v4([0; 4], [8; 4], (1, 2), &[])).is_err());
}

#[test]
fn a_guard_may_wait_for_the_first_lease() {
    let guard = Guard::new(&Identity::default(), false);
    assert!(!guard.is_active());
    guard.lease(Mac(MAC), IP.into());
    guard.release(IP.into());
    assert!(guard.is_active(), "for good");
}

#[test]
fn ipv6_is_from_an_address_of_the_port() {
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let own_link_local = "fe80::ff:fe00:1";
    let table = [
        ("fd00::77", Ok(())),
        (own_link_local, Ok(())),
        ("fe80::ff:fe00:2", Err(DropReason::GuardAddress)),
        ("fd00::1", Err(DropReason::GuardAddress)),
        ("fd01::77", Err(DropReason::GuardAddress)),
        ("::", Err(DropReason::GuardAddress)),
    ];
    for (source, expected) in table {
        assert_eq!(judge(&guard(), &v6(source, "2001:db8::1", ICMPV6, &echo)), expected, "{source}");
    }
}

#[test]
fn neighbour_discovery_claims_what_is_the_ports() {
    let (mine, group) = ("fd00::77", "ff02::1");
    let own = |kind| link_layer(kind, MAC);
    let others = |kind| link_layer(kind, OTHER);
    let table = [
        // Resolution and answers.
        (mine, nd(NEIGHBOUR_SOLICITATION, Some("fd00::1"), &own(1)), Ok(())),
        (mine, nd(NEIGHBOUR_SOLICITATION, Some("fd00::1"), &others(1)), Err(DropReason::GuardNeighbour)),
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, Some(mine), &own(2)), Ok(())),
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, Some(mine), &others(2)), Err(DropReason::GuardNeighbour)),
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, Some("fd00::1"), &own(2)), Err(DropReason::GuardNeighbour)),
        // Is my address free? Are there routers? May I hear the group?
        ("::", nd(NEIGHBOUR_SOLICITATION, Some(mine), &[]), Ok(())),
        ("::", nd(NEIGHBOUR_SOLICITATION, Some("fd00::1"), &[]), Err(DropReason::GuardNeighbour)),
        ("::", nd(ROUTER_SOLICITATION, None, &[]), Ok(())),
        (mine, nd(ROUTER_SOLICITATION, None, &own(1)), Ok(())),
        ("::", nd(MLD2_REPORT, None, &[]), Ok(())),
        ("::", nd(128, None, &[]), Err(DropReason::GuardAddress)),
        // Routers alone.
        (mine, nd(ROUTER_ADVERTISEMENT, None, &[0; 8]), Err(DropReason::GuardServer)),
        (mine, nd(REDIRECT, Some(mine), &[0; 16]), Err(DropReason::GuardServer)),
        // Nonsense.
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, None, &[]), Err(DropReason::GuardNeighbour)),
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, Some(mine), &[2, 0, 0, 0]), Err(DropReason::GuardNeighbour)),
        (mine, nd(NEIGHBOUR_ADVERTISEMENT, Some(mine), &[2, 9, 0, 0]), Err(DropReason::GuardNeighbour)),
    ];
    for (source, message, expected) in table {
        assert_eq!(judge(&guard(), &v6(source, group, ICMPV6, &message)), expected, "{source} {message:x?}");
    }
    let solicitation = nd(NEIGHBOUR_SOLICITATION, Some(mine), &[]);
    assert!(judge(&guard(), &v6("::", "fd00::1", ICMPV6, &solicitation)).is_err(), "to one host");
    let advertisement = v6(mine, group, ICMPV6, &nd(ROUTER_ADVERTISEMENT, None, &[0; 8]));
    assert_eq!(judge(&server(), &advertisement), Ok(()));
    let reply = [&547_u16.to_be_bytes()[..], &546_u16.to_be_bytes(), &[0, 8, 0, 0]].concat();
    assert_eq!(judge(&guard(), &v6(mine, "fd00::9", UDP, &reply)), Err(DropReason::GuardServer));
}

#[test]
fn nothing_hides_behind_other_headers() {
    let claim = nd(ROUTER_ADVERTISEMENT, None, &[0; 8]);
    let behind = |header: &[u8]| [header, &claim].concat();
    let judged = |next: u8, payload: &[u8]| judge(&guard(), &v6("fd00::77", "ff02::1", next, payload));
    assert_eq!(judged(60, &behind(&[58, 0, 1, 4, 0, 0, 0, 0])), Err(DropReason::GuardServer));
    assert_eq!(judged(0, &behind(&[58, 0, 5, 2, 0, 0, 0, 0])), Err(DropReason::GuardServer));
    // A fragment, though it be the whole message (RFC 6980).
    assert_eq!(judged(44, &behind(&[58, 0, 0, 0, 0, 0, 0, 1])), Err(DropReason::GuardNeighbour));
    assert_eq!(judged(44, &[58, 0, 0, 1, 0, 0, 0, 1]), Err(DropReason::GuardNeighbour));
    // Further than anybody looks (RFC 7113).
    let long = [&[60, 14][..], &[0; 118], &[58, 0, 1, 4, 0, 0, 0, 0], &claim].concat();
    assert_eq!(judged(60, &long), Err(DropReason::GuardNeighbour));
    // Tags and 802.2 headers.
    let inner = &v6("fd00::1", "ff02::1", ICMPV6, &claim)[14..];
    let tag = |inner: &[u8], ethertype: u16| [&[0, 7][..], &ethertype.to_be_bytes(), inner].concat();
    let once = ethernet(MAC, ETHERTYPE_VLAN, &tag(inner, ETHERTYPE_IPV6));
    assert_eq!(judge(&guard(), &once), Err(DropReason::GuardAddress));
    let twice = ethernet(MAC, ETHERTYPE_QINQ, &tag(&tag(inner, ETHERTYPE_IPV6), ETHERTYPE_VLAN));
    assert_eq!(judge(&guard(), &twice), Err(DropReason::GuardAddress));
    let thrice = tag(&tag(&tag(inner, ETHERTYPE_IPV6), ETHERTYPE_VLAN), ETHERTYPE_VLAN);
    assert_eq!(judge(&guard(), &ethernet(MAC, ETHERTYPE_VLAN, &thrice)), Err(DropReason::GuardAddress));
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd][..], inner].concat();
    assert_eq!(judge(&guard(), &ethernet(MAC, snap.len() as u16, &snap)), Err(DropReason::GuardAddress));
    let spanning_tree = [&[0x42, 0x42, 3][..], &[0; 40]].concat();
    assert_eq!(judge(&guard(), &ethernet(MAC, 43, &spanning_tree)), Ok(()));
}

#[test]
fn later_fragments_need_their_source_alone() {
    let later = [&[17, 0, 0, 8, 0, 0, 0, 1][..], &[0; 40]].concat();
    assert_eq!(judge(&guard(), &v6("fd00::77", "fd00::9", 44, &later)), Ok(()));
    assert!(judge(&guard(), &v6("fd01::77", "fd00::9", 44, &later)).is_err());
    let mut frame = udp_v4(IP, [8; 4], (67, 68), &[0; 20]);
    frame[20..22].copy_from_slice(&[0, 1]);
    assert_eq!(judge(&guard(), &frame), Ok(()));
}

proptest! {
    #[test]
    fn no_frame_hurts_and_none_of_a_stranger_passes(mut frame in proptest::collection::vec(any::<u8>(), 14..140),
        ethertype in prop_oneof![
            Just(ETHERTYPE_ARP), Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6), Just(ETHERTYPE_VLAN), any::<u16>()
        ],
        next in prop_oneof![Just(0_u8), Just(44), Just(ICMPV6), any::<u8>()],
        kind in 130..140_u8,
    ) {
        frame[6..12].copy_from_slice(&MAC);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        if frame.len() > 60 && ethertype == ETHERTYPE_IPV6 {
            frame[14] = 0x60;
            frame[20] = next;
            frame[22..30].copy_from_slice(&address("fd00::77")[..8]);
            frame[54] = kind;
        }
        let passes = judge(&guard(), &frame).is_ok();
        if passes && ethertype == ETHERTYPE_IPV4 {
            let source = &frame[26..30];
            prop_assert!(source == IP || source == [0; 4]);
        }
        frame[6] ^= 4;
        prop_assert_eq!(judge(&guard(), &frame), Err(DropReason::GuardMac));
    }
}

#[test]
#[ignore = "a measurement: make costs"]
fn cost_of_a_frame() {
    let mine = "fd00::77";
    let frames = [
        ("ipv4", udp_v4(IP, [8; 4], (1, 2), &[0; 100])),
        ("ipv6", v6(mine, "2001:db8::1", UDP, &[0; 60])),
        ("arp", arp(1, MAC, IP)),
        (
            "nd",
            v6(mine, "ff02::1", ICMPV6, &nd(NEIGHBOUR_SOLICITATION, Some("fd00::1"), &link_layer(1, MAC))),
        ),
    ];
    let guard = guard();
    for (name, frame) in &frames {
        let head = &frame[..frame.len().min(128)];
        let cycles = crate::rules::best_of(1000, || {
            assert!((0..1000).all(|_| guard.allows(std::hint::black_box(head)).is_ok()));
        });
        println!("{name}: {} cycles", cycles / 1000);
    }
}
