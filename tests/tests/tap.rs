//! TAP ports: guests reach a host's stack, here the one of a network namespace.

use std::time::Duration;

use shunt_tests::{
    GuestSpec, Host, MUCH, NetNs, Nic, Shuntd, answers, copy_intact, iperf, is_root, pings, pings_once,
};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_guest_reaches_a_namespace_over_a_tap_with_two_queues() {
    if !is_root() {
        return;
    }
    let outside = NetNs::new("outside");
    let shuntd = Shuntd::start();
    let socket = shuntd.vhost_port("guest", "--mtu 9000");
    let mac = "02:00:00:00:00:09";
    shuntd.ctl(&format!(
        "port add out --bridge shunt0 --tap tap0 --netns {} --queues 2 --mtu 9000 --mac {mac}",
        outside.id()
    ));
    outside.up("tap0", Some("10.0.0.9/24"));
    shuntd.wait_state("out", "up", SOON);
    let link = outside.ip("-d link show tap0");
    assert!(link.contains(mac) && link.contains("mtu 9000") && link.contains("multi_queue"), "{link}");

    let guest = GuestSpec::new("guest").nic(Nic::connects(&socket).mtu(9000).address("10.0.0.1/24")).boot();
    answers(&guest, "10.0.0.9", SOON);
    answers(&outside, "10.0.0.1", SOON);
    assert_eq!(pings(&outside, "10.0.0.1", 10, "-M do -s 8972"), 10);
    for options in ["", "-R", "-P4"] {
        assert!(iperf(&guest, &outside, "10.0.0.9", 3, options).bytes > MUCH);
    }
    copy_intact(&guest, &outside, "10.0.0.9", 16);
    copy_intact(&outside, &guest, "10.0.0.1", 16);

    // The state follows the device, and a device that vanishes is a port that is down, no more.
    outside.ip("link set tap0 down");
    shuntd.wait_state("out", "down", SOON);
    outside.up("tap0", None);
    shuntd.wait_state("out", "up", SOON);
    answers(&guest, "10.0.0.9", SOON);
    outside.ip("link del tap0");
    shuntd.wait_state("out", "down", SOON);
    assert!(shuntd.port("out")["reason"].is_string(), "{}", shuntd.port("out"));
    assert_eq!(pings_once(&guest, "10.0.0.9", 2, ""), 0);

    // Made anew by command, it works again.
    shuntd.ctl("port del out");
    shuntd.ctl(&format!("port add out --bridge shunt0 --tap tap0 --netns {} --mac {mac}", outside.id()));
    outside.up("tap0", Some("10.0.0.9/24"));
    answers(&guest, "10.0.0.9", SOON);
}

#[test]
fn a_device_stays_if_it_was_there_or_is_persistent_and_goes_otherwise() {
    if !is_root() {
        return;
    }
    let here = NetNs::new("here");
    let mut shuntd = Shuntd::start_within(&here);
    let there = |device: &str| here.run(&format!("ip link show {device}")).ok();
    here.ip("tuntap add dev found mode tap vnet_hdr");
    shuntd.ctl("port add passing --bridge shunt0 --tap passing");
    shuntd.ctl("port add kept --bridge shunt0 --tap kept --persist");
    shuntd.ctl("port add found --bridge shunt0 --tap found");
    for port in ["passing", "kept", "found"] {
        assert!(there(port));
        shuntd.ctl(&format!("port del {port}"));
    }
    assert!(!there("passing") && there("kept") && there("found"));

    shuntd.ctl("port add passing --bridge shunt0 --tap passing");
    shuntd.ctl("port add kept --bridge shunt0 --tap kept --persist");
    shuntd.kill();
    assert!(!there("passing") && there("kept"));
    shuntd.launch();
    // Both ports come back by themselves.
    here.up("kept", None);
    shuntd.wait_state("kept", "up", SOON);
}

#[test]
fn two_namespaces_talk_over_a_tap_and_a_veth() {
    if !is_root() {
        return;
    }
    let [host, left, right] = ["host", "left", "right"].map(NetNs::new);
    host.veth("veth0", &right, "eth0");
    host.up("veth0", None);
    right.up("eth0", Some("10.0.0.2/24"));
    let shuntd = Shuntd::start_within(&host);
    shuntd.ctl(&format!("port add left --bridge shunt0 --tap tap0 --queues 4 --netns {}", left.id()));
    shuntd.ctl("port add right --bridge shunt0 --netdev veth0");
    left.up("tap0", Some("10.0.0.1/24"));
    answers(&left, "10.0.0.2", SOON);
    answers(&right, "10.0.0.1", SOON);
    assert_eq!(pings(&left, "10.0.0.2", 20, ""), 20);
    for options in ["", "-R", "-P4"] {
        assert!(iperf(&left, &right, "10.0.0.2", 2, options).bytes > MUCH);
    }
    copy_intact(&left, &right, "10.0.0.2", 64);
    copy_intact(&right, &left, "10.0.0.1", 64);
}
