//! What packets and connections cost; a measurement, for `make costs`.

use vhost_backend::frame::{Burst, SNAPSHOT};
use vhost_backend::net_header::NetHeader;

use super::world::*;
use crate::clock;
use crate::ipvs::draft::Change;
use crate::ipvs::spec::{Forward, Protocol, Scheduler, ServiceKey};
use crate::l3::Arrival;
use crate::nat::rule::{AddressRange, Out, Rule, Selector, Snat};
use crate::nat::{self, RuleSet};
use crate::packet::checksum::Sum;

/// Bursts that are measured.
const ROUNDS: u64 = 20_000;

/// A datagram of 64 bytes to a service of number `n`.
fn datagram(n: u32) -> Vec<u8> {
    let mut frame = udp(10, 20_000 + (n % 64) as u16, &[0; 22]);
    let address = (10 << 24 | 9 << 16 | n).to_be_bytes();
    frame[30..34].copy_from_slice(&address);
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum);
    // No checksum of UDP's.
    frame[40..42].fill(0);
    frame
}

/// Cycles per packet of `ROUNDS` bursts of these frames, the best of some.
fn measure(world: &mut World, frames: &[Vec<u8>]) -> f64 {
    let interface = world.router.interface(0).expect("there").clone();
    let (now, mut burst) = (world.now, Burst::new());
    let counters = crate::stats::PortCounters::default();
    let World { router, stage, .. } = world;
    let mut best = u64::MAX;
    for _ in 0..10 {
        let mut spent = 0;
        for _ in 0..ROUNDS / 10 {
            burst.with_slices(
                |filler| {
                    for frame in frames {
                        let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
                        assert!(filler.push(NetHeader::default(), head, rest));
                    }
                },
                |burst| {
                    let at = Arrival { router, interface: &interface, port: 0, now, counted: &counters.rx };
                    let all = burst.all();
                    let from = clock::cycles();
                    stage.receive(burst, all, &at);
                    spent += clock::cycles() - from;
                    let mut left = 0;
                    while let Some((_, frames)) = stage.verdict.take() {
                        left |= frames;
                    }
                    assert_eq!(left, all, "all are carried");
                },
            );
            burst.clear();
        }
        best = best.min(spent);
    }
    best as f64 / (ROUNDS / 10 * frames.len() as u64) as f64
}

fn services(count: u32) -> World {
    let world = World::new();
    let key = |n: u32| ServiceKey::Address {
        protocol: Protocol::Udp,
        address: std::net::Ipv4Addr::from_bits(10 << 24 | 9 << 16 | n).into(),
        port: PORT,
    };
    let changes = (0..count).flat_map(|n| {
        let servers =
            (11..=13).map(move |s| Change::AddDestination(key(n), server(s, 80, Forward::Masquerade)));
        std::iter::once(Change::AddService(service(key(n), Scheduler::Wlc))).chain(servers)
    });
    world.router.ipvs.global().apply(changes).expect("services");
    world
}

#[test]
#[ignore = "a measurement: make costs"]
fn cost_of_a_balanced_packet() {
    let mut snat = World::new();
    let mut rules = RuleSet::new(1);
    let to = v4("10.0.2.1");
    let selector =
        Selector { source: "10.0.1.0/24".parse().expect("a network"), out: Out::Any, except: vec![] };
    let rule =
        Snat { selector, to: AddressRange { first: to, last: to }, ports: None, endpoint_independent: false };
    rules.add(Rule::Snat(rule)).expect("a rule");
    let named = [(0, "net1", "10.0.1.1/24"), (1, "net2", "10.0.2.1/24")].map(|(index, name, address)| {
        nat::Interface {
            index,
            name: name.parse().expect("a name"),
            addresses: vec![address.parse().expect("an address")],
        }
    });
    snat.router.nat = std::sync::Arc::new(rules.compile(&named));
    snat.router.tracked = true;
    let to_server: Vec<_> = (0..64)
        .map(|n| {
            let mut frame = datagram(n);
            frame[30..34].copy_from_slice(&[10, 0, 2, 11 + (n % 3) as u8]);
            frame[24..26].fill(0);
            let sum = Sum::of(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum);
            frame
        })
        .collect();
    let one: Vec<_> = (0..64)
        .map(|n| {
            let mut frame = datagram(0);
            frame[34..36].copy_from_slice(&(20_000 + n as u16).to_be_bytes());
            frame
        })
        .collect();
    let many: Vec<_> = (0..64).map(|n| datagram(n * 78)).collect();
    let [mut few, mut all] = [1, 5000].map(services);
    let cases =
        [("SNAT", &mut snat, &to_server), ("1 service", &mut few, &one), ("5000 services", &mut all, &many)];
    for (name, world, frames) in cases {
        let first = measure_first(world, frames);
        println!("{name}: first packets {first:.0} cycles, then {:.0} a packet", measure(world, frames));
    }
}

/// Cycles for a connection's first packet.
fn measure_first(world: &mut World, frames: &[Vec<u8>]) -> f64 {
    let (mut spent, mut count) = (0, 0);
    for port in 0..16_u16 {
        for frame in frames {
            let mut frame = frame.clone();
            let old = u16::from_be_bytes([frame[34], frame[35]]);
            frame[34..36].copy_from_slice(&(old + port * 64).to_be_bytes());
            let from = clock::cycles();
            assert_eq!(world.put(1, &frame).len(), 1, "{:?} {port} {:?}", &frame[26..38], world.all_drops());
            spent += clock::cycles() - from;
            count += 1;
        }
    }
    spent as f64 / f64::from(count)
}
