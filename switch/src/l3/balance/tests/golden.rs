//! The recorded choices of Linux 6.1 (`ipvs/tests/scheduling.golden`), with connections: each is opened by three
//! segments through the router, and closed by three more or held, as when it was recorded.

use std::net::{IpAddr, Ipv4Addr};

use super::world::*;
use crate::ipvs::spec::{Forward, Persistence, Protocol, Scheduler, SchedulerFlags};

const GOLDEN: &str = include_str!("../../../ipvs/tests/scheduling.golden");

fn scheduler(name: &str) -> Scheduler {
    use Scheduler::*;
    match name {
        "rr" => Rr,
        "wrr" => Wrr,
        "lc" => Lc,
        "wlc" => Wlc,
        "lblc" => Lblc,
        "lblcr" => Lblcr,
        "dh" => Dh,
        "sh" => Sh,
        "sed" => Sed,
        "nq" => Nq,
        "fo" => Fo,
        "ovf" => Ovf,
        "mh" => Mh,
        other => panic!("scheduler {other}"),
    }
}

fn play(case: &str) -> String {
    let (rules, traffic) = case.split_once(" | ").expect("rules and traffic");
    let (rules, options) = rules.split_once(" -- ").unwrap_or((rules, ""));
    let mut words = rules.split(' ').skip(1);
    let mut spec = service(key(Protocol::Tcp), scheduler(words.next().expect("a scheduler")));
    let mut options = options.split(' ').filter(|word| !word.is_empty());
    while let Some(option) = options.next() {
        let value = options.next().expect("a value");
        let none = Persistence { timeout: 300, mask: Ipv4Addr::BROADCAST.into(), sip: false };
        let mut persistence = spec.persistence.unwrap_or(none);
        match option {
            "-b" => {
                spec.flags = SchedulerFlags(if value.ends_with("port") {
                    SchedulerFlags::PORT
                } else {
                    SchedulerFlags::FALLBACK
                });
                continue;
            }
            "-p" => persistence.timeout = value.parse().expect("seconds"),
            "-M" => persistence.mask = value.parse().expect("a mask"),
            other => panic!("option {other}"),
        }
        spec.persistence = Some(persistence);
    }
    let weighted = |(n, weight): (u8, &str)| {
        let mut server = server(n, 80, Forward::Masquerade);
        server.weight = weight.parse().expect("a weight");
        server
    };
    let mut world = World::with(spec, (11..).zip(words).map(weighted));
    let words: Vec<&str> = traffic.split(' ').collect();
    let number = |name: &str| -> u16 {
        let value = words.iter().find_map(|word| word.strip_prefix(name)).expect("given");
        value.parse().expect("a number")
    };
    let first: IpAddr = words.iter().find_map(|word| word.strip_prefix("src=")).map(v4).expect("a source");
    assert_eq!(first, v4("10.0.1.10"));
    let one = |n: u16| {
        let client = 10 + (n % number("nsrc=")) as u8;
        let port = if number("sport=") == 0 { 30_000 + n } else { number("sport=") + n };
        let server = world.open(client, port);
        if let Some(server) = server.filter(|_| words.contains(&"close")) {
            world.close(server, client, port);
        }
        letter(server)
    };
    (0..number("n=")).map(one).collect()
}

#[test]
fn connections_go_where_linux_sent_them() {
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

fn lines_of(case: &str) -> impl Iterator<Item = &'static str> {
    let start = format!("case {case}");
    GOLDEN.lines().skip_while(move |line| !line.starts_with(&start)).skip(1)
}

#[test]
fn thresholds_are_kept() {
    let mut first = server(11, 80, Forward::Masquerade);
    (first.upper, first.lower) = (2, 1);
    let second = server(12, 80, Forward::Masquerade);
    let mut world = World::with(service(key(Protocol::Tcp), Scheduler::Rr), [first, second]);
    let letters: String = (0..9).map(|n| letter(world.open(10, 30_000 + n))).collect();
    assert_eq!(
        Some(letters.as_str()),
        lines_of("thresholds").next().map(|line| line.trim_start_matches([' ', '-', '>']))
    );
}

#[test]
fn datagrams_of_one_socket_stay_together_and_sockets_are_spread() {
    let servers = || (11..14).map(|n| server(n, 53, Forward::Masquerade));
    let spec = service(key(Protocol::Udp), Scheduler::Rr);
    let ask = |world: &mut World, port| {
        let out = world.put(1, &udp(10, port, b"question"));
        assert_eq!((out.len(), out[0].tuple().destination_port), (1, 53));
        letter(Some(out[0].to().1))
    };
    let recorded = |case| lines_of(case).next().expect("letters").trim_start_matches([' ', '-', '>']);
    let mut world = World::with(spec.clone(), servers());
    assert_eq!((0..6).map(|_| ask(&mut world, 41_000)).collect::<String>(), recorded("udp-sticky"));
    let mut world = World::with(spec, servers());
    assert_eq!((0..6).map(|n| ask(&mut world, 41_000 + n)).collect::<String>(), recorded("udp-ports"));
}

#[test]
fn a_quiesced_server_keeps_what_it_has() {
    let servers = (11..13).map(|n| server(n, 80, Forward::Masquerade));
    let mut world = World::with(service(key(Protocol::Tcp), Scheduler::Rr), servers);
    let mut lines = lines_of("quiesce");
    let open = |world: &mut World, from: u16| -> Vec<u8> {
        (from..from + 4).map(|n| world.open(10, n).expect("a server")).collect()
    };
    let letters = |servers: &[u8]| servers.iter().map(|&n| letter(Some(n))).collect::<String>();
    let held = open(&mut world, 30_000);
    assert_eq!(Some(letters(&held).as_str()), lines.next());
    let mut quiet = server(11, 80, Forward::Masquerade);
    quiet.weight = 0;
    world.router.ipvs.global().edit_destination(key(Protocol::Tcp), quiet).expect("edited");
    let new = open(&mut world, 40_000);
    assert_eq!(Some(letters(&new).as_str()), lines.next());
    assert_eq!(world.counts(key(Protocol::Tcp)), [(2, 0), (6, 0)]);
    // What was there goes on, and ends.
    for (n, server) in (30_000..).zip(held) {
        assert_eq!(world.put(1, &tcp(10, n, ACK)).len(), 1);
        world.close(server, 10, n);
    }
    for (n, server) in (40_000..).zip(new) {
        world.close(server, 10, n);
    }
    assert_eq!(world.counts(key(Protocol::Tcp)), [(0, 2), (0, 6)], "as recorded");
    world.pass(121);
    assert_eq!(world.counts(key(Protocol::Tcp)), [(0, 0), (0, 0)]);
}
