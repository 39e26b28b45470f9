//! Daemons with real sockets, on the loopback interface.
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::daemons::Show;
use super::message::{ConnectionFlags, Encoder, HEADER, SyncConnection};
use super::timing::Look;
use super::*;

#[derive(Default)]
struct Fake {
    live: Mutex<Vec<(Look, SyncConnection)>>,
    heard: Mutex<Vec<SyncConnection>>,
}

impl Connections for Fake {
    fn walk(&self, show: &mut Show<'_>, rest: &mut dyn FnMut()) {
        for (number, (look, connection)) in self.live.lock().unwrap().iter().enumerate() {
            show(look, &|| Some(connection.clone()));
            if number % 100 == 99 {
                rest();
            }
        }
    }

    fn settings(&self) -> SyncSettings {
        SyncSettings::default()
    }

    fn adopt(&self, connection: SyncConnection) -> Adopted {
        let refused = connection.mark == 99;
        self.heard.lock().unwrap().push(connection);
        if refused { Adopted::Refused } else { Adopted::Yes }
    }
}

fn connection(number: u16) -> SyncConnection {
    SyncConnection {
        protocol: 6,
        flags: ConnectionFlags(0),
        state: 1,
        client: ([10, 0, 1, 2], number).into(),
        service: ([10, 9, 9, 9], 80).into(),
        server: ([10, 0, 2, 11], 8080).into(),
        mark: 0,
        timeout: 900,
        shifts: None,
        engine: None,
        source: None,
    }
}

fn look(number: u16) -> Look {
    Look {
        id: number.into(),
        protocol: 6,
        state: 1,
        template: false,
        under_template: false,
        packets: 3,
        timeout: 900,
        age: 0,
    }
}

/// A port that nobody has.
fn free_port(address: &str) -> u16 {
    UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

fn spec(role: Role, group: &str, port: u16) -> DaemonSpec {
    DaemonSpec {
        group: Some(group.parse().unwrap()),
        port: Some(port),
        sync_id: 3,
        ..DaemonSpec::new(role, "lo")
    }
}

fn wait_until(what: &str, mut true_: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !true_() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn counter(daemons: &Daemons, name: &str) -> u64 {
    let (_, counters) = daemons.list().next().unwrap();
    counters.list().iter().find(|(known, _)| *known == name).unwrap().1
}

fn backup(group: &str) -> (Arc<Fake>, Daemons, u16) {
    let fake = Arc::new(Fake::default());
    let mut daemons = Daemons::new(fake.clone());
    let port = free_port(group);
    daemons.start(&spec(Role::Backup, group, port)).unwrap();
    (fake, daemons, port)
}

#[test]
fn a_backup_hears_all_that_its_master_tells() {
    for group in ["127.0.0.1", "::1"] {
        let (heard, _backup, port) = backup(group);
        let told = Arc::new(Fake::default());
        // More than messages of 1472 bytes hold.
        let all: Vec<_> = (1..=500).map(connection).collect();
        *told.live.lock().unwrap() = (1..=500).map(look).zip(all.clone()).collect();
        let mut master = Daemons::new(told.clone());
        let config = master.start(&spec(Role::Master, group, port)).unwrap();
        assert_eq!((config.max_length, config.sync_id), (if group == "::1" { 1452 } else { 1472 }, 3));
        wait_until("all are heard of", || heard.heard.lock().unwrap().len() == 500);
        assert_eq!(*heard.heard.lock().unwrap(), all);
        // Nothing new, nothing told; then a connection ends.
        told.live.lock().unwrap()[7].0.state = 5;
        told.live.lock().unwrap()[7].1.state = 5;
        wait_until("the change is heard of", || heard.heard.lock().unwrap().len() > 500);
        assert_eq!(heard.heard.lock().unwrap()[500..], [SyncConnection { state: 5, ..connection(8) }]);
        assert_eq!(counter(&master, "connections"), 501);
        master.stop(Role::Master).unwrap();
        assert_eq!(master.list().count(), 0);
    }
}

#[test]
fn a_backup_counts_what_it_does_not_take() {
    let (heard, mut daemons, port) = backup("127.0.0.1");
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |bytes: &[u8]| assert_eq!(other.send_to(bytes, ("127.0.0.1", port)).unwrap(), bytes.len());
    let message = |sync_id, connection: &SyncConnection| {
        let mut encoder = Encoder::new(sync_id, 1472);
        assert!(encoder.push(connection));
        encoder.message().to_vec()
    };
    send(b"");
    send(&[0; 70_000 / 2]);
    send(&message(4, &connection(1)));
    let mut broken = message(3, &connection(2));
    broken[HEADER + 2..HEADER + 4].copy_from_slice(&[0, 1]);
    send(&broken);
    send(&message(3, &SyncConnection { protocol: 47, ..connection(3) }));
    send(&message(3, &SyncConnection { mark: 99, ..connection(4) }));
    send(&message(3, &connection(5)));
    wait_until("the last one is heard of", || heard.heard.lock().unwrap().len() == 2);
    let names = ["messages", "connections", "foreign", "malformed", "unknown", "refused"];
    assert_eq!(names.map(|name| counter(&daemons, name)), [4, 2, 1, 3, 1, 1]);
    daemons.stop(Role::Backup).unwrap();
    // The port is free again.
    UdpSocket::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn there_is_one_daemon_of_a_role() {
    let mut daemons = Daemons::new(Arc::new(Fake::default()));
    let port = free_port("127.0.0.1");
    for role in [Role::Backup, Role::Master] {
        assert!(matches!(daemons.stop(role), Err(DaemonError::NotRunning(_))));
        daemons.start(&spec(role, "127.0.0.1", port)).unwrap();
        let again = daemons.start(&spec(role, "127.0.0.1", port));
        assert!(matches!(again, Err(DaemonError::Exists(exists)) if exists == role));
    }
    let roles: Vec<_> = daemons.list().map(|(config, _)| config.role).collect();
    assert_eq!(roles, [Role::Master, Role::Backup]);
    daemons.stop(Role::Master).unwrap();
    daemons.stop(Role::Backup).unwrap();
}

#[test]
fn what_cannot_be_started_says_why() {
    let mut daemons = Daemons::new(Arc::new(Fake::default()));
    let none = daemons.start(&DaemonSpec::new(Role::Master, "no-such-device")).unwrap_err();
    assert_eq!(
        none.to_string(),
        "there is no network interface \"no-such-device\" in the daemon's namespace"
    );
    let foreign = daemons.start(&spec(Role::Backup, "192.0.2.77", 8848)).unwrap_err();
    assert!(foreign.to_string().starts_with("the backup daemon cannot listen at the group: "), "{foreign}");
    assert!(matches!(daemons.start(&DaemonSpec::new(Role::Backup, "a/b")), Err(DaemonError::Invalid(_))));
    assert_eq!(daemons.list().count(), 0);
}
