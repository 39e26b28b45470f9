//! What is told of everything but connections is heard as it was; what is nonsense is refused.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::message::{self, Final, Hello, Port, Record, Start};
use crate::config::{Config, Mac};
use crate::config::{Poll, Workers};
use crate::conntrack::expect::{Expectation, KeptExpectations};
use crate::conntrack::sequence::Shift;
use crate::handover::hear::Heard;
use crate::handover::tell::{self, Told};
use crate::ipvs::destination::Counted;
use crate::ipvs::persistence::KeptTemplate;
use crate::ipvs::spec::{Protocol, ServiceKey};
use crate::l2::fdb::Key;
use crate::l3::neighbour::{self, Neighbours, State};
use crate::nat::KeptMapping;
use crate::packet::tuple::Tuple;
use crate::services::KeptLease;
use crate::services::dhcp::leases;
use crate::switch::{Options, Switch};
use crate::worker::epoch::Epochs;

/// Two bridges with a gateway that gives addresses, translation by mappings, and a virtual service.
const CONFIG: &str = r#"
[[bridge]]
name = "lan"
[[bridge]]
name = "wan"
[[interface]]
name = "gw"
bridge = "lan"
address = ["10.0.3.1/24"]
[[interface]]
name = "up"
bridge = "wan"
address = ["192.0.2.1/24"]
[[dhcp]]
interface = "gw"
range = "10.0.3.2-10.0.3.254"
[[nat.masquerade]]
source = "10.0.3.0/24"
out = "up"
endpoint_independent = true
[[ipvs.service]]
service = "tcp:192.0.2.9:80"
scheduler = "rr"
persistent = 300
[[ipvs.server]]
service = "tcp:192.0.2.9:80"
address = "10.0.3.7:80"
forward = "masquerade"
[[ipvs.server]]
service = "tcp:192.0.2.9:80"
address = "10.0.3.8:80"
forward = "masquerade"
"#;

fn switch() -> Switch {
    let options = Options { workers: Workers::Count(1), poll: Poll::Adaptive, state: None, handed: None };
    let mut switch = Switch::start(options).unwrap();
    switch.configure(Config::parse(CONFIG, None).unwrap()).unwrap();
    switch
}

/// Has one switch hear what another one tells; the records, as they travel.
fn pass_on(from: &Switch, told: &mut Told, to: &Switch, heard: &mut Heard) -> Vec<Record> {
    let records = told.changed(from);
    let bytes = message::write(&records).unwrap();
    let read: Vec<Record> = message::read("records", &bytes).unwrap();
    assert_eq!(read, records, "through the wire and back");
    read.into_iter().for_each(|record| heard.record(to, record));
    heard.last(to, message::read("end", &message::write(&tell::last(from)).unwrap()).unwrap()).unwrap();
    records
}

/// What a switch would tell, without the numbers that are its own.
fn learned(switch: &Switch) -> Vec<String> {
    let mut told: Vec<String> = Told::default()
        .changed(switch)
        .into_iter()
        .map(|record| match record {
            Record::Template(template) => {
                let server = switch.router.ipvs.destination(template.destination);
                let server = server.as_deref().unwrap().address();
                format!("{server} {:?}", KeptTemplate { number: 0, destination: 0, ..template })
            }
            Record::Server { number: _, address, counted, .. } => format!("{address} {counted:?}"),
            Record::Deleted { number: _, server, counted, .. } => format!("{server:?} {counted:?}"),
            // Seconds pass meanwhile.
            Record::Station { bridge, mac, vlan, port, age: _ } => format!("{bridge} {mac:?} {vlan} {port}"),
            Record::Neighbour(entry) => {
                format!("{:?}", neighbour::Entry { used: 0, confirmed: 0, updated: 0, ..entry })
            }
            Record::Lease(lease) => format!("{:?}", KeptLease { expires: 0, ..lease }),
            record => format!("{record:?}"),
        })
        .collect();
    told.sort();
    told
}

/// When each lease ends.
fn ends(switch: &Switch) -> Vec<(IpAddr, u64)> {
    let leases = switch.live.as_ref().unwrap().services.export();
    let mut ends: Vec<_> = leases.iter().map(|lease| (IpAddr::from(lease.address), lease.expires)).collect();
    ends.sort();
    ends
}

fn tuple(n: u16) -> Tuple {
    Tuple {
        source: [10, 0, 3, 7].into(),
        destination: [198, 51, 100, 1].into(),
        protocol: 6,
        source_port: n,
        destination_port: 21,
    }
}

fn fill(switch: &mut Switch) {
    let now = crate::clock::seconds();
    let lan = switch.bridges.iter().find(|(name, _)| name.as_str() == "lan").unwrap().1;
    for n in 0..100u8 {
        lan.fdb.restore(Key::new([2, 0, 0, 0, 1, n], u16::from(n) % 3), n.into(), 0, now);
    }
    let live = switch.live.as_ref().unwrap();
    for n in 2..50u8 {
        let state = [State::Reachable, State::Stale, State::Delay, State::Probe][usize::from(n) % 4];
        let entry = neighbour::Entry {
            interface: live.index("gw").unwrap(),
            address: [10, 0, 3, n].into(),
            mac: Some(Mac([2, 0, 0, 0, 1, n])),
            state,
            port: Some(n.into()),
            used: 0,
            confirmed: 0,
            updated: 0,
            probes: 0,
        };
        assert!(live.neighbours.restore(&entry, now));
        assert!(live.services.restore(KeptLease {
            interface: "gw".parse().unwrap(),
            address: [10, 0, 3, n].into(),
            mac: Mac([2, 0, 0, 0, 1, n]),
            identity: vec![1, n].into(),
            hostname: Some(format!("guest{n}")),
            port: Some(n.into()),
            state: leases::State::Bound,
            expires: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
                + 900,
        }));
    }
    for n in 1..200u16 {
        let (inside, outside) = ((IpAddr::from([10, 0, 3, 7]), n), (IpAddr::from([192, 0, 2, 1]), 4000 + n));
        let witness = tuple(n).reversed();
        assert!(switch.router.nat.restore_mapping(&KeptMapping {
            protocol: 17,
            inside,
            outside,
            witness,
            used: now
        }));
    }
    let mut shift = Shift::default();
    shift.change(77, -3);
    let expectation = Expectation {
        master: tuple(1),
        source: [198, 51, 100, 1].into(),
        destination: [192, 0, 2, 1].into(),
        protocol: 6,
        port: 5000,
        to: ([10, 0, 3, 7].into(), 5001),
        from: None,
        since: now,
    };
    live.conntrack.expectations.restore(KeptExpectations {
        expected: vec![expectation],
        shifts: vec![(tuple(1), [shift, Shift::default()])],
    });
    let ipvs = &switch.router.ipvs;
    let key = ServiceKey::Address { protocol: Protocol::Tcp, address: [192, 0, 2, 9].into(), port: 80 };
    let service = ipvs.global().table.get(&key).unwrap();
    for n in 0..40u8 {
        let server = service.view().destinations[usize::from(n) % 2].clone();
        assert!(server.bind(Counted::Template));
        server.stats.connection();
        let kept = KeptTemplate {
            number: 0,
            client: [198, 51, 100, n].into(),
            address: [192, 0, 2, 9].into(),
            protocol: 6,
            port: 80,
            destination: 0,
            server_port: 80,
            timeout: 300,
            expires: now + 200 + u32::from(n),
            assured: n.is_multiple_of(2),
        };
        let scope = crate::ipvs::connection::scope_number(ipvs.global().settings());
        ipvs.templates.restore(&kept, server.id(), scope, now, |_| ()).unwrap();
    }
}

#[test]
fn everything_learned_is_the_same_afterwards() {
    let (mut old, new) = (switch(), switch());
    fill(&mut old);
    let (mut told, mut heard) = (Told::default(), Heard::new(1));
    let records = pass_on(&old, &mut told, &new, &mut heard);
    assert!(records.len() > 100 + 48 * 2 + 199 + 40, "{}", records.len());
    assert_eq!(heard.left_out(), 0);
    assert_eq!(learned(&new), learned(&old));
    // In seconds of clocks that do not tick at the same time.
    for (here, there) in ends(&new).into_iter().zip(ends(&old)) {
        assert!(here.0 == there.0 && here.1.abs_diff(there.1) <= 2, "{here:?} {there:?}");
    }
    let expectations = |switch: &Switch| switch.live.as_ref().unwrap().conntrack.expectations.export();
    assert_eq!((expectations(&new), expectations(&old).shifts.len()), (expectations(&old), 1));
    let servers = |switch: &Switch| {
        let services = switch.router.ipvs.global().services(&Default::default());
        services[0]
            .destinations
            .iter()
            .map(|one| (one.spec.address, one.templates, one.totals))
            .collect::<Vec<_>>()
    };
    assert_eq!(servers(&new), servers(&old));

    // The second time only what has changed is told, and what is gone goes.
    assert!(told.changed(&old).is_empty());
    let now = crate::clock::seconds();
    let lan = old.bridges.iter().find(|(name, _)| name.as_str() == "lan").unwrap().1;
    lan.fdb.restore(Key::new([2, 0, 0, 0, 1, 5], 2), 9, 0, now);
    old.router.nat.forget_mapping(17, ([10, 0, 3, 7].into(), 7));
    let live = old.live.as_ref().unwrap();
    assert!(live.services.release(live.index("gw").unwrap(), [10, 0, 3, 9].into()));
    let records = pass_on(&old, &mut told, &new, &mut heard);
    assert_eq!(records.len(), 3, "{records:?}");
    assert_eq!(learned(&new), learned(&old));
}

#[test]
fn servers_that_were_deleted_keep_what_they_carry() {
    for whole in [false, true] {
        let key = ServiceKey::Address { protocol: Protocol::Tcp, address: [192, 0, 2, 9].into(), port: 80 };
        let delete = |switch: &Switch| {
            let scope = switch.router.ipvs.global();
            match whole {
                true => scope.delete_service(key).unwrap(),
                false => scope.delete_destination(key, [10, 0, 3, 8].into(), 80).unwrap(),
            }
        };
        let (mut old, new) = (switch(), switch());
        fill(&mut old);
        delete(&old);
        delete(&new);
        let mut heard = Heard::new(1);
        pass_on(&old, &mut Told::default(), &new, &mut heard);
        assert_eq!(heard.left_out(), 0);
        assert_eq!(learned(&new), learned(&old));
        let deleted = |switch: &Switch| {
            let servers = switch.router.ipvs.global().deleted();
            let mut seen: Vec<_> = servers
                .iter()
                .map(|one| (one.address(), one.templates(), one.is_available(), one.stats.export()))
                .collect();
            seen.sort();
            seen
        };
        assert_eq!(deleted(&new), deleted(&old));
        assert_eq!(deleted(&new).len(), if whole { 2 } else { 1 });
        assert_eq!(new.router.ipvs.global().rules(), old.router.ipvs.global().rules());
    }
}

#[test]
fn another_format_is_refused_in_words() {
    let own = Hello::own();
    own.check().unwrap();
    for format in [0, message::FORMAT - 1, message::FORMAT + 1, u32::MAX] {
        let text = Hello { format, version: "9.9.9".into(), pid: 1 }.check().unwrap_err().to_string();
        assert!(
            text.contains(&format!("9.9.9 hands over in format {format}")) && text.contains("restart"),
            "{text}"
        );
    }
    // A later version may say more of itself, and is still understood far enough to be refused.
    let more = br#"{"format":2,"version":"1","pid":3,"colour":"blue"}"#;
    assert_eq!(message::read::<Hello>("greeting", more).unwrap().format, 2);
    assert!(
        message::read::<Start>("start", more).unwrap_err().to_string().starts_with("the hand-over's start: ")
    );
}

#[test]
fn static_entries_and_full_tables_are_kept() {
    let table = Neighbours::with_limit(2, Default::default(), Arc::new(Epochs::new(1)));
    let entry = |n: u8, state| neighbour::Entry {
        interface: 0,
        address: [10, 0, 0, n].into(),
        mac: Some(Mac([2, 0, 0, 0, 0, n])),
        state,
        port: Some(1),
        used: 3,
        confirmed: 4,
        updated: 5,
        probes: 0,
    };
    assert!(!table.restore(&entry(1, State::Permanent), 10), "the operator's are configured");
    assert!(!table.restore(&neighbour::Entry { mac: None, ..entry(1, State::Stale) }, 10));
    table.fix(0, IpAddr::from([10, 0, 0, 1]).into(), Mac([2; 6]), 10).unwrap();
    assert!(!table.restore(&entry(1, State::Reachable), 10));
}

proptest! {
    #[test]
    fn noise_is_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(message::read::<Start>("start", &bytes).is_err());
        prop_assert!(message::read::<Port>("port", &bytes).is_err());
        prop_assert!(message::read::<Final>("end", &bytes).is_err());
        prop_assert!(message::read::<Vec<Record>>("records", &bytes).map_or(true, |records| records.is_empty()));
    }
}
