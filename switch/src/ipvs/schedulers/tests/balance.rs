//! Whether hashes spread clients as weights say, and how many clients `mh` moves when a server goes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use super::{KEY, address_bits, flow, lab, server};
use crate::ipvs::Ipvs;
use crate::ipvs::service::Flow;
use crate::ipvs::spec::{Scheduler, SchedulerFlags};

const CLIENTS: u32 = 20_000;

/// The server of each client.
fn spread(ipvs: &Ipvs, client: impl Fn(u32) -> Flow) -> Vec<IpAddr> {
    let service = ipvs.global().table.get(&KEY).expect("there");
    let one = |number| service.schedule(&client(number), 0).expect("a server").address();
    (0..CLIENTS).map(one).collect()
}

/// How far the shares of servers are from what their weights say, at most, as a part of that.
fn deviation(chosen: &[IpAddr], weights: &[i32]) -> f64 {
    let mut counts: HashMap<IpAddr, f64> = HashMap::new();
    for address in chosen {
        *counts.entry(*address).or_default() += 1.0;
    }
    let total = f64::from(weights.iter().sum::<i32>());
    let far = (0..).zip(weights).map(|(number, &weight)| {
        let expected = chosen.len() as f64 * f64::from(weight) / total;
        (counts.get(&server(number, 0, 0).address).copied().unwrap_or(0.0) - expected).abs() / expected
    });
    far.fold(0.0, f64::max)
}

/// Clients all over the address space, and each with a port of its own.
fn anywhere(number: u32) -> Flow {
    flow(number.wrapping_mul(2_654_435_761).rotate_left(7), 1024 + (number % 50_000) as u16, 1)
}

fn weighted(scheduler: Scheduler, flags: u8, weights: &[i32]) -> Ipvs {
    lab(scheduler, flags, (0..).zip(weights).map(|(number, &weight)| server(number, weight, 0)))
}

#[test]
fn hashes_spread_clients_by_weight() {
    for (scheduler, weights, most) in [
        // 256 places: shares are as coarse as that.
        (Scheduler::Sh, vec![1; 8], 0.06),
        (Scheduler::Sh, vec![1, 2, 5], 0.06),
        (Scheduler::Mh, vec![1; 10], 0.08),
        (Scheduler::Mh, vec![10, 20, 30, 40], 0.08),
        (Scheduler::Mh, vec![1; 100], 0.35),
    ] {
        let chosen = spread(&weighted(scheduler, 0, &weights), anywhere);
        let far = deviation(&chosen, &weights);
        assert!(far < most, "{scheduler:?} {weights:?}: {far:.3}");
    }
}

#[test]
fn destinations_are_spread_evenly() {
    let ipvs = weighted(Scheduler::Dh, 0, &[1; 8]);
    let chosen = spread(&ipvs, |number| flow(1, 1, number.wrapping_mul(2_654_435_761).rotate_left(9)));
    let far = deviation(&chosen, &[1; 8]);
    assert!(far < 0.06, "{far:.3}");
}

#[test]
fn neighbouring_addresses_and_ports_of_one_address_are_spread_too() {
    for scheduler in [Scheduler::Sh, Scheduler::Mh] {
        let near = spread(&weighted(scheduler, 0, &[1; 4]), |number| flow(10 << 24 | number, 1, 1));
        let far = deviation(&near, &[1; 4]);
        assert!(far < 0.06, "addresses, {scheduler:?}: {far:.3}");
        let ports = weighted(scheduler, SchedulerFlags::PORT, &[1; 4]);
        let far = deviation(&spread(&ports, |number| flow(1, 1024 + number as u16, 1)), &[1; 4]);
        assert!(far < 0.06, "ports, {scheduler:?}: {far:.3}");
    }
}

#[test]
fn clients_of_ipv6_are_spread_by_all_parts_of_their_addresses() {
    for shift in [0, 40, 72, 104] {
        let client = |number: u32| Flow {
            source: Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 ^ u128::from(number) << shift).into(),
            ..flow(0, 1, 1)
        };
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let far = deviation(&spread(&weighted(scheduler, 0, &[1; 4]), client), &[1; 4]);
            assert!(far < 0.08, "{scheduler:?}, bits from {shift} on: {far:.3}");
        }
    }
}

#[test]
fn mh_moves_few_clients_of_the_servers_that_stay() {
    let all = weighted(Scheduler::Mh, 0, &[1; 10]);
    let before = spread(&all, anywhere);
    for gone in 0..10 {
        let address = server(gone, 0, 0).address;
        all.global().delete_destination(KEY, address, 80).expect("deleted");
        let after = spread(&all, anywhere);
        let staying = before.iter().zip(&after).filter(|(before, _)| **before != address);
        let (moved, others) = staying.fold((0, 0), |(moved, others), (before, after)| {
            (moved + u32::from(before != after), others + 1)
        });
        assert!(f64::from(moved) <= 0.15 * f64::from(others), "{moved} of {others} moved");
        assert!(after.iter().all(|server| *server != address));
        // And it gets its clients back when it returns: the order of additions tells ties, so it is put where it was.
        let names = (0..10).map(|number| server(number, 1, 0));
        all.global().flush();
        let again = names.map(|server| crate::ipvs::draft::Change::AddDestination(KEY, server));
        let service = crate::ipvs::draft::Change::AddService(super::service(Scheduler::Mh, 0));
        all.global().apply([service].into_iter().chain(again)).expect("possible");
        assert_eq!(spread(&all, anywhere), before);
    }
    // All servers of a place in 10.2.0.0/16 are told apart.
    assert_ne!(address_bits(1), address_bits(2));
}

#[test]
fn a_quiesced_server_of_mh_keeps_its_clients_for_its_return() {
    let ipvs = weighted(Scheduler::Mh, SchedulerFlags::FALLBACK, &[1; 10]);
    let before = spread(&ipvs, anywhere);
    ipvs.global().edit_destination(KEY, server(3, 0, 0)).expect("edited");
    let quiet = spread(&ipvs, anywhere);
    let away = server(3, 0, 0).address;
    assert!(before.iter().zip(&quiet).all(|(before, now)| before == now || *before == away));
    assert!(!quiet.contains(&away));
    ipvs.global().edit_destination(KEY, server(3, 1, 0)).expect("edited");
    assert_eq!(spread(&ipvs, anywhere), before);
}
