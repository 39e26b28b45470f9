//! What one director tells, another one does: tables of connections without packets.
#![forbid(unsafe_code)]

use super::*;
use crate::conntrack::Local;
use crate::conntrack::adopt::Entered;
use crate::ipvs::connection::Listed;
use crate::ipvs::destination::Counted;
use crate::ipvs::spec::{DestinationSpec, Protocol, Scheduler, ServiceSpec, Tunnel};
use crate::ipvs::states::tcp;
use crate::worker::epoch::Epochs;

struct Director {
    ipvs: Arc<Ipvs>,
    conntrack: Arc<Conntrack>,
    local: Local,
    live: LiveConnections,
}

fn key(port: u16) -> ServiceKey {
    ServiceKey::Address { protocol: Protocol::Tcp, address: [10, 9, 9, 9].into(), port }
}

const MARKED: ServiceKey = ServiceKey::Mark { mark: 5, v6: false };
const SIX: ServiceKey = ServiceKey::Address {
    protocol: Protocol::Tcp,
    address: IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9)),
    port: 80,
};

impl Director {
    /// With a masqueraded service at port 80, a routed one at 81, a tunnelled one at 82, one with full NAT at 83, one
    /// by mark, and one of IPv6.
    fn new() -> Self {
        let ipvs = Arc::new(Ipvs::default());
        let conntrack = Arc::new(Conntrack::new(4096, 1, 8, Arc::new(Epochs::new(2))));
        conntrack.set_balancer(ipvs.clone());
        let pool: IpAddr = [10, 0, 2, 1].into();
        let four = IpAddr::from([10, 0, 2, 11]);
        let kinds = [
            (key(80), four, 8080, Forward::Masquerade),
            (key(81), four, 81, Forward::Route),
            (key(82), four, 82, Forward::Tunnel(Tunnel::Ipip)),
            (key(83), four, 8080, Forward::FullNat { first: pool, last: pool }),
            (MARKED, four, 8080, Forward::Masquerade),
            (ServiceKey::Mark { mark: 6, v6: true }, "fd00:2::11".parse().unwrap(), 0, Forward::Route),
            (SIX, "fd00:2::11".parse().unwrap(), 80, Forward::Masquerade),
        ];
        for (key, address, port, forward) in kinds {
            let scheduler = Some(Scheduler::Rr);
            let service = ServiceSpec {
                key,
                scheduler,
                flags: Default::default(),
                persistence: None,
                one_packet: false,
            };
            ipvs.global().add_service(service).unwrap();
            let server = DestinationSpec { address, port, forward, weight: 1, upper: 0, lower: 0 };
            ipvs.global().add_destination(key, server).unwrap();
        }
        let live = LiveConnections::new(ipvs.clone());
        live.attach(conntrack.clone(), || ());
        Self { ipvs, conntrack, local: Local::new(0), live }
    }

    fn server(&self, key: ServiceKey) -> Arc<Destination> {
        self.ipvs.global().table.get(&key).unwrap().view().destinations[0].clone()
    }

    /// What it tells when it looks.
    fn told(&self) -> Vec<SyncConnection> {
        let mut told = Vec::new();
        self.live.walk(&mut |_, describe| told.extend(describe()), &mut || ());
        told
    }

    /// Hears, and has its worker enter.
    fn hear(&mut self, told: &[SyncConnection]) -> Vec<Adopted> {
        let heard = told.iter().map(|connection| self.live.adopt(connection.clone())).collect();
        self.turn();
        heard
    }

    fn turn(&mut self) {
        let Self { ipvs, conntrack, local, .. } = self;
        ipvs.announced.take(100, |announced| {
            assert!(ipvs.count_announced(&announced));
            if conntrack.adopt(local, &announced, crate::clock::seconds()) != Entered::New {
                ipvs.discount_announced(&announced);
            }
        });
    }

    fn listed(&self) -> Vec<Listed> {
        let (mut all, mut from) = (Vec::new(), Some(0));
        while let Some(place) = from {
            let now = crate::clock::seconds();
            let scope = self.ipvs.global();
            from = self.ipvs.connections(&self.conntrack, scope, now, place, 100, |one| all.push(one));
        }
        all
    }

    fn counts(&self, key: ServiceKey) -> (u32, u32) {
        let server = self.server(key);
        (server.active(), server.inactive())
    }
}

fn told(port: u16) -> SyncConnection {
    SyncConnection {
        protocol: 6,
        flags: ConnectionFlags(0),
        state: tcp::ESTABLISHED.into(),
        client: ([10, 0, 1, 2], 40_000).into(),
        service: ([10, 9, 9, 9], port).into(),
        server: ([10, 0, 2, 11], 8080).into(),
        mark: 0,
        timeout: 900,
        shifts: None,
        engine: None,
        source: None,
    }
}

/// One of each kind, as a master tells it.
fn of_each_kind() -> Vec<SyncConnection> {
    let one_way = ConnectionFlags::NO_OUTPUT;
    let server = |port| ([10, 0, 2, 11], port).into();
    vec![
        told(80),
        SyncConnection { server: server(81), flags: ConnectionFlags(3 | one_way), ..told(81) },
        SyncConnection { server: server(82), flags: ConnectionFlags(2 | one_way), ..told(82) },
        SyncConnection { source: Some(([10, 0, 2, 1], 50_000).into()), ..told(83) },
        SyncConnection { mark: 5, client: ([10, 0, 1, 2], 40_001).into(), ..told(8000) },
        SyncConnection {
            client: "[fd00:1::2]:40000".parse().unwrap(),
            service: "[fd00:9::9]:80".parse().unwrap(),
            server: "[fd00:2::11]:80".parse().unwrap(),
            ..told(80)
        },
    ]
}

fn sorted(mut connections: Vec<SyncConnection>) -> Vec<SyncConnection> {
    connections.sort_by_key(|connection| (connection.client, connection.service));
    connections
}

#[test]
fn a_backup_has_the_connections_of_its_master_and_tells_of_them_alike() {
    let mut backup = Director::new();
    let all = of_each_kind();
    assert_eq!(backup.hear(&all), vec![Adopted::Yes; all.len()]);
    assert_eq!(sorted(backup.told()), sorted(all.clone()));
    for key in [key(80), key(81), key(82), key(83), MARKED, SIX] {
        assert_eq!(backup.counts(key), (1, 0), "{key:?}");
    }
    // A second time changes nothing.
    backup.hear(&all);
    assert_eq!((backup.listed().len(), backup.counts(key(80))), (all.len(), (1, 0)));
    // And a third director learns it from this one.
    let mut third = Director::new();
    third.hear(&backup.told());
    assert_eq!(sorted(third.told()), sorted(all));
}

#[test]
fn packets_of_both_sides_find_what_was_told() {
    let mut backup = Director::new();
    backup.hear(&[told(80)]);
    let table = &backup.conntrack.v4;
    let client = Tuple {
        source: [10, 0, 1, 2].into(),
        destination: [10, 9, 9, 9].into(),
        protocol: 6,
        source_port: 40_000,
        destination_port: 80,
    };
    let server = Tuple {
        source: [10, 0, 2, 11].into(),
        destination: [10, 0, 1, 2].into(),
        source_port: 8080,
        destination_port: 40_000,
        ..client
    };
    let find = |tuple| {
        let key = crate::conntrack::Key4::request(tuple).unwrap();
        table.find(&key, table.hash(&key)).expect("known")
    };
    let (there, back) = (find(&client), find(&server));
    assert_eq!((there.other(), there.is_reply(), back.is_reply()), (back, false, true));
    assert_eq!(table.half(there).translated().tuple(), server.reversed());
    assert_eq!(table.half(back).translated().tuple(), client.reversed());
    // It is in its midst, so that ordinary segments need not be judged.
    assert!(table.half(there).flags().settled() && table.half(back).flags().settled());
}

#[test]
fn states_follow_and_ends_of_replaced_connections_do_not() {
    let mut backup = Director::new();
    backup.hear(&[told(80)]);
    let inactive = ConnectionFlags(ConnectionFlags::INACTIVE);
    let closing = SyncConnection { state: tcp::TIME_WAIT.into(), flags: inactive, timeout: 120, ..told(80) };
    backup.hear(std::slice::from_ref(&closing));
    assert_eq!(backup.counts(key(80)), (0, 1));
    let listed = backup.listed();
    assert_eq!((listed.len(), listed[0].state), (1, "TIME_WAIT"));
    assert!((118..=120).contains(&listed[0].remaining), "{listed:?}");
    // The same client calls again and gets another server.
    let mut other = backup.server(key(80)).spec();
    other.port = 9090;
    backup.ipvs.global().add_destination(key(80), other).unwrap();
    let anew = SyncConnection { server: ([10, 0, 2, 11], 9090).into(), ..told(80) };
    backup.hear(std::slice::from_ref(&anew));
    assert_eq!(backup.told(), std::slice::from_ref(&anew));
    backup.hear(&[closing]);
    assert_eq!(backup.told(), [anew]);
}

#[test]
fn templates_are_told_and_followed() {
    let (mut master, mut backup) = (Director::new(), Director::new());
    let now = crate::clock::seconds();
    let scope = |director: &Director| scope_number(director.ipvs.global().settings());
    let pattern = |director: &Director| Pattern {
        client: [10, 0, 1, 0].into(),
        address: [10, 9, 9, 9].into(),
        protocol: 6,
        port: 80,
        scope: scope(director),
    };
    let server = master.server(key(80));
    assert!(server.bind(Counted::Template));
    let number =
        master.ipvs.templates.insert(&pattern(&master), (server.id(), 8080), 300, now, |_| ()).unwrap();
    master.ipvs.templates.assure(number);
    let told = master.told();
    let expected = SyncConnection {
        flags: ConnectionFlags(ConnectionFlags::TEMPLATE | ConnectionFlags::INACTIVE),
        state: 1,
        client: ([10, 0, 1, 0], 0).into(),
        timeout: 300,
        ..super::tests::told(80)
    };
    assert_eq!(told, [expected]);
    for _ in 0..2 {
        assert_eq!(backup.hear(&told), [Adopted::Yes]);
        assert_eq!(backup.server(key(80)).templates(), 1);
        assert_eq!(backup.told(), told);
    }
    // What a mark's template calls is the mark.
    let six = |mark: &str| SyncConnection {
        protocol: 0,
        flags: ConnectionFlags(ConnectionFlags::TEMPLATE | ConnectionFlags::INACTIVE),
        state: 1,
        client: "[fd00:1::2]:0".parse().unwrap(),
        service: mark.parse().unwrap(),
        server: "[fd00:2::11]:0".parse().unwrap(),
        mark: 6,
        timeout: 60,
        ..super::tests::told(0)
    };
    // Routed: the method's number is among the flags.
    let six = |mark: &str| SyncConnection { flags: ConnectionFlags(six(mark).flags.0 | 3), ..six(mark) };
    assert_eq!(backup.hear(&[six("[0:6::]:0")]), [Adopted::Yes]);
    assert!(backup.told().contains(&six("[0:6::]:0")));
    let found = backup.ipvs.templates.follow(&pattern(&backup), now, |_| ()).unwrap().unwrap();
    assert_eq!((found.1, found.2), (backup.server(key(80)).id(), 8080));
    let _ = master.hear(&[]);
}

#[test]
fn templates_live_as_long_as_connections_that_were_told_of() {
    let mut backup = Director::new();
    let mut service = backup.ipvs.global().table.get(&key(80)).unwrap().view().spec.clone();
    let mask = IpAddr::from([255, 255, 255, 0]);
    service.persistence = Some(crate::ipvs::spec::Persistence { timeout: 300, mask, sip: false });
    backup.ipvs.global().edit_service(service).unwrap();
    let template = SyncConnection {
        flags: ConnectionFlags(ConnectionFlags::TEMPLATE | ConnectionFlags::INACTIVE),
        client: ([10, 0, 1, 0], 0).into(),
        timeout: 300,
        ..told(80)
    };
    let held = |backup: &Director| {
        let mut held = Vec::new();
        backup.ipvs.templates.list(crate::clock::seconds(), |template| held.push(template.held));
        held
    };
    backup.hear(&[template, told(80)]);
    assert_eq!(held(&backup), [1]);
    // A repetition is not another connection.
    backup.hear(&[told(80)]);
    assert_eq!(held(&backup), [1]);
    backup.conntrack.flush(&Default::default(), crate::clock::seconds(), |_| ());
    assert_eq!((held(&backup), backup.counts(key(80))), (vec![0], (0, 0)));
}

#[test]
fn what_is_not_known_here_is_refused() {
    let mut backup = Director::new();
    let server = |address: [u8; 4]| SyncConnection { server: (address, 8080).into(), ..told(80) };
    let engine = super::super::message::Engine { name: b"sip".to_vec(), data: b"x".to_vec() };
    let refused = [
        told(8888),
        server([10, 0, 2, 99]),
        SyncConnection { server: ([10, 0, 2, 11], 1).into(), ..told(80) },
        SyncConnection { source: None, ..told(83) },
        SyncConnection { protocol: 17, state: 0, ..told(80) },
        SyncConnection { engine: Some(Box::new(engine)), ..told(80) },
        SyncConnection { flags: ConnectionFlags(ConnectionFlags::NO_CLIENT_PORT), ..told(80) },
    ];
    assert_eq!(backup.hear(&refused), vec![Adopted::Refused; refused.len()]);
    assert!(backup.listed().is_empty());
    // Without a table there is nowhere to put them.
    let live = LiveConnections::new(backup.ipvs.clone());
    assert_eq!(live.adopt(told(80)), Adopted::Refused);
}

#[test]
fn a_table_that_is_full_counts_nothing() {
    let mut backup = Director::new();
    let limits = crate::conntrack::Limits { entries: 1, per_port: 1, half_open: 1 };
    backup.conntrack.shared.set_limits(limits);
    let other = SyncConnection { client: ([10, 0, 1, 3], 1).into(), ..told(80) };
    backup.hear(&[told(80), other]);
    assert_eq!((backup.listed().len(), backup.counts(key(80))), (1, (1, 0)));
}

#[test]
fn a_queue_that_nobody_empties_refuses() {
    let backup = Director::new();
    let mut taken = 0;
    for port in 1..=3000 {
        let connection = SyncConnection { client: ([10, 0, 1, 2], port).into(), ..told(80) };
        if backup.live.adopt(connection) == Adopted::Refused {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, 2048);
}
