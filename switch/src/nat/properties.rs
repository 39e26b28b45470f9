//! Translation against lists that are walked and against tables of live connections, for rules and packets made up at
//! random.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::rule::{AddressRange, Masquerade, OneToOne, Out, PortRange, Publish, Rule, Selector, Snat};
use super::tests::{cidr, interfaces, ip, leaving, name, publish, selector, set};
use super::*;
use crate::packet::ip::{ICMP, TCP, UDP};
use crate::rules::NONE;
use crate::rules::prefixes::tests::{address, net};

fn out() -> impl Strategy<Value = Out> {
    prop_oneof![
        Just(Out::Any),
        prop_oneof![Just("in"), Just("other"), Just("out"), Just("gone")]
            .prop_map(|text| Out::Only(name(text))),
        prop_oneof![Just("in"), Just("other"), Just("out"), Just("gone")]
            .prop_map(|text| Out::Except(name(text))),
    ]
}

prop_compose! {
    fn publish_rule()(
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        listen in prop_oneof![Just(None), address().prop_map(Some), Just(Some(ip("10.0.2.15")))],
        ingress in prop_oneof![3 => Just(None), 1 => Just(Some(name("in"))), 1 => Just(Some(name("gone")))],
        (first, more, to_first) in (1..200_u16, 0..30_u16, 1..60_000_u16),
        to in address(),
    ) -> Publish {
        let range = |first: u16| PortRange { first, last: first + more };
        Publish { protocol, listen, ingress, ports: range(first), to, to_ports: range(to_first) }
    }
}

fn call() -> impl Strategy<Value = (Tuple, u16)> {
    let called = prop_oneof![address(), Just(ip("10.0.2.15")), Just(ip("172.18.0.1")), Just(ip("fd01::15"))];
    (called, prop_oneof![Just(TCP), Just(UDP), Just(ICMP)], 0..250_u16, 0..3_u16).prop_map(
        |(destination, protocol, destination_port, ingress)| {
            let tuple =
                Tuple { protocol, destination_port, destination, source: destination, source_port: 9 };
            (tuple, ingress)
        },
    )
}

proptest! {
    #[test]
    fn publishing_is_as_a_list_would_say(
        rules in proptest::collection::vec(publish_rule(), 0..60), calls in proptest::collection::vec(call(), 40)
    ) {
        let mut set = RuleSet::new(1);
        for rule in rules {
            // Many clash, and are refused.
            let _ = set.add(Rule::Publish(rule));
        }
        let interfaces = interfaces();
        let nat = set.compile(&interfaces);
        for (tuple, ingress) in calls {
            let matching = set.iter().filter_map(|(id, rule, _)| {
                let Rule::Publish(rule) = rule else { return None };
                let called = match rule.listen {
                    Some(listen) => tuple.destination == listen,
                    None => nat.is_own(tuple.destination) && tuple.destination.is_ipv4() == rule.to.is_ipv4(),
                };
                let by = rule.ingress.is_none_or(|ingress_name| {
                    interfaces.iter().any(|at| at.index == ingress && at.name == ingress_name)
                });
                let matches = tuple.protocol == rule.protocol && rule.ports.contains(tuple.destination_port);
                let port = rule.to_ports.first + tuple.destination_port.wrapping_sub(rule.ports.first).min(30);
                (matches && called && by).then_some((Cause::Rule(id), rule.to, port))
            });
            let matching: Vec<_> = matching.collect();
            prop_assert!(matching.len() < 2, "no two rules are for one call: {:?}", matching);
            let found = nat.destination(&tuple, ingress);
            prop_assert_eq!(found.map(|to| (nat.cause(&to), to.address, to.port)), matching.first().copied());
        }
    }

    #[test]
    fn the_rule_of_a_source_is_as_a_list_would_say(
        rules in proptest::collection::vec((net(), out(), proptest::collection::vec(net(), 0..2)), 0..40),
        flows in proptest::collection::vec((address(), address(), 0..3_u16), 40)
    ) {
        let mut set = RuleSet::new(1);
        for (source, out, except) in rules {
            let selector = Selector { source, out, except };
            let to = if source.addr().is_ipv4() { ip("9.9.9.9") } else { ip("fd09::9") };
            let to = AddressRange { first: to, last: to };
            let _ = set.add(Rule::Snat(Snat { selector, to, ports: None, endpoint_independent: false }));
        }
        let interfaces = interfaces();
        let nat = set.compile(&interfaces);
        for (source, destination, egress) in flows {
            if source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            let is = |name: Name| interfaces.iter().any(|at| at.index == egress && at.name == name);
            let best = set.iter().filter_map(|(id, rule, _)| {
                let Rule::Snat(rule) = rule else { return None };
                let (applies, class) = match rule.selector.out {
                    Out::Any => (true, 1),
                    Out::Only(name) => (is(name), 0),
                    Out::Except(name) => (!is(name), 1),
                };
                let len = rule.selector.source.prefix_len();
                let matches = applies && rule.selector.source.contains(&source);
                matches.then_some(((std::cmp::Reverse(len), class, id), &rule.selector.except))
            });
            let best = best.min_by_key(|&(order, _)| order);
            let expected = best.and_then(|((_, _, id), except)| {
                (!except.iter().any(|net| net.contains(&destination))).then_some(Cause::Rule(id))
            });
            let tuple = Tuple { source, destination, protocol: TCP, source_port: 5, destination_port: 6 };
            let found = nat.source(&leaving(tuple, NONE, egress), |_| true, 1).expect("free");
            prop_assert_eq!(found.map(|to| nat.cause(&to)), expected);
        }
    }
}

/// A step in the life of a switch: a connection begins, or the n-th of the living ends.
#[derive(Clone, Debug)]
enum Step {
    Begin { source: u32, port: u16, called: u8, ingress: u16, random: u64, protocol: u8 },
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    // Few sources and ports, so that they meet.
    let begin = (
        0..6_u32,
        5000..5004_u16,
        0..6_u8,
        0..3_u16,
        any::<u64>(),
        prop_oneof![
            3 => Just(TCP), 1 => Just(UDP), 1 => Just(ICMP), 1 => Just(47)
        ],
    );
    prop_oneof![
        4 => begin.prop_map(|(source, port, called, ingress, random, protocol)| {
            Step::Begin { source, port, called, ingress, random, protocol }
        }),
        1 => any::<usize>().prop_map(Step::End),
    ]
}

/// What is live, as conntrack keeps it: each connection under the tuple of either direction.
#[derive(Default)]
struct Table {
    tuples: HashSet<Tuple>,
    live: Vec<(Tuple, Tuple)>,
}

impl Table {
    fn is_free(&self, tuple: &Tuple) -> bool {
        !self.tuples.contains(tuple)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_two_live_connections_share_a_tuple(
        steps in proptest::collection::vec(step(), 1..300), narrow: bool, independent: bool
    ) {
        let ports = narrow.then_some(PortRange { first: 5000, last: 5009 });
        let out = |source: &str| Selector { except: vec![cidr("203.0.113.7/32")], ..selector(source, Out::Only(name("out"))) };
        let to = AddressRange { first: ip("198.51.100.1"), last: ip("198.51.100.2") };
        let mut rules = set(&[
            Rule::Masquerade(Masquerade { selector: out("172.18.0.0/16"), ports, endpoint_independent: independent }),
            Rule::Snat(Snat { selector: out("172.19.0.0/16"), to, ports, endpoint_independent: false }),
            publish(None, (80, 80), "172.18.0.2", (80, 80)),
        ]);
        rules.add(Rule::OneToOne(OneToOne {
            outside: cidr("198.51.100.2/32"),
            inside: cidr("172.18.0.3/32"),
            out: Out::Only(name("out")),
        })).expect("good");
        let nat = rules.compile(&interfaces());
        let mut table = Table::default();
        // Where each client's port is seen from outside.
        let mut seen: HashMap<(u8, IpAddr, u16), (IpAddr, u16)> = HashMap::new();
        for step in steps {
            let (source, port, called, ingress, random, protocol) = match step {
                Step::Begin { source, port, called, ingress, random, protocol } => {
                    (source, port, called, ingress, random, protocol)
                }
                Step::End(n) => {
                    if !table.live.is_empty() {
                        let (original, reply) = table.live.swap_remove(n % table.live.len());
                        prop_assert!(table.tuples.remove(&original) && table.tuples.remove(&reply));
                    }
                    continue;
                }
            };
            let networks = [0xac12_0000, 0xac13_0000, 0x0a00_0200];
            let has_ports = protocol != 47;
            let original = Tuple {
                source: Ipv4Addr::from_bits(networks[usize::from(ingress)] | (source + 2)).into(),
                destination: ip(["203.0.113.1", "203.0.113.7", "10.0.2.15", "172.18.0.1", "172.18.0.2", "198.51.100.2"][usize::from(called)]),
                protocol,
                source_port: if has_ports { port } else { 0 },
                destination_port: match protocol { ICMP => 8, 47 => 0, _ => 80 },
            };
            if !table.is_free(&original) {
                continue;
            }
            let to = nat.destination(&original, ingress);
            let tuple = to.map_or(original, |to| Tuple {
                destination: to.address, destination_port: to.port, ..original
            });
            let egress = match tuple.destination {
                IpAddr::V4(v4) if v4.octets()[..2] == [172, 18] => 0,
                _ => 2,
            };
            let leaving = Leaving { redirected: to.is_some(), ..leaving(tuple, ingress, egress) };
            let from = match nat.source(&leaving, |reply| table.is_free(reply), random) {
                Ok(from) => from,
                Err(failure) => {
                    prop_assert_eq!(failure.why, Why::Exhausted);
                    continue;
                }
            };
            let sent = from.map_or(tuple, |from| Tuple {
                source: from.address, source_port: from.port, ..tuple
            });
            let reply = sent.reversed();
            prop_assert!(table.is_free(&reply), "{:?} is taken", reply);
            if reply == original {
                // Somebody who sends to himself: conntrack has none of it.
                continue;
            }
            if let Some(from) = from
                && nat.cause(&from) == Cause::Rule(1)
            {
                prop_assert!(ports.is_none_or(|ports| !has_ports || ports.contains(from.port)));
            }
            if let Some(from) = from
                && independent && has_ports && nat.cause(&from) == Cause::Rule(1)
            {
                let client = (protocol, original.source, original.source_port);
                let here = (from.address, from.port);
                let before = *seen.entry(client).or_insert(here);
                // Unless a connection that is none of the rule's took the tuple, a client's port looks the same to all.
                let would = Tuple { source: before.0, source_port: before.1, ..tuple }.reversed();
                prop_assert!(before == here || !table.is_free(&would), "{:?} was {:?}, is {:?}", client, before, here);
            }
            table.tuples.insert(original);
            table.tuples.insert(reply);
            table.live.push((original, reply));
        }
    }
}
