//! The policy against a list that is walked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use proptest::prelude::*;

use super::rule::{Action, Addresses, Rule, Side, State, States, Zone};
use super::*;
use crate::config::name::Name;
use crate::nat::rule::PortRange;
use crate::packet::ip::{ICMP, SCTP, TCP, UDP};
use crate::rules::prefixes::tests::{address, net};

fn name(kind: char, number: u16) -> Name {
    format!("{kind}{number}").parse().expect("a name")
}

/// Ports p0 to p5, bridges b0 to b2, interfaces i0 to i2.
fn numbers() -> Numbers {
    let names = |kind, count| (0..count).map(|n| (name(kind, n), n)).collect::<HashMap<_, _>>();
    Numbers { ports: names('p', 6), bridges: names('b', 3), interfaces: names('i', 3) }
}

fn side_matches(side: Side, place: Place) -> bool {
    let known = |kind, count, number: u16, wanted: Name| number < count && name(kind, number) == wanted;
    let matches = match side.zone {
        Zone::Any => true,
        Zone::Port(wanted) => known('p', 6, place.port, wanted),
        Zone::Bridge(wanted) => known('b', 3, place.bridge, wanted),
        Zone::Interface(wanted) => known('i', 3, place.interface, wanted),
        Zone::Switch => place.interface == SWITCH,
    };
    matches != side.negated
}

fn address_matches(addresses: &Addresses, address: IpAddr) -> bool {
    (addresses.within.is_empty() || addresses.within.iter().any(|net| net.contains(&address)))
        && !addresses.except.iter().any(|net| net.contains(&address))
}

/// What a list says: the first rule in order, and the first on the way whose log is wanted.
fn naive(set: &PolicySet, flow: &NewFlow) -> (Option<(RuleId, Action)>, Option<RuleId>) {
    let port =
        |ranges: &[PortRange], port| ranges.is_empty() || ranges.iter().any(|range| range.contains(port));
    let mut log = None;
    for (id, rule, _) in set.iter() {
        let tuple = &flow.tuple;
        let matches = side_matches(rule.from, flow.from)
            && side_matches(rule.to, flow.to)
            && address_matches(&rule.source, tuple.source)
            && address_matches(&rule.destination, tuple.destination)
            && rule.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && port(&rule.source_ports, tuple.source_port)
            && port(&rule.destination_ports, tuple.destination_port)
            && rule.icmp_type.is_none_or(|kind| u16::from(kind) == tuple.destination_port)
            && rule.states.contains(flow.state);
        if matches {
            if rule.log || rule.action == Action::Log {
                log.get_or_insert(id);
            }
            if rule.action != Action::Log {
                return (Some((id, rule.action)), log);
            }
        }
    }
    (None, log)
}

fn agrees(set: &PolicySet, policy: &Policy, flow: &NewFlow) -> Result<(), TestCaseError> {
    let decision = policy.decide(flow, 0, 60);
    let (rule, log) = naive(set, flow);
    prop_assert_eq!(decision.log, log);
    match (rule, decision.by) {
        (Some((id, action)), By::Rule(by)) => {
            prop_assert_eq!(id, by);
            prop_assert_eq!(decision.verdict.as_str(), action.as_str());
        }
        (None, by) => prop_assert!(!matches!(by, By::Rule(_)), "{:?}", by),
        (rule, by) => prop_assert!(false, "{rule:?} {by:?}"),
    }
    Ok(())
}

fn zone() -> impl Strategy<Value = Side> {
    // b3, i3 and p6 are names that nothing has.
    let zone = prop_oneof![
        4 => Just(Zone::Any),
        1 => (0..7_u16).prop_map(|n| Zone::Port(name('p', n))),
        1 => (0..4_u16).prop_map(|n| Zone::Bridge(name('b', n))),
        1 => (0..4_u16).prop_map(|n| Zone::Interface(name('i', n))),
        1 => Just(Zone::Switch),
    ];
    (zone, any::<bool>()).prop_map(|(zone, negated)| Side { zone, negated: negated && zone != Zone::Any })
}

fn addresses() -> impl Strategy<Value = Addresses> {
    let nets = |most| proptest::collection::vec(net(), 0..most);
    (nets(3), nets(2)).prop_map(|(within, except)| Addresses { within, except })
}

fn port_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let range = (0..30_u16, 0..10_u16).prop_map(|(first, more)| PortRange { first, last: first + more });
    proptest::collection::vec(range, 0..3)
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![Just(State::New), Just(State::Established), Just(State::Related), Just(State::Invalid)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Accept), Just(Action::Drop), Just(Action::Reject), Just(Action::Log)]
}

prop_compose! {
    fn rule()(
        (priority, from, to) in (0..5_u32, zone(), zone()),
        (source, destination) in (addresses(), addresses()),
        (protocol, source_ports, destination_ports) in (
            prop_oneof![Just(None), Just(Some(TCP)), Just(Some(UDP)), Just(Some(SCTP)), Just(Some(ICMP)), Just(Some(47))],
            prop_oneof![Just(Vec::new()), port_ranges()], port_ranges()
        ),
        (ping, states) in (any::<bool>(), proptest::collection::vec(state(), 0..4)),
        (action, log) in (action(), any::<bool>()),
    ) -> Rule {
        let ports = matches!(protocol, Some(TCP | UDP | SCTP));
        Rule {
            priority, from, to, source, destination, protocol,
            source_ports: if ports { source_ports } else { Vec::new() },
            destination_ports: if ports { destination_ports } else { Vec::new() },
            icmp_type: (ping && protocol == Some(ICMP)).then_some(8),
            states: if states.is_empty() { States::ALL } else { states.into_iter().collect() },
            action, log,
        }
    }
}

fn place() -> impl Strategy<Value = Place> {
    let number = |count: u16| prop_oneof![9 => 0..count, 1 => Just(NONE)];
    prop_oneof![
        9 => (number(7), number(4), number(4)).prop_map(|(port, bridge, interface)| Place { port, bridge, interface }),
        1 => Just(Place::SWITCH),
    ]
}

prop_compose! {
    fn flow()(
        (source, destination) in (address(), address()),
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(SCTP), Just(ICMP), Just(47)],
        (source_port, destination_port) in (0..40_u16, 0..40_u16),
        state in state(),
        (from, to) in (place(), place()),
        published: bool,
    ) -> NewFlow {
        // Of one family, as those of a packet are.
        let destination = if source.is_ipv4() == destination.is_ipv4() { destination } else { source };
        NewFlow {
            tuple: Tuple { source, destination, protocol, source_port, destination_port },
            state, from, to, published,
        }
    }
}

fn set_of(rules: Vec<Rule>) -> PolicySet {
    let mut set = PolicySet::new(1);
    for rule in rules {
        // Some make no sense, and are refused.
        let _ = set.add(rule);
    }
    set
}

proptest! {
    #[test]
    fn the_engine_decides_as_a_list_would(
        rules in proptest::collection::vec(rule(), 0..150), flows in proptest::collection::vec(flow(), 20)
    ) {
        let set = set_of(rules);
        let policy = set.compile(&numbers());
        for flow in &flows {
            agrees(&set, &policy, flow)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Rules come and go, ports come and go, and all the while snapshots say what the list says.
    #[test]
    fn layers_decide_as_a_list_would(
        first in proptest::collection::vec(rule(), 0..100),
        steps in proptest::collection::vec((any::<bool>(), rule(), any::<proptest::sample::Index>(), 0..20_u8), 1..80),
        flows in proptest::collection::vec(flow(), 10)
    ) {
        let mut set = set_of(first);
        let mut known = numbers();
        for (add, rule, which, rare) in steps {
            let ids: Vec<RuleId> = set.iter().map(|(id, ..)| id).collect();
            match (add, ids.is_empty()) {
                (false, false) => drop(set.remove(*which.get(&ids)).expect("is there")),
                _ => drop(set.add(rule)),
            }
            match rare {
                0 => drop(set.rest()),
                1 => drop(known.ports.insert(name('p', 9), 9)),
                _ => {}
            }
            let policy = set.snapshot(&known);
            for flow in &flows {
                agrees(&set, &policy, flow)?;
            }
        }
        set.rest();
        set.rest();
        prop_assert!(!set.rest(), "one layer");
        let to_port = set.iter().any(|(_, rule, _)| matches!(rule.to.zone, Zone::Port(_)));
        prop_assert_eq!(set.compile(&known).asks_where_to(), to_port);
        let (policy, whole) = (set.snapshot(&known), set.compile(&known));
        for flow in &flows {
            agrees(&set, &policy, flow)?;
            prop_assert_eq!(policy.guards_switch(), whole.guards_switch());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]

    #[test]
    fn thousands_of_rules_are_no_exception(
        rules in proptest::collection::vec(rule(), 6000), flows in proptest::collection::vec(flow(), 100)
    ) {
        let set = set_of(rules);
        prop_assert!(set.len() > 4096, "only {} rules make sense", set.len());
        let policy = set.compile(&numbers());
        for flow in &flows {
            agrees(&set, &policy, flow)?;
        }
    }
}

fn some_flow(from: u16, to: u16) -> NewFlow {
    let place = |bridge| Place { port: NONE, bridge, interface: bridge };
    NewFlow {
        tuple: Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 1, 0, 1].into(),
            protocol: TCP,
            source_port: 4000,
            destination_port: 80,
        },
        state: State::New,
        from: place(from),
        to: place(to),
        published: false,
    }
}

#[test]
fn without_rules_everything_passes_and_nobody_need_ask() {
    let policy = PolicySet::new(1).compile(&numbers());
    assert!(policy.is_empty() && !policy.guards_switch());
    let decision = policy.decide(&some_flow(0, 1), 0, 60);
    assert_eq!(decision, Decision { verdict: Verdict::Accept, by: By::Default, log: None });
}

#[test]
fn closed_by_default_but_for_what_is_announced_published_or_for_the_switch() {
    let mut set = PolicySet::new(1);
    set.set_default_forward(Verdict::Drop);
    let policy = set.compile(&numbers());
    assert!(!policy.is_empty());
    let flow = some_flow(0, 1);
    let by = |flow: NewFlow| {
        let decision = policy.decide(&flow, 0, 60);
        (decision.verdict, decision.by)
    };
    assert_eq!(by(flow), (Verdict::Drop, By::Default));
    assert_eq!(by(NewFlow { state: State::Related, ..flow }), (Verdict::Accept, By::Related));
    assert_eq!(by(NewFlow { published: true, ..flow }), (Verdict::Accept, By::Published));
    assert_eq!(by(NewFlow { to: Place::SWITCH, ..flow }), (Verdict::Accept, By::Default));
    assert_eq!(by(NewFlow { state: State::Invalid, published: true, ..flow }), (Verdict::Drop, By::Default));
    let hits = set.hits();
    assert_eq!((hits.default.packets, hits.related.packets, hits.published.packets), (3, 1, 1));
}

#[test]
fn isolated_bridges_reach_others_but_not_each_other() {
    let mut set = PolicySet::new(1);
    set.set_isolated(vec![name('b', 0), name('b', 1)]);
    let verdict = |set: &PolicySet, from, to| set.compile(&numbers()).decide(&some_flow(from, to), 0, 60);
    assert_eq!(verdict(&set, 0, 1).drop_reason(), Some(DropReason::PolicyIsolation));
    assert_eq!(verdict(&set, 0, 2).drop_reason(), None);
    assert_eq!(verdict(&set, 2, 1).drop_reason(), None);
    assert_eq!(verdict(&set, 0, 0).drop_reason(), None);
    // The operator's own rules come first, as in DOCKER-USER.
    let id = set.add(Rule { from: Zone::Bridge(name('b', 0)).into(), ..Rule::new(Action::Accept) });
    assert_eq!(verdict(&set, 0, 1).by, By::Rule(id.expect("a good rule")));
    assert_eq!(verdict(&set, 1, 0).by, By::Isolation);
}

#[test]
fn rules_are_asked_by_priority_and_count_what_they_decide() {
    let mut set = PolicySet::new(2);
    let drop = set.add(Rule::new(Action::Drop)).expect("a good rule");
    let log = set.add(Rule { priority: 10, ..Rule::new(Action::Log) }).expect("a good rule");
    let accept = set.add(Rule { priority: 20, protocol: Some(UDP), ..Rule::new(Action::Accept) });
    let accept = accept.expect("a good rule");
    let policy = set.compile(&numbers());
    let decision = policy.decide(&some_flow(0, 1), 1, 100);
    assert_eq!(decision, Decision { verdict: Verdict::Drop, by: By::Rule(drop), log: Some(log) });
    let order: Vec<_> = set.iter().map(|(id, _, hits)| (id, hits.packets, hits.bytes)).collect();
    assert_eq!(order, [(log, 1, 100), (accept, 0, 0), (drop, 1, 100)]);
    // The counters of a rule outlive a new snapshot.
    set.remove(accept).expect("is there");
    assert!(set.remove(accept).is_err());
    set.compile(&numbers()).decide(&some_flow(0, 1), 0, 100);
    assert_eq!(set.iter().map(|(_, _, hits)| hits.packets).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn nonsense_is_refused() {
    let rule = || Rule::new(Action::Drop);
    let nets = |text: &str| Addresses {
        within: text.split(' ').map(|net| net.parse().expect("a prefix")).collect(),
        except: Vec::new(),
    };
    let ports = vec![PortRange { first: 1, last: 2 }];
    let nonsense = [
        (Rule { source: nets("10.0.0.0/8"), destination: nets("fd00::/8"), ..rule() }, "family"),
        (Rule { destination_ports: ports.clone(), ..rule() }, "needs the protocol"),
        (Rule { protocol: Some(ICMP), source_ports: ports, ..rule() }, "needs the protocol"),
        (Rule { icmp_type: Some(8), ..rule() }, "needs the protocol icmp"),
        (Rule { icmp_type: Some(3), protocol: Some(ICMP), ..rule() }, "no request"),
        (Rule { states: States::from_iter([State::Established]), ..rule() }, "decides nothing"),
        (Rule { states: States::from_iter([]), ..rule() }, "no state"),
        (Rule { from: Side { zone: Zone::Any, negated: true }, ..rule() }, "nothing"),
        (
            Rule {
                source: Addresses { within: nets("10.1.0.0/16").within, except: nets("10.0.0.0/8").within },
                ..rule()
            },
            "excepted",
        ),
        (
            Rule { protocol: Some(TCP), source_ports: vec![PortRange { first: 2, last: 1 }], ..rule() },
            "above",
        ),
    ];
    for (rule, word) in nonsense {
        let refusal = PolicySet::new(1).add(rule.clone()).expect_err(word).to_string();
        assert!(refusal.contains(word), "{refusal:?} does not say {word:?}");
    }
}

#[test]
fn there_is_an_end_to_prefixes() {
    let mut set = PolicySet::new(1);
    let prefix = |n: u32| IpNet::from(IpAddr::from((10 << 24 | n).to_be_bytes()));
    let large = |from: u32| {
        let within = (from..from + 1024).map(prefix).collect();
        Rule { source: Addresses { within, except: Vec::new() }, ..Rule::new(Action::Drop) }
    };
    let refused =
        (0..129).find_map(|n| set.add(large(n * 1024)).err().map(|refusal| (n, refusal.to_string())));
    let (n, refusal) = refused.expect("an end");
    assert!(n == 128 && refusal.contains("131072"), "{n}: {refusal}");
    set.remove(1).expect("is there");
    set.add(large(0)).expect("room again");
    set.clear();
    set.add(large(0)).expect("room");
}

#[test]
fn what_a_rule_names_is_found_again() {
    let mut set = PolicySet::new(1);
    let zone = Zone::Bridge(name('b', 1));
    let id = set.add(Rule { to: zone.into(), ..Rule::new(Action::Drop) }).expect("a good rule");
    assert_eq!(set.naming(zone).map(|(id, _)| id), Some(id));
    assert!(set.naming(Zone::Bridge(name('b', 0))).is_none());
}

#[test]
fn a_snapshot_is_made_when_something_has_changed() {
    let mut set = PolicySet::new(1);
    set.add(Rule { to: Zone::Port(name('p', 1)).into(), ..Rule::new(Action::Drop) }).expect("a good rule");
    let first = set.snapshot(&numbers());
    let mut others = numbers();
    others.ports.insert(name('p', 9), 9);
    assert!(Arc::ptr_eq(&first, &set.snapshot(&others)), "a port that no rule names");
    others.ports.insert(name('p', 1), 5);
    let moved = set.snapshot(&others);
    let mut flow = some_flow(0, 1);
    flow.to.port = 5;
    assert_eq!(first.decide(&flow, 0, 60).verdict, Verdict::Accept);
    assert_eq!(moved.decide(&flow, 0, 60).verdict, Verdict::Drop);
    set.set_default_forward(Verdict::Reject);
    assert_eq!(set.snapshot(&others).decide(&some_flow(0, 1), 0, 60).verdict, Verdict::Reject);
    set.clear();
    assert_eq!(set.snapshot(&others).decide(&flow, 0, 60).by, By::Default);
}

/// A policy as of a cluster: most rules let a few clients reach one server on one port, some are about networks.
fn cluster(rules: u32) -> PolicySet {
    let mut set = PolicySet::new(1);
    let host = |n: u32| IpNet::from(IpAddr::from((10 << 24 | n).to_be_bytes()));
    for n in 0..rules {
        let mut rule = Rule { protocol: Some(TCP), ..Rule::new(Action::Accept) };
        rule.destination.within = vec![host(n * 7 % 65_536)];
        rule.destination_ports = vec![PortRange::single((n % 50 + 1000) as u16)];
        rule.source.within = match n % 10 {
            0 => vec!["10.0.0.0/8".parse().expect("a prefix")],
            1 => Vec::new(),
            _ => (0..4).map(|m| host(n * 13 + m)).collect(),
        };
        set.add(rule).expect("a good rule");
    }
    set.set_default_forward(Verdict::Drop);
    set
}

#[test]
#[ignore = "a measurement: make costs"]
fn cost_of_a_decision() {
    for rules in [10, 100, 1000, 5000, 16_000] {
        let set = cluster(rules);
        let start = Instant::now();
        let policy = set.compile(&numbers());
        let compiled = start.elapsed();
        let mut random = 1_u64;
        let flows: Vec<NewFlow> = (0..4096)
            .map(|_| {
                random = crate::rules::hash::mix(random, 1);
                let mut flow = some_flow(0, 1);
                let server = (random >> 8) as u32 % rules;
                flow.tuple.destination = IpAddr::from(((10 << 24) | (server * 7 % 65_536)).to_be_bytes());
                flow.tuple.destination_port = (server % 50 + 1000) as u16 + u16::from(random & 7 == 0);
                flow.tuple.source =
                    IpAddr::from(((10 << 24) | (server * 13 + (random >> 40) as u32 % 5)).to_be_bytes());
                flow
            })
            .collect();
        let mut accepted = 0;
        let cycles = crate::rules::best_of(100, || {
            for flow in &flows {
                accepted += u64::from(policy.decide(flow, 0, 60).verdict == Verdict::Accept);
            }
        }) / 4096;
        let (mut set, start) = (set, Instant::now());
        let one_by_one = 200_u32;
        for n in 0..one_by_one {
            let mut rule = Rule::new(Action::Drop);
            rule.source.within = vec![IpNet::from(IpAddr::from((11 << 24 | n).to_be_bytes()))];
            set.add(rule).expect("a good rule");
            let _ = set.snapshot(&numbers());
        }
        println!("{rules} rules: one more in {:?}", start.elapsed() / one_by_one);
        println!(
            "{rules} rules: {cycles} cycles a decision ({}% accepted), compiled in {compiled:?}, {} KiB",
            accepted * 100 / 409_600,
            policy.layers.bytes() >> 10
        );
    }
}
