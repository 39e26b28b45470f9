//! Each scheduler against a plain, slow version of it; the balance of the hashes; what `mh` moves; what choices cost.
#![forbid(unsafe_code)]

mod balance;
mod cost;
mod model;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;

use self::model::Model;
use crate::ipvs::Ipvs;
use crate::ipvs::destination::{Counted, Destination};
use crate::ipvs::draft::Change;
use crate::ipvs::service::Flow;
use crate::ipvs::spec::{DestinationSpec, Forward, Scheduler, SchedulerFlags, ServiceKey, ServiceSpec};

const KEY: ServiceKey = ServiceKey::Mark { mark: 7, v6: false };

fn address_bits(number: u32) -> u32 {
    10 << 24 | 2 << 16 | number
}

fn flow(source: u32, port: u16, destination: u32) -> Flow {
    Flow {
        source: Ipv4Addr::from_bits(source).into(),
        destination: Ipv4Addr::from_bits(destination).into(),
        source_port: port,
    }
}

fn service(scheduler: Scheduler, flags: u8) -> ServiceSpec {
    ServiceSpec {
        key: KEY,
        scheduler: Some(scheduler),
        flags: SchedulerFlags(flags),
        persistence: None,
        one_packet: false,
    }
}

fn server(number: u32, weight: i32, upper: u32) -> DestinationSpec {
    let address = Ipv4Addr::from_bits(address_bits(number)).into();
    DestinationSpec { address, port: 80, forward: Forward::Masquerade, weight, upper, lower: 0 }
}

/// A scope with one service.
fn lab(scheduler: Scheduler, flags: u8, servers: impl IntoIterator<Item = DestinationSpec>) -> Ipvs {
    let ipvs = Ipvs::default();
    let servers = servers.into_iter().map(|server| Change::AddDestination(KEY, server));
    ipvs.global()
        .apply([Change::AddService(service(scheduler, flags))].into_iter().chain(servers))
        .expect("possible");
    ipvs
}

#[derive(Clone, Debug)]
enum Edit {
    Add(u32, i32, u32),
    Change(u32, i32, u32),
    Delete(u32),
    Schedule(Scheduler, u8),
}

#[derive(Clone, Debug)]
enum Op {
    /// One transaction.
    Edits(Vec<Edit>),
    Connect {
        source: u32,
        port: u16,
        destination: u32,
    },
    /// A connection begins to be used, is used no more, or is gone.
    Activate(usize),
    Deactivate(usize),
    End(usize),
}

const ALL: [Scheduler; 13] = [
    Scheduler::Rr,
    Scheduler::Wrr,
    Scheduler::Lc,
    Scheduler::Wlc,
    Scheduler::Lblc,
    Scheduler::Lblcr,
    Scheduler::Dh,
    Scheduler::Sh,
    Scheduler::Sed,
    Scheduler::Nq,
    Scheduler::Fo,
    Scheduler::Ovf,
    Scheduler::Mh,
];

fn scheduler() -> impl Strategy<Value = (Scheduler, u8)> {
    ((0..ALL.len()).prop_map(|at| ALL[at]), 0..4_u8)
}

fn weight() -> impl Strategy<Value = i32> {
    prop_oneof![5 => 0..5, 2 => Just(1), 2 => (1..6).prop_map(|n| n * 6), 1 => 100..5000]
}

fn edit(servers: u32) -> impl Strategy<Value = Edit> {
    let upper = || prop_oneof![4 => Just(0), 1 => 1..4_u32];
    prop_oneof![
        8 => (0..servers, weight(), upper()).prop_map(|(number, weight, upper)| Edit::Add(number, weight, upper)),
        4 => (0..servers, weight(), upper()).prop_map(|(number, weight, upper)| Edit::Change(number, weight, upper)),
        4 => (0..servers).prop_map(Edit::Delete),
        1 => scheduler().prop_map(|(scheduler, flags)| Edit::Schedule(scheduler, flags)),
    ]
}

fn ops(servers: u32) -> impl Strategy<Value = Vec<Op>> {
    let connect = (0..500_u32, 0..3_u16, 0..3_u32).prop_map(|(source, port, destination)| Op::Connect {
        source: 10 << 24 | source,
        port: 40_000 + port,
        destination: 10 << 24 | 9 << 16 | destination,
    });
    let op = prop_oneof![
        2 => proptest::collection::vec(edit(servers), 1..4).prop_map(Op::Edits),
        12 => connect,
        4 => any::<usize>().prop_map(Op::Activate),
        2 => any::<usize>().prop_map(Op::Deactivate),
        4 => any::<usize>().prop_map(Op::End),
    ];
    proptest::collection::vec(op, 1..120)
}

/// A connection: its server and whether it is in use.
struct Connection {
    server: Arc<Destination>,
    number: u32,
    active: bool,
}

struct Pair {
    ipvs: Ipvs,
    model: Model,
    connections: Vec<Connection>,
    numbers: HashMap<std::net::IpAddr, u32>,
}

impl Pair {
    fn new(scheduler: Scheduler, flags: u8, servers: u32) -> Self {
        let numbers = (0..servers).map(|number| (server(number, 0, 0).address, number)).collect();
        let model = Model::new(scheduler, flags);
        Self { ipvs: lab(scheduler, flags, []), model, connections: Vec::new(), numbers }
    }

    fn edit(&mut self, edits: &[Edit]) {
        // What the model refuses is left out: the transaction is one that is possible.
        let mut changes = Vec::new();
        for edit in edits {
            let (possible, change) = match *edit {
                Edit::Add(number, weight, upper) => (
                    self.model.add(number, weight.into(), upper.into()),
                    Change::AddDestination(KEY, server(number, weight, upper)),
                ),
                Edit::Change(number, weight, upper) => (
                    self.model.edit(number, weight.into(), upper.into()),
                    Change::EditDestination(KEY, server(number, weight, upper)),
                ),
                Edit::Delete(number) => (
                    self.model.delete(number),
                    Change::DeleteDestination(KEY, server(number, 0, 0).address, 80),
                ),
                Edit::Schedule(scheduler, flags) => {
                    self.model.schedule_by(scheduler, flags);
                    (true, Change::EditService(service(scheduler, flags)))
                }
            };
            if possible {
                changes.push(change);
            } else {
                assert!(self.ipvs.global().apply(changes.iter().cloned().chain([change])).is_err());
            }
        }
        self.ipvs.global().apply(changes).expect("possible");
    }

    fn connect(&mut self, source: u32, port: u16, destination: u32) -> Result<(), TestCaseError> {
        let service = self.ipvs.global().table.get(&KEY).expect("there");
        let chosen = service.schedule(&flow(source, port, destination), 0);
        let number = chosen.as_ref().map(|server| self.numbers[&server.address()]);
        let expected = self.model.choose(source, port, destination);
        prop_assert_eq!(number, expected, "{:?}", &self.model);
        if let (Some(server), Some(number)) = (chosen, number) {
            prop_assert!(server.bind(Counted::Inactive));
            server.stats.connection();
            self.model.count(number);
            self.connections.push(Connection { server, number, active: false });
        }
        Ok(())
    }

    fn run(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let pick = |at: usize| at.checked_rem(self.connections.len());
        match *op {
            Op::Edits(ref edits) => self.edit(edits),
            Op::Connect { source, port, destination } => self.connect(source, port, destination)?,
            Op::Activate(at) | Op::Deactivate(at) => {
                let active = matches!(op, Op::Activate(_));
                if let Some(at) = pick(at)
                    && self.connections[at].active != active
                {
                    let connection = &mut self.connections[at];
                    connection.active = active;
                    let server = self.model.servers.get_mut(&connection.number).expect("known");
                    if active {
                        connection.server.activate();
                        (server.active, server.inactive) = (server.active + 1, server.inactive - 1);
                    } else {
                        connection.server.deactivate();
                        (server.active, server.inactive) = (server.active - 1, server.inactive + 1);
                    }
                }
            }
            Op::End(at) => {
                if let Some(at) = pick(at) {
                    let Connection { server, number, active } = self.connections.swap_remove(at);
                    if active {
                        server.deactivate();
                        let model = self.model.servers.get_mut(&number).expect("known");
                        (model.active, model.inactive) = (model.active - 1, model.inactive + 1);
                    }
                    server.unbind(Counted::Inactive);
                    self.model.discount(number);
                }
            }
        }
        Ok(())
    }

    fn all(&mut self, first: &[(i32, u32)], ops: &[Op]) -> Result<(), TestCaseError> {
        let first: Vec<Edit> =
            (0..).zip(first).map(|(at, &(weight, upper))| Edit::Add(at, weight, upper)).collect();
        self.edit(&first);
        ops.iter().try_for_each(|op| self.run(op))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn few_servers_are_chosen_as_by_the_plain_version(
        (scheduler, flags) in scheduler(),
        first in proptest::collection::vec((weight(), Just(0)), 0..8),
        ops in ops(12),
    ) {
        Pair::new(scheduler, flags, 12).all(&first, &ops)?;
    }

    #[test]
    fn many_servers_are_chosen_as_by_the_plain_version(
        (scheduler, flags) in scheduler(),
        first in proptest::collection::vec((weight(), Just(0)), 8..40),
        ops in ops(40),
    ) {
        Pair::new(scheduler, flags, 40).all(&first, &ops)?;
    }

    #[test]
    fn two_lots_draw_two_servers_by_weight_and_the_less_loaded_is_taken(
        servers in proptest::collection::vec((0..4_i32, 0..4_u32), 1..6),
        lots in any::<[u32; 2]>(),
    ) {
        let ipvs = lab(Scheduler::Twos, 0, (0..).zip(&servers).map(|(at, &(weight, _))| server(at, weight, 0)));
        let service = ipvs.global().table.get(&KEY).expect("there");
        let view = service.view();
        let list = &view.destinations;
        for (server, &(_, active)) in list.iter().rev().zip(&servers) {
            for _ in 0..active {
                prop_assert!(server.bind(Counted::Active));
            }
        }
        let lots = lots.map(u64::from);
        // One entry for each unit of weight; the lot 0 is the first one's, too.
        let urn: Vec<_> = list.iter().flat_map(|server| (0..server.weight()).map(move |_| server)).collect();
        let expected = lots.map(|lot| {
            let lot = lot as usize % (urn.len() + 1);
            urn.get(lot.saturating_sub(1)).copied()
        });
        let load = |server: &Destination| f64::from(server.active()) / f64::from(server.weight());
        let expected = match expected {
            [Some(a), Some(b)] => Some(if load(b) < load(a) { b } else { a }),
            _ => None,
        };
        let drawn = super::twos::draw(list, lots);
        prop_assert_eq!(drawn.map(|server| server.id()), expected.map(|server| server.id()));
    }
}
