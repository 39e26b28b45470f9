//! The routing table as a whole: what is asked of it, and what the forwarding table does then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::Path;
use super::rib::{Kind, Loaded, Protocol, Rib, Route, Terms, Which};
use super::view::Standing;
use crate::l3::interface::Address;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn via(prefix: &str, gateway: &str, metric: u32) -> Route {
    Route { gateway: Some(ip(gateway)), metric, ..Route::to(net(prefix)) }
}

/// Interfaces lan (1: 10.0.3.1/24, fd00:3::1/64) and wan (2: 192.0.2.2/24), both up.
fn rib() -> Rib {
    let mut rib = Rib::new();
    rib.add_interface(1, "lan".parse().unwrap(), true).unwrap();
    rib.add_interface(2, "wan".parse().unwrap(), true).unwrap();
    rib.add_address(1, net("10.0.3.1/24")).unwrap();
    rib.add_address(1, net("fd00:3::1/64")).unwrap();
    rib.add_address(2, net("192.0.2.2/24")).unwrap();
    rib
}

fn path(rib: &Rib, address: &str) -> Path {
    path_at(rib, ip(address), 0)
}

fn path_at(rib: &Rib, address: IpAddr, hash: u32) -> Path {
    let fib = rib.fib();
    let set = match address {
        IpAddr::V4(v4) => fib.lookup_v4(v4.to_bits()),
        IpAddr::V6(v6) => fib.lookup_v6(v6.to_bits()),
    };
    fib.path(fib.choose(set, || hash))
}

fn gateway(interface: u16, text: &str) -> Path {
    Path::Via { interface, gateway: Address::from(ip(text)) }
}

/// The refusal of an attempt, which must have changed nothing.
fn refused(rib: &mut Rib, route: Route) -> String {
    let (before, generation) = (rib.list(&Which::default()), rib.fib().generation());
    let refusal = rib.add(route, Terms::New).unwrap_err().to_string();
    assert_eq!(rib.list(&Which::default()), before);
    assert_eq!(rib.fib().generation(), generation);
    refusal
}

#[test]
fn an_address_brings_its_network_itself_and_the_broadcast_address() {
    let mut rib = rib();
    assert_eq!(path(&rib, "10.0.3.7"), Path::Connected { interface: 1 });
    assert_eq!(path(&rib, "10.0.3.1"), Path::Local { interface: 1 });
    assert_eq!(path(&rib, "10.0.3.255"), Path::Broadcast { interface: 1 });
    assert_eq!(path(&rib, "10.0.4.1"), Path::NoRoute);
    assert_eq!(path(&rib, "fd00:3::1"), Path::Local { interface: 1 });
    assert_eq!(path(&rib, "fd00:3::2"), Path::Connected { interface: 1 });
    assert_eq!(path(&rib, "fd00:4::2"), Path::NoRoute);
    let shown: Vec<_> =
        rib.list(&Which::default()).iter().map(|listed| rib.describe(&listed.route)).collect();
    assert_eq!(
        shown,
        [
            "10.0.3.0/24 dev lan proto kernel scope link src 10.0.3.1",
            "local 10.0.3.1 dev lan proto kernel scope host src 10.0.3.1",
            "broadcast 10.0.3.255 dev lan proto kernel scope link src 10.0.3.1",
            "192.0.2.0/24 dev wan proto kernel scope link src 192.0.2.2",
            "local 192.0.2.2 dev wan proto kernel scope host src 192.0.2.2",
            "broadcast 192.0.2.255 dev wan proto kernel scope link src 192.0.2.2",
            "fd00:3::/64 dev lan proto kernel scope link src fd00:3::1",
            "local fd00:3::1 dev lan proto kernel scope host src fd00:3::1",
        ]
    );
    // A second address of the network shares what is common, and leaves it when it goes.
    rib.add_address(1, net("10.0.3.9/24")).unwrap();
    rib.del_address(1, net("10.0.3.1/24")).unwrap();
    assert_eq!(path(&rib, "10.0.3.1"), Path::Connected { interface: 1 });
    assert_eq!(path(&rib, "10.0.3.9"), Path::Local { interface: 1 });
    rib.del_address(1, net("10.0.3.9/24")).unwrap();
    assert_eq!(path(&rib, "10.0.3.9"), Path::NoRoute);
    assert_eq!(rib.list(&Which::default()).len(), 5);
}

#[test]
fn link_local_addresses_are_no_concern_of_the_table() {
    let mut rib = rib();
    rib.add_address(1, net("fe80::1/64")).unwrap();
    rib.add_address(2, net("fe80::1/64")).unwrap();
    assert_eq!(path(&rib, "fe80::1"), Path::NoRoute);
    let route = Route { interface: Some(2), ..via("2001:db8::/32", "fe80::7", 0) };
    rib.add(route, Terms::New).unwrap();
    assert_eq!(path(&rib, "2001:db8::1"), gateway(2, "fe80::7"));
    assert_eq!(
        refused(&mut rib, via("2001:db9::/32", "fe80::7", 0)),
        "gateway fe80::7 is link-local: say on which interface (--dev)"
    );
    rib.del_address(1, net("fe80::1/64")).unwrap();
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    let mut rib = rib();
    let before = rib.list(&Which::default());
    for (index, address, why) in [
        (1, "10.0.3.1/24", "address 10.0.3.1 belongs to interface \"lan\" already"),
        (2, "10.0.3.1/32", "address 10.0.3.1 belongs to interface \"lan\" already"),
        (
            2,
            "10.0.0.1/16",
            "address 10.0.0.1/16 overlaps with 10.0.3.1/24 of interface \"lan\": networks of two interfaces must be apart",
        ),
        (
            2,
            "10.0.3.9/32",
            "address 10.0.3.9/32 overlaps with 10.0.3.1/24 of interface \"lan\": networks of two interfaces must be apart",
        ),
        (1, "10.0.5.0/24", "address 10.0.5.0/24 is the network itself: an interface needs an address in it"),
        (1, "10.0.5.255/24", "address 10.0.5.255/24 is the broadcast address of its network"),
        (1, "127.0.0.1/8", "address 127.0.0.1/8 is a loopback address"),
        (1, "224.0.0.1/24", "address 224.0.0.1/24 is a multicast address"),
        (1, "ff02::1/64", "address ff02::1/64 is a multicast address"),
        (1, "10.0.5.1/0", "address 10.0.5.1/0 needs the length of its network's prefix, 1 to 32"),
        (7, "10.0.5.1/24", "interface 7 does not exist: 'shuntctl interface list' shows those that do"),
    ] {
        assert_eq!(rib.add_address(index, net(address)).unwrap_err().as_str(), why);
    }
    assert_eq!(
        rib.del_address(2, net("10.0.3.1/24")).unwrap_err().as_str(),
        "interface \"wan\" has no address 10.0.3.1/24: 192.0.2.2/24"
    );
    assert_eq!(rib.list(&Which::default()), before);
    // Networks of two hosts have neither network nor broadcast address; one more of an own network is welcome.
    rib.add_address(2, net("10.9.0.0/31")).unwrap();
    rib.add_address(1, net("10.0.3.100/32")).unwrap();
    assert_eq!(path(&rib, "10.9.0.1"), Path::Connected { interface: 2 });
    assert_eq!(path(&rib, "10.0.3.100"), Path::Local { interface: 1 });
}

#[test]
fn routes_that_lead_nowhere_are_refused() {
    let mut rib = rib();
    assert_eq!(
        refused(&mut rib, via("10.1.0.0/16", "10.9.9.9", 0)),
        "gateway 10.9.9.9 is on no network of any interface: add an address of its network first, or name its interface with --dev and --onlink"
    );
    assert_eq!(
        refused(&mut rib, Route { interface: Some(2), ..via("10.1.0.0/16", "10.0.3.2", 0) }),
        "gateway 10.0.3.2 is on no network of interface \"wan\" (192.0.2.2/24): add an address of its network first, or say --onlink"
    );
    assert_eq!(
        refused(&mut rib, via("10.1.0.0/16", "10.0.3.1", 0)),
        "gateway 10.0.3.1 is the switch's own address, of interface \"lan\""
    );
    assert_eq!(
        refused(&mut rib, via("10.1.0.0/16", "10.0.3.255", 0)),
        "gateway 10.0.3.255/24 is the broadcast address of its network"
    );
    assert_eq!(
        refused(&mut rib, via("10.1.0.0/16", "fd00:3::2", 0)),
        "gateway fd00:3::2 is of another family than 10.1.0.0/16"
    );
    assert_eq!(
        refused(&mut rib, Route::to(net("10.1.0.0/16"))),
        "route to 10.1.0.0/16 needs a gateway (--via), an interface (--dev), or both"
    );
    assert_eq!(
        refused(&mut rib, via("224.0.0.0/4", "10.0.3.2", 0)),
        "route to 224.0.0.0/4: multicast is not routed"
    );
    assert_eq!(
        refused(&mut rib, Route { kind: Kind::Blackhole, ..via("10.1.0.0/16", "10.0.3.2", 0) }),
        "a blackhole route leads nowhere: it has neither gateway nor interface"
    );
    assert_eq!(
        refused(&mut rib, via("10.0.3.0/24", "192.0.2.1", 0)),
        "route 10.0.3.0/24 dev lan proto kernel scope link src 10.0.3.1 has metric 0 already: choose another metric"
    );
    rib.add(via("10.1.0.0/16", "10.0.3.2", 5), Terms::New).unwrap();
    assert_eq!(
        refused(&mut rib, via("10.1.7.7/16", "10.0.3.2", 5)),
        "route 10.1.0.0/16 via 10.0.3.2 dev lan proto static metric 5 exists already"
    );
    // What is on nobody's network may still be on the link, if the operator says so.
    let onlink = Route { interface: Some(2), onlink: true, ..via("0.0.0.0/0", "203.0.113.1", 0) };
    rib.add(onlink, Terms::New).unwrap();
    assert_eq!(path(&rib, "8.8.8.8"), gateway(2, "203.0.113.1"));
}

#[test]
fn the_lowest_metric_that_is_up_is_used() {
    let mut rib = rib();
    rib.add(via("0.0.0.0/0", "192.0.2.1", 10), Terms::New).unwrap();
    rib.add(via("0.0.0.0/0", "10.0.3.2", 20), Terms::New).unwrap();
    assert_eq!(path(&rib, "8.8.8.8"), gateway(2, "192.0.2.1"));
    let generation = rib.fib().generation();
    rib.interface_state(2, false).unwrap();
    assert_ne!(rib.fib().generation(), generation);
    assert_eq!(path(&rib, "8.8.8.8"), gateway(1, "10.0.3.2"));
    assert_eq!(path(&rib, "192.0.2.9"), gateway(1, "10.0.3.2"), "its network is elsewhere, if anywhere");
    assert_eq!(path(&rib, "192.0.2.2"), Path::Local { interface: 2 }, "own addresses stay");
    let standing: Vec<_> = rib.get(ip("8.8.8.8")).routes.iter().map(|listed| listed.standing).collect();
    assert_eq!(standing, [Standing::InterfaceDown, Standing::Active]);
    rib.interface_state(2, true).unwrap();
    assert_eq!(path(&rib, "8.8.8.8"), gateway(2, "192.0.2.1"));
    // A gateway without its network waits for it.
    rib.del_address(2, net("192.0.2.2/24")).unwrap();
    assert_eq!(path(&rib, "8.8.8.8"), gateway(1, "10.0.3.2"));
    let explained = rib.get(ip("8.8.8.8"));
    assert_eq!(explained.routes[0].standing, Standing::GatewayUnreachable);
    assert_eq!(explained.used().next().unwrap().source, Some(ip("10.0.3.1")));
    rib.add_address(2, net("192.0.2.3/24")).unwrap();
    assert_eq!(path(&rib, "8.8.8.8"), gateway(2, "192.0.2.1"));
    let gone = rib.del_interface(2).unwrap();
    assert_eq!(gone.len(), 1);
    assert_eq!(path(&rib, "8.8.8.8"), gateway(1, "10.0.3.2"));
    assert_eq!(path(&rib, "192.0.2.3"), gateway(1, "10.0.3.2"));
}

#[test]
fn packets_can_be_told_that_they_go_nowhere() {
    let mut rib = rib();
    for (prefix, kind, expected) in [
        ("10.1.0.0/16", Kind::Blackhole, Path::Blackhole),
        ("10.2.0.0/16", Kind::Unreachable, Path::Unreachable),
        ("fd01::/16", Kind::Prohibit, Path::Prohibit),
    ] {
        rib.add(Route { kind, ..Route::to(net(prefix)) }, Terms::New).unwrap();
        assert_eq!(path_at(&rib, net(prefix).broadcast(), 0), expected, "its last address");
    }
    // A longer prefix leads out of it.
    rib.add(via("10.1.2.0/24", "10.0.3.2", 0), Terms::New).unwrap();
    assert_eq!(path(&rib, "10.1.2.3"), gateway(1, "10.0.3.2"));
    let standing: Vec<_> = rib.get(ip("10.1.2.3")).routes.iter().map(|listed| listed.standing).collect();
    assert_eq!(standing, [Standing::Active, Standing::LessSpecific]);
    assert_eq!(rib.del(&Which { prefix: Some(net("10.1.0.0/16")), ..Which::default() }).unwrap().len(), 1);
    assert_eq!(path(&rib, "10.1.3.3"), Path::NoRoute);
}

#[test]
fn flows_share_routes_of_one_metric() {
    let mut rib = rib();
    for last in 2..6 {
        rib.add(via("10.1.0.0/16", &format!("10.0.3.{last}"), 7), Terms::New).unwrap();
    }
    rib.add(via("10.1.0.0/16", "192.0.2.1", 8), Terms::New).unwrap();
    let taken = |rib: &Rib| -> BTreeMap<Path, usize> {
        let mut taken = BTreeMap::new();
        for n in 0..4000u32 {
            *taken.entry(path_at(rib, ip("10.1.1.1"), n.wrapping_mul(2_654_435_761))).or_default() += 1;
        }
        taken
    };
    let four = taken(&rib);
    assert_eq!(four.len(), 4);
    assert!(four.values().all(|&flows| (800..1200).contains(&flows)), "{four:?}");
    let gone = rib.del(&Which {
        prefix: Some(net("10.1.0.0/16")),
        gateway: Some(ip("10.0.3.3")),
        ..Which::default()
    });
    assert_eq!(gone.unwrap().len(), 1);
    assert_eq!(taken(&rib).len(), 3);
    rib.interface_state(1, false).unwrap();
    assert_eq!(taken(&rib).into_keys().collect::<Vec<_>>(), [gateway(2, "192.0.2.1")]);
    // All that are left at once.
    assert_eq!(rib.del(&Which { prefix: Some(net("10.1.0.0/16")), ..Which::default() }).unwrap().len(), 4);
    for n in 0..16 {
        rib.add(via("10.2.0.0/16", &format!("10.0.3.{}", n + 2), 0), Terms::New).unwrap();
    }
    assert_eq!(
        refused(&mut rib, via("10.2.0.0/16", "10.0.3.99", 0)),
        "10.2.0.0/16 has 16 routes of metric 0 already, which is the limit"
    );
}

#[test]
fn what_cannot_be_deleted_is_told() {
    let mut rib = rib();
    let which = |prefix: &str| Which { prefix: Some(net(prefix)), ..Which::default() };
    assert_eq!(
        rib.del(&which("10.0.3.0/24")).unwrap_err().as_str(),
        "route 10.0.3.0/24 dev lan proto kernel scope link src 10.0.3.1 comes with an address and goes with it: 'shuntctl interface set IF --del-address' removes both"
    );
    assert_eq!(
        rib.del(&which("0.0.0.0/0")).unwrap_err().as_str(),
        "no route to default: 'shuntctl route list' shows all"
    );
    rib.add(via("0.0.0.0/0", "10.0.3.2", 3), Terms::New).unwrap();
    assert_eq!(
        rib.del(&Which { metric: Some(4), ..which("0.0.0.0/0") }).unwrap_err().as_str(),
        "no route to default has this gateway, interface, metric or kind: 'shuntctl route list' shows all"
    );
    assert_eq!(rib.del(&which("0.0.0.0/0")).unwrap().len(), 1);
}

#[test]
fn a_list_of_routes_is_loaded_whole_or_not_at_all() {
    let mut rib = rib();
    rib.add(via("10.7.0.0/16", "10.0.3.2", 0), Terms::New).unwrap();
    let before = rib.list(&Which::default());
    let many = |bad: bool| {
        let mut routes: Vec<Route> =
            (0..250).map(|n| via(&format!("10.{n}.0.0/16"), "10.0.3.3", 1 + n)).collect();
        routes.push(via("2001:db8::/32", if bad { "fd00:9::1" } else { "fd00:3::9" }, 0));
        routes.into_iter().map(Ok)
    };
    let (at, refusal) = rib.load(many(true), Terms::New, false).unwrap_err();
    assert_eq!(at, 250);
    assert!(refusal.as_str().starts_with("gateway fd00:9::1 is on no network"), "{refusal}");
    assert_eq!(rib.list(&Which::default()), before);
    assert_eq!(path(&rib, "10.8.0.1"), Path::NoRoute);
    assert_eq!(rib.load(many(false), Terms::New, false), Ok(Loaded { added: 251, removed: 0 }));
    assert_eq!(path(&rib, "10.8.0.1"), gateway(1, "10.0.3.3"));
    assert_eq!(path(&rib, "10.7.0.1"), gateway(1, "10.0.3.2"), "of the lower metric");
    let loaded = rib.list(&Which::default());
    // In the place of those that are there; what is refused leaves them.
    let twice = || ["10.7.0.0/16", "10.7.0.0/16"].map(|prefix| Ok(via(prefix, "10.0.3.4", 0)));
    let (at, refusal) = rib.load(twice(), Terms::New, true).unwrap_err();
    assert_eq!(
        (at, refusal.as_str()),
        (1, "route 10.7.0.0/16 via 10.0.3.4 dev lan proto static exists already")
    );
    let sorted = |mut list: Vec<super::view::Listed>| {
        list.sort_by_key(|listed| (listed.route.prefix, listed.route.metric));
        list
    };
    assert_eq!(sorted(rib.list(&Which::default())), sorted(loaded.clone()));
    assert_eq!(path(&rib, "10.8.0.1"), gateway(1, "10.0.3.3"));
    assert_eq!(
        rib.load(twice().into_iter().take(1), Terms::New, true),
        Ok(Loaded { added: 1, removed: 252 })
    );
    assert_eq!((path(&rib, "10.7.0.1"), path(&rib, "10.8.0.1")), (gateway(1, "10.0.3.4"), Path::NoRoute));
    assert_eq!((rib.gateways().count(), rib.count()), (1, 4));
    assert_eq!((rib.flush(Some(2)), rib.flush(None), rib.gateways().count()), (0, 1, 0));
    rib.load(
        loaded.iter().map(|listed| listed.route).filter(|route| route.protocol == Protocol::Static).map(Ok),
        Terms::New,
        false,
    )
    .unwrap();
    assert_eq!((rib.gateways().count(), rib.count()), (3, 255));
    assert_eq!(path(&rib, "2001:db8::1"), gateway(1, "fd00:3::9"));
    assert_eq!(rib.del_interface(1).unwrap().len(), 252);
    assert_eq!(path(&rib, "10.8.0.1"), Path::NoRoute);
    rib.del_interface(2).unwrap();
    assert!(rib.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize, u32, bool),
    Del(usize),
    State(u16, bool),
    Address(u16, usize, bool),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12usize, 0..6usize, 0..3u32, any::<bool>()).prop_map(|(p, g, m, b)| Step::Add(p, g, m, b)),
        2 => (0..12usize).prop_map(Step::Del),
        2 => (0..3u16, any::<bool>()).prop_map(|(i, up)| Step::State(i, up)),
        2 => (0..3u16, 0..4usize, any::<bool>()).prop_map(|(i, a, add)| Step::Address(i, a, add)),
        1 => Just(Step::Reclaim),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, workers are told what the explanation says, and that is the longest prefix's lowest metric.
    #[test]
    fn the_forwarding_table_does_what_the_explanation_says(steps in proptest::collection::vec(step(), 1..60)) {
        let prefixes = [
            "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.128/25", "10.0.1.0/24", "10.0.1.5/32",
            "::/0", "fd00::/16", "fd00:1::/32", "fd00:1::/64", "fd00:1::5/128",
        ];
        let gateways = ["10.0.0.9", "10.0.1.9", "10.0.2.9", "fd00::9", "fd00:1::9", "fd00:2::9"];
        let addresses = ["10.0.X.1/24", "10.0.X.2/24", "fd00:X::1/64", "10.0.X.5/32"];
        let asked = [
            "8.8.8.8", "10.200.0.1", "10.1.200.1", "10.1.1.1", "10.1.1.200", "10.0.0.1", "10.0.1.1", "10.0.1.2",
            "10.0.1.5", "10.0.1.9", "10.0.2.9", "10.0.1.255", "2001::1", "fd00::1", "fd00:1::1", "fd00:1::9",
            "fd00:1::5", "fd00:2::77",
        ];
        let mut rib = Rib::new();
        for index in 0..3 {
            rib.add_interface(index, format!("if{index}").parse().unwrap(), true).unwrap();
        }
        for step in steps {
            match step {
                Step::Add(prefix, gateway, metric, blackhole) => {
                    let plain = Route { metric, ..Route::to(net(prefixes[prefix])) };
                    let route = match blackhole {
                        true => Route { kind: Kind::Blackhole, ..plain },
                        false => Route { gateway: Some(ip(gateways[gateway])), ..plain },
                    };
                    let _ = rib.add(route, Terms::New);
                }
                Step::Del(prefix) => {
                    let _ = rib.del(&Which { prefix: Some(net(prefixes[prefix])), ..Which::default() });
                }
                Step::State(index, up) => rib.interface_state(index, up).unwrap(),
                Step::Address(index, address, add) => {
                    let address = net(&addresses[address].replace('X', &index.to_string()));
                    let _ = if add { rib.add_address(index, address) } else { rib.del_address(index, address) };
                }
                Step::Reclaim => rib.reclaim(),
            }
            for address in asked.map(ip) {
                let explained = rib.get(address);
                let used: BTreeSet<Path> = explained.used().map(|listed| as_path(&listed.route)).collect();
                let mut told: BTreeSet<Path> =
                    (0..64u32).map(|n| path_at(&rib, address, n << 26)).collect();
                told.remove(&Path::NoRoute);
                prop_assert_eq!(told, used, "{}", address);
                let Some(first) = explained.used().next() else { continue };
                // Nothing longer or cheaper could be used.
                for other in &explained.routes {
                    let (a, b) = (&first.route, &other.route);
                    let better = b.prefix.prefix_len() > a.prefix.prefix_len()
                        || (b.prefix == a.prefix && b.metric < a.metric);
                    let waits = matches!(
                        other.standing,
                        Standing::InterfaceDown | Standing::GatewayUnreachable
                    );
                    prop_assert!(!better || waits, "{:?} instead of {:?}", a, b);
                }
            }
        }
    }
}

fn as_path(route: &Route) -> Path {
    let interface = route.interface.unwrap_or_default();
    match (route.kind, route.gateway) {
        (Kind::Unicast, Some(gateway)) => Path::Via { interface, gateway: Address::from(gateway) },
        (Kind::Unicast, None) => Path::Connected { interface },
        (Kind::Local, _) => Path::Local { interface },
        (Kind::Broadcast, _) => Path::Broadcast { interface },
        (Kind::Blackhole, _) => Path::Blackhole,
        (Kind::Unreachable, _) => Path::Unreachable,
        (Kind::Prohibit, _) => Path::Prohibit,
    }
}
