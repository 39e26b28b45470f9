//! Many rules, many changes, and workers that schedule meanwhile. Times and memory are those of release builds; debug
//! builds run through the same with fewer rules.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::draft::Change;
use super::super::error::Error;
use super::super::scope::{Live, Replaced};
use super::super::spec::{DestinationSpec, Protocol, Scheduler, ServiceKey, ServiceSpec};
use super::super::table::Asked;
use super::super::{CONTAINER_RULES, GLOBAL_RULES, Ipvs};
use super::{Counted, flow, server, service};

fn nth(number: u32) -> ServiceKey {
    let address = Ipv4Addr::from_bits((10 << 24 | 100 << 16) + number / 16).into();
    ServiceKey::Address { protocol: Protocol::Tcp, address, port: 80 + (number % 16) as u16 }
}

/// Services with three servers each, as changes.
fn rules(scheduler: Scheduler, services: u32) -> Vec<Change> {
    let one = |number: u32| {
        let key = nth(number);
        let add = move |at: u32| Change::AddDestination(key, server(3 * (number % 1000) + at, 1));
        [Change::AddService(service(key, scheduler))].into_iter().chain((0..3).map(add))
    };
    (0..services).flat_map(one).collect()
}

/// The same, as a whole table.
fn table(services: std::ops::Range<u32>, weight: i32) -> Vec<(ServiceSpec, Vec<DestinationSpec>)> {
    let one = |number: u32| {
        let servers = (0..3).map(|at| server(3 * (number % 1000) + at, weight)).collect();
        (service(nth(number), Scheduler::Wlc), servers)
    };
    services.map(one).collect()
}

/// What this thread has spent of the processor's time: what else the machine does is left out.
fn spent() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds"))
}

/// Asserts of release builds.
fn within(what: &str, start: Duration, most: Duration) {
    let took = spent() - start;
    println!("{what}: {took:?}");
    assert!(cfg!(debug_assertions) || took <= most, "{what}: {took:?}, not {most:?}");
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("pages") * 4096
}

#[test]
fn a_containers_rules_are_applied_changed_and_listed_in_no_time() {
    for scheduler in [Scheduler::Rr, Scheduler::Wlc, Scheduler::Sh, Scheduler::Mh] {
        let ipvs = Ipvs::default();
        let scope = ipvs.ensure_container("c1");
        let changes = rules(scheduler, CONTAINER_RULES as u32 / 4);
        let start = spent();
        scope.apply(changes).expect("possible");
        within(&format!("20,000 rules of {scheduler:?} applied"), start, Duration::from_millis(100));
        assert_eq!((scope.rules(), scope.table.len()), (CONTAINER_RULES, CONTAINER_RULES / 4));
        let refused = scope.add_service(service(nth(1_000_000), scheduler)).expect_err("full");
        assert_eq!(refused, Error::Full { key: nth(1_000_000), server: None, limit: CONTAINER_RULES });
        assert_eq!(
            refused.to_string(),
            "service tcp 10.100.244.36:80: 20000 services and servers are the most that this table holds"
        );
        let start = spent();
        let listing = scope.services(&Live::default());
        within("20,000 rules listed", start, Duration::from_millis(50));
        assert_eq!(listing.iter().map(|service| 1 + service.destinations.len()).sum::<usize>(), 20_000);
        let start = spent();
        scope.flush();
        within("20,000 rules flushed", start, Duration::from_millis(100));
        assert!(ipvs.is_idle());
    }
}

#[test]
fn a_million_rules_fit_and_a_change_among_them_costs_what_it_does_among_few() {
    let services = if cfg!(debug_assertions) { 10_000 } else { GLOBAL_RULES as u32 / 4 };
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    let before = resident();
    let changes = rules(Scheduler::Wlc, services);
    let start = spent();
    scope.apply(changes).expect("possible");
    within("1,000,000 rules applied", start, Duration::from_secs(4));
    let grown = resident().saturating_sub(before);
    println!("{} MiB, {} bytes a rule", grown >> 20, grown / (4 * services as usize));
    assert!(cfg!(debug_assertions) || grown <= 1 << 30, "{grown} bytes");
    if !cfg!(debug_assertions) {
        let refused = scope.add_destination(nth(0), server(60_000, 1)).expect_err("full");
        assert!(matches!(refused, Error::Full { server: Some(_), limit: GLOBAL_RULES, .. }));
    }
    // An edit storm.
    let start = spent();
    for number in 0..1000 {
        let key = nth(number * (services / 1000));
        let first = 3 * (number * (services / 1000) % 1000);
        scope.edit_destination(key, server(first, 7)).expect("edited");
        scope.delete_destination(key, server(first + 1, 0).address, 80).expect("deleted");
        scope.add_destination(key, server(first + 1, 2)).expect("added");
        scope.delete_service(key).expect("deleted");
        scope.add_service(service(key, Scheduler::Rr)).expect("added");
    }
    within("5,000 single changes", start, Duration::from_millis(500));
    let lookups = 10_000;
    let start = spent();
    for number in 0..lookups {
        let ServiceKey::Address { protocol, address, port } = nth(number * 7 % services) else {
            unreachable!()
        };
        assert!(ipvs.find(0, &Asked { protocol, address, port, mark: 0 }).is_some());
    }
    println!("a look-up among them: {:?}", (spent() - start) / lookups);
    let start = spent();
    scope.flush();
    within("flushed", start, Duration::from_secs(2));
}

#[test]
fn replacing_a_table_touches_only_what_differs() {
    let services = if cfg!(debug_assertions) { 500 } else { 5000 };
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    let all = scope.replace(&table(0..services, 1)).expect("possible");
    assert_eq!(all, Replaced { added: 4 * services as usize, edited: 0, deleted: 0 });
    let kept = scope.table.get(&nth(7)).expect("there");
    let server_of_it = Arc::clone(&kept.view().destinations[0]);
    assert!(server_of_it.bind(Counted::Active));
    assert_eq!(scope.replace(&table(0..services, 1)).expect("possible"), Replaced::default());
    // One service goes, one comes, one gets another weight for its servers, one loses a server, one gains one.
    let mut wanted = table(1..services + 1, 1);
    wanted[1].1[0].weight = 5;
    wanted[2].1.pop();
    wanted[3].1.push(server(59_999, 1));
    wanted[4].0.scheduler = Some(Scheduler::Rr);
    let start = spent();
    let replaced = scope.replace(&wanted).expect("possible");
    within("20,000 rules compared", start, Duration::from_millis(100));
    assert_eq!(replaced, Replaced { added: 4 + 1, edited: 2, deleted: 4 + 1 });
    assert!(Arc::ptr_eq(&kept, &scope.table.get(&nth(7)).expect("there")));
    assert!(Arc::ptr_eq(&server_of_it, &kept.view().destinations[0]));
    let mut got: Vec<_> = scope.services(&Live::default()).into_iter().map(|service| service.spec).collect();
    let mut specs: Vec<_> = wanted.iter().map(|(spec, _)| spec.clone()).collect();
    got.sort_by_key(|spec| spec.key);
    specs.sort_by_key(|spec| spec.key);
    assert_eq!(got, specs);
    // A table with a double is refused, and nothing changes.
    wanted.push(wanted[0].clone());
    wanted.remove(1);
    assert!(scope.replace(&wanted).is_err());
    assert_eq!(scope.rules(), 4 * services as usize);
}

#[test]
fn workers_schedule_while_everything_changes_and_counts_end_where_they_began() {
    let ipvs = Ipvs::default();
    let scope = ipvs.global();
    let schedulers = [
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Wlc,
        Scheduler::Nq,
        Scheduler::Lblcr,
        Scheduler::Mh,
        Scheduler::Ovf,
    ];
    for (number, scheduler) in (0..).zip(schedulers) {
        scope.add_service(service(nth(number), scheduler)).expect("added");
        for at in 0..20 {
            scope.add_destination(nth(number), server(at, 1 + (at % 4) as i32)).expect("added");
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let worker = |seed: u32| {
            let (ipvs, done) = (&ipvs, &done);
            threads.spawn(move || {
                let mut open: Vec<(u32, bool)> = Vec::new();
                let (mut turn, mut scheduled) = (seed, 0_u64);
                // Some in any case: the changes may be over before this thread has had a processor.
                while scheduled <= 100 || !done.load(Ordering::Relaxed) {
                    turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let key = nth(turn >> 8 & 7);
                    if let Some(service) = ipvs.global().table.get(&key)
                        && let Some(server) = service.schedule(&flow(turn), 0)
                        && server.bind(Counted::Inactive)
                    {
                        scheduled += 1;
                        server.activate();
                        open.push((server.id(), true));
                    }
                    if open.len() > 100 {
                        let (id, _) = open.swap_remove(turn as usize % open.len());
                        let server = ipvs.destination(id);
                        let server = server.as_ref().expect("a server with connections stays");
                        server.deactivate();
                        server.unbind(Counted::Inactive);
                    }
                }
                for (id, _) in open {
                    let server = ipvs.destination(id);
                    let server = server.as_ref().expect("a server with connections stays");
                    server.unbind(Counted::Active);
                }
                scheduled
            })
        };
        let workers = [worker(1), worker(2)];
        for round in 0..400_u32 {
            let key = nth(round % 7);
            let at = round % 20;
            // Whatever is refused because of an earlier round is as good.
            let _ = scope.delete_destination(key, server(at, 0).address, 80);
            let _ = scope.add_destination(key, server(at, (round % 5) as i32));
            let _ = scope.edit_destination(key, server((at + 7) % 20, (round % 3) as i32));
            if round % 40 == 39 {
                scope.delete_service(key).expect("deleted");
                scope.add_service(service(key, schedulers[(round / 40) as usize % 7])).expect("added");
                for at in 0..20 {
                    scope.add_destination(key, server(at, 1)).expect("added");
                }
            }
            ipvs.tick(round * 70);
        }
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().expect("no panic") > 100);
        }
    });
    for service in scope.table.all() {
        for server in &service.view().destinations {
            assert_eq!((server.active(), server.inactive()), (0, 0), "{server:?}");
        }
    }
    // What was deleted is forgotten after its two minutes.
    for now in [100_000, 100_100, 100_300] {
        ipvs.tick(now);
    }
    assert!(scope.deleted().is_empty());
}
