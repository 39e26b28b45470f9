//! Guests that negotiated different offloads understand each other: what a receiver cannot take, the switch finishes.

use std::time::Duration;

use shunt_tests::{
    GuestSpec, Host, MUCH, NetNs, Nic, Shuntd, answers, boot_all, copy_intact, iperf, is_root,
};

const SOON: Duration = Duration::from_secs(15);

/// Virtio feature bits, virtio 1.3, section 5.1.3.
const CSUM: usize = 0;
const GUEST_CSUM: usize = 1;
const GUEST_TSO4: usize = 7;
const HOST_TSO4: usize = 11;

#[test]
fn every_mix_of_offloads_delivers_every_byte() {
    let shuntd = Shuntd::start();
    let [all, no_tso, none] = ["all", "no-tso", "none"].map(|name| shuntd.vhost_port(name, ""));
    let guests = boot_all([
        GuestSpec::new("all").nic(Nic::connects(&all).address("10.0.0.1/24")),
        GuestSpec::new("no-tso").nic(Nic::connects(&no_tso).without_tso().address("10.0.0.2/24")),
        GuestSpec::new("none").nic(Nic::connects(&none).without_offloads().address("10.0.0.3/24")),
    ]);
    for (guest, expected) in guests.iter().zip([[true; 4], [true, true, false, false], [false; 4]]) {
        let features = guest.features(0);
        let negotiated = [CSUM, GUEST_CSUM, HOST_TSO4, GUEST_TSO4].map(|bit| features[bit]);
        assert_eq!(negotiated, expected, "{}", guest.name());
    }
    for (index, guest) in guests.iter().enumerate() {
        guest.sh(&format!("ip address add fd00::{}/64 dev eth0 nodad", index + 1));
    }
    for from in &guests {
        for (index, to) in guests.iter().enumerate().filter(|(_, to)| to.name() != from.name()) {
            let address = format!("10.0.0.{}", index + 1);
            answers(from, &address, SOON);
            copy_intact(from, to, &address, 8);
            copy_intact(from, to, &format!("fd00::{}", index + 1), 4);
            assert!(iperf(from, to, &address, 2, "").bytes > MUCH);
        }
    }
    // A wrong checksum would be counted by the receiver that verifies it.
    for guest in &guests {
        let errors = guest.sh("awk '/^Tcp:/ && $2 ~ /[0-9]/ { print $16 }' /proc/net/snmp");
        assert_eq!(errors, "0", "{}: TCP segments with wrong checksums", guest.name());
    }
    for port in ["all", "no-tso", "none"] {
        assert_eq!(shuntd.drops(port, "tx", "offload_failed"), 0);
        assert_eq!(shuntd.drops(port, "rx", "bad_offload"), 0);
    }
}

#[test]
fn a_namespace_behind_a_tap_takes_and_gives_large_segments() {
    if !is_root() {
        return;
    }
    let outside = NetNs::new("outside");
    let shuntd = Shuntd::start();
    let [all, none] = ["all", "none"].map(|name| shuntd.vhost_port(name, ""));
    shuntd.ctl(&format!("port add out --bridge shunt0 --tap tap0 --netns {}", outside.id()));
    outside.up("tap0", Some("10.0.0.9/24"));
    let guests = boot_all([
        GuestSpec::new("all").nic(Nic::connects(&all).address("10.0.0.1/24")),
        GuestSpec::new("none").nic(Nic::connects(&none).without_offloads().address("10.0.0.2/24")),
    ]);
    let features = outside.sh("ethtool -k tap0");
    assert!(features.contains("tcp-segmentation-offload: on"), "{features}");
    for (guest, address) in guests.iter().zip(["10.0.0.1", "10.0.0.2"]) {
        answers(guest, "10.0.0.9", SOON);
        copy_intact(guest, &outside, "10.0.0.9", 8);
        copy_intact(&outside, guest, address, 8);
        for options in ["", "-R"] {
            assert!(iperf(guest, &outside, "10.0.0.9", 2, options).bytes > MUCH);
        }
    }
    // With the device's own offloads off, the host's checks see what the switch made.
    outside.sh("ethtool -K tap0 tso off tx off rx off gro off");
    for (guest, address) in guests.iter().zip(["10.0.0.1", "10.0.0.2"]) {
        copy_intact(guest, &outside, "10.0.0.9", 8);
        copy_intact(&outside, guest, address, 8);
    }
}
