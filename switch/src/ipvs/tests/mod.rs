//! Services as a whole: what is refused, what becomes of deleted servers, what transactions do.
#![forbid(unsafe_code)]

mod golden;
mod life;
mod scale;

use std::net::{IpAddr, Ipv4Addr};

use super::Ipvs;
use super::destination::Counted;
use super::draft::Change;
use super::error::Error;
use super::scope::{Live, Scope};
use super::service::Flow;
use super::spec::{
    DestinationSpec, Forward, Persistence, Protocol, Scheduler, SchedulerFlags, ServiceKey, ServiceSpec,
};
use super::table::Asked;

pub(super) fn key(port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: Ipv4Addr::new(10, 9, 9, 9).into(), port }
}

pub(super) fn service(key: ServiceKey, scheduler: Scheduler) -> ServiceSpec {
    ServiceSpec {
        key,
        scheduler: Some(scheduler),
        flags: SchedulerFlags::default(),
        persistence: None,
        one_packet: false,
    }
}

pub(super) fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits((10 << 24 | 2 << 8) + number).into()
}

pub(super) fn server(number: u32, weight: i32) -> DestinationSpec {
    let forward = Forward::Masquerade;
    DestinationSpec { address: address(number), port: 80, forward, weight, upper: 0, lower: 0 }
}

pub(super) fn flow(source: u32) -> Flow {
    Flow {
        source: Ipv4Addr::from_bits(source).into(),
        destination: Ipv4Addr::new(10, 9, 9, 9).into(),
        source_port: 40_000,
    }
}

/// The numbers of the servers that the next `n` connections get; each is counted.
fn next(scope: &Scope, port: u16, n: usize) -> Vec<Option<IpAddr>> {
    let service = scope.table.get(&key(port)).expect("the service");
    let one = |_| {
        let server = service.schedule(&flow(1), 0)?;
        assert!(server.bind(Counted::Inactive));
        server.activate();
        Some(server.address())
    };
    (0..n).map(one).collect()
}

#[test]
fn round_robin_begins_with_the_last_added_server_and_remembers_where_it_was() {
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    assert!(ipvs.is_idle());
    scope.add_service(service(key(80), Scheduler::Rr)).expect("added");
    assert!(!ipvs.is_idle());
    assert_eq!(next(scope, 80, 1), [None]);
    for number in 1..=3 {
        scope.add_destination(key(80), server(number, 1)).expect("added");
    }
    let at = |number| Some(address(number));
    assert_eq!(next(scope, 80, 4), [at(3), at(2), at(1), at(3)]);
    // The last chosen one goes: what came before it in the list is where it goes on from; here, the beginning.
    scope.delete_destination(key(80), address(3), 80).expect("deleted");
    assert_eq!(next(scope, 80, 2), [at(2), at(1)]);
    // One that is added comes first in the list: its turn is after the last one's.
    scope.add_destination(key(80), server(4, 1)).expect("added");
    assert_eq!(next(scope, 80, 3), [at(4), at(2), at(1)]);
    scope.delete_service(key(80)).expect("deleted");
    assert!(ipvs.is_idle());
}

#[test]
fn all_changes_of_a_transaction_are_made_or_none() {
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    let bad = [
        Change::AddService(service(key(80), Scheduler::Rr)),
        Change::AddDestination(key(80), server(1, 1)),
        Change::AddDestination(key(80), server(1, 2)),
    ];
    let failed = scope.apply(bad.clone()).expect_err("a double");
    assert_eq!(failed.index, 2);
    assert_eq!(failed.error, Error::DestinationExists(key(80), address(1), 80));
    assert_eq!((scope.rules(), scope.table.len()), (0, 0));
    scope.apply(bad.into_iter().take(2)).expect("possible");
    assert_eq!((scope.rules(), scope.table.len()), (2, 1));
    let listing = scope.service(&key(80), &Live::default()).expect("listed");
    assert_eq!(listing.destinations[0].spec, server(1, 1));
}

#[test]
fn services_are_found_in_the_order_of_linux() {
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    let persistence = Some(Persistence { timeout: 60, mask: Ipv4Addr::BROADCAST.into(), sip: false });
    let mark = ServiceKey::Mark { mark: 7, v6: false };
    for spec in [service(key(80), Scheduler::Rr), service(mark, Scheduler::Rr)] {
        scope.add_service(spec).expect("added");
    }
    let ask = |port, mark| {
        let ServiceKey::Address { protocol, address, .. } = key(0) else { unreachable!() };
        ipvs.find(3, &Asked { protocol, address, port, mark }).map(|service| service.key())
    };
    assert_eq!(ask(80, 7), Some(mark));
    assert_eq!(ask(80, 8), Some(key(80)));
    assert_eq!((ask(81, 0), ask(20, 0), ask(5000, 0)), (None, None, None));
    scope.add_service(ServiceSpec { persistence, ..service(key(21), Scheduler::Rr) }).expect("added");
    assert_eq!((ask(81, 0), ask(20, 0), ask(5000, 0)), (None, Some(key(21)), Some(key(21))));
    scope.add_service(ServiceSpec { persistence, ..service(key(0), Scheduler::Rr) }).expect("added");
    assert_eq!((ask(81, 0), ask(20, 0), ask(80, 0)), (Some(key(0)), Some(key(21)), Some(key(80))));
}
