//! Which server Linux 6.1 gave each connection of a sequence (`scheduling.golden`, recorded with ipvsadm 1.31 and real
//! connections): shunt's schedulers must choose the same.
//!
//! A case names the scheduler, the servers' weights in the order in which they were added (A, B, C, D: 10.0.2.11 to .14),
//! options of the service behind `--`, and the connections: `hold` keeps each open, `close` ends it before the next,
//! `src`, `nsrc` and `sport` are the client's first address, how many addresses it goes round, and its first port (0: any).
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::super::Ipvs;
use super::super::destination::{Counted, Destination};
use super::super::service::Flow;
use super::super::spec::{DestinationSpec, Persistence, Scheduler, SchedulerFlags, ServiceSpec};
use super::{key, server, service};

const GOLDEN: &str = include_str!("scheduling.golden");

fn scheduler(name: &str) -> Scheduler {
    use Scheduler::*;
    let names = [
        ("rr", Rr),
        ("wrr", Wrr),
        ("lc", Lc),
        ("wlc", Wlc),
        ("lblc", Lblc),
        ("lblcr", Lblcr),
        ("dh", Dh),
        ("sh", Sh),
        ("sed", Sed),
        ("nq", Nq),
        ("fo", Fo),
        ("ovf", Ovf),
        ("mh", Mh),
    ];
    names.iter().find(|(known, _)| *known == name).expect("a scheduler").1
}

/// A service with the servers A, B, C...
struct Lab {
    ipvs: Ipvs,
    letters: HashMap<u32, char>,
}

impl Lab {
    fn new(spec: ServiceSpec, servers: impl IntoIterator<Item = DestinationSpec>) -> Self {
        let ipvs = Ipvs::default();
        ipvs.global().add_service(spec).expect("added");
        for (number, spec) in (11..).zip(servers) {
            let named = DestinationSpec { address: super::address(number), ..spec };
            ipvs.global().add_destination(key(80), named).expect("added");
        }
        let view = ipvs.global().table.get(&key(80)).expect("there");
        let letters = view.view().destinations.iter().rev().map(|server| server.id()).zip('A'..).collect();
        Self { ipvs, letters }
    }

    fn schedule(&self, source: Ipv4Addr, port: u16) -> Option<Arc<Destination>> {
        let destination = Ipv4Addr::new(10, 9, 9, 9).into();
        let flow = Flow { source: source.into(), destination, source_port: port };
        let server = self.ipvs.global().table.get(&key(80)).expect("there").schedule(&flow, 0)?;
        assert!(server.bind(Counted::Inactive));
        Some(server)
    }

    fn letter(&self, server: Option<&Arc<Destination>>) -> char {
        server.map_or('x', |server| self.letters[&server.id()])
    }
}

/// The letters of a case `sched ...`.
fn play(case: &str) -> String {
    let (rules, traffic) = case.split_once(" | ").expect("rules and traffic");
    let (rules, options) = rules.split_once(" -- ").unwrap_or((rules, ""));
    let mut rules = rules.split(' ').skip(1);
    let mut spec = service(key(80), scheduler(rules.next().expect("a scheduler")));
    let mut options = options.split(' ').filter(|word| !word.is_empty());
    while let Some(option) = options.next() {
        let value = options.next().expect("a value");
        let mut persistence = spec.persistence.unwrap_or(Persistence {
            timeout: 300,
            mask: Ipv4Addr::BROADCAST.into(),
            sip: false,
        });
        match option {
            "-b" => {
                for flag in value.split(',') {
                    spec.flags.0 |= match flag {
                        "sh-fallback" | "mh-fallback" => SchedulerFlags::FALLBACK,
                        "sh-port" | "mh-port" => SchedulerFlags::PORT,
                        other => panic!("flag {other}"),
                    };
                }
                continue;
            }
            "-p" => persistence.timeout = value.parse().expect("seconds"),
            "-M" => persistence.mask = value.parse().expect("a mask"),
            other => panic!("option {other}"),
        }
        spec.persistence = Some(persistence);
    }
    let persistence = spec.persistence;
    let lab = Lab::new(spec, rules.map(|weight| server(0, weight.parse().expect("a weight"))));
    let words: Vec<_> = traffic.split(' ').collect();
    let number = |name: &str| {
        let value = words.iter().find_map(|word| word.strip_prefix(name)).expect("given");
        value.parse::<u32>().expect("a number")
    };
    let source: Ipv4Addr = words
        .iter()
        .find_map(|word| word.strip_prefix("src="))
        .expect("a source")
        .parse()
        .expect("an address");
    let mut templates: HashMap<u32, Arc<Destination>> = HashMap::new();
    let one = |connection: u32| {
        let client = Ipv4Addr::from_bits(source.to_bits() + connection % number("nsrc="));
        let port = number("sport=") + connection;
        let chosen = match persistence {
            None => lab.schedule(client, port as u16),
            Some(Persistence { mask: IpAddr::V4(mask), .. }) => {
                let masked = client.to_bits() & mask.to_bits();
                if let Some(server) = templates.get(&masked) {
                    assert!(server.bind(Counted::Inactive));
                    Some(Arc::clone(server))
                } else {
                    let server = lab.schedule(client, port as u16);
                    templates.extend(server.iter().map(|server| (masked, Arc::clone(server))));
                    server
                }
            }
            Some(_) => panic!("a mask of IPv6"),
        };
        if let Some(server) = &chosen {
            server.activate();
            if words.contains(&"close") {
                server.deactivate();
            }
        }
        lab.letter(chosen.as_ref())
    };
    (0..number("n=")).map(one).collect()
}

#[test]
fn schedulers_choose_as_linux_did() {
    let mut played = 0;
    let mut lines = GOLDEN.lines();
    while let Some(line) = lines.next() {
        let Some((name, case)) = line.strip_prefix("case ").and_then(|case| case.split_once(": sched "))
        else {
            continue;
        };
        let expected = lines.next().and_then(|line| line.trim().strip_prefix("-> ")).expect("the letters");
        assert_eq!(play(&format!("sched {case}")), expected, "case {name}");
        played += 1;
    }
    assert_eq!(played, GOLDEN.matches(": sched ").count());
    assert!(played >= 30, "only {played} cases were found");
}

/// The letters behind `case NAME`.
fn recorded(name: &str) -> &str {
    let line = GOLDEN.lines().skip_while(|line| !line.starts_with(&format!("case {name}"))).nth(1);
    line.expect("the case").trim().trim_start_matches("-> ")
}

#[test]
fn thresholds_are_kept_as_linux_did() {
    let limited = DestinationSpec { upper: 2, lower: 1, ..server(0, 1) };
    let lab = Lab::new(service(key(80), Scheduler::Rr), [limited, server(0, 1)]);
    let one = |_| {
        let server = lab.schedule(Ipv4Addr::new(10, 0, 1, 10), 0);
        server.iter().for_each(|server| server.activate());
        lab.letter(server.as_ref())
    };
    assert_eq!((0..9).map(one).collect::<String>(), recorded("thresholds"));
}

#[test]
fn a_service_of_weights_of_zero_and_one_without_servers_refuse() {
    let quiet = Lab::new(service(key(80), Scheduler::Rr), [server(0, 0), server(0, 0)]);
    let empty = Lab::new(service(key(80), Scheduler::Rr), []);
    for (lab, case) in [(quiet, "all weights zero"), (empty, "no servers")] {
        let chosen = lab.schedule(Ipv4Addr::new(10, 0, 1, 10), 0);
        assert_eq!(lab.letter(chosen.as_ref()).to_string(), recorded(case));
    }
}

#[test]
fn a_server_that_is_quiesced_gets_no_new_connections() {
    let lab = Lab::new(service(key(80), Scheduler::Rr), [server(0, 1), server(0, 1)]);
    let letters = |n| {
        let one = |_| lab.letter(lab.schedule(Ipv4Addr::new(10, 0, 1, 10), 0).as_ref());
        (0..n).map(one).collect::<String>()
    };
    let mut lines = GOLDEN.lines().skip_while(|line| !line.starts_with("case quiesce")).skip(1);
    assert_eq!(Some(letters(4).as_str()), lines.next());
    let first = DestinationSpec { address: super::address(11), ..server(0, 0) };
    lab.ipvs.global().edit_destination(key(80), first).expect("edited");
    assert_eq!(Some(letters(4).as_str()), lines.next());
}
