//! What a choice costs among 3 and among 1,000 servers. Measured in release builds; debug builds only run through it.
#![forbid(unsafe_code)]

use super::{KEY, flow, lab, server};
use crate::ipvs::Ipvs;
use crate::ipvs::destination::Counted;
use crate::ipvs::spec::Scheduler;
use crate::rules::best_of;

/// Connections of a measured run.
const CONNECTIONS: u32 = 10_000;

/// Cycles of a connection's life as the packet path has it: looked up, scheduled, counted, used, ended.
fn life(ipvs: &Ipvs) -> u64 {
    let mut open = std::collections::VecDeque::new();
    let mut number = 0_u32;
    let mut one = || {
        let service = ipvs.global().table.get(&KEY).expect("there");
        number = number.wrapping_add(1);
        let server = service.schedule(&flow(number.wrapping_mul(0x9e37_79b1), 1, 1), 0).expect("a server");
        assert!(server.bind(Counted::Inactive));
        server.activate();
        open.push_back(server);
        if open.len() > 4000 {
            let server = open.pop_front().expect("open");
            server.deactivate();
            server.unbind(Counted::Inactive);
        }
    };
    for _ in 0..8000 {
        one();
    }
    best_of(20, || (0..CONNECTIONS).for_each(|_| one())) / u64::from(CONNECTIONS)
}

#[test]
fn a_choice_among_a_thousand_servers_costs_little_more_than_among_three() {
    for scheduler in [
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sed,
        Scheduler::Nq,
        Scheduler::Sh,
        Scheduler::Mh,
        Scheduler::Fo,
    ] {
        let of = |servers: u32| {
            lab(scheduler, 0, (0..servers).map(|number| server(number, 1 + (number % 3) as i32, 0)))
        };
        let (few, many) = (life(&of(3)), life(&of(1000)));
        println!("{scheduler:?}: {few} cycles among 3, {many} among 1000");
        if !cfg!(debug_assertions) && scheduler != Scheduler::Wrr {
            assert!(many <= 2 * few + 100, "{scheduler:?}: {few} cycles among 3, {many} among 1000");
        }
    }
}
