//! Two guests on vhost-user ports of one bridge: they find each other, talk at speed, and what arrives is what was sent.

use std::time::Duration;

use shunt_tests::{
    GuestSpec, Host, Hugepages, MUCH, Nic, Shuntd, answers, boot_all, copy_intact, iperf, pings, pings_once,
    progress, start_iperf,
};

const SOON: Duration = Duration::from_secs(15);

/// Virtio feature bits, virtio 1.3, sections 5.1.3 and 6.
mod bit {
    pub(super) const MTU: usize = 3;
    pub(super) const MRG_RXBUF: usize = 15;
    pub(super) const GUEST_ANNOUNCE: usize = 21;
    pub(super) const MQ: usize = 22;
    pub(super) const INDIRECT_DESC: usize = 28;
    pub(super) const EVENT_IDX: usize = 29;
    pub(super) const VERSION_1: usize = 32;
}

#[test]
fn two_guests_talk_whoever_listens_on_the_socket() {
    let shuntd = Shuntd::start();
    let server = shuntd.vhost_port("a", "");
    let client = shuntd.path("b.sock");
    shuntd.ctl(&format!("port add b --bridge shunt0 --vhost-user {} --role client", client.display()));
    assert_eq!(shuntd.port("a")["state"], "connecting");
    assert_eq!(shuntd.port("b")["state"], "connecting");
    let [a, b] = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&server).address("10.0.0.1/24")),
        GuestSpec::new("b").nic(Nic::listens(&client).address("10.0.0.2/24")),
    ]);
    shuntd.wait_state("a", "up", SOON);
    shuntd.wait_state("b", "up", SOON);
    for guest in [&a, &b] {
        let features = guest.features(0);
        for bit in [bit::VERSION_1, bit::MRG_RXBUF, bit::INDIRECT_DESC, bit::EVENT_IDX, bit::GUEST_ANNOUNCE] {
            assert!(features[bit], "{}: feature {bit} was not negotiated", guest.name());
        }
    }

    answers(&a, "10.0.0.2", SOON);
    answers(&b, "10.0.0.1", SOON);
    assert_eq!(pings(&a, "10.0.0.2", 20, ""), 20);
    assert_eq!(pings(&b, "10.0.0.1", 20, "-s 1472 -M do"), 20);
    copy_intact(&a, &b, "10.0.0.2", 16);
    copy_intact(&b, &a, "10.0.0.1", 16);
    for options in ["", "-R", "-P4"] {
        assert!(iperf(&a, &b, "10.0.0.2", 3, options).bytes > MUCH);
    }
    let udp = iperf(&a, &b, "10.0.0.2", 2, "-u -b 20M");
    assert!(udp.bytes > MUCH && udp.lost_percent < 50.0, "{udp:?}");

    // The switch has learned who is where, and counted what went by.
    let fdb = shuntd.ctl("fdb list shunt0");
    let entries = fdb.as_array().expect("fdb list is an array");
    for (guest, port) in [(&a, "a"), (&b, "b")] {
        let entry = entries.iter().find(|entry| entry["mac"] == guest.mac(0).as_str());
        let entry = entry.unwrap_or_else(|| panic!("{} is not in {fdb}", guest.mac(0)));
        assert_eq!(entry["port"], port);
        assert_eq!(entry["static"], false);
    }
    for port in ["a", "b"] {
        for direction in ["rx", "tx"] {
            assert!(shuntd.counter(port, direction, "bytes") > 32 << 20, "{}", shuntd.port(port));
        }
        assert_eq!(shuntd.drops(port, "rx", "bad_offload"), 0, "{}", shuntd.port(port));
    }

    // IPv6 with its multicast neighbour discovery, and a VLAN, whose tag the switch carries.
    for (guest, host) in [(&a, 1), (&b, 2)] {
        guest.sh(&format!(
            "ip address add fd00::{host}/64 dev eth0 nodad; modprobe 8021q; \
             ip link add link eth0 name eth0.10 type vlan id 10; ip link set eth0.10 up; \
             ip address add 10.10.0.{host}/24 dev eth0.10"
        ));
    }
    answers(&a, "fd00::2", SOON);
    copy_intact(&a, &b, "fd00::2", 8);
    answers(&a, "10.10.0.2", SOON);
    copy_intact(&b, &a, "10.10.0.1", 8);
}

#[test]
fn four_queue_pairs_and_ethtool_changes_their_number_under_traffic() {
    let shuntd = Shuntd::start();
    let [a, b] = ["a", "b"].map(|name| shuntd.vhost_port(name, "--queues 4"));
    let [a, b] = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&a).queues(4).address("10.0.0.1/24")),
        GuestSpec::new("b").nic(Nic::connects(&b).queues(4).address("10.0.0.2/24")),
    ]);
    assert!(a.features(0)[bit::MQ] && b.features(0)[bit::MQ]);
    answers(&a, "10.0.0.2", SOON);
    for guest in [&a, &b] {
        guest.sh("ethtool -L eth0 combined 4");
    }
    assert!(iperf(&a, &b, "10.0.0.2", 3, "-P8").bytes > MUCH);
    let used = a.sh("ethtool -S eth0 | awk '/tx_queue_[0-9]+_packets/ && $2 > 0' | wc -l");
    assert!(used.parse::<u32>().is_ok_and(|used| used >= 2), "{used} transmit queues were used");

    let traffic = start_iperf(&a, &b, "10.0.0.2", 12, "-P4");
    for (guest, pairs) in [(&a, 1), (&b, 2), (&a, 3), (&b, 1), (&a, 4), (&b, 4)] {
        guest.sh(&format!("ethtool -L eth0 combined {pairs}"));
        progress!("{} has {pairs} queue pairs", guest.name());
        answers(&b, "10.0.0.1", SOON);
    }
    assert!(traffic.finish().bytes > MUCH);
    copy_intact(&a, &b, "10.0.0.2", 8);
    copy_intact(&b, &a, "10.0.0.1", 8);
}

#[test]
fn jumbo_frames_pass_up_to_the_mtu_and_no_further() {
    let shuntd = Shuntd::start();
    let [a, b] = ["a", "b"].map(|name| shuntd.vhost_port(name, "--mtu 9000"));
    let small = shuntd.vhost_port("small", "--mtu 1500");
    let [a, b, small] = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&a).mtu(9000).address("10.0.0.1/24")),
        GuestSpec::new("b").nic(Nic::connects(&b).mtu(9000).address("10.0.0.2/24")),
        GuestSpec::new("small").nic(Nic::connects(&small).address("10.0.0.3/24")),
    ]);
    assert!(a.features(0)[bit::MTU]);
    assert_eq!(a.sh("cat /sys/class/net/eth0/mtu"), "9000");
    answers(&a, "10.0.0.2", SOON);
    assert_eq!(pings(&a, "10.0.0.2", 10, "-M do -s 8972"), 10);
    assert_eq!(pings_once(&a, "10.0.0.2", 1, "-M do -s 8973"), 0, "one byte more than the MTU allows");
    copy_intact(&a, &b, "10.0.0.2", 16);
    for options in ["", "-R"] {
        assert!(iperf(&a, &b, "10.0.0.2", 3, options).bytes > MUCH);
    }

    // To a port with a smaller MTU only what fits arrives; the rest is counted there.
    answers(&a, "10.0.0.3", SOON);
    assert_eq!(pings(&a, "10.0.0.3", 5, "-M do -s 1472"), 5);
    assert_eq!(shuntd.drops("small", "tx", "mtu_exceeded"), 0);
    assert_eq!(pings_once(&a, "10.0.0.3", 5, "-M do -s 4000"), 0);
    assert_eq!(shuntd.drops("small", "tx", "mtu_exceeded"), 5);
    drop(small);
}

#[test]
fn guests_with_old_and_plain_drivers_talk_to_modern_ones() {
    let shuntd = Shuntd::start();
    let names = ["modern", "legacy", "plain"];
    let [modern, legacy, plain] = names.map(|name| shuntd.vhost_port(name, ""));
    let plain = ["mrg_rxbuf", "indirect_desc", "event_idx"]
        .iter()
        .fold(Nic::connects(&plain).without_tso(), |nic, feature| nic.property(feature, "off"));
    let guests = boot_all([
        GuestSpec::new("modern").nic(Nic::connects(&modern).address("10.0.0.1/24")),
        GuestSpec::new("legacy").nic(Nic::connects(&legacy).legacy().address("10.0.0.2/24")),
        GuestSpec::new("plain").nic(plain.property("rx_queue_size", "1024").address("10.0.0.3/24")),
    ]);
    let [modern, legacy, plain] = &guests;
    assert!(modern.features(0)[bit::VERSION_1] && !legacy.features(0)[bit::VERSION_1]);
    for feature in [bit::MRG_RXBUF, bit::INDIRECT_DESC, bit::EVENT_IDX] {
        assert!(!plain.features(0)[feature], "feature {feature}");
    }
    let pairs = [(modern, legacy, "10.0.0.2"), (legacy, plain, "10.0.0.3"), (plain, modern, "10.0.0.1")];
    for (from, to, address) in pairs {
        answers(from, address, SOON);
        assert_eq!(pings(from, address, 10, "-s 1400"), 10);
        copy_intact(from, to, address, 8);
        assert!(iperf(from, to, address, 2, "-R").bytes > MUCH);
    }
}

#[test]
fn a_guest_on_hugepages_talks_to_one_on_ordinary_memory() {
    let Some(_pages) = Hugepages::reserve(128) else { return };
    let shuntd = Shuntd::start();
    let [huge, plain] = ["huge", "plain"].map(|name| shuntd.vhost_port(name, ""));
    let [mut huge, plain] = boot_all([
        GuestSpec::new("huge").nic(Nic::connects(&huge).address("10.0.0.1/24")).hugepages(),
        GuestSpec::new("plain").nic(Nic::connects(&plain).address("10.0.0.2/24")),
    ]);
    answers(&huge, "10.0.0.2", SOON);
    copy_intact(&huge, &plain, "10.0.0.2", 8);
    copy_intact(&plain, &huge, "10.0.0.1", 8);
    // Its pages must be given back for the next one to start.
    huge.kill();
    shuntd.wait_state("huge", "connecting", SOON);
    huge.restart();
    answers(&plain, "10.0.0.1", SOON);
}
