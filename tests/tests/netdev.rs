//! Netdev ports: shunt on the kernel's side of a device that somebody else holds, QEMU's own TAP above all.

use std::time::Duration;

use shunt_tests::{
    GuestSpec, Host, MUCH, NetNs, Nic, Shuntd, answers, copy_intact, iperf, is_root, pings, wait_for,
};

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_guest_on_qemus_own_tap_talks_to_a_guest_on_vhost_user() {
    if !is_root() {
        return;
    }
    let host = NetNs::new("host");
    let shuntd = Shuntd::start_within(&host);
    let socket = shuntd.vhost_port("vhost", "");
    let mut tap =
        GuestSpec::new("tap").nic(Nic::tap("qtap0").queues(2).address("10.0.0.1/24")).within(&host).launch();
    let vhost = GuestSpec::new("vhost").nic(Nic::connects(&socket).address("10.0.0.2/24")).launch();
    let mut vhost = vhost;
    wait_for("QEMU to make its TAP", SOON, || host.run("ip link show qtap0").ok().then_some(()));
    shuntd.ctl("port add tap --bridge shunt0 --netdev qtap0 --queues 2");
    tap.wait_booted();
    vhost.wait_booted();
    tap.sh("ethtool -L eth0 combined 2");
    shuntd.wait_state("tap", "up", SOON);
    answers(&tap, "10.0.0.2", SOON);
    answers(&vhost, "10.0.0.1", SOON);
    assert_eq!(pings(&tap, "10.0.0.2", 20, ""), 20);
    for options in ["", "-R", "-P4"] {
        assert!(iperf(&tap, &vhost, "10.0.0.2", 3, options).bytes > MUCH);
    }
    copy_intact(&tap, &vhost, "10.0.0.2", 16);
    copy_intact(&vhost, &tap, "10.0.0.1", 16);

    // The host's own stack is out of it: it neither answers nor has an address there.
    assert_eq!(host.sh("ip -o address show dev qtap0"), "");

    // QEMU ends and its TAP with it; the port says so and its neighbours do not care.
    tap.kill();
    shuntd.wait_state("tap", "down", SOON);
    assert!(shuntd.port("tap")["reason"].is_string(), "{}", shuntd.port("tap"));
    assert_eq!(shuntd.port("vhost")["state"], "up");
    shuntd.ctl("port del tap");
}

#[test]
fn a_veth_is_a_port_and_is_given_back_as_it_was() {
    if !is_root() {
        return;
    }
    let (host, outside) = (NetNs::new("host"), NetNs::new("outside"));
    host.veth("veth0", &outside, "eth0");
    // The kernel says of new addresses that they are tentative, for a second or two.
    host.sh("echo 0 >/proc/sys/net/ipv6/conf/veth0/accept_dad");
    host.up("veth0", Some("192.0.2.1/24"));
    outside.up("eth0", Some("10.0.0.9/24"));
    let shown = || {
        // The kernel gives it an address of its own a little after it is up.
        wait_for("the device to be up", SOON, || {
            let up = host.sh("ip -o link show veth0").contains("state UP");
            (up && !host.sh("ip -o -6 address show dev veth0 scope link").is_empty()).then_some(())
        });
        [host.sh("ip -o address show dev veth0"), host.sh("ip route"), host.sh("ip -o link show veth0")]
    };
    let before = shown();
    let shuntd = Shuntd::start_within(&host);
    let socket = shuntd.vhost_port("guest", "");
    shuntd.ctl("port add out --bridge shunt0 --netdev veth0");
    shuntd.wait_state("out", "up", SOON);
    assert_eq!(host.sh("ip -o address show dev veth0"), "", "the host's stack is to be kept out");
    let guest = GuestSpec::new("guest").nic(Nic::connects(&socket).address("10.0.0.1/24")).boot();
    answers(&guest, "10.0.0.9", SOON);
    answers(&outside, "10.0.0.1", SOON);
    assert_eq!(pings(&guest, "10.0.0.9", 20, ""), 20, "and no answer twice");
    for options in ["", "-R"] {
        assert!(iperf(&guest, &outside, "10.0.0.9", 3, options).bytes > MUCH);
    }
    copy_intact(&guest, &outside, "10.0.0.9", 16);
    copy_intact(&outside, &guest, "10.0.0.1", 16);
    let duplicates = guest.sh("ping -c5 -i0.1 10.0.0.9");
    assert!(!duplicates.contains("DUP"), "own transmissions came back: {duplicates}");

    shuntd.ctl("port del out");
    assert_eq!(shown(), before, "the device is to be as it was");
}
