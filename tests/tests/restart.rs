//! Either side may die and come back at any time: the port survives, and traffic resumes without any command.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shunt_tests::hostile::Neighbour;
use shunt_tests::{
    Guest, GuestSpec, Host, MUCH, Nic, Shuntd, answers, boot_all, copy_intact, iperf, pings_once, progress,
    start_iperf, start_stream, wait_for,
};

const SOON: Duration = Duration::from_secs(20);

/// A daemon on a configuration file with port `a` in role server and port `b` in role client, and a guest on each.
fn spine() -> (Shuntd, [Guest; 2]) {
    let shuntd = Shuntd::new();
    let [a, b] = ["a.sock", "b.sock"].map(|file| shuntd.path(file));
    let mut shuntd = shuntd.config(&format!(
        "[[bridge]]\nname = \"shunt0\"\n\n\
         [[port]]\nname = \"a\"\nbridge = \"shunt0\"\nvhost_user = \"{}\"\n\n\
         [[port]]\nname = \"b\"\nbridge = \"shunt0\"\nvhost_user = \"{}\"\nrole = \"client\"\n",
        a.display(),
        b.display()
    ));
    shuntd.launch();
    let guests = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&a).address("10.0.0.1/24")),
        GuestSpec::new("b").nic(Nic::listens(&b).address("10.0.0.2/24")),
    ]);
    answers(&guests[0], "10.0.0.2", SOON);
    (shuntd, guests)
}

#[test]
fn guests_reboot_and_qemus_die_and_the_ports_take_them_back() {
    let (mut shuntd, [mut a, mut b]) = spine();
    let daemon = shuntd.pid();

    progress!("both guests reboot, their QEMUs stay");
    a.reboot();
    answers(&b, "10.0.0.1", SOON);
    b.reboot();
    answers(&a, "10.0.0.2", SOON);
    copy_intact(&a, &b, "10.0.0.2", 8);

    progress!("the QEMU that connects is killed");
    a.kill();
    shuntd.wait_state("a", "connecting", SOON);
    a.restart();
    shuntd.wait_state("a", "up", SOON);
    answers(&b, "10.0.0.1", SOON);

    progress!("the QEMU that listens is killed while the other guest sends");
    let flood = a.start("ping -f -s 1400 -w 10 10.0.0.2", Duration::from_secs(20));
    b.kill();
    shuntd.wait_state("b", "connecting", SOON);
    b.restart();
    shuntd.wait_state("b", "up", SOON);
    answers(&a, "10.0.0.2", SOON);
    drop(flood.wait());
    copy_intact(&a, &b, "10.0.0.2", 8);
    copy_intact(&b, &a, "10.0.0.1", 8);

    progress!("a stopped guest does not hold up the switch");
    b.qmp("stop", serde_json::json!({}));
    assert_eq!(pings_once(&a, "10.0.0.2", 2, ""), 0);
    assert_eq!(shuntd.port("a")["state"], "up");
    b.qmp("cont", serde_json::json!({}));
    answers(&a, "10.0.0.2", SOON);

    progress!("the driver lets go of the device and takes it again");
    b.sh("device=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
          echo $device >unbind; echo $device >bind");
    wait_for("the guest's device to come back", SOON, || b.run("ip link set eth0 up").ok().then_some(()));
    b.sh("ip address replace 10.0.0.2/24 dev eth0");
    answers(&a, "10.0.0.2", SOON);
    assert!(shuntd.alive() && shuntd.pid() == daemon, "shuntd was not to end");
}

/// A QEMU that is killed in the midst of traffic in both directions leaves its rings as they are at that moment.
#[test]
fn a_qemu_that_is_killed_under_traffic_costs_nobody_else_a_frame() {
    let (mut shuntd, [mut a, b]) = spine();
    let daemon = shuntd.pid();
    let (one, other) = (shuntd.vhost_port("one", ""), shuntd.vhost_port("other", ""));
    let neighbour = Neighbour::start(&one, &other);
    let before = neighbour.seen();
    assert_eq!(before.lost, 0, "{before:?}");
    for round in 1..=3 {
        // Each way at once, so that both rings are in use.
        let there = a.start("ping -f -s 1400 -w 60 10.0.0.2", Duration::from_secs(70));
        let back = b.start("ping -f -s 1400 -w 60 10.0.0.1", Duration::from_secs(70));
        let counted = || (shuntd.counter("a", "rx", "packets"), shuntd.counter("a", "tx", "packets"));
        let (sent, received) = counted();
        wait_for("traffic in both directions", SOON, || {
            let now = counted();
            (now.0 > sent + 200 && now.1 > received + 200).then_some(())
        });
        a.kill();
        let killed = Instant::now();
        shuntd.wait_state("a", "connecting", SOON);
        let noticed = killed.elapsed();
        let seen = neighbour.seen();
        assert_eq!(seen.lost, 0, "{seen:?}");
        drop(there);
        a.restart();
        shuntd.wait_state("a", "up", SOON);
        answers(&b, "10.0.0.1", SOON);
        copy_intact(&b, &a, "10.0.0.1", 8);
        drop(back);
        let seen = neighbour.seen();
        assert_eq!(seen.lost, 0, "{seen:?}");
        progress!("round {round}: noticed after {noticed:?}; the others {seen:?}");
    }
    assert!(shuntd.alive() && shuntd.pid() == daemon, "shuntd was not to end");
}

#[test]
fn a_killed_shuntd_comes_back_and_so_does_the_traffic() {
    let (mut shuntd, [a, b]) = spine();
    let traffic = start_iperf(&a, &b, "10.0.0.2", 15, "");
    for round in 1..=2 {
        shuntd.kill();
        progress!("shuntd was killed, round {round}");
        shuntd.launch();
        answers(&a, "10.0.0.2", SOON);
        answers(&b, "10.0.0.1", SOON);
    }
    assert!(traffic.finish().bytes > MUCH, "a connection that stood before is to go on");
    for port in ["a", "b"] {
        assert_eq!(shuntd.port(port)["state"], "up");
    }
    copy_intact(&a, &b, "10.0.0.2", 8);
    assert!(iperf(&a, &b, "10.0.0.2", 2, "-R").bytes > MUCH);

    progress!("the same with an orderly end");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let status = shuntd.end(signal);
        assert!(status.success(), "shuntd ended with {status} on {signal}");
        for file in ["control.sock", "a.sock"] {
            assert!(!shuntd.path(file).exists(), "{file} is left behind");
        }
        shuntd.launch();
        answers(&a, "10.0.0.2", SOON);
    }
    copy_intact(&b, &a, "10.0.0.1", 8);
}

#[test]
fn ports_come_and_go_under_traffic_of_others() {
    let (shuntd, [a, b]) = spine();
    let traffic = start_iperf(&a, &b, "10.0.0.2", 8, "");
    for round in 0..20 {
        let name = format!("p{round}");
        let path = shuntd.vhost_port(&name, "");
        assert!(path.exists());
        shuntd.ctl(&format!("port del {name}"));
        assert!(!path.exists(), "the socket of a removed port is to go");
    }
    assert!(traffic.finish().bytes > MUCH);
    // The guest of a removed port waits; a port on the same path takes it again.
    shuntd.ctl("port del a");
    assert_eq!(pings_once(&b, "10.0.0.1", 2, ""), 0);
    shuntd.vhost_port("a", "");
    answers(&b, "10.0.0.1", SOON);
}

/// Stops the guest for a moment, so that its rings are taken back from the switch, and checks that there is nothing that
/// was taken and not given back.
fn rings_are_whole(guest: &Guest) {
    guest.qmp("stop", serde_json::json!({}));
    let devices = guest.qmp("x-query-virtio", serde_json::json!({}));
    let net = devices.as_array().into_iter().flatten().find(|device| device["name"] == "virtio-net");
    let path = &net.unwrap_or_else(|| panic!("no NIC among {devices}"))["path"];
    for queue in 0..2 {
        let status =
            guest.qmp("x-query-virtio-queue-status", serde_json::json!({"path": path, "queue": queue}));
        let (taken, back) = (status["last-avail-idx"].as_u64(), status["used-idx"].as_u64());
        assert!(taken.is_some() && taken == back, "queue {queue} of {}: {status}", guest.name());
    }
    guest.qmp("cont", serde_json::json!({}));
}

/// SIGKILL at full load, again and again: streams in both directions go on and arrive unchanged.
fn killed_under_load(nic: fn(&Path) -> Nic) {
    let shuntd = Shuntd::new();
    let [at, bt] = ["a.sock", "b.sock"].map(|file| shuntd.path(file));
    let port = |name: &str, path: &Path| {
        format!("[[port]]\nname = \"{name}\"\nbridge = \"shunt0\"\nvhost_user = \"{}\"\n\n", path.display())
    };
    let mut shuntd =
        shuntd.config(&format!("[[bridge]]\nname = \"shunt0\"\n\n{}{}", port("a", &at), port("b", &bt)));
    shuntd.launch();
    let [a, b] = boot_all([
        GuestSpec::new("a").nic(nic(&at).address("10.0.0.1/24")),
        GuestSpec::new("b").nic(nic(&bt).address("10.0.0.2/24")),
    ]);
    answers(&a, "10.0.0.2", SOON);
    let limit = Duration::from_secs(300);
    let (there, back) = (start_stream(&a, &b, "10.0.0.2", limit), start_stream(&b, &a, "10.0.0.1", limit));
    for round in 1..=4 {
        let before = shuntd.counter("a", "rx", "packets") + shuntd.counter("b", "rx", "packets");
        wait_for("the streams to flow", SOON, || {
            let now = shuntd.counter("a", "rx", "packets") + shuntd.counter("b", "rx", "packets");
            (now > before + 100).then_some(())
        });
        shuntd.kill();
        progress!("shuntd was killed under load, round {round}");
        shuntd.launch();
        answers(&a, "10.0.0.2", SOON);
        answers(&b, "10.0.0.1", SOON);
    }
    assert!(there.finish(&a, &b) > 0 && back.finish(&b, &a) > 0);
    for guest in [&a, &b] {
        rings_are_whole(guest);
    }
    answers(&a, "10.0.0.2", SOON);
    // More packets than a ring has entries, in both directions: none of these is missing.
    copy_intact(&a, &b, "10.0.0.2", 4);
    copy_intact(&b, &a, "10.0.0.1", 4);
    for port in ["a", "b"] {
        assert_eq!(shuntd.port(port)["state"], "up");
    }
}

#[test]
fn a_shuntd_killed_under_load_loses_no_descriptor_of_split_rings() {
    killed_under_load(Nic::connects);
}

#[test]
fn a_shuntd_killed_under_load_loses_no_descriptor_of_packed_rings() {
    killed_under_load(|path| Nic::connects(path).property("packed", "on"));
}
