//! Linux guests with packed rings: beside guests with split ones, over reboots, and when either side is killed.

use std::time::Duration;

use serde_json::json;
use shunt_tests::{
    Guest, GuestSpec, Host, MUCH, Nic, Shuntd, answers, boot_all, copy_intact, iperf, wait_for,
};

const SOON: Duration = Duration::from_secs(15);
const RING_PACKED: usize = 34;

fn packed(nic: Nic) -> Nic {
    nic.property("packed", "on")
}

/// Every byte arrives, both ways, with large segments.
fn exchange(one: &Guest, other: &Guest, addresses: [&str; 2]) {
    answers(one, addresses[1], SOON);
    copy_intact(one, other, addresses[1], 16);
    copy_intact(other, one, addresses[0], 16);
    for options in ["", "-R"] {
        assert!(iperf(one, other, addresses[1], 2, options).bytes > MUCH);
    }
    assert!(iperf(one, other, addresses[1], 2, "-u -b 20M").bytes > 0);
}

fn sound(shuntd: &Shuntd, ports: &[&str]) {
    for port in ports {
        let shown = shuntd.port(port);
        assert_ne!(shown["state"], "broken", "{shown}");
        assert_eq!(shown["rx"]["errors"], 0, "{shown}");
    }
}

#[test]
fn packed_and_split_guests_exchange_every_byte_and_reboot() {
    let shuntd = Shuntd::start();
    let many = shuntd.vhost_port("many", "--queues 4");
    let [one, split] = ["one", "split"].map(|name| shuntd.vhost_port(name, ""));
    let mut guests = boot_all([
        GuestSpec::new("many").nic(packed(Nic::connects(&many)).queues(4).address("10.0.0.1/24")),
        // No mergeable buffers: one large buffer for each frame; and notifications by flags alone.
        GuestSpec::new("one").nic(
            packed(Nic::connects(&one))
                .property("mrg_rxbuf", "off")
                .property("event_idx", "off")
                .address("10.0.0.2/24"),
        ),
        GuestSpec::new("split").nic(Nic::connects(&split).address("10.0.0.3/24")),
    ]);
    for (guest, expected) in guests.iter().zip([true, true, false]) {
        assert_eq!(guest.features(0)[RING_PACKED], expected, "{}", guest.name());
    }
    let [many, one, split] = &mut guests;
    exchange(many, one, ["10.0.0.1", "10.0.0.2"]);
    exchange(many, split, ["10.0.0.1", "10.0.0.3"]);
    exchange(one, split, ["10.0.0.2", "10.0.0.3"]);
    // Queues come and go while others run.
    for queues in [1, 4, 2] {
        many.sh(&format!("ethtool -L eth0 combined {queues}"));
        answers(many, "10.0.0.2", SOON);
    }
    sound(&shuntd, &["many", "one", "split"]);
    many.reboot();
    one.reboot();
    exchange(many, one, ["10.0.0.1", "10.0.0.2"]);
    sound(&shuntd, &["many", "one", "split"]);
}

/// The positions of a packed ring are the frontend's to keep: a guest stopped and continued goes on where it was.
#[test]
fn a_stopped_guest_goes_on() {
    let shuntd = Shuntd::start();
    let [left, right] = ["left", "right"].map(|name| shuntd.vhost_port(name, ""));
    let guests = boot_all([
        GuestSpec::new("left").nic(packed(Nic::connects(&left)).address("10.0.0.1/24")),
        GuestSpec::new("right").nic(packed(Nic::connects(&right)).address("10.0.0.2/24")),
    ]);
    let [left, right] = &guests;
    answers(left, "10.0.0.2", SOON);
    for round in 0..3 {
        copy_intact(left, right, "10.0.0.2", 2 + round);
        right.qmp("stop", json!({}));
        wait_for("the port to see its rings stop", SOON, || {
            (shuntd.port("right")["state"] == "down").then_some(())
        });
        right.qmp("cont", json!({}));
        answers(left, "10.0.0.2", SOON);
    }
    copy_intact(right, left, "10.0.0.1", 4);
    sound(&shuntd, &["left", "right"]);
}
