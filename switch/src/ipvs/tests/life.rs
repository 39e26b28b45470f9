//! What becomes of services and servers that are changed, deleted and added again, and what is refused.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::super::Ipvs;
use super::super::account::Totals;
use super::super::destination::{Counted, Destination};
use super::super::draft::Change;
use super::super::error::Error;
use super::super::scope::{Live, Scope};
use super::super::settings::{Setting, Timeouts};
use super::super::spec::{
    DestinationSpec, Forward, Persistence, Protocol, Scheduler, ServiceKey, ServiceSpec, Tunnel,
    TunnelChecksum,
};
use super::super::table::Asked;
use super::{address, flow, key, server, service};

/// A scope with the service of port 80 and the servers 1 and 2.
fn two(scheduler: Scheduler) -> Ipvs {
    let ipvs = Ipvs::default();
    ipvs.global()
        .apply([
            Change::AddService(service(key(80), scheduler)),
            Change::AddDestination(key(80), server(1, 1)),
            Change::AddDestination(key(80), server(2, 1)),
        ])
        .expect("possible");
    ipvs
}

fn get(scope: &Scope, number: u32) -> Arc<Destination> {
    let service = scope.table.get(&key(80)).expect("the service");
    let view = service.view();
    let found = view.destinations.iter().find(|server| server.address() == address(number));
    Arc::clone(found.expect("the server"))
}

fn connect(scope: &Scope) -> Option<Arc<Destination>> {
    let server = scope.table.get(&key(80)).expect("the service").schedule(&flow(1), 0)?;
    assert!(server.bind(Counted::Active));
    server.stats.connection();
    Some(server)
}

#[test]
fn a_deleted_server_keeps_its_connections_and_comes_back_with_them() {
    let ipvs = two(Scheduler::Lc);
    let scope = ipvs.global();
    let first = get(scope, 1);
    for _ in 0..3 {
        assert!(first.bind(Counted::Active));
        first.stats.connection();
    }
    scope.delete_destination(key(80), address(1), 80).expect("deleted");
    assert!(!first.is_available());
    assert_eq!(ipvs.destination(first.id()).as_ref().map(|server| server.id()), Some(first.id()));
    for _ in 0..5 {
        assert_eq!(connect(scope).expect("the other one").address(), address(2));
    }
    scope.add_destination(key(80), server(1, 1)).expect("added");
    assert!(Arc::ptr_eq(&first, &get(scope, 1)) && first.is_available());
    assert_eq!((first.active(), first.stats.totals(Totals::default()).connections), (3, 3));
    assert_eq!(connect(scope).expect("the less loaded one").address(), address(1));
    // With another service of the same key it comes back, too, but its counters begin anew.
    scope.delete_service(key(80)).expect("deleted");
    scope.add_service(service(key(80), Scheduler::Lc)).expect("added");
    scope.add_destination(key(80), server(1, 1)).expect("added");
    assert!(Arc::ptr_eq(&first, &get(scope, 1)));
    assert_eq!((first.active(), first.stats.totals(Totals::default()).connections), (4, 0));
}

#[test]
fn a_deleted_server_is_forgotten_two_minutes_after_its_last_connection() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let server = get(scope, 1);
    assert!(server.bind(Counted::Template));
    server.stats.connection();
    scope.delete_destination(key(80), address(1), 80).expect("deleted");
    for now in [1000, 2000, 3000] {
        ipvs.tick(now);
    }
    assert!(ipvs.destination(server.id()).is_some(), "a template has it");
    server.unbind(Counted::Template);
    ipvs.tick(4000);
    ipvs.tick(4060);
    assert!(ipvs.destination(server.id()).is_some(), "not two minutes yet");
    ipvs.tick(4120);
    assert!(ipvs.destination(server.id()).is_none() && scope.deleted().is_empty());
    assert!(!server.bind(Counted::Active), "nobody may begin a connection any more");
    assert_eq!(server.active(), 0);
    // One that never had a connection is forgotten at once.
    let unused = get(scope, 2).id();
    scope.flush();
    assert!(ipvs.destination(unused).is_none());
}

#[test]
fn thresholds_close_and_open_a_server() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let limit = |upper, lower| DestinationSpec { upper, lower, ..server(1, 1) };
    scope.edit_destination(key(80), limit(4, 0)).expect("edited");
    let server = get(scope, 1);
    for at in 0..4 {
        assert!(!server.is_overloaded(), "after {at}");
        assert!(server.bind(Counted::Active));
    }
    assert!(server.is_overloaded());
    // The same threshold again changes nothing; a larger one opens it.
    scope.edit_destination(key(80), limit(4, 0)).expect("edited");
    assert!(server.is_overloaded());
    scope.edit_destination(key(80), limit(5, 2)).expect("edited");
    assert!(!server.is_overloaded());
    assert!(server.bind(Counted::Inactive));
    assert!(server.is_overloaded());
    for _ in 0..3 {
        server.unbind(Counted::Active);
        assert!(server.is_overloaded());
    }
    server.unbind(Counted::Active);
    assert!(!server.is_overloaded(), "below the lower threshold");
    // Deleted and added again, it is as closed as before, unless its threshold is larger now.
    for _ in 0..4 {
        assert!(!server.is_overloaded() && server.bind(Counted::Active));
    }
    assert!(server.is_overloaded());
    for (upper, closed) in [(5, true), (4, true), (6, false)] {
        scope.delete_destination(key(80), address(1), 80).expect("deleted");
        scope.add_destination(key(80), limit(upper, 0)).expect("added");
        assert_eq!(get(scope, 1).is_overloaded(), closed, "{upper}");
    }
    (0..4).for_each(|_| server.unbind(Counted::Active));
    // Three quarters of the upper one if there is no lower one.
    scope.edit_destination(key(80), limit(4, 0)).expect("edited");
    for _ in 0..3 {
        assert!(server.bind(Counted::Active));
    }
    assert!(server.is_overloaded());
    server.unbind(Counted::Active);
    assert!(server.is_overloaded());
    server.unbind(Counted::Active);
    assert!(!server.is_overloaded());
}

#[test]
fn what_linux_refuses_is_refused() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let none = key(81);
    assert_eq!(scope.add_service(service(key(80), Scheduler::Rr)), Err(Error::ServiceExists(key(80))));
    assert_eq!(scope.edit_service(service(none, Scheduler::Rr)), Err(Error::NoSuchService(none)));
    assert_eq!(scope.delete_service(none), Err(Error::NoSuchService(none)));
    assert_eq!(scope.add_destination(none, server(1, 1)), Err(Error::NoSuchService(none)));
    let double = Error::DestinationExists(key(80), address(1), 80);
    assert_eq!(scope.add_destination(key(80), server(1, 5)), Err(double.clone()));
    let unknown = Error::NoSuchDestination(key(80), address(9), 80);
    assert_eq!(scope.edit_destination(key(80), server(9, 1)), Err(unknown.clone()));
    assert_eq!(scope.delete_destination(key(80), address(9), 80), Err(unknown));
    assert_eq!(scope.zero(Some(&none), &Live::new()), Err(Error::NoSuchService(none)));
    let range = |spec| matches!(scope.add_destination(key(80), spec), Err(Error::Range { .. }));
    assert!(range(server(3, -1)));
    assert!(range(DestinationSpec { upper: 100, lower: 200, ..server(3, 1) }));
    let invalid = |spec| matches!(scope.add_destination(key(80), spec), Err(Error::Invalid { .. }));
    let gue = Tunnel::Gue { port: 0, checksum: TunnelChecksum::None };
    assert!(invalid(DestinationSpec { forward: Forward::Tunnel(gue), ..server(3, 1) }));
    for wrong in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "2001:db8::1"] {
        assert!(invalid(DestinationSpec { address: wrong.parse().expect("an address"), ..server(3, 1) }));
    }
    // A tunnel may lead over the other family.
    let across = DestinationSpec {
        address: "2001:db8::1".parse().expect("an address"),
        forward: Forward::Tunnel(Tunnel::Ipip),
        ..server(3, 1)
    };
    scope.add_destination(key(80), across).expect("possible");
    assert_eq!(double.to_string(), "service tcp 10.9.9.9:80 has the server 10.0.2.1:80 already");
    let persistence = Some(Persistence { timeout: 1, mask: Ipv6Addr::UNSPECIFIED.into(), sip: false });
    let mark = ServiceKey::Mark { mark: 1, v6: true };
    let masked = ServiceSpec { persistence, ..service(mark, Scheduler::Rr) };
    assert!(matches!(scope.add_service(masked), Err(Error::Invalid { .. })));
    let zero = service(ServiceKey::Mark { mark: 0, v6: false }, Scheduler::Rr);
    assert!(matches!(scope.add_service(zero), Err(Error::Invalid { .. })));
}

#[test]
fn a_transaction_may_delete_and_add_the_same_things() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let before = get(scope, 1);
    before.stats.connection();
    scope
        .apply([
            Change::DeleteDestination(key(80), address(1), 80),
            Change::AddDestination(key(80), server(3, 1)),
            Change::AddDestination(key(80), server(1, 4)),
            Change::SetTimeouts(Timeouts { tcp: 10, tcp_fin: 0, udp: 0 }),
            Change::SetTimeouts(Timeouts { tcp: 0, tcp_fin: 20, udp: 0 }),
        ])
        .expect("possible");
    assert!(Arc::ptr_eq(&before, &get(scope, 1)));
    assert_eq!((before.weight(), scope.rules()), (4, 4));
    assert_eq!(scope.settings().timeouts(), Timeouts { tcp: 10, tcp_fin: 20, udp: 300 });
    let order = |scope: &Scope| {
        let listing = scope.service(&key(80), &Live::new()).expect("there");
        listing.destinations.iter().map(|server| server.spec.address).collect::<Vec<_>>()
    };
    assert_eq!(order(scope), [1, 3, 2].map(address));
    scope
        .apply([
            Change::Flush,
            Change::AddService(service(key(80), Scheduler::Lc)),
            Change::AddDestination(key(80), server(2, 1)),
            Change::DeleteService(key(80)),
            Change::AddService(service(key(80), Scheduler::Wlc)),
            Change::AddDestination(key(80), server(5, 1)),
        ])
        .expect("possible");
    assert_eq!((order(scope), scope.rules()), (vec![address(5)], 2));
    let failed = scope.apply([Change::Flush, Change::EditService(service(key(80), Scheduler::Rr))]);
    assert_eq!(failed.expect_err("flushed").error, Error::NoSuchService(key(80)));
    assert_eq!(scope.rules(), 2);
}

#[test]
fn an_edit_of_a_service_keeps_its_servers_and_where_its_scheduler_was() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    assert_eq!(connect(scope).expect("one").address(), address(2));
    let persistence = Some(Persistence { timeout: 9, mask: Ipv4Addr::BROADCAST.into(), sip: false });
    scope.edit_service(ServiceSpec { persistence, ..service(key(80), Scheduler::Rr) }).expect("edited");
    assert_eq!(connect(scope).expect("one").address(), address(1));
    assert_eq!(scope.table.get(&key(80)).expect("there").view().spec.persistence, persistence);
    // No scheduler, no choice.
    scope.edit_service(ServiceSpec { scheduler: None, ..service(key(80), Scheduler::Rr) }).expect("edited");
    assert!(connect(scope).is_none());
    scope.edit_service(service(key(80), Scheduler::Rr)).expect("edited");
    assert_eq!(connect(scope).expect("begins anew").address(), address(2));
}

#[test]
fn how_packets_get_to_a_server_may_change() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let (first, last) = (address(200), address(210));
    for forward in [
        Forward::Route,
        Forward::Tunnel(Tunnel::Ipip),
        Forward::Tunnel(Tunnel::Gue { port: 6080, checksum: TunnelChecksum::Remote }),
        Forward::Tunnel(Tunnel::Gre { checksum: TunnelChecksum::Full }),
        Forward::FullNat { first, last },
        Forward::Masquerade,
    ] {
        let wanted = DestinationSpec { forward: forward.clone(), ..server(1, 3) };
        scope.edit_destination(key(80), wanted.clone()).expect("edited");
        assert_eq!(get(scope, 1).forward(), forward);
        assert_eq!(get(scope, 1).spec(), wanted);
    }
    let backwards = Forward::FullNat { first: last, last: first };
    let wrong = scope.edit_destination(key(80), DestinationSpec { forward: backwards, ..server(1, 1) });
    assert!(matches!(wrong, Err(Error::Invalid { .. })));
}

#[test]
fn counters_are_zeroed_with_what_connections_have_not_added_yet() {
    let ipvs = two(Scheduler::Rr);
    let scope = ipvs.global();
    let server = get(scope, 1);
    let some = |n: u64| Totals {
        connections: 0,
        in_packets: n,
        out_packets: 2 * n,
        in_bytes: 3 * n,
        out_bytes: 4 * n,
    };
    server.stats.add(some(10));
    server.account().stats.add(some(10));
    let live = |n| Live::from([(server.id(), some(n))]);
    let sums = |live: &Live| {
        let listing = scope.service(&key(80), live).expect("there");
        let of_it = listing.destinations.iter().find(|there| there.id == server.id()).expect("there");
        (listing.totals, of_it.totals)
    };
    assert_eq!(sums(&live(5)), (some(15), some(15)));
    scope.zero(None, &live(5)).expect("zeroed");
    assert_eq!(sums(&live(5)), (some(0), some(0)));
    assert_eq!(sums(&live(7)), (some(2), some(2)));
    // The connection ends: it adds what it had counted.
    server.stats.add(some(8));
    server.account().stats.add(some(8));
    assert_eq!(sums(&Live::new()), (some(3), some(3)));
}

#[test]
fn a_containers_services_come_first_and_are_its_own() {
    let ipvs = two(Scheduler::Rr);
    let container = ipvs.ensure_container("c1");
    assert!(Arc::ptr_eq(&container, &ipvs.ensure_container("c1")));
    ipvs.attach(5, Some(&container));
    let find = |port| {
        let asked =
            Asked { protocol: Protocol::Tcp, address: Ipv4Addr::new(10, 9, 9, 9).into(), port: 80, mark: 0 };
        ipvs.find(port, &asked).map(|service| service.view().destinations.len())
    };
    assert_eq!((find(5), find(4)), (Some(2), Some(2)));
    container.add_service(service(key(80), Scheduler::Rr)).expect("added");
    assert_eq!((find(5), find(4)), (Some(0), Some(2)));
    container.settings().set(Setting::ConnReuseMode, 0);
    assert_eq!(ipvs.global().settings().get(Setting::ConnReuseMode), 1);
    assert!(Arc::ptr_eq(&ipvs.scope_of(5), &container) && ipvs.scope_of(4).name().is_none());
    assert_eq!(ipvs.container_names(), ["c1"]);
    container.add_destination(key(80), server(7, 1)).expect("added");
    let last = get(&container, 7);
    assert!(last.bind(Counted::Active));
    ipvs.remove_container("c1");
    assert_eq!((find(5), ipvs.container_names().len()), (Some(2), 0));
    // Its last server is forgotten like any other one.
    ipvs.tick(100);
    assert!(ipvs.destination(last.id()).is_some());
    last.unbind(Counted::Active);
    (2..5).for_each(|minutes| ipvs.tick(100 * minutes));
    assert!(ipvs.destination(last.id()).is_none());
    ipvs.global().flush();
    assert!(ipvs.is_idle());
}

#[test]
fn services_of_both_families_and_all_protocols_are_told_apart() {
    let ipvs = Ipvs::default();
    let addresses: [IpAddr; 2] = [Ipv4Addr::new(10, 9, 9, 9).into(), Ipv6Addr::LOCALHOST.into()];
    let mut keys = Vec::new();
    for address in addresses {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            keys.push(ServiceKey::Address { protocol, address, port: 53 });
        }
        keys.push(ServiceKey::Mark { mark: 53, v6: address.is_ipv6() });
    }
    for key in &keys {
        ipvs.global().add_service(service(*key, Scheduler::Rr)).expect("added");
    }
    for key in &keys {
        let (address, asked) = match *key {
            ServiceKey::Address { protocol, address, port } => {
                (address, Asked { protocol, address, port, mark: 0 })
            }
            ServiceKey::Mark { mark, v6 } => {
                let address = addresses[usize::from(v6)];
                (address, Asked { protocol: Protocol::Udp, address, port: 9, mark })
            }
        };
        assert_eq!(ipvs.find(0, &asked).map(|service| service.key()), Some(*key), "{address}");
    }
}
