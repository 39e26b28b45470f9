//! What packets of balanced connections look like, and what becomes of connections.

use etherparse::PacketBuilder;
use vhost_backend::net_header::{GSO_TCPV4, NEEDS_CSUM, NetHeader};

use super::world::*;
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::spec::{Forward, Persistence, Protocol, Scheduler, ServiceKey, Tunnel, TunnelChecksum};
use crate::packet::checksum::Sum;
use crate::packet::testing::{Checksum, Tcp};
use crate::policy::rule::{Action, Rule};
use crate::policy::{Numbers, PolicySet};

const TCP: ServiceKey =
    ServiceKey::Address { protocol: Protocol::Tcp, address: std::net::IpAddr::V4(VIP), port: PORT };
const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 9, 9, 9);

fn rr(forward: Forward, servers: std::ops::RangeInclusive<u8>) -> World {
    World::with(service(TCP, Scheduler::Rr), servers.map(|n| server(n, 80, forward.clone())))
}

fn transport_is_sound(frame: &Out) -> bool {
    let headers = frame.headers();
    let (from, to) = (usize::from(headers.transport), 14 + headers.len as usize);
    let addresses = if headers.v6 { &frame.bytes[22..54] } else { &frame.bytes[26..34] };
    let len = Sum::of_word((to - from) as u16);
    let sum =
        Sum::of(addresses) + Sum::of_word(headers.protocol.into()) + len + Sum::of(&frame.bytes[from..to]);
    sum.folded() == [0xff; 2]
}

#[test]
fn a_masqueraded_connection_from_its_first_packet_to_its_end() {
    let mut world = rr(Forward::Masquerade, 11..=12);
    let out = world.put(1, &tcp(10, 30_000, SYN));
    assert_eq!(out.len(), 1);
    let tuple = out[0].tuple();
    assert_eq!((tuple.destination, tuple.destination_port), (v4("10.0.2.12"), 80));
    assert_eq!((tuple.source, tuple.source_port), (v4("10.0.1.10"), 30_000), "the client's own");
    assert!(transport_is_sound(&out[0]));
    assert_eq!(out[0].headers().ttl, 63);
    assert_eq!(world.counts(TCP), [(0, 0), (1, 0)]);
    assert_eq!((world.list()[0].state, world.list()[0].remaining), ("SYN_RECV", 60));

    let back = world.put(2, &answer(12, 10, 30_000, SYN | ACK));
    assert_eq!((back[0].port, back[0].to()), (0, (1, 10)));
    assert!(transport_is_sound(&back[0]));
    assert_eq!((back[0].tuple().source, back[0].tuple().source_port), (v4("10.9.9.9"), PORT));
    world.put(1, &tcp(10, 30_000, ACK));
    let listed = &world.list()[0];
    assert_eq!((listed.state, listed.remaining), ("ESTABLISHED", 900));
    assert_eq!(
        (listed.client.1, listed.called, listed.server),
        (30_000, (v4("10.9.9.9"), PORT), (v4("10.0.2.12"), 80))
    );

    world.close(12, 10, 30_000);
    assert_eq!((world.list()[0].state, world.list()[0].remaining), ("TIME_WAIT", 120));
    assert_eq!(world.counts(TCP), [(0, 0), (0, 1)]);
    let server = world.servers(TCP)[1].clone();
    assert_eq!(server.stats.sums().connections, 1);
    assert_eq!(server.stats.sums().in_packets, 0, "what it counts is its connection's until that ends");
    let live = world.router.ipvs.live(&world.router.conntrack, world.now);
    assert_eq!((live[&server.id()].in_packets, live[&server.id()].out_packets), (4, 2));
    world.pass(121);
    assert!(world.list().is_empty());
    assert_eq!((world.counts(TCP), world.router.conntrack.shared.count()), (vec![(0, 0), (0, 0)], 0));
    let sums = server.stats.sums();
    assert_eq!((sums.in_packets, sums.out_packets, sums.in_bytes, sums.out_bytes), (4, 2, 160, 80));
    assert_eq!(server.account().stats.sums(), sums);
}

#[test]
fn an_answer_that_nobody_is_there_is_followed() {
    let mut world = rr(Forward::Masquerade, 11..=11);
    assert_eq!(world.call(10, 30_000), Some(11));
    assert_eq!(world.put(2, &answer(11, 10, 30_000, RST | ACK)).len(), 1);
    assert_eq!((world.list()[0].state, world.list()[0].remaining), ("CLOSE", 10));
    assert_eq!(world.counts(TCP), [(0, 1)]);
    assert_eq!(world.call(10, 30_000), Some(11), "and called again");
    assert_eq!(world.counts(TCP), [(1, 0)]);
}

#[test]
fn direct_routing_changes_the_link_alone() {
    let mut world = rr(Forward::Route, 11..=12);
    let syn = tcp(10, 30_000, SYN);
    let out = world.put(1, &syn);
    assert_eq!((out.len(), out[0].to(), out[0].headers().ttl), (1, (2, 12), 63));
    assert_eq!((&out[0].bytes[26..], out[0].bytes.len()), (&syn[26..], syn.len()), "all behind the checksum");
    // The answer goes elsewhere; what the client sends tells enough.
    assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].to(), (2, 12));
    assert_eq!((world.list()[0].state, world.counts(TCP)), ("ESTABLISHED", vec![(0, 0), (1, 0)]));
    assert_eq!(world.list()[0].server, (v4("10.0.2.12"), PORT));
    // Ordinary packets by the shortest way, another server for another connection.
    assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].to(), (2, 12));
    assert_eq!(world.put(1, &tcp(10, 30_001, SYN))[0].to(), (2, 11));
    // What was resolved is void: resolved again, it is the server's neighbour, not the service's.
    world.router.fib.bump();
    assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].to(), (2, 12));
    // A server whose gateway this is answers through us, from the service's address.
    let step = PacketBuilder::ethernet2(mac(2, 12), mac(2, 1)).ipv4([10, 9, 9, 9], [10, 0, 1, 10], 64);
    let mut frame = Vec::new();
    step.tcp(PORT, 30_000, 5001, 1000).ack(1001).write(&mut frame, b"data").expect("a packet");
    let back = world.put(2, &frame);
    assert_eq!((back.len(), back[0].port, back[0].to()), (1, 0, (1, 10)));
    assert_eq!(world.put(1, &tcp(10, 30_000, FIN | ACK))[0].to(), (2, 12));
    assert_eq!(world.list().iter().filter(|listed| listed.state == "FIN_WAIT").count(), 1, "as if alone");
}

#[test]
fn a_director_that_sees_one_side_lets_connections_end() {
    let mut world = rr(Forward::Route, 11..=11);
    for flags in [SYN, ACK, FIN | ACK, ACK] {
        assert_eq!(world.put(1, &tcp(10, 30_000, flags)).len(), 1);
    }
    assert_eq!((world.list()[0].state, world.list()[0].remaining), ("FIN_WAIT", 120));
    assert_eq!(world.counts(TCP), [(0, 1)]);
    world.pass(121);
    assert_eq!(world.counts(TCP), [(0, 0)]);
}

#[test]
fn tunnels_wrap_what_the_client_sent() {
    let gue = Tunnel::Gue { port: 5555, checksum: TunnelChecksum::Full };
    for (tunnel, protocol, before) in
        [(Tunnel::Ipip, 4, 20), (gue, 17, 32), (Tunnel::Gre { checksum: TunnelChecksum::None }, 47, 24)]
    {
        let mut world = rr(Forward::Tunnel(tunnel), 11..=11);
        let syn = tcp(10, 30_000, SYN);
        let out = world.put(1, &syn);
        assert_eq!((out.len(), out[0].port, out[0].to()), (1, 1, (2, 11)));
        let (headers, tuple) = (out[0].headers(), out[0].tuple());
        assert_eq!((headers.protocol, headers.ttl), (protocol, 63));
        assert_eq!((tuple.source, tuple.destination), (v4("10.0.2.1"), v4("10.0.2.11")));
        let inner = &out[0].bytes[14 + before..];
        assert_eq!((inner[8], &inner[12..]), (63, &syn[26..]), "{tunnel:?}");
        assert_eq!(Sum::of(&inner[..20]).folded(), [0xff; 2]);
        assert_eq!(world.put(1, &tcp(10, 30_000, ACK)).len(), 1);
        assert_eq!(world.list()[0].state, "ESTABLISHED");
        assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].headers().protocol, protocol);
    }
}

#[test]
fn tunnels_may_go_over_the_other_family() {
    let tunnel = Forward::Tunnel(Tunnel::Ipip);
    let mut over6 = server(11, 0, tunnel.clone());
    over6.address = v4("fd02::b");
    let mut world = World::with(service(TCP, Scheduler::Rr), [over6]);
    let out = world.put(1, &tcp(10, 30_000, SYN));
    assert_eq!((out.len(), out[0].to()), (1, (2, 11)));
    assert_eq!((out[0].headers().v6, out[0].headers().protocol), (true, 4));
    let key = key6(Protocol::Tcp);
    let mut world = World::with(service(key, Scheduler::Rr), [server(11, 0, tunnel)]);
    for flags in [SYN, ACK, ACK] {
        let out = world.put(1, &tcp6(10, 30_000, flags));
        assert_eq!((out.len(), out[0].headers().v6, out[0].headers().protocol), (1, false, 41));
    }
    assert_eq!(world.counts(key), [(1, 0)]);
}

#[test]
fn what_a_tunnel_cannot_take_is_cut_or_told() {
    let mut world = rr(Forward::Tunnel(Tunnel::Ipip), 11..=11);
    world.put(1, &tcp(10, 30_000, SYN));
    world.put(1, &tcp(10, 30_000, ACK));
    let segment = |payload: usize, dont_fragment: bool| {
        let step = PacketBuilder::ethernet2(mac(1, 10), mac(1, 1)).ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                source: [10, 0, 1, 10],
                destination: [10, 9, 9, 9],
                time_to_live: 64,
                dont_fragment,
                ..Default::default()
            },
            Default::default(),
        ));
        let mut frame = Vec::new();
        step.tcp(30_000, PORT, 1001, 64_000)
            .ack(5001)
            .write(&mut frame, &vec![7; payload])
            .expect("a packet");
        frame
    };
    let fits = world.put(1, &segment(1440, true));
    assert_eq!((fits.len(), fits[0].bytes.len()), (1, 1514));
    let told = world.put(1, &segment(1460, true));
    assert_eq!((told.len(), told[0].port), (1, 0), "to the client");
    assert_eq!(
        (told[0].bytes[34..36].to_vec(), told[0].bytes[40..42].to_vec()),
        (vec![3, 4], 1480_u16.to_be_bytes().to_vec())
    );
    let cut = world.put(1, &segment(1460, false));
    assert_eq!(cut.len(), 2);
    let inner: usize = cut.iter().map(|out| out.bytes.len() - 14 - 20 - 20).sum();
    assert_eq!(inner, 1480, "both parts of the segment");
    assert!(cut.iter().all(|out| out.headers().protocol == 4 && out.bytes.len() <= 1514));
}

#[test]
fn long_segments_are_cut_for_a_tunnel() {
    let mut world = rr(Forward::Tunnel(Tunnel::Ipip), 11..=11);
    let tcp = Tcp::new(false, 4000);
    let mut frame = tcp.bytes(Checksum::Partial);
    // The addresses and ports of the case, and the sums that follow.
    let (old, old_ports) = (Sum::of(&frame[26..34]), frame[34..38].to_vec());
    frame[..12].copy_from_slice(&[mac(1, 1), mac(1, 10)].concat());
    frame[26..34].copy_from_slice(&[10, 0, 1, 10, 10, 9, 9, 9]);
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum);
    frame[34..38].copy_from_slice(&[0x75, 0x30, 4, 15]);
    let change = Sum::of(&frame[26..34]) + Sum::of_word(!u16::from_be_bytes(old.folded()));
    let field = Sum::of(&frame[50..52]) + change;
    frame[50..52].copy_from_slice(&field.folded());
    assert_ne!(old_ports, frame[34..38]);
    world.put(1, &super::world::tcp(10, 30_000, SYN));
    world.put(1, &super::world::tcp(10, 30_000, ACK));
    let asked = tcp.request(1400);
    let header = NetHeader { flags: NEEDS_CSUM, gso_type: GSO_TCPV4, ..asked };
    let header = crate::packet::validate(&frame[..128], frame.len(), header).expect("good metadata");
    let out = world.put_with(1, &frame, header);
    assert_eq!(out.len(), 3);
    for frame in out {
        assert_eq!(frame.headers().protocol, 4);
        let inner = Out { port: 1, bytes: [&frame.bytes[..14], &frame.bytes[34..]].concat() };
        assert!(transport_is_sound(&inner));
        assert_eq!(inner.tuple().destination, v4("10.9.9.9"));
    }
}

#[test]
fn full_translation_hides_the_client() {
    let pool = Forward::FullNat { first: v4("10.0.2.100"), last: v4("10.0.2.100") };
    let mut world = rr(pool, 11..=11);
    for (client, port) in [(10, 30_000), (11, 30_000)] {
        let out = world.put(1, &tcp(client, port, SYN));
        let tuple = out[0].tuple();
        assert_eq!((tuple.source, tuple.destination), (v4("10.0.2.100"), v4("10.0.2.11")));
        assert!(transport_is_sound(&out[0]));
        let step = PacketBuilder::ethernet2(mac(2, 11), mac(2, 1)).ipv4([10, 0, 2, 11], [10, 0, 2, 100], 64);
        let mut back = Vec::new();
        step.tcp(80, tuple.source_port, 5000, 64_000)
            .syn()
            .ack(1001)
            .write(&mut back, &[])
            .expect("a packet");
        let back = world.put(2, &back);
        let tuple = back[0].tuple();
        assert_eq!((tuple.source, tuple.destination), (v4("10.9.9.9"), [10, 0, 1, client].into()));
        assert_eq!((tuple.source_port, tuple.destination_port), (PORT, port));
    }
    assert_eq!(world.counts(TCP), [(2, 0)]);
}

#[test]
fn a_client_beside_its_server_is_hidden_so_that_the_answer_comes_back() {
    let mut world = rr(Forward::Masquerade, 11..=11);
    let step = PacketBuilder::ethernet2(mac(2, 50), mac(2, 1)).ipv4([10, 0, 2, 50], [10, 9, 9, 9], 64);
    let mut syn = Vec::new();
    step.tcp(30_000, PORT, 1000, 64_000).syn().write(&mut syn, &[]).expect("a packet");
    let out = world.put(2, &syn);
    assert_eq!((out.len(), out[0].tuple().source), (1, v4("10.0.2.1")));
    assert_eq!(out[0].tuple().destination, v4("10.0.2.11"));
}

#[test]
fn nobody_can_serve() {
    let quiet = || {
        let mut server = server(11, 80, Forward::Masquerade);
        server.weight = 0;
        server
    };
    for servers in [vec![], vec![quiet()]] {
        let mut world = World::with(service(TCP, Scheduler::Wlc), servers);
        let out = world.put(1, &tcp(10, 30_000, SYN));
        assert_eq!((out.len(), out[0].port), (1, 0));
        assert_eq!(out[0].bytes[34..36], [3, 3], "port unreachable");
        assert_eq!((world.drops("ipvs_no_server"), world.router.conntrack.shared.count()), (1, 0));
    }
}

#[test]
fn what_does_not_begin_a_connection_is_not_scheduled() {
    let mut world = rr(Forward::Masquerade, 11..=11);
    for flags in [ACK, FIN | ACK, RST] {
        let out = world.put(1, &tcp(10, 30_000, flags));
        assert!(out.iter().all(|out| out.port == 0), "at most a reset goes back");
    }
    assert_eq!((world.counts(TCP), world.servers(TCP)[0].stats.sums().connections), (vec![(0, 0)], 0));
    world.router.ipvs.global().settings().set(Setting::SloppyTcp, 1);
    assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].port, 1, "unless that is wanted");
}

#[test]
fn a_deleted_server_gets_nothing_more() {
    let mut world = rr(Forward::Masquerade, 11..=12);
    assert_eq!(world.open(10, 30_000), Some(12));
    let scope = world.router.ipvs.global().clone();
    scope.delete_destination(TCP, v4("10.0.2.12"), 80).expect("deleted");
    assert!(world.put(1, &tcp(10, 30_000, ACK)).is_empty());
    assert_eq!(world.drops("ipvs_server_gone"), 1);
    assert_eq!(world.put(2, &answer(12, 10, 30_000, ACK)).len(), 1, "what it says still gets there");
    // It comes back, with its connection.
    scope.add_destination(TCP, server(12, 80, Forward::Masquerade)).expect("added");
    assert_eq!(world.put(1, &tcp(10, 30_000, ACK))[0].to(), (2, 12));
    assert_eq!(world.counts(TCP), [(0, 0), (1, 0)]);
    // Gone again, and now its connections go with it.
    scope.settings().set(Setting::ExpireNodestConn, 1);
    scope.delete_destination(TCP, v4("10.0.2.12"), 80).expect("deleted");
    let out = world.put(1, &tcp(10, 30_000, ACK));
    assert!(out.iter().all(|out| out.port == 0), "a reset: {out:?}");
    assert!(world.list().is_empty());
    assert_eq!(world.open(10, 30_000), Some(11));
}

#[test]
fn addresses_and_ports_that_are_used_again_are_scheduled_anew() {
    let mut world = rr(Forward::Masquerade, 11..=12);
    assert_eq!(world.open(10, 30_000), Some(12));
    world.close(12, 10, 30_000);
    assert_eq!(world.call(10, 30_000), Some(11), "at once");
    assert_eq!(world.list().len(), 1);
    assert_eq!(world.put(2, &answer(11, 10, 30_000, RST | ACK)).len(), 1);
    // As it was before Linux 4.1: the same server again.
    world.router.ipvs.global().settings().set(Setting::ConnReuseMode, 0);
    for _ in 0..3 {
        assert_eq!(world.call(10, 30_000), Some(11));
        assert_eq!(world.put(2, &answer(11, 10, 30_000, RST | ACK)).len(), 1);
    }
    assert_eq!(world.counts(TCP), [(0, 1), (0, 0)]);
}

#[test]
fn timeouts_are_those_that_were_set() {
    let mut world = rr(Forward::Masquerade, 11..=11);
    world.router.ipvs.global().set_timeouts(Timeouts { tcp: 30, tcp_fin: 7, udp: 5 });
    world.open(10, 30_000);
    assert_eq!(world.list()[0].remaining, 30);
    world.pass(29);
    assert_eq!(world.list()[0].remaining, 1);
    world.pass(1);
    assert!(world.list().is_empty());
    world.open(10, 30_001);
    world.router.ipvs.global().set_timeouts(Timeouts { tcp: 100, tcp_fin: 0, udp: 0 });
    assert_eq!(world.list()[0].remaining, 100);
}

fn persistent(timeout: u32, mask: &str) -> World {
    let mut spec = service(TCP, Scheduler::Rr);
    spec.persistence = Some(Persistence { timeout, mask: v4(mask), sip: false });
    World::with(spec, (11..=13).map(|n| server(n, 80, Forward::Masquerade)))
}

#[test]
fn a_client_stays_with_its_server() {
    let mut world = persistent(60, "255.255.255.255");
    assert_eq!(
        [10, 10, 11, 10].map(|client| world.open(client, 30_000 + u16::from(client)).or(Some(0))),
        [13, 13, 12, 13].map(Some)
    );
}

#[test]
fn templates_are_listed_and_end() {
    let mut world = persistent(60, "255.255.255.255");
    assert_eq!(world.open(10, 40_000), Some(13));
    let lines: Vec<_> = world.list();
    let template = lines.iter().find(|line| line.template).expect("a template");
    assert_eq!((template.state, template.remaining), ("ASSURED", 60));
    assert_eq!((template.client, template.server), ((v4("10.0.1.10"), 0), (v4("10.0.2.13"), 80)));
    assert_eq!(world.servers(TCP)[2].templates(), 1);
    world.close(13, 10, 40_000);
    // Its connection keeps it: 120 seconds of TIME_WAIT.
    world.pass(119);
    assert_eq!(world.open(10, 40_001), Some(13));
    world.close(13, 10, 40_001);
    world.pass(140);
    assert!(world.list().is_empty());
    assert_eq!(world.servers(TCP)[2].templates(), 0);
    assert_eq!(world.open(10, 40_002), Some(12));
}

#[test]
fn a_quiet_server_is_left_if_that_is_wanted() {
    let mut world = persistent(60, "255.255.255.0");
    assert_eq!(world.open(10, 40_000), Some(13));
    let mut quiet = server(13, 80, Forward::Masquerade);
    quiet.weight = 0;
    world.router.ipvs.global().edit_destination(TCP, quiet).expect("edited");
    assert_eq!(world.open(99, 40_001), Some(13), "a neighbour of the client");
    world.router.ipvs.global().settings().set(Setting::ExpireQuiescentTemplate, 1);
    assert_eq!(world.open(99, 40_002), Some(12));
    assert_eq!(world.open(98, 40_003), Some(12));
    world.router.ipvs.global().delete_destination(TCP, v4("10.0.2.12"), 80).expect("deleted");
    assert_eq!(world.open(97, 40_004), Some(11));
}

#[test]
fn all_ports_of_an_address_go_to_one_server() {
    let any = ServiceKey::Address { protocol: Protocol::Tcp, address: VIP.into(), port: 0 };
    let mut spec = service(any, Scheduler::Rr);
    spec.persistence = Some(Persistence { timeout: 60, mask: v4("255.255.255.255"), sip: false });
    let mut world = World::with(spec, (11..=12).map(|n| server(n, 0, Forward::Masquerade)));
    for port in [30_000, 30_001] {
        let out = world.put(1, &tcp(10, port, SYN));
        assert_eq!(
            (out[0].to(), out[0].tuple().destination_port),
            ((2, 12), PORT),
            "the port that was called"
        );
    }
    assert_eq!(
        world
            .list()
            .iter()
            .filter(|listed| listed.template)
            .map(|listed| listed.called.1)
            .collect::<Vec<_>>(),
        [0]
    );
    assert_eq!(world.put(1, &tcp(11, 30_000, SYN))[0].to(), (2, 11));
}

#[test]
fn datagrams_may_be_scheduled_one_by_one() {
    let key = key(Protocol::Udp);
    let mut spec = service(key, Scheduler::Rr);
    spec.one_packet = true;
    let mut world = World::with(spec, (11..=13).map(|n| server(n, 53, Forward::Masquerade)));
    let servers: Vec<u8> = (0..6)
        .map(|_| {
            let out = world.put(1, &udp(10, 41_000, b"question"));
            assert!(transport_is_sound(&out[0]));
            out[0].to().1
        })
        .collect();
    assert_eq!(servers, [13, 12, 11, 13, 12, 11]);
    assert_eq!((world.list().len(), world.counts(key)), (0, vec![(0, 0); 3]), "nothing remains");
    let sums = world.servers(key)[0].stats.sums();
    assert_eq!((sums.connections, sums.in_packets, sums.in_bytes), (2, 2, 72));
}

#[test]
fn conversations_of_udp_are_counted_as_inactive() {
    let key = key(Protocol::Udp);
    let mut world = World::with(service(key, Scheduler::Rr), [server(11, 53, Forward::Masquerade)]);
    world.put(1, &udp(10, 41_000, b"question"));
    let listed = &world.list()[0];
    assert_eq!((listed.state, listed.remaining, world.counts(key)), ("UDP", 300, vec![(0, 1)]));
    world.pass(300);
    assert_eq!((world.list().len(), world.counts(key)), (0, vec![(0, 0)]));
}

#[test]
fn errors_find_their_way() {
    // About what a masqueraded server said: from a router on the client's side, to the service's address.
    let error = |quoted: &[u8], source: [u8; 4], destination: [u8; 4], network: u8| {
        let step = PacketBuilder::ethernet2(mac(network, 99), mac(network, 1)).ipv4(source, destination, 64);
        let mut frame = Vec::new();
        let kind =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Host);
        step.icmpv4(kind).write(&mut frame, &quoted[14..42]).expect("a packet");
        frame
    };
    let mut world = rr(Forward::Masquerade, 11..=11);
    world.open(10, 30_000);
    let said = world.put(2, &answer(11, 10, 30_000, ACK))[0].bytes.clone();
    let out = world.put(1, &error(&said, [10, 0, 1, 99], [10, 9, 9, 9], 1));
    assert_eq!((out.len(), out[0].to(), out[0].tuple().destination), (1, (2, 11), v4("10.0.2.11")));
    // About what the client sent, from a router beside the server.
    let sent = world.put(1, &tcp(10, 30_000, ACK))[0].bytes.clone();
    let out = world.put(2, &error(&sent, [10, 0, 2, 99], [10, 0, 1, 10], 2));
    assert_eq!((out.len(), out[0].to(), out[0].port), (1, (1, 10), 0));
    assert_eq!(out[0].bytes[58..62], [10, 9, 9, 9], "the quoted destination is what the client called");

    // With direct routing they are for the server that answered, behind the address that the switch has, too.
    for (forward, protocol) in [(Forward::Route, 1), (Forward::Tunnel(Tunnel::Ipip), 4)] {
        let mut world = rr(forward, 11..=11);
        world.put(1, &tcp(10, 30_000, SYN));
        let step = PacketBuilder::ethernet2(mac(1, 1), mac(1, 1)).ipv4([10, 9, 9, 9], [10, 0, 1, 10], 64);
        let mut said = Vec::new();
        step.tcp(PORT, 30_000, 5000, 64_000).syn().ack(1001).write(&mut said, &[]).expect("a packet");
        let out = world.put(1, &error(&said, [10, 0, 1, 99], [10, 9, 9, 9], 1));
        assert_eq!((out.len(), out[0].to(), out[0].headers().protocol), (1, (2, 11), protocol));
    }
}

#[test]
fn fragments_follow_their_first() {
    let key = key(Protocol::Udp);
    for forward in [Forward::Masquerade, Forward::Route, Forward::Tunnel(Tunnel::Ipip)] {
        let mut world =
            World::with(service(key, Scheduler::Rr), (11..=13).map(|n| server(n, PORT, forward.clone())));
        for id in 1..=3_u16 {
            let whole = udp(10, 41_000 + id, &[7; 64]);
            let piece = |range: std::ops::Range<usize>, more: bool| {
                let mut frame = [&whole[..34], &whole[34 + range.start..34 + range.end]].concat();
                let word = (range.start as u16 / 8) | if more { 0x2000 } else { 0 };
                let len = (frame.len() - 14) as u16;
                frame[16..18].copy_from_slice(&len.to_be_bytes());
                frame[18..20].copy_from_slice(&id.to_be_bytes());
                frame[20..22].copy_from_slice(&word.to_be_bytes());
                frame[24..26].fill(0);
                let sum = Sum::of(&frame[14..34]).checksum();
                frame[24..26].copy_from_slice(&sum);
                frame
            };
            // The later one comes first.
            assert!(world.put(1, &piece(32..72, false)).is_empty());
            let out = world.put(1, &piece(0..32, true));
            let more = world.put(1, &piece(32..72, false));
            let all: Vec<_> = out.iter().chain(&more).map(Out::to).collect();
            assert!(all.len() >= 2 && all.iter().all(|&to| to == (2, 14 - id as u8)), "{forward:?}: {all:?}");
        }
    }
}

#[test]
fn ipv6_is_no_different() {
    let key = key6(Protocol::Tcp);
    let mut six = server(11, 80, Forward::Masquerade);
    six.address = v4("fd02::b");
    let mut world = World::with(service(key, Scheduler::Wlc), [six.clone()]);
    let out = world.put(1, &tcp6(10, 30_000, SYN));
    assert_eq!(
        (out[0].to(), out[0].tuple().destination, out[0].tuple().destination_port),
        ((2, 11), v4("fd02::b"), 80)
    );
    assert!(transport_is_sound(&out[0]));
    six.forward = Forward::Route;
    let mut world = World::with(service(key, Scheduler::Wlc), [six]);
    let out = world.put(1, &tcp6(10, 30_000, SYN));
    assert_eq!((out[0].to(), out[0].tuple().destination), ((2, 11), v4("fd09::9")));
}

#[test]
fn services_need_no_address_of_the_switch() {
    let key = ServiceKey::Address { protocol: Protocol::Tcp, address: v4("10.0.2.200"), port: PORT };
    let mut world = World::with(service(key, Scheduler::Rr), [server(11, 80, Forward::Masquerade)]);
    let mut frame = tcp(10, 30_000, SYN);
    frame[30..34].copy_from_slice(&[10, 0, 2, 200]);
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum);
    assert_eq!(world.put(1, &frame)[0].tuple().destination, v4("10.0.2.11"));
}

#[test]
fn services_are_found_by_marks() {
    let key = ServiceKey::Mark { mark: 7, v6: false };
    let servers = (11..=12).map(|n| server(n, 0, Forward::Masquerade));
    let mut world = World::with(service(key, Scheduler::Rr), servers);
    assert!(world.put(1, &udp(10, 41_000, b"question")).iter().all(|out| out.port == 0), "nobody is there");
    let mut policy = PolicySet::new(1);
    let mut rule = Rule::new(Action::Mark(7));
    rule.destination.within = vec!["10.9.9.0/24".parse().expect("a network")];
    rule.protocol = Some(17);
    policy.add(rule).expect("a rule");
    world.router.policy = std::sync::Arc::new(policy.compile(&Numbers::default()));
    let out = world.put(1, &udp(10, 41_000, b"question"));
    assert_eq!(
        (out[0].to(), out[0].tuple().destination_port),
        ((2, 12), PORT),
        "at the port that was called"
    );
    assert_eq!(world.put(1, &udp(10, 41_001, b"question"))[0].to(), (2, 11));
    assert!(world.put(1, &tcp(10, 30_000, SYN)).iter().all(|out| out.port == 0), "not marked");
}

#[test]
fn associations_of_sctp_are_balanced_and_followed() {
    let key = key(Protocol::Sctp);
    let servers = (11..=12).map(|n| server(n, 3868, Forward::Masquerade));
    let mut world = World::with(service(key, Scheduler::Rr), servers);
    let packet = |from: [u8; 4], to: [u8; 4], ports: (u16, u16), network: u8, chunk: u8| {
        let ip = etherparse::Ipv4Header {
            source: from,
            destination: to,
            time_to_live: 64,
            protocol: etherparse::IpNumber::SCTP,
            ..Default::default()
        };
        let step = PacketBuilder::ethernet2(mac(network, from[3]), mac(network, 1))
            .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
        let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        let sctp = [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 0], &[chunk, 0, 0, 4]].concat();
        let mut frame = Vec::new();
        step.write(&mut frame, etherparse::IpNumber::SCTP, &sctp).expect("a packet");
        frame
    };
    let ask = |world: &mut World, port, chunk| {
        world.put(1, &packet([10, 0, 1, 10], [10, 9, 9, 9], (port, PORT), 1, chunk))
    };
    let say = |world: &mut World, port, chunk| {
        world.put(2, &packet([10, 0, 2, 12], [10, 0, 1, 10], (3868, port), 2, chunk))
    };
    assert!(ask(&mut world, 5000, 0).iter().all(|out| out.port == 0), "data begins nothing");
    let first = ask(&mut world, 5000, 1);
    assert_eq!(
        (first[0].to(), first[0].tuple().destination_port, first[0].tuple().source_port),
        ((2, 12), 3868, 5000)
    );
    assert_eq!((world.list()[0].state, world.counts(key)), ("INIT1", vec![(0, 0), (0, 1)]));
    assert_eq!(say(&mut world, 5000, 2)[0].tuple().source_port, PORT);
    ask(&mut world, 5000, 10);
    say(&mut world, 5000, 11);
    for _ in 0..3 {
        assert_eq!((ask(&mut world, 5000, 0).len(), say(&mut world, 5000, 3).len()), (1, 1));
    }
    assert_eq!((world.list()[0].state, world.counts(key)), ("ESTABLISHED", vec![(0, 0), (1, 0)]));
    // Another port of the same client: another association.
    assert_eq!(ask(&mut world, 5001, 1)[0].to(), (2, 11));
    ask(&mut world, 5000, 7);
    say(&mut world, 5000, 8);
    ask(&mut world, 5000, 14);
    assert_eq!(world.list().iter().filter(|listed| listed.state == "CLOSED").count(), 1);
    assert_eq!(ask(&mut world, 5000, 1)[0].to(), (2, 12), "scheduled anew");
}
