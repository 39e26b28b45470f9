//! Translation as a whole: what users expect of it.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use super::rule::{AddressRange, Masquerade, OneToOne, Out, PortRange, Publish, Rule, Selector, Snat};
use super::*;
use crate::packet::ip::{SCTP, TCP, UDP};
use crate::rules::hash::mix;

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn cidr(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// Interface 0 with the containers, 1 with others, 2 on the way out.
pub(super) fn interfaces() -> Vec<Interface> {
    let interface = |index, name: &str, addresses: &[&str]| Interface {
        index,
        name: name.parse().expect("a name"),
        addresses: addresses.iter().map(|net| cidr(net)).collect(),
    };
    vec![
        interface(0, "in", &["172.18.0.1/16", "fd00::1/64"]),
        interface(1, "other", &["172.19.0.1/16"]),
        interface(2, "out", &["10.0.2.15/24", "192.0.2.15/24", "fd01::15/64"]),
    ]
}

pub(super) fn selector(source: &str, out: Out) -> Selector {
    Selector { source: cidr(source), out, except: Vec::new() }
}

fn masquerade(source: &str, out: Out) -> Rule {
    Rule::Masquerade(Masquerade { selector: selector(source, out), ports: None, endpoint_independent: false })
}

fn snat(source: &str, first: &str, last: &str) -> Rule {
    Rule::Snat(Snat {
        selector: selector(source, Out::Only(name("out"))),
        to: AddressRange { first: ip(first), last: ip(last) },
        ports: None,
        endpoint_independent: false,
    })
}

pub(super) fn publish(listen: Option<&str>, ports: (u16, u16), to: &str, to_ports: (u16, u16)) -> Rule {
    let range = |(first, last)| PortRange { first, last };
    Rule::Publish(Publish {
        protocol: TCP,
        listen: listen.map(ip),
        ingress: None,
        ports: range(ports),
        to: ip(to),
        to_ports: range(to_ports),
    })
}

fn nat(rules: &[Rule]) -> Nat {
    set(rules).compile(&interfaces())
}

pub(super) fn set(rules: &[Rule]) -> RuleSet {
    let mut set = RuleSet::new(1);
    for rule in rules {
        set.add(rule.clone()).expect("a good rule");
    }
    set
}

fn tcp(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Tuple {
    Tuple { source: ip(source), destination: ip(destination), protocol: TCP, source_port, destination_port }
}

pub(super) fn leaving(tuple: Tuple, ingress: u16, egress: u16) -> Leaving {
    Leaving { tuple, ingress, egress, next_hop: tuple.destination, redirected: false, now: 1 }
}

/// Source after translation, all ports free.
fn source_of(nat: &Nat, leaving: &Leaving) -> Option<(String, u16)> {
    let translation = nat.source(leaving, |_| true, 7).expect("a free port");
    translation.map(|to| (to.address.to_string(), to.port))
}

fn some(address: &str, port: u16) -> Option<(String, u16)> {
    Some((address.to_owned(), port))
}

#[test]
fn the_container_network_of_the_book() {
    let nat = nat(&[
        masquerade("172.18.0.0/16", Out::Except(name("in"))),
        publish(Some("10.0.2.15"), (5000, 5000), "172.18.0.10", (80, 80)),
    ]);
    // Out: masqueraded as the address on the next hop's network; back onto its own network: not.
    let web = tcp("172.18.0.10", 40_000, "8.8.8.8", 443);
    let out = Leaving { next_hop: ip("10.0.2.2"), ..leaving(web, 0, 2) };
    assert_eq!(source_of(&nat, &out), some("10.0.2.15", 40_000));
    let out = Leaving { next_hop: ip("192.0.2.1"), ..out };
    assert_eq!(source_of(&nat, &out), some("192.0.2.15", 40_000));
    assert_eq!(source_of(&nat, &leaving(tcp("172.18.0.10", 1, "172.18.0.20", 2), 0, 0)), None);
    assert_eq!(source_of(&nat, &leaving(tcp("172.19.0.10", 1, "8.8.8.8", 2), 1, 2)), None);
    // Published, for everybody who calls that address and port.
    for ingress in [0, 1, 2] {
        let call = nat.destination(&tcp("10.0.2.99", 1234, "10.0.2.15", 5000), ingress).expect("published");
        assert_eq!((call.address, call.port), (ip("172.18.0.10"), 80));
        assert_eq!(nat.cause(&call), Cause::Rule(2));
    }
    assert_eq!(nat.destination(&tcp("10.0.2.99", 1234, "10.0.2.15", 5001), 2), None);
    assert_eq!(nat.destination(&tcp("10.0.2.99", 1234, "192.0.2.15", 5000), 2), None);
    let others = [UDP, SCTP].map(|protocol| Tuple { protocol, ..tcp("10.0.2.99", 1234, "10.0.2.15", 5000) });
    assert_eq!(others.map(|tuple| nat.destination(&tuple, 2)), [None; 2]);
}

#[test]
fn a_hairpin_is_from_the_interfaces_own_address() {
    let nat = nat(&[
        masquerade("172.18.0.0/16", Out::Only(name("out"))),
        publish(None, (5000, 5000), "172.18.0.10", (80, 80)),
    ]);
    // By any of the own addresses, from the same network and from the server itself.
    for (client, called) in [("172.18.0.20", "10.0.2.15"), ("172.18.0.10", "172.18.0.1")] {
        let to = nat.destination(&tcp(client, 4000, called, 5000), 0).expect("published");
        let tuple =
            Tuple { destination: to.address, destination_port: to.port, ..tcp(client, 4000, called, 5000) };
        let hairpin = Leaving { redirected: true, ..leaving(tuple, 0, 0) };
        assert_eq!(source_of(&nat, &hairpin), some("172.18.0.1", 4000));
        let translation = nat.source(&hairpin, |_| true, 7).expect("free").expect("translated");
        assert_eq!(nat.cause(&translation), Cause::Hairpin);
        nat.count(&translation, 0, 60);
        // From another bridge, and from outside, the client is seen as who it is.
        assert_eq!(source_of(&nat, &Leaving { ingress: 1, ..hairpin }), None);
        assert_eq!(source_of(&nat, &Leaving { ingress: 2, ..hairpin }), None);
    }
    assert!(nat.destination(&tcp("1.1.1.1", 1, "10.0.2.16", 5000), 2).is_none(), "no own address");
}

#[test]
fn ranges_and_ipv6() {
    let nat = nat(&[
        publish(Some("10.0.2.15"), (8000, 8099), "172.18.0.10", (9000, 9099)),
        publish(None, (443, 443), "fd00::10", (8443, 8443)),
        masquerade("fd00::/64", Out::Only(name("out"))),
    ]);
    let port = |called: u16| nat.destination(&tcp("1.1.1.1", 1, "10.0.2.15", called), 2).map(|to| to.port);
    assert_eq!(
        [port(7999), port(8000), port(8042), port(8099), port(8100)],
        [None, Some(9000), Some(9042), Some(9099), None]
    );
    let call = nat.destination(&tcp("fd02::1", 1, "fd01::15", 443), 2).expect("published");
    assert_eq!((call.address, call.port), (ip("fd00::10"), 8443));
    assert!(nat.destination(&tcp("1.1.1.1", 1, "10.0.2.15", 443), 2).is_none(), "IPv6 alone");
    let out = leaving(tcp("fd00::10", 4000, "2001:db8::1", 443), 0, 2);
    assert_eq!(source_of(&nat, &out), some("fd01::15", 4000));
    let nowhere = nat.source(&Leaving { egress: 1, redirected: true, ingress: 1, ..out }, |_| true, 1);
    assert_eq!(nowhere.map_err(|failure| failure.why), Err(Why::NoAddress));
}

#[test]
fn one_address_for_one_in_both_directions() {
    let nat = nat(&[
        Rule::OneToOne(OneToOne {
            outside: cidr("198.51.100.16/28"),
            inside: cidr("172.18.0.32/28"),
            out: Out::Only(name("out")),
        }),
        masquerade("172.18.0.0/16", Out::Only(name("out"))),
        publish(Some("198.51.100.20"), (25, 25), "172.18.0.99", (25, 25)),
    ]);
    let gre = Tuple { protocol: 47, ..tcp("1.1.1.1", 0, "198.51.100.17", 0) };
    let call = nat.destination(&gre, 2).expect("stands for an inside one");
    assert_eq!((call.address, call.port), (ip("172.18.0.33"), 0));
    let call = nat.destination(&tcp("1.1.1.1", 5, "198.51.100.20", 80), 2).expect("stands for one");
    assert_eq!((call.address, call.port), (ip("172.18.0.36"), 80));
    let call = nat.destination(&tcp("1.1.1.1", 5, "198.51.100.20", 25), 2).expect("published");
    assert_eq!(call.address, ip("172.18.0.99"), "a published port comes first");
    let back = leaving(tcp("172.18.0.36", 40_000, "1.1.1.1", 80), 0, 2);
    assert_eq!(source_of(&nat, &back), some("198.51.100.20", 40_000));
    assert_eq!(source_of(&nat, &Leaving { egress: 1, ..back }), None);
    let other = leaving(tcp("172.18.0.48", 40_000, "1.1.1.1", 80), 0, 2);
    assert_eq!(source_of(&nat, &other), some("10.0.2.15", 40_000));
    assert!(nat.speaks_for(ip("198.51.100.31")) && !nat.speaks_for(ip("198.51.100.32")));
    assert!(!nat.speaks_for(ip("10.0.2.15")), "that one an interface has");
}

#[test]
fn pools_are_spoken_for() {
    let nat = nat(&[
        snat("172.18.2.0/24", "198.51.100.9", "198.51.100.12"),
        snat("172.18.1.0/24", "198.51.100.4", "198.51.100.9"),
        snat("172.18.3.0/24", "198.51.100.5", "198.51.100.5"),
        snat("fd00:1::/64", "2001:db8::5", "2001:db8::6"),
        snat("172.18.4.0/24", "10.0.2.15", "10.0.2.16"),
    ]);
    let spoken: Vec<u8> = (0..=20).filter(|&n| nat.speaks_for([198, 51, 100, n].into())).collect();
    assert_eq!(spoken, (4..=12).collect::<Vec<u8>>());
    assert!(nat.speaks_for(ip("2001:db8::6")) && !nat.speaks_for(ip("2001:db8::7")));
    assert!(nat.speaks_for(ip("10.0.2.16")) && !nat.speaks_for(ip("10.0.2.15")), "an interface has that one");
}

#[test]
fn exceptions_are_final_and_the_longest_prefix_counts() {
    let mut special = selector("10.1.0.0/16", Out::Any);
    special.except = vec![cidr("192.168.0.0/16"), cidr("10.0.0.0/8")];
    let nat = nat(&[
        masquerade("10.0.0.0/8", Out::Only(name("out"))),
        Rule::Snat(Snat {
            selector: special,
            to: AddressRange { first: ip("198.51.100.1"), last: ip("198.51.100.1") },
            ports: None,
            endpoint_independent: false,
        }),
    ]);
    let source =
        |source: &str, destination: &str| source_of(&nat, &leaving(tcp(source, 1, destination, 2), 0, 2));
    assert_eq!(source("10.1.0.1", "8.8.8.8"), some("198.51.100.1", 1));
    assert_eq!(source("10.1.0.1", "192.168.9.9"), None, "not the shorter prefix either");
    assert_eq!(source("10.2.0.1", "192.168.9.9"), some("10.0.2.15", 1));
}

#[test]
fn a_client_keeps_its_address_of_a_pool_and_all_are_used() {
    let nat = nat(&[snat("172.18.0.0/16", "198.51.100.1", "198.51.100.64")]);
    let mut used = HashSet::new();
    for host in 0..1000_u32 {
        let client = IpAddr::from(Ipv4Addr::from_bits(0xac12_0000 | host));
        let tuple = Tuple { source: client, ..tcp("172.18.0.1", 1000, "8.8.8.8", 80) };
        let address =
            |tuple: Tuple, random| nat.source(&leaving(tuple, 0, 2), |_| true, random).expect("free");
        let first = address(tuple, 1).expect("translated").address;
        for (port, random) in (1..20).zip(2..) {
            let other = address(Tuple { destination_port: port, source_port: port + 9, ..tuple }, random);
            assert_eq!(other.expect("translated").address, first);
        }
        used.insert(first);
    }
    assert_eq!(used.len(), 64);
}

#[test]
fn an_address_without_a_free_port_gives_way_to_the_next_of_the_pool() {
    let nat = nat(&[snat("172.18.0.0/16", "198.51.100.1", "198.51.100.2")]);
    let out = leaving(tcp("172.18.0.5", 1000, "8.8.8.8", 80), 0, 2);
    let mine = nat.source(&out, |_| true, 1).expect("free").expect("translated").address;
    let other = nat.source(&out, |reply| reply.destination != mine, 1).expect("free").expect("translated");
    assert_ne!(other.address, mine);
    let failure = nat.source(&out, |_| false, 1).expect_err("nothing is free");
    assert_eq!(failure.why, Why::Exhausted);
    nat.count_failure(&failure, 0);
    // Within the second the next search is short.
    let mut asked = 0;
    let again = nat.source(
        &out,
        |_| {
            asked += 1;
            false
        },
        1,
    );
    assert!(again.is_err() && asked < 50, "{asked} questions");
}

#[test]
fn counters_outlive_snapshots_and_are_per_rule() {
    let mut rules = set(&[masquerade("172.18.0.0/16", Out::Any)]);
    let out = leaving(tcp("172.18.0.5", 1000, "8.8.8.8", 80), 0, 2);
    for _ in 0..3 {
        let nat = rules.compile(&interfaces());
        let translation = nat.source(&out, |_| true, 1).expect("free").expect("translated");
        nat.count(&translation, 0, 60);
        nat.count_failure(&nat.source(&out, |_| false, 1).expect_err("nothing is free"), 0);
        rules
            .add(publish(None, (rules.len() as u16, rules.len() as u16), "172.18.0.9", (1, 1)))
            .expect("good");
    }
    let hits: Vec<_> =
        rules.iter().map(|(id, _, hits)| (id, hits.packets, hits.bytes, hits.failed)).collect();
    assert_eq!(hits[0], (1, 3, 180, 3));
    assert!(hits[1..].iter().all(|hits| hits.1 == 0));
}

#[test]
fn a_snapshot_is_made_when_something_has_changed() {
    let mut rules = set(&[masquerade("172.18.0.0/16", Out::Any)]);
    let first = rules.snapshot(interfaces());
    assert!(std::sync::Arc::ptr_eq(&first, &rules.snapshot(interfaces())));
    let out = leaving(tcp("172.18.0.5", 1, "8.8.8.8", 80), 0, 2);
    let mut others = interfaces();
    others[2].addresses = vec![cidr("192.0.2.99/24")];
    assert_eq!(source_of(&rules.snapshot(others.clone()), &out), some("192.0.2.99", 1));
    rules.remove(1, None).expect("is there");
    assert!(rules.snapshot(others).is_empty());
}

#[test]
fn what_does_not_go_together_is_refused_and_names_the_other() {
    let mut rules = set(&[
        publish(Some("10.0.2.15"), (8000, 8010), "172.18.0.10", (8000, 8010)),
        masquerade("172.18.0.0/16", Out::Any),
        Rule::OneToOne(OneToOne {
            outside: cidr("198.51.100.16/28"),
            inside: cidr("172.18.0.32/28"),
            out: Out::Any,
        }),
    ]);
    let one_to_one = |outside: &str, inside: &str| {
        Rule::OneToOne(OneToOne { outside: cidr(outside), inside: cidr(inside), out: Out::Any })
    };
    let wrong = [
        (publish(Some("10.0.2.15"), (8010, 8020), "172.18.0.11", (1, 11)), "publish rule 1"),
        (publish(None, (8005, 8005), "172.18.0.11", (80, 80)), "publish rule 1"),
        (publish(None, (9000, 9009), "172.18.0.11", (80, 80)), "as many"),
        (publish(None, (0, 0), "172.18.0.11", (80, 80)), "at least 1"),
        (publish(Some("fd00::1"), (80, 80), "172.18.0.11", (80, 80)), "both must be"),
        (publish(None, (80, 80), "224.0.0.1", (80, 80)), "one host"),
        (publish(Some("172.18.0.9"), (80, 80), "172.18.0.9", (80, 80)), "nothing to translate"),
        (masquerade("172.18.0.0/16", Out::Any), "masquerade rule 2"),
        (one_to_one("198.51.100.20/32", "172.18.1.1/32"), "one-to-one rule 3"),
        (one_to_one("198.51.101.0/24", "172.18.0.0/24"), "one-to-one rule 3"),
        (one_to_one("198.51.101.0/24", "172.18.1.0/25"), "unequal length"),
        (one_to_one("198.51.101.0/24", "198.51.101.0/24"), "overlap"),
        (one_to_one("198.51.101.0/24", "fd00::/24"), "both must be"),
        (snat("172.20.0.0/16", "198.51.100.9", "198.51.100.1"), "above"),
        (snat("fd00::/64", "198.51.100.1", "198.51.100.9"), "both must be"),
        (snat("172.20.0.0/16", "0.0.0.0", "198.51.100.9"), "hosts"),
    ];
    for (rule, word) in wrong {
        let refusal = rules.add(rule).expect_err(word).to_string();
        assert!(refusal.contains(word), "{refusal:?} does not say {word:?}");
    }
    assert_eq!(rules.len(), 3, "nothing half-applied");
    // Another protocol, another address, another interface: no conflict.
    let Rule::Publish(any) = publish(None, (8005, 8005), "172.18.0.11", (80, 80)) else { return };
    rules.add(Rule::Publish(Publish { protocol: UDP, ..any.clone() })).expect("UDP is free");
    rules.add(Rule::Publish(Publish { protocol: SCTP, ..any.clone() })).expect("SCTP is free");
    let translation = rules.compile(&interfaces());
    for protocol in [UDP, SCTP] {
        let call = Tuple { protocol, ..tcp("10.0.2.99", 1234, "10.0.2.15", 8005) };
        let to = translation.destination(&call, 2).expect("published");
        assert_eq!((to.address, to.port), (ip("172.18.0.11"), 80));
    }
    rules
        .add(Rule::Publish(Publish { listen: Some(ip("10.0.2.16")), ..any }))
        .expect("so is the other address");
    assert!(rules.remove(1, Some("snat")).is_err() && rules.remove(99, None).is_err());
    assert!(rules.remove(1, Some("publish")).is_ok());
    rules.add(publish(Some("10.0.2.15"), (8010, 8020), "172.18.0.11", (1, 11))).expect("free again");
}

#[test]
fn a_rule_for_an_interface_that_is_gone_sleeps() {
    let rules = set(&[
        masquerade("172.18.0.0/16", Out::Only(name("out"))),
        masquerade("172.19.0.0/16", Out::Except(name("gone"))),
    ]);
    let without = &interfaces()[..2];
    let nat = rules.compile(without);
    let own = rules.compile(&interfaces());
    let out = leaving(tcp("172.18.0.5", 1, "8.8.8.8", 80), 0, 2);
    assert_eq!(source_of(&nat, &out), None);
    assert_eq!(source_of(&own, &out), some("10.0.2.15", 1));
    assert_eq!(source_of(&own, &leaving(tcp("172.19.0.5", 1, "8.8.8.8", 80), 1, 2)), some("10.0.2.15", 1));
    assert_eq!(rules.naming(name("out")).map(|(id, _)| id), Some(1));
}

#[test]
fn two_calls_that_would_look_alike_do_not() {
    // The same client and port, once by the published address and once directly.
    let nat = nat(&[publish(Some("10.0.2.15"), (80, 80), "172.18.0.10", (80, 80))]);
    let direct = tcp("10.0.2.99", 4000, "172.18.0.10", 80);
    let call = Leaving { redirected: true, ..leaving(direct, 2, 0) };
    let taken = direct.reversed();
    let translation = nat.source(&call, |reply| *reply != taken, 9).expect("free").expect("translated");
    assert_eq!(translation.address, ip("10.0.2.99"));
    assert_ne!(translation.port, 4000);
    assert_eq!(nat.cause(&translation), Cause::Clash);
}

#[test]
fn without_rules_nobody_need_ask() {
    let nat = RuleSet::new(1).compile(&interfaces());
    assert!(nat.is_empty() && nat.is_own(ip("10.0.2.15")));
    assert_eq!(nat.destination(&tcp("1.1.1.1", 1, "10.0.2.15", 80), 2), None);
    assert!(matches!(nat.source(&leaving(tcp("1.1.1.1", 1, "2.2.2.2", 2), 0, 2), |_| false, 1), Ok(None)));
}

#[test]
fn one_address_carries_more_connections_than_there_are_ports() {
    let nat = nat(&[masquerade("172.18.0.0/16", Out::Any)]);
    let mut replies = HashSet::new();
    for n in 0..200_000_u32 {
        let client = Ipv4Addr::from_bits(0xac12_0000 | (n % 1000)).to_string();
        // Four servers: each is called by 50,000 connections from one address.
        let server = Ipv4Addr::from_bits(0xcb00_7100 | (n % 4)).to_string();
        let tuple = tcp(&client, 1024 + (n / 1000) as u16, &server, 443);
        let out = leaving(tuple, 0, 2);
        let from = nat.source(&out, |reply| !replies.contains(reply), mix(1, u64::from(n)));
        let from = from.expect("there are free ports").expect("translated");
        assert!(replies.insert(ports::reply(&tuple, from.address, from.port)));
    }
}

#[test]
fn endpoint_independent_means_the_same_port_for_everybody() {
    let rules = set(&[Rule::Masquerade(Masquerade {
        selector: selector("172.18.0.0/16", Out::Any),
        ports: None,
        endpoint_independent: true,
    })]);
    let nat = rules.compile(&interfaces());
    let mut replies = HashSet::new();
    let mut of_clients = HashSet::new();
    for client in 2..10 {
        let mut seen = HashSet::new();
        for server in 1..50 {
            let tuple = tcp(&format!("172.18.0.{client}"), 5000, &format!("203.0.113.{server}"), 3478);
            let from =
                nat.source(&leaving(tuple, 0, 2), |reply| !replies.contains(reply), mix(client, server));
            let from = from.expect("free").expect("translated");
            replies.insert(ports::reply(&tuple, from.address, from.port));
            seen.insert((from.address, from.port));
        }
        assert_eq!(seen.len(), 1, "one port whatever the server");
        of_clients.extend(seen);
    }
    assert_eq!(of_clients.len(), 8, "and no two clients share one");
    // Everybody reaches them there, as long as the rule says so, by the interface that it is for.
    let (address, port) = *of_clients.iter().next().expect("eight");
    let call = Tuple { destination: address, ..tcp("198.18.0.9", 9, "0.0.0.0", port) };
    let inside = nat.mapped(&call, 2, 0, |reply| !replies.contains(reply)).expect("is mapped");
    assert!(inside.port == 5000 && cidr("172.18.0.0/16").contains(&inside.address), "{inside:?}");
    let mine = leaving(
        Tuple { destination: ip("203.0.113.99"), ..tcp(&inside.address.to_string(), 5000, "1.1.1.1", 1) },
        0,
        2,
    );
    let from = nat.source(&mine, |reply| !replies.contains(reply), 7).expect("free").expect("translated");
    assert_eq!((from.address, from.port), (address, port));
    assert_eq!(nat.mapped(&Tuple { protocol: UDP, ..call }, 2, 0, |_| false), None);
    let without = RuleSet::new(1).compile(&interfaces());
    assert_eq!(without.mapped(&call, 2, 0, |_| false), None);
    assert_eq!(rules.hits().mappings, 8);
}

#[test]
#[ignore = "a measurement: make costs"]
fn cost_of_a_translation() {
    for count in [1_u16, 100, 5000] {
        let mut rules = RuleSet::new(1);
        for n in 0..count {
            let inside = Ipv4Addr::from_bits(0xac12_0000 | u32::from(n)).to_string();
            rules.add(publish(None, (n + 1, n + 1), &inside, (80, 80))).expect("good");
            let source = format!("{}/24", Ipv4Addr::from_bits(10 << 24 | u32::from(n) << 8));
            rules.add(masquerade(&source, Out::Only(name("out")))).expect("good");
        }
        let start = std::time::Instant::now();
        let nat = rules.compile(&interfaces());
        let compiled = start.elapsed();
        let mut random = 1;
        let flows: Vec<_> = (0..4096)
            .map(|_| {
                random = mix(random, 1);
                let client = 10 << 24 | (random as u32 % u32::from(count)) << 8 | 7;
                let mut call = tcp("1.1.1.1", 4000, "10.0.2.15", (random >> 32) as u16 % count + 1);
                call.source = Ipv4Addr::from_bits(client).into();
                let mut out = call;
                out.destination = ip("8.8.8.8");
                (call, leaving(out, 0, 2))
            })
            .collect();
        let per = |all: &mut dyn FnMut() -> bool| crate::rules::best_of(100, || assert!(all())) / 4096;
        let destination = per(&mut || flows.iter().all(|(call, _)| nat.destination(call, 2).is_some()));
        let miss = per(&mut || flows.iter().all(|(_, out)| nat.destination(&out.tuple, 0).is_none()));
        let found = |out: &Leaving| matches!(nat.source(out, |_| true, 1), Ok(Some(_)));
        let source = per(&mut || flows.iter().all(|(_, out)| found(out)));
        println!(
            "{count} published ports and {count} masquerades: destination {destination}, not published {miss}, \
             source {source} cycles; compiled in {compiled:?}"
        );
    }
}
