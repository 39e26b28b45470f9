//! Live migration: a guest with connections moves from one QEMU to another, on another port of the switch.

use std::path::Path;
use std::time::Duration;

use shunt_tests::{
    Guest, GuestSpec, Nic, Shuntd, answers, boot_all, copy_intact, pings, progress, start_stream, wait_for,
};

const SOON: Duration = Duration::from_secs(20);
const TRANSFER: Duration = Duration::from_secs(300);

/// Moves `guest` from port `from` to the NIC of port `to`, and checks that memory was logged on the way.
fn move_it(shuntd: &Shuntd, guest: &mut Guest, from: &str, to: &str, nic: Nic) {
    progress!("from port {from} to port {to}");
    assert!(!logs(shuntd, from), "nothing is to be logged before");
    let migration = guest.start_migration(vec![nic]);
    wait_for("dirty pages to be logged", SOON, || logs(shuntd, from).then_some(()));
    let moved = guest.finish_migration(migration);
    assert!(moved.rounds > 1, "pages written meanwhile are to be copied again");
    shuntd.wait_state(from, "connecting", SOON);
    shuntd.wait_state(to, "up", SOON);
    assert!(!logs(shuntd, to), "nothing is to be logged after");
}

/// Whether the frontend of a port has it log dirty pages.
fn logs(shuntd: &Shuntd, port: &str) -> bool {
    let shown = shuntd.port(port);
    let features = shown["features"].as_array().unwrap_or_else(|| panic!("no features in {shown}"));
    features.iter().any(|name| name == "LOG_ALL")
}

/// Two streams, one each way, go on while their guest moves to another port and back.
fn connections_survive(nic: fn(&Path) -> Nic) {
    let shuntd = Shuntd::start();
    let [at, one, two] = ["peer", "one", "two"].map(|name| shuntd.vhost_port(name, "--queues 2"));
    let nic = |path| nic(path).address("10.0.0.2/24");
    let [peer, mut guest] = boot_all([
        GuestSpec::new("peer").nic(Nic::connects(&at).address("10.0.0.1/24")),
        GuestSpec::new("mover").nic(nic(&one)),
    ]);
    answers(&peer, "10.0.0.2", SOON);
    let there = start_stream(&peer, &guest, "10.0.0.2", TRANSFER);
    let back = start_stream(&guest, &peer, "10.0.0.1", TRANSFER);
    move_it(&shuntd, &mut guest, "one", "two", nic(&two));
    move_it(&shuntd, &mut guest, "two", "one", nic(&one));
    assert!(there.finish(&peer, &guest) > 0 && back.finish(&guest, &peer) > 0);
    assert_eq!(pings(&peer, "10.0.0.2", 10, ""), 10);
    copy_intact(&guest, &peer, "10.0.0.1", 4);
}

#[test]
fn connections_survive_a_move_with_split_rings() {
    connections_survive(Nic::connects);
}

#[test]
fn connections_survive_a_move_with_packed_rings_and_two_queues() {
    connections_survive(|path| Nic::connects(path).queues(2).property("packed", "on"));
}
